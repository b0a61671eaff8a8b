"""What a consumer keeps, counted in its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from wsqueue.errors import StorageError
from wsqueue.log.archive import FILE_NAME
from wsqueue.log.kept import Kept, kept_in
from wsqueue.protocol.routing import router

from ...support.stores import Logs, batch, limits

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("mode", ["sqlite", "memory"])
async def test_messages_of_chosen_topics_are_counted(tmp_path: Path, mode: str) -> None:
    topics = [f"topic {number}" for number in range(1500)]
    config = limits(mode=mode, directory=tmp_path, max_messages_per_topic=4)
    logs = Logs(config=config)
    await logs.store.open()
    await logs.stored(*(batch(1, topic=topic, count=3) for topic in topics))
    # The limit drops the first batch.
    await logs.stored(batch(2, 1, topic=topics[0], count=2))
    if mode == "sqlite":
        # The consumer runs.
        assert kept_in(tmp_path) == Kept(1500, 3 * 1499 + 2)
    await logs.store.close()
    assert kept_in(tmp_path) == Kept(1500, 3 * 1499 + 2)
    consumer_of = router(2)
    others = [topic for topic in topics if consumer_of(topic)]
    found = kept_in(tmp_path, lambda topic: consumer_of(topic) == 1)
    assert found == Kept(len(others), 3 * len(others) - (topics[0] in others))
    assert 0 < len(others) < len(topics)


def test_without_a_file_nothing_is_known(tmp_path: Path) -> None:
    assert kept_in(tmp_path) is None


@pytest.mark.parametrize("content", [b"", b"SQLite format 3\0", b"text" * 1000])
def test_another_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(StorageError, match=FILE_NAME):
        kept_in(tmp_path)
