"""The script that finds what an instance has not seen, also when the clock was set."""

from __future__ import annotations

import datetime as dt
import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from tests.support.paths import ROOT

SCRIPT = ROOT / "ansible" / "roles" / "wsqueue_node" / "files" / "unseen.py"
CODE = Path(msgspec.__file__).parent
"""A directory whose native code this process has loaded."""

DAY = 86_400.0


class Instance:
    """A unit as a `systemctl` for the test shows it; its process is that of the test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.unit, self.settings = directory / "node.conf", directory / "node.toml"
        self.pid = os.getpid()
        self.release = CODE
        self.started = time.time()
        self.started_since_boot = time.clock_gettime(time.CLOCK_MONOTONIC)

    def unseen(self, *options: str) -> list[str]:
        """Return the reasons, each without its path."""
        stamp = dt.datetime.fromtimestamp(self.started, dt.UTC).strftime("%a %Y-%m-%d %H:%M:%S.%f UTC")
        systemctl = self.directory / "systemctl"
        systemctl.write_text(
            f'#!/bin/sh\ncase "$4" in MainPID) echo {self.pid};; *Monotonic)'
            f" echo {int(self.started_since_boot * 1e6)};; *) echo '{stamp}';; esac\n"
        )
        systemctl.chmod(0o755)
        shown = subprocess.run(
            [sys.executable, SCRIPT, "unit", self.release, self.unit, f"{self.settings},/nowhere", *options],
            env={"PATH": f"{self.directory}:{os.environ['PATH']}"},
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
        [*reasons, now] = shown.stdout.splitlines()
        assert now.startswith("now @")
        return [f"{reason.split()[0]} {Path(reason.split()[-1]).name}" for reason in reasons]


@pytest.fixture
def instance(tmp_path: Path) -> Instance:
    """Return an instance that was started after its files were written."""
    for name in ("node.conf", "node.toml"):
        (tmp_path / name).touch()
    time.sleep(0.05)
    return Instance(tmp_path)


def test_an_instance_that_has_seen_everything(instance: Instance) -> None:
    assert instance.unseen() == []


@pytest.mark.parametrize("set_by", [0.0, DAY, -DAY], ids=["never", "forward", "back"])
def test_a_file_that_was_written_since(instance: Instance, set_by: float) -> None:
    # The clock was set after the start, and the files were written after that.
    instance.started -= set_by
    time.sleep(0.05)
    instance.settings.touch()
    assert instance.unseen()[-1] == "reloaded node.toml"
    instance.unit.touch()
    assert instance.unseen() == ["restarted node.conf", "reloaded node.toml"]


def test_another_release(instance: Instance, tmp_path: Path) -> None:
    instance.release = tmp_path
    assert instance.unseen() == [f"restarted {tmp_path.name}"]


def test_a_restart_that_an_operator_wants(instance: Instance) -> None:
    assert instance.unseen("restart", "touch") == ["restarted operator"]


@pytest.mark.parametrize("options", [(), ("restart",)])
def test_an_instance_that_does_not_run(instance: Instance, options: tuple[str, ...]) -> None:
    instance.pid = 0
    assert instance.unseen(*options) == []
