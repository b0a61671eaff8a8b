"""The checks of the requests of operators, which an implementation may lack; as in `checks`.

A consumer must have groups and named readers for them.
"""

from __future__ import annotations

from typing import Any

from websockets.frames import Opcode

from ..support.raw_v2_peer import V2Socket, decoded
from .checks import Check, Subject, chain_of, closed_with, new_topic, subscribed
from .group_checks import member, store
from .reader_checks import READER, committed, place_of, read


async def asked(subject: Subject, request: str, answer: str, **fields: Any) -> dict[str, Any]:
    """Send a request of an operator, and return the answer, which must be of one kind."""
    async with subject.connected("/operate") as raw:
        return await answered(raw, request, answer, **fields)


async def answered(raw: V2Socket, request: str, answer: str, **fields: Any) -> dict[str, Any]:
    raw.send({"t": request} | fields)
    return await raw.next(answer)


async def listed(subject: Subject, pattern: str, **fields: Any) -> list[dict[str, Any]]:
    """Return the topics of a list, from all of its parts."""
    found: list[dict[str, Any]] = []
    async with subject.connected("/operate") as raw:
        packet = await answered(raw, "ask_topics", "topics", pattern=pattern, **fields)
        found += packet["topics"]
        while packet.get("after") is not None:
            place = {"pattern": pattern, "after": packet["after"]} | fields
            packet = await answered(raw, "ask_topics", "topics", **place)
            found += packet["topics"]
    return found


async def lists_topics(subject: Subject) -> None:
    """A list has the topics with messages or subscribers that the pattern is for, each once."""
    prefix = new_topic()
    await store(subject, f"{prefix}/a", "0", "1")
    await store(subject, prefix, "0")
    async with subject.connected("/subscribe") as raw:
        await subscribed(raw, f"{prefix}/b")
        found = {one["topic"]: one for one in await listed(subject, f"{prefix}/*")}
        assert len(await listed(subject, f"{prefix}*")) == 3
    wanted = {"messages": 2, "first": 0, "next": 2, "subscribers": 0, "names": []}
    assert found.keys() == {f"{prefix}/a", f"{prefix}/b"}
    assert {name: found[f"{prefix}/a"][name] for name in wanted} == wanted
    assert found[f"{prefix}/a"]["bytes"] > 0
    empty = found[f"{prefix}/b"]
    assert (empty["messages"], empty["subscribers"]) == (0, 1)
    assert [one["topic"] for one in await listed(subject, prefix)] == [prefix]


async def lists_a_long_list_in_parts(subject: Subject) -> None:
    """An answer has up to 1,000 topics; with its `after`, the same question asks for those that follow."""
    prefix = new_topic()
    topics = [f"{prefix}/{number}" for number in range(1001)]
    async with subject.connected("/producer") as link:
        for topic in topics:
            link.send(chain_of([1], topic, "0"))
        await link.confirmed(*range(1, len(topics) + 1))
    first = await asked(subject, "ask_topics", "topics", pattern=f"{prefix}/*")
    assert len(first["topics"]) <= 1000
    assert sorted(one["topic"] for one in await listed(subject, f"{prefix}/*")) == sorted(topics)


async def tells_how_far_readers_are(subject: Subject) -> None:
    """A named reader has its offset, and a lag: the messages that are kept and not done."""
    topic = new_topic()
    await store(subject, topic, "0", "1", "2")
    async with subject.connected("/subscribe") as raw:
        await committed(raw, topic, (await read(raw, topic))["log"], 1)
        ((entry,),) = [one["names"] for one in await listed(subject, topic, named=True)]
    wanted = {"kind": "reader", "name": READER, "offset": 1, "lag": 2, "members": 1, "dead": 0}
    assert {name: entry[name] for name in wanted} == wanted


async def tells_how_far_groups_are(subject: Subject) -> None:
    """A group has the offset of its first message that is not done, its lag, members and loans."""
    topic = new_topic()
    await store(subject, topic, "0", "1", "2")
    async with member(subject, topic) as first:
        await first.lent(3)
        await first.settled("done", 1)
        ((entry,),) = [one["names"] for one in await listed(subject, topic, named=True)]
    assert 0 < entry.get("oldest_time", 1) < 2**53
    wanted = {"kind": "group", "offset": 0, "lag": 2, "members": 1, "lent": 2, "dead": 0}
    assert {name: entry[name] for name in wanted} == wanted


