"""The packets of protocol v2: one JSON object in one WebSocket text message.

The source is docs/protocol.md, section "v2". Messages travel in batches: those of one publisher on one
topic that are sent together, as one packet.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal, get_args

import msgspec

from .classic import DECODE_ERRORS, MAX_DETAIL_CHARACTERS, SURROGATE, is_utf8
from .close import CloseCode, PeerError

SUBPROTOCOL = "wsqueue.v2"
"""Subprotocol that an initiator offers and an acceptor selects (RFC 6455 section 1.9)."""

MAX_NUMBER = 2**53 - 1
"""The largest integer that every JSON implementation keeps exactly (RFC 8259 section 6)."""

OVERHEAD_BYTES = 4096
"""Most bytes of a packet besides a message's own: other fields, which an encoder may write at length."""

NONCE_BYTES = 32
"""Length of nonces, proofs and publisher secrets: 256 bits can't be guessed."""

Secret = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9+/]{43}=$", max_length=44)]
"""32 bytes in standard base64."""

MAX_PATH_CHARACTERS = 8192
"""Characters of a path: as long as a request line can be (a limit of the WebSocket library)."""

Path = Annotated[str, msgspec.Meta(max_length=MAX_PATH_CHARACTERS)]
Number = Annotated[int, msgspec.Meta(ge=1, le=MAX_NUMBER)]
Offset = Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]
LogId = Annotated[str, msgspec.Meta(max_length=64)]
PublicId = Annotated[str, msgspec.Meta(max_length=64)]
Reason = Annotated[str, msgspec.Meta(max_length=200)]

RefusalCode = Literal["full", "invalid", "too_long", "topic_too_long", "after_refused"]
"""Why a batch was not appended.

- `full`: there is no room on the disk;
- `invalid`: the data is not a list of `count` strings;
- `too_long`: the batch has more than `max_message_bytes`;
- `topic_too_long`: the topic has more than `max_topic_bytes`;
- `after_refused`: the batch that it names in `after` was refused, or never came.
"""


INVALID_DATA = "the data is not a list of `count` strings in UTF-8"
"""Reason of the refusal of a batch that is `invalid`."""


class Challenge(msgspec.Struct, tag_field="t", tag="challenge", frozen=True, forbid_unknown_fields=True):
    """Begin the hello (acceptor)."""

    nonce: Secret


class Proof(
    msgspec.Struct,
    tag_field="t",
    tag="proof",
    frozen=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
):
    """Prove that this end knows the key.

    An initiator's proof brings its nonce, and the path and the digest of the certificate (over TLS) as the
    initiator sees them, so that an acceptor that sees others can say so.
    """

    proof: Secret
    nonce: Secret | None = None
    path: Path | None = None
    binding: Secret | None = None


class Publisher(msgspec.Struct, tag_field="t", tag="publisher", frozen=True, forbid_unknown_fields=True):
    """Name the publisher on this connection (client to producer).

    Its public id is a digest of the secret, so a subscriber that sees the id can't publish under it.
    """

    secret: Secret


class Publish(msgspec.Struct, tag_field="t", tag="publish", frozen=True, forbid_unknown_fields=True):
    """Publish a batch (client to producer).

    Attributes:
        number: Number of the batch, rising over all batches of the publisher.
        after: Number of its batch before on this topic, if that is not confirmed yet, else 0.
        topic: Topic of all messages.
        count: Number of messages.
        data: A JSON list of strings, passed on as it is; empty if it is no JSON.
    """

    number: Number
    after: Offset
    topic: str
    count: Number
    data: msgspec.Raw


class Forward(msgspec.Struct, tag_field="t", tag="forward", frozen=True, forbid_unknown_fields=True):
    """Pass a batch on (producer to consumer), with the public id of its publisher."""

    publisher: PublicId
    number: Number
    after: Offset
    topic: str
    count: Number
    data: list[str]


class RawForward(msgspec.Struct, tag_field="t", tag="forward", frozen=True, forbid_unknown_fields=True):
    """A `Forward` whose data is not decoded; a producer sends it."""

    publisher: PublicId
    number: Number
    after: Offset
    topic: str
    count: Number
    data: msgspec.Raw


