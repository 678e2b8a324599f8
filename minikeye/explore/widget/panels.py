"""The explorer's picture, drawn straight into pixels: matplotlib would take most of a second for each move of a slider.

From top to bottom: settings, filmstrip, heat map of layers by frames, bars of the chosen layer, two gauges.
Axes: l recorded layer, f frame, n column (one frame, or the strongest of several where there are too many to see).
"""

from dataclasses import dataclass, replace
from functools import cache

import matplotlib
import numpy as np
from jaxtyping import Float64, UInt8
from PIL import Image, ImageColor

from minikeye.explore.figures import PALETTE
from minikeye.explore.layout import choose_frames, columns, runs, spread, time_ticks
from minikeye.explore.selection import FrameCounts
from minikeye.explore.strip import ACCENT, COLOURS, GAMMA, INK, SOFT, printable
from minikeye.explore.widget.page import PALE, WIDTH, Page, Units, text_width, wrapped
from minikeye.explore.widget.view import View, asked, check, heading
from minikeye.explore.words import percent, when

LEFT, RIGHT = 84, 84  # margins: numbers of the layers on the left, what each of them keeps on the right
SLOT, THUMB = 92, 76  # a thumbnail's place, its greatest height
LEADERS = 40  # height of the lines between thumbnails and heat map
BARS = 60  # height of the bars, each way
FAINT = "#9a9a9a"  # what belongs to frames that are not read most
KEYS, ATTENTION = PALETTE["blue"], PALETTE["orange"]


