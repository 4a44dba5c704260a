from typing import Any

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from viz.charts.text_block import TextBlock


def ink_of(dpi: int, text: str, **style: Any) -> tuple[TextBlock, tuple[int, int, int, int]]:
    """A block in a figure of 4 x 2 inches, and the box of what is drawn: left, bottom, right, top in pixels."""
    figure = Figure(figsize=(4, 2), dpi=dpi)
    canvas: Any = FigureCanvasAgg(figure)
    block = TextBlock((0.1, 0.75), text, figure.transFigure, "#c00000", 10, **style)
    figure.add_artist(block)
    canvas.draw()
    dark = np.asarray(canvas.buffer_rgba())[::-1, :, 1] < 200
    rows, columns = np.flatnonzero(dark.any(axis=1)), np.flatnonzero(dark.any(axis=0))
    return block, (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)


@pytest.mark.parametrize("dpi", [50, 100, 250])
@pytest.mark.parametrize("text", ["Wgjp|", "def f(x):\n    return x\n\nÄß…"])
def test_the_ink_is_where_the_block_says(dpi: int, text: str) -> None:
    block, (left, bottom, right, top) = ink_of(dpi, text)
    box = block.get_window_extent()
    assert box.x0 - 1 <= left and right <= box.x1 + 2 and box.y0 - 1 <= bottom and top <= box.y1 + 1
    assert (right - left) * (top - bottom) > 0.4 * box.width * box.height
    assert box.x0 == pytest.approx(0.1 * 4 * dpi) and box.y1 == pytest.approx(0.75 * 2 * dpi)


def test_in_the_middle_of_its_line() -> None:
    block, (_, bottom, _, top) = ink_of(100, "x", middle=True)
    box = block.get_window_extent()
    assert (box.y0 + box.y1) / 2 == pytest.approx(150) == pytest.approx((bottom + top) / 2, abs=2)


def test_bold_is_wider_and_nothing_is_nothing() -> None:
    (_, thin), (_, bold) = ink_of(100, "width"), ink_of(100, "width", bold=True)
    assert bold[2] - bold[0] > thin[2] - thin[0]
    with pytest.raises(IndexError):  # no ink at all
        ink_of(100, "  \n ")
