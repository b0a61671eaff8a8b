"""The end of names that nobody has used for long, so that their number stays bounded."""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from ..journal import log
from ..log.states import StateConflict, StateInfo
from ..log.store import Store
from ..protocol.classic import DECODE_ERRORS

logger = logging.getLogger(__name__)

UNUSED_SECONDS = 30 * 86_400
"""Time after which a group or a named reader that nobody uses is forgotten: longer than any holiday."""


class _Group(msgspec.Struct):
    """The part of a group's state that says when it was used."""

    used: int = 0


class _Reader(msgspec.Struct, array_like=True):
    """The part of a reader's state that says when it was used."""

    log: str
    offset: int
    used: int


_group_decoder = msgspec.msgpack.Decoder(_Group)
_reader_decoder = msgspec.msgpack.Decoder(_Reader)


async def expire(logs: Store, now: float, in_use: Callable[[str, str], bool]) -> None:
    """Forget the groups and named readers that were not used for long.

    Args:
        logs: The logs of all topics, which keep their states.
        now: Unix time.
        in_use: Returns True for a topic and the name of a state that somebody uses at this consumer.

    Raises:
        WsqueueError: The states cannot be read or changed.
    """
    for state in await logs.states():
        used = _used(state)
        if used is None or now - used < UNUSED_SECONDS or in_use(state.topic, state.name):
            continue
        try:
            await logs.drop_state(state.topic, state.name, state.version)
        except StateConflict:
            continue
        log(logger, logging.INFO, "name expired", topic=state.topic, name=state.name)


def _used(state: StateInfo) -> int | None:
    """Return the Unix time at which a name was used last, None if that cannot be told."""
    try:
        if state.name.startswith("group/"):
            return _group_decoder.decode(state.value).used
        return _reader_decoder.decode(state.value).used if state.name.startswith("reader/") else None
    except DECODE_ERRORS:
        return None
