"""Names that nobody has used for long are forgotten, and no others."""

from __future__ import annotations

import msgspec
import pytest

from tests.support.stores import limits
from wsqueue.groups.expiry import UNUSED_SECONDS, expire
from wsqueue.groups.state import GroupState
from wsqueue.log.memory import MemoryStore
from wsqueue.nodes.named_readers import Kept

pytestmark = pytest.mark.anyio

NOW = 10.0 * UNUSED_SECONDS


def group(used: float) -> bytes:
    state = GroupState("id", "log", 5)
    state.used = used
    return state.encode()


def reader(used: float) -> bytes:
    return msgspec.msgpack.encode(Kept("log", 5, int(used)))


async def test_what_nobody_uses_is_forgotten() -> None:
    store = MemoryStore(limits(), lambda _: None)
    await store.open()
    old, new = NOW - UNUSED_SECONDS - 1, NOW - UNUSED_SECONDS + 10
    states = {
        "group/old": group(old),
        "group/new": group(new),
        "group/busy": group(old),
        "group/of a newer version": b"\xc1",
        "reader/old": reader(old),
        "reader/new": reader(new),
        "another": group(old),
    }
    for name, value in states.items():
        await store.change_state("news", name, value, 0)
    await expire(store, NOW, lambda topic, name: (topic, name) == ("news", "group/busy"))
    left = {state.name for state in await store.states()}
    assert left == states.keys() - {"group/old", "reader/old"}
