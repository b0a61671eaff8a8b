"""The records that a subscriber reads: always the same one, except for the times in some of them."""

from __future__ import annotations

import math

from ...errors import WsqueueError
from .report import Latencies
from .wire import Wire
from .workload import MIN_SIZE, STAMPED, Load


class Template:
    """The bytes that a subscriber of a topic should read: the same record again and again.

    Args:
        wire: The wire of the system.
        topic: The topic.
        load: The load.
        size: Number of bytes that are read at a time.
    """

    def __init__(self, wire: Wire, topic: str, load: Load, size: int) -> None:
        record = wire.delivered(topic, load.filler)
        self.topic, self.filler = topic, load.filler[:MIN_SIZE]
        self.stride, self.mark = len(record), record.index(load.filler)
        self.bytes = record * (math.ceil(size / self.stride) + 1)


class Records:
    """Count the records on one subscriber's connection, and check all their bytes except the times."""

    def __init__(self, template: Template, latencies: Latencies) -> None:
        self._template, self._latencies = template, latencies
        self._bytes = 0
        # The beginning of an incomplete record, if it differs from the template.
        self._rest = b""

    def take(self, stream: bytes, now_ns: int) -> int:
        """Take the next bytes of the stream, and return how many records they complete.

        Raises:
            WsqueueError: They differ from the published messages.
        """
        template = self._template
        stride, begin = template.stride, self._bytes % template.stride
        self._bytes += len(stream)
        if self._rest or not template.bytes.startswith(stream, begin):
            self._take_stamped((self._rest or template.bytes[:begin]) + stream, now_ns)
        return (begin + len(stream)) // stride

    def _take_stamped(self, stream: bytes, now_ns: int) -> None:
        """Replace the times in records by the filler, count them, and check the records."""
        template = self._template
        stride, mark = template.stride, template.mark
        whole = len(stream) // stride * stride
        records = bytearray(stream[:whole])
        marks = stream[mark:whole:stride]
        index = marks.find(STAMPED)
        while index >= 0:
            at = index * stride + mark
            try:
                due_ns = int(records[at + 1 : at + MIN_SIZE], 16)
            except ValueError:
                break
            self._latencies.add(max(now_ns - due_ns, 0))
            records[at : at + MIN_SIZE] = template.filler
            index = marks.find(STAMPED, index + 1)
        for begin in range(0, whole, len(template.bytes)):
            if not template.bytes.startswith(records[begin : begin + len(template.bytes)]):
                self._refuse(records)
        rest = stream[whole:]
        self._rest = b"" if template.bytes.startswith(rest) else rest

    def _refuse(self, records: bytearray) -> None:
        template = self._template
        differs = next(at for at, byte in enumerate(records) if byte != template.bytes[at % template.stride])
        begin = differs % template.stride
        expected, found = template.bytes[begin : begin + 20], bytes(records[differs : differs + 20])
        raise WsqueueError(
            f"unexpected bytes from a subscriber of {template.topic}: {found!r} instead of {expected!r};"
            " does another client publish there?"
        )
