"""The checker of histories, which is worth nothing unless it sees each thing that can go wrong."""

from __future__ import annotations

from typing import Literal, Self

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ...faults.checker import SHOWN, Life, Restore, Span, Verdict, check
from ...faults.schedule import Retention
from ...faults.workers import Record, message, parse

TOPIC = "news"
WRONGS = ("unsettled", "refused", "lost", "duplicated", "unexpected", "out_of_order")
Kind = Literal["acknowledged", "refused", "failed"]


class Story:
    """Write histories, one event after another, a second apart."""

    def __init__(self, *subscribers: str, topics: tuple[str, ...] = (TOPIC,)) -> None:
        self.now = 0.0
        self.topics = topics
        self.published: list[Record] = []
        self.lives: dict[str, list[Record]] = {}
        self.killed: set[str] = set()
        self.unclean: dict[str, list[Span]] = {}
        self.full: dict[str, list[Span]] = {}
        self.ends: dict[str, list[float]] = {}
        self.copied = 0.0
        self.restores: dict[str, list[Restore]] = {}
        self.live: set[str] = set()
        self._numbers: dict[str, int] = {}
        self.subscribe(*subscribers)

    def tick(self) -> float:
        self.now += 1
        return self.now

    def attempt(self, publisher: str = "p", topic: str = TOPIC, producer: str = "") -> Self:
        """Begin to publish, as a classic publisher if its producer is named."""
        number = self._numbers[publisher] = self._numbers.get(publisher, -1) + 1
        self.published.append(Record("attempted", self.tick(), publisher, number, topic, producer=producer))
        return self

    def settle(self, event: Kind, index: int = -1, text: str = "") -> Self:
        """Tell its publisher how an attempt, the last if none is given, has ended."""
        attempt = [record for record in self.published if record.event == "attempted"][index]
        self.published.append(msgspec.structs.replace(attempt, event=event, at=self.tick(), text=text))
        return self

    def publish(self, count: int = 1, publisher: str = "p", topic: str = TOPIC) -> Self:
        for _ in range(count):
            self.attempt(publisher, topic).settle("acknowledged")
        return self

    def subscribe(self, *names: str) -> Self:
        for name in names:
            self.lives[name] = [Record("subscribed", self.tick())]
        return self

    def deliver(
        self, *numbers: int, to: str = "s", by: str = "p", topic: str = TOPIC, log: str = "", offset: int = 0
    ) -> Self:
        for index, number in enumerate(numbers, offset):
            self.lives[to].append(Record("delivered", self.tick(), by, number, topic, index, log))
        return self

    def gap(self, missed: int | None = None, topic: str = TOPIC, to: str = "s") -> Self:
        self.lives[to].append(Record("gap", self.tick(), topic=topic, missed=missed))
        return self

    def crash(self, topic: str = TOPIC) -> Self:
        self.unclean.setdefault(topic, []).append((self.tick(), self.tick()))
        return self

    def fill(self, topic: str = TOPIC, span: Span | None = None) -> Self:
        """Let the disk be full for a second, or in a span."""
        self.full[topic] = [span or (self.tick(), self.tick())]
        return self

    def copy(self) -> Self:
        """Make a copy of each log."""
        self.copied = self.tick()
        return self

    def restore(self, topic: str = TOPIC) -> Self:
        """Put the last copy in the place of a log."""
        self.restores.setdefault(topic, []).append(Restore(self.copied, (self.tick(), self.tick())))
        return self

    def end(self, producer: str) -> Self:
        self.ends.setdefault(producer, []).append(self.tick())
        return self

    def connect(self, *names: str) -> Self:
        """Subscribe as a connection of a classic subscriber does."""
        self.live.update(names)
        return self.subscribe(*names)

    def kill(self, name: str = "s") -> Self:
        self.killed.add(name)
        return self

    def check(self, retention: Retention = "sqlite", *, all_kept: bool = True) -> Verdict:
        lives = [
            Life(name, self.topics, told, name in self.killed, name in self.live)
            for name, told in self.lives.items()
        ]
        return check(
            self.published,
            lives,
            retention,
            self.unclean,
            self.full,
            ends=self.ends,
            restores=self.restores,
            all_kept=all_kept,
        )

    def gives(
        self,
        both: str | None = None,
        *,
        memory: str | None = None,
        sqlite: str | None = None,
        limited: str | None = None,
        jetstream: str | None = None,
        jetstream_limited: str | None = None,
    ) -> Self:
        """Check all that a verdict counts as wrong, by retention, and with logs of limited size.

        `both` and `limited` are for the retentions of which each consumer has a log of its own.
        """
        expectations: list[tuple[Retention, str | None, str | None]] = [
            ("memory", both if memory is None else memory, limited),
            ("sqlite", both if sqlite is None else sqlite, limited),
            ("jetstream", jetstream, jetstream_limited),
        ]
        for retention, whole, small in expectations:
            for all_kept, expected in ((True, whole), (False, small)):
                if expected is not None:
                    verdict = self.check(retention, all_kept=all_kept)
                    counts = {name: getattr(verdict, name) for name in WRONGS}
                    wrong = ", ".join(f"{name} {count}" for name, count in counts.items() if count)
                    assert (wrong, verdict.good) == (expected, not expected), (retention, all_kept)
        return self


