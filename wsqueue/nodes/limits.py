"""How many open files and connections a node needs."""

from __future__ import annotations

from ..config.model import Limits

SPARE_CONNECTIONS = 100
"""Connections beyond `max_connections` that may ask for a health page, or be told that it is full."""

SPARE_FILES = 200
"""Open files beyond the connections: listeners, links, the loop's own."""


def open_files_wanted(limits: Limits) -> int:
    """Return how many open files a node needs."""
    return limits.max_connections + SPARE_CONNECTIONS + SPARE_FILES
