"""The key or the token with which a client proves itself; a token is renewed by the application.

```
a token ──ends soon, or a node says that it has ended──► renew() ──► the next token, for all connections
```
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import TypeAlias

from ..config.tokens import Token
from ..errors import ConfigError, WsqueueError
from ..protocol.access import Identity
from ..protocol.keys import PreSharedKey

RENEW_SECONDS = 10.0
"""Time before the end of a token from which on a new connection asks for the next one."""

Renew: TypeAlias = Callable[[], str | Awaitable[str]]
"""Returns a token, or awaits one."""


class RenewError(WsqueueError):
    """Say that the application has brought no token."""


class Credential:
    """Hold the key or the token of a client.

    Args:
        psk: The key or the token; None if the application brings a token.
        renew: Brings a token.
    """

    def __init__(self, psk: PreSharedKey | None, renew: Renew | None = None) -> None:
        assert psk is not None or renew is not None
        self._psk, self._renew = psk, renew
        self._renewing: asyncio.Task[PreSharedKey] | None = None

    def __str__(self) -> str:
        """Return the name of the key, and of the user of the token; "" without a name."""
        psk = self._psk
        if psk is None:
            return ""
        return str(Identity(psk.name, psk.claims.who if isinstance(psk, Token) else ""))

    @property
    def is_token(self) -> bool:
        """Return True for a token, also if the application has not brought one yet."""
        return self._renew is not None or (self._psk is not None and bool(self._psk.token))

    @property
    def is_named(self) -> bool:
        """Return True for a token, and for a key with a name."""
        return self.is_token or (self._psk is not None and bool(self._psk.name))

    @property
    def renewable(self) -> bool:
        """Return True if the application brings the next token."""
        return self._renew is not None

    def copy(self) -> Credential:
        """Return one for another client, which has no request for a token under way."""
        return Credential(self._psk, self._renew)

    async def current(self) -> PreSharedKey:
        """Return the key or the token for a new connection.

        Raises:
            RenewError: The application has brought no token.
        """
        psk = self._psk
        if self._renew is None or (psk is not None and not _ends(psk)):
            assert psk is not None
            return psk
        # All connections wait for one answer.
        if self._renewing is None:
            self._renewing = asyncio.create_task(self._ask(self._renew))
            self._renewing.add_done_callback(self._asked)
        renewing = self._renewing
        # asyncio.shield would log an error that comes when this is cancelled, from Python 3.14 on.
        await asyncio.wait([renewing])
        if renewing.cancelled():
            # Whoever waits is not, and would be taken for that.
            raise RenewError("the application has brought no token: its function was cancelled")
        return renewing.result()

    def ended(self, used: PreSharedKey) -> None:
        """Note that a node takes a token no more."""
        if self._renew is not None and used is self._psk:
            self._psk = None

    async def _ask(self, renew: Renew) -> PreSharedKey:
        try:
            brought = renew()
            text = await brought if inspect.isawaitable(brought) else brought
            self._psk = token_of(text)
        except Exception as error:
            # Whatever the application does wrong: the connection is tried again, and the error is told.
            raise RenewError(f"the application has brought no token: {error!r}") from error
        return self._psk

    def _asked(self, task: asyncio.Task[PreSharedKey]) -> None:
        self._renewing = None
        if not task.cancelled():
            task.exception()


def token_of(text: object) -> Token:
    """Return a token.

    Raises:
        ConfigError: The text is none.
    """
    if not isinstance(text, str):
        raise ConfigError(f"the token is {type(text).__name__}, expected str")
    try:
        return Token(text)
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _ends(psk: PreSharedKey) -> bool:
    return isinstance(psk, Token) and time.time() >= psk.claims.expires - RENEW_SECONDS
