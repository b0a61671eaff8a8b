"""Runs a Python program without the modules, functions and constants that Python on Windows lacks.

Asyncio is imported before: which of its loops there are depends on the name of the system.
"""

from __future__ import annotations

import asyncio
import functools
import os
import runpy
import signal
import socket
import sys
import time

MODULES = ("fcntl", "grp", "pty", "pwd", "resource", "syslog", "termios", "tty")
MISSING = {
    os: (
        "fork",
        "getuid",
        "geteuid",
        "getgid",
        "killpg",
        "O_CLOEXEC",
        "O_NOFOLLOW",
        "register_at_fork",
        "sched_getaffinity",
        "sysconf",
        "uname",
    ),
    signal: ("SIGALRM", "SIGHUP", "SIGKILL", "SIGPIPE", "SIGTSTP", "SIGUSR1", "SIGUSR2", "SIGWINCH"),
    socket: ("AF_UNIX", "MSG_DONTWAIT", "SO_REUSEPORT", "TCP_USER_TIMEOUT"),
    time: ("CLOCK_BOOTTIME", "CLOCK_MONOTONIC", "clock_gettime"),
}

socket.socketpair = functools.partial(socket.socketpair, socket.AF_UNIX)
for module, names in MISSING.items():
    for name in names:
        delattr(module, name)
for name in MODULES:
    sys.modules[name] = None  # type: ignore[assignment]


def refuse(*_arguments: object) -> None:
    """Stand for a method that the loops of Windows do not have."""
    raise NotImplementedError


for name in (
    "add_reader",
    "add_signal_handler",
    "add_writer",
    "create_unix_connection",
    "create_unix_server",
):
    setattr(asyncio.SelectorEventLoop, name, refuse)

sys.argv[:] = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
