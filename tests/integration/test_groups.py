"""Worker groups: shares, leases, retries, dead letters, order, restarts and rights."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import pytest

import wsqueue
from wsqueue.errors import StorageError
from wsqueue.groups import group
from wsqueue.groups.group import BUSY_MESSAGES, FLOOD_MESSAGES
from wsqueue.log import states
from wsqueue.log.store import AppendChain
from wsqueue.nodes.memberships import MAX_GROUPS_PER_CONNECTION
from wsqueue.protocol import v2
from wsqueue.protocol.routing import topic_hash

from ..support.nodes import BILLING, KEY, Log, Nodes, RunningNode, cut, write_key
from ..support.ports import free_port
from ..support.raw_v2_peer import V2Socket, data_of
from ..support.system_clock import SystemClock
from ..support.waiting import eventually, soon

pytestmark = pytest.mark.anyio

MODES = pytest.mark.parametrize("mode", ["memory", "sqlite"])
PLACE = {"topic": "jobs", "group": "g"}
JOIN = {"t": "join", **PLACE, "prefetch": 10, "lease_seconds": 30.0, "max_deliveries": 3}


async def cluster(nodes: Nodes, mode: str = "memory", **settings: Any) -> tuple[RunningNode, wsqueue.Client]:
    """Return a consumer that keeps its logs, and a client of it and a producer."""
    retention = {"mode": mode, "directory": f"{nodes.directory}/log"} | settings.pop("retention", {})
    consumer = await nodes.consumer(port=free_port(), retention=retention, **settings)
    producer = await nodes.producer([consumer])
    return consumer, nodes.client([producer], [consumer])


async def left_of(client: wsqueue.Client, **wishes: Any) -> list[str | bytes]:
    """Return the messages that a member is lent that comes now; it is done with each of them."""
    found: list[str | bytes] = []
    async with client.subscribe("jobs", group="g", prefetch=100, **wishes) as jobs:
        with contextlib.suppress(TimeoutError):
            while True:
                job = await asyncio.wait_for(anext(jobs), 0.3)
                await job.done()
                found.append(job.data)
    return found


async def letters_of(client: wsqueue.Client, count: int) -> list[wsqueue.Message]:
    """Return the first dead letters."""
    async with client.subscribe("jobs!g!dead", start="earliest") as letters:
        return [await anext(letters) for _ in range(count)]


@contextlib.asynccontextmanager
async def member(consumer: RunningNode, **changes: Any) -> AsyncIterator[V2Socket]:
    """Join a group as a raw peer."""
    async with V2Socket.speaking(consumer.address, "/subscribe", KEY) as socket:
        socket.send(JOIN | changes)
        yield socket


async def test_members_share_the_messages(nodes: Nodes) -> None:
    consumer, client = await cluster(nodes)
    got: list[Counter[str]] = [Counter() for _ in range(4)]
    async with soon(), client:
        all_done = asyncio.Event()

        async def work(mine: Counter[str]) -> None:
            async with client.subscribe("jobs", group="g", prefetch=4) as jobs:
                async for job in jobs:
                    mine[str(job.data)] += 1
                    await job.done()
                    if sum(map(len, got)) == 400:
                        all_done.set()

        workers = [asyncio.create_task(work(mine)) for mine in got]
        await client.publish("jobs", *(f"{number}" for number in range(400)))
        await all_done.wait()
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        together = sum(got, Counter())
        assert together == Counter(f"{number}" for number in range(400))
        assert max(map(len, got)) <= 1.1 * min(map(len, got))
        assert consumer.counters["group_deliveries"] == 400
        assert await left_of(client) == []


async def test_a_slow_member_does_not_hold_others_up(nodes: Nodes) -> None:
    _, client = await cluster(nodes)
    async with soon(), client:
        await client.publish("jobs", *(f"{number}" for number in range(100)))
        async with (
            client.subscribe("jobs", group="g", prefetch=1) as slow,
            client.subscribe("jobs", group="g", prefetch=1) as fast,
        ):
            held = await anext(slow)
            for _ in range(99):
                await (await anext(fast)).done()
            await held.done()
        assert await left_of(client) == []


async def test_other_subscribers_and_groups_get_all_messages(nodes: Nodes) -> None:
    _, client = await cluster(nodes)
    async with soon(), client, client.subscribe("jobs") as plain:
        await client.publish("jobs", "1", "2")
        for group in ("a", "b"):
            async with client.subscribe("jobs", group=group, auto_done=True) as jobs:
                assert [(await anext(jobs)).data for _ in range(2)] == ["1", "2"]
        assert [(await anext(plain)).data for _ in range(2)] == ["1", "2"]


@MODES
@pytest.mark.parametrize("how", ["stop", "crash"])
async def test_what_is_done_does_not_come_back_after_a_restart(nodes: Nodes, mode: str, how: str) -> None:
    consumer, client = await cluster(nodes, mode)
    async with asyncio.timeout(20), client:
        await client.publish("jobs", *(f"{number}" for number in range(6)))
        async with client.subscribe("jobs", group="g") as jobs:
            messages = [await anext(jobs) for _ in range(6)]
            await messages[0].done()
            await messages[4].done()
            await (consumer.stop() if how == "stop" else consumer.crash())
            # A late one counts, though the consumer has forgotten the loan.
            late = asyncio.create_task(messages[1].done())
            await consumer.restart()
            await late
            if (mode, how) == ("memory", "crash"):
                # The log has gone, and with it all that was done.
                await client.publish("jobs", "new")
                assert (await anext(jobs)).data == "new"
                return
            # It may have been lent once more before the consumer heard of that.
            assert (await anext(jobs)).data in {"1", "2", "3", "5"}
        assert set(await left_of(client)) == {"2", "3", "5"}


async def test_the_messages_of_one_that_goes_are_lent_to_others(nodes: Nodes) -> None:
    consumer, client = await cluster(nodes)
    async with soon(), client:
        await client.publish("jobs", "1", "2")
        async with member(consumer) as dying:
            assert (await dying.next("joined"))["group"] == "g"
            loan = await dying.next("lend")
            assert (data_of(loan), loan.get("deliveries", 1)) == (["1", "2"], 1)
        async with client.subscribe("jobs", group="g") as jobs:
            for data in ("1", "2"):
                # One at a time, because one of them may have killed the other member.
                job = await anext(jobs)
                assert (job.data, job.deliveries) == (data, 2)
                await job.done()


async def test_a_member_that_takes_no_more_can_still_be_done(nodes: Nodes) -> None:
    _, client = await cluster(nodes)
    async with soon(), client, client.subscribe("jobs", group="g", prefetch=4) as leaving:
        await client.publish("jobs", "1")
        job = await anext(leaving)
        leaving.release()
        await client.publish("jobs", "2", "3")
        async with client.subscribe("jobs", group="g") as jobs:
            for data in ("2", "3"):
                other = await anext(jobs)
                # Those that it gives back count as never lent.
                assert (other.data, other.deliveries) == (data, 1)
                await other.done()
        await job.done()
        await leaving.close()
        assert await left_of(client) == []


async def test_a_message_that_is_on_its_way_to_one_that_leaves(nodes: Nodes) -> None:
    consumer, client = await cluster(nodes)
    async with soon(), client, client.subscribe("jobs", group="g") as leaving:
        connection = leaving._link.connection
        assert connection is not None
        connection.pause_reading()
        await client.publish("jobs", "1")
        await eventually(lambda: consumer.counters["group_deliveries"] == 1, "it is lent")
        closing = asyncio.create_task(leaving.close())
        await asyncio.sleep(0)
        connection.resume_reading()
        await closing
        async with client.subscribe("jobs", group="g") as jobs:
            job = await anext(jobs)
            # The other one has never touched it.
            assert (job.data, job.deliveries) == ("1", 1)


async def test_a_member_that_gives_nothing_back_is_lent_nothing_more(nodes: Nodes) -> None:
    consumer, client = await cluster(nodes)
    async with soon(), client, member(consumer) as leaving:
        log = (await leaving.next("joined"))["log"]
        offsets = [[v2.MAX_NUMBER, v2.MAX_NUMBER]]
        leaving.send({"t": "settle", **PLACE, "number": 1, "log": log, "how": "release", "offsets": offsets})
        await leaving.next("settled")
        await client.publish("jobs", "1")
        assert await left_of(client) == ["1"]
        assert consumer.counters["group_deliveries"] == 1


async def test_a_lease_that_is_over(nodes: Nodes) -> None:
    consumer, client = await cluster(nodes)
    async with soon(), client:
        await client.publish("jobs", "1", "2")
        async with member(consumer, lease_seconds=0.1) as stuck:
            await stuck.next("joined")
            await stuck.next("lend")
            async with client.subscribe("jobs", group="g") as jobs:
                first = await anext(jobs)
                assert first.deliveries == 2
                # Who was late has done it too.
                settle = {"t": "settle", **PLACE, "number": 1, "log": first.log, "how": "done"}
                stuck.send(settle | {"offsets": [[0, 1]]})
                while (packet := await stuck.packet())["t"] != "settled":
                    assert packet["t"] == "lend"
                assert packet["number"] == 1
        assert consumer.counters["leases_over"] == 2
        assert await left_of(client) == []


async def test_a_lease_is_over_though_others_say_much(nodes: Nodes) -> None:
    consumer, client = await cluster(nodes)
    async with soon(), client:
        await client.publish("jobs", *(f"{number}" for number in range(200)))
        async with (
            member(consumer, prefetch=1, lease_seconds=0.4) as stuck,
            member(consumer, prefetch=1, lease_seconds=0.4) as busy,
        ):
            await stuck.next("joined")
            await stuck.next("lend")
            again = {"t": "settle", **PLACE, "how": "again", "log": (await busy.next("joined"))["log"]}
            for number in itertools.count(1):
                while (packet := await busy.packet())["t"] != "lend":
                    assert packet["t"] == "settled"
                offset = packet["offset"]
                busy.send(again | {"number": number, "offsets": [[offset, offset]], "delay": 3600})
                if consumer.counters["leases_over"]:
                    break
                assert offset < 150, "it is not over while others say something"
                await asyncio.sleep(0.02)


async def test_an_outcome_is_kept_though_the_order_key_changes_meanwhile(
    nodes: Nodes, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer, client = await cluster(nodes)
    monkeypatch.setattr(group, "RETRY_SECONDS", 0.05)
    logs = consumer.service.node.logs  # type: ignore[attr-defined]
    change, attempts = logs.change_state, 0

    async def full(*_arguments: object) -> int:
        nonlocal attempts
        attempts += 1
        await asyncio.sleep(0.05)
        raise StorageError("the disk is full")

    async with soon(), client:
        await client.publish("jobs", "1")
        async with member(consumer) as one:
            settle = {"t": "settle", **PLACE, "how": "done", "log": (await one.next("joined"))["log"]}
            await one.next("lend")
            monkeypatch.setattr(logs, "change_state", full)
            one.send(settle | {"number": 7, "offsets": [[0, 0]]})
            await eventually(lambda: attempts > 0, "it is being kept")
            one.send({"t": "leave", **PLACE})
            one.send(JOIN | {"order_key": "account"})
            await one.next("left")
            await one.next("joined")
            await eventually(lambda: attempts > 2, "it is tried again")
            monkeypatch.setattr(logs, "change_state", change)
            assert (await one.next("settled"))["number"] == 7
        assert await left_of(client) == []
    assert log.lines("", logging.ERROR) == log.lines("group not kept") != []
    log.records.clear()


async def test_groups_that_refuse_a_connection_count_no_more(nodes: Nodes) -> None:
    consumer = await nodes.consumer()
    async with (
        soon(),
        V2Socket.speaking(consumer.address, "/subscribe", KEY) as one,
        V2Socket.speaking(consumer.address, "/subscribe", KEY) as other,
    ):
        for number in range(MAX_GROUPS_PER_CONNECTION):
            one.send(JOIN | {"topic": f"{number}"})
            await one.next("joined")
            other.send(JOIN | {"topic": f"{number}", "order_key": "account"})
            assert (await other.next("left"))["code"] == "order_key"
        other.send(JOIN | {"topic": "another"})
        assert (await other.next("joined"))["topic"] == "another"


async def test_leases_of_messages_that_wait_in_the_client_are_renewed(nodes: Nodes) -> None:
    consumer, client = await cluster(nodes)
    async with soon(), client:
        await client.publish("jobs", "1", "2", "3")
        async with client.subscribe("jobs", group="g", lease_seconds=1.0) as jobs:
            first = await anext(jobs)
            for _ in range(8):
                await asyncio.sleep(0.2)
                first.extend()
            assert [(await anext(jobs)).data for _ in range(2)] == ["2", "3"]
        assert consumer.counters["leases_over"] == 0


async def test_again_after_a_delay(nodes: Nodes) -> None:
    _, client = await cluster(nodes)
    async with soon(), client, client.subscribe("jobs", group="g", auto_done=False) as jobs:
        await client.publish("jobs", "1", "2")
        loop = asyncio.get_running_loop()
        before = loop.time()
        await (await anext(jobs)).again(delay=0.3)
        await (await anext(jobs)).done()
        job = await anext(jobs)
        assert (job.data, job.deliveries) == ("1", 2)
        assert loop.time() - before >= 0.3
        await job.done()


async def test_messages_that_are_done_by_themselves_may_have_another_outcome(nodes: Nodes) -> None:
    _, client = await cluster(nodes)
    async with soon(), client:
        await client.publish("jobs", "later", "bad", "longer", "last")
        got = list[str | bytes]()
        async with client.subscribe("jobs", group="g", auto_done=True) as jobs:
            async for job in jobs:
                got.append(job.data)
                if job.data == "later" and job.deliveries == 1:
                    await job.again(delay=0.3)
                elif job.data == "bad":
                    await job.reject("nonsense")
                elif job.data == "longer":
                    job.extend()
                if len(got) == 5:
                    break
            await job.done()
        assert sorted(map(str, got)) == ["bad", "last", "later", "later", "longer"]
        assert [letter.data for letter in await letters_of(client, 1)] == ["bad"]
        assert await left_of(client) == []


@MODES
async def test_dead_letters(nodes: Nodes, mode: str) -> None:
    consumer, client = await cluster(nodes, mode)
    async with soon(), client:
        await client.publish("jobs", "0", "1", headers={"trace": "t"})
        await client.publish("jobs", b"\xff")
        async with client.subscribe("jobs", group="g", max_deliveries=2) as jobs:
            for _ in range(5):
                job = await anext(jobs)
                if job.data == "0":
                    await job.reject("nonsense")
                else:
                    await job.again()
        first, *others = await letters_of(client, 3)
        assert first.data == "0"
        assert first.headers == {
            "dead-topic": "jobs",
            "dead-offset": "0",
            "dead-deliveries": "1",
            "dead-reason": "nonsense",
            "trace": "t",
        }
        assert {letter.data for letter in others} == {"1", b"\xff"}
        assert {letter.headers["dead-deliveries"] for letter in others} == {"2"}
        await eventually(lambda: consumer.counters["dead_letters"] == 3, "all are there")
        assert await left_of(client) == []
        # They live at the consumer of their topic.
        assert topic_hash("jobs!g!dead") == topic_hash("jobs")


async def test_a_crash_before_the_dead_letter_is_kept_writes_it_once(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer, client = await cluster(nodes, "sqlite")
    async with asyncio.timeout(20), client:
        await client.publish("jobs", "0", "1")
        async with client.subscribe("jobs", group="g") as jobs:
            rejected = [await anext(jobs) for _ in range(2)]
            with monkeypatch.context() as patch:
                # The letters are stored, and the group never hears of it.
                patch.setattr("wsqueue.groups.group.Group.buried", lambda *_: None)
                for job in rejected:
                    await job.reject("nonsense")
                assert len(await letters_of(client, 2)) == 2
                await consumer.crash()
            await consumer.restart()
            await client.publish("jobs", "2")
            assert (await anext(jobs)).data == "2"
            await eventually(lambda: consumer.counters["dead_letters"] == 2, "the group knows them")
        letters = [letter async for letter in client.subscribe("jobs!g!dead", start="earliest", follow=False)]
        assert [letter.data for letter in letters] == ["0", "1"]


async def test_messages_of_a_key_keep_their_order(nodes: Nodes) -> None:
    _, client = await cluster(nodes)
    done: list[tuple[str, int]] = []
    async with asyncio.timeout(20), client:
        for number in range(60):
            await client.publish("jobs", f"{number}", headers={"account": f"{number % 3}"})
        failed: set[int] = set()
        finished = asyncio.Event()

        async def work() -> None:
            async with client.subscribe("jobs", group="g", order_key="account", max_deliveries=9) as jobs:
                async for job in jobs:
                    number = int(job.data)
                    if number % 7 == 0 and number not in failed:
                        failed.add(number)
                        await job.again(delay=0.01)
                        continue
                    done.append((job.headers["account"], number))
                    await job.done()
                    if len(done) == 60:
                        finished.set()

        workers = [asyncio.create_task(work()) for _ in range(4)]
        await finished.wait()
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
    for account in "012":
        numbers = [number for key, number in done if key == account]
        assert numbers == list(range(int(account), 60, 3))


async def test_members_agree_on_the_order_key(nodes: Nodes) -> None:
    _, client = await cluster(nodes)
    async with soon(), client, client.subscribe("jobs", group="g", order_key="account"):
        with pytest.raises(wsqueue.ConnectError, match="the group has the order_key 'account'"):
            async with client.subscribe("jobs", group="g"):
                pass


async def test_a_group_that_begins_at_the_latest_message(nodes: Nodes) -> None:
    _, client = await cluster(nodes)
    async with soon(), client:
        await client.publish("jobs", "before")
        async with client.subscribe("jobs", group="g", start="latest") as jobs:
            await client.publish("jobs", "after")
            assert (await anext(jobs)).data == "after"


async def test_messages_that_the_log_has_dropped_are_told(nodes: Nodes, log: Log) -> None:
    consumer, client = await cluster(nodes, retention={"max_messages_per_topic": 10})
    async with soon(), client:
        for number in range(30):
            await client.publish("jobs", f"{number}")
        async with member(consumer, group="other", prefetch=1) as idle:
            await idle.next("joined")
            await idle.next("lend")
            for number in range(30, 60):
                await client.publish("jobs", f"{number}")
            idle.send(
                {"t": "settle", "topic": "jobs", "group": "other", "number": 1, "log": "", "how": "done"}
            )
        async with client.subscribe("jobs", group="g") as jobs:
            assert (await anext(jobs)).data == "50"
        async with client.subscribe("jobs", group="other", prefetch=100) as jobs:
            assert (await anext(jobs)).data == "50"
        assert consumer.counters["group_gone"] == 30
    assert any("group=other" in line and "missed=" in line for line in log.lines("messages gone"))


@pytest.mark.parametrize("order_key", [None, "account"])
async def test_many_messages_that_the_log_has_dropped_are_told_at_once(
    nodes: Nodes, log: Log, order_key: str | None
) -> None:
    consumer, client = await cluster(nodes, retention={"max_messages_per_topic": 10})
    async with soon(), client:
        await client.publish("jobs", "the first")
        async with client.subscribe("jobs", group="g", order_key=order_key) as jobs:
            await (await anext(jobs)).done()
        for _ in range(200):
            await client.publish("jobs", *"abcdefghij")
        async with client.subscribe("jobs", group="g", order_key=order_key) as jobs:
            assert (await anext(jobs)).offset == 1991
        assert consumer.counters["group_gone"] == 1990
    assert log.lines("messages gone") == ["messages gone topic=jobs group=g missed=1990"]


async def test_many_groups_of_a_connection_that_does_not_read_leave_it_open(nodes: Nodes) -> None:
    consumer, client = await cluster(nodes)
    groups = [f"g{number}" for number in range(10)]
    async with soon(), client, member(consumer, group=groups[0]) as slow:
        for group in groups[1:]:
            slow.send(JOIN | {"group": group})
        for _ in groups:
            await slow.next("joined")
        for _ in range(2):
            await client.publish("jobs", "x" * 1_000_000)
        lent = [(await slow.next("lend"))["group"] for _ in range(2 * len(groups))]
        assert sorted(lent) == sorted(2 * groups)
        assert consumer.counters["slow_subscribers"] == 0


async def test_a_settle_that_names_its_messages_a_thousand_times(nodes: Nodes) -> None:
    consumer, client = await cluster(nodes)
    count = 3000
    async with soon(), client, member(consumer, prefetch=2 * count, order_key="account") as one:
        await one.next("joined")
        await client.publish("jobs", *("x" for _ in range(count)))
        for _ in range(count):
            lent = await one.next("lend")
        ranges = [[0, lent["offset"]]] * v2.MAX_SETTLED_RANGES
        log = consumer.consumer.logs.epochs.current.id
        one.send({"t": "settle", **PLACE, "number": 1, "log": log, "how": "extend", "offsets": ranges})
        assert (await one.next("settled"))["number"] == 1


async def test_a_lost_connection_ends_no_membership_for_good(nodes: Nodes) -> None:
    consumer, client = await cluster(nodes)
    async with soon(), client, client.subscribe("jobs", group="g") as jobs:
        await client.publish("jobs", "1", "2")
        first = await anext(jobs)
        for connection in list(consumer.connections):
            cut(connection)
        await first.done()
        second = await anext(jobs)
        assert (second.data, second.deliveries) == ("2", 2)
        await second.done()
        await client.publish("jobs", "3")
        assert (await anext(jobs)).data == "3"


async def test_untouched_messages_that_come_back_are_no_failed_deliveries(nodes: Nodes) -> None:
    consumer, client = await cluster(nodes)
    async with soon(), client:
        await client.publish("jobs", "1", "2", "3")
        async with client.subscribe("jobs", group="g") as jobs:
            await (await anext(jobs)).done()
        await eventually(lambda: not consumer.consumer.groups.by_topic, "the group has no members")
        async with client.subscribe("jobs", group="g") as jobs:
            assert [(await anext(jobs)).deliveries for _ in range(2)] == [1, 1]


async def test_rights(nodes: Nodes) -> None:
    write_key(nodes.directory, "billing", BILLING)
    rights = {"subscribe": ["jobs"], "groups": ["billing-*"]}
    consumer = await nodes.consumer(clients=[{"name": "billing", "key_file": "billing.key"} | rights])
    named = wsqueue.connect(
        producers=["127.0.0.1:1/produce"],
        consumers=[f"{consumer.address}/subscribe"],
        psk=BILLING,
        name="billing",
    )
    async with soon(), named:
        async with named.subscribe("jobs", group="billing-1"):
            pass
        with pytest.raises(wsqueue.NotAllowedError, match="billing may not join the group 'other'"):
            async with named.subscribe("jobs", group="other"):
                pass
        with pytest.raises(wsqueue.NotAllowedError, match="may not subscribe to 'news'"):
            async with named.subscribe("news", group="billing-1"):
                pass
    assert consumer.counters["not_allowed"] == 2


async def test_a_new_group_is_refused_when_the_topic_has_too_many(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "MAX_NAMES_PER_TOPIC", 1)
    _, client = await cluster(nodes)
    async with soon(), client:
        assert await left_of(client) == []
        with pytest.raises(wsqueue.ConnectError, match=r"has 1 names; expected at most 1 \(full\)"):
            async with client.subscribe("jobs", group="another"):
                pass
        assert await left_of(client) == []


async def test_a_group_whose_dead_letters_have_no_topic_is_refused(nodes: Nodes) -> None:
    _, client = await cluster(nodes, max_topic_bytes=12)
    async with soon(), client:
        with pytest.raises(wsqueue.ConnectError, match="max_topic_bytes, 12"):
            async with client.subscribe("jobs", group="longer"):
                pass


@pytest.mark.parametrize(
    ("wishes", "error"),
    [
        ({"group": "a b"}, "'a b' is not the name of a group"),
        ({"group": "g", "prefetch": 0}, "prefetch is 0, expected a whole number from 1 to 10000"),
        ({"group": "g", "prefetch": 1.5}, "prefetch is 1.5, expected a whole number"),
        ({"group": "g", "lease_seconds": float("nan")}, "lease_seconds is nan, expected a number from 0.1"),
        ({"group": "g", "max_deliveries": True}, "max_deliveries is True"),
        ({"group": "g", "start": 5}, "5 is not a start of a group: expected 'earliest' or 'latest'"),
        ({"group": "g", "order_key": ""}, "'' is not the name of a header"),
        ({"group": "g", "order_key": "\udcff"}, "no lone surrogates"),
        ({"group": "g", "follow": False}, "neither follow nor on_gap"),
    ],
)
async def test_wishes_that_cannot_be(nodes: Nodes, wishes: dict[str, Any], error: str) -> None:
    async with nodes.client(["127.0.0.1:1"], ["127.0.0.1:1"]) as client:
        with pytest.raises(ValueError, match=error):
            client.subscribe("jobs", **wishes)


async def test_an_outcome_of_an_epoch_that_cannot_be_looked_up(
    nodes: Nodes, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def failing(*_: object) -> int:
        raise wsqueue.WsqueueError("the disk is gone")

    consumer, _client = await cluster(nodes)
    async with soon(), member(consumer) as one:
        await one.next("joined")
        monkeypatch.setattr(group, "known_end", failing)
        settle = {"t": "settle", **PLACE, "log": "earlier", "how": "done", "offsets": [[0, 0]]}
        # In one read, because after the first no more is read.
        one.send(settle | {"number": 1})
        one.send({"t": "leave", **PLACE})
        await one.next("left")
        await eventually(lambda: log.lines("group unusable"), "the look-up has failed")
        one.send({"t": "ask_alive"})
        await one.next("alive")
    log.records.clear()


async def test_outcomes_of_before_the_clock_was_set(nodes: Nodes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine may have been set back: offsets then had other messages in the history that is lost."""
    system = SystemClock(monkeypatch)
    consumer, client = await cluster(nodes)
    async with soon(), client:
        await client.publish("jobs", "before")
        async with member(consumer) as one:
            log_id = (await one.next("joined"))["log"]
            assert (await one.next("lend"))["offset"] == 0
            system.set_by = -3600.0
            assert (await one.next("joined"))["log"] != log_id
            again = await one.next("lend")
            assert (again["offset"], again.get("deliveries", 1)) == (0, 1)
            await client.publish("jobs", "after")
            assert (await one.next("lend"))["offset"] == 1
            one.send({"t": "settle", **PLACE, "number": 1, "log": log_id, "how": "done", "offsets": [[0, 1]]})
            await one.next("settled")
        assert await left_of(client) == ["after"]


