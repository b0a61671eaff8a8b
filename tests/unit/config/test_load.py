"""Configuration files: an error names the file, the line, the key and the expected value."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from wsqueue.config import model
from wsqueue.config.load import MAX_FILE_BYTES, load_any_config, load_config
from wsqueue.config.model import (
    MAX_TOPIC_TABLES,
    ClientConfig,
    Config,
    ConsumerConfig,
    Limits,
    ProducerConfig,
    role_of,
)
from wsqueue.protocol.keys import Order

from ...support.config_files import CONSUMER, DEMO, PRODUCER, ConfigFile, refusal


class TestGoodFiles:
    def test_everything(self, file: ConfigFile) -> None:
        config = file.load("""
            hello_order = "reversed"
            log_level = "debug"
            local = true
            psk_file = "secrets/psk"
            role = "producer"
            listen = ["[::1]:0", "127.0.0.1:0", "unix:/run/wsqueue.sock"]
            consumers = ["[::1]:1/producer", "unix:/run/q.sock:/producer", "LocalHost:2/producer"]
            [limits]
            max_message_bytes = 1
            max_topic_bytes = 2600
            max_buffered_bytes = 1_048_577
            hello_seconds = 0.001
            close_seconds = 86400
            reconnect_max_seconds = 1e3
            [monitoring]
            listen = ["127.0.0.1:20001"]
            pages = "all"
            producers = ["localhost:3"]
            top_topics = 100
        """)
        assert isinstance(config, ProducerConfig)
        assert (config.hello_order, config.log_level, config.local) == (Order.REVERSED, "debug", True)
        assert config.psk_file == str(file.path.parent / "secrets/psk")
        links = ["[::1]:1/producer", "unix:/run/q.sock:/producer", "localhost:2/producer"]
        assert [str(link) for link in config.links] == links
        seconds = {"hello_seconds": 0.001, "close_seconds": 86_400.0, "reconnect_max_seconds": 1000.0}
        sizes = {"max_message_bytes": 1, "max_topic_bytes": 2600, "max_buffered_bytes": 1_048_577}
        assert config.limits == Limits(**sizes, **seconds)  # type: ignore[arg-type]
        assert config.monitoring == model.Monitoring(
            listen=["127.0.0.1:20001"], pages="all", producers=["localhost:3"], top_topics=100
        )

    def test_other_good_files(self, file: ConfigFile) -> None:
        assert file.load(CONSUMER + 'psk_file = "/etc/wsqueue/psk"\n').psk_file == "/etc/wsqueue/psk"
        assert file.load(PRODUCER.replace("\n", "\r\n")) == file.load(PRODUCER)
        assert file.load(CONSUMER + "#" * (MAX_FILE_BYTES - len(CONSUMER))) == file.load(CONSUMER)

    @pytest.mark.parametrize("kind", [ConsumerConfig, ProducerConfig, ClientConfig])
    @pytest.mark.parametrize("text", [CONSUMER, PRODUCER, DEMO])
    def test_the_role(self, file: ConfigFile, text: str, kind: type[Config]) -> None:
        config = file.load("# a comment\n\n" + text)
        if type(config) is kind:
            assert load_config(str(file.path), kind) == config
            return
        error = refusal(file.path, kind)
        assert (error.line, error.key) == (3, "role")
        assert f"expected {role_of(kind)!r}, found {role_of(type(config))!r}" in error.problem


BY_TOPIC = """[[retention.topics]]
match = "a"
max_age_seconds = 1.5
[[retention.topics]]
match = "b"
"""

TOO_MANY = '[[retention.topics]]\nmatch = "a"\nmax_age_seconds = 1\n' * (MAX_TOPIC_TABLES + 1)


class TestKeys:
    """Errors in keys and values."""

    @pytest.mark.parametrize(
        ("text", "line", "key", "problem"),
        [
            (CONSUMER + "lisen = 1\n", 3, "lisen", "unknown key: did you mean listen?"),
            (CONSUMER + "\n\n  psk = 'x'\n", 5, "psk", "unknown key: did you mean psk_file?"),
            (CONSUMER + '"loglevel" = 1\n', 3, "loglevel", "unknown key: did you mean log_level?"),
            (CONSUMER + "consumers = []\n", 3, "consumers", "expected only for role producer or demo"),
            (CONSUMER + "qqq = 1\n", 3, "qqq", "unknown key: expected one of role, psk_file, allow_classic"),
            (CONSUMER + "[limit]\nx = 1\n", 3, "limit", "unknown key: did you mean limits?"),
            (CONSUMER + "[limits]\n\nqqq = 1\n", 5, "limits.qqq", "unknown key: expected one of max_mess"),
            (
                CONSUMER + '[retention]\nmode = "jetstream"\n',
                3,
                "retention",
                "the mode jetstream needs servers: expected the table [retention.jetstream] with",
            ),
            (
                CONSUMER + "[retention.jetstream]\nreplicas = 2\n",
                4,
                "retention.jetstream.replicas",
                "Invalid enum value 2: expected one of 1, 3, 5",
            ),
            (
                CONSUMER + "[retention.jetstream]\nreplica = 3\n",
                4,
                "retention.jetstream.replica",
                "unknown key: did you mean replicas?",
            ),
            (
                CONSUMER + BY_TOPIC + "max_messages = 1\n",
                8,
                "retention.topics[1].max_messages",
                "unknown key: did you mean max_messages_per_topic?",
            ),
            (
                CONSUMER + BY_TOPIC + "max_messages_per_topic = 0\n",
                8,
                "retention.topics[1].max_messages_per_topic",
                "expected int >= 1",
            ),
            (
                CONSUMER + BY_TOPIC,
                6,
                "retention.topics[1]",
                "expected max_bytes_per_topic, max_messages_per_topic or max_age_seconds beside match",
            ),
            (
                CONSUMER + BY_TOPIC.replace('match = "b"', "max_age_seconds = 1"),
                6,
                "retention.topics[1].match",
                "required and missing",
            ),
            (
                CONSUMER + BY_TOPIC.replace('"b"', '"*b"') + "max_bytes_per_topic = 1\n",
                7,
                "retention.topics[1].match",
                "'*b' has a * before its end: expected a topic, or its beginning and one *",
            ),
            (
                CONSUMER + BY_TOPIC + "max_age_seconds = 1\n[retention]\nmax_age_seconds = 0\n",
                10,
                "retention.max_age_seconds",
                "expected float > 0",
            ),
            (
                CONSUMER + 'retention.topics = [{match = "a", max_age_seconds = 1}, {match = 1}]\n',
                3,
                "retention.topics[1].match",
                "expected str",
            ),
            (
                CONSUMER + f"[retention]\n{TOO_MANY}",
                4,
                "retention.topics",
                f"array of length <= {MAX_TOPIC_TABLES}",
            ),
            (CONSUMER + "[limits]\nlocal = true\n", 4, "limits.local", "unknown key"),
            (DEMO + "[monitoring]\n", 4, "monitoring", "expected only for role consumer or producer"),
            (CONSUMER + "local = 1\n", 3, "local", "expected bool, got int"),
            (CONSUMER + "psk_file = 7\n", 3, "psk_file", "expected str"),
            (CONSUMER + "limits = 3\n", 3, "limits", "expected object, got int"),
            (CONSUMER + 'log_level = "loud"\n', 3, "log_level", "expected one of debug, info, warning"),
            (PRODUCER + 'hello_order = "backward"\n', 4, "hello_order", "expected one of document, reversed"),
            ('role = "consumer"\nlisten = "127.0.0.1:1"\n', 2, "listen", "expected array, got str"),
            ('role = "consumer"\nlisten = [\n"[::1]:1",\n7,\n]\n', 2, "listen[1]", "expected str, got int"),
            (PRODUCER + "consumers = 3\n", 4, "", "not TOML"),
            ('role = "producer"\nlisten = ["[::1]:1"]\n', None, "consumers", "required and missing"),
            (DEMO.replace("producers", "#"), None, "producers", "required and missing"),
            ("", None, "role", "required and missing"),
            ("\nrole = 7\n", 2, "role", "expected one of consumer, producer, demo"),
        ],
    )
    def test_keys_and_types(
        self, file: ConfigFile, text: str, line: int | None, key: str, problem: str
    ) -> None:
        error = file.refusal(text)
        assert (error.line, error.key) == (line, key)
        assert problem in error.problem
        if line is not None:
            assert str(error).startswith(f"{error.file}:{line}: ")

    @pytest.mark.parametrize(
        ("table", "setting", "expected"),
        [
            ("limits", "max_message_bytes = 0", "int >= 1"),
            ("limits", "max_message_bytes = 1.5", "expected int, got float"),
            ("limits", "max_topic_bytes = 2601", "int <= 2600"),
            ("limits", "max_topic_byte = 1", "unknown key: did you mean max_topic_bytes?"),
            ("limits", "hello_seconds = 0", "float > 0"),
            ("limits", "ping_timeout_seconds = inf", "float <= 86400"),
            ("limits", "reconnect_max_seconds = nan", "float"),
            ("monitoring", 'pages = "some"', "expected one of none, loopback, all"),
            ("monitoring", "top_topics = 101", "int <= 100"),
            ("monitoring", 'listen = "127.0.0.1:1"', "expected array, got str"),
        ],
    )
    def test_tables(self, file: ConfigFile, table: str, setting: str, expected: str) -> None:
        key = f"{table}.{setting.partition(' ')[0]}"
        for text, line in ((f"[{table}]\n# a comment\n{setting}\n", 5), (f"{table}.{setting}\n", 3)):
            error = file.refusal(CONSUMER + text)
            assert (error.key, error.line) == (key, line)
            assert expected in error.problem

    @pytest.mark.parametrize(
        "text",
        [
            "[limits]\nmax_message_bytes = 4_000_000\n",
            "limits = { max_message_bytes = 4_000_000 }\n",
            "limits.max_message_bytes = 4_000_000\n",
        ],
    )
    def test_a_table_whose_values_contradict_each_other(self, file: ConfigFile, text: str) -> None:
        error = file.refusal(CONSUMER + text)
        assert "expected max_buffered_bytes to be at least max_message_bytes + 1048576" in error.problem
        assert (error.key, error.line) == ("limits", 3)


class TestSites:
    @pytest.mark.parametrize("entry", ["", "a:80", "[::1]", "http://a", "a b"])
    def test_hosts_that_are_refused(self, file: ConfigFile, entry: str) -> None:
        error = file.refusal(f'{CONSUMER}hosts = ["localhost", "{entry}"]\n')
        assert (error.key, error.line) == ("hosts[1]", 3)
        assert "is not a host: expected a name or an IP address" in error.problem

    @pytest.mark.parametrize(
        "entry", ["", "*", "a.example", "https://a/", "https://a/b", "ws://a", "http://a:b"]
    )
    def test_origins_that_are_refused(self, file: ConfigFile, entry: str) -> None:
        error = file.refusal(f'{CONSUMER}origins = ["https://a", "{entry}"]\n')
        assert (error.key, error.line) == ("origins[1]", 3)
        assert "is not an origin: expected https://host, with :port" in error.problem

    def test_taken(self, file: ConfigFile) -> None:
        hosts = ["Node_1.example", "192.0.2.1", "2001:db8::7"]
        origins = ["https://a", "http://[::1]:80", "null"]
        config = file.load(f"{CONSUMER}hosts = {hosts}\norigins = {origins}\n")
        assert isinstance(config, ConsumerConfig)
        assert (config.hosts, config.origins) == (hosts, origins)


class TestLines:
    """The line is right however the file is laid out."""

    def test_of_a_table_in_one_line(self, file: ConfigFile) -> None:
        error = file.refusal(CONSUMER + "limits = { max_connections = 9, max_held_bytes = 0 }\n")
        assert (error.line, error.key) == (3, "limits.max_held_bytes")

    @pytest.mark.parametrize("header", ["[limits]", "[ limits ] # bounds", '["limits"]', "['limits']"])
    def test_of_a_key_in_a_table(self, file: ConfigFile, header: str) -> None:
        error = file.refusal(f"{CONSUMER}\n{header}\nmax_topic_bytes = 1\nmax_connections = 0\n")
        assert (error.key, error.line) == ("limits.max_connections", 6)

    def test_of_a_list_in_a_table(self, file: ConfigFile) -> None:
        error = file.refusal(f'{CONSUMER}[monitoring]\nproducers = [\n"[::1]:1",\n"[::1]:0",\n]\n')
        assert (error.key, error.line) == ("monitoring.producers[1]", 4)

    def test_of_a_key_that_a_comment_and_a_text_have_too(self, file: ConfigFile) -> None:
        text = CONSUMER + '# log_level = "info"\npsk_file = """\nlog_level = 1"""\nlog_level = 3'
        error = file.refusal(text)
        assert error.key == "log_level"
        assert error.line in (5, 6)

    @pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
    def test_with_characters_that_are_no_line_ends_in_toml(self, file: ConfigFile, separator: str) -> None:
        error = file.refusal(f"# a{separator}b\n{CONSUMER}lisen = 1\n")
        assert (error.key, error.line) == ("lisen", 4)


class TestUnreadableFiles:
    @pytest.mark.parametrize(
        ("text", "line"),
        [
            *(("x = = 1\n", 1), ("{}", 1), ("a = 1\0\n", 1), (CONSUMER + "\n[limits\n", 4)),
            *((CONSUMER + wrong, 3) for wrong in ("listen = []\n", 'psk_file = "x\n', "hello\n")),
        ],
    )
    def test_not_toml(self, file: ConfigFile, text: str, line: int) -> None:
        error = file.refusal(text)
        assert error.line == line
        assert error.problem.startswith("not TOML: ")
        assert len(error.problem) > len("not TOML: ")

    @pytest.mark.parametrize(
        "text",
        [
            f"{CONSUMER}x = {'[' * 5000}{']' * 5000}\n",
            f"{CONSUMER}[limits]\nmax_connections = {'9' * 5000}\n",
            f"{CONSUMER}[{'a.' * 5000}a]\n",
        ],
    )
    def test_toml_that_python_cannot_read(self, file: ConfigFile, text: str) -> None:
        assert file.refusal(text).problem

    def test_not_a_text_file(self, file: ConfigFile) -> None:
        assert "not UTF-8" in file.refusal(CONSUMER.encode() + b"# \xff\n").problem
        assert refusal(Path("/proc/self/mem")).problem == "cannot read it: Input/output error"
        text = CONSUMER + "#" * (MAX_FILE_BYTES - len(CONSUMER) + 1)
        assert f"more than {MAX_FILE_BYTES} bytes" in file.refusal(text).problem

    def test_paths_that_lead_to_no_file(self, file: ConfigFile, tmp_path: Path) -> None:
        file.load(CONSUMER)
        assert "No such file" in refusal(tmp_path / "missing.toml").problem
        assert "Is a directory" in refusal(tmp_path).problem
        assert "Not a directory" in refusal(file.path / "node.toml").problem
        assert all(refusal(tmp_path / name).problem for name in ("a\0b", "x" * 5000))

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_unreadable(self, file: ConfigFile) -> None:
        file.load(CONSUMER)
        file.path.chmod(0)
        assert "Permission denied" in refusal(file.path).problem

    @pytest.mark.parametrize(
        "setting", ['psk = "SECRET"', 'psk_file = ["SECRET"]', 'limits = "SECRET"', "x = SECRET"]
    )
    def test_a_key_in_the_configuration_is_not_shown(self, file: ConfigFile, setting: str) -> None:
        error = file.refusal(f"{CONSUMER}{setting}\n")
        assert error.line == 3
        assert "SECRET" not in f"{error} {error!r} {vars(error)}"


def test_a_file_is_named_by_a_path_or_a_text(file: ConfigFile) -> None:
    assert file.load(CONSUMER) == load_any_config(str(file.path))
