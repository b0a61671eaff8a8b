"""The shared log in situations that somebody made up to break it."""

from __future__ import annotations

from tests.support.fake_engine import FakeLog
from tests.support.stores import batch

from .test_shared import Node, codes, run


def test_no_room_at_a_consumer_that_knows_an_old_log() -> None:
    async def test(log: FakeLog) -> None:
        first, second = await Node(log).open(), await Node(log).open()
        second.engine.deaf = True
        await second.publish(batch(1))
        await first.publish(batch(2, 1))
        # Its confirmation is lost with the first consumer, and the disks are full meanwhile.
        second.engine.fate = lambda: "full"
        assert codes(await second.publish(batch(2, 1), batch(3, 2))) == ["repeat", "full"]

    run(test)
