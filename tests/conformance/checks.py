"""The checks of each role: functions whose first line is the rule. They raise AssertionError.

The checks speak v2 by hand, with nothing of wsqueue's packets (`tests.support.raw_v2_peer`).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeAlias

from websockets.frames import Opcode

from ..support.raw_v2_peer import (
    V2Server,
    V2Socket,
    data_of,
    encoded,
    forward_of,
    messages_of,
    new_secret,
    proof_of,
    public_id_of,
    publish_of,
)
from .program import Program

ANSWER_SECONDS = 10.0
"""Time for each answer."""

BROKEN = {"sizes": [2], "data": b"x"}
"""Messages that do not have their sizes."""


class Subject:
    """The implementation under test, and the peers that the checks play for it.

    Args:
        key: The pre-shared key.
        address: Address of the node under test, "" for a client.
        consumer: The consumer of the producer or client under test.
        producer: The producer of the client under test.
        program: The client under test.
    """

    def __init__(
        self,
        key: str,
        address: str = "",
        *,
        consumer: V2Server | None = None,
        producer: V2Server | None = None,
        program: Callable[[], contextlib.AbstractAsyncContextManager[Program]] | None = None,
    ) -> None:
        self.key, self.address = key, address
        self.consumer, self.producer, self._program = consumer, producer, program

    def connected(self, path: str) -> contextlib.AbstractAsyncContextManager[V2Socket]:
        """Return a connection to the node, with the hello done."""
        return V2Socket.speaking(self.address, path, self.key)

    @contextlib.asynccontextmanager
    async def publishing(self) -> AsyncIterator[tuple[V2Socket, str]]:
        """Return the connection of a publisher, and its public id."""
        async with self.connected("/produce") as raw:
            secret = new_secret()
            raw.send(secret)
            yield raw, public_id_of(secret["secret"])

    async def link(self) -> V2Socket:
        """Return the next connection of the producer to its consumer."""
        assert self.consumer is not None
        return await self.consumer.speaking(self.key)

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Program]:
        """Return the client, which runs as long as the block."""
        assert self._program is not None
        async with self._program() as program:
            yield program

    async def publisher(self) -> V2Socket:
        """Return the next connection of the client to its producer, of which it has named itself."""
        assert self.producer is not None
        raw = await self.producer.speaking(self.key)
        secret = await raw.next("publisher")
        assert len(secret["secret"]) == 32
        return raw

    async def subscriber(self) -> V2Socket:
        """Return the next connection of the client to its consumer."""
        assert self.consumer is not None
        return await self.consumer.speaking(self.key)


Check: TypeAlias = Callable[[Subject], Awaitable[None]]


def new_topic() -> str:
    """Return a topic that no check has used."""
    return f"conformance-{secrets.token_hex(4)}"


async def closed_with(raw: V2Socket) -> int:
    """Return the code with which a peer closes; other frames before that are dropped."""
    async with asyncio.timeout(ANSWER_SECONDS):
        return int.from_bytes((await raw.until(Opcode.CLOSE))[:2])


def chain_of(
    numbers: list[int], topic: str, *data: str, after: int = 0, publisher: str = "p", **changes: Any
) -> dict[str, Any]:
    """Return the packet that forwards a chain of batches with one message each."""
    fields = {"numbers": numbers, "after": after, "publisher": publisher, "counts": [1] * len(numbers)}
    return forward_of(numbers[0], topic, *data) | fields | changes


async def subscribed(raw: V2Socket, topic: str, **fields: Any) -> dict[str, Any]:
    """Subscribe to a topic; return the answer."""
    raw.send({"t": "subscribe", "topic": topic} | fields)
    return await raw.next("subscribed")


# The hello, of every acceptor.


def hello_checks(path: str) -> list[Check]:
    """Return the checks of an acceptor's hello at a path, and of packets after it."""
    return [*_proof_checks(path), *_packet_checks(path)]


