"""The worker that reads on all subscribers' connections."""

from __future__ import annotations

import select
import socket
import time

from ...errors import WsqueueError
from .connection import READ_BYTES, LoadConnection
from .counters import FINISHED, MEASURED, At, Counters
from .publishers import REST_SECONDS
from .records import Records, Template
from .report import Latencies
from .wire import ReplayingWire, Wire
from .workload import Load

TEMPLATE_BYTES = 64 * 1024 * 1024
"""Memory of the templates of all topics; with many topics, less is read at a time."""

MIN_READ_BYTES = 4 * 1024
"""Bytes that are read at a time at least, even with many topics."""

POLL_SECONDS = 0.005
"""Time that subscribers wait for input before they check whether the run is over."""

REPLAY_POLL_SECONDS = 0.0005
"""The same time in a replay, whose beginning they must not miss."""


class Subscribers:
    """Read on all connections, and check and count the records."""

    def __init__(self, wire: Wire, load: Load, counters: Counters) -> None:
        self._wire, self._load, self._counters = wire, load, counters
        self._latencies = Latencies()
        self._buffer = memoryview(
            bytearray(max(MIN_READ_BYTES, min(READ_BYTES, TEMPLATE_BYTES // load.topics)))
        )
        self._poll = select.epoll()
        self._receivers: dict[int, tuple[LoadConnection, Records, int]] = {}
        # The packets that begin a replay.
        self._requests: list[tuple[LoadConnection, bytes]] = []

    def run(self) -> tuple[Latencies, list[int]]:
        """Read until the run is over, and return the latencies and the deliveries on each connection.

        Connections that share the messages of a topic are counted together.

        Raises:
            WsqueueError: A connection can't be opened, ended, or delivered data that was not published.
        """
        counters = self._counters
        self._open()
        counts, total = [0] * (self._load.topics * self._load.deliveries), 0
        poll_seconds = REPLAY_POLL_SECONDS if self._load.replay else POLL_SECONDS
        while (phase := counters[At.PHASE]) != FINISHED:
            if phase == MEASURED:
                self._begin_replay()
            ready = self._poll.poll(poll_seconds)
            if not ready:
                continue
            before = total
            for descriptor, _event in ready:
                connection, records, index = self._receivers[descriptor]
                count = records.take(connection.read(self._buffer), time.monotonic_ns())
                counts[index] += count
                total += count
            if total > before:
                counters[At.RECEIVED_NS] = time.monotonic_ns()
                counters[At.RECEIVED] = total
            if self._load.rate is None and not self._load.replay:
                counters[At.SLOWEST] = min(counts)
                time.sleep(REST_SECONDS)
        return self._latencies, counts

    def _open(self) -> None:
        for number, topic in enumerate(self._load.topic_names):
            template = Template(self._wire, topic, self._load, len(self._buffer))
            for _ in range(self._load.subscribers):
                opened, request = self._connect(topic)
                unwrapper = self._wire.unwrapper(topic, self._load)
                connection = LoadConnection(f"a subscriber of {topic}", opened, unwrapper)
                if request:
                    self._requests.append((connection, request))
                records = Records(template, self._latencies)
                index = number if self._load.shared else len(self._receivers)
                self._receivers[connection.fileno()] = connection, records, index
                self._poll.register(connection, select.EPOLLIN)
                self._counters[At.SUBSCRIBERS_OPEN] = len(self._receivers)

    def _connect(self, topic: str) -> tuple[socket.socket, bytes]:
        if not self._load.replay:
            return self._wire.open_subscriber(topic), b""
        if not isinstance(self._wire, ReplayingWire):
            raise WsqueueError("a replay needs a system that stores messages")
        return self._wire.open_reader(topic)

    def _begin_replay(self) -> None:
        requests, self._requests = self._requests, []
        for connection, request in requests:
            connection.write(request)
