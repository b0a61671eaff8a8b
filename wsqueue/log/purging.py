"""Drop the oldest records of an engine when all of them together are too large.

The streams are read from their oldest records on. Each record names the table that it needs; everything of
the same topic before that table may go. So the newest record of a topic stays, and all that is needed to
append to it, and nothing is lost when two consumers do this at the same time.
"""

from __future__ import annotations

import logging

from ..errors import StorageError
from ..journal import log
from .engine import Engine, Place, Unanswered
from .shared_record import decode_record

logger = logging.getLogger(__name__)

PURGE_BYTES = 4 * 1024 * 1024
"""Bytes of the oldest records that are looked at in one go."""

TRIMMED_PART = 0.95
"""Part of `max_bytes` that is left when the log was too large, so that this doesn't happen all the time."""


class Purging:
    """Keep the size of all records in bounds.

    Args:
        engine: The engine.
        streams: Number of its streams.
        max_bytes: Most bytes of all records.

    Attributes:
        max_bytes: See above; a reload sets another value.
    """

    def __init__(self, engine: Engine, streams: int, max_bytes: int) -> None:
        self._engine, self._streams, self.max_bytes = engine, streams, max_bytes

    async def purge(self) -> None:
        """Drop the oldest records while the log is too large."""
        try:
            states = [await self._engine.state(stream) for stream in range(self._streams)]
            excess = sum(state.bytes for state in states) - self.max_bytes
            if excess <= 0:
                return
            excess += int(self.max_bytes * (1 - TRIMMED_PART))
            cursors = {stream: state.first for stream, state in enumerate(states) if state.first_time}
            ages = {stream: states[stream].first_time for stream in cursors}
            while excess > 0 and cursors:
                stream = min(cursors, key=ages.__getitem__)
                freed, cursors[stream], ages[stream] = await self._purge_oldest(stream, cursors[stream])
                excess -= freed
                if ages[stream] == 0:
                    del cursors[stream]
            if excess > 0:
                log(logger, logging.WARNING, "log too large", excess_bytes=excess)
        except Unanswered as error:
            # While the log is unavailable, other lines say so.
            log(logger, logging.DEBUG, "not purged", reason=error)
        except StorageError as error:
            log(logger, logging.WARNING, "not purged", reason=error)

    async def _purge_oldest(self, stream: int, seq: int) -> tuple[int, int, float]:
        """Drop old records of a stream, from a sequence number on; all tables that are needed stay.

        Returns:
            The bytes that are free now, the sequence number at which to go on, and the time of the record
            there; 0 at the end of the stream.
        """
        found = await self._engine.scan(stream, seq, PURGE_BYTES)
        below: dict[str, int] = {}
        # Older than all others, so that the search goes on in this stream.
        time = 1.0
        for stored in found:
            try:
                head = decode_record(stored.data)
            except StorageError:
                # Somebody else has put it there. It stays, and must not keep everything else there too.
                continue
            time = head.time
            # A table that nobody has needed since may go with all before it, once there is a newer one.
            below[stored.token] = max(below.get(stored.token, 0), head.table or stored.seq)
        freed, purged = 0, set[str]()
        for stored in found:
            if stored.seq < below.get(stored.token, 0):
                freed += len(stored.data)
                purged.add(stored.token)
        for token in purged:
            await self._engine.purge(Place(stream, token), below[token])
        return (freed, found[-1].seq + 1, time) if found else (0, seq, 0.0)
