"""The wire of protocol v2 of wsqueue, for the load generator: all work is per batch, not per message."""

from __future__ import annotations

import secrets
import socket
import sys
from collections import deque
from collections.abc import Mapping
from typing import TypeVar

from websockets.protocol import CLIENT, OPEN, Protocol

from ...errors import ConnectError, WsqueueError, why
from ...protocol import v2
from ...protocol.frames import BINARY_AND_FIN, frame_messages, frame_size, message_header
from ...protocol.framing import Framing
from ...protocol.packed import Packed
from .messages import SEND_BYTES
from .nodes import OPEN_SECONDS, NodesWire
from .wire import Unwrapper
from .workload import Load

Answer = TypeVar("Answer", v2.Subscribed, v2.Unsubscribed)

GROUP = "bench"
"""Name of the group that shares the messages of each topic."""

PREFETCH = 100
"""Messages that a member of a group has at a time: far above the default, as for quick work."""

LEASE_SECONDS = 30.0
MAX_DELIVERIES = 5
"""The defaults of the client."""

_NO_KEY = b"\0\0\0\0"
"""A mask that costs nothing here and as much as any other at a node; `messages` says why that is allowed."""


class V2Wire(NodesWire):
    """Speak protocol v2 of wsqueue."""

    _v2 = True

    def open_publisher(self, number: int) -> socket.socket:
        """Return a connection to a producer, for a publisher of its own."""
        connection = super().open_publisher(number)
        _send(connection, v2.Publisher(secrets.token_bytes(v2.NONCE_BYTES)))
        return connection

    def open_subscriber(self, topic: str) -> socket.socket:
        """Return a connection to the topic's consumer, subscribed from now on."""
        return self._subscribe(topic)[0]

    def open_reader(self, topic: str) -> tuple[socket.socket, bytes]:
        """Return a connection, and the packet that subscribes it to all messages from now on."""
        connection, subscribed = self._subscribe(topic)
        _send(connection, v2.Unsubscribe(topic))
        _expect(connection, v2.Unsubscribed)
        request = v2.Subscribe(topic, "offset", subscribed.log, subscribed.offset)
        return connection, _frame(request)

    def publishing(self, load: Load) -> Batches:
        """Return the maker of batches, which also counts confirmations."""
        return Batches(load, self._limits.max_message_bytes)

    def delivered(self, topic: str, data: bytes) -> bytes:
        """Return the data as it is: messages of a batch follow each other."""
        return data

    def unwrapper(self, topic: str, load: Load) -> Unwrapper:
        """Return an unwrapper that extracts the messages from the packets of a topic."""
        return Deliveries(topic, self._limits.max_message_bytes)

    def _subscribe(self, topic: str) -> tuple[socket.socket, v2.Subscribed]:
        connection = super().open_subscriber(topic)
        _send(connection, v2.Subscribe(topic))
        return connection, _expect(connection, v2.Subscribed)


class GroupWire(V2Wire):
    """Speak protocol v2 of wsqueue; the subscribers of a topic are the members of a group."""

    def open_subscriber(self, topic: str) -> socket.socket:
        """Return a connection to the topic's consumer that asks to join; the unwrapper reads the answer."""
        connection = NodesWire.open_subscriber(self, topic)
        _send(connection, v2.Join(topic, GROUP, PREFETCH, LEASE_SECONDS, MAX_DELIVERIES))
        return connection

    def unwrapper(self, topic: str, load: Load) -> Unwrapper:
        """Return an unwrapper that extracts the messages which are done, and says that the others are."""
        return Loans(topic, self._limits.max_message_bytes)


