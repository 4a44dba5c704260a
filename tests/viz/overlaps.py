"""Where the texts of a figure are: do two of them overlap, does one leave the figure or its panel?"""

import itertools
from collections.abc import Iterable
from typing import Any


def find_overlaps(figure: Any, text_panels: Iterable[Any] = ()) -> list[str]:
    """One line for each pair of texts that overlap, and for each text that leaves the figure.

    `text_panels`: axes whose texts must stay within them.
    """
    renderer = figure.canvas.get_renderer()
    boxes = [(repr(text.get_text()[:30]), text.get_window_extent(renderer)) for text in _texts_of(figure)]
    wrong = [
        f"{a} overlaps {b}"
        for (a, box), (b, other) in itertools.combinations(boxes, 2)
        if min(box.x1, other.x1) - max(box.x0, other.x0) > 1 and min(box.y1, other.y1) - max(box.y0, other.y0) > 1
    ]
    wrong += [f"{name} leaves the figure" for name, box in boxes if not _contains(figure.bbox, box)]
    for axes in text_panels:
        panel = axes.get_window_extent()
        inside = [_contains(panel, text.get_window_extent(renderer), below=3) for text in axes.texts]
        wrong += ["a text leaves its panel"] * inside.count(False)
    return wrong


def _texts_of(figure: Any) -> list[Any]:
    """The visible ones."""
    found = list(figure.texts)
    for axes in figure.axes:
        found += [axes.title, axes._left_title, axes._right_title, *axes.texts]
        for axis in (axes.xaxis, axes.yaxis):
            if axes.axison and axis.get_visible():
                low, high = sorted(axis.get_view_interval())
                shown = [tick for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
                found += [axis.label, *(tick.label1 for tick in shown)]
        if axes.get_legend() is not None:
            found += axes.get_legend().get_texts()
    return [text for text in found if text.get_visible() and text.get_text().strip()]


def _contains(outer: Any, box: Any, below: float = 1) -> bool:
    inside = box.x0 >= outer.x0 - 1 and box.x1 <= outer.x1 + 1 and box.y1 <= outer.y1 + 1
    return bool(inside and box.y0 >= outer.y0 - below)
