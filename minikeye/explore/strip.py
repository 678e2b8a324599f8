"""The picture of a FrameCounts: a filmstrip, lines to the columns of a layers-by-frames heat map, bars below.

Lengths are in inches; at 100 dots per inch the default width is 1,000 pixels.
Axes: l recorded layer, f frame, n column (one frame, or the strongest of several where there are too many to see).
"""

import textwrap

import matplotlib.style
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.image import AxesImage
from matplotlib.patches import PathPatch, Rectangle
from matplotlib.path import Path as Curve
from matplotlib.textpath import TextPath

from minikeye.explore.figures import PALETTE
from minikeye.explore.layout import choose_frames, columns, round_number, runs, scale_ticks, spread, time_ticks
from minikeye.explore.selection import FrameCounts
from minikeye.explore.words import finding, percent, when

LEFT, RIGHT, TOP, BOTTOM = 0.7, 0.2, 0.14, 0.5  # margins around the heat map
LINE = 0.27  # height of a line of the title
LEGEND = 0.56  # height of the two lines of the subtitle, with the colour bar beside them
LEADERS = 0.5  # height of the lines between filmstrip and heat map
BARS, GAP = 0.8, 0.13  # height of the bars, gap above them
GUTTER = 0.1  # between thumbnails
SLOT = 0.8  # least width of a thumbnail's place
COLOURS = "viridis"  # perceptually even, colour-blind safe, and clearer than cividis in the middle of the range
GAMMA = 0.6  # our choice: colour = share ** 0.6, so that weak frames stay visible beside one that takes most
INK, SOFT, ACCENT = "#1a1a1a", "#6b6b6b", PALETTE["vermilion"]
MEASURES = {"keys": "share of the selected keys", "attention": "share of the attention"}


def draw(selection: FrameCounts, width: float | int = 10.0, measure: str | None = None) -> Figure:
    """A figure `width` inches wide; its height follows from the layers and the thumbnails.

    measure: "keys" colours by share of the selected keys, "attention" by attention mass; both are means over queries.
    None takes the keys, or the attention where every key is read: shares of the keys would then be a plain wall.
    Raises ValueError for another measure or a width below 7 inches.
    """
    measure = measure or ("attention" if selection.reads_all else "keys")
    if measure not in MEASURES or width < 7:
        raise ValueError(f"expected a measure of {sorted(MEASURES)} and a width >= 7, got {measure!r} and {width}")
    width = float(width)
    values = (selection.shares if measure == "keys" else selection.mass).mean(dim=1).double().numpy()  # [l f]
    with matplotlib.style.context("default"):
        title = _title(selection, width)
        inner = width - LEFT - RIGHT
        shown = _thumbnails(selection, values.mean(axis=0), inner)
        strip = 0.0 if not shown else _thumbnail_size(selection, len(shown), inner)[1] + 0.2
        heat = float(np.clip(0.22 * len(values), 0.66, 3.4))
        below = _subtitle(selection, width)
        head = LINE * len(title) + LEGEND + 0.18 * (len(below) - 2)
        height = TOP + head + strip + LEADERS + heat + GAP + BARS + BOTTOM
        figure = Figure(figsize=(width, height), dpi=100, facecolor="white")

        def place(left: float, bottom: float, wide: float, high: float, **kw) -> Axes:
            return figure.add_axes((left / width, bottom / height, wide / width, high / height), **kw)

        bars = place(LEFT, BOTTOM, inner, BARS)
        grid = place(LEFT, BOTTOM + BARS + GAP, inner, heat, sharex=bars)
        film = place(LEFT, BOTTOM + BARS + GAP + heat, inner, strip + LEADERS)
        scale = place(width - RIGHT - 2.0, height - TOP - head + 0.27, 2.0, 0.1)
        for n, line in enumerate([*title, *below]):
            row = min(n, len(title)) * LINE + max(n - len(title), 0) * 0.18 + (0.04 if n >= len(title) else 0.0)
            style = {"size": 12, "weight": "bold", "color": INK} if n < len(title) else {"size": 9, "color": SOFT}
            figure.text(LEFT / width, 1 - (TOP + row) / height, line, va="top", parse_math=False, **style)

        image = _draw_heat(grid, selection, values)
        _draw_scale(scale, image, MEASURES[measure])
        _draw_bars(bars, selection, values.mean(axis=0))
        _draw_film(film, selection, values.mean(axis=0), shown)
    return figure


