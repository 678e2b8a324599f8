"""What real footage has and plain scenes lack: signs and screens, people who walk by, bars, grey film, soft lenses.

Such things mislead a model that was shown plain scenes only: it takes a white sign for the card, and a few dark figures
on a pale pavement for its digit. They are painted behind things and cards, and film is what those are put into: a thing
is told by its colour. Cards that carry no digit, or a second one, are cards like others (scene.py).

Axes: b video, f frame, n piece of clutter, m frames that show it.
"""

import math
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from minikeye.minivid.drawing.background import PATTERNS, curve, look, pixel_grid
from minikeye.minivid.drawing.card import Cards, draw_cards, some_frames
from minikeye.minivid.drawing.pictures import Split, load_digits, load_pictures
from minikeye.minivid.drawing.things import of_shown
from minikeye.minivid.draws import Draws

PIECES = 4  # places for clutter in a video
_SIGN, _SCREEN, _WALKER = range(3)


@dataclass(frozen=True)
class Clutter:
    """Flat pieces in front of the background; lengths are in halves of the frame's short side."""

    shown: Bool[Tensor, "b f n"]  # whether it is in the frame
    place: Float[Tensor, "b f n 2"]  # x, y of its middle, from -1 to 1 over the frame
    half: Float[Tensor, "b f n 2"]  # half of its width and height
    angle: Float[Tensor, "b f n"]  # radians
    round: Float[Tensor, "b f n"]  # 1: an ellipse, 0: a rectangle
    paper: Float[Tensor, "b f n 3"]  # its colour where the picture on it does not count, 0..1
    border: Float[Tensor, "b f n 3"]  # colour of its edge, 0..1
    tile: Int[Tensor, "b f n"]  # the picture on it, a tile of the atlas
    window: Float[Tensor, "b f n 3"]  # which part of the tile: x, y of its middle, half of its side
    printed: Float[Tensor, "b f n"]  # how much the picture counts, 0..1


@dataclass(frozen=True)
class Film:
    """What was done to the recording; each is 0 in most videos."""

    bars: Float[Tensor, "b f 2"]  # share of the height, and of the width, that black bars take
    grey: Float[Tensor, "b f"]  # 1: black and white
    soft: Float[Tensor, "b f"]  # how much a blur counts, 0..1
    coarse: Float[Tensor, "b f"]  # how much colours are averaged over blocks of 4x4 pixels, as compression does


def draw_clutter(draws: Draws, time: Float[Tensor, "b f"], pictures: str) -> Clutter:
    """Random pieces for frames at `time`, from 0 to 1. Half of the places are empty; half of the pieces never leave."""
    frames = time.shape[1]
    what = draws.integer(3, PIECES)
    sign, walker = (what == _SIGN)[..., None], (what == _WALKER)[..., None]
    half = draws.uniform(0.15, 0.6, PIECES, 2)
    half = torch.where(walker, torch.stack((half[..., 0] * 0.6, 0.25 + half[..., 1]), -1), half)
    pale = draws.uniform(0.75, 1, PIECES, 1) * draws.uniform(0.9, 1, PIECES, 3)
    colour = draws.uniform(0, 1, PIECES, 3)
    dull = torch.lerp(colour.mean(-1, keepdim=True), colour, 0.4)  # a sign in full colour would be one of the things
    dark = walker & draws.chance(0.5, PIECES, 1)
    paper = torch.where(sign & draws.chance(0.7, PIECES, 1), pale, torch.where(dark, dull * 0.3, dull))
    printed = torch.where(sign[..., 0], draws.chance(0.6, PIECES) * draws.uniform(0.2, 1, PIECES), 0.8)
    printed = torch.where(dark[..., 0], 0.0, printed)
    start, length = draws.uniform(-0.3, 0.9, PIECES), draws.uniform(0.05, 0.6, PIECES)
    stays = draws.chance(0.5, PIECES)
    since = time[..., None] - start[:, None]
    shown = stays[:, None] | (since >= 0) & (since < length[:, None])
    zoom = draws.uniform(0.1, 0.6, PIECES, 1)

    def every_frame(values: Tensor) -> Tensor:
        return values[:, None].expand(-1, frames, *values.shape[1:])

    return Clutter(
        shown=shown & draws.chance(0.5, 1, PIECES),
        place=_places(draws, time, walker),
        half=every_frame(half),
        angle=every_frame(draws.uniform(-0.2, 0.2, PIECES)),
        round=every_frame(walker[..., 0].double()),
        paper=every_frame(paper),
        border=every_frame(draws.uniform(0, 0.4, PIECES, 3)),
        tile=every_frame(draws.integer(len(load_pictures(pictures)) + PATTERNS, PIECES)),
        window=every_frame(torch.cat((draws.uniform(-1, 1, PIECES, 2) * (1 - zoom), zoom), -1)),
        printed=every_frame(printed),
    )


def _places(draws: Draws, time: Float[Tensor, "b f"], walker: Bool[Tensor, "b n 1"]) -> Float[Tensor, "b f n 2"]:
    """Walkers go to and fro, half of the others drift, the rest stands still."""
    points = draws.uniform(-1, 1, PIECES, 3, 2)
    still = draws.chance(0.5, PIECES, 1, 1)
    path = curve(torch.where(still, points[:, :, :1], points), time[..., None].expand(-1, -1, PIECES))
    turns, phase = draws.uniform(0.3, 8, 1, PIECES), draws.uniform(0, 1, 1, PIECES)
    across = 1.2 * (2 * math.pi * (turns * time[..., None] + phase)).sin()
    walk = torch.stack((across, points[:, None, :, 0, 1].expand_as(across)), -1)
    return torch.where(walker[:, None], walk, path)


