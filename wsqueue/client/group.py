"""The membership in a worker group: messages are lent to this client, which tells their outcomes.

::

    GroupLink ── Lend ──> Inbox ──> GroupSubscription ──> GroupMessage.done()
        ^                                                      │
        └──────────────── Settlements <────────────────────────┘

- The number of messages in the inbox is bounded by `prefetch`, so that reading is never paused: confirmations
  come behind them.
- Leases of messages in the inbox are renewed, because the application has had no chance to deal with them.
- When the connection is lost, the messages in the inbox are dropped, because they are lent to others then.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping

import msgspec

from ..errors import ConnectError, NotAllowedError
from ..journal import log
from ..protocol import v2
from ..protocol.close import CloseCode, Closed
from ..protocol.packed import MAX_HEADER_NAME_CHARACTERS
from ..protocol.placement import LOG_SECONDS
from ..protocol.session import Event
from .arguments import check_name
from .failover import failover_order
from .inbox import Inbox
from .link import ClientLink, ClientSettings, fail, resolve
from .owner import Owner
from .settlements import How, Settlements
from .subscription import Subscription
from .values import NO_HEADERS, Gap, Message

logger = logging.getLogger(__name__)

RENEWALS = 3
"""Renewals in the time of a lease: one that is late by the time of two does no harm."""

NOT_KEPT = "the subscription is closed, and the outcome of the message is not kept: it will be lent again"


def join_packet(
    topic: str,
    group: object,
    *,
    start: object,
    prefetch: object,
    lease_seconds: object,
    max_deliveries: object,
    order_key: object,
) -> v2.Join:
    """Return the packet with the wishes of a member.

    Raises:
        ValueError: One of them is not as it must be; the error names it, and the right values.
    """
    group = check_name("group", group)
    if start not in ("earliest", "latest"):
        raise ValueError(f"{start!r} is not a start of a group: expected 'earliest' or 'latest'")
    if order_key is not None and not (
        isinstance(order_key, str)
        and 1 <= len(order_key) <= MAX_HEADER_NAME_CHARACTERS
        and not any("\ud800" <= character <= "\udfff" for character in order_key)
    ):
        raise ValueError(
            f"{order_key!r} is not the name of a header: expected 1 to {MAX_HEADER_NAME_CHARACTERS}"
            " characters, and no lone surrogates"
        )
    return v2.Join(
        topic,
        group,
        int(_within("prefetch", prefetch, int, 1, v2.MAX_PREFETCH)),
        _within("lease_seconds", lease_seconds, float, v2.MIN_LEASE_SECONDS, v2.MAX_LEASE_SECONDS),
        int(_within("max_deliveries", max_deliveries, int, 1, v2.MAX_DELIVERIES)),
        "latest" if start == "latest" else "earliest",
        order_key,
    )


def _within(name: str, value: object, kind: type[int] | type[float], low: float, high: float) -> float:
    number = value if isinstance(value, int | kind) and not isinstance(value, bool) else math.nan
    if not low <= number <= high:
        noun = "a whole number" if kind is int else "a number"
        raise ValueError(f"{name} is {value!r}, expected {noun} from {low:g} to {high:g}")
    return float(number)


class GroupMessage(Message, frozen=True, gc=True, eq=False):
    """Hold a message that a group has lent to this client.

    Attributes:
        deliveries: How often it was lent, this time included.
    """

    deliveries: int = 1
    _link: GroupLink = msgspec.field(default=None)  # type: ignore[assignment]  # always given

    def __repr__(self) -> str:
        return f"GroupMessage({self.topic!r}, {self.data!r}, {self.offset}, deliveries={self.deliveries})"

    async def done(self) -> None:
        """Say that the message is done, and wait until that is kept: then it is never lent again.

        Raises:
            ConnectError: The consumer does not answer, or the subscription is closed. The message may be lent
                again.
            OwnerError: The caller is another process, thread or event loop than that of the client.
        """
        await self._link.settle(self, "done")

    def done_nowait(self) -> None:
        """Say that the message is done, without waiting; `GroupSubscription.flush` waits for all.

        Raises:
            ConnectError: The subscription is closed.
            OwnerError: As for `done`.
        """
        self._link.settle_nowait(self, "done")

    async def again(self, delay: float = 0.0) -> None:
        """Give the message back, so that it is lent again, perhaps to another member.

        Args:
            delay: Seconds before which it is not lent again.

        Raises:
            ValueError: The delay is below 0, or above a day.
            ConnectError: As for `done`.
            OwnerError: As for `done`.
        """
        if not 0 <= delay <= v2.MAX_DELAY_SECONDS:
            raise ValueError(f"the delay is {delay!r}, expected 0 to {v2.MAX_DELAY_SECONDS:.0f} seconds")
        await self._link.settle(self, "again", delay=float(delay))

    async def reject(self, reason: str) -> None:
        """Give the message up: it becomes a dead letter, whatever the number of its deliveries.

        Args:
            reason: Why, for the header `dead-reason`; a longer text is cut after 200 characters, and lone
                surrogates, which UTF-8 lacks, become question marks.

        Raises:
            TypeError: The reason is not a text.
            ConnectError: As for `done`.
            OwnerError: As for `done`.
        """
        if not isinstance(reason, str):
            raise TypeError(f"the reason is {reason!r}, expected a text")
        # An error names a file as the system does, whose bytes may be no UTF-8.
        reason = reason[: v2.MAX_REASON_CHARACTERS].encode(errors="replace").decode()
        await self._link.settle(self, "reject", reason=reason)

    def extend(self) -> None:
        """Begin the lease of the message anew, because the work takes longer.

        Raises:
            ConnectError: The subscription is closed.
            OwnerError: As for `done`.
        """
        self._link.settle_nowait(self, "extend")


class GroupLink(ClientLink):
    """Be a member of a group at the consumer of its topic.

    The consumer is that of the topic. If it shares its log, the group may be at any other, which one tells
    from another by trying: each of them knows whether it coordinates the group.

    Args:
        home: The index of the consumer of the topic.
        settings: Those of the client.
        join: The wishes of this member.
        inbox: Gets the messages.

    Attributes:
        latest: The message that is done once the next one is asked for, unless it has an outcome by then.
    """

    def __init__(self, home: int, settings: ClientSettings, join: v2.Join, inbox: Inbox) -> None:
        # A classic consumer has no groups, and takes a connection for a subscription.
        config = msgspec.structs.replace(settings.config, allow_classic=False)
        self._consumers = consumers = config.subscribe_addresses
        self._home, self._shared = home, settings.shared_log
        self._all = [consumers[home]]
        for index in failover_order(join.topic, range(len(consumers))):
            if consumers[index] not in self._all:
                self._all.append(consumers[index])
        super().__init__(self._all, msgspec.structs.replace(settings, config=config))
        self._join, self._inbox = join, inbox
        self._waiting_for_log: asyncio.TimerHandle | None = None
        self._named_log = False
        self._open_seconds = settings.open_seconds
        self._settlements: Settlements[asyncio.Future[None]] = Settlements(join.topic, join.group)
        self._log: str | None = None
        self._refusal: v2.Left | None = None
        # True until all is confirmed that was said on earlier connections.
        self._rejoined = False
        # False once the application takes no more messages.
        self._taking = True
        self.latest: GroupMessage | None = None
        self._lost = False
        self._sending: asyncio.Handle | None = None
        self._renewing: asyncio.TimerHandle | None = None

    @property
    def ready(self) -> bool:
        """Return True if this client is a member."""
        return self.connection is not None and self._log is not None

    @property
    def gives_up(self) -> bool:
        """Return True if the group refuses this member for good, or the consumer does."""
        return self._refusal is not None or super().gives_up

    def start(self) -> None:
        """Start connecting, unless the link is started or belongs to another process."""
        if self._task is None or self._task.done():
            self._refusal = None
        super().start()

    def raise_if_hopeless(self) -> None:
        """Raise if trying longer would not help.

        Raises:
            ConnectError: The group refuses this member, or as for every link.
            AuthenticationError: As for every link.
            NotAllowedError: As for every link, or the key does not allow it.
        """
        if (refusal := self._refusal) is not None:
            text = f"no membership in the group {refusal.group!r}: {refusal.reason} ({refusal.code})"
            raise (NotAllowedError if refusal.code == "not_allowed" else ConnectError)(text)
        if self._inbox.closed and self.connection is None:
            raise ConnectError(NOT_KEPT)
        super().raise_if_hopeless()

    def up(self) -> None:
        """Ask for messages, at another consumer than that of the topic once it has named the same log."""
        assert self.connection is not None
        self._named_log = False
        if self._index == self._home:
            self.connection.send_packet(self._join)
        else:
            loop = asyncio.get_running_loop()
            self._waiting_for_log = loop.call_later(LOG_SECONDS, self._told_nothing)
        super().up()

    @property
    def _index(self) -> int:
        """Return the index of the consumer of this connection."""
        return self._consumers.index(self._address)

    def _told_nothing(self) -> None:
        """Note that another consumer has a log of its own, so that it is of no use here."""
        self._shared.note(self._index, None, home=False)
        self._try_next()

    def _told(self, packet: v2.Log) -> None:
        """Note which log a consumer has, and whether it can be used."""
        index, home = self._index, self._index == self._home
        self._named_log = True
        self._shared.note(index, packet.id, home=home)
        waiting, self._waiting_for_log = self._waiting_for_log, None
        if waiting is not None:
            waiting.cancel()
        if not packet.available or not (home or self._shared.may_use(index, self._home)):
            self._try_next()
        elif waiting is not None and self.connection is not None:
            self.connection.send_packet(self._join)

    def _try_next(self) -> None:
        """Go on at the next consumer."""
        if self.connection is not None:
            self.connection.close(CloseCode.NORMAL)

    def attempt_ended(self, closed: Closed) -> None:
        """Choose the consumers to try next: all, or that of the topic alone if it has a log of its own."""
        wanted = self._all if self._shared.may_leave(self._home) else self._all[:1]
        if wanted != self.addresses:
            tried = self._address
            self.addresses[:] = wanted
            self.failures = {address: why for address, why in self.failures.items() if address in wanted}
            self._next = wanted.index(tried) if tried in wanted else -1
        super().attempt_ended(closed)

    def down(self, closed: Closed, lost: int) -> None:
        """Forget the messages that the application has not taken: others get them."""
        self._log = None
        if self._waiting_for_log is not None:
            self._waiting_for_log.cancel()
            self._waiting_for_log = None
        self._inbox.clear()
        self._settlements.send_again()
        self._rejoined = True
        if self._renewing is not None:
            self._renewing.cancel()
            self._renewing = None

    def received_events(self, events: list[Event]) -> None:
        """Take messages and confirmations."""
        for event in events:
            if isinstance(event, v2.Lend):
                self._lent(event)
            elif isinstance(event, v2.Settled):
                self._confirm(event.number)
            elif isinstance(event, v2.Joined):
                self._joined(event.log)
            elif isinstance(event, v2.Log):
                self._told(event)
            elif isinstance(event, v2.Left) and event.code == "elsewhere":
                self._try_next()
            elif isinstance(event, v2.Left) and event.code is not None:
                self._refuse(event)
            elif isinstance(event, v2.Draining):
                self.leave(event.retry_seconds)
                self.release()
        self.notify()

    def _joined(self, log_id: str) -> None:
        """Begin as a member; messages from before, if there are any, are lent again."""
        if not self._named_log:
            self._shared.note(self._index, None, home=True)
        self._inbox.clear()
        self._log = log_id
        self._send()
        self._renew_later()

    def _lent(self, event: v2.Lend) -> None:
        if self._log is None:
            return
        if self._taking:
            self._inbox.put(self._messages(event, self._log))
        else:
            # It was on its way when this client gave the others back.
            offsets = range(event.offset, event.offset + event.messages.count)
            self._settlements.settle("release", self._log, offsets)
            self._send()

    def _confirm(self, number: int) -> None:
        resolve(self._settlements.confirm(number))
        if self._settlements.empty:
            self._rejoined = False

    def _refuse(self, refusal: v2.Left) -> None:
        self._refusal = refusal
        if self.connection is not None:
            self.connection.close(CloseCode.NORMAL)

    def settle_nowait(
        self,
        message: GroupMessage,
        how: How,
        *,
        delay: float = 0.0,
        reason: str = "",
        waiter: asyncio.Future[None] | None = None,
    ) -> None:
        """Tell the outcome of a message.

        Raises:
            ConnectError: The subscription is closed.
            OwnerError: The caller is another process, thread or event loop than that of the client.
        """
        self._owner.check()
        if self._inbox.closed:
            raise ConnectError(NOT_KEPT)
        if message is self.latest and how != "extend":
            self.latest = None
        self._settlements.settle(
            how, message.log, [message.offset], delay=delay, reason=reason, waiter=waiter
        )
        if self._sending is None:
            # Outcomes of the same turn of the event loop share packets.
            self._sending = asyncio.get_running_loop().call_soon(self._send)

    async def settle(self, message: GroupMessage, how: How, *, delay: float = 0.0, reason: str = "") -> None:
        """Tell the outcome of a message, and wait until it is kept.

        Raises:
            ConnectError: As `settle_nowait`, or the consumer does not answer.
            OwnerError: As `settle_nowait`.
        """
        self._owner.check()
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.settle_nowait(message, how, delay=delay, reason=reason, waiter=future)
        await self.until(future.done, self._open_seconds)
        future.result()

    async def flush(self) -> None:
        """Wait until all outcomes are kept.

        Raises:
            ConnectError: The consumer does not answer.
        """
        await self.until(lambda: self._settlements.empty, self._open_seconds)

    def take_no_more(self) -> None:
        """Give the messages back that the application has not taken, and all that come from now on."""
        self._taking = False
        if not self._inbox and self._log is not None:
            # Messages may be on their way, until the consumer confirms that it lends nothing more.
            self._settlements.settle("release", self._log, [v2.MAX_NUMBER])
        self.release()

    async def stop(self) -> None:
        """Give the messages back that the application has not taken, and leave the group."""
        self.release()
        await super().stop()

    async def until_changed(self) -> None:
        """Wait for a message, or for news of the connection.

        Raises:
            ConnectError: As `raise_if_hopeless`.
        """
        self.raise_if_hopeless()
        await self._until_changed()

    def fail_all(self) -> None:
        """Tell all who wait that the outcomes of their messages are not kept."""
        self._lost |= not self._settlements.empty
        fail(self._settlements.fail_all(), ConnectError(NOT_KEPT))
        self.notify()

    def raise_if_lost(self) -> None:
        """Raise if outcomes were given up at the end.

        Raises:
            ConnectError: They were.
        """
        if self._lost:
            raise ConnectError(NOT_KEPT)

    def release(self) -> None:
        """Give the messages back that the application has not taken."""
        self._settle_waiting("release")
        self._inbox.clear()
        self._send()

    def _settle_waiting(self, how: How) -> None:
        if self._inbox and self._log is not None:
            offsets = [item.offset for item in self._inbox if isinstance(item, Message)]
            self._settlements.settle(how, self._log, offsets)

    def _send(self) -> None:
        self._sending = None
        if self.ready and self._settlements.unsent:
            assert self.connection is not None
            self.connection.send([v2.encode(packet) for packet in self._settlements.take()])

    def _renew_later(self) -> None:
        if self._renewing is not None:
            self._renewing.cancel()
        seconds = self._join.lease_seconds / RENEWALS
        self._renewing = asyncio.get_running_loop().call_later(seconds, self._renew)

    def _renew(self) -> None:
        """Renew the leases of the messages that the application has had no chance to take."""
        self._settle_waiting("extend")
        self._send()
        self._renew_later()

    def _messages(self, event: v2.Lend, log: str) -> list[Message | Gap]:
        packed = event.messages
        headers: list[Mapping[str, str] | None] = list(packed.headers or [None] * packed.count)
        both = zip(packed.unpack(), headers, strict=True)
        messages: list[Message | Gap] = [
            GroupMessage(event.topic, data, log, offset, header or NO_HEADERS, event.deliveries, self)
            for offset, (data, header) in enumerate(both, event.offset)
        ]
        if self._settlements.empty or not self._rejoined:
            return messages
        # After a reconnect, messages come that are done, and of which the consumer has not heard it yet.
        done = self._settlements.is_done
        return [one for one in messages if isinstance(one, Message) and not done(log, one.offset)]


class GroupFeed:
    """Bring the messages of a group into an inbox, as `Feed` does those of topics.

    Args:
        home: The index of the consumer of the topic.
        settings: Those of the client.
        join: The wishes of this member.

    Attributes:
        inbox: The messages that the application has not taken yet.
        link: The membership.
    """

    at_end = False

    def __init__(self, home: int, settings: ClientSettings, join: v2.Join) -> None:
        self._settings = settings
        self._closing: asyncio.Task[None] | None = None
        self.inbox = Inbox()
        self.link = GroupLink(home, settings, join, self.inbox)

    def start(self) -> None:
        """Become a member; a link that gave up tries once more."""
        self.link.start()

    async def wait_open(self) -> None:
        """Wait until this client is a member.

        Raises:
            ConnectError: The consumer does not answer, or the group refuses this member.
            AuthenticationError: The consumer has another key.
        """
        await self.link.wait_open(self._settings.open_seconds)

    async def until_changed(self) -> None:
        """Wait for a message, or for news of the link.

        Raises:
            ConnectError: As for `wait_open`.
            AuthenticationError: As for `wait_open`.
        """
        await self.link.until_changed()

    async def stop(self) -> None:
        """Leave the group; `start` joins it again."""
        await self.link.stop()

    async def close(self) -> None:
        """Leave the group, once the outcomes that were told are kept."""
        self.inbox.close()
        try:
            if self.link.ready:
                self.link.take_no_more()
                async with asyncio.timeout(self._settings.open_seconds):
                    await self.link.flush()
        except (ConnectError, TimeoutError) as error:
            reason = error if isinstance(error, ConnectError) else "no answer in time"
            log(logger, logging.WARNING, "group left", reason=reason)
        finally:
            self.link.fail_all()
            await self.link.stop()

    def drop(self) -> None:
        """Close, because the application has dropped its subscription."""
        if not self.inbox.closed:
            self._closing = asyncio.get_running_loop().create_task(self.close())


class GroupSubscription(Subscription[GroupMessage]):
    """Iterate over the messages that a group lends to this client; made by `Client.subscribe` with `group`.

    A message that the application has taken is to be settled: with `done`, `again` or `reject`. Without that,
    it is lent to another member when its lease is over, or this client has left the group or is gone.
    """

    def __init__(self, feed: GroupFeed, owner: Owner, *, auto_done: bool) -> None:
        super().__init__(feed, owner, follow=True, on_gap="raise")
        self._link, self._auto_done = feed.link, auto_done

    async def __anext__(self) -> GroupMessage:
        """Return the next message; with `auto_done`, the one before is done if it has no outcome.

        Raises:
            ConnectError: The consumer does not answer, or the group refuses this member for good.
            AuthenticationError: The consumer has another key.
            OwnerError: The caller is another process, thread or event loop than that of the client.
        """
        latest, self._link.latest = self._link.latest, None
        if latest is not None and not self._feed.inbox.closed:
            latest.done_nowait()
        message = await super().__anext__()
        if self._auto_done:
            self._link.latest = message
        return message

    async def flush(self) -> None:
        """Wait until all is kept that was said of messages.

        Raises:
            ConnectError: The consumer does not answer, or did not before the subscription was closed.
            OwnerError: The caller is another process, thread or event loop than that of the client.
        """
        self._owner.check()
        await self._link.flush()
        self._link.raise_if_lost()

    def release(self) -> None:
        """Take no more messages, and give those back that were not taken; the others can still be settled.

        Raises:
            OwnerError: The caller is another process, thread or event loop than that of the client.
        """
        self._owner.check()
        self._link.take_no_more()
