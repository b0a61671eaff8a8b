"""Clusters to do harm to: the interface that the harness needs, and a cluster on loopback with proxies."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from tests.support.certificates import Authority
from tests.support.paths import ROOT
from tests.support.toml import write_toml
from wsqueue.errors import WsqueueError
from wsqueue.log.archive import FILE_NAME
from wsqueue.tools.local_node import MAX_LOG_LINE_BYTES, LocalNode

from .checker import Restore, Span
from .engines import Engines
from .proxy import Condition, Link, Way
from .schedule import CHANGES, STREAMS, Fault, Schedule

LIMITS = {
    "hello_seconds": 2.0,
    "close_seconds": 0.5,
    "ping_interval_seconds": 0.7,
    "ping_timeout_seconds": 0.8,
    "reconnect_max_seconds": 0.4,
    "drain_seconds": 3.0,
}
"""So short that a fault of seconds is long enough to be noticed."""

MAX_AGE_SECONDS = 10 * 365 * 86_400.0
"""Longer than any step of a clock, which would make messages too old."""

START_SECONDS = 30.0
"""How long the nodes may take to listen, on a busy machine."""

LOG_SECONDS = 90.0
"""How long a consumer may take to listen that waits for a log which it shares, and which faults keep away."""

STOP_SECONDS = 10.0
"""How long a node may take to end: `drain_seconds`, the peers' `close_seconds` and a margin."""

AGAIN_SECONDS = 0.3
"""How long after its end a node that was not told to end starts again, as systemd does it."""

DISK_BYTES = 64 * 1024 * 1024
"""Size of a disk that will be full: room for all messages of a schedule."""

SHARED_BYTES = 512 * 1024 * 1024
"""Room for all messages of a schedule in the log that consumers share."""

FAKETIME = (
    "/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/aarch64-linux-gnu/faketime/libfaketimeMT.so.1",
    "/usr/lib/faketime/libfaketimeMT.so.1",
)
"""Where distributions put it: a time namespace has no clock of the day, and the machine's own must stay."""

CERTIFICATE_DAYS = 1000
"""Longer than any step of a clock."""

READING = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN")
connection.execute("SELECT count(*) FROM record").fetchall()
sys.stdin.read()
"""
"""A program that looks into a log, and keeps its transaction open until its input ends."""

DEFECTS = ("Traceback (most recent call last)", "internal error", "Exception ignored")
"""Texts that only a node with a defect logs."""


class Cluster(Protocol):
    """Do harm to a cluster, as the harness needs it.

    Attributes:
        problems: Faults of the nodes that no history can show.
        notes: Faults that could not be done here, and why.
    """

    problems: list[str]
    notes: list[str]

    @property
    def client_files(self) -> Mapping[str, Path]:
        """Return the configuration of each worker's client."""
        ...

    @property
    def unclean(self) -> Mapping[str, Sequence[Span]]:
        """Return when each consumer ended without a chance to save anything."""
        ...

    @property
    def full(self) -> Mapping[str, Sequence[Span]]:
        """Return when the disk of each consumer was full."""
        ...

    @property
    def restores(self) -> Mapping[str, Sequence[Restore]]:
        """Return when the log of each consumer was restored."""
        ...

    @property
    def ends(self) -> Mapping[str, Sequence[float]]:
        """Return when each node ended, in whatever way, before all ended."""
        ...

    async def start(self) -> None:
        """Start everything, and return once it serves."""
        ...

    async def apply(self, fault: Fault) -> None:
        """Do a fault to a node or a link, and undo it after its time."""
        ...

    async def heal(self) -> None:
        """Undo all that is left of any fault, and return once everything serves again."""
        ...

    async def stop(self) -> None:
        """End everything, and look for defects."""
        ...