def _proof_checks(path: str) -> list[Check]:

    async def a_right_proof(subject: Subject) -> None:
        """The acceptor's proof is right when the initiator's is."""
        async with subject.connected(path):
            pass

    async def a_wrong_key(subject: Subject) -> None:
        """A wrong proof closes with 4401, and is not answered with a proof."""
        async with V2Socket.upgraded(subject.address, path) as raw:
            await raw.prove_wrongly("another key", path)
            opcode, payload = await raw.frame()
            assert (opcode, int.from_bytes(payload[:2])) == (Opcode.CLOSE, 4401)

    async def a_packet_before_the_hello(subject: Subject) -> None:
        """Any other packet before the hello is done closes with 4402."""
        async with V2Socket.upgraded(subject.address, path) as raw:
            raw.send({"t": "subscribe", "topic": "x"})
            assert await closed_with(raw) == 4402

    async def a_challenge_from_the_initiator(subject: Subject) -> None:
        """A challenge closes an acceptor's hello with 4409."""
        async with V2Socket.upgraded(subject.address, path) as raw:
            raw.send({"t": "challenge", "nonce": bytes(32)})
            assert await closed_with(raw) == 4409

    async def another_path(subject: Subject) -> None:
        """A proof over another path closes with 4414: a proxy rewrites requests."""
        async with V2Socket.upgraded(subject.address, path) as raw:
            nonce, other = secrets.token_bytes(32), f"/proxied{path}"
            challenge = await raw.packet()
            proof = proof_of(subject.key, "initiator", challenge["nonce"], nonce, other)
            raw.send({"t": "proof", "proof": proof, "nonce": nonce, "path": other})
            assert await closed_with(raw) == 4414

    async def a_second_proof(subject: Subject) -> None:
        """A proof after the hello closes with 4403."""
        async with subject.connected(path) as raw:
            raw.send({"t": "proof", "proof": bytes(32), "nonce": bytes(32), "path": path})
            assert await closed_with(raw) == 4403

    return [
        a_right_proof,
        a_wrong_key,
        a_packet_before_the_hello,
        a_challenge_from_the_initiator,
        another_path,
        a_second_proof,
    ]


def _packet_checks(path: str) -> list[Check]:
    async def an_unknown_packet(subject: Subject) -> None:
        """An unknown packet closes with 4400."""
        async with subject.connected(path) as raw:
            raw.send({"t": "unheard_of"})
            assert await closed_with(raw) == 4400

    async def no_messagepack(subject: Subject) -> None:
        """A message that is not one map of MessagePack closes with 4400."""
        async with subject.connected(path) as raw:
            raw.send_frame(Opcode.BINARY, encoded({"t": "ask_alive"}) + b"\xc0")
            assert await closed_with(raw) == 4400

    async def a_text_message(subject: Subject) -> None:
        """A text message closes with 1003."""
        async with subject.connected(path) as raw:
            raw.send_frame(Opcode.TEXT, b"{}")
            assert await closed_with(raw) == 1003

    async def is_alive(subject: Subject) -> None:
        """The answer to `ask_alive` is `alive`; unknown fields are ignored, and fragments put together."""
        async with subject.connected(path) as raw:
            payload = encoded({"t": "ask_alive", "unheard": [{"of": 1}]})
            raw.send_frame(Opcode.BINARY, payload[:5], fin=False)
            raw.send_frame(Opcode.CONT, payload[5:])
            assert await raw.next("alive") == {"t": "alive"}

    return [an_unknown_packet, no_messagepack, a_text_message, is_alive]


# A consumer: the checks are its producer and its subscriber.


async def stores_a_batch(subject: Subject) -> None:
    """A batch is confirmed by its position, and delivered as it came."""
    topic, headers = new_topic(), [{"type": "a"}, None]
    async with subject.connected("/producer") as link, subject.connected("/subscribe") as raw:
        link.send(forward_of(7, topic, messages=messages_of(b"\xff", b"", headers=headers)))
        await link.confirmed(1)
        answer = await subscribed(raw, topic, start="earliest")
        packet = await raw.next("deliver")
        assert packet["messages"] == messages_of(b"\xff", b"", headers=headers)
        fields = [packet[name] for name in ("topic", "publisher", "numbers", "counts")]
        assert fields == [topic, "p", [7], [2]]
        assert packet["offset"] == answer["offset"] == answer["end"] - 2


