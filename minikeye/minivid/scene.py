"""A batch of videos as numbers, and the pixels that those numbers stand for.

`VideoSpec` says what is in every frame; it lives on the CPU and is the same for every frame size and device.
`render` turns it into pixels with a fixed number of batched tensor operations, however many frames there are.

Axes: b video, f frame, h and w pixel rows and columns.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cache
from typing import get_args

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from minikeye.minivid.drawing.background import Background, bleach, cut_out, draw_background, hold
from minikeye.minivid.drawing.card import Cards, draw_blank_cards, draw_cards, draw_later_card, paint_cards
from minikeye.minivid.drawing.footage import (
    Clutter,
    Film,
    develop,
    draw_clutter,
    draw_film,
    draw_strokes,
    paint_clutter,
)
from minikeye.minivid.drawing.pictures import Split, check_split, load_digits
from minikeye.minivid.drawing.things import CROWD, KINDS, THINGS, Things, draw_things, paint_things
from minikeye.minivid.draws import Draws, generator

MIN_FRAMES = 4  # a thing needs a frame before it, two with it and one after it
NO_DIGIT = 10  # label of a frame without a card
BLANK = 128  # grey level of the blank control
STROKES = 3  # places for strokes on no card in a hard video
_NOISE_TILES = 32


@dataclass(frozen=True)
class Difficulty:
    """What makes videos harder than the plain ones, which is what the defaults give."""

    crowd: bool = False  # two to six things, one after another in each half of the frame, instead of one or two
    alone: bool = False  # one thing: no question which is meant
    hard: bool = False  # what misleads in real footage: fixed cameras, signs, walkers, cards without a digit, film
    second_card: float | int = 0.0  # share, of videos whose card is not in the last frame, that have another one later
    photographs: str | None = None  # folder of more pictures for the backgrounds of the training split

    def __post_init__(self) -> None:
        if not 0 <= self.second_card <= 1:
            raise ValueError(f"expected second_card, a share, in 0..1, got {self.second_card}")
        if self.photographs in get_args(Split):
            raise ValueError(f"expected photographs, a folder, got the name of a split, {self.photographs!r}")
        if self.crowd and self.alone:
            raise ValueError("expected a crowd of things or one alone, got both")


PLAIN = Difficulty()


@dataclass(frozen=True)
class Light:
    """What the camera adds to the whole frame."""

    exposure: Float[Tensor, "b f"]  # factor on all colours
    noise: Float[Tensor, "b f"]  # standard deviation, in 0..1 colour units
    noise_tile: Int[Tensor, "b f"]  # which of the noise pictures


@dataclass(frozen=True)
class VideoSpec:
    """All that is to be seen in a batch of videos. Every tensor starts with the axes b and f and is on the CPU."""

    split: Split
    pictures: str  # the collection that the background is cut out of
    background: Background
    things: Things
    cards: Cards
    light: Light
    later: Cards | None = None  # a second card, after the one that is asked for
    decoys: tuple[Cards, ...] = ()  # cards without a digit
    strokes: tuple[Cards, ...] = ()  # digits without a card
    clutter: Clutter | None = None
    film: Film | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Videos and frames per video."""
        batch, frames = self.cards.shown.shape
        return batch, frames

    def take(self, videos: Sequence[int], frames: Sequence[int]) -> "VideoSpec":
        """The same videos with these frames only: a sub-video, or a single frame."""
        videos, frames = list(videos), list(frames)
        return self._each(lambda values: values[videos][:, frames])

    def reordered(self, order: Int[Tensor, "b f"]) -> "VideoSpec":
        """The same videos with their frames in another order: frame f shows what frame order[b, f] did.

        Raises ValueError unless each row of `order` holds every frame once.
        """
        if order.shape != self.shape or not torch.equal(
            order.sort(1).values, torch.arange(order.shape[1]).expand_as(order)
        ):
            raise ValueError(f"expected every one of {self.shape[1]} frames once in each of {self.shape[0]} rows")
        rows = torch.arange(len(order))[:, None]
        return self._each(lambda values: values[rows, order])

    def _each(self, taken: Callable[[Tensor], Tensor]) -> "VideoSpec":
        """The same with `taken` done to every tensor."""

        def part_of(part: object) -> object:
            return type(part)(**{field.name: taken(getattr(part, field.name)) for field in fields(part)})

        names = ("background", "things", "cards", "light", "later", "clutter", "film")
        one = {name: part_of(part) for name in names if (part := getattr(self, name)) is not None}
        many = {name: tuple(map(part_of, getattr(self, name))) for name in ("decoys", "strokes")}
        return replace(self, **one, **many)


