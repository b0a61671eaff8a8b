"""Findings about configurations on this host, from its files, addresses and processes."""

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
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import psutil

from ...config import model
from ...config.addresses import Address, parse_address
from ...config.check import config_warnings
from ...config.keys import load_keys, load_psk
from ...config.load import load_any_config
from ...config.model import ClientConfig, Config, ConsumerConfig, NodeConfig
from ...errors import ConfigError, StorageError
from ...log.kept import kept_in
from ...net.certificates import TlsContexts
from ...net.handshake import shake_hands
from ...net.lookup import look_up
from ...net.tls import openssl_words
from ...nodes.bounds import friendly_bound
from ...nodes.listener import somebody_listens
from ...protocol.keys import PreSharedKey
from ...protocol.routing import router
from ...report.text import join, number
from .cluster import ANSWER_SECONDS, Say, ask
from .engine import engine_findings
from .findings import (
    Finding,
    expiry,
    files_finding,
    memory_finding,
    orphans_finding,
    renew,
    space_finding,
)

_OF_ANOTHER_TIME = {9, 10}
"""X509_V_ERR_CERT_NOT_YET_VALID and X509_V_ERR_CERT_HAS_EXPIRED of OpenSSL."""

_UNUSABLE = ("The key cannot be used", "The certificates cannot be used")


async def check_files(files: Sequence[str], clusters: list[ClientConfig], say: Say) -> AsyncIterator[Finding]:
    """Check configurations on this host, and the files and addresses in them.

    Args:
        files: Configuration files of any role.
        clusters: Gets the configurations of role demo that can be used to ask a cluster.
        say: Called with the name of each check when it begins.
    """
    bounds = []
    for file in files:
        say(f"checking {file}")
        try:
            checked = load_any_config(file)
        except ConfigError as error:
            yield Finding("problem", file, _sentence(error, file), "Correct it.")
            continue
        yield Finding("ok", file, f"It is a good configuration of role {model.role_of(type(checked))}.")
        for sentence in config_warnings(checked):
            yield Finding("warning", file, f"{sentence}.")
        own = [*_key_findings(file, checked), *_certificate_findings(file, checked, datetime.now(UTC))]
        for finding in own:
            yield finding
        # An expired certificate can still be used to ask the nodes.
        usable = not any(finding.text.startswith(_UNUSABLE) for finding in own)
        if isinstance(checked, ClientConfig) and usable:
            clusters.append(checked)
        async for finding in _peer_findings(file, checked, say):
            yield finding
        if isinstance(checked, NodeConfig):
            bounds.append(friendly_bound(checked))
            async for finding in _node_file_findings(file, checked, say):
                yield finding
    if bounds:
        yield memory_finding(bounds, psutil.virtual_memory().total)


def _key_findings(file: str, checked: Config) -> Iterator[Finding]:
    nodes: PreSharedKey | None = None
    names: list[str] = []
    try:
        if isinstance(checked, NodeConfig):
            keys = load_keys(checked)
            psk, nodes = keys.psk, keys.nodes if keys.nodes is not keys.psk else None
            names = [client.name for client in checked.clients]
        else:
            psk = load_psk(checked)
    except ConfigError as error:
        denied = os.strerror(errno.EACCES) in str(error)
        advice = "Run this as root, or as the user of the node." if denied else "Put a key there."
        yield Finding("problem", file, f"The key cannot be used: {_sentence(error, file)}", advice)
        return
    if psk is not None:
        yield Finding("ok", file, _key_text("pre-shared key", psk, checked.psk_file))
    if isinstance(checked, NodeConfig) and nodes is not None:
        yield Finding("ok", file, _key_text("pre-shared key of the nodes", nodes, checked.node_psk_file))
    if names:
        yield Finding("ok", file, f"{number(len(names), 'client')} with keys of their own: {join(names)}.")


