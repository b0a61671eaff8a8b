"""Packets that go to a client as events, over a connection that the test plays."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from wsqueue.net.buffers import Buffers
from wsqueue.nodes.event_stream import SMALL_BYTES, EventOutlet, EventTurns
from wsqueue.protocol import v2
from wsqueue.protocol.close import CloseCode
from wsqueue.protocol.events import SLICE_BYTES, SLICE_MESSAGES, EventEncoder
from wsqueue.protocol.frames import frame_messages

from ...support.event_source import EventParser
from ...support.fake_connection import FakeConnection
from ...support.messages import deliver_one, packed

pytestmark = pytest.mark.anyio

LOG = "5f0c2be1a9d34c77"


class Written(FakeConnection):
    """Keep the bytes of events.

    Attributes:
        written: The writes since the test last looked.
    """

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def send_frames(self, frames: bytes) -> bool:
        if not self.sendable:
            return False
        self.written.append(frames)
        if self.room is not None:
            self.room -= len(frames)
        return True


class CountedTurns(EventTurns):
    """Count how often a turn was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0

    def ask(self, outlet: EventOutlet) -> None:
        self.asked += 1
        super().ask(outlet)


class Client:
    """Hold a stream of events and its outlet.

    Attributes:
        caught_up: How often the reader was to continue.
    """

    def __init__(self, turns: EventTurns | None = None, buffers: Buffers | None = None) -> None:
        self.connection, self.buffers = Written(), buffers or Buffers(2**30)
        self.caught_up, self._parser = 0, EventParser()
        encoder = EventEncoder(as_json=False, resumes=True)
        self.outlet = EventOutlet(
            self.connection, encoder, turns or EventTurns(), self.buffers, self._catch_up
        )
        self.outlet.send_packet(v2.Subscribed("news", LOG, 0, 0))
        self._offset = 0

    def _catch_up(self) -> None:
        self.caught_up += 1

    def send(self, *data: str) -> bool:
        """Send a batch as a reader does."""
        frames = frames_of(self._offset, *data)
        self._offset += len(data)
        return self.outlet.send_frames(frames)

    def writes(self) -> int:
        """Return the number of writes that have not been looked at."""
        return len(self.connection.written)

    def got(self) -> list[str]:
        """Return the data of the events since the last call."""
        written, self.connection.written = b"".join(self.connection.written), []
        return [event.data for event in self._parser.feed(written)]

    async def finished(self) -> list[str]:
        """Return the data of all events, once nothing waits any more."""
        async with asyncio.timeout(10):
            while self.outlet.congested:  # noqa: ASYNC110 - it takes turns of the loop
                await asyncio.sleep(0)
        return self.got()


def frames_of(offset: int, *data: str) -> bytes:
    packet = v2.encode(deliver_one("news", offset, "", 0, packed(*data)))
    return frame_messages([packet], masked=False, binary=True)


@pytest.fixture
def client() -> Iterator[Client]:
    made = Client()
    yield made
    made.outlet.drop()
    assert made.buffers.bytes == 0


async def test_a_small_batch_is_written_at_once(client: Client) -> None:
    assert client.send("one", "two")
    assert (client.outlet.congested, client.writes(), client.got()) == (False, 1, ["one", "two"])


async def test_the_events_of_a_small_batch_are_made_once() -> None:
    turns = EventTurns()
    clients = [Client(turns) for _ in range(3)]
    frames = frames_of(0, "one")
    for client in clients:
        assert client.outlet.send_frames(frames)
    first, *others = (client.connection.written for client in clients)
    assert all(written[0] is first[0] for written in others)
    # Other batches and other forms have events of their own.
    as_json = turns.events_of(frames, LOG, as_json=True)
    assert b'"one"' in as_json
    assert turns.events_of(frames_of(1, "one"), LOG, as_json=True) == as_json.replace(b":1\n", b":2\n")
    assert turns.events_of(frames, LOG, as_json=False) == first[0]


