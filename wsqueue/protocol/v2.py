"""The packets of protocol v2: one map of MessagePack in one binary WebSocket message.

The source is docs/protocol.md, section "Version 2". Messages travel in batches: those of one publisher on one
topic that are sent together. Between nodes and to subscribers, batches that follow each other travel as a
chain, in one packet.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from typing import Annotated, Literal, TypeAlias, get_args

import msgspec

from .classic import DECODE_ERRORS, MAX_DETAIL_CHARACTERS
from .close import CloseCode, PeerError
from .keys import MAX_TOKEN_BYTES
from .packed import NOTHING, HeaderName, Packed

SUBPROTOCOL = "wsqueue.v2"
"""Subprotocol that an initiator offers and an acceptor selects (RFC 6455 section 1.9)."""

MAX_REASON_CHARACTERS = 200
"""Length of the reason of a refusal; a longer one is cut."""

MAX_NUMBER = 2**53 - 1
"""The largest integer that every implementation keeps exactly, those with floating-point numbers too."""

OVERHEAD_BYTES = 4096
"""Most bytes of a packet besides its messages: other fields, sizes, and unknown fields of newer peers."""

NONCE_BYTES = 32
"""Length of nonces, proofs and publisher secrets: 256 bits can't be guessed."""

MAX_PREFETCH = 10_000
"""Messages that a member of a group may have at a time: more than any worker needs to be busy."""

MIN_LEASE_SECONDS, MAX_LEASE_SECONDS = 0.1, 86_400.0
"""Shortest and longest lease: a member must be able to settle in it, and a day is as long as a log's age."""

MAX_DELIVERIES = 1000
"""Highest number of deliveries that a member may allow."""

MAX_DELAY_SECONDS = 86_400.0
"""Longest time after which a message is lent again."""

MAX_SETTLED_RANGES = 1024
"""Ranges of one `settle`: a few milliseconds of work."""

MAX_CHAIN_BATCHES = 1024
"""Batches of a chain: a publisher hears of a refusal of all in as many packets, in one turn."""

Secret = Annotated[bytes, msgspec.Meta(min_length=NONCE_BYTES, max_length=NONCE_BYTES)]

MAX_PATH_CHARACTERS = 8192
"""Characters of a path: as long as a request line can be (a limit of the WebSocket library)."""

MAX_ADDRESS_CHARACTERS = 300
"""Characters of an address in a `disconnect`: a host name has at most 253."""

MAX_KEY_NAME_CHARACTERS = 32
"""Characters of the name of a key, as in a configuration."""

KeyName = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_KEY_NAME_CHARACTERS)]
TokenClaims = Annotated[bytes, msgspec.Meta(min_length=1, max_length=MAX_TOKEN_BYTES)]
Path = Annotated[str, msgspec.Meta(max_length=MAX_PATH_CHARACTERS)]
Number = Annotated[int, msgspec.Meta(ge=1, le=MAX_NUMBER)]
Offset = Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]
_CHAIN_LENGTH = msgspec.Meta(min_length=1, max_length=MAX_CHAIN_BATCHES)
Counts: TypeAlias = Annotated[list[Number], _CHAIN_LENGTH]
LogId = Annotated[str, msgspec.Meta(max_length=64)]
PublicId = Annotated[str, msgspec.Meta(max_length=64)]
NamedPublicId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Reason = Annotated[str, msgspec.Meta(max_length=MAX_REASON_CHARACTERS)]
MAX_GROUP_CHARACTERS = 64
"""Length of the name of a group, which is a part of the topic of its dead letters."""

GROUP_PATTERN = f"^[A-Za-z0-9][A-Za-z0-9._-]{{0,{MAX_GROUP_CHARACTERS - 1}}}\\Z"
"""Form of the name of a group or a reader: it is a part of a topic's name, of labels and of commands."""

GroupName = Annotated[str, msgspec.Meta(pattern=GROUP_PATTERN)]

RefusalCode = Literal["full", "invalid", "too_long", "topic_too_long", "not_allowed", "after_refused"]
"""Why a batch was not appended.

- `full`: there is no room on the disk;
- `invalid`: the messages do not have their sizes;
- `too_long`: the batch has more than `max_message_bytes`;
- `topic_too_long`: the topic has more than `max_topic_bytes`;
- `not_allowed`: the publisher may not publish to this topic;
- `after_refused`: the batch that it names in `after` was refused, or never came.
"""


