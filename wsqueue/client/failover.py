"""The consumer that a subscription uses while the home of its topics is away. No I/O and no clock.

docs/protocol.md, section "Failover", has the rules. A `SharedLog` knows which consumers share a log, and a
`Failover` decides for one link, whose *place* is the consumer at which its topics are subscribed:

```
       not usable for AWAY_SECONDS             it can be used
    place ───────────────────────> searching ─────────────────> place at that one
      │  ^                             │
      │  └───── it is usable again ────┘
      └── not the home, and the home is back ──> place at the home
```

- searching: the other consumers are tried in turn, in the topic's order. `candidate` is the one that is
  tried now; the topics stay at their place meanwhile. After a round in which none could be used, the search
  pauses.
- A link whose home has never answered searches as soon as the home refuses, for nothing is lost by that.
- Another place than the home is given up for the home when its connection is lost, or when its log turns out
  to be another one. If the home is away still, the search begins at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial

import msgspec

from ..protocol import v2
from ..protocol.placement import AWAY_SECONDS, BACK_SECONDS, LOG_SECONDS
from ..protocol.routing import stand_in_order


def failover_order(topic: str, consumers: Iterable[int]) -> list[int]:
    """Return the indexes of consumers in the order in which they stand in for the home of a topic."""
    return sorted(consumers, key=partial(stand_in_order, topic))


class SharedLog:
    """Know which consumers of a client share a log, from all links of the client."""

    def __init__(self) -> None:
        self._ids: dict[int, str | None] = {}
        self._id: str | None = None

    def note(self, index: int, log: str | None, *, home: bool) -> None:
        """Note the log that a consumer has named, None if it has named none.

        Args:
            index: The consumer.
            log: The id.
            home: True if the consumer is the home of the topics for which it was asked.
        """
        self._ids[index] = log
        if log is not None and (home or self._id is None):
            self._id = log

    def named_by(self, index: int) -> bool:
        """Return True if a consumer has named a log on its latest connection."""
        return self._ids.get(index) is not None

    def may_leave(self, home: int) -> bool:
        """Return True if others may have the log of a consumer."""
        if home in self._ids:
            return self._ids[home] is not None
        # It has never been heard. If others have, and have logs of their own, it is one of them.
        return not self._ids or any(log is not None for log in self._ids.values())

    def may_use(self, index: int, home: int) -> bool:
        """Return True if a consumer has named the log of another one, or none so far."""
        return self._ids.get(index) in (None, self._ids.get(home) or self._id)


class _State(msgspec.Struct):
    """Hold the state of a consumer.

    Attributes:
        since: When `usable` changed.
        connected: True while the hello is done.
        usable: True while it is connected, and reaches the log if it shares one.
    """

    since: float
    connected: bool = False
    usable: bool = False

    def change(self, now: float, *, connected: bool, usable: bool) -> None:
        if usable != self.usable:
            self.since = now
        self.connected, self.usable = connected, usable


class Failover:
    """Decide at which consumer a link subscribes, and which one it tries.

    Args:
        home: Index of the home of the link's topics.
        others: Indexes of the other consumers, in the order in which they stand in for it.
        known: Knows the logs of all consumers.
        now: The time (monotonic).

    Attributes:
        place: Index of the consumer at which the topics are subscribed, as soon as it is connected.
        candidate: Index of the consumer that is tried, without a subscription.
        due: When `pass_time` is to be called, None for never.
    """

    def __init__(self, home: int, others: Sequence[int], known: SharedLog, now: float) -> None:
        self.place = home
        self.candidate: int | None = None
        self.due: float | None = None
        self._home, self._others, self._known = home, others, known
        self._states = {home: _State(now)}
        self._begun = self._searching = self._unavailable = False
        self._round: list[int] = []
        self._until = now
        self._decide(now)

    @property
    def active(self) -> bool:
        """Return True if the topics are not at their home, or others are tried."""
        return self.place != self._home or self._searching

    @property
    def hopeful(self) -> bool:
        """Return True if the topics are not at their home, or another consumer may take them yet."""
        return self.place != self._home or self.candidate is not None or self._unavailable

    def up(self, index: int, now: float) -> None:
        """Note that the hello with the home or the candidate is done."""
        state = self._states.setdefault(index, _State(now))
        if index == self._home:
            self._begun = True
            # One that shares its log says at once whether it reaches the log.
            state.change(now, connected=True, usable=not self._known.named_by(index))
        else:
            state.change(now, connected=True, usable=False)
            self._until = now + LOG_SECONDS
        self._decide(now)

    def told(self, index: int, log: v2.Log, now: float) -> None:
        """Take the packet in which a consumer names its log."""
        self._known.note(index, log.id, home=index == self._home)
        state = self._states.get(index)
        if state is None:
            return  # it has been given up since
        state.change(now, connected=True, usable=log.available)
        if index == self.candidate:
            if not self._known.may_use(index, self._home):
                self._try_next(now)
            elif not log.available:
                self._unavailable = True
                self._try_next(now)
            else:
                self.place, self.candidate = index, None
        self._decide(now)

    def told_nothing(self, now: float) -> None:
        """Note that the home has a log of its own: it has sent something else first, or speaks classic."""
        self._known.note(self._home, None, home=True)
        self._states[self._home].change(now, connected=True, usable=True)
        self._decide(now)

    def down(self, index: int, now: float) -> None:
        """Note that a connection is lost, or that an attempt has failed."""
        if index == self._home:
            state = self._states[index]
            if not self._begun:
                state.since = -math.inf
            state.change(now, connected=False, usable=False)
        else:
            self._states.pop(index, None)
            if index == self.candidate:
                self._try_next(now)
        self._decide(now)

    def pass_time(self, now: float) -> None:
        """Do all that is due."""
        if self.candidate is not None and now >= self._until:
            if self.candidate in self._states:
                self._known.note(self.candidate, None, home=False)
            self._try_next(now)
        self._decide(now)

    @property
    def _may_leave(self) -> bool:
        return bool(self._others) and self._known.may_leave(self._home)

    def _decide(self, now: float) -> None:
        """Return to the home, or begin or end the search, if it is time; set `due`."""
        home = self._states[self._home]
        if self.place != self._home:
            state = self._states.get(self.place)
            lost = state is None or not self._known.may_use(self.place, self._home)
            unusable = state is None or not state.usable
            if lost or (home.usable and (unusable or now >= home.since + BACK_SECONDS)):
                self.place = self._home
        state = self._states[self.place]
        away = now >= state.since + AWAY_SECONDS
        if state.usable or not self._may_leave:
            self._searching, self.candidate, self._unavailable = False, None, False
        elif not self._searching and away:
            self._searching = True
            self._begin_round(now)
        elif self._searching and self.candidate is None and now >= self._until:
            self._begin_round(now)
        # Those that are neither the place nor tried have no connection any more.
        kept = {self._home, self.place, self.candidate}
        self._states = {index: state for index, state in self._states.items() if index in kept}
        self.due = self._next_due(state, home)

    def _next_due(self, place: _State, home: _State) -> float | None:
        if self._searching:
            return self._until
        if not place.usable:
            return place.since + AWAY_SECONDS if self._may_leave else None
        return home.since + BACK_SECONDS if self.place != self._home and home.usable else None

    def _begin_round(self, now: float) -> None:
        self._unavailable = False
        self._round = [
            index for index in self._others if index != self.place and self._known.may_use(index, self._home)
        ]
        self._try_next(now)

    def _try_next(self, now: float) -> None:
        """Try the next consumer of the round, or pause after the last one."""
        self.candidate = self._round.pop(0) if self._round else None
        self._until = now + AWAY_SECONDS
