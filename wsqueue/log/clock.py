"""The clock of a node: it begins with the system's time and never jumps.

When somebody sets the system's clock, messages must neither be dropped because they seem to be old, nor stay
because they seem to be new. So the clock goes on with the time that has really passed, and is corrected
slowly. A start takes the system's time as it is.
"""

from __future__ import annotations

MAX_CORRECTION = 0.05
"""The largest part by which this clock runs faster or slower than time: an hour is corrected in 20 hours."""

CORRECTION_SECONDS = 20.0
"""Time in which a small difference is corrected: longer than the time between two calls of `correct`."""


class SteadyClock:
    """Tell the Unix time without jumps; any thread may read it.

    Args:
        monotonic: Seconds of a clock that nobody sets, and which goes on while the host sleeps.
        system: Unix time of the system now.
    """

    def __init__(self, monotonic: float, system: float) -> None:
        # Since when it runs so, its time then, and its seconds in one second. Replaced as one.
        self._course = monotonic, system, 1.0

    def read(self, monotonic: float) -> float:
        """Return the Unix time; it never falls while `monotonic` doesn't."""
        since, then, pace = self._course
        return then + (monotonic - since) * pace

    def correct(self, monotonic: float, system: float) -> float:
        """Run towards the system's time from now on; called every few seconds, by one thread.

        Returns:
            The seconds by which this clock is ahead of the system's.
        """
        now = self.read(monotonic)
        ahead = now - system
        correction = max(-MAX_CORRECTION, min(MAX_CORRECTION, -ahead / CORRECTION_SECONDS))
        self._course = monotonic, now, 1 + correction
        return ahead
