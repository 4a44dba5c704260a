import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.debiased_average import DebiasedAverage

ANY_FLOAT = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf]))


def plain_average(values: list[float], window: int) -> list[float]:
    """The formula of the docstring, literally."""
    share, total, count, averages = 2 / (window + 1), 0.0, 0, []
    for value in values:
        if math.isfinite(value):
            total, count = (1 - share) * total + share * value, count + 1
        averages.append(total / (1 - (1 - share) ** count) if count else math.nan)
    return averages


@given(st.lists(ANY_FLOAT, max_size=300), st.integers(1, 60))
def test_the_average_is_its_formula(values: list[float], window: int) -> None:
    found = DebiasedAverage(window).extend(values)
    np.testing.assert_allclose(found, plain_average(values, window), rtol=1e-8, atol=1e-6)


def test_the_average_of_a_long_curve_is_its_formula() -> None:
    values = np.random.default_rng(0).normal(3, 1, 20_000)
    np.testing.assert_allclose(DebiasedAverage(1000).extend(values), plain_average(values.tolist(), 1000), rtol=1e-10)


def test_the_window_must_be_at_least_one() -> None:
    with pytest.raises(ValueError, match="window of 1 or more"):
        DebiasedAverage(0)


@given(st.lists(ANY_FLOAT, max_size=100), st.lists(ANY_FLOAT, max_size=100), st.integers(1, 30))
def test_parts_give_the_same_averages_as_the_whole(first: list[float], second: list[float], window: int) -> None:
    average = DebiasedAverage(window)
    parts = [*average.extend(first), *average.extend([])]
    average = DebiasedAverage(window, average.state())
    parts += [*average.extend(second)]
    np.testing.assert_allclose(parts, DebiasedAverage(window).extend(first + second), rtol=1e-8, atol=1e-6)


def test_added_values_give_the_same_averages_as_an_array() -> None:
    values, average = [2.0, math.nan, math.inf, 5.0, 1.0], DebiasedAverage(7)
    assert math.isnan(average.value)
    found = []
    for value in values:
        average.add(value)
        found.append(average.value)
    np.testing.assert_allclose(found, DebiasedAverage(7).extend(values), rtol=1e-12)
