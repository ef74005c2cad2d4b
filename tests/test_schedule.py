"""The factor on the learning rate at each step."""

import math

import pytest

from vaex.training.schedule import Constant, Cosine, Tripling


def test_burdas_schedule_has_3280_epochs() -> None:
    """Their own words: 3^i passes at a learning rate of 0.001 · 10^(-i/7), for i = 0 to 7."""
    schedule = Tripling(steps=3280, warmup=0, stages=8)
    wanted = [10 ** (-i / 7) for i in range(8) for _ in range(3**i)]
    assert len(wanted) == 3280
    assert [schedule(step) for step in range(3280)] == wanted


def test_fewer_stages_are_the_same_in_small() -> None:
    schedule = Tripling(steps=40, warmup=0, stages=3)  # 13 parts of some 3 steps
    factors = [schedule(step) for step in range(40)]
    assert set(factors) == {1.0, 10**-0.5, 0.1} and factors == sorted(factors, reverse=True)
    assert [factors.count(factor) for factor in (1.0, 10**-0.5, 0.1)] == [4, 9, 27]
    with pytest.raises(ValueError, match="schedule.stages=1: must be >= 2"):
        Tripling(steps=10, warmup=0, stages=1)


def test_warm_up_and_decay() -> None:
    assert [Constant(steps=10, warmup=4)(step) for step in range(6)] == [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    cosine = Cosine(steps=100, warmup=0, final=0.1)
    assert cosine(0) == 1 and cosine(50) == pytest.approx(0.55)
    assert cosine(99) == pytest.approx(0.1 + 0.45 * (1 + math.cos(math.pi * 0.99)))