def _title(s: FrameCounts, width: float) -> list[str]:
    """The finding, in as few lines as fit at 12 points bold, about 10 characters per inch, of about equal length."""
    text, most = printable(finding(s)[1]), int(10 * (width - LEFT - RIGHT))
    lines = len(textwrap.wrap(text, most))
    return next(wrapped for n in range(10, most + 1) if len(wrapped := textwrap.wrap(text, n)) == lines)


def _subtitle(s: FrameCounts, width: float) -> list[str]:
    """What the selection holds in all; what was asked and answered, as far as it is known and the room beside the
    scale goes; over which tokens the mean was taken."""
    queries, full = s.counts.shape[1], 0 if s.whole is None else int(s.whole.all(dim=0).sum())
    kept, text = percent(s.kept.mean().item()), percent(s.text_share.mean().item())
    some = f" {full} of {queries} tokens read every key." if 0 < full < queries else ""
    held = f"The keys hold {kept} of dense attention; {text} of them lie in no frame.{some}"
    tokens = f"mean over {queries} tokens" if queries > 1 else "read for one token"
    answer = printable(s.answer or "".join(s.labels))
    answer = f"“{answer if len(answer) <= 32 else answer[:31] + '…'}”" if answer else ""
    room = int(14 * (width - LEFT - RIGHT - 2.2))  # characters beside the scale
    asked = f"{tokens[0].upper()}{tokens[1:]}{' ' * bool(answer)}{answer}."
    if s.question:
        asked = printable(textwrap.shorten(s.question, max(16, room - len(answer) - len(tokens) - 14), placeholder="…"))
        asked = f"Asked “{asked}”: {answer}; {tokens}."
    return [*textwrap.wrap(held, room), *textwrap.wrap(asked, room)]


def printable(text: str) -> str:
    """`text` with line breaks as ⏎ and what the font cannot draw as □, so that matplotlib neither breaks nor warns."""
    font = get_font(findfont(FontProperties()))
    return "".join("⏎" if c == "\n" else c if font.get_char_index(ord(c)) else "□" for c in text)


def _thumbnail_size(s: FrameCounts, count: int, inner: float) -> tuple[float, float]:
    """Width and height of a thumbnail, `count` of them side by side in `inner` inches."""
    high, wide = s.thumbnails.shape[-2:]
    width = inner / count - GUTTER
    height = min(width * high / wide, 1.1)
    return height * wide / high, height


def _slot(s: FrameCounts) -> float:
    """Least width of a thumbnail's place: the longest time and a share must fit above it, also in hours of video."""
    long = max((_time(s, frame) for frame in range(len(s.seconds))), key=len)
    widths = [
        TextPath((0, 0), text, size=8, prop=FontProperties(weight="bold")).get_extents().width
        for text in (long, "<0.1 %")
    ]
    return max(SLOT, sum(widths) / 72 + 0.1)


def _time(s: FrameCounts, frame: int) -> str:
    """A frame's time above its thumbnail."""
    video = f"v{s.videos[frame] + 1} " if len(set(s.videos)) > 1 else ""
    return f"{video}{s.seconds[frame]:.1f} s"


def _thumbnails(s: FrameCounts, share: np.ndarray, inner: float) -> list[int]:
    """The frames to show: as many as find room, at most 12."""
    if s.thumbnails is None:
        return []
    high, wide = s.thumbnails.shape[-2:]
    least = _slot(s) + GUTTER
    count = int(np.clip(inner / max(least, min(1.0, wide / high)), 3, 12))
    if len(share) * least <= inner:  # all of them, if need be a little smaller
        count = max(count, len(share))
    return choose_frames(share, s.truth, count)