class ForwardHead(msgspec.Struct, tag_field="t", tag="forward", frozen=True, forbid_unknown_fields=True):
    """A `Forward` without its data."""

    publisher: PublicId
    number: Number
    after: Offset
    topic: str
    count: Number


class PublishHead(msgspec.Struct, tag_field="t", tag="publish", frozen=True, forbid_unknown_fields=True):
    """A `Publish` without its data."""

    number: Number
    after: Offset
    topic: str
    count: Number


class Ack(msgspec.Struct, tag_field="t", tag="ack", frozen=True, forbid_unknown_fields=True):
    """Confirm that batches are in the logs of their topics.

    Attributes:
        numbers: Ranges of batches, each from its first to its last. From a producer: the publisher's
            numbers. From a consumer: the position of the batch on this connection, from 1 on.
    """

    numbers: Annotated[list[tuple[Number, Number]], msgspec.Meta(min_length=1)]


class Refused(msgspec.Struct, tag_field="t", tag="refused", frozen=True, forbid_unknown_fields=True):
    """Refuse one batch for good; the number is as in `Ack`."""

    number: Number
    code: RefusalCode
    reason: Reason


class Subscribe(
    msgspec.Struct,
    tag_field="t",
    tag="subscribe",
    frozen=True,
    forbid_unknown_fields=True,
    omit_defaults=True,
):
    """Ask for a topic (client to consumer).

    Attributes:
        topic: Any topic.
        start: First message to deliver: the next one that is published, the earliest one that is kept, the
            one at `offset` (in the log `log`, if that is given), or the first one not older than `time`.
        log: Id of the log's epoch in which `offset` was read.
        offset: Offset of the next message that is wanted.
        time: Unix time in seconds.
    """

    topic: str
    start: Literal["latest", "earliest", "offset", "time"] = "latest"
    log: LogId | None = None
    offset: Offset | None = None
    time: Annotated[float, msgspec.Meta(ge=0, le=MAX_NUMBER)] | None = None

    def __post_init__(self) -> None:
        """Refuse a start whose field is missing.

        Raises:
            ValueError: msgspec turns it into a ValidationError.
        """
        if (self.start == "offset") != (self.offset is not None):
            raise ValueError("`offset` goes with the start `offset`")
        if (self.start == "time") != (self.time is not None):
            raise ValueError("`time` goes with the start `time`")


class Subscribed(msgspec.Struct, tag_field="t", tag="subscribed", frozen=True, forbid_unknown_fields=True):
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


class Unsubscribe(msgspec.Struct, tag_field="t", tag="unsubscribe", frozen=True, forbid_unknown_fields=True):
    """Give a topic up (client to consumer)."""

    topic: str


class Unsubscribed(
    msgspec.Struct, tag_field="t", tag="unsubscribed", frozen=True, forbid_unknown_fields=True
):
    """Answer an `Unsubscribe`: nothing more of the topic comes (consumer to client)."""

    topic: str


class Deliver(msgspec.Struct, tag_field="t", tag="deliver", frozen=True, forbid_unknown_fields=True):
    """Deliver a batch (consumer to client).

    Attributes:
        topic: Topic of all messages.
        offset: Offset of the first message; each has the next.
        publisher: Public id; "" for a publisher that the consumer doesn't know.
        number: Number of the publisher's batch; 0 without a publisher.
        data: The messages.
    """

    topic: str
    offset: Offset
    publisher: PublicId
    number: Offset
    data: list[str]


class Gap(msgspec.Struct, tag_field="t", tag="gap", frozen=True, forbid_unknown_fields=True):
    """Report that messages are gone which the subscriber has not got (consumer to client).

    Attributes:
        topic: Topic of the subscription.
        offset: Offset of the first message after the gap.
        missed: Number of messages that are gone, None if this log does not know them.
    """

    topic: str
    offset: Offset
    missed: Number | None


class Draining(msgspec.Struct, tag_field="t", tag="draining", frozen=True, forbid_unknown_fields=True):
    """Announce that the node is about to stop: go elsewhere, or come back after a random part of the time."""

    retry_seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)]


