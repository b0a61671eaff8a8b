"""Report the state of the service to systemd, as sd_notify(3) says: datagrams to `$NOTIFY_SOCKET`."""

from __future__ import annotations

import math
import os
import socket

STATUS_SECONDS = 10.0
"""Maximum age of the status that `systemctl status` shows."""

EXTEND_SECONDS = 10.0
"""Time between two requests for more time, less than the units give (15 seconds to stop, 30 to start)."""

MAX_EXTENDED_SECONDS = 3600.0
"""Time after which no more is asked for: a start or a stop that takes longer hangs."""


class Notifier:
    """Send messages to the service manager; do nothing if there is none.

    Attributes:
        interval_seconds: Time between two calls of `alive`: at most half of what the watchdog allows.
    """

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self.interval_seconds = min(_watchdog_seconds() / 2, STATUS_SECONDS)

    def ready(self, status: str) -> None:
        """Report that the service serves: after its start, and again after `reloading`."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Report that the configuration is being read again."""
        self._send("RELOADING=1")

    def stopping(self) -> None:
        """Report that the service drains."""
        self._send("STOPPING=1")

    def extend(self, status: str) -> None:
        """Ask for more time to start or to stop, and report the status in one line."""
        self._send(f"EXTEND_TIMEOUT_USEC={int(3 * EXTEND_SECONDS * 1_000_000)}", f"STATUS={status}")

    def alive(self, status: str) -> None:
        """Feed the watchdog, and report the status in one line."""
        self._send("WATCHDOG=1", f"STATUS={status}")

    def _send(self, *assignments: str) -> None:
        if not self._address:
            return
        # An address that begins with @ is abstract (unix(7)).
        address = "\0" + self._address[1:] if self._address[0] == "@" else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.setblocking(False)
            try:
                manager.sendto("\n".join(assignments).encode(), address)
            except OSError:
                # The manager restarts or is busy; it gets the next message.
                return


def _watchdog_seconds() -> float:
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return math.inf
    try:
        return int(os.environ["WATCHDOG_USEC"]) / 1_000_000
    except (KeyError, ValueError):
        return math.inf
