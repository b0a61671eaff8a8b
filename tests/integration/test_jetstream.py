"""The engine on real NATS servers: it does as the fake one, on which the shared log is tested."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from tests.support.certificates import Authority
from tests.support.messages import append_one, packed
from tests.support.nats_servers import NatsServers
from tests.support.stores import batch
from tests.support.waiting import eventually
from wsqueue.config.model import JetStream, Retention
from wsqueue.errors import ConfigError, StorageError
from wsqueue.log import states
from wsqueue.log.engine import STATES, Conflict, Engine, Place, Unanswered, place_of, state_place
from wsqueue.log.jetstream import JetStreamEngine
from wsqueue.log.shared import SharedStore
from wsqueue.log.states import State, StateConflict, StatesFull
from wsqueue.log.store import AppendChain, Outcome

pytestmark = pytest.mark.anyio

Result = TypeVar("Result")

STREAMS = 2


def retention(servers: NatsServers, **changes: Any) -> Retention:
    jetstream = JetStream(**servers.settings | {"streams": STREAMS} | changes)
    return Retention(mode="jetstream", jetstream=jetstream, max_age_seconds=3600)


def engine_on(servers: NatsServers, **changes: Any) -> JetStreamEngine:
    return JetStreamEngine(retention(servers, **changes), max_message_bytes=1024 * 1024)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[NatsServers]:
    async with NatsServers(tmp_path) as servers:
        yield servers


@pytest.fixture
async def engine(server: NatsServers) -> AsyncIterator[Engine]:
    engine = engine_on(server)
    await engine.open()
    yield engine
    await engine.close()


async def test_compare_and_swap(engine: Engine) -> None:
    place, other = place_of("news", STREAMS), Place(0, "other")
    assert await engine.last(place) is None
    first = await engine.append(place, b"one", 0)
    with pytest.raises(Conflict):
        await engine.append(place, b"two", 0)
    await engine.append(other, b"beside", 0)
    second = await engine.append(place, b"two", first)
    last = await engine.last(place)
    assert last is not None
    assert (last.seq, last.data, last.token) == (second, b"two", place.token)


async def test_reading(engine: Engine) -> None:
    place = Place(1, "topic")
    seq, seqs = 0, list[int]()
    for number in range(1500):
        seq = await engine.append(place, b"%d" % number, seq)
        seqs.append(seq)
        if not number % 500:
            await engine.append(Place(1, f"other-{number}"), b"beside", 0)
    assert [one.data for one in await engine.read(place, 1, 1)] == [b"0"]
    found = await engine.read(place, 1, 2**20)
    assert 1 < len(found) <= 1500
    while len(found) < 1500:
        found += await engine.read(place, found[-1].seq + 1, 2**20)
    assert [one.seq for one in found] == seqs
    assert [one.data for one in found] == [b"%d" % number for number in range(1500)]
    assert await engine.read(place, seqs[-1] + 1, 2**20) == []
    beside = [one for one in await engine.scan(1, 1, 2**20) if one.token != place.token]
    assert [one.token for one in beside][:1] == ["other-0"]
    await engine.purge(place, seqs[1499])
    assert [one.data for one in await engine.read(place, 1, 2**20)] == [b"1499"]


async def test_all_subjects_and_their_newest_records(engine: Engine) -> None:
    assert await engine.tokens(1) == []
    for number in range(600):
        await engine.append(Place(1, f"topic-{number}"), b"%d" % number, 0)
    seq = await engine.append(Place(0, "other"), b"beside", 0)
    await engine.append(Place(0, "other"), b"newest", seq)
    tokens = await engine.tokens(1)
    assert sorted(tokens) == sorted(f"topic-{number}" for number in range(600))
    assert await engine.tokens(0) == ["other"]
    found = {one.token: one.data for one in await engine.newest(1, tokens[:500])}
    assert found == {token: token.removeprefix("topic-").encode() for token in tokens[:500]}
    assert [one.data for one in await engine.newest(0, ["other", "nobody"])] == [b"newest"]
    assert await engine.newest(0, ["nobody"]) == []
    # An answer has as many as fit, and at least one.
    for number in range(12):
        await engine.append(Place(0, f"large-{number}"), b"x" * 1_000_000, 0)
    large = await engine.newest(0, [f"large-{number}" for number in range(12)])
    assert 0 < len(large) < 12


async def test_a_large_record_is_read_alone(engine: Engine) -> None:
    place = Place(0, "topic")
    data = b"x" * 1_500_000
    first = await engine.append(place, data, 0)
    await engine.append(place, data, first)
    found = await engine.read(place, 1, 256 * 1024)
    assert [len(one.data) for one in found] in ([len(data)], [len(data)] * 2)


async def test_the_state_of_a_stream(engine: Engine) -> None:
    before = await engine.state(0)
    assert (before.last, before.bytes, before.first_time) == (0, 0, 0.0)
    await engine.append(Place(0, "a"), b"data", 0)
    state = await engine.state(0)
    assert (state.first, state.last, state.replicas) == (1, 1, 1)
    assert state.bytes > 4
    assert abs(state.first_time - time.time()) < 60
    assert (await engine.state(1)).last == 0


async def test_notices_reach_the_others_only(server: NatsServers, engine: Engine) -> None:
    other = engine_on(server)
    await other.open()
    try:
        assert other.id == engine.id != ""
        here, there = list[bytes](), list[bytes]()
        engine.on_notice, other.on_notice = here.append, there.append
        engine.notify(b"notice")
        await eventually(lambda: there == [b"notice"], "the notice comes")
        assert here == []
    finally:
        await other.close()


async def test_records_at_another_age(engine: Engine) -> None:
    await engine.set_age(7200)
    await engine.append(Place(0, "a"), b"data", 0)


async def test_a_server_that_is_too_old(server: NatsServers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("wsqueue.log.jetstream.MIN_VERSION", (99, 0, 0))
    with pytest.raises(ConfigError, match=r"has version 2\.\S+; expected at least 99\.0\.0, because"):
        await engine_on(server).open()


async def test_the_reason_why_no_server_answers(
    server: NatsServers, caplog: pytest.LogCaptureFixture
) -> None:
    server.kill(0)
    engine = engine_on(server)
    opening = asyncio.create_task(engine.open())
    await eventually(lambda: "no NATS server answers" in caplog.text, "the reason is logged")
    assert f"{server.urls[0]}: Connect" in caplog.text
    server.start(0)
    await opening
    # From now on it tries for ever.
    changes: list[bool] = []
    engine.on_connection = lambda: changes.append(engine.connected)
    server.kill(0)
    await asyncio.sleep(2)
    server.start(0)
    await eventually(lambda: changes == [False, True], "the connection is there again")
    await engine.close()


async def test_a_look_changes_nothing(server: NatsServers) -> None:
    first = engine_on(server)
    await first.connect()
    assert await first.look() == [None] * (STREAMS + 1)
    await first.close()
    await first.open()
    states = await first.look()
    assert [state and state.leader for state in states] == ["n0"] * (STREAMS + 1)
    await first.close()
    other = engine_on(server, streams=STREAMS + 1)
    await other.connect()
    with pytest.raises(ConfigError, match="was made with 2 streams"):
        await other.look()
    await other.close()


async def test_another_number_of_streams(server: NatsServers, engine: Engine) -> None:
    with pytest.raises(
        ConfigError, match="was made with 2 streams; expected 3, because their number is fixed"
    ):
        await engine_on(server, streams=3).open()


async def test_more_replicas_than_servers(server: NatsServers) -> None:
    with pytest.raises(
        ConfigError, match="no member of a cluster, and 3 replicas need 3 servers; expected 1, or"
    ):
        await engine_on(server, replicas=3).open()


async def test_messages_that_the_server_does_not_take(tmp_path: Path) -> None:
    async with NatsServers(tmp_path, options="max_payload: 1048576") as servers:
        with pytest.raises(
            ConfigError, match=r"takes 1048576 bytes in a message; expected max_payload of at"
        ):
            await engine_on(servers).open()


async def test_a_server_without_jetstream(tmp_path: Path) -> None:
    async with NatsServers(tmp_path, options="jetstream: disabled") as servers:
        with pytest.raises(ConfigError, match="has no JetStream"):
            await engine_on(servers).open()


async def test_a_user_with_a_password(tmp_path: Path) -> None:
    users = 'authorization { user: wsqueue, password: "secret of a test" }'
    password = tmp_path / "password"
    password.touch(0o600)
    async with NatsServers(tmp_path, options=users) as servers:
        password.write_text("secret of a test\n")
        engine = engine_on(servers, user="wsqueue", password_file=str(password))
        await engine.open()
        assert await engine.append(Place(0, "a"), b"data", 0) == 1
        await engine.close()
        password.write_text("a wrong one\n")
        with pytest.raises(ConfigError, match="refuses this consumer") as caught:
            await engine_on(servers, user="wsqueue", password_file=str(password)).open()
        assert "a wrong one" not in str(caught.value)


async def test_certificates_of_both_ends(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server, own = authority.issue("server"), authority.issue("own")
    names = f'cert_file: "{server.certificate}", key_file: "{server.key}", ca_file: "{server.ca}"'
    async with NatsServers(tmp_path / "nats", options=f"tls {{ {names}, verify: true }}") as servers:
        files = {"certificate": own.certificate, "key": own.key, "ca": own.ca}
        config = retention(servers, **files)
        assert config.jetstream is not None
        tls = [url.replace("nats:", "tls:") for url in config.jetstream.servers]
        config = replace(config, jetstream=replace(config.jetstream, servers=tls))
        engine = JetStreamEngine(config, max_message_bytes=2**20)
        await engine.open()
        assert await engine.append(Place(0, "a"), b"data", 0) == 1
        await engine.close()
        (tmp_path / "own.key").write_text("no key")
        with pytest.raises(ConfigError, match=r"own\.key: it holds no private key"):
            await JetStreamEngine(config, max_message_bytes=2**20).open()


async def test_a_server_that_goes_and_comes_back(server: NatsServers, engine: Engine) -> None:
    place = Place(0, "a")
    changes: list[bool] = []
    engine.on_connection = lambda: changes.append(engine.connected)
    first = await engine.append(place, b"one", 0)
    server.kill(0)
    await eventually(lambda: changes == [False], "the connection is lost")
    with pytest.raises(Unanswered):
        await engine.append(place, b"two", first)
    server.start(0)
    await eventually(lambda: changes == [False, True], "the connection is there again")
    await server.healthy()
    assert (last := await engine.last(place)) is not None
    # The append that was not answered may have been sent late.
    assert last.data in (b"one", b"two")


class Node:
    """A consumer's store on servers, and all that it was told."""

    def __init__(self, servers: NatsServers) -> None:
        self.outcomes: list[Outcome] = []
        config = retention(servers)
        engine = JetStreamEngine(config, max_message_bytes=2**20)
        self.store = SharedStore(config, self.outcomes.extend, engine=engine, streams=STREAMS)

    async def publish(self, *chains: AppendChain) -> list[str]:
        self.store.append(chains)
        async with asyncio.timeout(60):
            await self.store.settle()
        mine = [one for one in self.outcomes if any(one.chain is chain for chain in chains)]
        return [one.code or ("stored" if one.record is not None else "repeat") for one in mine]


