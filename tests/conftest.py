"""Fixtures and scheduling of all tests. Asynchronous tests run on uvloop, as the nodes do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

# A machine may be busy.
settings.register_profile("any machine", deadline=None)
# That of `make test`: all examples would take a fifth of its CPU time, and each run tries others.
settings.register_profile("fewer examples", deadline=None, max_examples=25)
settings.load_profile("any machine")


class Scheduling(LoadScopeScheduling):  # type: ignore[misc] # xdist has no types
    """Say which tests stay together, in their order, where several processes share them (`make test`).

    Those on lab hosts build on each other and take longest: one process begins with them, another with those
    that have hosts of their own, while a third does the rest. The tests of a module on real processes share a
    cluster, those in a browser the browser, and those of the roles and the site share files that take long to
    make. The cases of a parametrized test stay together too, because after each unit, the scheduler looks at
    all that a process has got.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = PurePath(nodeid.partition("::")[0])
        if file.parent.name == "lab":
            return "lab" if file.name.startswith("test_rollout") else "other labs"
        together = file.parent.name in {"acceptance", "ansible", "browser", "docs"}
        return str(file) if together else nodeid.partition("[")[0]


def forget_how_this_was_started() -> None:
    """Undo whatever processes that the tests start would inherit from who started the tests.

    A shell starts background jobs with SIGINT ignored, `nohup` ignores SIGHUP, others block signals, close
    standard input, or have a umask with which configurations and keys get other permissions.
    """
    # Python itself ignores SIGPIPE and SIGXFSZ, and gives processes that it starts the default again.
    for number in set(signal.Signals) - {signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    os.umask(0o022)
    try:
        os.fstat(0)
    except OSError:
        os.open(os.devnull, os.O_RDONLY)  # gets the lowest free number


forget_how_this_was_started()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    # Otherwise the file with most tests would come first.
    config.option.loadscopereorder = False
    return Scheduling(config, log)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.path.parent.name != "lab")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture
def uncovered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Do without coverage, here and in the processes that the test starts.

    For tests that measure, and for those that repeat others a thousand times: coverage makes
    them several times slower.
    """
    for name in list(os.environ):
        if name.startswith("COVERAGE_"):
            monkeypatch.delenv(name)
    trace = sys.gettrace()
    sys.settrace(None)
    yield
    sys.settrace(trace)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of 1 MiB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("cannot mount a tmpfs")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)
