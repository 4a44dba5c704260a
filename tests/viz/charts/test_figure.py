"""The content of a chart is read from the figure, positions from the renderer."""

import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from tests.viz.overlaps import find_overlaps
from tests.viz.runs_to_draw import HOSTILE, MOMENTS, SAMPLE, columns_of, view_of
from viz.charts.figure import SIZE, Chart
from viz.charts.panels import shorten_names
from viz.charts.primitives import FEW, Density, places
from viz.stats.series import Series
from viz.views.run_view import StandOut, View, by_position, verdict


@pytest.fixture(scope="module")
def chart() -> Chart:
    return Chart()


def overlaps(chart: Chart) -> list[str]:
    return find_overlaps(chart.figure, (chart.stand_outs, chart.moments, chart.latest))


def size_of(picture: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(picture)) as image:
        image.load()
        return image.size


def legend_of(chart: Chart) -> list[str]:
    legend = chart.legend.get_legend()
    return [] if legend is None else [text.get_text() for text in legend.get_texts()]


def written_in(axes: Any) -> str:
    return "\n".join(text.get_text() for text in axes.texts)


def density_of(chart: Chart) -> Density:
    (found,) = (artist for artist in chart.loss.artists if isinstance(artist, Density))
    return found


def line_of(axes: Any, label: str) -> Any:
    return next((line for line in axes.lines if label in str(line.get_label())), None)


def evaluations_of(steps: Sequence[int], split: str = "validation", above: float = 0.0) -> list[dict[str, Any]]:
    return [{"split": split, "step": step, "loss": above + 3 + 6 * math.exp(-step / 300)} for step in steps]


