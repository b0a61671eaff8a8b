"""`wsqueue doctor`: problems of the configurations on this host, and of a deployed cluster.

Each finding is a sentence, with advice if there is something to do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from ...config.keys import load_psk
from ...config.model import ClientConfig
from .cluster import Say, check_cluster
from .findings import Finding
from .host import check_files

__all__ = ["Finding", "check", "check_cluster", "check_files"]


async def check(files: Sequence[str], say: Say) -> AsyncIterator[Finding]:
    """Check configurations on this host, and the cluster of each configuration of role demo.

    Args:
        files: Configuration files of any role.
        say: Called with the name of each check when it begins.
    """
    clusters: list[ClientConfig] = []
    async for finding in check_files(files, clusters, say):
        yield finding
    for settings in clusters:
        async for finding in check_cluster(settings, load_psk(settings), say):
            yield finding