MAX_CODE_CHARACTERS = 32
"""Length of the code of a refusal: a newer node may have others."""

INVALID_MESSAGES = "`messages` has no messages, or others than its sizes, headers or counts say"
"""Reason of the refusal of a batch that is `invalid`."""


class Challenge(msgspec.Struct, tag_field="t", tag="challenge", frozen=True):
    """Begin the hello (acceptor)."""

    nonce: Secret


class Proof(
    msgspec.Struct,
    tag_field="t",
    tag="proof",
    frozen=True,
    omit_defaults=True,
):
    """Prove that this end knows the key.

    An initiator's proof brings its nonce, and the path and the digest of the certificate (over TLS) as the
    initiator sees them, so that an acceptor that sees others can say so; and the name of its key, or the
    claims of its token.
    """

    proof: Secret
    nonce: Secret | None = None
    path: Path | None = None
    binding: Secret | None = None
    key: KeyName | None = None
    token: TokenClaims | None = None


class Publisher(msgspec.Struct, tag_field="t", tag="publisher", frozen=True):
    """Name the publisher on this connection (client to producer).

    Its public id is a digest of the secret, so a subscriber that sees the id can't publish under it.
    """

    secret: Secret


class Publish(msgspec.Struct, tag_field="t", tag="publish", frozen=True, gc=False):
    """Publish a batch (client to producer).

    Attributes:
        number: Number of the batch, rising over all batches of the publisher.
        after: Number of its batch before on this topic, if that is not confirmed yet, else 0.
        topic: Topic of all messages.
        messages: The messages; `NOTHING` if others came than a batch can have.
    """

    number: Number
    after: Offset
    topic: str
    messages: Packed

    @property
    def whole(self) -> bool:
        """Return True if there are messages, and all that belongs to them."""
        return self.messages.whole


class Forward(msgspec.Struct, tag_field="t", tag="forward", frozen=True, gc=False):
    """Pass a chain of batches on (producer to consumer).

    Attributes:
        publisher: Public id of the publisher.
        numbers: Number of each batch, rising; each comes after the one before it here.
        after: Number of the publisher's batch before the first, as in its `Publish`.
        topic: Topic of all messages.
        counts: Number of messages of each batch.
        messages: The messages of all batches; `NOTHING` if others came than they can have.
    """

    publisher: NamedPublicId
    numbers: Annotated[list[Number], _CHAIN_LENGTH]
    after: Offset
    topic: str
    counts: Counts
    messages: Packed

    @property
    def whole(self) -> bool:
        """Return True if the batches have their messages, and the messages all that belongs to them."""
        return self.messages.whole and sum(self.counts) == self.messages.count


class _PublishHead(msgspec.Struct, tag_field="t", tag="publish", frozen=True):
    """A `Publish` whose messages are not decoded."""

    number: Number
    after: Offset
    topic: str
    messages: msgspec.Raw


class _ForwardHead(msgspec.Struct, tag_field="t", tag="forward", frozen=True):
    """A `Forward` whose messages are not decoded."""

    publisher: NamedPublicId
    numbers: Annotated[list[Number], _CHAIN_LENGTH]
    after: Offset
    topic: str
    counts: Counts
    messages: msgspec.Raw


class Ack(msgspec.Struct, tag_field="t", tag="ack", frozen=True):
    """Confirm that batches are in the logs of their topics.

    Attributes:
        numbers: Ranges of batches, each from its first to its last. From a producer: the publisher's
            numbers, and none that is not confirmed. From a consumer: the position of the batch on this
            connection, from 1 on, where a packet takes as many positions as it has batches.
    """

    numbers: Annotated[list[tuple[Number, Number]], msgspec.Meta(min_length=1)]


