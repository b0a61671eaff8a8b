"""Snapshots again and again, on a terminal that keys and its size change, or one after the other."""

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
from .snapshot import Sampler, Snapshot


class Top:
    """Ask the nodes now and then.

    Args:
        monitor: Of the cluster, started.
        interval: Seconds between two questions.
        hello_seconds: How long a node may take to answer for the first time.
    """

    def __init__(self, monitor: ClusterMonitor, interval: float, hello_seconds: float) -> None:
        self._monitor, self._interval, self._hello_seconds = monitor, interval, hello_seconds
        self._sampler = Sampler()

    async def first(self) -> Snapshot:
        """Return the first snapshot, without rates, once all nodes answered or cannot."""
        await self._monitor.settled(max(self._hello_seconds, STALE_SECONDS) + 0.5)
        return self._take()

    async def next(self) -> Snapshot:
        """Wait, ask all nodes again, and return the next snapshot."""
        # Whoever hangs keeps the others from being shown for an interval only.
        return await self._again(min(self._interval, STALE_SECONDS))

    async def once(self) -> Snapshot:
        """Return one snapshot with rates."""
        await self.first()
        return await self._again(STALE_SECONDS + 0.1)

    async def _again(self, seconds: float) -> Snapshot:
        await asyncio.sleep(self._interval)
        self._monitor.ask()
        await self._monitor.settled(seconds)
        return self._take()

    def _take(self) -> Snapshot:
        return self._sampler.snapshot(self._monitor.cluster(), time.time())


async def print_snapshots(top: Top, write: Callable[[Snapshot], None]) -> None:
    """Write a snapshot at each interval, the first with rates, until it is cancelled."""
    write(await top.once())
    while True:
        write(await top.next())


async def watch(top: Top) -> None:
    """Show the cluster on the terminal until somebody presses q, or it is cancelled."""
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
    """Have the terminal: its other screen, and its keys one by one.

    Attributes:
        ended: Set when somebody pressed q.
    """

    def __init__(self, console: Console) -> None:
        self.ended = asyncio.Event()
        self._console = console
        self._snapshot: Snapshot | None = None
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
        """Give the terminal back as it was."""
        self._live = None
        self._resources.close()

    def show(self, snapshot: Snapshot) -> None:
        """Show another snapshot."""
        self._snapshot = snapshot
        self.draw()

    def draw(self) -> None:
        """Draw the latest snapshot for the size that the terminal has now."""
        if self._live is None:
            return
        # Not left to rich, which believes COLUMNS and LINES, that do not change with the terminal.
        width, height = self._console.size = os.get_terminal_size(sys.stdout.fileno())
        lines = [Text("Asking all nodes …")]
        if self._snapshot is not None:
            lines = screen(self._snapshot, width, height, "q ends")
        for line in lines:
            line.no_wrap = True
        self._live.update(Group(*lines), refresh=True)

    def suspend(self) -> None:
        """Give the terminal back on Ctrl-Z, and take it again when the shell lets this process go on."""
        self.close()
        os.kill(os.getpid(), signal.SIGSTOP)
        self.open()

    @contextlib.contextmanager
    def _keys(self) -> Iterator[None]:
        """Take each key as it is pressed, and show none."""
        if sys.stdin is None or not sys.stdin.isatty():
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
        # Nothing to read: the terminal is gone.
        if not keys or b"q" in keys.lower():
            self.ended.set()


def is_screen() -> bool:
    """Tell whether standard output is a terminal on which things can be shown in place."""
    return sys.stdout.isatty() and os.environ.get("TERM", "") not in ("", "dumb", "unknown")


def print_text(snapshot: Snapshot) -> None:
    """Print a snapshot: as wide as the terminal, or all of it to a pipe."""
    terminal = sys.stdout.isatty()
    console = Console(highlight=False, soft_wrap=True)
    width = console.width if terminal else NO_LIMIT
    for line in screen(snapshot, width, NO_LIMIT):
        line.rstrip()
        console.print(line, no_wrap=True, overflow="ignore", crop=False)
    sys.stdout.flush()
