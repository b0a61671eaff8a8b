"""Run a command for each message that a group lends: the engine of `wsqueue work`.

::

    lent ──> a command runs ──exit code 0──> done
      ^            │
      └────────────┴── any other, a signal, or no end in time

- A message is taken when there is room for its command, so that none waits here unseen.
- After a reconnect, the consumer lends a message again whose command runs here. It is not run a second time:
  the copy waits until the first is settled, and is then given back, which changes nothing if that was done.
- A command has a process group of its own: signals from the terminal reach this process alone, which lets
  the commands end.
- The data is a file in memory, from which the command reads at its leisure, or not at all.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import os
import re
import signal
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

import msgspec

from ..client.group import RENEWALS, GroupMessage, GroupSubscription
from ..errors import ConnectError, WsqueueError
from ..journal import log
from ..protocol.v2 import MAX_DELAY_SECONDS, MAX_PREFETCH
from .terminal import STDERR

logger = logging.getLogger(__name__)

MAX_PARALLEL = 1000
"""Commands that run at a time: more processes than a host has cores for, and as many messages in memory."""

KILL_SECONDS = 5.0
"""Seconds from SIGTERM to SIGKILL: a command that tidies up needs less, and a shutdown waits that long."""

HEADER_PREFIX = "WSQUEUE_HEADER_"
"""The beginning of variables that hold headers."""

SECRETS = ("WSQUEUE_PSK", "CREDENTIALS_DIRECTORY")
"""Variables with the pre-shared key, or the place of it, which are not for the command."""

_LATER = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""Errors of a host that has too little of something, and not of the command."""


class CommandError(WsqueueError):
    """Say that the command cannot be started, and why."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Hold how to work.

    Attributes:
        command: The program and its arguments.
        group: Name of the group.
        lease_seconds: Seconds of a lease, which is renewed while the command runs.
        max_deliveries: Deliveries after which a message becomes a dead letter.
        parallel: Commands at a time, 1 to `MAX_PARALLEL`.
        retry_delay: Seconds until a message that failed once is lent again; twice as many after each
            further time.
        seconds: Seconds after which a command is killed; None for never.
        count: Messages to be done with; None for no end.
        idle_seconds: Seconds without a message and without a command, after which the work ends; None for
            no end.
    """

    command: tuple[str, ...]
    group: str
    lease_seconds: float
    max_deliveries: int
    parallel: int = 1
    retry_delay: float = 1.0
    seconds: float | None = None
    count: int | None = None
    idle_seconds: float | None = None


