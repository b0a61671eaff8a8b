"""The keys of configuration files, as frozen values."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from ..protocol.access import Name, Rights, TopicPattern
from ..protocol.keys import Order
from .addresses import Address, parse_address, parse_server

READ_MARGIN_BYTES = 1024 * 1024
"""Above the sum of one read (256 KiB) and a paused write buffer (256 KiB), with frame headers and masks."""

MAX_TOPIC_TABLES = 20
"""Maximum number of tables of retention by topic: the name of each new topic is compared with them, and at a
reload with other limits those of all topics, in half a second for 100,000."""

MAX_CLIENTS = 200
"""Maximum number of clients with a name: a classic hello tries all their keys, which takes 1.2 ms."""

LogLevel = Literal["debug", "info", "warning", "error"]
Replicas = Literal[1, 3, 5]
RetentionMode = Literal["memory", "sqlite", "jetstream"]
PageAudience = Literal["none", "loopback", "all"]
ByteCount = Annotated[int, msgspec.Meta(ge=1, le=2**40)]
MessageCount = Annotated[int, msgspec.Meta(ge=1, le=2**40)]
Age = Annotated[float, msgspec.Meta(gt=0, le=10 * 366 * 86_400)]
ConnectionLimit = Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
TopicBytes = Annotated[int, msgspec.Meta(ge=1, le=2600)]
"""Percent-encoded, 2,600 bytes become 7,800, which fit the 8,192 of a request line."""


ChannelBinding = Literal["required", "optional"]
ProxyPath = Annotated[str, msgspec.Meta(pattern="^(/[A-Za-z0-9._~-]+)*$", max_length=200)]

StreamName = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9_-]{1,32}$")]
"""It is a part of the names of streams and of subjects."""

MIN_SHARED_AGE_SECONDS = 3600.0
"""Least age of a log that consumers share: a consumer that was away for less has missed nothing for good."""


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bound everything that a peer could make grow; docs/configuration.md gives the reasons."""

    max_message_bytes: ByteCount = 1024 * 1024
    max_topic_bytes: TopicBytes = 256
    max_connections: ConnectionLimit = 16_000
    max_strangers: ConnectionLimit = 2_000
    max_buffered_bytes: ByteCount = 4 * 1024 * 1024
    max_total_buffered_bytes: ByteCount = 256 * 1024 * 1024
    max_held_bytes: ByteCount = 64 * 1024 * 1024
    max_index_bytes: ByteCount = 96 * 1024 * 1024
    hello_seconds: Seconds = 3.0
    close_seconds: Seconds = 3.0
    ping_interval_seconds: Seconds = 20.0
    ping_timeout_seconds: Seconds = 20.0
    reconnect_max_seconds: Seconds = 5.0
    drain_seconds: Seconds = 10.0

    def __post_init__(self) -> None:
        """Refuse a write buffer that the messages of one read would overflow.

        Raises:
            ValueError: msgspec turns it into a ValidationError.
        """
        if self.max_buffered_bytes < self.max_message_bytes + READ_MARGIN_BYTES:
            least = f"max_message_bytes + {READ_MARGIN_BYTES}"
            raise ValueError(f"expected max_buffered_bytes to be at least {least}")
        if self.max_total_buffered_bytes < self.max_buffered_bytes:
            raise ValueError("expected max_total_buffered_bytes to be at least max_buffered_bytes")


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Name the PEM files with which this end proves its identity and checks its peers, at wss:// addresses.

    Attributes:
        certificate: This end's certificate, followed by those between it and the CA.
        key: The certificate's private key.
        ca: Certificates to trust; without it, those of the system.
        client_certificates: Whether peers that connect must have a certificate of that CA too.
    """

    certificate: str | None = None
    key: str | None = None
    ca: str | None = None
    client_certificates: bool = False

    def __post_init__(self) -> None:
        """Refuse an incomplete table.

        Raises:
            ValueError: msgspec turns it into a ValidationError.
        """
        if (self.certificate is None) != (self.key is None):
            raise ValueError("expected both certificate and key, or neither")
        if self.client_certificates and self.ca is None:
            raise ValueError("client_certificates needs ca: expected the CA that signs them")


class JetStream(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Name the NATS servers that keep the log of all consumers, and how to speak to them.

    Attributes:
        servers: Addresses of the servers, as `nats://host:port`, with TLS `tls://host:port`.
        name: Begin of the names of the streams; clusters that share servers have different names.
        streams: Number of streams among which the topics are divided; fixed once they are made.
        replicas: Number of servers that have each message; more than half of them must be up.
        user: Name of this consumer's user.
        password_file: File with the user's password.
        credentials_file: File with a JWT and its key, as `nsc` writes it, instead of a user and a password.
        certificate: Certificate of this consumer, for servers that ask for one.
        key: The certificate's private key.
        ca: Certificates to trust; without it, those of the system.
    """

    servers: list[str] = []
    name: StreamName = "wsqueue"
    streams: Annotated[int, msgspec.Meta(ge=1, le=64)] = 8
    replicas: Replicas = 3
    user: str | None = None
    password_file: str | None = None
    credentials_file: str | None = None
    certificate: str | None = None
    key: str | None = None
    ca: str | None = None

    def __post_init__(self) -> None:
        """Refuse incomplete pairs.

        Raises:
            ValueError: msgspec turns it into a ValidationError.
        """
        if (self.user is None) != (self.password_file is None):
            raise ValueError("expected both user and password_file, or neither")
        if self.user is not None and self.credentials_file is not None:
            raise ValueError("expected either user and password_file or credentials_file")
        if (self.certificate is None) != (self.key is None):
            raise ValueError("expected both certificate and key, or neither")

    @property
    def addresses(self) -> list[Address]:
        """Return the parsed `servers`."""
        return [parse_server(text) for text in self.servers]

    @property
    def tls(self) -> Tls:
        """Return the files of TLS, as other connections have them."""
        return Tls(certificate=self.certificate, key=self.key, ca=self.ca)


