"""The environment of programs that tests start."""

from __future__ import annotations

import os


def without_coverage() -> dict[str, str]:
    """Return the environment for programs that run nothing of the package.

    Coverage of their own code, as of pip's and Sphinx's, would tell nothing, and take a third of their time.
    """
    return {key: value for key, value in os.environ.items() if not key.startswith("COVERAGE_")}
