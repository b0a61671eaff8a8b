"""The system's clock as the consumers in a test's process see it, which the test can set."""

from __future__ import annotations

import time

import pytest

from wsqueue.nodes import consumer


class SystemClock:
    """Stand for the module `time` in consumers, which look at the clock all the time.

    Attributes:
        set_by: Seconds by which the clock is ahead of the real one.
    """

    CLOCK_BOOTTIME = time.CLOCK_BOOTTIME
    clock_gettime = staticmethod(time.clock_gettime)

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.set_by = 0.0
        monkeypatch.setattr(consumer, "time", self)
        monkeypatch.setattr(consumer, "TRIM_SECONDS", 0.01)

    def time(self) -> float:
        return time.time() + self.set_by
