"""What panels are drawn with: a density of documents, a curve with its band, labels at ends of lines, marks at edges.

A curve is reduced to the pixels there are by lowest and highest: a spike is never lost between them. Only the averages
of sources, of which several share a panel, are reduced to means.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.colors import to_rgb

from common.debiased_average import Floats
from viz.charts.style import Palette
from viz.charts.text import LINE
from viz.stats.downsample import Curve

FEW = 1500  # documents that are drawn as points; more are a density
_LABEL_POINTS = 8
_SOFT = 0.55  # of a document's dot lies on the pixels beside its own
_FAINTEST = 0.3


def short_number(value: float, _position: object = None) -> str:
    """A number in few characters: `20k`, `1.5M`, `3.25`, `5e-4`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    if 0 < abs(value) < 1e-2:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"


def places(axes: Any) -> int:
    """How many places along the axis of a panel a curve is reduced to: a little less than its pixels at 100 dpi."""
    return max(20, int(0.85 * axes.get_window_extent().width * 100 / axes.figure.dpi))


def wait(axes: Any, palette: Palette, what: str) -> None:
    """Say in an empty panel what it waits for: without heights, for there are none."""
    axes.yaxis.set_visible(False)
    axes.text(
        0.5, 0.5, what, transform=axes.transAxes, ha="center", va="center", color=palette.quiet, fontsize=9.5
    )  # fmt: skip