def draw(selection: FrameCounts, view: View) -> Page:
    """The picture of one layer's selection among all layers, of the view's frames.

    `Page.at` tells which frame a place of it belongs to, in the film strip, the heat map and the bars.
    Raises ValueError where view and selection do not fit.
    """
    check(selection, view)
    s = cut(selection, view.first, view.last)
    share = s.shown[:, 0].double().numpy()  # [l f]
    time = Time(share.shape[1], columns(share)[1])
    shown = _worth_showing(s, view.layer, int(time.inner // _slot(s))) if s.thumbnails is not None else []
    title = wrapped(printable(heading(selection, view)), time.inner, 15, bold=True)
    asking = [wrapped(printable(line), time.inner, 12.5, bold=False) for line in asked(selection)]
    above = 12 + 18 * sum(map(len, asking))
    rows = float(np.clip(160 / len(share), 7, 24)) * len(share)
    head = above + 2 + 21 * len(title) + 30
    heat = head + (_thumbnail(s, len(shown), time)[1] + 36 if shown else 0) + LEADERS
    bars = heat + rows + 12
    page = Page(bars + 2 * BARS + 106)
    for n, line in enumerate(line for lines in asking for line in lines):
        page.text(LEFT, 12 + 18 * n, line, fill=SOFT)
    for n, line in enumerate(title):
        page.text(LEFT, above + 21 * n, line, size=15, bold=True)
    _draw_scale(page, above + 8 + 21 * len(title), share.max(), "attention" if s.reads_all else "keys")
    _draw_film(page, s, view.layer, shown, time, head, heat, view.first)
    _draw_heat(page, s, view.layer, time, heat, rows)
    _draw_unseen(page, time.edge(max(0, view.query.sees - view.first)), time, heat, rows)
    _draw_bars(page, s, view.layer, time, bars)
    _draw_gauges(page, selection, s, view.layer, bars + 2 * BARS + 62)
    strongest = columns(s.counts[view.layer, 0].double().numpy())[0]
    for n in range(len(strongest)):  # of a column of several frames, the one with most keys
        of_column = s.counts[view.layer, 0, n * time.step : (n + 1) * time.step]
        left, width = time.column(n * time.step)
        page.area(left, heat, width, bars + 2 * BARS - heat, view.first + n * time.step + int(of_column.argmax()))
    return page


@dataclass(frozen=True)
class Time:
    """Where frames stand on the page, from left to right."""

    frames: int
    step: int  # frames per column
    inner: float = float(WIDTH - LEFT - RIGHT)

    def edge(self, frame: Units) -> float:
        """Left edge of a frame."""
        return LEFT + min(frame, self.frames) / self.frames * self.inner

    def column(self, frame: int) -> tuple[float, float]:
        """Left edge and width of the column that a frame is in."""
        first = frame // self.step * self.step
        return self.edge(first), self.edge(first + self.step) - self.edge(first)

    def middle(self, frame: int) -> float:
        left, width = self.column(frame)
        return left + width / 2


def cut(s: FrameCounts, first: int, last: int) -> FrameCounts:
    """Only these frames; `keys`, and so the shares, stay those of the whole selection."""
    part = slice(first, last + 1)
    pictures = None if s.thumbnails is None else s.thumbnails[part]
    truth = tuple(n - first for n in s.truth if first <= n <= last)
    rest = {"seconds": s.seconds[part], "videos": s.videos[part], "truth": truth, "thumbnails": pictures}
    return replace(s, counts=s.counts[..., part], mass=s.mass[..., part], **rest)


@cache
def colours(count: int = 256) -> UInt8[np.ndarray, "n 3"]:
    """RGB colours of the heat map, dark to light."""
    return (matplotlib.colormaps[COLOURS](np.linspace(0, 1, count))[:, :3] * 255).round().astype(np.uint8)


def palette() -> UInt8[np.ndarray, "n 3"]:
    """What is drawn with: the heat map's colours, greys, and those that mean something. For `Page.small_png`."""
    greys = np.linspace(0, 255, 18).round()[:, None].repeat(3, axis=1)
    rest = [ImageColor.getrgb(colour) for colour in (KEYS, ATTENTION, ACCENT, PALETTE["sky"])]
    return np.concatenate([colours(64), greys, rest]).astype(np.uint8)


def _draw_scale(page: Page, y: Units, top: Units, what: str) -> None:
    """What colours mean: lighter is more."""
    left, width = WIDTH - RIGHT - 190, 190
    shades = np.linspace(0, 1, 190) ** GAMMA
    page.paste(_picture(shades[None]), left, y, width, 9, smooth=False)
    page.text(left - 8, y + 4, f"share of the layer's {what}   0", fill=SOFT, anchor="rm")
    page.text(left + width + 8, y + 4, percent(top), fill=SOFT, anchor="lm")


def _picture(values: Float64[np.ndarray, "l n"]) -> Image.Image:
    """Values from 0 to 1 as colours."""
    return Image.fromarray(colours()[(values * 255).round().astype(np.uint8)])


def _thumbnail(s: FrameCounts, count: int, time: Time) -> tuple[float, float]:
    """Width and height of one of `count` thumbnails."""
    high, wide = s.thumbnails.shape[-2:]
    width = min(time.inner / max(count, 5) - 8, THUMB * wide / high)
    return width, width * high / wide


def _slot(s: FrameCounts) -> float:
    """Width of a thumbnail's place: the longest time fits above it."""
    long = max((_time(s, frame) for frame in range(len(s.seconds))), key=len)
    return max(float(SLOT), text_width(long, 12.5, bold=True) + 16.0)


def _time(s: FrameCounts, frame: int) -> str:
    return when(s, frame).replace(" of video ", " v")


def _worth_showing(s: FrameCounts, layer: int, count: int) -> list[int]:
    """All frames where there is room, else the peaks, truth, frames with many keys or much attention, some between."""
    if len(s.seconds) <= count:
        return list(range(len(s.seconds)))
    parts = [x[layer, 0].double().numpy() for x in (s.counts, s.mass)]
    peaks = _peaks(s, layer)
    others = choose_frames(sum(x / (x.max() or 1.0) for x in parts), s.truth, count - len(peaks))
    return sorted({*peaks, *others})


def _peaks(s: FrameCounts, layer: int) -> set[int]:
    """The frame with most keys (of several, that with most attention) and the one with most attention, if any."""
    keys, mass = s.counts[layer, 0].tolist(), s.mass[layer, 0].tolist()
    both = max(range(len(keys)), key=lambda f: (keys[f], mass[f])), max(range(len(keys)), key=lambda f: mass[f])
    return {f for f in both if keys[f]}


def _draw_film(
    page: Page, s: FrameCounts, layer: int, shown: list[int], time: Time, top: Units, end: Units, before: int
) -> None:
    """Thumbnails with time and number of keys, a line from each to its column; a tag on each run of truth.

    before: frames of the selection that stand before the first one here.
    """
    counts, name, peaks = s.counts[layer, 0].tolist(), printable(s.subject or "answer"), _peaks(s, layer)
    foot, tags = end - LEADERS, [(time.middle((first + last) // 2), end - 18) for first, last in runs(s.truth)]
    if shown:
        width, height = _thumbnail(s, len(shown), time)
        slot = max(width, _slot(s) - 8.0)
        middles = (spread([time.middle(f) - LEFT for f in shown], slot, 8.0, time.inner) + LEFT).tolist()
        tags = [(middles[(first + last) // 2], foot + 3) for first, last in runs(_marked(shown, s.truth))]
    for frame, middle in zip(shown, middles if shown else [], strict=True):
        real, much = frame in s.truth, frame in peaks
        colour, edge = (ACCENT, 2.6) if real else (INK, 1.6) if much else (FAINT, 0.8)
        page.area(middle - slot / 2, top, slot, foot - top, before + frame)
        page.text(middle - slot / 2, top, _time(s, frame), bold=real or much)
        read = f"{counts[frame] or 'no'} key{'s' * (counts[frame] != 1)}"
        if s.reads_all:
            read = percent(s.mass[layer, 0, frame].item())
        page.text(middle - slot / 2, top + 16, read, fill=INK if counts[frame] else SOFT)
        picture = Image.fromarray(s.thumbnails[frame].permute(1, 2, 0).numpy())
        page.paste(picture, middle - width / 2, foot - height, width, height, smooth=True)
        page.box(middle - width / 2, foot - height, width, height, outline=colour, width=edge)
        page.curve(middle, foot, time.middle(frame), end - 6, colour, edge / 1.6)
    free = 0.0
    for x, y in tags:  # a tag that would lie over the one before is left out: the orange says the same
        if x - page.tag_width(name) / 2 > free:
            page.tag(x, y, name, ACCENT)
            free = x + page.tag_width(name) / 2


def _marked(shown: list[int], truth: tuple[int, ...]) -> tuple[int, ...]:
    """Numbers of those thumbnails that show truth."""
    return tuple(n for n, frame in enumerate(shown) if frame in truth)


def _draw_heat(page: Page, s: FrameCounts, layer: int, time: Time, top: Units, high: Units) -> None:
    """Layers by frames, first layer on top; the chosen one framed, truth bracketed; on the right what a layer keeps."""
    share = s.shown[:, 0].double().numpy()
    cells = columns(share)[0] / (share.max() or 1.0)
    page.paste(_picture(cells**GAMMA), LEFT, top, time.inner, high, smooth=False)
    row = high / len(share)
    every = next(n for n in (1, 2, 4, 8, 16, 32) if row * n >= 15)
    for n in range(len(share)):
        if n != layer and (n % every or abs(n - layer) * row < 15):
            continue
        style = {"bold": n == layer, "anchor": "rm"}
        page.text(LEFT - 8, top + (n + 0.5) * row, f"{'▸ ' * (n == layer)}{s.layers[n]}", **style)
        style = {"bold": n == layer, "anchor": "lm", "fill": INK if n == layer else SOFT}
        page.text(LEFT + time.inner + 8, top + (n + 0.5) * row, percent(s.kept[n, 0].item()), **style)
    page.text(LEFT - 8, top - 6, "layer", fill=SOFT, anchor="rb")
    page.text(LEFT + time.inner + 8, top - 6, "kept", fill=SOFT, anchor="lb")
    page.box(LEFT - 2, top + layer * row - 2, time.inner + 4, row + 4, outline=INK, width=2)
    page.box(LEFT, top + layer * row, time.inner, row, outline="white", width=1)
    for first, last in runs(s.truth):
        left = time.column(first)[0]
        width = max(4.0, sum(time.column(last)) - left)
        page.box(left, top - 5, width, 4, fill=ACCENT)
        page.box(left, top + high + 2, width, 4, fill=ACCENT)


def _draw_unseen(page: Page, left: Units, time: Time, top: Units, high: Units) -> None:
    """Grey over the frames that stand after the query in the prompt."""
    width = LEFT + time.inner - left
    page.box(left, top, width, high, fill="#e4e4e4")
    if width > 170:
        page.text(left + width / 2, top + high / 2, "after the query: unseen", fill=SOFT, anchor="mm")


def _draw_bars(page: Page, s: FrameCounts, layer: int, time: Time, top: Units) -> None:
    """The chosen layer over time: keys upwards, attention downwards, each to its own scale; truth striped."""
    middle = top + BARS
    for values, colour, name, sign in (
        (s.shares[layer, 0].double().numpy(), KEYS, "keys", -1),
        (s.mass[layer, 0].double().numpy(), ATTENTION, "attention", 1),
    ):
        page.text(LEFT - 8, middle + sign * BARS / 2, name, fill=SOFT, anchor="rm")
        if s.reads_all and sign < 0:
            page.text(LEFT, middle - 14, "every key is read: nothing is selected", fill=SOFT, anchor="lm")
            continue
        cells, most = columns(values)[0], values.max()
        for n in np.flatnonzero(cells).tolist():
            left, width = time.column(n * time.step)
            long = (BARS - 4) * cells[n] / most
            real = any(frame // time.step == n for frame in s.truth)
            gap = 0.15 * width if width > 5 else 0.0
            place = (left + gap / 2, middle - long if sign < 0 else middle + 1, width - gap, long)
            page.box(*place, fill=ACCENT if real else colour)
            if real:
                page.stripes(*place)
        page.text(LEFT + time.inner + 8, middle + sign * (BARS - 12), percent(most), fill=SOFT, anchor="lm")
        page.line([(LEFT, middle + sign * (BARS - 4)), (LEFT + time.inner, middle + sign * (BARS - 4))], PALE, 0.7)
    page.line([(LEFT, middle), (LEFT + time.inner, middle)], INK, 1.2)
    bottom = top + 2 * BARS
    places, names, unit = time_ticks(s)
    for place, tick in zip(places, names, strict=True):
        x = time.edge(place + 0.5)
        page.line([(x, bottom), (x, bottom + 4)], SOFT)
        page.text(x, bottom + 7, tick, anchor="ma")
    more = f"; each column is the strongest of {time.step} frames" if time.step > 1 else ""
    page.text(LEFT + time.inner / 2, bottom + 25, unit + more, fill=SOFT, anchor="ma")


def _draw_gauges(page: Page, whole: FrameCounts, s: FrameCounts, layer: int, top: Units) -> None:
    """Where the layer's keys lie, and how much of the dense attention they hold."""
    keys = int(s.keys[layer, 0])
    inside, all_frames = int(s.counts[layer, 0].sum()), int(whole.counts[layer, 0].sum())
    parts = [(inside, KEYS, "in the frames shown"), (all_frames - inside, PALETTE["sky"], "in other frames")]
    parts.append((keys - all_frames, PALE, "in no frame"))
    words = ", ".join(f"{n} {where}" for n, _, where in parts if n or where != "in other frames")
    kept = s.kept[layer, 0].item()
    held = [(kept, ATTENTION), (1 - kept, "white")]
    _draw_gauge(page, LEFT, top, 510, [(n / max(keys, 1), c) for n, c, _ in parts], f"{keys} keys: {words}")
    _draw_gauge(page, LEFT + 540, top, 292, held, f"dense attention held by these keys: {percent(kept)}")


def _draw_gauge(page: Page, x: Units, y: Units, width: Units, parts: list[tuple[float, str]], words: str) -> None:
    page.text(x, y, words)
    at = x
    for share, colour in parts:
        page.box(at, y + 19, share * width, 10, fill=colour)
        at += share * width
    page.box(x, y + 19, width, 10, outline=SOFT, width=1)
