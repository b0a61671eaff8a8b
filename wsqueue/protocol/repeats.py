"""The last batch of each publisher on each topic, by which repeats are recognised. No I/O.

A publisher that lost its connection sends again, so a batch whose number is not after the last is there
already. Publishers choose on how many topics they publish. When there is no more room, the publisher with the
most topics forgets the one it used least recently: a publisher that floods drives out none but its own.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

NUMBER_BYTES = 300
"""Memory of a publisher's last batch on a topic besides the topic's name: its number and table entry."""

PUBLISHER_BYTES = 450
"""Memory of a publisher besides its batches: its id, its table of topics, its entries in tables."""


class Repeats:
    """Remember numbers of batches, and forget those of the publisher with most topics first."""

    __slots__ = ("_most", "_publishers", "_ranks", "pairs")

    def __init__(self) -> None:
        self.pairs = 0
        self._publishers: dict[str, OrderedDict[str, int]] = {}
        # The publishers by their number of topics: the least recently used first, as in each table of topics.
        self._ranks: dict[int, OrderedDict[str, OrderedDict[str, int]]] = {}
        self._most = 0

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
            topics = self._publishers[publisher] = OrderedDict()
        before = len(topics)
        topics[topic] = number
        topics.move_to_end(topic)
        if len(topics) == before:
            self._ranks[before].move_to_end(publisher)
            return 0
        self.pairs += 1
        self._move(publisher, topics, before)
        return NUMBER_BYTES + name_bytes(topic) + (0 if before else PUBLISHER_BYTES)

    def forget(self) -> int:
        """Forget the topic that the publisher with most topics used least recently.

        Returns:
            The bytes of memory that are free now, 0 if nothing was remembered.
        """
        if not self.pairs:
            return 0
        publisher, topics = next(iter(self._ranks[self._most].items()))
        before = len(topics)
        topic, _ = topics.popitem(last=False)
        self.pairs -= 1
        self._move(publisher, topics, before)
        if not topics:
            del self._publishers[publisher]
        return NUMBER_BYTES + name_bytes(topic) + (0 if topics else PUBLISHER_BYTES)

    def __iter__(self) -> Iterator[tuple[tuple[str, str], int]]:
        """Iterate over (topic, publisher) and number, in the order in which to remember them again."""
        for _, publishers in sorted(self._ranks.items()):
            for publisher, topics in publishers.items():
                for topic, number in topics.items():
                    yield (topic, publisher), number

    def _move(self, publisher: str, topics: OrderedDict[str, int], before: int) -> None:
        """Rank a publisher anew that had another number of topics, one more or one less."""
        if before:
            rank = self._ranks[before]
            del rank[publisher]
            if not rank:
                del self._ranks[before]
        if now := len(topics):
            self._ranks.setdefault(now, OrderedDict())[publisher] = topics
        if now > self._most or self._most not in self._ranks:
            self._most = now


def name_bytes(name: str) -> int:
    """Return the most bytes that a string takes: a character up to 4, and as many in UTF-8 beside it."""
    return 80 + (len(name) if name.isascii() else 8 * len(name))
