"""How far groups and named readers have come, from the states that the store keeps."""

from __future__ import annotations

import msgspec
import pytest

from tests.support.stores import limits
from wsqueue.groups.names import Progress, names_of
from wsqueue.groups.state import Dying, GroupState
from wsqueue.log.memory import MemoryStore
from wsqueue.log.store import TopicExtent
from wsqueue.nodes.named_readers import Kept

pytestmark = pytest.mark.anyio


async def test_names_of_all_topics() -> None:
    store = MemoryStore(limits(), lambda _: None)
    state = GroupState("id", "log", 5)
    state.finish(7, 9)
    state.buried, state.dying, state.used = 3, [Dying(6, 1, "why")], 99.5
    states = {
        ("jobs", "reader/mail"): msgspec.msgpack.encode(Kept("log", 4, 98)),
        ("jobs", "group/g"): state.encode(),
        ("jobs", "group/of a newer version"): b"\xc1",
        ("jobs", "another"): state.encode(),
        ("else", "group/g"): state.encode(),
    }
    for place, value in states.items():
        await store.change_state(*place, value, 0)
    names = await names_of(store)
    assert names == {
        "else": [Progress("else", "group", "g", 5, [(7, 9)], 4, 99)],
        "jobs": [
            Progress("jobs", "group", "g", 5, [(7, 9)], 4, 99),
            Progress("jobs", "reader", "mail", 4, used=98),
        ],
    }


@pytest.mark.parametrize(
    ("offset", "ahead", "first", "following", "lag"),
    [
        (0, [], 0, 10, 10),
        (4, [], 0, 10, 6),
        (10, [], 0, 10, 0),
        # Messages that the log has dropped are not kept, and those that are done ahead don't wait.
        (4, [], 7, 10, 3),
        (4, [(5, 7), (9, 10)], 0, 10, 3),
        (4, [(5, 7)], 6, 10, 3),
        (4, [(5, 7)], 10, 10, 0),
        # The log is another one.
        (40, [(41, 43)], 2, 10, 8),
    ],
)
def test_the_lag(offset: int, ahead: list[tuple[int, int]], first: int, following: int, lag: int) -> None:
    progress = Progress("jobs", "group", "g", offset, ahead)
    assert progress.lag(TopicExtent("jobs", 1, first, following)) == lag
