"""The files of a release that tests look into: those of `make release`, if it runs them."""

from __future__ import annotations

import os
from pathlib import Path


def released(pattern: str) -> Path | None:
    """Return the file of the release under test, or None if a test has to build it."""
    directory = release_directory()
    if directory is None:
        return None
    (file,) = directory.glob(pattern)
    return file


def release_directory() -> Path | None:
    """Return the directory of the release under test, or None if there is none."""
    directory = os.environ.get("WSQUEUE_RELEASE")
    return Path(directory) if directory else None
