"""What the load generator must know of a system: how its messages look on its sockets."""

from __future__ import annotations

import socket
from typing import Protocol, runtime_checkable


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

    def published(self, topic: str, data: bytes) -> bytes:
        """Return the bytes that publish data (ASCII); their number depends only on both lengths."""
        ...

    def delivered(self, topic: str, data: bytes) -> bytes:
        """Return the bytes that deliver data, which stands in them as it is."""
        ...

    def unwrapper(self) -> Unwrapper:
        """Return an unwrapper for one subscriber's connection."""
        ...


@runtime_checkable
class AskingWire(Wire, Protocol):
    """Say that nodes want to be answered on publishers' connections too; else what they say is dropped."""

    def publisher_unwrapper(self) -> Unwrapper:
        """Return an unwrapper for one publisher's connection, whose records are dropped."""
        ...
