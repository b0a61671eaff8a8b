"""Messages of one kind as they travel, and chains of one batch."""

from __future__ import annotations

from wsqueue.log.store import AppendChain
from wsqueue.protocol import v2
from wsqueue.protocol.packed import Headers, Packed, pack, pack_texts


def packed(*data: str | bytes, headers: list[Headers | None] | None = None) -> Packed:
    """Return the messages of a batch: all are `str`, or all are `bytes`."""
    texts = [one for one in data if isinstance(one, str)]
    if texts and headers is None:
        assert len(texts) == len(data)
        return pack_texts(texts)
    raw = [one.encode() if isinstance(one, str) else one for one in data]
    return pack(raw, text=bool(texts), headers=headers)


def forward_one(publisher: str, number: int, after: int, topic: str, messages: Packed) -> v2.Forward:
    """Return the packet that forwards one batch."""
    return v2.Forward(publisher, [number], after, topic, [max(1, messages.count)], messages)


def deliver_one(topic: str, offset: int, publisher: str, number: int, messages: Packed) -> v2.Deliver:
    """Return the packet that delivers one batch."""
    return v2.Deliver(topic, offset, publisher, [number], [max(1, messages.count)], messages)


def append_one(
    topic: str, messages: Packed, publisher: str = "", number: int = 0, after: int = 0
) -> AppendChain:
    """Return one batch for a store."""
    return AppendChain(publisher, [number], after, topic, [messages.count], messages)
