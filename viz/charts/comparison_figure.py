"""The comparison of two runs as one image. Evidence for B has B's colour, evidence for A has A's."""

from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from common.debiased_average import Floats
from viz.charts.primitives import documents, edge_mark, padded, short_number
from viz.charts.style import DARK, INCHES, LIGHT, Palette, canvas_to_png, matplotlib_style
from viz.charts.text import printable, shorten_to_width
from viz.stats.paired_difference import FEWEST, Difference, RunningAverage
from viz.views.comparison import Comparison

SIZE = (1600, 900)  # pixels
NOTES_CHARACTERS = 210  # per line, roughly
SOURCES = 8
"""Sources with a row each; the others are counted."""
_PLACES = 1000  # points of a curve, about one per pixel at the default size


def draw_comparison(comparison: Comparison, *, dark: bool = False, size: tuple[int, int] = SIZE) -> bytes:
    """Return a PNG of `size` pixels: both averages, the difference of each document, and the difference by source."""
    palette = DARK if dark else LIGHT
    with matplotlib_style(palette):
        canvas: Any = FigureCanvasAgg(comparison_figure(comparison, palette, size))
        canvas.draw()
    return canvas_to_png(canvas)


def comparison_figure(comparison: Comparison, palette: Palette, size: tuple[int, int] = SIZE) -> Figure:
    """Return the figure that `draw_comparison` renders, laid out. Call it within `matplotlib_style(palette)`."""
    dpi = size[0] / INCHES
    # A hundredth of a pixel more, so that rounding does not lose a row of pixels.
    figure = Figure(figsize=(INCHES, (size[1] + 0.01) / dpi), dpi=dpi, layout="constrained")
    canvas: Any = FigureCanvasAgg(figure)

    def write(artist: Any, text: str, inches: float) -> None:
        artist.set_in_layout(False)
        shorten_to_width(artist, printable(text), "", inches * dpi, canvas.get_renderer())

    def short(text: str, inches: float) -> str:
        # Cut in the middle, because names of runs often differ at the end.
        text = printable(text).replace("\n", " ")
        artist, kept = figure.text(0, 0, text), len(text)
        while (width := artist.get_window_extent(canvas.get_renderer()).width) > inches * dpi and kept > 1:
            kept = min(kept - 1, int(kept * inches * dpi / width) + 1)
            artist.set_text(f"{text[: kept - kept // 2]}…{text[len(text) - kept // 2 :]}")
        artist.remove()
        return artist.get_text()

    a, b = (short(name, 1.2) for name in comparison.names)
    sources = tuple(replace(source, name=short(source.name or "unknown", 2.8)) for source in comparison.sources)
    comparison = replace(comparison, names=(a, b), sources=sources)
    inch = 1 / figure.get_figheight()
    title = figure.text(0.012, 1 - 0.15 * inch, "", va="top", fontsize=13.5, fontweight="bold")
    write(title, comparison.sentence(), 0.976 * INCHES)
    lines, rest = [""], comparison.notes()
    while rest:  # fill two lines, one after the other
        longer = f"{lines[-1]} · {rest[0]}" if lines[-1] else rest[0]
        if len(longer) > NOTES_CHARACTERS and lines[-1] and len(lines) < 2:
            lines.append(rest.pop(0))
        else:
            lines[-1] = longer
            rest.pop(0)
    for number, line in enumerate(lines):
        notes = figure.text(0.012, 1 - (0.47 + 0.2 * number) * inch, "", va="top", fontsize=9, color=palette.quiet)
        write(notes, line, 0.976 * INCHES)

    grid = figure.add_gridspec(2, 2, width_ratios=(2.4, 1))
    averages, by_source, each = (figure.add_subplot(grid[place]) for place in ((0, 0), (0, 1), (1, 0)))
    spread = figure.add_subplot(grid[1, 1], sharey=each)
    _averages(averages, comparison, palette)
    _each_document(each, comparison, palette)
    _spread(spread, comparison, palette)
    _by_source(by_source, comparison, palette)
    sides = f"{a} − {b}, {comparison.unit}\n← {a} better    {b} better →"
    each.set_ylabel(sides)
    by_source.set_xlabel(sides)
    averages.set_ylabel(comparison.unit)
    averages.set_xlabel(f"step{' of each run' if comparison.moved else ''} (one document each)")
    each.set_xlabel(f"step{f' of {a}' if comparison.moved else ''} (one document each)")
    for axis in (averages.xaxis, each.xaxis):
        axis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1, steps=(1, 2, 2.5, 5, 10)))
        axis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0.004, 0.006, 0.992, 1 - 0.95 * inch), w_pad=0.08, h_pad=0.08, wspace=0.03, hspace=0.03)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    # The density counts documents per pixel, so the panel must be laid out before.
    for sign, colour in ((1, palette.second), (-1, palette.main)):
        values = np.where(sign * comparison.differences > 0, comparison.differences, np.nan)
        documents(each, comparison.steps, values, colour)
    return figure


