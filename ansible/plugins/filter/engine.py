"""Filters about the NATS servers that keep the log which consumers share.

All are plain functions over strings, lists and mappings. A host is a mapping of its variables, as `hostvars`
has them; a report is the answer of a server at /jsz.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

Host = Mapping[str, Any]
Report = Mapping[str, Any]

DEFAULT_REPLICAS = 3
"""The default of `replicas` in [retention.jetstream]."""

SILENT_NANOSECONDS = 3_000_000_000
"""Time without a sign of life after which a server counts as offline.

Leaders ask each second, and say only much later that a server is offline.
"""

NAME = re.compile(r'^server_name: "(.*)"$', re.MULTILINE)
CLUSTER = re.compile(r"^cluster \{$", re.MULTILINE)
"""Lines of the configuration that the role writes."""

GOOD_NAME = re.compile(r"[A-Za-z0-9_.-]+")
GOOD_PASSWORD = re.compile(r"[A-Za-z0-9+/=_.-]{16,}")
"""Without characters that mean something in the server's configuration."""


class FilterModule:
    """The class that Ansible looks for."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Return all filters by name."""
        functions = (
            engine_changes,
            engine_inventory_problem,
            engine_knows,
            engine_lost_problem,
            engine_password_problem,
            engine_unsettled,
            engine_works,
        )
        return {function.__name__: function for function in functions}


# --- The inventory ---


def engine_inventory_problem(names: Sequence[str], consumers: Sequence[Host]) -> str:
    """Return why the servers and the retention of the consumers do not fit, "" if they do.

    Args:
        names: The names of the servers, one for each host of the group `engine`.
        consumers: The hosts of the group `consumers`.
    """
    retentions = [host.get("wsqueue_consumer_retention") or {} for host in consumers] or [{}]
    modes = list(dict.fromkeys(str(retention.get("mode", "memory")) for retention in retentions))
    tables = [retention.get("jetstream") or {} for retention in retentions]
    if "jetstream" not in modes:
        problems = {
            "The group engine has hosts, and wsqueue_consumer_retention has the mode "
            f"{' and '.join(modes)}; expected the mode jetstream, or no host in the group engine": bool(names)
        }
    elif len(modes) > 1 or any(table != tables[0] for table in tables):
        problems = {"wsqueue_consumer_retention is not the same on all consumers, which share one log": True}
    elif names:
        problems = _group_problems(names, tables[0])
    else:
        problems = {
            "wsqueue_consumer_retention has the mode jetstream, and there are no servers; expected hosts in "
            "the group engine, or the servers of another cluster as jetstream.servers": not tables[0].get(
                "servers"
            )
        }
    return next((sentence for sentence, found in problems.items() if found), "")


def _group_problems(names: Sequence[str], table: Mapping[str, Any]) -> dict[str, bool]:
    """Return sentences, and whether each is true of a group of servers and a table [retention.jetstream]."""
    number, replicas = len(names), int(table.get("replicas", DEFAULT_REPLICAS))
    return {
        "wsqueue_consumer_retention names jetstream.servers, and the group engine has hosts too; expected "
        "one or the other": bool(table.get("servers")),
        f"The group engine has {number} hosts, and an even number survives no more losses than one host "
        "fewer; expected 3 hosts, or 1 for a trial": number % 2 == 0,
        f"Each message has {replicas} replicas, and the group engine has {number} host"
        f"{'s' if number > 1 else ''}; expected more hosts, or for a trial jetstream.replicas: 1 in "
        "wsqueue_consumer_retention": replicas > number,
        f"wsqueue_engine_name is one of {', '.join(names)}; expected letters, digits, dots, hyphens and "
        "underscores": not all(map(GOOD_NAME.fullmatch, names)),
        "Two servers have the same wsqueue_engine_name; expected another for each": len(set(names)) < number,
    }


def engine_password_problem(passwords: Mapping[str, Sequence[str]]) -> str:
    """Return the problem with the passwords of the servers, "" if there is none. Shows none.

    Args:
        passwords: The name of each variable, and its value on each host.
    """
    seen: dict[str, str] = {}
    for variable, values in passwords.items():
        if not all(values):
            return f"{variable} is not set on all hosts"
        if len(set(values)) > 1:
            return f"{variable} is not the same on all hosts"
        for value in values:
            if not GOOD_PASSWORD.fullmatch(str(value)):
                return (
                    f"{variable} has other characters than letters, digits and + / = _ . -, or fewer than 16"
                )
            if seen.setdefault(str(value), variable) != variable:
                return f"{variable} and {seen[str(value)]} are the same"
    return ""


# --- The servers as they are ---


