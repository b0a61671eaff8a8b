from __future__ import annotations

import base64
import itertools
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.protocol import classic, v2
from wsqueue.protocol.classic import MAX_DETAIL_CHARACTERS
from wsqueue.protocol.close import CloseCode, PeerError

from ...support.session_pair import many
from ...support.strategies import V2_PACKETS, json_values, same, utf8_text

SECRET = base64.b64encode(bytes(range(32))).decode()


def refusal(payload: bytes, code: CloseCode = CloseCode.INVALID_PACKET) -> str:
    """Return the reason why a payload is refused, checked not to quote it at length."""
    with pytest.raises(PeerError) as caught:
        v2.decode(payload)
    assert caught.value.code is code
    assert len(caught.value.reason) <= len(code.reason) + 2 + MAX_DETAIL_CHARACTERS
    return caught.value.reason


def publish(data: bytes) -> bytes:
    return b'{"t":"publish","number":7,"after":3,"topic":"news","count":2,"data":%s}' % data


def forward(data: bytes) -> bytes:
    return b'{"t":"forward","publisher":"p",' + publish(data).partition(b",")[2]


def pass_on(payload: bytes) -> bytes:
    """Forward a published batch, as a producer does."""
    packet = v2.decode(payload)
    assert isinstance(packet, v2.Publish)
    return v2.encode(v2.RawForward("p", 7, 3, "news", 2, packet.data))


@pytest.mark.parametrize(
    ("packet", "payload"),
    [
        (v2.Challenge(SECRET), f'{{"t":"challenge","nonce":"{SECRET}"}}'),
        (v2.Proof(SECRET), f'{{"t":"proof","proof":"{SECRET}"}}'),
        (
            v2.Proof(SECRET, SECRET, "/produce", SECRET),
            f'{{"t":"proof","proof":"{SECRET}","nonce":"{SECRET}","path":"/produce","binding":"{SECRET}"}}',
        ),
        (v2.Publisher(SECRET), f'{{"t":"publisher","secret":"{SECRET}"}}'),
        (
            v2.Publish(2, 1, "news", 2, v2.join_data([b'"a"', b'"\xc3\xb1"'])),
            '{"t":"publish","number":2,"after":1,"topic":"news","count":2,"data":["a","ñ"]}',
        ),
        (
            v2.Forward("p", 2, 0, "news", 1, ["a"]),
            '{"t":"forward","publisher":"p","number":2,"after":0,"topic":"news","count":1,"data":["a"]}',
        ),
        (v2.Ack([(1, 3), (7, 7)]), '{"t":"ack","numbers":[[1,3],[7,7]]}'),
        (v2.Refused(4, "full", "why"), '{"t":"refused","number":4,"code":"full","reason":"why"}'),
        (v2.Subscribe("news"), '{"t":"subscribe","topic":"news"}'),
        (v2.Subscribe("news", "earliest"), '{"t":"subscribe","topic":"news","start":"earliest"}'),
        (
            v2.Subscribe("x", "offset", "a", 5),
            '{"t":"subscribe","topic":"x","start":"offset","log":"a","offset":5}',
        ),
        (v2.Subscribe("x", "time", time=1.5), '{"t":"subscribe","topic":"x","start":"time","time":1.5}'),
        (v2.Subscribed("x", "abc", 0, 9), '{"t":"subscribed","topic":"x","log":"abc","offset":0,"end":9}'),
        (v2.Unsubscribe("news"), '{"t":"unsubscribe","topic":"news"}'),
        (v2.Unsubscribed("news"), '{"t":"unsubscribed","topic":"news"}'),
        (
            v2.Deliver("news", 3, "p", 2, ["a"]),
            '{"t":"deliver","topic":"news","offset":3,"publisher":"p","number":2,"data":["a"]}',
        ),
        (v2.Gap("news", 3, 2), '{"t":"gap","topic":"news","offset":3,"missed":2}'),
        (v2.Gap("news", 3, None), '{"t":"gap","topic":"news","offset":3,"missed":null}'),
        (v2.Draining(2.5), '{"t":"draining","retry_seconds":2.5}'),
        (v2.AskReport(), '{"t":"ask_report"}'),
        (v2.NodeReport(msgspec.Raw(b'{"role":"consumer"}')), '{"t":"report","report":{"role":"consumer"}}'),
        (v2.AskAlive(), '{"t":"ask_alive"}'),
        (v2.Alive(), '{"t":"alive"}'),
    ],
)
def test_exact_bytes_that_are_sent(packet: v2.Packet, payload: str) -> None:
    assert v2.encode(packet) == payload.encode()
    assert same(v2.decode(payload.encode()), packet)