def robust_range(values: Floats, low: float, high: float) -> tuple[float, float]:
    """From the lowest to the highest that `low` and `high` leave (shares of the values): some spikes flatten no curve.

    Less than twenty values are too few to tell what a spike is: then all of them.
    """
    finite = values[:: max(1, len(values) // 50_000)]
    finite = finite[np.isfinite(finite)]
    if len(finite) < 20:
        low, high = 0.0, 1.0
    bottom, top = np.quantile(finite, (low, high))
    return float(bottom), float(top)


def padded(low: float, high: float, below: float = 0.04, above: float = 0.04) -> tuple[float, float]:
    """A range with room: shares of itself."""
    span = max(high - low, 0.02 * abs(high)) or 1.0
    return low - below * span, high + above * span


def documents(axes: Any, steps: npt.NDArray[Any], values: Floats, colour: str) -> None:
    """Every document within the panel's ranges: points, or where they are many how many lie at each place."""
    if len(steps) <= FEW:
        size = 4.5 if len(steps) < 200 else 2.6
        axes.plot(steps, values, ls="", marker="o", ms=size, mew=0, alpha=0.45, color=colour, zorder=1)
    else:
        axes.add_artist(Density(axes, steps, values, colour)).set_clip_on(False)


class Density(Artist):
    """Documents as dots so many that each is added to the place of its pixel: the darker, the more lie there.

    To draw a marker for each takes 3 ms for 1,000 of them; this takes 10 for a million.
    """

    def __init__(self, axes: Any, steps: npt.NDArray[Any], values: Floats, colour: str) -> None:
        """`axes`: laid out, with the ranges that it will have."""
        super().__init__()
        self.set_zorder(1)
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        self._box = axes.get_window_extent()
        self._pixels = max(1, round(axes.figure.dpi / 100))
        width, height = (int(side / self._pixels) for side in (self._box.width, self._box.height))
        with np.errstate(invalid="ignore"):
            shown = np.flatnonzero((values >= bottom) & (values < top))
        x = ((steps[shown] - left) * (width / (right - left))).astype(np.int32)
        y = ((values[shown] - bottom) * (height / (top - bottom))).astype(np.int32)
        self.counts = np.bincount(y * width + x, minlength=height * width).reshape(height, width)
        """(height, width), from the lower left corner on."""
        self._colour = np.round(255 * np.array(to_rgb(colour)))

    def draw(self, renderer: Any) -> None:
        padded_counts = np.pad(self.counts, 1).astype(np.float32)
        rows = padded_counts[1:-1] + _SOFT * (padded_counts[:-2] + padded_counts[2:])
        dots = rows[:, 1:-1] + _SOFT * (rows[:, :-2] + rows[:, 2:])
        # By the logarithm, up to the fullest place; one document alone is seen too.
        alpha = np.log1p(dots) * (0.85 / np.log1p(max(float(dots.max()), 1.0)))
        alpha = np.maximum(alpha, _FAINTEST * np.minimum(dots, 1))
        picture = np.empty((*alpha.shape, 4), np.uint8)
        picture[..., :3] = self._colour
        picture[..., 3] = np.round(255 * alpha)
        picture = picture.repeat(self._pixels, axis=0).repeat(self._pixels, axis=1)
        renderer.draw_image(renderer.new_gc(), round(self._box.x0), round(self._box.y0), picture)


def curve(
    axes: Any, steps: npt.NDArray[Any], values: Curve, count: int, colour: str, error: Curve | None = None, **style: Any
) -> None:
    """The first `count` values as a line, with a band of two standard errors if there are any."""
    rows = values.outline(count, places(axes))
    if not len(rows):
        return
    shown = values.values()[rows]
    marker = {"marker": "o", "ms": 3} if len(rows) < 2 else {}  # one document makes no line
    axes.plot(steps[rows], shown, color=colour, zorder=3, **({"lw": 1.8} | marker | style))
    if error is not None:
        width = 2 * error.values()[rows]
        axes.fill_between(steps[rows], shown - width, shown + width, color=colour, alpha=0.22, lw=0, zorder=2)


def bucket_means(steps: npt.NDArray[Any], values: Floats, buckets: int) -> tuple[npt.NDArray[Any], Floats]:
    """A long curve as the mean of each place along the axis, and its last value: where several would be one smear."""
    width = len(values) // buckets
    if width < 2:
        return steps, values
    whole = len(values) // width * width
    means = np.nanmean(values[:whole].reshape(-1, width), axis=1)
    return np.append(steps[width // 2 : whole : width], steps[-1]), np.append(means, values[-1])


def at_edges(axes: Any, steps: npt.NDArray[Any], values: Floats, palette: Palette) -> None:
    """Marks at the top and at the bottom for what lies outside, with how many and the furthest of them."""
    bottom, top = axes.get_ylim()
    with np.errstate(invalid="ignore"):
        above, below = np.flatnonzero((values > top) & np.isfinite(values)), np.flatnonzero(values < bottom)
    missing = np.flatnonzero(~np.isfinite(values))
    if len(above):
        row = above[np.argmax(values[above])]
        label = f"{len(above):,} above, to {_rounded(values[row])} at step {steps[row]:,}"
        edge_mark(axes, steps[above], 0.985, "^", palette.second, label)
    if len(below):
        row = below[np.argmin(values[below])]
        label = f"{len(below):,} below, to {_rounded(values[row])} at step {steps[row]:,}"
        edge_mark(axes, steps[below], 0.045, "v", palette.second, label)
    if len(missing):
        label = f"{len(missing):,} not finite, first at step {steps[missing[0]]:,}"
        edge_mark(axes, steps[missing], 0.985, "x", palette.bad, label)


def _rounded(value: float) -> str:
    return short_number(float(f"{value:.3g}"))


def edge_mark(axes: Any, steps: Any, height: float, marker: str, colour: str, label: str) -> None:
    """Marks at one height (a share of the panel), one for each place that can be told apart."""
    found = np.asarray(steps, dtype=np.float64)
    left, right = axes.get_xlim()
    _, first = np.unique(((found - left) * (places(axes) / (right - left))).astype(int), return_index=True)
    axes.plot(
        found[first], np.full(len(first), height), marker, ls="", color=colour, ms=5, mew=1.2 if marker in "x|" else 0,
        transform=axes.get_xaxis_transform(), label=label, zorder=5,
    )  # fmt: skip


def label_ends(axes: Any, labels: Sequence[tuple[float, str, str]]) -> None:
    """Texts right of the panel, each as near to the height of its line as the others let it: (height, text, colour).

    An arrow says that a line lies outside.
    """
    if not labels:
        return
    box = axes.get_window_extent()
    gap = 1.02 * LINE * _LABEL_POINTS / 72 * axes.figure.dpi
    at = axes.transData.transform([(0, height) for height, _, _ in labels])[:, 1]
    order = np.argsort(at, kind="stable")
    heights = push_apart(np.clip(at[order], box.y0, box.y1), gap, box.y0 + 0.2 * gap, box.y1 - 0.2 * gap)
    bottom, top = axes.get_ylim()
    for index, height in zip(order, heights, strict=True):
        value, text, colour = labels[index]
        text = f"▾ {text}" if value < bottom else f"▴ {text}" if value > top else text
        place = (1.012, (height - box.y0) / box.height)
        axes.text(*place, text, transform=axes.transAxes, color=colour, size=_LABEL_POINTS, va="center", zorder=8)


def push_apart(heights: Floats, gap: float, low: float, high: float) -> Floats:
    """Increasing heights moved as little as need be to lie `gap` apart between `low` and `high`.

    Where there is no room for all, the gap gets smaller.
    """
    if len(heights) > 1:
        gap = min(gap, (high - low) / (len(heights) - 1))
    steps = gap * np.arange(len(heights))
    # Isotonic regression of heights - steps (pool adjacent violators): the nearest in the sense of least squares.
    blocks: list[list[float]] = []
    for value in heights - steps:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    level = np.concatenate([np.full(int(number), value) for value, number in blocks])
    moved: Floats = np.clip(level, low, high - steps[-1]) + steps
    return moved
