"""The outbox of a publisher, in memory: alone, and with a connection that breaks to a consumer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.support.examples import examples
from wsqueue.client import outbox as outbox_module
from wsqueue.client.encoding import MESSAGE_BYTES, EncodedMessages, encode_messages
from wsqueue.client.outbox import Outbox, OutgoingBatch
from wsqueue.config.model import Limits
from wsqueue.protocol import classic, v2
from wsqueue.protocol.packed import Packed

MANY_BYTES = 2**30
TOPICS = ("news", "sport")
Batch = OutgoingBatch[int]


def encoded(topic: str, *data: str | bytes, headers: Mapping[str, str] | None = None) -> EncodedMessages:
    return encode_messages(topic, data, Limits(), headers)


def outbox_of(*topics: str) -> Outbox[int]:
    """Return an outbox with a batch of one message for each topic."""
    outbox: Outbox[int] = Outbox()
    for topic in topics:
        publish(outbox, topic, "x")
    return outbox


def publish(outbox: Outbox[int], topic: str, *data: str | bytes) -> None:
    """Publish a batch of its own."""
    outbox.add(encoded(topic, *data))
    outbox.number_all()


def packets(batches: list[Batch]) -> list[tuple[int, int, str, list[str | bytes]]]:
    """Return number, after, topic and data of each packet that publishes a batch."""
    found = []
    for packet in [v2.decode(batch.packet()) for batch in batches]:
        assert isinstance(packet, v2.Publish)
        found.append((packet.number, packet.after, packet.topic, packet.messages.unpack()))
    return found


def messages_of(batch: Batch) -> Packed:
    """Return the messages of the packet that publishes a batch."""
    packet = v2.decode(batch.packet())
    assert isinstance(packet, v2.Publish)
    assert packet.messages.whole
    return packet.messages


def taken(outbox: Outbox[int], max_bytes: int = MANY_BYTES) -> list[int]:
    return [batch.number for batch in outbox.take(max_bytes)]


def test_messages_of_a_topic_share_a_batch_until_it_is_numbered() -> None:
    outbox: Outbox[int] = Outbox()
    for topic, data in (("news", "1"), ("sport", "2"), ("news", "3")):
        outbox.add(encoded(topic, data))
    assert taken(outbox) == []
    assert outbox.number_all() == 2
    outbox.add(encoded("news", "4"))
    assert outbox.number_all() == 3
    assert outbox.number_all() == 3
    batches = packets(outbox.take(MANY_BYTES))
    assert batches == [(1, 0, "news", ["1", "3"]), (2, 0, "sport", ["2"]), (3, 1, "news", ["4"])]
    assert outbox.unconfirmed == 4


def test_a_batch_ends_before_it_is_too_long() -> None:
    size = len("news") + 10 + MESSAGE_BYTES
    outbox: Outbox[int] = Outbox(batch_bytes=3 * size)
    outbox.add(encoded("news", *["x" * 10] * 4))
    outbox.add(encoded("news", "x" * 11, "x" * 100, "x"))
    outbox.number_all()
    batches = outbox.take(MANY_BYTES)
    assert [len(batch.messages) for batch in batches] == [3, 2, 1, 1]
    assert [batch.size for batch in batches] == [3 * size, 2 * size + 1, size + 90, size - 9]


@pytest.mark.parametrize("headers", [None, {"a": ""}, {chr(1000 + name): "x" * 400 for name in range(16)}])
@pytest.mark.parametrize("data", ["", b"\xff", "x" * 300, bytes(70_000)])
def test_a_packet_is_not_longer_than_its_batch(data: str | bytes, headers: dict[str, str] | None) -> None:
    """Or a producer would close the connection that sends it; its fields have room of their own."""
    outbox: Outbox[int] = Outbox(batch_bytes=10_000)
    outbox.add(encoded("", *[data] * 10_000, headers=headers))
    outbox.number_all()
    for batch in outbox.take(MANY_BYTES):
        assert batch.size <= 10_000 or len(batch.messages) == 1
        assert len(batch.packet()) <= batch.size + 200


def test_add_returns_the_batches_that_hold_the_messages() -> None:
    outbox: Outbox[int] = Outbox(batch_bytes=100)
    (first,) = outbox.add(encoded("news", "1"))
    batches = outbox.add(encoded("news", *["x" * 70] * 3))
    assert batches[0] is first
    outbox.number_all()
    assert [batch.number for batch in batches] == [1, 2, 3]


def test_the_window_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    size = len("news") + 1 + MESSAGE_BYTES
    monkeypatch.setattr(outbox_module, "WINDOW_BYTES", 3 * size)
    outbox: Outbox[int] = Outbox()
    publish(outbox, "news", "1", "2")
    before = outbox.full
    outbox.add(encoded("news", "3"))
    used_up = outbox.full
    outbox.number_all()
    outbox.acknowledge(2, 2)
    assert (before, used_up, outbox.full) == (False, True, False)
    assert outbox.unconfirmed == 2


def test_a_batch_comes_after_the_latest_of_its_topic_that_is_not_done() -> None:
    outbox = outbox_of("news", "sport", "news", "news")
    outbox.acknowledge(4, 4)
    publish(outbox, "news", "after 3")
    outbox.refuse(5)
    outbox.acknowledge(1, 3)
    publish(outbox, "news", "after none")
    afters = [(number, after) for number, after, _, _ in packets(outbox.take(MANY_BYTES))]
    assert afters == [(6, 0)]
    assert outbox.done_up_to(5)


@pytest.mark.parametrize(
    ("ranges", "done"),
    [([(2, 3), (1, 4), (2, 3)], [2, 3, 1, 4]), ([(3, 2**53 - 1)], [3, 4, 5]), ([(6, 2**53 - 1), (3, 1)], [])],
)
def test_ranges_of_confirmations(ranges: list[tuple[int, int]], done: list[int]) -> None:
    outbox = outbox_of(*["news"] * 5)
    outbox.take(MANY_BYTES)
    assert [batch.number for first, last in ranges for batch in outbox.acknowledge(first, last)] == done
    assert outbox.unconfirmed == 5 - len(done)


def test_what_is_sent_and_what_is_done() -> None:
    outbox: Outbox[int] = Outbox()
    assert outbox.sent_up_to(0)
    assert outbox.done_up_to(0)
    for _ in range(3):
        publish(outbox, "news", "x" * 100)
    # A slice is little more than it may be.
    assert taken(outbox, 200) == [1, 2]
    assert [outbox.sent_up_to(number) for number in (1, 2, 3)] == [True, True, False]
    outbox.acknowledge(1, 1)
    assert [outbox.done_up_to(number) for number in (1, 2)] == [True, False]
    outbox.send_again()
    assert not outbox.sent_up_to(2)
    # A refused batch is refused once, and not sent again.
    assert outbox.refuse(2) is not None
    assert outbox.refuse(2) is None
    assert taken(outbox) == [3]


def test_all_fail() -> None:
    outbox = outbox_of("news", "news")
    taken(outbox, 1)
    outbox.add(encoded("news", "forming"))
    assert [batch.number for batch in outbox.fail_all()] == [1, 2, 3]
    assert taken(outbox) == []
    assert outbox.unconfirmed == 0
    # A message that is published then is in a new batch, which comes after none of those.
    publish(outbox, "news", "after the failure")
    assert packets(outbox.take(MANY_BYTES)) == [(4, 0, "news", ["after the failure"])]


def test_texts_and_bytes_are_in_batches_of_their_own() -> None:
    outbox: Outbox[int] = Outbox()
    (first,) = outbox.add(encoded("news", "a"))
    batches = outbox.add(encoded("news", "b", b"c", b"d", "e"))
    assert [batch is first for batch in batches] == [True, False, False]
    outbox.add(encoded("sport", b"f"))
    outbox.add(encoded("news", "g"))
    outbox.number_all()
    taken = outbox.take(MANY_BYTES)
    assert packets(taken) == [
        (1, 0, "news", ["a", "b"]),
        (2, 1, "news", [b"c", b"d"]),
        (3, 2, "news", ["e", "g"]),
        (4, 0, "sport", [b"f"]),
    ]
    assert [messages_of(batch).text for batch in taken] == [batch.text for batch in taken]


def test_headers_stay_with_their_messages() -> None:
    outbox: Outbox[int] = Outbox()
    outbox.add(encoded("news", "a"))
    outbox.add(encoded("news", "b", "c", headers={"id": "1"}))
    outbox.add(encoded("news", "d", headers={"id": "2", "type": "x"}))
    outbox.add(encoded("sport", "e"))
    outbox.number_all()
    mixed, plain = map(messages_of, outbox.take(MANY_BYTES))
    assert mixed.unpack() == ["a", "b", "c", "d"]
    assert mixed.headers == [None, {"id": "1"}, {"id": "1"}, {"id": "2", "type": "x"}]
    assert plain.headers is None


def test_classic_messages() -> None:
    outbox: Outbox[int] = Outbox()
    publish(outbox, "ñ", "1", '"\n')
    (batch,) = outbox.take(MANY_BYTES)
    messages = [classic.Message(data, "ñ") for data in ("1", '"\n')]
    assert batch.classic_payloads() == list(map(classic.encode, messages))
    assert batch.classic_problem(1000) == ""


@pytest.mark.parametrize(
    ("data", "headers", "problem"),
    [
        ("x" * 73, None, ""),
        ("x" * 74, None, "in the classic form, a message has more than 100 bytes"),
        # Six bytes each in JSON.
        ("\0" * 13, None, "in the classic form, a message has more than 100 bytes"),
        (b"x", None, "a producer that only speaks classic takes texts without headers"),
        ("x", {"id": "1"}, "a producer that only speaks classic takes texts without headers"),
    ],
)
def test_messages_that_a_classic_producer_cannot_take(
    data: str | bytes, headers: dict[str, str] | None, problem: str
) -> None:
    outbox: Outbox[int] = Outbox()
    outbox.add(encoded("news", data, headers=headers))
    outbox.number_all()
    (batch,) = outbox.take(MANY_BYTES)
    assert batch.classic_problem(100) == problem


class Consumer:
    """Store batches as "Batches" in docs/protocol.md says, and refuse some."""

    def __init__(self) -> None:
        self.last: dict[str, int] = {}
        self.numbers: set[int] = set()
        self.stored: dict[str, list[str | bytes]] = {topic: [] for topic in TOPICS}

    def receive(self, packet: v2.Publish, *, full: bool) -> bool:
        """Return True to confirm a batch, False to refuse it."""
        last = self.last.get(packet.topic, 0)
        if packet.number <= last:
            return True
        # A consumer that knows no number would append it, but its producer knows which ones were refused.
        if packet.after > last or full:
            return False
        self.last[packet.topic] = packet.number
        self.numbers.add(packet.number)
        self.stored[packet.topic] += packet.messages.unpack()
        return True


class Publishing(RuleBasedStateMachine):
    """Publish over a connection that breaks, to a consumer that refuses some batches."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox: Outbox[int] = Outbox(batch_bytes=200)
        self.consumer = Consumer()
        self.count = 0
        self.published: dict[str, list[str | bytes]] = {topic: [] for topic in TOPICS}
        self.bytes = 0
        self.results: dict[bytes, str] = {}
        self.topics: dict[str, set[int]] = {topic: set() for topic in TOPICS}
        # Batches that are neither confirmed nor refused, by number, as they were sent first.
        self.sent: dict[int, bytes] = {}
        self.under_way: list[bytes] = []
        self.answers: list[tuple[int, bool]] = []
        self.last_on_connection = 0

    @initialize(window=st.integers(1, 12))
    def limit(self, window: int) -> None:
        outbox_module.WINDOW_MESSAGES = window

    def teardown(self) -> None:
        try:
            self.finish()
        finally:
            outbox_module.WINDOW_MESSAGES = 100_000

    @precondition(lambda self: not self.outbox.full)
    @rule(
        topic=st.sampled_from(TOPICS),
        kinds=st.lists(st.tuples(st.integers(0, 250), st.booleans()), min_size=1, max_size=4),
    )
    def publish(self, topic: str, kinds: list[tuple[int, bool]]) -> None:
        data: list[str | bytes] = []
        for index, (size, is_text) in enumerate(kinds):
            one = f"{self.count + index} {'x' * size}"
            data.append(one if is_text else one.encode())
        self.count += len(data)
        self.published[topic] += data
        self.outbox.add(encoded(topic, *data))

    @rule()
    def end_turn(self) -> None:
        self.outbox.number_all()

    @rule(max_bytes=st.integers(1, 1000))
    def send(self, max_bytes: int) -> None:
        for batch in self.outbox.take(max_bytes):
            payload = batch.packet()
            assert payload == self.sent.setdefault(batch.number, payload)
            assert batch.number > self.last_on_connection
            assert len(batch.messages) == 1 or batch.size <= 200
            self.last_on_connection = batch.number
            self.topics[batch.topic].add(batch.number)
            self.under_way.append(payload)

    @precondition(lambda self: self.under_way)
    @rule(count=st.integers(1, 3), full=st.booleans())
    def store(self, count: int, full: bool) -> None:
        for payload in self.under_way[:count]:
            packet = v2.decode(payload)
            assert isinstance(packet, v2.Publish)
            self.answers.append((packet.number, self.consumer.receive(packet, full=full)))
            if self.answers[-1][1]:
                # Nothing is stored behind a batch that the publisher still hopes for: there is no hole.
                hoped_for = self.topics[packet.topic] & self.sent.keys()
                assert {number for number in hoped_for if number < packet.number} <= self.consumer.numbers
        del self.under_way[:count]

    @precondition(lambda self: self.answers)
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        """Answer in another order, with ranges; each refusal is before those that it causes."""
        count = data.draw(st.integers(1, len(self.answers)))
        answers, self.answers = self.answers[:count], self.answers[count:]
        refused = [number for number, stored in answers if not stored]
        confirmed = data.draw(st.permutations([number for number, stored in answers if stored]))
        done: list[Batch | None] = []
        while confirmed:
            first = last = confirmed.pop()
            while last + 1 in confirmed:
                last += 1
                confirmed.remove(last)
            done += self.outbox.acknowledge(first, last)
        self.note(done, "confirmed")
        self.note([self.outbox.refuse(number) for number in refused], "refused")

    @rule()
    def reconnect(self) -> None:
        """Lose all that is under way, both ways."""
        self.under_way, self.answers, self.last_on_connection = [], [], 0
        self.outbox.send_again()
        batches = self.outbox.take(MANY_BYTES)
        assert self.sent.keys() <= {batch.number for batch in batches}
        self.outbox.send_again()

    @rule()
    def fail(self) -> None:
        self.note(self.outbox.fail_all(), "failed")
        self.sent.clear()

    def note(self, batches: Iterable[Batch | None], result: str) -> None:
        for batch in filter(None, batches):
            self.sent.pop(batch.number, None)
            for message in batch.messages:
                assert message.data not in self.results
                self.results[message.data] = result

    @invariant()
    def all_are_counted(self) -> None:
        assert self.outbox.unconfirmed == self.count - len(self.results)
        assert self.outbox.full == (self.outbox.unconfirmed >= outbox_module.WINDOW_MESSAGES)

    @invariant()
    def order_is_kept_and_nothing_is_stored_twice(self) -> None:
        for topic, stored in self.consumer.stored.items():
            published = iter(self.published[topic])
            assert all(data in published for data in stored), "another order, or twice"

    def finish(self) -> None:
        """Let the rest through; then each message has one result, and the log has the confirmed ones."""
        self.outbox.number_all()
        self.reconnect()
        self.send(MANY_BYTES)
        if self.under_way:
            self.store(len(self.under_way), full=False)
        for number, stored in self.answers:
            done = self.outbox.acknowledge(number, number) if stored else [self.outbox.refuse(number)]
            self.note(done, "confirmed" if stored else "refused")
        assert self.outbox.done_up_to(self.outbox.number_all())
        assert len(self.results) == self.count
        all_stored = (data for stored in self.consumer.stored.values() for data in stored)
        stored_data = {data if isinstance(data, bytes) else data.encode() for data in all_stored}
        for text, result in self.results.items():
            assert result == "failed" or (text in stored_data) == (result == "confirmed"), (text, result)


Publishing.TestCase.settings = examples(150, stateful_step_count=40)
TestPublishing = Publishing.TestCase