def test_every_packet_is_tried() -> None:
    marks = test_exact_bytes_that_are_sent.pytestmark  # type: ignore[attr-defined]
    assert {type(packet) for packet, _ in marks[0].args[1]} == set(v2.PACKETS)


@many
@given(V2_PACKETS)
def test_packets_survive(packet: v2.Packet) -> None:
    payload = v2.encode(packet)
    assert same(v2.decode(payload), packet)
    assert json.loads(payload)["t"] == type(packet).__struct_config__.tag


@many
@given(V2_PACKETS, st.randoms(use_true_random=False))
def test_the_order_of_the_keys_and_white_space_are_free(packet: v2.Packet, random: Any) -> None:
    items = list(json.loads(v2.encode(packet)).items())
    random.shuffle(items)
    again = v2.decode(json.dumps(dict(items), indent=1).encode())
    assert same(again, packet)


@pytest.mark.parametrize(
    "number", ["-1", str(v2.MAX_NUMBER + 1), "9" * 5000, "1.0", "1e3", "null", '"1"', "[]"]
)
def test_what_is_not_a_number_or_an_offset(number: str) -> None:
    refusal(b'{"t":"ack","numbers":[[%s,1]]}' % number.encode())
    refusal(b'{"t":"refused","number":%s,"code":"full","reason":""}' % number.encode())
    refusal(b'{"t":"gap","topic":"news","offset":%s,"missed":null}' % number.encode())


@pytest.mark.parametrize(
    "secret",
    [
        *("", SECRET[:-1], SECRET[1:], SECRET + "=", SECRET + "\n", "\n" + SECRET, SECRET[:-2] + "=="),
        *(SECRET.replace("A", other, 1) for other in "-_ñ"),
    ],
)
def test_what_is_not_a_secret(secret: str) -> None:
    text = json.dumps(secret).encode()
    assert "secret" in refusal(b'{"t":"publisher","secret":%s}' % text)
    assert "nonce" in refusal(b'{"t":"challenge","nonce":%s}' % text)
    assert "proof" in refusal(b'{"t":"proof","proof":%s}' % text)


@pytest.mark.parametrize(
    ("payload", "hint"),
    [
        (b'{"t":"subscribe","topic":"x","start":"offset"}', "`offset` goes with the start `offset`"),
        (b'{"t":"subscribe","topic":"x","start":"offset","offset":null}', "`offset` goes with"),
        (b'{"t":"subscribe","topic":"x","offset":1}', "`offset` goes with"),
        (b'{"t":"subscribe","topic":"x","start":"time"}', "`time` goes with the start `time`"),
        (b'{"t":"subscribe","topic":"x","start":"latest","time":1}', "`time` goes with"),
        (b'{"t":"subscribe","topic":"x","start":"offset","offset":1,"time":1}', "`time` goes with"),
        (b'{"t":"subscribe","topic":"x","start":"time","time":-1}', "$.time"),
        (b'{"t":"subscribe","topic":"x","start":"time","time":1e300}', "$.time"),
        (b'{"t":"subscribe","topic":"x","start":"yesterday"}', "$.start"),
        (b'{"t":"subscribed","topic":"x","log":"%s","offset":0,"end":0}' % (b"x" * 65), "$.log"),
        (b'{"t":"refused","number":1,"code":"no","reason":""}', "$.code"),
        (b'{"t":"refused","number":1,"code":"full","reason":"%s"}' % (b"x" * 201), "$.reason"),
        (b'{"t":"ack","numbers":[[0,1]]}', "$.numbers"),
        (b'{"t":"refused","number":0,"code":"full","reason":""}', "$.number"),
        (b'{"t":"ack","numbers":[]}', "$.numbers"),
        (b'{"t":"ack","numbers":[[1]]}', "$.numbers"),
        (b'{"t":"ack","numbers":[[1,2,3]]}', "$.numbers"),
        (b'{"t":"deliver","topic":"x","offset":0,"publisher":"","number":0,"data":null}', "$.data"),
        (b'{"t":"draining","retry_seconds":3600.1}', "$.retry_seconds"),
        (b'{"t":"draining","retry_seconds":-1}', "$.retry_seconds"),
        (b'{"t":"unsubscribe","topic":"x","x":1}', "unknown field"),
        (b'{"t":"unsubscribe"}', "missing required field `topic`"),
        (b'{"topic":"x"}', "missing required field `t`"),
        (b'{"t":"Unsubscribe","topic":"x"}', "$.t"),
        (b'{"t":"m","d":"x","s":"x"}', "$.t"),
    ],
)
def test_wrong_fields(payload: bytes, hint: str) -> None:
    assert hint in refusal(payload)