async def test_two_stores_are_one_log(server: NatsServers) -> None:
    one, two = Node(server), Node(server)
    await one.store.open()
    await two.store.open()
    try:
        opening = two.store.opening(two.store.reading("news", 1))
        assert opening is not None
        await opening
        assert await one.publish(batch(1), batch(2, 1)) == ["stored", "stored"]
        assert await two.publish(batch(1), batch(3, 2)) == ["repeat", "stored"]
        assert await one.publish(batch(3, 2), batch(5, 4)) == ["repeat", "after_refused"]
        heard = [outcome.record.offset for outcome in two.outcomes if outcome.record is not None]
        assert heard == [0, 1, 2]
        third = Node(server)
        await third.store.open()
        log = third.store.reading("news", 1)
        opening = third.store.opening(log)
        assert opening is not None
        await opening
        assert (third.store.log_id(log), log.next) == (one.store.log_id(log), 3)
        assert [record.offset for record in await third.store.read(log, 0, 2**20)] == [0, 1, 2]
        await third.store.close()
    finally:
        await one.store.close()
        await two.store.close()


async def test_the_leader_of_a_cluster_is_killed(tmp_path: Path) -> None:
    async with NatsServers(tmp_path, 3) as servers:
        one, two = Node(servers), Node(servers)
        await one.store.open()
        await two.store.open()
        try:
            number = 0
            for killed in (0, 1):
                for _ in range(10):
                    number += 1
                    node = (one, two)[number % 2]
                    assert await node.publish(batch(number, number - 1)) == ["stored"]
                servers.kill(killed)
                chains = [
                    append_one("news", packed("x"), "p", number + more, number + more - 1)
                    for more in range(1, 6)
                ]
                number += 5
                assert set(await one.publish(*chains)) <= {"stored", "repeat"}
                servers.start(killed)
                await servers.healthy()
            log = two.store.reading("news", 1)
            opening = two.store.opening(log)
            assert opening is not None
            await opening
            assert log.next == number
        finally:
            await one.store.close()
            await two.store.close()


