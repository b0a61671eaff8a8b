"""Answers of NATS servers that real ones seldom give, and their effect on a consumer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping
from typing import Any

import pytest
from nats.aio.msg import Msg

from wsqueue.config.model import JetStream, Retention
from wsqueue.errors import ConfigError
from wsqueue.log import jetstream
from wsqueue.log.engine import Full, Place, Unanswered
from wsqueue.log.jetstream import JetStreamEngine

pytestmark = pytest.mark.anyio


class Client:
    """Stand for a connection to a server."""

    is_connected = True
    _server_info: Mapping[str, Any] = {
        "version": "2.15.1",
        "jetstream": True,
        "cluster": "c",
        "max_payload": 2**21,
    }

    def __init__(self) -> None:
        self.answer: asyncio.Future[Msg] = asyncio.get_running_loop().create_future()
        self.closed = asyncio.Event()
        self.closed.set()

    async def close(self) -> None:
        await self.closed.wait()

    async def request(self, _subject: str, _data: bytes, *, timeout: float | None, headers: object) -> Msg:  # noqa: ASYNC109 - of the real one
        return await asyncio.wait_for(self.answer, timeout)

    async def publish(self, _subject: str, _data: bytes, *, reply: str) -> None:
        pass

    def new_inbox(self) -> str:
        return "inbox"

    async def next_msg(self, timeout: float | None) -> Msg:  # noqa: ASYNC109 - of the real one
        async def timed() -> Msg:
            return await asyncio.wait_for(self.answer, timeout)

        return await asyncio.create_task(timed())

    async def unsubscribe(self) -> None:
        pass

    async def flush(self) -> None:
        pass

    async def subscribe(self, _subject: str, **_options: object) -> Client:
        return self


class Engine(JetStreamEngine):
    """Get prepared answers to the requests for one stream, each a configuration or the code of an error."""

    def __init__(self, *answers: int | str) -> None:
        table = JetStream(servers=["nats://127.0.0.1:4222"], streams=1)
        super().__init__(Retention(mode="jetstream", jetstream=table), max_message_bytes=2**20)
        self.answers, self.asked = list(answers), list[str]()
        self.age = 86_400

    async def _connect(self, options: dict[str, Any]) -> None:
        self._client: Any = Client()

    async def _api(self, name: str, request: Mapping[str, Any]) -> Any:
        if name == "STREAM.INFO.wsqueue-state":
            return {"config": self._config_of("", subjects="wsqueue.state.*.*", age=0)}
        if not self.answers:
            return await super()._api(name, request)
        self.asked.append(name.rpartition(".")[0])
        if name.startswith("STREAM.UPDATE"):
            self.age = request["max_age"] // 10**9
        answer = self.answers.pop(0)
        if isinstance(answer, int):
            raise jetstream._ApiError({"err_code": answer, "description": f"error {answer}"})
        return {"config": self._config_of(answer, subjects="wsqueue.0.*", age=self.age)}

    def _config_of(self, id_: str, *, subjects: str, age: int) -> dict[str, Any]:
        return {
            "subjects": [subjects],
            "storage": "file",
            "discard": "new",
            "max_msgs_per_subject": 1,
            "num_replicas": 3,
            "allow_direct": True,
            "max_age": age * 10**9,
            "metadata": {"wsqueue.id": id_, "wsqueue.streams": "1"},
        }


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetstream, "CONNECT_SECONDS", 0.0)


async def test_a_stream_that_another_consumer_is_making() -> None:
    engine = Engine(
        jetstream.STREAM_NOT_FOUND, jetstream.NAME_IN_USE, jetstream.STREAM_NOT_FOUND, "of the other"
    )
    await engine.open()
    assert engine.asked == ["STREAM.INFO", "STREAM.CREATE", "STREAM.INFO", "STREAM.INFO"]
    assert engine.id == "of the other"


async def test_streams_get_the_age_of_a_configuration_that_was_changed_before_the_start() -> None:
    engine = Engine("log", "log")
    engine.age = 3600
    await engine.open()
    assert engine.asked == ["STREAM.INFO", "STREAM.UPDATE"]
    assert engine.age == 86_400


async def test_a_start_during_an_election(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(10008, 10008, "log")
    await engine.open()
    assert engine.id == "log"
    assert [record.getMessage() for record in caplog.records] == [
        'NATS servers not ready reason="error 10008"'
    ]


async def test_an_answer_that_does_not_change_by_itself() -> None:
    with pytest.raises(ConfigError, match="can't keep the log: error 10074"):
        await Engine(10074).open()


PLACE = Place(0, "token")
REQUESTS: list[Callable[[Engine], Coroutine[Any, Any, object]]] = [
    lambda engine: engine.state(0),
    lambda engine: engine.last(PLACE),
    lambda engine: engine.append(PLACE, b"", 0),
    lambda engine: engine.read(PLACE, 1, 1),
]


@pytest.mark.parametrize("request_", REQUESTS)
async def test_a_task_that_is_cancelled_when_its_answer_comes_ends(
    request_: Callable[[Engine], Coroutine[Any, Any, object]],
) -> None:
    """Otherwise a consumer would wait for ever for its tasks when it stops."""
    engine = Engine("log")
    await engine.open()

    async def ask_again() -> None:
        for _ in range(2):
            await request_(engine)

    task = asyncio.create_task(ask_again())
    for _ in range(3):
        await asyncio.sleep(0)
    engine._client.answer.set_result(Msg(engine._client, data=b'{"message": {"seq": 1}}'))
    task.cancel()
    await asyncio.wait([task], timeout=1)
    assert task.cancelled()


@pytest.mark.parametrize("request_", REQUESTS)
async def test_no_answer_comes(
    request_: Callable[[Engine], Coroutine[Any, Any, object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jetstream, "REQUEST_SECONDS", 0.01)
    engine = Engine("log")
    await engine.open()
    with pytest.raises(Unanswered, match="the NATS servers don't answer: time is up"):
        await request_(engine)


async def test_a_server_that_reads_no_more_holds_up_no_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jetstream, "CLOSE_SECONDS", 0.01)
    engine = Engine("log")
    await engine.open()
    engine._client.closed.clear()
    await engine.close()


@pytest.mark.parametrize(
    ("code", "text", "expected"),
    [
        (10077, "maximum bytes exceeded", Full),
        (10047, "insufficient storage resources available", Full),
        # The other servers have agreed on the record.
        (10077, "store is closed", Unanswered),
        (10077, "write msgs/1.blk: no space left on device", Unanswered),
    ],
)
async def test_no_room_is_told_only_if_nothing_is_stored(
    code: int, text: str, expected: type[Exception]
) -> None:
    engine = Engine()
    engine._client = client = Client()
    answer = {"error": {"code": 503, "err_code": code, "description": text}}
    client.answer.set_result(Msg(client, data=json.dumps(answer).encode()))  # type: ignore[arg-type]
    with pytest.raises(expected):
        await engine.append(Place(0, "x"), b"data", 0)


@pytest.mark.parametrize(
    ("replica", "reached"),
    [
        ({"current": True, "active": 20_509_032}, True),
        ({"current": False, "active": 900_000_000, "lag": 582}, True),
        ({"current": False, "active": 96_340_630_016, "lag": 582}, False),
        # The leader has never heard of it.
        ({"current": False, "active": 0}, False),
        ({"current": True, "active": 20_509_032, "offline": True}, False),
    ],
)
def test_a_replica_whose_host_is_off_is_not_reached(replica: dict[str, Any], reached: bool) -> None:
    """The servers call it offline minutes later."""
    assert jetstream._reached({"name": "n2"} | replica) is reached