class TestData:
    """The content of a batch is the publisher's responsibility; the consumer checks it."""

    @pytest.mark.parametrize(
        "data",
        [
            *(b"[]", b'"x"', b"{}", b"null", b"1", b"[1]", b'["a",null]', b'[["a"]]', b'{"a":["b"]}'),
            *(b"[1e999]", b'["\xff"]', b'["\xed\xa0\x80"]', b'["\xc3"]'),
        ],
    )
    def test_a_forward_with_other_data_comes_without_any(self, data: bytes) -> None:
        assert v2.decode(forward(data)) == v2.Forward("p", 7, 3, "news", 2, [])

    def test_a_forward_with_a_wrong_count_comes_as_it_is(self) -> None:
        assert v2.decode(forward(b'["a"]')) == v2.Forward("p", 7, 3, "news", 2, ["a"])

    def test_a_producer_passes_data_on_as_it_came(self) -> None:
        for data in (b' [ "\\u0061" , "\xff" ] ', b"null", b'{"a" : 1}'):
            assert pass_on(publish(data)) == forward(data.strip())

    @pytest.mark.parametrize(
        "change",
        [
            (b'"after":3', b'"after":-3'),
            (b'"count":2', b'"count":0'),
            (b'"topic":"news"', b'"topic":"\xff"'),
            (b'"topic":"news"', b'"topic":7'),
            (b'"publisher":"p",', b""),
            (b'"t":"forward",', b""),
            (b'"t":"forward"', b'"t":"backward"'),
            (b'"t":"forward"', b'"t":7'),
            (b'"number":7', b'"number":7,"x":1'),
        ],
    )
    @pytest.mark.parametrize("data", [b'["a","b"]', b"null"])
    def test_another_fault_is_its_senders(self, change: tuple[bytes, bytes], data: bytes) -> None:
        payload = forward(data).replace(*change)
        refusal(payload, CloseCode.INVALID_TEXT if b"\xff" in payload else CloseCode.INVALID_PACKET)

    @pytest.mark.parametrize(
        "data", [b"[", b"[01]", b"nul", b'["\\x"]', b'["\x01"]', b"[1,]", b'["\\ud800"]', b"[NaN]"]
    )
    @pytest.mark.parametrize("space", [b"", b" "])
    def test_a_publish_whose_data_is_not_json_comes_without_any(self, data: bytes, space: bytes) -> None:
        payload = publish(data).replace(b',"data":', b"," + space + b'"data":' + space)
        self.has_no_data(payload)
        refusal(payload.replace(b'"number":7', b'"number":-7'))

    @pytest.mark.parametrize(
        "data", [b'["\\ud83d"]', b'["\\\\","\\uDC00\\ud83d"]', b'["\\ud83d\\ude00\\ud83d"]']
    )
    def test_a_lone_surrogate_is_known_wherever_it_is(self, data: bytes) -> None:
        self.has_no_data(b'{"t":"publish","data":%b,"number":7,"after":3,"topic":"news","count":2}' % data)
        packet = v2.decode(publish(b'["a","b"]').replace(b"news", data[2:-2].replace(b'"', b"")))
        assert isinstance(packet, v2.Publish)
        assert (packet.number, len(packet.data)) == (7, 0)

    @staticmethod
    def has_no_data(payload: bytes) -> None:
        packet = v2.decode(payload)
        assert isinstance(packet, v2.Publish)
        assert (packet.number, packet.after, packet.topic, packet.count) == (7, 3, "news", 2)
        assert len(packet.data) == 0

    @pytest.mark.parametrize("closed", [True, False])
    def test_whatever_a_producer_passes_on_a_consumer_takes(self, closed: bool) -> None:
        """Data of any depth, at any depth of the consumer's stack."""
        for depth in (*range(900, 1000), 100_000):
            data = b"[" * depth + b"]" * (depth if closed else 0)
            packet = v2.decode(publish(data))
            assert isinstance(packet, v2.Publish)
            if not len(packet.data):
                continue
            passed_on = pass_on(publish(data))
            assert decode_deeper(passed_on, 5) == v2.Forward("p", 7, 3, "news", 2, [])