def test_a_good_history_is_good() -> None:
    story = Story("s", "t").publish(3).deliver(0, 1, 2).deliver(0, 1, 2, to="t").gives("", limited="")
    assert not story.check().violations
    assert str(story.check()) == (
        "attempted 3, acknowledged 3, delivered 3, lost 0, duplicated 0, unexpected 0, out of order 0, "
        "gaps announced 0"
    )


def test_a_message_that_was_not_acknowledged_comes_once_at_most() -> None:
    story = Story("s").attempt().settle("failed").attempt().settle("failed").deliver(1).gives("")
    verdict = story.check()
    assert (verdict.attempted, verdict.acknowledged, verdict.delivered) == (2, 0, 1)
    story.deliver(1).gives("duplicated 1")


@pytest.mark.parametrize(
    ("story", "wrong", "violations"),
    [
        # A publisher was told nothing.
        (
            Story("s").publish().attempt().deliver(0),
            "unsettled 1",
            ["unsettled: p/1 was neither acknowledged nor refused"],
        ),
        # A loss is counted for each subscriber.
        (
            Story("s", "t", "u").publish(3).deliver(0, 2).deliver(0, 1, to="t").deliver(0, 1, 2, to="u"),
            "lost 2",
            [
                "lost: s: p/1 on 'news', acknowledged at 7.000",
                "lost: t: p/2 on 'news', acknowledged at 9.000",
            ],
        ),
        (Story("s").publish(2).deliver(1, 0), "out_of_order 1", ["out of order: s: p/0 on 'news' after p/1"]),
        (
            Story("s").publish(5 * SHOWN),
            f"lost {5 * SHOWN}",
            [f"lost: s: p/{i} on 'news', acknowledged at {2 * i + 3}.000" for i in range(SHOWN)]
            + ["lost: and more"],
        ),
    ],
)
def test_violations_are_told(story: Story, wrong: str, violations: list[str]) -> None:
    assert story.gives(wrong).check().violations == violations


def test_only_subscribers_of_its_topic_are_owed_a_message() -> None:
    Story("s").publish(topic="sport").gives("")
    Story("s", topics=(TOPIC, "sport")).publish(topic="sport").gives("lost 1")


def test_a_duplicate_is_seen_and_is_no_disorder() -> None:
    Story("s", "t").publish(2).deliver(0, 1, 0, 1).deliver(0, 1, to="t").gives("duplicated 2")


def test_each_life_of_a_subscriber_gets_everything_once() -> None:
    story = Story("first", "second").publish(2).deliver(0, to="first").deliver(0, 1, to="second")
    story.gives("lost 1").kill("first").gives("")
    # The deliveries of a killed subscriber are checked too.
    Story("s").publish(2).deliver(1, 1, 0).kill().gives("duplicated 1, out_of_order 1")


def test_order_is_by_publisher_and_topic() -> None:
    story = Story("s").publish(2).publish(2, "q").deliver(1, by="q").deliver(1).kill().gives("")
    story.deliver(0).gives("out_of_order 1")
    story = Story("s", topics=(TOPIC, "sport")).publish(topic="sport").publish()
    story.deliver(1).deliver(0, topic="sport").gives("")


