"""Lines of text as one image: matplotlib draws text glyph by glyph from Python, which took half of a chart's time."""

import functools
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.colors import to_rgb
from matplotlib.font_manager import FontProperties, findfont
from matplotlib.transforms import Bbox, Transform
from PIL import Image, ImageDraw, ImageFont

from viz.charts.style import SANS

LINE = 1.3  # height of a line, in its font size


class TextBlock(Artist):
    """Printable text at a place of a figure or of axes, left-aligned; drawn by Pillow, with the font of matplotlib."""

    def __init__(
        self,
        place: tuple[float, float],
        text: str,
        transform: Transform,
        colour: str,
        points: float,
        *,
        family: str = SANS,
        bold: bool = False,
        middle: bool = False,
    ) -> None:
        """`place`: of the upper left corner, or with `middle` of the middle of the left edge, by `transform`."""
        super().__init__()
        self._place, self._text, self._colour, self._points = place, text, colour, points
        self._family, self._bold, self._middle = family, bold, middle
        self.set_transform(transform)
        self.set_zorder(8)

    def get_text(self) -> str:
        return self._text

    def set_text(self, text: str) -> None:
        self._text = text

    def _font(self) -> ImageFont.FreeTypeFont:
        figure: Any = self.get_figure(root=True)
        return font_of(self._family, self._points * figure.dpi / 72, self._bold)

    def _height(self) -> float:
        """Of a line, in pixels."""
        return LINE * self._font().size

    def get_window_extent(self, renderer: Any = None) -> Bbox:
        """In pixels from the lower left corner of the figure."""
        font, lines = self._font(), self._text.split("\n")
        left, top = self.get_transform().transform(self._place)
        height = self._height() * len(lines)
        top += height / 2 if self._middle else 0
        return Bbox.from_extents(left, top - height, left + max(map(font.getlength, lines)), top)

    def draw(self, renderer: Any) -> None:
        if not self.get_visible() or not self._text.strip():
            return
        box, font = self.get_window_extent(), self._font()
        size = int(box.width) + 4, int(box.height) + 4
        ink = Image.new("L", size)
        pen = ImageDraw.Draw(ink)
        for number, line in enumerate(self._text.split("\n")):
            pen.text((0, (number + 0.5) * self._height()), line, fill=255, font=font, anchor="lm")
        picture = np.empty((size[1], size[0], 4), np.uint8)
        picture[..., :3] = np.round(255 * np.array(to_rgb(self._colour)))
        picture[..., 3] = np.asarray(ink)
        renderer.draw_image(renderer.new_gc(), round(box.x0), round(box.y1) - size[1], picture[::-1])


@functools.cache
def font_of(family: str, pixels: float, bold: bool = False) -> ImageFont.FreeTypeFont:
    """A font that matplotlib brings along, as Pillow knows it."""
    path = findfont(FontProperties(family=family, weight="bold" if bold else "normal"))
    return ImageFont.truetype(path, pixels, layout_engine=ImageFont.Layout.BASIC)
