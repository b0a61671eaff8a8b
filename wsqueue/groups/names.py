"""The names of a topic: its groups and named readers, as the store keeps their states."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Literal, TypeAlias

import msgspec

from ..log.states import StateInfo
from ..log.store import Store, TopicExtent
from ..protocol.classic import DECODE_ERRORS
from .state import decode_state

Kind: TypeAlias = Literal["group", "reader"]

DECODED_AT_ONCE = 100
"""States that are decoded in a turn of the loop: some milliseconds, if each has many ranges."""


class _Reader(msgspec.Struct, array_like=True):
    """The state of a named reader."""

    log: str
    offset: int
    used: int


_reader_decoder = msgspec.msgpack.Decoder(_Reader)


class Progress(msgspec.Struct, frozen=True):
    """Say how far a group or a named reader has come.

    Attributes:
        topic: Its topic.
        kind: Which of the two it is.
        name: Its name.
        offset: Offset of the first message that is not done.
        ahead: Ranges of messages behind it that are done, each with its first offset and the one after it.
        dead: Number of messages that the group gave up since it began.
        used: Unix time at which it was used last, at most a day too early.
        coordinator: Id of the consumer that coordinates the group, "" for none.
    """

    topic: str
    kind: Kind
    name: str
    offset: int
    ahead: list[tuple[int, int]] = []
    dead: int = 0
    used: int = 0
    coordinator: str = ""

    def lag(self, extent: TopicExtent) -> int:
        """Return the number of messages that are kept and not done.

        A position behind the end is one of a log that has gone: then all messages count.
        """
        begin = extent.first if self.offset > extent.next else max(self.offset, extent.first)
        done = sum(max(0, min(end, extent.next) - max(first, begin)) for first, end in self.ahead)
        return max(0, extent.next - begin - done)


def progress_of(state: StateInfo) -> Progress | None:
    """Return the progress that a state tells, None if it is of another kind, or cannot be read."""
    kind, _, name = state.name.partition("/")
    try:
        if kind == "group":
            group = decode_state(state.value)
            return Progress(
                state.topic,
                "group",
                name,
                group.floor,
                list(group.done),
                group.buried + len(group.dying),
                int(group.used),
                group.coordinator,
            )
        if kind == "reader":
            reader = _reader_decoder.decode(state.value)
            return Progress(state.topic, "reader", name, reader.offset, used=reader.used)
    except (ValueError, *DECODE_ERRORS):
        pass
    return None


async def names_of(logs: Store) -> dict[str, list[Progress]]:
    """Return the groups and named readers of each topic, in the order of their names.

    Raises:
        WsqueueError: The states cannot be read.
    """
    found: defaultdict[str, list[Progress]] = defaultdict(list)
    for number, state in enumerate(sorted(await logs.states(), key=_place)):
        if not number % DECODED_AT_ONCE:
            await asyncio.sleep(0)
        if (progress := progress_of(state)) is not None:
            found[state.topic].append(progress)
    return dict(found)


def _place(state: StateInfo) -> tuple[str, str]:
    return state.topic, state.name