@pytest.mark.parametrize(
    "record",
    [
        *(Record("delivered", 9, "p", 7, TOPIC), Record("delivered", 9, "nobody", 0, TOPIC)),
        *(Record("delivered", 9, "p", 0, "sport"), Record("delivered", 9, "p", 1, "sport")),
        Record("damaged", 9, topic=TOPIC, text="???"),
    ],
)
def test_a_message_that_was_not_published_there_is_unexpected(record: Record) -> None:
    story = Story("s").publish().publish(topic="sport").deliver(0)
    story.lives["s"].append(record)
    story.gives("unexpected 1")


def test_two_messages_cannot_have_one_offset() -> None:
    story = Story("s", "t").publish().publish(1, "q")
    story.deliver(0, log="a", offset=1).deliver(0, log="a", offset=2, by="q")
    story.deliver(0, to="t", log="a", offset=1, by="q").deliver(0, to="t", log="a", offset=2)
    story.gives("unexpected 2")


def test_offsets_of_a_log_rise_without_holes() -> None:
    story = Story("s").publish().publish(1, "q")
    story.deliver(0, log="a", offset=2).deliver(0, log="a", offset=1, by="q").gives("out_of_order 1")
    # A message is gone, if only one that was not acknowledged.
    story = Story("s").publish(3).deliver(0, 1, log="a", offset=5)
    story.deliver(2, log="a", offset=8).gives("unexpected 1")
    # A message that is stored twice leaves a hole.
    story = Story("s").publish(3).deliver(0, 1, log="a").crash().gap()
    story.deliver(2, log="b", offset=2).gives(memory="")
    # Another log begins again, behind a gap; another epoch goes on.
    story = Story("s").publish(2).deliver(0, log="a", offset=9)
    story.crash().gap().deliver(1, log="b", offset=1).gives(memory="")
    Story("s").publish(2).deliver(0, log="a", offset=9).deliver(1, log="b", offset=1).gives("out_of_order 1")
    Story("s").publish(2).deliver(0, log="a", offset=9).deliver(1, log="b", offset=10).gives("")


class TestRefusals:
    def test_a_full_disk_is_a_reason(self) -> None:
        story = Story("s").attempt().fill(span=(2.5, 6)).settle("refused").attempt().settle("refused")
        story.gives("")

    def test_the_disk_of_another_topic_or_time_is_none(self) -> None:
        for topic, span in (("sport", (0, 100)), (TOPIC, (0, 1)), (TOPIC, (5, 100))):
            Story("s").attempt().settle("refused").fill(topic, span).gives("refused 1")

    def test_messages_on_their_way_after_a_refused_one_may_be_refused(self) -> None:
        story = Story("s").attempt().fill().attempt().settle("refused", 0).settle("refused").gives("")
        story.attempt().settle("refused").gives("refused 1")

    def test_the_refusal_of_another_publisher_is_no_reason(self) -> None:
        story = Story("s").attempt().fill().attempt("q").settle("refused", 0).settle("refused")
        story.gives("refused 1")


