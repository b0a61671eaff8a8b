"""The queue of a link: batches in, payloads out, confirmations in, answers out."""

from __future__ import annotations

from collections import Counter, defaultdict
from unittest import mock

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from wsqueue.config.model import READ_MARGIN_BYTES, Limits
from wsqueue.nodes import link_queue
from wsqueue.nodes.link_queue import ForwardChain, LinkQueue, Origin, RefusedBatches, forward_chain
from wsqueue.protocol import classic, v2
from wsqueue.protocol.close import CloseCode, Closed
from wsqueue.protocol.packed import Headers, Packed
from wsqueue.report.stats import Histogram

from ...support.examples import examples
from ...support.messages import forward_one, packed

SLICE, WINDOW, SLOW, HELD = 1500, 4000, 2500, 6000
LOST = Closed(CloseCode.ABNORMAL, "lost", by_peer=True)
DATA_REFUSED = Closed(CloseCode.INVALID_PACKET, "unknown field", by_peer=True)

Key = tuple[str, int]


def batch(
    number: int,
    *data: str | bytes,
    publisher: str = "p",
    topic: str = "news",
    after: int = 0,
    origin: Origin | None = None,
    headers: list[Headers | None] | None = None,
) -> ForwardChain:
    messages = packed(*data or ["x"], headers=headers)
    return forward_chain(forward_one(publisher, number, after, topic, messages), origin)


def forwarded(payload: bytes) -> v2.Forward:
    packet = v2.decode(payload)
    assert isinstance(packet, v2.Forward)
    return packet


def said(payload: bytes) -> str:
    """Return the data of a classic message."""
    message = classic.decode(payload)
    assert isinstance(message, classic.Message)
    return message.data


def refused(number: int, reason: str = "no room", last: int | None = None) -> v2.Refused:
    return v2.Refused(number, "full", reason, last)


