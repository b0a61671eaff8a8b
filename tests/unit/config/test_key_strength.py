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
        "MyCompanyQueueKey2024!",
        "ThisIsAVerySecretKey!!",
        "00112233445566778899aabbccddeeff",
        "AbCdEfGhIjKlMnOpQrStUvWxYz",
        "A1b2C3d4E5f6G7h8I9j0K1",
        "00000000-0000-0000-0000-000000000000",
        "12345678-1234-5678-1234-567812345678",
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
        base64.b32encode(RANDOM.randbytes(20)).decode().lower(),
        base64.b32encode(bytes(range(0, 160, 10))).decode().lower(),
        str(uuid.UUID(bytes=RANDOM.randbytes(16), version=4)),
        # As few letters as these are not enough for capitals and digits that change by chance.
        "084497D8-4567-4887-93B6-18BDF84415F5",
        "{3670e588-6ee6-4508-8587-48c7d218205f}",
        "76:09:59:3f:b7:5c:92:63:79:1b:83:96:ca:af:af:f6",
        "tried wagon lemur upper chess ozone flint bagel nacho crown yodel drift",
    ],
)
def test_not_weak(key: str) -> None:
    assert not is_weak(key)