class TestGaps:
    def test_there_is_none_with_sqlite_and_it_excuses_nothing(self) -> None:
        story = Story("s").crash().gap().gives(sqlite="unexpected 1", memory="")
        assert story.check().gaps == 1
        Story("s").publish().crash().gap().gives(sqlite="lost 1, unexpected 1")

    def test_each_needs_a_reason_of_its_own_before_it_on_a_topic_of_the_subscriber(self) -> None:
        Story("s").gap().crash().crash("sport").gives(memory="unexpected 1")
        Story("s").crash().gap().gap().gives(memory="unexpected 1")
        Story("s").crash("sport").gap(topic="sport").gives(memory="unexpected 1")

    def test_it_excuses_the_messages_that_went_with_the_consumer(self) -> None:
        story = Story("s").publish(3).deliver(0).crash().gap().publish().deliver(3).gives(memory="")
        verdict = story.check("memory")
        assert (verdict.gaps, verdict.delivered, verdict.acknowledged) == (1, 2, 4)
        # Without one they are lost.
        Story("s").publish(3).deliver(0).crash().publish().deliver(3).gives(memory="lost 2")

    def test_it_excuses_no_other_subscriber_and_no_other_topic(self) -> None:
        story = Story("s", "t").publish().crash().gap().gives(memory="lost 1")
        assert story.check("memory").violations == ["lost: t: p/0 on 'news', acknowledged at 4.000"]
        story = Story("s", topics=(TOPIC, "sport")).publish().publish(topic="sport")
        story.crash().crash("sport").gap().gives(memory="lost 1")

    def test_it_excuses_no_message_published_after_the_crash_or_after_it(self) -> None:
        Story("s").crash().publish().gap().gives(memory="lost 1")
        Story("s").crash().gap().publish().crash().gives(memory="lost 1")

    def test_it_stands_between_the_messages_of_the_publisher_that_came(self) -> None:
        Story("s").publish(2).deliver(1).crash().gap().gives(memory="lost 1")
        Story("s").publish(2).crash().gap().deliver(0).gives(memory="lost 1")
        # The messages of others say nothing.
        Story("s").publish().publish(1, "q").deliver(0, by="q").crash().gap().gives(memory="")

    def test_it_excuses_as_many_as_it_says(self) -> None:
        Story("s").publish(5).crash().gap(3).deliver(4).gives(memory="lost 1")
        # It may say more than were acknowledged.
        Story("s").publish().attempt().settle("failed").crash().gap(2).gives(memory="")

    def test_several_share_the_missing_messages(self) -> None:
        """The first can excuse p/0 only, the second both."""
        story = Story("s").publish().crash().gap(1).publish().crash().gap(1).gives(memory="")
        story.publish().deliver(2).gives(memory="")
        story.publish().gives(memory="lost 1")

    def test_a_subscriber_that_comes_after_the_crash_is_told_of_none(self) -> None:
        Story().publish(2).crash().subscribe("s").publish().deliver(2).gives(memory="", sqlite="lost 2")
        # It gets the messages published since.
        Story().crash().publish(2).subscribe("s").deliver(1).gives(memory="lost 1")


