"""Which consumer has a topic while its home is away, among consumers that share one log. No I/O and no clock.

docs/protocol.md, section "Failover", has the rules. A `Presence` notes the state of one consumer, and a
`Placement` compares all of them:

```
                not usable for AWAY_SECONDS, while another one was
    present ─────────────────────────────────────────────────────────► away
            ◄─────────────────────────────────────────────────────────
                usable for BACK_SECONDS, or usable and no present one is
```

- While no consumer is usable, nobody becomes away or present: all topics stay where they are. When the log
  itself was out of reach, its consumers come back one by one, and must not be taken for away meanwhile.
- The topics of an away consumer go to those that are present, not only to those that are usable: one that
  restarts must not cost another move. So they may wait there for up to `AWAY_SECONDS`.
- A consumer that speaks classic or has a log of its own is never away, and gets no other consumer's topics.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from . import v2 as packets_v2
from .routing import router, stand_in_order

AWAY_SECONDS = 3.0
"""Seconds without a consumer until its topics go to others: a restart takes less, and its peers can wait."""

BACK_SECONDS = 10.0
"""Seconds with it until they return, so that one which comes and goes does not move them each time."""

LOG_SECONDS = 1.0
"""Seconds after the hello in which a consumer that shares its log has said so: it does that first."""


class Presence:
    """Note whether a consumer can be used, and which log it shares with others.

    Args:
        now: The time (monotonic).

    Attributes:
        log: Id of the log, None if it has never named one, or has one of its own.
        alone: True if it speaks classic or has a log of its own; between connections, as on the last one.
        usable: True if it is connected and reaches its log.
        since: When `usable` changed.
        away: True if others have its topics, as far as there are others; a `Placement` sets it.
    """

    __slots__ = ("_connected_at", "_told", "alone", "away", "log", "since", "usable")

    def __init__(self, now: float) -> None:
        self.log: str | None = None
        self.alone = self.usable = self.away = False
        self.since = now
        self._connected_at: float | None = None
        self._told = False

    def up(self, now: float, *, v2: bool) -> None:
        """Note a new connection; one that has named its log before is only usable when it does so again."""
        self._connected_at, self._told = now, False
        if not v2:
            self._be_alone(now)
        elif self.log is None:
            self._use(True, now)

    def told(self, log: packets_v2.Log, now: float) -> None:
        """Take the packet in which it names its log."""
        self.log, self.alone, self._told = log.id, False, True
        self._use(log.available, now)

    def down(self, now: float) -> None:
        """Note that the connection is lost."""
        self.settle(now)
        self._connected_at = None
        self._use(False, now)

    def settle(self, now: float) -> None:
        """Take a consumer that has named no log in time for one that has a log of its own."""
        if self._connected_at is not None and not self._told and now - self._connected_at >= LOG_SECONDS:
            self._be_alone(now)

    def _be_alone(self, now: float) -> None:
        self.log, self.alone = None, True
        self._use(True, now)

    def _use(self, usable: bool, now: float) -> None:
        if usable != self.usable:
            self.usable, self.since = usable, now


class Placement:
    """Say which consumer has a topic: its home, or another one while the home is away.

    Args:
        presences: Those of all consumers, in the order of their list.

    Attributes:
        home: Returns the index of a topic's home.
        elsewhere: The consumers whose topics are elsewhere, by index, each with the indexes of those that may
            have them.
    """

    def __init__(self, presences: Sequence[Presence]) -> None:
        self._presences = presences
        self.home = router(len(presences))
        self.elsewhere: dict[int, list[int]] = {}

    @property
    def settled(self) -> bool:
        """Return True if `check` can find nothing new before a presence changes."""
        presences = self._presences
        return all(one.log is None for one in presences) or all(
            one.usable and not one.away for one in presences
        )

    def consumer_of(self, topic: str) -> int:
        """Return the index of the consumer of a topic."""
        home = self.home(topic)
        others = self.elsewhere.get(home)
        if others is None:
            return home
        return min(others, key=partial(stand_in_order, topic))

    def served(self, index: int) -> bool:
        """Return True if a consumer, or another one that may have its topics, is usable."""
        return any(self._presences[other].usable for other in (index, *self._others(index)))

    def check(self, now: float) -> bool:
        """Find the consumers that are away now; return True if topics have moved."""
        for presence in self._presences:
            presence.settle(now)
        for index, presence in enumerate(self._presences):
            others = [self._presences[other] for other in self._others(index)]
            seconds = now - presence.since
            if presence.away:
                alone = not any(other.usable and not other.away for other in others)
                back = presence.usable and (alone or seconds >= BACK_SECONDS)
                presence.away = bool(others) and not back
            elif not presence.usable and seconds >= AWAY_SECONDS:
                presence.away = any(other.usable and now - other.since >= AWAY_SECONDS for other in others)
        before, self.elsewhere = self.elsewhere, {}
        for index, presence in enumerate(self._presences):
            present = [other for other in self._others(index) if not self._presences[other].away]
            if presence.away and present:
                self.elsewhere[index] = present
        return self.elsewhere != before

    def _others(self, home: int) -> list[int]:
        """Return the consumers that may have the topics of another one: those that share its log.

        One that has never named its log shares that of the others, if those agree.
        """
        presence = self._presences[home]
        if presence.alone:
            return []
        logs = (
            {presence.log} if presence.log is not None else {other.log for other in self._presences} - {None}
        )
        if len(logs) != 1:
            return []
        return [index for index, other in enumerate(self._presences) if index != home and other.log in logs]