def decode_deeper(payload: bytes, frames: int) -> v2.Packet:
    return decode_deeper(payload, frames - 1) if frames else v2.decode(payload)


def is_taken_or_refused(payload: bytes) -> None:
    """Check that a payload is a packet, or is refused with a code and few words."""
    try:
        packet = v2.decode(payload)
    except PeerError as error:
        assert error.code in (CloseCode.INVALID_PACKET, CloseCode.INVALID_TEXT)  # noqa: PT017
        assert error.reason == str(error)  # noqa: PT017
        assert len(error.reason) <= 150  # noqa: PT017
    else:
        assert isinstance(packet, v2.PACKETS)


CHANGES = st.lists(
    st.tuples(st.integers(0), st.integers(0, 3), st.binary(max_size=4)), min_size=1, max_size=4
)


@many
@given(V2_PACKETS, CHANGES)
def test_changed_bytes_raise_nothing_but_peer_error(packet: v2.Packet, changes: list[Any]) -> None:
    payload = v2.encode(packet)
    for place, removed, added in changes:
        start = place % (len(payload) + 1)
        payload = payload[:start] + added + payload[start + removed :]
    is_taken_or_refused(payload)


@many
@given(V2_PACKETS, st.integers(0, 10), json_values)
def test_other_values_raise_nothing_but_peer_error(packet: v2.Packet, place: int, value: Any) -> None:
    fields = json.loads(v2.encode(packet))
    key = list(fields)[place % len(fields)]
    is_taken_or_refused(json.dumps(fields | {key: value}).encode())


@many
@given(st.binary(max_size=200), st.booleans())
def test_arbitrary_bytes_raise_nothing_but_peer_error(data: bytes, in_a_packet: bool) -> None:
    payload = b'{"t":"unsubscribe","topic":"' + data + b'"}' if in_a_packet else data
    is_taken_or_refused(payload)
    try:
        payload.decode()
    except UnicodeDecodeError:
        if in_a_packet:
            refusal(payload, CloseCode.INVALID_TEXT)


@many
@given(st.lists(utf8_text, max_size=5))
def test_data_is_what_other_decoders_read(data: list[str]) -> None:
    assert json.loads(bytes(v2.join_data([classic.encode_string(text) for text in data]))) == data


def test_a_lone_surrogate_cannot_be_sent() -> None:
    with pytest.raises(UnicodeEncodeError):
        classic.encode_string("\ud800")
    with pytest.raises(UnicodeEncodeError):
        v2.encode(v2.Unsubscribe("\udcff"))


def test_delivering_takes_little_more_than_forwarding() -> None:
    """A producer leaves room for it, so that a subscriber with the same limits takes the packets."""
    for number, data in itertools.product((1, v2.MAX_NUMBER), (["\n" * 50], ["\x7f", "\u2028"], ["\\/"] * 9)):
        forwarded = v2.encode(v2.Forward("x" * 22, number, 0, "news", 1, data))
        delivered = v2.encode(v2.Deliver("news", v2.MAX_NUMBER, "x" * 22, number, data))
        assert len(delivered) <= len(forwarded) + 64
