"""The servers of the log, as the role configures them: three real ones on loopback, from an inventory."""

from __future__ import annotations

import asyncio
import functools
import json
import signal
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.js.errors import Error as JetStreamError

from tests.support.paths import ROOT
from wsqueue.config.load import load_any_config
from wsqueue.config.model import ConsumerConfig, JetStream

from ..support import control_node
from ..support.labs import BIN
from ..support.ports import free_port
from ..support.waiting import wait_until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

REMOVE_PEER = ROOT / "ansible" / "roles" / "wsqueue_engine" / "files" / "remove_peer.py"
PASSWORD, NODE_PASSWORD = "a+b/c=0123456789", "d/e/f+0123456789=="
NAMES = ["e1", "e2", "e3"]

PLAYBOOK = """
- hosts: engine
  gather_facts: false
  connection: local
  tasks:
    # For their variables.
    - ansible.builtin.import_role: {name: wsqueue_engine}
      when: false
    - ansible.builtin.template:
        src: "{{ roles }}/wsqueue_engine/templates/{{ item }}.j2"
        dest: "{{ output }}/{{ inventory_hostname }}-{{ item }}"
      loop: [nats.conf, secrets.conf]
    - ansible.builtin.copy:
        content: "{{ wsqueue_node_pem }}"
        dest: "{{ output }}/{{ inventory_hostname }}-node.pem"
      when: wsqueue_tls | bool
- hosts: consumers
  gather_facts: false
  connection: local
  tasks:
    - ansible.builtin.import_role: {name: wsqueue_consumer}
      when: false
    - ansible.builtin.template:
        src: "{{ roles }}/wsqueue_node/templates/node.toml.j2"
        dest: "{{ output }}/consumer.toml"
      vars: {wsqueue_node_kind: consumer, wsqueue_node_port: 10001}
"""


class Engine:
    """Servers on loopback with the files that the role writes."""

    def __init__(self, directory: Path, names: list[str], **variables: Any) -> None:
        self.directory, self.names = directory, names
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        ports = [free_port() for _ in range(3 * len(names))]
        keys = ("wsqueue_engine_port", "wsqueue_engine_route_port", "wsqueue_engine_monitor_port")
        self.ports = {name: dict(zip(keys, ports[3 * i :], strict=False)) for i, name in enumerate(names)}
        children = {"engine": {"hosts": self.ports}, "consumers": {"hosts": {"c1": {}}}}
        shared = {
            "ansible_connection": "local",
            "ansible_python_interpreter": "{{ ansible_playbook_python }}",
            "wsqueue_address": "127.0.0.1",
            "wsqueue_psk": "secret",
            "wsqueue_ca_passphrase": "a passphrase that is long enough",
            "wsqueue_engine_password": PASSWORD,
            "wsqueue_engine_node_password": NODE_PASSWORD,
            "wsqueue_consumer_retention": {
                "mode": "jetstream",
                "max_bytes": 10_000_000_000,
                "jetstream": {"streams": 4, "replicas": len(names)},
            },
            "wsqueue_consumer_limits": {"max_message_bytes": 4_000_000, "max_buffered_bytes": 8_000_000},
        }
        groups = {"all": {"children": children, "vars": shared | variables}}
        inventory, playbook = directory / "hosts.yml", directory / "write.yml"
        inventory.write_text(json.dumps(groups))
        playbook.write_text(PLAYBOOK)
        self.tls = variables.get("wsqueue_tls", False)
        if self.tls:
            control_node.run("ansible-playbook", "-i", inventory, "ansible/playbooks/ca.yml")
        values = json.dumps({"roles": str(ROOT / "ansible" / "roles"), "output": str(directory)})
        control_node.run("ansible-playbook", "-i", inventory, playbook, "-e", values)
        for name in names:
            self._place(name)

    def _place(self, name: str) -> None:
        """Put the files of a server where it would find them on its host."""
        home = self.directory / name
        home.mkdir()
        for file in ("secrets.conf", "nats.conf"):
            text = (self.directory / f"{name}-{file}").read_text()
            text = text.replace("/etc/wsqueue-engine", str(home)).replace(
                "/var/lib/wsqueue-engine", f"{home}/log"
            )
            (home / file).write_text(text)
        if self.tls:
            (home / "node.pem").write_text((self.directory / f"{name}-node.pem").read_text())
            (home / "ca.pem").write_text((self.directory / "tls" / "ca.pem").read_text())

    def check(self, name: str) -> str:
        """Return the digest of a configuration that the program finds good."""
        command: list[str | Path] = [BIN / "nats-server", "-t", "-c", self.directory / name / "nats.conf"]
        result = subprocess.run(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True
        )
        assert "is valid (sha256:" in result.stdout
        return str(result.stdout.rpartition("(")[2].rstrip(")\n"))

    def start(self, name: str) -> None:
        home = self.directory / name
        with (home / "output").open("ab") as output:
            self.processes[name] = subprocess.Popen(
                [BIN / "nats-server", "-c", home / "nats.conf"], stdout=output, stderr=output
            )

    def ask(self, name: str, page: str) -> Any:
        port = self.ports[name]["wsqueue_engine_monitor_port"]
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=5) as answer:
            return json.load(answer)

    def healthy(self, name: str) -> bool:
        try:
            return bool(self.ask(name, "healthz")["status"] == "ok")
        except OSError:
            return False

    def consumer(self) -> ConsumerConfig:
        """Return the configuration of the consumer."""
        loaded = load_any_config(self.directory / "consumer.toml")
        assert isinstance(loaded, ConsumerConfig)
        return loaded

    @property
    def table(self) -> JetStream:
        table = self.consumer().retention.jetstream
        assert table is not None
        return table

    def context(self, certificate: str = "") -> ssl.SSLContext | None:
        if not self.tls:
            return None
        context = ssl.create_default_context(cafile=self.directory / "tls" / "ca.pem")
        if certificate:
            context.load_cert_chain(self.directory / f"{certificate}-node.pem")
        return context

    async def connect(self, user: str, password: str, certificate: str = "") -> Client:
        options: dict[str, Any] = {"tls": self.context(certificate)} if self.tls else {}
        client = Client()
        try:
            await client.connect(
                self.table.servers, user=user, password=password, allow_reconnect=False, **options
            )
        except NatsError:
            # It leaves the connection open that was refused.
            await client.close()
            raise
        return client

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    """Return three servers that work together, with TLS; the one that is alone has none."""
    directory = tmp_path_factory.mktemp("engine")
    running = Engine(directory, NAMES, wsqueue_tls=True, wsqueue_tls_client_certificates=True)
    try:
        for name in NAMES:
            running.start(name)
        for name in NAMES:
            wait_until(functools.partial(running.healthy, name), f"{name} is healthy")
        yield running
    finally:
        running.end()