class TestRestores:
    """The log has p/0 when it is copied, then p/1 and p/2, and p/3 when it is restored."""

    @staticmethod
    def restored(*subscribers: str) -> Story:
        story = Story(*subscribers).publish().copy().publish(2)
        for name in subscribers:
            story.deliver(0, 1, to=name, log="a")
        return story.restore().publish()

    def test_each_subscriber_is_told_before_it_gets_anything_new(self) -> None:
        story = self.restored("s", "t").gap().deliver(3, log="b", offset=1)
        story.gap(to="t").deliver(3, to="t", log="b", offset=1).gives(sqlite="")
        story = self.restored("s", "t").gap().deliver(3, log="b", offset=1)
        story.deliver(3, to="t", log="b", offset=2).gives(sqlite="lost 1, unexpected 1")
        assert story.check().violations == [
            "unexpected: t: p/3 on 'news' without a gap, though the log was restored at 15.000",
            "lost: t: p/2 on 'news', acknowledged at 9.000",
        ]

    def test_one_gap_tells_of_several_restores_unless_something_came_between(self) -> None:
        self.restored("s").restore().publish().gap().deliver(4).gives(sqlite="")
        story = self.restored("s").gap().deliver(3).restore().publish().deliver(4)
        story.gives(sqlite="unexpected 1")
        self.restored("s").gap().deliver(3).restore().publish().gap().deliver(4).gives(sqlite="")
        self.restored("s").gap().gap().deliver(3).gives(sqlite="unexpected 1")

    def test_one_that_had_not_read_all_of_the_copy_gets_the_rest_after_the_gap(self) -> None:
        story = Story("s").publish(2).copy().publish().deliver(0, log="a").restore().publish()
        story.gap().deliver(1, log="b", offset=1).deliver(3, log="b", offset=2).gives(sqlite="")

    def test_no_other_message_comes_at_a_position_that_was_read_without_a_gap(self) -> None:
        story = self.restored("s").deliver(2, log="a", offset=2)
        story.attempt("q").settle("failed").deliver(0, by="q", log="b", offset=1)
        story.gives(sqlite="lost 1, unexpected 1, out_of_order 1")
        story = self.restored("s").deliver(2, log="a", offset=2).gap()
        story.deliver(3, log="b", offset=1).gives(sqlite="")

    def test_nothing_comes_twice(self) -> None:
        self.restored("s").gap().deliver(0, 1, 3).gives(sqlite="duplicated 2")

    def test_a_gap_needs_a_restore_of_its_topic_before_it_and_no_known_size(self) -> None:
        Story("s").gap().copy().restore().gives(sqlite="unexpected 1")
        Story("s").copy().restore("sport").gap().gives(sqlite="unexpected 1")
        Story("s").copy().restore().gap(1).gives(sqlite="unexpected 1")
        Story("s").crash().copy().restore().gap().gap().gives(sqlite="unexpected 1")

    def test_what_was_confirmed_before_the_copy_or_published_after_the_restore_must_come(self) -> None:
        story = Story("s").publish().copy().publish().restore().publish().gap()
        story.gives(sqlite="lost 2").deliver(2).gives(sqlite="lost 1")
        # These may have been stored between the two.
        Story("s").attempt().copy().settle("acknowledged").restore().gap().gives(sqlite="")
        Story("s").copy().attempt().restore().settle("acknowledged").gap().gives(sqlite="")

    def test_only_a_gap_after_the_restore_and_before_later_messages_excuses(self) -> None:
        self.restored("s").deliver(3).gap().gives(sqlite="lost 1, unexpected 1")
        Story("s", "t").copy().publish().restore().gap().gives(sqlite="lost 1")
        Story("s").copy().publish().restore("sport").gives(sqlite="lost 1")

    def test_one_that_comes_after_the_restore_is_told_of_none(self) -> None:
        story = Story().publish().copy().publish().restore().subscribe("s").publish().deliver(0, 2)
        story.gives(sqlite="")
        Story().copy().restore().publish().subscribe("s").gives(sqlite="lost 1")

    def test_classic_peers_are_not_told(self) -> None:
        story = Story().copy().connect("s").publish().kill().restore().connect("t").publish()
        story.deliver(1, to="t").gives(sqlite="")
        # A message may have waited at its producer while the copy was made.
        story = Story("s").attempt(producer="producer-1").settle("acknowledged").copy().restore().gap()
        story.gives(sqlite="").attempt(producer="producer-1").settle("acknowledged").gives(sqlite="lost 1")

    def test_a_batch_behind_a_lost_one_that_was_under_way_is_refused(self) -> None:
        text = "after_refused: a batch before it was refused, or never came"
        story = Story("s").copy().attempt().attempt().settle("acknowledged", 0).restore().gap()
        story.settle("refused", 1, text).gives(sqlite="")
        # Nor can one that was under way with it have been stored.
        story = Story("s").copy().attempt().attempt().attempt().settle("acknowledged", 0).restore().gap()
        story.settle("refused", 1, text).settle("refused", 2, text).gives(sqlite="")
        Story("s").copy().attempt().attempt().settle("acknowledged", 0).restore().gap().settle(
            "refused", 1, "full: there is no room"
        ).gives(sqlite="refused 1")
        Story("s").copy().publish().attempt().restore().gap().settle("refused", text=text).gives(
            sqlite="refused 1"
        )
        Story("s").attempt().attempt().settle("acknowledged", 0).deliver(0).copy().restore().gap().settle(
            "refused", 1, text
        ).gives(sqlite="refused 1")

    def test_a_hole_is_excused_only_where_a_message_may_have_been_stored_twice(self) -> None:
        story = self.restored("s").gap().publish().deliver(3, log="b", offset=1)
        story.deliver(4, log="b", offset=3).gives(sqlite="")
        Story("s").publish(2).copy().restore("sport").deliver(0, log="a").deliver(1, log="a", offset=2).gives(
            sqlite="unexpected 1"
        )


class TestClassic:
    """The classic protocol promises less, and the checker demands that."""

    def test_a_message_that_its_producer_has_comes_unless_the_producer_ends(self) -> None:
        story = Story("s").attempt(producer="producer-1").settle("acknowledged").gives("lost 1")
        story.end("producer-2").gives("lost 1").end("producer-1").gives("")
        # One that is published to the next producer is owed again.
        story.attempt(producer="producer-1").settle("acknowledged").gives("lost 1")

    def test_nobody_tells_of_a_full_disk(self) -> None:
        Story("s").fill().attempt(producer="producer-1").settle("acknowledged").gives("lost 1")
        Story("s").attempt(producer="producer-1").settle("acknowledged").fill().gives("")
        Story("s").attempt(producer="producer-1").settle("acknowledged").fill("sport").gives("lost 1")

    def test_it_comes_once_and_in_order_and_only_where_it_was_published(self) -> None:
        story = Story("s").attempt(producer="producer-1").settle("failed")
        story.attempt(producer="producer-1").settle("failed").end("producer-1").gives("")
        story.deliver(0, 0, 1).gives("duplicated 1")
        Story("s").attempt(producer="p").attempt(producer="p").settle("failed").settle("failed", 0).deliver(
            1, 0
        ).gives("out_of_order 1")
        Story("s").attempt(producer="p").settle("failed").deliver(0, topic="sport").gives("unexpected 1")

    def test_a_connection_gets_what_is_published_while_it_lasts(self) -> None:
        story = Story().publish().connect("s").publish(2).deliver(1).gives("lost 1").deliver(2).gives("")
        story.kill().connect("t").gives("").publish().gives("lost 1").deliver(3, to="t").gives("")
        # What was published before it may come too, and then once.
        Story().attempt().connect("s").settle("acknowledged").deliver(0).gives("").deliver(0).gives(
            "duplicated 1"
        )