def _key_text(name: str, psk: PreSharedKey, file: str | None) -> str:
    text = f"The {name} has the fingerprint {join(psk.fingerprints())}"
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
        state, words = expiry(end, now)
        yield Finding(state, file, f"The certificate in {where} {words}.", renew(state))
    tls = checked.tls
    if tls.certificate is not None and tls.key is not None and tls.ca is not None:
        problem = _distrust(tls.certificate, tls.key, tls.ca)
        if problem:
            text = f"A peer that trusts {tls.ca} does not trust {tls.certificate}: {problem}."
            yield Finding("problem", file, text, "Let that CA sign it, or give all nodes the new CA first.")


def _distrust(certificate: str, key: str, ca: str) -> str:
    """Return why a peer with only that CA would refuse the certificate, "" if it would accept it.

    The time and the host of the certificate are not checked here.
    """
    acceptor, initiator = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    acceptor.load_cert_chain(certificate, key)
    initiator.load_verify_locations(ca)
    initiator.check_hostname = False
    try:
        shake_hands(initiator, acceptor)
    except ssl.SSLCertVerificationError as error:
        return "" if error.verify_code in _OF_ANOTHER_TIME else error.verify_message
    except ssl.SSLError as error:
        return openssl_words(error)
    return ""


async def _peer_findings(file: str, checked: Config, say: Say) -> AsyncIterator[Finding]:
    """Check that the names of all peers have IP addresses."""
    unknown = []
    places = {address.with_path("") for address in checked.peers if not address.socket}
    hosts = sorted({place.host for place in places})
    for host in hosts:
        say(f"resolving {host}")
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                await look_up(host, 0)
        except TimeoutError:
            unknown.append(f"{host} (no answer in time)")
        except OSError as error:
            unknown.append(f"{host} ({error.strerror})")
    if unknown:
        yield Finding(
            "problem",
            file,
            f"No IP address is known for {join(unknown)}.",
            "Correct the name, or see /etc/hosts and the name server.",
        )
    elif hosts:
        yield Finding("ok", file, f"The addresses of {number(len(places), 'peer')} are known.")


async def _node_file_findings(file: str, checked: NodeConfig, say: Say) -> AsyncIterator[Finding]:
    role = model.role_of(type(checked))
    pid = _pid_of(Path(file), role)
    listeners = checked.listeners + checked.page_listeners
    for address in listeners:
        say(f"checking {address}")
        yield await _listener_finding(file, checked, address, pid)
    if pid is not None:
        allowed, whose = _open_files_of(pid), f"The node (process {pid})"
    else:
        allowed, whose = resource.getrlimit(resource.RLIMIT_NOFILE)[1], "A process of this session"
    if allowed is not None:
        yield files_finding(file, checked.limits, allowed, whose)
    if isinstance(checked, ConsumerConfig) and checked.retention.mode == "jetstream":
        async for finding in engine_findings(file, checked, _is_host_here, say):
            yield finding
    elif isinstance(checked, ConsumerConfig):
        for finding in _retention_findings(file, checked, pid):
            yield finding
        say(f"looking at the topics of {file}")
        if (orphans := await asyncio.to_thread(_orphans_finding, file, checked, pid)) is not None:
            yield orphans


async def _listener_finding(file: str, checked: NodeConfig, address: Address, pid: int | None) -> Finding:
    if not address.port and not address.socket:
        return Finding("ok", file, f"The system chooses the port of {address}.")
    try:
        free = await asyncio.to_thread(_bindable, address)
    except OSError as error:
        return _cannot_listen(file, address, error)
    if free:
        return _free_finding(file, address, pid)
    owner = listening_process(address)
    if owner is not None and owner == pid:
        return Finding("ok", file, f"The node (process {pid}) listens at {address}.")
    if owner is not None and (known := _command_of(owner)):
        text = f"Process {owner} ({known}) listens at {address}, and not a node with this file."
        return Finding("problem", file, text, "End that process, or take another port.")
    return await _ask_who_listens(file, checked, address)


