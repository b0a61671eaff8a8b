"""Events out of packets, read by a parser of its own, and requests for them."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.protocol import v2
from wsqueue.protocol.close import CloseCode
from wsqueue.protocol.event_framing import MAX_IGNORED_BYTES, EventFraming
from wsqueue.protocol.events import SLICE_BYTES, SLICE_MESSAGES, EventEncoder, EventsAsked, asked, whole_slice
from wsqueue.protocol.framing import Get, HttpResponse
from wsqueue.protocol.packed import Headers, pack
from wsqueue.protocol.upgrade import credential_of

from ...support.event_source import Event, EventParser

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
LINES = st.lists(st.sampled_from(["\r", "\n", "\r\n", "a", ":", " ", "data", "\0", "\ufeff", "é"])).map(
    "".join
)


def deliver(*messages: bytes, offset: int = 0, headers: list[Headers | None] | None = None) -> bytes:
    packed = pack(messages, text=True, headers=headers)
    return v2.encode(v2.Deliver("t", offset, "", [0], [len(messages)], packed))


def encoder(*, as_json: bool = False, resumes: bool = False) -> EventEncoder:
    made = EventEncoder(as_json=as_json, resumes=resumes)
    made.take(v2.Subscribed("t", "log", 0, 0))
    return made


def all_events(made: EventEncoder) -> bytes:
    slices = []
    while made.waiting:
        slices.append(made.next_slice())
    return b"".join(slices)


@given(st.lists(TEXTS | LINES, min_size=1), st.integers(0, 2**40), st.data())
def test_texts_arrive_with_their_positions(texts: list[str], offset: int, data: st.DataObject) -> None:
    made = encoder()
    made.take(deliver(*[text.encode() for text in texts], offset=offset))
    stream = all_events(made)
    parser = EventParser()
    cut = data.draw(st.integers(0, len(stream)))
    lines = [text.replace("\r\n", "\n").replace("\r", "\n") for text in texts]
    assert parser.feed(stream[:cut]) + parser.feed(stream[cut:]) == [
        Event(text, "message", f"log:{at}") for at, text in enumerate(lines, offset + 1)
    ]


@given(st.lists(st.binary() | TEXTS.map(str.encode), min_size=1))
def test_json_and_base64_lose_nothing(messages: list[bytes]) -> None:
    made = encoder(as_json=True)
    headers: list[Headers | None] = [{"a": "1\r\n2"} if len(message) % 2 else None for message in messages]
    made.take(deliver(*messages, headers=headers))
    for event, message, header in zip(EventParser().feed(all_events(made)), messages, headers, strict=True):
        fields = json.loads(event.data)
        assert event.type == "message"
        assert fields.get("headers") == header
        got = fields["data"].encode() if "data" in fields else base64.b64decode(fields["data_base64"])
        assert got == message
    made = encoder()
    made.take(deliver(*messages))
    for event, message in zip(EventParser().feed(all_events(made)), messages, strict=True):
        if event.type == "binary":
            assert base64.b64decode(event.data) == message
        else:
            assert event.data == message.decode().replace("\r\n", "\n").replace("\r", "\n")


def test_exact_bytes() -> None:
    made = encoder()
    made.take(deliver(b"one\n two", b"\xff", offset=7))
    made.take(v2.Gap("t", 12, 3))
    made.take(v2.Gap("t", 20, None))
    assert all_events(made) == (
        b"id: log:0\n\n"
        b"data: one\ndata:  two\nid: log:8\n\n"
        b"event: binary\ndata: /w==\nid: log:9\n\n"
        b'event: gap\ndata: {"missed":3}\nid: log:12\n\n'
        b'event: gap\ndata: {"missed":null}\nid: log:20\n\n'
    )


def test_a_client_keeps_its_position_until_it_has_an_event() -> None:
    """A connection that breaks before the gap must not hide it."""
    made = encoder(resumes=True)
    assert made.next_slice() == b""
    made.take(v2.Subscribed("t", "other", 5, 5))
    made.take(deliver(b"x", offset=5))
    made.take(v2.Subscribed("t", "third", 6, 6))
    made.take(v2.Gap("t", 6, None))
    events = EventParser().feed(all_events(made))
    assert [event.id for event in events] == ["other:6", "third:6"]


def test_a_log_without_an_id_gives_no_position() -> None:
    made = EventEncoder(as_json=False, resumes=False)
    made.take(v2.Subscribed("t", "", 0, 0))
    made.take(deliver(b"x"))
    assert all_events(made) == b"data: x\n\n"


def test_events_are_made_in_slices() -> None:
    count = 3 * SLICE_MESSAGES + 1
    packet = deliver(*[b""] * count)
    assert whole_slice([packet], "log", as_json=False) == b""
    made = encoder()
    made.take(packet)
    assert made.waiting_bytes == len(packet)
    numbers = []
    while made.waiting:
        numbers.append(len(EventParser().feed(made.next_slice())))
        assert made.waiting_bytes in (0, len(packet) + 8 * count)
    assert numbers == [SLICE_MESSAGES] * 3 + [1]
    made.take(deliver(*[b"\n" * (SLICE_BYTES // 4)] * 3))
    assert len(made.next_slice()) < 2 * 7 * SLICE_BYTES // 4 + 1000
    made.drop()
    assert (made.waiting, made.waiting_bytes, made.next_slice()) == (False, 0, b"")


def test_small_packets_are_one_slice() -> None:
    packets = [deliver(b"x", offset=1), deliver(b"y", offset=2)]
    assert whole_slice(packets, "log", as_json=False) == b"data: x\nid: log:2\n\ndata: y\nid: log:3\n\n"


@pytest.mark.parametrize(
    ("query", "last", "start", "resumes"),
    [
        ("", "", v2.Subscribe("t"), False),
        ("from=earliest", "", v2.Subscribe("t", "earliest"), False),
        ("from=-20", "", v2.Subscribe("t", "last", count=20), False),
        ("from=17", "", v2.Subscribe("t", "offset", offset=17), False),
        ("from=ab12%3A17", "", v2.Subscribe("t", "offset", log="ab12", offset=17), True),
        ("from=ab12:17&format=json", "", v2.Subscribe("t", "offset", log="ab12", offset=17), True),
        ("from=earliest", "ab12:18", v2.Subscribe("t", "offset", log="ab12", offset=18), True),
        (
            "from=2026-11-25T12:00",
            "",
            v2.Subscribe("t", "time", time=datetime(2026, 11, 25, 12, tzinfo=UTC).timestamp()),
            False,
        ),
        (
            "from=2026-11-25T12:00%2B01:00",
            "",
            v2.Subscribe("t", "time", time=datetime(2026, 11, 25, 11, tzinfo=UTC).timestamp()),
            False,
        ),
    ],
)
def test_where_to_start(query: str, last: str, start: v2.Subscribe, *, resumes: bool) -> None:
    assert asked("t", query, Get(last_event_id=last)) == EventsAsked(start, "json" in query, resumes)


@pytest.mark.parametrize(
    ("query", "get", "status", "text"),
    [
        ("", Get(head=True), 405, "Only GET"),
        ("", Get(accept="text/html, image/*"), 406, "text/event-stream"),
        ("from=soon", Get(), 400, "'soon' is not a start: expected latest, earliest"),
        ("from=9007199254740992", Get(), 400, "is not a start"),
        ("from=1&from=2", Get(), 400, "twice"),
        ("format=xml", Get(), 400, "neither text nor json"),
        ("token=x", Get(), 400, "never into a URL"),
        ("wsqueue_token=x&from=1", Get(), 400, "never into a URL"),
        ("token", Get(), 400, "never into a URL"),
        (f"from={'1' * 600}", Get(), 414, "512 bytes"),
        ("", Get(last_event_id="latest"), 400, "Last-Event-ID is not the id of an event"),
        ("", Get(last_event_id="a:" + "9" * 16), 400, "Last-Event-ID is not the id of an event"),
    ],
)
def test_requests_that_are_refused(query: str, get: Get, status: int, text: str) -> None:
    page = asked("t", query, get)
    assert isinstance(page, HttpResponse)
    assert (page.status, text in page.text) == (status, True)


@pytest.mark.parametrize("accept", ["", "text/event-stream", "*/*", "text/html,*/*;q=0.8", "Text/*; q=1"])
def test_what_is_accepted(accept: str) -> None:
    assert isinstance(asked("t", "", Get(accept=accept)), EventsAsked)


@given(st.text(max_size=600), st.text(max_size=50))
def test_any_query_is_answered(query: str, last: str) -> None:
    assert isinstance(asked("t", query, Get(last_event_id=last)), EventsAsked | HttpResponse)


@pytest.mark.parametrize(
    ("get", "credential"),
    [
        (Get(), ""),
        (Get(bearer="a"), "a"),
        (Get(cookies="wsqueue_token=b"), "b"),
        (Get(cookies='x=1; wsqueue_token="b"; y'), "b"),
        (Get(bearer="a", cookies="wsqueue_token=b"), "a"),
        (Get(cookies="wsqueue_token=b; wsqueue_token=b"), "b"),
        (Get(cookies="wsqueue_token=b; wsqueue_token=c"), ""),
        (Get(cookies="xwsqueue_token=b"), ""),
    ],
)
def test_credentials(get: Get, credential: str) -> None:
    assert credential_of(get) == credential
    assert "b" not in repr(Get(bearer="b", cookies="b")).replace("bearer", "")


class TestFraming:
    def test_only_comments_and_the_end_go_out(self) -> None:
        framing = EventFraming([b"head"])
        assert framing.open
        assert framing.receive_data(b"GET / HTTP/1.1\r\n\r\n") == []
        framing.send_ping()
        framing.inside_event = True
        framing.send_ping()
        assert framing.data_to_send() == [b"head", b":\n\n"]
        framing.close(CloseCode.GOING_AWAY, "draining")
        framing.fail(CloseCode.INTERNAL_ERROR, "later")
        framing.send_ping()
        assert framing.data_to_send() == [b""]
        assert framing.closing
        assert str(framing.closed) == "we closed with 1001 (draining)"

    def test_a_client_that_goes(self) -> None:
        framing = EventFraming([])
        framing.receive_eof()
        assert framing.closed is not None
        assert (framing.closed.by_peer, framing.closing, framing.open) == (True, False, False)

    def test_a_client_that_sends_without_end(self) -> None:
        framing = EventFraming([])
        framing.receive_data(b"x" * MAX_IGNORED_BYTES)
        assert framing.quiet
        framing.receive_data(b"x")
        assert (framing.closing, framing.data_to_send()) == (True, [b""])
