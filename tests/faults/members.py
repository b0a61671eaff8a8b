"""The members of worker groups in a schedule, and the check of their histories.

Each message that was acknowledged is done by a member, or becomes a dead letter, once; one that no member can
do always becomes one. At the end, nothing of that comes back. With an order key, no message of a key is lent
before the one before it in the topic is done or dead. A log that was lost with its consumer, or restored,
begins the group anew: then only messages that were published later are looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

import wsqueue
from wsqueue.protocol.routing import dead_letter_topic

from .workers import PAUSE_SECONDS, History, Job, Record, on_all_topics, parse

GROUP = "workers"

KEY = "key"
"""The header that orders messages, if a schedule has an order."""

LEASE_SECONDS = 2.0
"""Less than the longest time for which a member stands still."""

MAX_DELIVERIES = 4

QUIET_SECONDS = 1.0
"""Time in which nothing comes back at the end."""


def key_of(publisher: str, number: int) -> str:
    """Return the order key of a message."""
    return f"{publisher}-{number % 3}"


def is_poison(number: int) -> bool:
    """Return True for a message that no member can do."""
    return number % 29 == 7


def fails_once(number: int) -> bool:
    """Return True for a message that is put back at its first delivery."""
    return number % 13 == 5


class Work(msgspec.Struct):
    """Hold the outcome of the check of all groups of a schedule.

    Attributes:
        done: Messages that members have done.
        dead: Dead letters.
        missing: Acknowledged messages that are neither, counted for their topics.
        violations: Sentences.
    """

    done: int = 0
    dead: int = 0
    missing: int = 0
    violations: list[str] = []


async def work(job: Job) -> None:
    """Be a member of the group of each topic, until killed."""
    history = History(Path(job.history))

    def note(event: str, message: wsqueue.GroupMessage) -> None:
        data = message.data if isinstance(message.data, str) else message.data.decode(errors="replace")
        publisher, number = parse(data) or ("", -1)
        history.write(
            Record(
                event,  # type: ignore[arg-type]
                time.monotonic(),
                publisher,
                number,
                message.topic,
                message.offset,
                message.log,
                missed=message.deliveries,
            )
        )

    async def of_topic(client: wsqueue.Client, topic: str, begun: asyncio.Event) -> None:
        while True:
            try:
                async with client.subscribe(
                    topic,
                    group=GROUP,
                    prefetch=job.window,
                    lease_seconds=LEASE_SECONDS,
                    max_deliveries=MAX_DELIVERIES,
                    order_key=KEY if job.keyed else None,
                ) as messages:
                    begun.set()
                    async for message in messages:
                        await one(message)
            except wsqueue.ConnectError as error:
                history.write(Record("error", time.monotonic(), text=f"{type(error).__name__}: {error}"))
                await asyncio.sleep(PAUSE_SECONDS)

    async def one(message: wsqueue.GroupMessage) -> None:
        note("lent", message)
        data = message.data if isinstance(message.data, str) else message.data.decode(errors="replace")
        found = parse(data)
        number = found[1] if found is not None else -1
        if is_poison(number) or (fails_once(number) and message.deliveries == 1):
            await message.again(delay=0.02)
            return
        note("doing", message)
        await message.done()
        note("done", message)

    await on_all_topics(job, history, of_topic)


def check_work(
    published: Iterable[Record],
    worked: Sequence[Record],
    letters: Mapping[str, Sequence[str]],
    anew: Mapping[str, float],
    *,
    keyed: bool,
) -> Work:
    """Check the work of the members.

    Args:
        published: The records of all publishers.
        worked: The records of all members.
        letters: The data of the dead letters of each topic.
        anew: Time after which each topic's group has gone on without beginning anew, if it did.
        keyed: Whether messages have an order key.
    """
    result = Work(violations=[])
    attempted = {(one.publisher, one.number): one for one in published if one.event == "attempted"}
    acknowledged = [one for one in published if one.event == "acknowledged"]
    # A member that is killed may have said so, and not written it down.
    done = {(one.publisher, one.number) for one in worked if one.event == "doing"}
    dead: Counter[tuple[str, int]] = Counter()
    for topic, identity in ((topic, parse(one)) for topic, data in letters.items() for one in data):
        if identity is None or identity not in attempted or attempted[identity].topic != topic:
            result.violations.append(f"a dead letter of {topic!r} that nobody published: {identity}")
        else:
            dead[identity] += 1
    result.done, result.dead = len(done), len(dead)
    twice = [one for one, count in dead.items() if count > 1 and attempted[one].topic not in anew]
    result.violations += [f"{identity} is more than one dead letter" for identity in twice]
    for record in acknowledged:
        identity = record.publisher, record.number
        if attempted[identity].at <= anew.get(record.topic, -1.0):
            continue
        if identity not in done and identity not in dead:
            result.missing += 1
        if is_poison(record.number) and identity in done:
            result.violations.append(f"{identity} is done, which nobody can do")
    if keyed:
        result.violations += _disorder([one for one in worked if one.topic not in anew], set(dead))
    return result


def _disorder(worked: Sequence[Record], dead: set[tuple[str, int]]) -> Iterable[str]:
    """Yield sentences about messages that were lent before the one before them was done."""
    lent: dict[tuple[str, int], Record] = {}
    doing: dict[tuple[str, int], float] = {}
    for record in worked:
        identity = record.publisher, record.number
        if record.event == "lent" and (identity not in lent or record.at < lent[identity].at):
            lent[identity] = record
        elif record.event == "doing":
            doing[identity] = min(record.at, doing.get(identity, record.at))
    keys: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for record in lent.values():
        keys[record.topic, key_of(record.publisher, record.number)].append(record)
    for (topic, key), records in keys.items():
        records.sort(key=lambda record: record.offset)
        for before, record in itertools.pairwise(records):
            identity = before.publisher, before.number
            if identity not in dead and doing.get(identity, record.at + 1) > record.at:
                late = f"{record.publisher}/{record.number} of {key} on {topic!r}"
                yield f"{late} was lent before {identity} was done"


async def letters_of(config: Path, topics: Sequence[str]) -> dict[str, list[str]]:
    """Return the data of all dead letters, by topic."""
    found: dict[str, list[str]] = {}
    async with wsqueue.connect(config, open_seconds=30.0) as client:
        for topic in topics:
            dead = dead_letter_topic(topic, GROUP)
            messages = client.subscribe(dead, start="earliest", follow=False, on_gap="yield")
            data = [one.data async for one in messages if isinstance(one, wsqueue.Message)]
            found[topic] = [one if isinstance(one, str) else one.decode() for one in data]
    return found


async def what_comes_back(config: Path, topics: Sequence[str], *, keyed: bool) -> list[str]:
    """Return the data of the messages that a member is lent that comes at the end."""
    found: list[str] = []

    async def of_topic(client: wsqueue.Client, topic: str) -> None:
        async with client.subscribe(
            topic, group=GROUP, order_key=KEY if keyed else None, prefetch=1000
        ) as messages:
            with contextlib.suppress(TimeoutError):
                while True:
                    message = await asyncio.wait_for(anext(messages), QUIET_SECONDS)
                    data = message.data
                    found.append(data if isinstance(data, str) else data.decode())

    async with wsqueue.connect(config, open_seconds=30.0) as client, asyncio.TaskGroup() as tasks:
        for topic in topics:
            tasks.create_task(of_topic(client, topic))
    return found
