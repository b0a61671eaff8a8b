"""The wire of the classic protocol of wsqueue, for the load generator."""

from __future__ import annotations

from websockets.frames import Close, Frame, Opcode

from ...errors import WsqueueError
from ...protocol import classic
from ...protocol.frames import MAX_HEADER_BYTES, TEXT_AND_FIN, frame_messages, frame_size
from .messages import Messages
from .nodes import NodesWire
from .workload import Load

_FIN = 0x80
_CLOSE, _PING, _PONG = _FIN | Opcode.CLOSE, _FIN | Opcode.PING, _FIN | Opcode.PONG


class ClassicWire(NodesWire):
    """Speak the classic protocol of wsqueue."""

    _v2 = False

    def publishing(self, load: Load) -> Messages:
        """Return the maker of messages; it answers pings, which publishers with a low rate get."""
        return Messages(self.published, load, ClassicUnwrapper)

    def published(self, topic: str, data: bytes) -> bytes:
        """Return a masked frame."""
        return frame_messages([_payload(topic, data)], masked=True, binary=False)

    def delivered(self, topic: str, data: bytes) -> bytes:
        """Return an unmasked frame."""
        return frame_messages([_payload(topic, data)], masked=False, binary=False)

    def unwrapper(self, topic: str, load: Load) -> ClassicUnwrapper:
        """Return an unwrapper that removes control frames."""
        return ClassicUnwrapper()


class ClassicUnwrapper:
    """Remove the control frames from a stream of text frames that nearly all have the same length.

    Parsing each frame would take 10 µs per message, so only frames with an unexpected first byte are parsed.
    """

    _TEXTS, _KINDS = bytes([TEXT_AND_FIN]), bytes([TEXT_AND_FIN, _CLOSE, _PING, _PONG])

    def __init__(self) -> None:
        self._stride = 0
        self._left = 0
        self._held = b""
        self._replies = b""

    def unwrap(self, data: bytes) -> bytes:
        """Return the text frames, with their headers.

        Raises:
            WsqueueError: The node has closed.
        """
        data, self._held = self._held + data, b""
        parts: list[bytes] = []
        begin, at = 0, self._left
        while at < len(data):
            at += self._alike(data, at)
            head = data[at : at + MAX_HEADER_BYTES]
            if not head:
                break
            if head[0] not in self._KINDS:
                # Another client published a message of another length; `Records` will refuse it.
                at = len(data)
                break
            size = frame_size(head)
            if size is not None and head[0] == TEXT_AND_FIN:
                self._stride = size
                at += size
                continue
            if size is None or at + size > len(data):
                self._held = data[at:]
                break
            parts.append(data[begin:at])
            self._take_control(head[0], data[at + 2 : at + size])
            begin = at = at + size
        end = len(data) - len(self._held)
        self._left = at - end
        # Joining one part, or slicing the whole, copies nothing.
        return b"".join([*parts, data[begin:end]])

    def replies(self) -> bytes:
        """Return the pongs for the pings so far, once."""
        replies, self._replies = self._replies, b""
        return replies

    def _alike(self, data: bytes, at: int) -> int:
        """Return the number of bytes of text frames, assuming that all are as long as the last one.

        If one is not, `Records` refuses the stream, because it compares every byte.
        """
        if not self._stride:
            return 0
        kinds = data[at :: self._stride]
        return self._stride * (len(kinds) - len(kinds.lstrip(self._TEXTS)))

    def _take_control(self, kind: int, payload: bytes) -> None:
        if kind == _PING:
            self._replies += Frame(Opcode.PONG, payload).serialize(mask=True)
        elif kind == _CLOSE:
            close = Close.parse(payload)
            raise WsqueueError(f"the node closed with {close.code} ({close.reason})")


def _payload(topic: str, data: bytes) -> bytes:
    return classic.encode(classic.Message(data=data.decode(), topic=topic))
