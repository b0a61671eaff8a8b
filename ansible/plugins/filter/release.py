"""Filters that tell the sources of a zipapp, and those that a clone would put into one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ansible_collections.wsqueue.wsqueue.plugins.plugin_utils import sources


class FilterModule:
    """The class that Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return all filters by name."""
        return {"sources_hash": sources_hash, "zipapp_facts": sources.zipapp_facts}


def sources_hash(clone: str) -> str:
    """Return the hash of the sources in a clone, "" where there is none: with the collection alone."""
    return sources.sources_hash(Path(clone)) if Path(clone, "scripts", "zipapp").exists() else ""
