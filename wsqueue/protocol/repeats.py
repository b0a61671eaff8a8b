"""The last batch of each publisher on each topic, by which repeats are recognised. No I/O.

A publisher that lost its connection sends again, so a batch whose number is not after the last is there
already. Publishers choose on how many topics they publish, and a client can be as many publishers as it wants
to, but only under the name of its key, which is in their ids. When there is no more room, three questions say
which pair of topic and publisher is forgotten:

| of all | goes |
|---|---|
| names | the one with the most pairs; publishers without a name are one group |
| its publishers | the one with the most topics |
| its topics | the one that was used least recently |

So a name that floods forgets its own publishers only, once it has more pairs than each of the others.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from operator import attrgetter

NUMBER_BYTES = 300
"""Memory of a publisher's last batch on a topic besides the topic's name: its number and table entry."""

PUBLISHER_BYTES = 450
"""Memory of a publisher besides its batches: its id, its table of topics, its entries in tables."""

MAX_NAMES = 1000
"""Names that are told apart, many more than a cluster has: any others count as none."""


class _Topics(OrderedDict[str, int]):
    """Hold the number of each topic of a publisher, least recently used first, and the publisher's name."""

    __slots__ = ("name",)

    name: _Name


class _Name:
    """Hold the publishers of a name.

    Attributes:
        name: The name; "" has the publishers without one.
        pairs: How many topics its publishers have together.
        ranks: Its publishers by their number of topics: the least recently used first.
    """

    __slots__ = ("_most", "name", "pairs", "ranks")

    def __init__(self, name: str) -> None:
        self.name = name
        self.pairs = self._most = 0
        self.ranks: dict[int, OrderedDict[str, _Topics]] = {}

    def move(self, publisher: str, topics: _Topics, before: int) -> None:
        """Rank a publisher anew that had another number of topics, one more or one less."""
        now = len(topics)
        self.pairs += now - before
        if before:
            rank = self.ranks[before]
            del rank[publisher]
            if not rank:
                del self.ranks[before]
        if now:
            self.ranks.setdefault(now, OrderedDict())[publisher] = topics
        if now > self._most or self._most not in self.ranks:
            self._most = now

    def first(self) -> tuple[str, _Topics]:
        """Return the publisher that forgets first."""
        return next(iter(self.ranks[self._most].items()))


_PAIRS = attrgetter("pairs")


class Repeats:
    """Remember numbers of batches, and forget those of the name with most pairs first."""

    __slots__ = ("_names", "_publishers", "pairs")

    def __init__(self) -> None:
        self.pairs = 0
        self._publishers: dict[str, _Topics] = {}
        self._names: dict[str, _Name] = {}

    def last(self, topic: str, publisher: str) -> int | None:
        """Return the number of the publisher's last batch on the topic, None if it is not remembered."""
        topics = self._publishers.get(publisher)
        return None if topics is None else topics.get(topic)

    def remember(self, topic: str, publisher: str, number: int) -> int:
        """Remember the number of a publisher's last batch on a topic.

        Returns:
            The bytes of memory that this takes more than before.
        """
        topics = self._publishers.get(publisher)
        if topics is None:
            topics = self._publishers[publisher] = _Topics()
            topics.name = self._name(publisher)
        before = len(topics)
        topics[topic] = number
        topics.move_to_end(topic)
        if len(topics) == before:
            topics.name.ranks[before].move_to_end(publisher)
            return 0
        self.pairs += 1
        topics.name.move(publisher, topics, before)
        return NUMBER_BYTES + name_bytes(topic) + (0 if before else PUBLISHER_BYTES)

    def forget(self) -> int:
        """Forget a pair of the name with most pairs, as the module says.

        Returns:
            The bytes of memory that are free now, 0 if nothing was remembered.
        """
        if not self.pairs:
            return 0
        name: _Name = max(self._names.values(), key=_PAIRS)
        publisher, topics = name.first()
        before = len(topics)
        topic, _ = topics.popitem(last=False)
        self.pairs -= 1
        name.move(publisher, topics, before)
        if not topics:
            del self._publishers[publisher]
        if not name.pairs:
            del self._names[name.name]
        return NUMBER_BYTES + name_bytes(topic) + (0 if topics else PUBLISHER_BYTES)

    def __iter__(self) -> Iterator[tuple[tuple[str, str], int]]:
        """Iterate over (topic, publisher) and number, in the order in which to remember them again."""
        for name in self._names.values():
            for _, publishers in sorted(name.ranks.items()):
                for publisher, topics in publishers.items():
                    for topic, number in topics.items():
                        yield (topic, publisher), number

    def _name(self, publisher: str) -> _Name:
        """Return the name of a publisher, a new one if there is none of it."""
        name = name_of(publisher)
        if name not in self._names and len(self._names) >= MAX_NAMES:
            name = ""
        return self._names.get(name) or self._names.setdefault(name, _Name(name))


def name_of(publisher: str) -> str:
    """Return the name of the key of a publisher, "" if it has none."""
    name, slash, _ = publisher.partition("/")
    return name if slash else ""


def crowded_out(publishers: Iterable[str], limit: int) -> list[str]:
    """Return the publishers of one topic that go so that no more than `limit` stay.

    Again and again the name with the most publishers gives up the one that it used least recently; of several
    names with as many, the one whose publisher was used least recently of all.

    Args:
        publishers: The publishers, least recently used first.
        limit: How many may stay.
    """
    all_ = list(publishers)
    excess = len(all_) - limit
    if excess <= 0:
        return []
    names = [name_of(publisher) for publisher in all_]
    left, places = Counter(names), []
    for name in names:
        # Its place in its name: the newest has 1. Those with the highest places go.
        places.append(left[name])
        left[name] -= 1
    order = sorted(range(len(all_)), key=places.__getitem__, reverse=True)
    return [all_[index] for index in order[:excess]]


def name_bytes(name: str) -> int:
    """Return the most bytes that a string takes: a character up to 4, and as many in UTF-8 beside it."""
    return 80 + (len(name) if name.isascii() else 8 * len(name))