class Refused(msgspec.Struct, tag_field="t", tag="refused", frozen=True, omit_defaults=True):
    """Refuse one batch for good, or from a consumer a range of them, which confirms all before it.

    Attributes:
        number: Number of the batch, or of the first one, as in `Ack`.
        code: A `RefusalCode`, or one of a newer node.
        reason: The same in words.
        last: From a consumer: number of the last batch that is refused for the same reason; None for one
            batch.
    """

    number: Number
    code: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_CODE_CHARACTERS)]
    reason: Reason
    last: Number | None = None


class Subscribe(
    msgspec.Struct,
    tag_field="t",
    tag="subscribe",
    frozen=True,
    omit_defaults=True,
):
    """Ask for a topic (client to consumer).

    Attributes:
        topic: Any topic.
        start: First message to deliver: the next one that is published, the earliest one that is kept, the
            one at `offset` (in the log `log`, if that is given), the first one not older than `time`, or the
            first of the last `count` messages, as far as they are kept.
        log: Id of the log's epoch in which `offset` was read.
        offset: Offset of the next message that is wanted.
        time: Unix time in seconds.
        count: Number of messages before the end of the topic.
        reader: Name under which the consumer keeps how far this reader has come. It begins there, unless it
            asks for an `offset`, or is new.
    """

    topic: str
    start: Literal["latest", "earliest", "offset", "time", "last"] = "latest"
    log: LogId | None = None
    offset: Offset | None = None
    time: Annotated[float, msgspec.Meta(ge=0, le=MAX_NUMBER)] | None = None
    count: Number | None = None
    reader: GroupName | None = None

    def __post_init__(self) -> None:
        """Refuse a start whose field is missing.

        Raises:
            ValueError: msgspec turns it into a ValidationError.
        """
        if (self.start == "offset") != (self.offset is not None):
            raise ValueError("`offset` goes with the start `offset`")
        if (self.start == "time") != (self.time is not None):
            raise ValueError("`time` goes with the start `time`")
        if (self.start == "last") != (self.count is not None):
            raise ValueError("`count` goes with the start `last`")
        if self.reader is not None and self.start in ("time", "last"):
            raise ValueError("`reader` goes with the starts `earliest`, `latest` and `offset`")


class Subscribed(msgspec.Struct, tag_field="t", tag="subscribed", frozen=True):
    """Answer a `Subscribe` (consumer to client).

    Attributes:
        topic: Topic of the subscription.
        log: Id of the log's epoch, which positions that are read from now on name.
        offset: Offset of the first message that will be delivered.
        end: Offset of the next message to be published; all before it were published already.
    """

    topic: str
    log: LogId
    offset: Offset
    end: Offset


class Unsubscribe(msgspec.Struct, tag_field="t", tag="unsubscribe", frozen=True):
    """Give a topic up (client to consumer)."""

    topic: str


class Unsubscribed(msgspec.Struct, tag_field="t", tag="unsubscribed", frozen=True, omit_defaults=True):
    """Answer an `Unsubscribe`, or a `Subscribe` that is refused: nothing more of the topic comes.

    Attributes:
        topic: Topic of the subscription.
        code: Why it is refused, None if the peer has given it up; a newer node may have other codes.
    """

    topic: str
    code: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_CODE_CHARACTERS)] | None = None


class Deliver(msgspec.Struct, tag_field="t", tag="deliver", frozen=True, gc=False):
    """Deliver a chain of batches (consumer to client).

    Attributes:
        topic: Topic of all messages.
        offset: Offset of the first message; each has the next.
        publisher: Public id; "" for a publisher that the consumer doesn't know.
        numbers: Number of each batch, rising; only 0 without a publisher.
        counts: Number of messages of each batch.
        messages: The messages of all batches.
    """

    topic: str
    offset: Offset
    publisher: PublicId
    numbers: Annotated[list[Offset], _CHAIN_LENGTH]
    counts: Counts
    messages: Packed

    @property
    def whole(self) -> bool:
        """Return True if the batches have their messages, and the messages all that belongs to them."""
        return self.messages.whole and sum(self.counts) == self.messages.count

    def behind(self, count: int) -> Deliver:
        """Return the packet without its first messages, of which it has more."""
        skipped, index = count, 0
        while skipped >= self.counts[index]:
            skipped -= self.counts[index]
            index += 1
        counts = [self.counts[index] - skipped, *self.counts[index + 1 :]]
        messages = self.messages.behind(count)
        return Deliver(
            self.topic, self.offset + count, self.publisher, self.numbers[index:], counts, messages
        )


