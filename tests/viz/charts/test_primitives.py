import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viz.charts.primitives import push_apart, robust_range


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12))
@settings(deadline=None)  # machines are shared
def test_labels_are_moved_apart_and_stay_ordered_and_inside(heights: list[float]) -> None:
    heights = sorted(heights)
    moved = push_apart(np.array(heights), 7.0, 0.0, 100.0)
    assert len(moved) == len(heights)
    assert (np.diff(moved) >= 7.0 - 1e-9).all()
    assert moved[0] >= -1e-9 and moved[-1] <= 100 + 1e-9


def test_a_few_spikes_do_not_flatten_a_curve() -> None:
    losses = np.linspace(9, 3, 1000)
    low, high = robust_range(losses, 0.002, 0.995)
    assert (low, high) == pytest.approx((3, 9), abs=0.05)
    losses[500] = 1e6
    assert robust_range(losses, 0.002, 0.995) == pytest.approx((low, high), abs=0.02)
    assert robust_range(np.array([3.0, 1e6, np.nan]), 0.002, 0.995) == (3, 1e6)
