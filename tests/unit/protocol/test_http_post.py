"""A `POST` in memory: its head, the decision on it, its body and one response."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.protocol.access import KeyRing, NamedKey, Rights
from wsqueue.protocol.close import CloseCode
from wsqueue.protocol.framing import LIBRARY_FRAMES, BodyReceived, HttpResponse, Post, RequestReceived
from wsqueue.protocol.keys import PreSharedKey
from wsqueue.protocol.session import Event, HelloDone, Session

KEY = "the key of cron"
RING = KeyRing(None, [NamedKey(PreSharedKey(KEY, name="cron"), Rights(publish=("*",)))])
MAX_BYTES = 1000


def request(body: bytes, *headers: str, key: str = KEY) -> bytes:
    lines = ["POST /publish/a HTTP/1.1", "Host: queue", f"Authorization: Bearer {key}", *headers]
    return "\r\n".join([*lines, "\r\n"]).encode() + body


def sized(body: bytes, *headers: str) -> bytes:
    return request(body, f"Content-Length: {len(body)}", *headers)


def receive(session: Session, parts: Sequence[bytes]) -> list[Event]:
    """Return the events of a request that comes in parts, and is accepted."""
    events: list[Event] = []
    for part in parts:
        for event in session.receive_data(part):
            events.append(event)
            if isinstance(event, RequestReceived):
                events += session.accept_post(RING, now=0.0)
    return events


def session() -> Session:
    return Session.acceptor(max_message_bytes=MAX_BYTES, max_topic_bytes=100)


def status(session: Session) -> int:
    written = b"".join(session.data_to_send())
    match = re.search(rb"HTTP/1.1 ([2-5]\d\d) ", written)
    return int(match[1]) if match else 0


@given(st.binary(max_size=MAX_BYTES), st.lists(st.integers(0, 1200)), st.booleans())
def test_however_it_is_cut(body: bytes, cuts: list[int], chunked: bool) -> None:
    framed = f"{len(body):x}\r\n".encode() + body + b"\r\n" if body else b""
    data = request(framed + b"0\r\n\r\n", "Transfer-Encoding: chunked") if chunked else sized(body)
    size = None if chunked else len(body)
    ends = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    acceptor = session()
    events = receive(acceptor, [data[begin:end] for begin, end in itertools.pairwise(ends)])
    (head, hello, whole) = events
    assert isinstance(head, RequestReceived)
    assert head.path == "/publish/a"
    assert head.post == Post(size, KEY)
    assert isinstance(hello, HelloDone)
    assert whole == BodyReceived(body)
    assert acceptor.unanswered
    acceptor.respond(HttpResponse(204, ""))
    assert status(acceptor) == 204
    assert acceptor.closing
    # Whatever comes behind it is dropped.
    assert acceptor.receive_data(data) == []
    assert acceptor.unfinished_bytes == 0


@given(st.binary(max_size=200), st.integers(0, 130))
def test_garbage_raises_nothing(garbage: bytes, at: int) -> None:
    data = sized(b"x")
    acceptor = session()
    receive(acceptor, [data[:at] + garbage + data[at:]])
    receive(acceptor, [garbage])
    acceptor.receive_eof()


def test_what_is_read_while_nothing_is_decided_waits() -> None:
    acceptor = session()
    (head,) = acceptor.receive_data(sized(b"body")[:-2])
    assert isinstance(head, RequestReceived)
    assert acceptor.receive_data(b"dy") == []
    assert acceptor.accept_post(RING, now=0.0)[1:] == [BodyReceived(b"body")]


def test_the_credential_is_hidden() -> None:
    (head,) = session().receive_data(sized(b"x"))
    assert KEY not in repr(head)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (sized(b"x" * (MAX_BYTES + 1)), 413),
        (request(b"4e9\r\n" + b"x" * 1200, "Transfer-Encoding: chunked"), 413),
        (request(b"x\r\n", "Transfer-Encoding: chunked"), 400),
        (request(b"x", "Content-Length: -1"), 400),
        (request(b"x", "Content-Length: 1", key="guessed"), 401),
    ],
)
def test_it_is_answered_at_once(data: bytes, expected: int) -> None:
    acceptor = session()
    receive(acceptor, [data])
    assert status(acceptor) == expected
    assert acceptor.closing
    assert acceptor.unfinished_bytes == 0


def test_a_head_of_very_many_lines() -> None:
    # Nobody has proved anything yet, and each line takes the library 20 µs.
    acceptor = session()
    receive(acceptor, [request(b"", *["a: b"] * 125)])
    assert status(acceptor) == 0
    acceptor = session()
    receive(acceptor, [request(b"", *["a: b"] * 7000)])
    assert status(acceptor) == 431
    # Lines of the body count for nothing.
    acceptor = session()
    assert receive(acceptor, [sized(b"\n" * MAX_BYTES)])[-1] == BodyReceived(b"\n" * MAX_BYTES)


def test_tiny_chunks_take_several_turns_and_are_a_burden() -> None:
    acceptor = session()
    events = receive(acceptor, [request(b"1\r\nx\r\n" * 400 + b"0\r\n\r\n", "Transfer-Encoding: chunked")])
    assert not any(isinstance(event, BodyReceived) for event in events)
    assert acceptor.unfinished_bytes > 1000
    turns = 1
    while acceptor.behind:
        events += acceptor.receive_data(b"")
        turns += 1
    assert events[-1] == BodyReceived(b"x" * 400)
    assert (turns, acceptor.take_burden()) == (3, 400 * LIBRARY_FRAMES)
    # Chunks as clients send them are none.
    acceptor = session()
    data = request(b"400\r\n" + b"x" * 1024 + b"\r\n", "Transfer-Encoding: chunked")
    receive(acceptor, [data[:-100], data[-100:]])
    assert acceptor.take_burden() == 0


@pytest.mark.parametrize("line", ["Authorization : Bearer {}", "Authorization: Bearer {}\0", "{}"])
def test_no_credential_is_sent_back(line: str) -> None:
    acceptor = session()
    receive(acceptor, [request(b"", line.format(KEY))])
    written = b"".join(acceptor.data_to_send())
    assert written.startswith(b"HTTP/1.1 400 ")
    assert written.endswith(b"illegal header line.\n")


@pytest.mark.parametrize(
    ("code", "expected"),
    [(CloseCode.GOING_AWAY, 503), (CloseCode.TRY_AGAIN_LATER, 503), (CloseCode.TOKEN_ENDED, 401)],
)
@pytest.mark.parametrize("ends", ["close", "fail"])
def test_a_close_code_is_a_status(ends: str, code: CloseCode, expected: int) -> None:
    acceptor = session()
    receive(acceptor, [sized(b"xy")[:-1]])
    getattr(acceptor, ends)(code)
    assert status(acceptor) == expected


def test_a_peer_that_waits_for_it_is_told_to_go_on() -> None:
    acceptor = session()
    data = sized(b"body", "Expect: 100-continue")
    receive(acceptor, [data[:-4]])
    assert b"".join(acceptor.data_to_send()) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert receive(acceptor, [b"body"]) == [BodyReceived(b"body")]
    # Who does not wait is not told.
    acceptor = session()
    receive(acceptor, [data])
    assert acceptor.data_to_send() == []