class Gap(msgspec.Struct, tag_field="t", tag="gap", frozen=True):
    """Report that messages are gone which the subscriber has not got (consumer to client).

    Attributes:
        topic: Topic of the subscription.
        offset: Offset of the first message after the gap.
        missed: Number of messages that are gone, None if this log does not know them.
    """

    topic: str
    offset: Offset
    missed: Number | None


class Follow(msgspec.Struct, tag_field="t", tag="follow", frozen=True, omit_defaults=True):
    """Ask for all topics whose names begin with a prefix, those too that begin later (client to consumer).

    Attributes:
        prefix: First characters of the topics; "" for all topics.
        start: First message to deliver of each topic that is there, as in a `Subscribe`.
        time: Unix time in seconds.
        count: Number of messages before the end of each topic.
    """

    prefix: str
    start: Literal["latest", "earliest", "time", "last"] = "latest"
    time: Annotated[float, msgspec.Meta(ge=0, le=MAX_NUMBER)] | None = None
    count: Number | None = None

    def __post_init__(self) -> None:
        """Refuse a start whose field is missing.

        Raises:
            ValueError: msgspec turns it into a ValidationError.
        """
        if (self.start == "time") != (self.time is not None):
            raise ValueError("`time` goes with the start `time`")
        if (self.start == "last") != (self.count is not None):
            raise ValueError("`count` goes with the start `last`")


class Followed(msgspec.Struct, tag_field="t", tag="followed", frozen=True, omit_defaults=True):
    """Answer a `Follow`, once all topics that were there have begun (consumer to client).

    Attributes:
        prefix: As in the `Follow`.
        code: Why it is refused, None if it is not; a newer node may have other codes.
    """

    prefix: str
    code: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_CODE_CHARACTERS)] | None = None


class Commit(msgspec.Struct, tag_field="t", tag="commit", frozen=True):
    """Say that a named reader is done with all messages before a position (client to consumer).

    Attributes:
        topic: Any topic.
        reader: Name of the reader.
        log: Id of the log's epoch in which the messages were read.
        offset: Offset of the first message that is not done.
    """

    topic: str
    reader: GroupName
    log: LogId
    offset: Offset


class Committed(msgspec.Struct, tag_field="t", tag="committed", frozen=True):
    """Confirm a `Commit`, and all before it of the same reader on this connection (consumer to client).

    Attributes:
        topic: As in the `Commit`.
        reader: As in the `Commit`.
        log: As in the `Commit`.
        offset: As in the `Commit`.
    """

    topic: str
    reader: GroupName
    log: LogId
    offset: Offset


class Join(msgspec.Struct, tag_field="t", tag="join", frozen=True, omit_defaults=True):
    """Ask for messages of a topic that a group of workers shares (client to consumer).

    Attributes:
        topic: Any topic.
        group: Name of the group.
        prefetch: Messages that this member may have at a time.
        lease_seconds: Time after which a message that is not settled is lent to another member.
        max_deliveries: Deliveries after which a message becomes a dead letter.
        start: First message of a group that is new: the earliest one that is kept, or the next one that is
            published.
        order_key: Name of the header whose value orders messages: of those with the same value, one is lent
            at a time; None without an order.
    """

    topic: str
    group: GroupName
    prefetch: Annotated[int, msgspec.Meta(ge=1, le=MAX_PREFETCH)]
    lease_seconds: Annotated[float, msgspec.Meta(ge=MIN_LEASE_SECONDS, le=MAX_LEASE_SECONDS)]
    max_deliveries: Annotated[int, msgspec.Meta(ge=1, le=MAX_DELIVERIES)]
    start: Literal["earliest", "latest"] = "earliest"
    order_key: HeaderName | None = None


class Joined(msgspec.Struct, tag_field="t", tag="joined", frozen=True):
    """Answer a `Join` (consumer to client).

    It comes again when the log has another id, or goes on as another log.

    Attributes:
        topic: Topic of the group.
        group: Name of the group.
        log: Id of the log's epoch, of which the offsets are that come from now on.
    """

    topic: str
    group: GroupName
    log: LogId