def _curve(axes: Any, curve: RunningAverage, colour: str, label: str, style: Any = "-") -> Floats:
    """Draw a line and its band; return the heights that the panel must show, without those of the first documents."""
    kept = np.unique(np.linspace(0, len(curve.steps) - 1, _PLACES).astype(int))
    steps, average, band = curve.steps[kept], curve.average[kept], curve.band[kept]
    axes.plot(steps, average, color=colour, lw=1.8, ls=style, label=label, zorder=4)
    axes.fill_between(steps, average - band, average + band, color=colour, alpha=0.2, lw=0, zorder=3)
    settled = kept >= min(10, len(curve.steps) // 4)
    shown: Floats = np.concatenate([(average - band)[settled], average[settled], (average + band)[settled]])
    return shown[np.isfinite(shown)]


def _reach(curve: RunningAverage) -> str:
    return f"about the last {curve.window:,}" if curve.window < len(curve.steps) else "all"


def _number(value: float, _position: object = None) -> str:
    return f"{value:.3g}".replace("-", "−")


def _limit_steps(axes: Any, *steps: Any) -> None:
    first, last = min(float(each[0]) for each in steps), max(float(each[-1]) for each in steps)
    axes.set_xlim(padded(first, last, 0.01, 0.01))


def _averages(axes: Any, comparison: Comparison, palette: Palette) -> None:
    (curve_a, curve_b), (a, b) = comparison.curves, comparison.names
    axes.set_title(f"Both averages over {_reach(curve_a)} shared documents, ± 2 standard errors")
    # With a space in front, because matplotlib hides a label that begins with `_`.
    labels = [f" {name}: {printable(about)[:60]}" for name, about in zip((a, b), comparison.about, strict=True)]
    shown_a = _curve(axes, curve_a, palette.main, labels[0])
    shown = np.concatenate([shown_a, _curve(axes, curve_b, palette.second, labels[1], (0, (6, 2)))])
    axes.set_ylim(padded(float(shown.min()), float(shown.max())))
    _limit_steps(axes, curve_a.steps, curve_b.steps)
    axes.legend(loc="upper right")


def _each_document(axes: Any, comparison: Comparison, palette: Palette) -> None:
    values, curve = comparison.differences, comparison.difference_curve
    axes.set_title("Difference on each shared document, and its average ± 2 standard errors")
    axes.axhline(0, color=palette.ink, lw=0.9, zorder=2)
    shown = _curve(axes, curve, palette.ink, f"average over {_reach(curve)}")
    low, high = np.quantile(values, (0.05, 0.95)) if len(values) >= 20 else (values.min(), values.max())
    # From 5 % to 95 %, and half of that on either side: all but a thousandth of a normal distribution.
    room = 0.5 * (high - low)
    axes.set_ylim(padded(min(low - room, shown.min(initial=0)), max(high + room, shown.max(initial=0))))
    _limit_steps(axes, comparison.steps)
    low, high = axes.get_ylim()
    for beyond, height, words, furthest, colour in (
        (values > high, 0.985, "above, up to", np.argmax, palette.second),
        (values < low, 0.015, "below, down to", np.argmin, palette.main),
    ):
        if count := int(beyond.sum()):
            place = furthest(values)
            label = f"{count:,} {words} {_number(values[place])} at step {comparison.steps[place]:,}"
            edge_mark(axes, comparison.steps[beyond], height, "|", colour, label)
    axes.legend(loc="upper right", bbox_to_anchor=(1, 0.975), ncols=3)


def _spread(axes: Any, comparison: Comparison, palette: Palette) -> None:
    """Draw how often each difference occurs, with the y-axis of the panel beside it."""
    values, (a, b) = comparison.differences, comparison.names
    for_a, for_b = float((values < 0).mean()), float((values > 0).mean())
    share = f"better on {100 * max(for_a, for_b):.0f} % of the documents"
    axes.set_title("Each is better equally often" if for_a == for_b else f"{a if for_a > for_b else b} {share}")
    low, high = axes.get_ylim()
    # An edge lies on zero, so that each bar belongs to one run.
    width = (high - low) / min(max(len(values) // 5, 12), 60)
    edges = np.arange(np.floor(low / width), np.ceil(high / width) + 1) * width
    counts, _ = np.histogram(values, edges)
    colours = np.where(edges[:-1] > -width / 2, palette.second, palette.main)
    axes.barh(edges[:-1], counts, 0.92 * width, align="edge", color=colours, alpha=0.75)
    axes.axhline(0, color=palette.ink, lw=0.9)
    axes.set_ylim(low, high)
    axes.set_xlabel("documents")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(short_number))
    axes.tick_params(axis="y", labelleft=False, length=0)


def _by_source(axes: Any, comparison: Comparison, palette: Palette) -> None:
    """Draw a point and an interval per source, below those of all sources together if there are several."""
    sources, overall = comparison.sources, comparison.overall
    rows: list[Difference] = [*([overall] if len(sources) > 1 else []), *sources[:SOURCES]]
    few = any(row.half_width is None for row in rows)
    axes.set_title(f"By source, 95 % intervals{f' (hollow: n < {FEWEST})' if few else ''}")
    names = [f"{row.name}, {row.documents:,}" for row in rows]
    if rest := sources[SOURCES:]:
        count = sum(row.documents for row in rest)
        names.append(f"{len(rest)} other source{'s' if len(rest) > 1 else ''}, {count:,} documents (not drawn)")
    for place, name in enumerate(names):
        axes.annotate(
            name, (0.012, place), (0, 5), xycoords=("axes fraction", "data"), textcoords="offset points", fontsize=8.5,
            fontweight="bold" if len(sources) > 1 and not place else "normal", zorder=2.5,
            bbox={"boxstyle": "square,pad=0.1", "fc": palette.paper, "ec": "none", "alpha": 0.8},
        )  # fmt: skip
    for place, row in enumerate(rows):
        sure = row.half_width is not None and abs(row.value) > row.half_width
        colour = (palette.second if row.value > 0 else palette.main) if sure else palette.quiet
        face = palette.paper if row.half_width is None else colour
        axes.errorbar(row.value, place, xerr=row.half_width, fmt="o", color=colour, mfc=face, ms=6, lw=2, zorder=3)
    axes.axvline(0, color=palette.ink, lw=0.9, zorder=2)
    # The interval of a source with few documents is many times as wide; it may leave the panel.
    halves = np.array([row.half_width or 0.0 for row in rows])
    reach = 1.1 * np.minimum(halves, 3 * np.median(halves[halves > 0])) if halves.any() else halves
    values = np.array([row.value for row in rows])
    axes.set_xlim(padded(min(0.0, float((values - reach).min())), max(0.0, float((values + reach).max()))))
    axes.set_ylim(max(len(names) - 0.5, 2.5), min(-0.8, len(names) - 3.5))
    axes.yaxis.set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(_number))
