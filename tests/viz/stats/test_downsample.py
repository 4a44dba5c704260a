"""Downsampled curves lose no extreme value, and numbers arrive as JSON."""

import json
import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from viz.stats.averages import extremes
from viz.stats.downsample import BLOCK, Curve, numbers, outline

LONG = 1_000_000
NON_FINITE = [math.nan, math.inf, -math.inf]
EXTREME = [0.0, -0.0, 5e-324, -5e-324, 2.2250738585072014e-308, 1e308, -1.7976931348623157e308]
Drawn = tuple[npt.NDArray[np.float64], npt.NDArray[np.int64], int, int, int]


def curve_of(values: npt.NDArray[np.float64], parts: int = 3) -> Curve:
    """In parts, as in a live run."""
    curve = Curve()
    for part in np.array_split(values, parts):
        curve.extend(part)
    return curve


@st.composite
def parts_of_curves(draw: st.DrawFn) -> Drawn:
    """(values, steps, first, last, pixels): noise with NaN and infinities, steps that may be missing, any part."""
    count = draw(st.sampled_from([1, 2, 30, 400, 3 * BLOCK, 20_000]))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = random.normal(3, 1, count).round(draw(st.sampled_from([1, 9])))
    values[random.random(count) < draw(st.sampled_from([0, 0.1, 0.9, 1]))] = draw(st.sampled_from(NON_FINITE))
    steps = np.cumsum(random.integers(1, draw(st.sampled_from([2, 5])), count)) - draw(st.sampled_from([1, 0]))
    first = draw(st.integers(0, count))
    return values, steps, first, draw(st.integers(first, count)), draw(st.integers(1, 300))


