"""CPU time and memory of processes, from the system."""

from __future__ import annotations

from collections.abc import Mapping

import psutil

from ...errors import WsqueueError


class Usage:
    """Measure CPU time and memory of processes.

    Args:
        pids: Ids of the processes by name.

    Attributes:
        rss: Resident memory by name, at the last call of `sample`.
        max_rss: Highest resident memory by name that `sample` has seen.

    Raises:
        WsqueueError: A process does not run.
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
        """Sample the memory.

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
            # The clock has steps of a hundredth of a second.
            seconds[name] = round(times.user + times.system, 2)
        return seconds