class Lend(msgspec.Struct, tag_field="t", tag="lend", frozen=True, gc=False, omit_defaults=True):
    """Lend messages to a member of a group (consumer to client).

    Attributes:
        topic: Topic of the group.
        group: Name of the group.
        offset: Offset of the first message; each has the next.
        messages: The messages.
        deliveries: How often they have been lent, this time included.
    """

    topic: str
    group: GroupName
    offset: Offset
    messages: Packed
    deliveries: Number = 1


class Settle(msgspec.Struct, tag_field="t", tag="settle", frozen=True, omit_defaults=True):
    """Tell the outcome of messages that were lent to this member (client to consumer).

    Attributes:
        topic: Topic of the group.
        group: Name of the group.
        number: Number of this packet, rising on each connection.
        log: Id of the log's epoch in which the messages were lent.
        how: They are done; or to be lent again; or to become dead letters; or this member has not touched
            them and gives them back; or it needs more time.
        offsets: Ranges of messages, each from its first to its last.
        delay: Seconds before which they are not lent again.
        reason: Why they are dead letters.
    """

    topic: str
    group: GroupName
    number: Number
    log: LogId
    how: Literal["done", "again", "reject", "release", "extend"]
    offsets: Annotated[list[tuple[Offset, Offset]], msgspec.Meta(min_length=1, max_length=MAX_SETTLED_RANGES)]
    delay: Annotated[float, msgspec.Meta(ge=0, le=MAX_DELAY_SECONDS)] = 0.0
    reason: Reason = ""


class Settled(msgspec.Struct, tag_field="t", tag="settled", frozen=True):
    """Confirm that settled messages are kept as such (consumer to client).

    Attributes:
        topic: Topic of the group.
        group: Name of the group.
        number: Number of the last `Settle` that is kept, and all before it.
    """

    topic: str
    group: GroupName
    number: Number


class Leave(msgspec.Struct, tag_field="t", tag="leave", frozen=True):
    """Leave a group (client to consumer)."""

    topic: str
    group: GroupName


class Left(msgspec.Struct, tag_field="t", tag="left", frozen=True, omit_defaults=True):
    """Answer a `Leave`, or a `Join` that is refused, or end a membership (consumer to client).

    Attributes:
        topic: Topic of the group.
        group: Name of the group.
        code: Why it is refused, None if the peer has left; a newer node may have other codes.
        reason: The same in words.
    """

    topic: str
    group: GroupName
    code: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_CODE_CHARACTERS)] | None = None
    reason: Reason = ""


class Draining(msgspec.Struct, tag_field="t", tag="draining", frozen=True):
    """Announce that the node is about to stop: go elsewhere, or come back after a random part of the time."""

    retry_seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)]


class Log(msgspec.Struct, tag_field="t", tag="log", frozen=True):
    """Name the log that this consumer shares with others, right after the hello and when that changes.

    It comes only from a consumer whose log others have too. Its peers may use any consumer with the same id
    instead of this one (docs/protocol.md, section "Failover").

    Attributes:
        id: Id of the log, the same at all consumers that share it.
        available: False while this consumer cannot reach the log.
    """

    id: Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
    available: bool


class AskReport(msgspec.Struct, tag_field="t", tag="ask_report", frozen=True):
    """Ask a node for its report (at `/status`)."""


class NodeReport(msgspec.Struct, tag_field="t", tag="report", frozen=True):
    """Answer an `AskReport`.

    Attributes:
        report: A `wsqueue.report.report.Report` as JSON; nodes of other versions may send other fields.
    """

    report: str


class AskTopics(msgspec.Struct, tag_field="t", tag="ask_topics", frozen=True, omit_defaults=True):
    """Ask a consumer for its topics (at `/operate`).

    Attributes:
        pattern: A topic, or the beginning of topics with `*` behind it.
        after: The field of the answer before, None for the first topics.
        named: True to ask only for topics that have groups or named readers.
    """

    pattern: str = "*"
    after: str | None = None
    named: bool = False