async def knows_repeats_in_chains(subject: Subject) -> None:
    """The repeats at the front of a chain are confirmed and not stored again, whichever chain had them."""
    topic = new_topic()
    async with subject.connected("/producer") as link, subject.connected("/subscribe") as raw:
        await subscribed(raw, topic)
        link.send(chain_of([1, 2, 4], topic, "1", "2", "4"))
        link.send(chain_of([2, 4, 5], topic, "2", "4", "5", after=1))
        link.send(chain_of([1], topic, "1"))
        link.send(chain_of([5, 9], topic, "5", "9", after=4))
        await link.confirmed(*range(1, 10))
        assert await raw.delivered(5) == ["1", "2", "4", "5", "9"]


async def confirms_repeats_on_another_connection(subject: Subject) -> None:
    """A batch that comes through another producer is a repeat, too."""
    topic = new_topic()
    async with subject.connected("/producer") as link, subject.connected("/producer") as other:
        link.send(chain_of([1, 2], topic, "1", "2"))
        await link.confirmed(1, 2)
        other.send(chain_of([1], topic, "1"))
        other.send(chain_of([2, 3], topic, "2", "3", after=1))
        await other.confirmed(1, 2, 3)
        async with subject.connected("/subscribe") as raw:
            await subscribed(raw, topic, start="earliest")
            assert await raw.delivered(3) == ["1", "2", "3"]


async def refuses_behind_a_hole(subject: Subject) -> None:
    """A chain that comes after a batch which never came is refused, each batch of it by its position."""
    topic = new_topic()
    async with subject.connected("/producer") as link:
        link.send(chain_of([1], topic, "1"))
        link.send(chain_of([3, 4], topic, "3", "4", after=2))
        link.send(chain_of([5], topic, "5", after=1))
        assert await link.answers(4) == {1: "stored", 2: "after_refused", 3: "after_refused", 4: "stored"}


async def refuses_broken_messages_only(subject: Subject) -> None:
    """Messages that break a rule are refused with `invalid`, and the connection goes on."""
    topic = new_topic()
    async with subject.connected("/producer") as link:
        link.send(chain_of([1, 2], topic, messages=BROKEN))
        link.send(chain_of([1, 2], topic, messages=None))
        link.send(chain_of([1, 2], topic, "1", "2", "3"))
        link.send(chain_of([1], topic, "1"))
        expected = dict.fromkeys(range(1, 7), "invalid") | {7: "stored"}
        assert await link.answers(7) == expected


async def stores_a_refused_batch_that_comes_again(subject: Subject) -> None:
    """A batch that was refused is stored when it comes again under its number, and so are those after it."""
    topic = new_topic()
    async with subject.connected("/producer") as link:
        link.send(chain_of([3], topic, messages=BROKEN))
        link.send(chain_of([5], topic, "5", after=3))
        assert await link.answers(2) == {1: "invalid", 2: "after_refused"}
        link.send(chain_of([3], topic, "3"))
        link.send(chain_of([5], topic, "5", after=3))
        link.send(chain_of([3, 5, 9], topic, "3", "5", "9"))
        await link.confirmed(*range(3, 8))
    async with subject.connected("/subscribe") as raw:
        await subscribed(raw, topic, start="earliest")
        assert await raw.delivered(3) == ["3", "5", "9"]


async def refuses_a_chain_that_is_none(subject: Subject) -> None:
    """Numbers that do not rise, or have not as many counts, close with 4400."""
    for numbers, counts in (([2, 1], [1, 1]), ([1, 1], [1, 1]), ([1, 2], [2]), ([], []), ([1, 2], [2, 0])):
        async with subject.connected("/producer") as link:
            link.send(forward_of(1, new_topic(), "1", "2", numbers=numbers, counts=counts))
            assert await closed_with(link) == 4400


async def takes_no_publish(subject: Subject) -> None:
    """A packet of another endpoint closes with 4409."""
    async with subject.connected("/producer") as link:
        link.send(publish_of(1, "x", "y"))
        assert await closed_with(link) == 4409
    async with subject.connected("/subscribe") as raw:
        raw.send(forward_of(1, "x", "y"))
        assert await closed_with(raw) == 4409


