from typing import Any

import numpy as np
import pytest

from tests.viz.runs_to_draw import columns_of
from viz.stats.averages import debiased_average
from viz.stats.series import FEWEST_OF_SOURCE, Series

CURVES = ["loss", "loss_error", "accuracy", "accuracy_error", "gradient_norm", "tokens_per_second", "waited_share"]


def parts_of(count: int, sizes: list[int], **made: Any) -> Series:
    columns, series, begin = columns_of(count, **made), Series(), 0
    columns["loss"][[0, 1, *range(3, count, 97)]] = np.nan  # also at the very beginning
    for size in [*sizes, count]:
        series.extend({name: values[begin : begin + size] for name, values in columns.items()})
        begin = min(begin + size, count)
    return series


@pytest.mark.parametrize("sizes", [[], [1, 1, 1], [0, 50, 50, 0, 700], [999]])
def test_rows_may_arrive_in_any_parts(sizes: list[int]) -> None:
    whole, parts = parts_of(2000, []), parts_of(2000, sizes)
    assert parts.size == whole.size == 2000
    for name in CURVES:
        found, expected = (getattr(series.averages, name).values() for series in (parts, whole))
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    np.testing.assert_allclose(parts.excess.values(), whole.excess.values(), atol=1e-9)
    assert parts.sources.keys() == whole.sources.keys()
    for name, source in whole.sources.items():
        assert parts.sources[name].rows.values().tolist() == source.rows.values().tolist()
        np.testing.assert_allclose(parts.sources[name].average.values(), source.average.values(), rtol=1e-9)
    for name, values in parts.columns(1500).items():
        np.testing.assert_array_equal(values, whole.columns()[name][:1500])


def test_later_rows_do_not_change_earlier_averages() -> None:
    series = parts_of(1000, [])
    before = {name: getattr(series.averages, name).values(1000).copy() for name in CURVES}
    series.extend(columns_of(5000) | {"steps": np.arange(1000, 6000)})
    for name, values in before.items():
        np.testing.assert_array_equal(getattr(series.averages, name).values(1000), values)


def test_control_a_window_that_grows_with_the_run_changes_earlier_averages() -> None:
    losses = columns_of(5000)["loss"]
    early, late = (debiased_average(losses[:count], count // 20)[:1000] for count in (1000, 5000))
    assert np.abs(early - late).max() > 0.1


def test_the_excess_of_a_document_is_relative_to_the_average_of_its_source_before_it() -> None:
    columns, series = columns_of(400, sources=2), Series()
    for part in (slice(150), slice(150, 153), slice(153, 400)):
        series.extend({name: values[part] for name, values in columns.items()})
    for name, source in series.sources.items():
        rows = np.flatnonzero(columns["source"] == name)
        assert source.rows.values().tolist() == rows.tolist()
        losses = columns["loss"][rows]
        average = debiased_average(losses)
        np.testing.assert_allclose(source.average.values(), average)
        expected = np.append(np.nan, losses[1:] - average[:-1])
        expected[:FEWEST_OF_SOURCE] = np.nan
        np.testing.assert_allclose(series.excess.values()[rows], expected)


def test_speed_is_tokens_over_seconds_and_not_a_mean_of_rates() -> None:
    columns = columns_of(1000)
    columns["tokens"][::2], columns["seconds"][::2] = 10.0, 0.001  # 10,000 tokens/s in almost none of the time
    columns["tokens"][1::2], columns["seconds"][1::2] = 200.0, 0.2
    columns["seconds_waited"][1::2], columns["seconds_waited"][::2] = 0.1, 0.0
    series = Series()
    series.extend(columns)
    assert series.averages.tokens_per_second.values()[-1] == pytest.approx(210 / 0.201, rel=0.01)
    assert series.averages.waited_share.values()[-1] == pytest.approx(0.1 / 0.201, rel=0.01)
    series = Series()
    series.extend(columns | {"seconds": np.full(1000, np.nan)})  # without seconds, only the mean of the rates is known
    mean_rate = columns["throughput"][-200:].mean()
    assert series.averages.tokens_per_second.values()[-1] == pytest.approx(mean_rate, rel=0.05)
