"""What the picture of a comparison shows is asked of the figure; where it shows it, of the renderer."""

import io
import itertools
import math
from dataclasses import replace
from typing import Any

import matplotlib
import numpy as np
import pytest
from PIL import Image

from viz.charts.comparison_figure import SOURCES, comparison_figure, draw_comparison
from viz.charts.primitives import Density
from viz.charts.style import DARK, LIGHT, drawn_in
from viz.stats.paired_difference import FEWEST, by_source, estimate, running
from viz.views.comparison import WINDOW, Comparison

HOSTILE = (
    "$x^{$ \\frac{ $$ \\ _{}^ %s <b>&amp; \x00\x07\x1b[31m \u202e\u2066 \ud83d\ud800 😀 日本語 עברית e\u0301\u0301 "
    + "\r\n\t\v\f\u2028"
    + "W" * 3000
)


def simulated(count: int, sources: int = 5, difference: float = 0.05, name: str = "RedPajamaCommonCrawl") -> Comparison:
    """Two runs of `count` documents that learn; heavy tails, and the rarer a source, the later its number."""
    random = np.random.default_rng(count)
    steps = np.arange(count)
    document = 3 + 5 * np.exp(-steps / 300) + random.normal(0, 1.0, count)
    differences = difference + 0.05 * random.standard_t(3, count)
    weights = np.full(count, 255.0)
    pairs = [((document + differences) * weights, weights), (document * weights, weights)]
    names = np.array([f"{name}{i}" for i in range(sources)], dtype=object)
    places = np.minimum(random.geometric(0.4, count) - 1, sources - 1)
    window = max(WINDOW, count // 50)
    (curve_a, error_a), (curve_b, error_b) = (running(steps, [pair], window) for pair in pairs)
    return Comparison(
        names=("warm-up 1,000", "warm-up 100"),
        unit="nats per token",
        overall=estimate(pairs, "all"),
        later=estimate([(sums[count // 2 :], weight[count // 2 :]) for sums, weight in pairs], "second half"),
        sources=by_source(pairs, names[places]),
        unpaired_half_width=1.96 * math.hypot(error_a, error_b),
        settings=(("seed", "0", "1"),),
        about=("20261126-030140-57e5, small 13.8 M", "20261126-032229-eca1, small 13.8 M"),
        same=False,
        texts=count,
        totals=(count, count),
        since=0,
        moved=0.0,
        other_lengths=0,
        left_out=(),
        steps=steps,
        differences=differences,
        curves=(curve_a, curve_b),
        difference_curve=running(steps, pairs, window)[0],
    )


def figure_of(comparison: Comparison, size: tuple[int, int] = (1600, 900)) -> Any:
    with drawn_in(LIGHT):
        figure = comparison_figure(comparison, LIGHT, size)
        figure.canvas.draw()
    return figure


def texts_of(figure: Any) -> list[Any]:
    found = list(figure.texts)
    for axes in figure.axes:
        found += [axes._left_title, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            if axis.get_visible():
                low, high = sorted(axis.get_view_interval())
                shown = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
                found += [axis.label, *(tick.label1 for tick in shown)]
        if axes.get_legend() is not None:
            found += axes.get_legend().get_texts()
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def overlaps(figure: Any) -> list[str]:
    """Pairs of texts that meet, and texts that leave the figure."""
    renderer = figure.canvas.get_renderer()
    boxes = [(text.get_text()[:30], text.get_window_extent(renderer)) for text in texts_of(figure)]
    wrong = [
        f"{a!r} meets {b!r}"
        for (a, box), (b, other) in itertools.combinations(boxes, 2)
        if min(box.x1, other.x1) - max(box.x0, other.x0) > 1 and min(box.y1, other.y1) - max(box.y0, other.y0) > 1
    ]
    width, height = figure.canvas.get_width_height()
    wrong += [
        f"{a!r} leaves the figure"
        for a, box in boxes
        if box.x0 < -1 or box.y0 < -1 or box.x1 > width + 1 or box.y1 > height + 1
    ]
    return wrong


@pytest.mark.parametrize(
    ("count", "sources"), [(1, 1), (2, 2), (20, 5), (25, 1), (1000, 1), (1000, 5), (1000, 12), (100_000, 12)]
)
def test_nothing_overlaps_at_any_length(count: int, sources: int) -> None:
    figure = figure_of(simulated(count, sources))
    assert overlaps(figure) == []
    assert len(figure.axes) == 4


@pytest.mark.parametrize(("dark", "size"), [(True, (1600, 900)), (False, (801, 450)), (False, (3200, 1801))])
def test_a_picture_of_a_million_documents(dark: bool, size: tuple[int, int]) -> None:
    picture = draw_comparison(simulated(1_000_000 if dark else 1000), dark=dark, size=size)
    with Image.open(io.BytesIO(picture)) as image:
        assert image.size == size and image.format == "PNG"
        expected = (DARK if dark else LIGHT).paper
        assert image.convert("RGB").getpixel((2, 2)) == pytest.approx([*bytes.fromhex(expected[1:])], abs=8)
    assert len(picture) < 1_000_000


def test_any_size_is_the_same_picture() -> None:
    comparison = simulated(1000)
    pictures = [draw_comparison(comparison, size=size) for size in ((1600, 900), (800, 450))]
    large, small = (Image.open(io.BytesIO(picture)).convert("RGB").resize((160, 90)) for picture in pictures)
    difference = np.abs(np.asarray(large, dtype=int) - np.asarray(small, dtype=int))
    assert difference.mean() < 6


def test_the_sentence_is_the_title_and_the_first_note_is_below() -> None:
    comparison = simulated(1000)
    title, *notes = figure_of(comparison).texts
    assert title.get_text() == comparison.sentence()
    assert title.get_text().startswith("warm-up 100 is better by 0.0") and title.get_fontweight() == "bold"
    assert " · ".join(line.get_text() for line in notes) == " · ".join(comparison.notes())
    many = replace(comparison, settings=tuple((f"setting_{number}", "0.1", "0.2") for number in range(12)))
    _, *notes = figure_of(many).texts
    assert len(notes) == 2 and notes[0].get_text().startswith("Settings that differ: ")
    assert "times narrower" in notes[1].get_text()


def test_labels_say_which_side_means_which_run_is_better() -> None:
    averages, sources, each, spread = figure_of(simulated(1000)).axes
    sides = "warm-up 1,000 − warm-up 100, nats per token\n← warm-up 1,000 better    warm-up 100 better →"
    assert each.get_ylabel() == sides == sources.get_xlabel()
    low, high = each.get_ylim()
    assert low < 0 < high and spread.get_ylim() == (low, high)
    assert averages.get_ylabel() == "nats per token"
    assert [text.get_text() for text in averages.get_legend().get_texts()] == [
        " warm-up 1,000: 20261126-030140-57e5, small 13.8 M",
        " warm-up 100: 20261126-032229-eca1, small 13.8 M",
    ]


def test_every_document_is_a_point_or_counted_at_an_edge() -> None:
    comparison = simulated(1000)
    each = figure_of(comparison).axes[2]
    drawn = sum(int(np.isfinite(line.get_ydata()).sum()) for line in each.lines if line.get_marker() == "o")
    assert drawn == 1000
    low, high = each.get_ylim()
    words = " ".join(text.get_text() for text in each.get_legend().get_texts())
    above, below = int((comparison.differences > high).sum()), int((comparison.differences < low).sum())
    assert above > 0 and f"{above} above, to " in words and f"{below} below, to −" in words
    furthest = int(np.argmax(comparison.differences))
    assert f" at step {furthest}" in words


def test_many_documents_are_a_density() -> None:
    each = figure_of(simulated(100_000)).axes[2]
    assert len([artist for artist in each.artists if isinstance(artist, Density)]) == 2
    assert not [line for line in each.lines if line.get_marker() == "o"]


def test_the_average_is_seen_beside_spikes() -> None:
    comparison = simulated(1000)
    comparison.differences[::100] = 1e4
    low, high = figure_of(comparison).axes[2].get_ylim()
    assert high - low < 2


def test_sources_beyond_the_eighth_are_counted() -> None:
    comparison = simulated(100_000, sources=12)
    sources = figure_of(comparison).axes[1]
    said = [text.get_text() for text in sources.texts]
    assert said[0] == "all, 100,000" and said[1].startswith("RedPajamaCommonCrawl0, ")
    assert len(said) == 1 + SOURCES + 1 and said[-1].startswith("4 others, ")
    assert [bar.lines[0].get_xdata()[0] for bar in sources.containers] == [
        found.value for found in (comparison.overall, *comparison.sources[:SOURCES])
    ]


def test_a_source_of_too_few_documents_is_hollow_and_has_no_interval() -> None:
    comparison = simulated(60, sources=5)
    sources = figure_of(comparison).axes[1]
    assert f"hollow: under {FEWEST}" in sources.get_title(loc="left")
    for bar, found in zip(sources.containers, (comparison.overall, *comparison.sources), strict=True):
        assert (len(bar.lines[2]) == 0) == (found.half_width is None)
        assert (bar.lines[0].get_markerfacecolor() == LIGHT.paper) == (found.half_width is None)


def test_a_single_source_is_not_shown_twice() -> None:
    sources = figure_of(simulated(100, sources=1)).axes[1]
    assert [text.get_text() for text in sources.texts] == ["RedPajamaCommonCrawl0, 100"]


@pytest.mark.parametrize("name", ["", "_", HOSTILE, "W" * 300])
def test_hostile_names_are_only_text(name: str) -> None:
    comparison = replace(simulated(1000, 12, name=name), names=(name, name), moved=0.5, left_out=((HOSTILE, 3),))
    figure = figure_of(comparison)
    assert overlaps(figure) == []
    assert len(figure.axes[0].get_legend().get_texts()) == 2
    unnamed = replace(comparison, sources=(replace(comparison.sources[0], name=""),))
    assert figure_of(unnamed).axes[1].texts[0].get_text().startswith("unknown, ")


def test_long_names_are_told_apart_by_both_their_ends() -> None:
    names = ("20261126-005857-2cf3" * 3, "20261126-005857-9ab1" * 3)
    labels = [
        text.get_text() for text in figure_of(replace(simulated(100), names=names)).axes[0].get_legend().get_texts()
    ]
    assert all(label.startswith(" 2026") and "…" in label for label in labels)
    assert "2cf3: " in labels[0] and "9ab1: " in labels[1]


def test_dollars_are_shown_as_they_are() -> None:
    figure = figure_of(replace(simulated(1000), names=("$x_1$", "$y^2$")))
    assert figure.texts[0].get_text().startswith("$y^2$ is better by ")


def test_the_test_for_overlaps_can_fail() -> None:
    figure = figure_of(simulated(1000))
    figure.axes[0].set_title("far too long a title " * 20, loc="left")
    assert any("meets" in line for line in overlaps(figure)) and any("leaves" in line for line in overlaps(figure))


def test_equal_runs_and_other_units_are_drawn() -> None:
    comparison = simulated(100, difference=0.0)
    weights = np.full(100, 255.0)
    same = [(np.full(100, 300.0), weights)] * 2
    curve = running(comparison.steps, same, WINDOW)[0]
    equal = replace(
        comparison,
        unit="bits per byte",
        differences=np.zeros(100),
        overall=estimate(same),
        sources=(estimate(same, "web"),),
        curves=(running(comparison.steps, same[:1], WINDOW)[0],) * 2,
        difference_curve=curve,
    )
    figure = figure_of(equal)
    assert overlaps(figure) == [] and "bits per byte" in figure.axes[2].get_ylabel()
    assert "same loss on each" in figure.texts[0].get_text()


def test_the_users_settings_are_neither_used_nor_changed() -> None:
    comparison = simulated(100)
    plain = draw_comparison(comparison)
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30, "axes.facecolor": "black"}):
        assert draw_comparison(comparison) == plain
        assert matplotlib.rcParams["font.size"] == 30