async def begins_inside_a_chain(subject: Subject) -> None:
    """A subscription that begins inside a chain gets its rest, with the right numbers and counts."""
    topic = new_topic()
    data = [f"{number}" for number in range(6)]
    async with subject.connected("/producer") as link, subject.connected("/subscribe") as raw:
        first = (await subscribed(raw, topic))["end"]
        link.send(forward_of(1, topic, *data) | {"numbers": [3, 5, 8], "counts": [1, 3, 2]})
        await link.confirmed(1, 2, 3)
        rests = [([3, 5, 8], [1, 3, 2]), ([5, 8], [3, 2]), ([5, 8], [2, 2]), ([5, 8], [1, 2]), ([8], [2])]
        for skipped, (numbers, counts) in enumerate([*rests, ([8], [1])]):
            async with subject.connected("/subscribe") as late:
                answer = await subscribed(late, topic, start="offset", offset=first + skipped)
                packet = await late.next("deliver")
                assert (packet["numbers"], packet["counts"]) == (numbers, counts)
                assert packet["offset"] == answer["offset"] == first + skipped
                assert data_of(packet) == data[skipped:]


async def keeps_positions(subject: Subject) -> None:
    """A position is good on the next connection; one of another log begins behind a gap of unknown size."""
    topic = new_topic()
    async with subject.connected("/producer") as link, subject.connected("/subscribe") as raw:
        answer = await subscribed(raw, topic)
        link.send(chain_of([1, 2], topic, "1", "2"))
        await link.confirmed(1, 2)
    async with subject.connected("/subscribe") as raw:
        offset = answer["end"] + 1
        again = await subscribed(raw, topic, start="offset", offset=offset, log=answer["log"])
        assert (again["offset"], again["log"]) == (offset, answer["log"])
        assert await raw.delivered(1) == ["2"]
    async with subject.connected("/subscribe") as raw:
        other = await subscribed(raw, topic, start="offset", offset=offset, log="0123456789abcdef")
        gap = await raw.next("gap")
        assert (gap["offset"], gap["missed"]) == (other["offset"], None)
        assert await raw.delivered(2) == ["1", "2"]


async def begins_with_the_last_messages(subject: Subject) -> None:
    """`last` counts back from the end, into a chain, and as far as there are messages."""
    topic = new_topic()
    async with subject.connected("/producer") as link, subject.connected("/subscribe") as raw:
        answer = await subscribed(raw, topic, start="last", count=1)
        assert answer["offset"] == answer["end"]
        link.send(chain_of([1, 2, 3], topic, "1", "2", "3"))
        await link.confirmed(1, 2, 3)
        assert await raw.delivered(3) == ["1", "2", "3"]
        for count, expected in ((1, ["3"]), (2, ["2", "3"]), (3, ["1", "2", "3"])):
            async with subject.connected("/subscribe") as late:
                begun = await subscribed(late, topic, start="last", count=count)
                assert begun["offset"] == begun["end"] - count
                assert await late.delivered(count) == expected
        async with subject.connected("/subscribe") as late:
            begun = await subscribed(late, topic, start="last", count=2**53 - 1)
            packet = await late.next("deliver")
            assert (packet["offset"], data_of(packet)) == (begun["end"] - 3, ["1", "2", "3"])


async def ends_subscriptions(subject: Subject) -> None:
    """After `unsubscribed` nothing more of the topic comes, and other topics go on."""
    topics = new_topic(), new_topic()
    async with subject.connected("/producer") as link, subject.connected("/subscribe") as raw:
        for topic in topics:
            await subscribed(raw, topic)
        raw.send({"t": "unsubscribe", "topic": topics[0]})
        assert await raw.next("unsubscribed") == {"t": "unsubscribed", "topic": topics[0]}
        for topic in topics:
            link.send(chain_of([1], topic, topic, publisher=topic[:22]))
        assert await raw.delivered(1) == [topics[1]]


# A producer: the checks are its publishers and its only consumer.