@pytest.mark.parametrize("count", [1, 3])
async def test_states_on_servers_that_are_killed(
    tmp_path: Path, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states, "MAX_NAMES_PER_TOPIC", 2)
    async with NatsServers(tmp_path, count) as servers:
        one, two = Node(servers).store, Node(servers).store
        await one.open()
        await two.open()
        try:
            assert await one.state("news", "a") is None
            # Servers that have just made a stream may not all know yet where it is.
            first = await answered(lambda: one.change_state("news", "a", b"one", 0))
            with pytest.raises(StateConflict):
                await two.change_state("news", "a", b"two", 0)
            second = await two.change_state("news", "a", b"two", first)
            with pytest.raises(StateConflict):
                await one.drop_state("news", "a", first)
            other = await one.change_state("news", "b", b"", 0)
            with pytest.raises(StatesFull, match="has 2 names; expected at most 2"):
                await one.change_state("news", "c", b"", 0)
            await one.change_state("other", "a", b"x" * 500_000, 0)
            await two.drop_state("news", "b", other)
            with pytest.raises(StateConflict):
                await one.drop_state("news", "b", other)
            assert await one.change_state("news", "b", b"again", 0) > other
            for index in range(count):
                servers.kill(index)
                servers.start(index)
            await servers.healthy()
            state = await answered(lambda: two.state("news", "a"))
            assert state == State(second, b"two")
            listed = await answered(two.states)
            assert {(one.topic, one.name): len(one.value) for one in listed} == {
                ("news", "a"): 3,
                ("news", "b"): 5,
                ("other", "a"): 500_000,
            }
        finally:
            await one.close()
            await two.close()


