"""The states in an engine that consumers share: in a stream of its own, which keeps one record of a subject.

A version is the sequence number of a record, so the engine compares it, and versions rise over all names.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec

from ..errors import StorageError
from .engine import READ_BYTES, STATES, Conflict, Engine, Full, Place, Unanswered, state_place
from .shared_record import decode_as
from .states import (
    Key,
    State,
    StateInfo,
    StatesFull,
    conflict,
    expect_bytes,
    expect_room,
    expect_size,
    size_of,
)

Result = TypeVar("Result")

FORMAT = 1
"""Number of this format of states."""


class SharedState(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Hold a state as it travels.

    Attributes:
        format: `FORMAT`.
        topic: Topic of the state.
        name: Name of the state.
        value: Its value.
    """

    format: int
    topic: str
    name: str
    value: bytes


_decoder = msgspec.msgpack.Decoder(SharedState)
_encoder = msgspec.msgpack.Encoder()


def encode_state(topic: str, name: str, value: bytes) -> bytes:
    """Encode a state."""
    return _encoder.encode(SharedState(FORMAT, topic, name, value))


def decode_state(data: bytes) -> SharedState:
    """Decode a state.

    Raises:
        StorageError: It is none, or one of another format.
    """
    return decode_as("state", _decoder, data, FORMAT)


class SharedStates:
    """Read and change states in an engine.

    Args:
        engine: The engine.
        requests: Bounds the requests to it.
    """

    def __init__(self, engine: Engine, requests: asyncio.Semaphore) -> None:
        self._engine, self._requests = engine, requests

    async def state(self, topic: str, name: str) -> State | None:
        """Return a state, None if there is none.

        Raises:
            StorageError: The engine doesn't answer, or the state is no state.
        """
        place = state_place(topic, name)
        last = await self._asked(lambda: self._engine.last(place))
        if last is None:
            return None
        found = decode_state(last.data)
        if (found.topic, found.name) != (topic, name):
            raise StorageError(f"the shared log has another state in the place of {name!r} of {topic!r}")
        return State(last.seq, found.value)

    async def change(self, topic: str, name: str, value: bytes, version: int) -> int:
        """Replace a state, or make one, and return its new version.

        Raises:
            StateConflict: It has another version: nothing was changed.
            StatesFull: There is no room for it: nothing was changed.
            StorageError: The engine doesn't answer: the outcome is open.
        """
        size, place = size_of(topic, name, value), state_place(topic, name)
        expect_size(topic, name, size)
        if not version:
            await self._expect_room(topic, place, size)
        data = encode_state(topic, name, value)
        try:
            return await self._asked(lambda: self._engine.append(place, data, version))
        except Conflict:
            raise conflict(topic, name) from None
        except Full as error:
            raise StatesFull(str(error)) from None

    async def drop(self, topic: str, name: str, version: int) -> None:
        """Delete a state.

        Raises:
            StateConflict: It has another version, or there is none: nothing was changed.
            StorageError: The engine doesn't answer: the outcome is open.
        """
        place = state_place(topic, name)
        last = await self._asked(lambda: self._engine.last(place))
        if last is None or last.seq != version:
            raise conflict(topic, name)
        # A state that another consumer has changed since has a higher number, and stays.
        if not await self._asked(lambda: self._engine.purge(place, version + 1)):
            raise conflict(topic, name)

    async def states(self) -> list[StateInfo]:
        """Return all states, without those that somebody else has put there.

        Raises:
            StorageError: The engine doesn't answer.
        """
        found: dict[Key, StateInfo] = {}
        seq = 1
        while records := await self._asked(lambda: self._engine.scan(STATES, seq, READ_BYTES)):  # noqa: B023
            for record in records:
                try:
                    state = decode_state(record.data)
                except StorageError:
                    continue
                # A state that is changed during the search comes again, and then counts.
                key = state.topic, state.name
                found[key] = StateInfo(*key, record.seq, state.value)
            seq = records[-1].seq + 1
        return list(found.values())

    async def _expect_room(self, topic: str, place: Place, size: int) -> None:
        """Make sure that there is room for another state.

        Several consumers that make one at a time may exceed the limits by one each.

        Raises:
            StatesFull: There is none.
            StorageError: The engine doesn't answer.
        """
        of_topic, _, _ = place.token.partition(".")
        counts = await self._asked(lambda: self._engine.count(STATES, of_topic))
        expect_room(topic, counts.below, counts.records)
        expect_bytes(counts.bytes + size)

    async def _asked(self, request: Callable[[], Awaitable[Result]]) -> Result:
        """Return the answer of the engine.

        Raises:
            StorageError: There is none.
        """
        try:
            async with self._requests:
                return await request()
        except Unanswered as error:
            raise StorageError(str(error)) from None
