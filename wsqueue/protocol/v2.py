"""The packets of protocol v2: one JSON object in one WebSocket text message.

The source is docs/protocol.md, section "v2". Messages travel in batches: those of one publisher on one
topic that are sent together, as one packet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, get_args

import msgspec

from .classic import DECODE_ERRORS, MAX_DETAIL_CHARACTERS, is_utf8
from .close import CloseCode, PeerError

SUBPROTOCOL = "wsqueue.v2"
"""What an initiator offers, and an acceptor selects (RFC 6455 section 1.9)."""

MAX_NUMBER = 2**53 - 1
"""The largest integer that every JSON implementation keeps exactly (RFC 8259 section 6)."""

OVERHEAD_BYTES = 4096
"""What a packet has besides a message's own bytes: other fields, which an encoder may write at length."""

NONCE_BYTES = 32
"""Of a nonce, a proof and a publisher's secret: 256 bits, beyond guessing."""

Secret = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9+/]{43}=$", max_length=44)]
"""32 bytes in standard base64."""

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
- `topic_too_long`: of more than `max_topic_bytes`;
- `after_refused`: the batch `after` which it comes was refused, or never came.
"""


INVALID_DATA = "the data is not a list of `count` strings in UTF-8"
"""Why a batch is `invalid`."""


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
    """Prove to know the key; an initiator's proof brings its nonce."""

    proof: Secret
    nonce: Secret | None = None


class Publisher(msgspec.Struct, tag_field="t", tag="publisher", frozen=True, forbid_unknown_fields=True):
    """Say who publishes on this connection (client to producer).

    Its public id is a digest of the secret: who sees the id in deliveries cannot publish as it.
    """

    secret: Secret


class Publish(msgspec.Struct, tag_field="t", tag="publish", frozen=True, forbid_unknown_fields=True):
    """Publish a batch (client to producer).

    Attributes:
        number: Of the batch, rising over all batches of the publisher.
        after: The number of its batch before on this topic, if that is not confirmed yet, else 0.
        topic: Of all messages.
        count: How many there are.
        data: A JSON list of strings, passed on as it is.
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


class Ack(msgspec.Struct, tag_field="t", tag="ack", frozen=True, forbid_unknown_fields=True):
    """Confirm that batches are in the logs of their topics.

    Attributes:
        numbers: Ranges of batches, each from its first to its last. From a producer: the publisher's
            numbers. From a consumer: how many batches came on this connection before, and it.
    """

    numbers: Annotated[list[tuple[Number, Number]], msgspec.Meta(min_length=1)]


class Refused(msgspec.Struct, tag_field="t", tag="refused", frozen=True, forbid_unknown_fields=True):
    """Refuse one batch for good; its number is as in `Ack`."""

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
        topic: Any.
        start: Where: at what is published from now on, at the earliest message that is kept, at `offset`
            (of the log `log`, if that is given), or at the first message that is not older than `time`.
        log: The id of the log that `offset` is from.
        offset: Of the next message that is wanted.
        time: Unix time in seconds.
    """

    topic: str
    start: Literal["latest", "earliest", "offset", "time"] = "latest"
    log: LogId | None = None
    offset: Offset | None = None
    time: Annotated[float, msgspec.Meta(ge=0, le=MAX_NUMBER)] | None = None

    def __post_init__(self) -> None:
        """Refuse a start that lacks what it needs.

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
        topic: Of the subscription.
        log: The id of the log that the offsets are from.
        offset: Of the first message that will be delivered.
        end: Of the message to come next; what is before it was published already.
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
        topic: Of all messages.
        offset: Of the first message; each has the next.
        publisher: Public id; "" for a publisher that the consumer doesn't know.
        number: Of the publisher's batch; 0 without a publisher.
        data: The messages.
    """

    topic: str
    offset: Offset
    publisher: PublicId
    number: Offset
    data: list[str]


class Gap(msgspec.Struct, tag_field="t", tag="gap", frozen=True, forbid_unknown_fields=True):
    """Say that messages are gone which the subscriber has not got (consumer to client).

    Attributes:
        topic: Of the subscription.
        offset: Of the first message that comes after the gap.
        missed: How many are gone, None when the log that knew is gone with them.
    """

    topic: str
    offset: Offset
    missed: Number | None


class Draining(msgspec.Struct, tag_field="t", tag="draining", frozen=True, forbid_unknown_fields=True):
    """Say that the node is about to stop: go elsewhere, or come back after a random part of a time."""

    retry_seconds: Annotated[float, msgspec.Meta(ge=0, le=3600)]


class AskReport(msgspec.Struct, tag_field="t", tag="ask_report", frozen=True, forbid_unknown_fields=True):
    """Ask a node how it is (at `/status`)."""


class NodeReport(msgspec.Struct, tag_field="t", tag="report", frozen=True, forbid_unknown_fields=True):
    """Answer an `AskReport`.

    Attributes:
        report: A `wsqueue.report.report.Report`; nodes of other versions may send other fields.
    """

    report: msgspec.Raw


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
)

PACKETS: tuple[type[msgspec.Struct], ...] = get_args(Packet)
"""All of them, in the order of docs/protocol.md."""

_decoder = msgspec.json.Decoder(Packet)
# Of two types, for a decoder of one does not insist on its tag.
_head_decoder = msgspec.json.Decoder(ForwardHead | Draining)
_encoder = msgspec.json.Encoder()


def decode(payload: bytes) -> Packet:
    """Decode the payload of one text message.

    A `Forward` whose data is wrong comes with no data, and so with another count: that is the fault of
    the publisher, not of the producer that sends it.

    Raises:
        PeerError: The payload is not a packet; with `CloseCode.INVALID_PACKET` and what is wrong, or
            `CloseCode.INVALID_TEXT`. The text never quotes the payload, except for a short tag.
    """
    try:
        packet: Packet = _decoder.decode(payload)
    except DECODE_ERRORS as error:
        if (forward := _without_data(payload)) is not None:
            return forward
        if not is_utf8(payload):
            raise PeerError(CloseCode.INVALID_TEXT) from None
        raise PeerError(CloseCode.INVALID_PACKET, str(error)[:MAX_DETAIL_CHARACTERS]) from None
    return packet


def _without_data(payload: bytes) -> Forward | None:
    # A producer writes the data last, and no other field can hold what comes before it unescaped.
    head, found, _ = payload.partition(b',"data":')
    if not found:
        return None
    try:
        packet = _head_decoder.decode(head + b"}")
    except DECODE_ERRORS:
        return None
    if not isinstance(packet, ForwardHead):
        return None
    return Forward(packet.publisher, packet.number, packet.after, packet.topic, packet.count, [])


def encode(packet: Packet | RawForward) -> bytes:
    """Encode a packet as compact JSON in UTF-8.

    Raises:
        UnicodeEncodeError: A string holds a lone surrogate, which UTF-8 cannot express.
    """
    return _encoder.encode(packet)


def join_data(strings: Sequence[bytes]) -> msgspec.Raw:
    """Return the data of a `Publish`: a JSON list of strings that are JSON already."""
    return msgspec.Raw(b"[%b]" % b",".join(strings))
