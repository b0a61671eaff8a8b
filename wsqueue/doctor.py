"""`wsqueue doctor`: what is wrong with the configurations on this host, or with a deployed cluster.

Each finding is a sentence, and what to do about it. What looks at values only is apart from what asks
files, sockets and nodes for them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import grp
import os
import pwd
import re
import resource
import socket
import ssl
import stat
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Literal

import msgspec
import psutil

from . import config
from .addresses import Address
from .config import Config, ConsumerConfig, DemoConfig, Limits, NodeConfig, ProducerConfig
from .errors import ConfigError
from .hello import PreSharedKey
from .monitor import OTHER_KEY, STALE_SECONDS, ClusterMonitor
from .service import SPARE_CONNECTIONS, SPARE_FILES
from .status import MAX_CLOCK_SECONDS, Cluster, ClusterNode, WarningCode, amount
from .tls import EXPIRY_WARNING, TlsContexts, certificate_end
from .version import __version__

State = Literal["ok", "warning", "problem"]
Say = Callable[[str], None]

URGENT = timedelta(days=3)
"""How long before its end a certificate is a problem: a weekend and a day."""

ANSWER_SECONDS = 3.0
"""How long a name may take to resolve, and a host to answer."""

MEMORY_SHARE = 0.8
"""Part of the host's memory that nodes may take: it has other things to do."""

MIB = 1024 * 1024

PROBLEMS: frozenset[WarningCode] = frozenset({"link_down", "log_failing", "node_unreachable"})
"""Warnings of a node that say that something does not work."""

