"""How much of a token is shown how: nine levels, each darker and thicker underlined than the one before.

Axes: p piece.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from minikeye.explore.passage.counts import PassageCounts, Rows
from minikeye.explore.passage.words import shown_by

LEVELS = 8  # beside 0, which is nothing
GAMMA = 0.6  # our choice, as in the frame explorer: level = share ** 0.6, so that small shares can be seen
BOUNDS = tuple(((n - 0.5) / LEVELS) ** (1 / GAMMA) for n in range(1, LEVELS + 1))  # least share of each level
PALE, DEEP = (255, 255, 255), (86, 180, 233)  # white to Okabe and Ito's sky blue, on which black can be read (7:1)
COLOURS = tuple(
    tuple(round(a + (b - a) * n / LEVELS) for a, b in zip(PALE, DEEP, strict=True)) for n in range(LEVELS + 1)
)
THICK = tuple((n + 1) // 2 for n in range(LEVELS + 1))  # pixels of the line below


def levels(s: PassageCounts, layer: Rows = None, query: Rows = None, head: int | None = None) -> Int[Tensor, " p"]:
    """The level of each piece, 0..8. By the share of layers and queries that select it; where every key is read, by its
    attention over the largest that a piece gets. Raises ValueError for a choice that is not there."""
    if shown_by(s, layer, query, head) == "attention":
        mass = s.attention(layer, query).double()
        share = mass / mass.max().clamp(min=1e-12)
    else:
        share = s.shares(layer, query, head)
    return torch.bucketize(share, torch.tensor(BOUNDS, dtype=torch.float64), right=True)
