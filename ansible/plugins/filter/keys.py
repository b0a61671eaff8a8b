"""Filter that finds keys in the inventory which nodes would refuse, because they are easy to guess."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ansible_collections.wsqueue.wsqueue.plugins.filter.cluster import key_list
from ansible_collections.wsqueue.wsqueue.plugins.plugin_utils.key_strength import is_weak


class FilterModule:
    """The class that Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return all filters by name."""
        return {"weak_keys": weak_keys}


def weak_keys(hosts: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the variables that have a weak key.

    Args:
        hosts: Of each host: `psk`, `node_psk` and `clients`, whose keys have been checked for their form.
    """
    weak: set[str] = set()
    for host in hosts:
        keys = {"wsqueue_psk": host["psk"], "wsqueue_node_psk": host["node_psk"]}
        for name, client in host["clients"].items():
            keys[f"wsqueue_clients.{name}"] = key_list(client["key"])
        weak |= {name for name, several in keys.items() if any(map(is_weak, several))}
    return sorted(weak)
