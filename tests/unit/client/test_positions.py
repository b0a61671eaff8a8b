"""How far a subscription has come, in memory."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tests.support.messages import packed
from wsqueue.client import positions as positions_module
from wsqueue.client.positions import Positions
from wsqueue.client.values import Gap, Message, Position, Start
from wsqueue.protocol import classic, v2
from wsqueue.protocol.packed import Headers, Packed
from wsqueue.protocol.session import Event, MessagesReceived

from ...support.messages import deliver_one


def subscribed(*topics: str, offset: int = 0, end: int = 0) -> Positions:
    """Return the positions in topics that a consumer delivers."""
    positions = Positions(topics, "latest")
    assert positions.receive([v2.Subscribed(topic, "log", offset, end) for topic in topics]) == []
    return positions


def deliver(
    offset: int, *data: str | bytes, topic: str = "news", publisher: str = "", number: int = 0
) -> v2.Deliver:
    return deliver_one(topic, offset, publisher, number, packed(*data))


@pytest.mark.parametrize(
    ("start", "request_packet"),
    [
        ("latest", v2.Subscribe("news")),
        ("earliest", v2.Subscribe("news", "earliest")),
        (7, v2.Subscribe("news", "offset", offset=7)),
        (0, v2.Subscribe("news", "offset", offset=0)),
        (-1, v2.Subscribe("news", "last", count=1)),
        (Position("log", 7), v2.Subscribe("news", "offset", log="log", offset=7)),
        (datetime.fromtimestamp(1.5, UTC), v2.Subscribe("news", "time", time=1.5)),
        (datetime(1969, 12, 31, tzinfo=UTC), v2.Subscribe("news", "time", time=0)),
    ],
)
def test_the_start_is_asked_for(start: Start, request_packet: v2.Subscribe) -> None:
    assert Positions(["news"], start).requests() == [request_packet]


def test_messages_have_their_place_in_the_log() -> None:
    positions = subscribed("news", offset=3)
    assert positions.receive([deliver(3, "a", "b"), deliver(5, "c")]) == [
        Message("news", "a", "log", 3),
        Message("news", "b", "log", 4),
        Message("news", "c", "log", 5),
    ]


def test_messages_come_as_they_were_published() -> None:
    positions = subscribed("news")
    headers: list[Headers | None] = [{"id": "1"}, None, {}]
    batch = deliver_one("news", 2, "", 0, packed("c", "d", "e", headers=headers))
    assert positions.receive([deliver(0, b"\xff", b""), batch]) == [
        Message("news", b"\xff", "log", 0),
        Message("news", b"", "log", 1),
        Message("news", "c", "log", 2, {"id": "1"}),
        Message("news", "d", "log", 3),
        Message("news", "e", "log", 4),
    ]


def test_a_text_that_is_no_text_comes_as_bytes() -> None:
    """No client of ours sends one, and no node looks."""
    positions = subscribed("news")
    batch = deliver_one("news", 0, "", 0, Packed([1, 1, 2], memoryview(b"a\xff\xc3\xb1")))
    received = positions.receive([batch])
    assert [item.data for item in received if isinstance(item, Message)] == ["a", b"\xff", "ñ"]


def test_a_new_connection_continues_where_the_lost_one_was() -> None:
    positions = subscribed("news", "sport", offset=3)
    positions.receive([deliver(3, "a", "b")])
    positions.connection_lost()
    assert not positions.delivered
    assert positions.requests() == [
        v2.Subscribe("news", "offset", log="log", offset=5),
        v2.Subscribe("sport", "offset", log="log", offset=3),
    ]


def test_the_last_messages_are_asked_for_until_a_consumer_has_answered() -> None:
    """A new connection, to whichever consumer, goes on behind the last message, and not back."""
    positions = Positions(["news", "sport"], -20)
    asked = [v2.Subscribe(topic, "last", count=20) for topic in ("news", "sport")]
    assert positions.requests() == asked
    positions.receive([v2.Subscribed("news", "log", 80, 100), deliver(80, "a", "b")])
    positions.connection_lost()
    assert positions.requests() == [v2.Subscribe("news", "offset", log="log", offset=82), asked[1]]
    positions.receive([v2.Subscribed("news", "log", 82, 100), v2.Subscribed("sport", "log", 3, 3)])
    assert not positions.at_end
    positions.connection_lost()
    assert positions.requests() == [
        v2.Subscribe("news", "offset", log="log", offset=82),
        v2.Subscribe("sport", "offset", log="log", offset=3),
    ]


def test_a_gap_moves_the_position() -> None:
    positions = subscribed("news")
    assert positions.receive([v2.Gap("news", 10, 8)]) == [Gap("news", 8)]
    assert positions.requests() == [v2.Subscribe("news", "offset", log="log", offset=10)]


def test_a_gap_that_the_connection_did_not_bring_is_asked_for_again() -> None:
    """The consumer tells of a gap after its answer, and only who asks for the position before it."""
    positions = subscribed("news")
    positions.receive([deliver(0, "a", "b")])
    for epoch in ("restored", "restored again"):
        positions.connection_lost()
        assert positions.requests() == [v2.Subscribe("news", "offset", log="log", offset=2)]
        assert positions.receive([v2.Subscribed("news", epoch, 1, 1)]) == []
    assert positions.at_end
    assert positions.receive([v2.Gap("news", 1, None)]) == [Gap("news", None)]
    positions.connection_lost()
    assert positions.requests() == [v2.Subscribe("news", "offset", log="restored again", offset=1)]


def test_a_message_is_as_good_as_a_gap() -> None:
    positions = Positions(["news"], Position("log", 2))
    positions.receive([v2.Subscribed("news", "later", 2, 3)])
    assert positions.requests() == [v2.Subscribe("news", "offset", log="log", offset=2)]
    positions.receive([deliver(2, "c")])
    assert positions.requests() == [v2.Subscribe("news", "offset", log="later", offset=3)]


def test_all_topics_must_be_delivered_and_reach_their_end() -> None:
    positions = Positions(["news", "sport"], "earliest")
    assert not positions.delivered
    events: list[tuple[Event, bool, bool]] = [
        (v2.Subscribed("news", "log", 0, 2), False, False),
        (v2.Subscribed("sport", "log", 0, 0), True, False),
        (deliver(0, "a"), True, False),
        (deliver(1, "b"), True, True),
    ]
    for event, delivered, at_end in events:
        positions.receive([event])
        assert (positions.delivered, positions.at_end) == (delivered, at_end)
    positions.connection_lost()
    assert not positions.at_end


def test_a_batch_that_was_stored_twice_is_taken_once() -> None:
    positions = subscribed("news", "sport")
    first = deliver(0, "a", publisher="p", number=1)
    again = deliver(1, "a", publisher="p", number=1)
    other_publisher = deliver(2, "b", publisher="q", number=1)
    other_topic = deliver(0, "c", topic="sport", publisher="p", number=1)
    received = positions.receive([first, again, other_publisher, other_topic])
    assert [item.data for item in received if isinstance(item, Message)] == ["a", "b", "c"]
    # The repeat has an offset all the same.
    positions.receive([again])
    assert positions.requests()[0] == v2.Subscribe("news", "offset", log="log", offset=2)


def test_the_publishers_that_were_heard_last_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions_module, "MAX_REMEMBERED_NUMBERS", 2)
    positions = subscribed("news")
    batches = [deliver(0, publisher, publisher=publisher, number=1) for publisher in "abac"]
    batches[2] = deliver(0, "a", publisher="a", number=2)
    assert len(positions.receive(batches)) == 4
    assert positions.receive([deliver(0, "again", publisher="a", number=2)]) == []
    assert len(positions.receive([deliver(0, "again", publisher="b", number=1)])) == 1


def test_a_publisher_on_many_topics_is_forgotten_before_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(positions_module, "MAX_REMEMBERED_NUMBERS", 3)
    positions = subscribed(*"abcdef")
    quiet = deliver(0, "x", topic="a", publisher="quiet", number=1)
    positions.receive([quiet, *(deliver(0, "x", topic=name, publisher="many", number=1) for name in "bcdef")])
    assert positions.receive([quiet]) == []


def test_packets_of_other_topics_are_ignored() -> None:
    positions = subscribed("news")
    other: list[Event] = [
        v2.Subscribed("other", "log", 0, 0),
        deliver(0, "x", topic="other"),
        v2.Gap("other", 1, 1),
    ]
    assert positions.receive([*other, v2.Unsubscribed("news"), v2.Draining(1.0)]) == []
    assert positions.delivered


def test_a_classic_connection_keeps_one_topic() -> None:
    positions = Positions(["a", "b", "c"], "latest")
    assert positions.keep_first() == ["b", "c"]
    assert positions.delivered
    assert positions.at_end
    packet = classic.Message("1", "a")
    received = positions.receive([MessagesReceived("a", [packet], [classic.encode(packet)])])
    assert received == [Message("a", "1")]


@pytest.mark.parametrize(
    ("numbers", "counts", "expected"),
    [
        ([4, 5], [1, 1], ""),
        ([2, 5, 6], [1, 1, 3], "cde"),
        ([5, 6, 9], [2, 2, 1], "cde"),
        ([1, 9], [4, 1], "e"),
        ([7], [2], "ab"),
    ],
)
def test_the_first_batches_of_a_chain_are_dropped_if_they_came_before(
    numbers: list[int], counts: list[int], expected: str
) -> None:
    positions = subscribed("news")
    first = v2.Deliver("news", 0, "p", [1, 2, 5], [1, 2, 1], packed(*"abcd"))
    assert len(positions.receive([first])) == 4
    again = v2.Deliver("news", 4, "p", numbers, counts, packed(*"abcde"[: sum(counts)]))
    found = positions.receive([again])
    end = 4 + sum(counts)
    begin = end - len(expected)
    assert found == [
        Message("news", one, "log", offset) for offset, one in zip(range(begin, end), expected, strict=True)
    ]
    (request,) = positions.requests()
    assert isinstance(request, v2.Subscribe)
    assert request.offset == end


def test_a_named_reader_is_looked_up_until_something_has_come() -> None:
    """A connection that breaks behind `subscribed` must not hide a gap."""
    positions = Positions(["news"], "earliest", "r")
    start = v2.Subscribe("news", "earliest", reader="r")
    assert positions.requests() == [start]
    positions.receive([v2.Subscribed("news", "log", 7, 9)])
    positions.connection_lost()
    assert positions.requests() == [start]
    assert positions.receive([v2.Subscribed("news", "log", 7, 9), v2.Gap("news", 8, 1)]) == [Gap("news", 1)]
    positions.connection_lost()
    assert positions.requests() == [v2.Subscribe("news", "offset", "log", 8, reader="r")]
    positions.receive([v2.Subscribed("news", "log", 8, 9), deliver(8, "a")])
    positions.connection_lost()
    assert positions.requests() == [v2.Subscribe("news", "offset", "log", 9, reader="r")]


@pytest.mark.parametrize(
    ("again", "at_end"),
    [
        (v2.Subscribed("news", "log", 1, 9), True),
        # That of another log is another one.
        (v2.Subscribed("news", "other", 1, 9), False),
    ],
)
def test_the_end_stays_when_a_subscription_begins_again(again: v2.Subscribed, at_end: bool) -> None:
    positions = subscribed("news", offset=0, end=2)
    positions.receive([deliver(0, "a"), again, deliver(1, "b")])
    assert positions.at_end is at_end
