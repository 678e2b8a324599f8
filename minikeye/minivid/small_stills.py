"""Labelled stills with small cards, for a tower that is to read them: digits, scribbles, and frames without a card.

Axes: b still.
"""

from dataclasses import replace

import torch
from jaxtyping import Bool, Int, UInt8
from torch import Tensor

from minikeye.minivid.drawing.pictures import Split
from minikeye.minivid.drawing.small_cards import SIDE, draw_written
from minikeye.minivid.draws import Draws
from minikeye.minivid.scene import NO_DIGIT, PLAIN, Difficulty, draw_stills, frame_labels, render

DIGITS, SCRIBBLES = 0.6, 0.3  # shares of the stills; the rest has no card


def make_small_stills(
    seed: int,
    step: int,
    count: int,
    split: Split = "train",
    height: int = 112,
    width: int = 112,
    device: torch.device | str = "cpu",
    difficulty: Difficulty = PLAIN,
) -> tuple[UInt8[Tensor, "b 3 {height} {width}"], Int[Tensor, "b"], Bool[Tensor, "b kinds"]]:
    """As `dataset.make_stills`: frames, digit (10: no card, or a scribble on it), and for each of `things.KINDS`
    whether it is there."""
    draws = Draws.of_batch(count, seed, "small stills", split, step)
    spec = draw_stills(draws, split, difficulty)
    more = Draws.of_batch(count, seed, "small cards", split, step)
    what = more.uniform(0, 1)
    decoy, shown = (what >= DIGITS) & (what < DIGITS + SCRIBBLES), what < DIGITS + SCRIBBLES
    cards, scribbles = draw_written(more, shown[:, None], spec.things, decoy, split, SIDE)
    spec = replace(spec, later=cards, cards=scribbles)  # painted in this order
    _, things = frame_labels(spec)
    digit = torch.where(shown & ~decoy, cards.digit[:, 0], NO_DIGIT)
    return render(spec, height, width, device)[:, 0], digit.to(device), things[:, 0].to(device)
