"""What processes use, as the system counts it."""

from __future__ import annotations

from collections.abc import Mapping

import psutil

from ...errors import WsqueueError


class Usage:
    """Watch what processes use.

    Args:
        pids: Their ids by their names.

    Attributes:
        rss: Resident memory by name, when `sample` was called last.
        max_rss: The most of it that `sample` has seen.

    Raises:
        WsqueueError: One does not run.
    """

    def __init__(self, pids: Mapping[str, int]) -> None:
        self._processes: dict[str, psutil.Process] = {}
        for name, pid in pids.items():
            try:
                self._processes[name] = psutil.Process(pid)
            except psutil.Error:
                raise WsqueueError(f"{name} does not run") from None
        self.rss = dict.fromkeys(pids, 0)
        self.max_rss = dict.fromkeys(pids, 0)

    def sample(self) -> None:
        """Look at the memory.

        Raises:
            WsqueueError: A process has ended.
        """
        for name, process in self._processes.items():
            try:
                alive = process.status() != psutil.STATUS_ZOMBIE
                rss = int(process.memory_info().rss)
            except psutil.Error:
                alive = False
            if not alive:
                raise WsqueueError(f"{name} ended during the run")
            self.rss[name], self.max_rss[name] = rss, max(self.max_rss[name], rss)

    def cpu_seconds(self) -> dict[str, float]:
        """Return user and system time by name.

        Raises:
            WsqueueError: A process has ended.
        """
        seconds = {}
        for name, process in self._processes.items():
            try:
                times = process.cpu_times()
            except psutil.Error:
                raise WsqueueError(f"{name} ended during the run") from None
            # The clock ticks in hundredths.
            seconds[name] = round(times.user + times.system, 2)
        return seconds
