"""Messages with ids of an application's own, over runs of its program that end at any moment, in memory."""

from __future__ import annotations

import bisect
import itertools
from collections import Counter, deque

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from tests.support.examples import examples
from wsqueue.client.outbox import Outbox
from wsqueue.config.model import Limits
from wsqueue.errors import PublishError
from wsqueue.nodes.chains import Chain
from wsqueue.nodes.link_queue import LinkQueue, Origin, RefusedBatches
from wsqueue.protocol import v2
from wsqueue.protocol.close import CloseCode, Closed
from wsqueue.report.stats import Histogram

from .test_outbox import encoded, outbox_of, packets, taken

TOPICS = ("news", "sport")
MANY_BYTES = 2**30
LOST = Closed(CloseCode.ABNORMAL, "lost", by_peer=True)


def given(*ids: int, topic: str = "news") -> Outbox[int]:
    """Return an outbox with a message for each id."""
    outbox: Outbox[int] = Outbox()
    for each in ids:
        outbox.add_numbered(encoded(topic, str(each)), each)
    return outbox


def test_each_message_is_a_batch_whose_number_is_its_id() -> None:
    outbox = given(3, 7)
    outbox.add_numbered(encoded("sport", b"8"), 8)
    outbox.add_numbered(encoded("news", "9", headers={"k": "v"}), 9)
    assert (outbox.unconfirmed, outbox.number_all()) == (4, 9)
    found = outbox.take(MANY_BYTES)
    assert packets(found) == [
        (3, 0, "news", ["3"]),
        (7, 3, "news", ["7"]),
        (8, 0, "sport", [b"8"]),
        (9, 7, "news", ["9"]),
    ]
    assert [batch.number for batch in outbox.acknowledge(1, 8)] == [3, 7, 8]
    assert not outbox.done_up_to(9)
    outbox.add_numbered(encoded("sport", "x"), v2.MAX_NUMBER)
    assert packets(outbox.take(MANY_BYTES)) == [(v2.MAX_NUMBER, 0, "sport", ["x"])]


@pytest.mark.parametrize("number", [1, 6, 7])
@pytest.mark.parametrize("topic", TOPICS)
def test_an_id_that_does_not_rise_is_an_error(number: int, topic: str) -> None:
    """Also after those before it are confirmed, and on whichever topic."""
    outbox = given(3, 7)
    for _ in range(2):
        with pytest.raises(ValueError, match=f"the id {number} is not above 7, the one before it"):
            outbox.add_numbered(encoded(topic, "late"), number)
        outbox.acknowledge(3, 7)
    assert outbox.unconfirmed == 0
    outbox.add_numbered(encoded(topic, "8"), 8)


@pytest.mark.parametrize("end", ["refused", "failed"])
def test_after_one_that_came_to_nothing_no_other_is_taken(end: str) -> None:
    """It could be stored, and then the one before it would be taken for a repeat."""
    outbox = given(3, 5, 7)
    outbox.acknowledge(3, 3)
    if end == "refused":
        outbox.refuse(7)
        outbox.refuse(5)
        outbox.refuse(3)  # it is confirmed
    else:
        outbox.fail_all()
    with pytest.raises(
        PublishError, match=r"the id 5 was refused or failed before: .* from that id on"
    ) as caught:
        outbox.add_numbered(encoded("sport", "8"), 8)
    assert caught.value.code == "after_refused"
    assert (outbox.unconfirmed, taken(outbox)) == (0, [])


def test_an_outbox_of_nothing_cannot_fail() -> None:
    outbox: Outbox[int] = Outbox()
    outbox.fail_all()
    outbox.refuse(1)
    outbox.add_numbered(encoded("news", "1"), 1)


def test_numbers_of_the_outbox_go_on_after_a_failure() -> None:
    outbox = outbox_of("news")
    outbox.fail_all()
    outbox.add(encoded("news", "2"))
    assert outbox.number_all() == 2


class Link:
    """A producer's queue, and its connection to the consumer, with the packets that are under way on it."""

    def __init__(self) -> None:
        self.queue = LinkQueue(Limits(), Counter(), Histogram(), RefusedBatches())
        self.queue.connected(v2=True)
        self.under_way: deque[v2.Forward] = deque()
        self.position = 0
        self.answers: deque[tuple[int, bool]] = deque()

    def lose(self) -> None:
        """Lose all that is under way, both ways."""
        self.queue.disconnected(LOST)
        self.queue.connected(v2=True)
        self.under_way.clear()
        self.answers.clear()
        self.position = 0


class Consumer:
    """Store batches as "Batches" in docs/protocol.md says, and refuse some."""

    def __init__(self) -> None:
        self.last: dict[str, int] = {}
        self.stored: dict[str, list[int]] = {topic: [] for topic in TOPICS}

    def receive(self, packet: v2.Forward, *, full: bool) -> list[bool]:
        """Return which batches of a chain are confirmed; the others are refused."""
        numbers, last = packet.numbers, self.last.get(packet.topic)
        repeats = 0 if last is None else bisect.bisect_right(numbers, last)
        if full or (last is not None and not repeats and packet.after > last):
            if repeats < len(numbers):
                self.last.setdefault(packet.topic, 0)
            return [index < repeats for index in range(len(numbers))]
        self.stored[packet.topic] += [int(data) for data in packet.messages.unpack()][repeats:]
        self.last[packet.topic] = max(numbers[-1], last or 0)
        return [True] * len(numbers)


