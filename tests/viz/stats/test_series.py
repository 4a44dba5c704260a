from typing import Any

import numpy as np
import pytest

from tests.viz.runs_to_draw import columns_of
from viz.stats.averages import debiased_average, extremes
from viz.stats.downsample import BLOCK, Curve
from viz.stats.series import FEWEST_OF_SOURCE, Series


def parts_of(count: int, sizes: list[int], **made: Any) -> Series:
    columns, series, begin = columns_of(count, **made), Series(), 0
    columns["loss"][[0, 1, *range(3, count, 97)]] = np.nan  # some that are not finite, at the very beginning too
    for size in [*sizes, count]:
        series.extend({name: values[begin : begin + size] for name, values in columns.items()})
        begin = min(begin + size, count)
    return series


CURVES = ["loss", "loss_error", "accuracy", "accuracy_error", "gradient_norm", "tokens_per_second", "waited_share"]


@pytest.mark.parametrize("sizes", [[], [1, 1, 1], [0, 50, 50, 0, 700], [999]])
def test_it_does_not_matter_in_which_parts_the_rows_come(sizes: list[int]) -> None:
    whole, parts = parts_of(2000, []), parts_of(2000, sizes)
    assert parts.size == whole.size == 2000
    for name in CURVES:
        np.testing.assert_allclose(
            getattr(parts.averages, name).values(), getattr(whole.averages, name).values(), rtol=1e-9
        )
    np.testing.assert_allclose(parts.excess.values(), whole.excess.values(), atol=1e-9)
    assert parts.sources.keys() == whole.sources.keys()
    for name, source in whole.sources.items():
        assert parts.sources[name].rows.values().tolist() == source.rows.values().tolist()
        np.testing.assert_allclose(parts.sources[name].average.values(), source.average.values(), rtol=1e-9)
    for name, values in parts.columns(1500).items():
        assert (
            values[:1500].tolist() == pytest.approx(whole.columns()[name][:1500].tolist(), nan_ok=True)
            if (values.dtype == np.float64)
            else values.tolist() == whole.columns()[name][:1500].tolist()
        )


def test_the_past_stays_as_it_was() -> None:
    series = parts_of(1000, [])
    before = {name: getattr(series.averages, name).values(1000).copy() for name in CURVES}
    series.extend(columns_of(5000) | {"steps": np.arange(1000, 6000)})
    for name, values in before.items():
        np.testing.assert_array_equal(getattr(series.averages, name).values(1000), values)


def test_a_window_that_grows_with_the_run_would_redraw_the_past() -> None:
    losses = columns_of(5000)["loss"]
    early, late = (debiased_average(losses[:count], count // 20)[:1000] for count in (1000, 5000))
    assert np.abs(early - late).max() > 0.1


def test_a_document_is_held_against_what_was_usual_for_its_source_before_it() -> None:
    columns, series = columns_of(400, sources=2), Series()
    for part in (slice(150), slice(150, 153), slice(153, 400)):
        series.extend({name: values[part] for name, values in columns.items()})
    for name, source in series.sources.items():
        rows = np.flatnonzero(columns["source"] == name)
        assert source.rows.values().tolist() == rows.tolist()
        losses = columns["loss"][rows]
        average = debiased_average(losses)
        np.testing.assert_allclose(source.average.values(), average)
        expected = losses[1:] - average[:-1]
        expected[: FEWEST_OF_SOURCE - 1] = np.nan
        np.testing.assert_allclose(series.excess.values()[rows[1:]], expected)
        assert np.isnan(series.excess.values()[rows[0]])


def test_speed_is_tokens_over_seconds_and_not_a_mean_of_rates() -> None:
    columns = columns_of(1000)
    columns["tokens"][::2], columns["seconds"][::2] = 10.0, 0.001  # 10,000 a second, and next to nothing of the time
    columns["tokens"][1::2], columns["seconds"][1::2] = 200.0, 0.2
    columns["seconds_waited"][1::2], columns["seconds_waited"][::2] = 0.1, 0.0
    series = Series()
    series.extend(columns)
    assert series.averages.tokens_per_second.values()[-1] == pytest.approx(210 / 0.201, rel=0.01)
    assert series.averages.waited_share.values()[-1] == pytest.approx(0.1 / 0.201, rel=0.01)
    series = Series()
    series.extend(columns | {"seconds": np.full(1000, np.nan)})  # not told: the mean of the rates is what there is
    assert series.averages.tokens_per_second.values()[-1] == pytest.approx(
        columns["throughput"][-200:].mean(), rel=0.05
    )


@pytest.mark.parametrize("count", [0, 1, 1000, 2 * 50 * BLOCK, 2 * 50 * BLOCK + 77, 200_000])
def test_an_outline_keeps_ends_and_extremes(count: int) -> None:
    random = np.random.default_rng(count)
    values = random.normal(size=count)
    values[random.random(count) < 0.01] = np.nan
    curve = Curve()
    for part in np.array_split(values, 7):
        curve.extend(part)
    for upto in {count, count // 2}:
        kept, finite = curve.outline(upto, 50), np.flatnonzero(np.isfinite(values[:upto]))
        assert len(kept) <= 102 and (np.diff(kept) > 0).all() and set(kept) <= set(finite)
        if len(finite):
            assert values[kept].min() == values[finite].min() and values[kept].max() == values[finite].max()
        if upto <= 102:
            assert kept.tolist() == extremes(values[:upto], 50).tolist()


def test_every_spike_of_a_long_curve_is_in_its_outline() -> None:
    values = np.zeros(300_000)
    spikes = np.arange(1234, 300_000, 7000)
    values[spikes] = 9.0
    curve = Curve()
    curve.extend(values)
    assert set(spikes) <= set(curve.outline(300_000, 430))
