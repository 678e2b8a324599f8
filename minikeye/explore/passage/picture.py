"""The lines of a passage that are read most, as a picture: for notebooks that are looked at without a kernel.

Axes: p piece.
"""

from itertools import pairwise

import numpy as np
from jaxtyping import UInt8

from minikeye.explore.figures import bundle
from minikeye.explore.passage.counts import PassageCounts, Rows
from minikeye.explore.passage.shades import COLOURS, THICK, levels
from minikeye.explore.passage.words import Line, alt, heading, lines, most_read, reads_all
from minikeye.explore.strip import ACCENT, INK, SOFT, printable
from minikeye.explore.widget.page import WIDTH, Page, text_width, wrapped
from minikeye.explore.words import percent

SHOWN, AT_MOST = 8, 14  # lines that are read most; lines in all, those of the truth counted
ROW, SIZE = 22, 13  # units: height of a line, of its letters
TEXT, COLUMNS = 62, 210  # units: where text begins, room for the numbers at its right
UNDERLINE = "#0072b2"


def draw(s: PassageCounts, layer: Rows = None, query: Rows = None, head: int | None = None) -> Page:
    """The most-read lines and those of the truth, in order, each token shaded. Raises ValueError as `words.lines`."""
    shown = chosen_lines(s, layer, query, head)
    title = wrapped(printable(f"{heading(s, layer, query, head)}."), WIDTH - 20, 15, bold=True)
    gaps = sum(after.number > before.number + 1 for before, after in pairwise(shown))
    top = 12 + 21 * len(title) + 24
    page = Page(top + ROW * (len(shown) + gaps) + 34)
    for n, line in enumerate(title):
        page.text(10, 8 + 21 * n, line, size=15, bold=True)
    right = "attention" if head is None else ""
    page.text(WIDTH - 110, top - 20, "keys (chance)", fill=SOFT, anchor="ra")
    page.text(WIDTH - 10, top - 20, right, fill=SOFT, anchor="ra")
    found, y, before = levels(s, layer, query, head).tolist(), top, None
    for line in shown:
        if before is not None and line.number > before + 1:
            page.text(TEXT, y, "…", fill=SOFT)
            y += ROW
        _draw_line(page, s, line, found, y)
        y, before = y + ROW, line.number
    by = "attention" if reads_all(s, layer, query) and head is None else "share of layers and queries that select it"
    page.text(10, y + 10, f"A token's shade and underline: {by}; from none to", fill=SOFT)
    x = 14 + text_width(f"A token's shade and underline: {by}; from none to", 12.5, False)
    for level in range(len(COLOURS)):
        _draw_shade(page, x + 14 * level, y + 8, 13, level)
    page.text(x + 14 * len(COLOURS) + 6, y + 10, "most" if by == "attention" else "all", fill=SOFT)
    return page


def chosen_lines(s: PassageCounts, layer: Rows = None, query: Rows = None, head: int | None = None) -> list[Line]:
    """The lines that are shown, in order: those read most, and those of the truth; the first where none is read."""
    everything = lines(s, layer, query, head)
    truth = [line for line in everything if line.truth][: AT_MOST - SHOWN]
    wanted = {line.number for line in [*most_read(s, SHOWN, layer, query, head), *truth]}
    return [line for line in everything if line.number in wanted] or everything[:SHOWN]


def png(s: PassageCounts, layer: Rows = None, query: Rows = None, head: int | None = None) -> bytes:
    """The picture as a PNG file, 1,500 pixels wide."""
    return draw(s, layer, query, head).png()


def show(s: PassageCounts, layer: Rows = None, query: Rows = None, head: int | None = None) -> None:
    """In a notebook: the picture, its words below and as alt text. It stays without a kernel."""
    from IPython.display import publish_display_data  # only notebooks call it

    said = alt(s, layer, query, head)
    picture = draw(s, layer, query, head).small_png(keep=palette())
    publish_display_data(bundle(picture, said), {"image/png": {"alt": said}})


def palette() -> UInt8[np.ndarray, "n 3"]:
    """What is drawn with, for `Page.small_png`."""
    greys = np.linspace(0, 255, 18).round()[:, None].repeat(3, axis=1)
    return np.concatenate([np.array(COLOURS), greys, [[0, 114, 178], [213, 94, 0]]]).astype(np.uint8)


def _draw_line(page: Page, s: PassageCounts, line: Line, found: list[int], y: float | int) -> None:
    """Number, tokens as far as there is room, numbers; a line of the truth in a frame, with a mark."""
    page.text(TEXT - 12, y, f"{line.number}", fill=SOFT, anchor="ra")
    x, room = float(TEXT), WIDTH - COLUMNS
    for n in range(line.first, line.stop):
        text = printable(s.pieces[n].split("\n")[0].replace("\t", "    ").replace("\r", ""))
        width = text_width(text, SIZE, False)
        if x + width > room - 14:
            page.text(x, y, "…", fill=SOFT)
            break
        _draw_shade(page, x, y - 2, width, found[n])
        page.text(x, y, text, size=SIZE)
        x += width
    if line.truth:
        page.box(TEXT - 3, y - 4, room - TEXT + 3, ROW - 1, outline=ACCENT, width=2)
        page.text(8, y, "▸", fill=INK, bold=True)
    page.text(WIDTH - 110, y, f"{percent(line.keys)} ({percent(line.chance)})", anchor="ra")
    if line.attention is not None:
        page.text(WIDTH - 10, y, percent(line.attention), anchor="ra")


def _draw_shade(page: Page, x: float | int, y: float | int, width: float | int, level: int) -> None:
    page.box(x, y, width, 17, fill=COLOURS[level])
    if THICK[level]:
        page.box(x, y + 17 - THICK[level] * 0.75, width, THICK[level] * 0.75, fill=UNDERLINE)
