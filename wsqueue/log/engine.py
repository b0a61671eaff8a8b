"""The interface of an engine, which keeps the log that consumers share on hosts of its own.

An engine has streams, a stream has subjects, and each topic has a subject (`place_of`). A subject's records
are in one order, by their sequence numbers in the stream, which rise and have holes. An append names the
record that must be the subject's last, so that of two appends at the same place one fails: compare and swap.

One more stream, `STATES`, has the states: a subject for each (topic, name), of which it keeps the last
record, whatever its age.

Each request ends in a few seconds: with an answer, or with `Unanswered`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Protocol

import msgspec

from ..protocol.base64url import base64url

TOKEN_BYTES = 16
"""Length of the digest in a topic's subject: two topics with the same one can't be found."""

STATES = -1
"""Number of the stream of the states, which is none of those that the topics are divided among."""

READ_BYTES = 1024 * 1024
"""Most bytes that one read asks an engine for; one record may have more."""


class EngineError(Exception):
    """Stand for a request that an engine did not do; the text is one for users."""


class Conflict(EngineError):  # noqa: N818 - the field's word
    """The subject's last record is another one: nothing was appended."""


class Full(EngineError):  # noqa: N818 - reads best where it is raised
    """There is no room for the record: nothing was appended."""


class Unanswered(EngineError):  # noqa: N818 - reads best where it is raised
    """There was no answer, or one that leaves the outcome open: an append may be done already, or later."""


class Place(msgspec.Struct, frozen=True):
    """Say where the records of a topic, or a state, are.

    Attributes:
        stream: Number of the stream.
        token: Token of the topic in its subject; of a state, the tokens of its topic and its name.
    """

    stream: int
    token: str


class Stored(msgspec.Struct, frozen=True, gc=False):
    """Hold a record of an engine.

    Attributes:
        seq: Its sequence number in the stream.
        data: Its bytes.
        token: As in its place.
    """

    seq: int
    data: bytes
    token: str


class StreamState(msgspec.Struct, frozen=True):
    """Describe a stream.

    Attributes:
        first: Sequence number of its first record.
        last: Sequence number of the last record that it ever got.
        bytes: Size of its records.
        first_time: Unix time of the first record, 0 without one.
        leader: Name of the server that leads it, "" without one.
        lag: Most records by which a replica that is reachable is behind.
        replicas: Number of servers that have it and are reachable.
    """

    first: int
    last: int
    bytes: int = 0
    first_time: float = 0.0
    leader: str = ""
    lag: int = 0
    replicas: int = 1


class Counts(msgspec.Struct, frozen=True):
    """Count the records of a stream.

    Attributes:
        records: Number of all records.
        bytes: Their size.
        below: Number of the records of subjects that begin with some token.
    """

    records: int
    bytes: int
    below: int


class Engine(Protocol):
    """Keep records in streams.

    Attributes:
        id: Id of the shared log, the same at all consumers.
        on_notice: Called with each notice of another consumer.
        on_connection: Called when the connection is lost, and when it is there again.
    """

    id: str
    on_notice: Callable[[bytes], None]
    on_connection: Callable[[], None]

    @property
    def connected(self) -> bool:
        """Return True if there is a connection to a server."""
        ...

    @property
    def server(self) -> str:
        """Return the name and version of the server that answers, "" without a connection."""
        ...

    async def open(self) -> None:
        """Connect, and make the streams that are missing.

        Raises:
            ConfigError: The servers are too old, or set up in another way than configured.
        """
        ...

    async def close(self) -> None:
        """Disconnect."""
        ...

    async def append(self, place: Place, data: bytes, after: int) -> int:
        """Append a record if the subject's last one has a sequence number, 0 for none; return the new one's.

        Raises:
            Conflict: It has another one.
            Full: There is no room.
            Unanswered: The outcome is not known.
        """
        ...

    async def last(self, place: Place) -> Stored | None:
        """Return the last record of a subject, as the leader of the stream has it, None without one.

        A leader that has lost the others without knowing may have an older one.

        Raises:
            Unanswered: There is no leader.
        """
        ...

    async def read(self, place: Place, seq: int, max_bytes: int) -> list[Stored]:
        """Return the next records of a subject from a sequence number on, as any server has them.

        The server may lack the newest ones.

        Raises:
            Unanswered: No server answers.
        """
        ...

    async def tokens(self, stream: int) -> list[str]:
        """Return the tokens of all subjects of a stream that have records, as its leader has them.

        Raises:
            Unanswered: There is no leader.
        """
        ...

    async def newest(self, stream: int, tokens: Sequence[str]) -> list[Stored]:
        """Return the last records of some subjects of a stream, at least one if there is any.

        The server may lack the newest ones.

        Raises:
            Unanswered: No server answers.
        """
        ...

    async def scan(self, stream: int, seq: int, max_bytes: int) -> list[Stored]:
        """Return the next records of all subjects of a stream, as `read` does.

        Raises:
            Unanswered: No server answers.
        """
        ...

    async def purge(self, place: Place, below: int) -> int:
        """Drop the records of a subject below a sequence number, and return how many there were.

        Raises:
            Unanswered: There is no leader.
        """
        ...

    async def state(self, stream: int) -> StreamState:
        """Return the state of a stream, as its leader has it.

        Raises:
            Unanswered: There is no leader.
        """
        ...

    async def count(self, stream: int, token: str) -> Counts:
        """Return the counts of a stream, as its leader has it.

        Args:
            stream: Number of the stream.
            token: First of several tokens in subjects whose records are counted too.

        Raises:
            Unanswered: There is no leader.
        """
        ...

    def notify(self, notice: bytes) -> None:
        """Tell the other consumers something, which may be lost."""
        ...

    async def set_age(self, seconds: float) -> None:
        """Let records be dropped at another age.

        Raises:
            Unanswered: There is no leader.
        """
        ...


def place_of(topic: str, streams: int) -> Place:
    """Return the place of a topic in an engine with that number of streams."""
    digest = _digest(topic)
    return Place(digest[0] % streams, base64url(digest))


def state_place(topic: str, name: str) -> Place:
    """Return the place of a state."""
    return Place(STATES, f"{base64url(_digest(topic))}.{base64url(_digest(name))}")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()[:TOKEN_BYTES]