async def forwards_and_confirms(subject: Subject) -> None:
    """A batch is forwarded with the public id, and confirmed when the consumer has confirmed it."""
    topic = new_topic()
    link = await subject.link()
    async with subject.publishing() as (raw, public_id):
        messages = messages_of("a", "ñ", headers=[{"k": "v"}, None])
        raw.send(publish_of(7, topic, after=3, messages=messages))
        forward = await link.next("forward")
        fields = [forward[name] for name in ("publisher", "numbers", "after", "topic", "counts", "messages")]
        assert fields == [public_id, [7], 3, topic, [2], messages]
        raw.send({"t": "ask_alive"})
        # It has read the batch, and confirms nothing yet.
        assert await raw.next("alive") == {"t": "alive"}
        link.send({"t": "ack", "numbers": [[1, 1]]})
        await raw.confirmed(7)


async def forwards_in_order(subject: Subject) -> None:
    """Batches of a topic arrive in order, alone or in chains that say which comes after which."""
    topic, count = new_topic(), 200
    link = await subject.link()
    async with subject.publishing() as (raw, _):
        for number in range(1, count + 1):
            raw.send(publish_of(2 * number, topic, str(number), after=2 * (number - 1)))
        found = await forwarded(link, count)
        assert found == [(2 * number, 2 * (number - 1), [str(number)]) for number in range(1, count + 1)]
        link.send({"t": "ack", "numbers": [[1, count]]})
        # None of the numbers between.
        await raw.confirmed(*range(2, 2 * count + 1, 2))


async def forwarded(link: V2Socket, count: int) -> list[tuple[int, int, list[str | bytes]]]:
    """Return number, predecessor and data of the next batches."""
    found: list[tuple[int, int, list[str | bytes]]] = []
    while len(found) < count:
        forward = await link.next("forward")
        assert len(forward["numbers"]) == len(forward["counts"])
        after, data = forward["after"], data_of(forward)
        assert len(data) == sum(forward["counts"])
        for number, messages in zip(forward["numbers"], forward["counts"], strict=True):
            found.append((number, after, data[:messages]))
            after, data = number, data[messages:]
    return found


async def sends_again(subject: Subject) -> None:
    """Batches without an answer of the consumer are sent again on the next link, in order, and no others."""
    topic = new_topic()
    link = await subject.link()
    async with subject.publishing() as (raw, _):
        for number in range(1, 11):
            raw.send(publish_of(number, topic, str(number), after=number - 1))
        first = await forwarded(link, 10)
        link.send({"t": "ack", "numbers": [[1, 3]]})
        await raw.confirmed(1, 2, 3)
        link.send({"t": "refused", "number": 4, "code": "full", "reason": "no room"})
        assert await raw.answers(1) == {4: "full"}
        await link.abort()
        link = await subject.link()
        # Batches after a refused one are refused, by the producer or by its consumer.
        raw.send(publish_of(11, topic, "11", after=0))
        again = [batch for batch in await forwarded_until(link, 11) if batch[0] != 11]
        assert again == first[10 - len(again) :]
        assert again in ([], first[4:])
        refusals = [
            {"t": "refused", "number": index, "code": "after_refused", "reason": ""}
            for index in range(1, len(again) + 1)
        ]
        for refusal in refusals:
            link.send(refusal)
        link.send({"t": "ack", "numbers": [[len(again) + 1] * 2]})
        expected = dict.fromkeys(range(5, 11), "after_refused") | {11: "stored"}
        assert await raw.answers(7) == expected


async def forwards_refused_batches_again(subject: Subject) -> None:
    """A publisher that begins again with its secret and its numbers is told of no refusal of before."""
    topic, secret = new_topic(), new_secret()
    link = await subject.link()
    for batches in range(2, 5):
        async with subject.connected("/produce") as raw:
            raw.send(secret)
            for number in range(1, batches + 1):
                raw.send(publish_of(number, topic, str(number), after=number - 1))
                assert await forwarded(link, 1) == [(number, number - 1, [str(number)])]
            first = sum(range(2, batches)) + 1
            last = first + batches - 1
            if batches < 4:
                link.send({"t": "refused", "number": first, "last": last, "code": "full", "reason": "no"})
                assert await raw.answers(batches) == dict.fromkeys(range(1, batches + 1), "full")
            else:
                link.send({"t": "ack", "numbers": [[first, last]]})
                await raw.confirmed(*range(1, batches + 1))


