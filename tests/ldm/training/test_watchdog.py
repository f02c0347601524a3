"""A rank that is slow is told from one that is lost: by default a stall of minutes, or a compilation, ends no job."""

from __future__ import annotations

import pytest

from ldm.training.config import EngineConfig
from ldm.training.engine.watchdog import Beat, Pace, _gone

STEP = ("data", "forward", "backward", "step", "checkpoint")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def pace(clock: Clock) -> Pace:
    """By the defaults, some steps after the start."""
    config = EngineConfig()
    pace = Pace(hang_s=config.hang_seconds, patience_s=60 * config.timeout_minutes, clock=clock)
    steps(pace, clock, 12)
    return pace


def steps(pace: Pace, clock: Clock, count: int) -> None:
    for _ in range(count):
        for phase in STEP:
            pace.entered(phase)
            clock.now += 0.1


def late_after(pace: Pace, clock: Clock, phase: str, seconds: float) -> bool:
    pace.entered(phase)
    clock.now += seconds
    return pace.late()


@pytest.mark.parametrize("phase", ["data", "forward", "backward", "step"])
def test_a_stall_of_two_minutes_is_no_verdict_and_one_that_does_not_end_is(pace: Pace, clock: Clock, phase: str) -> None:
    assert not late_after(pace, clock, phase, 120)
    clock.now += 240
    assert pace.late()


def test_where_other_networks_begin_the_next_steps_may_compile(pace: Pace, clock: Clock) -> None:
    assert late_after(pace, clock, "forward", 400)
    pace.changed()
    assert not pace.late()
    for _ in range(5):
        assert not late_after(pace, clock, "data", 400)
        assert not late_after(pace, clock, "forward", 400)
    assert not late_after(pace, clock, "validate", 400), "in the other mode for the first time"
    assert not late_after(pace, clock, "data", 400)
    steps(pace, clock, 6)
    assert late_after(pace, clock, "forward", 400)


def test_the_first_steps_may_compile_however_many_micro_batches_they_have(clock: Clock) -> None:
    pace = Pace(hang_s=300, patience_s=600, clock=clock)
    pace.entered("data")
    for _ in range(64):
        pace.entered("forward")
        pace.entered("backward")
    assert not late_after(pace, clock, "forward", 400)
    assert late_after(pace, clock, "forward", 700)


def test_what_took_long_early_does_not_make_a_hang_later_pass(pace: Pace, clock: Clock) -> None:
    pace.changed()
    late_after(pace, clock, "forward", 500)
    steps(pace, clock, 12)
    assert late_after(pace, clock, "forward", 301)


def test_a_rank_that_is_not_heard_is_gone_at_once_and_one_that_is_late_only_if_others_wait() -> None:
    well, waiting = Beat(9, 40, "forward", 1.0), Beat(9, 40, "step", 400.0, True, True)
    late = Beat(9, 40, "forward", 400.0, True, False)
    assert _gone({0: (well, 1.0), 1: (well, 26.0)}) == (1, "not heard for 25 s")
    assert _gone({0: (waiting, 1.0), 1: (late, 1.0)}) == (1, "in 'forward' for 400 s, and others wait")
    assert _gone({0: (late, 1.0), 1: (late, 1.0)}) is None