def draw_videos(draws: Draws, frames: int, split: Split, difficulty: Difficulty = PLAIN) -> VideoSpec:
    """Random videos: one card in one frame; one or two things, or a crowd of them, each in one interval of frames.

    An interval [start, stop) has 1 <= start and stop <= frames - 1 and between 1/16 and 1/2 of the frames, at least 2.
    In a crowd it may begin at 0, and one frame is enough.
    Raises ValueError for fewer than 4 frames or an unknown split.
    """
    check_split(split)
    if frames < MIN_FRAMES:
        raise ValueError(f"a video with events needs at least {MIN_FRAMES} frames, not {frames}")
    frame = torch.arange(frames)
    start, length, present = (_crowd if difficulty.crowd else _one_or_two)(draws, frames)  # [b n] each
    if difficulty.alone:
        present = present & (torch.arange(present.shape[1]) == 0)
    since = frame[:, None] - start[:, None]  # frames since the thing came, [b f n]
    shown = (since >= 0) & (since < length[:, None]) & present[:, None]
    card_shown = frame == draws.integer(frames, 1)
    time = (frame / (frames - 1)).double().expand(draws.batch, -1)
    way = (since / (length[:, None] - 1).clamp(min=1)).clamp(0, 1).double()
    return _draw(draws, split, time, shown, way, card_shown, difficulty)


def draw_stills(draws: Draws, split: Split, difficulty: Difficulty = PLAIN) -> VideoSpec:
    """Random single frames (f = 1): a card in 60 % of them; no thing, one or two, equally often."""
    check_split(split)
    shown = draws.integer(THINGS + 1, 1) > torch.arange(THINGS)
    card_shown = draws.chance(0.6, 1)
    time, on_its_way = draws.uniform(0, 1, 1), draws.uniform(0, 1, 1, THINGS)
    return _draw(draws, split, time, shown[:, None], on_its_way, card_shown, difficulty)