def _draw_heat(axes: Axes, s: FrameCounts, values: np.ndarray) -> AxesImage:
    """[l f] as colours, first layer on top; brackets above and below the truth."""
    cells, step = columns(values)
    norm = PowerNorm(GAMMA, vmin=0, vmax=values.max() or 1.0)
    extent = (-0.5, cells.shape[1] * step - 0.5, len(values) - 0.5, -0.5)
    image = axes.imshow(cells, COLOURS, norm, aspect="auto", interpolation="nearest", extent=extent)
    axes.set_xlim(-0.5, values.shape[1] - 0.5)
    first, _ = finding(s)
    every = next(n for n in (1, 2, 4, 8, 16, 32, 64, 128) if len(values) / n <= 16)
    rows = [n for n in range(0, len(values), every) if first is None or n == first or abs(n - first) >= every]
    rows = sorted({*rows, first} - {None})
    axes.set_yticks(rows, [f"{'▸ ' if n == first else ''}{s.layers[n]}" for n in rows], size=8, color=INK)
    for row, label in zip(rows, axes.get_yticklabels(), strict=True):
        label.set_weight("bold" if row == first else "normal")
    _name_axis(axes, "layer")
    axes.tick_params(length=0, labelbottom=False)
    axes.spines[:].set_visible(False)
    for start, stop in runs(s.truth):
        _bracket(axes, start // step * step - 0.5, (stop // step + 1) * step - 0.5, values.shape[1])
    return image


def _bracket(axes: Axes, left: float, right: float, frames: int) -> None:
    """Mark the columns of a run of truth frames by bars above and below, and white sides that do not hide the cells."""
    inch = frames / _width(axes)
    thick, middle, half = 0.05 / _height(axes), (left + right) / 2, max(right - left, 0.08 * inch) / 2
    for bottom in (1 + 0.4 * thick, -1.4 * thick):
        place = axes.get_xaxis_transform()
        bar = Rectangle((middle - half, bottom), 2 * half, thick, color=ACCENT, lw=0, transform=place, clip_on=False)
        axes.add_patch(bar)
    if right - left > 0.1 * inch:
        for side in (left, right):
            axes.axvline(side, color="white", lw=0.8)


def _width(axes: Axes) -> float:
    return axes.get_position().width * axes.figure.get_figwidth()


def _height(axes: Axes) -> float:
    return axes.get_position().height * axes.figure.get_figheight()


def _name_axis(axes: Axes, name: str) -> None:
    axes.set_ylabel(name, size=9, color=SOFT)
    axes.yaxis.set_label_coords(-0.46 / _width(axes), 0.5)


def _draw_scale(axes: Axes, image: AxesImage, label: str) -> None:
    """The colour bar, lying, with round percentages."""
    bar = axes.figure.colorbar(image, cax=axes, orientation="horizontal")
    ticks = scale_ticks(float(image.norm.vmax), GAMMA, _width(axes))
    bar.set_ticks(ticks, labels=["0", *[percent(t) for t in ticks[1:]]])
    bar.outline.set_visible(False)
    axes.tick_params(labelsize=8, length=2, pad=1.5, color=SOFT, labelcolor=INK)
    axes.get_xticklabels()[0].set_ha("left")
    axes.get_xticklabels()[-1].set_ha("right")
    axes.set_title(label, size=9, color=SOFT, pad=4, loc="right")


def _draw_bars(axes: Axes, s: FrameCounts, share: np.ndarray) -> None:
    """Mean over layers per frame; truth in the accent colour and hatched."""
    cells, step = columns(share)
    at = np.arange(len(cells)) * step + (step - 1) / 2
    real = np.isin(np.arange(len(cells)), np.array(s.truth, dtype=int) // step)
    wide = step * (0.86 if len(cells) <= 64 else 1.0)
    axes.bar(at[~real], cells[~real], wide, color=PALETTE["blue"])
    axes.bar(at[real], cells[real], wide, color=ACCENT, hatch="////", edgecolor="white", linewidth=0)
    top = cells.max() or 1.0
    axes.set_ylim(0, top * 1.08)
    axes.set_yticks([0, round_number(0.6 * top)], ["0", percent(round_number(0.6 * top))], size=8, color=INK)
    axes.axhline(round_number(0.6 * top), color="#d9d9d9", lw=0.6, zorder=0)
    _name_axis(axes, "all layers")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)
    axes.tick_params(length=2, color=SOFT)
    places, names, unit = time_ticks(s)
    axes.set_xticks(places, names, size=8, color=INK)
    more = f"; each column is the strongest of {step} frames" if step > 1 else ""
    axes.set_xlabel(unit + more, size=9, color=SOFT)


def _draw_film(axes: Axes, s: FrameCounts, share: np.ndarray, shown: list[int]) -> None:
    """Thumbnails with time and share, each with a line down to its column; the truth with a tag."""
    wide, high = _width(axes), _height(axes)
    axes.set(xlim=(0, wide), ylim=(0, high))
    axes.axis("off")
    _, step = columns(share)
    column = lambda frame: min(frame // step * step + step / 2, len(share)) / len(share) * wide  # noqa: E731
    name = printable(s.subject or "answer")
    if not shown:
        _tags_without_film(axes, s, share, column, name, wide)
        return
    width, height = _thumbnail_size(s, len(shown), wide)
    slot = max(width, _slot(s))
    middles = spread([column(f) for f in shown], slot, GUTTER, wide)
    strong = (share >= 0.6 * share.max()) & (share > 1.2 * share.mean())  # none where all are read alike
    for frame, middle in zip(shown, middles, strict=True):
        real, much = frame in s.truth, bool(strong[frame])
        colour = ACCENT if real else INK if much else "#b0b0b0"
        picture = s.thumbnails[frame].permute(1, 2, 0).numpy()
        left = middle - width / 2
        box = (left, left + width, LEADERS, LEADERS + height)
        axes.imshow(picture, extent=box, aspect="auto", interpolation="bicubic")
        edge = 2.2 if real else 1.4 if much else 0.6
        axes.add_patch(Rectangle((left, LEADERS), width, height, fill=False, ec=colour, lw=edge, clip_on=False))
        top = LEADERS + height + 0.05
        bold = "bold" if real or much else "normal"
        axes.text(middle - slot / 2, top, _time(s, frame), size=8, color=INK, weight=bold)
        axes.text(middle + slot / 2, top, percent(share[frame]), size=8, color=SOFT, ha="right")
        _leader(axes, middle, column(frame), colour, edge)
        if real:
            _tag(axes, middle, LEADERS - 0.04, name, ha="center", va="center")
    axes.set(xlim=(0, wide), ylim=(0, high))  # imshow moves the limits


def _leader(axes: Axes, start: float, end: float, colour: str, weight: float) -> None:
    """An S-shaped line from the foot of a thumbnail to the top of a column."""
    points = [(start, LEADERS), (start, 0.22), (end, 0.34), (end, 0.07)]
    curve = Curve(points, [Curve.MOVETO, Curve.CURVE4, Curve.CURVE4, Curve.CURVE4])
    axes.add_patch(PathPatch(curve, fill=False, ec=colour, lw=0.5 + 0.4 * weight))


def _tag(axes: Axes, x: float, y: float, text: str, **kw) -> None:
    """White text on the accent colour."""
    pad = {"facecolor": ACCENT, "edgecolor": "none", "boxstyle": "square,pad=0.25"}
    axes.text(x, y, text, size=7.5, color="white", weight="bold", bbox=pad, clip_on=False, parse_math=False, **kw)


def _tags_without_film(axes: Axes, s: FrameCounts, share: np.ndarray, column, name: str, wide: float) -> None:
    """Without pictures: the tag over the middle of the truth, or the time of the most-read frame."""
    frame = s.truth[len(s.truth) // 2] if s.truth else int(share.argmax())
    x = column(frame)
    side = "left" if x < 0.1 * wide else "right" if x > 0.9 * wide else "center"
    axes.plot([x, x], [0.06, 0.18], color=ACCENT if s.truth else INK, lw=1)
    if s.truth:
        _tag(axes, x, 0.22, f"{name}, {when(s, frame)}", ha=side)
    else:
        axes.text(x, 0.18, f"{when(s, frame)}, {percent(share[frame])}", size=8, weight="bold", color=INK, ha=side)
