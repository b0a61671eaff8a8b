"""List the topics of an engine, also those that no consumer serves now.

The subject of a topic has a digest of its name, and only a record tells the name. So a listing reads the
subjects of a stream at once, which are short, and then looks the topics up, some in each step.
"""

from __future__ import annotations

import asyncio
import bisect
import logging
import time

from ..errors import StorageError
from ..journal import log
from ..protocol.access import matches
from .engine import Place, place_of
from .engine_reader import EngineReader
from .store import TopicExtent

logger = logging.getLogger(__name__)

LISTED_TOPICS = 200
"""Topics that one step of a listing looks up, with two requests each: a part of a second."""

SUBJECTS_SECONDS = 10.0
"""Time for which the subjects of a stream are used again: all of them come at once, up to some megabytes."""


class EngineListing:
    """Find the topics of an engine.

    Args:
        reader: Reads their records.
        streams: Number of the engine's streams.
    """

    def __init__(self, reader: EngineReader, streams: int) -> None:
        self._reader, self._streams = reader, streams
        # The tokens of streams that are being listed, and when they were read (monotonic).
        self._tokens: dict[int, tuple[float, list[str]]] = {}

    async def extent(self, topic: str) -> TopicExtent:
        """Return how much of a topic is kept.

        Raises:
            StorageError: The engine doesn't answer.
        """
        found = await self._reader.extent(place_of(topic, self._streams))
        return TopicExtent(topic, 0, 0, 0) if found is None else found

    async def topics(
        self, pattern: str, after: str | None, most: int
    ) -> tuple[list[TopicExtent], str | None]:
        """Return some of the topics, as `Store.topics`.

        Raises:
            ValueError: `after` is no place.
            StorageError: The engine doesn't answer.
        """
        if not pattern.endswith("*"):
            found = await self._reader.extent(place_of(pattern, self._streams))
            return [] if found is None else [found], None
        places, place = await self._places(after, min(most, LISTED_TOPICS))
        extents = await asyncio.gather(*map(self._extent_at, places))
        return [one for one in extents if one is not None and matches(pattern, one.topic)], place

    async def _extent_at(self, place: Place) -> TopicExtent | None:
        try:
            return await self._reader.extent(place)
        except StorageError as error:
            log(logger, logging.WARNING, "topic not listed", reason=error)
            return None

    async def _places(self, after: str | None, most: int) -> tuple[list[Place], str | None]:
        """Return the places of the next topics, and the text for those behind them, None at the end."""
        stream, token = 0, ""
        if after is not None:
            number, _, token = after.partition(":")
            if not (number.isascii() and number.isdecimal() and len(number) < 10):
                raise ValueError(f"{after[:50]!r} is no place in the list of topics")
            stream = int(number)
        places: list[Place] = []
        while stream < self._streams and len(places) < most:
            tokens = await self._tokens_of(stream)
            at = bisect.bisect_right(tokens, token)
            part = tokens[at : at + most - len(places)]
            places += [Place(stream, one) for one in part]
            if at + len(part) < len(tokens):
                token = part[-1]
            else:
                stream, token = stream + 1, ""
        return places, f"{stream}:{token}" if stream < self._streams else None

    async def _tokens_of(self, stream: int) -> list[str]:
        now = time.monotonic()
        self._tokens = {one: read for one, read in self._tokens.items() if now - read[0] < SUBJECTS_SECONDS}
        if stream not in self._tokens:
            self._tokens[stream] = now, sorted(await self._reader.tokens(stream))
        return self._tokens[stream][1]
