"""Which keys look easy to guess."""

from __future__ import annotations

import base64
import random
import uuid

import pytest

from wsqueue.config.key_strength import is_weak

RANDOM = random.Random(17)


@pytest.mark.parametrize(
    "key",
    [
        "",
        "secret",
        "correct horse battery staple",
        "Correct-Horse-Battery-Staple",
        "CorrectHorseBatteryStaple42",
        "pre-shared-key-of-our-cluster-2026",
        "x" * 4096,
        "0123456789abcdef" * 2,
        "Password123!" * 3,
        "hunter2" * 20,
        "3141592653589793238462643383279",
        RANDOM.randbytes(15).hex(),
        base64.b64encode(RANDOM.randbytes(14)).decode(),
    ],
)
def test_weak(key: str) -> None:
    assert is_weak(key)


@pytest.mark.parametrize(
    "key",
    [
        RANDOM.randbytes(16).hex(),
        RANDOM.randbytes(16).hex().upper(),
        RANDOM.randbytes(512).hex(),
        base64.b64encode(RANDOM.randbytes(16)).decode(),
        base64.urlsafe_b64encode(RANDOM.randbytes(32)).decode().rstrip("="),
        base64.b32encode(RANDOM.randbytes(20)).decode(),
        str(uuid.UUID(bytes=RANDOM.randbytes(16), version=4)),
        "tried wagon lemur upper chess ozone flint bagel nacho crown yodel drift",
    ],
)
def test_not_weak(key: str) -> None:
    assert not is_weak(key)
