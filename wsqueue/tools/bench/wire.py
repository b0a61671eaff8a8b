"""The interface between the load generator and a system: its messages as bytes on sockets."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from .workload import Load


class Unwrapper(Protocol):
    """Find the records in the bytes of a connection; each connection has its own."""

    def unwrap(self, data: bytes) -> bytes:
        """Return the records in the bytes that were read; it may keep incomplete ones.

        Raises:
            WsqueueError: The peer has closed the connection, or broken the protocol.
        """
        ...

    def replies(self) -> bytes:
        """Return the bytes that must be written back, once; usually none."""
        ...


class Publishing(Protocol):
    """Make the bytes that all publishers of a run write, and count confirmations."""

    @property
    def batch(self) -> int:
        """Return the maximum number of messages that are made at a time."""
        ...

    @property
    def unconfirmed(self) -> int:
        """Return the number of unconfirmed messages; 0 if the system confirms none."""
        ...

    def make(self, publisher: int, first: int, count: int, due_ns: Mapping[int, int]) -> memoryview | bytes:
        """Return the bytes of consecutive messages, each to the next topic.

        Args:
            publisher: Number of the publisher: 0, 1, …
            first: Number of the first message, counted from the beginning of the run.
            count: Number of messages.
            due_ns: Times to put into messages, by their index among these messages.
        """
        ...

    def unwrapper(self, publisher: int) -> Unwrapper | None:
        """Return the unwrapper of a publisher's connection; None if all input can be dropped."""
        ...


class Wire(Protocol):
    """The connections and messages of a system. It is pickled to the workers."""

    def open_publisher(self, number: int) -> socket.socket:
        """Return a connection on which a publisher can publish now: a blocking socket.

        Args:
            number: Number of the publisher: 0, 1, … It selects a node.

        Raises:
            WsqueueError: The connection can't be opened.
        """
        ...

    def open_subscriber(self, topic: str) -> socket.socket:
        """Return a connection that is subscribed to a topic: a blocking socket.

        Raises:
            WsqueueError: The connection can't be opened.
        """
        ...

    def publishing(self, load: Load) -> Publishing:
        """Return the maker of the bytes that publishers write."""
        ...

    def delivered(self, topic: str, data: bytes) -> bytes:
        """Return the record that delivers data (ASCII); the data are in it unchanged.

        Its length depends only on the lengths of topic and data.
        """
        ...

    def unwrapper(self, topic: str, load: Load) -> Unwrapper:
        """Return the unwrapper of a subscriber's connection."""
        ...


@runtime_checkable
class ReplayingWire(Wire, Protocol):
    """The wire of a system that stores messages."""

    def open_reader(self, topic: str) -> tuple[socket.socket, bytes]:
        """Return a connection, and the bytes that make it read all messages of a topic from now on.

        Raises:
            WsqueueError: The connection can't be opened.
        """
        ...
