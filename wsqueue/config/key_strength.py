"""An estimate of how hard a key is to guess, because a recorded hello lets anybody try keys offline.

It uses the standard library only, because Ansible's control node uses it too, without the rest of wsqueue.
"""

from __future__ import annotations

import itertools
import math
import re

MIN_KEY_BITS = 128
"""Least strength of a key: nobody tries 2^128 keys, and a core tries 436,000 a second."""

WORD_BITS = 2.4
"""Bits of a character of words: 12.9 of a word that was drawn from 7,776, with a space behind it."""

PERIOD = 4
"""Characters by which a key is searched for repetitions: by chance, hardly any four come twice."""

_ALPHABETS = (
    (re.compile("[0-9]+"), 0.0, math.log2(10)),
    (re.compile("[0-9a-f]+|[0-9A-F]+"), 0.0, math.log2(16)),
    (re.compile("[0-9a-f-]{36}|[0-9a-z]+|[0-9A-Z=]+"), 0.05, math.log2(32)),
    (re.compile("[^ ]+"), 0.3, math.log2(62)),
)
"""Alphabets of keys that machines make: the form of a key, the part of its characters behind which the kind
changes, and the bits of a character. The kinds are digits, small letters and capitals. By chance the kind
changes behind two in ten characters of base32 and six of base64, in words with capitals and a number behind
them two in ten.
"""


def is_weak(key: str) -> bool:
    """Return True if a key is easier to guess than 128 random bits, as far as its look tells."""
    parts = [key[begin : begin + PERIOD] for begin in range(len(key) - PERIOD + 1)]
    repeats = len(set(parts)) < 0.75 * len(parts)
    return _bits_of_character(key) * (len(set(parts)) if repeats else len(key)) < MIN_KEY_BITS


def _bits_of_character(key: str) -> float:
    kinds = [(one.isdigit(), one.isupper()) for one in key if one.isalnum()]
    changes = sum(one != other for one, other in itertools.pairwise(kinds))
    for form, part, bits in _ALPHABETS:
        if form.fullmatch(key) and changes >= part * len(kinds):
            return bits
    return WORD_BITS
