"""The bytes that publishers write: each message goes to the next topic, and some carry a time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping

from .wire import Unwrapper
from .workload import Load

SEND_BYTES = 64 * 1024
"""Bytes that are written to a socket at a time: few system calls, and they fit the buffer of a socket."""


class Messages:
    """The bytes of consecutive messages; messages without a time are prebuilt.

    Args:
        published: Returns the bytes that publish data (ASCII) on a topic; their number depends only on the
            lengths of topic and data.
        load: The load.
        unwrapper: Makes the unwrapper of a publisher's connection; without it, all input is dropped.

    Attributes:
        batch: Maximum number of messages that are made at a time.
        unconfirmed: Always 0, because these messages are not confirmed.
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
        # Frames of clients are masked against proxies that could take data for requests (RFC 6455, section
        # 10.3). In a cluster that one measures there are none, so masks that are drawn once are enough.
        frames = [published(topic, load.filler) for topic in self._topics]
        self._size = len(frames[0])
        self.batch = load.batch or max(1, SEND_BYTES // self._size)
        # A batch may begin with any topic.
        self._block = memoryview(
            b"".join(itertools.islice(itertools.cycle(frames), len(frames) + self.batch))
        )

    def make(self, publisher: int, first: int, count: int, due_ns: Mapping[int, int]) -> memoryview:
        """Return the bytes of messages (see `Publishing`)."""
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
        """Return the unwrapper of a publisher's connection, None if all input is dropped."""
        return self._unwrapper() if self._unwrapper is not None else None
