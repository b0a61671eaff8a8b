"""The publishers and subscribers of a schedule, a process each: `python -m tests.faults.workers FILE`.

They write their records as JSON lines, each at once, so that a history survives the process.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import random
import sys
import time
import tomllib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, Literal

import msgspec
import uvloop
from websockets.asyncio.client import connect
from websockets.exceptions import WebSocketException

import wsqueue
from tests.support.classic_peer import Peer, hash_of, subscribe_path

OPEN_SECONDS = 6.0
"""How long the clients wait for a node that does not answer: longer than most faults."""

ELECTION_SECONDS = 20.0
"""The same if the log is on servers that elect leaders, which may take ten seconds."""

PAUSE_SECONDS = 0.1
"""Before a subscriber tries again where no node answered."""


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of a history.

    Attributes:
        event: Of a publisher `attempted`, `acknowledged`, `refused` or `failed`; of a subscriber
            `subscribed`, `delivered`, `damaged` (no publisher sent this text) or `gap`; of
            both `error`; of a member of a group `lent`, `doing` and `done`; of a named reader `begun` on a
            topic, and `doing` and `done` of messages. For a classic publisher, a
            message is acknowledged when its producer has it.
        at: By a clock that all processes of this machine share.
        publisher: Of the message; a classic one is another on each connection, which alone keeps an order.
        number: Of the message, counted by its publisher over all topics.
        topic: Of the message or gap.
        offset: Of the delivery.
        log: Of the delivery: offsets of other logs cannot be compared.
        missed: Of a gap; None when nobody knows. Of a message that was lent, the number of deliveries.
        connection: Of a classic peer: a subscriber's is for one topic.
        producer: To which a classic publisher has sent the message.
        text: Whatever helps to understand an `error`, `refused`, `failed` or `damaged`.
    """

    event: Literal[
        "attempted",
        "acknowledged",
        "refused",
        "failed",
        "subscribed",
        "delivered",
        "damaged",
        "gap",
        "begun",
        "lent",
        "doing",
        "done",
        "error",
    ]
    at: float
    publisher: str = ""
    number: int = -1
    topic: str = ""
    offset: int = -1
    log: str = ""
    missed: int | None = None
    connection: int = 0
    producer: str = ""
    text: str = ""


Role = Literal[
    "publisher",
    "subscriber",
    "closing-publisher",
    "classic-publisher",
    "classic-subscriber",
    "member",
    "reader",
]


class Job(msgspec.Struct, frozen=True):
    """Describe the work of a worker.

    Attributes:
        name: Of the worker, in every record.
        role: Publisher or subscriber, and whether it speaks the classic protocol. A closing publisher
            publishes one message on each topic.
        config: The configuration of its client.
        history: File to which records are appended.
        topics: To publish or subscribe.
        seed: Of the choice of topics and sizes.
        rate: Messages a second.
        window: Messages under way at once.
        sizes: Bytes of data.
        seconds: How long to publish.
        open_seconds: How long to wait for a node that does not answer.
        keyed: Whether messages have an order key.
    """

    name: str
    role: Role
    config: str
    history: str
    topics: list[str]
    seed: int = 0
    rate: float = 0.0
    window: int = 1
    sizes: list[int] = []
    seconds: float = 0.0
    open_seconds: float = OPEN_SECONDS
    keyed: bool = False