class AskReport(msgspec.Struct, tag_field="t", tag="ask_report", frozen=True, forbid_unknown_fields=True):
    """Ask a node for its report (at `/status`)."""


class NodeReport(msgspec.Struct, tag_field="t", tag="report", frozen=True, forbid_unknown_fields=True):
    """Answer an `AskReport`.

    Attributes:
        report: A `wsqueue.report.report.Report`; nodes of other versions may send other fields.
    """

    report: msgspec.Raw


class AskAlive(msgspec.Struct, tag_field="t", tag="ask_alive", frozen=True, forbid_unknown_fields=True):
    """Ask whether the node is there, for clients that cannot send pings, such as browsers."""


class Alive(msgspec.Struct, tag_field="t", tag="alive", frozen=True, forbid_unknown_fields=True):
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
    | Draining
    | AskReport
    | NodeReport
    | AskAlive
    | Alive
)

PACKETS: tuple[type[msgspec.Struct], ...] = get_args(Packet)
"""All packets, in the order of docs/protocol.md."""

_decoder = msgspec.json.Decoder(Packet)
# Two types, because a decoder of one type accepts a packet without its tag.
_head_decoder = msgspec.json.Decoder(ForwardHead | PublishHead)
# No other field can hold this separator unescaped.
_DATA = re.compile(rb',\s*"data"\s*:')
_encoder = msgspec.json.Encoder()


def decode(payload: bytes) -> Packet:
    """Decode the payload of one text message.

    A `Publish` or `Forward` whose data is invalid is returned with no data, so that its batch can be refused
    and others go on: in a `Forward`, that is the fault of a publisher, and not of the producer that sends it.
    The data must be the last field for that, unless a lone surrogate is all that is wrong with it.

    Raises:
        PeerError: The payload is not a packet; with `CloseCode.INVALID_PACKET` and the reason, or
            `CloseCode.INVALID_TEXT`. The text never quotes the payload, except for a short tag.
    """
    try:
        packet: Packet = _decoder.decode(payload)
    except DECODE_ERRORS as error:
        if (batch := _without_data(payload)) is not None:
            return batch
        if not is_utf8(payload):
            raise PeerError(CloseCode.INVALID_TEXT) from None
        raise PeerError(CloseCode.INVALID_PACKET, str(error)[:MAX_DETAIL_CHARACTERS]) from None
    return packet


def _without_data(payload: bytes) -> Forward | Publish | None:
    """Return the batch whose data is wrong, None if more is wrong than that."""
    separator = _DATA.search(payload)
    heads = [payload[: separator.start()] + b"}"] if separator is not None else []
    # As long as the surrogate, and an escaped backslash before it stays one.
    neutral = SURROGATE.sub(rb"\\u0000", payload)
    for decoder, text in [*((_head_decoder, head) for head in heads), (_decoder, neutral)]:
        try:
            packet = decoder.decode(text)
        except DECODE_ERRORS:
            continue
        if isinstance(packet, ForwardHead | Forward):
            return Forward(packet.publisher, packet.number, packet.after, packet.topic, packet.count, [])
        if isinstance(packet, PublishHead | Publish):
            return Publish(packet.number, packet.after, packet.topic, packet.count, msgspec.Raw(b""))
    return None


def encode(packet: Packet | RawForward) -> bytes:
    """Encode a packet as compact JSON in UTF-8.

    Raises:
        UnicodeEncodeError: A string holds a lone surrogate, which UTF-8 cannot express.
    """
    return _encoder.encode(packet)


def may_hold(data: msgspec.Raw, count: int) -> bool:
    """Return True if there is room for `count` strings in the data of a `Publish`, which nobody has read.

    A string takes three bytes at least: two quotation marks, and a comma or a bracket.
    """
    return count <= (memoryview(data).nbytes - 1) // 3


def join_data(strings: Sequence[bytes]) -> msgspec.Raw:
    """Return the data of a `Publish`: a JSON list of strings that are JSON already."""
    return msgspec.Raw(b"[%b]" % b",".join(strings))