def test_three_servers_keep_a_stream_together(engine: Engine) -> None:
    async def use() -> None:
        connection = await engine.connect("consumer", PASSWORD, certificate="e1")
        stream = connection.jetstream()
        for attempt in range(30):
            try:
                await stream.add_stream(name="s", subjects=["s.>"], num_replicas=3)
                break
            except JetStreamError:
                # The servers elect a leader of the streams first.
                assert attempt < 29
                await asyncio.sleep(0.5)
        # The longest message that consumers take, and the head of its record.
        await stream.publish("s.t", bytes(4_000_000 + 60_000))
        cluster = (await stream.stream_info("s")).cluster
        assert cluster is not None
        assert {cluster.leader, *(peer.name for peer in cluster.replicas or ())} == set(NAMES)
        await connection.close()

    asyncio.run(use())
    # Without a message that is only in the memory of the kernel.
    assert engine.ask("e1", "jsz")["config"]["sync_always"] is True
    assert engine.ask("e1", "jsz")["config"]["max_storage"] == 20_000_000_000


def test_who_has_no_password_gets_nowhere(engine: Engine) -> None:
    async def refused(user: str, password: str) -> None:
        with pytest.raises(NatsError, match=r"(?i)authorization|no servers"):
            await engine.connect(user, password, certificate="e1")

    for user, password in (("consumer", NODE_PASSWORD), ("system", PASSWORD), ("route", NODE_PASSWORD)):
        asyncio.run(refused(user, password))


def test_the_server_knows_its_configuration_by_the_digest_that_the_role_compares(engine: Engine) -> None:
    assert engine.ask("e2", "varz")["config_digest"] == engine.check("e2")


def test_a_consumer_gets_all_that_it_needs_from_the_inventory(engine: Engine) -> None:
    table = engine.table
    addresses = [f"127.0.0.1:{engine.ports[name]['wsqueue_engine_port']}" for name in NAMES]
    assert table.servers == [f"tls://{address}" for address in addresses]
    assert (table.user, table.password_file) == ("consumer", "/etc/wsqueue/engine_password")
    assert (table.streams, table.replicas) == (4, 3)
    pem = "/etc/wsqueue/tls/node.pem"
    assert (table.certificate, table.key, table.ca) == (pem, pem, "/etc/wsqueue/tls/ca.pem")


