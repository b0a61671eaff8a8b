"""The command line and the nodes start without importing the big libraries of single commands."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ...support.environment import without_coverage

UNWANTED = (
    *("rich", "prometheus_client", "psutil", "prompt_toolkit", "matplotlib", "nats"),
    *("wsqueue.tools.bench", "wsqueue.log.shared", "wsqueue.log.mover"),
)


@pytest.mark.parametrize("module", ["wsqueue.cli.main", "wsqueue.nodes.service"])
def test_big_libraries_are_imported_only_when_needed(module: str) -> None:
    script = f"import sys, {module}; print([name for name in {UNWANTED} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, env=without_coverage()
    )
    assert done.stdout == b"[]\n"


def test_ctrl_c_during_the_imports() -> None:
    script = """if True:
        import sys, wsqueue.__main__

        class Interrupt:
            def find_spec(self, name, path, target=None):
                if name == "wsqueue.cli.main":
                    raise KeyboardInterrupt

        sys.meta_path.insert(0, Interrupt())
        wsqueue.__main__.main()
    """
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=False, env=without_coverage()
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
