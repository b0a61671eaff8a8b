"""What publishers write: message after message, each to the next topic, some of them with a time in it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

from .wire import Wire
from .workload import Load

SEND_BYTES = 64 * 1024
"""What is written to a publisher's socket at a time: few system calls, and it fits the socket."""


class Messages:
    """Make the bytes of consecutive messages; those that carry no time are there already.

    Attributes:
        batch: How many messages are made at a time at most.
    """

    def __init__(self, wire: Wire, load: Load) -> None:
        self._wire, self._load, self._topics = wire, load, load.topic_names
        # An initiator's frames are masked against proxies that could take data for requests (RFC 6455
        # section 10.3); on a cluster of one's own, masks that were drawn once do.
        frames = [wire.published(topic, load.filler) for topic in self._topics]
        self._size = len(frames[0])
        self.batch = max(1, SEND_BYTES // self._size)
        # A batch may begin with any topic.
        self._block = memoryview(
            b"".join(itertools.islice(itertools.cycle(frames), len(frames) + self.batch))
        )

    def make(self, first: int, count: int, due_ns: Mapping[int, int]) -> memoryview:
        """Return the bytes of some messages.

        Args:
            first: Number of the first of them since the run began.
            count: How many.
            due_ns: When those were due that carry their time; the first of them is 0.
        """
        size, begin = self._size, first % len(self._topics)
        plain = self._block[begin * size : (begin + count) * size]
        if not due_ns:
            return plain
        messages = bytearray(plain)
        for index, ns in due_ns.items():
            topic = self._topics[(first + index) % len(self._topics)]
            messages[index * size : (index + 1) * size] = self._wire.published(topic, self._load.stamped(ns))
        return memoryview(messages)
