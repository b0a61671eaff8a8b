"""Standard input and output of the client commands."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import threading
from collections.abc import AsyncIterator

from .errors import InvalidMessage

CHUNK_BYTES = 64 * 1024
"""What is read from standard input at a time: a pipe's size."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ufffe\uffff]")


async def stdin_lines(max_bytes: int) -> AsyncIterator[str]:
    """Yield the lines of standard input without their ends, as they come.

    A thread reads, for a file cannot be read without blocking; it does not outlive the process.

    Raises:
        InvalidMessage: A line is not UTF-8, or has more than `max_bytes`; it names the line.
    """
    chunks: asyncio.Queue[bytes] = asyncio.Queue(1)
    loop = asyncio.get_running_loop()

    def read() -> None:
        chunk = b"more"
        while chunk:
            chunk = os.read(sys.stdin.fileno(), CHUNK_BYTES)
            try:
                asyncio.run_coroutine_threadsafe(chunks.put(chunk), loop).result()
            except (RuntimeError, asyncio.CancelledError):
                return  # the loop has ended

    threading.Thread(target=read, name="stdin", daemon=True).start()
    number, rest = 0, b""
    while chunk := await chunks.get():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            number += 1
            yield _decode(line, number)
        if len(rest) > max_bytes:
            raise InvalidMessage(f"line {number + 1} of standard input has more than {max_bytes} bytes")
    if rest:
        yield _decode(rest, number + 1)


def printable(text: str) -> str:
    """Return text that cannot steer a terminal: control characters become visible escapes."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def to_stdout(text: str) -> str:
    """Return text as it may go to standard output: as it is to a pipe, printable to a terminal."""
    return printable(text) if sys.stdout.isatty() else text


def _decode(line: bytes, number: int) -> str:
    try:
        return line.removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        raise InvalidMessage(f"line {number} of standard input is not UTF-8") from None
