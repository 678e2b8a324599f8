"""The card: a sheet of paper with a border and one real handwritten digit, shown in a single frame.

The same few lines draw it into synthetic scenes (scene.py) and into real footage (needle.py).

Axes: b video, f frame, m frames that show a card.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from minikeye.minivid.drawing.pictures import Split, load_digits
from minikeye.minivid.drawing.things import Things, local
from minikeye.minivid.draws import Draws

_TRIES = 6  # places that are looked at before one is taken
_CLEAR = 0.55  # a place this far from every thing is good enough, in halves of the short side


@dataclass(frozen=True)
class Cards:
    """The card of each video, repeated for every frame; lengths are in halves of the frame's short side."""

    shown: Bool[Tensor, "b f"]  # whether it is in the frame
    number: Int[Tensor, "b f"]  # which of the handwritten digits of the split
    digit: Int[Tensor, "b f"]  # the digit it shows, 0..9
    place: Float[Tensor, "b f 2"]  # x, y from -1 to 1 over the room its middle may take
    half: Float[Tensor, "b f"]  # half of its side
    angle: Float[Tensor, "b f"]  # radians
    ink: Float[Tensor, "b f 3"]  # 0..1
    paper: Float[Tensor, "b f 3"]  # 0..1
    warp: Float[Tensor, "b f 2 3"]  # from card to handwriting, both of which reach from -1 to 1
    weight: Float[Tensor, "b f"]  # factor on the ink: thin or bold strokes; 0: nothing is written
    sheet: Float[Tensor, "b f"]  # how much of paper and border is there: 1, or 0 for strokes on no card


def draw_cards(
    draws: Draws, shown: Bool[Tensor, "b f"], things: Things | None, number: Int[Tensor, "b"], split: Split
) -> Cards:
    """Random cards that carry the given handwritten digits, away from the middles of the things in their frame."""
    half = draws.uniform(0.36, 0.5)
    places = draws.uniform(-1, 1, _TRIES, 2)
    place = places[:, 0] if things is None else _clear_place(places, half, shown, things)
    tint = draws.uniform(0.88, 1, 3)
    ink = draws.uniform(0, 0.12, 3) + draws.uniform(0, 0.25, 1) * torch.eye(3)[draws.integer(3)]
    angle = draws.uniform(-0.2, 0.2)
    frames = shown.shape[1]

    def every_frame(values: Tensor) -> Tensor:
        return values[:, None].expand(-1, frames, *values.shape[1:])

    digit = load_digits(split)[1][number]
    values = (number, digit, place, half, angle, ink, tint, *_draw_hand(draws, split), torch.ones_like(half))
    return Cards(shown, *(every_frame(value) for value in values))


def draw_later_card(draws: Draws, first: Cards, things: Things, split: Split, share: float | int) -> Cards:
    """Another card with a digit, in one frame after that of the first card, in that share of the videos."""
    frames = first.shown.shape[1]
    after = first.shown.int().argmax(1) + 1
    frame = after + draws.integer((frames - after).clamp(min=1)[:, None], 1)[:, 0]
    shown = (torch.arange(frames) == frame[:, None]) & draws.chance(share, 1)  # nowhere, where the first comes last
    return draw_cards(draws, shown, things, draws.integer(len(load_digits(split)[0])), split)


def draw_blank_cards(draws: Draws, first: Cards, things: Things, split: Split) -> tuple[Cards, Cards]:
    """Two cards without writing, each in half of the videos: in one frame, in some, or in all of them."""
    frames = first.shown.shape[1]
    return tuple(_blank_card(draws, frames, things, split) for _ in range(2))


def _blank_card(draws: Draws, frames: int, things: Things, split: Split) -> Cards:
    shown = some_frames(draws, frames) & draws.chance(0.5, 1)
    cards = draw_cards(draws, shown, things, draws.integer(len(load_digits(split)[0])), split)
    return replace(cards, weight=torch.zeros_like(cards.weight))