async def hears_of_refused_ranges(subject: Subject) -> None:
    """When a consumer refuses a range, each publisher hears of each of its batches, and of those before."""
    topics = new_topic(), new_topic()
    link = await subject.link()
    async with subject.publishing() as (raw, _), subject.publishing() as (other, _):
        # Odd numbers, so that a producer which answers a publisher with a range names others.
        for index, number in enumerate(range(1, 13, 2)):
            raw.send(publish_of(number, topics[index % 2], str(number), after=max(0, number - 4)))
        first = await forwarded(link, 6)
        for index in range(2):
            other.send(publish_of(2 * index + 1, topics[index], "of another"))
        second = await forwarded(link, 2)
        # Two batches before it are confirmed by the refusal.
        link.send({"t": "refused", "number": 3, "last": 7, "code": "full", "reason": "no room"})
        link.send({"t": "ack", "numbers": [[8, 8]]})
        outcomes = ["stored"] * 2 + ["full"] * 5 + ["stored"]
        expected = [(batch[0], outcome) for batch, outcome in zip(first + second, outcomes, strict=True)]
        assert await raw.answers(6) == dict(expected[:6])
        assert await other.answers(2) == dict(expected[6:])


async def leaves_one_that_refuses_what_was_not_sent(subject: Subject) -> None:
    """A consumer that refuses an empty range, or one beyond the last position, is closed with 4409."""
    topic = new_topic()
    link = await subject.link()
    async with subject.publishing() as (raw, _):
        raw.send(publish_of(1, topic, "1"))
        raw.send(publish_of(2, topic, "2", after=1))
        for number, last in ((2, 1), (1, 3)):
            await forwarded(link, 2)
            link.send({"t": "refused", "number": number, "last": last, "code": "full", "reason": "no room"})
            assert await closed_with(link) == 4409
            await link.abort()
            link = await subject.link()
        await forwarded(link, 2)
        link.send({"t": "ack", "numbers": [[1, 2]]})
        await raw.confirmed(1, 2)


async def forwarded_until(link: V2Socket, last: int) -> list[tuple[int, int, list[str | bytes]]]:
    """Return the next batches, up to one with a number."""
    found: list[tuple[int, int, list[str | bytes]]] = []
    while not found or found[-1][0] != last:
        found += await forwarded(link, 1)
    return found


async def resends_all(subject: Subject) -> None:
    """All unconfirmed batches are sent again after a link broke, of all publishers and topics."""
    topics = new_topic(), new_topic()
    link = await subject.link()
    async with subject.publishing() as (raw, _):
        for number in range(1, 9):
            topic = topics[number % 2]
            raw.send(publish_of(number, topic, str(number), after=max(0, number - 2)))
        first = await forwarded(link, 8)
        await link.abort()
        link = await subject.link()
        again = await forwarded(link, 8)
        for parity in range(2):
            assert [one for one in again if one[0] % 2 == parity] == [
                one for one in first if one[0] % 2 == parity
            ]
        link.send({"t": "ack", "numbers": [[1, 8]]})
        answers = await raw.answers(8)
        assert answers == dict.fromkeys(range(1, 9), "stored")


async def refuses_broken_batches_itself(subject: Subject) -> None:
    """A batch with broken messages is refused with `invalid`, and others go on."""
    topic = new_topic()
    link = await subject.link()
    async with subject.publishing() as (raw, _):
        raw.send(publish_of(1, topic, messages=BROKEN))
        raw.send(publish_of(2, topic, messages=7))
        raw.send(publish_of(3, topic, "good"))
        assert await raw.answers(2) == {1: "invalid", 2: "invalid"}
        assert await forwarded(link, 1) == [(3, 0, ["good"])]
        link.send({"t": "ack", "numbers": [[1, 1]]})
        await raw.confirmed(3)


