"""The worker that publishes on all publishers' connections."""

from __future__ import annotations

import select
import time
from collections import deque

from .connection import READ_BYTES, LoadConnection
from .counters import FINISHED, MEASURED, At, Counters
from .wire import Wire
from .workload import Load, Pace, Window

NAP_SECONDS = 0.00005
"""Sleep of publishers with a rate while nothing is due; it takes 70 µs to 110 µs in fact."""

REST_SECONDS = 0.0003
"""Sleep of workers without a rate, to let work gather: less than a system needs for half the window."""

IDLE_SECONDS = 0.001
"""Time between two looks of publishers for the next phase."""

SERVE_NANOSECONDS = 5_000_000
"""Time between two reads of publishers: confirmations, pings, or the reason of a close."""


class Publishers:
    """Publish on all connections, one phase after the other."""

    def __init__(self, wire: Wire, load: Load, counters: Counters) -> None:
        self._wire, self._load, self._counters = wire, load, counters
        self._publishing = wire.publishing(load)
        record_bytes = len(wire.delivered(load.topic_names[0], load.filler))
        self._window = Window(load.window(record_bytes), self._publishing.batch)
        self._sent = self._served_ns = 0
        self._connections: dict[int, LoadConnection] = {}
        self._turns: deque[tuple[int, LoadConnection]] = deque()
        self._poll = select.epoll()
        self._buffer = memoryview(bytearray(READ_BYTES))

    def run(self) -> None:
        """Publish until the run is over.

        Raises:
            WsqueueError: A connection can't be opened, or has ended.
        """
        counters = self._counters
        self._open()
        done = 0
        while (phase := counters[At.PHASE]) != FINISHED:
            if phase == done:
                self._serve(time.monotonic_ns())
                time.sleep(IDLE_SECONDS)
                continue
            self._publish(phase)
            counters[At.PUBLISHED_NS] = time.monotonic_ns()
            counters[At.PUBLISHED_PHASE] = done = phase

    def _open(self) -> None:
        for number in range(self._load.publishers):
            opened = self._wire.open_publisher(number)
            unwrapper = self._publishing.unwrapper(number)
            connection = LoadConnection(f"publisher {number + 1}", opened, unwrapper)
            self._connections[connection.fileno()] = connection
            self._turns.append((number, connection))
            self._poll.register(connection, select.EPOLLIN)
            self._counters[At.PUBLISHERS_OPEN] = number + 1

    def _publish(self, phase: int) -> None:
        """Publish the messages of a phase."""
        counters, load = self._counters, self._load
        start_ns, limit = counters[At.START_NS], counters[At.LIMIT]
        pace = Pace(start_ns, load.rate) if load.rate is not None else None
        nap = NAP_SECONDS if pace is not None else REST_SECONDS
        every = load.stamp_every if phase == MEASURED else 0
        first, arrived = self._sent, self._arrived()
        while (sent := self._sent - first) < limit:
            now_ns = time.monotonic_ns()
            if now_ns >= counters[At.STOP_NS]:
                break
            if now_ns - self._served_ns > SERVE_NANOSECONDS:
                self._serve(now_ns)
            if pace is not None:
                count = min(pace.due(now_ns) - sent, limit - sent, self._publishing.batch)
            elif now_ns < start_ns:
                count = 0
            else:
                ahead = sent - (self._arrived() - arrived)
                count = self._window.free(ahead, limit - sent)
            turn = self._free_connection() if count > 0 else None
            if turn is None:
                time.sleep(nap)
                continue
            stamped = range(-sent % every, count, every) if every else ()
            due_ns = {index: pace.due_ns(sent + index) for index in stamped} if pace is not None else {}
            publisher, connection = turn
            connection.write(self._publishing.make(publisher, self._sent, count, due_ns))
            self._sent += count
            counters[At.PUBLISHED] = self._sent
        while [connection for connection in self._connections.values() if not connection.flush()]:
            if counters[At.PHASE] != phase:
                break
            self._serve(time.monotonic_ns())
            time.sleep(NAP_SECONDS)

    def _arrived(self) -> int:
        """Return how many messages have arrived at all subscribers; in a replay, how many are confirmed."""
        if self._load.replay:
            return self._counters[At.CONFIRMED]
        return self._counters[At.SLOWEST] * self._load.topics

    def _free_connection(self) -> tuple[int, LoadConnection] | None:
        """Return the next publisher without pending bytes, None if there is none."""
        for _ in self._connections:
            self._turns.rotate(-1)
            if self._turns[-1][1].flush():
                return self._turns[-1]
        return None

    def _serve(self, now_ns: int) -> None:
        """Read from all publishers' connections, and reply."""
        self._served_ns = now_ns
        for descriptor, _event in self._poll.poll(0):
            self._connections[descriptor].read(self._buffer)
        self._counters[At.CONFIRMED] = self._sent - self._publishing.unconfirmed
