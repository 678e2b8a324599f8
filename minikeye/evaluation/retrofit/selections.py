"""Ways to choose k keys in a language model: tokens, whole blocks, a window with sinks; beside those of `rules`.

Axes: b batch, t query position, s key position, n query of a slab, i indexer width, c block, k selected key.
All have the semantics of `ops.select_topk`. Blocks are scored by the same indexers, which were taught on tokens:
blocks of 4 by the mean of their index keys (as QSA does), blocks of 128 by their best key (as MSA does). Complete
blocks before the query's own compete; its own block, up to the query, is always read and counts as one of the k / size
blocks, rounded down: k = 11 reads two blocks of 4.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minikeye import ops
from minikeye.evaluation.rules import oracle, random_keys
from minikeye.model.attention import Rule
from minikeye.model.step import AttentionTrace

SINKS = 4  # first keys that a window keeps, our choice


def window(trace: AttentionTrace, topk: int) -> Int[Tensor, "b t k"]:
    """The first 4 keys and the last topk - 4. Raises ValueError for topk <= 4, and for padded rows."""
    if topk <= SINKS or trace.start is not None:
        raise ValueError(
            f"expected topk > {SINKS}, the keys that a window keeps of the beginning, and no padding; got {topk} keys"
        )
    position = torch.arange(trace.k.shape[1], dtype=torch.float32, device=trace.k.device)
    position[:SINKS] = float(2**24)  # above every other
    return _by_slabs(
        trace, topk, lambda slab, valid: position[: valid.shape[2]].expand(len(trace.k), valid.shape[1], -1)
    )


def blocks(size: int, pool: str) -> Rule:
    """The rule that reads whole blocks of `size` keys. pool: "mean" or "max", over the keys of a block.

    The rule raises ValueError for fewer keys than two blocks and than there are, and for padded rows. Raises ValueError
    for size < 1 or another pool.
    """
    if size < 1 or pool not in ("mean", "max"):
        raise ValueError(f"expected blocks of at least one key and pool 'mean' or 'max', got {size} and {pool!r}")

    def rule(trace: AttentionTrace, topk: int) -> Int[Tensor, "b t k"]:
        s = trace.k.shape[1]
        if min(2 * size, s) > topk or trace.start is not None:
            raise ValueError(
                f"expected at least {2 * size} keys, two blocks of {size}, and no padding; got {topk} keys"
            )
        most = s if topk >= s else topk // size - 1  # blocks beside the own one
        means = F.pad(trace.index_k.float(), (0, 0, 0, -s % size)).unflatten(1, (-1, size)).mean(dim=2)

        def scores(slab: slice, valid: Bool[Tensor, "1 n s"]) -> Float[Tensor, "b n s"]:
            q, w, offset, end = (
                trace.index_q[:, slab],
                trace.index_w[:, slab],
                trace.offset + slab.start,
                valid.shape[2],
            )
            count, pad = -(-end // size), -end % size
            if pool == "mean":
                best = ops.index_scores(q, means[:, :count].to(q.dtype), w, offset=count)
            else:
                best = ops.index_scores(q, trace.index_k[:, :end], w, offset)
                best = F.pad(best, (0, pad), value=-torch.inf).unflatten(2, (count, size)).amax(dim=3)
            own = (offset + torch.arange(q.shape[1], device=q.device))[:, None] // size  # [n 1]
            number = torch.arange(count, device=q.device)
            others = ops.topk_positions(best.masked_fill(number >= own, -torch.inf), min(most, count))
            read = torch.zeros(*best.shape[:2], count + 1, dtype=torch.bool, device=q.device)
            read.scatter_(-1, others.masked_fill(others < 0, count).long(), True)
            read = read[..., :count] | (number == own)
            return torch.zeros(()).to(best).masked_fill(~read.repeat_interleave(size, dim=2)[..., :end], -torch.inf)

        return _by_slabs(trace, topk, scores)

    return rule


def _by_slabs(trace: AttentionTrace, topk: int, scores: Callable[[slice, Tensor], Tensor]) -> Int[Tensor, "b t k"]:
    """The topk valid keys with the highest scores(slab, valid) [b n s], a slab of queries at a time.

    s: keys that the slab's last query sees; later ones are valid for none of it.
    """
    b, t, s, out = len(trace.q), trace.q.shape[1], trace.k.shape[1], []
    rows = ops.slab_rows(trace.q.device, b * s)
    for first in range(0, t, rows):
        slab = slice(first, min(first + rows, t))
        end = min(s, trace.offset + slab.stop)
        valid = ops.valid_keys(slab.stop - first, end, trace.offset + first, trace.start, trace.q.device)
        out.append(ops.topk_positions(scores(slab, valid).masked_fill(~valid, -torch.inf), topk))
    return torch.cat(out, dim=1)


SELECTIONS: dict[str, Rule | None] = {
    "indexer": None,
    "oracle": oracle,
    "window": window,
    "random": random_keys,
    "block4": blocks(4, "mean"),
    "block128": blocks(128, "max"),
}
