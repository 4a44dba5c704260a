import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from viz.stats.averages import AverageWithError, extremes

ANY_FLOAT = st.one_of(st.floats(-1e6, 1e6), st.sampled_from([math.nan, math.inf, -math.inf]))


def test_the_standard_error_is_the_spread_of_the_averages_of_many_runs() -> None:
    random = np.random.default_rng(0)
    for count in (5, 60, 1000):
        found = [AverageWithError(50).extend(random.normal(3, 2, count)) for _ in range(2000)]
        ends, errors = np.array([(mean[-1], error[-1]) for mean, error in found]).T
        assert ends.std() == pytest.approx(math.sqrt((errors**2).mean()), rel=0.06)
        assert ends.mean() == pytest.approx(3, abs=0.1)


def test_the_error_of_one_value_is_unknown_and_that_of_equal_values_is_zero() -> None:
    mean, error = AverageWithError().extend([math.nan, 2.5, 2.5, math.inf, 2.5])
    np.testing.assert_array_equal(mean, [math.nan, 2.5, 2.5, 2.5, 2.5])
    np.testing.assert_allclose(error, [math.nan, math.nan, 0, 0, 0])


def test_an_average_with_error_in_parts_equals_one_at_once() -> None:
    values = np.random.default_rng(1).gamma(2, 3, 5000)
    values[[7, 2000, 3333]] = math.nan, math.inf, 1e9
    whole, parts = AverageWithError(), AverageWithError()
    found = [np.concatenate(arrays) for arrays in zip(*map(parts.extend, np.split(values, 25)), strict=True)]
    for a, b in zip(found, whole.extend(values), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@given(st.lists(ANY_FLOAT, min_size=1, max_size=400), st.integers(1, 20))
def test_extremes_include_both_ends_the_lowest_and_the_highest(values: list[float], buckets: int) -> None:
    array = np.array(values)
    kept, finite = extremes(array, buckets), np.flatnonzero(np.isfinite(array))
    assert len(kept) <= 2 * buckets + 2 and (np.diff(kept) > 0).all() and set(kept) <= set(finite)
    if len(finite):
        assert {finite[0], finite[-1]} <= set(kept)
        assert array[kept].max() == array[finite].max() and array[kept].min() == array[finite].min()
