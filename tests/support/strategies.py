"""Packets made by Hypothesis, and streams cut anywhere."""

from __future__ import annotations

import base64
import itertools
from collections.abc import Iterable
from typing import Any

import msgspec
from hypothesis import strategies as st

from wsqueue.protocol import classic, v2
from wsqueue.protocol.v2 import MAX_NUMBER

utf8_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
secrets = st.binary(min_size=32, max_size=32).map(lambda data: base64.b64encode(data).decode())
numbers = st.integers(1, 4) | st.integers(1, MAX_NUMBER) | st.just(MAX_NUMBER)
offsets = st.just(0) | numbers
data = st.lists(utf8_text, max_size=3)
logs = st.text(st.characters(exclude_categories=["Cs"]), max_size=64)
times = st.floats(0, MAX_NUMBER) | st.sampled_from([0.0, float(MAX_NUMBER)])

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def _publish(number: int, after: int, topic: str, count: int, messages: list[str]) -> v2.Publish:
    return v2.Publish(number, after, topic, count, msgspec.Raw(msgspec.json.encode(messages)))


V2_PACKETS: st.SearchStrategy[v2.Packet] = st.one_of(
    st.builds(v2.Challenge, secrets),
    st.builds(v2.Proof, secrets, st.none() | secrets, st.none() | utf8_text, st.none() | secrets),
    st.builds(v2.Publisher, secrets),
    st.builds(_publish, numbers, offsets, utf8_text, numbers, data),
    st.builds(v2.Forward, utf8_text, numbers, offsets, utf8_text, numbers, data),
    st.builds(v2.Ack, st.lists(st.tuples(numbers, numbers), min_size=1, max_size=3)),
    st.builds(
        v2.Refused,
        numbers,
        st.sampled_from(["full", "invalid", "too_long", "topic_too_long", "after_refused"]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
    ),
    st.builds(v2.Subscribe, utf8_text, st.sampled_from(["latest", "earliest"])),
    st.builds(v2.Subscribe, utf8_text, st.just("offset"), st.none() | logs, offsets),
    st.builds(v2.Subscribe, utf8_text, st.just("time"), st.none(), st.none(), times),
    st.builds(v2.Subscribed, utf8_text, logs, offsets, offsets),
    st.builds(v2.Unsubscribe, utf8_text),
    st.builds(v2.Unsubscribed, utf8_text),
    st.builds(v2.Deliver, utf8_text, offsets, utf8_text, offsets, data),
    st.builds(v2.Gap, utf8_text, offsets, st.none() | numbers),
    st.builds(v2.Draining, st.floats(0, 3600)),
    st.builds(v2.AskReport),
    st.builds(v2.NodeReport, st.dictionaries(utf8_text, numbers).map(msgspec.json.encode).map(msgspec.Raw)),
    st.builds(v2.AskAlive),
    st.builds(v2.Alive),
)
"""Packets of v2, each kind as often as any other."""

CLASSIC_PACKETS: st.SearchStrategy[classic.Packet] = st.one_of(
    st.integers(1, classic.MAX_ONCE).map(lambda once: classic.Hello(once=once)),
    st.builds(classic.Hello, st.none(), utf8_text),
    st.builds(classic.Message, utf8_text, utf8_text),
    st.builds(classic.Subscribe, utf8_text),
    st.builds(classic.Unsubscribe, utf8_text),
)


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    """Return the pieces of a stream that is cut at these places, modulo its length; none is empty."""
    edges = sorted({place % (len(stream) + 1) for place in places} | {0, len(stream)})
    return [stream[begin:end] for begin, end in itertools.pairwise(edges)]


def same(one: v2.Packet, other: v2.Packet) -> bool:
    """Return True if two packets are equal; fields of `Raw` compare by place, so they are decoded."""
    for kind, field in ((v2.Publish, "data"), (v2.NodeReport, "report")):
        if isinstance(one, kind) and isinstance(other, kind):
            if msgspec.json.decode(getattr(one, field)) != msgspec.json.decode(getattr(other, field)):
                return False
            other = msgspec.structs.replace(other, **{field: getattr(one, field)})
    return one == other
