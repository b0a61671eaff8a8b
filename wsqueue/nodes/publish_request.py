"""A message that is published by one HTTP request (docs/http.md): a `POST` to a producer.

```
POST /publish/TOPIC ──► established ──► received ──► Publisher.publish ──► Requester.answer
                        401, 403, 429    400            503 if it waits     204, or an error
```

The credential was checked before (`Session.accept_post`). The rights and the limits of its name are checked
before the body is read, as far as they can be. Each way ends with one response, and the connection with it.
"""

from __future__ import annotations

import hashlib
import math
import re
from typing import ClassVar, Protocol

from ..net.connection import Connection, Handler
from ..net.timers import Timer
from ..protocol import v2 as packets_v2
from ..protocol.classic import is_utf8
from ..protocol.close import Closed
from ..protocol.framing import BodyReceived, HttpResponse, Post
from ..protocol.packed import MAX_HEADER_VALUE_CHARACTERS, Headers, Packed, pack
from ..protocol.session import Event
from ..protocol.upgrade import try_again
from .clients import Client
from .link_queue import Origin

BODY_SECONDS = 30.0
"""Time for the body: the largest message, 1 MiB, at 35 kB/s."""

STORE_SECONDS = 10.0
"""Time until a request that is not stored is answered with 503: most clients wait 30 s at least."""

MAX_IDEMPOTENCY_KEY_CHARACTERS = 255
"""Length of an Idempotency-Key: a UUID has 36."""

STORED = HttpResponse(204, "")

STATUS_OF_REFUSALS = {"full": 503, "too_long": 413, "topic_too_long": 414, "not_allowed": 403}
"""HTTP status for each code of a refusal; 400 for others."""

TEXT_TYPES = re.compile(r"text/.*|application/(json|xml|x-www-form-urlencoded)|.*\+(json|xml)")
"""Media types of texts; `curl -d` sends the last of the list without being asked."""

_CHARSET = re.compile(r'charset\s*=\s*"?([^\s;"]+)', re.IGNORECASE)


class Requester(Origin):
    """The publisher of one message, which gets a response instead of packets."""

    __slots__ = ()

    def answer(self, packet: packets_v2.Packet) -> None:
        """Respond when the message is stored or refused, if the client is still there."""
        if self.connection is None:
            return
        if isinstance(packet, packets_v2.Refused):
            status = STATUS_OF_REFUSALS.get(packet.code, 400)
            page = try_again(packet.reason) if status == 503 else HttpResponse(status, f"{packet.reason}\n")
            self.connection.respond(page)
        else:
            self.connection.respond(STORED)


class Publisher(Protocol):
    """The producer, as far as a request needs it."""

    def requester(self, connection: Connection) -> Requester:
        """Return the publisher of one message."""
        ...

    def not_allowed(self, origin: Origin, topic: str) -> str:
        """Return why a publisher may not publish to a topic, "" if it may."""
        ...

    def refusal(self, topic: str) -> str:
        """Return why a batch would have to wait, "" if it is passed on at once."""
        ...

    def publish(self, origin: Requester, topic: str, messages: Packed, secret: bytes) -> None:
        """Publish a batch."""
        ...

    def forget(self, origin: Origin) -> None:
        """Forget a publisher that is gone."""
        ...


class PublishRequest(Handler):
    """Take one message of one client.

    Args:
        publisher: The producer.
        topic: The topic.
        post: The head of the request.
    """

    # A drain closes it at the end, so that a message that is stored by then is answered with 204.
    peer_role: ClassVar[str] = "publisher"

    def __init__(self, publisher: Publisher, topic: str, post: Post) -> None:
        self._publisher, self._topic, self._post = publisher, topic, post
        self._origin: Requester | None = None
        self._timer: Timer | None = None

    def established(self, connection: Connection) -> None:
        """Take the head of the request; respond if the client may not publish this, or not now."""
        origin = self._origin = self._publisher.requester(connection)
        key = self._post.idempotency_key
        if len(key) > MAX_IDEMPOTENCY_KEY_CHARACTERS:
            most = MAX_IDEMPOTENCY_KEY_CHARACTERS
            connection.respond(HttpResponse(400, f"An Idempotency-Key may have {most} characters.\n"))
        elif len(self._post.content_type) > MAX_HEADER_VALUE_CHARACTERS:
            most = MAX_HEADER_VALUE_CHARACTERS
            connection.respond(HttpResponse(400, f"A Content-Type may have {most} characters.\n"))
        elif problem := self._publisher.not_allowed(origin, self._topic):
            connection.respond(HttpResponse(403, f"{problem}\n"))
        elif seconds := _seconds_to_wait(origin.client, connection.heard_at):
            headers = {"Retry-After": str(math.ceil(seconds))}
            text = f"{origin.identity.name} has sent more than its bytes_per_second.\n"
            connection.respond(HttpResponse(429, text, headers=headers))
        else:
            late = HttpResponse(408, f"The body did not come within {BODY_SECONDS:.0f} seconds.\n")
            self._timer = Timer(BODY_SECONDS, lambda: connection.respond(late))

    def received(self, connection: Connection, events: list[Event]) -> None:
        """Publish the body, once it is there."""
        for event in events:
            if isinstance(event, BodyReceived) and connection.session.unanswered:
                self._publish(connection, event.body)

    def lost(self, connection: Connection, closed: Closed) -> None:
        """Forget the client."""
        self._stop_timer()
        if self._origin is not None:
            self._publisher.forget(self._origin)

    def _publish(self, connection: Connection, body: bytes) -> None:
        self._stop_timer()
        assert self._origin is not None
        content_type = self._post.content_type
        text = is_text(content_type)
        if text and not is_utf8(body):
            reason = f"The body is not UTF-8, as the Content-Type {content_type} says.\n"
            connection.respond(HttpResponse(400, reason))
        elif refusal := self._publisher.refusal(self._topic):
            connection.respond(try_again(refusal))
        else:
            headers: Headers | None = {"content-type": content_type} if content_type else None
            messages = pack([body], text=text, headers=[headers] if headers else None)
            late = try_again(
                f"It is not stored after {STORE_SECONDS:.0f} seconds, and may be stored later:"
                " only with the same Idempotency-Key it is not stored twice when it is sent again"
            )
            self._timer = Timer(STORE_SECONDS, lambda: connection.respond(late))
            self._publisher.publish(self._origin, self._topic, messages, self._secret())

    def _secret(self) -> bytes:
        """Return the secret of the publisher whose only message this is, b"" without an Idempotency-Key."""
        key = self._post.idempotency_key
        if not key:
            return b""
        parts = (b"wsqueue idempotency", self._topic.encode(), key.encode())
        return hashlib.sha256(b"".join(len(part).to_bytes(4) + part for part in parts)).digest()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def is_text(content_type: str) -> bool:
    """Return True if a media type (RFC 9110 section 8.3.1) is that of a text in UTF-8."""
    media_type, _, parameters = content_type.lower().partition(";")
    charset = _CHARSET.search(parameters)
    in_utf8 = charset is None or charset[1] in ("utf-8", "utf8", "us-ascii")
    return in_utf8 and TEXT_TYPES.fullmatch(media_type.strip()) is not None


def _seconds_to_wait(client: Client | None, now: float) -> float:
    """Return the seconds until the name of a client may send again."""
    return 0.0 if client is None else client.quota.pay(0, now)
