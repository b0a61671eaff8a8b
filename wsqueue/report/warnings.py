"""Warnings about nodes and clusters: a code, a sentence and advice, made from reports alone.

The status page, the metrics, `wsqueue top` and `wsqueue doctor` have their warnings from here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from ..protocol.close import CloseCode
from .report import (
    LOST_REASONS,
    ClusterNode,
    EngineStatus,
    LinkStatus,
    LogStatus,
    NodeWarning,
    Report,
    WarningCode,
)
from .text import age_in_words, amount, join, number

MAX_LAG_SECONDS = 0.5
"""Delay of the event loop above which peers notice it."""

NEARLY_FULL = 0.9
"""Part of `max_connections` above which a node warns."""

MANY_REFUSALS = 5
"""Refused hellos in a minute that make a warning; fewer are mistakes, or wrong keys that `verify` tries."""

MAX_CLOCK_SECONDS = 5.0
"""Maximum difference between clocks: a larger one is no delay of the network."""

REMADE_SECONDS = 3600.0
"""Time for which a producer warns of a link to a classic consumer that came up again; it can't know more."""

MAX_REPLICA_LAG_SECONDS = 30.0
"""Time for which a replica may be far behind: one that comes back catches up."""

MAX_NAMED = 3
"""Maximum number of subscribers or nodes that a sentence names."""

OTHER_KEY = "it has another pre-shared key"
"""Problem of a node whose key is not ours."""

NO_STATUS = "it has no /status: it runs an older version, or is no node of wsqueue"
ONLY_CLASSIC = "it speaks only the classic protocol, which has no reports"
NO_REPORTS = (NO_STATUS, ONLY_CLASSIC)
"""Problems of nodes that work and can't be asked for a report."""

ADVICE: dict[WarningCode, str] = {
    "certificate_expires": "Replace it and reload the node, as `ansible/playbooks/rotate_tls.yml` does.",
    "clock_differs": "Let systemd-timesyncd or chrony set the clocks; certificates depend on them.",
    "draining": "",
    "hello_refused": "See `hello refused` in the journal for the reason.",
    "keys_differ": "This is normal while keys are rotated; otherwise put the same key file on all hosts.",
    "link_down": "See whether it runs and can be reached; topics of other consumers are not affected.",
    "link_remade": "Let the subscribers there subscribe anew, or replace the consumer by one that speaks v2.",
    "link_slow": "See the loop lag, the CPU time and the log of that consumer.",
    "log_clock": "It is corrected slowly, to drop none too early; a restart takes the system's time.",
    "log_failing": "Make room on the file system of the log, or see the kernel's messages about the disk.",
    "log_held": "End that process, which `fuser -v archive.sqlite` names in the directory of the log; above"
    " max_bytes of [retention], messages are refused.",
    "log_nearly_full": "Make room, or lower max_bytes of [retention].",
    "log_unavailable": "See whether the NATS servers run and reach each other, and whether this host reaches"
    " them; topics go to other consumers that do.",
    "logs_differ": "Give all consumers the same table [retention.jetstream], because topics go only to"
    " consumers with the same log.",
    "loop_lag": "The host is short of CPU time or memory, or its disk is stuck.",
    "many_connections": "Raise max_connections and LimitNOFILE, or add a node.",
    "messages_lost": "The counters lost_… say how; messages that are published with v2 are sent again.",
    "no_report": "Update that node, unless it is an original one: wsqueue cannot tell how it is.",
    "node_unreachable": "See whether it runs (`systemctl status`), and whether it can be reached from here.",
    "publishers_paused": "They resume by themselves when the consumer has caught up.",
    "replica_behind": "See its disk and its network: it can't take over from the server that leads.",
    "replica_missing": "Start the NATS server that is away; for one that is lost for good, add another"
    " under a new name.",
    "reload_refused": "Correct the file, and reload the node again.",
    "restart_needed": "Restart the node (`systemctl restart`), or put the old value back and reload it.",
    "strangers_dropped": "Let only your own networks reach the port; if these were clients that came back"
    " together, raise max_strangers.",
    "subscriber_slow": "They go on from the log, and miss messages that it drops before they are read;"
    " a classic subscriber is closed at max_buffered_bytes.",
    "version_differs": "This is normal during an update; otherwise run `ansible-playbook site.yml` again.",
}
"""Advice of each warning, unless the sentence has its own."""