def test_passwords_are_in_one_file_only(engine: Engine) -> None:
    for name in NAMES:
        text = (engine.directory / f"{name}-nats.conf").read_text()
        assert PASSWORD not in text
        assert NODE_PASSWORD not in text


def test_servers_notice_a_host_that_is_off(engine: Engine) -> None:
    for name in NAMES:
        text = (engine.directory / f"{name}-nats.conf").read_text()
        cluster = text[text.index("\ncluster {") :]
        assert '    ping_interval: "2s"\n    ping_max: 2\n' in cluster
        engine.check(name)


def test_another_ca_without_a_restart(engine: Engine) -> None:
    """The three steps of rotate_ca.yml: trust both, use the new certificates, trust the new CA alone."""

    def routes(name: str) -> int:
        return int(engine.ask(name, "routez")["num_routes"])

    def reloaded(name: str, since: str) -> bool:
        return bool(engine.ask(name, "varz")["config_load_time"] > since)

    for step in ("next", "adopt", "forget"):
        role = f"name=wsqueue_ca tasks_from={step}"
        inventory = engine.directory / "hosts.yml"
        days = ("-e", "wsqueue_ca_renew_days=1000000")
        control_node.run(
            "ansible", "-i", inventory, "engine", "-m", "ansible.builtin.include_role", "-a", role, *days
        )
        for name in NAMES:
            files = [engine.directory / "tls" / f"{name}.{kind}" for kind in ("crt", "key")]
            (engine.directory / name / "node.pem").write_text("".join(file.read_text() for file in files))
            (engine.directory / name / "ca.pem").write_text((engine.directory / "tls" / "ca.pem").read_text())
            since = engine.ask(name, "varz")["config_load_time"]
            engine.processes[name].send_signal(signal.SIGHUP)
            wait_until(functools.partial(reloaded, name, since), f"{name} has reloaded")
            # Every new connection takes the new files.
            wait_until(functools.partial(engine.healthy, name), f"{name} is healthy")
            assert routes(name)
    # Connections that were there need no certificate; those of a server that starts do.
    engine.processes["e2"].terminate()
    engine.processes["e2"].wait()
    engine.start("e2")
    wait_until(functools.partial(engine.healthy, "e2"), "e2 is healthy")
    wait_until(
        lambda: routes("e2") and engine.ask("e2", "jsz")["meta_cluster"].get("leader"), "e2 has joined"
    )


def test_a_server_that_is_gone_leaves_the_others(engine: Engine) -> None:
    def run(password: str, peer: str) -> subprocess.CompletedProcess[str]:
        ports, home = engine.ports["e1"], engine.directory / "e1"
        settings = {
            "host": "127.0.0.1",
            "port": ports["wsqueue_engine_port"],
            "ca": str(home / "ca.pem"),
            "certificate": str(home / "node.pem"),
            "user": "system",
            "password": password,
            "peer": peer,
        }
        return subprocess.run(
            [sys.executable, "-I", REMOVE_PEER],
            input=json.dumps(settings),
            capture_output=True,
            text=True,
            check=False,
        )

    def leader() -> str:
        # There is none while the servers elect one.
        return str(engine.ask("e1", "jsz")["meta_cluster"].get("leader", ""))

    def members() -> list[str]:
        cluster = engine.ask("e1", "jsz")["meta_cluster"]
        return sorted([cluster.get("leader", ""), *(peer["name"] for peer in cluster.get("replicas") or ())])

    engine.processes["e3"].kill()
    engine.processes["e3"].wait()
    # If it was the leader, the others elect another.
    wait_until(lambda: leader() not in ("", "e3"), "the others have elected a leader")
    refused = run(PASSWORD, "e3")
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "Authorization Violation" in refused.stderr
    unknown = run(NODE_PASSWORD, "e9")
    assert unknown.returncode == 1
    assert "server is not a member of the cluster" in unknown.stderr
    assert "e3" in members()
    removed = run(NODE_PASSWORD, "e3")
    assert (removed.returncode, removed.stdout, removed.stderr) == (0, "removed e3\n", "")
    wait_until(lambda: "e3" not in members(), "e3 is no member")


def test_a_server_alone(tmp_path: Path) -> None:
    alone = Engine(tmp_path, ["e1"], wsqueue_plain=True)
    try:
        alone.check("e1")
        alone.start("e1")
        wait_until(lambda: alone.healthy("e1"), "the server is healthy")
        assert "meta_cluster" not in alone.ask("e1", "jsz")
    finally:
        alone.end()