def engine_changes(deployed: str, name: str, clustered: bool, reports: Mapping[str, Report]) -> str:
    """Return why a server cannot become the one of the inventory, "" if it can.

    Args:
        deployed: The configuration on its host, "" for none.
        name: The name of the server in the inventory.
        clustered: Whether the inventory has more servers.
        reports: Of the servers that live, by name.
    """
    if not deployed:
        if engine_knows(reports, name):
            return (
                f"the others know a server {name} with another disk, and would count on all that it had "
                "stored; give this one another wsqueue_engine_name, and run replace_consumer.yml"
            )
        return ""
    found = NAME.search(deployed)
    if found and found[1] != name:
        return (
            f"its server is {found[1]}, and the inventory calls it {name}, which the others would take for "
            f"one more server; expected wsqueue_engine_name: {found[1]}"
        )
    was = CLUSTER.search(deployed) is not None
    if was != clustered:
        words = ("alone", "one of several")
        return (
            f"its server was {words[was]} and would be {words[clustered]}, and so would lose its log; leave "
            "the number of hosts in the group engine as it was, or begin anew after remove.yml with "
            "wsqueue_engine_keep_state=false"
        )
    return ""


def engine_works(reports: Iterable[Report]) -> bool:
    """Return True if a server knows a leader of all: they serve, so they change one after another."""
    return any((report.get("meta_cluster") or {}).get("leader") for report in reports)


def engine_unsettled(
    report: Report, name: str, without: Iterable[str] = (), joined: Iterable[str] = ()
) -> list[str]:
    """Return why the servers do not have the same yet, as one of them sees it; nothing if they have.

    Each server knows how far the others are in the groups that it leads, so ask all of them.

    Args:
        report: The report of the server, with all streams and consumers of all accounts.
        name: The name of the server.
        without: Names of servers that are known to be down.
        joined: Names of servers that must be known.
    """
    found: list[str] = []
    missed = set(without)
    for group, cluster in _groups(report):
        if not cluster.get("leader"):
            found.append(f"{group} has no leader")
        # The others may know an earlier state.
        if cluster.get("leader") != name:
            continue
        for replica in cluster.get("replicas") or ():
            if replica["name"] in missed:
                continue
            if replica.get("offline") or replica.get("active", 0) > SILENT_NANOSECONDS:
                found.append(f"{replica['name']} is offline")
            elif not replica.get("current"):
                found.append(f"{replica['name']} is behind in {group}")
    if _leads_all(report, name):
        found += [f"{other} has not joined" for other in joined if other not in {name, *_others(report)}]
    return list(dict.fromkeys(found))


def engine_lost_problem(reports: Mapping[str, Report], lost: str, names: Iterable[str]) -> str:
    """Return why a server cannot be given up, "" if it can.

    Args:
        reports: Of the servers that live, by name.
        lost: The name of the server that is gone.
        names: The names of the servers in the inventory.
    """
    if not lost:
        return (
            "wsqueue_engine_lost is not set; expected the name of the server that is gone for good, as in"
            " -e wsqueue_engine_lost=NAME"
        )
    if lost in names:
        return (
            f"{lost} is in the inventory; take its host out, or give its new disk a new wsqueue_engine_name"
        )
    leader = [report for name, report in reports.items() if _leads_all(report, name)]
    if not leader:
        return (
            "The servers have no leader, which takes more than half of them; expected more of them to be up"
        )
    for replica in leader[0]["meta_cluster"].get("replicas") or ():
        if replica["name"] == lost and not replica.get("offline") and replica["active"] < SILENT_NANOSECONDS:
            return f"{lost} lives; stop it for good, or leave it in the group engine"
    return ""


def engine_knows(reports: Mapping[str, Report], name: str) -> bool:
    """Return True if the servers count a server among them.

    Args:
        reports: Of the servers that live, by name.
        name: The name of the server.
    """
    return any(_leads_all(report, leader) and name in _others(report) for leader, report in reports.items())


def _leads_all(report: Report, name: str) -> bool:
    return (report.get("meta_cluster") or {}).get("leader") == name


def _others(report: Report) -> set[str]:
    cluster = report.get("meta_cluster") or {}
    return {replica["name"] for replica in cluster.get("replicas") or ()}


def _groups(report: Report) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield each group of servers that keep the same, and its name."""
    if report.get("meta_cluster"):
        yield "the list of streams", report["meta_cluster"]
    for account in report.get("account_details") or ():
        for stream in account.get("stream_detail") or ():
            if stream.get("cluster"):
                yield f"the stream {stream['name']}", stream["cluster"]
            for consumer in stream.get("consumer_detail") or ():
                if consumer.get("cluster"):
                    yield f"{consumer['name']} of the stream {stream['name']}", consumer["cluster"]
