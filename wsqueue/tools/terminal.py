"""Standard input and output of the client commands."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import re
import stat
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, NoReturn

import msgspec

from ..errors import InvalidMessage, WsqueueError

STDIN, STDOUT, STDERR = 0, 1, 2

CHUNK_BYTES = 64 * 1024
"""Bytes that are read from standard input at a time: the size of a pipe."""

_NOT_IN_JSON = re.compile(r"[\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]")


def prepare_standard_files() -> None:
    """Make sure that standard input, output and error are open, and that text is written as UTF-8.

    In another encoding a message might come out changed, and nobody would notice in a pipe. If the parent
    process has closed a file, one of the event loop's own would get its number, and Python has None in place
    of its stream.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(descriptor, "r" if descriptor == STDIN else "w", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # type: ignore[union-attr]


async def for_each_line(max_bytes: int, handle: Callable[[str], Awaitable[None]]) -> None:
    """Await `handle` for each line of standard input, without its line end, as soon as it is read.

    Args:
        max_bytes: Maximum length of a line.
        handle: Called with each line.

    Raises:
        InvalidMessage: A line is too long, not UTF-8, or refused by `handle`; it names the line.
        WsqueueError: Standard input cannot be read.
    """
    number, rest = 0, b""
    async for chunk in _chunks():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            number += 1
            await _handle(line, number, max_bytes, handle)
        if len(rest) > max_bytes:
            _refuse(f"line {number + 1} of standard input has more than max_message_bytes ({max_bytes})")
    if rest:
        await _handle(rest, number + 1, max_bytes, handle)


async def all_bytes(max_bytes: int) -> bytes:
    """Return all of standard input.

    Raises:
        InvalidMessage: It has more than `max_bytes`.
        WsqueueError: It cannot be read.
    """
    data = b""
    async for chunk in _chunks():
        data += chunk
        if len(data) > max_bytes:
            raise InvalidMessage(f"standard input has more than max_message_bytes ({max_bytes})")
    return data


async def until_reader_gone() -> NoReturn:
    """Wait until nobody reads standard output any more, as after `| head -n 1`; for ever if it is no pipe.

    Raises:
        BrokenPipeError: The reader has gone, as the next write would find out.
    """
    loop = asyncio.get_running_loop()
    gone = asyncio.Event()
    pipe = stat.S_ISFIFO(os.fstat(STDOUT).st_mode)
    if pipe:
        # Nothing can be read from this end of a pipe, so that the loop only sees the error of the other end.
        loop.add_reader(STDOUT, gone.set)
        # uvloop has made it non-blocking, so that bytes which do not fit into the pipe would be dropped.
        os.set_blocking(STDOUT, True)
    try:
        await gone.wait()
    finally:
        if pipe:
            loop.remove_reader(STDOUT)
    raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


async def until_first_ends(*coroutines: Coroutine[Any, Any, None]) -> None:
    """Run coroutines until one ends, cancel the others, and raise its exception."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in done:
        task.result()


def discard_output() -> None:
    """Discard further output, including buffered output when the process ends: standard output is broken."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, STDOUT)
    os.close(descriptor)


def text_of(data: str | bytes) -> str:
    """Return the data of a message as text; bytes that are no UTF-8 become escapes."""
    return data if isinstance(data, str) else data.decode(errors="backslashreplace")


def printable(text: str) -> str:
    """Return text that cannot steer a terminal: control characters become visible escapes."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def one_line(text: str) -> str:
    """Return text that takes one line, and can neither steer a terminal nor reorder what it shows."""
    if text.isprintable():
        return text
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in text
    )


def json_line(value: object) -> str:
    """Return a value, structs included, as one line of JSON that cannot steer a terminal."""
    text = json.dumps(msgspec.to_builtins(value), ensure_ascii=False)
    # JSON allows these characters unescaped; names of files may contain some that UTF-8 can't express.
    return _NOT_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def to_stdout(text: str) -> str:
    """Return text for standard output: unchanged for a pipe, without control characters for a terminal."""
    return printable(text) if sys.stdout.isatty() else text


async def _handle(line: bytes, number: int, max_bytes: int, handle: Callable[[str], Awaitable[None]]) -> None:
    if len(line) > max_bytes:
        _refuse(f"line {number} of standard input has more than max_message_bytes ({max_bytes})")
    text = _decode(line, number)
    try:
        await handle(text)
    except InvalidMessage as error:
        _refuse(f"line {number} of standard input: {error}")


def _decode(line: bytes, number: int) -> str:
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        _refuse(f"line {number} of standard input is not UTF-8")


def _refuse(problem: str) -> NoReturn:
    raise InvalidMessage(problem) from None


async def _chunks() -> AsyncIterator[bytes]:
    """Yield chunks that a thread reads, because reading a file blocks; the thread ends with the process."""
    chunks: asyncio.Queue[bytes | OSError] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    wanted = threading.Semaphore(0)

    def read() -> None:
        while wanted.acquire():
            try:
                chunk: bytes | OSError = os.read(STDIN, CHUNK_BYTES)
            except OSError as error:
                chunk = error
            try:
                loop.call_soon_threadsafe(chunks.put_nowait, chunk)
            except RuntimeError:
                return  # the loop has ended

    threading.Thread(target=read, name="stdin", daemon=True).start()
    while True:
        wanted.release()
        chunk = await chunks.get()
        if isinstance(chunk, OSError):
            raise WsqueueError(f"cannot read standard input: {chunk.strerror}")
        if not chunk:
            return
        yield chunk