def _one_or_two(draws: Draws, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """Start and length of each thing's interval, in frames, and whether there is such a thing."""
    shortest = max(2, -(-frames // 16))
    length = shortest + draws.integer(max(shortest, frames // 2) - shortest + 1, THINGS)
    start = 1 + draws.integer(frames - 1 - length, THINGS)
    return start, length, draws.chance(0.6, 1) | (torch.arange(THINGS) == 0)  # the first always, the second often


def _crowd(draws: Draws, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    """The same for two to six things: each half of the frame parts all frames but the last among its things."""
    present = torch.arange(CROWD) < 2 + draws.integer(CROWD - 1, 1)
    share = (draws.uniform(0.2, 1, CROWD) * present).unflatten(1, (-1, THINGS))  # thing n is in half n % 2
    before = share.cumsum(1) - share
    spare = frames - 1 - present.unflatten(1, (-1, THINGS)).sum(1, keepdim=True)  # beyond one frame a thing
    bounds = (spare * torch.stack((before, before + share)) / share.sum(1, keepdim=True)).long().flatten(2)
    first, room = bounds[0] + torch.arange(CROWD) // THINGS, bounds[1] - bounds[0] + 1
    length = 1 + draws.integer(room, CROWD)
    return first + draws.integer(room - length + 1, CROWD), length, present


def render(
    spec: VideoSpec, height: int, width: int, device: torch.device | str = "cpu"
) -> UInt8[Tensor, "b f 3 {height} {width}"]:
    """The pixels of all frames, made on `device`. Sizes of things and cards follow the short side of the frame.

    Raises ValueError for sizes that are not multiples of 28 (the side of a visual token).
    """
    _check_size(height, width)
    device = torch.device(device)
    frames = cut_out(spec.background, spec.pictures, height, width, device)  # [b*f 3 h w]
    if spec.clutter is not None:
        paint_clutter(frames, spec.clutter, spec.pictures)
    for strokes in spec.strokes:
        paint_cards(frames, strokes, spec.split)
    if spec.film is not None:
        frames = develop(frames, spec.film)
    for cards in spec.decoys:  # behind things, which are said to be visible
        paint_cards(frames, cards, spec.split)
    paint_things(frames, spec.things)
    for cards in (spec.later, spec.cards):  # either is to be read
        if cards is not None:
            paint_cards(frames, cards, spec.split)
    exposure, noise = (
        part.flatten().to(device, torch.float32)[:, None, None, None]
        for part in (spec.light.exposure, spec.light.noise)
    )
    grain = _noise(height, width, device)[spec.light.noise_tile.flatten().to(device)]  # [b*f 1 h w]
    frames = torch.addcmul(grain.mul_(noise), frames, exposure)
    return frames.mul_(255).round_().clamp_(0, 255).to(torch.uint8).reshape(*spec.shape, 3, height, width).contiguous()


def render_blank(
    spec: VideoSpec, height: int, width: int, device: torch.device | str = "cpu"
) -> UInt8[Tensor, "b f 3 {height} {width}"]:
    """The blind control: as many frames as `spec` has, all mid-grey. Raises as `render` does."""
    _check_size(height, width)
    return torch.full((*spec.shape, 3, height, width), BLANK, dtype=torch.uint8, device=device)


def frame_labels(spec: VideoSpec) -> tuple[Int[Tensor, "b f"], Bool[Tensor, "b f kinds"]]:
    """What is in each frame: the digit 0..9 on its card (10: no card), and for each of KINDS whether it is there.

    Of two cards in a frame the one that is asked for counts; cards without a digit are none.
    """
    digit = torch.full(spec.shape, NO_DIGIT)
    for cards in (spec.later, spec.cards):
        if cards is not None:
            digit = torch.where(cards.shown, cards.digit, digit)
    kinds = torch.arange(len(KINDS))
    things = ((spec.things.kind[..., None] == kinds) & spec.things.shown[..., None]).any(2)
    return digit, things


def _draw(
    draws: Draws,
    split: Split,
    time: Tensor,
    shown: Tensor,
    on_its_way: Tensor,
    card_shown: Tensor,
    difficulty: Difficulty,
) -> VideoSpec:
    """What videos and stills share. Plain videos draw first: hard ones only add to them."""
    frames = time.shape[1]
    things = draw_things(draws, shown, on_its_way)
    number = draws.integer(len(load_digits(split)[0]))
    cards = draw_cards(draws, card_shown, things, number, split)
    flicker = (2 * torch.pi * (draws.uniform(1, 8, 1) * time + draws.uniform(0, 1, 1))).sin()
    light = Light(
        exposure=draws.uniform(0.8, 1.08, 1) + draws.uniform(0, 0.05, 1) * flicker,
        noise=draws.uniform(0, 0.035, 1).expand(-1, frames),
        noise_tile=(draws.integer(_NOISE_TILES, 1) + 7 * torch.arange(frames)) % _NOISE_TILES,
    )
    pictures = difficulty.photographs if difficulty.photographs and split == "train" else split
    spec = VideoSpec(split, pictures, draw_background(draws, time, pictures, cuts=frames > 1), things, cards, light)
    if difficulty.second_card:
        spec = replace(spec, later=draw_later_card(draws, cards, things, split, difficulty.second_card))
    if difficulty.hard:
        spec = replace(
            spec,
            background=bleach(hold(spec.background, draws.chance(0.4)), draws.chance(0.25) * draws.uniform(0.4, 0.85)),
            decoys=draw_blank_cards(draws, cards, things, split),
            strokes=tuple(draw_strokes(draws, time, split) for _ in range(STROKES)),
            clutter=draw_clutter(draws, time, pictures),
            film=draw_film(draws, frames),
        )
    return spec


def _check_size(height: int, width: int) -> None:
    for name, size in (("height", height), ("width", width)):
        if size <= 0 or size % 28:
            raise ValueError(f"{name} must be a positive multiple of 28 pixels, not {size}")


@cache
def _noise(height: int, width: int, device: torch.device) -> Float[Tensor, "n 1 h w"]:
    """Pictures of grey noise of standard deviation 1, the same on every device."""
    return torch.randn(_NOISE_TILES, 1, height, width, generator=generator("minivid noise")).to(device)
