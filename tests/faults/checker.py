"""Check the histories of publishers and subscribers against the guarantees of wsqueue.

With retention `sqlite` every subscriber gets every acknowledged message of its topics, once, in the order in
which each publisher published on the topic, and no gap. With `memory` the same holds, except for messages in
a gap that was announced to that subscriber on that topic after its consumer had ended uncleanly. A message
that was not acknowledged comes once or not at all. If the size of a log is limited, gaps that say exactly how
many messages are gone excuse them with either retention.

With `jetstream` the consumers share one log, and the fate of one of them excuses nothing. A topic has one
log at all of them, which begins with the offset 0, and there is no gap but one for want of room.

When a log is restored from a backup, the messages of which it heard after the backup may be missing, and no
others. Each subscriber is told of a gap before anything new comes from the restored log.

The classic protocol promises less. A message that a producer has is lost if that producer ends or the disk is
full, and nobody is told; nor is anybody of a restored log. A classic subscriber gets the messages that are
published while it is connected.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from .schedule import Retention
from .workers import Record

SHOWN = 10
"""Violations of one sort that are told one by one: one defect can make thousands."""

Identity = tuple[str, int]
"""The publisher and number of a message."""

Span = tuple[float, float]
"""The times between which something happened."""


class Restore(msgspec.Struct, frozen=True):
    """Hold when a log went back to an older copy.

    Attributes:
        copied: When the copy was begun, which has all that was stored before.
        ended: The times between which the consumer ended, after which the log that it had got nothing more.
    """

    copied: float
    ended: Span


class Life(msgspec.Struct, frozen=True):
    """Hold the records of one subscriber from its start to its end; after a restart it has another life.

    Attributes:
        name: Of the subscriber.
        topics: To which it subscribed.
        records: Its history.
        killed: Whether it was ended before it could get everything.
        live: Whether it gets only messages that are published later, as one connection of a classic peer.
    """

    name: str
    topics: Sequence[str]
    records: Sequence[Record]
    killed: bool = False
    live: bool = False


class Verdict(msgspec.Struct):
    """Hold the result of a check.

    Attributes:
        attempted: Messages that were to be published.
        acknowledged: Messages whose publishers were told that they are safe.
        unsettled: Messages whose publishers were told nothing at all.
        refused: Messages that were refused without a reason.
        delivered: Messages that came to at least one subscriber.
        lost: Acknowledged messages that a subscriber did not get, counted for each subscriber.
        duplicated: Deliveries beyond the first, counted for each subscriber.
        unexpected: Deliveries that no publisher published there, gaps without a reason, and deliveries from a
            restored log without a gap.
        out_of_order: Deliveries before which a later one had come.
        gaps: Gaps announced.
        violations: Sentences, not all when they are many.
    """

    attempted: int = 0
    acknowledged: int = 0
    unsettled: int = 0
    refused: int = 0
    delivered: int = 0
    lost: int = 0
    duplicated: int = 0
    unexpected: int = 0
    out_of_order: int = 0
    gaps: int = 0
    violations: list[str] = []

    @property
    def good(self) -> bool:
        """Return True if every guarantee was kept."""
        delivery = self.lost or self.duplicated or self.unexpected or self.out_of_order
        return not (delivery or self.unsettled or self.refused)

    def __str__(self) -> str:
        return (
            f"attempted {self.attempted}, acknowledged {self.acknowledged}, delivered {self.delivered}, "
            f"lost {self.lost}, duplicated {self.duplicated}, unexpected {self.unexpected}, "
            f"out of order {self.out_of_order}, gaps announced {self.gaps}"
        )


def check(
    published: Iterable[Record],
    lives: Sequence[Life],
    retention: Retention,
    unclean: Mapping[str, Sequence[Span]] | None = None,
    full: Mapping[str, Sequence[Span]] | None = None,
    *,
    ends: Mapping[str, Sequence[float]] | None = None,
    restores: Mapping[str, Sequence[Restore]] | None = None,
    all_kept: bool = True,
) -> Verdict:
    """Return the verdict on all histories of one schedule.

    Args:
        published: The records of all publishers.
        lives: Records of the subscribers.
        retention: The mode of the consumers.
        unclean: The unclean ends of the consumer of each topic.
        full: When the disk of that was full.
        ends: When each producer ended, in whatever way.
        restores: When the log of each topic was restored.
        all_kept: Whether the logs keep all messages, so that none goes for want of room.
    """
    check = _Check(published, retention, unclean or {}, full or {}, ends=ends or {}, restores=restores or {})
    check.all_kept = all_kept
    return check.verdict_on(lives)


class _Check:
    def __init__(
        self,
        published: Iterable[Record],
        retention: Retention,
        unclean: Mapping[str, Sequence[Span]],
        full: Mapping[str, Sequence[Span]],
        *,
        ends: Mapping[str, Sequence[float]],
        restores: Mapping[str, Sequence[Restore]],
    ) -> None:
        if retention == "jetstream":
            # The log is elsewhere.
            unclean, full, restores = {}, {}, {}
        self.attempted: dict[Identity, Record] = {}
        self.acknowledged: dict[Identity, Record] = {}
        self.retention, self.unclean, self.restores, self.all_kept = retention, unclean, restores, True
        self.told = Counter[str]()
        self.violations: list[str] = []
        settled: set[Identity] = set()
        refused: dict[Identity, Record] = {}
        for record in published:
            identity = record.publisher, record.number
            if record.event == "attempted":
                self.attempted[identity] = record
            elif record.event in {"acknowledged", "refused", "failed"}:
                settled.add(identity)
                if record.event == "acknowledged":
                    self.acknowledged[identity] = record
                elif record.event == "refused":
                    refused[identity] = record
        for identity in self.attempted.keys() - settled:
            self.tell("unsettled", f"{_name(identity)} was neither acknowledged nor refused")
        self.check_refusals(refused, full)
        # In the order of each publisher, by topic.
        self.owed: dict[str, list[Identity]] = defaultdict(list)
        for identity in sorted(self.acknowledged):
            record, began = self.acknowledged[identity], self.attempted[identity].at
            # A producer tells a classic publisher nothing of messages that it loses later.
            given_up = record.producer and (
                any(began < end for end in ends.get(record.producer, ()))
                or any(began < end for _, end in full.get(record.topic, ()))
            )
            if not given_up:
                self.owed[record.topic].append(identity)
        self.delivered: set[Identity] = set()
        self.logged: dict[tuple[str, str, int], Identity] = {}
        # By topic, the log that all consumers share.
        self.shared: dict[str, str] = {}

    def tell(self, sort: str, sentence: str) -> None:
        """Count a violation."""
        self.told[sort] += 1
        if self.told[sort] <= SHOWN:
            self.violations.append(f"{sort}: {sentence}")
        elif self.told[sort] == SHOWN + 1:
            self.violations.append(f"{sort}: and more")

    def check_refusals(self, refused: Mapping[Identity, Record], full: Mapping[str, Sequence[Span]]) -> None:
        """Check that each refused message has a reason, or followed one that had and was not yet known to.

        A full disk is a reason, and so is a message before it that was lost by a restore.

        Args:
            refused: By identity, the records that say so.
            full: When the disk of each topic's consumer was full.
        """
        known: dict[tuple[str, str], float] = {}
        for identity in sorted(refused):
            record, began = refused[identity], self.attempted[identity].at
            owner = record.publisher, record.topic
            met = any(begin < record.at and began < end for begin, end in full.get(record.topic, ()))
            if met or self.comes_after_lost(record) or began <= known.get(owner, -1.0):
                known[owner] = max(record.at, known.get(owner, -1.0))
            else:
                self.tell("refused", f"{_name(identity)} on {record.topic!r}, {record.text}")

    def comes_after_lost(self, refused: Record) -> bool:
        """Return True if a message was under way with one before it that a restored log lost."""
        began = self.attempted[refused.publisher, refused.number].at
        return refused.text.startswith("after_refused") and any(
            restore.ended[0] < refused.at and self.may_lose(restore, (refused.publisher, number))
            for restore in self.restores.get(refused.topic, ())
            for number in range(refused.number)
            if (before := self.acknowledged.get((refused.publisher, number))) is not None
            and before.topic == refused.topic
            and before.at > began
        )

    def may_lose(self, restore: Restore, identity: Identity) -> bool:
        """Return True if an acknowledged message may have been stored after a copy, and before the end."""
        record = self.acknowledged[identity]
        # A classic publisher is told so before the message is stored.
        stored_later = record.producer or record.at > restore.copied
        return bool(stored_later) and self.attempted[identity].at < restore.ended[1]

    def verdict_on(self, lives: Sequence[Life]) -> Verdict:
        """Return the verdict, having looked at each life."""
        gaps = sum(_LifeCheck(self, life).gaps for life in lives)
        return Verdict(
            attempted=len(self.attempted),
            acknowledged=len(self.acknowledged),
            unsettled=self.told["unsettled"],
            refused=self.told["refused"],
            delivered=len(self.delivered),
            lost=self.told["lost"],
            duplicated=self.told["duplicated"],
            unexpected=self.told["unexpected"],
            out_of_order=self.told["out of order"],
            gaps=gaps,
            violations=self.violations,
        )


class _Gap(msgspec.Struct):
    """A gap on one topic: where in the life it stands, and how many more messages it can excuse.

    Attributes:
        index: Its place.
        at: When it was announced.
        left: How many.
        crash: Whether a consumer took the messages with it, or the log had no room for them.
    """

    index: int
    at: float
    left: float
    crash: bool


class _LifeCheck:
    """Go through the life of one subscriber, and then look for missing messages."""

    def __init__(self, check: _Check, life: Life) -> None:
        self.check, self.life = check, life
        self.gaps = 0
        self.places: dict[Identity, int] = {}
        self.highest: dict[tuple[str, str], int] = {}
        # By topic, the offset of the last message; after a gap of unknown size, any may come.
        self.offsets: dict[str, int] = {}
        # By topic, how many messages the gaps since the last delivery say that are gone.
        self.announced: dict[str, float] = defaultdict(float)
        self.gaps_of: dict[str, list[_Gap]] = defaultdict(list)
        self.subscribed = float("inf")
        # By topic, when the first message came, unless a gap came before it.
        self.begun: dict[str, float] = {}
        for index, record in enumerate(life.records):
            if record.event == "subscribed":
                self.subscribed = record.at
            elif record.event == "delivered":
                self.take_delivery(index, record)
            elif record.event == "damaged":
                self.tell("unexpected", f"what nobody published on {record.topic!r}: {record.text!r}")
            elif record.event == "gap":
                self.take_gap(index, record)
        if not life.killed:
            for topic in life.topics:
                self.look_for_missing(topic)

    def tell(self, sort: str, sentence: str) -> None:
        self.check.tell(sort, f"{self.life.name}: {sentence}")

    def take_delivery(self, index: int, record: Record) -> None:
        identity = record.publisher, record.number
        what = f"{_name(identity)} on {record.topic!r}"
        attempted = self.check.attempted.get(identity)
        if attempted is None or attempted.topic != record.topic or record.topic not in self.life.topics:
            self.tell("unexpected", f"{what}, which nobody published there")
            return
        self.check.delivered.add(identity)
        if identity in self.places:
            self.tell("duplicated", what)
            return
        self.places[identity] = index
        self.begun.setdefault(record.topic, record.at)
        if record.log:
            self.check_offset(record, identity, what)
        if not self.life.live:
            self.check_told(record.topic, attempted.at, what)
        highest = self.highest.get((record.publisher, record.topic), -1)
        if record.number < highest:
            self.tell("out of order", f"{what} after {record.publisher}/{highest}")
        self.highest[record.publisher, record.topic] = max(highest, record.number)

    def check_offset(self, record: Record, identity: Identity, what: str) -> None:
        """Check that a log has one message at an offset, and hands them out one after another."""
        shares = self.check.retention == "jetstream"
        shared = self.check.shared.setdefault(record.topic, record.log)
        if shares and shared != record.log:
            self.tell("unexpected", f"{what} from the log {record.log}, though its topic has {shared}")
        before = self.offsets.get(record.topic, -1)
        missing = record.offset - before - 1
        announced = self.announced.pop(record.topic, 0)
        # Who comes from the first message on gets all that are kept.
        whole = shares and self.check.all_kept
        # A message that was sent again to a log that had lost it is stored twice, and taken once.
        twice = self.check.unclean if self.check.retention == "memory" else self.check.restores
        if missing < 0:
            self.tell("out of order", f"{what} with offset {record.offset} after {before}")
        elif (before >= 0 or whole) and missing != announced and not twice.get(record.topic):
            gap = f" and a gap of {announced:g}" if announced else ""
            self.tell("unexpected", f"{what} with offset {record.offset} right after {before}{gap}")
        self.offsets[record.topic] = record.offset
        known = self.check.logged.setdefault((record.topic, record.log, record.offset), identity)
        if known != identity:
            self.tell("unexpected", f"{what} with the offset {record.offset} of {_name(known)}")

    def check_told(self, topic: str, attempted: float, what: str) -> None:
        """Check that a message which only a restored log can have comes after a gap."""
        told = [gap.at for gap in self.gaps_of[topic] if gap.left == float("inf")]
        for restore in self.check.restores.get(topic, ()):
            began, ended = restore.ended
            if self.subscribed < began and ended < attempted and not any(began < at for at in told):
                self.tell("unexpected", f"{what} without a gap, though the log was restored at {ended:.3f}")

    def take_gap(self, index: int, record: Record) -> None:
        self.gaps += 1
        self.begun.setdefault(record.topic, self.subscribed)
        if record.missed is None:
            left = float("inf")
            self.offsets.pop(record.topic, None)
        else:
            left = record.missed
            self.announced[record.topic] += left
        before = self.gaps_of[record.topic]
        crash = self.check.all_kept or record.missed is None
        reasons = [begin for begin, _ in self.check.unclean.get(record.topic, ())]
        if self.check.retention != "memory":
            restores = self.check.restores.get(record.topic, ()) if record.missed is None else ()
            reasons = [restore.ended[0] for restore in restores]
        possible = sum(gap.crash for gap in before) < sum(reason < record.at for reason in reasons)
        if record.topic not in self.life.topics or (crash and not possible):
            self.tell(
                "unexpected", f"a gap of {record.missed} on {record.topic!r}, where nothing can be gone"
            )
            return
        before.append(_Gap(index, record.at, left, crash))

    def look_for_missing(self, topic: str) -> None:
        """Count the messages owed to this subscriber, and excuse those that can lie in its gaps."""
        missing: dict[Identity, list[_Gap]] = {}
        for identity in self.check.owed[topic]:
            before = self.life.live and self.check.attempted[identity].at <= self.subscribed
            if identity not in self.places and not before:
                missing[identity] = []
        if not missing:
            return
        bounds = self.bounds_of(topic, missing)
        lost = []
        # A gap excuses only so many: those first that a later gap cannot excuse.
        for identity in missing:
            candidates = [
                gap for gap in self.gaps_of[topic] if self.can_lie_in(gap, identity, bounds[identity])
            ]
            missing[identity] = candidates
        for identity, candidates in sorted(
            missing.items(), key=lambda item: item[1][-1].index if item[1] else -1
        ):
            gap = next((gap for gap in candidates if gap.left > 0), None)
            if gap is not None:
                gap.left -= 1
            elif not self.was_gone_before(identity, bounds[identity]):
                lost.append(identity)
        for identity in sorted(lost):
            at = self.check.acknowledged[identity].at
            self.tell("lost", f"{_name(identity)} on {topic!r}, acknowledged at {at:.3f}")

    def bounds_of(self, topic: str, missing: Iterable[Identity]) -> dict[Identity, tuple[float, float]]:
        """Return between which places of the life each missing message belongs, by its publisher's others."""
        came: dict[str, list[tuple[int, int]]] = defaultdict(list)
        for (publisher, number), index in self.places.items():
            if self.check.attempted[publisher, number].topic == topic:
                came[publisher].append((number, index))
        bounds: dict[Identity, tuple[float, float]] = {}
        for publisher, number in missing:
            after = max((index for other, index in came[publisher] if other < number), default=-1)
            before = min((index for other, index in came[publisher] if other > number), default=float("inf"))
            bounds[publisher, number] = (after, before)
        return bounds

    def can_lie_in(self, gap: _Gap, identity: Identity, bounds: tuple[float, float]) -> bool:
        """Return True if the message may have gone with the consumer that ended before this gap."""
        after, before = bounds
        attempted = self.check.attempted[identity]
        if any(
            self.check.may_lose(restore, identity) and restore.ended[0] < gap.at
            for restore in self.check.restores.get(attempted.topic, ())
        ):
            # Earlier messages may come after the gap: the rest of the copy.
            return gap.index < before
        ends = self.check.unclean.get(attempted.topic, ())
        # Later messages may have gone for want of room before this subscriber came back.
        crashed = not self.check.all_kept or any(attempted.at < end[1] and end[0] < gap.at for end in ends)
        return after < gap.index < before and attempted.at < gap.at and crashed

    def was_gone_before(self, identity: Identity, bounds: tuple[float, float]) -> bool:
        """Return True if the message may have gone before this subscriber came, so that it gets no gap."""
        attempted = self.check.attempted[identity]
        begun = self.subscribed
        if self.check.retention == "jetstream":
            # The servers are asked for the first message when somebody can read it.
            begun = max(begun, self.begun.get(attempted.topic, begun))
        if not self.check.all_kept and attempted.at < begun and bounds[0] < 0:
            return True
        if self.check.retention != "memory":
            return any(
                self.check.may_lose(restore, identity) and restore.ended[0] < self.subscribed
                for restore in self.check.restores.get(attempted.topic, ())
            )
        ends = self.check.unclean.get(attempted.topic, ())
        return any(attempted.at < end[1] and end[0] < self.subscribed for end in ends)


def _name(identity: Identity) -> str:
    return f"{identity[0]}/{identity[1]}"
