"""A worker group at its coordinator: messages go out, and their outcomes are kept.

```
            ┌──────────► messages (in memory, or read from the archive)
            │                │
 Join ──► pump ──────────────┴──► Lend ──► member
            ▲                                │
            │      lending ◄── Settle ◄──────┘
            │         │ changed
            │         ▼
            └──── the store ──► Settled ──► member
                      └──► dead letters ──► the log
```

- `lending` has the rules. This class moves packets, reads messages, keeps the state and looks at the clock.
- The state is written by one task at a time (`_writing`), with all that has changed meanwhile. A member is
  told that something is settled when the state with it is kept. In a busy group, the task waits between two
  changes, longer in a flood of outcomes.
- `pump` lends until nothing can be lent, or the next message must be read from the archive (`_reading`).
- A dead letter is published when the state that names it is kept, under a public id of the group's own and
  the next number, so that it is in the log once, however often this is tried.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter, deque
from collections.abc import Callable

import msgspec

from ..errors import WsqueueError
from ..journal import Complaint, log
from ..log.states import StatesFull
from ..log.store import AppendChain, Outcome, Store
from ..net.connection import Connection
from ..net.timers import Timer
from ..protocol import v2
from ..protocol.close import CloseCode
from ..protocol.packed import Packed
from ..protocol.ranges import Ranges
from ..protocol.routing import dead_letter_topic
from .dead_letters import dead_letter
from .history import is_known, known_end, opened
from .keeper import Elsewhere, StateKeeper
from .lending import Lending, Member, Terms
from .messages import CHUNK_BYTES, TopicMessages
from .state import Dying, GroupState

logger = logging.getLogger(__name__)

MAX_MEMBERS = 1000
"""Members of a group: each look at all leases takes a few milliseconds with as many."""

TURN_LOANS = 64
"""Loans of one turn of the loop: some milliseconds of work."""

RETRY_SECONDS = 1.0
"""Pause before a state is written again, or dead letters, that could not be written."""

BUSY_MESSAGES = 100
"""Messages with outcomes in one change of the state from which on the next change waits for more: members
that wait for each outcome have fewer."""

PAUSE_SECONDS = 0.005
"""Time for which it waits: a commit of its own costs as much as some hundred messages."""

FLOOD_MESSAGES = 250
"""Messages with outcomes in such a time from which on it waits for another one: with 50,000 a second, most
members go on without an answer. Fewer are answered sooner."""

MAX_PAUSES = 10
"""Number of such times at most, so that a member that does wait for an answer has it after 50 ms."""

USED_SECONDS = 86_400
"""Age from which on a state says anew when its group was used, so that it is not forgotten too early: while
its members wait, too, because nobody knows of them after a crash."""

MAX_TICK_SECONDS = 1.0
"""Longest time between two looks for leases that are over, and messages that are due."""

MIN_TICK_SECONDS = 0.01
"""Shortest time between two looks."""

TICKS = 4
"""Looks in the time of the shortest lease, so that none is over much later than it says."""


class Burial(msgspec.Struct, gc=False, eq=False):
    """Stand for the source of a dead letter.

    Attributes:
        group: The group that publishes it.
        letter: The message that was given up.
    """

    group: Group
    letter: Dying


class _Turn(msgspec.Struct):
    """Hold the loans of a turn of the loop.

    Attributes:
        now: Unix time.
        end: Offset of the next message that will be stored.
        packets: The packets of each member.
        sizes: Bytes of the messages in them.
    """

    now: float
    end: int
    packets: dict[Member, list[bytes]] = {}
    sizes: dict[Member, int] = {}


class Group:
    """Coordinate the members of one group.

    Args:
        logs: The logs of all topics.
        topic: The topic.
        name: The name of the group.
        owner: Id of this consumer.
        counters: Counters of the node.
        clock: Returns the Unix time, as the logs know it.
        ended: Called when it has no members any more, and its state is kept.
    """

    def __init__(
        self,
        logs: Store,
        topic: str,
        name: str,
        *,
        owner: str,
        counters: Counter[str],
        clock: Callable[[], float],
        ended: Callable[[Group], None],
    ) -> None:
        self.topic, self.name = topic, name
        self._logs, self._counters, self._clock, self._ended = logs, counters, clock, ended
        self._lending: Lending | None = None
        self._order_key: str | None = None
        self._keeper = StateKeeper(logs, topic, name, owner)
        self._members: dict[Connection, Member] = {}
        self._joining: dict[Connection, v2.Join] = {}
        self._connections: dict[Member, Connection] = {}
        # Fresh messages come one after another; those that are lent again, and dead letters, from anywhere.
        self._fresh = TopicMessages(logs, topic)
        self._old = TopicMessages(logs, topic)
        # The last `Settle` of each member that waits for the state to be kept.
        self._settles: dict[Connection, int] = {}
        # Number of messages whose outcomes wait for that.
        self._unkept = 0
        # Outcomes that wait for the archive, and those behind them.
        self._late: deque[tuple[Connection, v2.Settle]] = deque()
        self._settling: asyncio.Task[None] | None = None
        self._loading: asyncio.Task[None] | None = None
        self._reading: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None
        self._burying: asyncio.Task[None] | None = None
        # Numbers of the last dead letter that the kept state names, and of the last one that was published.
        self._named = self._submitted = 0
        # Messages that were found to be gone, and not told of yet.
        self._gone = 0
        self._complaint = Complaint()
        self._over = False
        self._timer: Timer | None = None
        # When it is over (monotonic).
        self._next_look = 0.0
        self._turn: asyncio.Handle | None = None
        logs.reading(topic, 1)

    # ---- members

    @property
    def member_count(self) -> int:
        """Return the number of members, those included that wait until the state is known."""
        return len(self._members) + len(self._joining)

    @property
    def lent(self) -> int:
        """Return the number of messages that members have."""
        return 0 if self._lending is None else self._lending.lent

    def has(self, connection: Connection) -> bool:
        """Return True if a connection is a member, or waits to be one."""
        return connection in self._members or connection in self._joining

    def join(self, connection: Connection, packet: v2.Join) -> None:
        """Take a member, once the state is known."""
        others = self.member_count
        if others >= MAX_MEMBERS:
            self._refuse(connection, "full", f"the group has {others} members, and may have no more")
        elif others and packet.order_key != self._order_key:
            has = "no order_key" if self._order_key is None else f"the order_key {self._order_key!r}"
            self._refuse(connection, "order_key", f"the group has {has}: expected the same from all members")
        elif self._lending is None:
            self._order_key = packet.order_key
            self._joining[connection] = packet
            if self._loading is None:
                self._loading = asyncio.create_task(self._load(packet))
        else:
            if not others and packet.order_key != self._order_key:
                self._order_key = packet.order_key
                self._lending = Lending(self._lending.state, keyed=packet.order_key is not None)
                # Some changes of the time before may not be kept yet.
                self._lending.changed = True
            self._take(connection, packet)
            self.pump()

    def leave(self, connection: Connection, *, counted: bool = True) -> None:
        """Take everything back from a member that has gone.

        Args:
            connection: Its connection.
            counted: False if it is not its fault, so that the deliveries do not count.
        """
        self._joining.pop(connection, None)
        self._settles.pop(connection, None)
        member = self._members.pop(connection, None)
        if member is not None and self._lending is not None:
            del self._connections[member]
            if not counted:
                self._lending.release(member, 0, v2.MAX_NUMBER)
            self._lending.leave(member)
            self.pump()
        self._flush()

    def writable(self, connection: Connection) -> None:
        """Lend to a member again that takes something again."""
        member = self._members.get(connection)
        if member is not None and self._lending is not None:
            self._lending.unblock(member)
            self.pump()

    def _take(self, connection: Connection, packet: v2.Join) -> None:
        assert self._lending is not None
        self._add(connection, Terms(packet.prefetch, packet.lease_seconds, packet.max_deliveries))
        self._set_timer()

    def _add(self, connection: Connection, terms: Terms) -> Member:
        assert self._lending is not None
        member = self._lending.join(terms)
        self._members[connection], self._connections[member] = member, connection
        connection.send_packet(v2.Joined(self.topic, self.name, self._lending.state.log))
        return member

    def _refuse(self, connection: Connection, code: str, reason: str) -> None:
        reason = reason[: v2.MAX_REASON_CHARACTERS]
        connection.send_packet(v2.Left(self.topic, self.name, code, reason))

    # ---- the state

    async def _load(self, packet: v2.Join) -> None:
        """Learn the state of the group, or begin it."""
        try:
            await opened(self._logs, self.topic)
            state = await self._keeper.load() or self._begun(packet.start)
            kept = False
            while not kept:
                state = await self._of_this_log(state)
                await self._keeper.keep(state)
                # While it was written, an epoch may have begun, or another log.
                kept = self._is_of_now(state)
        except Elsewhere:
            self._give_up()
            return
        except StatesFull as error:
            self._refuse_all(error)
            return
        except (WsqueueError, ValueError) as error:
            self._fail(error)
            return
        finally:
            self._loading = None
        self._lending = Lending(state, keyed=self._order_key is not None)
        self._submitted, self._named = state.buried, state.buried + len(state.dying)
        joining, self._joining = self._joining, {}
        for connection, join in joining.items():
            self._take(connection, join)
        self.pump()
        self._bury()
        self._flush()

    async def _of_this_log(self, state: GroupState) -> GroupState:
        """Return a state as one of the log of now; if it was of another, that of a group which begins anew.

        Raises:
            WsqueueError: The log cannot be read.
        """
        if not await is_known(self._logs, self.topic, state.log, state.end):
            state = self._begun("earliest")
            self._say_restarted(state)
        state.log = self._logs.log_id(self._logs.topic(self.topic))
        return state

    def _is_of_now(self, state: GroupState) -> bool:
        """Return True if a state is of the log of now: not one of a shared log that has gone."""
        return state.log == self._logs.log_id(self._logs.topic(self.topic))

    def _begun(self, start: str) -> GroupState:
        """Return the state of a group that begins now."""
        topic_log = self._logs.topic(self.topic)
        floor = topic_log.next if start == "latest" else self._logs.earliest(topic_log)
        state = GroupState(secrets.token_hex(8), self._logs.log_id(topic_log), floor)
        state.used = self._clock()
        return state

    def _say_restarted(self, state: GroupState) -> None:
        self._counters["groups_restarted"] += 1
        log(
            logger,
            logging.WARNING,
            "group restarted",
            topic=self.topic,
            group=self.name,
            offset=state.floor,
            reason="the log is another one than that in which it was, or has lost its last messages",
        )

    def moved(self, *, other: bool) -> None:
        """Go on in a log that has gone on without this consumer, or is another one."""
        self._fresh.forget()
        self._old.forget()
        if self._lending is None:
            return
        state, topic_log = self._lending.state, self._logs.topic(self.topic)
        # A log that lacks messages which it had gives their offsets to others.
        other = other or max(state.end, self._lending.cursor) > topic_log.next
        if not other and self._is_of_now(state):
            # It has more messages than were told of.
            self.pump()
            return
        if other:
            state = self._begun("earliest")
            self._say_restarted(state)
        state.log = self._logs.log_id(topic_log)
        self._lending = Lending(state, keyed=self._order_key is not None)
        self._lending.changed = True
        self._submitted, self._named = state.buried, min(self._named, state.buried + len(state.dying))
        members, self._members, self._connections = self._members, {}, {}
        for connection, member in members.items():
            self._add(connection, member.terms).leaving = member.leaving
        self.pump()
        self._flush()

    # ---- outcomes, and loans

    def settle(self, connection: Connection, packet: v2.Settle) -> None:
        """Take an outcome of messages from a member."""
        lending = self._lending
        if lending is None or connection not in self._members:
            return
        if packet.log == lending.state.log and not self._late:
            self._take_outcome(connection, packet, self._logs.topic(self.topic).next)
            return
        # It was lent in an earlier epoch: how far that went, the archive may have to tell. Meanwhile, no more
        # is read from this member, so that few outcomes wait.
        connection.pause_reading()
        self._late.append((connection, packet))
        if self._settling is None:
            self._settling = asyncio.create_task(self._settle_late())

    async def _settle_late(self) -> None:
        """Take outcomes of messages that were lent in an earlier epoch, and those that came after them."""
        try:
            while self._late:
                connection, packet = self._late[0]
                end = await known_end(self._logs, self.topic, packet.log)
                self._late.popleft()
                connection.resume_reading()
                self._take_outcome(connection, packet, end)
        except WsqueueError as error:
            self._fail(error)
        finally:
            self._settling = None
            # Some may have left the group meanwhile, and their connections go on.
            for connection, _ in self._late:
                connection.resume_reading()
            self._late.clear()

    def _take_outcome(self, connection: Connection, packet: v2.Settle, known: int) -> None:
        """Take an outcome of messages before the offset `known`, and confirm it."""
        lending, member = self._lending, self._members.get(connection)
        if lending is None or member is None:
            return
        if packet.how == "release":
            # Also if it has nothing to give back.
            member.leaving = True
        ranges = [(first, min(last + 1, known)) for first, last in packet.offsets]
        # No message twice, so that the work is bounded by that of all. One range has none twice.
        for first, end in ranges if len(ranges) == 1 else Ranges(ranges):
            if first < end:
                self._unkept += end - first
                self._settle_range(lending, member, packet, first, end)
        self._settles[connection] = packet.number
        if packet.how == "again":
            self._set_timer()
        # Outcomes of several members come in one turn of the loop, and share its loans and the state.
        self._take_another_turn()

    def _settle_range(
        self, lending: Lending, member: Member, packet: v2.Settle, begin: int, end: int
    ) -> None:
        if packet.how == "done":
            lending.done(begin, end)
        elif packet.how == "again":
            lending.again(member, begin, end, self._clock() + packet.delay)
        elif packet.how == "reject":
            lending.reject(member, begin, end, packet.reason)
        elif packet.how == "release":
            lending.release(member, begin, end)
        else:
            lending.extend(member, begin, end, time.monotonic())

    def pump(self) -> None:
        """Lend messages until nothing can be lent, as many as a turn of the loop has time for."""
        lending = self._lending
        if lending is None or self._reading is not None or self._keeper.late:
            return
        if not self._is_of_now(lending.state):
            # Nothing is known of it before another one begins, and then `moved` tells.
            return
        turn = _Turn(self._clock(), self._logs.topic(self.topic).next)
        for _ in range(TURN_LOANS):
            if not self._lend_next(lending, turn):
                self._say_gone()
                break
        else:
            self._take_another_turn()
        for member, payloads in turn.packets.items():
            connection = self._connections[member]
            connection.send(payloads)
            if connection.congested:
                lending.block(member)
            elif member.blocked:
                lending.unblock(member)
                self._take_another_turn()

    def _lend_next(self, lending: Lending, turn: _Turn) -> bool:
        """Lend the next messages, or pass over some that are gone; return False if this turn is over."""
        offer = lending.offer(turn.end, turn.now)
        if offer is None:
            return False
        begin, member = offer.begin, offer.member
        if self._connections[member].congested:
            # Another group or a reader of the connection has sent it enough.
            lending.block(member)
            return True
        source = self._fresh if begin >= lending.cursor else self._old
        found = source.locate(begin, turn.end)
        if found is None:
            self._reading = asyncio.create_task(self._read(source, begin))
            return False
        if found > begin:
            self._gone += lending.gone(offer, found)
            return True
        part = source.cut(begin, offer.most)
        if self._order_key is not None and not lending.admit(begin, self._key_of(part)):
            return True
        lending.lend(offer, begin + part.count, time.monotonic())
        packet = v2.Lend(self.topic, self.name, begin, part, offer.deliveries + 1)
        turn.packets.setdefault(member, []).append(v2.encode(packet))
        turn.sizes[member] = size = turn.sizes.get(member, 0) + part.data.nbytes
        if size >= CHUNK_BYTES:
            # It has enough for this turn.
            lending.block(member)
        self._counters["group_deliveries"] += part.count
        self._counters["group_redeliveries"] += bool(offer.deliveries)
        return True

    def _key_of(self, message: Packed) -> str | None:
        headers = message.headers[0] if message.headers else None
        return None if headers is None or self._order_key is None else headers.get(self._order_key)

    def _take_another_turn(self) -> None:
        if self._turn is None:
            self._turn = asyncio.get_running_loop().call_soon(self._go_on)

    def _go_on(self) -> None:
        self._turn = None
        self.pump()
        self._flush()

    async def _read(self, source: TopicMessages, offset: int) -> None:
        """Read messages from the archive, and go on."""
        try:
            await source.fetch(offset)
        except WsqueueError as error:
            self._fail(error)
            return
        finally:
            self._reading = None
        self._go_on()

    def _say_gone(self) -> None:
        """Tell that messages are gone which nobody has done, at once of all that were found to be."""
        count, self._gone = self._gone, 0
        if not count:
            return
        self._counters["group_gone"] += count
        log(logger, logging.WARNING, "messages gone", topic=self.topic, group=self.name, missed=count)

    # ---- time

    def _set_timer(self) -> None:
        """Look again when a lease may be over or a message is due."""
        lending = self._lending
        if lending is None or not self._members:
            self._stop_timer()
            return
        seconds = min(MAX_TICK_SECONDS, min(one.terms.lease_seconds for one in lending.members) / TICKS)
        left = (lending.next_due() or 0.0) - self._clock()
        if left > 0:
            # One that is due already waits for a member with room, and is lent when there is one.
            seconds = min(seconds, max(MIN_TICK_SECONDS, left))
        # Never later than before, or members that say much would put off the end of the leases of others.
        next_look = time.monotonic() + seconds
        if self._timer is None or next_look < self._next_look:
            self._stop_timer()
            self._timer, self._next_look = Timer(seconds, self._tick), next_look

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        if self._lending is not None:
            self._counters["leases_over"] += self._lending.expire(time.monotonic())
            self._lending.changed |= self._keeper.renewal_due
        self._go_on()
        self._set_timer()

    # ---- the state and dead letters

    def _flush(self) -> None:
        """Have the state kept if it has changed, and answer the members."""
        lending = self._lending
        if lending is None or self._writing is not None:
            return
        if self._clock() - lending.state.used > USED_SECONDS:
            lending.changed = True
        if lending.changed:
            self._writing = asyncio.create_task(self._write())
            return
        self._answer(self._settles)
        self._settles = {}
        if not self._members and not self._joining and not lending.state.dying:
            if lending.state.coordinator:
                self._writing = asyncio.create_task(self._release(lending.state))
            else:
                self._end()

    def _answer(self, settles: dict[Connection, int]) -> None:
        for connection, number in settles.items():
            connection.send_packet(v2.Settled(self.topic, self.name, number))

    async def _write(self) -> None:
        """Write the state until it is the one that is kept."""
        try:
            await self._keep_changes()
        finally:
            self._writing = None
        self._flush()

    async def _keep_changes(self) -> None:
        while (lending := self._lending) is not None and lending.changed:
            state = lending.state
            settles, self._settles = self._settles, {}
            count, self._unkept = self._unkept, 0
            lending.changed, state.used = False, self._clock()
            named = state.buried + len(state.dying)
            try:
                await self._keeper.keep(state)
            except Elsewhere:
                self._give_up()
                return
            except WsqueueError as error:
                # It may be another one by now, of the same state.
                if self._lending is not None:
                    self._lending.changed = True
                self._settles = settles | self._settles
                if self._keeper.late:
                    self._give_up()
                    return
                self._complain(error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self._complaint.end()
                if self._lending is not None and self._lending.state is state:
                    self._named = named
                self._answer(settles)
                self._bury()
                if count >= BUSY_MESSAGES:
                    await self._pause()

    async def _pause(self) -> None:
        """Wait for outcomes that the next change has too, longer in a flood of them."""
        for _ in range(MAX_PAUSES):
            count = self._unkept
            await asyncio.sleep(PAUSE_SECONDS)
            if self._unkept - count < FLOOD_MESSAGES:
                return

    def _complain(self, reason: object) -> None:
        """Log why something could not be kept."""
        where = {"topic": self.topic, "group": self.name}
        self._complaint.log(logger, logging.ERROR, "group not kept", **where, reason=reason)

    def _bury(self) -> None:
        """Publish the dead letters that the kept state names."""
        if self._burying is None and self._submitted < self._named and self._lending is not None:
            self._burying = asyncio.create_task(self._bury_all())

    async def _bury_all(self) -> None:
        try:
            while (lending := self._lending) is not None and self._submitted < self._named:
                state = lending.state
                if not self._is_of_now(state):
                    break
                letter = state.dying[self._submitted - state.buried]
                found = self._old.locate(letter.offset, self._logs.topic(self.topic).next)
                if found is None:
                    await self._old.fetch(letter.offset)
                elif found == letter.offset:
                    self._publish(state, letter)
                    # The outcome may have come already, and the loop has others to serve.
                    await asyncio.sleep(0)
                elif self._submitted > state.buried:
                    # Those before it are on their way.
                    await asyncio.sleep(MIN_TICK_SECONDS)
                else:
                    self._gone += 1
                    self._say_gone()
                    self._submitted += 1
                    lending.bury(letter)
        except WsqueueError as error:
            self._complain(error)
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._bury)
        finally:
            self._burying = None
        self._go_on()

    def _publish(self, state: GroupState, letter: Dying) -> None:
        before = self._submitted
        self._submitted = number = before + 1
        chain = AppendChain(
            f"dead-{state.id}",
            [number],
            before if before > state.buried else 0,
            dead_letter_topic(self.topic, self.name),
            [1],
            dead_letter(self.topic, letter, self._old.cut(letter.offset, 1)),
            Burial(self, letter),
        )
        self._logs.append([chain])

    def buried(self, letter: Dying, outcome: Outcome) -> None:
        """Take the outcome of a dead letter."""
        lending = self._lending
        if lending is None or not lending.state.dying or lending.state.dying[0] is not letter:
            # One before it was refused, or the log is another one now.
            return
        if outcome.code is None:
            self._counters["dead_letters"] += 1
            lending.bury(letter)
            # It may be one from before an epoch began, which is not under way again yet.
            self._submitted = max(self._submitted, lending.state.buried)
            self._take_another_turn()
        else:
            self._complain(outcome.reason)
            self._submitted = lending.state.buried
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._bury)

    async def _release(self, state: GroupState) -> None:
        """Let another consumer coordinate the group at once, now that it has no members here."""
        try:
            await self._keeper.keep(state, release=True)
        except (Elsewhere, WsqueueError):
            # Another one takes over when it has waited.
            state.coordinator = ""
        self._writing = None
        if self._lending is not None and self._members:
            self._lending.changed = True
        self._flush()

    # ---- the end

    def _give_up(self) -> None:
        """Send all members away, because another consumer coordinates the group, or may take over soon."""
        log(logger, logging.INFO, "group is elsewhere", topic=self.topic, group=self.name)
        for connection in [*self._members, *self._joining]:
            self._refuse(connection, "elsewhere", "another consumer coordinates the group")
        self._members, self._joining, self._connections = {}, {}, {}
        self._end()

    def _refuse_all(self, error: StatesFull) -> None:
        """Refuse all who would be members of a new group, for which there is no room."""
        log(logger, logging.WARNING, "group refused", topic=self.topic, group=self.name, reason=error)
        for connection in self._joining:
            self._refuse(connection, "full", str(error))
        self._joining = {}
        self._end()

    def _fail(self, error: Exception) -> None:
        """Close the connections of all members, which will connect again."""
        log(logger, logging.ERROR, "group unusable", topic=self.topic, group=self.name, reason=error)
        for connection in [*self._members, *self._joining]:
            connection.fail(CloseCode.INTERNAL_ERROR, "the state of the group cannot be used")
        self._members, self._joining, self._connections = {}, {}, {}
        self._end()

    def _end(self) -> None:
        """Let go of everything, once."""
        if self._over:
            return
        self._over, self._lending = True, None
        self._stop_timer()
        if self._turn is not None:
            self._turn.cancel()
        self._logs.reading(self.topic, -1)
        self._ended(self)

    def close(self) -> None:
        """Do nothing more: the logs are about to be closed."""
        for task in (self._loading, self._reading, self._writing, self._burying, self._settling):
            if task is not None:
                task.cancel()
        self._members, self._joining, self._connections = {}, {}, {}
        self._end()

    async def settled(self) -> None:
        """Wait until the state is kept."""
        while self._writing is not None:
            await asyncio.wait([self._writing])
