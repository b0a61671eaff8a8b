"""How many examples Hypothesis tries in a test that says it itself."""

from __future__ import annotations

from typing import Any

from hypothesis import settings

USUAL = 100
"""Number of examples of a test that says nothing, in Hypothesis' own profile."""


def examples(number: int, **others: Any) -> settings:
    """Return Hypothesis' settings for a test, to be made after the profile has been chosen.

    Args:
        number: How many examples are tried usually: fewer in a profile that has fewer than usual.
        others: More settings.
    """
    return settings(max_examples=number * settings().max_examples // USUAL, **others)