class LoopbackCluster:
    """Run each node as a process on loopback, with a proxy for each link."""

    def __init__(self, schedule: Schedule, directory: Path) -> None:
        workload = schedule.workload
        self.schedule, self.directory = schedule, directory
        self.links = {name: Link(name, schedule.seed) for name in workload.links}
        self.nodes = {
            name: _Node(name, directory, self._listens)
            for name in workload.all_consumer_names + workload.producer_names
        }
        for name in workload.spare_names:
            self.nodes[name].stay_away()
        for name in workload.all_consumer_names:
            self.nodes[name].shares_log = workload.engines > 0
        self._engines = Engines(workload.engine_names, directory) if workload.engines else None
        # The right list of consumers, and the lists of producers that have another one.
        self._listed = list(workload.consumer_names)
        self._odd_lists: dict[str, list[str]] = {}
        self._limits: dict[str, Mapping[str, object]] = {}
        clients = workload.all_publisher_names + workload.all_subscriber_names
        self.client_files: Mapping[str, Path] = {name: directory / f"{name}.toml" for name in clients}
        self.full: dict[str, list[Span]] = {name: [] for name in workload.consumer_names}
        self.restores: dict[str, list[Restore]] = {name: [] for name in workload.consumer_names}
        self.problems: list[str] = []
        self.notes: list[str] = []
        self._mounted: list[Path] = []
        # When the backup of a consumer was begun, if it has one; one at a time is made or put back.
        self._copied: dict[str, float] = {}
        self._copying = {name: asyncio.Lock() for name in workload.consumer_names}
        self._authority = Authority(directory, days=CERTIFICATE_DAYS) if workload.tls else None
        self._settings: dict[str, dict[str, object]] = {}
        self._node_keys = [secrets.token_urlsafe(24)]
        self._client_keys = [secrets.token_urlsafe(24)]
        self._faketime = next((file for file in FAKETIME if os.path.exists(file)), None)  # noqa: PTH110 - no I/O wait
        self._actions: dict[str, Callable[[Fault], Awaitable[None]]] = {
            "kill": self._kill,
            "interrupt": self._restart,
            "restart": self._restart,
            "reload": self._reload,
            "stop": self._pause,
            "freeze": self._freeze,
            "limits": self._change_limits,
            "rotate": self._rotate,
            "reader": self._read,
            "cut": self._cut,
            "reset": self._reset,
            "tear": self._tear,
            "half-close": self._half_close,
            "loss": self._lose,
            "delay": self._delay,
            "slow": self._slow,
            "clock": self._set_clock,
            "disk full": self._fill,
            "backup": self._back_up,
            "restore": self._restore,
            "engine cut": self._cut_from_engines,
            "consumer gone": self._leave,
            "lists disagree": self._disagree,
            "grow": self._grow,
            "shrink": self._shrink,
        }
        if self._engines is not None:
            self._actions |= {
                "engine kill": self._engines.kill,
                "engine restart": self._engines.kill,
                "engine stop": self._engines.pause,
                "engine gone": self._engines.leave,
                "step-down": self._engines.step_down,
            }

    @property
    def unclean(self) -> dict[str, list[Span]]:
        """Return when each consumer ended without a chance to save anything."""
        return {name: node.unclean for name, node in self.nodes.items()}

    @property
    def ends(self) -> dict[str, list[float]]:
        """Return when each node ended, in whatever way, before all ended."""
        return {name: node.ends for name, node in self.nodes.items()}

    async def start(self) -> None:
        """Start everything, and return once it serves.

        Raises:
            WsqueueError: A node did not start in time.
        """
        write_secret(self.directory / "psk", self._client_keys)
        self._write_keys()
        for link in self.links.values():
            await link.start()
        self._write_configurations()
        self._prepare_faults()
        await self._heal_engines()
        for node in self.nodes.values():
            node.start()
        await self._all_serving()

    async def apply(self, fault: Fault) -> None:
        """Do a fault to a node or a link, and undo it after its time."""
        await self._actions[fault.kind](fault)

    async def heal(self) -> None:
        """Undo all that is left of any fault, and return once everything serves again."""
        for link in self.links.values():
            link.heal()
        await self._heal_engines()
        for node in self.nodes.values():
            node.signal(signal.SIGCONT)
            node.want()
        await self._all_serving()

    async def stop(self) -> None:
        """End everything, and look for defects."""
        await asyncio.gather(*(node.end() for node in self.nodes.values()))
        await asyncio.gather(*(link.stop() for link in self.links.values()))
        if self._engines is not None:
            self._engines.stop()
        for directory in self._mounted:
            await (await asyncio.create_subprocess_exec("umount", directory)).wait()
        for node in self.nodes.values():
            self.problems += node.problems
            self.problems += [
                f"{node.name} logged {line!r}"
                for line in node.log_file.read_text(errors="replace").splitlines()
                if any(defect in line for defect in DEFECTS)
            ][:3]

    def links_of(self, target: str) -> list[Link]:
        """Return a link, or all links of a process."""
        return [link for name, link in self.links.items() if name == target or target in name.split(">")]

    def conditions_of(self, fault: Fault) -> list[Condition]:
        """Return the directions of the links to which a fault is done."""
        return [link.conditions[way] for link in self.links_of(fault.target) for way in ways_of(fault)]

    async def _heal_engines(self) -> None:
        if self._engines is None:
            return
        for link in self.links.values():
            name = link.name.partition(">")[2]
            if name in self.schedule.workload.engine_names:
                link.upstream = self._engines.address(name)
        await self._engines.heal()

    async def _all_serving(self) -> None:
        await asyncio.gather(*(node.serving() for node in self.nodes.values() if not node.gone))

    def _addresses(self, name: str, others: Sequence[str], endpoint: str) -> list[str]:
        scheme = "wss://" if self.schedule.workload.tls else ""
        return [scheme + self.links[f"{name}>{other}"].address + endpoint for other in others]

    def _write_configurations(self) -> None:
        workload = self.schedule.workload
        scheme = "wss://" if workload.tls else ""
        common: dict[str, object] = {"local": True, "psk_file": "psk"}
        of_nodes = common | {
            "psk_file": "psk-of-clients",
            "node_psk_file": "psk-of-nodes",
            "listen": [f"{scheme}127.0.0.1:0"],
        }
        if self._authority is not None:
            common["tls"] = {"ca": self._authority.file.name}

        def certificate(name: str) -> dict[str, object]:
            if self._authority is None:
                return {}
            self._authority.issue(name, days=CERTIFICATE_DAYS)
            return {
                "tls": {"certificate": f"{name}.pem", "key": f"{name}.key", "ca": self._authority.file.name}
            }

        for name in workload.all_consumer_names:
            retention = retention_of(self.schedule) | {"directory": f"{name}.retention"}
            self._settings[name] = of_nodes | certificate(name) | {"role": "consumer", "retention": retention}
            if workload.engines:
                servers = [f"nats://{self.links[f'{name}>{one}'].address}" for one in workload.engine_names]
                table = {"servers": servers, "replicas": workload.engines, "streams": STREAMS}
                self._settings[name]["retention.jetstream"] = table
            write_toml(self.nodes[name].config_file, self._settings[name], LIMITS)
            (self.directory / f"{name}.retention").mkdir()
        for name in workload.producer_names:
            consumers = self._addresses(name, workload.consumer_names, "/producer")
            self._settings[name] = of_nodes | certificate(name) | {"role": "producer", "consumers": consumers}
            write_toml(self.nodes[name].config_file, self._settings[name], LIMITS)
        # Whoever publishes never asks a consumer, and who subscribes no producer; but a file has both.
        nowhere = {"producers": ["127.0.0.1:9/produce"], "consumers": ["127.0.0.1:9/subscribe"]}
        for name in workload.all_publisher_names:
            producers = self._addresses(name, workload.producer_names, "/produce")
            write_toml(
                self.client_files[name],
                common | {"role": "demo"} | nowhere | {"producers": producers},
                LIMITS,
            )
        for name in workload.all_subscriber_names:
            names = workload.consumer_names
            if workload.shuffled:
                random.Random(f"{self.schedule.seed} {name}").shuffle(names)
            consumers = self._addresses(name, names, "/subscribe")
            write_toml(
                self.client_files[name],
                common | {"role": "demo"} | nowhere | {"consumers": consumers},
                LIMITS,
            )

    def _prepare_faults(self) -> None:
        """Give a clock and a disk of its own to each node that needs one, where this machine can."""
        for fault in self.schedule.faults:
            if fault.kind == "clock":
                if self._faketime is None:
                    self.note("no clock is set, for libfaketime is not installed")
                else:
                    self.nodes[fault.target].use_clock(self._faketime)
            elif fault.kind == "disk full":
                self._mount_disk(self.directory / f"{fault.target}.retention")

    def _mount_disk(self, directory: Path) -> None:
        if directory in self._mounted:
            return
        if os.geteuid() or not shutil.which("mount"):
            self.note("no disk is filled, for only root can mount one")
            return
        size = f"size={DISK_BYTES}"
        subprocess.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", directory], check=True, timeout=10)
        self._mounted.append(directory)

    def note(self, text: str) -> None:
        """Note once that a fault is not done."""
        if text not in self.notes:
            self.notes.append(text)

    def _listens(self, name: str, address: str) -> None:
        """Lead the links of a node to where it listens now, if anywhere."""
        host, _, port = address.removeprefix("wss://").rpartition(":")
        for link in self.links.values():
            if link.name.endswith(f">{name}"):
                link.upstream = (host, int(port)) if address else None

    async def _kill(self, fault: Fault) -> None:
        node = self.nodes[fault.target]
        if not node.wanted.is_set():
            return
        node.wanted.clear()
        await node.kill()
        await asyncio.sleep(fault.seconds)
        node.want()

    async def _restart(self, fault: Fault) -> None:
        """End a node in an orderly way; an `interrupt` gives it less time than it needs."""
        node = self.nodes[fault.target]
        if not node.serves or not node.wanted.is_set():
            return
        node.wanted.clear()
        await self._terminate(node, fault.amount if fault.kind == "interrupt" else None)
        await asyncio.sleep(fault.seconds)
        node.want()

    async def _terminate(self, node: _Node, hasty: float | None = None) -> None:
        """End a node in an orderly way, or in fewer seconds than it needs."""
        node.signal(signal.SIGTERM)
        if not await node.has_ended(STOP_SECONDS if hasty is None else hasty):
            if hasty is None:
                self.problems.append(f"{node.name} did not end within {STOP_SECONDS:g} seconds")
            await node.kill()
        elif node.status:
            self.problems.append(f"{node.name} ended with status {node.status} after SIGTERM")

    async def _back_up(self, fault: Fault) -> None:
        """Copy the log of a consumer, which goes on meanwhile."""
        node = self.nodes[fault.target]
        async with self._copying[fault.target]:
            began = time.monotonic()
            if await self._command("backup", str(node.config_file), str(self._backup_of(node))):
                self._copied[fault.target] = began
            elif node.full_until < began:
                self.problems.append(f"the log of {node.name} was not copied: see commands.log")

    async def _restore(self, fault: Fault) -> None:
        """End a consumer, and put the last copy in the place of its log."""
        node = self.nodes[fault.target]
        async with self._copying[fault.target]:
            if fault.target not in self._copied or not node.serves or not node.wanted.is_set():
                return
            node.wanted.clear()
            began = time.monotonic()
            node.signal(signal.SIGTERM)
            if not await node.has_ended(fault.amount):
                await node.kill()
            ended = began, time.monotonic()
            if await self._command("restore", str(self._backup_of(node)), str(node.config_file)):
                self.restores[fault.target].append(Restore(self._copied[fault.target], ended))
            elif node.full_until < began:
                self.problems.append(f"the log of {node.name} was not restored: see commands.log")
            await asyncio.sleep(fault.seconds)
            node.want()

    def _backup_of(self, node: _Node) -> Path:
        return self.directory / f"{node.name}.backup"

    async def _command(self, *arguments: str) -> bool:
        """Run a command of `wsqueue` that replaces a file, and return True if it has."""
        with (self.directory / "commands.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "wsqueue", *arguments, "--replace"),
                cwd=ROOT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return not await process.wait()

    async def _reload(self, fault: Fault) -> None:
        self.nodes[fault.target].reload()

    async def _pause(self, fault: Fault) -> None:
        node = self.nodes[fault.target]
        node.signal(signal.SIGSTOP)
        await asyncio.sleep(fault.seconds)
        node.signal(signal.SIGCONT)

    async def _freeze(self, fault: Fault) -> None:
        """Stop a node for longer than the watchdog waits, which may then kill it."""
        node = self.nodes[fault.target]
        if not node.serves:
            # It would be taken for one that does not start.
            return
        node.signal(signal.SIGSTOP)
        await asyncio.sleep(fault.amount or fault.seconds)
        if fault.amount and node.wanted.is_set():
            node.wanted.clear()
            await node.kill()
            node.want()
        node.signal(signal.SIGCONT)

    async def _change_limits(self, fault: Fault) -> None:
        """Lower or raise limits, and a while later set them as they were; a reload tells the node."""
        self._limits[fault.target] = {**LIMITS, **CHANGES[int(fault.amount)]}
        self._reconfigure(fault.target)
        await asyncio.sleep(fault.seconds)
        del self._limits[fault.target]
        self._reconfigure(fault.target)

    def _reconfigure(self, name: str) -> None:
        """Write the configuration of a node anew, and tell it so."""
        node = self.nodes[name]
        new = node.config_file.with_suffix(".new")
        write_toml(new, self._settings[name], self._limits.get(name, LIMITS))
        new.replace(node.config_file)
        node.reload()

    async def _leave(self, fault: Fault) -> None:
        """Kill a consumer for good; all lists still have it."""
        node = self.nodes[fault.target]
        node.stay_away()
        await node.kill()

    async def _disagree(self, fault: Fault) -> None:
        """Give a producer some of the consumers, in another order than all others have them."""
        rng = random.Random(fault.amount)
        left = [name for name in self._listed if not self.nodes[name].gone]
        self._odd_lists[fault.target] = rng.sample(left, rng.randint(1, len(left)))
        self._list_consumers()
        await asyncio.sleep(fault.seconds)
        del self._odd_lists[fault.target]
        self._list_consumers()

    async def _grow(self, fault: Fault) -> None:
        """Start one more consumer, and tell the producers."""
        node = self.nodes[fault.target]
        node.gone = False
        node.want()
        await asyncio.sleep(fault.amount)
        self._listed.append(fault.target)
        self._list_consumers()

    async def _shrink(self, fault: Fault) -> None:
        """Tell the producers to use a consumer no more, and stop it for good."""
        self._listed.remove(fault.target)
        self._list_consumers()
        await asyncio.sleep(fault.amount)
        node = self.nodes[fault.target]
        serves = node.serves
        node.stay_away()
        if serves:
            await self._terminate(node)
        else:
            await node.kill()

    def _list_consumers(self) -> None:
        """Give each producer its list of consumers."""
        for name in self.schedule.workload.producer_names:
            names = self._odd_lists.get(name, self._listed)
            addresses = self._addresses(name, names, "/producer")
            if self._settings[name]["consumers"] != addresses:
                self._settings[name]["consumers"] = addresses
                self._reconfigure(name)

    async def _cut_from_engines(self, fault: Fault) -> None:
        """Let nothing pass between a consumer and the log that it shares."""
        names = [f"{fault.target}>{engine}" for engine in self.schedule.workload.engine_names]
        await self._block(
            [self.links[name].conditions[way] for name in names for way in ways_of(fault)], fault
        )

    async def _rotate(self, fault: Fault) -> None:
        """Give the nodes another key in three steps, and clients one that they need not use."""
        steps: list[Callable[[list[str], str], list[str]]] = [
            lambda keys, new: [keys[0], new],
            lambda keys, new: [new, keys[0]],
            lambda _keys, new: [new],
        ]
        new, old = secrets.token_urlsafe(24), self._node_keys
        for_clients = secrets.token_urlsafe(24)
        for step in steps:
            self._node_keys = step(old, new)
            # The clients of this schedule have the first key for good.
            self._client_keys = [self._client_keys[0], for_clients]
            self._write_keys()
            for node in self.nodes.values():
                node.reload()
            await asyncio.sleep(fault.seconds / len(steps))

    def _write_keys(self) -> None:
        write_secret(self.directory / "psk-of-clients", self._client_keys[::-1])
        write_secret(self.directory / "psk-of-nodes", self._node_keys)

    async def _read(self, fault: Fault) -> None:
        """Let another program hold a transaction on the log of a consumer."""
        file = self.directory / f"{fault.target}.retention" / FILE_NAME
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", READING, str(file)),
            stdin=asyncio.subprocess.PIPE,
            # There may be no table yet, or the node may hold the file alone for a moment.
            stderr=asyncio.subprocess.DEVNULL,
        )
        await asyncio.sleep(fault.seconds)
        if fault.amount:
            # It may have ended, and its pipe with it.
            assert process.stdin is not None
            process.stdin.close()
        elif process.returncode is None:
            process.kill()
        await process.wait()

    async def _cut(self, fault: Fault) -> None:
        await self._block(self.conditions_of(fault), fault)

    async def _block(self, conditions: Sequence[Condition], fault: Fault) -> None:
        for condition in conditions:
            condition.block()
        await asyncio.sleep(fault.seconds)
        for condition in conditions:
            condition.unblock()

    async def _reset(self, fault: Fault) -> None:
        for link in self.links_of(fault.target):
            link.reset()

    async def _tear(self, fault: Fault) -> None:
        await self._set("left_until_tear", fault, int(fault.amount), None)

    async def _half_close(self, fault: Fault) -> None:
        for link in self.links_of(fault.target):
            for way in ways_of(fault):
                link.half_close(way)

    async def _lose(self, fault: Fault) -> None:
        await self._set("loss", fault, fault.amount, 0.0)

    async def _delay(self, fault: Fault) -> None:
        await self._set("delay", fault, fault.amount, 0.0)

    async def _slow(self, fault: Fault) -> None:
        await self._set("rate", fault, fault.amount, 0.0)

    async def _set(self, attribute: str, fault: Fault, value: float, usual: float | None) -> None:
        conditions = self.conditions_of(fault)
        for condition in conditions:
            setattr(condition, attribute, value)
        await asyncio.sleep(fault.seconds)
        for condition in conditions:
            setattr(condition, attribute, usual)

    async def _set_clock(self, fault: Fault) -> None:
        node = self.nodes[fault.target]
        if node.clock_file.exists():
            set_clock(node.clock_file, fault.amount)
            await asyncio.sleep(fault.seconds)
            set_clock(node.clock_file, 0)

    async def _fill(self, fault: Fault) -> None:
        directory = self.directory / f"{fault.target}.retention"
        if directory in self._mounted:
            filler, node = directory / "filler", self.nodes[fault.target]
            began = time.monotonic()
            node.full_until = math.inf
            await asyncio.to_thread(fill, filler)
            try:
                await asyncio.sleep(fault.seconds)
            finally:
                filler.unlink(missing_ok=True)
                node.full_until = time.monotonic()
                self.full[fault.target].append((began, node.full_until))


