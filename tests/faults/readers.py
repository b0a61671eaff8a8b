"""The named readers in a schedule, and the check of their histories.

Each acknowledged message comes to each reader at least once, in the order of its topic, however often the
reader is killed and comes back under its name. What was done and confirmed does not come back, and nothing is
passed over of which the reader did not say that it is done. A log that was lost with its consumer, or
restored, may take the positions of readers with it: then only messages count that were published later.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import msgspec

import wsqueue

from .workers import PAUSE_SECONDS, History, Job, Record, on_all_topics, record_of

SHOWN = 10
"""Violations of one reader that are told: one defect can make thousands."""

Item = wsqueue.ReaderMessage | wsqueue.Gap


class Reading(msgspec.Struct):
    """Hold the outcome of the check of all readers of a schedule.

    Attributes:
        missing: Acknowledged messages that did not come, counted for each reader.
        violations: Sentences.
    """

    missing: int = 0
    violations: list[str] = []


async def read(job: Job) -> None:
    """Read each topic under the name of the worker, until killed."""
    history = History(Path(job.history))

    async def of_topic(client: wsqueue.Client, topic: str, begun: asyncio.Event) -> None:
        while True:
            try:
                async with client.subscribe(topic, reader=job.name, on_gap="yield") as messages:
                    history.write(Record("begun", time.monotonic(), topic=topic))
                    begun.set()
                    count = 0
                    async for item in messages:
                        count += 1
                        await one(item, count)
            except wsqueue.ConnectError as error:
                history.write(Record("error", time.monotonic(), text=f"{type(error).__name__}: {error}"))
                await asyncio.sleep(PAUSE_SECONDS)

    async def one(item: Item, count: int) -> None:
        record = record_of(item)
        history.write(record)
        # The next one stands for every fourth message, too.
        if isinstance(item, wsqueue.Gap) or count % 4 == 0:
            return
        history.write(msgspec.structs.replace(record, event="doing", at=time.monotonic()))
        if count % 4 == 3:
            await item.done()
            history.write(msgspec.structs.replace(record, event="done", at=time.monotonic()))
        else:
            item.done_nowait()

    await on_all_topics(job, history, of_topic)


def check_reading(
    published: Iterable[Record], reading: Mapping[str, Sequence[Record]], anew: Mapping[str, float]
) -> Reading:
    """Check the messages that came to the readers.

    Args:
        published: The records of all publishers.
        reading: The records of all lives of each reader.
        anew: Time after which each topic's log was neither lost nor restored, if it was.
    """
    result = Reading(violations=[])
    published = list(published)
    attempted = {(one.publisher, one.number): one.at for one in published if one.event == "attempted"}
    owed = [
        (one.publisher, one.number)
        for one in published
        if one.event == "acknowledged" and attempted[one.publisher, one.number] > anew.get(one.topic, -1.0)
    ]
    for name, records in reading.items():
        came = {(one.publisher, one.number) for one in records if one.event == "delivered"}
        result.missing += sum(identity not in came for identity in owed)
        steady = [one for one in records if one.topic not in anew]
        told = itertools.islice(_violations(steady), SHOWN)
        result.violations += [f"{name}: {sentence}" for sentence in told]
    return result


def _violations(records: Iterable[Record]) -> Iterable[str]:
    """Yield sentences about the messages of a reader, of topics whose log was always there."""
    topics: dict[str, _Progress] = defaultdict(_Progress)
    for record in records:
        progress, offset = topics[record.topic], record.offset
        if record.event == "begun":
            progress.last = None
        elif record.event == "doing":
            progress.said = max(progress.said, offset)
        elif record.event == "done":
            progress.kept = max(progress.kept, offset)
        elif record.event == "gap":
            yield f"a gap of {record.missed} on {record.topic!r}, where nothing can be gone"
        elif record.event == "damaged":
            yield f"what nobody published on {record.topic!r}: {record.text!r}"
        elif record.event == "delivered" and (problem := progress.take(offset)):
            yield f"the offset {offset} on {record.topic!r} {problem}"


class _Progress(msgspec.Struct):
    """Hold how far a reader has come in a topic.

    Attributes:
        last: The last offset that came, None when the reader has just come back.
        said: The furthest that it said to be done.
        kept: The furthest that was confirmed to be done.
    """

    last: int | None = None
    said: int = -1
    kept: int = -1

    def take(self, offset: int) -> str:
        """Take a message; return its fault, "" without one."""
        last, self.last = self.last, offset
        if offset <= self.kept:
            return f"comes back, though all up to {self.kept} is done"
        if last is None and offset > self.said + 1:
            return f"comes first, and {self.said} was the last one that is done"
        return f"comes after {last}" if last is not None and offset <= last else ""


async def what_is_left(config: Path, name: str, topics: Sequence[str]) -> list[Record]:
    """Return the records of a reader that comes back under its name at the end."""
    found: list[Record] = []
    async with wsqueue.connect(config, open_seconds=30.0) as client:
        for topic in topics:
            found.append(Record("begun", time.monotonic(), topic=topic))
            messages = client.subscribe(topic, reader=name, follow=False, on_gap="yield")
            found += [record_of(one) async for one in messages]
    return found