ENGINE_FULL = "Make room on the NATS servers: see their disks, max_file_store, and the limits of the account."
"""Advice when a shared log refuses messages."""


class Recent(msgspec.Struct, frozen=True):
    """Hold recent events at a node that are not part of its report.

    Attributes:
        counters: Increments of the counters in the last minute.
        refused_peers: The last peer that was refused, by counter.
        certificates: Sentences about certificates that end soon.
    """

    counters: Counter[str]
    refused_peers: Mapping[str, str] = {}
    certificates: Sequence[str] = ()


def warning(code: WarningCode, text: str, advice: str = "") -> NodeWarning:
    """Return a warning, with the usual advice unless another is given."""
    return NodeWarning(code, text, advice or ADVICE[code])


def node_warnings(report: Report, recent: Recent) -> list[NodeWarning]:
    """Return the warnings of a node about itself."""
    found: list[NodeWarning] = []
    if report.not_ready == "draining":
        found.append(warning("draining", "The node is about to stop and accepts no more connections."))
    if report.reload_refused:
        text = (
            f"The configuration could not be read again, and the one before holds: {report.reload_refused}."
        )
        found.append(warning("reload_refused", text))
    found += [warning("restart_needed", f"{sentence}.") for sentence in report.restart_needed]
    for link in report.links:
        found += _link_warnings(link)
    if report.log is not None:
        found += _log_warnings(report.log)
    found += _refusal_warnings(recent)
    found += _subscriber_warnings(report, recent)
    found += _lost_warnings(report)
    found += _load_warnings(report)
    found += [warning("certificate_expires", f"{sentence}.") for sentence in recent.certificates]
    return found


def _link_warnings(link: LinkStatus) -> Iterator[NodeWarning]:
    waiting = "other consumers have its topics" if link.away else "nothing waits for it"
    if link.held_messages:
        held = number(link.held_messages, "message waits", "messages wait")
        waiting = f"{held} for it ({amount(link.held_bytes)})"
    if link.state == "down":
        seconds = number(round(link.seconds), "second")
        yield warning(
            "link_down", f"No link to consumer {link.address} for {seconds}: {link.reason}; {waiting}."
        )
    elif link.paused_publishers:
        yield warning(
            "link_slow", f"Consumer {link.address} takes messages slower than they come; {waiting}."
        )
    elif link.remade and link.seconds < REMADE_SECONDS:
        yield warning(
            "link_remade",
            f"The link to consumer {link.address}, which only speaks classic, came up again"
            f" {age_in_words(link.seconds)} ago. Subscribers of an original consumer may hear nothing more"
            " of this producer until they subscribe anew.",
        )
    if link.paused_publishers:
        paused = number(link.paused_publishers, "publisher is", "publishers are")
        yield warning("publishers_paused", f"{paused} paused because too much waits for {link.address}.")


def _log_warnings(log: LogStatus) -> Iterator[NodeWarning]:
    if log.engine is not None:
        yield from _engine_warnings(log.engine, log.failing)
    if log.failing and (log.engine is None or log.engine.available):
        advice = "" if log.engine is None else ENGINE_FULL
        yield warning("log_failing", f"Messages cannot be stored, and are refused: {log.failing}.", advice)
    if log.held_seconds:
        seconds = number(round(log.held_seconds), "second")
        yield warning(
            "log_held",
            f"The write-ahead log of the archive has {amount(log.wal_bytes)} and cannot be emptied,"
            f" because another process has been reading the archive for {seconds}.",
        )
    if abs(log.clock_seconds) > MAX_CLOCK_SECONDS:
        seconds = number(round(abs(log.clock_seconds)), "second")
        yield warning(
            "log_clock",
            f"New messages are dated {seconds} {'ahead of' if log.clock_seconds > 0 else 'behind'} the"
            " system's clock, which has been set since the start.",
        )
    room = log.limit_bytes - log.bytes
    if 0 <= log.free_bytes < room:
        yield warning("log_nearly_full", log_room("The file system of the log", log.free_bytes, room))


