"""Run one schedule: start a cluster and its clients, do the harm, let all end, and check the histories."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import get_args

import msgspec

from tests.support.paths import ROOT
from wsqueue.errors import WsqueueError
from wsqueue.protocol.routing import router

from .checker import Life, Verdict, check
from .cluster import Cluster
from .members import Work, check_work, letters_of, what_comes_back
from .readers import Reading, check_reading, what_is_left
from .schedule import Fault, Schedule
from .workers import ELECTION_SECONDS, OPEN_SECONDS, Job, Record, Role, parse, read_history

SUBSCRIBE_SECONDS = 30.0
"""How long the first subscribers may take, on a busy machine."""

PATIENCE_SECONDS = 30.0
"""Time after the last message, beyond which a missing one is lost."""

SETTLE_SECONDS = 0.3
"""Time for messages that come twice; they come soon after the rest."""

POLL_SECONDS = 0.1


class Outcome(msgspec.Struct):
    """Hold the outcome of a schedule.

    Attributes:
        schedule: That was run.
        verdict: The check of the histories.
        problems: Other failures.
        notes: Faults that could not be done here, and why.
        seconds: How long it took.
    """

    schedule: Schedule
    verdict: Verdict
    problems: list[str]
    notes: list[str]
    seconds: float

    @property
    def good(self) -> bool:
        """Return True if nothing went wrong."""
        return self.verdict.good and not self.problems


async def run(schedule: Schedule, cluster: Cluster, directory: Path) -> Outcome:
    """Run a schedule on a cluster, and leave all histories and logs in a directory."""
    began = time.monotonic()
    harness = Harness(schedule, cluster, directory)
    schedule.write(directory / "schedule.json")
    try:
        await cluster.start()
        async with harness.clients():
            await harness.wait_subscribed()
            await harness.do_harm()
            await harness.wait_for_all()
            await harness.end_work()
            await harness.end_reading()
    except* WsqueueError as group:
        cluster.problems.extend(map(str, group.exceptions))
    finally:
        await cluster.stop()
    verdict = harness.verdict()
    (directory / "verdict.txt").write_text(
        "\n".join([str(verdict), *verdict.violations, *cluster.problems, ""])
    )
    return Outcome(schedule, verdict, cluster.problems, cluster.notes, time.monotonic() - began)


class Worker:
    """One publisher or subscriber, each life a process."""

    def __init__(self, schedule: Schedule, name: str, config: Path, directory: Path) -> None:
        self.name, self.directory, self.lives = name, directory, 0
        self.role: Role = next(role for role in get_args(Role) if name.startswith(role))
        self.process: asyncio.subprocess.Process | None = None
        self._restarting = asyncio.Lock()
        workload = schedule.workload
        topics = workload.topics
        if self.role == "subscriber":
            topics = workload.subscriptions[workload.subscriber_names.index(name)]
        elif self.role == "classic-subscriber":
            topics = workload.classic_subscriptions[workload.classic_subscriber_names.index(name)]
        self._job = Job(
            name=name,
            role=self.role,
            config=str(config),
            history="",
            topics=topics,
            seed=schedule.seed,
            rate=workload.rate,
            window=workload.window,
            sizes=workload.sizes,
            seconds=workload.seconds,
            open_seconds=ELECTION_SECONDS if workload.engines else OPEN_SECONDS,
            keyed=workload.keyed,
        )

    @property
    def topics(self) -> list[str]:
        """Return the topics that it publishes on or subscribes to."""
        return self._job.topics

    def history_file(self, life: int) -> Path:
        """Return where the records of a life are."""
        return self.directory / f"{self.name}.{life}.jsonl"

    async def start(self) -> None:
        """Begin a life."""
        self.lives += 1
        job = msgspec.structs.replace(self._job, history=str(self.history_file(self.lives)))
        file = self.directory / f"{self.name}.job.json"
        file.write_bytes(msgspec.json.encode(job))
        with (self.directory / f"{self.name}.log").open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                *("-m", "tests.faults.workers", str(file)),
                cwd=ROOT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless it has ended."""
        if self.process is not None and self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def kill(self) -> None:
        """End this life."""
        self.signal(signal.SIGKILL)
        if self.process is not None:
            await self.process.wait()

    async def restart(self, seconds: float) -> None:
        """End this life, and begin another one after some seconds.

        On a slow machine, the next fault comes before a process has started: it waits for that one, else two
        processes would have the same life.
        """
        async with self._restarting:
            await self.kill()
            await asyncio.sleep(seconds)
            await self.start()


