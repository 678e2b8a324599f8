"""A white page to draw on with Pillow, in units that do not depend on how sharp the picture is."""

import io
from functools import cache
from pathlib import Path

import matplotlib
import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont

from minikeye.explore.strip import INK

WIDTH, SCALE = 1000, 1.5  # units across a page, pixels per unit
Units = float | int
PALE = "#c8c8c8"


class Page:
    """`height` units high. Places are (x, y) from the upper left corner."""

    def __init__(self, height: Units):
        self.image = Image.new("RGB", (round(WIDTH * SCALE), round(height * SCALE)), "white")
        self._pen = ImageDraw.Draw(self.image)
        self._areas: list[tuple[Units, Units, Units, Units, int]] = []

    def area(self, x: Units, y: Units, wide: Units, high: Units, number: int) -> None:
        """What is there belongs to that number: see `at`."""
        self._areas.append((x, y, wide, high, number))

    def at(self, x: Units, y: Units) -> int | None:
        """The number of the area that holds a place; None where none does."""
        inside = (a for a in self._areas if a[0] <= x < a[0] + a[2] and a[1] <= y < a[1] + a[3])
        return next((a[-1] for a in inside), None)

    def text(self, x: Units, y: Units, text: str, size: Units = 12.5, bold: bool = False, **style) -> None:
        """style: fill, and anchor as in Pillow; default "la", left and top."""
        style = {"fill": INK, "anchor": "la"} | style
        self._pen.text((x * SCALE, y * SCALE), text, font=font(size, bold), **style)

    def box(self, x: Units, y: Units, wide: Units, high: Units, **style) -> None:
        """style: fill, outline, width as in Pillow. Nothing for an area of less than a pixel."""
        left, top, right, bottom = (round(z * SCALE) for z in (x, y, x + wide, y + high))
        if right > left and bottom > top:
            thick = {"width": max(1, round(style.pop("width") * SCALE))} if "width" in style else {}
            self._pen.rectangle((left, top, right - 1, bottom - 1), **style, **thick)

    def line(self, points: list[tuple[Units, Units]], fill: str, width: Units = 1.0) -> None:
        scaled = [(x * SCALE, y * SCALE) for x, y in points]
        self._pen.line(scaled, fill=fill, width=max(1, round(width * SCALE)), joint="curve")

    def curve(self, x: Units, top: Units, end: Units, bottom: Units, fill: str, width: Units) -> None:
        """From (x, top) down to (end, bottom), upright at both ends."""
        bends = [(n / 16, 3 * (n / 16) ** 2 - 2 * (n / 16) ** 3) for n in range(17)]
        self.line([(x + bend * (end - x), top + n * (bottom - top)) for n, bend in bends], fill, width)

    def stripes(self, x: Units, y: Units, width: Units, height: Units) -> None:
        """White stripes: what is marked differs by more than its colour."""
        for n in range(1, int(height // 4)):
            self.line([(x, y + 4 * n), (x + width, y + 4 * n)], "white", 0.7)

    def tag(self, x: Units, y: Units, text: str, fill: str) -> None:
        """White text on a box of colour, centred on (x, y) but within the page."""
        wide = self.tag_width(text)
        x = min(max(x, wide / 2 + 2), WIDTH - wide / 2 - 2)
        self.box(x - wide / 2, y - 8, wide, 17, fill=fill)
        self.text(x, y, text, bold=True, fill="white", anchor="mm")

    def tag_width(self, text: str) -> float:
        return text_width(text, 12.5, bold=True) + 8

    def paste(self, picture: Image.Image, x: Units, y: Units, width: Units, height: Units, smooth: bool) -> None:
        """`picture`, scaled to width x height."""
        left, top, right, bottom = (round(z * SCALE) for z in (x, y, x + width, y + height))
        kind = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
        self.image.paste(picture.resize((max(1, right - left), max(1, bottom - top)), kind), (left, top))

    def png(self) -> bytes:
        """As a PNG file. Weak compression: it must be there before the next move of a slider."""
        return _png(self.image, compress_level=2)

    def small_png(self, keep: UInt8[np.ndarray, "n 3"]) -> bytes:
        """As a PNG file in 256 colours, a third of the size: to be kept in a notebook. Takes three times as long.

        keep: colours that stay as they are, fewer than 256; the others are those that serve the picture best.
        """
        rest = np.array(self.image.quantize(256 - len(keep)).getpalette()).reshape(-1, 3)[: 256 - len(keep)]
        apart = np.abs(rest[:, None] - keep.astype(int)).max(axis=-1).min(axis=-1) > 8  # Pillow looks no closer
        palette = Image.new("P", (1, 1))
        palette.putpalette([*keep.flatten().tolist(), *rest[apart].flatten().tolist()])
        return _png(self.image.quantize(palette=palette, dither=Image.Dither.NONE), optimize=True)


def _png(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", **options)
    return file.getvalue()


@cache
def font(size: Units, bold: bool) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib, `size` units high."""
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    return ImageFont.truetype(folder / f"DejaVuSans{'-Bold' if bold else ''}.ttf", size * SCALE)


def text_width(text: str, size: Units, bold: bool) -> float:
    return font(size, bold).getlength(text) / SCALE


def wrapped(text: str, width: Units, size: Units, bold: bool) -> list[str]:
    """`text` in lines no longer than `width`."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and text_width(longer, size, bold) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
