"""The command line and the nodes start without importing the big libraries of single commands."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

UNWANTED = (
    *("rich", "prometheus_client", "psutil", "prompt_toolkit", "matplotlib", "nats"),
    *("wsqueue.tools.bench", "wsqueue.log.shared", "wsqueue.log.mover"),
)


@pytest.mark.parametrize("module", ["wsqueue.cli.main", "wsqueue.nodes.service"])
def test_big_libraries_are_imported_only_when_needed(module: str) -> None:
    script = f"import sys, {module}; print([name for name in {UNWANTED} if name in sys.modules])"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, env=environment)
    assert done.stdout == b"[]\n"
