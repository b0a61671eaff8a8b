"""A cluster on lab hosts, deployed with site.yml and run by a real systemd: docs/lab.md.

The clients run on this machine. Faults that need access to a process are left to the loopback cluster.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from tests.support import control_node
from tests.support.labs import OwnLab, build
from wsqueue.errors import WsqueueError
from wsqueue.version import __version__

from ..support.toml import write_toml
from .checker import Restore, Span
from .cluster import DEFECTS, LIMITS, retention_of
from .schedule import HITS_A_LINK, Fault, Schedule

HOSTS = ("consumer1", "consumer2", "producer1", "producer2")
PORTS = {"consumer": 10001, "producer": 10002}

COMMAND_SECONDS = 60.0
BOOT_SECONDS = 900.0
DEPLOY_SECONDS = 600.0

READY_SECONDS = 60.0
"""How long a node may take to be ready again, a reboot of its host included."""

RESET_SECONDS = 0.3
"""How long connections are answered with a reset: longer than any of them is silent."""


class Lab:
    """Hosts on which one cluster after another runs, to be used in `async with`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.own = OwnLab(directory, HOSTS, first="wsqf", net=90)
        self.psk = secrets.token_urlsafe(24)

    async def __aenter__(self) -> Lab:
        try:
            # The first one builds the base, where there is none yet.
            await self.command("up", *HOSTS, seconds=BOOT_SECONDS)
            await self._deploy()
        except BaseException:
            await asyncio.to_thread(self.own.down)
            raise
        return self

    async def __aexit__(self, *_error: object) -> None:
        await asyncio.to_thread(self.own.down)

    async def ssh(self, host: str, script: str) -> str:
        """Return the output of a script on a host.

        Raises:
            WsqueueError: It failed.
        """
        return await self.command("ssh", host, "bash -eu", stdin=script)

    async def command(self, *arguments: str, stdin: str = "", seconds: float = COMMAND_SECONDS) -> str:
        """Return the output of `scripts/lab`.

        Raises:
            WsqueueError: It failed.
        """
        result = await asyncio.to_thread(self.own.try_to, *arguments, stdin=stdin, timeout=seconds)
        if result.returncode:
            raise WsqueueError(f"lab {' '.join(arguments)}: {result.stdout}{result.stderr}")
        return result.stdout

    async def _deploy(self) -> None:
        hosts = {
            host: {"ansible_host": self.own.address(host), f"wsqueue_{role}_ports": [port]}
            for role, port in PORTS.items()
            for host in HOSTS
            if host.startswith(role)
        }
        variables: dict[str, object] = self.own.variables | {
            "wsqueue_psk": self.psk,
            "wsqueue_plain": True,
            "wsqueue_release_zipapp": str(
                await asyncio.to_thread(build, self.directory / "source", __version__)
            ),
            "wsqueue_consumer_limits": LIMITS,
            "wsqueue_producer_limits": LIMITS,
        }
        children = {
            f"{role}s": {"hosts": {host: value for host, value in hosts.items() if host.startswith(role)}}
            for role in PORTS
        }
        inventory = self.directory / "hosts.json"
        inventory.touch(mode=0o600)
        inventory.write_text(json.dumps({"all": {"children": children, "vars": variables}}))
        result = await asyncio.to_thread(
            control_node.try_to_run, "ansible-playbook", "-i", inventory, "site.yml", timeout=DEPLOY_SECONDS
        )
        if result.returncode:
            raise WsqueueError(f"site.yml failed: {result.stdout[-5000:]}")


