"""Counters in shared memory, through which the run and its workers tell each other their progress."""

from __future__ import annotations

import enum
import mmap
import os
from typing import Self

WARM_UP, MEASURED, FINISHED = 1, 2, 3
"""The phases of a run."""

NO_LIMIT = 2**63
"""More messages, or nanoseconds, than any phase reaches."""


class At(enum.IntEnum):
    """The counters that the run shares with its workers."""

    PHASE = 0  # set by the run, after all others; `FINISHED` ends the workers
    START_NS = enum.auto()  # set by the run: when the first message is due
    STOP_NS = enum.auto()  # set by the run: when to stop publishing
    LIMIT = enum.auto()  # set by the run: messages of the phase
    PUBLISHERS_OPEN = enum.auto()
    SUBSCRIBERS_OPEN = enum.auto()
    PUBLISHED = enum.auto()  # messages
    PUBLISHED_PHASE = enum.auto()  # the last phase that was published
    PUBLISHED_NS = enum.auto()  # when it was
    CONFIRMED = enum.auto()  # messages; all that were sent if the system confirms none
    RECEIVED = enum.auto()  # deliveries
    SLOWEST = enum.auto()  # deliveries to the subscriber that has the fewest
    RECEIVED_NS = enum.auto()  # when the last delivery came


class Counters:
    """Numbers of 64 bits in memory that processes share; they are aligned, so reads and writes are atomic."""

    def __init__(self, descriptor: int | None = None) -> None:
        size = 8 * len(At)
        if descriptor is None:
            # In memory and without a name, so there is nothing to clean up.
            descriptor = os.memfd_create("wsqueue-load")
            os.ftruncate(descriptor, size)
        self.descriptor = descriptor
        self._map = mmap.mmap(descriptor, size)
        self._numbers = memoryview(self._map).cast("Q")

    def __getitem__(self, at: At) -> int:
        return self._numbers[at]

    def __setitem__(self, at: At, number: int) -> None:
        self._numbers[at] = number

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self._numbers.release()
        self._map.close()
        os.close(self.descriptor)
