"""The commands as a user runs them: in a pipe or on a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from .processes import clean_environment, command
from .waiting import wait_until

SECONDS = 30
"""Maximum time of a command on a busy machine; most need a fifth of a second."""


class Result(NamedTuple):
    """Exit status and output of a command."""

    code: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """Return the only line of standard error."""
        (line,) = self.stderr.splitlines()
        return line


def run(
    *arguments: str | Path, stdin: bytes = b"", env: Mapping[str, str] | None = None, cwd: Path | None = None
) -> Result:
    """Run a command with pipes until it ends."""
    done = subprocess.run(
        command(*arguments),
        input=stdin,
        capture_output=True,
        timeout=SECONDS,
        check=False,
        env=clean_environment(**(env or {})),
        cwd=cwd,
    )
    result = Result(done.returncode, done.stdout.decode(), done.stderr.decode())
    check_no_traceback(result.stderr)
    return result


def shell(script: str, env: Mapping[str, str] | None = None) -> Result:
    """Run a shell script in which `$wsqueue` is the command."""
    process = subprocess.Popen(
        ["bash", "-c", script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=clean_environment(wsqueue=" ".join(command()), **(env or {})),
        start_new_session=True,
    )
    with process:
        try:
            out, err = process.communicate(timeout=SECONDS)
        finally:
            # All processes of the script are in its process group.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    result = Result(process.returncode, out.decode(), err.decode())
    check_no_traceback(result.stderr)
    return result


def check_no_traceback(text: str) -> None:
    assert "Traceback" not in text, text
    assert "Exception ignored" not in text, text


class Running:
    """A command that runs in the background, its output in files."""

    def __init__(self, directory: Path, arguments: list[str | Path], env: Mapping[str, str]) -> None:
        number = len(list(directory.glob("*.out")))
        self._out, self._err = directory / f"{number}.out", directory / f"{number}.err"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                command(*arguments),
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=err,
                env=clean_environment(**env),
            )

    @property
    def stdout(self) -> str:
        return self._out.read_text(errors="replace")

    @property
    def stdout_bytes(self) -> bytes:
        return self._out.read_bytes()

    @property
    def stderr(self) -> str:
        return self._err.read_text()

    def type(self, text: str) -> None:
        """Write to standard input."""
        assert self.process.stdin is not None
        self.process.stdin.write(text.encode())
        self.process.stdin.flush()

    def wait_for(self, pattern: str, count: int = 1) -> None:
        """Wait until a number of lines of either output match."""

        def written() -> bool:
            # Check the end first: a command may write and end between the two.
            ended = self.process.poll() is not None
            found = len(re.findall(pattern, self.stdout + self.stderr, re.MULTILINE)) >= count
            assert found or not ended, f"the command ended:\n{self.stdout}{self.stderr}"
            return found

        wait_until(written, f"the command writes {pattern!r}", SECONDS)

    def end(self, number: signal.Signals | None = None) -> int:
        """Close standard input, send a signal if one is given, and return the exit status."""
        assert self.process.stdin is not None
        if number is not None:
            self.process.send_signal(number)
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        code = self.process.wait(SECONDS)
        check_no_traceback(self.stderr)
        return code

    def children(self) -> list[int]:
        """Return the ids of the processes that the command has started."""
        return [pid for pid, parent in _parents() if parent == self.process.pid]


@contextlib.contextmanager
def running(
    directory: Path, *arguments: str | Path, env: Mapping[str, str] | None = None
) -> Iterator[Running]:
    """Run a command in the background, and always end it and its children."""
    started = Running(directory, list(arguments), env or {})
    children: list[int] = []
    try:
        yield started
    finally:
        children = started.children()
        if started.process.poll() is None:
            started.process.kill()
            started.process.wait()
        assert started.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            started.process.stdin.close()
        kill_all(children)


def kill_all(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """Return True if a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _parents() -> Iterator[tuple[int, int]]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            yield int(stat.parent.name), int(stat.read_text().rpartition(")")[2].split()[1])


class Terminal:
    """A command on a pseudo-terminal.

    Attributes:
        screen: All that it has written so far.
    """

    def __init__(self, *arguments: str | Path, env: Mapping[str, str] | None = None) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        more = {"TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1", **(env or {})}
        self.process = subprocess.Popen(
            command(*arguments),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=clean_environment(**more),
            start_new_session=True,
        )
        os.close(slave)
        self.screen = b""

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def wait_for(self, text: str, count: int = 1) -> None:
        """Return once the text was written `count` times."""
        deadline = time.monotonic() + SECONDS
        while self.screen.count(text.encode()) < count:
            assert time.monotonic() < deadline, f"{text!r} does not come: {self.screen!r}"
            if not self.read() and self.process.poll() is not None:
                raise AssertionError(f"{text!r} did not come: {self.screen!r}")

    def end(self, key: str = "") -> int:
        """Wait for the end of the command, and return its exit status; press a key if one is given.

        The key is pressed every two seconds: a key that is pressed while a message is shown is lost, because
        the prompt gives the terminal back meanwhile.
        """
        pressed = 0.0

        def ended() -> bool:
            nonlocal pressed
            if self.read() or self.process.poll() is not None:
                return self.process.poll() is not None
            if key and time.monotonic() > pressed + 2:
                pressed = time.monotonic()
                self.type(key)
            return False

        wait_until(ended, "the command ends", SECONDS)
        check_no_traceback(self.screen.decode(errors="replace"))
        return self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        """End the command, however the test ended."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)

    @property
    def attributes(self) -> list[Any]:
        """Return the attributes of the terminal, as `termios.tcgetattr` does."""
        return termios.tcgetattr(self._master)

    @property
    def echoes(self) -> bool:
        """Return True if keys that are pressed are shown."""
        return bool(self.attributes[3] & termios.ECHO)

    def resize(self, columns: int, lines: int) -> None:
        """Change the size of the terminal, as its user does."""
        termios.tcsetwinsize(self._master, (lines, columns))
        self.process.send_signal(signal.SIGWINCH)

    def read(self) -> bool:
        """Add the output of the next 50 ms to `screen`, and return True if there was any."""
        if not select.select([self._master], [], [], 0.05)[0]:
            return False
        try:
            chunk = os.read(self._master, 65_536)
        except OSError:  # EIO: the last process on the terminal has ended
            return False
        self.screen += chunk
        return bool(chunk)
