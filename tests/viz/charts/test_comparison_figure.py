"""The content of a comparison is read from the figure, positions from the renderer."""

import io
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.viz.overlaps import find_overlaps
from tests.viz.runs_to_draw import HOSTILE
from viz.charts.comparison_figure import SOURCES, comparison_figure, draw_comparison
from viz.charts.primitives import Density
from viz.charts.style import DARK, LIGHT, matplotlib_style
from viz.stats.paired_difference import FEWEST, by_source, estimate, running
from viz.views.comparison import WINDOW, Comparison


def simulated(count: int, sources: int = 5, difference: float = 0.05, name: str = "RedPajamaCommonCrawl") -> Comparison:
    """Return two learning runs of `count` documents with heavy tails; sources with higher numbers are rarer."""
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
        names=("warm-up 1,000", "warm-up 100"), unit="nats per token",
        overall=estimate(pairs, "all"),
        later=estimate([(sums[count // 2 :], weight[count // 2 :]) for sums, weight in pairs], "second half"),
        sources=by_source(pairs, names[places]),
        unpaired_half_width=1.96 * math.hypot(error_a, error_b),
        about=("20261126-030140-57e5, small 13.8 M", "20261126-032229-eca1, small 13.8 M"),
        settings=(("seed", "0", "1"),), same=False, texts=count, totals=(count, count), since=0, moved=0.0,
        other_lengths=0, left_out=(), steps=steps, differences=differences, curves=(curve_a, curve_b),
        difference_curve=running(steps, pairs, window)[0],
    )  # fmt: skip


def figure_of(comparison: Comparison, size: tuple[int, int] = (1600, 900)) -> Any:
    with matplotlib_style(LIGHT):
        figure = comparison_figure(comparison, LIGHT, size)
        figure.canvas.draw()
    return figure


@pytest.mark.parametrize(
    ("count", "sources"), [(1, 1), (2, 2), (20, 5), (25, 1), (1000, 1), (1000, 5), (1000, 12), (100_000, 12)]
)
def test_nothing_overlaps_at_any_length(count: int, sources: int) -> None:
    figure = figure_of(simulated(count, sources))
    assert find_overlaps(figure) == []
    assert len(figure.axes) == 4


@pytest.mark.parametrize(("dark", "size"), [(True, (1600, 900)), (False, (801, 450)), (False, (3200, 1801))])
def test_any_size_and_a_million_documents(dark: bool, size: tuple[int, int]) -> None:
    picture = draw_comparison(simulated(1_000_000 if dark else 1000), dark=dark, size=size)
    with Image.open(io.BytesIO(picture)) as image:
        assert image.size == size and image.format == "PNG"
        expected = (DARK if dark else LIGHT).paper
        assert image.convert("RGB").getpixel((2, 2)) == pytest.approx([*bytes.fromhex(expected[1:])], abs=8)
    assert len(picture) < 1_000_000


def test_every_document_is_a_point_or_counted_at_an_edge() -> None:
    comparison = simulated(1000)
    each = figure_of(comparison).axes[2]
    drawn = sum(int(np.isfinite(line.get_ydata()).sum()) for line in each.lines if line.get_marker() == "o")
    assert drawn == 1000
    low, high = each.get_ylim()
    words = " ".join(text.get_text() for text in each.get_legend().get_texts())
    above, below = int((comparison.differences > high).sum()), int((comparison.differences < low).sum())
    assert above > 0 and f"{above} above, up to " in words and f"{below} below, down to −" in words
    furthest = int(np.argmax(comparison.differences))
    assert f" at step {furthest}" in words


def test_many_documents_are_a_density() -> None:
    each = figure_of(simulated(100_000)).axes[2]
    assert len([artist for artist in each.artists if isinstance(artist, Density)]) == 2
    assert not [line for line in each.lines if line.get_marker() == "o"]


def test_spikes_do_not_flatten_the_average() -> None:
    comparison = simulated(1000)
    comparison.differences[::100] = 1e4
    low, high = figure_of(comparison).axes[2].get_ylim()
    assert high - low < 2


def test_a_source_with_too_few_documents_is_hollow_and_has_no_interval() -> None:
    comparison = simulated(60, sources=5)
    sources = figure_of(comparison).axes[1]
    assert f"hollow: n < {FEWEST}" in sources.get_title(loc="left")
    for bar, found in zip(sources.containers, (comparison.overall, *comparison.sources), strict=True):
        assert (len(bar.lines[2]) == 0) == (found.half_width is None)
        assert (bar.lines[0].get_markerfacecolor() == LIGHT.paper) == (found.half_width is None)


@pytest.mark.parametrize("names", [("", "W" * 300), ("_", HOSTILE)])
def test_hostile_names_are_drawn_as_text(names: tuple[str, str]) -> None:
    comparison = replace(simulated(1000, 12, name=names[1]), names=names, moved=0.5, left_out=((HOSTILE, 3),))
    figure = figure_of(comparison)
    assert find_overlaps(figure) == []
    assert len(figure.axes[0].get_legend().get_texts()) == 2
    unnamed = replace(comparison, sources=(replace(comparison.sources[0], name=""),))
    assert figure_of(unnamed).axes[1].texts[0].get_text().startswith("unknown, ")


def test_long_names_keep_both_ends() -> None:
    names = ("20261126-005857-2cf3" * 3, "20261126-005857-9ab1" * 3)
    labels = [
        text.get_text() for text in figure_of(replace(simulated(100), names=names)).axes[0].get_legend().get_texts()
    ]
    assert all(label.startswith(" 2026") and "…" in label for label in labels)
    assert "2cf3: " in labels[0] and "9ab1: " in labels[1]


def test_equal_runs_and_other_units_are_drawn() -> None:
    comparison = simulated(100, difference=0.0)
    weights = np.full(100, 255.0)
    same = [(np.full(100, 300.0), weights)] * 2
    curve, alone = (running(comparison.steps, pairs, WINDOW)[0] for pairs in (same, same[:1]))
    shown: dict[str, Any] = {"differences": np.zeros(100), "curves": (alone, alone), "difference_curve": curve}
    shown |= {"overall": estimate(same), "sources": (estimate(same, "web"),)}
    figure = figure_of(replace(comparison, unit="bits per byte", **shown))
    assert find_overlaps(figure) == [] and "bits per byte" in figure.axes[2].get_ylabel()
    assert "same loss on each" in figure.texts[0].get_text()


def test_the_sentence_and_the_notes_are_shown_and_the_sides_are_named() -> None:
    comparison = replace(simulated(1000), names=("$x_1$", "$y^2$"))
    figure = figure_of(comparison)
    title, *notes = figure.texts
    assert title.get_text() == comparison.sentence()
    assert " · ".join(line.get_text() for line in notes) == " · ".join(comparison.notes())
    for label in (figure.axes[2].get_ylabel(), figure.axes[1].get_xlabel()):
        assert "← $x_1$ better" in label and "$y^2$ better →" in label


def test_the_rarest_of_many_sources_are_counted() -> None:
    comparison = simulated(100_000, sources=12)
    sources = figure_of(comparison).axes[1]
    assert "4 other sources" in sources.texts[-1].get_text()
    assert [bar.lines[0].get_xdata()[0] for bar in sources.containers] == [
        found.value for found in (comparison.overall, *comparison.sources[:SOURCES])
    ]
    assert len(figure_of(simulated(100, sources=1)).axes[1].texts) == 1  # a single source is not shown twice
