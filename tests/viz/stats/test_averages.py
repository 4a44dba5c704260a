import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.debiased_average import DebiasedAverage
from viz.stats.averages import AverageWithError, debiased_average, extremes, squared_weights

ANY_FLOAT = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf]))


def plain_average(values: list[float], window: int) -> list[float]:
    """The formula of the docstring, word for word."""
    share, total, count, averages = 2 / (window + 1), 0.0, 0, []
    for value in values:
        if math.isfinite(value):
            total, count = (1 - share) * total + share * value, count + 1
        averages.append(total / (1 - (1 - share) ** count) if count else math.nan)
    return averages


@given(st.lists(ANY_FLOAT, max_size=300), st.integers(1, 60))
def test_the_average_is_its_formula(values: list[float], window: int) -> None:
    np.testing.assert_allclose(debiased_average(values, window), plain_average(values, window), rtol=1e-8, atol=1e-6)


def test_the_average_of_a_long_curve_is_its_formula() -> None:
    values = np.random.default_rng(0).normal(3, 1, 20_000)
    np.testing.assert_allclose(debiased_average(values, 1000), plain_average(values.tolist(), 1000), rtol=1e-10)


def test_a_constant_is_its_own_average_from_the_first_value_on() -> None:
    np.testing.assert_allclose(debiased_average(np.full(500, 2.5), 100), 2.5, rtol=1e-12)


def test_nan_is_passed_over() -> None:
    with_holes = debiased_average([1.0, np.nan, 2.0, np.inf, 4.0], 3)
    without = debiased_average([1.0, 2.0, 4.0], 3)
    np.testing.assert_array_equal(with_holes, without[[0, 0, 1, 1, 2]])


def test_the_window_must_be_one_or_more() -> None:
    with pytest.raises(ValueError, match="window of 1 or more"):
        debiased_average([1.0], 0)


@given(st.lists(ANY_FLOAT, max_size=100), st.lists(ANY_FLOAT, max_size=100), st.integers(1, 30))
def test_an_average_goes_on_as_if_it_had_had_all_values_at_once(
    first: list[float], second: list[float], window: int
) -> None:
    average = DebiasedAverage(window)
    parts = [*average.extend(first), *average.extend([]), *average.extend(second)]
    np.testing.assert_allclose(parts, debiased_average(first + second, window), rtol=1e-8, atol=1e-6)


def test_the_standard_error_is_what_the_averages_of_many_runs_spread_by() -> None:
    random = np.random.default_rng(0)
    for count in (5, 60, 1000):
        found = [AverageWithError(50).extend(random.normal(3, 2, count)) for _ in range(2000)]
        ends, errors = np.array([(mean[-1], error[-1]) for mean, error in found]).T
        assert ends.std() == pytest.approx(math.sqrt((errors**2).mean()), rel=0.06)
        assert ends.mean() == pytest.approx(3, abs=0.1)


def test_the_error_of_one_value_is_not_known_and_of_equal_ones_is_none() -> None:
    mean, error = AverageWithError().extend([math.nan, 2.5, 2.5, math.inf, 2.5])
    np.testing.assert_array_equal(mean, [math.nan, 2.5, 2.5, 2.5, 2.5])
    np.testing.assert_allclose(error, [math.nan, math.nan, 0, 0, 0])


def test_an_average_with_error_goes_on() -> None:
    values = np.random.default_rng(1).gamma(2, 3, 5000)
    values[[7, 2000, 3333]] = math.nan, math.inf, 1e9
    whole, parts = AverageWithError(), AverageWithError()
    found = [np.concatenate(arrays) for arrays in zip(*map(parts.extend, np.split(values, 25)), strict=True)]
    for a, b in zip(found, whole.extend(values), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_squared_weights_are_those_of_the_average() -> None:
    for count in (1, 2, 10, 700):
        effects = [debiased_average(np.eye(count)[number], 50)[-1] for number in range(count)]
        assert squared_weights(count, 50) == pytest.approx(np.square(effects).sum())
    assert squared_weights(10**6, 200) == pytest.approx(1 / 200)


@given(st.lists(ANY_FLOAT, min_size=1, max_size=400), st.integers(1, 20))
def test_a_reduction_keeps_ends_and_extremes_with_their_indices(values: list[float], buckets: int) -> None:
    array = np.array(values)
    kept = extremes(array, buckets)
    finite = np.flatnonzero(np.isfinite(array))
    assert len(kept) <= 2 * buckets + 2
    assert (np.diff(kept) > 0).all()
    assert set(kept) <= set(finite)
    if len(finite):
        assert {finite[0], finite[-1]} <= set(kept)
        assert array[kept].max() == array[finite].max()
        assert array[kept].min() == array[finite].min()


def test_each_spike_of_a_long_curve_survives() -> None:
    values = np.random.default_rng(0).normal(size=100_000)
    spikes = np.arange(500, 100_000, 1000)
    values[spikes] = 50
    assert set(spikes) <= set(extremes(values, 430))
