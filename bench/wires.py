"""The wires of the systems that wsqueue is compared with, for the load generator."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import secrets
import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from websockets.frames import Frame, Opcode

from wsqueue.errors import ConnectError, WsqueueError
from wsqueue.tools.bench.classic import ClassicWire
from wsqueue.tools.bench.messages import Messages
from wsqueue.tools.bench.v2 import GROUP, PREFETCH
from wsqueue.tools.bench.wire import Unwrapper, Wire
from wsqueue.tools.bench.workload import Load

TIMEOUT_SECONDS = 20.0
"""Maximum time until a server answers while a connection is opened."""

ENDLESS_FRAME_BYTES = 2**62
"""Length of a frame that no run can fill."""

MAX_HEAD_BYTES = 1024
"""Bytes among which there must be a whole head: all that servers send are shorter."""

STREAM = "bench"
"""The stream of JetStream that stores all topics: their names have no dots, and all other subjects do."""

CONFIRMATIONS = b"bench.confirmations"
"""The subject of JetStream's confirmations."""

TEXT, BINARY, PING, PONG = 0x81, 0x82, 0x89, 0x8A
"""The first bytes of unfragmented frames (RFC 6455 section 5.2)."""

# A confirmation, or another answer.
_JETSTREAM_CONFIRMATION = re.compile(
    rb'MSG [!-~]+ 1 \d+\r\n\{"stream":"bench","seq":(?P<number>\d+)\}\r\n'
    rb"|(?P<refusal>-ERR[^\r]*|MSG [^\r]*\r\n[^\r]*)\r\n"
)
_XADD_REPLY = re.compile(rb"\$\d+\r\n\d+-\d+\r\n|(?P<refusal>-[^\r]*)\r\n")

_PING_LINE = re.compile(rb"(?<=\r\n)PING\r\n")
_PING_BEGUN = re.compile(rb"(?<=\r\n)P(?:I(?:N(?:G\r?)?)?)?\Z")


class LimitedLoad(Load, frozen=True, kw_only=True):
    """A load of which at most a given number of messages is on its way at a time.

    Attributes:
        most: Number of these messages; None for as many as any other load has.
    """

    most: int | None = None

    def window(self, record_bytes: int) -> int:
        """Return the number of messages by which publishers may be ahead of the slowest subscriber."""
        window = super().window(record_bytes)
        return window if self.most is None else min(window, self.most)


@runtime_checkable
class MessageWire(Wire, Protocol):
    """A wire that publishes each message by itself."""

    def published(self, topic: str, data: bytes) -> bytes:
        """Return the bytes that publish data (ASCII); their number depends only on both lengths."""
        ...


@dataclass(frozen=True)
class Mixed:
    """A wire that replaces each message of the load by several messages of different sizes.

    The load generator sends messages of one size, with which a node may be faster than usual.

    Attributes:
        wire: Wire of the system.
        sizes: Bytes of data of the messages that follow each message of the load.
    """

    wire: MessageWire
    sizes: tuple[int, ...]

    @property
    def factor(self) -> int:
        """Return the number of messages for each message of the load."""
        return 1 + len(self.sizes)

    def open_publisher(self, number: int) -> socket.socket:
        """Return a connection to publish on."""
        return self.wire.open_publisher(number)

    def open_subscriber(self, topic: str) -> socket.socket:
        """Return a connection that is subscribed."""
        return self.wire.open_subscriber(topic)

    def publishing(self, load: Load) -> Messages:
        """Return the maker of the bytes that publishers write."""
        return Messages(self.published, load)

    def published(self, topic: str, data: bytes) -> bytes:
        """Return the bytes that publish all messages."""
        return b"".join(self.wire.published(topic, one) for one in self._all(data))

    def delivered(self, topic: str, data: bytes) -> bytes:
        """Return the bytes that deliver all messages."""
        return b"".join(self.wire.delivered(topic, one) for one in self._all(data))

    def unwrapper(self, topic: str, load: Load) -> Unwrapper:
        """Return the unwrapper of the system, or one that does not need messages of one size."""
        return TextUnwrapper() if isinstance(self.wire, ClassicWire) else self.wire.unwrapper(topic, load)

    def _all(self, data: bytes) -> list[bytes]:
        return [data, *(b"y" * size for size in self.sizes)]


