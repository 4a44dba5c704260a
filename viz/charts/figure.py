"""The chart of a run, drawn on a figure that is reused from chart to chart.

It shows at a glance whether the model learns, how fast, on which data, and whether something is wrong. The loss of a
step is measured before its update, on text that the model has not learned from: the title calls it a held-out curve.
`pyplot` is not used, because it keeps every figure alive in a global list.
"""

from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

from common.formatting import format_duration
from viz.charts import panels
from viz.charts.primitives import short_number
from viz.charts.style import DARK, INCHES, LIGHT, canvas_to_png, matplotlib_style
from viz.charts.text import Section, fill_text_panel, printable, shorten_to_width, write_lines
from viz.record.schema import Row
from viz.stats.averages import WINDOW
from viz.views.run_view import View, verdict

SIZE = (1600, 1000)  # pixels
# The widest labels at the ends of lines, in the loss panel and in the others.
_WIDE_MARGIN, _MARGIN = "token frequencies 00.00", "…maCommonCraw00 00.00"


class Chart:
    """One figure of one size, for any number of calls of `draw`."""

    def __init__(self, size: tuple[int, int] = SIZE, *, dark: bool = False) -> None:
        """`size`: width and height of the image in pixels."""
        self._size, self._palette = size, DARK if dark else LIGHT
        dpi = size[0] / INCHES
        with matplotlib_style(self._palette):
            self.figure = Figure(figsize=(INCHES, size[1] / dpi), dpi=dpi)
            self.canvas: Any = FigureCanvasAgg(self.figure)
            inch = 1 / self.figure.get_figheight()
            top: Any = {"va": "top", "in_layout": False}
            self.title = self.figure.text(0.0075, 1 - 0.08 * inch, "", fontsize=13.5, fontweight="bold", **top)
            self.verdict = self.figure.text(0.0075, 1 - 0.37 * inch, "", fontsize=10, color=self._palette.quiet, **top)
            self._make_panels()
            self._format_axes()
            self._lay_out(rect=(0, 0, 1, 1 - 0.62 * inch))

    def _make_panels(self) -> None:
        columns: Any = self.figure.add_gridspec(1, 3, width_ratios=(1.55, 0.95, 0.88))
        left, middle, right = columns
        rows = left.subgridspec(7, 1, height_ratios=(11, 0.75, 1.3, 1.3, 1.3, 1.3, 1.3))
        self.loss, self.legend, self.stand_outs, *strips = (self.figure.add_subplot(row) for row in rows)
        self.rate, self.norm, self.speed, self.waiting = strips
        rows = middle.subgridspec(3, 1)
        self.sources, self.accuracy, self.positions = (self.figure.add_subplot(row) for row in rows)
        rows = right.subgridspec(2, 1, height_ratios=(1.12, 1))
        self.moments, self.latest = (self.figure.add_subplot(row) for row in rows)
        self.along_steps = (self.loss, self.sources, self.accuracy, *strips)
        self._strips = strips
        for axes in (self.legend, self.stand_outs, self.moments, self.latest):
            axes.set_axis_off()

    def _format_axes(self) -> None:
        """Set what all charts share: titles, ticks and their formats."""
        titles = {
            self.loss: panels.LOSS_TITLE,
            self.stand_outs: "Furthest above the average of their source (read one: python -m viz document STEP)",
            self.rate: "Learning rate",
            self.norm: "Gradient norm",
            self.speed: "Tokens per second",
            self.waiting: "Time spent waiting for documents",
            self.sources: "Loss by source",
            self.accuracy: f"Next-token accuracy, average of ~{WINDOW}",
            self.positions: "Loss by position in the document",
            self.moments: "One prompt over time",
            self.latest: "Latest generation",
        }
        self.titles = {
            axes: axes.set_title(title, pad=5, fontsize=8.5 if axes in (self.stand_outs, *self._strips) else 10.5)
            for axes, title in titles.items()
        }
        for axes in self.along_steps:
            places = 4 if axes in (self.sources, self.accuracy) else 6
            axes.xaxis.set_major_locator(MaxNLocator(places, integer=True, min_n_ticks=1, steps=(1, 2, 2.5, 5, 10)))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda step, _: f"{step:,.0f}"))
            axes.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)))
            axes.yaxis.set_major_formatter(FuncFormatter(short_number))
        for axes in (self.rate, self.norm, self.speed):
            axes.xaxis.set_tick_params(labelbottom=False)
        for axes in (self.rate, self.speed, self.waiting):
            axes.yaxis.set_major_locator(MaxNLocator(2))
        for axes in (self.accuracy, self.waiting):
            axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g} %"))
        self.norm.set_yscale("log")
        self.norm.yaxis.set_major_formatter(FuncFormatter(short_number))
        self.norm.yaxis.set_minor_locator(NullLocator())
        self.positions.set_xscale("log")
        self.positions.xaxis.set_major_locator(LogLocator(base=2, numticks=12))
        self.positions.xaxis.set_minor_locator(NullLocator())
        self.positions.xaxis.set_major_formatter(FuncFormatter(lambda place, _: f"{place:,.0f}"))
        self.positions.yaxis.set_major_locator(MaxNLocator(5, steps=(1, 2, 2.5, 5, 10)))
        self.positions.set_xlabel("position of the predicted token", labelpad=2)
        self.waiting.set_xlabel("step (one document each)", labelpad=2)
        self.accuracy.set_xlabel("step", labelpad=2)

    def _lay_out(self, rect: tuple[float, float, float, float]) -> None:
        """Lay the panels out once, around the widest labels, so that they stay in place from chart to chart.

        The layout also takes longer than drawing.
        """
        drawn = (*self.along_steps, self.positions)
        formatters = {axes: axes.yaxis.get_major_formatter() for axes in drawn}
        for axes in drawn:
            axes.set_xlim(1, 100_000)
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: "00.00"))
            margin = _WIDE_MARGIN if axes is self.loss else _MARGIN
            axes.text(1.012, 0.5, margin, transform=axes.transAxes, fontsize=8)
        self.figure.set_layout_engine(
            ConstrainedLayoutEngine(rect=rect, w_pad=0.07, h_pad=0.045, hspace=0.0, wspace=0.0)
        )
        self.figure.draw_without_rendering()
        self.figure.set_layout_engine("none")
        for axes in (self.legend, self.stand_outs):  # extend to the right, below the labels of the loss panel
            room, right = axes.get_position(), self.loss.texts[0].get_window_extent().x1 / self._size[0]
            axes.set_position((room.x0, room.y0, right - room.x0, room.height))
        for axes, formatter in formatters.items():
            axes.yaxis.set_major_formatter(formatter)
        for axes in self.figure.axes:
            for axis in (axes.xaxis, axes.yaxis):
                # Otherwise matplotlib places each label around its ticks again, a sixth of a chart's time.
                box = axis.label.get_window_extent()
                axis.set_label_coords(*axes.transAxes.inverted().transform(((box.x0 + box.x1) / 2, box.y1)))

    def _clear(self) -> None:
        # The axes and their ticks stay: making them takes longer than everything else.
        for axes in self.figure.axes:
            axes.yaxis.set_visible(True)
            for artist in (*axes.lines, *axes.collections, *axes.images, *axes.texts, *axes.artists):
                artist.remove()
            if (legend := axes.get_legend()) is not None:
                legend.remove()

    def draw(self, view: View) -> bytes:
        """Return the chart as a PNG. A panel without data yet states what it waits for."""
        with matplotlib_style(self._palette):
            self._clear()
            self._write_header(view)
            last = int(view.column("steps")[-1]) if view.count else 0
            for axes in self.along_steps:
                axes.set_xlim(-0.02 * max(last, 1), 1.01 * max(last, 1))
            self.titles[self.loss].set_text(panels.draw_loss(self.loss, view, self._palette))
            spikes = f" (▾ {len(view.spikes):,} spikes)" if view.spikes else ""
            self.titles[self.norm].set_text(f"Gradient norm{spikes}".replace(" 1 spikes", " 1 spike"))
            panels.draw_legend_below(self.legend, self.loss)
            self.titles[self.sources].set_text(panels.draw_sources(self.sources, view, self._palette))
            panels.draw_accuracy(self.accuracy, view, self._palette)
            panels.draw_positions(self.positions, view, self._palette)
            panels.draw_rate(self.rate, view, self._palette)
            panels.draw_norm(self.norm, view, self._palette)
            panels.draw_speed(self.speed, view, self._palette)
            panels.draw_waiting(self.waiting, view, self._palette)
            self._write_stand_outs(view)
            self._write_moments(view)
            self._write_latest(view.sample)
            self.canvas.draw()
        return canvas_to_png(self.canvas)

    def _write_header(self, view: View) -> None:
        """Write the two lines above the panels."""
        source = str(view.run.get("source") or "unknown data").rstrip("/")
        source = source if "*" in source else source.rsplit("/", 1)[-1]
        if view.run.get("note"):
            source += f" ({view.run['note']})"
        count = f"Trained on {view.step:,} document{'' if view.step == 1 else 's'} · "
        seconds = view.column("seconds")
        spent = format_duration(float(np.nansum(seconds))) if np.isfinite(seconds).any() else ""
        left = view.seconds_left
        time = ", ".join(filter(None, (spent, f"{format_duration(left)} left" if left is not None else "")))
        rest = "".join(f" · {part}" for part in (view.run.get("model"), time) if part)
        width, renderer = 0.985 * self._size[0], self.canvas.get_renderer()
        shorten_to_width(self.title, printable(source), printable(rest), width, renderer, before=count)
        shorten_to_width(self.verdict, verdict(view), "", width, renderer)

    def _write_stand_outs(self, view: View) -> None:
        if not view.stand_outs:
            warm = view.warmup_steps
            since = f"after the warm-up ({warm:,} steps)" if view.step <= warm else "once there are more of them"
            write_lines(self.stand_outs, [f"Documents that stand out are listed here {since}."], self._palette)
            return
        lines = []
        for number, found in enumerate(view.stand_outs, 1):
            words = f"“{printable(found.words)}…”" if found.words else "(text not kept)"
            where = f"{printable(found.source)} " if found.source else ""
            lines.append(f"{number}  step {found.step:,}: {where}+{found.excess:.2f}  {words}".replace("\n", " "))
        write_lines(self.stand_outs, lines, self._palette)

    def _write_moments(self, view: View) -> None:
        if not view.moments:
            write_lines(self.moments, ["The prompt is repeated at some display steps."], self._palette)
            return
        sections = [Section("prompt", self._palette.quiet, 1, view.moments[0]["prompt"])]
        for row in view.moments:
            name = f"after {row['step']:,} document{'' if row['step'] == 1 else 's'}"
            sections.append(Section(name, self._palette.main, 3, output_of(row)))
        fill_text_panel(self.moments, sections, self._palette)

    def _write_latest(self, sample: Row | None) -> None:
        if sample is None:
            self.titles[self.latest].set_text("Latest generation")
            write_lines(self.latest, ["no generation yet"], self._palette)
            return
        self.titles[self.latest].set_text(f"Latest generation, step {sample['step']:,}")
        sections = [
            Section("prompt", self._palette.quiet, 1, sample.get("prompt") or sample.get("input")),
            Section("the model continues", self._palette.second, 3, output_of(sample)),
            Section("the document continues", self._palette.main, 3, sample.get("reference")),
        ]
        fill_text_panel(self.latest, sections, self._palette)


def output_of(row: Row) -> str | None:
    """Return what the model wrote, or that the generation failed; never anything else in its place."""
    return f"(failed: {row['error']})" if row.get("error") else row.get("output")
