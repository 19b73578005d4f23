"""Learning-rate factors: pure functions of the step."""

from __future__ import annotations

import pytest

from distrib.errors import ConfigError
from distrib.schedules import Constant, Cosine, Linear, Schedule, WarmupStableDecay


def curve(schedule: Schedule, num_steps: int) -> list[float]:
    return [schedule.factor(step, num_steps) for step in range(num_steps)]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(), [1, 1, 1, 1]),
        (Constant(warmup=2), [0.5, 1, 1, 1]),
        (Linear(), [1, 0.75, 0.5, 0.25]),
        (Linear(warmup=2), [0.5, 1, 1, 0.5]),
        (Linear(warmup=0.5, final=0.5), [0.5, 1, 1, 0.75]),
        (Cosine(), [1, 0.853553, 0.5, 0.146447]),
        (Cosine(warmup=2, final=0.2), [0.5, 1, 1, 0.6]),
        (WarmupStableDecay(warmup=1, decay=2), [1, 1, 1, 0.5]),
        (WarmupStableDecay(warmup=0.25, decay=0.5, final=0.5), [1, 1, 1, 0.75]),
    ],
)
def test_curves_by_hand(schedule: Schedule, expected: list[float]) -> None:
    """Each schedule gives the numbers that its definition gives by hand."""
    assert curve(schedule, 4) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("kind", [Constant, Linear, Cosine, WarmupStableDecay])
@pytest.mark.parametrize("warmup", [0, 1, 10, 0.1, 0.5])
def test_factor_stays_between_zero_and_the_peak(kind: type[Schedule], warmup: float) -> None:
    """No step is thrown away with rate 0, none exceeds the peak, and the peak is reached."""
    factors = curve(kind(warmup=warmup), 100)
    assert min(factors) > 0
    assert max(factors) == 1


def test_a_schedule_remembers_nothing() -> None:
    """Asking in any order, or twice, gives the same rate: a resumed run needs no state."""
    schedule = Cosine(warmup=3)
    backwards = [schedule.factor(step, 20) for step in reversed(range(20))]
    assert backwards[::-1] == curve(schedule, 20)


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: Linear(warmup=-1), "schedule.warmup"),
        (lambda: Linear(warmup=1.5), "schedule.warmup"),
        (lambda: Linear(warmup=11).factor(0, 10), "schedule.warmup"),
        (lambda: Cosine(final=1.1), "schedule.final"),
        (lambda: WarmupStableDecay(warmup=6, decay=5).factor(0, 10), "schedule.decay"),
        (lambda: WarmupStableDecay(decay=11).factor(0, 10), "schedule.decay"),
    ],
)
def test_parts_that_do_not_fit_are_refused_by_key(make: object, key: str) -> None:
    """A schedule longer than the run, or a share that is none, is refused under its dotted key."""
    assert callable(make)
    with pytest.raises(ConfigError) as caught:
        make()
    assert caught.value.key == key