class TextUnwrapper:
    """Remove control frames from text frames of any size.

    It looks at each frame, and therefore takes several times as long as `ClassicUnwrapper`.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._left = 0
        self._replies = b""

    def unwrap(self, data: bytes) -> bytes:
        """Return the text frames, with their headers.

        Raises:
            WsqueueError: The node has closed, or broken the protocol.
        """
        data, at, begin = self._rest + data, self._left, 0
        parts = []
        while (header := _header(data, at)) is not None:
            size, first, length = header
            end = at + size + length
            if first == TEXT:
                at = end
                continue
            if end > len(data):
                break
            self._take_control(first, data[at + size : end])
            parts.append(data[begin:at])
            begin = at = end
        # The beginning of an incomplete text frame belongs to a record; that of a control frame does not.
        whole = min(at, len(data))
        self._left, self._rest = at - whole, data[whole:]
        return b"".join([*parts, data[begin:whole]])

    def replies(self) -> bytes:
        """Return the pongs for the pings so far, once."""
        replies, self._replies = self._replies, b""
        return replies

    def _take_control(self, first: int, payload: bytes) -> None:
        if first == PING:
            self._replies += Frame(Opcode.PONG, payload).serialize(mask=True)
        elif first != PONG:
            raise WsqueueError(f"the node sent a frame 0x{first:02x} {payload!r}")


class Passed:
    """The unwrapper of a protocol without frames and pings: Redis over TCP."""

    def unwrap(self, data: bytes) -> bytes:
        """Return the data as they are."""
        return data

    def replies(self) -> bytes:
        """Return no bytes: the server expects no replies."""
        return b""


class Heads:
    """Replace the heads of records, which vary, by bytes that do not; data and a line break follow each head.

    Args:
        inner: Removes frames and pings.
        head: Matches a head. Its group `kept` is the part that stays, and `size` the bytes of data; or
            `refusal` is an error with which the server answers instead.
    """

    def __init__(self, inner: Unwrapper, head: re.Pattern[bytes]) -> None:
        self._inner, self._head = inner, head
        self._begun = b""
        self._remaining = 0

    def unwrap(self, data: bytes) -> bytes:
        """Return the records in the bytes that were read; incomplete ones too.

        Raises:
            WsqueueError: The server has closed, refused a command, or sent a head that is not known.
        """
        data, position = self._begun + self._inner.unwrap(data), 0
        self._begun = b""
        parts = []
        while position < len(data):
            if self._remaining == 0:
                head = self._head.match(data, position)
                if head is None:
                    self._begun = data[position:]
                    break
                if head["refusal"]:
                    raise WsqueueError(f"the server refuses: {head['refusal']!r}")
                kept, self._remaining = self._take(head)
                parts.append(kept)
                position = head.end()
            payload = data[position : position + self._remaining]
            position += len(payload)
            self._remaining -= len(payload)
            parts.append(payload)
        if len(self._begun) > MAX_HEAD_BYTES:
            raise WsqueueError(f"the server sent unexpected bytes: {self._begun[:200]!r}")
        return b"".join(parts)

    def replies(self) -> bytes:
        """Return the pongs for the pings so far, once."""
        return self._inner.replies()

    def _take(self, head: re.Match[bytes]) -> tuple[bytes, int]:
        """Return the bytes that stay, and the number of those that follow."""
        return head["kept"], int(head["size"]) + len(b"\r\n")


class ConfirmedMessages(Messages):
    """Messages that the system confirms one by one.

    Args:
        published: Returns the bytes that publish data on a topic; see `Messages`.
        load: The load.
        inner: Makes an unwrapper that removes frames and pings from a publisher's connection.
        confirmation: Matches a confirmation. If it has a group `number`, it counts up on each connection.

    Attributes:
        unconfirmed: Number of messages that were made and are not confirmed.
    """

    def __init__(
        self,
        published: Callable[[str, bytes], bytes],
        load: Load,
        inner: Callable[[], Unwrapper],
        confirmation: re.Pattern[bytes],
    ) -> None:
        super().__init__(published, load)
        self._inner, self._confirmation = inner, confirmation
        self.unconfirmed = 0

    def make(self, publisher: int, first: int, count: int, due_ns: Mapping[int, int]) -> memoryview:
        """Return the bytes of messages (see `Publishing`)."""
        self.unconfirmed += count
        return super().make(publisher, first, count, due_ns)

    def unwrapper(self, publisher: int) -> Confirmations:
        """Return the unwrapper that takes the confirmations on a publisher's connection."""
        return Confirmations(self, self._inner(), self._confirmation)


