"""The tests pass however they were started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from ..support.paths import ROOT

CHILD = """
import os, signal
status = dict(line.split(":\\t", 1) for line in open("/proc/self/status") if ":\\t" in line)
umask = os.umask(0)
print(status["SigIgn"].strip(), status["SigBlk"].strip(), oct(umask), os.path.exists("/proc/self/fd/0"))
"""


def test_what_a_process_inherits_that_a_test_starts() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD], capture_output=True, check=True, text=True)
    ignored, blocked, umask, stdin = done.stdout.split()
    # Python itself ignores SIGPIPE and SIGXFSZ; the C library keeps 32 and 33, and lets nobody set them back.
    found = {number for number in range(1, 65) if int(ignored, 16) >> number - 1 & 1}
    assert found <= {signal.SIGPIPE, signal.SIGXFSZ, 32, 33}
    assert (int(blocked, 16), umask, stdin) == (0, "0o22", "True")


@pytest.mark.skipif("INSIDE" in os.environ, reason="it would start itself for ever")
@pytest.mark.parametrize("start", ["trap '' INT HUP TERM QUIT USR1 PIPE", "umask 077", "umask 0", "exec <&-"])
def test_ways_to_start_the_tests(start: str, tmp_path: Path) -> None:
    what = f"{Path(__file__).relative_to(ROOT)}::test_what_a_process_inherits_that_a_test_starts"
    script = (
        f'{start}; exec "{sys.executable}" -m pytest -q -p no:cacheprovider --basetemp="{tmp_path}/t" {what}'
    )
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=ROOT,
        env={**os.environ, "INSIDE": "1"},
        capture_output=True,
        check=False,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
