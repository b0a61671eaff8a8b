"""An estimate of how hard a key is to guess, because a recorded hello lets anybody try keys offline.

It uses the standard library only, because Ansible's control node uses it too, without the rest of wsqueue.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence

MIN_KEY_BITS = 128
"""Least strength of a key: nobody tries 2^128 keys, and a core tries 436,000 a second."""

WORD_BITS = 2.4
"""Bits of a character of words: 12.9 of a word that was drawn from 7,776, with a space behind it."""

PERIOD = 4
"""Characters by which a key is searched for repetitions: by chance, hardly any four come twice."""

_SEPARATORS = re.compile("[-:{}]")
_HEX = re.compile("[0-9a-f]+|[0-9A-F]+")

_ALPHABETS = (
    (re.compile("[0-9]+"), 0.0, math.log2(10)),
    (_HEX, 0.0, math.log2(16)),
    (re.compile("[0-9a-z=]+|[0-9A-Z=]+"), 0.05, math.log2(32)),
    (re.compile("[^ ]+"), 0.11, math.log2(62)),
)
"""Alphabets of keys that machines make: the form of a key, the part of its characters behind which the kind
changes, and the bits of a character. The kinds are digits, small letters and capitals, but a capital that
begins a word counts as small. By chance the kind changes behind two in ten characters of base32 and four of
base64, in words only at their numbers.
"""

_BEGIN_OF_WORD = re.compile("(?<![A-Z])[A-Z](?=[a-z])")


def is_weak(key: str) -> bool:
    """Return True if a key is easier to guess than 128 random bits, as far as its look tells."""
    # UUIDs and fingerprints.
    digits = _SEPARATORS.sub("", key)
    if _HEX.fullmatch(digits):
        key = digits
    # `0123abcd` and `1a2b3c4d` repeat their steps.
    steps = [ord(after) - ord(before) for before, after in itertools.pairwise(key)]
    length = min(_length_without_repeats(key, len(key)), _length_without_repeats(steps, len(key)))
    return _bits_of_character(key) * length < MIN_KEY_BITS


def _length_without_repeats(items: Sequence[object], length: int) -> int:
    """Return the length of a key, less if its characters, or the steps between them, repeat themselves."""
    parts = [tuple(items[begin : begin + PERIOD]) for begin in range(len(items) - PERIOD + 1)]
    different = len(set(parts))
    return different if different < 0.75 * len(parts) else length


def _bits_of_character(key: str) -> float:
    key = _BEGIN_OF_WORD.sub(lambda capital: capital[0].lower(), key)
    kinds = [(one.isdigit(), one.isupper()) for one in key if one.isalnum()]
    changes = sum(one != other for one, other in itertools.pairwise(kinds))
    for form, part, bits in _ALPHABETS:
        if form.fullmatch(key) and changes >= part * len(kinds):
            return bits
    return WORD_BITS