class TestLogsOfLimitedSize:
    def test_a_gap_needs_no_crash_and_says_exactly_how_many(self) -> None:
        for missed, wrong in ((3, ""), (2, "lost 1, unexpected 1"), (4, "unexpected 1")):
            story = Story("s").publish(5).deliver(0, log="a").gap(missed).deliver(4, log="a", offset=4)
            story.gives("lost 3, unexpected 1" if missed == 3 else None, limited=wrong)

    def test_a_hole_needs_a_gap_and_a_gap_a_hole(self) -> None:
        story = Story("s").publish(5).deliver(0, log="a").deliver(4, log="a", offset=4)
        story.gives(limited="lost 3, unexpected 1")
        story = Story("s").publish(2).deliver(0, log="a").gap(1).deliver(1, log="a", offset=1)
        story.gives(limited="unexpected 1")

    def test_it_excuses_nothing_published_later(self) -> None:
        Story("s").gap(1).publish().gives(limited="lost 1")

    def test_an_unknown_number_still_needs_a_crash(self) -> None:
        Story("s").publish().gap().gives(limited="lost 1, unexpected 1")
        # Then it covers all messages before the subscriber was back.
        story = Story("s").publish().crash().publish(3).gap().deliver(3).gives(memory="lost 2")
        assert story.check("memory", all_kept=False).good

    def test_a_late_subscriber_gets_all_from_the_first_that_is_left(self) -> None:
        story = Story().publish(4).subscribe("s").deliver(2, 3).gives("lost 2", limited="")
        story.publish(2).deliver(5).gives(limited="lost 1")
        Story().publish(4).subscribe("s").deliver(1, 3).gives(limited="lost 1")


@given(st.data())
def test_any_change_of_a_good_history_is_seen(data: st.DataObject) -> None:
    count = data.draw(st.integers(2, 12))
    numbers = list(range(count))
    changed, place = list(numbers), data.draw(st.integers(0, count - 1))
    match data.draw(st.sampled_from(["drop", "repeat", "swap", "invent"])):
        case "drop":
            del changed[place]
        case "repeat":
            changed.insert(data.draw(st.integers(0, count)), place)
        case "swap":
            other = data.draw(st.integers(0, count - 1).filter(lambda other: other != place))
            changed[place], changed[other] = changed[other], changed[place]
        case _:
            changed.insert(place, count)
    assert Story("s").publish(count).deliver(*numbers).check().good
    assert not Story("s").publish(count).deliver(*changed).check().good


def test_a_message_says_whose_it_is() -> None:
    for size in (0, 1, 40, 1000, 100_000):
        assert parse(message("publisher-1", 17, size)) == ("publisher-1", 17)
        assert len(message("publisher-1", 17, size)) < size + 40


@given(st.integers(0, 200), st.sampled_from([0, 40, 1000]), st.data())
def test_a_changed_message_is_seen(number: int, size: int, data: st.DataObject) -> None:
    good = message("publisher-1", number, size)
    place = data.draw(st.integers(0, len(good) - 1))
    assert parse(good[:place] + good[place + 1 :]) != ("publisher-1", number)
    assert parse(good[:place]) is None
    assert parse(good + "x") is None


def test_other_data_is_no_message() -> None:
    for data in ("", "hello", "p 1", "p 1 2 ", "p x 2 aa", "p 1 x aa", "p 1 99999999999999 a"):
        assert parse(data) is None