class Machine(RuleBasedStateMachine):
    """Play producer, publishers and consumer of one queue; every batch must end exactly once."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = mock.patch.multiple(link_queue, LINK_WINDOW_BYTES=WINDOW, SLOW_LINK_BYTES=SLOW)
        self.patch.start()
        self.counters: Counter[str] = Counter()
        self.queue = LinkQueue(Limits(max_held_bytes=HELD), self.counters, Histogram(), RefusedBatches())
        self.origins = [Origin(None) for _ in range(4)]
        self.numbers = [0] * len(self.origins)
        self.paused: set[Origin] = set()
        self.held: dict[Key, ForwardChain] = {}
        self.refused: set[Key] = set()
        # What was sent on this connection and is not confirmed, with the position at which it ends.
        self.connected, self.confirmed = False, 0
        self.wire: dict[Key, int] = {}
        # The batch of which a classic consumer has got a part, and how many of its messages.
        self.begun: tuple[Key, int] | None = None
        self.latest: defaultdict[tuple[str, str], int] = defaultdict(int)
        self.expected: Counter[str] = Counter()

    @rule(
        index=st.integers(0, 3),
        topic=st.sampled_from("ab"),
        counts=st.lists(st.integers(1, 3), min_size=1, max_size=4),
        chained=st.booleans(),
        is_text=st.sampled_from([True, True, True, False]),
    )
    def publish(self, index: int, topic: str, counts: list[int], chained: bool, is_text: bool) -> None:
        """Publish batches; the last of the publishers is classic, and a classic consumer takes no bytes."""
        is_classic = index == len(self.origins) - 1
        batches = []
        for count in counts:
            after = self.numbers[index] if chained and not is_classic else 0
            number = self.numbers[index] = self.numbers[index] + 1
            text = f"{index} {number}"
            made = batch(
                number,
                *[text if is_text or is_classic else text.encode()] * count,
                publisher=str(index),
                topic=topic,
                after=after,
                origin=None if is_classic else self.origins[index],
            )
            self.held[made.publisher, number] = made
            batches.append(made)
        self.queue.hold(batches)
        if self.queue.block(self.origins[index]):
            assert self.origins[index] not in self.paused
            self.paused.add(self.origins[index])

    @precondition(lambda self: not self.connected)
    @rule(speaks_v2=st.booleans())
    def connect(self, speaks_v2: bool) -> None:
        self.queue.connected(v2=speaks_v2)
        self.connected, self.confirmed, self.wire = True, 0, {}
        assert self.queue.sent == 0

    @precondition(lambda self: self.connected and self.queue.sendable)
    @rule(size=st.sampled_from([SLICE, 60]))
    def send(self, size: int = SLICE) -> None:
        """Send a slice; a classic consumer may get a part of a batch with it, and the rest with the next."""
        assert self.bytes_on_the_wire() < WINDOW
        position = self.queue.sent
        whole: list[Key] = []
        for payload in self.queue.next_slice(size):
            position += 1
            data = forwarded(payload).messages.unpack()[0] if self.queue.v2 else said(payload)
            index, number = (data if isinstance(data, str) else data.decode()).split()
            key = index, int(number)
            sent = self.held[key]
            assert (sent.publisher, sent.after) not in self.refused
            before = self.begun[1] if self.begun is not None and self.begun[0] == key else 0
            if not before:
                assert self.begun is None
                assert key[1] > self.latest[sent.publisher, sent.topic]
                self.latest[sent.publisher, sent.topic] = key[1]
            messages = sent.count if self.queue.v2 else 1
            self.expected["forwarded"] += messages
            self.begun = key, before + messages
            if self.begun[1] == sent.count:
                self.begun = None
                self.wire[key] = position
                whole.append(key)
        assert position == self.queue.sent
        assert sum(self.held[key].size for key in whole[:-1]) < size
        self.settle()

    @precondition(lambda self: self.connected)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        position = data.draw(st.integers(self.confirmed, self.queue.sent))
        self.queue.confirm(position, 0.0)
        self.settle(self.confirmed_to(position))

    @precondition(lambda self: self.connected and self.queue.v2 and self.queue.sent > self.confirmed)
    @rule(data=st.data())
    def refuse(self, data: st.DataObject) -> None:
        """Refuse a batch or a range, of which some batches may have been answered."""
        first = data.draw(st.integers(1, self.queue.sent))
        last = data.draw(st.none() | st.integers(first, self.queue.sent))
        self.queue.refuse(refused(first, last=last), 0.0)
        acks = self.confirmed_to(max(self.confirmed, first - 1))
        keys = {key for key, end in self.wire.items() if end <= (last or first)}
        for key in keys:
            del self.wire[key]
        self.confirmed = max(self.confirmed, last or first)
        self.settle(acks, keys)

    @precondition(lambda self: self.connected)
    @rule(closed=st.sampled_from([LOST, LOST, DATA_REFUSED]))
    def lose(self, closed: Closed) -> None:
        self.queue.disconnected(closed)
        refusals: set[Key] = set()
        for key in self.wire:
            if closed is DATA_REFUSED:
                refusals.add(key)
            elif self.held[key].origin is None and not self.queue.v2:
                self.expected["lost_in_flight"] += self.held.pop(key).count
        if self.begun is not None:
            (index, number), sent = self.begun
            begun = self.held[index, number]
            if closed is DATA_REFUSED:
                refusals.add((index, number))
            if begun.origin is None:
                self.expected["lost_in_flight"] += min(sent, self.queue.sent - self.confirmed)
                rest, topic = [f"{index} {number}"] * (begun.count - sent), begun.topic
                self.held[index, number] = batch(number, *rest, publisher=index, topic=topic)
        self.connected, self.wire, self.begun = False, {}, None
        # What goes back to the queue may be sent again from its first batch on.
        for each in self.held.values():
            way = each.publisher, each.topic
            self.latest[way] = min(self.latest[way], each.numbers[0] - 1)
        self.settle(set(), refusals)

    @rule(all_of_it=st.booleans(), moved=st.sets(st.sampled_from("ab")))
    def reload(self, all_of_it: bool, moved: set[str]) -> None:
        """Take batches out and hold them again, as after a change of the consumers."""
        if all_of_it and not self.connected:
            taken = self.queue.take_all()
            self.settle()
            assert self.queue.empty or not self.queue.v2
        else:
            taken = self.queue.take_moved(lambda topic: topic in moved)
            again = {key for key in self.wire if self.held[key].topic in moved and self.taken_from(key)}
            for key in again:
                del self.wire[key]
            if self.begun is not None and self.held[self.begun[0]].origin is not None:
                (key, _) = self.begun
                if self.held[key].topic in moved:
                    again.add(key)
                    self.begun = None
            for key in again:
                way = self.held[key].publisher, self.held[key].topic
                self.latest[way] = min(self.latest[way], key[1] - 1)
            numbers: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
            for each in taken:
                numbers[each.publisher, each.topic] += each.numbers
            assert all(those == sorted(those) for those in numbers.values())
            assert all(key in {(each.publisher, each.numbers[0]) for each in taken} for key in again)
            self.settle()
        self.queue.hold(taken)
        self.queue.reloaded()
        assert not self.queue.overfull(0)

    @rule(index=st.integers(0, 3))
    def leave(self, index: int) -> None:
        """Let a publisher go, and another one come."""
        self.queue.forget(self.origins[index])
        self.paused.discard(self.origins[index])
        fresh = Origin(None)
        for each in self.held.values():
            if each.origin is self.origins[index]:
                each.origin = fresh
        self.origins[index] = fresh

    @invariant()
    def adds_up(self) -> None:
        assert self.queue.held_bytes == sum(each.size for each in self.held.values())
        assert self.queue.held_messages == sum(each.count for each in self.held.values())
        assert self.queue.empty is (not self.held)
        assert self.bytes_on_the_wire() < WINDOW + SLICE + max(
            (b.size for b in self.held.values()), default=0
        )
        assert self.queue.blocked == len(self.paused)
        assert {name: self.counters[name] for name in self.expected} == self.expected

    def teardown(self) -> None:
        """Let a consumer take all that is left: nothing stays behind, and every publisher goes on."""
        if self.connected and self.begun is not None:
            self.lose(LOST)
        if not self.connected:
            self.connect(speaks_v2=True)
        while self.held:
            while self.queue.sendable:
                self.send()
            self.queue.confirm(self.queue.sent, 0.0)
            self.settle(self.confirmed_to(self.queue.sent))
        self.adds_up()
        assert not self.paused
        self.patch.stop()

    def taken_from(self, key: Key) -> bool:
        """Return True if a batch under way can be taken away: a classic message goes once."""
        return self.queue.v2 or self.held[key].origin is not None

    def bytes_on_the_wire(self) -> int:
        return sum(self.held[key].size for key in self.wire)

    def confirmed_to(self, position: int) -> set[Key]:
        """Return the batches that this confirms to a publisher."""
        keys = {key for key, end in self.wire.items() if end <= position}
        for key in keys:
            del self.wire[key]
        self.confirmed = position
        classic = {key for key in keys if self.held[key].origin is None}
        for key in classic:
            del self.held[key]
        return keys - classic

    def settle(self, acks: set[Key] | None = None, refusals: set[Key] | None = None) -> None:
        """Take the answers, which are for these batches and those that were refused without being sent."""
        confirmed, denied = set[Key](), set[Key]()
        for origin, packet in self.queue.answers():
            index = str(self.origins.index(origin))
            if isinstance(packet, v2.Ack):
                numbers = [number for first, last in packet.numbers for number in range(first, last + 1)]
                assert len(numbers) == len(set(numbers))
                confirmed |= {(index, number) for number in numbers}
                continue
            assert isinstance(packet, v2.Refused)
            assert packet.last is None
            key = (index, packet.number)
            assert key not in denied
            denied.add(key)
            if packet.code == "after_refused":
                assert (index, self.held[key].after) in self.refused
            elif key not in (refusals or ()):
                assert packet.code == "invalid"
                assert not self.queue.v2
            self.refused.add(key)
        for key in refusals or ():
            if self.held[key].origin is None:
                self.expected["lost_refused"] += self.held.pop(key).count
                self.refused.add(key)
        assert confirmed == (acks or set())
        assert denied >= {key for key in refusals or () if key in self.held}
        for key in confirmed | denied:
            del self.held[key]
            self.wire.pop(key, None)
        for origin in self.queue.released():
            self.paused.remove(origin)
        assert self.queue.full or not self.paused


Machine.TestCase.settings = examples(150, stateful_step_count=40)
TestMachine = Machine.TestCase


def made(max_held_bytes: int = 2**40, times: Histogram | None = None, *, speaks_v2: bool = True) -> LinkQueue:
    """Return a queue whose consumer is connected."""
    queue = LinkQueue(
        Limits(max_held_bytes=max_held_bytes), Counter(), times or Histogram(), RefusedBatches()
    )
    queue.connected(v2=speaks_v2)
    return queue


class TestAnswers:
    def test_confirmations_are_ranges_and_come_after_refusals_whose_reasons_are_cut(self) -> None:
        queue, first, second = made(), Origin(None), Origin(None)
        queue.hold([batch(number, origin=first) for number in (1, 2, 3, 5, 6)])
        queue.hold([batch(1, publisher="q", origin=second)])
        assert len(queue.next_slice(2**40)) == 6
        queue.confirm(3, 0.0)
        queue.refuse(refused(5, reason="x" * 1000), 0.0)
        queue.confirm(6, 0.0)
        assert list(queue.answers()) == [
            (first, v2.Refused(6, "full", "x" * v2.MAX_REASON_CHARACTERS)),
            (first, v2.Ack([(1, 3), (5, 5)])),
            (second, v2.Ack([(1, 1)])),
        ]
        assert list(queue.answers()) == []
        assert queue.empty

    def test_so_many_refused_batches_are_remembered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(link_queue, "MAX_REFUSED", 2)
        queue, origin = made(), Origin(None)
        for number in (1, 11, 21):
            queue.hold([batch(number, origin=origin)])
            queue.next_slice(2**40)
            queue.refuse(refused(queue.sent), 0.0)
        queue.answers()
        queue.hold([batch(number + 1, after=number, origin=origin) for number in (1, 11, 21)])
        assert [forwarded(payload).numbers for payload in queue.next_slice(2**40)] == [[2]]
        assert [packet.number for _, packet in queue.answers() if isinstance(packet, v2.Refused)] == [12, 22]

    @pytest.mark.parametrize("speaks_v2", [True, False])
    def test_a_slice_refuses_no_more_than_it_would_send(self, speaks_v2: bool) -> None:
        queue, origin = made(speaks_v2=speaks_v2), Origin(None)
        queue.hold([batch(1, b"no text", origin=origin)])
        queue.next_slice(2**40)
        if speaks_v2:
            queue.refuse(refused(1), 0.0)
        queue.answers()
        # All of them are refused, each because of the one before.
        queue.hold([batch(number, after=number - 1, origin=origin) for number in range(2, 502)])
        answered = []
        while queue.sendable:
            assert queue.next_slice(100 * link_queue.REFUSED_BYTES) == []
            answered.append(len(queue.answers()))
        assert answered == [100] * 5


class TestClassicConsumer:
    """It takes texts without headers, each in a message of its own; the rest is refused here."""

    LONGEST = 1000
    ROOM = LONGEST - len(b'{"t":"m","d":"","s":"news"}')

    @pytest.mark.parametrize(
        ("messages", "code"),
        [
            (packed(b"x"), "invalid"),
            (packed(b""), "invalid"),
            (packed("x", headers=[{"id": "1"}]), "invalid"),
            (packed("x", "y", headers=[None, {}]), "invalid"),
            (Packed([1, 1], memoryview(b"a\xff")), "invalid"),
            # It is text as a whole, but its messages are not.
            (Packed([1, 1], memoryview("ñ".encode())), "invalid"),
            (packed("x" * (ROOM + 1)), "too_long"),
            (packed("a", "\0" * (ROOM // 6 + 1)), "too_long"),
            (packed("a", '"' * (ROOM // 2 + 1), "b"), "too_long"),
        ],
    )
    def test_a_batch_that_it_cannot_take_is_refused_alone(self, messages: Packed, code: str) -> None:
        queue, origin = (
            LinkQueue(Limits(max_message_bytes=self.LONGEST), Counter(), Histogram(), RefusedBatches()),
            Origin(None),
        )
        queue.connected(v2=False)
        wrong = forward_chain(forward_one("p", 2, 1, "news", messages), origin)
        other = batch(1, "of another", publisher="q", origin=origin)
        queue.hold([batch(1, "first", origin=origin), wrong, batch(3, "next", after=2, origin=origin), other])
        assert list(map(said, queue.next_slice(2**40))) == ["first", "of another"]
        first, second = [packet for _, packet in queue.answers()]
        assert isinstance(first, v2.Refused)
        assert isinstance(second, v2.Refused)
        assert (first.number, first.code) == (2, code)
        assert (second.number, second.code) == (3, "after_refused")
        queue.confirm(2, 0.0)
        assert list(queue.answers()) == [(origin, v2.Ack([(1, 1), (1, 1)]))]
        assert queue.empty

    def test_the_longest_that_it_takes(self) -> None:
        queue, origin = (
            LinkQueue(Limits(max_message_bytes=self.LONGEST), Counter(), Histogram(), RefusedBatches()),
            Origin(None),
        )
        queue.connected(v2=False)
        texts = ["x" * self.ROOM, "\1" * (self.ROOM // 6), "", "ñ" * (self.ROOM // 2), "\ufeff\uffff"]
        queue.hold([batch(1, *texts, origin=origin)])
        payloads = queue.next_slice(2**40)
        assert list(map(said, payloads)) == texts
        assert max(map(len, payloads)) == self.LONGEST

    @pytest.mark.parametrize("data", [b"\xff", "x" * 2000])
    def test_a_consumer_of_v2_takes_them(self, data: str | bytes) -> None:
        queue = LinkQueue(Limits(max_message_bytes=self.LONGEST), Counter(), Histogram(), RefusedBatches())
        queue.connected(v2=True)
        queue.hold([batch(1, data, headers=[{"id": "1"}], origin=Origin(None))])
        (payload,) = queue.next_slice(2**40)
        assert forwarded(payload).messages == packed(data, headers=[{"id": "1"}])


class TestFull:
    """When publishers stop, and when nothing more is taken."""

    def test_a_consumer_that_is_connected_may_have_less_waiting(self) -> None:
        queue, origin = made(), Origin(None)
        queue.hold([batch(1, "x" * link_queue.SLOW_LINK_BYTES)])
        assert queue.block(origin)
        assert not queue.block(origin)
        queue.disconnected(LOST)
        assert list(queue.released()) == [origin]
        assert not queue.block(origin)

    def test_far_too_much(self) -> None:
        queue = made(1000)
        one_read = queue.limits.max_message_bytes + READ_MARGIN_BYTES
        first = batch(1, "x" * 2000)
        queue.hold([first])
        assert queue.overfull(0)
        assert not queue.overfull(1)
        queue.hold([batch(2, "x" * one_read)])
        assert queue.overfull(1)
        # Batches that a reload left are no fault of a publisher, until all of them are gone.
        queue.reloaded()
        assert not queue.overfull(1)
        queue.take_all()
        queue.released()
        queue.hold([batch(3, "x" * one_read * 2)])
        assert queue.overfull(1)


class TestTimes:
    """One batch at a time is timed, from its reading to its confirmation."""

    @staticmethod
    def counted(times: Histogram) -> tuple[int, float]:
        status = times.status()
        return sum(status.counts), status.sum

    def test_the_last_of_a_read(self) -> None:
        queue = made(times=(times := Histogram()))
        queue.hold([batch(1), batch(2)], 100.0)
        queue.hold([batch(3)], 101.0)
        queue.next_slice(2**40)
        queue.confirm(1, 102.0)
        assert self.counted(times) == (0, 0.0)
        queue.confirm(3, 103.0)
        assert self.counted(times) == (1, 3.0)

    def test_not_more_often_than_now_and_then(self) -> None:
        times = Histogram()
        queue = made(times=times)
        for number in range(100):
            now = 100.0 + number * link_queue.TIMING_SECONDS / 10
            queue.hold([batch(number)], now)
            queue.next_slice(2**40)
            queue.confirm(queue.sent, now)
        assert self.counted(times)[0] == 10

    def test_one_that_is_sent_again_counts_once(self) -> None:
        queue = made(times=(times := Histogram()))
        queue.hold([batch(1, origin=Origin(None))], 100.0)
        queue.next_slice(2**40)
        queue.disconnected(LOST)
        queue.connected(v2=True)
        queue.next_slice(2**40)
        queue.confirm(1, 3700.0)
        assert self.counted(times) == (1, 3600.0)

    @pytest.mark.parametrize("end", ["refused", "taken", "lost", "data refused"])
    def test_one_that_is_not_confirmed_does_not_count(self, end: str) -> None:
        times = Histogram()
        queue = made(times=times, speaks_v2=end not in ("lost", "data refused"))
        queue.hold([batch(1)], 100.0)
        if end == "taken":
            queue.take_waiting()
        queue.next_slice(2**40)
        if end == "refused":
            queue.refuse(refused(1), 101.0)
        elif end != "taken":
            queue.disconnected(LOST if end == "lost" else DATA_REFUSED)
            queue.connected(v2=True)
        assert queue.empty
        queue.hold([batch(2)], 102.0)
        queue.next_slice(2**40)
        queue.confirm(queue.sent, 103.0)
        assert self.counted(times) == (1, 1.0)


def chain(numbers: list[int], counts: list[int], *, origin: Origin, after: int = 0) -> ForwardChain:
    """Return a chain whose messages are numbered over all batches."""
    data = packed(*map(str, range(sum(counts))))
    return forward_chain(v2.Forward("p", numbers, after, "news", counts, data), origin)


class TestChains:
    def test_positions_count_batches(self) -> None:
        queue, origin = made(), Origin(None)
        queue.hold([chain([2, 3, 5], [1, 2, 1], origin=origin), chain([6], [1], after=5, origin=origin)])
        queue.next_slice(2**40)
        assert queue.sent == 4
        queue.confirm(2, 0.0)
        assert queue.answers() == [(origin, v2.Ack([(2, 3)]))]
        queue.confirm(4, 0.0)
        assert queue.answers() == [(origin, v2.Ack([(5, 6)]))]
        assert queue.empty
        assert queue.held_bytes == 0

    def test_a_confirmation_has_no_number_between(self) -> None:
        queue, origin = made(), Origin(None)
        queue.hold([chain([1, 3, 5, 6], [1] * 4, origin=origin)])
        queue.next_slice(2**40)
        queue.confirm(4, 0.0)
        assert queue.answers() == [(origin, v2.Ack([(1, 1), (3, 3), (5, 6)]))]

    def test_confirmations_of_topics_in_turns_become_one_range(self) -> None:
        queue, origin = made(), Origin(None)
        queue.hold([chain([1, 3, 5], [1] * 3, origin=origin), chain([2, 4, 6], [1] * 3, origin=origin)])
        queue.next_slice(2**40)
        queue.confirm(6, 0.0)
        assert queue.answers() == [(origin, v2.Ack([(1, 6)]))]

    def test_many_ranges_come_in_several_packets(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(link_queue, "MAX_ACK_RANGES", 2)
        queue, origin = made(), Origin(None)
        queue.hold([chain([1, 3, 5, 7, 9], [1] * 5, origin=origin)])
        queue.next_slice(2**40)
        queue.confirm(5, 0.0)
        expected = [[(1, 1), (3, 3)], [(5, 5), (7, 7)], [(9, 9)]]
        assert queue.answers() == [(origin, v2.Ack(ranges)) for ranges in expected]

    @pytest.mark.parametrize("confirmed", range(4))
    def test_only_the_rest_is_sent_again(self, confirmed: int) -> None:
        queue, origin = made(), Origin(None)
        numbers, counts = [2, 3, 5, 9], [1, 3, 2, 1]
        queue.hold([chain(numbers, counts, after=1, origin=origin)])
        queue.next_slice(2**40)
        queue.confirm(confirmed, 0.0)
        queue.answers()
        queue.disconnected(LOST)
        queue.connected(v2=True)
        (payload,) = queue.next_slice(2**40)
        skipped = sum(counts[:confirmed])
        after = [1, *numbers][confirmed]
        data = packed(*map(str, range(skipped, 7)))
        rest, counts = numbers[confirmed:], counts[confirmed:]
        assert forwarded(payload) == v2.Forward("p", rest, after, "news", counts, data)
        queue.confirm(4 - confirmed, 0.0)
        ((_, answer),) = queue.answers()
        assert isinstance(answer, v2.Ack)
        assert [one for first, last in answer.numbers for one in range(first, last + 1)] == rest
        assert queue.held_bytes == 0

    def test_the_rest_behind_a_refused_batch_is_refused_when_it_is_sent_again(self) -> None:
        queue, origin = made(), Origin(None)
        queue.hold([chain([2, 3, 5], [1, 2, 1], origin=origin)])
        queue.next_slice(2**40)
        queue.refuse(refused(2), 0.0)
        queue.disconnected(LOST)
        queue.connected(v2=True)
        assert queue.next_slice(2**40) == []
        answers = [packet for _, packet in queue.answers()]
        assert answers[-1] == v2.Ack([(2, 2)])
        found = [(one.number, one.code) for one in answers if isinstance(one, v2.Refused)]
        assert found == [(3, "full"), (5, "after_refused")]
        assert queue.empty

    def test_a_range_is_refused_over_several_chains(self) -> None:
        queue, first, second = made(), Origin(None), Origin(None)
        queue.hold([chain([1, 2, 3], [1] * 3, origin=first), batch(7, publisher="q", origin=second)])
        queue.hold([chain([5, 6, 9], [1] * 3, after=3, origin=first), batch(10, after=9, origin=first)])
        queue.next_slice(2**40)
        queue.refuse(refused(2, last=6), 0.0)
        refusals = [(first, 2), (first, 3), (second, 7), (first, 5), (first, 6)]
        expected = [(origin, v2.Refused(number, "full", "no room")) for origin, number in refusals]
        assert queue.answers() == [*expected, (first, v2.Ack([(1, 1)]))]
        # Batches that are answered stay as they are, and the others follow.
        queue.refuse(refused(1, last=6), 0.0)
        queue.refuse(refused(3, last=5), 0.0)
        assert queue.answers() == ()
        queue.refuse(refused(4, last=7), 0.0)
        queue.confirm(8, 0.0)
        assert queue.answers() == [(first, v2.Refused(9, "full", "no room")), (first, v2.Ack([(10, 10)]))]
        assert queue.empty
        assert queue.held_bytes == 0

    def test_a_classic_consumer_gets_each_batch_alone(self) -> None:
        queue, origin = made(speaks_v2=False), Origin(None)
        long = "x" * 2_000_000
        data = packed("a", "b", long, "c", "d")
        queue.hold([forward_chain(v2.Forward("p", [1, 2, 4, 5], 0, "news", [2, 1, 1, 1], data), origin)])
        assert list(map(said, queue.next_slice(2**40))) == ["a", "b"]
        queue.confirm(2, 0.0)
        answers = [packet for _, packet in queue.answers()]
        assert answers[-1] == v2.Ack([(1, 1)])
        found = [(one.number, one.code) for one in answers if isinstance(one, v2.Refused)]
        assert found == [(2, "too_long"), (4, "after_refused"), (5, "after_refused")]
        assert queue.empty

    @pytest.mark.parametrize("speaks_v2", [True, False])
    def test_a_refused_batch_that_comes_again_may_be_followed(self, *, speaks_v2: bool) -> None:
        """A publisher that numbers rows of its own sends it again under its number."""
        queue, origin = made(speaks_v2=speaks_v2), Origin(None)
        first = batch(3, "3" if speaks_v2 else b"no text", origin=origin)
        queue.hold([first, batch(5, "5", after=3, origin=origin)])
        queue.next_slice(2**40)
        if speaks_v2:
            queue.refuse(refused(1, last=2), 0.0)
        assert [one.number for _, one in queue.answers() if isinstance(one, v2.Refused)] == [3, 5]
        # Copies that came after the one that is refused, and before it comes again, are refused still.
        queue.hold([batch(5, "5", after=3, origin=origin), batch(3, "3", origin=origin)])
        queue.hold([batch(5, "5", after=3, origin=origin), batch(6, "6", after=5, origin=origin)])
        sent = [
            forwarded(payload).numbers[0] if speaks_v2 else int(said(payload))
            for payload in queue.next_slice(2**40)
        ]
        assert sent == [3, 5, 6]
        assert [one.number for _, one in queue.answers() if isinstance(one, v2.Refused)] == [5]
        queue.refuse(refused(queue.sent), 0.0) if speaks_v2 else queue.confirm(queue.sent, 0.0)
        queue.answers()
        queue.hold([batch(7, "7", after=6, origin=origin)])
        assert len(queue.next_slice(2**40)) == (0 if speaks_v2 else 1)

    def test_refusals_are_known_to_all_links(self) -> None:
        known, origin = RefusedBatches(), Origin(None)
        first, second = (LinkQueue(Limits(), Counter(), Histogram(), known) for _ in range(2))
        for queue in (first, second):
            queue.connected(v2=True)
        first.hold([batch(1, origin=origin)])
        first.next_slice(2**40)
        first.refuse(refused(1), 0.0)
        second.hold([chain([2, 3], [1, 1], after=1, origin=origin)])
        assert second.next_slice(2**40) == []
