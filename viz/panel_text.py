"""Text of unknown origin in a picture: made printable, wrapped to the room there is, cut with an ellipsis."""

import functools
import re
import unicodedata
from collections.abc import Mapping
from typing import Any

from matplotlib.font_manager import FontProperties, findfont
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

FAMILY, POINTS = "DejaVu Sans Mono", 8.0
INK, GREY = "#22272e", "#6b7280"
SECTIONS = (("prompt", "#6b7280", 1), ("the model goes on", "#d1590a", 3), ("the document goes on", "#0b5fa5", 3))


@functools.cache
def _drawable() -> frozenset[int]:
    """The code points that both the fonts of the pictures have."""
    fonts = (findfont(FontProperties(family=family)) for family in (FAMILY, "DejaVu Sans"))
    return frozenset.intersection(*(frozenset(FT2Font(font).get_charmap()) for font in fonts))


def printable(text: str) -> str:
    """The text with every character that the font lacks or that steers (control, direction, joiner) as U+FFFD `�`.

    Line breaks stay, tabs become four spaces, a combining mark stays on its letter only where one character has both.
    """
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").expandtabs(4)
    drawable = _drawable()
    return "".join(
        c
        if c == "\n" or (ord(c) in drawable and unicodedata.category(c)[0] not in "CM")
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


def shorten_to_width(artist: Text, head: str, tail: str, width: float, renderer: Any) -> None:
    """Set an artist's text to `head` + `tail`, at most `width` pixels wide: `head` is cut, with an ellipsis."""
    head = head.replace("\n", " ")
    kept = len(head)
    while True:
        artist.set_text((head if kept == len(head) else head[:kept] + "…") + tail)
        found = artist.get_window_extent(renderer).width
        if found <= width or kept == 0:
            return
        kept = max(0, min(kept - 1, int(kept * width / found)))


def fill_text_panel(axes: Any, sample: Mapping[str, Any] | None) -> None:
    """Write a row of `text_samples` into axes that are laid out: the prompt, the model's words, the document's."""
    axes.set_title("Latest generation" if sample is None else f"Latest generation, step {sample['step']:,}")
    if sample is None:
        axes.text(
            0.5, 0.5, "no generation yet", transform=axes.transAxes, ha="center", va="center", color=GREY, fontsize=10
        )
        return
    output = f"(failed: {sample['error']})" if sample.get("error") else sample.get("output")
    bodies = (sample.get("prompt") or sample.get("input"), output, sample.get("reference"))
    box = axes.get_window_extent()
    size = POINTS * axes.figure.dpi / 72  # pixels
    columns, height = int(box.width / (0.603 * size)), 1.3 * size
    lines = int(box.height / height) - len(SECTIONS) * 2  # each section: its name, and an empty line after it
    shares = sum(share for _, _, share in SECTIONS)
    spare, down = lines - sum(lines * share // shares for _, _, share in SECTIONS), 0.5
    for (name, colour, share), body in zip(SECTIONS, bodies, strict=True):
        room = max(1, lines * share // shares + spare)
        text = wrap(printable(body), columns, room) if body else ["(not recorded)" if body is None else "(nothing)"]
        spare = max(0, room - len(text))
        for line, weight, tint in [(name, "bold", colour), *((line, "normal", INK) for line in text)]:
            axes.text(
                0, 1 - down * height / box.height, line, transform=axes.transAxes, va="top", color=tint,
                fontsize=POINTS, family=FAMILY, fontweight=weight,
            )  # fmt: skip
            down += 1
        down += 0.7