class NameEntry(msgspec.Struct, frozen=True, omit_defaults=True):
    """Describe a group or a named reader of a topic.

    Attributes:
        kind: Which of the two.
        name: Its name.
        offset: Offset of the first message that is not done.
        lag: Number of messages that are kept and not done.
        members: Number of its members, or of the connections that use the reader, at this consumer.
        lent: Number of messages that members have.
        dead: Number of messages that the group gave up since it began.
        oldest_time: Unix time at which the first message that is not done was stored, if that is known.
    """

    kind: Literal["group", "reader"]
    name: GroupName
    offset: Offset
    lag: Offset
    members: Offset
    lent: Offset
    dead: Offset
    oldest_time: Annotated[float, msgspec.Meta(ge=0, le=MAX_NUMBER)] | None = None


class TopicEntry(msgspec.Struct, frozen=True):
    """Describe a topic.

    Attributes:
        topic: Its name.
        messages: Number of messages that are kept.
        bytes: Bytes that they take, as the limits count them.
        first: Offset of the first of them; `next` when there is none.
        next: Offset of the message that will be published next.
        subscribers: Number of subscriptions at this consumer.
        names: Its groups and named readers.
    """

    topic: str
    messages: Offset
    bytes: Offset
    first: Offset
    next: Offset
    subscribers: Offset
    names: list[NameEntry]


class TopicList(msgspec.Struct, tag_field="t", tag="topics", frozen=True, omit_defaults=True):
    """Answer an `AskTopics` with a part of the topics, which may be none although others follow.

    Attributes:
        topics: The topics.
        after: The field for the question that asks for the next ones, None at the end.
        log: Id of the log that this consumer shares with others, None for a log of its own.
    """

    topics: list[TopicEntry]
    after: str | None = None
    log: LogId | None = None


class Purge(msgspec.Struct, tag_field="t", tag="purge", frozen=True, omit_defaults=True):
    """Have a consumer drop messages of a topic (at `/operate`).

    Attributes:
        topic: The topic.
        before: Offset before which messages go, None to drop all.
    """

    topic: str
    before: Offset | None = None


class Forget(msgspec.Struct, tag_field="t", tag="forget", frozen=True):
    """Have a consumer forget a group or a named reader that nobody uses (at `/operate`).

    Attributes:
        topic: Its topic.
        kind: Which of the two.
        name: Its name.
    """

    topic: str
    kind: Literal["group", "reader"]
    name: GroupName


class Disconnect(msgspec.Struct, tag_field="t", tag="disconnect", frozen=True, omit_defaults=True):
    """Have a node end the connections of a client (at `/operate`).

    Attributes:
        address: Host, or host and port, of the client.
        key: Name of its key.
    """

    address: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_ADDRESS_CHARACTERS)] | None = None
    key: KeyName | None = None

    def __post_init__(self) -> None:
        """Refuse to end the connections of everybody.

        Raises:
            ValueError: msgspec turns it into a ValidationError.
        """
        if (self.address is None) == (self.key is None):
            raise ValueError("expected either `address` or `key`")


class Done(msgspec.Struct, tag_field="t", tag="done", frozen=True):
    """Answer a `Purge`, a `Forget` or a `Disconnect` that is done.

    Attributes:
        count: Number of messages, of names or of connections that are gone.
    """

    count: Offset


class Failed(msgspec.Struct, tag_field="t", tag="failed", frozen=True):
    """Answer a request of an operator that cannot be done.

    Attributes:
        code: Why; a newer node may have other codes.
        reason: The same in words.
    """

    code: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_CODE_CHARACTERS)]
    reason: Reason


OperatorRequest: TypeAlias = AskTopics | Purge | Forget | Disconnect
"""A packet of an operator."""

OperatorAnswer: TypeAlias = TopicList | Done | Failed
"""The answer to it."""


class AskAlive(msgspec.Struct, tag_field="t", tag="ask_alive", frozen=True):
    """Ask whether the node is there, for clients that cannot send pings, such as browsers."""


class Alive(msgspec.Struct, tag_field="t", tag="alive", frozen=True):
    """Answer an `AskAlive`; who has asked gets it unasked too while the node does not read from it."""


