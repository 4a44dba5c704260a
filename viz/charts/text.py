"""Text of unknown origin in a picture: made printable, wrapped to the room there is, cut with an ellipsis."""

import functools
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from viz.charts.style import MONO, SANS, Palette
from viz.charts.text_block import LINE, TextBlock, font_of

POINTS = 8.0


@functools.cache
def _drawable() -> frozenset[int]:
    """The code points that both the fonts of the pictures have."""
    fonts = (findfont(FontProperties(family=family)) for family in (MONO, SANS))
    return frozenset.intersection(*(frozenset(FT2Font(font).get_charmap()) for font in fonts))


def printable(text: str) -> str:
    """The text with every character that the font lacks or that steers (control, direction, joiner) as U+FFFD `�`, and
    every letter of a script that is written from right to left.

    Line breaks stay, tabs become four spaces, a combining mark stays on its letter only where one character has both.
    """
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").expandtabs(4)
    drawable = _drawable()
    return "".join(
        c
        if c == "\n"
        or (
            ord(c) in drawable
            and unicodedata.category(c)[0] not in "CM"
            and unicodedata.bidirectional(c) not in ("R", "AL")  # would be drawn from left to right
        )
        else "\N{REPLACEMENT CHARACTER}"
        for c in text
    )


def wrap(text: str, columns: int, lines: int) -> list[str]:
    """Printable text as at most `lines` lines of at most `columns` characters; `…` ends it where something is left out.

    Breaks after a space if there is one in the last half of a line, else anywhere; keeps the text's own line breaks.
    """
    wrapped: list[str] = []
    for line in re.sub(r"\n\s*\n", "\n", text.strip("\n")).split("\n"):
        rest = line.rstrip()
        while len(rest) > columns:
            space = rest.rfind(" ", columns // 2, columns + 1)
            cut = space + 1 if space >= 0 else columns
            wrapped.append(rest[:cut].rstrip())
            rest = rest[cut:]
        wrapped.append(rest)
        if len(wrapped) > lines:
            return [*wrapped[: lines - 1], wrapped[lines - 1][: columns - 1] + "…"]
    return wrapped


def shorten_to_width(
    artist: Text | TextBlock, head: str, tail: str, width: float, renderer: Any, before: str = ""
) -> None:
    """Set an artist's text to `before` + `head` + `tail`, at most `width` pixels: `head` is cut, with an ellipsis."""
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
    """A part of a text panel: its name, its colour, its share of the lines, and the text (None: not recorded)."""

    name: str
    colour: str
    share: int
    body: str | None


def fill_text_panel(axes: Any, sections: Sequence[Section], palette: Palette) -> None:
    """Write sections into axes that are laid out, one below the other. What one doesn't need, the next ones may use."""
    columns, lines, height = _room(axes)
    lines -= 2 * len(sections)  # each one's name, and an empty line after it
    shares = sum(section.share for section in sections)
    spare, down = lines - sum(lines * section.share // shares for section in sections), 0.5
    lost = any(printable(section.body or "").count("�") > (section.body or "").count("�") for section in sections)
    for section in sections:
        room = max(1, lines * section.share // shares + spare)
        empty = "(not recorded)" if section.body is None else "(nothing)"
        text = wrap(printable(section.body), columns, room) if section.body else [empty]
        spare = max(0, room - len(text))
        name = f"{section.name}  (�: not in this font)" if lost and section is sections[0] else section.name
        _write(axes, [name], down * height, section.colour, "bold")
        _write(axes, text, (down + 1) * height, palette.ink, "normal")
        down += 1.7 + len(text)


def write_quietly(axes: Any, lines: Sequence[str], palette: Palette) -> None:
    """Lines of printable text, each cut to the width of axes that are laid out; those for which there is room."""
    columns, room, height = _room(axes)
    cut = [line if len(line) <= columns else line[: columns - 1] + "…" for line in lines[: max(1, room)]]
    _write(axes, cut, 0.15 * height, palette.ink if len(lines) > 1 else palette.quiet, "normal")


def _room(axes: Any) -> tuple[int, int, float]:
    """Characters in a line, lines, and the height of a line as a share of the axes."""
    box, font = axes.get_window_extent(), font_of(MONO, POINTS * axes.figure.dpi / 72)
    height = LINE * font.size
    return int(box.width / font.getlength("M")), int(box.height / height), height / box.height


def _write(axes: Any, lines: Sequence[str], down: float, colour: str, weight: str) -> None:
    """Lines below each other, from a share of the axes below their top on: one artist, and one only."""
    block = TextBlock(
        (0, 1 - down), "\n".join(lines), axes.transAxes, colour, POINTS, family=MONO, bold=weight == "bold"
    )
    axes.add_artist(block)
    block.set_clip_on(False)
