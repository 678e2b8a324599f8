"""What the model selected: a recorder that watches a forward pass, and the record it leaves.

Axes: b batch, t recorded query, s key position, h query head, k selected key, c chosen expert of a token.
"""

from dataclasses import dataclass, field

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from minikeye import ops
from minikeye.model.step import AttentionTrace
from minikeye.ops.torch_losses import selected_probabilities


@dataclass(frozen=True)
class LayerRecord:
    """One layer's selection for the recorded queries."""

    indices: Int[Tensor, "b t k"]  # absolute key positions, ascending, -1 where the set is padded
    weights: Float[Tensor, "b t k"]  # share of attention each selected key gets, mean over heads; sums to 1
    kept: Float[Tensor, "b t"]  # share of the dense attention mass that the set holds, mean over heads
    experts: Int[Tensor, "b t c"]  # experts that the query token went to


@dataclass
class Record:
    """The layers' selections for the queries at absolute positions first, first + 1, ... (left padding counts)."""

    layers: list[LayerRecord] = field(default_factory=list)
    first: int = 0

    @property
    def queries(self) -> int:
        """How many queries each layer recorded."""
        return self.layers[0].indices.shape[1]

    def extend(self, later: "Record") -> "Record":
        """This record followed by one whose queries come next. Raises ValueError where they do not."""
        if later.first != self.first + self.queries:
            raise ValueError(f"expected a record starting at query {self.first + self.queries}, got {later.first}")
        return Record([_join(a, b) for a, b in zip(self.layers, later.layers, strict=True)], self.first)


def _join(a: LayerRecord, b: LayerRecord) -> LayerRecord:
    k = max(a.indices.shape[-1], b.indices.shape[-1])
    pad = lambda z, value: torch.nn.functional.pad(z, (0, k - z.shape[-1]), value=value)  # noqa: E731
    return LayerRecord(
        torch.cat([pad(a.indices, -1), pad(b.indices, -1)], dim=1),
        torch.cat([pad(a.weights, 0.0), pad(b.weights, 0.0)], dim=1),
        torch.cat([a.kept, b.kept], dim=1),
        torch.cat([a.experts, b.experts], dim=1),
    )


class Recorder:
    """An observer that keeps the last `queries` queries of a forward pass, or all of them (None).

    In dense mode it records what the indexer would have selected.
    """

    def __init__(self, topk: int, queries: int | None = None, backend: str = "auto"):
        self.topk, self.queries, self.backend = topk, queries, backend
        self.record = Record()
        self._chunk: tuple[Tensor, Tensor, Tensor] | None = None  # indices, weights, kept: the router speaks next

    def attention(self, layer: int, trace: AttentionTrace) -> None:
        t = trace.q.shape[1]
        n = t if self.queries is None else min(t, self.queries - trace.later)  # of this chunk
        if n <= 0:
            self._chunk = None
            return
        offset = trace.offset + t - n
        read = trace.indices
        indices = trace.indexer_choice(self.topk, t - n, self.backend) if read is None else read[:, t - n :]
        weights, kept = selection_mass(trace.q[:, t - n :], trace.k, indices, offset, trace.start)
        if layer == len(self.record.layers) == 0:
            self.record.first = offset
        self._chunk = indices, weights, kept

    def routing(self, layer: int, probabilities: Tensor, chosen: Int[Tensor, "b t c"]) -> None:
        if self._chunk is None:
            return
        new = LayerRecord(*self._chunk, chosen[:, chosen.shape[1] - self._chunk[0].shape[1] :])
        if layer == len(self.record.layers):
            self.record.layers.append(new)
        else:  # a further chunk of the same pass
            self.record.layers[layer] = _join(self.record.layers[layer], new)


@torch.no_grad()
def selection_mass(
    q: Float[Tensor, "b t h e"],
    k: Float[Tensor, "b s g e"],
    indices: Int[Tensor, "b t k"],
    offset: int = 0,
    start: Int[Tensor, " b"] | None = None,
) -> tuple[Float[Tensor, "b t k"], Float[Tensor, "b t"]]:
    """Attention within the selected set, per key and averaged over heads; and the share of dense attention it keeps.

    kept = exp(lse over the set - lse over all valid keys). One slab of queries at a time.
    """
    weights, kept = [], []
    rows = ops.slab_rows(q.device, len(q) * q.shape[2] * k.shape[1])
    for first in range(0, q.shape[1], rows):
        slab = slice(first, first + rows)
        queries, at = q[:, slab].float(), indices[:, slab]
        grouped = rearrange(queries, "b t (g r) e -> b t g r e", g=k.shape[2])
        batch = torch.arange(len(k), device=k.device)[:, None, None]
        with torch.autocast(q.device.type, enabled=False):  # float32 also where training and reports run in bfloat16
            logits = torch.einsum("btgre,bsge->btgrs", grouped, k.float()).flatten(2, 3) * q.shape[-1] ** -0.5
            p = selected_probabilities(queries, k.float()[batch, at.clamp(min=0).long()], at)
        valid = ops.valid_keys(queries.shape[1], k.shape[1], offset + first, start, q.device)[:, :, None]
        dense = logits.masked_fill(~valid, -torch.inf).logsumexp(dim=-1)  # [b t h]
        spread = at.clamp(min=0).long()[:, :, None].expand(-1, -1, q.shape[2], -1)
        inside = logits.gather(-1, spread).masked_fill((at < 0)[:, :, None], -torch.inf).logsumexp(dim=-1)
        weights.append(p.mean(dim=2))
        kept.append((inside - dense).exp().nan_to_num(0.0).mean(dim=2))
    return torch.cat(weights, dim=1), torch.cat(kept, dim=1)
