"""Limits of the process that a node runs in: open files, and freed memory that is kept."""

from __future__ import annotations

import ctypes
import logging
import resource

from ..config.model import Limits
from ..journal import log

logger = logging.getLogger(__name__)

LINK_CONNECTIONS = 256
"""Connections of producers beyond `max_connections`, so that no client keeps them out: two for 128."""

SPARE_FILES = 200
"""Open files beyond the connections: listeners, links, the event loop's own."""

KEPT_BYTES = 8 * 1024 * 1024
"""Freed memory that the process keeps: the buffers of some reads and writes, at 256 KiB each."""

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""


def open_files_wanted(limits: Limits) -> int:
    """Return the number of open files that a node needs."""
    return limits.max_connections + limits.max_strangers + LINK_CONNECTIONS + SPARE_FILES


def allow_open_files(limits: Limits) -> None:
    """Raise the process's limit of open files as far as the node needs; warn if that is not allowed."""
    wanted = open_files_wanted(limits)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if max(soft, allowed) < wanted:
        log(logger, logging.WARNING, "too few open files allowed", allowed=allowed, wanted=wanted)


def keep_freed_memory() -> None:
    """Stop glibc from giving back the memory of each read and write: to get it anew costs page faults."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # other C libraries lack it
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