async def wants_a_name_first(subject: Subject) -> None:
    """A batch before `publisher`, or a second `publisher`, closes with 4409."""
    async with subject.connected("/produce") as raw:
        raw.send(publish_of(1, "x", "y"))
        assert await closed_with(raw) == 4409
    async with subject.publishing() as (raw, _):
        raw.send(new_secret())
        assert await closed_with(raw) == 4409


# A client: the checks are its producer and its consumer.


async def publishes(subject: Subject) -> None:
    """A batch has a number, and tells of its predecessor on the topic while that is not confirmed."""
    topic, other = new_topic(), new_topic()
    async with subject.running() as program:
        program.publish(topic, "first")
        raw = await subject.publisher()
        first = await raw.next("publish")
        assert (first["topic"], data_of(first), first["after"]) == (topic, ["first"], 0)
        program.publish(other, "other")
        program.publish(topic, "second")
        packets = [await raw.next("publish") for _ in range(2)]
        assert [packet["number"] for packet in packets] == sorted(packet["number"] for packet in packets)
        after = {packet["topic"]: packet["after"] for packet in packets}
        assert after == {other: 0, topic: first["number"]}
        numbers = [packet["number"] for packet in (first, *packets)]
        for number in numbers:
            raw.send({"t": "ack", "numbers": [[number, number]]})
        assert await program.lines(3) == ["confirmed first", "confirmed other", "confirmed second"]
        program.publish(topic, "third")
        third = await raw.next("publish")
        assert third["after"] == 0
        assert third["number"] > max(numbers)
        raw.send({"t": "refused", "number": third["number"], "code": "full", "reason": "no room"})
        assert await program.lines(1) == ["refused third full"]
        program.publish(topic, "fourth")
        fourth = await raw.next("publish")
        # A newer node may have other codes.
        raw.send({"t": "refused", "number": fourth["number"], "code": "quota", "reason": ""})
        assert await program.lines(1) == ["refused fourth quota"]


async def publishes_again(subject: Subject) -> None:
    """Unconfirmed batches are sent again, unchanged and in order, when the connection breaks."""
    topic = new_topic()
    async with subject.running() as program:
        for name in "abc":
            program.publish(topic, name)
        raw = await subject.publisher()
        sent = [await raw.next("publish")]
        while [one for packet in sent for one in data_of(packet)] != ["a", "b", "c"]:
            sent.append(await raw.next("publish"))
        await raw.abort()
        raw = await subject.publisher()
        assert [await raw.next("publish") for _ in sent] == sent
        raw.send({"t": "ack", "numbers": [[packet["number"]] * 2 for packet in sent]})
        assert await program.lines(3) == ["confirmed a", "confirmed b", "confirmed c"]


async def leaves_a_draining_producer(subject: Subject) -> None:
    """A publisher that is told of a drain sends unconfirmed batches again on another connection."""
    topic = new_topic()
    async with subject.running() as program:
        program.publish(topic, "a")
        raw = await subject.publisher()
        first = await raw.next("publish")
        raw.send({"t": "draining", "retry_seconds": 0.1})
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            raw.send_frame(Opcode.CLOSE, (1001).to_bytes(2))
            await raw.writer.drain()
        raw = await subject.publisher()
        assert await raw.next("publish") == first
        raw.send({"t": "ack", "numbers": [[first["number"]] * 2]})
        assert await program.lines(1) == ["confirmed a"]


async def trusts_no_wrong_acceptor(subject: Subject) -> None:
    """A wrong proof of the acceptor is closed with 4401, and nothing is sent to it."""
    async with subject.running() as program:
        program.publish(new_topic(), "a")
        assert subject.producer is not None
        raw = await subject.producer.next()
        assert isinstance(raw, V2Socket)
        await raw.upgrade("wsqueue.v2")
        raw.send({"t": "challenge", "nonce": bytes(32)})
        assert (await raw.packet())["t"] == "proof"
        raw.send({"t": "proof", "proof": bytes(32)})
        opcode, payload = await raw.frame()
        assert (opcode, int.from_bytes(payload[:2])) == (Opcode.CLOSE, 4401)


