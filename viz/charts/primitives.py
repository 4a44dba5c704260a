"""Building blocks of panels: the density of documents, a curve with its band, labels at the ends of lines, edge marks.

A curve is downsampled to the lowest and the highest value at each pixel, so that no spike is lost. Only the averages
of sources, several of which share a panel, are downsampled to means.
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

FEW = 1500  # documents drawn as points; more are drawn as a density
_LABEL_POINTS = 8
_SOFT = 0.55  # share of a document's dot that its neighbouring pixels get
_FAINTEST = 0.3


def short_number(value: float, _position: object = None) -> str:
    """Format a number in few characters: `20k`, `1.5M`, `3.25`, `5e-4`."""
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


def show_placeholder(axes: Any, palette: Palette, what: str) -> None:
    """Write in an empty panel what it waits for, and hide its meaningless y-axis."""
    axes.yaxis.set_visible(False)
    axes.text(
        0.5, 0.5, what, transform=axes.transAxes, ha="center", va="center", color=palette.quiet, fontsize=9.5
    )  # fmt: skip


def robust_range(values: Floats, low: float, high: float) -> tuple[float, float]:
    """Return the `low` and `high` quantiles of the finite values, so that a few spikes do not flatten a curve.

    Fewer than twenty values are too few to tell what a spike is: then the range of all of them.
    """
    finite = values[:: max(1, len(values) // 50_000)]
    finite = finite[np.isfinite(finite)]
    if len(finite) < 20:
        low, high = 0.0, 1.0
    bottom, top = np.quantile(finite, (low, high))
    return float(bottom), float(top)


def padded(low: float, high: float, below: float = 0.04, above: float = 0.04) -> tuple[float, float]:
    """Extend a range by shares of its length."""
    span = max(high - low, 0.02 * abs(high)) or 1.0
    return low - below * span, high + above * span


def documents(axes: Any, steps: npt.NDArray[Any], values: Floats, colour: str) -> None:
    """Draw every document within the panel's ranges: as points or, if there are many, as a density."""
    if len(steps) <= FEW:
        size = 4.5 if len(steps) < 200 else 2.6
        axes.plot(steps, values, ls="", marker="o", ms=size, mew=0, alpha=0.45, color=colour, zorder=1)
    else:
        axes.add_artist(Density(axes, steps, values, colour)).set_clip_on(False)


class Density(Artist):
    """Documents counted per pixel: the darker a pixel, the more documents it stands for.

    Drawing a marker for each takes 3 ms per 1,000 documents; this takes 10 ms for a million.
    """

    def __init__(self, axes: Any, steps: npt.NDArray[Any], values: Floats, colour: str) -> None:
        """`axes`: laid out, with its final ranges."""
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
        """(height, width) int64, documents per pixel, from the lower left corner."""
        self._colour = np.round(255 * np.array(to_rgb(colour)))

    def draw(self, renderer: Any) -> None:
        padded_counts = np.pad(self.counts, 1).astype(np.float32)
        rows = padded_counts[1:-1] + _SOFT * (padded_counts[:-2] + padded_counts[2:])
        dots = rows[:, 1:-1] + _SOFT * (rows[:, :-2] + rows[:, 2:])
        # Logarithmic up to the fullest pixel; a single document stays visible.
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
    """Draw the first `count` values as a line, with a band of two standard errors if `error` is given."""
    rows = values.outline(count, places(axes))
    if not len(rows):
        return
    shown = values.values()[rows]
    marker = {"marker": "o", "ms": 3} if len(rows) < 2 else {}  # a single value makes no line
    axes.plot(steps[rows], shown, color=colour, zorder=3, **({"lw": 1.8} | marker | style))
    if error is not None:
        width = 2 * error.values()[rows]
        axes.fill_between(steps[rows], shown - width, shown + width, color=colour, alpha=0.22, lw=0, zorder=2)


def bucket_means(steps: npt.NDArray[Any], values: Floats, buckets: int) -> tuple[npt.NDArray[Any], Floats]:
    """Downsample a long curve to the mean of each bucket, and its last value; several curves stay readable."""
    width = len(values) // buckets
    if width < 2:
        return steps, values
    whole = len(values) // width * width
    means = np.nanmean(values[:whole].reshape(-1, width), axis=1)
    return np.append(steps[width // 2 : whole : width], steps[-1]), np.append(means, values[-1])


def mark_out_of_range(axes: Any, steps: npt.NDArray[Any], values: Floats, palette: Palette) -> None:
    """Mark values outside the panel at its top and bottom; the legend has their count and the furthest one."""
    bottom, top = axes.get_ylim()
    with np.errstate(invalid="ignore"):
        above, below = np.flatnonzero((values > top) & np.isfinite(values)), np.flatnonzero(values < bottom)
    missing = np.flatnonzero(~np.isfinite(values))
    if len(above):
        row = above[np.argmax(values[above])]
        label = f"{len(above):,} above, up to {_rounded(values[row])} at step {steps[row]:,}"
        edge_mark(axes, steps[above], 0.985, "^", palette.second, label)
    if len(below):
        row = below[np.argmin(values[below])]
        label = f"{len(below):,} below, down to {_rounded(values[row])} at step {steps[row]:,}"
        edge_mark(axes, steps[below], 0.045, "v", palette.second, label)
    if len(missing):
        label = f"{len(missing):,} not finite, first at step {steps[missing[0]]:,}"
        edge_mark(axes, steps[missing], 0.985, "x", palette.bad, label)


def _rounded(value: float) -> str:
    return short_number(float(f"{value:.3g}"))


def edge_mark(axes: Any, steps: Any, height: float, marker: str, colour: str, label: str) -> None:
    """Draw marks at one height (a share of the panel), at most one per place along the axis."""
    found = np.asarray(steps, dtype=np.float64)
    left, right = axes.get_xlim()
    _, first = np.unique(((found - left) * (places(axes) / (right - left))).astype(int), return_index=True)
    axes.plot(
        found[first], np.full(len(first), height), marker, ls="", color=colour, ms=5, mew=1.2 if marker in "x|" else 0,
        transform=axes.get_xaxis_transform(), label=label, zorder=5,
    )  # fmt: skip


def label_ends(axes: Any, labels: Sequence[tuple[float, str, str]]) -> None:
    """Write (height, text, colour) labels right of the panel, each as close to its line as the others allow.

    An arrow before the text means that the line ends outside the panel.
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
    """Move increasing heights as little as possible so that they are `gap` apart between `low` and `high`.

    If they do not fit, the gap becomes smaller.
    """
    if len(heights) > 1:
        gap = min(gap, (high - low) / (len(heights) - 1))
    steps = gap * np.arange(len(heights))
    # Isotonic regression of heights - steps (pool adjacent violators): the closest in the sense of least squares.
    blocks: list[list[float]] = []
    for value in heights - steps:
        blocks.append([float(value), 1.0])
        while len(blocks) > 1 and blocks[-2][0] > blocks[-1][0]:
            (a, n), (b, m) = blocks[-2:]
            blocks[-2:] = [[(a * n + b * m) / (n + m), n + m]]
    level = np.concatenate([np.full(int(number), value) for value, number in blocks])
    moved: Floats = np.clip(level, low, high - steps[-1]) + steps
    return moved
