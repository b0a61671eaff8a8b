"""The names of all topics in an engine, whose subjects are digests of them.

```
tokens of a stream ──► those that are new ──► the newest record of each ──► the topic in its head
```

The names are kept for some seconds, and while somebody follows topics, so that a record is read once for each
of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

from ..errors import StorageError
from ..protocol.repeats import name_bytes
from .engine import Engine, Stored, Unanswered
from .shared_record import decode_record
from .store import TooManyTopics

ASKED_AT_ONCE = 500
"""Topics whose newest records one request asks for: a server answers for 1,024 at most."""

MAX_NAMES_BYTES = 32 * 1024 * 1024
"""Bytes of all names in memory: those of 100,000 topics with 50 characters."""

ENTRY_BYTES = 200
"""Memory of a name besides its characters: its token, and their entry."""


class SharedNames:
    """List the topics of an engine.

    Args:
        engine: The engine.
        streams: Number of its streams.
        requests: Bounds the requests to it.
    """

    def __init__(self, engine: Engine, streams: int, requests: asyncio.Semaphore) -> None:
        self._engine, self._requests = engine, requests
        # None for a record of somebody else.
        self._names: list[dict[str, str | None]] = [{} for _ in range(streams)]
        self._sizes = [0] * streams
        self._looking = asyncio.Lock()

    def forget(self) -> None:
        """Forget all names, to save memory; the next look finds them again."""
        if any(self._sizes):
            self._names, self._sizes = [{} for _ in self._names], [0] * len(self._sizes)

    def of(self, stream: int) -> list[str]:
        """Return the names that the last look at a stream has found."""
        return [name for name in self._names[stream].values() if name is not None]

    async def look(self, stream: int, known: Mapping[str, str]) -> list[str]:
        """Look for topics of a stream, and return the names of those that no look has found before.

        Args:
            stream: Number of the stream.
            known: Names of topics by their tokens, which need not be read.

        Raises:
            TooManyTopics: The names have more than `MAX_NAMES_BYTES`.
            Unanswered: No server that has the newest messages answers.
        """
        async with self._looking:
            return await self._look(stream, known)

    async def _look(self, stream: int, known: Mapping[str, str]) -> list[str]:
        async with self._requests:
            tokens = await self._engine.tokens(stream)
        before = self._names[stream]
        names = {token: before[token] for token in tokens if token in before}
        added: dict[str, str | None] = {
            token: known[token] for token in tokens if token not in before and token in known
        }
        unknown = [token for token in tokens if token not in before and token not in known]
        size = _size(names) + _size(added)
        self._expect_room(stream, size, unknown)
        while unknown:
            part, unknown = unknown[:ASKED_AT_ONCE], unknown[ASKED_AT_ONCE:]
            async with self._requests:
                found = await self._engine.newest(stream, part)
            read = {one.token: _topic_of(one) for one in found}
            if not read:
                raise Unanswered("a server answers that doesn't have the newest messages yet")
            added |= read
            size += _size(read)
            self._expect_room(stream, size, unknown)
            # An answer has as many records as fit.
            unknown = [token for token in part if token not in read] + unknown
        self._names[stream], self._sizes[stream] = names | added, size
        return [name for name in added.values() if name is not None]

    def _expect_room(self, stream: int, size: int, unknown: Sequence[str]) -> None:
        """Refuse more names of a stream than memory may have besides those of others.

        Raises:
            TooManyTopics: There are more.
        """
        others = sum(self._sizes) - self._sizes[stream]
        if others + size + ENTRY_BYTES * len(unknown) > MAX_NAMES_BYTES:
            raise TooManyTopics("the shared log has too many topics to list them")


def _size(names: Mapping[str, str | None]) -> int:
    """Return the bytes that names take."""
    return sum(ENTRY_BYTES + name_bytes(name or "") for name in names.values())


def _topic_of(stored: Stored) -> str | None:
    """Return the topic of a record, None if somebody else has put the record there."""
    try:
        return decode_record(stored.data).topic
    except StorageError:
        return None
