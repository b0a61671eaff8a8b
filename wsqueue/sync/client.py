"""The blocking client: a client of asyncio on the thread of `background`, and another one after a fork."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, Literal, ParamSpec, Self, overload

from ..client import client as asynchronous
from ..client.group import GroupSubscription as AsyncGroupSubscription
from ..client.reader import ReaderSubscription as AsyncReaderSubscription
from ..client.subscription import Subscription as AsyncSubscription
from ..client.values import Gap, Message, Start
from . import background
from .subscription import GroupSubscription, ReaderMessage, ReaderSubscription, Subscription

Arguments = ParamSpec("Arguments")


class Client:
    """Publish and subscribe with calls that wait, from any thread; made by `wsqueue.sync.connect`.

    It may be made before a process forks, and used in the parent and in each child: a process that finds it
    used by its parent opens connections of its own. Only with a `publisher_secret` it stays with one process.
    """

    def __init__(self, client: asynchronous.Client) -> None:
        self._client = client
        # The process that uses it, once one does.
        self._process: int | None = None

    @property
    def confirmed(self) -> int:
        """Return how many messages are confirmed so far, or went to producers that only speak classic.

        They are those of this process.
        """
        return self._client.confirmed if self._process in (None, os.getpid()) else 0

    @property
    def lost_in_flight(self) -> int:
        """Return how many messages may be lost that went to producers that only speak classic.

        They are those of this process.
        """
        return self._client.lost_in_flight if self._process in (None, os.getpid()) else 0

    def publish(
        self,
        topic: str,
        *data: str | bytes,
        headers: Mapping[str, str] | None = None,
        id: int | None = None,  # noqa: A002 - as in the asyncio client
        timeout: float | None = None,
    ) -> None:
        """Publish messages, and wait until the consumer of the topic has confirmed them.

        Args:
            topic: As for `wsqueue.Client.publish`.
            data: As for `wsqueue.Client.publish`.
            headers: As for `wsqueue.Client.publish`.
            id: As for `wsqueue.Client.publish`.
            timeout: Seconds to wait at most.

        Raises:
            TimeoutError: The messages are not confirmed in time; they may be stored, now or later.
            OwnerError: It has a `publisher_secret`, and was used before this process was forked.
            WsqueueError: As for `wsqueue.Client.publish`.
            ValueError: As for `wsqueue.Client.publish`.
            RuntimeError: The client was closed, or the caller is a function that renews tokens.
        """
        client = self._here()
        complaint = f"the messages on {topic!r} were not confirmed"
        self._run(lambda: client.publish(topic, *data, headers=headers, id=id), timeout, complaint)

    def publish_nowait(
        self,
        topic: str,
        *data: str | bytes,
        headers: Mapping[str, str] | None = None,
        id: int | None = None,  # noqa: A002 - as in the asyncio client
        timeout: float | None = None,
    ) -> None:
        """Publish messages without waiting for confirmations, but for room if too many are unconfirmed.

        `flush` and `close` wait for all of them and raise their errors.

        Args:
            topic: As for `publish`.
            data: As for `publish`.
            headers: As for `publish`.
            id: As for `publish`.
            timeout: As for `publish`.

        Raises:
            TimeoutError: There is no room in time, and the messages are not published.
            WsqueueError: As for `wsqueue.Client.publish_nowait`.
            ValueError: As for `publish`.
            RuntimeError: As for `publish`.
        """
        client = self._here()

        async def publish() -> None:
            await client.drain()
            client.publish_nowait(topic, *data, headers=headers, id=id)

        self._run(publish, timeout, f"there was no room for messages on {topic!r}")

    def flush(self, timeout: float | None = None) -> None:
        """Wait until all messages that were published before are confirmed.

        Args:
            timeout: As for `publish`.

        Raises:
            TimeoutError: They are not confirmed in time.
            WsqueueError: As for `wsqueue.Client.flush`.
        """
        self._run(self._here().flush, timeout, "not all messages were confirmed")

    @overload
    def subscribe(
        self, *topics: str, start: Start = "latest", follow: bool = True, on_gap: Literal["raise"] = "raise"
    ) -> Subscription[Message]: ...

    @overload
    def subscribe(
        self, *topics: str, start: Start = "latest", follow: bool = True, on_gap: Literal["yield"]
    ) -> Subscription[Message | Gap]: ...

    @overload
    def subscribe(
        self,
        *,
        prefix: str,
        start: Start = "latest",
        follow: bool = True,
        on_gap: Literal["raise"] = "raise",
    ) -> Subscription[Message]: ...

    @overload
    def subscribe(
        self, *, prefix: str, start: Start = "latest", follow: bool = True, on_gap: Literal["yield"]
    ) -> Subscription[Message | Gap]: ...

    @overload
    def subscribe(
        self,
        topic: str,
        /,
        *,
        group: str,
        start: Literal["earliest", "latest"] = "earliest",
        prefetch: int = asynchronous.PREFETCH,
        lease_seconds: float = asynchronous.LEASE_SECONDS,
        max_deliveries: int = asynchronous.MAX_DELIVERIES,
        order_key: str | None = None,
        auto_done: bool = False,
    ) -> GroupSubscription: ...

    @overload
    def subscribe(
        self,
        topic: str,
        /,
        *,
        reader: str,
        start: Literal["earliest", "latest"] = "earliest",
        follow: bool = True,
        on_gap: Literal["raise"] = "raise",
        auto_done: bool = False,
    ) -> ReaderSubscription[ReaderMessage]: ...

    @overload
    def subscribe(
        self,
        topic: str,
        /,
        *,
        reader: str,
        start: Literal["earliest", "latest"] = "earliest",
        follow: bool = True,
        on_gap: Literal["yield"],
        auto_done: bool = False,
    ) -> ReaderSubscription[ReaderMessage | Gap]: ...

    def subscribe(self, *topics: str, **options: Any) -> Subscription[Any]:
        """Return an iterator over the messages of one topic or more, or of all with a prefix.

        Args:
            topics: As for `wsqueue.Client.subscribe`.
            options: As for `wsqueue.Client.subscribe`.

        Raises:
            WsqueueError: As for `wsqueue.Client.subscribe`.
            ValueError: As for `wsqueue.Client.subscribe`.
            RuntimeError: As for `publish`.
        """
        client = self._here()
        found: object = background.call(lambda: client.subscribe(*topics, **options))
        prefix = options.get("prefix")
        noun = ", ".join(map(repr, topics)) if prefix is None else f"topics that begin with {prefix!r}"
        if isinstance(found, AsyncGroupSubscription):
            return GroupSubscription(found, noun)
        if isinstance(found, AsyncReaderSubscription):
            return ReaderSubscription(found, noun)
        assert isinstance(found, AsyncSubscription)
        return Subscription(found, noun)

    def close(self, *, confirm: bool = True) -> None:
        """Close every connection, after all published messages are confirmed.

        Args:
            confirm: False to wait only until a producer has read the messages.

        Raises:
            WsqueueError: As for `wsqueue.Client.close`.
        """
        client = self._here()
        background.run(lambda: client.close(confirm=confirm))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        client = self._here()
        background.run(lambda: client.__aexit__(kind, *error))

    def _here(self) -> asynchronous.Client:
        """Return the client of this process.

        Raises:
            OwnerError: It has a `publisher_secret`, and belongs to the parent process.
        """
        process = os.getpid()
        if self._process != process:
            with background.lock():
                if self._process not in (None, process):
                    another = self._client.another()
                    background.keep(self._client)
                    self._client = another
                self._process = process
        return self._client

    @staticmethod
    def _run(work: Callable[[], Any], timeout: float | None, complaint: str) -> None:
        async def work_in_time() -> None:
            async with background.in_time(timeout, complaint):
                await work()

        background.run(work_in_time)


def _blocking(make: Callable[Arguments, asynchronous.Client]) -> Callable[Arguments, Client]:
    @functools.wraps(make)
    def connect(*args: Arguments.args, **options: Arguments.kwargs) -> Client:
        token: object = options.get("token")
        if callable(token):
            options["token"] = background.apart(token)
        return Client(make(*args, **options))

    connect.__doc__ = """Return a blocking client, to be used in `with`; it connects when it needs to.

    The arguments are those of `wsqueue.connect`. A `token` that is a function is called in a thread of its
    own, and must call no client.

    Raises:
        ConfigError: As for `wsqueue.connect`.
    """
    return connect


connect = _blocking(asynchronous.connect)