def _engine_warnings(engine: EngineStatus, failing: str) -> Iterator[NodeWarning]:
    if not engine.available:
        seconds = number(round(engine.unavailable_seconds), "second")
        yield warning(
            "log_unavailable",
            f"For {seconds}, nothing could be stored in the shared log from here: {failing or 'no answer'}.",
        )
        return
    if silent := engine.streams_without_leader:
        yield warning(
            "log_unavailable",
            f"{silent} of {number(engine.streams, 'stream')} of the shared log"
            f" {'does' if silent == 1 else 'do'} not answer, so that the topics there wait.",
        )
    if 0 < engine.replicas < engine.replicas_wanted:
        yield warning(
            "replica_missing",
            f"{engine.replicas} of {engine.replicas_wanted} servers that keep a part of the shared log can be"
            f" reached; at least {engine.replicas_wanted // 2 + 1} must be.",
        )
    if engine.lag_seconds > MAX_REPLICA_LAG_SECONDS:
        yield warning(
            "replica_behind",
            f"A server that keeps a part of the shared log has been far behind for"
            f" {age_in_words(engine.lag_seconds)}, now by {number(engine.lag_records, 'record')}.",
        )


def log_room(place: str, free: int, room: int) -> str:
    """Return the sentence about the free bytes in a place, and by how many bytes the log there may grow."""
    return f"{place} has {amount(free)} left, and the log may grow by {amount(room)}."


def _refusal_warnings(recent: Recent) -> Iterator[NodeWarning]:
    for counter, peer in recent.refused_peers.items():
        count = recent.counters[counter]
        if counter == "strangers_dropped" and count:
            one, several = "peer that had not proved itself was", "peers that had not proved themselves were"
            yield warning(
                "strangers_dropped",
                f"{number(count, one, several)} dropped in the last minute, because there were too many;"
                f" the last from {peer}.",
            )
            continue
        if count < MANY_REFUSALS:
            continue
        times = f"{number(count, 'time')} in the last minute, the last from {peer}"
        if counter == f"refused_{CloseCode.WRONG_ANSWER}":
            yield warning(
                "hello_refused",
                f"A peer with another pre-shared key was refused {times}.",
                "Compare the fingerprints of the keys there and here with `wsqueue doctor FILE`.",
            )
        elif counter == "tls_refused":
            yield warning(
                "hello_refused",
                f"A TLS handshake failed {times}.",
                "See `TLS refused` in the journal: one end speaks no TLS, or doesn't trust the other.",
            )
        else:
            yield warning("hello_refused", f"A hello failed {times}.")


def _subscriber_warnings(report: Report, recent: Recent) -> Iterator[NodeWarning]:
    if count := report.slow_subscribers:
        named = report.slow_peers[:MAX_NAMED]
        peers = ", ".join(
            f"{peer.peer} ({number(peer.behind_messages, 'message')} behind)"
            if peer.protocol == "v2"
            else peer.peer
            for peer in named
        )
        slower = f"{number(count, 'subscriber reads', 'subscribers read')} slower than"
        topics = "its topics grow" if count == 1 else "their topics grow"
        yield warning(
            "subscriber_slow", f"{slower} {topics}: {peers}{' and others' if count > len(named) else ''}."
        )
    if gaps := recent.counters["gaps"]:
        yield warning(
            "messages_lost",
            f"{number(gaps, 'time')} in the last minute, a subscriber was told that messages are gone.",
            "It was away or slow for longer than the logs reach: see [retention].",
        )


def _lost_warnings(report: Report) -> Iterator[NodeWarning]:
    if lost := sum(report.counters.get(f"lost_{reason}", 0) for reason in LOST_REASONS):
        messages = number(lost, "classic message was", "classic messages were")
        yield warning("messages_lost", f"{messages} lost since the start.")


def _load_warnings(report: Report) -> Iterator[NodeWarning]:
    if report.loop_lag_seconds > MAX_LAG_SECONDS:
        yield warning("loop_lag", f"The event loop was late by up to {report.loop_lag_seconds:.1f} seconds.")
    # Strangers and producers have limits of their own.
    count = sum(
        kind.count for kind in report.connections if kind.state != "hello" and kind.role != "producer"
    )
    if count > NEARLY_FULL * report.max_connections:
        yield warning(
            "many_connections", f"{count} of at most {report.max_connections} connections are taken."
        )


