"""Load on a cluster of wsqueue: on a cluster that is started on this machine for it, or on any other."""

from __future__ import annotations

import resource
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from ...config.keys import load_psk
from ...config.load import load_config
from ...config.model import ClientConfig, Limits, Retention, RetentionMode
from ...log.records import RECORD_OVERHEAD_BYTES
from ...net.certificates import TlsContexts
from ...protocol import classic
from ...protocol.routing import topic_hash
from ..local import LocalCluster
from .classic import ClassicWire
from .report import BenchReport
from .runner import run_load
from .v2 import GroupWire, V2Wire
from .wire import Wire
from .worker import SPARE_FILES
from .workload import Load

REPLAY_BYTES = 256 * 1024 * 1024
"""Data that a replay reads by default: with sqlite, most of it is no longer in memory."""

Protocol = Literal["v2", "classic", "group"]
"""The protocol of the clients; in that of a group, the subscribers of a topic are its members."""

_WIRES: dict[Protocol, type[V2Wire] | type[ClassicWire]] = {
    "v2": V2Wire,
    "classic": ClassicWire,
    "group": GroupWire,
}


async def bench_started_cluster(
    load: Load,
    cluster: tuple[int, int, RetentionMode],
    progress: Callable[[float], None],
    show: Callable[[str, str], None],
    protocol: Protocol = "v2",
    *,
    nats_server: Path | None = None,
) -> BenchReport:
    """Start a cluster on this machine, and put load on it.

    Args:
        load: The load.
        cluster: Number of consumers, number of producers, and retention mode of the consumers.
        progress: Called now and then with the share of the run that is done, 0 to 1.
        show: Called with the name of a node and a line that it logged.
        protocol: Protocol of the clients.
        nats_server: The program nats-server, for the mode jetstream.

    Raises:
        WsqueueError: A node did not start, ended, or delivered data that was not published.
    """
    consumers, producers, mode = cluster
    retention = retention_for(load, mode)
    async with LocalCluster(
        consumers, producers, 0, None, show, retention=retention, nats_server=nats_server
    ) as running:
        settings = load_config(running.config_file, ClientConfig)
        return await run_load(wire(settings, protocol), load, running.pids, progress)


async def bench_cluster(
    load: Load, settings: ClientConfig, progress: Callable[[float], None], protocol: Protocol = "v2"
) -> BenchReport:
    """Put load on a cluster that runs anywhere. Its report has no usage of nodes.

    Raises:
        ConfigError: The key or a certificate cannot be read.
        ConnectError: A node does not answer.
        WsqueueError: A node closed a connection, or delivered data that was not published.
    """
    return await run_load(wire(settings, protocol), load, {}, progress)


def wire(settings: ClientConfig, protocol: Protocol) -> Wire:
    """Return the wire of a cluster.

    Raises:
        ConfigError: The key or a certificate cannot be read.
    """
    return _WIRES[protocol](
        settings.produce_addresses,
        settings.subscribe_addresses,
        load_psk(settings),
        settings.hello_order,
        settings.limits,
        tls=TlsContexts(settings),
    )


def retention_for(load: Load, mode: RetentionMode) -> Retention:
    """Return a retention that keeps all messages that a replay reads; without a replay, the default one."""
    # A cluster whose log is in an engine brings the mode and the servers.
    mode = "memory" if mode == "jetstream" else mode
    if not load.replay or load.count is None:
        return Retention(mode=mode)
    # Enough even if each batch has one message.
    max_bytes = load.count * (load.size + 2 * RECORD_OVERHEAD_BYTES)
    return Retention(
        mode=mode,
        max_bytes=max_bytes,
        max_bytes_per_topic=max_bytes,
        max_messages_per_topic=load.count,
    )


def load_problem(load: Load, consumers: int, producers: int, limits: Limits) -> str:
    """Return the reason why a cluster can't take a load, "" if it can.

    Args:
        load: The load.
        consumers: Number of consumers.
        producers: Number of producers.
        limits: Limits of the nodes, as far as they are known.
    """
    message = classic.Message(data=load.filler.decode(), topic=load.topic_names[0])
    if (size := len(classic.encode(message))) > limits.max_message_bytes:
        max_size = load.size - (size - limits.max_message_bytes)
        return f"--size {load.size} is too large for max_message_bytes: expected at most {max_size}"
    if load.batch is not None and load.batch > (max_batch := limits.max_message_bytes // (load.size + 3)):
        return (
            f"--batch {load.batch} is too large for max_message_bytes: expected at most {max(max_batch, 1)}"
        )
    topics_of = Counter(topic_hash(topic) % consumers for topic in load.topic_names)
    # A consumer also has a link from each producer.
    subscriptions = load.subscribers * max(topics_of.values()) + producers
    if subscriptions > limits.max_connections:
        return (
            f"--topics {load.topics} with --subscribers {load.subscribers} each would need {subscriptions}"
            f" connections to one consumer: at most {limits.max_connections} (max_connections) are allowed"
        )
    publishers = -(-load.publishers // producers)
    if publishers > limits.max_connections:
        return (
            f"--publishers {load.publishers} would need {publishers} connections to one producer:"
            f" at most {limits.max_connections} (max_connections) are allowed"
        )
    needed = max(load.topics * load.subscribers, load.publishers) + SPARE_FILES
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and needed > hard:
        return f"this load needs {needed} open files, but only {hard} are allowed: see `ulimit -Hn`"
    return ""
