"""Findings of `wsqueue doctor` in files, names and sockets of this host."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from wsqueue.config.load import load_config
from wsqueue.config.model import ClientConfig, ConsumerConfig
from wsqueue.log import jetstream
from wsqueue.log.jetstream import JetStreamEngine
from wsqueue.protocol.keys import PreSharedKey
from wsqueue.protocol.routing import router
from wsqueue.tools import doctor
from wsqueue.tools.doctor import engine, host
from wsqueue.tools.doctor.findings import Finding

from ..support.certificates import Authority
from ..support.keys import psk_of
from ..support.nats_servers import NatsServers
from ..support.ports import free_port
from ..support.stores import Logs, batch, limits

SECRET = psk_of("everybody")
(FINGERPRINT,) = PreSharedKey(SECRET).fingerprints()


def bad(found: Sequence[Finding]) -> list[tuple[str, str, str]]:
    return [(finding.state, finding.subject, finding.text) for finding in found if finding.state != "ok"]


def configuration(directory: Path, text: str, secret: str | None = SECRET, name: str = "node.toml") -> str:
    """Write a configuration, with a key unless it is None."""
    if secret is not None:
        psk = directory / "psk"
        psk.touch(mode=0o600)
        psk.write_text(secret)
        text = f'psk_file = "psk"\n{text}'
    (directory / name).write_text(text)
    return str(directory / name)


CONSUMER = 'role = "consumer"\nlisten = ["127.0.0.1:0"]\n'
DEMO = 'role = "demo"\nproducers = ["127.0.0.1:1/produce"]\nconsumers = ["127.0.0.1:2/subscribe"]\n'


async def check(*files: str) -> tuple[list[Finding], list[ClientConfig]]:
    clusters: list[ClientConfig] = []
    said: list[str] = []
    found = [finding async for finding in doctor.check_files(files, clusters, said.append)]
    assert said[0] == f"checking {files[0]}"
    return found, clusters


@pytest.mark.anyio
class TestFiles:
    async def test_a_good_one(self, tmp_path: Path) -> None:
        file = configuration(tmp_path, CONSUMER + "limits.max_connections = 10\n")
        found, _ = await check(file)
        assert bad(found) == []
        assert [finding.subject for finding in found] == [file] * 4 + ["memory"]
        assert found[1].text.startswith(
            f"The pre-shared key has the fingerprint {FINGERPRINT}; {tmp_path}/psk can"
        )
        assert SECRET not in str(found)

    async def test_one_that_is_wrong_does_not_keep_others_from_being_checked(self, tmp_path: Path) -> None:
        wrong = configuration(tmp_path, CONSUMER + "lissten = 1\n", name="wrong.toml")
        missing = str(tmp_path / "missing.toml")
        found, _ = await check(wrong, missing, configuration(tmp_path, CONSUMER))
        assert bad(found)[:2] == [
            ("problem", wrong, "line 4: lissten: unknown key: did you mean listen?"),
            ("problem", missing, "cannot read it: No such file or directory."),
        ]
        assert found[2].state == "ok"

    @pytest.mark.parametrize(
        ("secret", "mode", "words"),
        [
            ("", 0o600, "the pre-shared key is empty"),
            (SECRET, 0o644, "all users may read the key"),
            ("pre-shared-key", 0o600, "the pre-shared key is the original nodes' default"),
        ],
    )
    async def test_a_bad_key(self, tmp_path: Path, secret: str, mode: int, words: str) -> None:
        file = configuration(tmp_path, DEMO, secret)
        (tmp_path / "psk").chmod(mode)
        found, clusters = await check(file)
        ((state, subject, text),) = bad(found)
        assert (state, subject) == ("problem", file)
        assert text.startswith(f"The key cannot be used: {tmp_path}/psk: {words}")
        assert clusters == []

    async def test_keys_of_nodes(self, tmp_path: Path) -> None:
        nodes = tmp_path / "nodes"
        nodes.touch(mode=0o640)
        nodes.write_text(psk_of("nodes"))
        found, _ = await check(configuration(tmp_path, CONSUMER + 'node_psk_file = "nodes"\n'))
        (of_nodes,) = PreSharedKey(psk_of("nodes")).fingerprints()
        assert f"The pre-shared key of the nodes has the fingerprint {of_nodes}; {nodes} can" in found[2].text
        assert " and group " in found[2].text
        nodes.write_text(SECRET)
        found, _ = await check(str(tmp_path / "node.toml"))
        assert "a key of the nodes is a key of the clients too" in bad(found)[0][2]

    async def test_certificates(self, tmp_path: Path) -> None:
        tls = Authority(tmp_path).issue("node", days=0.9)
        listen = CONSUMER.replace("127", "wss://127")
        table = f'[tls]\ncertificate = "{tls.certificate}"\nkey = "{tls.key}"\nca = "{tls.ca}"\n'
        file = configuration(tmp_path, listen + table)
        found, _ = await check(file)
        texts = {finding.state: finding.text for finding in found if "certificate in" in finding.text}
        assert texts["problem"].startswith(f"The certificate in {tls.certificate} expires to")
        assert texts["ok"].startswith(f"The certificate in {tls.ca} is good until ")
        (tmp_path / "node.key").chmod(0o644)
        found, _ = await check(file)
        assert bad(found)[0][2].startswith(f"The certificates cannot be used: {tls.key}: all users may read")

    @pytest.mark.parametrize("days", [90, -1])
    async def test_a_certificate_of_another_authority(self, tmp_path: Path, days: float) -> None:
        own = Authority(tmp_path).issue("node", days=days, hosts=["elsewhere"])
        other = Authority(tmp_path, "other").file
        listen = CONSUMER.replace("127", "wss://127")
        for ca, trusted in ((own.ca, True), (str(other), False)):
            table = f'[tls]\ncertificate = "{own.certificate}"\nkey = "{own.key}"\nca = "{ca}"\n'
            found, _ = await check(configuration(tmp_path, listen + table))
            assert any(f"trusts {ca}" in text for _, _, text in bad(found)) != trusted

    async def test_unwise_configurations(self, tmp_path: Path) -> None:
        found, _ = await check(
            configuration(tmp_path, CONSUMER.replace("127.0.0.1", "[::]") + "plain = true\n")
        )
        assert bad(found)[0][2].startswith("plain: connections with other hosts go without TLS")

    async def test_names_without_an_address(self, tmp_path: Path) -> None:
        file = configuration(tmp_path, DEMO.replace("127.0.0.1:2", "nowhere.invalid:2"))
        ((state, _, text),) = bad((await check(file))[0])
        assert state == "problem"
        assert text.startswith("No IP address is known for nowhere.invalid")

    async def test_a_port_that_is_free(self, tmp_path: Path) -> None:
        port = free_port()
        found, _ = await check(configuration(tmp_path, CONSUMER.replace(":0", f":{port}")))
        assert f"127.0.0.1:{port} is free for the node." in [finding.text for finding in found]

    async def test_a_port_that_another_process_has(self, tmp_path: Path) -> None:
        with listening() as port:
            found, _ = await check(configuration(tmp_path, CONSUMER.replace(":0", f":{port}")))
        ((state, _, text),) = bad(found)
        assert state == "problem"
        assert text.startswith(f"Process {os.getpid()} (")
        assert text.endswith(f") listens at 127.0.0.1:{port}, and not a node with this file.")

    async def test_a_port_whose_process_cannot_be_seen(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(host, "listening_process", lambda _address: None)
        with listening() as port:
            text = CONSUMER.replace(":0", f":{port}") + "limits.hello_seconds = 0.1\n"
            found, _ = await check(configuration(tmp_path, text))
        ((state, _, text),) = bad(found)
        assert state == "warning"
        assert f"at 127.0.0.1:{port}: " in text

    async def test_an_address_of_another_host(self, tmp_path: Path) -> None:
        found, _ = await check(
            configuration(tmp_path, CONSUMER.replace("127.0.0.1:0", "192.0.2.77:10001") + "plain = true\n")
        )
        assert any(text.startswith("Nothing can listen at 192.0.2.77:10001: ") for _, _, text in bad(found))

    async def test_unix_sockets(self, tmp_path: Path) -> None:
        place = tmp_path / "node.sock"
        file = configuration(tmp_path, f'role = "consumer"\nlisten = ["unix:{place}"]\n')
        found, _ = await check(file)
        assert f"unix:{place} is free for the node." in [finding.text for finding in found]
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(place))
            listener.listen()
            found, _ = await check(file)
        assert any(f"at unix:{place}: " in text for _, _, text in bad(found))

    async def test_the_directory_of_the_log(self, tmp_path: Path) -> None:
        table = '[retention]\nmode = "sqlite"\nmax_bytes = 1048576\n'
        file = configuration(tmp_path, CONSUMER + table + 'directory = "logs"\n')
        found, _ = await check(file)
        assert any(f"{tmp_path}/logs has " in finding.text for finding in found if finding.state == "ok")
        (tmp_path / "logs").write_text("a file")
        found, _ = await check(file)
        assert any(text.startswith(f"The log cannot be kept in {tmp_path}/logs") for _, _, text in bad(found))
        found, _ = await check(configuration(tmp_path, CONSUMER + table))
        assert ("warning", file, "No directory is configured for the log.") in bad(found)
        huge = table.replace("1048576", str(2**40)) + 'directory = "more"\n'
        found, _ = await check(configuration(tmp_path, CONSUMER + huge))
        assert any(f"{tmp_path}/more has " in text and "1.0 TiB" in text for _, _, text in bad(found))

    async def test_kept_topics_that_belong_to_another_consumer(self, tmp_path: Path) -> None:
        logs = Logs(config=limits(mode="sqlite", directory=tmp_path / "logs"))
        await logs.store.open()
        # One topic of each of two consumers.
        topics = {router(2)(topic): topic for topic in "ab"}
        await logs.stored(*(batch(1, topic=topics[index], count=2 + index) for index in (0, 1)))
        port = free_port()
        text = (
            f'role = "consumer"\nlisten = ["127.0.0.1:{port}"]\nplain = true\n'
            '[retention]\nmode = "sqlite"\ndirectory = "logs"\nmax_bytes = 1048576\n'
            "[monitoring]\nconsumers = "
        )
        own, other = f"127.0.0.1:{port}", f"192.0.2.1:{port}"
        for consumers, orphans in (
            ([own, other], "3 messages of 1 topic"),
            ([other, own], "2 messages of 1 topic"),
        ):
            found, _ = await check(configuration(tmp_path, text + json.dumps(consumers)))
            [finding] = [one for one in found if " keeps" in one.text]
            assert finding.state == "warning"
            assert orphans in finding.text
        for consumers, count in (([own], 1), ([other], 0)):
            found, _ = await check(configuration(tmp_path, text + json.dumps(consumers)))
            assert [one.state for one in found if " keeps" in one.text] == ["ok"] * count
        await logs.store.close()

    async def test_a_demo_file_leads_to_its_cluster(self, tmp_path: Path) -> None:
        _, clusters = await check(configuration(tmp_path, DEMO))
        assert [cluster.producers for cluster in clusters] == [["127.0.0.1:1/produce"]]

    async def test_a_cluster_whose_certificates_cannot_be_used_is_not_asked(self, tmp_path: Path) -> None:
        file = configuration(tmp_path, DEMO.replace("127", "wss://127") + f'tls.ca = "{tmp_path}/none"\n')
        found, clusters = await check(file)
        assert clusters == []
        assert bad(found)[0][2].startswith("The certificates cannot be used: ")


def shared(directory: Path, servers: Sequence[str], text: str = "") -> str:
    """Write the configuration of a consumer that shares a log."""
    table = f'[retention]\nmode = "jetstream"\n[retention.jetstream]\nservers = {json.dumps(servers)}\n{text}'
    return configuration(directory, CONSUMER + table)


@pytest.mark.anyio
class TestASharedLog:
    async def test_that_is_well(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        async with NatsServers(tmp_path / "nats") as servers:
            monkeypatch.setattr(engine, "PAGE_PORT", servers.pages[0])
            file = shared(tmp_path, servers.urls, "replicas = 1\nstreams = 2\n")
            found, _ = await check(file)
            assert bad(found) == []
            assert [finding.text for finding in found[-4:-1]] == [
                "The NATS server n0 confirms messages when its disk has them.",
                "The log can be used through n0 2.15.1.",
                "The log does not exist yet: the first consumer that starts makes it.",
            ]
            checked = load_config(file, ConsumerConfig)
            store = JetStreamEngine(checked.retention, max_message_bytes=1000)
            await store.open()
            await store.close()
            found, _ = await check(file)
            assert found[-2].text == (
                "The log has 3 streams with 0 bytes, each on 1 server; they are led by n0 (3)."
            )
            found, _ = await check(shared(tmp_path, servers.urls, "replicas = 1\nstreams = 3\n"))
            ((state, _, text),) = bad(found)
            assert state == "problem"
            assert text.startswith("The log is another one than configured: the log was made with 2 streams;")

    async def test_servers_that_cannot_be_used(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        users = 'authorization { user: wsqueue, password: "secret of a test" }'
        gone = f"nats://127.0.0.1:{free_port()}"
        async with NatsServers(tmp_path / "nats", options=users, sync="2m") as servers:
            monkeypatch.setattr(engine, "PAGE_PORT", servers.pages[0])
            found, _ = await check(shared(tmp_path, servers.urls, "replicas = 1\n"))
            ((state, _, text),) = bad(found)
            assert (state, "refuses this consumer: expected another user, password" in text) == (
                "problem",
                True,
            )
            password = tmp_path / "password"
            password.write_text("secret of a test\n")
            password.chmod(0o644)
            more = 'replicas = 1\nuser = "wsqueue"\npassword_file = "password"\n'
            file = shared(tmp_path, [gone, *servers.urls], more)
            found, _ = await check(file)
            assert all(f"{password}: all users may read the key" in text for _, _, text in bad(found))
            password.chmod(0o600)
            found, _ = await check(file)
            (first, second) = bad(found)
            assert (first[0], first[2].startswith(f"The NATS server {gone} cannot be reached: ")) == (
                "warning",
                True,
            )
            assert (second[0], "confirms messages before its disk has them" in second[2]) == ("problem", True)
            monkeypatch.setattr(jetstream, "MIN_VERSION", (99, 0, 0))
            found, _ = await check(file)
            assert "expected at least 99.0.0" in bad(found)[1][2]
        found, _ = await check(shared(tmp_path, [gone, "tls://no.such.invalid:1"]))
        assert [state for state, _, _ in bad(found)] == ["problem", "problem"]

    async def test_certificates_of_a_shared_log(self, tmp_path: Path) -> None:
        tls = Authority(tmp_path).issue("node", days=0.9)
        text = f'certificate = "{tls.certificate}"\nkey = "{tls.key}"\nca = "{tls.ca}"\n'
        file = shared(tmp_path, [f"tls://127.0.0.1:{free_port()}"], text)
        found, _ = await check(file)
        first, second = bad(found)
        assert first[2].startswith(f"The certificate in {tls.certificate} expires to")
        assert "cannot be reached" in second[2]
        (tmp_path / "node.key").chmod(0o644)
        found, _ = await check(file)
        ((_, _, text),) = bad(found)
        assert text.startswith(
            f"The certificates cannot be used for the shared log: {tls.key}: all users may read"
        )

    async def test_without_the_package(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "nats", None)
        monkeypatch.delitem(sys.modules, "wsqueue.log.jetstream")
        found, _ = await check(shared(tmp_path, ["nats://127.0.0.1:1"]))
        ((state, _, text),) = bad(found)
        assert (state, text.startswith("The mode jetstream needs the package nats-py")) == ("problem", True)


@contextmanager
def listening() -> Iterator[int]:
    """Listen, and answer no connection."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]
