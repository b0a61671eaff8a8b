"""What publishers write: message after message, each to the next topic, some of them with a time in it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

from .wire import Unwrapper
from .workload import Load

SEND_BYTES = 64 * 1024
"""What is written to a publisher's socket at a time: few system calls, and it fits the socket."""


class Messages:
    """Make the bytes of consecutive messages; those that carry no time are there already.

    Args:
        published: From a topic and data (ASCII) to the bytes that publish them; how many those are depends
            only on both lengths.
        load: What is published.
        unwrapper: Makes what answers nodes on publishers' connections; without it, what they say is dropped.

    Attributes:
        batch: How many messages are made at a time at most.
        unconfirmed: Nobody confirms these.
    """

    unconfirmed = 0

    def __init__(
        self,
        published: Callable[[str, bytes], bytes],
        load: Load,
        unwrapper: Callable[[], Unwrapper] | None = None,
    ) -> None:
        self._published, self._load, self._topics = published, load, load.topic_names
        self._unwrapper = unwrapper
        # An initiator's frames are masked against proxies that could take data for requests (RFC 6455
        # section 10.3); on a cluster of one's own, masks that were drawn once do.
        frames = [published(topic, load.filler) for topic in self._topics]
        self._size = len(frames[0])
        self.batch = load.batch or max(1, SEND_BYTES // self._size)
        # A batch may begin with any topic.
        self._block = memoryview(
            b"".join(itertools.islice(itertools.cycle(frames), len(frames) + self.batch))
        )

    def make(self, publisher: int, first: int, count: int, due_ns: Mapping[int, int]) -> memoryview:
        """Return the bytes of some messages (see `Publishing`)."""
        size, begin = self._size, first % len(self._topics)
        plain = self._block[begin * size : (begin + count) * size]
        if not due_ns:
            return plain
        messages = bytearray(plain)
        for index, ns in due_ns.items():
            topic = self._topics[(first + index) % len(self._topics)]
            messages[index * size : (index + 1) * size] = self._published(topic, self._load.stamped(ns))
        return memoryview(messages)

    def unwrapper(self, publisher: int) -> Unwrapper | None:
        """Return what answers nodes on a publisher's connection, if they ask anything."""
        return self._unwrapper() if self._unwrapper is not None else None