class Confirmations(Heads):
    """Count the confirmations on a publisher's connection: heads without data.

    Args:
        messages: Counts the unconfirmed messages.
        inner: Removes frames and pings.
        confirmation: Matches a confirmation (see `ConfirmedMessages`).
    """

    def __init__(
        self, messages: ConfirmedMessages, inner: Unwrapper, confirmation: re.Pattern[bytes]
    ) -> None:
        super().__init__(inner, confirmation)
        self._messages = messages
        self._number = 0

    def _take(self, head: re.Match[bytes]) -> tuple[bytes, int]:
        if head.lastgroup == "number":
            before, self._number = self._number, int(head["number"])
            if self._number <= before:
                raise WsqueueError(f"the server confirmed message {self._number} after {before}")
        if self._messages.unconfirmed == 0:
            raise WsqueueError("the server confirmed more messages than were published")
        self._messages.unconfirmed -= 1
        return b"", 0


@dataclass(frozen=True)
class RedisWire:
    """Publish and subscribe with Redis' own protocol over TCP (RESP2).

    A publisher switches the replies off, or the server would answer each message with the number of its
    receivers: that is the faster way for Redis, and this load generator reads no publisher's socket.

    Attributes:
        host: Where the server listens.
        port: TCP port.
    """

    host: str
    port: int

    def open_publisher(self, number: int) -> socket.socket:
        """Return a connection on which commands publish, and the server does not reply."""
        with _connecting(self.host, self.port) as connection:
            connection.sendall(_resp(b"CLIENT", b"REPLY", b"OFF"))
        return connection

    def open_subscriber(self, topic: str) -> socket.socket:
        """Return a connection that is subscribed."""
        with _connecting(self.host, self.port) as connection:
            connection.sendall(_resp(b"SUBSCRIBE", topic.encode()))
            _expect(connection, b"*3\r\n" + _bulk(b"subscribe") + _bulk(topic.encode()) + b":1\r\n")
        return connection

    def publishing(self, load: Load) -> Messages:
        """Return the maker of the bytes that publishers write."""
        return Messages(self.published, load)

    def published(self, topic: str, data: bytes) -> bytes:
        """Return the command that publishes a message."""
        return _resp(b"PUBLISH", topic.encode(), data)

    def delivered(self, topic: str, data: bytes) -> bytes:
        """Return the record of a message."""
        return _resp(b"message", topic.encode(), data)

    def unwrapper(self, topic: str, load: Load) -> Unwrapper:
        """Return the unwrapper of a subscriber's connection."""
        return Passed()


class RedisStreamWire(RedisWire):
    """Append to a Redis stream for each topic, one message a command, and read them from it.

    The server confirms each message with its id. A subscriber asks for all messages after the last one that
    it has, and waits if there are none.
    """

    def open_publisher(self, number: int) -> socket.socket:
        """Return a connection on which commands append, and the server replies."""
        with _connecting(self.host, self.port) as connection:
            pass
        return connection

    def open_subscriber(self, topic: str) -> socket.socket:
        """Return a connection that waits for messages, after it has deleted those of earlier runs."""
        with _connecting(self.host, self.port) as connection:
            connection.sendall(_resp(b"DEL", topic.encode()))
            _read_until(connection, b"\r\n")
            connection.sendall(_xread(topic, b"0-0"))
        return connection

    def publishing(self, load: Load) -> ConfirmedMessages:
        """Return the maker of the bytes that publishers write, which also counts confirmations."""
        return ConfirmedMessages(self.published, load, Passed, _XADD_REPLY)

    def published(self, topic: str, data: bytes) -> bytes:
        """Return the command that appends a message."""
        return _resp(b"XADD", topic.encode(), b"*", b"d", data)

    def delivered(self, topic: str, data: bytes) -> bytes:
        """Return the fields of a message, without its id."""
        return _resp(b"d", data)

    def unwrapper(self, topic: str, load: Load) -> Unwrapper:
        """Return the unwrapper of a subscriber's connection."""
        return Entries(topic)


