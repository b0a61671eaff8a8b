"""Warnings about nodes and clusters, each a sentence with advice."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from .report import ClusterNode, LinkStatus, LogStatus, NodeWarning, Report
from .text import amount, number


def _link_warnings(link: LinkStatus) -> Iterator[NodeWarning]:
    waiting = "nothing waits for it"
    if link.held_messages:
        held = number(link.held_messages, "message waits", "messages wait")
        waiting = f"{held} for it ({amount(link.held_bytes)})"
    if link.state == "down":
        yield NodeWarning(
            "link_down",
            f"No link to consumer {link.address} for {number(round(link.seconds), 'second', 'seconds')}:"
            f" {link.reason}; {waiting}.",
            "See whether it runs and can be reached; the topics of other consumers go on.",
        )
    elif link.paused_publishers:
        yield NodeWarning(
            "link_slow",
            f"Consumer {link.address} takes messages slower than they come; {waiting}.",
            "See the loop lag, the CPU time and the log of that consumer.",
        )
    if link.paused_publishers:
        yield NodeWarning(
            "publishers_paused",
            f"{number(link.paused_publishers, 'publisher is', 'publishers are')} not read from,"
            f" for too much waits for {link.address}.",
            "They go on by themselves as soon as the consumer takes it.",
        )


def _log_warnings(log: LogStatus) -> Iterator[NodeWarning]:
    if log.failing:
        yield NodeWarning(
            "log_failing",
            f"Messages cannot be stored, and are refused: {log.failing}.",
            "Make room on the file system of the log, or see the kernel's messages for the disk.",
        )
    room = log.limit_bytes - log.bytes
    if 0 <= log.free_bytes < room:
        yield NodeWarning(
            "log_nearly_full",
            f"Its file system has {amount(log.free_bytes)} left, and the log may grow by {amount(room)}.",
            "Make room, or lower max_bytes of [retention].",
        )


def _slow_warning(report: Report) -> NodeWarning:
    peers = ", ".join(
        f"{peer.peer} ({number(peer.behind_messages, 'message', 'messages')} behind)"
        if peer.protocol == "v2"
        else peer.peer
        for peer in report.slow_peers[:3]
    )
    more = " and others" if report.slow_subscribers > len(report.slow_peers[:3]) else ""
    return NodeWarning(
        "subscriber_slow",
        f"{number(report.slow_subscribers, 'subscriber reads', 'subscribers read')} slower than"
        f" {'its' if report.slow_subscribers == 1 else 'their'} topics grow: {peers}{more}.",
        "They read on from the log, and lose what it drops; a classic one is closed at max_buffered_bytes.",
    )


MAX_CLOCK_SECONDS = 5.0
"""By how much a node's clock may differ: more is no delay of the network."""


def cluster_warnings(nodes: Sequence[ClusterNode]) -> list[NodeWarning]:
    """Return what is wrong with nodes, and what only a look at all of them shows."""
    found: list[NodeWarning] = []
    for node in nodes:
        if node.problem:
            found.append(
                NodeWarning(
                    "node_unreachable",
                    f"{node.role} {node.address} does not answer: {node.problem}.",
                    "See whether it runs (`systemctl status`), and whether it can be reached from here.",
                )
            )
        elif node.report is not None:
            found += [
                msgspec.structs.replace(warning, text=f"{node.role} {node.address}: {warning.text}")
                for warning in node.report.warnings
            ]
            if node.clock_seconds is not None and abs(node.clock_seconds) > MAX_CLOCK_SECONDS:
                ahead = "ahead of" if node.clock_seconds > 0 else "behind"
                found.append(
                    NodeWarning(
                        "clock_differs",
                        f"The clock of {node.role} {node.address} is {abs(node.clock_seconds):.0f} seconds"
                        f" {ahead} ours.",
                        "Let systemd-timesyncd or chrony set the clocks, which certificates need.",
                    )
                )
    reports = [node.report for node in nodes if node.answers and node.report is not None]
    versions = sorted({report.version for report in reports})
    if len(versions) > 1:
        found.append(
            NodeWarning(
                "version_differs",
                f"The nodes have different versions: {', '.join(versions)}.",
                "That is well during an update; otherwise run `ansible-playbook site.yml` again.",
            )
        )
    if len({tuple(report.psk_fingerprints) for report in reports}) > 1:
        found.append(
            NodeWarning(
                "keys_differ",
                "The nodes have different lists of pre-shared keys.",
                "That is well while keys are rotated; otherwise compare them with `wsqueue doctor FILE`.",
            )
        )
    return found
