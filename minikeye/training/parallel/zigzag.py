"""Which tokens of one long row a rank holds: an early piece and a late one, so that all ranks score equally many keys.

Axes: b batch, t token of one rank's share, s token of the whole row.
The report never mentions context parallelism: all of this is our addition. A query at position p scores p + 1 keys, so
R equal runs of tokens would leave the last rank almost twice the mean. The row is cut into 2R pieces instead; rank r
takes piece r and piece 2R - 1 - r, an early one and the late one that makes up for it. What attention reads after the
selection, min(p + 1, k) keys, is nearly the same everywhere and needs no such order.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Int
from torch import Tensor

from minikeye.training.losses import IGNORED


@dataclass(frozen=True)
class Zigzag:
    """Who holds what: tokens of a row (padding not counted) over ranks. Raises ValueError where either is below 1."""

    tokens: int
    ranks: int

    def __post_init__(self) -> None:
        if self.tokens < 1 or self.ranks < 1:
            raise ValueError(f"expected at least one token and one rank, got {self.tokens} and {self.ranks}")

    @property
    def piece(self) -> int:
        """Tokens of one of the 2R pieces. The last ones are padding, where the row has fewer."""
        return -(-self.tokens // (2 * self.ranks))

    def firsts(self, rank: int) -> tuple[int, int]:
        """Where the two pieces of a rank begin in the row. Raises ValueError for a rank that does not exist."""
        if not 0 <= rank < self.ranks:
            raise ValueError(f"expected a rank of 0..{self.ranks - 1}, got {rank}")
        return rank * self.piece, (2 * self.ranks - 1 - rank) * self.piece

    def positions(self, rank: int) -> Int[Tensor, " t"]:
        """Where the tokens of a rank's share stand in the row; those from `tokens` on are padding."""
        return torch.cat([torch.arange(first, first + self.piece) for first in self.firsts(rank)])

    def order(self) -> Int[Tensor, " s"]:
        """The permutation: where the tokens of all shares, laid end to end, stand in the padded row."""
        return torch.cat([self.positions(rank) for rank in range(self.ranks)])

    def inverse(self) -> Int[Tensor, " s"]:
        """Where each token of the row lies in the shares laid end to end, padding left out.

        Not the permutation once more: from two ranks on that is another one, has the same shape, and trains a model
        whose every token looks at the wrong keys.
        """
        order = self.order()
        return torch.empty_like(order).scatter_(0, order, torch.arange(len(order)))[: self.tokens]


def next_tokens(ids: Int[Tensor, "b s"], answer: Bool[Tensor, "b s"]) -> Int[Tensor, "b s"]:
    """Labels of a whole row: at each token the id of the next where that is to be learnt, else IGNORED.

    Before the row is cut: the token after the last one of a piece lies on another rank.
    """
    return F.pad(ids.masked_fill(~answer, IGNORED)[:, 1:], (0, 1), value=IGNORED)


def cut(tokens: Mapping[str, Tensor], zigzag: Zigzag, rank: int) -> dict[str, Tensor]:
    """One rank's share of everything that goes with the tokens, by one permutation.

    tokens: of whole rows, the token axis last: input_ids and positions (both, since a share cannot count on from the
    token before it), labels (`next_tokens`), weights, start (where each token's document begins, `packing.pack`).
    Padding gets id and position 0, no label, weight 0 and a start of its own. Raises ValueError for other names and
    lengths, and for ids without positions.
    """
    padding = {"input_ids": 0, "positions": 0, "labels": IGNORED, "weights": 0, "start": 0}
    if strange := sorted(set(tokens) - set(padding)):
        raise ValueError(f"expected {', '.join(padding)}, got {strange}: only what has one entry a token can be cut")
    if wrong := {name: list(x.shape) for name, x in tokens.items() if x.shape[-1] != zigzag.tokens}:
        raise ValueError(f"expected {zigzag.tokens} tokens on the last axis, got {wrong}: cut whole rows, not shares")
    if "input_ids" in tokens and "positions" not in tokens:
        raise ValueError("expected positions [3 b t] beside input_ids, got none: a share would count its own from 0")
    at = zigzag.positions(rank)
    missing = 2 * zigzag.ranks * zigzag.piece - zigzag.tokens
    share = {name: F.pad(x, (0, missing), value=padding[name])[..., at.to(x.device)] for name, x in tokens.items()}
    if (start := share.get("start")) is not None:
        at = at.to(start)
        share["start"] = torch.where(at < zigzag.tokens, start, at)
    return share
