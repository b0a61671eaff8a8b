"""The checks of subscriptions to prefixes, which an implementation may lack; as in `checks`."""

from __future__ import annotations

from typing import Any

from ..support.raw_v2_peer import V2Socket, data_of
from .checks import Check, Subject, chain_of, closed_with, delivery, new_topic
from .group_checks import store


async def followed(raw: V2Socket, prefix: str, **fields: Any) -> dict[str, tuple[int, int]]:
    """Follow a prefix; return the offset and the end of each topic that has begun before the answer."""
    raw.send({"t": "follow", "prefix": prefix} | fields)
    found: dict[str, tuple[int, int]] = {}
    while (packet := await raw.packet())["t"] != "followed":
        if packet["t"] == "subscribed":
            assert packet["topic"] not in found
            found[packet["topic"]] = packet["offset"], packet["end"]
        else:
            # Messages of topics that begin come behind the answer.
            assert packet["t"] == "log", packet
    assert (packet["prefix"], packet.get("code")) == (prefix, None)
    return found


async def delivered(raw: V2Socket, topic: str) -> tuple[int, list[str | bytes]]:
    """Return the offset and the data of the next packet, which delivers messages of a topic."""
    packet = await raw.next("deliver")
    assert packet["topic"] == topic
    return packet["offset"], data_of(packet)


# A consumer: the checks are its subscribers.


async def follows_topics_that_are_there(subject: Subject) -> None:
    """All topics with messages that begin with the prefix begin before the answer, and no others."""
    prefix = new_topic()
    for topic in (f"{prefix}/a", f"{prefix}/b", new_topic()):
        await store(subject, topic, "0", "1")
    async with subject.connected("/subscribe") as raw:
        found = await followed(raw, f"{prefix}/", start="earliest")
        assert found == {f"{prefix}/a": (0, 2), f"{prefix}/b": (0, 2)}
        first = await raw.next("deliver")
        second = await raw.next("deliver")
        assert {one["topic"]: data_of(one) for one in (first, second)} == {one: ["0", "1"] for one in found}


async def begins_where_the_client_says(subject: Subject) -> None:
    """Topics that are there begin as if `subscribe` had come with the start, by default the latest."""
    topic = new_topic()
    await store(subject, topic, "0", "1", "2")
    for start, begin in (({}, 3), ({"start": "last", "count": 2}, 1), ({"start": "time", "time": 0}, 0)):
        async with subject.connected("/subscribe") as raw:
            assert await followed(raw, topic, **start) == {topic: (begin, 3)}


async def follows_topics_that_begin(subject: Subject) -> None:
    """A topic that gets its first message later is subscribed at that message."""
    prefix = new_topic()
    async with subject.connected("/subscribe") as raw:
        assert await followed(raw, prefix) == {}
        await store(subject, f"{prefix}/a", "0", "1")
        packet = await raw.next("subscribed")
        assert (packet["topic"], packet["offset"]) == (f"{prefix}/a", 0)
        assert await delivered(raw, f"{prefix}/a") == (0, ["0", "1"])


async def leaves_other_subscriptions_alone(subject: Subject) -> None:
    """A topic that the connection is subscribed to already stays as it is."""
    prefix = new_topic()
    await store(subject, f"{prefix}/a", "0", "1")
    await store(subject, f"{prefix}/b", "0", "1")
    async with subject.connected("/subscribe") as raw:
        raw.send({"t": "subscribe", "topic": f"{prefix}/a", "start": "latest"})
        assert (await raw.next("subscribed"))["offset"] == 2
        assert await followed(raw, prefix, start="earliest") == {f"{prefix}/b": (0, 2)}
        assert await delivered(raw, f"{prefix}/b") == (0, ["0", "1"])