def delivery(topic: str, offset: int, numbers: list[int], *data: str) -> dict[str, Any]:
    """Return the packet that delivers a chain of batches with one message each."""
    counts = [1] * len(numbers)
    fields = {"topic": topic, "offset": offset, "publisher": "p", "numbers": numbers, "counts": counts}
    return {"t": "deliver"} | fields | {"messages": messages_of(*data)}


async def subscribes(subject: Subject) -> None:
    """Messages arrive in order; batches that were stored twice are dropped, also at the front of a chain.

    The consumer is one that shares its log, and says so.
    """
    topic = new_topic()
    async with subject.running() as program:
        program.subscribe(topic, "earliest")
        raw = await subject.subscriber()
        raw.send({"t": "log", "id": "shared", "available": True})
        request = await raw.next("subscribe")
        assert (request["topic"], request["start"]) == (topic, "earliest")
        raw.send({"t": "subscribed", "topic": topic, "log": "abc", "offset": 5, "end": 9})
        raw.send(delivery(topic, 5, [1, 3], "one", "three"))
        raw.send(delivery(topic, 7, [3, 4], "three", "four"))
        raw.send(delivery(topic, 9, [4], "four"))
        raw.send(delivery(topic, 10, [9], "nine"))
        expected = [f"message {offset} {data}" for offset, data in ((5, "one"), (6, "three"), (8, "four"))]
        assert await program.lines(4) == [*expected, "message 10 nine"]


async def subscribes_again(subject: Subject) -> None:
    """After a break it asks for its position, tells of a gap, and still knows repeats."""
    topic = new_topic()
    async with subject.running() as program:
        program.subscribe(topic, "earliest")
        raw = await subject.subscriber()
        await raw.next("subscribe")
        raw.send({"t": "subscribed", "topic": topic, "log": "abc", "offset": 0, "end": 0})
        raw.send(delivery(topic, 0, [1, 2], "one", "two"))
        assert await program.lines(2) == ["message 0 one", "message 1 two"]
        await raw.abort()
        raw = await subject.subscriber()
        request = await raw.next("subscribe")
        wanted = [request[name] for name in ("topic", "start", "log", "offset")]
        assert wanted == [topic, "offset", "abc", 2]
        raw.send({"t": "subscribed", "topic": topic, "log": "def", "offset": 7, "end": 7})
        await raw.abort()
        raw = await subject.subscriber()
        # A gap may have been under way.
        request = await raw.next("subscribe")
        assert [request[name] for name in ("log", "offset")] == ["abc", 2]
        raw.send({"t": "subscribed", "topic": topic, "log": "def", "offset": 7, "end": 7})
        raw.send({"t": "gap", "topic": topic, "offset": 7, "missed": None})
        raw.send(delivery(topic, 7, [2, 3], "two", "three"))
        assert await program.lines(2) == ["gap unknown", "message 8 three"]
        await raw.abort()
        raw = await subject.subscriber()
        request = await raw.next("subscribe")
        assert [request[name] for name in ("log", "offset")] == ["def", 9]


CHECKS: dict[str, list[Check]] = {
    "consumer": [
        *hello_checks("/producer"),
        stores_a_batch,
        knows_repeats_in_chains,
        confirms_repeats_on_another_connection,
        refuses_behind_a_hole,
        refuses_broken_messages_only,
        stores_a_refused_batch_that_comes_again,
        refuses_a_chain_that_is_none,
        takes_no_publish,
        begins_inside_a_chain,
        keeps_positions,
        begins_with_the_last_messages,
        ends_subscriptions,
    ],
    "producer": [
        *hello_checks("/produce"),
        forwards_and_confirms,
        forwards_in_order,
        sends_again,
        forwards_refused_batches_again,
        hears_of_refused_ranges,
        leaves_one_that_refuses_what_was_not_sent,
        resends_all,
        refuses_broken_batches_itself,
        wants_a_name_first,
    ],
    "client": [
        publishes,
        publishes_again,
        leaves_a_draining_producer,
        trusts_no_wrong_acceptor,
        subscribes,
        subscribes_again,
    ],
}
