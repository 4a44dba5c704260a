"""Untrusted text in an image: made printable, wrapped to the available space, cut with an ellipsis."""

import functools
import re
import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from viz.charts.style import MONO, SANS, Palette

POINTS = 8.0
LINE = 1.3
"""The height of a line, in font sizes."""
BASELINE = 0.93
"""From the top of a line to the baseline of its text, in font sizes."""


@functools.cache
def _drawable() -> frozenset[int]:
    """Return the code points that both fonts of the images have."""
    fonts = (findfont(FontProperties(family=family)) for family in (MONO, SANS))
    return frozenset.intersection(*(frozenset(FT2Font(font).get_charmap()) for font in fonts))


def printable(text: str) -> str:
    """Replace by U+FFFD `�` what can't be drawn as it is meant.

    That is every character that the fonts lack, every control, direction and joining character, every letter of a
    script written from right to left, and every combining mark that has no single character together with its letter.
    Line breaks stay; tabs become spaces.
    """
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").expandtabs(4)
    drawable = _drawable()
    return "".join(
        c
        if c == "\n"
        or (
            ord(c) in drawable
            and unicodedata.category(c)[0] not in "CM"
            and unicodedata.bidirectional(c) not in ("R", "AL")  # matplotlib would draw it from left to right
        )
        else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )


def wrap(text: str, columns: int, lines: int) -> list[str]:
    """Wrap printable text to at most `lines` lines of `columns` characters; `…` at the end shows that it was cut.

    Line breaks and indentation of the text stay; empty lines are removed.
    """
    wrapped: list[str] = []
    for line in re.sub(r"\n\s*\n", "\n", text.strip("\n")).split("\n"):
        wrapped += textwrap.wrap(line, columns, break_on_hyphens=False) or [""]
        if len(wrapped) > lines:
            return [*wrapped[: lines - 1], wrapped[lines - 1][: columns - 1] + "…"]
    return wrapped


def shorten_to_width(artist: Text, head: str, tail: str, width: float, renderer: Any, before: str = "") -> None:
    """Set the artist's text to `before + head + tail`; cut `head`, with an ellipsis, so that it fits `width` pixels."""
    head = head.replace("\n", " ")
    kept = len(head)
    while True:
        artist.set_text(before + (head if kept == len(head) else head[:kept] + "…") + tail)
        found = artist.get_window_extent(renderer).width
        if found <= width or kept == 0:
            return
        kept = max(0, min(kept - 1, int(kept * width / found)))


@dataclass(frozen=True)
class Section:
    """A part of a text panel: name, colour, share of the lines, and text (None: not recorded)."""

    name: str
    colour: str
    share: int
    body: str | None


def fill_text_panel(axes: Any, sections: Sequence[Section], palette: Palette) -> None:
    """Write sections into axes that are laid out, one below the other. Lines that one leaves free go to the next."""
    columns, lines = _capacity(axes)
    lines -= 2 * len(sections)  # each one's name, and an empty line after it
    shares = sum(section.share for section in sections)
    spare, down = lines - sum(lines * section.share // shares for section in sections), 0.5
    lost = any(printable(section.body or "").count("�") > (section.body or "").count("�") for section in sections)
    for section in sections:
        room = max(1, lines * section.share // shares + spare)
        empty = "(not recorded)" if section.body is None else "(empty)"
        text = wrap(printable(section.body), columns, room) if section.body else [empty]
        spare = max(0, room - len(text))
        name = f"{section.name}  (�: not in this font)" if lost and section is sections[0] else section.name
        _write(axes, [name], down, section.colour, "bold")
        _write(axes, text, down + 1, palette.ink, "normal")
        down += 1.7 + len(text)


def write_lines(axes: Any, lines: Sequence[str], palette: Palette) -> None:
    """Write as many lines of printable text as fit into axes that are laid out, each cut to their width."""
    columns, room = _capacity(axes)
    cut = [line if len(line) <= columns else line[: columns - 1] + "…" for line in lines[: max(1, room)]]
    _write(axes, cut, 0.15, palette.ink if len(lines) > 1 else palette.quiet, "normal")


def _capacity(axes: Any) -> tuple[int, int]:
    """Return how many characters fit into a line, and how many lines into axes that are laid out."""
    box, font = axes.get_window_extent(), FontProperties(family=MONO, size=POINTS)
    width, *_ = axes.figure.canvas.get_renderer().get_text_width_height_descent("M" * 100, font, ismath=False)
    return int(100 * box.width / width), int(box.height / _pitch(axes))


def _pitch(axes: Any) -> float:
    """Return the height of a line in pixels."""
    dpi: float = axes.figure.dpi
    return LINE * POINTS * dpi / 72


def _write(axes: Any, lines: Sequence[str], down: float, colour: str, weight: str) -> None:
    """Write lines, the first `down` lines below the top of the axes.

    Each line is a separate artist: within one artist, a line with a tall letter pushes down those below it.
    """
    pitch = _pitch(axes) / axes.get_window_extent().height
    for number, line in enumerate(lines):
        if line:
            place = 1 - (down + number + BASELINE) * pitch
            axes.text(0, place, line, transform=axes.transAxes, color=colour, family=MONO, size=POINTS, weight=weight)