async def test_a_state_is_kept_as_long_as_it_is_not_dropped(
    server: NatsServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wsqueue.config.model.MIN_SHARED_AGE_SECONDS", 0.1)
    config = replace(retention(server), max_age_seconds=0.5)
    engine = JetStreamEngine(config, max_message_bytes=2**20)
    await engine.open()
    place, message = state_place("news", "a"), Place(0, "a")
    seq = await engine.append(place, b"one", 0)
    await engine.append(message, b"data", 0)
    async with asyncio.timeout(30):
        while await engine.last(message) is not None:  # noqa: ASYNC110 - nobody tells of it
            await asyncio.sleep(0.05)
    last = await engine.last(place)
    assert last is not None
    assert (last.seq, last.data) == (seq, b"one")
    counts = await engine.count(STATES, place.token.partition(".")[0])
    assert (counts.records, counts.below) == (1, 1)
    assert (await engine.count(STATES, "other")).below == 0
    await engine.close()


async def test_an_engine_that_makes_no_streams_has_no_states(server: NatsServers) -> None:
    engine = JetStreamEngine(retention(server), max_message_bytes=2**20, make=False)
    await engine.open()
    assert await engine.last(state_place("news", "a")) is None
    assert await engine.scan(STATES, 1, 2**20) == []
    await engine.close()


async def answered(request: Callable[[], Awaitable[Result]]) -> Result:
    """Ask until there is an answer, while servers elect a leader."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await request()
            except StorageError:
                await asyncio.sleep(0.2)
