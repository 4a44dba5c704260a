import math
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.config import FIELDS, TrainingConfig
from trainer.learning.schedule import (
    SCHEDULERS,
    CosineLRScheduler,
    LinearLRScheduler,
    LRScheduler,
    make_scheduler,
    warmup_then_constant,
)

SETTINGS = {"initial_learning_rate": 1e-3, "min_learning_rate": 1e-4, "warmup_steps": 10, "num_steps": 110}


def rates(schedule: str, *steps: int, **settings: float) -> list[float]:
    scheduler = make_scheduler({**SETTINGS, "cooldown_steps": 20, "schedule": schedule, **settings})
    return [scheduler.get_learning_rate(step) for step in steps]


def close(*expected: float) -> object:
    return pytest.approx(expected, rel=1e-12, abs=0)


CONTRACT = {0: 1e-6, 1: 1e-6, 2: 2e-6, 100: 1e-4, 500: 5e-4, 999: 9.99e-4, 1000: 1e-3, 1001: 1e-3, 10**6: 1e-3}


def test_the_table_of_the_contract() -> None:
    for step, rate in CONTRACT.items():
        assert warmup_then_constant(step, 0.001, 1000) == pytest.approx(rate, rel=1e-12)
        for num_steps in (1, 500, 10000):  # the default does not depend on the end of the run
            config = TrainingConfig(num_steps=num_steps)
            assert make_scheduler(config.to_dict()).get_learning_rate(step) == warmup_then_constant(step, 0.001, 1000)
    assert all(warmup_then_constant(step, 0.001, warmup) > 0 for warmup in (0, 1, 20) for step in range(30))


ROOT = math.sqrt(0.5)
"""cos(π/4): a quarter and three quarters of the way."""


@pytest.mark.parametrize(
    ("schedule", "cooldown", "least", "steps", "expected"),
    [
        ("constant", 20, 1e-4, (0, 5, 9, 10, 90, 91, 109), (1e-4, 5e-4, 9e-4, 1e-3, 1e-3, 9.5e-4, 5e-5)),
        ("linear", 0, 1e-4, (0, 5, 10, 11, 35, 60, 109), (1e-4, 5e-4, 1e-3, 9.91e-4, 7.75e-4, 5.5e-4, 1.09e-4)),
        ("linear", 0, 0.0, (60, 109), (5e-4, 1e-5)),
        ("linear", 20, 1e-4, (90, 100, 109), (2.8e-4, 1.9e-4 * 0.5, 1.09e-4 * 0.05)),  # decay and cooldown multiply
        ("cosine", 0, 1e-4, (5, 10, 35, 60), (5e-4, 1e-3, 1e-4 + 4.5e-4 * (1 + ROOT), 5.5e-4)),
        ("cosine", 0, 1e-4, (85, 109), (1e-4 + 4.5e-4 * (1 - ROOT), 1e-4 + 4.5e-4 * (1 + math.cos(0.99 * math.pi)))),
        ("cosine", 0, 0.0, (60,), (5e-4,)),
    ],
)
def test_each_schedule(schedule: str, cooldown: int, least: float, steps: list[int], expected: list[float]) -> None:
    assert rates(schedule, *steps, cooldown_steps=cooldown, min_learning_rate=least) == close(*expected)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_steps": 4, "warmup_steps": 0, "cooldown_steps": 4}, [1e-3, 7.5e-4, 5e-4, 2.5e-4]),  # the whole run
        ({"num_steps": 4, "warmup_steps": 0, "cooldown_steps": 1}, [1e-3] * 4),
        # Within the warm-up, and longer than the steps after it.
        ({"num_steps": 4, "warmup_steps": 8, "cooldown_steps": 2}, [1.25e-4, 1.25e-4, 2.5e-4, 1.875e-4]),
        ({"num_steps": 4, "warmup_steps": 2, "cooldown_steps": 4}, [5e-4, 3.75e-4, 5e-4, 2.5e-4]),
    ],
)
def test_extreme_cooldowns(settings: dict[str, float], expected: list[float]) -> None:
    assert rates("constant", 0, 1, 2, 3, **settings) == close(*expected)


@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_extreme_run_lengths(schedule: str) -> None:
    none = {"cooldown_steps": 0, "min_learning_rate": 0.0}
    assert rates(schedule, 0, num_steps=1, warmup_steps=0, **none) == close(1e-3)
    assert rates(schedule, 0, num_steps=1, warmup_steps=0, cooldown_steps=1, min_learning_rate=0.0) == close(1e-3)
    # A run that ends before or with its warm-up never decays.
    for warmup in (4, 8):
        found = rates(schedule, 0, 1, 2, 3, num_steps=4, warmup_steps=warmup, **none)
        assert found == close(*(1e-3 * step / warmup for step in (1, 1, 2, 3)))
    assert rates(schedule, 110, 10**9) == rates(schedule, 109, 109)  # past the end: the rate of the last step
    assert rates(schedule, 10**10 - 1, num_steps=10**10, **none)[0] > 0  # 1 + cos would be 0 here


@given(st.sampled_from(sorted(SCHEDULERS)), st.floats(1e-6, 10), st.floats(0, 1), st.data())
def test_rates_are_positive_bounded_and_smooth(schedule: str, rate: float, least: float, data: st.DataObject) -> None:
    num_steps, warmup = data.draw(st.integers(1, 300)), data.draw(st.integers(0, 400))
    cooldown = data.draw(st.integers(0, num_steps))
    settings = {"initial_learning_rate": rate, "min_learning_rate": rate * least, "num_steps": num_steps}
    settings |= {"warmup_steps": warmup, "cooldown_steps": cooldown}
    found = rates(schedule, *range(num_steps + 5), **settings)
    rounding = 1e-12 * rate
    assert min(found) > 0 and max(found) <= rate + rounding
    slopes = (1 / (warmup or math.inf), 1 / (cooldown or math.inf), math.pi / 2 / max(num_steps - warmup, 1))
    if schedule == "constant":
        slopes = slopes[:2]
    assert all(abs(one - other) <= rate * sum(slopes) + rounding for one, other in pairwise(found))
    after = found[warmup:]
    assert all(later <= earlier + rounding for earlier, later in pairwise(after))
    if schedule != "constant" and not cooldown and warmup < num_steps:
        assert min(after) >= rate * least - rounding


def test_the_flag_offers_every_scheduler_and_the_public_classes_work_alone() -> None:
    assert FIELDS["schedule"].metadata["choices"] == tuple(SCHEDULERS)
    assert LRScheduler(1e-3, 10, 110).get_learning_rate(50) == 1e-3
    assert LinearLRScheduler(1e-3, 10, 110).get_learning_rate(60) == pytest.approx(5e-4)
    cosine = CosineLRScheduler(initial_learning_rate=1e-3, warmup_steps=10, num_steps=110, min_learning_rate=1e-4)
    assert [cosine.get_lr(60)] == close(5.5e-4)
