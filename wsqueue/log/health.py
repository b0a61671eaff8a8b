"""The state of an engine as a consumer sees it: whether it does its work, and since when it does not.

    works ──fail──▶ failing ──UNAVAILABLE_SECONDS──▶ unavailable ──succeed──▶ works
                       └────────────── succeed ──────────────────────────────▲

A consumer whose engine is unavailable tells its peers, so that they use others. No room is no reason for
that, because all consumers have the same engine.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from ..journal import log

logger = logging.getLogger(__name__)

UNAVAILABLE_SECONDS = 1.0
"""Time without success after which the engine counts as unavailable here: a reconnect takes less."""


class Health:
    """Know whether an engine does its work.

    Args:
        changed: Called when `available` changes.

    Attributes:
        available: False while the engine has done nothing that was asked of it for a while.
        unanswered: Number of requests without an answer that was of use.
    """

    def __init__(self, changed: Callable[[], None]) -> None:
        self.available, self.unanswered = True, 0
        self._changed = changed
        self._reason = self._refusal = ""
        self._since: float | None = None

    @property
    def failing(self) -> str:
        """Return why messages are not stored, "" while they are."""
        return self._refusal if self.available else self._reason

    @property
    def unavailable_seconds(self) -> float:
        """Return for how long the engine has been unavailable."""
        return 0.0 if self.available or self._since is None else time.monotonic() - self._since

    def fail(self, reason: str) -> None:
        """Note that the engine did not do something."""
        self.unanswered += 1
        self._reason = reason
        if self._since is None:
            self._since = time.monotonic()
            asyncio.get_running_loop().call_later(UNAVAILABLE_SECONDS, self._check)

    def refuse(self, reason: str) -> None:
        """Note that the engine has no room."""
        self.succeed()
        if not self._refusal:
            log(logger, logging.ERROR, "messages refused", reason=reason)
        self._refusal = reason

    def stored(self) -> None:
        """Note that the engine has stored something."""
        self.succeed()
        if self._refusal:
            log(logger, logging.INFO, "messages stored again", after=self._refusal)
            self._refusal = ""

    def succeed(self) -> None:
        """Note that the engine does its work."""
        if self._since is not None:
            self._reason, self._since = "", None
            self._check()

    def _check(self) -> None:
        """Tell when the engine becomes available or unavailable."""
        # A timer may come a little early.
        available = self._since is None or time.monotonic() - self._since < UNAVAILABLE_SECONDS * 0.9
        if available == self.available:
            return
        self.available = available
        if available:
            log(logger, logging.INFO, "log available")
        else:
            log(logger, logging.WARNING, "log unavailable", reason=self._reason)
        self._changed()
