"""How images look: palettes for light and dark, line styles, matplotlib's settings, and the conversion to PNG."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Palette:
    """Colours by purpose. Colour-blind readers can tell them apart (tests/viz/charts/test_style.py)."""

    paper: str
    ink: str
    quiet: str
    """Labels and explanations."""
    rule: str
    """Grid lines."""
    data: str
    """Single documents."""
    main: str
    """The average, which the reader should look at."""
    second: str
    """What the average is compared with, and what stands out."""
    held_out: str
    bad: str
    sources: tuple[str, ...]


LIGHT = Palette(
    paper="#ffffff", ink="#22272e", quiet="#636b77", rule="#dfe3e8", data="#5f86b3", main="#0b5fa5", second="#c24e00",
    held_out="#00775a", bad="#c1121f",
    sources=("#2832b0", "#981500", "#217b55", "#c359a1", "#00a8ff", "#a99700", "#700961"),
)  # fmt: skip
DARK = Palette(
    paper="#15191f", ink="#e6e9ee", quiet="#9aa4b2", rule="#2c333d", data="#6f9fd0", main="#6cb8ff", second="#ff9d5c",
    held_out="#3ed6a4", bad="#ff6b6b",
    sources=("#875ded", "#ef7302", "#35834f", "#a25993", "#49ceff", "#ffce87", "#b2cbbb"),
)  # fmt: skip
LINE_STYLES = ("-", (0, (6, 2)), (0, (3, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (10, 2)), (0, (3, 3)))
"""For the lines of sources, in addition to their colours."""
SANS, MONO = "DejaVu Sans", "DejaVu Sans Mono"
"""Fonts that ship with matplotlib, so that an image is the same on every machine."""


INCHES = 16.0
"""The nominal width of every image: a larger one shows the same in more pixels."""


@contextmanager
def matplotlib_style(palette: Palette) -> Iterator[None]:
    """Within this context, matplotlib uses its defaults and this palette; the user's settings come back after."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_style(palette))
        yield


def _style(palette: Palette) -> dict[Any, Any]:
    return {
        "font.family": SANS,
        "text.parse_math": False,  # a `$` in generated text is a `$`
        "font.size": 9,
        "text.hinting": "none",  # unhinted text takes half of the time
        "text.color": palette.ink,
        "figure.facecolor": palette.paper,
        "savefig.facecolor": palette.paper,
        "axes.facecolor": palette.paper,
        "axes.titlesize": 10.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titley": 1.0,
        "axes.titlecolor": palette.ink,
        "axes.labelcolor": palette.quiet,
        "axes.edgecolor": palette.quiet,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": palette.rule,
        "grid.linewidth": 0.6,
        "xtick.color": palette.quiet,
        "ytick.color": palette.quiet,
        "legend.fontsize": 8,
        "legend.framealpha": 0.85,
        "legend.facecolor": palette.paper,
        "legend.edgecolor": palette.paper,
        "legend.labelcolor": palette.ink,
    }


def canvas_to_png(canvas: Any) -> bytes:
    """Return what is drawn on an Agg canvas as a PNG of 256 colours.

    A chart needs no more colours, and the file takes a third of the bytes and half of the time.
    """
    picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    file = io.BytesIO()
    picture.quantize(256, method=Image.Quantize.FASTOCTREE).save(file, "png", compress_level=4)
    return file.getvalue()
