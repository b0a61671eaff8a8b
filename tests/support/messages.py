"""Messages of one kind, as they travel."""

from __future__ import annotations

from wsqueue.protocol.packed import Headers, Packed, pack, pack_texts


def packed(*data: str | bytes, headers: list[Headers | None] | None = None) -> Packed:
    """Return the messages of a batch: all are `str`, or all are `bytes`."""
    texts = [one for one in data if isinstance(one, str)]
    if texts and headers is None:
        assert len(texts) == len(data)
        return pack_texts(texts)
    raw = [one.encode() if isinstance(one, str) else one for one in data]
    return pack(raw, text=bool(texts), headers=headers)