_OF_ANOTHER_TIME = {9, 10}
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL."""

_UNUSABLE = ("The key cannot be used", "The certificates cannot be used")

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


# What values say -----------------------------------------------------------------------------------------


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
    answering = [node for node in cluster.nodes if node.report is not None and not node.problem]
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
        f"It answers: version {report.version}, up for {_duration(report.uptime_seconds)},"
        f" {_count(count, 'connection')}.",
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
            state = _expiry(datetime.fromtimestamp(report.certificate_ends, UTC), now)[0]
        yield Finding(state, subject, warning.text, warning.advice)
    if report.certificate_ends is not None and "certificate_expires" not in codes:
        state, words = _expiry(datetime.fromtimestamp(report.certificate_ends, UTC), now)
        yield Finding(state, subject, f"The first of its certificates {words}.", _renew(state))


def _unreachable(subject: str, problem: str, fingerprints: Sequence[str]) -> Finding:
    problem = problem or "no answer in time"
    if problem == OTHER_KEY:
        return Finding(
            "problem",
            subject,
            f"The pre-shared key differs there: ours has the fingerprint {_join(fingerprints)}.",
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
    state, words = _expiry(end, now)
    return Finding(state, subject, f"The certificate that it shows {words}.", _renew(state))


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
            text = f"{where} has {_count(len(theirs), 'consumer')}, and this configuration {len(ours)}"
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
                f"{_join(same)} lead to the same node.",
                "List each node once: a consumer that is there twice gets the topics of two.",
            )


def _versions_finding(nodes: Sequence[ClusterNode]) -> Finding:
    versions: dict[str, list[str]] = {}
    for node in nodes:
        if node.report is not None:
            versions.setdefault(node.report.version, []).append(node.address)
    if len(versions) > 1:
        each = "; ".join(f"{version} at {_join(places)}" for version, places in sorted(versions.items()))
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
        f"{node.role} {node.address} ({_join(node.report.psk_fingerprints)})"
        for node in nodes
        if node.report is not None and list(node.report.psk_fingerprints) != list(fingerprints)
    ]
    ours = _join(fingerprints)
    if others:
        return Finding(
            "warning",
            "pre-shared keys",
            f"The lists of keys differ: ours has the fingerprints {ours}, not so {_join(others)}.",
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
            f"Clocks differ from ours: {_join(wrong)}.",
            "Let systemd-timesyncd or chrony set the clocks, which certificates need.",
        )
    # Half a second is what a report may be old.
    most = max((abs(seconds) for _, seconds in clocks), default=0.0)
    about = "less than a second" if most < 1 else f"at most {most:.0f} seconds"
    return Finding("ok", "clocks", f"All differ from ours by {about}.")


def _expiry(end: datetime, now: datetime) -> tuple[State, str]:
    """Return how bad the end of a certificate is, and say when it is."""
    days = (end.date() - now.date()).days
    on = f"on {end:%Y-%m-%d}"
    if end <= now:
        return "problem", f"has expired {on}"
    if end > now + EXPIRY_WARNING:
        return "ok", f"is good until {end:%Y-%m-%d}"
    when = {0: "today", 1: "tomorrow"}.get(days, f"in {days} days")
    return "problem" if end <= now + URGENT else "warning", f"expires {when}, {on}"


def _renew(state: State) -> str:
    if state == "ok":
        return ""
    return "Put a new one there and reload the node, as `ansible/playbooks/rotate-tls.yml` does."


def memory_bound(checked: NodeConfig) -> int:
    """Return what a node takes at most while its peers mean well, as docs/configuration.md reckons."""
    limits = checked.limits
    read = limits.max_message_bytes + config.READ_MARGIN_BYTES
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
    wanted = limits.max_connections + SPARE_CONNECTIONS + SPARE_FILES
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


# What files and nodes say --------------------------------------------------------------------------------


async def check(files: Sequence[str], say: Say) -> AsyncIterator[Finding]:
    """Check configurations on this host, and the cluster of each that is of role demo.

    Args:
        files: Of any role.
        say: Told what is being checked.
    """
    clusters: list[DemoConfig] = []
    async for finding in check_files(files, clusters, say):
        yield finding
    for settings in clusters:
        async for finding in check_cluster(settings, config.load_psk(settings), say):
            yield finding


# What this host says -------------------------------------------------------------------------------------


async def check_files(files: Sequence[str], clusters: list[DemoConfig], say: Say) -> AsyncIterator[Finding]:
    """Check configurations on this host, and what they point to.

    Args:
        files: Of any role.
        clusters: Gets those of role demo with which a cluster can be asked.
        say: Told what is being checked.
    """
    bounds = []
    for file in files:
        say(f"checking {file}")
        try:
            checked = config.load_any(file)
        except ConfigError as error:
            yield Finding("problem", file, _sentence(error, file), "Correct it.")
            continue
        yield Finding("ok", file, f"It is a good configuration of role {config.role_of(type(checked))}.")
        for sentence in config.warnings(checked):
            yield Finding("warning", file, f"{sentence}.")
        own = [*_key_findings(file, checked), *_certificate_findings(file, checked, datetime.now(UTC))]
        for finding in own:
            yield finding
        # With a certificate that has expired, the nodes say what they think of it.
        usable = not any(finding.text.startswith(_UNUSABLE) for finding in own)
        if isinstance(checked, DemoConfig) and usable:
            clusters.append(checked)
        async for finding in _peer_findings(file, checked, say):
            yield finding
        if isinstance(checked, NodeConfig):
            bounds.append(memory_bound(checked))
            async for finding in _node_file_findings(file, checked, say):
                yield finding
    if bounds:
        yield memory_finding(bounds, psutil.virtual_memory().total)


def _key_findings(file: str, checked: Config) -> Iterator[Finding]:
    try:
        keys = config.load_keys(checked)
    except ConfigError as error:
        denied = os.strerror(errno.EACCES) in str(error)
        advice = "Run this as root, or as the user of the node." if denied else "Put a key there."
        yield Finding("problem", file, f"The key cannot be used: {_sentence(error, file)}", advice)
        return
    what = "pre-shared key"
    yield Finding("ok", file, _key_text(what, keys.clients, checked.psk_file))
    if isinstance(checked, NodeConfig) and keys.nodes is not keys.clients:
        yield Finding("ok", file, _key_text(f"{what} of the nodes", keys.nodes, checked.node_psk_file))


def _key_text(what: str, psk: PreSharedKey, file: str | None) -> str:
    text = f"The {what} has the fingerprint {_join(psk.fingerprints())}"
    if file is None:
        return f"{text}; it comes from a credential or the environment."
    status = Path(file).stat()
    with contextlib.suppress(KeyError):
        readers = pwd.getpwuid(status.st_uid).pw_name
        if status.st_mode & stat.S_IRGRP:
            readers += f" and group {grp.getgrgid(status.st_gid).gr_name}"
        return f"{text}; {file} can be read by {readers}."
    return f"{text}."


def _certificate_findings(file: str, checked: Config, now: datetime) -> Iterator[Finding]:
    try:
        contexts = TlsContexts(checked)
    except ConfigError as error:
        text = f"The certificates cannot be used: {_sentence(error, file)}"
        yield Finding("problem", file, text, "See [tls] in docs/configuration.md.")
        return
    for where, end in contexts.ends_of_files.items():
        state, words = _expiry(end, now)
        yield Finding(state, file, f"The certificate in {where} {words}.", _renew(state))
    tls = checked.tls
    if tls.certificate is not None and tls.key is not None and tls.ca is not None:
        problem = _distrust(tls.certificate, tls.key, tls.ca)
        if problem:
            text = f"Whoever trusts {tls.ca} does not trust {tls.certificate}: {problem}."
            yield Finding("problem", file, text, "Let that CA sign it, or give all nodes the new CA first.")


def _distrust(certificate: str, key: str, ca: str) -> str:
    """Return why an end with only that CA would refuse the certificate, "" when it would not.

    That a certificate is of another time or host is no matter here.
    """
    acceptor, initiator = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    acceptor.load_cert_chain(certificate, key)
    initiator.load_verify_locations(ca)
    initiator.check_hostname = False
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [initiator.wrap_bio(back, there), acceptor.wrap_bio(there, back, server_side=True)]
    # Hello, its answer with the certificate, and the verdict; one more for older versions.
    for end in ends * 3:
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            continue
        except ssl.SSLCertVerificationError as error:
            return "" if error.verify_code in _OF_ANOTHER_TIME else error.verify_message
        except ssl.SSLError as error:
            return (error.reason or str(error)).lower().replace("_", " ")
    return ""


async def _peer_findings(file: str, checked: Config, say: Say) -> AsyncIterator[Finding]:
    """Check that all hosts to which something connects have an IP address."""
    loop = asyncio.get_running_loop()
    unknown = []
    places = {address.with_path("") for address in checked.peers if not address.socket}
    hosts = sorted({place.host for place in places})
    for host in hosts:
        say(f"resolving {host}")
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await loop.getaddrinfo(host, None)
        except TimeoutError:
            unknown.append(f"{host} (no answer in time)")
        except OSError as error:
            unknown.append(f"{host} ({error.strerror})")
    if unknown:
        yield Finding(
            "problem",
            file,
            f"No IP address is known for {_join(unknown)}.",
            "Correct the name, or see /etc/hosts and the name server.",
        )
    elif hosts:
        yield Finding("ok", file, f"The addresses of {_count(len(places), 'peer')} are known.")


async def _node_file_findings(file: str, checked: NodeConfig, say: Say) -> AsyncIterator[Finding]:
    role = config.role_of(type(checked))
    pid = _pid_of(Path(file), role)
    listeners = checked.listeners + checked.page_listeners
    for address in listeners:
        say(f"checking {address}")
        yield await _listener_finding(file, checked, address, pid)
    if pid is not None:
        allowed, whose = _open_files_of(pid), f"The node (process {pid})"
    else:
        allowed, whose = resource.getrlimit(resource.RLIMIT_NOFILE)[1], "What runs in this session"
    if allowed is not None:
        yield files_finding(file, checked.limits, allowed, whose)
    if isinstance(checked, ConsumerConfig):
        for finding in _retention_findings(file, checked, pid):
            yield finding


async def _listener_finding(file: str, checked: NodeConfig, address: Address, pid: int | None) -> Finding:
    if not address.port and not address.socket:
        return Finding("ok", file, f"For {address} the system chooses the port.")
    try:
        free = await asyncio.to_thread(_bindable, address)
    except OSError as error:
        return _cannot_listen(file, address, error)
    if free:
        return _nobody_listens(file, address, pid)
    owner = _owner(address)
    if owner is not None and owner == pid:
        return Finding("ok", file, f"The node (process {pid}) listens at {address}.")
    if owner is not None and (known := _command_of(owner)):
        text = f"Process {owner} ({known}) listens at {address}, and not a node with this file."
        return Finding("problem", file, text, "End that process, or take another port.")
    return await _ask_who_listens(file, checked, address)


def _nobody_listens(file: str, address: Address, pid: int | None) -> Finding:
    if pid is None:
        return Finding("ok", file, f"Nobody listens at {address} yet, and the node can.")
    text = f"The node runs (process {pid}), and does not listen at {address}."
    return Finding("warning", file, text, "Let it read its configuration again, with SIGHUP.")


def _cannot_listen(file: str, address: Address, error: OSError) -> Finding:
    if isinstance(error, socket.gaierror):
        return Finding("problem", file, f"No IP address is known for {address.host}.", "Correct the name.")
    advice = ""
    if error.errno == errno.EADDRNOTAVAIL:
        advice = "No interface of this host has that address: see `ip address`."
    elif error.errno == errno.EACCES:
        advice = "Ports below 1024 need the capability CAP_NET_BIND_SERVICE; run this as root to know more."
    return Finding("problem", file, f"Nothing can listen at {address}: {error.strerror}.", advice)


async def _ask_who_listens(file: str, checked: NodeConfig, address: Address) -> Finding:
    """Find out whether what listens is a node of that role, where the process cannot be seen."""
    wanted = config.role_of(type(checked))
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - what listeners say, and no listener
    place = msgspec.structs.replace(address, host=everywhere.get(address.host, address.host))
    client = DemoConfig(
        producers=[], consumers=[str(place.with_path("/subscribe"))], tls=checked.tls, limits=checked.limits
    )
    try:
        psk, tls = config.load_psk(checked), TlsContexts(client)
    except ConfigError:
        return Finding("warning", file, f"Something listens at {address}, and cannot be asked what it is.")
    cluster = await ask([place], [], psk, client, tls)
    (node,) = cluster.nodes
    if node.report is not None and node.report.role == wanted:
        return Finding("ok", file, f"A {wanted} of version {node.report.version} answers at {address}.")
    what = f"a {node.report.role} answers there" if node.report is not None else node.problem
    return Finding(
        "warning",
        file,
        f"It is not sure that this node listens at {address}: {what}.",
        "Run this as root to see whose process it is.",
    )


def _retention_findings(file: str, checked: ConsumerConfig, pid: int | None) -> Iterator[Finding]:
    retention = checked.retention
    text = retention.directory or _state_directory(pid)
    if text is None:
        if retention.mode == "sqlite":
            advice = "Set directory of [retention]; systemd's StateDirectory is not known here."
            yield Finding("warning", file, "No directory is configured for the log.", advice)
        return
    directory = Path(text)
    existing = next(path for path in (directory, *directory.absolute().parents) if os.path.exists(path))  # noqa: PTH110
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        yield Finding(
            "problem",
            file,
            f"The log cannot be kept in {directory}: {existing} cannot be written.",
            f"Give {existing} to the user of the node; this looked as user {os.geteuid()}.",
        )
        return
    system = os.statvfs(existing)
    files = (path for path in directory.glob("*") if path.is_file())
    try:
        taken = sum(path.stat().st_size for path in files)
    except OSError:
        taken = 0
    room = max(0, retention.max_bytes - taken)
    yield space_finding(file, directory, room, system.f_bavail * system.f_frsize)


def _pid_of(file: Path, role: str) -> int | None:
    """Return the process that runs a node with a file, None where none can be seen."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            words = process.cmdline()
            if role not in words[1:] or not any("wsqueue" in word for word in words):
                continue
            named = words[words.index(role) + 1]
            if Path(process.cwd(), named).samefile(file):
                return process.pid
    return None


