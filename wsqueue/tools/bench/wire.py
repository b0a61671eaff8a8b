"""What the load generator must know of a system: how its messages look on its sockets."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from .workload import Load


class Unwrapper(Protocol):
    """Take out of a connection's bytes what is no record; there is one per connection."""

    def unwrap(self, data: bytes) -> bytes:
        """Return the stream of records in what was read; it may keep what is incomplete.

        Raises:
            WsqueueError: The peer has closed, or said what it must not.
        """
        ...

    def replies(self) -> bytes:
        """Return what must be written back, once; mostly nothing."""
        ...


class Publishing(Protocol):
    """Make what all publishers of a run write, and take what comes back."""

    @property
    def batch(self) -> int:
        """Return how many messages are made at a time at most."""
        ...

    @property
    def unconfirmed(self) -> int:
        """Return how many messages were made and are not confirmed; 0 for a system that confirms none."""
        ...

    def make(self, publisher: int, first: int, count: int, due_ns: Mapping[int, int]) -> memoryview | bytes:
        """Return the bytes of some messages, each to the next topic.

        Args:
            publisher: 0, 1, ...: whose connection they are for.
            first: Number of the first of them since the run began.
            count: How many.
            due_ns: When those were due that carry their time; the first of them is 0.
        """
        ...

    def unwrapper(self, publisher: int) -> Unwrapper | None:
        """Return an unwrapper for one publisher's connection, whose records are dropped.

        None if what nodes say there needs no answer.
        """
        ...


class Wire(Protocol):
    """Say how a system's messages look on its sockets. It is pickled to the workers."""

    def open_publisher(self, number: int) -> socket.socket:
        """Return a connection to publish on, as soon as it may: a blocking socket.

        Args:
            number: 0, 1, ... of the publisher, to spread them over nodes.

        Raises:
            WsqueueError: It cannot be had.
        """
        ...

    def open_subscriber(self, topic: str) -> socket.socket:
        """Return a connection that is subscribed to a topic by now: a blocking socket.

        Raises:
            WsqueueError: It cannot be had.
        """
        ...

    def publishing(self, load: Load) -> Publishing:
        """Return what makes the bytes that publish."""
        ...

    def delivered(self, topic: str, data: bytes) -> bytes:
        """Return the record that delivers data (ASCII), which stands in it as it is.

        The number of its bytes depends only on both lengths.
        """
        ...

    def unwrapper(self, topic: str, load: Load) -> Unwrapper:
        """Return an unwrapper for one subscriber's connection."""
        ...


@runtime_checkable
class ReplayingWire(Wire, Protocol):
    """Be of a system that keeps what was published."""

    def open_reader(self, topic: str) -> tuple[socket.socket, bytes]:
        """Return a connection, and what makes it read all that is published on a topic from now on.

        Raises:
            WsqueueError: It cannot be had.
        """
        ...
