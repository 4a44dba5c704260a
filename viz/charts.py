"""A run as one picture: six panels of what its store holds, drawn on a figure that is kept from chart to chart.

The loss of a step is measured before its update, on a text not seen before: the curve is a held-out curve, and says so.
Never `pyplot`, which keeps every figure alive in a global list.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from PIL import Image

from viz.panel_text import fill_text_panel, printable, shorten_to_width
from viz.reader import Columns
from viz.schema import Row
from viz.smoothing import (
    Floats,
    averages_by_source,
    debiased_average,
    describe_window,
    extremes,
    value_range,
    window_for,
)

WIDTH, HEIGHT, DPI = 1600, 900, 100  # pixels
BUCKETS = 430  # places along an axis that a curve is reduced to: a panel is that many pixels wide

INK, GREY, RULE, RAW, BAD = "#22272e", "#6b7280", "#d9dee5", "#7d9cc0", "#c1121f"
BLUE, VERMILION, PEACH, GREEN = "#0b5fa5", "#d1590a", "#e0a070", "#00775a"
# Okabe & Ito's palette for colour-blind readers without its yellow, which is lost on white; styles differ as well.
SOURCE_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#555555")
SOURCE_STYLES = ("-", (0, (6, 2)), (0, (3, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), "-", (0, (3, 3)))
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same picture on every machine
    "text.parse_math": False,  # a `$` in generated text is a `$`
    "font.size": 9,
    "text.hinting": "none",  # unhinted glyphs take half of the time
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titley": 1.0,
    "axes.titlecolor": INK,
    "axes.labelcolor": GREY,
    "axes.edgecolor": "#aab2bd",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "legend.fontsize": 8,
    "legend.framealpha": 0.88,
    "legend.edgecolor": "white",
    "legend.labelcolor": INK,
}


class Chart:
    """One figure of WIDTH x HEIGHT pixels; `draw` puts the data of a run into it as often as it is called."""

    def __init__(self) -> None:
        with matplotlib.rc_context():
            self._use_style()
            self.figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI), dpi=DPI, facecolor="white")
            self.canvas: Any = FigureCanvasAgg(self.figure)
            self._title = self.figure.suptitle("", x=0.012, ha="left", fontsize=13, fontweight="bold", color=INK)
            # Places are fixed, not found: charts of one run can be leafed through without a jump, and the search for
            # a layout took half of the time of a chart. The tests ask the renderer that nothing overlaps.
            grid = {"left": 0.05, "right": 0.951, "top": 0.895, "bottom": 0.07, "wspace": 0.23, "hspace": 0.3}
            axes = self.figure.subplots(2, 3, gridspec_kw=grid)
            self.loss, self.sources, self.text = axes[0]
            self.accuracy, self.throughput, self.rate = axes[1]
            self.norm = self.rate.twinx()
            self._furnish()

    @staticmethod
    def _use_style() -> None:
        matplotlib.rcdefaults()  # whatever the user's matplotlibrc says, TeX included
        matplotlib.rcParams.update(STYLE)

    def _furnish(self) -> None:
        titles = {
            self.loss: "Loss before each update: a held-out curve",
            self.sources: "Average loss by source",
            self.text: "Latest generation",
            self.accuracy: "Accuracy",
            self.throughput: "Throughput",
            self.rate: "Learning rate and gradient norm",
        }
        labels = ("nats per token", "nats per token", "", "next token right, %", "tokens/s", "learning rate")
        for (axes, title), label in zip(titles.items(), labels, strict=True):
            axes.set_title(title)
            axes.set_ylabel(label)
            axes.set_xlabel("step (one document each)")
            axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1, steps=(1, 2, 2.5, 5, 10)))
            axes.xaxis.set_label_coords(0.5, -0.092)
            axes.yaxis.set_label_coords(-0.135, 0.5)
            axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)))
            axes.yaxis.set_major_formatter(FuncFormatter(short_number))
        self.text.set_axis_off()
        place = self.text.get_position()  # without an axis it can take the room of one
        self.text.set_position((place.x0 - 0.03, place.y0 - 0.05, 0.99 - place.x0 + 0.03, place.height + 0.05))
        self.norm.grid(False)
        self.norm.set_yscale("log")
        self.norm.set_ylabel("gradient norm")
        self.norm.yaxis.set_label_coords(1.13, 0.5)
        self.norm.yaxis.set_major_formatter(FuncFormatter(short_number))
        self.norm.yaxis.set_minor_locator(NullLocator())
        self.norm.spines["right"].set_visible(True)
        self.rate.set_zorder(self.norm.get_zorder() + 1)  # the rate's line over the norm's points
        self.rate.patch.set_visible(False)

    def draw(
        self,
        run: Mapping[str, Any],
        columns: Columns,
        sample: Mapping[str, Any] | None,
        step: int,
        evaluations: Sequence[Row] = (),
    ) -> bytes:
        """The picture, a PNG, of a run as of `step` finished documents.

        `run`: `StoreReader.run()`; `columns`: `StoreReader.columns()`, rows below `step` only; `sample`: the generation
        to show. Any of them may be as good as empty: the panels then say that they wait. `evaluations`:
        `StoreReader.evaluations()`.
        """
        with matplotlib.rc_context():
            self._use_style()
            self._clear()
            self._name(run, step)
            steps = columns["steps"]
            last = max(int(steps[-1]), 1) if len(steps) else 1
            for axes in (self.loss, self.sources, self.accuracy, self.throughput, self.rate):
                axes.set_xlim(-0.02 * last, 1.02 * last)
            window = window_for(len(steps))
            accuracy, rate = columns["accuracy"] * 100, columns["throughput"]
            self._measured(self.loss, steps, columns["loss"], debiased_average(columns["loss"], window))
            self._held_out(evaluations)
            self._measured(self.accuracy, steps, accuracy, debiased_average(accuracy, window), floor=0)
            # Tokens over seconds, not a mean of rates: a short document is fast, and counts as little as it is long.
            seconds = debiased_average(columns["seconds"], window)
            tokens_over_seconds = debiased_average(columns["tokens"], window) / np.where(seconds > 0, seconds, np.nan)
            mean_rate = np.where(np.isfinite(tokens_over_seconds), tokens_over_seconds, debiased_average(rate, window))
            self._measured(self.throughput, steps, rate, mean_rate, floor=0)
            for axes in (self.loss, self.accuracy, self.throughput):
                self._name_lines(axes)
            self._by_source(columns)
            self._rates(columns)
            fill_text_panel(self.text, sample)
            self.canvas.draw()
        picture = Image.fromarray(np.asarray(self.canvas.buffer_rgba())).convert("RGB")
        file = io.BytesIO()
        # 256 colours are all that a chart needs: a third of the bytes, in half of the time.
        picture.quantize(256, method=Image.Quantize.FASTOCTREE).save(file, "png", compress_level=4)
        return file.getvalue()

    def _clear(self) -> None:
        for axes in self.figure.axes:
            for artist in (*axes.lines, *axes.collections, *axes.texts):
                artist.remove()
            if (legend := axes.get_legend()) is not None:
                legend.remove()

    def _name(self, run: Mapping[str, Any], step: int) -> None:
        source = str(run.get("source") or "unknown data")
        if run.get("note"):
            source += f" ({run['note']})"
        count = f"{step:,} document{'' if step == 1 else 's'} trained"
        rest = "".join(f" · {part}" for part in (run.get("model"), count) if part)
        # The note may be long, the count must be seen: what is too long is cut out of the source.
        shorten_to_width(self._title, printable(source), printable(rest), 0.975 * WIDTH, self.canvas.get_renderer())

    def _wait(self, axes: Any, what: str) -> None:
        axes.text(0.5, 0.5, what, transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=10)
        axes.set_ylim(0, 1)

    def _measured(self, axes: Any, steps: Floats, values: Floats, average: Floats, floor: float | None = None) -> None:
        """Each document faint, their average strong; what lies far above is marked at the edge, with its step."""
        finite = np.isfinite(values)
        if not finite.any():
            self._wait(axes, "waiting for the first document" if not len(values) else "no finite value yet")
        else:
            low, high = value_range(values[finite], floor)
            _, high = axes.set_ylim(low, max(high, low + 1.3 * (float(np.nanmax(average)) - low)))
            self._each(axes, steps, np.where(values <= high, values, np.nan), RAW, "each document")
            above = np.flatnonzero(finite & (values > high))
            kept = extremes(average, BUCKETS)
            axes.plot(steps[kept], average[kept], color=BLUE, lw=1.8, label=describe_window(window_for(len(values))))
            if len(above):
                top = above[np.argmax(values[above])]
                label = f"{len(above):,} above: highest {short_number(values[top])} at step {steps[top]:,}"
                self._mark(axes, steps[above], "^", VERMILION, label)
        if not finite.all():
            places = steps[~finite]
            self._mark(axes, places, "x", BAD, f"{len(places):,} not finite: first at step {places[0]:,}")

    def _name_lines(self, axes: Any) -> None:
        if axes.lines:
            # The range leaves one line of room at the top; where losses fall, and beside spikes, there is more.
            wide = 1 if axes is self.loss or len(axes.lines) > 2 else 2
            axes.legend(loc="upper right", bbox_to_anchor=(1, 0.965), ncols=wide, columnspacing=1.0)

    def _held_out(self, evaluations: Sequence[Row]) -> None:
        """The evaluations, a line for each split, over the losses of the documents that were trained on."""
        for split in dict.fromkeys(row["split"] for row in evaluations):
            rows = [row for row in evaluations if row["split"] == split]
            losses = np.array([row["loss"] for row in rows], dtype=np.float64)
            kept = extremes(losses, BUCKETS)
            if not len(kept):
                continue
            steps, shown = np.array([row["step"] for row in rows])[kept], losses[kept]
            low, high = self.loss.get_ylim()
            self.loss.set_ylim(min(low, 0.95 * float(shown.min())), max(high, 1.05 * float(shown.max())))
            few = {"marker": "o", "ms": 5.5, "mec": "white", "mew": 0.8} if len(shown) <= 60 else {}
            label = f"held out ({printable(split)}): {shown[-1]:.3f}"
            self.loss.plot(steps, shown, color=GREEN, lw=1.4, label=label, **few)

    @staticmethod
    def _each(axes: Any, steps: Floats, values: Floats, colour: str, label: str) -> None:
        """Single documents: as points or, where they are reduced, as a band from each pixel's lowest to its highest."""
        shown = extremes(values, BUCKETS)
        if len(shown) < 0.9 * len(values):
            form: dict[str, Any] = {"lw": 0.8, "alpha": 0.5}
        else:
            form = {"ls": "", "marker": "o", "ms": 4.5 if len(shown) < 200 else 2.5, "mew": 0, "alpha": 0.7}
        axes.plot(steps[shown], values[shown], color=colour, label=label, **form)

    @staticmethod
    def _mark(axes: Any, steps: Any, marker: str, colour: str, label: str) -> None:
        """Marks along the top edge."""
        where = axes.get_xaxis_transform()
        axes.plot(steps, np.full(len(steps), 0.985), marker, color=colour, ms=5, transform=where, label=label)

    def _by_source(self, columns: Columns) -> None:
        curves = averages_by_source(columns["steps"], columns["loss"], columns["source"], len(SOURCE_COLOURS))
        curves = [curve for curve in curves if np.isfinite(curve[2]).any()]
        if not curves:
            self._wait(self.sources, "no document with a named source yet")
            return
        for (source, steps, average), colour, style in zip(curves, SOURCE_COLOURS, SOURCE_STYLES, strict=False):
            name, kept = printable(source), extremes(average, BUCKETS)
            latest = f"{average[-1]:.2f}" if average[-1] < 100 else short_number(average[-1])
            label = f"{name if len(name) <= 20 else name[:19] + '…'}: {latest}"
            point = "." if len(kept) < 2 else None  # one document makes no line
            self.sources.plot(steps[kept], average[kept], color=colour, ls=style, lw=1.6, marker=point, label=label)
        ends = np.concatenate([curve[2] for curve in curves])
        wide = 1 if len(curves) < 5 else 2
        self.sources.set_ylim(value_range(ends[np.isfinite(ends)], None, 0.06 + 0.065 * -(-len(curves) // wide)))
        self.sources.legend(loc="upper right", ncols=wide, fontsize=7.5, handlelength=1.8, columnspacing=1.0)

    def _rates(self, columns: Columns) -> None:
        steps, rates, norms = columns["steps"], columns["learning_rate"], columns["gradient_norm"]
        norms = np.where(np.isfinite(norms) & (norms > 0), norms, np.nan)
        finite = np.isfinite(rates)
        if finite.any():
            kept = extremes(rates, BUCKETS)
            marker = "." if len(kept) < 2 else None
            self.rate.plot(steps[kept], rates[kept], color=INK, lw=1.8, label="learning rate", marker=marker)
            self.rate.set_ylim(0, 1.35 * max(float(rates[finite].max()), 1e-12))
        else:
            self._wait(self.rate, "waiting for the first document")
        lines = list(self.rate.lines)
        self.norm.yaxis.set_visible(bool(np.isfinite(norms).any()))
        if self.norm.yaxis.get_visible():
            low, high = float(np.nanmin(norms)), float(np.nanmax(norms))
            self.norm.set_ylim(low / 1.3, high * (high / low) ** 0.2 * 1.3)
            decades = np.log10(high / low)
            locator = LogLocator(subs=(1.0, 2.0, 5.0) if decades < 1.7 else (1.0,), numticks=7)
            self.norm.yaxis.set_major_locator(locator if decades > 0.6 else MaxNLocator(4))
            self._each(self.norm, steps, norms, PEACH, "gradient norm (right)")
            average = np.exp(debiased_average(np.log(norms), window_for(len(norms))))
            kept = extremes(average, BUCKETS)
            self.norm.plot(steps[kept], average[kept], color=VERMILION, lw=1.4, label="its geometric average")
            lines += self.norm.lines
        if lines:
            self.rate.legend(handles=lines, loc="upper right", ncols=len(lines), columnspacing=1.0, handlelength=1.4)


def short_number(value: float, _position: object = None) -> str:
    """A number in few characters: `20k`, `1.5M`, `3.25`, `5e-4`."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if letter == 'k' else size):.4g}{letter}"
    if 0 < abs(value) < 1e-3:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:.4g}"