class Entries(Heads):
    """Remove the ids from the entries of a Redis stream, and ask for more.

    Args:
        topic: The topic.
        other: Pattern of the heads of other replies; without it, there are none.
    """

    def __init__(self, topic: str, other: bytes = rb"(?!)") -> None:
        reply = rb"\*1\r\n\*2\r\n\$\d+\r\n%b\r\n\*(?P<count>\d+)\r\n" % re.escape(topic.encode())
        entry = rb"\*2\r\n\$\d+\r\n(?P<id>[\d-]+)\r\n(?P<kept>\*2\r\n\$1\r\nd\r\n\$(?P<size>\d+)\r\n)"
        heads = rb"%b|%b|%b|(?P<refusal>-[^\r]*)\r\n" % (reply, entry, other)
        super().__init__(Passed(), re.compile(heads))
        self._topic = topic
        self._left = 0
        self._id = b""

    def replies(self) -> bytes:
        """Return the command that reads the entries after those of a reply, once it is complete."""
        if self._left or self._remaining or not self._id:
            return b""
        command, self._id = _xread(self._topic, self._id), b""
        return command

    def _take(self, head: re.Match[bytes]) -> tuple[bytes, int]:
        if head["count"]:
            self._left = int(head["count"])
            return b"", 0
        self._left -= 1
        self._id = head["id"]
        return super()._take(head)


class RedisGroupWire(RedisStreamWire):
    """Read a Redis stream for each topic as members of a consumer group, and acknowledge each message."""

    def open_subscriber(self, topic: str) -> socket.socket:
        """Return a connection of a new member that waits for messages."""
        with _connecting(self.host, self.port) as connection:
            name = topic.encode()
            connection.sendall(_resp(b"XGROUP", b"CREATE", name, GROUP.encode(), b"0", b"MKSTREAM"))
            answer = _read_until(connection, b"\r\n")
            # Another member was faster.
            if answer != b"+OK\r\n" and not answer.startswith(b"-BUSYGROUP"):
                raise ConnectError(f"the server answers {answer[:200]!r}")
            connection.sendall(_xreadgroup(topic))
        return connection

    def unwrapper(self, topic: str, load: Load) -> Unwrapper:
        """Return the unwrapper of a member's connection."""
        return GroupEntries(topic)


class GroupEntries(Entries):
    """Acknowledge the entries of a Redis stream, extract those that are acknowledged, and ask for more.

    Args:
        topic: The topic.
    """

    def __init__(self, topic: str) -> None:
        super().__init__(topic, rb":(?P<acknowledged>\d+)\r\n")
        self._ids: list[bytes] = []
        self._waiting, self._acknowledged = b"", False

    def unwrap(self, data: bytes) -> bytes:
        """Return the entries that are acknowledged, without their ids.

        Raises:
            WsqueueError: As for `Heads`.
        """
        found = super().unwrap(data)
        if not self._acknowledged:
            self._waiting += found
            return b""
        # All that were found before, because the reply comes before the entries of the next one.
        acknowledged, self._waiting, self._acknowledged = self._waiting, found, False
        return acknowledged

    def replies(self) -> bytes:
        """Return the commands that acknowledge the entries of a reply and read more, once it is complete."""
        if self._left or self._remaining or not self._ids:
            return b""
        ids, self._ids = self._ids, []
        return _resp(b"XACK", self._topic.encode(), GROUP.encode(), *ids) + _xreadgroup(self._topic)

    def _take(self, head: re.Match[bytes]) -> tuple[bytes, int]:
        if head["acknowledged"]:
            self._acknowledged = True
            return b"", 0
        found = super()._take(head)
        if head["id"]:
            self._ids.append(head["id"])
        return found