@given(parts_of_curves(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_rows_are_finite_ordered_few_and_include_the_extremes_of_the_part(drawn: Drawn, log: bool) -> None:
    values, steps, first, last, pixels = drawn
    rows = outline(curve_of(values), steps, first, last, pixels, log=log)
    assert len(rows) <= 2 * pixels + 2
    assert (np.diff(rows) > 0).all() and np.isfinite(values[rows]).all()
    finite = first + np.flatnonzero(np.isfinite(values[first:last]))
    if not len(finite):
        assert not len(rows)
        return
    assert first <= rows[0] and rows[-1] < last
    assert {first, last - 1} & set(finite.tolist()) <= set(rows.tolist())
    assert values[rows].min() == values[finite].min() and values[rows].max() == values[finite].max()


@given(parts_of_curves())
@settings(max_examples=150, deadline=None)
def test_each_pixel_of_a_logarithmic_axis_has_its_lowest_and_highest_value(drawn: Drawn) -> None:
    """If pixels contain a thousand rows or more, a border may be up to a block further."""
    values, steps, first, last, pixels = drawn
    rows = outline(curve_of(values), steps, first, last, pixels, log=True)
    if last - first <= 2 * pixels:
        assert rows.tolist() == [row for row in range(first, last) if math.isfinite(values[row])]
        return
    ends = max(int(steps[first]), 1), max(int(steps[last - 1]), 1) + 1
    borders = first + np.searchsorted(steps[first:last], np.geomspace(*ends, pixels + 1)[1:-1])
    borders = np.unique([first, *borders, last])
    shift = BLOCK if np.diff(borders).max(initial=0) >= 4 * BLOCK else 0
    for begin, end in pairwise(borders.tolist()):
        inner = values[begin + (shift if begin > first else 0) : end]
        inner = inner[np.isfinite(inner)]
        if len(inner):
            kept = values[rows[(rows >= begin) & (rows < end + shift)]]
            assert kept.min() <= inner.min() and kept.max() >= inner.max()
            assert shift or (kept.min(), kept.max()) == (inner.min(), inner.max())


@given(parts_of_curves())
@settings(max_examples=100, deadline=None)
def test_a_few_pixels_of_a_linear_axis_include_their_extremes(drawn: Drawn) -> None:
    """Pixels have equally many finite values. In long parts they consist of blocks, and are wider by the rows at both
    ends that belong to no complete block."""
    values, steps, first, last, pixels = drawn
    finite = first + np.flatnonzero(np.isfinite(values[first:last]))
    rows = outline(curve_of(values), steps, first, last, pixels, log=False)
    pixel = max(1, -(-len(finite) // pixels))
    if last - first >= 2 * pixels * BLOCK:
        candidates = 2 * (last - first) // BLOCK + 2 * BLOCK + 2
        pixel = (-(-candidates // pixels) // 2 + 2) * BLOCK
    for begin in range(0, len(finite) - 4 * pixel + 1, 4 * pixel):
        there = finite[begin : begin + 4 * pixel]
        inner, kept = values[there[pixel:-pixel]], values[np.intersect1d(there, rows)]
        assert kept.min() <= inner.min() and kept.max() >= inner.max()


def test_pixels_of_a_linear_axis_are_equally_wide() -> None:
    """A case in which the last 66 rows could take two of the four pixels from the 6,400 others."""
    values = np.random.default_rng(0).normal(3, 1, 6466)
    rows = outline(curve_of(values), np.arange(6466), 0, 6466, 4, log=False)
    for begin in range(0, 6466 - 1616, 1616):
        inner = values[begin + BLOCK : begin + 1616 - BLOCK]
        kept = values[rows[(rows >= begin - BLOCK) & (rows < begin + 1616 + BLOCK)]]
        assert kept.min() <= inner.min() and kept.max() >= inner.max()


@pytest.fixture(scope="module")
def long_curve() -> tuple[npt.NDArray[np.float64], Curve]:
    """A million values with 100 spikes at random places."""
    random = np.random.default_rng(5)
    values = random.normal(3, 0.1, LONG)
    places = random.choice(LONG, 100, replace=False)
    values[places] = np.where(np.arange(100) % 2 == 0, 50, -50) + random.normal(0, 1, 100)
    return values, curve_of(values)


@given(place=st.integers(0, 99), log=st.booleans(), data=st.data())
@settings(max_examples=60, deadline=None)
def test_a_spike_among_a_million_values_is_visible_at_any_zoom(
    long_curve: tuple[npt.NDArray[np.float64], Curve], place: int, log: bool, data: st.DataObject
) -> None:
    values, curve = long_curve
    spike = int(np.flatnonzero(np.abs(values) > 20)[place])
    before, after = (data.draw(st.integers(0, 20).map(lambda power: 2**power)) for _ in range(2))
    first, last = max(0, spike - before), min(LONG, spike + after)
    rows = outline(curve, np.arange(LONG), first, last, 800, log=log)
    assert len(rows) <= 2 * 800 + 2
    shown, part = values[rows], values[first:last]
    alike = first + np.flatnonzero(part > 20 if values[spike] > 0 else part < -20)
    assert spike in rows or (np.diff(alike).min() < 4 * (last - first) / 800 or log)  # a higher one shares its pixel
    assert len(alike) > 1 or spike in rows
    assert shown.max() == part.max() and shown.min() == part.min()


def test_control_every_nth_value_loses_the_spikes(long_curve: tuple[npt.NDArray[np.float64], Curve]) -> None:
    values, curve = long_curve
    rows = outline(curve, np.arange(LONG), 0, LONG, 800, log=False)
    spikes = np.flatnonzero(np.abs(values) > 20)
    assert len(np.intersect1d(rows, spikes)) > 90  # two of the same sign may share a pixel
    assert len(np.intersect1d(np.linspace(0, LONG - 1, len(rows)).astype(int), spikes)) < 5


@pytest.mark.parametrize("count", [0, 1, 1000, 2 * 50 * BLOCK, 2 * 50 * BLOCK + 77, 200_000])
def test_the_outline_of_a_whole_curve_includes_its_extremes_and_every_spike(count: int) -> None:
    random = np.random.default_rng(count)
    values = random.normal(size=count)
    values[random.random(count) < 0.01] = np.nan
    spikes = np.arange(1234, count, 7000)
    values[spikes] = 9.0
    curve = curve_of(values, 7)
    for upto in {count, count // 2}:
        kept, finite = curve.outline(upto, 50), np.flatnonzero(np.isfinite(values[:upto]))
        assert len(kept) <= 102 and (np.diff(kept) > 0).all() and set(kept) <= set(finite)
        if len(finite):
            assert values[kept].min() == values[finite].min() and values[kept].max() == values[finite].max()
        assert set(spikes[spikes < upto]) <= set(kept)
        if upto <= 102:
            assert kept.tolist() == extremes(values[:upto], 50).tolist()


@given(
    st.lists(st.one_of(st.floats(width=64), st.floats(1e-12, 1e5), st.sampled_from(NON_FINITE + EXTREME)), max_size=30)
)
def test_numbers_are_json_with_six_digits(values: list[float]) -> None:
    found = json.loads(json.dumps(numbers(values), allow_nan=False))
    for value, shown in zip(values, found, strict=True):
        if not math.isfinite(value):
            assert shown is None
        elif abs(value) < 1e-302:  # below anything that a run measures: may become 0
            assert abs(shown) <= 1.00001e-302
        else:
            assert shown == pytest.approx(value, rel=5.001e-6) and math.copysign(1, shown) == math.copysign(1, value)
            assert not 1e-12 < value < 1e5 or shown == float(f"{value:.6g}")