class LabCluster:
    """Run a schedule on the hosts of a lab, which begin with nothing kept."""

    def __init__(self, lab: Lab, schedule: Schedule, directory: Path) -> None:
        self.lab, self.schedule, self.directory = lab, schedule, directory
        workload = schedule.workload
        clients = workload.publisher_names + workload.subscriber_names
        self.nodes = workload.consumer_names + workload.producer_names
        self.client_files: Mapping[str, Path] = {name: directory / f"{name}.toml" for name in clients}
        self.unclean: Mapping[str, list[Span]] = {name: [] for name in self.nodes}
        self.full: Mapping[str, list[Span]] = {}
        self.restores: Mapping[str, list[Restore]] = {}
        self.ends: Mapping[str, list[float]] = {}
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._began = ""
        self._tables = 0
        self._locks = {name: asyncio.Lock() for name in self.nodes}
        self._actions: dict[str, Callable[[Fault], Awaitable[None]]] = {
            "kill": self._kill,
            "restart": self._restart,
            "reload": self._reload,
            "reboot": self._reboot,
            "stop": self._pause,
            "freeze": self._freeze,
            "cut": self._cut,
            "reset": self._reset_connections,
            "loss": self._lose,
            "slow": self._slow,
        }

    async def start(self) -> None:
        """Start everything anew, and return once it serves."""
        self._write_client_files()
        await asyncio.gather(*(self._reset(node) for node in self.nodes))
        await self._wait_until_ready(self.nodes)

    async def apply(self, fault: Fault) -> None:
        """Do a fault to a node or a link, and undo it after its time."""
        if fault.kind in HITS_A_LINK:
            await self._actions[fault.kind](fault)
            return
        # A drain or a reboot may take longer than the schedule thinks.
        async with self._locks[fault.target]:
            await self._actions[fault.kind](fault)

    async def heal(self) -> None:
        """Wait until the last effects of all faults are over; each has been undone."""
        await self._wait_until_ready(self.nodes)

    async def stop(self) -> None:
        """Stop the nodes, and look for defects."""
        await asyncio.gather(*(self._collect(node) for node in self.nodes))

    def _write_client_files(self) -> None:
        psk = self.directory / "psk"
        psk.touch(mode=0o600)
        psk.write_text(self.lab.psk)
        addresses: dict[str, object] = {
            f"{role}s": [
                f"{self._address(node)}:{PORTS[role]}{endpoint}"
                for node in self.nodes
                if node.startswith(role)
            ]
            for role, endpoint in (("producer", "/produce"), ("consumer", "/subscribe"))
        }
        for file in self.client_files.values():
            write_toml(file, {"role": "demo", "psk_file": "psk"} | addresses, LIMITS)

    async def _reset(self, node: str) -> None:
        """Start a node with nothing kept, and with the retention of the schedule."""
        unit = _unit(node)
        script = f"systemctl stop {unit}\nsystemctl reset-failed\n"
        if node.startswith("consumer"):
            file = f"/etc/wsqueue/consumer-{PORTS['consumer']}.toml"
            table = retention_of(self.schedule)
            lines = "\n".join(
                ["[retention]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
            )
            script += (
                f"sed -i '/^.retention.$/,$d' {file}\n"
                f"cat >>{file} <<'END'\n{lines}\nEND\n"
                "rm -rf --one-file-system /var/lib/private/wsqueue* /var/lib/wsqueue*\n"
            )
        began = await self.lab.ssh(
            _host(node), f"{script}date '+%Y-%m-%d %H:%M:%S'\nsystemctl start {unit}\n"
        )
        self._began = self._began or began.strip()

    async def _collect(self, node: str) -> None:
        script = (
            f"systemctl stop {_unit(node)}\njournalctl --no-pager --since '{self._began}' -u {_unit(node)}\n"
        )
        try:
            log = await self.lab.ssh(_host(node), script)
        except WsqueueError as error:
            self.problems.append(str(error))
            return
        (self.directory / f"{node}.log").write_text(log)
        found = [line for line in log.splitlines() if any(defect in line for defect in DEFECTS)]
        self.problems += [f"{node} logged {line!r}" for line in found[:3]]

    async def _wait_until_ready(self, nodes: Sequence[str]) -> None:
        deadline = time.monotonic() + READY_SECONDS
        for node in nodes:
            while not await self._is_ready(node):
                if time.monotonic() > deadline:
                    raise WsqueueError(f"{node} is not ready")
                await asyncio.sleep(0.1)

    async def _is_ready(self, node: str) -> bool:
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(1):
                reader, writer = await asyncio.open_connection(self._address(node), _port(node))
                try:
                    writer.write(b"GET /readyz HTTP/1.1\r\nHost: lab\r\n\r\n")
                    return b" 200 " in await reader.readline()
                finally:
                    writer.close()
        return False

    def _address(self, node: str) -> str:
        return self.lab.own.address(_host(node))

    async def _kill(self, fault: Fault) -> None:
        """End a node as `kill -9` does; systemd starts it again."""
        began = time.monotonic()
        await self.lab.ssh(_host(fault.target), f"systemctl kill --signal KILL {_unit(fault.target)}")
        self.unclean[fault.target].append((began, time.monotonic()))

    async def _restart(self, fault: Fault) -> None:
        await self.lab.ssh(_host(fault.target), f"systemctl restart {_unit(fault.target)}")

    async def _reload(self, fault: Fault) -> None:
        await self.lab.ssh(_host(fault.target), f"systemctl reload {_unit(fault.target)} || true")

    async def _reboot(self, fault: Fault) -> None:
        # The host may be gone before it has answered.
        with contextlib.suppress(WsqueueError):
            await self.lab.ssh(_host(fault.target), "systemctl reboot")
        await asyncio.sleep(1)
        await self._wait_until_ready([fault.target])

    async def _pause(self, fault: Fault) -> None:
        unit = _unit(fault.target)
        await self.lab.ssh(_host(fault.target), f"systemctl kill --signal STOP {unit}")
        await asyncio.sleep(fault.seconds)
        await self.lab.ssh(_host(fault.target), f"systemctl kill --signal CONT {unit}")

    async def _freeze(self, fault: Fault) -> None:
        """Stop a node for a while, though not for as long as systemd's watchdog waits."""
        await self._pause(fault)
        await self._wait_until_ready([fault.target])

    async def _cut(self, fault: Fault) -> None:
        async with self._rules(fault, "drop"):
            await asyncio.sleep(fault.seconds)

    async def _reset_connections(self, fault: Fault) -> None:
        async with self._rules(fault, "reject with tcp reset"):
            await asyncio.sleep(RESET_SECONDS)

    async def _lose(self, fault: Fault) -> None:
        share = int(fault.amount * 1000)
        async with self._rules(fault, f"numgen random mod 1000 < {share} drop"):
            await asyncio.sleep(fault.seconds)

    async def _slow(self, fault: Fault) -> None:
        """Let the host send slowly, on all links: the kernel shapes the traffic that leaves an interface."""
        where = ["ip", "netns", "exec", self._namespace(fault), "tc", "qdisc"]
        rate = f"{int(fault.amount * 8)}bit"
        shape = ["tbf", "rate", rate, "burst", "16kb", "latency", "200ms"]
        await _run([*where, "replace", "dev", "eth0", "root", *shape])
        await asyncio.sleep(fault.seconds)
        await _run([*where, "delete", "dev", "eth0", "root"])

    @contextlib.asynccontextmanager
    async def _rules(self, fault: Fault, verdict: str) -> AsyncIterator[None]:
        """Have rules in the namespace of the host that listens, for the traffic of nodes only."""
        self._tables += 1
        table = f"faults{self._tables}"
        peer, _, _ = fault.target.rpartition(">")
        ports = "{ " + ", ".join(map(str, PORTS.values())) + " }"
        lines = []
        for way, hook, field in (("up", "input", "saddr"), ("down", "output", "daddr")):
            if peer and fault.direction not in {way, "both"}:
                continue
            only = f"ip {field} {self._address(peer)} " if peer else ""
            rules = "; ".join(f"{only}tcp {port} {ports} {verdict}" for port in ("sport", "dport"))
            lines.append(f"chain {hook} {{ type filter hook {hook} priority 0; {rules}; }}")
        nft = ["ip", "netns", "exec", self._namespace(fault), "nft"]
        await _run([*nft, f"table inet {table} {{ {'; '.join(lines)}; }}"])
        try:
            yield
        finally:
            # A reboot keeps the namespace.
            await _run([*nft, f"delete table inet {table}"])

    def _namespace(self, fault: Fault) -> str:
        return f"{self.lab.own.bridge}-{_host(fault.target.rpartition('>')[2])}"


def _host(node: str) -> str:
    return node.replace("-", "")


def _port(node: str) -> int:
    return PORTS[node.partition("-")[0]]


def _unit(node: str) -> str:
    return f"wsqueue-{node.partition('-')[0]}@{_port(node)}"


async def _run(command: Sequence[str]) -> None:
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    _, error = await process.communicate()
    if process.returncode:
        raise WsqueueError(f"{' '.join(command)}: {error.decode()}")
