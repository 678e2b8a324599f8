"""A needle in real footage: one card with a real handwritten digit, put into one frame of any video."""

import torch
from jaxtyping import UInt8
from torch import Tensor

from minikeye.minivid.drawing.card import draw_cards, paint_cards
from minikeye.minivid.drawing.pictures import load_digits
from minikeye.minivid.draws import Draws


def insert_card(
    frames: UInt8[Tensor, "f 3 h w"], frame_index: int, digit: int, seed: int = 0
) -> UInt8[Tensor, "f 3 h w"]:
    """A copy of `frames` with a card in frame `frame_index` that shows `digit`, in a handwriting of the test split.

    frames: 0..255, any size. seed picks handwriting, place, size and colours.
    Raises ValueError for a digit outside 0..9, IndexError for a frame that is not there.
    """
    if not 0 <= digit <= 9:
        raise ValueError(f"the card carries one digit, 0 to 9, not {digit}")
    if not 0 <= frame_index < len(frames):
        raise IndexError(f"there is no frame {frame_index}: the video has frames 0 to {len(frames) - 1}")
    candidates = (load_digits("test")[1] == digit).nonzero().squeeze(-1)
    draws = Draws.of_batch(1, seed, "needle", digit)
    number = candidates[draws.integer(len(candidates))]
    cards = draw_cards(draws, torch.ones(1, 1, dtype=torch.bool), None, number, "test")
    painted = frames[frame_index : frame_index + 1].float() / 255
    paint_cards(painted, cards, "test")
    out = frames.clone()
    out[frame_index] = (255 * painted[0]).round().to(torch.uint8)
    return out
