"""The clock of a node never jumps, and follows the system's."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsqueue.log.clock import CORRECTION_SECONDS, MAX_CORRECTION, SteadyClock

START = 1.7e9
steps = st.lists(
    st.tuples(st.floats(0, 3600), st.floats(-1e6, 1e6) | st.just(0.0), st.booleans()), min_size=1, max_size=30
)


@given(steps)
def test_it_runs_nearly_as_fast_as_time_whatever_the_system_says(
    steps: list[tuple[float, float, bool]],
) -> None:
    """Each step lets time pass, sets the system's clock, and lets the clock follow it or not."""
    monotonic, jumped = 100.0, 0.0
    clock = SteadyClock(monotonic, START)
    readings = [(monotonic, clock.read(monotonic))]
    assert readings[0][1] == START
    for passed, jump, corrects in steps:
        monotonic += passed
        jumped += jump
        if corrects:
            before, system = clock.read(monotonic), START + jumped + monotonic - 100.0
            assert clock.correct(monotonic, system) == before - system
        readings.append((monotonic, clock.read(monotonic)))
    for (earlier, then), (later, now) in itertools.pairwise(readings):
        passed = later - earlier
        slack = 1e-5
        assert passed * (1 - MAX_CORRECTION) - slack <= now - then <= passed * (1 + MAX_CORRECTION) + slack


@pytest.mark.parametrize("set_by", [-86_400.0, -3.0, 0.001, 0.9, 3600.0])
def test_it_reaches_the_system_s_time_and_stays_there(set_by: float) -> None:
    clock = SteadyClock(0.0, START)
    times = range(10, 2_000_000, 10)
    differences = [clock.correct(monotonic, START + set_by + monotonic) for monotonic in times]
    assert differences[0] == pytest.approx(-set_by, abs=1e-6)
    # At its fastest until the rest is small, and never beyond.
    needed = int(abs(set_by) / MAX_CORRECTION + 10 * CORRECTION_SECONDS) // 10
    assert all(abs(difference) < 0.01 for difference in differences[needed + 1 :])
    assert all(difference * set_by <= 1e-3 for difference in differences)
