"""Findings about a cluster and a host, made from values: no files, no sockets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import msgspec

from ...config.model import Limits
from ...log.kept import Kept
from ...net.certificates import EXPIRY_WARNING
from ...nodes.limits import open_files_wanted
from ...report.report import Cluster, ClusterNode, NodeWarning, WarningCode
from ...report.text import age_in_words, amount, join, number
from ...report.warnings import (
    ADVICE,
    NO_REPORTS,
    OTHER_KEY,
    clock_warnings,
    key_warnings,
    log_room,
    shared_log_warnings,
    unreachable_warning,
    version_warnings,
)
from ...version import __version__

Verdict = Literal["ok", "warning", "problem"]

URGENT = timedelta(days=3)
"""A certificate that ends within this time is a problem: a weekend and a day."""

MEMORY_SHARE = 0.8
"""Share of the memory of the host that nodes may take; the rest is for the system."""

PROBLEMS: frozenset[WarningCode] = frozenset(
    {"link_down", "log_failing", "log_unavailable", "logs_differ", "node_unreachable"}
)
"""Codes of warnings that say that something does not work."""


class Finding(msgspec.Struct, frozen=True):
    """The result of one check.

    Attributes:
        state: ok, warning or problem.
        subject: A file, a node, or a property that all nodes share.
        text: A sentence.
        advice: A sentence that says what to do, "" if there is nothing to do.
    """

    state: Verdict
    subject: str
    text: str
    advice: str = ""


def cluster_findings(
    cluster: Cluster,
    fingerprints: Sequence[str],
    certificates: Mapping[str, datetime | str],
    now: datetime,
) -> Iterator[Finding]:
    """Yield the findings about all nodes of a cluster.

    Args:
        cluster: The cluster, asked just now.
        fingerprints: Fingerprints of our pre-shared keys; none if ours has a name or is a token, which nodes
            do not list among theirs.
        certificates: End of the certificate that each node with TLS shows, or the reason why it is not known,
            by address.
        now: The time of this host.
    """
    for node in cluster.nodes:
        yield from _node_findings(node, fingerprints, now)
        if node.address in certificates:
            yield _handshake_finding(f"{node.role} {node.address}", certificates[node.address], now)
    answering = [node for node in cluster.nodes if node.answers]
    if answering:
        yield from _consumers_findings(answering, cluster.consumers)
        yield from _identity_findings(answering)
        yield from _versions_findings(answering)
        yield _keys_finding(answering, fingerprints)
        yield from _clocks_findings(answering)
        yield from _logs_findings(answering)


def _node_findings(node: ClusterNode, fingerprints: Sequence[str], now: datetime) -> Iterator[Finding]:
    subject = f"{node.role} {node.address}"
    report = node.report
    if report is None or node.problem:
        yield _unreachable(subject, node.problem, fingerprints)
        return
    count = sum(kind.count for kind in report.connections)
    yield Finding(
        "ok",
        subject,
        f"It answers: version {report.version}, up for {age_in_words(report.uptime_seconds)},"
        f" {number(count, 'connection')}.",
    )
    if report.role != node.role:
        yield Finding(
            "problem",
            subject,
            f"It is a {report.role}, but is listed as a {node.role}.",
            "Correct the lists of consumers and producers.",
        )
    codes = {warning.code for warning in report.warnings}
    if report.not_ready and not codes & {"link_down", "log_failing", "log_unavailable", "draining"}:
        yield Finding(
            "problem", subject, f"It is not ready: {report.not_ready}.", "See its journal for the reason."
        )
    for warning in report.warnings:
        state = verdict(warning)
        if warning.code == "certificate_expires" and report.certificate_ends is not None:
            state = expiry(datetime.fromtimestamp(report.certificate_ends, UTC), now)[0]
        yield Finding(state, subject, warning.text, warning.advice)
    if report.certificate_ends is not None and "certificate_expires" not in codes:
        state, words = expiry(datetime.fromtimestamp(report.certificate_ends, UTC), now)
        yield Finding(state, subject, f"The first of its certificates {words}.", renew(state))


def verdict(warning: NodeWarning) -> Verdict:
    """Return the verdict on a warning."""
    return "problem" if warning.code in PROBLEMS else "warning"


def _unreachable(subject: str, problem: str, fingerprints: Sequence[str]) -> Finding:
    warning = unreachable_warning("It", problem or "no answer in time")
    text, state = warning.text, verdict(warning)
    if problem == OTHER_KEY and fingerprints:
        text = f"The pre-shared key differs there: ours has the fingerprint {join(fingerprints)}."
    elif problem in NO_REPORTS:
        state = "warning"
    return Finding(state, subject, text, warning.advice)


def _handshake_finding(subject: str, end: datetime | str, now: datetime) -> Finding:
    if isinstance(end, str):
        return Finding(
            "problem",
            subject,
            f"The TLS handshake failed: {end}.",
            "See whether both ends speak TLS there.",
        )
    state, words = expiry(end, now)
    return Finding(state, subject, f"The certificate that it shows {words}.", renew(state))


def _consumers_findings(nodes: Sequence[ClusterNode], ours: Sequence[str]) -> Iterator[Finding]:
    """Compare the consumers of each producer with ours: their order maps topics to consumers."""
    subject, good = "consumers", True
    for node in nodes:
        if node.report is None or node.report.role != "producer":
            continue
        theirs = [link.address.removesuffix("/producer") for link in node.report.links]
        advice = "Give all nodes and clients the same list in the same order, as the inventory has it."
        where = f"producer {node.address}"
        if len(theirs) != len(ours):
            text = f"{where} has {number(len(theirs), 'consumer')}, but this configuration has {len(ours)}"
            yield Finding(
                "problem", subject, f"{text}: clients look for topics at the wrong consumers.", advice
            )
        elif theirs != list(ours):
            place, (there, here) = next(
                (place, pair)
                for place, pair in enumerate(zip(theirs, ours, strict=True), 1)
                if len({*pair}) > 1
            )
            text = f"consumer {place} of {where} is {there}, and {here} in this configuration"
            if sorted(theirs) == sorted(ours):
                text = f"The order differs: {text}. Clients look for topics at the wrong consumers."
                yield Finding("problem", subject, text, advice)
            else:
                text = f"The addresses differ: {text}."
                yield Finding("warning", subject, text, "That is right if both lead to the same consumers.")
        else:
            continue
        good = False
    if good and any(node.role == "producer" for node in nodes):
        yield Finding(
            "ok", subject, "All producers that answer have the consumers in the same order as here."
        )


def _identity_findings(nodes: Sequence[ClusterNode]) -> Iterator[Finding]:
    places: dict[str, list[str]] = {}
    for node in nodes:
        if node.report is not None:
            places.setdefault(node.report.id, []).append(node.address)
    for same in places.values():
        if len(same) > 1:
            yield Finding(
                "problem",
                "addresses",
                f"{join(same)} lead to the same node.",
                "List each node once: a consumer that is listed twice gets the topics of two.",
            )


def _differences(subject: str, warnings: Sequence[NodeWarning]) -> list[Finding]:
    return [Finding(verdict(warning), subject, warning.text, warning.advice) for warning in warnings]


def _versions_findings(nodes: Sequence[ClusterNode]) -> list[Finding]:
    if found := _differences("versions", version_warnings(nodes)):
        return found
    version = next(node.report.version for node in nodes if node.report is not None)
    if version == __version__:
        text = f"All nodes that answer have version {version}, as this host has."
        return [Finding("ok", "versions", text)]
    text = f"The nodes have version {version}, and this host {__version__}."
    return [Finding("warning", "versions", text, "Update the older version.")]


def _keys_finding(nodes: Sequence[ClusterNode], fingerprints: Sequence[str]) -> Finding:
    if not fingerprints:
        text = "All nodes that answer take our key, and have the same pre-shared keys."
        return next(
            iter(_differences("pre-shared keys", key_warnings(nodes))), Finding("ok", "pre-shared keys", text)
        )
    others = [
        f"{node.role} {node.address} ({join(node.report.psk_fingerprints)})"
        for node in nodes
        if node.report is not None and list(node.report.psk_fingerprints) != list(fingerprints)
    ]
    ours = join(fingerprints)
    if others:
        return Finding(
            "warning",
            "pre-shared keys",
            f"The lists of keys differ: ours has the fingerprints {ours}, unlike {join(others)}.",
            ADVICE["keys_differ"],
        )
    return Finding("ok", "pre-shared keys", f"All nodes that answer have ours, with the fingerprint {ours}.")


def _clocks_findings(nodes: Sequence[ClusterNode]) -> list[Finding]:
    if found := _differences("clocks", clock_warnings(nodes)):
        return found
    # A report may be half a second old.
    difference = max((abs(node.clock_seconds or 0.0) for node in nodes), default=0.0)
    about = "less than a second" if difference < 1 else f"at most {difference:.0f} seconds"
    return [Finding("ok", "clocks", f"All differ from ours by {about}.")]


def _logs_findings(nodes: Sequence[ClusterNode]) -> list[Finding]:
    """Judge whether consumers share one log; nothing is said where each has its own."""
    if found := _differences("shared log", shared_log_warnings(nodes)):
        return found
    engines = [
        node.report.log.engine for node in nodes if node.report is not None and node.report.log is not None
    ]
    if not engines or engines[0] is None:
        return []
    return [Finding("ok", "shared log", f"All consumers that answer share the log {engines[0].id}.")]


def expiry(end: datetime, now: datetime) -> tuple[Verdict, str]:
    """Return the verdict on the end of a certificate, and a text with its date."""
    days = (end.date() - now.date()).days
    on = f"on {end:%Y-%m-%d}"
    if end <= now:
        return "problem", f"has expired {on}"
    if end > now + EXPIRY_WARNING:
        return "ok", f"is good until {end:%Y-%m-%d}"
    when = {0: "today", 1: "tomorrow"}.get(days, f"in {days} days")
    return "problem" if end <= now + URGENT else "warning", f"expires {when}, {on}"


def renew(state: Verdict) -> str:
    """Return the advice about a certificate, "" if it does not end soon."""
    if state == "ok":
        return ""
    return ADVICE["certificate_expires"]


def memory_finding(bounds: Sequence[int], total: int) -> Finding:
    """Compare the memory bounds of the nodes of this host with its memory, in bytes."""
    may = f"{amount(sum(bounds))} of {amount(total)}"
    if sum(bounds) > MEMORY_SHARE * total:
        return Finding(
            "warning",
            "memory",
            f"The logs and the messages held for consumers that are down may take {may}.",
            "Lower max_bytes of [retention] or max_held_bytes: docs/configuration.md has the memory bounds.",
        )
    return Finding(
        "ok", "memory", f"The logs and the messages held for consumers that are down take at most {may}."
    )


def files_finding(subject: str, limits: Limits, allowed: int, process: str) -> Finding:
    """Compare the connections that a node accepts with the open files that it may have.

    Args:
        subject: The file.
        limits: Limits of the node.
        allowed: Number of allowed open files; -1 without a limit.
        process: Name of the process whose limit it is.
    """
    wanted = open_files_wanted(limits)
    many = "any number of" if allowed < 0 else f"{allowed:,}"
    if 0 <= allowed < wanted:
        return Finding(
            "warning",
            subject,
            f"{process} may have {many} open files, but max_connections needs {wanted:,}.",
            "Raise LimitNOFILE of its unit (for a shell: ulimit -n), or lower max_connections.",
        )
    return Finding("ok", subject, f"{process} may have {many} open files, and needs {wanted:,}.")


def orphans_finding(subject: str, orphans: Kept, place: int, consumers: int) -> Finding:
    """Judge the messages that a consumer keeps of topics that belong to others.

    Args:
        subject: The subject of the finding.
        orphans: The topics of others that have messages here, and these messages.
        place: Number of the consumer in the list of consumers.
        consumers: Length of that list.
    """
    where = f"as number {place} of {number(consumers, 'consumer')}"
    if not orphans.topics:
        return Finding("ok", subject, f"All topics that it keeps belong to it, {where}.")
    return Finding(
        "warning",
        subject,
        f"It keeps {number(orphans.messages, 'message')} of {number(orphans.topics, 'topic')} that belong to"
        f" other consumers, {where}: clients look for them there.",
        "Read them with a client that has the list of consumers of that time, or let them grow old.",
    )


def space_finding(subject: str, directory: Path, room: int, free: int) -> Finding:
    """Compare the bytes by which the log in a directory may still grow with the free space there."""
    text = log_room(str(directory), free, room)
    if free < room:
        return Finding("warning", subject, text, ADVICE["log_nearly_full"])
    return Finding("ok", subject, text)