def some_frames(draws: Draws, frames: int) -> Bool[Tensor, "b {frames}"]:
    """One frame, a run of at most half of them, or all: each for a third of the videos."""
    start, kind = draws.integer(frames, 1), draws.integer(3, 1)
    length = torch.where(kind == 0, 1, torch.where(kind == 1, 1 + draws.integer(max(1, frames // 2), 1), frames))
    since = torch.arange(frames) - start * (kind < 2)
    return (since >= 0) & (since < length)


def _draw_hand(draws: Draws, split: Split) -> tuple[Float[Tensor, "b 2 3"], Float[Tensor, "b"]]:
    """Warp and weight of the handwriting. Validation and test digits stay as written.

    Training digits are slanted, stretched, moved, thinned and fattened: 1,400 are few, and a tower that knows them by
    heart reads new ones worse.
    """
    spread = 1.0 if split == "train" else 0.0
    shape = spread * draws.uniform(-1, 1, 2, 3) * torch.tensor([[0.2, 0.25, 0.12], [0.15, 0.2, 0.12]])
    return torch.eye(2, 3) + shape, torch.exp2(spread * draws.uniform(-0.5, 0.5))


def _clear_place(
    places: Float[Tensor, "b n 2"], half: Float[Tensor, "b"], shown: Bool[Tensor, "b f"], things: Things
) -> Float[Tensor, "b 2"]:
    """The first place that is clear of all things in the card's frame, or the clearest."""
    frame = shown.int().argmax(1)  # of the card; the first where no frame has one
    video = torch.arange(len(frame))
    at = things.place[video, frame] * (1 - 0.9 * things.radius[video, frame])[..., None]  # [b n 2] in a square frame
    distance = (places[:, :, None] * (1 - half)[:, None, None, None] - at[:, None]).norm(dim=-1)  # [b tries n]
    distance = distance.masked_fill(~things.shown[video, frame][:, None], torch.inf).amin(-1)
    best = distance.clamp(max=_CLEAR).argmax(1)  # ties go to the first
    return places[video, best]


def paint_cards(frames: Float[Tensor, "rows 3 h w"], cards: Cards, split: Split) -> None:
    """Draw all cards into frames [b*f 3 h w] of 0..1, in place. Only the frames that show a card are touched."""
    rows = cards.shown.flatten().nonzero().squeeze(-1)  # on the CPU: nothing waits for a GPU here
    here = rows.to(frames.device)

    def at_rows(values: Tensor) -> Tensor:
        return values.flatten(0, 1)[rows].to(frames.device, torch.float32)

    handwriting = load_digits(split)[0][cards.number.flatten()[rows]].to(frames.device)
    place, half, angle, ink, paper = map(at_rows, (cards.place, cards.half, cards.angle, cards.ink, cards.paper))
    hand = handwriting, at_rows(cards.warp), at_rows(cards.weight)
    frames[here] = _paint(frames[here], hand, place, half, angle, ink, paper, at_rows(cards.sheet))


def _paint(
    frames: Float[Tensor, "m 3 h w"],
    hand: tuple[Float[Tensor, "m 8 8"], Float[Tensor, "m 2 3"], Float[Tensor, "m"]],
    place: Float[Tensor, "m 2"],
    half: Float[Tensor, "m"],
    angle: Float[Tensor, "m"],
    ink: Float[Tensor, "m 3"],
    paper: Float[Tensor, "m 3"],
    sheet: Float[Tensor, "m"],
) -> Float[Tensor, "m 3 h w"]:
    """One card in each frame, on top of what is there and wholly inside the frame."""
    margin = half * (angle.cos().abs() + angle.sin().abs())
    x, y = local(frames, place, margin, angle)
    pixel = 2 / min(frames.shape[-2:])
    distance = (torch.maximum(x.abs(), y.abs()) - half[:, None, None])[:, None]  # to the card's edge, [m 1 h w]
    line = 0.05  # the border is 5 % of half the short side: 1.4 pixels of 56
    inside = (0.5 - distance / pixel).clamp(0, 1)
    inner = (0.5 - (distance + line) / pixel).clamp(0, 1)
    # the 8x8 digit fills 84 % of the card: its pixels reach from -1 to 1
    stroke = _write(*hand, torch.stack((x, y), -1) / (0.84 * half)[:, None, None, None])
    sheet = sheet[:, None, None, None]
    inked = torch.maximum(torch.maximum(stroke, 1 - inner), 1 - sheet)
    card = torch.lerp(paper[..., None, None], ink[..., None, None], inked)
    return torch.lerp(frames, card, inside * torch.maximum(sheet, stroke))


def _write(
    handwriting: Float[Tensor, "m 8 8"],
    warp: Float[Tensor, "m 2 3"],
    weight: Float[Tensor, "m"],
    grid: Float[Tensor, "m h w 2"],
) -> Float[Tensor, "m 1 h w"]:
    """How much ink lies at each point of the grid, 0..1."""
    warp = warp[:, None, None]
    bent = (warp[..., :2] * grid[..., None, :]).sum(-1) + warp[..., 2]  # no matrix product: TF32 would move the test
    stroke = F.grid_sample(handwriting[:, None], bent, mode="bicubic", align_corners=False)
    return (1.25 * weight[:, None, None, None] * stroke).clamp(0, 1)
