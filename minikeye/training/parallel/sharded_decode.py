"""Decoding with the keys of one row spread over ranks: each selects among its own, and what they found is merged.

Axes: b batch, t query position, s key of one rank, j indexer head, i indexer width, k selected key, n candidate,
h query head, g KV head, e head width.
Our addition. Queries are few and the same on every rank, so here the keys stay. A key of the global top-k is in the
top-k of the rank that holds it, and the rule (score, then the smaller position) needs nothing but the two numbers: the
merge is exact, ties included. Attention over the parts of a set merges by the log-sum-exp of each part.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from minikeye import ops
from minikeye.training.parallel.wire import all_gather


@dataclass(frozen=True)
class Shard:
    """The keys of one rank, any of the row, none of them twice; there may be none. Raises ValueError for lengths that
    differ and positions that do not ascend.
    """

    k: Float[Tensor, "b s g e"]
    v: Float[Tensor, "b s g e"]
    index_k: Float[Tensor, "b s i"]
    positions: Int[Tensor, " s"]  # where they stand in the row

    def __post_init__(self) -> None:
        lengths = [len(self.positions), *(x.shape[1] for x in (self.k, self.v, self.index_k))]
        if len(set(lengths)) != 1 or not bool((self.positions.diff() > 0).all()):
            raise ValueError(
                f"expected one ascending position a key, got lengths {lengths} of positions, k, v, index_k and "
                f"positions {self.positions[:8].tolist()}...: sort the keys of a rank by position"
            )


def candidates(
    q: Float[Tensor, "b t j i"],
    w: Float[Tensor, "b t j"],
    shard: Shard,
    topk: int,
    offset: int,
    start: Int[Tensor, "b *t"] | None = None,
) -> tuple[Float[Tensor, "b t k"], Int[Tensor, "b t k"]]:
    """The best topk of a rank's keys: index scores, and positions in the row, ascending. -inf and -1 where it has less.

    offset, start: as in `ops.select_topk`, positions in the row. Holds scores of all its keys: for few queries.
    """
    at = shard.positions.to(q.device)
    seen = (at <= offset + torch.arange(q.shape[1], device=q.device)[:, None])[None]
    if start is not None:
        seen = seen & (at >= start.reshape(len(start), -1, 1))
    scores = ops.index_scores(q, shard.index_k, w, offset=len(at)).masked_fill(~seen, -torch.inf)
    chosen = ops.topk_positions(scores, topk)
    if not len(at):
        return torch.full(chosen.shape, -torch.inf, device=q.device), chosen
    column, none = chosen.clamp(min=0).long(), chosen < 0
    return scores.gather(-1, column).masked_fill(none, -torch.inf), at[column].int().masked_fill(none, -1)


def merge_candidates(
    scores: Float[Tensor, "b t n"], positions: Int[Tensor, "b t n"], topk: int
) -> Int[Tensor, "b t k"]:
    """The selection of the row from the candidates of all ranks, in any order: what `ops.select_topk` returns."""
    ordered, column = positions.sort(dim=-1)  # the rule takes ties from the left
    chosen = ops.topk_positions(scores.gather(-1, column), topk)
    return ordered.gather(-1, chosen.clamp(min=0).long()).masked_fill(chosen < 0, -1)


def partial_attention(
    q: Float[Tensor, "b t h e"], shard: Shard, selected: Int[Tensor, "b t k"], backend: str = "auto"
) -> tuple[Float[Tensor, "b t h e"], Float[Tensor, "b t h"]]:
    """Attention over the selected keys that this rank holds, and its log-sum-exp; zeros and -inf where it has none."""
    at = shard.positions.to(selected)
    if not len(at):
        return torch.zeros_like(q), torch.full(q.shape[:-1], -torch.inf, device=q.device)
    place = torch.searchsorted(at, selected).clamp(max=len(at) - 1)
    mine = (at[place] == selected) & (selected >= 0)
    # Own keys first, ascending, -1 behind them: the form that selections have everywhere.
    place = torch.where(mine, place, len(at)).sort(dim=-1).values
    return ops.sparse_attention(q, shard.k, shard.v, place.masked_fill(place == len(at), -1).int(), backend=backend)


def merge_attention(out: Float[Tensor, "ranks b t h e"], lse: Float[Tensor, "ranks b t h"]) -> Float[Tensor, "b t h e"]:
    """sum_r exp(lse_r - lse) out_r, lse over all ranks: attention over all parts of the set. No key gives zeros."""
    whole = lse.logsumexp(dim=0)
    share = (lse - whole.masked_fill(whole == -torch.inf, 0.0)).exp()
    return (ops.widen(out) * share[..., None]).sum(dim=0).to(out.dtype)


@torch.no_grad()
def decode(
    q: Float[Tensor, "b t h e"],
    index_q: Float[Tensor, "b t j i"],
    index_w: Float[Tensor, "b t j"],
    shard: Shard,
    topk: int,
    offset: int,
    group: dist.ProcessGroup,
    start: Int[Tensor, "b *t"] | None = None,
) -> tuple[Float[Tensor, "b t h e"], Int[Tensor, "b t k"]]:
    """Output and selection of queries that all ranks have, over keys that each has a part of: the same on all ranks.

    Sends, to each other rank, k scores and k positions a query (float32, int32), then its h partial outputs and their
    log-sum-exps.
    """
    found = candidates(index_q, index_w, shard, topk, offset, start)
    scores, positions = (rearrange(all_gather(x, group), "ranks b t k -> b t (ranks k)") for x in found)
    selected = merge_candidates(scores, positions, topk)
    out, lse = (all_gather(x, group) for x in partial_attention(q, shard, selected))
    return merge_attention(out, lse), selected
