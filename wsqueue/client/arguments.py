"""Checks of the arguments that an application passes to its client."""

from __future__ import annotations

import re
from datetime import datetime

from ..errors import ConfigError
from ..protocol.v2 import GROUP_PATTERN, MAX_GROUP_CHARACTERS, MAX_NUMBER, NONCE_BYTES
from .values import Position


def check_secret(secret: object) -> None:
    """Refuse a publisher's secret that is none; the error has only its type or length.

    Raises:
        ConfigError: It is not 32 bytes.
    """
    if not isinstance(secret, bytes) or len(secret) != NONCE_BYTES:
        problem = f"has {len(secret)} bytes" if isinstance(secret, bytes) else f"is {type(secret).__name__}"
        expected = f"expected {NONCE_BYTES} bytes, such as secrets.token_bytes({NONCE_BYTES})"
        raise ConfigError(f"the publisher_secret {problem}, {expected}")


def check_id(message_id: object, messages: int, *, keeps_secret: bool) -> None:
    """Refuse an id that no message can have, or that this client has no use for.

    Raises:
        ValueError: As `Client.publish` says.
    """
    if not keeps_secret:
        raise ValueError(
            "an id belongs to a publisher that is known again after a restart: expected no id, or a client"
            " with a publisher_secret"
        )
    if message_id is None:
        raise ValueError(
            "a message of a client with a publisher_secret has no id: expected one, because a number that the"
            " client chose would pass for that of an earlier run"
        )
    if messages > 1:
        raise ValueError(f"an id belongs to one message, and there are {messages}: expected a call for each")
    if not isinstance(message_id, int) or isinstance(message_id, bool) or not 1 <= message_id <= MAX_NUMBER:
        raise ValueError(f"{message_id!r} is not an id: expected an integer, 1 to {MAX_NUMBER}")


def check_start(start: object) -> None:
    """Refuse a start that is none.

    Raises:
        ValueError: It is none of those that `Client.subscribe` names, or beyond all offsets.
    """
    known = start in ("latest", "earliest") or isinstance(start, int | Position | datetime)
    if not known or isinstance(start, bool):
        raise ValueError(
            f"{start!r} is not a start: expected 'latest', 'earliest', an offset, -N for the last N messages,"
            " a Position or a datetime"
        )
    if isinstance(start, Position) and not 0 <= start.offset <= MAX_NUMBER:
        raise ValueError(f"{start.offset} is not an offset: expected 0 to {MAX_NUMBER}")
    if isinstance(start, int) and not -MAX_NUMBER <= start <= MAX_NUMBER:
        raise ValueError(
            f"{start} is not a start: expected an offset, 0 to {MAX_NUMBER}, or -1 to -{MAX_NUMBER} for the"
            " last messages"
        )


def check_group(topics: int, reader: object, on_gap: object, *, follow: bool) -> None:
    """Refuse the arguments that a subscription of a group cannot have.

    Raises:
        ValueError: It has one of them.
    """
    if topics > 1:
        raise ValueError(f"a group has one topic, and there are {topics}: expected one")
    if reader is not None:
        raise ValueError("a reader gets all messages, and a group shares them: expected one of the two")
    if not follow or on_gap != "raise":
        raise ValueError("a group has neither follow nor on_gap: its messages come until it is closed")


def check_without_group(reader: object, *, lends: bool, auto_done: bool) -> None:
    """Refuse arguments that would do nothing, because the subscription is not one of a group.

    Args:
        reader: The name of a reader, or None.
        lends: True if an argument has another value than its default, and says how to lend messages.
        auto_done: True if messages shall be done by themselves.

    Raises:
        ValueError: There is one.
    """
    if lends:
        raise ValueError(
            "prefetch, lease_seconds, max_deliveries and order_key are for a group: expected group with them"
        )
    if auto_done and reader is None:
        raise ValueError("auto_done is for a reader or a group: expected one of them with it")


def check_name(noun: str, name: object) -> str:
    """Return the name of a group or a reader.

    Args:
        noun: Which of them it is.
        name: The name.

    Raises:
        ValueError: It is none.
    """
    if not isinstance(name, str) or not re.search(GROUP_PATTERN, name):
        raise ValueError(
            f"{name!r} is not the name of a {noun}: expected 1 to {MAX_GROUP_CHARACTERS} letters, digits,"
            " '.', '_' and '-', and a letter or digit first"
        )
    return name
