"""Tell systemd how the service is, by the protocol of sd_notify(3): datagrams to `$NOTIFY_SOCKET`."""

from __future__ import annotations

import math
import os
import socket

STATUS_SECONDS = 10.0
"""How old the status that `systemctl status` shows may be."""


class Notifier:
    """Send the service manager what it wants to know; does nothing where there is none.

    Attributes:
        interval_seconds: How often to call `alive`: twice as often as the watchdog demands, if there is one.
    """

    def __init__(self) -> None:
        self._address = os.environ.get("NOTIFY_SOCKET", "")
        self.interval_seconds = min(_watchdog_seconds() / 2, STATUS_SECONDS)

    def ready(self, status: str) -> None:
        """Say that the service serves, at first or again after `reloading`."""
        self._send("READY=1", f"STATUS={status}")

    def reloading(self) -> None:
        """Say that the configuration is being read again."""
        self._send("RELOADING=1")

    def stopping(self) -> None:
        """Say that the service drains."""
        self._send("STOPPING=1")

    def alive(self, status: str) -> None:
        """Feed the watchdog, and say how the service is in one line."""
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
                # The manager restarts or is busy; it gets the next one, and nothing else depends on it.
                return


def _watchdog_seconds() -> float:
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return math.inf
    try:
        return int(os.environ["WATCHDOG_USEC"]) / 1_000_000
    except (KeyError, ValueError):
        return math.inf