async def follows_one_prefix(subject: Subject) -> None:
    """Another `follow` takes the place of the one before, whose topics stay subscribed."""
    first, second = new_topic(), new_topic()
    await store(subject, f"{first}/a", "0")
    async with subject.connected("/subscribe") as raw:
        assert await followed(raw, first) == {f"{first}/a": (1, 1)}
        assert await followed(raw, second) == {}
        await store(subject, f"{first}/b", "0")
        async with subject.connected("/producer") as link:
            link.send(chain_of([1], f"{first}/a", "1", publisher="another"))
            await link.confirmed(1)
        assert await delivered(raw, f"{first}/a") == (1, ["1"])
        await store(subject, f"{second}/a", "0")
        assert (await raw.next("subscribed"))["topic"] == f"{second}/a"


async def refuses_other_starts(subject: Subject) -> None:
    """A prefix has no offset to begin at: that closes with 4400."""
    async with subject.connected("/subscribe") as raw:
        raw.send({"t": "follow", "prefix": new_topic(), "start": "offset", "offset": 0})
        assert await closed_with(raw) == 4400


# A client: the checks are its only consumer.


async def asked(subject: Subject, prefix: str, start: str) -> V2Socket:
    """Return the next connection of the client to its consumer, at which it follows a prefix and no topic."""
    raw = await subject.subscriber()
    await follows(raw, prefix, start)
    return raw


async def follows(raw: V2Socket, prefix: str, start: str) -> None:
    packet = await raw.next("follow")
    assert (packet["prefix"], packet.get("start", "latest")) == (prefix, start)


def begin(raw: V2Socket, topic: str, offset: int) -> None:
    """Let a topic begin at an offset, at which it ends."""
    raw.send({"t": "subscribed", "topic": topic, "log": "abc", "offset": offset, "end": offset})


async def gets_messages_of_all_topics(subject: Subject) -> None:
    """Messages of topics that begin before the answer and behind it arrive."""
    prefix = new_topic()
    async with subject.running() as program:
        program.follow(prefix, "latest")
        raw = await asked(subject, prefix, "latest")
        begin(raw, f"{prefix}/a", 5)
        raw.send({"t": "followed", "prefix": prefix})
        raw.send(delivery(f"{prefix}/a", 5, [1], "five"))
        begin(raw, f"{prefix}/b", 0)
        raw.send(delivery(f"{prefix}/b", 0, [1], "zero"))
        assert await program.lines(2) == ["message 5 five", "message 0 zero"]


async def goes_on_in_each_topic(subject: Subject) -> None:
    """After a break, a client asks for each topic at its position, and for the earliest of all others."""
    prefix = new_topic()
    topic = f"{prefix}/a"
    async with subject.running() as program:
        program.follow(prefix, "latest")
        raw = await asked(subject, prefix, "latest")
        begin(raw, topic, 5)
        raw.send({"t": "followed", "prefix": prefix})
        raw.send(delivery(topic, 5, [1, 2], "5", "6"))
        assert await program.lines(2) == ["message 5 5", "message 6 6"]
        await raw.abort()
        raw = await subject.subscriber()
        packet = await raw.next("subscribe")
        place = {"topic": topic, "start": "offset", "log": "abc", "offset": 7}
        assert {name: packet.get(name) for name in place} == place
        begin(raw, topic, 7)
        await follows(raw, prefix, "earliest")
        begin(raw, f"{prefix}/b", 0)
        raw.send({"t": "followed", "prefix": prefix})
        raw.send(delivery(f"{prefix}/b", 0, [1], "new"))
        raw.send(delivery(topic, 7, [3], "7"))
        assert sorted(await program.lines(2)) == ["message 0 new", "message 7 7"]


PREFIX_CHECKS: dict[str, list[Check]] = {
    "consumer": [
        follows_topics_that_are_there,
        begins_where_the_client_says,
        follows_topics_that_begin,
        leaves_other_subscriptions_alone,
        follows_one_prefix,
        refuses_other_starts,
    ],
    "client": [gets_messages_of_all_topics, goes_on_in_each_topic],
}
