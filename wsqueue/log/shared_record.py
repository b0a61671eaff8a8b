"""The records of the shared log: the batches of one topic that one consumer appended together.

A record has a head, and the packets that deliver its batches. From the head of a topic's newest record and
that of the table which it names, a consumer learns everything that it must know to append: the offset, and
the last number of each publisher.

    table ◄── record ◄── record ◄── table ◄── record      each head names the newest table before it
    all       changes    changes    all       changes     and has the numbers that changed since

A table has at most `MAX_PUBLISHERS`; its writer leaves out those that `protocol.repeats.crowded_out` names. A
record is a table when the records since the last one have `TABLE_RATIO` times its bytes, when `MAX_CHANGES`
numbers have changed, or when the table is old. So a table costs little, and no more than that ratio must be
kept behind the records that may be dropped.
"""

from __future__ import annotations

from typing import Annotated, Protocol, TypeVar

import msgspec

from ..errors import StorageError
from ..protocol.v2 import MAX_NUMBER
from .records import MAX_OFFSET

FORMAT = 1
"""Number of this format of records."""

MAX_PUBLISHERS = 1000
"""Publishers of a topic whose last batch is remembered: 40 KB."""

MAX_CHANGES = 32
"""Numbers in the head of a record that is no table: 1 KB."""

TABLE_RATIO = 16
"""Bytes of records for each byte of a table: it costs 6 percent at most."""

PUBLISHER_BYTES = 40
"""Bytes of a publisher in a table: its id and a number."""

Offset = Annotated[int, msgspec.Meta(ge=0, le=MAX_OFFSET)]
Number = Annotated[int, msgspec.Meta(ge=0, le=MAX_NUMBER)]
Seq = Annotated[int, msgspec.Meta(ge=0)]
LogId = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]


class HasFormat(Protocol):
    """A thing of an engine that says in which format it is."""

    @property
    def format(self) -> int:
        """Return the number of the format."""
        ...


Formatted = TypeVar("Formatted", bound=HasFormat)


class SharedBatch(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Hold batches of one publisher in a record.

    Attributes:
        count: Number of messages.
        publisher: Public id of the publisher.
        number: Number of the last batch.
        packet: The packet that delivers the messages.
    """

    count: Annotated[int, msgspec.Meta(ge=1, le=MAX_OFFSET)]
    publisher: str
    number: Number
    packet: bytes


class SharedRecord(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Hold a record.

    Attributes:
        format: `FORMAT`.
        topic: Name of the topic.
        log: Id of the topic's log.
        offset: Offset of the first message, or of the next one if there is none.
        end: Offset after the last message.
        bytes: Bytes of all records of this log up to this one, as the limits count them.
        time: Unix time, never falling in a topic.
        writer: Id of the consumer that appended it.
        before: Sequence number of the topic's record before, 0 for the first.
        table: Sequence number of the newest table before; 0 if this is one.
        numbers: The last number of each publisher in a table, else those that changed since; the publishers
            that published last come last.
        batches: The batches.
        purged: Offset before which somebody wants no messages any more, 0 for none: other consumers drop
            those that they have in memory. The field may be missing.
    """

    format: int
    topic: str
    log: LogId
    offset: Offset
    end: Offset
    bytes: Annotated[int, msgspec.Meta(ge=0)]
    time: float
    writer: str
    before: Seq
    table: Seq
    numbers: dict[str, Number]
    batches: list[SharedBatch]
    purged: Offset = 0


_decoder = msgspec.msgpack.Decoder(SharedRecord)
_encoder = msgspec.msgpack.Encoder()


def encode_record(record: SharedRecord) -> bytes:
    """Encode a record."""
    return _encoder.encode(record)


def decode_record(data: bytes) -> SharedRecord:
    """Decode a record.

    Raises:
        StorageError: It is none, or one of another format.
    """
    return decode_as("record", _decoder, data, FORMAT)


def decode_as(
    noun: str, decoder: msgspec.msgpack.Decoder[Formatted], data: bytes, expected: int
) -> Formatted:
    """Decode bytes of an engine.

    Args:
        noun: The kind of thing that they are.
        decoder: Decodes it.
        data: The bytes.
        expected: Number of the format.

    Raises:
        StorageError: They are none, or of another format.
    """
    try:
        thing = decoder.decode(data)
    except msgspec.DecodeError as error:
        raise StorageError(f"the shared log has a {noun} that is none of wsqueue: {error}") from None
    if thing.format != expected:
        raise StorageError(
            f"the shared log has a {noun} of format {thing.format}; expected {expected}: update this consumer"
        )
    return thing