def draw_strokes(draws: Draws, time: Float[Tensor, "b f"], split: Split) -> Cards:
    """Dark strokes that are on no card, in 40 % of the videos: figures seen from above, letters on a wall.

    They are digits, bent, turned, standing or moving. What tells a card from them is its paper and its border.
    """
    frames = time.shape[1]
    shown = some_frames(draws, frames) & draws.chance(0.4, 1)
    cards = draw_cards(draws, shown, None, draws.integer(len(load_digits(split)[0])), split)
    points, still = draws.uniform(-1, 1, 1, 3, 2), draws.chance(0.4, 1, 1, 1)
    place = curve(torch.where(still, points[:, :, :1], points), time[..., None])[:, :, 0]
    turn = draws.uniform(-1, 1) * torch.where(draws.chance(0.5), 0.3, math.pi)
    bend = torch.tensor([[0.4, 0.5, 0.2], [0.4, 0.4, 0.2]]) * draws.uniform(-1, 1, 2, 3)

    def every_frame(values: Tensor) -> Tensor:
        return values[:, None].expand(-1, frames, *values.shape[1:])

    return replace(
        cards,
        place=place,
        angle=every_frame(turn),
        half=every_frame(draws.uniform(0.12, 0.5)),
        ink=every_frame(draws.uniform(0, 0.3, 1) + draws.uniform(0, 0.1, 3)),
        warp=every_frame(torch.eye(2, 3) + bend),
        sheet=torch.zeros_like(cards.sheet),
    )


def draw_film(draws: Draws, frames: int) -> Film:
    """What was done to random recordings: bars 15 %, grey 8 %, a soft lens and coarse colours half of them each."""
    bars = draws.uniform(0.05, 0.3, 1) * draws.chance(0.15, 1) * torch.eye(2, dtype=torch.float64)[draws.integer(2)]
    grey = draws.chance(0.08).double()
    soft, coarse = (draws.chance(0.5) * draws.uniform(0, 1) for _ in range(2))
    return Film(*(part[:, None].expand(-1, frames, *part.shape[1:]) for part in (bars, grey, soft, coarse)))


def paint_clutter(frames: Float[Tensor, "rows 3 h w"], clutter: Clutter, pictures: str) -> None:
    """Draw all pieces into frames [b*f 3 h w] of 0..1, in place. Only the frames that show one are touched."""
    for here, part in of_shown(clutter, frames.device):
        tile = part.pop("tile")
        frames[here] = _paint(frames[here], pictures, tile, **{name: value.float() for name, value in part.items()})


def _paint(
    frames: Float[Tensor, "m 3 h w"],
    pictures: str,
    tile: Int[Tensor, "m"],
    place: Float[Tensor, "m 2"],
    half: Float[Tensor, "m 2"],
    angle: Float[Tensor, "m"],
    round: Float[Tensor, "m"],
    paper: Float[Tensor, "m 3"],
    border: Float[Tensor, "m 3"],
    window: Float[Tensor, "m 3"],
    printed: Float[Tensor, "m"],
) -> Float[Tensor, "m 3 h w"]:
    """One piece in each frame, over what is there; it may be cut off by the frame's edge."""
    height, width = frames.shape[-2:]
    short = min(height, width)
    x, y = pixel_grid(height, width, frames.device)
    x, y = x - (place[:, :1] * width / short)[..., None], y - (place[:, 1:] * height / short)[..., None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    x, y = cos * x + sin * y, cos * y - sin * x
    wide, high = half[:, 0, None, None], half[:, 1, None, None]
    box = torch.maximum(x.abs() - wide, y.abs() - high)
    oval = ((x / wide).square() + (y / high).square()).sqrt().sub(1) * torch.minimum(wide, high)
    distance = torch.lerp(box, oval, round[:, None, None])[:, None]  # to the edge, [m 1 h w]
    pixel, line = 2 / short, 0.05
    at_x, at_y, zoom = (part[:, None, None] for part in window.unbind(-1))
    picture = look(pictures, tile, at_x + zoom * x / high, at_y + zoom * y / high)
    sheet = torch.lerp(paper[..., None, None], picture, printed[:, None, None, None])
    core = (0.5 - (distance + line) / pixel).clamp(0, 1)
    sheet = torch.lerp(border[..., None, None].expand_as(sheet), sheet, torch.maximum(core, round[:, None, None, None]))
    return torch.lerp(frames, sheet, (0.5 - distance / pixel).clamp(0, 1))


def develop(frames: Float[Tensor, "rows 3 h w"], film: Film) -> Float[Tensor, "rows 3 h w"]:
    """Frames [b*f 3 h w] of 0..1 as the film shows them."""
    height, width = frames.shape[-2:]
    grey, soft, coarse = (
        part.flatten().to(frames.device, torch.float32)[:, None, None, None]
        for part in (film.grey, film.soft, film.coarse)
    )
    frames = torch.lerp(frames, F.avg_pool2d(F.pad(frames, (1, 1, 1, 1), "replicate"), 3, 1), soft)
    luma = frames.mean(dim=1, keepdim=True)
    chroma = frames - luma
    blocks = F.interpolate(F.avg_pool2d(chroma, 4), (height, width))
    frames = luma + (1 - grey) * torch.lerp(chroma, blocks, coarse)
    bars = film.bars.flatten(0, 1).to(frames.device, torch.float32)[..., None, None]
    x, y = pixel_grid(height, width, frames.device)
    short = min(height, width)
    inside = (y.abs() * short / height <= 1 - bars[:, :1]) & (x.abs() * short / width <= 1 - bars[:, 1:])
    return (frames * inside).clamp_(0, 1)