class Batches:
    """Make batches, and count the unconfirmed messages.

    Args:
        load: The load.
        max_message_bytes: Limit of the nodes.

    Attributes:
        batch: Maximum number of messages that are made at a time.
        unconfirmed: Number of messages that were made and are not confirmed.
    """

    def __init__(self, load: Load, max_message_bytes: int) -> None:
        self._load, self._topics = load, load.topic_names
        self._size = load.size
        # A size takes up to five bytes.
        self.batch = max(1, min(SEND_BYTES, max_message_bytes) // (self._size + 5))
        self._most = load.batch or self.batch
        self.unconfirmed = 0
        self._sizes = [self._size] * self._most
        self._block = memoryview(load.filler * self._most)
        self._publishers = [Confirmations(self, max_message_bytes) for _ in range(load.publishers)]

    def make(self, publisher: int, first: int, count: int, due_ns: Mapping[int, int]) -> bytes:
        """Return the bytes of messages (see `Publishing`): a packet for each topic, or several."""
        topics, confirmations = len(self._topics), self._publishers[publisher]
        parts: list[bytes | memoryview] = []
        for begin in range(min(count, topics)):
            of_topic = range(begin, count, topics)
            topic = self._topics[(first + begin) % topics]
            for at in range(0, len(of_topic), self._most):
                numbers = of_topic[at : at + self._most]
                payload = confirmations.packet(topic, self._messages(numbers, due_ns))
                parts += (message_header(BINARY_AND_FIN, 0x80, len(payload)), _NO_KEY, payload)
        self.unconfirmed += count
        return b"".join(parts)

    def unwrapper(self, publisher: int) -> Confirmations:
        """Return the unwrapper that takes the confirmations of a publisher."""
        return self._publishers[publisher]

    def _messages(self, numbers: range, due_ns: Mapping[int, int]) -> Packed:
        """Return the messages with these indexes."""
        size, count = self._size, len(numbers)
        sizes = self._sizes if count == self._most else self._sizes[:count]
        plain = self._block[: count * size]
        stamped = [number for number in due_ns if number in numbers]
        if not stamped:
            return Packed(sizes, plain)
        data = bytearray(plain)
        for number in stamped:
            at = numbers.index(number) * size
            data[at : at + size] = self._load.stamped(due_ns[number])
        return Packed(sizes, memoryview(data))


class Packets:
    """Read the packets of a node on a connection whose hello is done.

    Args:
        max_message_bytes: Limit of the nodes.
    """

    def __init__(self, max_message_bytes: int) -> None:
        self._framing = _OpenFraming(max_message_bytes + v2.OVERHEAD_BYTES)
        # Nobody else waits for a turn.
        self._framing.turn_frames = sys.maxsize

    def take(self, data: bytes) -> list[bytes]:
        """Return the payloads of all complete packets.

        Raises:
            WsqueueError: The node has closed.
        """
        payloads: list[bytes] = []
        for item in self._framing.receive_data(data):
            if isinstance(item, list):
                payloads += item
        if (closed := self._framing.closed) is not None:
            raise WsqueueError(f"the node closed with {closed.code} ({closed.reason})")
        return payloads

    def replies(self) -> bytes:
        """Return the pongs for the pings so far, once."""
        return b"".join(self._framing.data_to_send())


class Confirmations(Packets):
    """Number the batches of one publisher, and take their confirmations.

    Args:
        batches: Counts the unconfirmed messages.
        max_message_bytes: Limit of the nodes.
    """

    def __init__(self, batches: Batches, max_message_bytes: int) -> None:
        super().__init__(max_message_bytes)
        self._batches = batches
        self._number = 0
        self._last: dict[str, int] = {}
        self._counts: dict[int, int] = {}

    def packet(self, topic: str, messages: Packed) -> bytes:
        """Return the packet of the next batch."""
        after, self._number = self._last.get(topic, 0), self._number + 1
        self._last[topic] = self._number
        self._counts[self._number] = messages.count
        return v2.encode(v2.Publish(self._number, after, topic, messages))

    def unwrap(self, data: bytes) -> bytes:
        """Take the packets of a producer, and return nothing.

        Raises:
            WsqueueError: It refused a batch, confirmed one twice, or sent an unexpected packet.
        """
        for payload in self.take(data):
            packet = v2.decode(payload)
            if isinstance(packet, v2.Ack):
                for first, last in packet.numbers:
                    for number in range(first, last + 1):
                        self._confirm(number)
            elif isinstance(packet, v2.Refused):
                raise WsqueueError(f"the node refused a batch with {packet.code} ({packet.reason})")
            elif not isinstance(packet, v2.Draining):
                raise _unexpected(payload)
        return b""

    def _confirm(self, number: int) -> None:
        count = self._counts.pop(number, None)
        if count is None:
            raise WsqueueError(f"the node confirmed batch {number}, which is not waiting for a confirmation")
        self._batches.unconfirmed -= count


class Deliveries(Packets):
    """Extract the messages from the packets that deliver batches, and check that none is missing.

    Args:
        topic: The topic of the connection.
        max_message_bytes: Limit of the nodes.
    """

    def __init__(self, topic: str, max_message_bytes: int) -> None:
        super().__init__(max_message_bytes)
        self._topic = topic
        self._next: int | None = None

    def unwrap(self, data: bytes) -> bytes:
        """Return the messages, one behind the other.

        Raises:
            WsqueueError: The node has closed, left messages out, or sent an unexpected packet.
        """
        parts: list[memoryview] = []
        for payload in self.take(data):
            packet = v2.decode(payload)
            if not isinstance(packet, v2.Deliver) or packet.topic != self._topic:
                self._take_other(packet, payload)
                continue
            offset = packet.offset
            if self._next not in (None, offset):
                raise WsqueueError(f"offset {offset} came instead of {self._next}")
            self._next = offset + packet.messages.count
            parts.append(packet.messages.data)
        return b"".join(parts)

    def _take_other(self, packet: v2.Packet, payload: bytes) -> None:
        if isinstance(packet, v2.Gap):
            raise WsqueueError(f"{packet.missed or 'some'} messages before offset {packet.offset} are gone")
        if not isinstance(packet, v2.Subscribed | v2.Draining | v2.Log):
            raise _unexpected(payload)


class Loans(Packets):
    """Say of all messages that are lent that they are done, and extract those of which this is kept.

    Args:
        topic: The topic of the connection.
        max_message_bytes: Limit of the nodes.
    """

    def __init__(self, topic: str, max_message_bytes: int) -> None:
        super().__init__(max_message_bytes)
        self._topic, self._log = topic, ""
        self._number = 0
        self._lent: list[tuple[int, int]] = []
        # The messages that wait, with the number of the packet that says that they are done.
        self._waiting: deque[tuple[int, memoryview]] = deque()

    def unwrap(self, data: bytes) -> bytes:
        """Return the messages that are kept as done, one behind the other.

        Raises:
            WsqueueError: The node has closed, refused the member, or sent an unexpected packet.
        """
        parts: list[memoryview] = []
        for payload in self.take(data):
            packet = v2.decode(payload)
            if isinstance(packet, v2.Lend):
                self._lent.append((packet.offset, packet.offset + packet.messages.count - 1))
                self._waiting.append((self._number + 1, packet.messages.data))
            elif isinstance(packet, v2.Settled):
                while self._waiting and self._waiting[0][0] <= packet.number:
                    parts.append(self._waiting.popleft()[1])
            elif isinstance(packet, v2.Joined):
                self._log = packet.log
            elif isinstance(packet, v2.Left):
                raise WsqueueError(f"the node refuses a member with {packet.code} ({packet.reason})")
            elif not isinstance(packet, v2.Draining | v2.Log):
                raise _unexpected(payload)
        return b"".join(parts)

    def replies(self) -> bytes:
        """Return the packet for all messages that were lent since the last one, and the pongs."""
        replies, lent = super().replies(), self._lent
        if lent:
            self._lent, self._number = [], self._number + 1
            replies += _frame(v2.Settle(self._topic, GROUP, self._number, self._log, "done", lent))
        return replies


class _OpenFraming(Framing):
    """Frame a connection whose hello is done."""

    __slots__ = ()

    masked = True
    _side = CLIENT

    def __init__(self, max_message_bytes: int) -> None:
        super().__init__(Protocol(CLIENT, state=OPEN, max_size=max_message_bytes), max_message_bytes)
        self.binary = True


def _frame(packet: v2.Packet) -> bytes:
    return frame_messages([v2.encode(packet)], masked=True, binary=True)


def _send(connection: socket.socket, packet: v2.Packet) -> None:
    connection.sendall(_frame(packet))


def _expect(connection: socket.socket, kind: type[Answer]) -> Answer:
    """Read the next packet that is no `log`, and no byte beyond it.

    Raises:
        ConnectError: It is of another kind, or none came.
    """
    connection.settimeout(OPEN_SECONDS)
    payload = _payload(connection)
    while isinstance(packet := v2.decode(payload), v2.Log):
        payload = _payload(connection)
    if not isinstance(packet, kind):
        raise ConnectError(f"no node answers: {_unexpected(payload)}")
    connection.settimeout(None)
    return packet


def _payload(connection: socket.socket) -> bytes:
    """Read the next message, and no byte beyond it.

    Raises:
        ConnectError: None came.
    """
    try:
        head = _read(connection, 2)
        while (size := frame_size(head)) is None:
            head += _read(connection, 1)
        return _read(connection, size - len(head))
    except OSError as error:
        raise ConnectError(f"no node answers: {why(error)}") from None


def _read(connection: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = connection.recv(size - len(data))
        if not more:
            raise ConnectError("no node answers: it closed the connection")
        data += more
    return data


def _unexpected(payload: bytes) -> WsqueueError:
    return WsqueueError(f"the node sent an unexpected packet: {payload[:100]!r}")