class Harness:
    """Hold the workers of a schedule and lead them through it."""

    def __init__(self, schedule: Schedule, cluster: Cluster, directory: Path) -> None:
        self.schedule, self.cluster, self.directory = schedule, cluster, directory
        workload = schedule.workload
        self.publishers, self.subscribers = (
            [Worker(schedule, name, cluster.client_files[name], directory) for name in names]
            for names in (workload.all_publisher_names, workload.all_subscriber_names)
        )
        config = cluster.client_files[workload.publisher_names[0]]
        self.work = Work()
        self.closing = Worker(schedule, "closing-publisher", config, directory)

    @contextlib.asynccontextmanager
    async def clients(self) -> AsyncIterator[None]:
        """Start the subscribers, and end all workers at the end."""
        try:
            for subscriber in self.subscribers:
                await subscriber.start()
            yield
        finally:
            self._look_for_failed_workers()
            await asyncio.gather(*(worker.kill() for worker in self.workers))

    @property
    def all_publishers(self) -> list[Worker]:
        """Return the publishers, and the one that publishes at the end."""
        return [*self.publishers, self.closing]

    @property
    def workers(self) -> list[Worker]:
        """Return all of them."""
        return self.all_publishers + self.subscribers

    async def wait_subscribed(self) -> None:
        """Return once all subscribers have subscribed, or will not."""
        deadline = time.monotonic() + SUBSCRIBE_SECONDS
        for subscriber in self.subscribers:
            while not any(
                record.event == "subscribed" for record in read_history(subscriber.history_file(1))
            ):
                if time.monotonic() > deadline:
                    self.cluster.problems.append(f"{subscriber.name} could not subscribe")
                    return
                await asyncio.sleep(POLL_SECONDS / 2)

    async def do_harm(self) -> None:
        """Start the publishers, and do each fault at its time; when all are undone, publish on each topic.

        A subscriber that has the last message of a topic has come back from whatever was done to it, and has
        been told of a restored log.
        """
        for publisher in self.publishers:
            await publisher.start()
        async with asyncio.TaskGroup() as tasks:
            for fault in self.schedule.faults:
                tasks.create_task(self._apply(fault))
        await self.cluster.heal()
        for worker in self.workers:
            worker.signal(signal.SIGCONT)
        await self.closing.start()

    async def wait_for_all(self) -> None:
        """Return when every message has its outcome and every subscriber its messages, or after a time."""
        size, changed = -1, time.monotonic()
        while time.monotonic() < changed + PATIENCE_SECONDS:
            await asyncio.sleep(POLL_SECONDS)
            now = sum(file.stat().st_size for file in self.directory.glob("*.jsonl"))
            if now != size:
                size, changed = now, time.monotonic()
            publishing = any(one.process and one.process.returncode is None for one in self.all_publishers)
            missing = self.verdict().lost or self.check_reading({}).missing
            if not publishing and not missing and not await self.missing_work():
                await asyncio.sleep(SETTLE_SECONDS)
                return
        for publisher in self.all_publishers:
            if publisher.process is not None and publisher.process.returncode is None:
                self.cluster.problems.append(f"{publisher.name} does not come to an end")

    async def missing_work(self) -> int:
        """Return how many messages are neither done by a member nor dead letters."""
        if not self.schedule.workload.members or await self.check_work({}) == 0:
            return 0
        with contextlib.suppress(WsqueueError):
            return await self.check_work(await letters_of(self._member_file, self.schedule.workload.topics))
        return 1

    async def end_work(self) -> None:
        """Check the groups, and that nothing comes back which is done."""
        workload = self.schedule.workload
        if not workload.members:
            return
        members = [one for one in self.subscribers if one.role == "member"]
        missing = await self.check_work(await letters_of(self._member_file, workload.topics))
        if missing:
            self.cluster.problems.append(f"{missing} messages are neither done nor dead letters")
        self.cluster.problems += self.work.violations
        self._look_for_failed(members)
        await asyncio.gather(*(member.kill() for member in members))
        for member in members:
            member.process = None
        back = await what_comes_back(self._member_file, workload.topics, keyed=workload.keyed)
        records = [one for member in members for one in records_of(member)]
        anew = self._anew()
        done = {
            (one.publisher, one.number) for one in records if one.event == "done" and one.topic not in anew
        }
        again = sorted({one for one in map(parse, back) if one in done})
        if again:
            self.cluster.problems.append(f"messages that were done come back: {again[:10]}")

    async def end_reading(self) -> None:
        """Check the named readers, and that each goes on behind the messages that it has done."""
        topics = self.schedule.workload.topics
        readers = [one for one in self.subscribers if one.role == "reader"]
        self._look_for_failed(readers)
        await asyncio.gather(*(reader.kill() for reader in readers))
        left: dict[str, list[Record]] = {}
        for reader in readers:
            reader.process = None
            left[reader.name] = await what_is_left(
                self.cluster.client_files[reader.name], reader.name, topics
            )
        reading = self.check_reading(left)
        if reading.missing:
            self.cluster.problems.append(f"{reading.missing} messages did not come to a named reader")
        self.cluster.problems += reading.violations

    def check_reading(self, left: Mapping[str, Sequence[Record]]) -> Reading:
        """Check the messages that came to the named readers so far, and then at the end."""
        reading = {
            one.name: [*records_of(one), *left.get(one.name, ())]
            for one in self.subscribers
            if one.role == "reader"
        }
        return check_reading(self._published(), reading, self._anew())

    def _published(self) -> list[Record]:
        return [one for worker in self.all_publishers for one in read_history(worker.history_file(1))]

    async def check_work(self, letters: Mapping[str, Sequence[str]]) -> int:
        """Check the work of members so far; return how many messages are missing."""
        published = self._published()
        worked = [one for worker in self.subscribers if worker.role == "member" for one in records_of(worker)]
        keyed = self.schedule.workload.keyed
        self.work = check_work(published, worked, letters, self._anew(), keyed=keyed)
        return self.work.missing

    @property
    def _member_file(self) -> Path:
        return self.cluster.client_files[self.schedule.workload.member_names[0]]

    def _anew(self) -> dict[str, float]:
        """Return the time since which each topic's group has not begun anew, for those that had to."""
        if self.schedule.retention == "jetstream":
            return {}
        consumer_of = router(self.schedule.workload.consumers)
        found: dict[str, float] = {}
        for topic in self.schedule.workload.topics:
            owner = self.schedule.workload.consumer_names[consumer_of(topic)]
            times = [restore.ended[1] for restore in self.cluster.restores.get(owner, [])]
            if self.schedule.retention == "memory":
                times += [end for _, end in self.cluster.unclean.get(owner, [])]
            if times:
                found[topic] = max(times)
        return found

    def verdict(self) -> Verdict:
        """Check the histories so far."""
        published = self._published()
        lives = [
            life
            for subscriber in self.subscribers
            if subscriber.role not in {"member", "reader"}
            for life in lives_of(subscriber)
        ]
        workload = self.schedule.workload
        consumer_of = router(workload.consumers)
        owners = {topic: workload.consumer_names[consumer_of(topic)] for topic in workload.topics}
        unclean = {topic: self.cluster.unclean.get(owner, []) for topic, owner in owners.items()}
        full = {topic: self.cluster.full.get(owner, []) for topic, owner in owners.items()}
        restores = {topic: self.cluster.restores.get(owner, []) for topic, owner in owners.items()}
        return check(
            published,
            lives,
            self.schedule.retention,
            unclean,
            full,
            ends=self.cluster.ends,
            restores=restores,
            all_kept=not workload.kept,
        )

    async def _apply(self, fault: Fault) -> None:
        await asyncio.sleep(fault.at)
        worker = next((worker for worker in self.workers if worker.name == fault.target), None)
        if worker is None or fault.kind not in {"kill", "stop"}:
            await self.cluster.apply(fault)
        elif fault.kind == "kill":
            await worker.restart(fault.seconds)
        else:
            worker.signal(signal.SIGSTOP)
            await asyncio.sleep(fault.seconds)
            worker.signal(signal.SIGCONT)

    def _look_for_failed_workers(self) -> None:
        if self.schedule.workload.engines:
            # Publishers give up at an outage; but then nothing was wrong any more.
            self.cluster.problems += [
                f"nobody took the last message on {one.topic!r}: {one.text}"
                for one in read_history(self.closing.history_file(1))
                if one.event == "failed"
            ]
        self._look_for_failed(self.workers)

    def _look_for_failed(self, workers: Sequence[Worker]) -> None:
        for worker in workers:
            status = worker.process.returncode if worker.process is not None else None
            if status:
                self.cluster.problems.append(
                    f"{worker.name} failed with status {status}: see {worker.name}.log"
                )


def records_of(worker: Worker) -> list[Record]:
    """Return the records of all lives of a worker."""
    return [one for life in range(1, worker.lives + 1) for one in read_history(worker.history_file(life))]


def lives_of(subscriber: Worker) -> Iterator[Life]:
    """Yield the lives of a subscriber; each connection of a classic one is a life."""
    for number in range(1, subscriber.lives + 1):
        name = f"{subscriber.name} (life {number})" if subscriber.lives > 1 else subscriber.name
        records, killed = read_history(subscriber.history_file(number)), number < subscriber.lives
        if subscriber.role == "subscriber":
            yield Life(name, subscriber.topics, records, killed)
            continue
        for topic in subscriber.topics:
            connections = [
                one.connection for one in records if one.event == "subscribed" and one.topic == topic
            ]
            for connection in connections:
                yield Life(
                    f"{name}, connection {connection}",
                    [topic],
                    [one for one in records if one.connection == connection],
                    killed or connection != connections[-1],
                    live=True,
                )
