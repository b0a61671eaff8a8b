"""Print why an instance must be restarted or reloaded, a line for each reason, and then the time.

unseen.py UNIT RELEASE RESTART RELOAD [restart] [touch]: RESTART and RELOAD are the files that it reads at a
start and at each reload, separated by commas. With `restart`, an operator wants a restart of whatever runs.
With `touch`, files that are dated later than now are dated now.
"""

import datetime as dt
import os
import pathlib
import re
import subprocess
import sys
import time

unit, release, at_start, at_reload, *options = sys.argv[1:]
now = time.time()
booted = now - time.clock_gettime(time.CLOCK_MONOTONIC)

SET_SECONDS = 0.01
"""Difference of two estimates of a time from which on the clock was set; both are exact to microseconds."""


def show(name: str) -> str:
    """Return a property of the unit."""
    command = ["systemctl", "show", "--timestamp=us+utc", "-P", name, unit]
    return subprocess.run(  # noqa: S603 - our own words
        command, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


def moment(name: str) -> float:
    """Return a time of the unit by the clock of then, or by today's clock if that was set back meanwhile.

    By the clock of then, it would hide files that were written since.
    """
    text = show(name).replace("UTC", "+0000")
    by_clock = dt.datetime.strptime(text, "%a %Y-%m-%d %H:%M:%S.%f %z").timestamp()
    by_boot = booted + int(show(f"{name}Monotonic")) / 1e6
    return by_boot if by_clock - by_boot > SET_SECONDS else by_clock


def newer(files: str, name: str) -> list[str]:
    """Return the files that have changed since a moment of the unit."""
    since = moment(name)
    found = []
    for file in filter(os.path.exists, files.split(",")):
        changed = pathlib.Path(file).lstat().st_ctime
        if changed > since:
            found.append(file)
        if changed > now and "touch" in options:
            os.utime(file)
    return found


def runs_release(pid: str) -> bool:
    """Return True if the process has mapped a file of the release, its native code, which is still there."""
    try:
        maps = pathlib.Path(f"/proc/{pid}/maps").read_text()
    except OSError:
        # It has ended just now.
        return False
    file = rf" {re.escape(os.path.realpath(release))}/.*(?<! \(deleted\))$"
    return re.search(file, maps, re.MULTILINE) is not None


pid = show("MainPID")
if pid != "0":
    if "restart" in options:
        print("restarted for the operator")
    if not runs_release(pid):
        print("restarted for", os.path.realpath(release))
    for file in newer(at_start, "ExecMainStartTimestamp"):
        print("restarted for", file)
    for file in newer(at_reload, "StateChangeTimestamp"):
        print("reloaded for", file)
print(f"now @{now:.6f}")