class Work:
    """Run the command for one message after another.

    Args:
        messages: The membership in the group.
        options: How to work.

    Attributes:
        done: Number of messages that are done.
        failed: How often the command has failed.
    """

    def __init__(self, messages: GroupSubscription, options: Options) -> None:
        self._messages, self._options = messages, options
        self._runs: dict[asyncio.Task[None], _Run] = {}
        self._running: dict[_Key, _Run] = {}
        # The last messages that are done: copies of them may wait in the client, as many as it may have.
        # Each has the id of its log.
        self._latest: OrderedDict[_Key, str | None] = OrderedDict()
        self._ended = asyncio.Event()
        self._idle: asyncio.Timeout | None = None
        self.done = self.failed = 0

    @property
    def running(self) -> int:
        """Return how many commands run."""
        return len(self._runs)

    async def run(self) -> None:
        """Work until there is nothing more to do; whatever ends it, let the commands end that run.

        When the caller's task is cancelled, no more messages are taken. When it is cancelled again, the
        commands are killed.

        Raises:
            CommandError: The command cannot be started.
            WsqueueError: The host cannot start one more process.
            ConnectError: The group refuses this member, or it cannot be kept that messages are done.
        """
        renewing = asyncio.create_task(self._renew())
        try:
            await self._take()
        except BaseException as error:
            await self._finish(interrupted=isinstance(error, asyncio.CancelledError))
            raise
        else:
            await self._finish(interrupted=False)
        finally:
            renewing.cancel()

    async def _take(self) -> None:
        while await self._has_room():
            # A command that runs may fail, and its message come back.
            seconds = None if self._runs else self._options.idle_seconds
            try:
                async with asyncio.timeout(seconds) as self._idle:
                    message = await anext(self._messages)
            except TimeoutError:
                return
            finally:
                self._idle = None
            if (run := self._running.get(_key(message))) is not None:
                run.copy = message  # any earlier one is no longer lent to us
            elif (key := _key(message)) in self._latest:
                # In another log, just once: it may be another message there, which comes again.
                if self._latest[key] != message.log:
                    del self._latest[key]
                await self._give_back(message)
            else:
                await self._start(message)

    async def _has_room(self) -> bool:
        """Wait for room for another command; return False when enough messages are done."""
        options = self._options
        while True:
            left = options.parallel if options.count is None else options.count - self.done
            if left <= 0:
                return False
            if len(self._runs) < min(options.parallel, left):
                return True
            self._ended.clear()
            await self._ended.wait()

    async def _start(self, message: GroupMessage) -> None:
        run = _Run(message)
        task = asyncio.create_task(self._run(run))
        self._runs[task] = self._running[_key(message)] = run
        task.add_done_callback(self._has_ended)
        # Whoever is cancelled here must not cancel that: a process would be left of which nobody knows.
        await run.started

    def _has_ended(self, task: asyncio.Task[None]) -> None:
        del self._runs[task]
        self._ended.set()
        if self._idle is not None and not self._runs and self._options.idle_seconds is not None:
            self._idle.reschedule(asyncio.get_running_loop().time() + self._options.idle_seconds)

    async def _run(self, run: _Run) -> None:
        """Run the command for a message, and settle the message."""
        options, message = self._options, run.message
        try:
            await run.start(options)
        except OSError as error:
            del self._running[_key(message)]
            await self._give_back(message, options.retry_delay)
            run.give_up(_problem(options.command[0], error))
            return
        reason = await run.wait()
        # From now on, a message that is lent again is to be run again.
        del self._running[_key(message)]
        if reason:
            delay = min(options.retry_delay * 2.0 ** (message.deliveries - 1), MAX_DELAY_SECONDS)
            self._say_failed(message, reason, delay)
            await self._give_back(message, delay)
        else:
            self._remember(message)
            # While the consumer is away, the client keeps this for it, and `flush` waits at the end.
            with contextlib.suppress(ConnectError):
                await message.done()
            self.done += 1
        if run.copy is not None:
            await self._give_back(run.copy)

    def _say_failed(self, message: GroupMessage, reason: str, delay: float) -> None:
        self.failed += 1
        last = message.deliveries >= self._options.max_deliveries
        log(
            logger,
            logging.WARNING,
            "command failed",
            topic=message.topic,
            group=self._options.group,
            offset=message.offset,
            deliveries=message.deliveries,
            again_seconds="never" if last else f"{delay:g}",
            reason=reason,
        )

    def _remember(self, message: GroupMessage) -> None:
        self._latest[_key(message)] = message.log
        if len(self._latest) > MAX_PREFETCH:
            self._latest.popitem(last=False)

    async def _give_back(self, message: GroupMessage, delay: float = 0.0) -> None:
        with contextlib.suppress(ConnectError):
            await message.again(delay)

    async def _renew(self) -> None:
        """Renew the leases of the messages whose commands run."""
        while True:
            await asyncio.sleep(self._options.lease_seconds / RENEWALS)
            with contextlib.suppress(ConnectError):
                for run in self._runs.values():
                    run.message.extend()
                    if run.copy is not None:
                        run.copy.extend()

    async def _finish(self, *, interrupted: bool) -> None:
        """Take no more messages, wait for the commands, and until all is kept that was said of messages."""
        self._messages.release()
        cancelled: asyncio.CancelledError | None = None
        while self._runs:
            try:
                await asyncio.wait(list(self._runs))
            except asyncio.CancelledError as error:
                if interrupted:
                    for run in self._runs.values():
                        run.kill("the worker was told to end")
                interrupted, cancelled = True, error
        await self._messages.flush()
        if cancelled is not None:
            raise cancelled