async def test_a_dead_letter_that_is_under_way_when_an_epoch_begins(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer, client = await cluster(nodes)
    logs, held = consumer.consumer.logs, []
    append = logs.append

    def hold(chains: list[AppendChain]) -> None:
        if isinstance(chains[0].source, group.Burial):
            held.append(chains)
        else:
            append(chains)

    async with soon(), client:
        await client.publish("jobs", "1", "2")
        async with client.subscribe("jobs", group="g") as jobs:
            monkeypatch.setattr(logs, "append", hold)
            await (await anext(jobs)).reject("bad")
            await eventually(lambda: held, "the letter is under way")
            monkeypatch.setattr(logs, "append", append)
            logs.begin_epoch()
            consumer.consumer.groups.name_epoch()
            append(held[0])
            async for job in jobs:
                if job.data == "2":
                    await job.reject("bad")
                    break
        assert [letter.data for letter in await letters_of(client, 2)] == ["1", "2"]


async def test_a_log_that_is_another_one_while_a_dead_letter_is_kept(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer, client = await cluster(nodes)
    logs, kept, go_on = consumer.consumer.logs, asyncio.Event(), asyncio.Event()
    change = logs.change_state

    async def slow(topic: str, name: str, value: bytes, version: int) -> int:
        version = await change(topic, name, value, version)
        kept.set()
        await go_on.wait()
        # Others have a turn before the next state is kept.
        await asyncio.sleep(0.01)
        return version

    async with soon(), client:
        await client.publish("jobs", "1")
        async with client.subscribe("jobs", group="g") as jobs:
            job = await anext(jobs)
            monkeypatch.setattr(logs, "change_state", slow)
            rejecting = asyncio.create_task(job.reject("bad"))
            await kept.wait()
            consumer.consumer.groups.moved("jobs", other=True)
            go_on.set()
            await rejecting
            # The group has begun anew.
            await (await anext(jobs)).done()


async def test_reasons_of_any_text(nodes: Nodes) -> None:
    _, client = await cluster(nodes)
    async with soon(), client:
        await client.publish("jobs", "1", "2")
        async with client.subscribe("jobs", group="g") as jobs:
            with pytest.raises(TypeError, match="the reason is b'bytes', expected a text"):
                await (await anext(jobs)).reject(b"bytes")  # type: ignore[arg-type]
            # As the system names files whose names are no UTF-8.
            await (await anext(jobs)).reject("no file \udcff" + 200 * "x")
        (letter,) = await letters_of(client, 1)
        assert letter.headers["dead-reason"] == "no file ?" + 191 * "x"


async def test_settling_after_the_end(nodes: Nodes) -> None:
    _, client = await cluster(nodes)
    async with soon(), client:
        await client.publish("jobs", "1")
        async with client.subscribe("jobs", group="g") as jobs:
            job = await anext(jobs)
            with pytest.raises(ValueError, match="the delay is -1"):
                await job.again(delay=-1)
        with pytest.raises(wsqueue.ConnectError, match="the subscription is closed"):
            await job.done()


async def test_an_outcome_that_waits_for_the_consumer_ends_with_the_subscription(nodes: Nodes) -> None:
    consumer, client = await cluster(nodes)
    async with soon():
        await client.publish("jobs", "1")
        async with client.subscribe("jobs", group="g") as jobs:
            job = await anext(jobs)
            await consumer.crash()
            waiting = asyncio.create_task(job.done())
            await asyncio.sleep(0.2)
        with pytest.raises(wsqueue.ConnectError, match="the subscription is closed"):
            await waiting
        await client.close()


async def test_what_a_member_says_of_others_messages_changes_nothing(nodes: Nodes) -> None:
    consumer, client = await cluster(nodes)
    async with soon(), client:
        await client.publish("jobs", "1")
        async with client.subscribe("jobs", group="g") as jobs, member(consumer) as other:
            job = await anext(jobs)
            await other.next("joined")
            settle = {"t": "settle", **PLACE, "log": job.log, "offsets": [[0, v2.MAX_NUMBER]]}
            for number, how in enumerate(("again", "reject", "release", "extend"), 1):
                other.send(settle | {"number": number, "how": how})
                assert (await other.next("settled"))["number"] == number
            # Nor does anything that is of another log.
            other.send(settle | {"number": 5, "how": "done", "log": "another"})
            assert (await other.next("settled"))["number"] == 5
        assert await left_of(client) == ["1"]


@MODES
async def test_a_change_of_a_busy_group_waits_for_more(
    nodes: Nodes, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "PAUSE_SECONDS", 1.0)
    consumer, client = await cluster(nodes, mode)
    async with soon(), client:
        await client.publish("jobs", *(f"{number}" for number in range(BUSY_MESSAGES + 2)))
        async with member(consumer, prefetch=BUSY_MESSAGES + 2) as one:
            done = {"t": "settle", **PLACE, "how": "done", "log": (await one.next("joined"))["log"]}
            await one.next("lend")
            one.send(done | {"number": 1, "offsets": [[0, BUSY_MESSAGES - 1]]})
            assert (await one.next("settled"))["number"] == 1
            one.send(done | {"number": 2, "offsets": [[BUSY_MESSAGES, BUSY_MESSAGES]]})
            # Once this is answered, the consumer has taken the outcome before it.
            one.send({"t": "subscribe", "topic": "another"})
            await one.next("subscribed")
            one.send(done | {"number": 3, "offsets": [[BUSY_MESSAGES + 1, BUSY_MESSAGES + 1]]})
            assert (await one.next("settled"))["number"] == 3
        assert await left_of(client) == []


async def test_a_change_in_a_flood_of_outcomes_waits_for_a_bounded_time(
    nodes: Nodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "PAUSE_SECONDS", 0.5)
    monkeypatch.setattr(group, "MAX_PAUSES", 3)
    consumer, client = await cluster(nodes)
    async with soon(), client:
        await client.publish("jobs", *(f"{number}" for number in range(FLOOD_MESSAGES)))
        async with member(consumer, prefetch=FLOOD_MESSAGES) as one:
            extend = {"t": "settle", **PLACE, "log": (await one.next("joined"))["log"], "how": "extend"}
            await one.next("lend")
            all_offsets = [[0, FLOOD_MESSAGES - 1]]
            one.send(extend | {"number": 1, "how": "done", "offsets": all_offsets})
            assert (await one.next("settled"))["number"] == 1

            async def flood() -> None:
                for number in itertools.count(2):
                    one.send(extend | {"number": number, "offsets": all_offsets})
                    await asyncio.sleep(0.05)

            flooding = asyncio.create_task(flood())
            begun = time.monotonic()
            # Without a flood, it is answered after the first pause.
            await one.next("settled")
            flooding.cancel()
            assert time.monotonic() - begun > 1.0
