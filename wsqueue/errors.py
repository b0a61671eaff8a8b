"""The errors of wsqueue, and who can correct them.

::

    WsqueueError
    ├── ConfigError          the operator's file or flag is wrong
    ├── ListenError          a node cannot listen on an address
    ├── StorageError         a disk is full or fails
    ├── InvalidMessage       the caller's message cannot be sent (also a ValueError)
    ├── PublishError         the consumer refused messages permanently; carries the code
    ├── WindowFull           too many messages are unconfirmed
    ├── OwnerError           the caller is not the process or event loop of the client (also a RuntimeError)
    ├── GapError             messages are gone before a subscriber got them; carries their number
    ├── PeerError            the peer broke the protocol; carries the close code
    └── ConnectError         no node answered
        ├── AuthenticationError    a node answered, and the keys differ or the token has ended
        └── NotAllowedError        a node answered, and the key does not allow it
"""

from __future__ import annotations

import os


class WsqueueError(Exception):
    """State a problem in one sentence."""


class ConfigError(WsqueueError):
    """Name the file, the line, the key and the expected value."""

    def __init__(self, problem: str, *, file: str = "", line: int | None = None, key: str = "") -> None:
        self.problem, self.file, self.line, self.key = problem, file, line, key
        where = f"{file}:{line}" if line is not None else file
        super().__init__(": ".join(part for part in (where, key, problem) if part))


class ListenError(WsqueueError):
    """Name the address and the system's reason; a later attempt may succeed."""


class StorageError(WsqueueError):
    """Say that a disk is full or fails; a later attempt may succeed."""


class InvalidMessage(WsqueueError, ValueError):  # noqa: N818 - reads best where it is raised
    """Refuse a topic or data that no node would accept."""


class PublishError(WsqueueError):
    """Say that a consumer refused messages permanently, and why.

    Attributes:
        code: A code of "Refusals" in docs/protocol.md, for example `full`.
    """

    def __init__(self, code: str, reason: str) -> None:
        self.code = code
        super().__init__(reason)


class WindowFull(WsqueueError):  # noqa: N818 - reads best where it is raised
    """Say that too many messages are unconfirmed to publish more without waiting."""


class OwnerError(WsqueueError, RuntimeError):
    """Say that a client is used in another process, thread or event loop than the one that first used it."""


class GapError(WsqueueError):
    """Say that messages of a topic are gone before the subscriber has got them.

    Attributes:
        topic: Their topic.
        missed: How many there were, None if that is unknown.
    """

    def __init__(self, topic: str, missed: int | None) -> None:
        self.topic, self.missed = topic, missed
        count = "some messages" if missed is None else f"{missed} messages"
        super().__init__(f"{count} of topic {topic!r} are gone")


def why(error: OSError) -> str:
    """Return the system's words for an error; asyncio's own text repeats the address in Python's notation."""
    if error.errno is not None and error.errno > 0:
        return os.strerror(error.errno)
    return error.strerror or str(error)


class ConnectError(WsqueueError):
    """Name the nodes that were tried and the answer of each."""


class AuthenticationError(ConnectError):
    """Say that a node answered, and has another pre-shared key, or takes the token no more."""


class NotAllowedError(ConnectError):
    """Say that a node answered, and that the key or the token does not allow it."""