class Programs(RuleBasedStateMachine):
    """Publish the rows of a table through two producers, one program after another.

    A program that has ended may have batches at the producers, which go on with them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, str]] = []
        self.marked: set[int] = set()
        self.consumer = Consumer()
        self.links = [Link(), Link()]
        self.begin()

    @rule(topic=st.sampled_from(TOPICS), skipped=st.integers(0, 2), count=st.integers(1, 3))
    def commit(self, topic: str, skipped: int, count: int) -> None:
        last = self.rows[-1][0] if self.rows else 0
        self.rows += [(last + skipped + index, topic) for index in range(1, count + 1)]

    @rule()
    def begin(self) -> None:
        """End the program, wherever it is, and begin another run."""
        self.outbox: Outbox[int] = Outbox()
        self.undone = False
        self.last_given = 0
        self.origin: Origin | None = None
        self.link = self.links[0]
        self.heard: list[v2.Packet] = []

    @rule(count=st.integers(1, 5))
    def give(self, count: int) -> None:
        """Give the next rows that are not marked as sent."""
        rows = [row for row in self.rows if row[0] not in self.marked and row[0] > self.last_given]
        for number, topic in rows[:count]:
            try:
                self.outbox.add_numbered(encoded(topic, str(number)), number)
            except PublishError:
                assert self.undone
                return
            assert not self.undone
            self.last_given = number

    @rule(to=st.integers(0, 1))
    def connect(self, to: int) -> None:
        self.heard = []
        if self.origin is not None:
            self.origin.connection = None
        self.origin, self.link = Origin(None), self.links[to]
        self.origin.id = "p"
        self.outbox.send_again()

    @precondition(lambda self: self.origin is not None)
    @rule(max_bytes=st.integers(1, 200))
    def send(self, max_bytes: int) -> None:
        """Send a slice, which the producer reads at once: batches of it join in chains."""
        chains: list[Chain] = []
        open_chains: dict[str, Chain] = {}
        for batch in self.outbox.take(max_bytes):
            packet = v2.decode(batch.packet())
            assert isinstance(packet, v2.Publish)
            assert self.origin is not None
            assert packet.number > self.origin.number
            self.origin.number = packet.number
            if packet.topic not in open_chains or not open_chains[packet.topic].join(packet):
                open_chains[packet.topic] = Chain(packet, 10_000)
                chains.append(open_chains[packet.topic])
        assert self.origin is not None
        self.link.queue.hold([chain.forward(self.origin) for chain in chains])

    @rule(which=st.integers(0, 1), max_bytes=st.integers(1, 2000))
    def forward(self, which: int, max_bytes: int) -> None:
        link = self.links[which]
        for payload in link.queue.next_slice(max_bytes):
            packet = v2.decode(payload)
            assert isinstance(packet, v2.Forward)
            link.under_way.append(packet)
        self.hear(link)

    @rule(which=st.integers(0, 1), count=st.integers(1, 3), full=st.sampled_from([False, False, True]))
    def store(self, which: int, count: int, *, full: bool) -> None:
        link = self.links[which]
        for _ in range(min(count, len(link.under_way))):
            for stored in self.consumer.receive(link.under_way.popleft(), full=full):
                link.position += 1
                link.answers.append((link.position, stored))

    @rule(which=st.integers(0, 1), count=st.integers(1, 5))
    def answer(self, which: int, count: int) -> None:
        link = self.links[which]
        for _ in range(min(count, len(link.answers))):
            position, stored = link.answers.popleft()
            if stored:
                link.queue.confirm(position, 0.0)
            else:
                link.queue.refuse(v2.Refused(position, "full", "no room"), 0.0)
        self.hear(link)

    def hear(self, link: Link) -> None:
        """Pass the answers of a producer on, if the connection of the publisher is still there."""
        self.heard += [packet for origin, packet in link.queue.answers() if origin is self.origin]

    @rule(marks=st.booleans())
    def read_answers(self, *, marks: bool) -> None:
        """Take the answers; the program may end before it has marked the rows that are sent."""
        for packet in self.heard:
            if isinstance(packet, v2.Refused):
                self.undone |= self.outbox.refuse(packet.number) is not None
                continue
            assert isinstance(packet, v2.Ack)
            for first, last in packet.numbers:
                confirmed = {batch.number for batch in self.outbox.acknowledge(first, last)}
                assert confirmed <= set(itertools.chain(*self.consumer.stored.values()))
                if marks:
                    self.marked |= confirmed
        self.heard = []
        if not marks:
            self.begin()

    @rule(which=st.integers(0, 1))
    def lose_link(self, which: int) -> None:
        self.links[which].lose()

    @rule()
    def fail(self) -> None:
        self.undone |= bool(self.outbox.fail_all())
        self.heard = []
        self.origin = None

    @invariant()
    def each_row_is_there_once_and_in_its_order_without_a_hole(self) -> None:
        for topic, stored in self.consumer.stored.items():
            committed = [number for number, its in self.rows if its == topic]
            assert stored == committed[: len(stored)]

    def teardown(self) -> None:
        """Let all packets through that are under way; then one more program publishes all the rest."""
        for link in self.links:
            self.let_through(link)
        self.begin()
        self.connect(0)
        self.give(len(self.rows))
        while not self.outbox.sent_up_to(self.last_given):
            # In a chain of its own, which a producer that remembers an earlier refusal must not refuse.
            self.send(1)
        self.let_through(self.link)
        self.read_answers(marks=True)
        assert not self.undone
        assert self.marked == {number for number, _ in self.rows}
        self.each_row_is_there_once_and_in_its_order_without_a_hole()

    def let_through(self, link: Link) -> None:
        while link.queue.sendable or link.under_way or link.answers:
            which = self.links.index(link)
            self.forward(which, MANY_BYTES)
            self.store(which, len(link.under_way), full=False)
            self.answer(which, len(link.answers))


Programs.TestCase.settings = examples(200, stateful_step_count=50)
TestPrograms = Programs.TestCase