async def test_many_messages_are_written_in_turns(client: Client) -> None:
    data = [str(number) for number in range(3 * SLICE_MESSAGES)]
    assert client.send(*data)
    assert (client.outlet.congested, client.writes(), client.caught_up) == (True, 0, 0)
    # Packets that come meanwhile wait behind them.
    assert client.send("behind")
    client.outlet.send_packet(v2.Gap("news", len(data) + 9, 8))
    await asyncio.sleep(0)
    assert client.got() == data[:SLICE_MESSAGES]
    assert await client.finished() == [*data[SLICE_MESSAGES:], "behind", '{"missed":8}']
    assert client.caught_up == 1


async def test_streams_take_turns() -> None:
    turns = EventTurns()
    clients = [Client(turns) for _ in range(3)]
    data = ["x"] * 2 * SLICE_MESSAGES
    for client in clients:
        client.send(*data)
    for turn in range(1, 7):
        await asyncio.sleep(0)
        # One slice of one stream each.
        assert sum(client.writes() for client in clients) == turn
        assert max(client.writes() for client in clients) - min(client.writes() for client in clients) <= 1
    assert [client.got() for client in clients] == [data] * 3


async def test_a_client_that_reads_slowly(client: Client) -> None:
    client.connection.is_congested = True
    data = ["x" * SMALL_BYTES for _ in range(8)]
    assert client.send(*data)
    for _ in range(5):
        await asyncio.sleep(0)
    # It holds the packet and no more than one slice, and asks for no turn until the client reads.
    assert client.writes() == client.caught_up == 0
    assert 0 < client.buffers.bytes < 3 * SLICE_BYTES
    client.connection.is_congested = False
    client.outlet.resume()
    assert await client.finished() == data
    assert client.caught_up == 1
    client.outlet.resume()
    assert client.caught_up == 2


async def test_nothing_comes_within_a_long_event(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[bool] = []
    monkeypatch.setattr(
        type(client.connection.session), "say_inside_event", lambda _, one: inside.append(one)
    )
    client.connection.room = SLICE_BYTES
    lines = "\n" * SLICE_BYTES
    assert client.send(lines)
    for _ in range(5):
        await asyncio.sleep(0)
    assert (client.writes(), inside, client.got()) == (1, [True], [])
    client.connection.room = None
    client.outlet.resume()
    assert await client.finished() == [lines]
    assert inside == [True] * (len(inside) - 1) + [False]


async def test_a_connection_that_ends_takes_no_more_turns() -> None:
    turns = CountedTurns()
    client = Client(turns)
    client.send(*["x"] * 3 * SLICE_MESSAGES)
    await asyncio.sleep(0)
    client.outlet.fail(CloseCode.INTERNAL_ERROR)
    for _ in range(5):
        await asyncio.sleep(0)
    assert (client.writes(), client.send("more"), client.caught_up) == (1, False, 0)
    # The first turn asked for the second, which found the end.
    assert turns.asked == 2


async def test_what_waits_is_dropped(client: Client) -> None:
    client.send(*["x" * 1000] * 1000)
    await asyncio.sleep(0)
    client.outlet.drop()
    assert not client.outlet.congested
    for _ in range(5):
        await asyncio.sleep(0)
    assert (client.writes(), client.caught_up, client.buffers.bytes) == (1, 0, 0)


async def test_the_stream_with_the_most_waiting_is_given_up() -> None:
    turns, buffers = EventTurns(), Buffers(4 * SLICE_BYTES)
    slow, slower = Client(turns, buffers), Client(turns, buffers)
    for client, count in ((slow, 1), (slower, 6)):
        client.connection.is_congested = True
        client.send(*["x" * SLICE_BYTES] * count)
    assert (slow.connection.failed, slower.connection.failed) == (None, CloseCode.TRY_AGAIN_LATER)
    slow.outlet.drop()
    assert buffers.bytes == 0
