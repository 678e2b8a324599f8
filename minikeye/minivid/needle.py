"""A needle in any footage: what one frame shows and no other, a card with a handwritten digit or a coloured thing.

Axes: b video, f frame.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import UInt8
from torch import Tensor

from minikeye.minivid.drawing.card import Cards, draw_cards, paint_cards
from minikeye.minivid.drawing.pictures import load_digits
from minikeye.minivid.drawing.things import COLOURS, KINDS, Things, draw_things, paint_things
from minikeye.minivid.draws import Draws

HERE = torch.ones(1, 1, dtype=torch.bool)  # in the one frame of the one video


@dataclass(frozen=True)
class Needle:
    """What is put into one frame, drawn but not yet painted: the same in frames of any size."""

    name: str  # the digit, or what is to be seen, e.g. "red circle"
    drawn: Cards | Things  # of one frame of one video

    @property
    def place(self) -> tuple[float, float]:
        """x and y of its middle, from -1 to 1 over the room that it may take."""
        x, y = self.drawn.place.flatten().tolist()
        return x, y

    @property
    def half(self) -> float:
        """Half of its height, in halves of the frame's short side."""
        return float(self.drawn.half if isinstance(self.drawn, Cards) else self.drawn.radius)

    def into(self, frames: UInt8[Tensor, "f 3 h w"], frame: int) -> UInt8[Tensor, "f 3 h w"]:
        """A copy of `frames`, 0..255 and of any size, in which that frame shows it. IndexError where there is none."""
        if not 0 <= frame < len(frames):
            raise IndexError(f"there is no frame {frame}: the video has frames 0 to {len(frames) - 1}")
        painted = frames[frame : frame + 1].float() / 255
        if isinstance(self.drawn, Cards):
            paint_cards(painted, self.drawn, "test")
        else:
            paint_things(painted, self.drawn)
        out = frames.clone()
        out[frame] = (255 * painted[0]).round().to(torch.uint8)
        return out


def card(digit: int, seed: int = 0) -> Needle:
    """A card that shows `digit` in a handwriting of the test split. seed picks handwriting, place, size and colours.

    Raises ValueError for a digit outside 0..9.
    """
    if not 0 <= digit <= 9:
        raise ValueError(f"the card carries one digit, 0 to 9, not {digit}")
    candidates = (load_digits("test")[1] == digit).nonzero().squeeze(-1)
    draws = Draws.of_batch(1, seed, "needle", digit)
    number = candidates[draws.integer(len(candidates))]
    return Needle(str(digit), draw_cards(draws, HERE, None, number, "test"))


def thing(kind: int, seed: int = 0) -> Needle:
    """A thing of that kind, an index into KINDS. seed picks place, size, angle and outline.

    Raises ValueError for another kind.
    """
    if not 0 <= kind < len(KINDS):
        raise ValueError(f"expected a kind from 0 to {len(KINDS) - 1}, an index into KINDS, got {kind}")
    draws = Draws.of_batch(1, seed, "needle", KINDS[kind])
    drawn = draw_things(draws, HERE[..., None], draws.uniform(0, 1, 1, 1))
    colour = torch.tensor(list(COLOURS.values()), dtype=torch.float64)[kind % len(COLOURS)]
    kinds = torch.full_like(drawn.kind, kind)
    return Needle(KINDS[kind], replace(drawn, kind=kinds, colour=colour.expand_as(drawn.colour)))


def insert_card(
    frames: UInt8[Tensor, "f 3 h w"], frame_index: int, digit: int, seed: int = 0
) -> UInt8[Tensor, "f 3 h w"]:
    """A copy of `frames`, 0..255 and of any size, with a `card` in frame `frame_index`. Raises as `card` and `into`."""
    return card(digit, seed).into(frames, frame_index)