@pytest.mark.parametrize(
    ("count", "sources", "ugly"),
    [
        *((count, 3, False) for count in (0, 1, 2, 5, 100, 3000)),
        *((1, 1, False), (5, 7, True), (3000, 7, True), (100, 30, True), (100_000, 30, False)),
    ],
)
def test_nothing_overlaps_at_any_length(chart: Chart, count: int, ugly: bool, sources: int) -> None:
    evaluations = evaluations_of(range(count // 6, count, max(count // 6, 1)))
    picture = chart.draw(view_of(columns_of(count, sources, ugly), evaluations=evaluations))
    assert overlaps(chart) == []
    assert size_of(picture) == SIZE
    assert len(picture) < 320_000


@pytest.mark.parametrize("size", [(400, 250), (1000, 1000), (3200, 1800), (2000, 1250)])
def test_nothing_overlaps_at_any_size(size: tuple[int, int]) -> None:
    chart = Chart(size, dark=True)
    assert size_of(chart.draw(view_of(columns_of(3000, 7, True)))) == size
    assert overlaps(chart) == []


def test_the_overlap_check_can_fail(chart: Chart) -> None:
    chart.draw(view_of(columns_of(100)))
    chart.loss.texts[-1].set_text("far too long a label " * 10)
    chart.latest.texts[-1].set_text("W" * 100)
    wrong = overlaps(chart)
    assert any("overlaps" in line for line in wrong)
    assert any("leaves its panel" in line for line in wrong)
    assert any("leaves the figure" in line for line in wrong)


def test_one_of_a_million_documents_is_visible_in_the_density(chart: Chart) -> None:
    columns = columns_of(1_000_000)
    columns["loss"][:] = np.clip(columns["loss"], 1.6, 4.4)
    columns["loss"][654_321] = 6.5  # the only one at this height
    picture = chart.draw(view_of(columns, evaluations=evaluations_of([999_999])))
    assert overlaps(chart) == [] and len(picture) < 320_000
    counts, (left, right), (bottom, top) = density_of(chart).counts, chart.loss.get_xlim(), chart.loss.get_ylim()
    row = int((6.5 - bottom) / (top - bottom) * counts.shape[0])
    column = int((654_321 - left) / (right - left) * counts.shape[1])
    assert counts[row].sum() == counts[row, column] == 1
    outside = np.count_nonzero((columns["loss"] < bottom) | (columns["loss"] >= top))
    assert counts.sum() == 1_000_000 - outside
    box = chart.loss.get_window_extent()
    with Image.open(io.BytesIO(picture)) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    alone = pixels[SIZE[1] - 1 - (round(box.y0) + row), round(box.x0) + column]
    assert alone.sum() < 3 * 255 - 100  # visible, although it is one of a million
    assert line_of(chart.loss, "average").get_xdata()[-1] == 999_999
    assert len(line_of(chart.loss, "average").get_xdata()) <= 2 * places(chart.loss) + 2


def test_few_documents_are_points(chart: Chart) -> None:
    for count in (2, 100, FEW):
        chart.draw(view_of(columns_of(count)))
        assert not [artist for artist in chart.loss.artists if isinstance(artist, Density)]
        points = [line for line in chart.loss.lines if line.get_marker() == "o" and line.get_linestyle() == "None"]
        assert len(points[0].get_xdata()) == count


def test_reference_losses_are_the_uniform_guess_and_token_frequencies(chart: Chart) -> None:
    columns = columns_of(500)
    chart.draw(view_of(columns))
    ends = written_in(chart.loss)
    assert "uniform guess 9.01" in ends and f"token frequencies {columns['unigram_entropy'][-1]:.2f}" in ends
    levels = [line for line in chart.loss.lines if len(line.get_ydata()) == 2 and line.get_ydata()[0] == math.log(8192)]
    assert len(levels) == 1 and chart.loss.get_ylim()[1] > math.log(8192)
    chart.draw(view_of(columns_of(60) | {"loss": np.linspace(9.3, 8.8, 60)}))
    assert "▾ token frequencies" in written_in(chart.loss)  # its line is outside the panel
    columns["unigram_entropy"][:] = np.nan  # a store of an older version
    chart.draw(view_of(columns, run={"vocab_size": None}))
    assert "uniform guess" not in written_in(chart.loss) and "frequencies" not in written_in(chart.loss)


def test_the_band_is_two_standard_errors(chart: Chart) -> None:
    view = view_of(columns_of(700))
    chart.draw(view)
    for axes, name in ((chart.loss, "loss"), (chart.accuracy, "accuracy")):
        band = axes.collections[0].get_paths()[0].get_extents()
        average, error = (getattr(view.series.averages, each).values() for each in (name, f"{name}_error"))
        assert band.ymax == pytest.approx(np.nanmax(average + 2 * error))
        assert band.ymin == pytest.approx(np.nanmin(average - 2 * error))


def test_the_average_covers_all_documents_not_the_downsampled_ones(chart: Chart) -> None:
    columns = columns_of(100_000)
    columns["loss"][:] = np.where(np.arange(100_000) % 100 == 0, 100.0, 1.0)  # mean 1.99; of extremes: 50.5
    chart.draw(view_of(columns))
    assert line_of(chart.loss, "average").get_ydata()[-1] == pytest.approx(1.99, abs=0.7)


@pytest.mark.parametrize(("count", "ugly"), [(12, False), (1200, True), (3000, False), (100_000, True)])
def test_held_out_losses_are_drawn_over_the_others(chart: Chart, count: int, ugly: bool) -> None:
    every = max(count // 6, 1)
    rows = evaluations_of(range(every - 1, count, every))
    chart.draw(view_of(columns_of(count, 3, ugly), evaluations=rows))
    line = line_of(chart.loss, "held out (validation)")
    assert [*zip(line.get_xdata(), line.get_ydata(), strict=True)] == [(row["step"], row["loss"]) for row in rows]
    assert f"held out {rows[-1]['loss']:.2f}" in written_in(chart.loss)
    assert "held out (validation)" in legend_of(chart)
    chart.draw(view_of(columns_of(count, 3, ugly)))
    assert line_of(chart.loss, "held out") is None  # the figure is reused


def test_held_out_losses_are_inside_the_panel_wherever_they_are(chart: Chart) -> None:
    chart.draw(view_of(columns_of(500), evaluations=evaluations_of([99, 499], above=40.0)))
    low, high = chart.loss.get_ylim()
    assert low < 40 < 46 < high
    missing = [{"split": "validation", "step": step, "loss": loss} for step, loss in ((99, None), (199, math.inf))]
    chart.draw(view_of(columns_of(500), evaluations=missing))
    assert line_of(chart.loss, "held out") is None and chart.loss.get_ylim()[1] < 20
    both = [*evaluations_of([99, 499], "test"), *missing, *evaluations_of([499])]
    chart.draw(view_of(columns_of(500), evaluations=both))
    assert list(line_of(chart.loss, "held out (test)").get_xdata()) == [99, 499]
    assert list(line_of(chart.loss, "held out (validation)").get_xdata()) == [499]


def test_values_outside_the_panel_are_marked_with_their_step(chart: Chart) -> None:
    columns = columns_of(100_000)
    columns["loss"][54_321], columns["loss"][60_000], columns["loss"][777] = 41.25, -7.5, np.nan
    chart.draw(view_of(columns, evaluations=evaluations_of([99_999])))
    legend = " ".join(legend_of(chart))
    assert "above, up to 41.2 at step 54,321" in legend
    assert "below, down to -7.5 at step 60,000" in legend
    assert "1 not finite, first at step 777" in legend
    above = line_of(chart.loss, "above")
    assert 54_321 in above.get_xdata()


def test_where_documents_repeat_the_curve_is_not_called_held_out(chart: Chart) -> None:
    chart.draw(view_of(columns_of(300), events={"epoch": [40, 80]}))
    assert chart.titles[chart.loss].get_text().endswith("documents repeat from step 40")
    assert "epoch (2)" in legend_of(chart) and overlaps(chart) == []
    chart.draw(view_of(columns_of(300)))
    assert chart.titles[chart.loss].get_text().endswith("a held-out curve")


def test_a_tiny_difference_does_not_look_like_a_fall(chart: Chart) -> None:
    columns = columns_of(2)
    columns["loss"] = np.array([9.02, 9.0])
    chart.draw(view_of(columns))
    for axes in (chart.loss, chart.sources):
        low, high = axes.get_ylim()
        assert high - low >= 0.5 and low < 9.0 < 9.02 < high


def test_characters_missing_from_the_font_are_reported(chart: Chart) -> None:
    chart.draw(view_of(columns_of(20), sample=SAMPLE | {"output": "日本語 עברית مرحبا"}))
    printed = written_in(chart.latest)
    assert "prompt  (�: not in this font)" in printed and not set("日本語עברית مرحبا") - {" "} & set(printed)
    chart.draw(view_of(columns_of(20), sample=SAMPLE | {"output": "naïve \ufffd"}))  # written by the model
    assert "not in this font" not in written_in(chart.latest)


def test_a_document_that_stands_out_has_a_ring_a_number_and_its_first_words(chart: Chart) -> None:
    columns = columns_of(500)
    columns["loss"][[300, 302, 499]] = 9.5, 9.4, 9.3  # two are so close that their numbers must move apart
    chart.draw(view_of(columns))
    rings = [line for line in chart.loss.lines if line.get_markerfacecolor() == "none"]
    assert sorted(int(line.get_xdata()[0]) for line in rings) == [300, 302, 499]
    assert {"1", "2", "3"} <= {text.get_text() for text in chart.loss.texts}
    words = written_in(chart.stand_outs)
    assert "step 300: RedPajamaCommonCraw" in words and "“six words of it…”" in words
    assert overlaps(chart) == []
    chart.draw(view_of(columns_of(500), run={"config": {"warmup_steps": 1000, "num_steps": 10}}))
    assert "after the warm-up (1,000 steps)" in written_in(chart.stand_outs)


@pytest.mark.parametrize("dark", [False, True])
def test_each_source_has_a_line_a_label_and_a_width_by_its_share(dark: bool) -> None:
    chart = Chart(dark=dark)
    columns = columns_of(900, sources=7)
    columns["source"][:600] = "RedPajamaCommonCraw0"
    chart.draw(view_of(columns))
    lines = chart.sources.lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(lines) == 7
    assert len({line.get_color() for line in lines}) == 7
    assert lines[0].get_linewidth() > 1.5 * max(line.get_linewidth() for line in lines[1:])
    labels = sorted(text.split()[0] for text in written_in(chart.sources).split("\n"))
    assert labels == [f"…maCommonCraw{number}" for number in range(7)]


def test_loss_by_position_for_the_first_and_the_newest_documents(chart: Chart) -> None:
    flat, falling = [np.full(255, 8.0)] * 200, [8 - np.log(np.arange(1.0, 256.0))] * 200
    positions = [by_position(flat), by_position(falling)]
    chart.draw(view_of(columns_of(1000), positions=positions))
    early, late = chart.positions.lines
    assert early.get_ydata() == pytest.approx(8.0) and late.get_ydata()[-1] < 3
    assert written_in(chart.positions).split("\n") == ["last 200", "first 200"]
    assert chart.positions.get_xscale() == "log"
    chart.draw(view_of(columns_of(5)))
    assert "from 10 documents" in written_in(chart.positions)


@pytest.mark.parametrize("parts", ["prompt output reference words", "error source note"])
def test_hostile_text_is_drawn_as_text(chart: Chart, parts: str) -> None:
    columns, hostile = columns_of(100), dict.fromkeys(parts.split(), HOSTILE)
    columns["source"][:] = hostile.get("source", "code")
    shown: dict[str, Any] = {"sample": SAMPLE | hostile, "moments": [one | hostile for one in MOMENTS]}
    if "words" in hostile:
        shown["stand_outs"] = [StandOut(step, 5.0, 1.0, HOSTILE, HOSTILE) for step in (60, 61, 62)]
    chart.draw(view_of(columns, run=hostile, **shown))
    assert overlaps(chart) == []
    chart.draw(view_of(columns, run=hostile | {"model": HOSTILE}))  # overlaps, but the names of models are short


def test_the_verdict_distinguishes_a_change_from_noise() -> None:
    falling = verdict(view_of(columns_of(300)))
    assert "the last half of the run" in falling and " lower than the half before" in falling
    level = columns_of(2000)
    level["loss"] = np.random.default_rng(0).normal(3, 1, 2000)
    assert "no change beyond noise" in verdict(view_of(level))
    rising = level | {"loss": level["loss"] + np.linspace(0, 3, 2000)}
    assert " higher than the quarter before" in verdict(view_of(rising))
    assert verdict(view_of(level)).endswith("2 spikes, 1 source retry")
    twice = {"roll-back": [500, 500], "spike": [7, 7], "retry": [3] * 12}  # twice to the same checkpoint
    assert verdict(view_of(level, events=twice)).endswith("1 spike, 2 rollbacks, 12 source retries")
    assert "worse than a uniform guess (9.01)" in verdict(view_of(level | {"loss": level["loss"] + 20}))
    assert "guess" not in verdict(view_of(level))
    waiting = level | {"seconds_waited": 0.6 * level["seconds"]}
    assert verdict(view_of(waiting)).endswith("60% of the time spent waiting for documents")
    assert verdict(view_of(columns_of(1))) == "Too few documents to judge yet"


def test_the_verdict_is_rarely_wrong_about_noise() -> None:
    """If nothing changes, the verdict says so in 95 of 100 cases."""
    random, wrong, columns = np.random.default_rng(0), 0, columns_of(1000)
    for _ in range(200):
        columns["loss"] = random.normal(3, 1, 1000)
        wrong += "no change beyond noise" not in verdict(view_of(columns))
    assert 2 <= wrong <= 20


def test_a_chart_does_not_depend_on_the_one_drawn_before(chart: Chart) -> None:
    chart.draw(view_of(columns_of(3000, 7, ugly=True), evaluations=evaluations_of([2999])))
    again = chart.draw(view_of(columns_of(100)))
    assert again == Chart().draw(view_of(columns_of(100)))


def test_the_users_matplotlib_settings_are_neither_used_nor_changed(chart: Chart) -> None:
    plain = chart.draw(view_of(columns_of(100)))
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30, "axes.facecolor": "black"}):
        assert chart.draw(view_of(columns_of(100))) == plain
        assert Chart().draw(view_of(columns_of(100))) == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_events_and_spikes_are_marked_at_their_steps(chart: Chart) -> None:
    events = {"checkpoint": [100, 200], "resume": [150], "roll-back": [120], "no evaluation": [7], "spike": [50, 69]}
    chart.draw(view_of(columns_of(300), events=events))
    found = [line_of(chart.loss, kind) for kind in ("checkpoint", "resume", "rollback")]
    assert [list(line.get_xdata()) for line in found] == [[100, 200], [150], [120]]
    assert len({(line.get_color(), line.get_marker()) for line in found}) == 3
    assert sum("(" in label for label in legend_of(chart)) == 3
    (marks,) = (line for line in chart.norm.lines if line.get_marker() == "v")
    assert list(marks.get_xdata()) == [50, 69] and "2 spikes" in chart.titles[chart.norm].get_text()
    chart.draw(view_of(columns_of(300), events={}))
    assert "spike" not in chart.titles[chart.norm].get_text()


def test_short_source_names_stay_distinct() -> None:
    assert shorten_names(["a-very-long-name-of-one-source"]) == ["a-very-long-n…"]
    assert shorten_names(["x", "y"]) == ["x", "y"]
    beside = ["abcdefghijklmnop1", "abcdefghijklmnop2", "other", "b"]
    assert shorten_names(beside) == ["…efghijklmnop1", "…efghijklmnop2", "other", "b"]
    assert shorten_names(["RedPajamaCommonCrawl", "RedPajamaC4", "RedPajamaArXiv"]) == ["CommonCrawl", "C4", "ArXiv"]
    for names in (
        [f"one-long-name-that-differs-{number}" for number in (1, 2)],
        [*(f"the-same-beginning-{middle}-and-the-same-end" for middle in "abc"), "z"],
    ):
        assert len(set(shorten_names(names))) == len(names) and max(map(len, shorten_names(names))) <= 14


def test_the_most_frequent_of_many_sources_are_shown(chart: Chart) -> None:
    chart.draw(view_of(columns_of(3000, sources=30)))
    assert len(chart.sources.lines) == 7 and "7 of 30 sources" in chart.titles[chart.sources].get_text()


def test_a_spike_of_the_gradient_norm_survives_downsampling(chart: Chart) -> None:
    columns = columns_of(200_000)
    columns["gradient_norm"][123_456] = 1e6
    view = view_of(columns)
    chart.draw(view)
    assert (123_456, 1e6) in {*zip(*chart.norm.lines[0].get_data(), strict=True)}
    latest = {axes: float(written_in(axes).replace(",", "").split()[-2]) for axes in (chart.accuracy, chart.waiting)}
    assert latest[chart.accuracy] == pytest.approx(100 * view.series.averages.accuracy.values()[-1], abs=0.06)
    assert latest[chart.waiting] == pytest.approx(4.1, abs=0.06)
    assert written_in(chart.rate) == "1.00e-03" and written_in(chart.speed).startswith("average 5,2")
    assert chart.rate.lines[0].get_xdata()[-1] == 199_999 and chart.norm.get_yscale() == "log"
    assert chart.speed.get_xlim() == chart.loss.get_xlim() == chart.waiting.get_xlim()


def test_generations_are_the_models_own_or_a_stated_failure(chart: Chart) -> None:
    moments = [MOMENTS[0] | {"output": "aaa"}, MOMENTS[3] | {"output": "", "error": "out of memory"}]
    chart.draw(view_of(columns_of(500), moments=moments, sample=SAMPLE | {"output": "costs $5, $x_1$ \\alpha"}))
    shown = written_in(chart.moments)
    assert all(words in shown for words in ("def parse_header", "aaa", "2,400", "(failed: out of memory)"))
    shown = written_in(chart.latest)
    assert shown.index("costs $5, $x_1$ \\alpha") < shown.index("Parse a Content-type like header.")


def test_the_title_names_count_data_model_and_time(chart: Chart) -> None:
    columns = columns_of(250)
    columns["seconds"][:] = 0.52
    run = {"source": "DKYoon/SlimPajama-6B", "config": {"num_steps": 4288}}
    chart.draw(view_of(columns, run=run))
    title = chart.title.get_text()
    assert all(part in title for part in ("250", "SlimPajama-6B", "out of reach", "small 13.8 M", "2m 10s", "35m"))
    chart.draw(view_of(columns, run=run | {"ended": 1.0, "note": "a long reason " * 40}))
    assert "… · small 13.8 M · 2m 10s" in chart.title.get_text() and "35m" not in chart.title.get_text()


@pytest.mark.parametrize("count", [0, 50])
def test_a_run_without_a_finite_number_is_drawn(chart: Chart, count: int) -> None:
    columns = columns_of(count)
    for name in ("loss", "accuracy", "gradient_norm", "throughput", "seconds"):
        columns[name][:] = np.nan
    series = Series()
    series.extend(columns)
    chart.draw(View({"config": {}}, count, series, count))
    assert overlaps(chart) == []
    assert ("50 not finite, first at step 0" in legend_of(chart)) == (count == 50)
