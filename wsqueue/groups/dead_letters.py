"""Dead letters: messages that a group has given up, in a topic of their own. No I/O."""

from __future__ import annotations

from ..protocol.packed import MAX_HEADER_VALUE_CHARACTERS, MAX_HEADERS, Packed
from .state import Dying

HEADERS = ("dead-topic", "dead-offset", "dead-deliveries", "dead-reason")
"""Headers of a dead letter: where its message was, how often it was lent, and why it was given up."""


def dead_letter(topic: str, letter: Dying, message: Packed) -> Packed:
    """Return the dead letter of a message, with its data and headers.

    If the headers of both are too many, the last ones of the message are left out; if the topic is too long
    for a header, its end is.
    """
    values = (topic[:MAX_HEADER_VALUE_CHARACTERS], str(letter.offset), str(letter.deliveries), letter.reason)
    headers = dict(zip(HEADERS, values, strict=True))
    before = (message.headers[0] if message.headers else None) or {}
    for name, value in before.items():
        if len(headers) < MAX_HEADERS:
            headers.setdefault(name, value)
    return Packed(message.sizes, message.data, message.text, [headers])
