"""How far a subscription to a prefix has come: its requests, and the messages of any connections."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.client.prefix import PrefixPositions
from wsqueue.client.values import Gap, Message, Start
from wsqueue.protocol import v2

from ...support.messages import deliver_one, packed
from ..nodes.test_prefixes import Node, Peer
from ..nodes.test_shared_consumers import LOST


def everything(_topic: str) -> bool:
    return True


@pytest.mark.parametrize(
    ("start", "request_packet"),
    [
        ("latest", v2.Follow("s/")),
        ("earliest", v2.Follow("s/", "earliest")),
        (-20, v2.Follow("s/", "last", count=20)),
    ],
)
def test_the_start_is_asked_for_until_the_first_answer(start: Start, request_packet: v2.Follow) -> None:
    positions = PrefixPositions("s/", start, everything)
    assert positions.requests() == [request_packet]
    assert not positions.delivered
    positions.receive([v2.Subscribed("s/a", "log", 3, 5)])
    positions.connection_lost()
    known = v2.Subscribe("s/a", "offset", log="log", offset=3)
    assert positions.requests() == [known, request_packet]
    positions.receive([v2.Subscribed("s/a", "log", 3, 5), v2.Followed("s/")])
    assert (positions.delivered, positions.at_end) == (True, False)
    positions.receive([deliver_one("s/a", 3, "", 0, packed("x", "y"))])
    assert positions.at_end
    positions.connection_lost()
    # All others are new.
    known = v2.Subscribe("s/a", "offset", log="log", offset=5)
    assert positions.requests() == [known, v2.Follow("s/", "earliest")]
    positions.receive([v2.Followed("s/")])
    assert not positions.delivered


def test_topics_of_other_consumers_are_not_taken() -> None:
    positions = PrefixPositions("s/", "latest", "s/a".__eq__)
    events = [v2.Subscribed(topic, "log", 0, 9) for topic in ("s/a", "s/b")]
    assert positions.receive([*events, v2.Gap("s/b", 9, 1), deliver_one("s/b", 9, "", 0, packed("x"))]) == []
    assert (positions.knows("s/a"), positions.knows("s/b")) == (True, False)


def test_a_refusal_is_no_answer() -> None:
    positions = PrefixPositions("s/", "latest", everything)
    positions.receive([v2.Followed("s/", "not_allowed")])
    assert not positions.delivered
    assert positions.requests() == [v2.Follow("s/")]


NAMES = st.text("ab", max_size=2)
STEPS: st.SearchStrategy[tuple[str, list[str], int]] = st.one_of(
    st.tuples(st.just("publish"), st.lists(NAMES, min_size=1, max_size=4), st.just(0)),
    st.tuples(st.just("read"), st.just([]), st.integers(0, 4)),
    st.tuples(st.sampled_from(["cut", "turn"]), st.just([]), st.just(0)),
)


class Subscriber:
    """A client of a consumer, whose connections a test cuts.

    Attributes:
        first: Number of messages of each topic when it had its first answer, or before it began with all.
        got: All messages and gaps.
    """

    def __init__(self, node: Node, prefix: str, start: Start) -> None:
        self._node, self._positions = node, PrefixPositions(prefix, start, everything)
        self.first: Counter[str] | None = Counter() if start == "earliest" else None
        self.got: list[Message | Gap] = []
        self.connect()

    @property
    def at_end(self) -> bool:
        return self._positions.at_end

    def connect(self) -> None:
        self._peer = Peer(self._node.consumer)
        self._peer.send(*self._positions.requests())

    def cut(self) -> None:
        """Lose all packets that have not been read."""
        self._peer.endpoint.lost(self._peer.connection, LOST)
        self._positions.connection_lost()
        self.connect()

    def read(self, most: int, count: Counter[str]) -> None:
        packets = self._peer.connection.packets
        events, packets[:most] = packets[:most], []
        if self.first is None and any(isinstance(event, v2.Followed) for event in events):
            self.first = count.copy()
        self.got += self._positions.receive(events)


@given(NAMES, st.sampled_from(["earliest", "latest"]), st.lists(STEPS, max_size=20))
def test_nothing_is_lost_or_comes_twice(
    prefix: str, start: Start, steps: list[tuple[str, list[str], int]]
) -> None:
    """Connections break at any packet. All comes from the earliest on, or from the first answer on."""

    async def check() -> None:
        node, count = Node(), Counter[str]()
        subscriber = Subscriber(node, prefix, start)
        for step, names, most in [*steps, *[("turn", [], 0), ("read", [], 1000)] * 30]:
            if step == "publish":
                node.publish(*names)
                count.update(names)
            elif step == "read":
                subscriber.read(most, count)
            elif step == "cut":
                subscriber.cut()
            else:
                await asyncio.sleep(0)
        assert subscriber.at_end
        assert subscriber.first is not None
        assert not any(isinstance(one, Gap) for one in subscriber.got)
        for name in count:
            offsets = [one.offset for one in subscriber.got if isinstance(one, Message) and one.topic == name]
            wanted = range(subscriber.first[name], count[name]) if name.startswith(prefix) else range(0)
            # Messages from between the request and its answer may come too.
            assert offsets == list(range(offsets[0], count[name])) if offsets else not wanted
            assert set(wanted) <= set(offsets)

    asyncio.run(check())
