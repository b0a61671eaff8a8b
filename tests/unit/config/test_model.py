from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from wsqueue.config.addresses import Address
from wsqueue.config.check import check_addresses, config_warnings
from wsqueue.config.keys import DEFAULT_PSK, MAX_PSK_BYTES, load_psk
from wsqueue.config.load import MAX_FILE_BYTES, load_any_config, load_config
from wsqueue.config.model import (
    READ_MARGIN_BYTES,
    ClientConfig,
    Config,
    ConsumerConfig,
    Limits,
    Monitoring,
    NodeConfig,
    ProducerConfig,
    role_of,
)
from wsqueue.errors import ConfigError
from wsqueue.protocol.keys import Order, PreSharedKey

SECRET = "a rather good secret"

CONSUMER = 'role = "consumer"\nlisten = ["127.0.0.1:10001"]\n'
PRODUCER = 'role = "producer"\nlisten = ["127.0.0.1:10002"]\nconsumers = ["127.0.0.1:10001/producer"]\n'
DEMO = 'role = "demo"\nproducers = ["127.0.0.1:10002/produce"]\nconsumers = ["127.0.0.1:10001/subscribe"]\n'

Write = Callable[[str | bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes a configuration file."""

    def write(content: str | bytes) -> Path:
        file = tmp_path / "node.toml"
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        return file

    return write


@pytest.fixture(autouse=True)
def no_key_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WSQUEUE_PSK", raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)


def refusal(file: Path, kind: type[Config] | None = None) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_any_config(file) if kind is None else load_config(file, kind)
    assert caught.value.file == str(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)
    return caught.value


class TestGoodFiles:
    def test_the_shortest_consumer(self, write: Write) -> None:
        config = load_config(write(CONSUMER), ConsumerConfig)
        assert config == ConsumerConfig(listen=["127.0.0.1:10001"])
        assert config.listeners == [Address(host="127.0.0.1", port=10001)]
        assert (config.psk_file, config.local, config.log_level) == (None, False, "info")

    def test_the_shortest_producer(self, write: Write) -> None:
        config = load_config(write(PRODUCER), ProducerConfig)
        assert config.links == [Address(host="127.0.0.1", port=10001, path="/producer")]
        assert config.hello_order is Order.DOCUMENT

    def test_the_shortest_demo(self, write: Write) -> None:
        config = load_config(write(DEMO), ClientConfig)
        assert config.produce_addresses == [Address(host="127.0.0.1", port=10002, path="/produce")]
        assert config.subscribe_addresses == [Address(host="127.0.0.1", port=10001, path="/subscribe")]
        assert config.hello_order is Order.DOCUMENT

    def test_everything(self, write: Write, tmp_path: Path) -> None:
        text = """
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
            max_connections = 1
            max_buffered_bytes = 1_048_577
            max_held_bytes = 1
            hello_seconds = 0.001
            close_seconds = 86400
            ping_interval_seconds = 1
            ping_timeout_seconds = 1.5
            reconnect_max_seconds = 1e3
            drain_seconds = 60
        """
        config = load_config(write(text), ProducerConfig)
        assert (config.hello_order, config.log_level, config.local) == (Order.REVERSED, "debug", True)
        assert config.psk_file == str(tmp_path / "secrets/psk")
        assert [str(link) for link in config.links] == [
            "[::1]:1/producer",
            "unix:/run/q.sock:/producer",
            "localhost:2/producer",
        ]
        assert config.limits == Limits(
            max_message_bytes=1,
            max_topic_bytes=2600,
            max_connections=1,
            max_buffered_bytes=READ_MARGIN_BYTES + 1,
            max_held_bytes=1,
            hello_seconds=0.001,
            close_seconds=86_400.0,
            ping_interval_seconds=1.0,
            ping_timeout_seconds=1.5,
            reconnect_max_seconds=1000.0,
            drain_seconds=60.0,
        )

    @pytest.mark.parametrize(
        ("text", "kind", "role"),
        [
            (CONSUMER, ConsumerConfig, "consumer"),
            (PRODUCER, ProducerConfig, "producer"),
            (DEMO, ClientConfig, "demo"),
        ],
    )
    def test_the_role_decides_the_kind(self, write: Write, text: str, kind: type[Config], role: str) -> None:
        config = load_any_config(write(text))
        assert type(config) is kind
        assert role_of(kind) == role
        assert load_config(str(write(text)), kind) == config

    @pytest.mark.parametrize(("text", "fits"), [(CONSUMER, True), (PRODUCER, True), (DEMO, False)])
    def test_any_node(self, write: Write, text: str, fits: bool) -> None:
        assert isinstance(load_any_config(write(text)), NodeConfig) == fits

    def test_order_is_kept(self, write: Write) -> None:
        entries = [f"192.0.2.{number}:1/producer" for number in (9, 3, 7)]
        config = load_config(
            write(PRODUCER.replace('["127.0.0.1:10001/producer"]', str(entries))), ProducerConfig
        )
        assert [str(link) for link in config.links] == entries

    def test_windows_line_ends(self, write: Write) -> None:
        assert load_any_config(write(PRODUCER.replace("\n", "\r\n"))) == load_any_config(write(PRODUCER))

    def test_a_configuration_is_frozen(self, write: Write) -> None:
        with pytest.raises(AttributeError):
            load_any_config(write(CONSUMER)).local = True  # type: ignore[misc]

    def test_an_absolute_psk_file_stays(self, write: Write) -> None:
        assert (
            load_any_config(write(CONSUMER + 'psk_file = "/etc/wsqueue/psk"\n')).psk_file
            == "/etc/wsqueue/psk"
        )

    def test_port_0_may_be_there_twice(self, write: Write) -> None:
        config = load_config(write(CONSUMER.replace("10001", '0", "127.0.0.1:0')), ConsumerConfig)
        assert len(config.listeners) == 2

    def test_a_file_of_the_largest_size(self, write: Write) -> None:
        assert load_any_config(write(CONSUMER + "#" * (MAX_FILE_BYTES - len(CONSUMER)))) == load_any_config(
            write(CONSUMER)
        )


class TestWrongFiles:
    """Each error names the file, the line, the key and what is expected."""

    @pytest.mark.parametrize(
        ("text", "line", "key", "problem"),
        [
            (CONSUMER + "lisen = 1\n", 3, "lisen", "unknown key: did you mean listen?"),
            (CONSUMER + "\n\n  psk = 'x'\n", 5, "psk", "unknown key: did you mean psk_file?"),
            (CONSUMER + '"loglevel" = 1\n', 3, "loglevel", "unknown key: did you mean log_level?"),
            (CONSUMER + "consumers = []\n", 3, "consumers", "unknown key"),
            (
                CONSUMER + "qqq = 1\n",
                3,
                "qqq",
                "unknown key: expected one of role, psk_file, allow_classic, local, tls, limits",
            ),
            (CONSUMER + "[limit]\nx = 1\n", 3, "limit", "unknown key: did you mean limits?"),
            (
                CONSUMER + "[limits]\nmax_topic_byte = 1\n",
                4,
                "limits.max_topic_byte",
                "unknown key: did you mean max_topic_bytes?",
            ),
            (
                CONSUMER + "[limits]\nmax_topic_bytes = 1\nqqq = 1\n",
                5,
                "limits.qqq",
                "unknown key: expected one of max_message_bytes, max_topic_bytes",
            ),
            (CONSUMER + "[limits]\nlocal = true\n", 4, "limits.local", "unknown key"),
            (CONSUMER + "local = 1\n", 3, "local", "expected bool, got int"),
            (CONSUMER + 'local = "true"\n', 3, "local", "expected bool, got str"),
            (CONSUMER + "psk_file = 7\n", 3, "psk_file", "expected str"),
            (CONSUMER + "limits = 3\n", 3, "limits", "expected object, got int"),
            (CONSUMER + "log_level = 3\n", 3, "log_level", "expected str, got int"),
            ('role = "consumer"\nlisten = "127.0.0.1:1"\n', 2, "listen", "expected array, got str"),
            (
                'role = "consumer"\nlisten = [\n"127.0.0.1:1",\n7,\n]\n',
                4,
                "listen[1]",
                "expected str, got int",
            ),
            (PRODUCER + "consumers = 3\n", 4, "", "not TOML"),
            ('role = "consumer"\n', None, "listen", "required and missing"),
            ('role = "producer"\nlisten = ["[::1]:1"]\n', None, "consumers", "required and missing"),
            (DEMO.replace("producers", "#"), None, "producers", "required and missing"),
            ('listen = ["127.0.0.1:1"]\n', None, "role", "required and missing"),
            ("", None, "role", "required and missing"),
            ('role = "consumr"\n', 1, "role", "expected one of consumer, producer, demo"),
            ("\nrole = 7\n", 2, "role", "expected one of consumer, producer, demo"),
            ('role = "consumer"\nlisten = []\n', 2, "listen", "the list is empty: expected host:port"),
            (DEMO.replace('["127.0.0.1:10002/produce"]', "[]"), 2, "producers", "expected host:port/produce"),
        ],
    )
    def test_keys_and_types(self, write: Write, text: str, line: int | None, key: str, problem: str) -> None:
        error = refusal(write(text))
        assert (error.line, error.key) == (line, key)
        assert problem in error.problem
        if line is not None:
            assert str(error).startswith(f"{error.file}:{line}: ")

    @pytest.mark.parametrize(
        ("text", "line", "key", "choices"),
        [
            (CONSUMER + 'log_level = "loud"\n', 3, "log_level", ["debug", "info", "warning", "error"]),
            (PRODUCER + 'hello_order = "backward"\n', 4, "hello_order", ["document", "reversed"]),
        ],
    )
    def test_choices(self, write: Write, text: str, line: int, key: str, choices: list[str]) -> None:
        error = refusal(write(text))
        assert (error.line, error.key) == (line, key)
        assert all(choice in error.problem for choice in choices)

    @pytest.mark.parametrize(
        ("setting", "expected"),
        [
            ("max_message_bytes = 0", "int >= 1"),
            ("max_message_bytes = -1", "int >= 1"),
            ("max_message_bytes = 1.5", "expected int, got float"),
            ("max_message_bytes = true", "expected int, got bool"),
            ('max_message_bytes = "1"', "expected int, got str"),
            ("max_topic_bytes = 0", "int >= 1"),
            ("max_topic_bytes = 2601", "int <= 2600"),
            ("max_connections = 0", "int >= 1"),
            ("max_held_bytes = 0", "int >= 1"),
            ("hello_seconds = 0", "float > 0"),
            ("close_seconds = -1", "float > 0"),
            ("ping_interval_seconds = 86_401", "float <= 86400"),
            ("ping_timeout_seconds = inf", "float <= 86400"),
            ("reconnect_max_seconds = nan", "float"),
            ("drain_seconds = true", "expected float, got bool"),
        ],
    )
    def test_limits(self, write: Write, setting: str, expected: str) -> None:
        for text, line in ((f"[limits]\n# a comment\n{setting}\n", 5), (f"limits.{setting}\n", 3)):
            error = refusal(write(CONSUMER + text))
            assert error.key == f"limits.{setting.partition(' ')[0]}"
            assert expected in error.problem
            assert error.line == line

    def test_limits_in_one_line(self, write: Write) -> None:
        error = refusal(write(CONSUMER + "limits = { max_connections = 9, max_held_bytes = 0 }\n"))
        assert (error.line, error.key) == (3, "limits.max_held_bytes")

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("[limits]\nmax_message_bytes = 4_000_000\n", 3),
            ("limits = { max_message_bytes = 4_000_000 }\n", 3),
            ("limits.max_message_bytes = 4_000_000\n", 3),
        ],
    )
    def test_a_write_buffer_that_one_read_overflows(self, write: Write, text: str, line: int) -> None:
        error = refusal(write(CONSUMER + text))
        assert "expected max_buffered_bytes to be at least max_message_bytes + 1048576" in error.problem
        assert error.key.startswith("limits")
        assert error.line == line

    def test_the_smallest_write_buffer(self, write: Write) -> None:
        limits = "[limits]\nmax_message_bytes = 10\nmax_buffered_bytes = %d\n"
        assert (
            load_any_config(write(CONSUMER + limits % (READ_MARGIN_BYTES + 10))).limits.max_message_bytes
            == 10
        )
        refusal(write(CONSUMER + limits % (READ_MARGIN_BYTES + 9)))

    @pytest.mark.parametrize(
        ("entry", "problem"),
        [
            ("node:1", "is not an address: expected host:port/producer"),
            ("node:1/subscribe", "is not an address: expected host:port/producer"),
            ("ws://node:1/producer", "with TLS wss://host:port/producer"),
            ("wss://node:1/produce", "with TLS wss://host:port/producer"),
            ("node/producer", "is not an address"),
            ("node:65536/producer", "is not an address"),
            ("", "is not an address"),
            ("node:0/producer", "has no port to connect to: expected 1 to 65535"),
            ("[::1]:0/producer", "has no port to connect to: expected 1 to 65535"),
            ("127.0.0.1:7/producer", "is there twice: expected each address once"),
            ("NODE.example:7/producer", "is there twice: expected each address once"),
            ("unix:/run/q:/producer", "is there twice: expected each address once"),
            ("[2001:DB8::7]:7/producer", "is there twice: expected each address once"),
        ],
    )
    def test_addresses_to_connect_to(self, write: Write, entry: str, problem: str) -> None:
        good = ["127.0.0.1:7/producer", "node.example:7/producer", "unix:/run/q:/producer"]
        good.append("[2001:db8::7]:7/producer")
        items = "".join(f'    "{item}", # a comment\n' for item in good)
        text = f'role = "producer"\nlisten = ["[::1]:1"]\n\nconsumers = [\n{items}  "{entry}",\n]\n'
        error = refusal(write(text))
        assert error.key == "consumers[4]"
        assert repr(entry) in error.problem
        assert problem in error.problem
        assert error.line == 9

    @pytest.mark.parametrize(
        ("entry", "problem"),
        [
            ("127.0.0.1:10001/producer", "expected host:port, [ipv6]:port or unix:/path"),
            ("10001", "expected host:port"),
            (":10001", "expected host:port"),
            ("127.0.0.1:9", "is there twice"),
            ("unix:" + "/x" * 60, "at most 107 bytes"),
        ],
    )
    def test_addresses_to_listen_on(self, write: Write, entry: str, problem: str) -> None:
        error = refusal(write(f"role = 'consumer'\nlisten = [\n '127.0.0.1:9',\n '{entry}']\n"))
        assert (error.line, error.key) == (4, "listen[1]")
        assert problem in error.problem

    @pytest.mark.parametrize(
        "text",
        [
            CONSUMER.replace("127.0.0.1", "0.0.0.0"),  # noqa: S104 - nothing is bound
            CONSUMER.replace("127.0.0.1", "[::]"),
            PRODUCER.replace("127.0.0.1:10001", "192.0.2.7:1"),
            DEMO.replace("127.0.0.1:10002", "node:1"),
            DEMO.replace("127.0.0.1:10001", "[2001:db8::1]:1"),
        ],
    )
    def test_a_local_cluster_is_on_loopback(self, write: Write, text: str) -> None:
        load_any_config(write(text))
        error = refusal(write("local = true\n" + text))
        assert "not on loopback" in error.problem
        assert "expected e.g. 127.0.0.1" in error.problem
        assert error.line in (3, 4)

    @pytest.mark.parametrize("role", [ConsumerConfig, ProducerConfig, ClientConfig])
    @pytest.mark.parametrize(
        ("text", "found"), [(CONSUMER, "consumer"), (PRODUCER, "producer"), (DEMO, "demo")]
    )
    def test_another_role(self, write: Write, text: str, found: str, role: type[Config]) -> None:
        file = write("# a comment\n\n" + text)
        if role_of(role) == found:
            load_config(file, role)
            return
        error = refusal(file, role)
        assert (error.line, error.key) == (3, "role")
        assert f"expected {role_of(role)!r}, found {found!r}" in error.problem

    @pytest.mark.parametrize(
        ("text", "line"),
        [
            ("x = = 1\n", 1),
            (CONSUMER + "\n[limits\n", 4),
            (CONSUMER + "listen = []\n", 3),
            (CONSUMER + 'psk_file = "x\n', 3),
            (CONSUMER + 'psk_file = "\\q"\n', 3),
            (CONSUMER + "hello\n", 3),
            ("{}", 1),
            ("a = 1\0\n", 1),
        ],
    )
    def test_not_toml(self, write: Write, text: str, line: int) -> None:
        error = refusal(write(text))
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
    def test_toml_that_python_chokes_on(self, write: Write, text: str) -> None:
        assert refusal(write(text)).problem

    def test_not_utf8(self, write: Write) -> None:
        assert "not UTF-8" in refusal(write(CONSUMER.encode() + b"# \xff\n")).problem

    def test_too_large(self, write: Write) -> None:
        text = CONSUMER + "#" * (MAX_FILE_BYTES - len(CONSUMER) + 1)
        assert f"more than {MAX_FILE_BYTES} bytes" in refusal(write(text)).problem

    def test_no_file(self, tmp_path: Path) -> None:
        assert "No such file" in refusal(tmp_path / "missing.toml").problem

    def test_a_directory(self, tmp_path: Path) -> None:
        assert "Is a directory" in refusal(tmp_path).problem

    def test_a_file_in_a_file(self, write: Write) -> None:
        assert "Not a directory" in refusal(write(CONSUMER) / "node.toml").problem

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_unreadable(self, write: Write) -> None:
        file = write(CONSUMER)
        file.chmod(0)
        assert "Permission denied" in refusal(file).problem

    def test_a_file_that_cannot_be_read_to_its_end(self) -> None:
        assert refusal(Path("/proc/self/mem")).problem == "cannot read it: Input/output error"

    @pytest.mark.parametrize("name", ["a\0b", "x" * 5000])
    def test_a_name_that_no_file_can_have(self, tmp_path: Path, name: str) -> None:
        assert refusal(tmp_path / name).problem


class TestLines:
    """The line is right however the file is laid out."""

    @pytest.mark.parametrize(
        ("listen", "line"),
        [
            ('["127.0.0.1:1", "bad"]', 2),
            ('[\n"127.0.0.1:1", "bad"]', 3),
            ('[\n\n"127.0.0.1:1",\n\n"bad"\n]', 6),
            ("[ # where\n  '127.0.0.1:1', # one\n  'bad', # two\n]", 4),
            ('[\n"127.0.0.1:1",\n# "bad" was here\n"bad",\n]', 5),
            ('[\n"127.0.0.1:1",\n"b\\u0061d",\n]', 4),
            ('[\n"127.0.0.1:1",\n"""bad""",\n]', 4),
            ('["127.0.0.1:1",\n"bad", "[::1]:1",\n"[::1]:2"]', 3),
        ],
    )
    def test_of_an_item(self, write: Write, listen: str, line: int) -> None:
        error = refusal(write(f'role = "consumer"\nlisten = {listen}\n'))
        assert (error.key, error.line) == ("listen[1]", line)

    def test_of_the_second_of_two_equal_items(self, write: Write) -> None:
        error = refusal(write('role = "consumer"\nlisten = [\n"[::1]:1",\n"[::1]:2",\n"[::1]:1",\n]\n'))
        assert (error.key, error.line) == ("listen[2]", 5)

    def test_of_an_item_that_is_the_beginning_of_another(self, write: Write) -> None:
        error = refusal(write('role = "consumer"\nlisten = [\n"[::1]:1",\n"bad:x",\n"bad",\n]\n'))
        assert (error.key, error.line) == ("listen[1]", 4)

    def test_of_a_key_with_its_namesake_in_another_place(self, write: Write) -> None:
        text = CONSUMER + '# log_level = "info"\npsk_file = """\nlog_level = 1"""\n[limits]\n'
        error = refusal(write(text.replace("[limits]", "log_level = 3")))
        assert error.key == "log_level"
        assert error.line in (5, 6)

    @pytest.mark.parametrize("header", ["[limits]", "[ limits ] # bounds", '["limits"]', "['limits']"])
    def test_of_a_key_in_a_table(self, write: Write, header: str) -> None:
        error = refusal(write(f"{CONSUMER}\n{header}\nmax_topic_bytes = 1\nmax_connections = 0\n"))
        assert (error.key, error.line) == ("limits.max_connections", 6)

    @pytest.mark.parametrize("separator", ["\u2028", "\u2029", "\x85"])
    def test_with_characters_that_are_no_line_ends_in_toml(self, write: Write, separator: str) -> None:
        error = refusal(write(f"# a{separator}b\n{CONSUMER}lisen = 1\n"))
        assert (error.key, error.line) == ("lisen", 4)


class TestMonitoring:
    """Who may see how a node is, and where the others are."""

    def test_its_defaults(self, write: Write) -> None:
        config = load_config(write(CONSUMER), ConsumerConfig)
        assert config.monitoring == Monitoring()
        assert (config.monitoring.pages, config.monitoring.top_topics) == ("loopback", 10)
        assert config.page_listeners == config.all_consumers == config.all_producers == config.peers == []

    def test_everything(self, write: Write) -> None:
        text = """
            [monitoring]
            listen = ["127.0.0.1:20001", "unix:/run/pages.sock", "[::1]:0"]
            pages = "all"
            consumers = ["wss://c1.example:1", "[::1]:2", "unix:/run/c.sock"]
            producers = ["p1.example:3", "c1.example:1"]
            top_topics = 100
        """
        config = load_config(write(CONSUMER + text), ConsumerConfig)
        assert config.page_listeners == [
            Address(host="127.0.0.1", port=20001),
            Address(socket="/run/pages.sock"),
            Address(host="::1"),
        ]
        assert config.all_consumers == [
            Address(host="c1.example", port=1, tls=True),
            Address(host="::1", port=2),
            Address(socket="/run/c.sock"),
        ]
        assert config.all_producers == [
            Address(host="p1.example", port=3),
            Address(host="c1.example", port=1),
        ]
        assert config.peers == config.all_consumers + config.all_producers
        assert (config.monitoring.pages, config.monitoring.top_topics) == ("all", 100)

    def test_a_producer_knows_the_consumers_of_its_links(self, write: Write) -> None:
        text = PRODUCER.replace("127.0.0.1:10001/", "wss://c1.example:1/q/")
        config = load_config(write(text), ProducerConfig)
        assert config.all_consumers == [Address(host="c1.example", port=1, tls=True)]
        config = load_config(write(text + '[monitoring]\nconsumers = ["c2.example:1"]\n'), ProducerConfig)
        assert config.all_consumers == [Address(host="c2.example", port=1)]
        assert [address.host for address in config.peers] == ["c1.example", "c2.example"]

    @pytest.mark.parametrize("key", ["listen", "consumers", "producers"])
    @pytest.mark.parametrize(
        ("entry", "problem"),
        [
            ("node", "is not an address: expected host:port, [ipv6]:port or unix:/path"),
            ("ws://node:1", "is not an address: expected host:port"),
            ("http://node:1/", "is not an address: expected host:port"),
            ("node:1/status", "is not an address: expected host:port"),
            ("node:1/", "is not an address: expected host:port"),
            ("127.0.0.1:7", "is there twice: expected each address once"),
            ("wss://127.0.0.1:7", "is there twice: expected each address once"),
        ],
    )
    def test_addresses(self, write: Write, key: str, entry: str, problem: str) -> None:
        text = f'{CONSUMER}[monitoring]\n{key} = [\n "127.0.0.1:7",\n "{entry}",\n]\n'
        error = refusal(write(text))
        assert (error.line, error.key) == (6, f"monitoring.{key}[1]")
        assert error.problem.startswith(f"{entry!r} {problem}")

    @pytest.mark.parametrize("key", ["consumers", "producers"])
    def test_a_port_to_connect_to(self, write: Write, key: str) -> None:
        error = refusal(write(f'{CONSUMER}[monitoring]\n{key} = ["node:0"]\n'))
        assert (error.line, error.key) == (4, f"monitoring.{key}[0]")
        assert "has no port to connect to" in error.problem

    @pytest.mark.parametrize("entry", ["127.0.0.1:10001", "wss://127.0.0.1:10001"])
    def test_a_listener_is_for_pages_or_for_all(self, write: Write, entry: str) -> None:
        tls = '[tls]\ncertificate = "c"\nkey = "k"\n'
        error = refusal(write(f'{CONSUMER}{tls}[monitoring]\nlisten = ["{entry}"]\n'))
        assert (error.line, error.key) == (7, "monitoring.listen[0]")
        assert error.problem == f"{entry!r} is there twice: expected each address once"

    def test_a_port_that_the_system_chooses_is_of_one_of_them_too(self, write: Write) -> None:
        text = CONSUMER.replace("10001", "0") + '[monitoring]\nlisten = ["[::1]:0", "127.0.0.1:0"]\n'
        error = refusal(write(text))
        assert (error.line, error.key) == (4, "monitoring.listen[1]")
        assert error.problem == "'127.0.0.1:0' is in listen too: expected an address of its own"

    def test_nodes_may_be_among_the_listeners(self, write: Write) -> None:
        """This one is one of the cluster, too."""
        load_any_config(write(f'{CONSUMER}[monitoring]\nconsumers = ["127.0.0.1:10001"]\n'))

    def test_tls_needs_a_certificate(self, write: Write) -> None:
        text = f'{CONSUMER}[monitoring]\nlisten = ["wss://127.0.0.1:7"]\n'
        error = refusal(write(text))
        assert (error.line, error.key) == (4, "monitoring.listen[0]")
        assert "needs a certificate: expected the table [tls]" in error.problem
        load_any_config(write(text + '[tls]\ncertificate = "c"\nkey = "k"\n'))

    def test_connecting_with_tls_needs_none(self, write: Write) -> None:
        load_any_config(write(f'{CONSUMER}[monitoring]\nproducers = ["wss://node:7"]\n'))

    @pytest.mark.parametrize("key", ["listen", "consumers", "producers"])
    def test_a_local_cluster_is_on_loopback(self, write: Write, key: str) -> None:
        text = f'{CONSUMER}[monitoring]\n{key} = ["192.0.2.1:7"]\n'
        load_any_config(write(text))
        error = refusal(write("local = true\n" + text))
        assert (error.line, error.key) == (5, f"monitoring.{key}[0]")
        assert "not on loopback" in error.problem

    @pytest.mark.parametrize(
        ("setting", "key", "problem"),
        [
            ('pages = "some"', "pages", "expected one of none, loopback, all"),
            ("pages = true", "pages", "expected str, got bool"),
            ("top_topics = -1", "top_topics", "int >= 0"),
            ("top_topics = 101", "top_topics", "int <= 100"),
            ("top_topics = 1.5", "top_topics", "expected int, got float"),
            ('listen = "127.0.0.1:1"', "listen", "expected array, got str"),
            ("consumers = [1]", "consumers[0]", "expected str, got int"),
            ("page = 1", "page", "unknown key: did you mean pages?"),
            ("topics = 1", "topics", "unknown key: did you mean top_topics?"),
            ("port = 1", "port", "unknown key: "),
        ],
    )
    def test_keys_and_types(self, write: Write, setting: str, key: str, problem: str) -> None:
        for text, line in ((f"[monitoring]\n# a comment\n{setting}\n", 5), (f"monitoring.{setting}\n", 3)):
            error = refusal(write(CONSUMER + text))
            assert (error.key, error.line) == (f"monitoring.{key}", line)
            assert problem in error.problem

    def test_a_client_has_no_pages(self, write: Write) -> None:
        error = refusal(write(DEMO + '[monitoring]\npages = "all"\n'))
        assert error.key == "monitoring"
        assert "unknown key" in error.problem

    def test_what_can_be_read_on_the_way(self) -> None:
        monitoring = Monitoring(listen=["127.0.0.1:1", "192.0.2.1:2", "unix:/pages.sock"])
        (sentence,) = config_warnings(ConsumerConfig(listen=["127.0.0.1:3"], monitoring=monitoring))
        assert sentence.startswith("listen: 192.0.2.1:2 can be reached from elsewhere")


class TestCheckAddresses:
    """What a configuration that was made without a file is checked for."""

    def test_good(self) -> None:
        check_addresses(ConsumerConfig(listen=["127.0.0.1:0"]))
        check_addresses(ClientConfig(producers=["a:1/produce"], consumers=["b:1/subscribe"]))

    @pytest.mark.parametrize(
        ("config", "key"),
        [
            (ClientConfig(producers=[], consumers=["b:1/subscribe"]), "producers"),
            (ClientConfig(producers=["a:1/produce"], consumers=[]), "consumers"),
            (ClientConfig(producers=["a:1/produce"], consumers=["b:1/subscribe", "b:1"]), "consumers[1]"),
            (ProducerConfig(listen=["a:1/x"], consumers=["b:1/producer"]), "listen[0]"),
            (ConsumerConfig(listen=["a:1"], local=True), "listen[0]"),
        ],
    )
    def test_bad(self, config: Config, key: str) -> None:
        with pytest.raises(ConfigError) as caught:
            check_addresses(config)
        assert caught.value.key == key
        assert str(caught.value).startswith(f"{key}: ")


@pytest.mark.parametrize(("consumers", "warned"), [(1, 0), (30, 0), (31, 1), (32, 0), (62, 1)])
def test_warnings(consumers: int, warned: int) -> None:
    links = [f"node{number}:1/producer" for number in range(consumers)]
    subscribe = [f"node{number}:1/subscribe" for number in range(consumers)]
    for config in (
        ProducerConfig(listen=["127.0.0.1:1"], consumers=links),
        ClientConfig(producers=["a:1/produce"], consumers=subscribe),
    ):
        sentences = config_warnings(config)
        assert len(sentences) == warned
        assert all(f"consumers: {consumers} is a multiple of 31" in sentence for sentence in sentences)
    assert config_warnings(ConsumerConfig(listen=[f"127.0.0.1:{port}" for port in range(1, 32)])) == []


def test_a_warning_of_what_can_be_read_on_the_way() -> None:
    listen = ["127.0.0.1:1", "unix:/node.sock", "localhost:1", "wss://0.0.0.0:2", "0.0.0.0:3", "[::]:4"]
    sentences = config_warnings(ConsumerConfig(listen=listen))
    assert [sentence.split()[:2] for sentence in sentences] == [
        ["listen:", "0.0.0.0:3"],
        ["listen:", "[::]:4"],
    ]
    assert all("wss:// would protect it" in sentence for sentence in sentences)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "psk"
    file.write_text(SECRET + "\n")
    file.chmod(0o640)
    return file


class TestKey:
    """Where the pre-shared key comes from, and which ones are refused."""

    def refusal(self, config: Config) -> ConfigError:
        with pytest.raises(ConfigError) as caught:
            load_psk(config)
        error = caught.value
        assert SECRET not in f"{error} {error!r} {vars(error)}"
        assert error.__cause__ is None
        return error

    def test_a_file_beside_the_configuration(self, write: Write, key_file: Path) -> None:
        config = load_any_config(write(CONSUMER + 'psk_file = "psk"\n'))
        assert load_psk(config) == PreSharedKey(SECRET)

    def test_a_relative_file_is_relative_to_the_configuration_and_not_to_the_process(
        self, write: Write, key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = write(CONSUMER + 'psk_file = "../secrets/psk"\n')
        secrets = tmp_path.parent / "secrets"
        secrets.mkdir(exist_ok=True)
        key_file.rename(secrets / "psk")
        monkeypatch.chdir(tmp_path.parent)
        assert load_psk(load_any_config(file.relative_to(tmp_path.parent))) == PreSharedKey(SECRET)

    @pytest.mark.parametrize(
        ("content", "key"),
        [
            ("key", "key"),
            ("key\n", "key"),
            ("key\r\n", "key"),
            (" key ", " key "),
            ("ñandú \N{GRINNING FACE}\n", "ñandú \N{GRINNING FACE}"),
            ("k\0y", "k\0y"),
            ("x" * MAX_PSK_BYTES, "x" * MAX_PSK_BYTES),
        ],
    )
    def test_one_final_newline_does_not_count(self, key_file: Path, content: str, key: str) -> None:
        key_file.write_bytes(content.encode())
        assert load_psk(Config(psk_file=str(key_file))) == PreSharedKey(key)

    def test_the_sources_in_their_order(
        self,
        key_file: Path,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        credentials = tmp_path / "credentials"
        credentials.mkdir()
        (credentials / "psk").write_text("from systemd")
        (credentials / "psk").chmod(0o400)
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credentials))
        monkeypatch.setenv("WSQUEUE_PSK", "out of the variable")
        assert load_psk(Config(psk_file=str(key_file))) == PreSharedKey(SECRET)
        assert load_psk(Config()) == PreSharedKey("from systemd")
        assert caplog.records == []
        (credentials / "psk").unlink()
        with caplog.at_level(logging.WARNING, "wsqueue"):
            assert load_psk(Config()) == PreSharedKey("out of the variable")
        assert [record.levelname for record in caplog.records] == ["WARNING"]
        assert "environment" in caplog.text
        assert "out of the variable" not in str(vars(caplog.records[0]))
        monkeypatch.delenv("WSQUEUE_PSK")
        assert "no pre-shared key: expected psk_file" in str(self.refusal(Config()))

    @pytest.mark.parametrize("directory", ["", "missing", "x" * 5000])
    def test_without_a_credential_the_environment_counts(
        self, directory: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CREDENTIALS_DIRECTORY", directory)
        monkeypatch.setenv("WSQUEUE_PSK", SECRET)
        assert load_psk(Config()) == PreSharedKey(SECRET)

    def test_a_psk_file_that_is_missing_is_not_replaced(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WSQUEUE_PSK", SECRET)
        error = self.refusal(Config(psk_file=str(tmp_path / "missing")))
        assert error.file == str(tmp_path / "missing")
        assert "No such file" in error.problem

    @pytest.mark.parametrize("content", ["", "\n", "\r\n"])
    def test_an_empty_file(self, key_file: Path, content: str) -> None:
        key_file.write_text(content)
        error = self.refusal(Config(psk_file=str(key_file)))
        assert (error.file, error.problem) == (str(key_file), "the pre-shared key is empty")

    def test_an_empty_variable(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WSQUEUE_PSK", "")
        error = self.refusal(Config())
        assert (error.file, error.problem) == ("WSQUEUE_PSK", "the pre-shared key is empty")

    @pytest.mark.parametrize("mode", [0o644, 0o604, 0o777])
    def test_a_file_that_everybody_may_read(self, key_file: Path, mode: int) -> None:
        key_file.chmod(mode)
        error = self.refusal(Config(psk_file=str(key_file)))
        assert error.file == str(key_file)
        assert f"expected `chmod o= {key_file}`" in error.problem

    @pytest.mark.parametrize("mode", [0o400, 0o440, 0o600, 0o640])
    def test_a_file_that_owner_and_group_may_read(self, key_file: Path, mode: int) -> None:
        key_file.chmod(mode)
        assert load_psk(Config(psk_file=str(key_file))) == PreSharedKey(SECRET)

    @pytest.mark.parametrize("source", ["file", "credential", "environment"])
    def test_the_default_of_the_original_nodes(
        self, key_file: Path, monkeypatch: pytest.MonkeyPatch, source: str
    ) -> None:
        key_file.write_text(DEFAULT_PSK + "\n")
        if source == "credential":
            monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(key_file.parent))
        elif source == "environment":
            monkeypatch.setenv("WSQUEUE_PSK", DEFAULT_PSK)
        psk_file = str(key_file) if source == "file" else None
        error = self.refusal(Config(psk_file=psk_file))
        assert error.file == ("WSQUEUE_PSK" if source == "environment" else str(key_file))
        assert "which everybody knows" in error.problem
        assert DEFAULT_PSK not in str(error)
        assert load_psk(Config(psk_file=psk_file, local=True)) == PreSharedKey(DEFAULT_PSK)

    def test_a_file_that_is_no_key(self, key_file: Path) -> None:
        key_file.write_text(SECRET * 1000)
        assert f"more than {MAX_PSK_BYTES} bytes" in self.refusal(Config(psk_file=str(key_file))).problem
        key_file.write_bytes(SECRET.encode() + b"\xff")
        assert "not UTF-8" in self.refusal(Config(psk_file=str(key_file))).problem

    def test_a_variable_that_is_not_utf8(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WSQUEUE_PSK", os.fsdecode(SECRET.encode() + b"\xff"))
        error = self.refusal(Config())
        assert error.file == "WSQUEUE_PSK"
        assert "UTF-8" in error.problem

    def test_a_directory(self, tmp_path: Path) -> None:
        assert "Is a directory" in self.refusal(Config(psk_file=str(tmp_path))).problem

    def test_a_name_that_no_file_can_have(self, write: Write) -> None:
        config = load_any_config(write(CONSUMER + 'psk_file = "a\\u0000b"\n'))
        assert "a\0b" in self.refusal(config).file

    @pytest.mark.parametrize(
        "setting", [f'psk = "{SECRET}"', f'psk_file = ["{SECRET}"]', f'limits = "{SECRET}"', f"x = {SECRET}"]
    )
    def test_a_key_that_was_written_into_the_configuration_is_not_shown(
        self, write: Write, setting: str
    ) -> None:
        error = refusal(write(f"{CONSUMER}{setting}\n"))
        assert error.line == 3
        assert SECRET not in f"{error} {error!r} {vars(error)}"
