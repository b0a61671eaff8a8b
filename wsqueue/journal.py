"""Log lines for journald: one line per event, `link down key=value ...`, and none per message.

On a terminal or in a file a line begins with the time and the level. When standard error is the journal,
which adds the time, a line goes there with its fields, so that `journalctl WSQUEUE_EVENT='link down'` finds
it. If the journal's socket can't be used, the line goes to standard error with the prefix of sd-daemon(3).
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import sys
import time
from typing import TextIO

_PLAIN = re.compile(r"[!#-<>-~]+")
_SYSLOG_LEVELS = {logging.ERROR: 3, logging.WARNING: 4, logging.INFO: 6, logging.DEBUG: 7}

MAX_VALUE_CHARACTERS = 200
"""Maximum length of a value; a topic or reason that a peer chose must not fill the journal."""

BURST_LINES = 20
"""Lines per event and second; more are only counted, so that a flood of bad peers stays readable."""


def log(logger: logging.Logger, level: int, event: str, **fields: object) -> None:
    """Log an event with its fields, e.g. ``link up consumer=192.0.2.7:10001/producer``."""
    if logger.isEnabledFor(level):
        pairs = "".join(f" {key}={quote(value)}" for key, value in fields.items())
        logger.log(level, "%s%s", event, pairs, extra={"event": event, "fields": fields})


class Complaint:
    """Log why something fails: once, until it works again or there is another reason."""

    __slots__ = ("_reason",)

    def __init__(self) -> None:
        self._reason = ""

    def log(
        self, logger: logging.Logger, level: int, event: str, *, reason: object, **fields: object
    ) -> None:
        """Log the event with its fields and the reason, unless that was the last one."""
        if str(reason) != self._reason:
            self._reason = str(reason)
            log(logger, level, event, **fields, reason=reason)

    def end(self) -> None:
        """Forget the last reason, because it works again."""
        self._reason = ""


def quote(value: object) -> str:
    """Return a value in the form for log lines: plain, or a JSON string in ASCII."""
    text = str(value)
    if len(text) > MAX_VALUE_CHARACTERS:
        text = text[:MAX_VALUE_CHARACTERS] + "…"
    if _PLAIN.fullmatch(text):
        return text
    return json.dumps(text)


class Formatter(logging.Formatter):
    """Format an event as one line.

    Args:
        journal: True for sd-daemon(3) level prefixes instead of time and level.
    """

    def __init__(self, *, journal: bool) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """Return the line of a record, without the line feed."""
        text = record.getMessage()
        if suppressed := getattr(record, "suppressed", 0):
            text += f" suppressed={suppressed}"
        if record.exc_info:
            text += f" traceback={json.dumps(self.formatException(record.exc_info))}"
        text = text.replace("\n", "\\n")
        if self._journal:
            return f"<{_SYSLOG_LEVELS.get(record.levelno, 5)}>{text}"
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{moment}.{int(record.msecs):03}Z {record.levelname} {text}"


class Burst(logging.Filter):
    """Let `BURST_LINES` lines of an event through per second; the next line has the number of the others."""

    def __init__(self) -> None:
        super().__init__()
        self._windows: dict[str, tuple[int, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True if a record may be written."""
        event = getattr(record, "event", record.msg)
        second, seen = self._windows.get(event, (0, 0))
        now = int(record.created)
        if now != second:
            suppressed = seen - BURST_LINES
            seen = 0
            if suppressed > 0:
                record.suppressed = suppressed
        self._windows[event] = (now, seen + 1)
        return seen < BURST_LINES


class JournalHandler(logging.StreamHandler[TextIO]):
    """Write to the journal by its native protocol, or to standard error if that fails.

    The source is systemd.io/JOURNAL_NATIVE_PROTOCOL.

    Args:
        address: The journal's socket.
    """

    def __init__(self, address: str = "/run/systemd/journal/socket") -> None:
        super().__init__()
        self._address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record."""
        priority, _, message = self.format(record).removeprefix("<").partition(">")
        fields = {
            "MESSAGE": message,
            "PRIORITY": priority,
            "SYSLOG_IDENTIFIER": os.environ.get("WSQUEUE_SYSLOG_IDENTIFIER", "wsqueue"),
            "WSQUEUE_EVENT": getattr(record, "event", ""),
        }
        for name, value in getattr(record, "fields", {}).items():
            fields[f"WSQUEUE_{name.upper()}"] = str(value)[:MAX_VALUE_CHARACTERS]
        try:
            self._socket.sendto(
                b"".join(_journal_field(name, value) for name, value in fields.items()), self._address
            )
        except OSError:
            super().emit(record)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()
        super().close()


def _journal_field(name: str, value: str) -> bytes:
    """Return a field as name, length and value, the form that takes any value."""
    data = value.encode(errors="backslashreplace")
    return name.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"


def stderr_is_journal() -> bool:
    """Return True if systemd connected standard error to the journal (systemd.exec(5), JOURNAL_STREAM)."""
    try:
        device, inode = map(int, os.environ.get("JOURNAL_STREAM", "").split(":"))
        status = os.fstat(sys.stderr.fileno())
    except (ValueError, OSError):
        return False
    return (status.st_dev, status.st_ino) == (device, inode)


def configure(level: str) -> None:
    """Send log lines of at least a level (debug, info, warning, error) to standard error."""
    journal = stderr_is_journal()
    handler = JournalHandler() if journal else logging.StreamHandler()
    handler.setFormatter(Formatter(journal=journal))
    handler.addFilter(Burst())
    package = logging.getLogger("wsqueue")
    package.handlers[:] = [handler]
    package.propagate = False
    package.setLevel(level.upper())
