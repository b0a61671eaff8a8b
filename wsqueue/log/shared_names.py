"""The names of all topics in an engine, whose subjects are digests of them.

```
tokens of a stream ──► those that are new ──► the newest record of each ──► the topic in its head
```

The names are kept while somebody follows topics, so that a record is read once for each of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from ..errors import StorageError
from .engine import Engine, Stored, Unanswered
from .ledger import MAX_TOPICS
from .shared_record import decode_record
from .store import TooManyTopics

ASKED_AT_ONCE = 500
"""Topics whose newest records one request asks for: a server answers for 1,024 at most."""


class SharedNames:
    """List the topics of an engine.

    Args:
        engine: The engine.
        streams: Number of its streams.
        requests: Bounds the requests to it.
    """

    def __init__(self, engine: Engine, streams: int, requests: asyncio.Semaphore) -> None:
        self._engine, self._requests = engine, requests
        self._names: list[dict[str, str]] = [{} for _ in range(streams)]
        self._looking = asyncio.Lock()

    def forget(self) -> None:
        """Forget all names, to save memory; the next look finds them again."""
        for names in self._names:
            names.clear()

    def of(self, stream: int) -> list[str]:
        """Return the names that the last look at a stream has found."""
        return [name for name in self._names[stream].values() if name]

    async def look(self, stream: int, known: Mapping[str, str]) -> list[str]:
        """Look for topics of a stream, and return the names of those that no look has found before.

        Args:
            stream: Number of the stream.
            known: Names of topics by their tokens, which need not be read.

        Raises:
            TooManyTopics: The streams have more than `MAX_TOPICS`.
            StorageError: The engine doesn't answer.
        """
        async with self._looking:
            try:
                return await self._look(stream, known)
            except Unanswered as error:
                raise StorageError(str(error)) from None

    async def _look(self, stream: int, known: Mapping[str, str]) -> list[str]:
        async with self._requests:
            tokens = await self._engine.tokens(stream)
        before = self._names[stream]
        if len(tokens) - len(before) + sum(map(len, self._names)) > MAX_TOPICS:
            raise TooManyTopics(f"the shared log has more than {MAX_TOPICS} topics")
        names = {token: before[token] for token in tokens if token in before}
        added = {token: known[token] for token in tokens if token not in before and token in known}
        unknown = [token for token in tokens if token not in before and token not in known]
        while unknown:
            part, unknown = unknown[:ASKED_AT_ONCE], unknown[ASKED_AT_ONCE:]
            async with self._requests:
                found = await self._engine.newest(stream, part)
            read = {one.token: _topic_of(one) for one in found}
            added |= read
            if not read:
                raise Unanswered("a server answers that doesn't have the newest messages yet")
            # An answer has as many records as fit.
            unknown = [token for token in part if token not in read] + unknown
        self._names[stream] = names | added
        return [name for name in added.values() if name]


def _topic_of(stored: Stored) -> str:
    """Return the topic of a record, "" if somebody else has put the record there."""
    try:
        return decode_record(stored.data).topic
    except StorageError:
        return ""
