"""The checks of named readers, which an implementation may lack; as in `checks`."""

from __future__ import annotations

from typing import Any

from ..support.raw_v2_peer import V2Socket, data_of
from .checks import Check, Subject, chain_of, closed_with, delivery, new_topic, subscribed
from .group_checks import store

READER = "billing"


async def read(raw: V2Socket, topic: str, reader: str = READER, **fields: Any) -> dict[str, Any]:
    """Subscribe as a reader, by default from the earliest message on; return the answer."""
    return await subscribed(raw, topic, **{"start": "earliest", "reader": reader} | fields)


async def committed(raw: V2Socket, topic: str, log: str, offset: int) -> None:
    """Say how far the reader has come, and wait until that is confirmed; messages may come before."""
    place = {"topic": topic, "reader": READER, "log": log, "offset": offset}
    raw.send({"t": "commit", **place})
    while (packet := await raw.packet())["t"] != "committed":
        assert packet["t"] in {"deliver", "log"}
    assert {name: packet[name] for name in place} == place


async def place_of(subject: Subject, topic: str, reader: str = READER, **fields: Any) -> int:
    """Return the offset at which a reader goes on, whatever it asks for."""
    async with subject.connected("/subscribe") as raw:
        return int((await read(raw, topic, reader, **fields))["offset"])


# A consumer: the checks are its readers.


async def goes_on_where_a_reader_was(subject: Subject) -> None:
    """A reader goes on behind the last message that is done, on any connection; other readers get all."""
    topic = new_topic()
    await store(subject, topic, "0", "1", "2")
    async with subject.connected("/subscribe") as raw:
        answer = await read(raw, topic)
        assert answer["offset"] == 0
        await committed(raw, topic, answer["log"], 2)
    async with subject.connected("/subscribe") as raw:
        assert (await read(raw, topic, start="latest"))["offset"] == 2
        packet = await raw.next("deliver")
        assert (packet["offset"], data_of(packet)) == (2, ["2"])
    assert await place_of(subject, topic, "shipping") == 0


async def keeps_the_furthest_position(subject: Subject) -> None:
    """A commit that is not further, or of an unknown log, or beyond the end, is confirmed and not kept."""
    topic = new_topic()
    await store(subject, topic, "0", "1", "2")
    async with subject.connected("/subscribe") as raw:
        log = (await read(raw, topic))["log"]
        for place in ((log, 2), (log, 1), ("unknown", 3), (log, 4)):
            await committed(raw, topic, *place)
    assert await place_of(subject, topic) == 2


async def gives_a_new_reader_a_place(subject: Subject) -> None:
    """A reader that is new begins where it says, and has that place though it has done nothing."""
    topic = new_topic()
    await store(subject, topic, "0")
    assert await place_of(subject, topic, start="latest") == 1
    async with subject.connected("/producer") as link:
        link.send(chain_of([1], topic, "1", publisher="another"))
        await link.confirmed(1)
    assert await place_of(subject, topic, start="latest") == 1


async def takes_commits_without_a_subscription(subject: Subject) -> None:
    """A reader may end its subscription, say how far it has come, and go on at an offset of its own."""
    topic = new_topic()
    await store(subject, topic, "0", "1", "2")
    async with subject.connected("/subscribe") as raw:
        log = (await read(raw, topic))["log"]
        raw.send({"t": "unsubscribe", "topic": topic})
        while (packet := await raw.packet())["t"] != "unsubscribed":
            assert packet["t"] in {"deliver", "log"}
        await committed(raw, topic, log, 1)
        assert (await read(raw, topic, start="offset", log=log, offset=2))["offset"] == 2
        assert (await raw.next("deliver"))["offset"] == 2
    async with subject.connected("/subscribe") as raw:
        await committed(raw, topic, log, 3)
    assert await place_of(subject, topic) == 3


async def refuses_other_starts(subject: Subject) -> None:
    """A reader that begins at a time, or with the last messages, is closed with 4400."""
    for start in ({"start": "time", "time": 0}, {"start": "last", "count": 1}):
        async with subject.connected("/subscribe") as raw:
            raw.send({"t": "subscribe", "topic": new_topic(), "reader": READER, **start})
            assert await closed_with(raw) == 4400


# A client: the checks are its only consumer.


async def asked(subject: Subject, topic: str, begin: int, **fields: Any) -> V2Socket:
    """Return the next connection of the client to its consumer, at which it has asked as a reader."""
    raw = await subject.subscriber()
    packet = await raw.next("subscribe")
    wanted = {"topic": topic, "reader": READER} | fields
    assert {name: packet.get(name) for name in wanted} == wanted
    raw.send({"t": "subscribed", "topic": topic, "log": "abc", "offset": begin, "end": begin})
    return raw


async def says_what_is_done(subject: Subject) -> None:
    """A reader commits the position behind a message that is done, with the log that it came from."""
    topic = new_topic()
    async with subject.running() as program:
        program.read(topic, READER)
        raw = await asked(subject, topic, 5, start="earliest")
        raw.send(delivery(topic, 5, [1, 2], "5", "done"))
        assert await program.lines(2) == ["message 5 5", "message 6 done"]
        packet = await raw.next("commit")
        assert packet == {"t": "commit", "topic": topic, "reader": READER, "log": "abc", "offset": 7}
        raw.send(packet | {"t": "committed"})
        assert await program.lines(1) == ["kept done"]


async def says_again_what_is_not_kept(subject: Subject) -> None:
    """After a break, a reader asks for its position under its name, and commits again."""
    topic = new_topic()
    async with subject.running() as program:
        program.read(topic, READER)
        raw = await asked(subject, topic, 0, start="earliest")
        await raw.abort()
        raw = await asked(subject, topic, 0, start="earliest")
        raw.send(delivery(topic, 0, [1], "done"))
        assert await program.lines(1) == ["message 0 done"]
        packet = await raw.next("commit")
        await raw.abort()
        raw = await asked(subject, topic, 1, start="offset", log="abc", offset=1)
        assert await raw.next("commit") == packet
        raw.send(packet | {"t": "committed"})
        assert await program.lines(1) == ["kept done"]


READER_CHECKS: dict[str, list[Check]] = {
    "consumer": [
        goes_on_where_a_reader_was,
        keeps_the_furthest_position,
        gives_a_new_reader_a_place,
        takes_commits_without_a_subscription,
        refuses_other_starts,
    ],
    "client": [says_what_is_done, says_again_what_is_not_kept],
}