class TopicRetention(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bound the messages that are kept of some topics in another way than those of all others.

    Attributes:
        match: The topic; `state/*` stands for all that begin with `state/`.
        max_bytes_per_topic: Maximum size of such a topic, None for that of all topics.
        max_messages_per_topic: Maximum number of messages of such a topic, None for that of all topics.
        max_age_seconds: Age after which a message is dropped, None for that of all topics.
    """

    match: TopicPattern
    max_bytes_per_topic: ByteCount | None = None
    max_messages_per_topic: MessageCount | None = None
    max_age_seconds: Age | None = None

    def __post_init__(self) -> None:
        """Refuse a table that changes nothing.

        Raises:
            ValueError: msgspec turns it into a ValidationError.
        """
        if self.max_bytes_per_topic is self.max_messages_per_topic is self.max_age_seconds is None:
            raise ValueError(
                "expected max_bytes_per_topic, max_messages_per_topic or max_age_seconds beside match"
            )


class Retention(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Bound the messages that are kept of each topic, for subscribers that come (back) later.

    Attributes:
        mode: `memory` loses the messages when the consumer crashes, `sqlite` doesn't. With `jetstream` all
            consumers share one log, which is on other hosts.
        jetstream: The servers of that log.
        directory: Where the log is, or with `memory` the snapshot that survives a clean restart; without it,
            the state directory that systemd gives.
        max_bytes: Maximum size of all topics.
        max_bytes_per_topic: Maximum size of a topic.
        max_messages_per_topic: Maximum number of messages of a topic.
        max_age_seconds: Age after which a message is dropped.
        topics: Other limits of some topics; the first table that matches holds.
    """

    mode: RetentionMode = "memory"
    jetstream: JetStream | None = None
    directory: str | None = None
    max_bytes: ByteCount = 64 * 1024 * 1024
    max_bytes_per_topic: ByteCount = 16 * 1024 * 1024
    max_messages_per_topic: MessageCount = 1_000_000
    max_age_seconds: Age = 86_400.0
    topics: Annotated[tuple[TopicRetention, ...], msgspec.Meta(max_length=MAX_TOPIC_TABLES)] = ()

    def __post_init__(self) -> None:
        """Refuse a log without servers, and one whose messages go too soon.

        Raises:
            ValueError: msgspec turns it into a ValidationError.
        """
        if self.mode != "jetstream":
            return
        if self.jetstream is None or not self.jetstream.servers:
            expected = "expected the table [retention.jetstream] with the key servers"
            raise ValueError(f"the mode jetstream needs servers: {expected}")
        if self.max_age_seconds < MIN_SHARED_AGE_SECONDS:
            least = f"{MIN_SHARED_AGE_SECONDS:g} with the mode jetstream"
            raise ValueError(f"expected max_age_seconds to be at least {least}")


class Monitoring(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Say who may see the pages of a node, and where the other nodes are.

    Attributes:
        listen: Addresses that serve only the pages, to all peers that reach them.
        pages: Peers that may see the pages at the node's own addresses: none, those on this host, or all.
        consumers: All consumers of the cluster, in the order that all nodes share; a producer knows those of
            its links.
        producers: All producers of the cluster.
        top_topics: Number of topics that a report names.
    """

    listen: list[str] = []
    pages: PageAudience = "loopback"
    consumers: list[str] = []
    producers: list[str] = []
    top_topics: Annotated[int, msgspec.Meta(ge=0, le=100)] = 10


class Proxy(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Say where connections come through a proxy, which may end TLS and change paths.

    Attributes:
        listen: Addresses at which only proxies connect.
        trusted: IP addresses and networks of the proxies, whose `X-Forwarded-For` is believed there; a unix
            socket always is.
        path: Path at the proxy under which the node is, such as `/queue`; the proxy may leave it in or not.
    """

    listen: list[str] = []
    trusted: tuple[str, ...] = ("127.0.0.1", "::1")
    path: ProxyPath = ""

    def inner(self, path: str) -> str:
        """Return the path of a request without the part that the proxy has before the node's."""
        inner = path.removeprefix(self.path)
        return inner if inner.startswith("/") else path


class NamedClient(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Hold the rights and limits of the clients with a key of their own.

    Attributes:
        name: Name of the key, which a client tells in the hello.
        key_file: File with the key, or several, one a line; without it, the systemd credential
            `clients.<name>`.
        publish: Topics that they may publish to; `orders/*` stands for all that begin with `orders/`.
        subscribe: Topics that they may subscribe to.
        groups: Worker groups that they may join, and names of readers that they may have, on those topics;
            `billing-*` stands for all that begin with `billing-`.
        status: Whether they may read reports.
        operator: Whether they may list and purge topics, end groups, and disconnect clients.
        not_before: Unix time since which tokens of the key are taken; those made before are revoked.
        max_connections: Maximum number of their connections to this node.
        max_topics: Maximum number of topics that their connections publish or subscribe to at a time.
        bytes_per_second: Bytes that they may publish in a second; above it, the node reads no more from them.
    """

    name: Name
    key_file: str | None = None
    publish: tuple[TopicPattern, ...] = ()
    subscribe: tuple[TopicPattern, ...] = ()
    groups: tuple[TopicPattern, ...] = ()
    status: bool = False
    operator: bool = False
    not_before: Annotated[float, msgspec.Meta(ge=0, le=2**53)] = 0.0
    max_connections: ConnectionLimit | None = None
    max_topics: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)] | None = None
    bytes_per_second: ByteCount | None = None

    @property
    def rights(self) -> Rights:
        """Return their rights."""
        return Rights(self.publish, self.subscribe, self.groups, self.status, self.operator)


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="role"):
    """Hold the keys that all configurations have; a file is for one of the subclasses."""

    psk_file: str | None = None
    allow_classic: bool | None = None
    local: bool = False
    tls: Tls = Tls()
    limits: Limits = Limits()

    @property
    def peers(self) -> list[Address]:
        """Return the parsed addresses to connect to."""
        return []

    @property
    def binds(self) -> bool:
        """Return True if connections must end where TLS ends: those between nodes always do."""
        return True

    def allows_classic(self, address: Address) -> bool:
        """Return True if the peer at an address may speak the classic protocol."""
        return not address.tls if self.allow_classic is None else self.allow_classic


class NodeConfig(Config, frozen=True, kw_only=True):
    """Hold the keys that producers and consumers have.

    Attributes:
        plain: Whether the node may listen and connect without TLS to where other hosts are on the way.
        clients: Clients with keys of their own, their rights and limits.
        channel_binding: Whether clients must name the certificate of the node that they see. A browser, which
            has verified it, cannot name it.
        proxy: Where connections come through a proxy.
    """

    listen: list[str]
    plain: bool = False
    log_level: LogLevel = "info"
    node_psk_file: str | None = None
    clients: Annotated[list[NamedClient], msgspec.Meta(max_length=MAX_CLIENTS)] = []
    hosts: list[str] = []
    origins: list[str] = []
    channel_binding: ChannelBinding = "required"
    proxy: Proxy = Proxy()
    monitoring: Monitoring = Monitoring()

    @property
    def proxy_listeners(self) -> list[Address]:
        """Return the parsed `proxy.listen`."""
        return [parse_address(text) for text in self.proxy.listen]

    @property
    def listeners(self) -> list[Address]:
        """Return the parsed `listen`."""
        return [parse_address(text) for text in self.listen]

    @property
    def page_listeners(self) -> list[Address]:
        """Return the parsed `monitoring.listen`."""
        return [parse_address(text) for text in self.monitoring.listen]

    @property
    def all_consumers(self) -> list[Address]:
        """Return the addresses of the cluster's consumers in their order, as far as this node knows them."""
        return [parse_address(text) for text in self.monitoring.consumers]

    @property
    def all_producers(self) -> list[Address]:
        """Return the addresses of the cluster's producers, as far as this node knows them."""
        return [parse_address(text) for text in self.monitoring.producers]

    @property
    def peers(self) -> list[Address]:
        """Return the parsed addresses to connect to."""
        return self.all_consumers + self.all_producers


class ConsumerConfig(NodeConfig, frozen=True, kw_only=True, tag="consumer"):
    """Configure a consumer."""

    retention: Retention = Retention()


class ProducerConfig(NodeConfig, frozen=True, kw_only=True, tag="producer"):
    """Configure a producer."""

    consumers: list[str]
    hello_order: Order = Order.DOCUMENT

    @property
    def links(self) -> list[Address]:
        """Return the parsed `consumers`, in their order."""
        return [parse_address(text, "/producer") for text in self.consumers]

    @property
    def all_consumers(self) -> list[Address]:
        """Return `monitoring.consumers`, or the addresses of the links where that is empty."""
        return super().all_consumers or [address.with_path("") for address in self.links]

    @property
    def peers(self) -> list[Address]:
        """Return the parsed addresses to connect to."""
        return self.links + super().peers


class ClientConfig(Config, frozen=True, kw_only=True, tag="demo"):
    """Configure a client: `demo`, `verify`, `publish`, `subscribe` and the client library.

    Attributes:
        name: Name of the client's key, if it has one.
        token_file: File with a token, instead of a key.
        channel_binding: `none` if a proxy ends TLS: then the certificate that this end sees is the proxy's.
        http_proxy: URL of an HTTP proxy to connect through; `none` also hides that of the environment.
    """

    producers: list[str]
    consumers: list[str]
    name: Name | None = None
    token_file: str | None = None
    channel_binding: Literal["required", "none"] = "required"
    http_proxy: str | None = None
    hello_order: Order = Order.DOCUMENT

    @property
    def binds(self) -> bool:
        """Return True if connections must end where TLS ends."""
        return self.channel_binding == "required"

    @property
    def produce_addresses(self) -> list[Address]:
        """Return the parsed `producers`."""
        return [parse_address(text, "/produce") for text in self.producers]

    @property
    def subscribe_addresses(self) -> list[Address]:
        """Return the parsed `consumers`, in the order that the producers have too."""
        return [parse_address(text, "/subscribe") for text in self.consumers]

    @property
    def peers(self) -> list[Address]:
        """Return the parsed addresses to connect to."""
        return self.produce_addresses + self.subscribe_addresses


def role_of(kind: type[Config]) -> str:
    """Return the `role` of a kind of configuration."""
    return str(kind.__struct_config__.tag)
