"""What values say of how a cluster and a host are: no files, no sockets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import msgspec

from ...config import model
from ...config.model import ConsumerConfig, Limits, NodeConfig, ProducerConfig
from ...monitoring.cluster import OTHER_KEY
from ...net.certificates import EXPIRY_WARNING
from ...nodes.limits import open_files_wanted
from ...report.report import Cluster, ClusterNode, WarningCode
from ...report.text import amount, number
from ...report.warnings import MAX_CLOCK_SECONDS
from ...version import __version__

State = Literal["ok", "warning", "problem"]

URGENT = timedelta(days=3)
"""How long before its end a certificate is a problem: a weekend and a day."""

MEMORY_SHARE = 0.8
"""Part of the host's memory that nodes may take: it has other things to do."""

MIB = 1024 * 1024

PROBLEMS: frozenset[WarningCode] = frozenset({"link_down", "log_failing", "node_unreachable"})
"""Warnings of a node that say that something does not work."""

WITHOUT_REPORTS = ("it has no /status", "it speaks only the classic protocol")
"""How the problems of nodes begin that work, and cannot be asked how."""


class Finding(msgspec.Struct, frozen=True):
    """Say how one thing is.

    Attributes:
        state: ok, warning or problem.
        subject: A file, a node, or what is common to all.
        text: A sentence.
        advice: What to do about it, "" when nothing is to be done.
    """

    state: State
    subject: str
    text: str
    advice: str = ""


def cluster_findings(
    cluster: Cluster,
    fingerprints: Sequence[str],
    certificates: Mapping[str, datetime | str],
    now: datetime,
) -> Iterator[Finding]:
    """Yield what a look at all nodes of a cluster shows.

    Args:
        cluster: All nodes, asked just now.
        fingerprints: Of our pre-shared keys.
        certificates: When the certificates end that the nodes show in the TLS handshake, or why that is not
            known, by address; only of nodes with TLS.
        now: The time here.
    """
    for node in cluster.nodes:
        yield from _node_findings(node, fingerprints, now)
        if node.address in certificates:
            yield _handshake_finding(f"{node.role} {node.address}", certificates[node.address], now)
    answering = [node for node in cluster.nodes if node.answers]
    if answering:
        yield from _consumers_findings(answering, cluster.consumers)
        yield from _identity_findings(answering)
        yield _versions_finding(answering)
        yield _keys_finding(answering, fingerprints)
        yield _clocks_finding(answering)


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
        f"It answers: version {report.version}, up for {duration(report.uptime_seconds)},"
        f" {number(count, 'connection')}.",
    )
    if report.role != node.role:
        yield Finding(
            "problem",
            subject,
            f"It is a {report.role}, and is listed as a {node.role}.",
            "Correct the lists of consumers and producers.",
        )
    codes = {warning.code for warning in report.warnings}
    if report.not_ready and not codes & {"link_down", "log_failing", "draining"}:
        yield Finding(
            "problem", subject, f"It is not ready: {report.not_ready}.", "See its journal for the reason."
        )
    for warning in report.warnings:
        state: State = "problem" if warning.code in PROBLEMS else "warning"
        if warning.code == "certificate_expires" and report.certificate_ends is not None:
            state = expiry(datetime.fromtimestamp(report.certificate_ends, UTC), now)[0]
        yield Finding(state, subject, warning.text, warning.advice)
    if report.certificate_ends is not None and "certificate_expires" not in codes:
        state, words = expiry(datetime.fromtimestamp(report.certificate_ends, UTC), now)
        yield Finding(state, subject, f"The first of its certificates {words}.", renew(state))


def _unreachable(subject: str, problem: str, fingerprints: Sequence[str]) -> Finding:
    problem = problem or "no answer in time"
    if problem == OTHER_KEY:
        return Finding(
            "problem",
            subject,
            f"The pre-shared key differs there: ours has the fingerprint {join(fingerprints)}.",
            "Compare it with what `wsqueue doctor FILE` says on that host, and put the same key on both.",
        )
    if problem.startswith(WITHOUT_REPORTS):
        return Finding(
            "warning", subject, f"It answers, and cannot be asked how it is: {problem}.", "Update that node."
        )
    advice = "See whether it runs (`systemctl status`), and whether it can be reached from here."
    if "certificate" in problem:
        advice = "See [tls] of both ends: which CA they trust, and for which host the certificate is."
    return Finding("problem", subject, f"It does not answer: {problem}.", advice)


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
    """Compare the consumers of each producer with ours: the order decides which topic is whose."""
    subject, good = "consumers", True
    for node in nodes:
        if node.report is None or node.report.role != "producer":
            continue
        theirs = [link.address.removesuffix("/producer") for link in node.report.links]
        advice = "Give all nodes and clients the same list in the same order, as the inventory has it."
        where = f"producer {node.address}"
        if len(theirs) != len(ours):
            text = f"{where} has {number(len(theirs), 'consumer')}, and this configuration {len(ours)}"
            yield Finding("problem", subject, f"{text}: topics are looked for elsewhere.", advice)
        elif theirs != list(ours):
            place, (there, here) = next(
                (place, pair)
                for place, pair in enumerate(zip(theirs, ours, strict=True), 1)
                if len({*pair}) > 1
            )
            text = f"consumer {place} of {where} is {there}, and {here} in this configuration"
            if sorted(theirs) == sorted(ours):
                text = f"The order differs: {text}. Topics are looked for elsewhere."
                yield Finding("problem", subject, text, advice)
            else:
                text = f"The addresses differ: {text}."
                yield Finding("warning", subject, text, "That is well if both lead to the same consumers.")
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
                "List each node once: a consumer that is there twice gets the topics of two.",
            )


