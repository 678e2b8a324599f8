"""Small cards whose digits want a close look, and decoys: cards with a scribble, which from afar look the same.

A card lies in a single frame, as everywhere. Its writing is small and lies anywhere on it, in ink that may be faint, so
that in a frame of 28x28 it is a smudge of two or three pixels. A scribble is two digits over each other, one of them
upside down, each in thinner ink: as much ink as a digit has, as high and as wide, and not to be read as one.

Axes: n card, b video (one here), f frame.
"""

from dataclasses import fields, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from minikeye.minivid.drawing.card import Cards, draw_cards
from minikeye.minivid.drawing.pictures import Split, load_digits
from minikeye.minivid.drawing.things import Things
from minikeye.minivid.draws import Draws

SIDE = 0.45  # of the cards, against those of `draw_cards`: so small that their digits want a close look
WRITING = 0.5  # size of the writing, against that on the cards of `draw_cards`: it leaves room to lie anywhere
ROOM = 0.35  # how far from the card's middle the writing may lie, in halves of its side
FAINTEST = 0.4  # ink of the faintest writing, against the usual
SCRIBBLED = (2, 4, 5, 7)  # digits of which any two, one upside down, make none
THIN = 0.65  # ink of each of these two, so that both together darken a small picture as one digit does
_REACH = 0.84  # how much of a card's half its handwriting reaches over, as `paint_cards` has it


def draw_small_cards(
    draws: Draws, frames: Int[Tensor, "n"], things: Things, split: Split, scale: float | int
) -> tuple[Cards, Cards]:
    """A card with a digit in the first of the given frames, decoys in the others, for one video.

    draws: a row for each card.  frames: all different.  things: of the video.  scale: the side of the cards, against
    those of `draw_cards`.
    Returns the cards, decoys with the first digit of their scribble, and what is to be painted on top of them: its
    second digit, without paper. Every digit is equally frequent on the first card.
    """
    decoy = torch.arange(len(frames)) > 0
    shown = torch.arange(things.shown.shape[1]) == frames[:, None]
    beside = Things(**{f.name: getattr(things, f.name).repeat_interleave(len(frames), 0) for f in fields(things)})
    cards, second = draw_written(draws, shown, beside, decoy, split, scale)
    return _of_one_video(cards), _of_one_video(second)


def draw_written(
    draws: Draws, shown: Bool[Tensor, "n f"], things: Things, decoy: Bool[Tensor, "n"], split: Split, scale: float | int
) -> tuple[Cards, Cards]:
    """The same for cards of videos of their own, each of which is a decoy or is not."""
    scribbled = torch.tensor(SCRIBBLED)[draws.integer(len(SCRIBBLED), 2)]
    first = torch.where(decoy, scribbled[:, 0], draws.integer(10))
    ink = draws.uniform(FAINTEST, 1) * torch.where(decoy, THIN, 1.0)
    shift = draws.uniform(-ROOM, ROOM, 2)

    def card_with(digit: Tensor) -> Cards:
        cards = draw_cards(draws, shown, things, _handwriting(draws, digit, split), split)
        linear = cards.warp[..., :2] / WRITING
        moved = cards.warp[..., 2] - (linear * shift[:, None, None] / _REACH).sum(-1)
        warp = torch.cat((linear, moved[..., None]), -1)
        return replace(cards, half=scale * cards.half, warp=warp, weight=cards.weight * ink[:, None])

    cards, other = card_with(first), card_with(scribbled[:, 1])
    second = replace(
        cards,
        shown=shown & decoy[:, None],
        number=other.number,
        digit=other.digit,
        warp=-other.warp,  # upside down
        weight=other.weight,
        sheet=torch.zeros_like(cards.sheet),
    )
    return cards, second


def _handwriting(draws: Draws, digit: Int[Tensor, "n"], split: Split) -> Int[Tensor, "n"]:
    """For each of these digits the number of a handwriting of it."""
    written = load_digits(split)[1] == digit[:, None]  # [n handwritings]
    place = draws.integer(written.sum(1))
    return (written.cumsum(1) == place[:, None] + 1).int().argmax(1)


def _of_one_video(cards: Cards) -> Cards:
    """Cards [n f ...] of as many frames as cards of a single video, [1 f ...]: in each frame the one that is there."""
    there = cards.shown.int().argmax(0)
    frame = torch.arange(len(there))
    return Cards(**{field.name: getattr(cards, field.name)[there, frame][None] for field in fields(cards)})
