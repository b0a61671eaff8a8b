"""The checker of histories, which is worth nothing unless it sees each thing that can go wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ...faults.checker import SHOWN, Life, Span, Verdict, check
from ...faults.schedule import Retention
from ...faults.workers import Record, message, parse

TOPIC = "news"

Outcome = Literal["acknowledged", "refused", "failed"]


class Story:
    """Write histories, one event after another, a second apart."""

    def __init__(self) -> None:
        self.now = 0.0
        self.published: list[Record] = []
        self.lives: dict[str, list[Record]] = {}
        self.unclean: dict[str, list[Span]] = {}
        self.full: dict[str, list[Span]] = {}
        self._numbers: dict[str, int] = {}

    def tick(self) -> float:
        self.now += 1
        return self.now

    def attempt(self, publisher: str = "p", topic: str = TOPIC) -> int:
        number = self._numbers[publisher] = self._numbers.get(publisher, -1) + 1
        self.published.append(Record("attempted", self.tick(), publisher, number, topic))
        return number

    def settle(
        self, number: int, event: Outcome = "acknowledged", *, publisher: str = "p", topic: str = TOPIC
    ) -> None:
        self.published.append(Record(event, self.tick(), publisher, number, topic))

    def publish(self, count: int = 1, publisher: str = "p", topic: str = TOPIC) -> None:
        for _ in range(count):
            self.settle(self.attempt(publisher, topic), publisher=publisher, topic=topic)

    def subscribe(self, *names: str) -> None:
        for name in names:
            self.lives[name] = [Record("subscribed", self.tick())]

    def deliver(
        self,
        *numbers: int,
        to: str = "s",
        publisher: str = "p",
        topic: str = TOPIC,
        log: str = "",
        offset: int = 0,
    ) -> None:
        for index, number in enumerate(numbers):
            record = Record("delivered", self.tick(), publisher, number, topic, offset + index, log)
            self.lives[to].append(record)

    def gap(self, missed: int | None = None, to: str = "s", topic: str = TOPIC) -> None:
        self.lives[to].append(Record("gap", self.tick(), topic=topic, missed=missed))

    def crash(self, topic: str = TOPIC) -> None:
        self.unclean.setdefault(topic, []).append((self.tick(), self.tick()))

    def check(
        self,
        retention: Retention = "sqlite",
        topics: Sequence[str] = (TOPIC,),
        killed: Mapping[str, bool] | None = None,
        *,
        all_kept: bool = True,
    ) -> Verdict:
        lives = [
            Life(name, topics, records, (killed or {}).get(name, False))
            for name, records in self.lives.items()
        ]
        return check(self.published, lives, retention, self.unclean, self.full, all_kept=all_kept)


@pytest.fixture
def story() -> Story:
    return Story()


def test_a_good_history_is_good(story: Story) -> None:
    story.subscribe("s", "t")
    story.publish(3)
    story.deliver(0, 1, 2)
    story.deliver(0, 1, 2, to="t")
    verdict = story.check()
    assert verdict.good
    assert not verdict.violations
    assert str(verdict) == (
        "attempted 3, acknowledged 3, delivered 3, lost 0, duplicated 0, unexpected 0, out of order 0, "
        "gaps announced 0"
    )


def test_a_message_that_was_not_acknowledged_may_come_or_not(story: Story) -> None:
    story.subscribe("s")
    for _ in range(3):
        story.settle(story.attempt(), "failed")
    story.deliver(1)
    verdict = story.check()
    assert verdict.good
    assert (verdict.attempted, verdict.acknowledged, verdict.delivered) == (3, 0, 1)


def test_a_message_that_was_not_acknowledged_comes_once_at_most(story: Story) -> None:
    story.subscribe("s")
    story.settle(story.attempt(), "failed")
    story.deliver(0, 0)
    assert story.check().duplicated == 1


def test_a_publisher_that_was_told_nothing_is_stuck(story: Story) -> None:
    story.subscribe("s")
    story.publish()
    story.attempt()
    story.deliver(0)
    verdict = story.check()
    assert (verdict.unsettled, verdict.good) == (1, False)
    assert verdict.violations == ["unsettled: p/1 was neither acknowledged nor refused"]


def test_a_lost_message_is_counted_for_each_subscriber(story: Story) -> None:
    story.subscribe("s", "t", "u")
    story.publish(3)
    story.deliver(0, 2)
    story.deliver(0, 1, to="t")
    story.deliver(0, 1, 2, to="u")
    verdict = story.check()
    assert (verdict.lost, verdict.delivered, verdict.good) == (2, 3, False)
    assert verdict.violations == [
        "lost: s: p/1 on 'news', acknowledged at 7.000",
        "lost: t: p/2 on 'news', acknowledged at 9.000",
    ]


def test_nobody_owes_a_message_of_another_topic(story: Story) -> None:
    story.subscribe("s")
    story.publish(topic="sport")
    assert story.check().good
    assert story.check(topics=[TOPIC, "sport"]).lost == 1


def test_a_duplicate_is_seen_and_is_no_disorder(story: Story) -> None:
    story.subscribe("s", "t")
    story.publish(2)
    story.deliver(0, 1, 0, 1)
    story.deliver(0, 1, to="t")
    verdict = story.check()
    assert (verdict.duplicated, verdict.out_of_order, verdict.good) == (2, 0, False)


def test_each_life_of_a_subscriber_gets_everything_once(story: Story) -> None:
    story.subscribe("first", "second")
    story.publish(2)
    story.deliver(0, to="first")
    story.deliver(0, 1, to="second")
    assert story.check(killed={"first": True}).good
    assert story.check().lost == 1


def test_what_a_killed_subscriber_got_is_checked_too(story: Story) -> None:
    story.subscribe("s")
    story.publish(2)
    story.deliver(1, 1, 0)
    verdict = story.check(killed={"s": True})
    assert (verdict.duplicated, verdict.out_of_order, verdict.lost) == (1, 1, 0)


def test_disorder_is_seen_by_publisher_and_topic(story: Story) -> None:
    story.subscribe("s")
    story.publish(2)
    story.publish(2, publisher="q")
    story.deliver(1, publisher="q")
    story.deliver(1)
    assert story.check(killed={"s": True}).good
    story.deliver(0)
    verdict = story.check(killed={"s": True})
    assert (verdict.out_of_order, verdict.good) == (1, False)
    assert verdict.violations == ["out of order: s: p/0 on 'news' after p/1"]


def test_topics_have_no_order_among_each_other(story: Story) -> None:
    story.subscribe("s")
    story.publish(topic="sport")
    story.publish()
    story.deliver(1)
    story.deliver(0, topic="sport")
    assert story.check(topics=[TOPIC, "sport"]).good


@pytest.mark.parametrize(
    "record",
    [
        Record("delivered", 9, "p", 7, TOPIC),
        Record("delivered", 9, "nobody", 0, TOPIC),
        Record("delivered", 9, "p", 0, "sport"),
        Record("delivered", 9, "p", 1, "sport"),
        Record("damaged", 9, topic=TOPIC, text="???"),
    ],
)
def test_what_nobody_published_there_is_unexpected(story: Story, record: Record) -> None:
    story.subscribe("s")
    story.publish()
    story.publish(topic="sport")
    story.deliver(0)
    story.lives["s"].append(record)
    verdict = story.check()
    assert (verdict.unexpected, verdict.good) == (1, False)


def test_two_messages_cannot_have_one_offset(story: Story) -> None:
    story.subscribe("s", "t")
    story.publish(publisher="p")
    story.publish(publisher="q")
    story.deliver(0, log="a", offset=1)
    story.deliver(0, log="a", offset=2, publisher="q")
    story.deliver(0, to="t", log="a", offset=1, publisher="q")
    story.deliver(0, to="t", log="a", offset=2)
    verdict = story.check()
    assert (verdict.unexpected, verdict.good) == (2, False)


def test_offsets_of_a_log_rise(story: Story) -> None:
    story.subscribe("s")
    story.publish(publisher="p")
    story.publish(publisher="q")
    story.deliver(0, log="a", offset=2)
    story.deliver(0, log="a", offset=1, publisher="q")
    assert story.check().out_of_order == 1


@pytest.mark.parametrize("retention", ["memory", "sqlite"])
def test_offsets_of_a_log_have_no_holes(story: Story, retention: Retention) -> None:
    """Or a message is gone, if only one that was not acknowledged."""
    story.subscribe("s")
    story.publish(3)
    story.deliver(0, 1, log="a", offset=5)
    story.deliver(2, log="a", offset=8)
    verdict = story.check(retention)
    assert (verdict.unexpected, verdict.good) == (1, False)


def test_a_message_that_is_stored_twice_leaves_a_hole(story: Story) -> None:
    story.subscribe("s")
    story.publish(3)
    story.deliver(0, 1, log="a", offset=0)
    story.crash()
    story.gap()
    story.deliver(2, log="b", offset=2)
    assert story.check("memory").good


def test_offsets_of_another_log_begin_again(story: Story) -> None:
    story.subscribe("s")
    story.publish(2)
    story.deliver(0, log="a", offset=9)
    story.deliver(1, log="b", offset=1)
    assert story.check().good


class TestRefusals:
    def test_a_full_disk_is_a_reason(self, story: Story) -> None:
        story.subscribe("s")
        number = story.attempt()
        story.full[TOPIC] = [(story.tick(), story.now + 3)]
        story.settle(number, "refused")
        story.settle(story.attempt(), "refused")
        assert story.check().good

    def test_without_one_it_is_wrong(self, story: Story) -> None:
        story.subscribe("s")
        story.settle(story.attempt(), "refused")
        story.full["sport"] = [(0, 100)]
        verdict = story.check()
        assert (verdict.refused, verdict.good) == (1, False)

    @pytest.mark.parametrize("span", [(0, 1), (5, 100)])
    def test_a_disk_that_was_full_before_or_later_is_none(self, story: Story, span: Span) -> None:
        story.subscribe("s")
        story.settle(story.attempt(), "refused")
        story.full[TOPIC] = [span]
        assert story.check().refused == 1

    def test_what_was_on_its_way_after_a_refused_one_may_be_refused(self, story: Story) -> None:
        story.subscribe("s")
        first = story.attempt()
        story.full[TOPIC] = [(story.tick(), story.tick())]
        second = story.attempt()
        story.settle(first, "refused")
        story.settle(second, "refused")
        assert story.check().good
        story.settle(story.attempt(), "refused")
        assert story.check().refused == 1

    def test_the_refusal_of_another_publisher_is_no_reason(self, story: Story) -> None:
        story.subscribe("s")
        first = story.attempt()
        story.full[TOPIC] = [(story.tick(), story.tick())]
        other = story.attempt("q")
        story.settle(first, "refused")
        story.settle(other, "refused", publisher="q")
        assert story.check().refused == 1


class TestGaps:
    def test_there_is_none_with_sqlite(self, story: Story) -> None:
        story.subscribe("s")
        story.crash()
        story.gap()
        verdict = story.check("sqlite")
        assert (verdict.gaps, verdict.unexpected, verdict.good) == (1, 1, False)
        assert story.check("memory").good

    def test_it_excuses_nothing_with_sqlite(self, story: Story) -> None:
        story.subscribe("s")
        story.publish()
        story.crash()
        story.gap()
        assert story.check("sqlite").lost == 1

    def test_it_needs_a_reason(self, story: Story) -> None:
        story.subscribe("s")
        story.gap()
        story.crash()
        story.crash("sport")
        verdict = story.check("memory")
        assert (verdict.unexpected, verdict.good) == (1, False)

    def test_each_needs_a_reason_of_its_own(self, story: Story) -> None:
        story.subscribe("s")
        story.crash()
        story.gap()
        story.gap()
        assert story.check("memory").unexpected == 1

    def test_it_is_on_a_topic_of_the_subscriber(self, story: Story) -> None:
        story.subscribe("s")
        story.crash("sport")
        story.gap(topic="sport")
        assert story.check("memory").unexpected == 1

    def test_it_excuses_what_went_with_the_consumer(self, story: Story) -> None:
        story.subscribe("s")
        story.publish(3)
        story.deliver(0)
        story.crash()
        story.gap()
        story.publish()
        story.deliver(3)
        verdict = story.check("memory")
        assert verdict.good
        assert (verdict.gaps, verdict.delivered, verdict.acknowledged) == (1, 2, 4)

    def test_a_loss_without_one_is_a_loss(self, story: Story) -> None:
        story.subscribe("s")
        story.publish(3)
        story.deliver(0)
        story.crash()
        story.publish()
        story.deliver(3)
        assert story.check("memory").lost == 2

    def test_it_excuses_nobody_else(self, story: Story) -> None:
        story.subscribe("s", "t")
        story.publish()
        story.crash()
        story.gap()
        verdict = story.check("memory")
        assert verdict.lost == 1
        assert verdict.violations == ["lost: t: p/0 on 'news', acknowledged at 4.000"]

    def test_it_excuses_no_other_topic(self, story: Story) -> None:
        story.subscribe("s")
        story.publish()
        story.publish(topic="sport")
        story.crash()
        story.crash("sport")
        story.gap()
        assert story.check("memory", topics=[TOPIC, "sport"]).lost == 1

    def test_it_excuses_nothing_that_was_published_after_the_crash(self, story: Story) -> None:
        story.subscribe("s")
        story.crash()
        story.publish()
        story.gap()
        assert story.check("memory").lost == 1

    def test_it_excuses_nothing_that_was_published_after_it(self, story: Story) -> None:
        story.subscribe("s")
        story.crash()
        story.gap()
        story.publish()
        story.crash()
        assert story.check("memory").lost == 1

    def test_it_excuses_nothing_of_which_a_later_one_came_before_it(self, story: Story) -> None:
        story.subscribe("s")
        story.publish(2)
        story.deliver(1)
        story.crash()
        story.gap()
        assert story.check("memory").lost == 1

    def test_it_excuses_nothing_of_which_an_earlier_one_came_after_it(self, story: Story) -> None:
        story.subscribe("s")
        story.publish(2)
        story.crash()
        story.gap()
        story.deliver(0)
        assert story.check("memory").lost == 1

    def test_the_messages_of_others_say_nothing_of_where_one_lies(self, story: Story) -> None:
        story.subscribe("s")
        story.publish()
        story.publish(publisher="q")
        story.deliver(0, publisher="q")
        story.crash()
        story.gap()
        assert story.check("memory").good

    def test_it_excuses_as_many_as_it_says(self, story: Story) -> None:
        story.subscribe("s")
        story.publish(5)
        story.crash()
        story.gap(3)
        story.deliver(4)
        assert story.check("memory").lost == 1

    def test_it_may_say_more_than_were_acknowledged(self, story: Story) -> None:
        story.subscribe("s")
        story.publish()
        story.settle(story.attempt(), "failed")
        story.crash()
        story.gap(2)
        assert story.check("memory").good

    def test_several_share_what_is_missing(self, story: Story) -> None:
        """The first can excuse p/0 only, the second both."""
        story.subscribe("s")
        story.publish(1)
        story.crash()
        story.gap(1)
        story.publish(1)
        story.crash()
        story.gap(1)
        assert story.check("memory").good
        story.publish(1)
        story.deliver(2)
        assert story.check("memory").good
        story.publish(1)
        assert story.check("memory").lost == 1

    def test_none_is_told_to_whoever_comes_after_the_crash(self, story: Story) -> None:
        story.publish(2)
        story.crash()
        story.subscribe("s")
        story.publish()
        story.deliver(2)
        assert story.check("memory").good
        assert story.check("sqlite").lost == 2

    def test_whoever_comes_late_gets_what_was_published_since_the_crash(self, story: Story) -> None:
        story.crash()
        story.publish(2)
        story.subscribe("s")
        story.deliver(1)
        assert story.check("memory").lost == 1


@pytest.mark.parametrize("retention", ["memory", "sqlite"])
class TestLogsThatKeepSoMany:
    def test_a_gap_needs_no_crash_and_excuses_as_many_as_it_says(
        self, story: Story, retention: Retention
    ) -> None:
        story.subscribe("s")
        story.publish(5)
        story.deliver(0, log="a", offset=0)
        story.gap(3)
        story.deliver(4, log="a", offset=4)
        assert story.check(retention, all_kept=False).good
        assert not story.check(retention).good

    @pytest.mark.parametrize("missed", [2, 4])
    def test_a_gap_says_exactly_how_many(self, story: Story, retention: Retention, missed: int) -> None:
        story.subscribe("s")
        story.publish(5)
        story.deliver(0, log="a", offset=0)
        story.gap(missed)
        story.deliver(4, log="a", offset=4)
        assert story.check(retention, all_kept=False).unexpected == 1

    def test_a_hole_needs_a_gap(self, story: Story, retention: Retention) -> None:
        story.subscribe("s")
        story.publish(5)
        story.deliver(0, log="a", offset=0)
        story.deliver(4, log="a", offset=4)
        verdict = story.check(retention, all_kept=False)
        assert (verdict.lost, verdict.unexpected) == (3, 1)

    def test_a_gap_without_a_hole_is_none(self, story: Story, retention: Retention) -> None:
        story.subscribe("s")
        story.publish(2)
        story.deliver(0, log="a", offset=0)
        story.gap(1)
        story.deliver(1, log="a", offset=1)
        assert story.check(retention, all_kept=False).unexpected == 1

    def test_it_excuses_nothing_published_later(self, story: Story, retention: Retention) -> None:
        story.subscribe("s")
        story.gap(1)
        story.publish()
        assert story.check(retention, all_kept=False).lost == 1

    def test_an_unknown_number_still_needs_a_crash(self, story: Story, retention: Retention) -> None:
        story.subscribe("s")
        story.publish()
        story.gap()
        assert story.check(retention, all_kept=False).unexpected == 1

    def test_after_a_crash_it_covers_what_came_before_the_subscriber_was_back(
        self, story: Story, retention: Retention
    ) -> None:
        story.subscribe("s")
        story.publish()
        story.crash()
        story.publish(3)
        story.gap()
        story.deliver(3)
        assert story.check("memory", all_kept=False).good
        assert story.check("memory").lost == 2

    def test_who_comes_late_gets_what_is_left(self, story: Story, retention: Retention) -> None:
        story.publish(4)
        story.subscribe("s")
        story.deliver(2, 3)
        assert story.check(retention, all_kept=False).good
        assert story.check(retention).lost == 2
        story.publish(2)
        story.deliver(5)
        assert story.check(retention, all_kept=False).lost == 1

    def test_who_comes_late_gets_all_from_the_first(self, story: Story, retention: Retention) -> None:
        story.publish(4)
        story.subscribe("s")
        story.deliver(1, 3)
        assert story.check(retention, all_kept=False).lost == 1


def test_not_every_violation_is_told(story: Story) -> None:
    story.subscribe("s")
    story.publish(5 * SHOWN)
    verdict = story.check()
    assert verdict.lost == 5 * SHOWN
    assert len(verdict.violations) == SHOWN + 1
    assert verdict.violations[-1] == "lost: and more"


@given(st.data())
def test_any_change_of_a_good_history_is_seen(data: st.DataObject) -> None:
    story = Story()
    story.subscribe("s")
    story.publish(data.draw(st.integers(2, 12)))
    numbers = list(range(len(story.published) // 2))
    changed = list(numbers)
    place = data.draw(st.integers(0, len(numbers) - 1))
    match data.draw(st.sampled_from(["drop", "repeat", "swap", "invent"])):
        case "drop":
            del changed[place]
        case "repeat":
            changed.insert(data.draw(st.integers(0, len(numbers))), place)
        case "swap":
            other = data.draw(st.integers(0, len(numbers) - 1).filter(lambda other: other != place))
            changed[place], changed[other] = changed[other], changed[place]
        case _:
            changed.insert(place, len(numbers))
    story.deliver(*numbers)
    assert story.check().good
    story.subscribe("s")
    story.deliver(*changed)
    assert not story.check().good


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


@pytest.mark.parametrize(
    "data", ["", "hello", "p 1", "p 1 2 ", "p x 2 aa", "p 1 x aa", "p 1 99999999999999 a"]
)
def test_other_data_is_no_message(data: str) -> None:
    assert parse(data) is None