@dataclass(frozen=True)
class NatsWire:
    """Publish and subscribe with NATS' protocol in binary WebSocket messages.

    Attributes:
        host: Where the server listens for WebSockets.
        port: TCP port.
        frame_each: True gives each PUB a WebSocket message of its own, as a client does that flushes each.
            False puts all that a connection publishes into one frame without end. That is the limit of what a
            client can do that gathers many: NATS reads a frame's payload as it comes, and unframes nothing.
    """

    host: str
    port: int
    frame_each: bool = False

    def open_publisher(self, number: int) -> socket.socket:
        """Return a connection that is ready to publish."""
        return self._open(b"")

    def open_subscriber(self, topic: str) -> socket.socket:
        """Return a connection that is subscribed."""
        return self._open(f"SUB {topic} 1\r\n".encode())

    def publishing(self, load: Load) -> Messages:
        """Return the maker of the bytes that publishers write."""
        return Messages(self.published, load)

    def published(self, topic: str, data: bytes) -> bytes:
        """Return the frame that publishes a message."""
        command = b"PUB %b %d\r\n%b\r\n" % (topic.encode(), len(data), data)
        return _masked(command) if self.frame_each else command

    def delivered(self, topic: str, data: bytes) -> bytes:
        """Return the record of a message, without a frame."""
        return b"MSG %b 1 %d\r\n%b\r\n" % (topic.encode(), len(data), data)

    def unwrapper(self, topic: str, load: Load) -> Unwrapper:
        """Return the unwrapper of a subscriber's connection."""
        return NatsUnwrapper(framed=self.frame_each)

    def _open(self, commands: bytes, question: bytes = b"") -> socket.socket:
        """Upgrade, connect and send commands; return when the server has executed them.

        A question is a command to which the server sends an object in JSON, which must not be an error.
        """
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        request = (
            f"GET / HTTP/1.1\r\nHost: {self.host}:{self.port}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
        )
        options = b'CONNECT {"verbose":false,"pedantic":false,"lang":"bench","version":"0","protocol":0}\r\n'
        with _connecting(self.host, self.port) as connection:
            connection.sendall(request.encode())
            head = _read_until(connection, b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 101 "):
                raise ConnectError(f"the server answers {head[:200]!r}")
            commands = options + commands + b"PING\r\n"
            if self.frame_each:
                connection.sendall(_masked(commands))
            else:
                header = struct.pack("!BBQ4x", BINARY, 0x80 | 127, ENDLESS_FRAME_BYTES)
                connection.sendall(header + commands)
            # No message is published on the topic yet, so none follows the answer.
            answer = _read_until(connection, b"PONG\r\n")
            if question:
                connection.sendall(question)
                answer += _read_until(connection, b"}\r\n")
            if b"-ERR" in answer or b'"error":' in answer:
                raise ConnectError(f"the server answers {answer[-200:]!r}")
        return connection


class JetStreamWire(NatsWire):
    """Publish to a stream of NATS JetStream, one message a publish, and subscribe to the stored messages.

    The publishers share the subscription to the confirmations, because all of them write the same bytes.
    """

    def create_stream(self) -> None:
        """Create the stream."""
        config = {"name": STREAM, "subjects": ["*"], "storage": "file", "num_replicas": 1}
        self._ask(f"STREAM.CREATE.{STREAM}", config).close()

    def open_publisher(self, number: int) -> socket.socket:
        """Return a connection that is ready to publish, and gets confirmations."""
        return self._open(b"SUB %b publishers 1\r\n" % CONFIRMATIONS)

    def open_subscriber(self, topic: str) -> socket.socket:
        """Return a connection to which the server pushes messages of a topic that it stores from now on."""
        inbox = f"bench.deliveries.{secrets.token_hex(8)}"
        consumer = {
            "deliver_subject": inbox,
            "deliver_policy": "new",
            "ack_policy": "none",
            "filter_subject": topic,
            "mem_storage": True,
        }
        body = {"stream_name": STREAM, "config": consumer}
        return self._ask(f"CONSUMER.CREATE.{STREAM}", body, f"SUB {inbox} 1\r\n".encode())

    def publishing(self, load: Load) -> ConfirmedMessages:
        """Return the maker of the bytes that publishers write, which also counts confirmations."""
        return ConfirmedMessages(
            self.published, load, lambda: NatsUnwrapper(framed=False), _JETSTREAM_CONFIRMATION
        )

    def published(self, topic: str, data: bytes) -> bytes:
        """Return the command that publishes a message and wants a confirmation."""
        return b"PUB %b %b %d\r\n%b\r\n" % (topic.encode(), CONFIRMATIONS, len(data), data)

    def delivered(self, topic: str, data: bytes) -> bytes:
        """Return the size of a message and the message: the part of the record that does not vary."""
        return b"%d\r\n%b\r\n" % (len(data), data)

    def unwrapper(self, topic: str, load: Load) -> Unwrapper:
        """Return the unwrapper of a subscriber's connection, which removes its position in the stream."""
        head = rb"MSG %b 1 [!-~]+ (?P<kept>(?P<size>\d+)\r\n)|(?P<refusal>-ERR[^\r]*)\r\n"
        return Heads(NatsUnwrapper(framed=False), re.compile(head % re.escape(topic.encode())))

    def _ask(self, subject: str, body: Mapping[str, object], commands: bytes = b"") -> socket.socket:
        """Return a connection on which JetStream has done a request, after these commands."""
        inbox, data = f"bench.answers.{secrets.token_hex(8)}", json.dumps(body)
        question = f"PUB $JS.API.{subject} {inbox} {len(data)}\r\n{data}\r\n"
        return self._open(commands + f"SUB {inbox} 2\r\n".encode(), question.encode())


@dataclass(frozen=True)
class JetStreamGroupWire(JetStreamWire):
    """Fetch messages of JetStream through a pull consumer for each topic, and acknowledge each of them.

    Attributes:
        inboxes: The subjects to which subscribers fetch that have no unwrapper yet.
    """

    inboxes: deque[bytes] = field(default_factory=deque)

    def open_subscriber(self, topic: str) -> socket.socket:
        """Return a connection of a new member that waits for messages."""
        inbox = b"bench.deliveries.%b" % secrets.token_hex(8).encode()
        consumer = {"durable_name": topic, "ack_policy": "explicit", "filter_subject": topic}
        body = {"stream_name": STREAM, "config": consumer}
        connection = self._ask(f"CONSUMER.DURABLE.CREATE.{STREAM}.{topic}", body, b"SUB %b 1\r\n" % inbox)
        connection.sendall(_fetch(topic, inbox))
        self.inboxes.append(inbox)
        return connection

    def unwrapper(self, topic: str, load: Load) -> Unwrapper:
        """Return the unwrapper of the connection of the first subscriber that has none."""
        return Fetched(topic, self.inboxes.popleft())


class Fetched(Heads):
    """Acknowledge messages of JetStream, and fetch more.

    Args:
        topic: The topic.
        inbox: The subject to which they come.
    """

    def __init__(self, topic: str, inbox: bytes) -> None:
        head = rb"MSG %b 1 (?P<ack>[!-~]+) (?P<kept>(?P<size>\d+)\r\n)" % re.escape(topic.encode())
        refusal = rb"(?P<refusal>-ERR[^\r]*|HMSG [^\r]*\r\n[^\r]*)\r\n"
        super().__init__(NatsUnwrapper(framed=False), re.compile(rb"%b|%b" % (head, refusal)))
        self._request = _fetch(topic, inbox)
        self._acks: list[bytes] = []
        self._left = PREFETCH

    def replies(self) -> bytes:
        """Return the acknowledgements, the request for more when none is left, and the pongs."""
        replies = [super().replies(), *(b"PUB %b 4\r\n+ACK\r\n" % ack for ack in self._acks)]
        self._acks.clear()
        if not self._left:
            self._left = PREFETCH
            replies.append(self._request)
        return b"".join(replies)

    def _take(self, head: re.Match[bytes]) -> tuple[bytes, int]:
        self._acks.append(head["ack"])
        self._left -= 1
        return super()._take(head)


class NatsUnwrapper:
    """Remove the frames around the messages of a NATS server, and its PINGs between them.

    The data of a message must hold no line break and not be PING: then a line PING is the server's, and the
    messages need not be parsed to find it.

    Args:
        framed: Whether an answer needs a frame of its own, or is within the frame without end.
    """

    def __init__(self, *, framed: bool) -> None:
        self._pong = _masked(b"PONG\r\n") if framed else b"PONG\r\n"
        self._begun = b""
        self._control = bytearray()
        self._opcode = BINARY
        self._remaining = 0
        self._before, self._held = b"\r\n", b""
        self._replies: list[bytes] = []

    def unwrap(self, data: bytes) -> bytes:
        """Return the records in the bytes that were read; incomplete ones too.

        Raises:
            WsqueueError: The server has closed, or sent a frame that it is not known to send.
        """
        data, position = self._begun + data, 0
        self._begun = b""
        parts = [self._before, self._held]
        while position < len(data):
            if self._remaining == 0:
                header = _header(data, position)
                if header is None:
                    self._begun = data[position:]
                    break
                size, self._opcode, self._remaining = header
                position += size
            payload = data[position : position + self._remaining]
            position += len(payload)
            self._remaining -= len(payload)
            if self._opcode & 8:
                self._take_control(payload)
            else:
                parts.append(payload)
        return self._without_pings(b"".join(parts))

    def replies(self) -> bytes:
        """Return the pongs for the pings so far, once."""
        replies = b"".join(self._replies)
        self._replies.clear()
        return replies

    def _without_pings(self, text: bytes) -> bytes:
        """Remove PINGs from bytes that follow two bytes already returned, and keep the beginning of one."""
        if b"PING" in text:
            text, pings = _PING_LINE.subn(b"", text)
            self._replies += [self._pong] * pings
        begun = _PING_BEGUN.search(text, max(0, len(text) - len(b"\r\nPING\r")))
        end = begun.start() if begun else len(text)
        records, self._held, self._before = text[2:end], text[end:], text[end - 2 : end]
        return records

    def _take_control(self, payload: bytes) -> None:
        """Collect the payload of a control frame, which NATS sends only when it closes."""
        self._control += payload
        if self._remaining == 0:
            raise WsqueueError(f"the server sent a frame 0x{self._opcode:02x} {bytes(self._control)!r}")


@contextlib.contextmanager
def _connecting(host: str, port: int) -> Iterator[socket.socket]:
    """Open a connection, with a deadline only while it is set up.

    Raises:
        ConnectError: The server cannot be reached, or breaks off.
    """
    try:
        connection = socket.create_connection((host, port), TIMEOUT_SECONDS)
        try:
            yield connection
            connection.settimeout(None)
        except BaseException:
            connection.close()
            raise
    except OSError as error:
        raise ConnectError(f"{host}:{port}: {error.strerror or error}") from None


def _read(connection: socket.socket) -> bytes:
    data = connection.recv(65_536)
    if not data:
        raise ConnectError("the server has closed the connection")
    return data


def _read_until(connection: socket.socket, end: bytes) -> bytes:
    found = b""
    while end not in found:
        found += _read(connection)
    return found


def _expect(connection: socket.socket, wanted: bytes) -> None:
    """Read an answer, and no byte beyond it."""
    found = b""
    while len(found) < len(wanted):
        found += _read(connection)
    if found != wanted:
        raise ConnectError(f"the server answers {found[:200]!r}")


def _resp(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(map(_bulk, words))


def _xread(topic: str, after: bytes) -> bytes:
    """Return the command that reads all entries of a stream after one, and waits for the first."""
    return _resp(b"XREAD", b"BLOCK", b"0", b"STREAMS", topic.encode(), after)


def _xreadgroup(topic: str) -> bytes:
    """Return the command that reads new entries of a stream for a member, and waits for the first.

    The members have one name, because it matters only to those who come back.
    """
    count = str(PREFETCH).encode()
    options = (b"COUNT", count, b"BLOCK", b"0", b"STREAMS", topic.encode(), b">")
    return _resp(b"XREADGROUP", b"GROUP", GROUP.encode(), b"member", *options)


def _fetch(topic: str, inbox: bytes) -> bytes:
    """Return the command that asks JetStream for the next messages of a pull consumer."""
    body = json.dumps({"batch": PREFETCH}).encode()
    subject = f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{topic}".encode()
    return b"PUB %b %b %d\r\n%b\r\n" % (subject, inbox, len(body), body)


def _bulk(word: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(word), word)


def _masked(payload: bytes) -> bytes:
    """Return a frame of a client, masked with zeros: a server unmasks with any key."""
    length = len(payload)
    if length < 126:
        return struct.pack("!BB4x", BINARY, 0x80 | length) + payload
    if length < 65_536:
        return struct.pack("!BBH4x", BINARY, 0x80 | 126, length) + payload
    return struct.pack("!BBQ4x", BINARY, 0x80 | 127, length) + payload


def _header(data: bytes, position: int) -> tuple[int, int, int] | None:
    """Return size, first byte and payload length of a frame header, None if it is incomplete."""
    size = 2
    if position + 1 < len(data):
        size += {126: 2, 127: 8}.get(data[position + 1], 0)
    if position + size > len(data):
        return None
    length = int.from_bytes(data[position + 2 : position + size]) if size > 2 else data[position + 1]
    return size, data[position], length
