"""Repeated snapshots: on a screen that follows keys and the size of the terminal, or printed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from ...monitoring.cluster import STALE_SECONDS, ClusterMonitor
from ..terminal import STDIN
from .screen import NO_LIMIT, screen
from .snapshot import ClusterSnapshot, Sampler


class Top:
    """Ask the nodes for their reports at an interval.

    Args:
        monitor: Started monitor of the cluster.
        interval: Seconds between two requests.
        hello_seconds: Maximum time until a node answers for the first time.
    """

    def __init__(self, monitor: ClusterMonitor, interval: float, hello_seconds: float) -> None:
        self._monitor, self._interval, self._hello_seconds = monitor, interval, hello_seconds
        self._sampler = Sampler()

    async def first(self) -> ClusterSnapshot:
        """Return the first snapshot, without rates, when all nodes have answered or failed."""
        await self._monitor.settled(max(self._hello_seconds, STALE_SECONDS) + 0.5)
        return self._take()

    async def next(self) -> ClusterSnapshot:
        """Wait, ask all nodes again, and return the next snapshot."""
        # A node that hangs delays the snapshot by one interval at most.
        return await self._again(min(self._interval, STALE_SECONDS))

    async def once(self) -> ClusterSnapshot:
        """Return one snapshot with rates."""
        await self.first()
        return await self._again(STALE_SECONDS + 0.1)

    async def _again(self, seconds: float) -> ClusterSnapshot:
        await asyncio.sleep(self._interval)
        self._monitor.ask()
        await self._monitor.settled(seconds)
        return self._take()

    def _take(self) -> ClusterSnapshot:
        return self._sampler.snapshot(self._monitor.cluster(), time.time())


async def print_snapshots(top: Top, write: Callable[[ClusterSnapshot], None]) -> None:
    """Write a snapshot at each interval, the first with rates, until it is cancelled."""
    write(await top.once())
    while True:
        write(await top.next())


async def watch(top: Top) -> None:
    """Show the cluster on the terminal until q is pressed, or the task is cancelled."""
    console = Console(highlight=False)
    view = _View(console)
    showing = asyncio.create_task(_show(top, view))
    ending = asyncio.create_task(view.ended.wait())
    loop = asyncio.get_running_loop()
    try:
        view.open()
        loop.add_signal_handler(signal.SIGWINCH, view.draw)
        loop.add_signal_handler(signal.SIGTSTP, view.suspend)
        await asyncio.wait([showing, ending], return_when=asyncio.FIRST_COMPLETED)
        if showing.done():
            showing.result()
    finally:
        for number in (signal.SIGWINCH, signal.SIGTSTP):
            loop.remove_signal_handler(number)
        showing.cancel()
        ending.cancel()
        view.close()


async def _show(top: Top, view: _View) -> None:
    view.show(await top.first())
    while True:
        view.show(await top.next())


class _View:
    """The terminal in full-screen mode, with each key as it is pressed.

    Attributes:
        ended: Set when q was pressed.
    """

    def __init__(self, console: Console) -> None:
        self.ended = asyncio.Event()
        self._console = console
        self._snapshot: ClusterSnapshot | None = None
        self._resources = contextlib.ExitStack()
        self._live: Live | None = None

    def open(self) -> None:
        """Take the terminal."""
        self._resources.enter_context(self._keys())
        self._live = Live(
            Text("Asking all nodes …"),
            console=self._console,
            screen=True,
            auto_refresh=False,
            vertical_overflow="crop",
        )
        self._resources.enter_context(self._live)
        self.draw()

    def close(self) -> None:
        """Restore the terminal."""
        self._live = None
        self._resources.close()

    def show(self, snapshot: ClusterSnapshot) -> None:
        """Show a new snapshot."""
        self._snapshot = snapshot
        self.draw()

    def draw(self) -> None:
        """Draw the latest snapshot for the size that the terminal has now."""
        if self._live is None:
            return
        # Rich would use COLUMNS and LINES, which do not change with the terminal.
        width, height = self._console.size = os.get_terminal_size(sys.stdout.fileno())
        lines = [Text("Asking all nodes …")]
        if self._snapshot is not None:
            lines = screen(self._snapshot, width, height, "q ends")
        for line in lines:
            line.no_wrap = True
        self._live.update(Group(*lines), refresh=True)

    def suspend(self) -> None:
        """Restore the terminal on Ctrl-Z, and take it again when the process is continued."""
        self.close()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.open()

    @contextlib.contextmanager
    def _keys(self) -> Iterator[None]:
        """Read each key as it is pressed, without echo."""
        if not sys.stdin.isatty():
            yield
            return
        loop = asyncio.get_running_loop()
        before = termios.tcgetattr(STDIN)
        tty.setcbreak(STDIN)
        loop.add_reader(STDIN, self._key)
        try:
            yield
        finally:
            loop.remove_reader(STDIN)
            termios.tcsetattr(STDIN, termios.TCSADRAIN, before)

    def _key(self) -> None:
        keys = os.read(STDIN, 1024)
        # End of file: the terminal is gone.
        if not keys or b"q" in keys.lower():
            self.ended.set()


def is_screen() -> bool:
    """Return True if standard output is a terminal that can show a full screen."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def print_text(snapshot: ClusterSnapshot) -> None:
    """Print a snapshot: as wide as the terminal, or uncut to a pipe."""
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, soft_wrap=True)
    width = console.width if terminal else NO_LIMIT
    for line in screen(snapshot, width, NO_LIMIT):
        line.rstrip()
        console.print(line, no_wrap=True, overflow="ignore", crop=False)
    sys.stdout.flush()