class _Run:
    """Run the command for one message.

    Attributes:
        message: The message.
        copy: The same message, as it was lent again meanwhile.
        started: Done once the process runs; has the error if there is none.
    """

    def __init__(self, message: GroupMessage) -> None:
        self.message = message
        self.copy: GroupMessage | None = None
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._process: asyncio.subprocess.Process | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._killed = ""

    async def start(self, options: Options) -> None:
        """Start the process.

        Raises:
            OSError: It cannot be started.
        """
        data = self.message.data
        stdin = _file_of(data.encode() if isinstance(data, str) else data)
        try:
            self._process = await asyncio.create_subprocess_exec(
                *options.command,
                stdin=stdin,
                env=environment(os.environ, self.message, options.group),
                start_new_session=True,
                preexec_fn=_keep_standard_files,
            )
        finally:
            os.close(stdin)
        if self._killed:
            self._terminate()
        elif options.seconds is not None:
            reason = f"no end within {options.seconds:g} seconds"
            self._timer = asyncio.get_running_loop().call_later(options.seconds, self.kill, reason)
        if not self.started.done():
            self.started.set_result(None)

    def give_up(self, error: WsqueueError) -> None:
        """Tell the one who waits for the start that there is none."""
        if not self.started.done():
            self.started.set_exception(error)

    async def wait(self) -> str:
        """Wait for the end of the command, and return why it failed, "" if it did not."""
        assert self._process is not None
        code = await self._process.wait()
        if self._timer is not None:
            self._timer.cancel()
        if self._killed:
            # The command has had its time to end, and so had all that it has started.
            self._signal(signal.SIGKILL)
            return self._killed
        if code < 0:
            return f"signal {-code}"
        return f"exit code {code}" if code else ""

    def kill(self, reason: str) -> None:
        """End the command, and all that it has started; it has failed then."""
        if self._killed:
            return
        self._killed = reason
        if self._timer is not None:
            self._timer.cancel()
        if self._process is not None:
            self._terminate()

    def _terminate(self) -> None:
        self._signal(signal.SIGTERM)
        self._timer = asyncio.get_running_loop().call_later(KILL_SECONDS, self._signal, signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        # It may have ended, or run as another user.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


_Key = tuple[int, int]


def _key(message: GroupMessage) -> _Key:
    """Return the key by which a message is known again: each start of a consumer gives the log another id."""
    return message.offset, hash(message.data)


def environment(own: Mapping[str, str], message: GroupMessage, group: str) -> dict[str, str]:
    """Return the environment of the command: ours without secrets, and the circumstances of the message.

    Args:
        own: Our environment.
        message: The message.
        group: Name of the group.
    """
    found = {
        name: value
        for name, value in own.items()
        if name not in SECRETS and not name.startswith(HEADER_PREFIX)
    }
    headers = {
        HEADER_PREFIX + re.sub(r"[^A-Za-z0-9]", "_", name).upper(): value
        for name, value in message.headers.items()
        if "\0" not in value  # which no variable can hold
    }
    about = {
        "WSQUEUE_TOPIC": message.topic,
        "WSQUEUE_GROUP": group,
        "WSQUEUE_OFFSET": str(message.offset),
        "WSQUEUE_DELIVERIES": str(message.deliveries),
    }
    # In UTF-8, whatever the locale says.
    return found | {name: os.fsdecode(value.encode()) for name, value in (headers | about).items()}


def _file_of(data: bytes) -> int:
    """Return a file in memory, to be read from its beginning."""
    descriptor = os.memfd_create("message")
    try:
        with open(descriptor, "wb", closefd=False) as stream:
            stream.write(data)
        os.lseek(descriptor, 0, os.SEEK_SET)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _keep_standard_files() -> None:
    """Let the command inherit standard input, output and error alone.

    Uvloop gives it a second descriptor of each. A process that it leaves behind could not close these, and
    would keep the message in memory, and the reader of our output waiting.
    """
    with contextlib.suppress(OSError):
        for file in list(Path("/proc/self/fd").iterdir()):
            # The one with which the list was read is closed by now.
            if int(file.name) > STDERR:
                with contextlib.suppress(OSError):
                    os.set_inheritable(int(file.name), False)


def _problem(program: str, error: OSError) -> WsqueueError:
    text = f"cannot start {program}: {os.strerror(error.errno) if error.errno else error}"
    return WsqueueError(text) if error.errno in _LATER else CommandError(text)
