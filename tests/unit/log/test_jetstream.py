"""What a consumer does with answers of NATS servers that real ones seldom give."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from wsqueue.config.model import JetStream, Retention
from wsqueue.errors import ConfigError
from wsqueue.log import jetstream
from wsqueue.log.jetstream import JetStreamEngine

pytestmark = pytest.mark.anyio


class Client:
    """Stand for a connection to a server."""

    is_connected = True
    _server_info: Mapping[str, Any] = {"version": "2.15.1", "jetstream": True, "max_payload": 2**21}

    async def close(self) -> None:
        pass

    async def flush(self) -> None:
        pass

    async def subscribe(self, _subject: str, **_options: object) -> None:
        pass


class Engine(JetStreamEngine):
    """Get prepared answers to the requests for one stream, each a configuration or the code of an error."""

    def __init__(self, *answers: int | str) -> None:
        table = JetStream(servers=["nats://127.0.0.1:4222"], streams=1)
        super().__init__(Retention(mode="jetstream", jetstream=table), max_message_bytes=2**20)
        self.answers, self.asked = list(answers), list[str]()

    async def _connect(self, options: dict[str, Any]) -> None:
        self._client: Any = Client()

    async def _api(self, name: str, request: Mapping[str, Any]) -> Any:
        self.asked.append(name.rpartition(".")[0])
        answer = self.answers.pop(0)
        if isinstance(answer, int):
            raise jetstream._ApiError({"err_code": answer, "description": f"error {answer}"})
        config = {
            "subjects": ["wsqueue.0.*"],
            "storage": "file",
            "discard": "new",
            "num_replicas": 3,
            "allow_direct": True,
            "metadata": {"wsqueue.id": answer, "wsqueue.streams": "1"},
        }
        return {"config": config}


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
