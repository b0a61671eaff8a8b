"""Packets made by Hypothesis, and streams cut anywhere."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import msgspec
from hypothesis import strategies as st

from wsqueue.protocol import v2
from wsqueue.protocol.packed import Headers, Packed, pack
from wsqueue.protocol.v2 import MAX_NUMBER

utf8_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
any_utf8_text = st.one_of(
    utf8_text,
    st.text(st.characters(max_codepoint=0x7F), max_size=10),
    st.text(st.characters(min_codepoint=0x80, max_codepoint=0x7FF), max_size=10),
    st.text(st.characters(min_codepoint=0x800, max_codepoint=0xFFFF, exclude_categories=["Cs"]), max_size=10),
    st.text(st.characters(min_codepoint=0x10000), max_size=10),
)
"""Texts of each length that a character has in UTF-8, and of all of them."""
secrets = st.binary(min_size=32, max_size=32)
numbers = st.integers(1, 4) | st.integers(1, MAX_NUMBER) | st.just(MAX_NUMBER)
offsets = st.just(0) | numbers
logs = st.text(st.characters(exclude_categories=["Cs"]), max_size=64)
names = st.from_regex(v2.GROUP_PATTERN.removesuffix("\\Z"), fullmatch=True)
times = st.floats(0, MAX_NUMBER) | st.sampled_from([0.0, float(MAX_NUMBER)])

json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)

_extensions = st.builds(msgspec.msgpack.Ext, st.integers(-128, 127), st.binary(max_size=4))
msgpack_values: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        *(st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(), _extensions),
        *(utf8_text, st.binary(max_size=8), secrets),
    ),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            utf8_text | st.integers(-(2**63), 2**64 - 1) | st.binary(max_size=4), inner, max_size=3
        )
    ),
    max_leaves=8,
)
"""Values of all types of MessagePack."""

headers: st.SearchStrategy[Headers] = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4), utf8_text, max_size=3
)


@st.composite
def batches(draw: st.DrawFn) -> Packed:
    """Draw messages as they travel: all texts or all bytes, some with headers."""
    text = draw(st.booleans())
    one = any_utf8_text.map(str.encode) if text else st.binary(max_size=10)
    messages = draw(st.lists(one, min_size=1, max_size=4))
    of_each = st.lists(st.none() | headers, min_size=len(messages), max_size=len(messages))
    return pack(messages, text=text, headers=draw(st.none() | of_each))


@st.composite
def chains(draw: st.DrawFn, numbers: st.SearchStrategy[int]) -> tuple[list[int], list[int], Packed]:
    """Draw the numbers, counts and messages of batches that travel as one."""
    messages = draw(batches())
    ends = sorted(draw(st.sets(st.integers(1, messages.count), max_size=3)) | {messages.count})
    counts = [end - begin for begin, end in zip([0, *ends], ends, strict=False)]
    found = draw(st.sets(numbers, min_size=len(ends), max_size=len(ends)))
    return sorted(found), counts, messages


kinds = st.sampled_from(["group", "reader"])
topic_entries = st.builds(
    v2.TopicEntry,
    utf8_text,
    *(offsets, offsets, offsets, offsets, offsets),
    st.lists(
        st.builds(
            v2.NameEntry,
            *(kinds, names, offsets, offsets, offsets, offsets, offsets),
            st.none() | times,
        ),
        max_size=2,
    ),
)

V2_PACKETS: st.SearchStrategy[v2.Packet] = st.one_of(
    st.builds(v2.Challenge, secrets),
    st.builds(v2.Proof, secrets, st.none() | secrets, st.none() | utf8_text, st.none() | secrets),
    st.builds(v2.Publisher, secrets),
    st.builds(v2.Publish, numbers, offsets, utf8_text, batches()),
    st.builds(
        lambda publisher, before, topic, chain: v2.Forward(
            publisher, chain[0], max(0, chain[0][0] - before), topic, *chain[1:]
        ),
        *(utf8_text.filter(bool), numbers, utf8_text, chains(numbers)),
    ),
    st.builds(v2.Ack, st.lists(st.tuples(numbers, numbers), min_size=1, max_size=3)),
    st.builds(
        v2.Refused,
        numbers,
        st.sampled_from(["full", "invalid", "too_long", "topic_too_long", "after_refused"]),
        st.text(st.characters(exclude_categories=["Cs"]), max_size=200),
        st.none() | numbers,
    ),
    st.builds(v2.Subscribe, utf8_text, st.sampled_from(["latest", "earliest"])),
    st.builds(v2.Subscribe, utf8_text, st.just("offset"), st.none() | logs, offsets),
    st.builds(v2.Subscribe, utf8_text, st.just("time"), st.none(), st.none(), times),
    st.builds(v2.Subscribe, utf8_text, st.just("last"), count=numbers),
    st.builds(v2.Subscribe, utf8_text, st.just("earliest"), reader=names),
    st.builds(v2.Subscribed, utf8_text, logs, offsets, offsets),
    st.builds(v2.Unsubscribe, utf8_text),
    st.builds(v2.Unsubscribed, utf8_text),
    st.builds(
        lambda topic, offset, publisher, chain: v2.Deliver(topic, offset, publisher, *chain),
        *(utf8_text, offsets, utf8_text, chains(offsets)),
    ),
    st.builds(v2.Gap, utf8_text, offsets, st.none() | numbers),
    st.builds(v2.Follow, utf8_text),
    st.builds(v2.Follow, utf8_text, st.just("last"), count=numbers),
    st.builds(v2.Followed, utf8_text, st.none() | st.just("full")),
    st.builds(v2.Commit, utf8_text, names, logs, offsets),
    st.builds(v2.Committed, utf8_text, names, logs, offsets),
    st.builds(v2.Draining, st.floats(0, 3600)),
    st.builds(v2.Log, logs.filter(bool), st.booleans()),
    st.builds(v2.AskReport),
    st.builds(v2.NodeReport, utf8_text),
    st.builds(v2.AskTopics, utf8_text, st.none() | utf8_text, st.booleans()),
    st.builds(v2.TopicList, st.lists(topic_entries, max_size=2), st.none() | utf8_text, st.none() | logs),
    st.builds(v2.Purge, utf8_text, st.none() | offsets),
    st.builds(v2.Forget, utf8_text, kinds, names),
    st.builds(v2.Disconnect, utf8_text.filter(bool)),
    st.builds(v2.Disconnect, st.none(), names.map(lambda name: name[:32])),
    st.builds(v2.Done, offsets),
    st.builds(v2.Failed, st.sampled_from(["in_use", "unknown", "unavailable"]), utf8_text),
    st.builds(v2.AskAlive),
    st.builds(v2.Alive),
)
"""Packets of v2, each kind as often as any other."""


def cut(stream: bytes, places: Iterable[int]) -> list[bytes]:
    """Return the pieces of a stream that is cut at these places, modulo its length; none is empty."""
    edges = sorted({place % (len(stream) + 1) for place in places} | {0, len(stream)})
    return [stream[begin:end] for begin, end in itertools.pairwise(edges)]
