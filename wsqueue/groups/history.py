"""The part of a topic's history in which offsets that were read before mean the same messages now."""

from __future__ import annotations

import asyncio

from ..log.store import Store


async def opened(logs: Store, topic: str) -> None:
    """Wait until the log of a topic is known."""
    if (opening := logs.opening(logs.topic(topic))) is not None:
        await asyncio.wait([opening])


async def known_end(logs: Store, topic: str, log_id: str) -> int:
    """Return the offset up to which positions that were read in an epoch mean the same now, -1 if none does.

    Args:
        logs: The logs of all topics.
        topic: The topic.
        log_id: Id of the epoch, or of the topic's log if consumers share it.

    Raises:
        WsqueueError: The log cannot be read.
    """
    topic_log = logs.topic(topic)
    if log_id == logs.log_id(topic_log):
        return topic_log.next
    epoch = logs.epochs.number(log_id)
    if epoch is None:
        return -1
    end = await logs.epoch_end(topic_log, epoch)
    # Without a message that shows the end, it is before the first one that is kept.
    return min(topic_log.next, logs.earliest(topic_log) if end is None else end)


async def is_known(logs: Store, topic: str, log_id: str, offset: int) -> bool:
    """Return True if a position that was read in an epoch means the same now, and so do all before it.

    Args:
        logs: The logs of all topics.
        topic: The topic.
        log_id: Id of the epoch, or of the topic's log if consumers share it.
        offset: Offset behind the last message that was read.

    Raises:
        WsqueueError: The log cannot be read.
    """
    if offset > logs.topic(topic).next:
        # Others may have appended to a shared log since it was known, or it has lost its last messages.
        await opened(logs, topic)
    return offset <= await known_end(logs, topic, log_id)
