"""The subscribers of each topic."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

Subscriber = TypeVar("Subscriber")


class Topics(Generic[Subscriber]):
    """Map each topic to its subscribers, in the order in which they came.

    A topic without subscribers takes no memory.
    """

    def __init__(self) -> None:
        self._subscribers: dict[str, dict[Subscriber, None]] = {}

    def __len__(self) -> int:
        """Return the number of topics that have a subscriber."""
        return len(self._subscribers)

    def __iter__(self) -> Iterator[str]:
        """Return an iterator over the topics that have a subscriber."""
        return iter(self._subscribers)

    def subscribe(self, topic: str, subscriber: Subscriber) -> None:
        """Add a subscriber to a topic; adding it again changes nothing."""
        self._subscribers.setdefault(topic, {})[subscriber] = None

    def unsubscribe(self, topic: str, subscriber: Subscriber) -> None:
        """Remove a subscriber from a topic; removing it again changes nothing."""
        subscribers = self._subscribers.get(topic, {})
        subscribers.pop(subscriber, None)
        if not subscribers:
            self._subscribers.pop(topic, None)

    def subscribers(self, topic: str) -> list[Subscriber]:
        """Return a list of the subscribers of a topic, which doesn't change when they come and go."""
        return list(self._subscribers.get(topic, ()))

    def count(self, topic: str) -> int:
        """Return the number of subscribers of a topic."""
        return len(self._subscribers.get(topic, ()))

    def all_subscribers(self) -> list[Subscriber]:
        """Return the subscribers of all topics, each as often as it has topics."""
        return [subscriber for topic in self._subscribers.values() for subscriber in topic]
