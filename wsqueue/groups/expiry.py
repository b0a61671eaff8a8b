"""The end of names that nobody has used for long, so that their number stays bounded."""

from __future__ import annotations

import logging
from collections.abc import Callable

from ..journal import log
from ..log.states import StateConflict
from ..log.store import Store
from .names import progress_of

logger = logging.getLogger(__name__)

UNUSED_SECONDS = 30 * 86_400
"""Time after which a group or a named reader that nobody uses is forgotten: longer than any holiday."""


async def expire(logs: Store, now: float, in_use: Callable[[str, str], bool]) -> None:
    """Forget the groups and named readers that were not used for long.

    Args:
        logs: The logs of all topics, which keep their states.
        now: Unix time.
        in_use: Returns True for a topic and the name of a state that somebody uses at this consumer.

    Raises:
        WsqueueError: The states cannot be read or changed.
    """
    for state in await logs.states():
        name = progress_of(state)
        if name is None or now - name.used < UNUSED_SECONDS or in_use(state.topic, state.name):
            continue
        try:
            await logs.drop_state(state.topic, state.name, state.version)
        except StateConflict:
            continue
        log(logger, logging.INFO, "name expired", topic=state.topic, name=state.name)