def message(publisher: str, number: int, size: int) -> str:
    """Return the data of a message: its publisher, number and size, and padding."""
    head = f"{publisher} {number} {size} "
    pad = hashlib.sha256(head.encode()).hexdigest()
    return head + (pad * (size // len(pad) + 1))[:size]


def as_published(number: int, data: str) -> str | bytes:
    """Return the data as a publisher that speaks v2 publishes it: four texts, then four times bytes."""
    return data.encode() if number // 4 % 2 else data


def parse(data: str) -> tuple[str, int] | None:
    """Return the publisher and number of a message, or None if a publisher cannot have made it."""
    fields = data.split(" ", 3)
    if len(fields) != 4 or not fields[1].isdecimal() or not fields[2].isdecimal() or len(fields[2]) > 7:
        return None
    publisher, number, size = fields[0], int(fields[1]), int(fields[2])
    return (publisher, number) if data == message(publisher, number, size) else None


ENDS = (OSError, TimeoutError, EOFError, WebSocketException)
"""Exceptions by which a connection ends."""


class History:
    """Append records to a file, each in one write."""

    def __init__(self, file: Path) -> None:
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._encode = msgspec.json.Encoder().encode

    def write(self, record: Record) -> None:
        """Write a line, which the kernel has when this returns."""
        os.write(self._descriptor, self._encode(record) + b"\n")


def read_history(file: Path) -> list[Record]:
    """Return the records of a file, without a last line that is not complete."""
    if not file.exists():
        return []
    complete = file.read_bytes().rpartition(b"\n")[0]
    return msgspec.json.Decoder(Record).decode_lines(complete)


async def publish(job: Job) -> None:
    """Publish for some time at some rate, and return when every message has its outcome."""
    rng = random.Random(f"{job.seed} {job.name}")
    history, window = History(Path(job.history)), asyncio.Semaphore(job.window)
    clock = asyncio.get_running_loop().time

    connected = wsqueue.connect(job.config, open_seconds=job.open_seconds)
    async with connected as client, asyncio.TaskGroup() as tasks:

        async def one(number: int, topic: str) -> None:
            record = Record("attempted", time.monotonic(), job.name, number, topic)
            history.write(record)
            try:
                data = message(job.name, number, rng.choice(job.sizes))
                headers = {"key": f"{job.name}-{number % 3}"} if job.keyed else None
                await client.publish(topic, as_published(number, data), headers=headers)
            except wsqueue.PublishError as error:
                text = f"{error.code}: {error}"
                outcome = msgspec.structs.replace(record, event="refused", at=time.monotonic(), text=text)
            except wsqueue.ConnectError as error:
                outcome = msgspec.structs.replace(
                    record, event="failed", at=time.monotonic(), text=str(error)
                )
            else:
                outcome = msgspec.structs.replace(record, event="acknowledged", at=time.monotonic())
            history.write(outcome)
            window.release()

        due = clock()
        end = due + job.seconds
        by_chance = iter(lambda: rng.choice(job.topics) if clock() < end else None, None)
        topics = job.topics if job.role == "closing-publisher" else by_chance
        for number, topic in enumerate(topics):
            await window.acquire()
            # Tasks start in the order in which they are made, so this is the order of publishing.
            tasks.create_task(one(number, topic))
            # Time that was lost is not made up for.
            due = max(due + 1 / job.rate, clock())
            await asyncio.sleep(due - clock())


async def subscribe(job: Job) -> None:
    """Write down all messages, until killed."""
    history = History(Path(job.history))

    def note_error(error: wsqueue.WsqueueError) -> None:
        history.write(Record("error", time.monotonic(), text=f"{type(error).__name__}: {error}"))

    async with wsqueue.connect(job.config, open_seconds=job.open_seconds) as client:
        while True:
            try:
                subscription = client.subscribe(*job.topics, start="earliest", on_gap="yield")
                await subscription.__aenter__()
                break
            except wsqueue.ConnectError as error:
                note_error(error)
                await asyncio.sleep(PAUSE_SECONDS)
        history.write(Record("subscribed", time.monotonic()))
        while True:
            try:
                async for item in subscription:
                    history.write(record_of(item))
            except wsqueue.ConnectError as error:
                note_error(error)
                await asyncio.sleep(PAUSE_SECONDS)


class Classic:
    """A classic peer: who it is, and where the nodes are."""

    def __init__(self, job: Job) -> None:
        config = Path(job.config)
        settings = tomllib.loads(config.read_text())
        self.key = (config.parent / settings["psk_file"]).read_text().splitlines()[0]
        self.producers: list[str] = settings["producers"]
        self.consumers: list[str] = settings["consumers"]
        self.history = History(Path(job.history))
        self.connections = 0

    @contextlib.asynccontextmanager
    async def connected(self, address: str) -> AsyncIterator[Peer]:
        """Connect and say hello."""
        self.connections += 1
        async with connect(
            f"ws://{address}", proxy=None, open_timeout=OPEN_SECONDS, ping_interval=None, close_timeout=1
        ) as socket:
            peer = Peer(socket, self.key, "document")
            async with asyncio.timeout(OPEN_SECONDS):
                await peer.hello()
                # A node answers a ping after all that came before it, so that it has seen our answer too.
                await (await socket.ping())
            yield peer

    def note(self, error: Exception) -> None:
        """Write down why a connection has ended, or never began."""
        self.history.write(Record("error", time.monotonic(), text=f"{type(error).__name__}: {error}"))


async def publish_classic(job: Job) -> None:
    """Publish for some time at some rate, on one connection after another."""
    rng, peer = random.Random(f"{job.seed} {job.name}"), Classic(job)
    clock = asyncio.get_running_loop().time
    number, due = 0, clock()
    end = due + job.seconds
    while clock() < end:
        which = peer.connections % len(peer.producers)
        producer = f"producer-{which + 1}"
        name = f"{job.name}.{peer.connections + 1}"
        waiting: list[Record] = []
        try:
            async with peer.connected(peer.producers[which]) as connected:
                while clock() < end:
                    topic = rng.choice(job.topics)
                    record = Record("attempted", time.monotonic(), name, number, topic, producer=producer)
                    waiting.append(record)
                    peer.history.write(record)
                    await connected.publish(topic, message(name, number, rng.choice(job.sizes)))
                    number += 1
                    # Time that was lost is not made up for.
                    due = max(due + 1 / job.rate, clock())
                    if len(waiting) == job.window or due >= end:
                        async with asyncio.timeout(OPEN_SECONDS):
                            await (await connected.socket.ping())
                        settle(peer.history, waiting, "acknowledged")
                    await asyncio.sleep(due - clock())
        except ENDS as error:
            peer.note(error)
        settle(peer.history, waiting, "failed")
        await asyncio.sleep(PAUSE_SECONDS)


def settle(history: History, waiting: list[Record], event: Literal["acknowledged", "failed"]) -> None:
    """Write the outcome of messages, and wait for them no more."""
    for record in waiting:
        history.write(msgspec.structs.replace(record, event=event, at=time.monotonic()))
    waiting.clear()


async def subscribe_classic(job: Job) -> None:
    """Write down all messages, until killed: a connection for each topic, again when it ends."""
    peer = Classic(job)

    async def hear(topic: str) -> None:
        address = peer.consumers[hash_of(topic) % len(peer.consumers)].removesuffix("/subscribe")
        while True:
            connection = peer.connections + 1
            try:
                async with peer.connected(address + subscribe_path(topic)) as connected:
                    known = Record("subscribed", time.monotonic(), topic=topic, connection=connection)
                    peer.history.write(known)
                    while True:
                        peer.history.write(_record_of_packet(await connected.receive(), connection))
            except ENDS as error:
                peer.note(error)
            await asyncio.sleep(PAUSE_SECONDS)

    await asyncio.gather(*map(hear, job.topics))


def _record_of_packet(packet: dict[str, Any], connection: int) -> Record:
    now, topic, data = time.monotonic(), packet["s"], packet["d"]
    found = parse(data)
    if found is None:
        return Record("damaged", now, topic=topic, connection=connection, text=data[:200])
    return Record("delivered", now, *found, topic, connection=connection)


async def on_all_topics(
    job: Job,
    history: History,
    of_topic: Callable[[wsqueue.Client, str, asyncio.Event], Coroutine[Any, Any, None]],
) -> None:
    """Work on each topic with one client, and note when all have begun.

    Args:
        job: It has the topics.
        history: Gets the record.
        of_topic: Works on a topic, and sets the event when it has begun.
    """
    async with wsqueue.connect(job.config, open_seconds=job.open_seconds) as client:
        events = [asyncio.Event() for _ in job.topics]
        async with asyncio.TaskGroup() as tasks:
            for topic, begun in zip(job.topics, events, strict=True):
                tasks.create_task(of_topic(client, topic, begun))
            for begun in events:
                await begun.wait()
            history.write(Record("subscribed", time.monotonic()))


def record_of(item: wsqueue.Message | wsqueue.Gap) -> Record:
    now = time.monotonic()
    if isinstance(item, wsqueue.Gap):
        return Record("gap", now, topic=item.topic, missed=item.missed)
    data = item.data if isinstance(item.data, str) else item.data.decode(errors="replace")
    found = parse(data)
    # A classic publisher has another name on each connection, and publishes texts.
    if found is None or ("." not in found[0] and item.data != as_published(found[1], data)):
        return Record("damaged", now, topic=item.topic, text=data[:200])
    publisher, number = found
    return Record("delivered", now, publisher, number, item.topic, item.offset, str(item.log))


def main() -> None:
    """Do the job in the file that the command line names."""
    job = msgspec.json.decode(Path(sys.argv[1]).read_bytes(), type=Job)
    from .members import work as be_a_member  # noqa: PLC0415 - it imports this module
    from .readers import read  # noqa: PLC0415 - as above

    work = {
        "member": be_a_member,
        "reader": read,
        "publisher": publish,
        "subscriber": subscribe,
        "closing-publisher": publish,
        "classic-publisher": publish_classic,
        "classic-subscriber": subscribe_classic,
    }
    uvloop.run(work[job.role](job))


if __name__ == "__main__":
    main()