class TestSharedLog:
    def test_a_good_history_is_good(self) -> None:
        story = Story("s", "t").publish(3).deliver(0, 1, 2, log="a").deliver(0, 1, 2, to="t", log="a")
        story.gives("", jetstream="", jetstream_limited="")

    def test_a_topic_has_one_log_everywhere(self) -> None:
        story = Story("s", "t").publish(2).deliver(0, 1, log="a").deliver(0, 1, to="t", log="b")
        story.gives("", jetstream="unexpected 2", jetstream_limited="unexpected 2")
        # Not even the consumer's next life begins another one.
        story = Story("s").publish(2).deliver(0, log="a").crash().deliver(1, log="b", offset=1)
        story.gives("", jetstream="unexpected 1")

    def test_other_topics_have_other_logs(self) -> None:
        story = Story("s", topics=(TOPIC, "sport")).publish().publish(topic="sport")
        story.deliver(0, log="a").deliver(1, log="b", topic="sport").gives("", jetstream="")

    def test_an_offset_stands_for_one_message_at_all_consumers(self) -> None:
        story = (
            Story("s", "t")
            .publish()
            .publish(1, "q")
            .deliver(0, log="a")
            .deliver(0, log="a", offset=1, by="q")
        )
        story.deliver(0, to="t", log="a", by="q").deliver(0, to="t", log="a", offset=1)
        story.gives(jetstream="unexpected 2")

    def test_offsets_rise_without_holes_from_the_first(self) -> None:
        story = Story("s").publish(2).deliver(0, 1, log="a", offset=4)
        story.gives("", jetstream="unexpected 1", jetstream_limited="")
        story = Story("s").publish(2).deliver(0, log="a").deliver(1, log="a", offset=2)
        story.gives(jetstream="unexpected 1", jetstream_limited="unexpected 1")
        Story("s").publish(2).deliver(1, log="a", offset=1).deliver(0, log="a").kill().gives(
            jetstream="unexpected 1, out_of_order 2"
        )

    @pytest.mark.parametrize("missed", [2, None])
    def test_the_end_of_a_consumer_is_no_reason_for_a_gap(self, missed: int | None) -> None:
        story = Story("s").publish(2).crash().gap(missed).publish().deliver(2)
        story.gives(memory="", jetstream="lost 2, unexpected 1")

    def test_it_is_no_reason_for_a_loss_before_a_subscriber_came(self) -> None:
        Story().publish().crash().subscribe("s").gives(memory="", jetstream="lost 1")

    def test_a_gap_for_want_of_room_has_the_number_of_the_lost_messages(self) -> None:
        Story("s").publish(3).gap(2).deliver(2, log="a", offset=2).gives(
            jetstream="lost 2, unexpected 1", jetstream_limited=""
        )
        Story("s").publish(3).gap(1).deliver(2, log="a", offset=1).gives(jetstream_limited="lost 1")
        Story("s").publish(3).gap().deliver(2, log="a", offset=2).gives(
            jetstream_limited="lost 2, unexpected 1"
        )

    def test_the_first_messages_may_go_until_somebody_reads(self) -> None:
        story = Story("s").publish(3).deliver(2, log="a", offset=2)
        story.gives(limited="lost 2", jetstream="lost 2, unexpected 1", jetstream_limited="")
        # Not once a message has come.
        story = Story("s").publish(3).deliver(0, log="a").deliver(2, log="a", offset=2)
        story.gives(jetstream_limited="lost 1, unexpected 1")

    def test_nothing_excuses_a_refusal(self) -> None:
        story = Story("s").attempt().fill(span=(0, 100)).settle("refused", text="full: no room")
        story.gives("", jetstream="refused 1")
        story = (
            Story("s")
            .attempt()
            .attempt()
            .settle("refused", -2, "full: x")
            .settle("refused", text="after_refused")
        )
        story.gives(jetstream="refused 2")

    def test_no_log_is_restored(self) -> None:
        story = Story("s").copy().publish().restore().gap()
        story.gives(sqlite="", jetstream="lost 1, unexpected 1")

    def test_repeats_disorder_and_what_nobody_published_are_seen(self) -> None:
        Story("s").publish(2).deliver(0, 0, 1).gives(jetstream="duplicated 1")
        Story("s").publish(2).deliver(1, 0).gives(jetstream="out_of_order 1")
        Story("s").publish().deliver(0, 1).gives(jetstream="unexpected 1")
        Story("s").attempt().gives(jetstream="unsettled 1")
