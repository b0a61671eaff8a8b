"""The checks of worker groups, which an implementation may lack; as in `checks`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from ..support.raw_v2_peer import V2Socket, data_of, messages_of
from .checks import Check, Subject, chain_of, new_topic, subscribed

GROUP = "billing"
WISHES = {"prefetch": 10, "lease_seconds": 60.0, "max_deliveries": 3}

Lent = tuple[str | bytes, int]


class Member:
    """A member of a group, as the checks play it.

    Args:
        raw: Its connection.
        topic: The topic of the group.
    """

    def __init__(self, raw: V2Socket, topic: str) -> None:
        self.raw, self.place = raw, {"topic": topic, "group": GROUP}
        self._log = ""
        self._number = 0

    async def join(self, **wishes: Any) -> None:
        """Become a member."""
        self.raw.send({"t": "join", **self.place, **WISHES} | wishes)
        answer = await self.raw.next("joined")
        assert {name: answer[name] for name in self.place} == self.place
        self._log = answer["log"]

    async def lent(self, count: int) -> dict[int, Lent]:
        """Return the next messages, each with the number of its deliveries, by their offsets."""
        found: dict[int, Lent] = {}
        while len(found) < count:
            packet = await self.raw.next("lend")
            assert {name: packet[name] for name in self.place} == self.place
            for offset, data in enumerate(data_of(packet), packet["offset"]):
                assert offset not in found
                found[offset] = data, packet.get("deliveries", 1)
        assert len(found) == count
        return found

    def settle(self, how: str, *offsets: int, **fields: Any) -> int:
        """Tell the outcome of messages; return the number of the packet."""
        self._number += 1
        ranges = [[offset, offset] for offset in offsets]
        packet = {"t": "settle", **self.place, "number": self._number, "log": self._log, "how": how}
        self.raw.send(packet | {"offsets": ranges} | fields)
        return self._number

    async def settled(self, how: str, *offsets: int, **fields: Any) -> None:
        """Tell the outcome of messages, and wait until it is kept; nothing is lent meanwhile."""
        number = self.settle(how, *offsets, **fields)
        assert (await self.raw.next("settled"))["number"] == number


@contextlib.asynccontextmanager
async def member(subject: Subject, topic: str, **wishes: Any) -> AsyncIterator[Member]:
    """Join the group of a topic."""
    async with subject.connected("/subscribe") as raw:
        joined = Member(raw, topic)
        await joined.join(**wishes)
        yield joined


async def store(
    subject: Subject, topic: str, *data: str, headers: list[dict[str, str]] | None = None
) -> None:
    """Store messages, each of them a batch."""
    async with subject.connected("/producer") as link:
        numbers = list(range(1, len(data) + 1))
        link.send(chain_of(numbers, topic) | {"messages": messages_of(*data, headers=headers or ())})
        await link.confirmed(*numbers)


# A consumer: the checks are members of a group.


async def lends_as_many_as_a_member_wants(subject: Subject) -> None:
    """A member has at most `prefetch` messages, and no message is lent to two members."""
    topic = new_topic()
    await store(subject, topic, "0", "1", "2")
    async with member(subject, topic, prefetch=2) as first, member(subject, topic) as second:
        one, other = await first.lent(2), await second.lent(1)
        assert one | other == {offset: (f"{offset}", 1) for offset in range(3)}
        await first.settled("done", *one)
        await second.settled("done", *other)


async def lends_nothing_that_is_done(subject: Subject) -> None:
    """Messages that a member has settled as done are not lent any more; those that it kept come back."""
    topic = new_topic()
    await store(subject, topic, "0", "1", "2")
    async with member(subject, topic) as first:
        await first.lent(3)
        await first.settled("done", 0, 2)
    async with member(subject, topic) as second:
        assert await second.lent(1) == {1: ("1", 2)}
        await second.settled("done", 1)
    await nothing_is_left(subject, topic)


async def takes_done_of_any_member(subject: Subject) -> None:
    """A message is done whoever says it; other outcomes of messages that a member lacks change nothing."""
    topic = new_topic()
    await store(subject, topic, "0", "1")
    async with member(subject, topic) as first:
        await first.lent(2)
        async with member(subject, topic) as second:
            for how in ("again", "reject", "release", "extend"):
                await second.settled(how, 0, 1)
            await second.settled("done", 0, 1, log="unknown")
            await second.settled("done", 0)
        async with member(subject, topic) as third:
            await first.raw.abort()
            assert await third.lent(1) == {1: ("1", 2)}


async def counts_deliveries(subject: Subject) -> None:
    """A message that comes back is lent again and counted; one that is released is not counted."""
    topic = new_topic()
    await store(subject, topic, "0")
    async with member(subject, topic) as first:
        await first.lent(1)
        first.settle("again", 0)
        # It may be lent before the outcome is confirmed.
        while (packet := await first.raw.packet())["t"] != "lend":
            assert packet["t"] in {"settled", "log"}
        assert (data_of(packet), packet["deliveries"]) == (["0"], 2)
        first.settle("release", 0)
        async with member(subject, topic) as second:
            assert await second.lent(1) == {0: ("0", 2)}


async def takes_back_what_is_late(subject: Subject) -> None:
    """A message whose lease is over is lent to another member, and a late `done` counts."""
    topic = new_topic()
    await store(subject, topic, "0")
    async with member(subject, topic, lease_seconds=0.1, max_deliveries=1000) as slow:
        await slow.lent(1)
        async with member(subject, topic) as other:
            # Until this member has come, it may have been lent to the same one again.
            [(data, deliveries)] = (await other.lent(1)).values()
            assert data == "0"
            assert deliveries > 1
            number = slow.settle("done", 0)
            while (packet := await slow.raw.packet())["t"] != "settled":
                assert packet["t"] in {"lend", "log"}
            assert packet["number"] == number
    await nothing_is_left(subject, topic)


async def buries_what_fails(subject: Subject) -> None:
    """A message that is rejected, or has failed too often, is published once as a dead letter."""
    topic = new_topic()
    headers = [{"type": "a"}, {"type": "b"}]
    await store(subject, topic, "0", "1", headers=headers)
    async with member(subject, topic, max_deliveries=1) as worker:
        await worker.lent(2)
        await worker.settled("reject", 0, reason="nonsense")
        await worker.settled("again", 1)
        async with subject.connected("/subscribe") as raw:
            letters = f"{topic}!{GROUP}!dead"
            await subscribed(raw, letters, start="earliest")
            found: dict[str | bytes, dict[str, str]] = {}
            while len(found) < 2:
                packet = await raw.next("deliver")
                own = zip(data_of(packet), packet["messages"]["headers"], strict=True)
                assert not found.keys() & set(data_of(packet))
                found |= own
    dead = {"dead-topic": topic, "dead-deliveries": "1"}
    assert found["0"] == {"type": "a", **dead, "dead-offset": "0", "dead-reason": "nonsense"}
    reason = found["1"].pop("dead-reason")
    assert reason
    assert found["1"] == {"type": "b", **dead, "dead-offset": "1"}
    await nothing_is_left(subject, topic)


async def keeps_the_order_of_a_key(subject: Subject) -> None:
    """With an `order_key`, a message waits for the one before it that has the same value."""
    topic = new_topic()
    accounts = [{"account": name} for name in ("a", "a", "b")]
    await store(subject, topic, "0", "1", "2", headers=[*accounts])
    async with member(subject, topic, order_key="account") as worker:
        assert await worker.lent(2) == {0: ("0", 1), 2: ("2", 1)}
        worker.settle("done", 0)
        while (packet := await worker.raw.packet())["t"] != "lend":
            assert packet["t"] in {"settled", "log"}
        assert (packet["offset"], data_of(packet)) == (1, ["1"])
        async with subject.connected("/subscribe") as raw:
            raw.send({"t": "join", **worker.place, **WISHES, "order_key": "other"})
            assert (await raw.next("left"))["code"] == "order_key"


async def begins_where_it_is_told(subject: Subject) -> None:
    """A new group with the start `latest` gets later messages only; one that leaves gets no more."""
    topic = new_topic()
    await store(subject, topic, "0")
    async with member(subject, topic, start="latest") as worker:
        async with subject.connected("/producer") as link:
            link.send(chain_of([1], topic, "1", publisher="another"))
            await link.confirmed(1)
        [(data, deliveries)] = (await worker.lent(1)).values()
        assert (data, deliveries) == ("1", 1)
        worker.raw.send({"t": "leave", **worker.place})
        answer = await worker.raw.next("left")
        assert answer.get("code") is None
        async with member(subject, topic) as other:
            assert [one for one, _ in (await other.lent(1)).values()] == ["1"]


async def nothing_is_left(subject: Subject, topic: str) -> None:
    """Check that the group lends nothing but a message that is stored now."""
    async with subject.connected("/producer") as link:
        link.send(chain_of([1], topic, "last", publisher="of the end"))
        await link.confirmed(1)
    async with member(subject, topic) as worker:
        assert [data for data, _ in (await worker.lent(1)).values()] == ["last"]


# A client: the checks are its only consumer.


def lend_of(topic: str, offset: int, data: str, **fields: Any) -> dict[str, Any]:
    """Return the packet that lends one message."""
    place = {"topic": topic, "group": GROUP}
    return {"t": "lend", **place, "offset": offset, "messages": messages_of(data)} | fields


async def joined(subject: Subject, topic: str, log: str) -> V2Socket:
    """Return the next connection of the client to its consumer, at which it has joined."""
    raw = await subject.subscriber()
    join = await raw.next("join")
    assert (join["topic"], join["group"]) == (topic, GROUP)
    raw.send({"t": "joined", "topic": topic, "group": GROUP, "log": log})
    return raw


async def works(subject: Subject) -> None:
    """A member tells the outcome of each message, under rising numbers, and with the log of `joined`."""
    topic = new_topic()
    async with subject.running() as program:
        program.work(topic, GROUP)
        raw = await joined(subject, topic, "abc")
        numbers = []
        for offset, how in enumerate(("done", "again", "reject", "done"), 5):
            raw.send(lend_of(topic, offset, how, deliveries=offset))
            assert await program.lines(1) == [f"lent {offset} {offset} {how}"]
            settle = await raw.next("settle")
            found = [settle[name] for name in ("topic", "group", "log", "how", "offsets")]
            assert found == [topic, GROUP, "abc", how, [[offset, offset]]]
            numbers.append(settle["number"])
            raw.send({"t": "settled", "topic": topic, "group": GROUP, "number": settle["number"]})
            assert await program.lines(1) == [f"settled {how}"]
        assert numbers == sorted(set(numbers))


async def says_again_what_is_not_confirmed(subject: Subject) -> None:
    """After a break, a member tells unconfirmed outcomes again, with the log in which they were lent."""
    topic = new_topic()
    async with subject.running() as program:
        program.work(topic, GROUP)
        raw = await joined(subject, topic, "abc")
        raw.send(lend_of(topic, 7, "done"))
        assert await program.lines(1) == ["lent 7 1 done"]
        first = await raw.next("settle")
        await raw.abort()
        raw = await joined(subject, topic, "def")
        again = await raw.next("settle")
        assert again | {"number": 0} == first | {"number": 0}
        assert again["log"] == "abc"
        raw.send({"t": "settled", "topic": topic, "group": GROUP, "number": again["number"]})
        assert await program.lines(1) == ["settled done"]


GROUP_CHECKS: dict[str, list[Check]] = {
    "consumer": [
        lends_as_many_as_a_member_wants,
        lends_nothing_that_is_done,
        takes_done_of_any_member,
        counts_deliveries,
        takes_back_what_is_late,
        buries_what_fails,
        keeps_the_order_of_a_key,
        begins_where_it_is_told,
    ],
    "client": [works, says_again_what_is_not_confirmed],
}
