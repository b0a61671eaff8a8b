"""Filter that gathers the answers of all hosts for the archive of support.yml."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

GROUPS = ("consumers", "producers", "engine", "demo", "monitoring")
"""The groups whose hosts are asked."""


class FilterModule:
    """The class that Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return all filters by name."""
        return {"support_hosts": support_hosts}


def support_hosts(
    variables: Mapping[str, Mapping[str, Any]], groups: Mapping[str, Iterable[str]], asked: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """Return of each host its `groups`, and the `data` that it has told or the `problem` that hid it.

    Args:
        variables: The variables of all hosts.
        groups: The hosts of all groups.
        asked: The hosts of this run.
    """
    hosts = dict.fromkeys(host for group in GROUPS for host in groups.get(group, ()))
    found = {}
    for host in hosts:
        answer = variables[host].get("wsqueue_support_gathered", {}) if host in asked else {}
        data = str(answer.get("stdout", "")) if answer.get("rc") == 0 else ""
        problem = "" if data else _problem(host, groups, asked, answer)
        own = [group for group in GROUPS if host in groups.get(group, ())]
        found[host] = {"groups": own, "data": data, "problem": problem}
    return found


def _problem(
    host: str, groups: Mapping[str, Iterable[str]], asked: Iterable[str], answer: Mapping[str, Any]
) -> str:
    if host in groups.get("dead", ()):
        return "because it is in the group dead"
    if host not in asked:
        return "because --limit leaves it out"
    if answer.get("unreachable"):
        return f"because it could not be reached: {answer.get('msg', 'no reason')}"
    told = str(
        answer.get("stderr") or answer.get("module_stderr") or answer.get("msg") or "no output"
    ).strip()
    return f"because it failed: {told.splitlines()[-1]}"
