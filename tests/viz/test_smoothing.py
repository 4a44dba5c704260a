import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from viz.smoothing import averages_by_source, debiased_average, describe_window, extremes, value_range, window_for

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


def test_windows() -> None:
    assert [window_for(count) for count in (0, 100, 3000, 10**6)] == [20, 20, 150, 1000]
    assert describe_window(1000) == "average over about the last 1,000"


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


def test_each_source_is_averaged_over_its_own_documents() -> None:
    sources = np.array(["a", "b", "a", "", "b", "a"], dtype=object)
    values = np.array([1.0, 9.0, 1.0, 77.0, 9.0, 1.0])
    curves = averages_by_source(np.arange(6), values, sources)
    assert [(name, steps.tolist(), averages.round(9).tolist()) for name, steps, averages in curves] == [
        ("a", [0, 2, 5], [1.0, 1.0, 1.0]),
        ("b", [1, 4], [9.0, 9.0]),
    ]


def test_rare_sources_are_taken_together() -> None:
    sources = np.array([f"s{i}" for i in range(9) for _ in range(10 - i)], dtype=object)
    curves = averages_by_source(np.arange(len(sources)), np.ones(len(sources)), sources, most=7)
    assert [name for name, _, _ in curves] == ["s0", "s1", "s2", "s3", "s4", "s5", "3 others"]
    assert sum(len(steps) for _, steps, _ in curves) == len(sources)


def test_a_range_is_not_flattened_by_one_spike() -> None:
    falling = np.linspace(9, 3, 100)
    low, high = value_range(falling, None)
    assert low < 3
    assert 9 < high < 11
    assert value_range(np.append(falling, 1e6), None) == (low, high)
    assert value_range(np.array([2.0, 2.0]), 0)[0] == 0
    assert value_range(np.array([2.0, 2.0]), None)[1] > 2
    assert value_range(np.zeros(30), None) == (-0.04, 0.22)
