"""The messages of a subscription that wait for the application, in memory."""

from __future__ import annotations

import pytest

from tests.support.fake_connection import FakeConnection
from wsqueue.client.inbox import MAX_WAITING_CHARACTERS, MAX_WAITING_MESSAGES, Inbox
from wsqueue.client.values import Gap, Message


def messages(count: int, size: int = 1) -> list[Message | Gap]:
    return [Message("news", "x" * size) for _ in range(count)]


def full() -> tuple[Inbox, FakeConnection]:
    """Return an inbox with one message too many, and the connection that it has paused."""
    inbox, connection = Inbox(), FakeConnection()
    for count, paused in ((MAX_WAITING_MESSAGES, 0), (1, 1)):
        inbox.put(messages(count))
        inbox.pause_if_full(connection)
        assert connection.paused == paused
    return inbox, connection


def test_items_are_taken_in_their_order() -> None:
    inbox = Inbox()
    items: list[Message | Gap] = [Message("a", "1"), Gap("a", 3), Message("b", "2")]
    inbox.put(items)
    assert len(inbox) == 3
    assert [inbox.take() for _ in items] == items
    with pytest.raises(IndexError):
        inbox.take()


@pytest.mark.parametrize(
    ("count", "size"), [(MAX_WAITING_MESSAGES + 1, 1), (2, MAX_WAITING_CHARACTERS // 2 + 1)]
)
def test_too_many_messages_or_characters_pause_until_half_is_taken(count: int, size: int) -> None:
    inbox, connection = Inbox(), FakeConnection()
    inbox.put(messages(count, size))
    for _ in range(2):
        inbox.pause_if_full(connection)
        assert connection.paused == 1
    while connection.paused:
        inbox.take()
    assert len(inbox) == min(MAX_WAITING_MESSAGES, count - 1) // 2


def test_all_connections_are_resumed_together() -> None:
    inbox, first = full()
    second = FakeConnection()
    inbox.pause_if_full(second)
    while len(inbox) > MAX_WAITING_MESSAGES // 2:
        assert (first.paused, second.paused) == (1, 1)
        inbox.take()
    assert (first.paused, second.paused) == (0, 0)


def test_a_lost_connection_is_not_resumed() -> None:
    inbox, connection = full()
    inbox.forget(connection)
    while inbox:
        inbox.take()
    assert connection.paused == 1


def test_a_connection_that_is_left_is_resumed_once() -> None:
    inbox, connection = full()
    for _ in range(2):
        inbox.release(connection)
        assert connection.paused == 0
    while inbox:
        inbox.take()
    assert connection.paused == 0


def test_a_closed_inbox_keeps_its_items_and_takes_no_more() -> None:
    inbox, connection = full()
    inbox.close()
    assert connection.paused == 0
    inbox.put(messages(1))
    inbox.pause_if_full(connection)
    assert connection.paused == 0
    assert len(inbox) == MAX_WAITING_MESSAGES + 1
