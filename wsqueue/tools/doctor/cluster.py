"""Findings about a deployed cluster, from the reports and certificates of its nodes."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from datetime import UTC, datetime

from ...config.addresses import Address
from ...config.model import ClientConfig
from ...monitoring.cluster import STALE_SECONDS, ClusterMonitor
from ...net.certificates import TlsContexts, certificate_end
from ...net.tls import openssl_words
from ...net.tunnel import reach
from ...protocol.keys import PreSharedKey
from ...report.report import Cluster
from ...report.text import number
from .findings import Finding, cluster_findings

Say = Callable[[str], None]

ANSWER_SECONDS = 3.0
"""Maximum time to resolve a name and connect, and then until a host answers."""


async def check_cluster(settings: ClientConfig, psk: PreSharedKey, say: Say) -> AsyncIterator[Finding]:
    """Check a deployed cluster.

    Args:
        settings: Configuration of a client of the cluster.
        psk: Pre-shared key of the client.
        say: Called with the name of each check when it begins.

    Raises:
        ConfigError: A certificate cannot be used.
    """
    consumers, producers = settings.subscribe_addresses, settings.produce_addresses
    say(f"asking {number(len(consumers), 'consumer')} and {number(len(producers), 'producer')}")
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
            # A finding already has the reason why the node does not answer.
            if not (isinstance(end, str) and str(place) in unreachable)
        }
    ours = [] if psk.name or psk.token else psk.fingerprints()
    for finding in cluster_findings(cluster, ours, certificates, datetime.now(UTC)):
        yield finding


async def ask(
    consumers: Sequence[Address],
    producers: Sequence[Address],
    psk: PreSharedKey,
    settings: ClientConfig,
    tls: TlsContexts,
) -> Cluster:
    """Ask all nodes for a report, and return the cluster."""
    monitor = ClusterMonitor(consumers, producers, psk, settings, tls)
    monitor.start()
    try:
        await monitor.settled(max(settings.limits.hello_seconds, STALE_SECONDS) + 0.5)
        return monitor.cluster()
    finally:
        await monitor.stop()


async def _shown_certificate(address: Address, settings: ClientConfig) -> datetime | str:
    """Return the end of the certificate that a node shows, or the reason why it is not known."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            plain = await reach(address, settings)
        return await asyncio.to_thread(_handshake, plain, address.host, settings)
    except TimeoutError:
        return "no answer in time"
    except ssl.SSLError as error:
        return openssl_words(error)
    except OSError as error:
        return error.strerror or str(error)


def _handshake(plain: socket.socket, host: str, settings: ClientConfig) -> datetime:
    # No verification, because only a date is read, and untrusted certificates have one too. The connections
    # of the monitor verify.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if settings.tls.certificate is not None:
        context.load_cert_chain(settings.tls.certificate, settings.tls.key)
    plain.settimeout(ANSWER_SECONDS)
    with plain, context.wrap_socket(plain, server_hostname=host) as connection:
        certificate = connection.getpeercert(binary_form=True)
    assert certificate is not None
    return certificate_end(certificate)