def _versions_finding(nodes: Sequence[ClusterNode]) -> Finding:
    versions: dict[str, list[str]] = {}
    for node in nodes:
        if node.report is not None:
            versions.setdefault(node.report.version, []).append(node.address)
    if len(versions) > 1:
        each = "; ".join(f"{version} at {join(places)}" for version, places in sorted(versions.items()))
        return Finding(
            "warning",
            "versions",
            f"The nodes have different versions: {each}.",
            "That is well during an update; otherwise run `ansible-playbook site.yml` again.",
        )
    (version,) = versions
    if version != __version__:
        return Finding(
            "warning",
            "versions",
            f"The nodes have version {version}, and this host {__version__}.",
            "Update what is older.",
        )
    return Finding("ok", "versions", f"All nodes that answer have version {version}, as this host has.")


def _keys_finding(nodes: Sequence[ClusterNode], fingerprints: Sequence[str]) -> Finding:
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
            f"The lists of keys differ: ours has the fingerprints {ours}, not so {join(others)}.",
            "That is well while keys are rotated; otherwise put the same file everywhere.",
        )
    return Finding("ok", "pre-shared keys", f"All nodes that answer have ours, with the fingerprint {ours}.")


def _clocks_finding(nodes: Sequence[ClusterNode]) -> Finding:
    clocks = [(node, node.clock_seconds) for node in nodes if node.clock_seconds is not None]
    wrong = [
        f"{node.role} {node.address} is {abs(seconds):.0f} seconds {'ahead' if seconds > 0 else 'behind'}"
        for node, seconds in clocks
        if abs(seconds) > MAX_CLOCK_SECONDS
    ]
    if wrong:
        return Finding(
            "warning",
            "clocks",
            f"Clocks differ from ours: {join(wrong)}.",
            "Let systemd-timesyncd or chrony set the clocks, which certificates need.",
        )
    # Half a second is what a report may be old.
    most = max((abs(seconds) for _, seconds in clocks), default=0.0)
    about = "less than a second" if most < 1 else f"at most {most:.0f} seconds"
    return Finding("ok", "clocks", f"All differ from ours by {about}.")


def expiry(end: datetime, now: datetime) -> tuple[State, str]:
    """Return how bad the end of a certificate is, and say when it is."""
    days = (end.date() - now.date()).days
    on = f"on {end:%Y-%m-%d}"
    if end <= now:
        return "problem", f"has expired {on}"
    if end > now + EXPIRY_WARNING:
        return "ok", f"is good until {end:%Y-%m-%d}"
    when = {0: "today", 1: "tomorrow"}.get(days, f"in {days} days")
    return "problem" if end <= now + URGENT else "warning", f"expires {when}, {on}"


def renew(state: State) -> str:
    """Return what to do about a certificate, "" for one that is good for long."""
    if state == "ok":
        return ""
    return "Put a new one there and reload the node, as `ansible/playbooks/rotate-tls.yml` does."


def memory_bound(checked: NodeConfig) -> int:
    """Return what a node takes at most while its peers mean well, as docs/configuration.md reckons."""
    limits = checked.limits
    read = limits.max_message_bytes + model.READ_MARGIN_BYTES
    bound = 48 * MIB
    if isinstance(checked, ConsumerConfig):
        bound += checked.retention.max_bytes if checked.retention.mode == "memory" else 130 * MIB
        bound += 200_000 * 1012
    elif isinstance(checked, ProducerConfig):
        bound += len(checked.consumers) * (2 * limits.max_held_bytes + 2 * read + 50_000 * 300)
        bound += 65_536 * 812
    return bound


def memory_finding(bounds: Sequence[int], total: int) -> Finding:
    """Compare the memory bounds of the nodes of this host with its memory, in bytes."""
    may = f"{amount(sum(bounds))} of {amount(total)}"
    if sum(bounds) > MEMORY_SHARE * total:
        return Finding(
            "warning",
            "memory",
            f"The logs, and what is held for consumers that are down, may take {may}.",
            "Lower max_bytes of [retention] or max_held_bytes: docs/configuration.md has the memory bounds.",
        )
    return Finding(
        "ok", "memory", f"The logs, and what is held for consumers that are down, take at most {may}."
    )


def files_finding(subject: str, limits: Limits, allowed: int, whose: str) -> Finding:
    """Compare the connections that a node accepts with the open files that it may have.

    Args:
        subject: The file.
        limits: Of the node.
        allowed: Open files; -1 for any number.
        whose: Of which process that is.
    """
    wanted = open_files_wanted(limits)
    many = "any number of" if allowed < 0 else f"{allowed:,}"
    if 0 <= allowed < wanted:
        return Finding(
            "warning",
            subject,
            f"{whose} may have {many} open files, and max_connections needs {wanted:,}.",
            "Raise LimitNOFILE of its unit (for a shell: ulimit -n), or lower max_connections.",
        )
    return Finding("ok", subject, f"{whose} may have {many} open files, and {wanted:,} are enough.")


def space_finding(subject: str, directory: Path, room: int, free: int) -> Finding:
    """Compare how far the log in a directory may grow with the free space there, in bytes."""
    text = f"{directory} has {amount(free)} left, and the log may grow by {amount(room)}"
    if free < room:
        return Finding("warning", subject, f"{text}.", "Make room, or lower max_bytes of [retention].")
    return Finding("ok", subject, f"{text}.")


def join(words: Sequence[str]) -> str:
    """Return words as a sentence has them, e.g. a, b and c."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def duration(seconds: float) -> str:
    """Return a time in the largest unit of which it has two."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