def cluster_warnings(nodes: Sequence[ClusterNode]) -> list[NodeWarning]:
    """Return the warnings of all nodes, and the differences between them."""
    found: list[NodeWarning] = []
    for node in nodes:
        if node.problem:
            found.append(unreachable_warning(str(node), node.problem))
        elif node.report is not None:
            found += [
                msgspec.structs.replace(warning, text=f"{node}: {warning.text}")
                for warning in node.report.warnings
            ]
    return (
        found
        + clock_warnings(nodes)
        + version_warnings(nodes)
        + key_warnings(nodes)
        + shared_log_warnings(nodes)
    )


def unreachable_warning(subject: str, problem: str) -> NodeWarning:
    """Return the warning about a node that doesn't answer.

    Args:
        subject: The node, as the first word of a sentence.
        problem: Why it doesn't answer.
    """
    if problem in NO_REPORTS:
        return warning("no_report", f"{subject} cannot be asked for a report: {problem}.")
    advice = ""
    if problem == OTHER_KEY:
        advice = "Compare it with what `wsqueue doctor FILE` says on that host, and put the same key on both."
    elif str(CloseCode.NOT_ALLOWED.value) in problem:
        advice = "Set `status = true` for that client in [[clients]] of the nodes, or ask with another key."
    elif "certificate" in problem:
        advice = "See [tls] of both ends: which CA they trust, and which host the certificate names."
    return warning("node_unreachable", f"{subject} does not answer: {problem}.", advice)


def clock_warnings(nodes: Sequence[ClusterNode]) -> list[NodeWarning]:
    """Return a warning for each node that answers and whose clock differs from ours."""
    return [
        warning(
            "clock_differs",
            f"The clock of {node} is {abs(seconds):.0f} seconds"
            f" {'ahead of' if seconds > 0 else 'behind'} ours.",
        )
        for node in nodes
        if node.answers and (seconds := node.clock_seconds) is not None and abs(seconds) > MAX_CLOCK_SECONDS
    ]


def version_warnings(nodes: Sequence[ClusterNode]) -> list[NodeWarning]:
    """Return a warning if the nodes that answer have different versions."""
    places: dict[str, list[str]] = {}
    for node, report in _answering(nodes):
        places.setdefault(report.version, []).append(node.address)
    if len(places) < 2:
        return []
    each = "; ".join(f"{version} at {_named(addresses)}" for version, addresses in sorted(places.items()))
    return [warning("version_differs", f"The nodes have different versions: {each}.")]


def key_warnings(nodes: Sequence[ClusterNode]) -> list[NodeWarning]:
    """Return a warning if the nodes that answer have different lists of pre-shared keys."""
    if len({tuple(report.psk_fingerprints) for _, report in _answering(nodes)}) < 2:
        return []
    return [warning("keys_differ", "The nodes have different lists of pre-shared keys.")]


def shared_log_warnings(nodes: Sequence[ClusterNode]) -> list[NodeWarning]:
    """Return a warning if some consumers that answer share a log, and others don't share it."""
    places: dict[str, list[str]] = {}
    for node, report in _answering(nodes):
        if report.log is not None:
            engine = report.log.engine
            name = f"the log {engine.id}" if engine is not None else f"a log of its own ({report.log.mode})"
            places.setdefault(name, []).append(node.address)
    if len(places) < 2 or not any(name.startswith("the log ") for name in places):
        return []
    each = "; ".join(f"{name} at {_named(addresses)}" for name, addresses in sorted(places.items()))
    return [warning("logs_differ", f"The consumers do not share one log: {each}.")]


def _named(addresses: Sequence[str]) -> str:
    others = len(addresses) - MAX_NAMED
    return join([*addresses[:MAX_NAMED], number(others, "other")] if others > 0 else addresses)


def _answering(nodes: Sequence[ClusterNode]) -> list[tuple[ClusterNode, Report]]:
    return [(node, node.report) for node in nodes if node.report is not None and not node.problem]