HelloPacket = Challenge | Proof
HELLO_PACKETS = (Challenge, Proof)
Packet = (
    Challenge
    | Proof
    | Publisher
    | Publish
    | Forward
    | Ack
    | Refused
    | Subscribe
    | Subscribed
    | Unsubscribe
    | Unsubscribed
    | Deliver
    | Gap
    | Follow
    | Followed
    | Commit
    | Committed
    | Join
    | Joined
    | Lend
    | Settle
    | Settled
    | Leave
    | Left
    | Draining
    | Log
    | AskReport
    | NodeReport
    | AskTopics
    | TopicList
    | Purge
    | Forget
    | Disconnect
    | Done
    | Failed
    | AskAlive
    | Alive
)

PACKETS: tuple[type[msgspec.Struct], ...] = get_args(Packet)
"""All packets, in the order of docs/protocol.md."""

_CHECKED: frozenset[type[msgspec.Struct]] = frozenset((Forward, Deliver, Lend))

_decoder = msgspec.msgpack.Decoder(Packet)
# Two types, because a decoder of one type accepts a packet without its tag.
_head_decoder = msgspec.msgpack.Decoder(_ForwardHead | _PublishHead)
_encoder = msgspec.msgpack.Encoder()


def decode(payload: bytes) -> Packet:
    """Decode the payload of one binary message.

    A `Publish` or `Forward` whose messages cannot be decoded is returned without any, so that its batch can
    be refused and others go on: in a `Forward`, that is the fault of a publisher, and not of the producer
    that sends it.

    Raises:
        PeerError: The payload is not a packet; with `CloseCode.INVALID_PACKET` and the reason. The text never
            quotes the payload, except for a short tag.
    """
    try:
        packet: Packet = _decoder.decode(payload)
    except DECODE_ERRORS as error:
        if (batch := _without_messages(payload)) is not None:
            return batch
        raise PeerError(CloseCode.INVALID_PACKET, str(error)[:MAX_DETAIL_CHARACTERS]) from None
    return _checked(packet)


def decode_all(payloads: Sequence[bytes]) -> Iterable[Packet]:
    """Decode the payloads of many binary messages, as `decode` does.

    A packet that is wrong raises its error when the iterator comes to it, behind those before it.

    Raises:
        PeerError: As `decode`.
    """
    try:
        packets: list[Packet] = list(map(_decoder.decode, payloads))
    except DECODE_ERRORS:
        return map(decode, payloads)
    return packets if _CHECKED.isdisjoint(map(type, packets)) else map(_checked, packets)


def _checked(packet: Packet) -> Packet:
    """Return a packet, whose chain is checked if it has one."""
    if type(packet) is Lend and not packet.messages.whole:
        raise PeerError(CloseCode.INVALID_PACKET, INVALID_MESSAGES)
    if type(packet) is not Forward and type(packet) is not Deliver:
        return packet
    numbers, counts = packet.numbers, packet.counts
    if len(numbers) != len(counts):
        raise PeerError(CloseCode.INVALID_PACKET, "`numbers` and `counts` have different lengths")
    if len(numbers) > 1 and not all(map(operator.lt, numbers, numbers[1:])):
        raise PeerError(CloseCode.INVALID_PACKET, "`numbers` do not rise")
    if type(packet) is Forward and packet.after >= numbers[0]:
        raise PeerError(CloseCode.INVALID_PACKET, "`after` is not before the first of `numbers`")
    if type(packet) is Deliver and not packet.whole:
        raise PeerError(CloseCode.INVALID_PACKET, INVALID_MESSAGES)
    return packet


def _without_messages(payload: bytes) -> Packet | None:
    """Return the batch whose messages are wrong, None if more is wrong than that."""
    try:
        head = _head_decoder.decode(payload)
    except DECODE_ERRORS:
        return None
    if isinstance(head, _ForwardHead):
        return _checked(Forward(head.publisher, head.numbers, head.after, head.topic, head.counts, NOTHING))
    return Publish(head.number, head.after, head.topic, NOTHING)


def encode(packet: Packet) -> bytes:
    """Encode a packet.

    Raises:
        UnicodeEncodeError: A string holds a lone surrogate, which UTF-8 cannot express.
    """
    return _encoder.encode(packet)
