"""One row over many ranks, and sparse attention over it: keys travel, queries stay.

Axes: b batch, t query position (of one rank's share), s key position (of the whole row), d channel, j indexer head,
i indexer width, h query head, g KV head, e head width, k selected key.
Our addition, the report has no context parallelism. A selection is global, so a rank needs every index key; what is
then read may lie anywhere, so it gets every key and value too: 2 * 4 * 128 + 64 = 1,088 numbers a token at the released
widths, about half of the 2,048 of a hidden state. Scores, selections, attention and both KL losses are per query and
stay where the query is; their gradients travel back to the keys' owners.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
import torch.distributed as dist
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from minikeye import ops
from minikeye.training.parallel.wire import all_gather, all_to_all
from minikeye.training.parallel.zigzag import Zigzag


@dataclass(frozen=True)
class Share:
    """The queries of one rank. Its methods take them with the keys of the whole row, in the row's order (`gather`)."""

    zigzag: Zigzag
    rank: int
    start: Int[Tensor, "b t"] | None = None  # first key of each query's document, of this share (`zigzag.cut`)

    def select(
        self,
        q: Float[Tensor, "b t j i"],
        k: Float[Tensor, "b s i"],
        w: Float[Tensor, "b t j"],
        topk: int,
        backend: str = "auto",
    ) -> Int[Tensor, "b t k"]:
        """`ops.select_topk` of the whole row, its rows of this share: positions in the row. Padding selects nothing.

        Two calls, since a call's queries stand side by side. Raises ValueError for another number of tokens.
        """
        self._require(q, k)
        piece, found = self.zigzag.piece, []
        for n, first in enumerate(self.zigzag.firsts(self.rank)):
            part = slice(n * piece, (n + 1) * piece)
            start = None if self.start is None else self.start[:, part]
            found.append(ops.select_topk(q[:, part], k, w[:, part], topk, first, start, backend))
        return torch.cat(found, dim=1).masked_fill(self._padding(q)[:, None], -1)

    def warmup_loss(
        self,
        index_q: Float[Tensor, "b t j i"],
        index_k: Float[Tensor, "b s i"],
        index_w: Float[Tensor, "b t j"],
        q: Float[Tensor, "b t h e"],
        k: Float[Tensor, "b s g e"],
        backend: str = "auto",
    ) -> Float[Tensor, "b t"]:
        """`ops.warmup_loss` of this share's rows, nats; 0 for padding. Raises ValueError as `select` does.

        L_sparse needs no method: `ops.selected_loss` takes a selection, wherever its queries stand.
        """
        self._require(q, k)
        positions = self.zigzag.positions(self.rank).to(q.device)
        loss = ops.warmup_loss(index_q, index_k, index_w, q, k, positions, self.start, backend)
        return loss.masked_fill(self._padding(q), 0.0)

    def everything(self, q: Float[Tensor, "b t h e"]) -> Int[Tensor, "b t s"]:
        """Positions of all keys that each query may see, -1 for the others: dense attention as a selection."""
        key = torch.arange(self.zigzag.tokens, dtype=torch.int32, device=q.device)
        position = self.zigzag.positions(self.rank).to(q.device)[:, None]
        seen = (key <= position) & (position < self.zigzag.tokens)
        seen = seen.expand(len(q), -1, -1) if self.start is None else seen & (key >= self.start[..., None])
        return torch.where(seen, key, -1)

    def _padding(self, q: Tensor) -> Tensor:
        return self.zigzag.positions(self.rank).to(q.device) >= self.zigzag.tokens

    def _require(self, q: Tensor, k: Tensor) -> None:
        expected = 2 * self.zigzag.piece, self.zigzag.tokens
        if (q.shape[1], k.shape[1]) != expected:
            raise ValueError(
                f"expected {expected[0]} queries (a share) and {expected[1]} keys (the row), got {q.shape[1]} and "
                f"{k.shape[1]}: `gather` the keys, and leave the queries as `cut` made them"
            )


def gather(shares: Sequence[Float[Tensor, "b t ..."]], zigzag: Zigzag, group: dist.ProcessGroup) -> tuple[Tensor, ...]:
    """Every rank's tokens in the order of the row, padding left out: [b t ...] -> [b s ...], in one message.

    shares: keys, values, index keys of this rank, of one dtype. A gradient goes back to the rank whose token it is and
    is added up there in rank order, in float32: the same bits at every repeat. Every rank has to take part, forward and
    backward: one without labels adds a loss of 0, and all must need gradients of the same tensors. Raises ValueError
    for shares of other lengths or of several dtypes, and for a group of another size.
    """
    expected, dtypes = 2 * zigzag.piece, {x.dtype for x in shares}
    if any(x.shape[1] != expected for x in shares) or len(dtypes) != 1:
        got = [f"{x.dtype} {list(x.shape)}" for x in shares]
        raise ValueError(f"expected shares of {expected} tokens and of one dtype, got {got}: `cut` makes shares")
    if group.size() != zigzag.ranks:
        raise ValueError(f"expected a group of {zigzag.ranks} ranks, got {group.size()}: cut rows for this group")
    return _Gathered.apply(zigzag, group, *shares)


class _Gathered(torch.autograd.Function):
    """Forward: all ranks' shares, put in order. Backward: out of order again, each share to its owner, and summed."""

    @staticmethod
    def forward(ctx, zigzag: Zigzag, group: dist.ProcessGroup, *shares: Tensor) -> tuple[Tensor, ...]:
        ctx.zigzag, ctx.group = zigzag, group
        ctx.set_materialize_grads(False)  # what has no gradient is not sent
        packed = torch.cat([x.flatten(2) for x in shares], dim=-1)
        row = rearrange(all_gather(packed, group), "ranks b t d -> b (ranks t) d")[
            :, zigzag.inverse().to(packed.device)
        ]
        out = tuple(part.contiguous() for part in _unpack(row, shares))
        needed = ctx.needs_input_grad[2:]
        ctx.mark_non_differentiable(*(x for x, wanted in zip(out, needed, strict=True) if not wanted))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        present = [x for x in gradients if x is not None]
        if not present:
            return None, None, *gradients
        zigzag, order = ctx.zigzag, ctx.zigzag.order()
        packed = torch.cat([x.flatten(2) for x in present], dim=-1)
        packed = F.pad(packed, (0, 0, 0, len(order) - zigzag.tokens))[:, order.to(packed.device)]
        parts = all_to_all(rearrange(packed, "b (ranks t) d -> ranks b t d", ranks=zigzag.ranks), ctx.group)
        total = ops.widen(parts[0])
        for part in parts[1:]:  # one after the other: addition in a fixed order
            total = total + part
        own = iter(_unpack(total.to(packed.dtype), present))
        return None, None, *(None if x is None else next(own) for x in gradients)


def _unpack(x: Float[Tensor, "b t d"], like: Sequence[Tensor]) -> list[Tensor]:
    """Undo `flatten(2)` and `cat`: pieces of x with the channels that those of `like` have."""
    widths = [prod(y.shape[2:]) for y in like]
    return [part.unflatten(2, y.shape[2:]) for part, y in zip(x.split(widths, dim=-1), like, strict=True)]


def gathered_bytes(zigzag: Zigzag, batch: int, kv_heads: int, head_width: int, index_width: int, size: int) -> int:
    """Bytes that one rank sends for one layer's keys, values and index keys; as many again for their gradients.

    Its share goes once to each other rank. size: bytes of a number. All ranks together send the padded row R - 1 times.
    """
    numbers = 2 * kv_heads * head_width + index_width
    return (zigzag.ranks - 1) * batch * 2 * zigzag.piece * numbers * size
