"""The panels of a chart that have axes, each a function of a `View`."""

import math
from typing import Any

import numpy as np
from matplotlib.ticker import LogLocator, MaxNLocator

from viz.charts.primitives import (
    bucket_means,
    curve,
    documents,
    edge_mark,
    label_ends,
    mark_out_of_range,
    padded,
    places,
    robust_range,
    short_number,
    show_placeholder,
)
from viz.charts.style import LINE_STYLES, Palette
from viz.charts.text import printable
from viz.record.schema import Row
from viz.stats.averages import WINDOW
from viz.views.run_view import View

WAITING = "waiting for the first document"
LOSS_TITLE = "Loss before each update, nats per token: a held-out curve"
LEAST_RANGE = 0.5  # nats per token
_TICKS = {  # kind of event -> label, marker, colour
    "checkpoint": ("checkpoint", "|", "quiet"),
    "resume": ("resume", ">", "main"),
    "roll-back": ("rollback", "<", "bad"),
    "epoch": ("epoch", "d", "ink"),
}


def draw_loss(axes: Any, view: View, palette: Palette) -> str:
    """Draw single documents, their average with its band, two reference losses, evaluations and marks.

    Returns the panel's title.
    """
    steps, losses, series = view.column("steps"), view.column("loss"), view.series
    if not np.isfinite(losses).any():
        show_placeholder(axes, palette, "no finite loss yet" if view.count else WAITING)
        mark_out_of_range(axes, steps, losses, palette)
        return LOSS_TITLE
    guessing = math.log(view.run["vocab_size"]) if view.run.get("vocab_size") else None
    by_split: dict[str, list[Row]] = {}
    for row in view.evaluations:
        if row["loss"] is not None and math.isfinite(row["loss"]):
            by_split.setdefault(row["split"], []).append(row)
    average = series.averages.loss.values(view.count)
    low, high = robust_range(losses, 0.002, 0.995)
    held_out = [row["loss"] for rows in by_split.values() for row in rows]
    seen = [*robust_range(average, 0.0, 0.985), *held_out, *([guessing] if guessing else [])]
    axes.set_ylim(padded(*_widened(min(low, *seen), max(high, *seen)), 0.05, 0.08))
    documents(axes, steps, losses, palette.data)
    ends = []
    if guessing:
        axes.axhline(guessing, color=palette.quiet, lw=1.1, ls=(0, (1, 2)), zorder=2)
        ends.append((guessing, f"uniform guess {guessing:.2f}", palette.quiet))
    entropy = view.column("unigram_entropy")
    if np.isfinite(entropy[-1]):
        curve(axes, steps, series.column("unigram_entropy"), view.count, palette.quiet, lw=1.2, ls=(0, (5, 2)))
        ends.append((float(entropy[-1]), f"token frequencies {entropy[-1]:.2f}", palette.quiet))
    label = f"average of {f'~{WINDOW}' if view.count > WINDOW else f'all {view.count}'} ± 2 standard errors"
    curve(axes, steps, series.averages.loss, view.count, palette.main, series.averages.loss_error, label=label)
    ends.append((float(average[-1]), f"average {average[-1]:.2f}", palette.main))
    for split, rows in by_split.items():
        shown = rows if len(rows) <= 60 else rows[:: -(-len(rows) // 400)] + rows[-1:]
        few = {"marker": "o", "ms": 5, "mec": palette.paper, "mew": 0.8} if len(rows) <= 60 else {}
        axes.plot(
            [row["step"] for row in shown], [row["loss"] for row in shown], color=palette.held_out, lw=1.3,
            zorder=4, label=f"held out ({printable(split)})", **few,
        )  # fmt: skip
        ends.append((rows[-1]["loss"], f"held out {rows[-1]['loss']:.2f}", palette.held_out))
    mark_out_of_range(axes, steps, losses, palette)
    for kind, (label, marker, colour) in _TICKS.items():
        if happened := view.events.get(kind):
            edge_mark(axes, happened, 0.018, marker, getattr(palette, colour), f"{label} ({len(happened):,})")
    _mark_stand_outs(axes, view, palette)
    label_ends(axes, ends)
    if view.repeats_from is None:
        return LOSS_TITLE
    return f"Loss before each update, nats per token: documents repeat from step {view.repeats_from:,}"


def _widened(low: float, high: float) -> tuple[float, float]:
    """Widen a range of losses to at least `LEAST_RANGE`, so that a tiny difference does not look like a fall."""
    spare = max(0.0, LEAST_RANGE - (high - low)) / 2
    return low - spare, high + spare


def draw_legend_below(below: Any, axes: Any) -> None:
    """Draw the legend of a panel in the axes below it, where it hides no document."""
    named = [line for line in axes.lines if not str(line.get_label()).startswith("_")]
    if named:
        longest = max(len(str(line.get_label())) for line in named)
        below.legend(
            handles=named, loc="upper left", bbox_to_anchor=(-0.008, 1.25), ncols=3 if longest > 30 else 4,
            fontsize=7.5, handlelength=1.4, columnspacing=1.3, labelspacing=0.35, borderaxespad=0,
        )  # fmt: skip


def _mark_stand_outs(axes: Any, view: View, palette: Palette) -> None:
    """Draw a ring around each document that stands out, and its number beside it, clear of the other numbers."""
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    box, scale = axes.get_window_extent(), axes.figure.dpi / 100
    taken: list[tuple[float, float]] = []
    for number, found in enumerate(view.stand_outs, 1):
        height = min(max(found.loss, bottom), top - 0.02 * (top - bottom))
        x = box.x0 + (found.step - left) / (right - left) * box.width
        y = box.y0 + (height - bottom) / (top - bottom) * box.height
        side = -1 if x > box.x1 - 16 * scale else 1
        x, y = x + side * 11 * scale, min(max(y, box.y0 + 8 * scale), box.y1 - 8 * scale)
        while any(abs(x - a) < 11 * scale and abs(y - b) < 14 * scale for a, b in taken):
            y -= 3 * scale
        taken.append((x, y))
        axes.plot([found.step], [height], "o", ms=9, mfc="none", mec=palette.second, mew=1.6, zorder=6)
        place = ((x - box.x0) / box.width, (y - box.y0) / box.height)
        axes.text(
            *place, str(number), transform=axes.transAxes, ha="center", va="center", color=palette.second,
            fontsize=9, fontweight="bold", zorder=7,
        )  # fmt: skip


def draw_sources(axes: Any, view: View, palette: Palette) -> str:
    """Draw the average of each source over its own documents; a thicker line means more documents.

    Returns the panel's title.
    """
    counts = {
        name: int(np.searchsorted(one.rows.values(), view.count)) for name, one in view.series.sources.items() if name
    }
    most = sorted((name for name in counts if counts[name]), key=lambda name: -counts[name])
    named = [
        name for name in most if np.isfinite(view.series.sources[name].average.values(counts[name])[-1])
    ]  # fmt: skip
    shown = named[: len(palette.sources)]
    if not shown:
        show_placeholder(axes, palette, "no document with a named source yet" if view.count else WAITING)
        return "Loss by source"
    total, steps, ends, heights = sum(counts.values()), view.column("steps"), [], []
    labels = shorten_names(shown)
    for name, short, colour, style in zip(shown, labels, palette.sources, LINE_STYLES, strict=False):
        one, count = view.series.sources[name], counts[name]
        width = 1.0 + 2.6 * count / total
        average = one.average.values(count)
        rows, shown_average = bucket_means(steps[one.rows.values(count)], average, places(axes) // 2)
        axes.plot(rows, shown_average, color=colour, lw=width, ls=style, marker="o" if len(rows) < 2 else "", ms=3)
        heights.append(shown_average)
        latest = float(average[-1])
        ends.append((latest, f"{short} {f'{latest:.2f}' if latest < 100 else short_number(round(latest))}", colour))
    axes.set_ylim(padded(*_widened(*robust_range(np.concatenate(heights), 0.01, 0.99)), 0.06, 0.08))
    label_ends(axes, ends)
    title = "Loss by source"
    if len(most) > len(shown):
        share = sum(counts[name] for name in shown) / total
        title = f"{len(shown)} of {len(most)} sources ({share:.0%})"
    return f"{title}, average of ~{WINDOW}"


def shorten_names(names: list[str], most: int = 14) -> list[str]:
    """Shorten source names and keep them distinct: without their common prefix, cut at the end or the beginning."""
    first, last = min(names), max(names)
    common = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    if common < 4 or len(names) == 1 or min(map(len, names)) < common + 2:
        common = 0
    texts = [printable(name[common:]).replace("\n", " ").strip() for name in names]
    cut = [text if len(text) <= most else text[: most - 1] + "…" for text in texts]
    labels = [  # names often differ at their end
        "…" + text[1 - most :] if cut.count(label) > 1 and len(text) > most else label
        for label, text in zip(cut, texts, strict=True)
    ]
    again = [label in labels[:number] for number, label in enumerate(labels)]
    return [f"{label[: most - 3]} #{number}" if again[number] else label for number, label in enumerate(labels)]


def draw_accuracy(axes: Any, view: View, palette: Palette) -> None:
    """Draw the average accuracy and its band."""
    series = view.series
    average, error = series.averages.accuracy.values(view.count), series.averages.accuracy_error.values(view.count)
    kept = series.averages.accuracy.outline(view.count, places(axes))
    if not len(kept):
        show_placeholder(axes, palette, "no finite accuracy yet" if view.count else WAITING)
        return
    top = np.nanmax(average[kept] + 2 * np.nan_to_num(error[kept]))
    axes.set_ylim(0, min(1.02, max(1.1 * float(top), 0.01)))
    curve(
        axes, view.column("steps"), series.averages.accuracy, view.count, palette.main, series.averages.accuracy_error
    )
    label_ends(axes, [(float(average[-1]), f"average {100 * average[-1]:.1f} %", palette.main)])


def draw_positions(axes: Any, view: View, palette: Palette) -> None:
    """Draw the loss along a document, for the first and the newest documents: it falls where the model uses context."""
    if len(view.positions) < 2:
        show_placeholder(
            axes, palette, "available from 10 documents" if view.count < 10 else "no token losses recorded"
        )
        axes.set_xlim(1, 256)
        return
    heights = np.concatenate([one.mean for one in view.positions])
    axes.set_ylim(padded(*_widened(float(heights.min()), float(heights.max())), 0.06, 0.1))
    axes.set_xlim(1, max(2.0, 1.02 * max(float(one.places[-1]) for one in view.positions)))
    looks = (("first", palette.quiet, (0, (5, 2))), ("last", palette.main, "-"))
    ends = []
    for one, (name, colour, style) in zip(view.positions, looks, strict=True):
        axes.plot(one.places, one.mean, color=colour, ls=style, lw=1.8, zorder=3)
        low, high = one.mean - 2 * one.error, one.mean + 2 * one.error
        axes.fill_between(one.places, low, high, color=colour, alpha=0.2, lw=0)
        ends.append((float(one.mean[-1]), f"{name} {one.documents}", colour))
    label_ends(axes, ends)


def draw_rate(axes: Any, view: View, palette: Palette) -> None:
    """Draw the learning rate."""
    rates = view.series.column("learning_rate")
    finite = rates.values()[rates.outline(view.count, places(axes))]
    if len(finite):
        axes.set_ylim(0, 1.2 * max(float(finite.max()), 1e-12))
        curve(axes, view.column("steps"), rates, view.count, palette.ink, lw=1.5)
        label_ends(axes, [(float(finite[-1]), f"{finite[-1]:.2e}", palette.ink)])


def draw_norm(axes: Any, view: View, palette: Palette) -> None:
    """Draw the gradient norms and their geometric average on a logarithmic axis."""
    norms = view.series.column("gradient_norm")
    positive = norms.values()[norms.outline(view.count, places(axes))]
    positive = positive[positive > 0]
    if not len(positive):
        return
    low, high = float(positive.min()), float(positive.max())
    axes.set_ylim(low / 1.3, high * 1.3)
    wide = np.log10(high / low) > 0.9
    axes.yaxis.set_major_locator(LogLocator(numticks=4) if wide else MaxNLocator(2))
    _faint(axes, view, "gradient_norm", palette)
    average = view.series.averages.gradient_norm
    curve(axes, view.column("steps"), average, view.count, palette.second, lw=1.4)
    latest = float(average.values(view.count)[-1])
    if view.spikes:
        edge_mark(axes, view.spikes, 0.96, "v", palette.bad, "_")
    label_ends(axes, [(latest, f"average {short_number(float(f'{latest:.3g}'))}", palette.second)])


def draw_speed(axes: Any, view: View, palette: Palette) -> None:
    """Draw tokens per second, including waits."""
    average = view.series.averages.tokens_per_second
    known = average.values(view.count)
    rows = average.outline(view.count, places(axes))
    if not len(rows):
        return
    single = view.series.column("throughput")
    high = robust_range(single.values(view.count), 0, 0.99)[1] if len(single.outline(view.count, 20)) else 0.0
    axes.set_ylim(0, 1.15 * max(float(known[rows].max()), high, 1e-9))
    _faint(axes, view, "throughput", palette)
    curve(axes, view.column("steps"), average, view.count, palette.main, lw=1.4)
    label_ends(axes, [(float(known[-1]), f"average {known[-1]:,.0f}", palette.main)])


def draw_waiting(axes: Any, view: View, palette: Palette) -> None:
    """Draw the share of the time spent waiting for documents."""
    share = view.series.averages.waited_share
    known = share.values(view.count)
    rows = share.outline(view.count, places(axes))
    if not len(rows):
        return
    axes.set_ylim(0, max(0.05, 1.2 * float(known[rows].max())))
    curve(axes, view.column("steps"), share, view.count, palette.second, lw=1.4)
    axes.fill_between(view.column("steps")[rows], 0, known[rows], color=palette.second, alpha=0.25, lw=0)
    label_ends(axes, [(float(known[-1]), f"average {100 * known[-1]:.1f} %", palette.second)])


def _faint(axes: Any, view: View, name: str, palette: Palette) -> None:
    rows = view.series.column(name).outline(view.count, places(axes))
    axes.plot(view.column("steps")[rows], view.column(name)[rows], color=palette.data, lw=0.7, alpha=0.45, zorder=1)