def _free_finding(file: str, address: Address, pid: int | None) -> Finding:
    if pid is None:
        return Finding("ok", file, f"{address} is free for the node.")
    text = f"The node (process {pid}) does not listen at {address}."
    return Finding("warning", file, text, "Send it SIGHUP, so that it reads its configuration again.")


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
    """Ask the listener for a report, because its process can't be seen."""
    wanted = model.role_of(type(checked))
    everywhere = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - to replace these addresses, not to listen at them
    place = msgspec.structs.replace(address, host=everywhere.get(address.host, address.host))
    client = ClientConfig(
        producers=[],
        consumers=[str(place.with_path("/subscribe"))],
        tls=checked.tls,
        limits=checked.limits,
        http_proxy="none",
    )
    try:
        psk, tls = load_psk(checked), TlsContexts(client)
    except ConfigError:
        return Finding("warning", file, f"A program listens at {address}, and can't be asked without a key.")
    cluster = await ask([place], [], psk, client, tls)
    (node,) = cluster.nodes
    if node.report is not None and node.report.role == wanted:
        return Finding("ok", file, f"A {wanted} of version {node.report.version} answers at {address}.")
    answer = f"a {node.report.role} answers there" if node.report is not None else node.problem
    return Finding(
        "warning",
        file,
        f"Another program may listen at {address}: {answer}.",
        "Run this as root to see which process it is.",
    )


def _retention_findings(file: str, checked: ConsumerConfig, pid: int | None) -> Iterator[Finding]:
    retention = checked.retention
    if retention.mode == "jetstream":
        # The log is on other hosts.
        return
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


def _orphans_finding(file: str, checked: ConsumerConfig, pid: int | None) -> Finding | None:
    """Look for kept messages of topics that belong to another consumer, because the list has changed."""
    consumers = [parse_address(entry, "") for entry in checked.monitoring.consumers]
    ports = {address.port for address in checked.listeners}
    own = [place for place, at in enumerate(consumers) if at.port in ports and _is_of_this_host(at)]
    directory = checked.retention.directory or _state_directory(pid)
    if len(own) != 1 or directory is None:
        return None
    consumer_of = router(len(consumers))
    try:
        kept = kept_in(Path(directory), lambda topic: consumer_of(topic) != own[0])
    except StorageError as error:
        return Finding("problem", file, f"{error}.", "Run this as root, or as the user of the node.")
    return orphans_finding(file, kept, own[0] + 1, len(consumers)) if kept is not None else None


def _is_host_here(host: str) -> bool:
    return _is_of_this_host(Address(host=host))


def _is_of_this_host(address: Address) -> bool:
    """Return True if an interface of this host has the address."""
    with contextlib.suppress(OSError):
        return not address.socket and _bindable(msgspec.structs.replace(address, port=0))
    return False


def _pid_of(file: Path, role: str) -> int | None:
    """Return the process that runs a node with this file, None if none is found."""
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


def listening_process(address: Address) -> int | None:
    """Return the process that listens at an address, None if it can't be seen."""
    if address.socket:
        return None
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            if connection.status == psutil.CONN_LISTEN and tuple(connection.laddr)[1] == address.port:
                return connection.pid
    return None


def _open_files_of(pid: int) -> int | None:
    """Return the hard limit of the open files of a process, to which a node raises its soft limit."""
    with contextlib.suppress(OSError):
        text = Path(f"/proc/{pid}/limits").read_text()
        if match := re.search(r"^Max open files\s+\S+\s+(\S+)", text, re.MULTILINE):
            return -1 if match[1] == "unlimited" else int(match[1])
    return None


def _state_directory(pid: int | None) -> str | None:
    """Return the state directory of a process, or of this one without a process, that systemd has set."""
    if pid is not None:
        with contextlib.suppress(psutil.Error):
            return psutil.Process(pid).environ().get("STATE_DIRECTORY")
    return os.environ.get("STATE_DIRECTORY")


def _bindable(address: Address) -> bool:
    """Return True if a node could listen at an address, False if a process does so already.

    Raises:
        OSError: No process can listen there.
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
    if somebody_listens(str(path)):
        return False
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, f"{path.parent} cannot be written")
    return True


def _sentence(error: ConfigError, file: str) -> str:
    """Return the text of an error, without the file if it is the subject of the finding."""
    where = f"line {error.line}" if error.line is not None else ""
    if error.file != file:
        where = error.file
    text = ": ".join(part for part in (where, error.key, error.problem) if part)
    return text if text.endswith("?") else f"{text}."