async def purges(subject: Subject) -> None:
    """A purge drops the messages of a topic, `done` has their number, and offsets go on."""
    topic = new_topic()
    await store(subject, topic, "0", "1", "2")
    assert (await asked(subject, "purge", "done", topic=topic))["count"] == 3
    assert (await asked(subject, "purge", "done", topic=topic))["count"] == 0
    async with subject.connected("/producer") as link:
        link.send(chain_of([1], topic, "3", publisher="another"))
        await link.confirmed(1)
    async with subject.connected("/subscribe") as raw:
        assert (await subscribed(raw, topic, start="earliest"))["offset"] == 3


async def purges_up_to_an_offset(subject: Subject) -> None:
    """With `before`, a message that has that offset or a later one stays."""
    topic = new_topic()
    await store(subject, topic, "0")
    async with subject.connected("/producer") as link:
        link.send(chain_of([1], topic, "1", publisher="another"))
        await link.confirmed(1)
    assert (await asked(subject, "purge", "done", topic=topic, before=1))["count"] <= 1
    async with subject.connected("/subscribe") as raw:
        assert (await subscribed(raw, topic, start="earliest"))["offset"] <= 1
        while (packet := await raw.next("deliver"))["offset"] + sum(packet["counts"]) < 2:
            pass


async def forgets_names(subject: Subject) -> None:
    """A reader that nobody uses is forgotten, and begins anew; one in use, or unknown, is refused."""
    topic = new_topic()
    await store(subject, topic, "0", "1", "2")
    place = {"topic": topic, "kind": "reader", "name": READER}
    async with subject.connected("/subscribe") as raw:
        await committed(raw, topic, (await read(raw, topic))["log"], 2)
        assert (await asked(subject, "forget", "failed", **place))["code"] == "in_use"
    async with subject.connected("/operate") as raw:
        raw.send({"t": "forget", **place})
        # The consumer may not know yet that the connection has ended.
        while (packet := decoded(await raw.until(Opcode.BINARY)))["t"] != "done":
            assert packet["code"] == "in_use"
            raw.send({"t": "forget", **place})
        assert (await answered(raw, "forget", "failed", **place))["code"] == "unknown"
    assert await place_of(subject, topic) == 0


async def answers_in_order(subject: Subject) -> None:
    """The requests of a connection are done one after another, with an answer to each."""
    topic = new_topic()
    await store(subject, topic, "0")
    async with subject.connected("/operate") as raw:
        raw.send({"t": "purge", "topic": topic})
        raw.send({"t": "ask_topics", "pattern": topic})
        raw.send({"t": "forget", "topic": topic, "kind": "group", "name": "unknown"})
        assert (await raw.next("done"))["count"] == 1
        assert (await raw.next("topics"))["topics"] == []
        assert (await raw.next("failed"))["code"] == "unknown"


async def ends_connections(subject: Subject, path: str) -> None:
    """Check that the connections of a client are closed with 4418, and no others."""
    async with subject.connected(path) as raw, subject.connected("/operate") as operator:
        host, port = raw.writer.get_extra_info("sockname")[:2]
        wrong = await answered(operator, "disconnect", "done", address="192.0.2.7:1")
        assert wrong["count"] == 0
        answer = await answered(operator, "disconnect", "done", address=f"{host}:{port}")
        assert answer["count"] == 1
        assert await closed_with(raw) == 4418
        # Its own connection is an operator's.
        await answered(operator, "disconnect", "done", address=host)
        await answered(operator, "disconnect", "done", address=host)


async def ends_subscribers(subject: Subject) -> None:
    """The connections of a subscriber are closed with 4418, and none of operators."""
    await ends_connections(subject, "/subscribe")


async def ends_publishers(subject: Subject) -> None:
    """The connections of a publisher are closed with 4418, and none of operators."""
    await ends_connections(subject, "/produce")


async def keeps_no_topics(subject: Subject) -> None:
    """A producer keeps no topics: such requests fail with `unsupported`."""
    async with subject.connected("/operate") as raw:
        for request in (
            {"t": "ask_topics"},
            {"t": "purge", "topic": "news"},
            {"t": "forget", "topic": "news", "kind": "group", "name": "g"},
        ):
            raw.send(request)
            assert (await raw.next("failed"))["code"] == "unsupported"


OPERATOR_CHECKS: dict[str, list[Check]] = {
    "consumer": [
        lists_topics,
        lists_a_long_list_in_parts,
        tells_how_far_readers_are,
        tells_how_far_groups_are,
        purges,
        purges_up_to_an_offset,
        forgets_names,
        answers_in_order,
        ends_subscribers,
    ],
    "producer": [keeps_no_topics, ends_publishers],
}