def _command_of(pid: int) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(psutil.Process(pid).cmdline())[:100]
    return ""


def _owner(address: Address) -> int | None:
    """Return the process that listens at an address, None where that cannot be seen."""
    if address.socket:
        return None
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and tuple(connection.laddr)[1] == address.port:
                return connection.pid
    return None


def _open_files_of(pid: int) -> int | None:
    """Return how many files a process may open: the hard limit, to which a node raises its own."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/limits").read_text()
        if match := re.search(r"^Max open files\s+\S+\s+(\S+)", text, re.MULTILINE):
            return -1 if match[1] == "unlimited" else int(match[1])
    return None


def _state_directory(pid: int | None) -> str | None:
    """Return the directory that systemd gave to a process."""
    if pid is not None:
        with contextlib.suppress(psutil.Error):
            return psutil.Process(pid).environ().get("STATE_DIRECTORY")
    return os.environ.get("STATE_DIRECTORY")


def _bindable(address: Address) -> bool:
    """Tell whether a node could listen at an address; False when somebody does.

    Raises:
        OSError: Nobody could.
    """
    if address.socket:
        return _socket_bindable(Path(address.socket))
    for family, kind, protocol, _, place in socket.getaddrinfo(
        address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    ):
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind(place)
            except OSError as error:
                if error.errno == errno.EADDRINUSE:
                    return False
                raise
    return True


def _socket_bindable(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(ANSWER_SECONDS)
        if probe.connect_ex(str(path)) not in (errno.ECONNREFUSED, errno.ENOENT):
            return False
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, f"{path.parent} cannot be written")
    return True


def _sentence(error: ConfigError, file: str) -> str:
    """Return an error without the file, where that is the subject anyway."""
    where = f"line {error.line}" if error.line is not None else ""
    if error.file != file:
        where = error.file
    text = ": ".join(part for part in (where, error.key, error.problem) if part)
    return text if text.endswith("?") else f"{text}."


# What the cluster says -----------------------------------------------------------------------------------


async def check_cluster(settings: DemoConfig, psk: PreSharedKey, say: Say) -> AsyncIterator[Finding]:
    """Check a deployed cluster.

    Args:
        settings: Of a client of it.
        psk: The key of clients.
        say: Told what is being checked.

    Raises:
        ConfigError: A certificate cannot be used.
    """
    consumers, producers = settings.subscribe_addresses, settings.produce_addresses
    say(f"asking {_count(len(consumers), 'consumer')} and {_count(len(producers), 'producer')}")
    cluster = await ask(consumers, producers, psk, settings, TlsContexts(settings))
    places = [address.with_path("") for address in consumers + producers if address.tls]
    certificates: dict[str, datetime | str] = {}
    if places:
        say(f"looking at the certificates of {len(places)} nodes")
        ends = await asyncio.gather(*(_shown_certificate(place, settings) for place in places))
        unreachable = {node.address for node in cluster.nodes if node.report is None}
        certificates = {
            str(place): end
            for place, end in zip(places, ends, strict=True)
            # Why the node does not answer is said already.
            if not (isinstance(end, str) and str(place) in unreachable)
        }
    for finding in cluster_findings(cluster, psk.fingerprints(), certificates, datetime.now(UTC)):
        yield finding


async def ask(
    consumers: Sequence[Address],
    producers: Sequence[Address],
    psk: PreSharedKey,
    settings: DemoConfig,
    tls: TlsContexts,
) -> Cluster:
    """Return how all nodes are, asked once."""
    monitor = ClusterMonitor(consumers, producers, psk, settings, tls)
    monitor.start()
    try:
        await monitor.settled(max(settings.limits.hello_seconds, STALE_SECONDS) + 0.5)
        return monitor.cluster()
    finally:
        await monitor.stop()


async def _shown_certificate(address: Address, settings: DemoConfig) -> datetime | str:
    """Return when the certificate ends that a node shows, or why that is not known."""
    try:
        return await asyncio.to_thread(_handshake, address, settings)
    except ssl.SSLError as error:
        return (error.reason or str(error)).lower().replace("_", " ")
    except OSError as error:
        return error.strerror or str(error)


def _handshake(address: Address, settings: DemoConfig) -> datetime:
    # It only reads a date, and one of a certificate that is not trusted, too: the reports come over
    # connections that verify.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if settings.tls.certificate is not None:
        context.load_cert_chain(settings.tls.certificate, settings.tls.key)
    with (
        socket.create_connection((address.host, address.port), ANSWER_SECONDS) as plain,
        context.wrap_socket(plain, server_hostname=address.host) as connection,
    ):
        certificate = connection.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate_end(certificate)


def _count(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _join(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _duration(seconds: float) -> str:
    """Return a time in the largest unit of which it has two."""
    for unit, size in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds // size:.0f} {unit}"
    return f"{seconds:.0f} seconds"