class _Node:
    """Run one node, again whenever it has ended, as long as it is wanted."""

    def __init__(self, name: str, directory: Path, listens: Callable[[str, str], None]) -> None:
        self.name, self.role = name, name.partition("-")[0]
        self.config_file, self.log_file = directory / f"{name}.toml", directory / f"{name}.log"
        self.clock_file = directory / f"{name}.clock"
        self.wanted = asyncio.Event()
        self.wanted.set()
        self.gone = self.shares_log = False
        self.full_until = 0.0
        self.unclean: list[Span] = []
        self.ends: list[float] = []
        self.problems: list[str] = []
        self._stale = False
        self._listens = listens
        self._environment: dict[str, str] = {}
        self._node: LocalNode | None = None
        self._serving = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def serves(self) -> bool:
        """Return True if it listens."""
        return self._serving.is_set()

    @property
    def status(self) -> int | None:
        """Return how it ended last."""
        return self._node.status if self._node is not None else None

    def want(self) -> None:
        """Let it run, unless it is gone for good."""
        if not self.gone:
            self.wanted.set()

    def stay_away(self) -> None:
        """Let it not run again once it has ended."""
        self.gone = True
        self.wanted.clear()

    def use_clock(self, library: str) -> None:
        """Let it have a clock of the day of its own, from its next start on."""
        set_clock(self.clock_file, 0)
        self._environment = {
            "LD_PRELOAD": library,
            "FAKETIME_TIMESTAMP_FILE": str(self.clock_file),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
        }

    def start(self) -> None:
        """Begin to run it."""
        self._task = asyncio.create_task(self._run())

    async def serving(self) -> None:
        """Wait until it listens.

        Raises:
            WsqueueError: It does not.
        """
        assert self._task is not None
        waiting = asyncio.create_task(self._serving.wait())
        await asyncio.wait([waiting, self._task], timeout=START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        if not self.serves:
            raise WsqueueError(f"{self.name} does not start: see {self.log_file}")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self._node is not None:
            self._node.signal(number)

    def reload(self) -> None:
        """Let it read its configuration again, as soon as it can."""
        # One that is ending has no handler any more, and one that is starting none yet.
        if self.serves and self.wanted.is_set():
            self.signal(signal.SIGHUP)
        else:
            self._stale = True

    async def kill(self) -> None:
        """End it as `kill -9` does, unless it has ended."""
        node = self._node
        if node is not None and not node.ended.done():
            began = time.monotonic()
            node.kill()
            await asyncio.shield(node.ended)
            self.unclean.append((began, time.monotonic()))

    async def has_ended(self, seconds: float) -> bool:
        """Wait at most that many seconds, and return True if it has ended."""
        assert self._node is not None
        await asyncio.wait([self._node.ended], timeout=seconds)
        return self._node.ended.done()

    async def end(self) -> None:
        """End it for good."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        with self.log_file.open("a") as log:
            try:
                await self._run_again_and_again(lambda _, line: print(line, file=log, flush=True))
            finally:
                # It logs until it has ended.
                if self._node is not None:
                    self._node.kill()
                    await self._node.ended

    async def _run_again_and_again(self, show: Callable[[str, str], None]) -> None:
        while True:
            await self.wanted.wait()
            began, self._stale = time.monotonic(), False
            node = self._node = await self._spawn(show)
            try:
                await self._started(node)
                self._listens(self.name, node.address)
                self._serving.set()
                if self._stale:
                    self.reload()
                await asyncio.shield(node.ended)
            except WsqueueError:
                # It did not start; why, its log says.
                node.kill()
                await asyncio.shield(node.ended)
            finally:
                self._serving.clear()
                self._listens(self.name, "")
            self.ends.append(time.monotonic())
            if self.wanted.is_set():
                self.unclean.append((began, time.monotonic()))
                if began > self.full_until:
                    self.problems.append(f"{self.name} ended by itself: {node.outcome()}")
                await asyncio.sleep(AGAIN_SECONDS)

    async def _started(self, node: LocalNode) -> None:
        """Wait until it listens, which a consumer does not before its log is there.

        Raises:
            WsqueueError: It has ended, or does not start in time.
        """
        deadline = time.monotonic() + LOG_SECONDS
        while True:
            try:
                await node.started()
            except WsqueueError:
                if node.status is not None or not self.shares_log or time.monotonic() > deadline:
                    raise
            else:
                return

    async def _spawn(self, show: Callable[[str, str], None]) -> LocalNode:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "wsqueue", self.role, str(self.config_file)),
            cwd=ROOT,
            env=os.environ | self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            limit=MAX_LOG_LINE_BYTES,
            start_new_session=True,
        )
        return LocalNode(self.name, process, show)


def retention_of(schedule: Schedule) -> dict[str, object]:
    """Return the table of a consumer's configuration, but for the directory."""
    table: dict[str, object] = {"mode": schedule.retention, "max_age_seconds": MAX_AGE_SECONDS}
    if schedule.retention == "jetstream":
        # The servers know the age by their own clocks.
        table = {"mode": "jetstream", "max_bytes": SHARED_BYTES, "max_bytes_per_topic": SHARED_BYTES}
    if schedule.workload.kept:
        table["max_messages_per_topic"] = schedule.workload.kept
    return table


def ways_of(fault: Fault) -> list[Way]:
    """Return the directions of a link to which a fault is done."""
    return ["up", "down"] if fault.direction == "both" else [fault.direction]


def write_secret(file: Path, keys: Sequence[str]) -> None:
    """Write a file of keys, at once for whoever reads it."""
    new = file.with_suffix(".new")
    new.touch(mode=0o600)
    new.write_text("".join(f"{key}\n" for key in keys))
    new.replace(file)


def set_clock(file: Path, seconds: float) -> None:
    """Set the clock of the day of a process that reads it from a file, relative to the right one."""
    new = file.with_suffix(".new")
    new.write_text(f"{seconds:+g}\n")
    new.replace(file)


def fill(file: Path) -> None:
    """Take all the space that a file system has left."""
    with file.open("wb", buffering=0) as stream, contextlib.suppress(OSError):
        for size in (1024 * 1024, 4096):
            try:
                while True:
                    stream.write(bytes(size))
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
