"""Selection, the "torch" backend: index scores and the exact top-k rule. It runs everywhere and is the specification.

Axes: b batch, t query position, s key position, j indexer head, i indexer width, k selected key, n query row of a slab.
Report, section 2.3. Called through `ops`, where inputs are checked.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def widen(x: Tensor) -> Tensor:
    """float32, or float64 where x is: softmaxes and sums are never taken in 16 bits."""
    return x if x.dtype == torch.float64 else x.float()


def readable(x: Tensor) -> bool:
    """Whether the CPU may ask for x's values: not while a CUDA graph is being captured. The eager run before may."""
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def index_scores(
    q: Float[Tensor, "b t j i"],
    k: Float[Tensor, "b s i"],
    w: Float[Tensor, "b t j"],
    offset: int = 0,
    start: Int[Tensor, "b *t"] | None = None,
) -> Float[Tensor, "b t s"]:
    """I[t, s] = sum_j w[t, j] * ReLU(q[t, j] . k[s]) / sqrt(i), in float32; -inf where query t may not see key s.

    Query t stands at absolute position offset + t and sees the keys start <= s <= offset + t. start: one first key a
    row [b], or one a query [b t]; None means 0. The report's equation for I leaves out the factor 1/sqrt(i) of the
    released code; it changes no selection, but the softmax of the KL losses.
    """
    scores = torch.zeros(*q.shape[:2], k.shape[1], dtype=torch.float32, device=q.device)
    with torch.autocast(q.device.type, enabled=False):
        keys = k.float().mT
        for j in range(q.shape[2]):  # one head at a time: [b t s] once, never [b t j s]; few passes over memory
            scores = torch.addcmul(scores, w[:, :, j, None].float(), (q[:, :, j].float() @ keys).relu_())
    sure = max(0, min(offset, k.shape[1])) if start is None else 0  # so many keys are valid for all queries
    valid = valid_keys(q.shape[1], k.shape[1] - sure, offset - sure, start, q.device)
    scores.mul_(q.shape[-1] ** -0.5)[..., sure:].masked_fill_(~valid, -torch.inf)
    return scores


def valid_keys(t: int, s: int, offset: int, start: Tensor | None, device: torch.device | None = None) -> Tensor:
    """Which keys a query may see: bool [1 t s], or [b t s] where rows have their own `start`."""
    key = torch.arange(s, device=device)
    valid = (key <= offset + torch.arange(t, device=device)[:, None])[None]
    if start is not None:
        valid = valid & (key >= start.to(device).reshape(len(start), -1, 1))
    return valid


@torch.no_grad()
def select_slabs(
    q: Float[Tensor, "b t j i"],
    k: Float[Tensor, "b s i"],
    w: Float[Tensor, "b t j"],
    topk: int,
    offset: int = 0,
    start: Int[Tensor, "b *t"] | None = None,
) -> Int[Tensor, "b t k"]:
    """`ops.select_topk` on a slab of query rows at a time, never on a whole [t s] matrix."""
    rows = slab_rows(q.device, q.shape[0] * k.shape[1])
    out = torch.empty(*q.shape[:2], topk, dtype=torch.int32, device=q.device)
    for first in range(0, q.shape[1], rows):
        slab = slice(first, first + rows)
        begin = start[:, slab] if start is not None and start.ndim == 2 else start
        end = min(k.shape[1], offset + first + q[:, slab].shape[1])  # keys past the slab's last query are not valid
        scores = index_scores(q[:, slab], k[:, :end], w[:, slab], offset + first, begin)
        out[:, slab] = topk_positions(scores, topk)
    return out


@torch.no_grad()
def select_within(
    q: Float[Tensor, "b 1 j i"],
    k: Float[Tensor, "b s i"],
    w: Float[Tensor, "b 1 j"],
    topk: int,
    lengths: Int[Tensor, " b"],
    start: Int[Tensor, " b"] | None = None,
) -> Int[Tensor, "b 1 k"]:
    """`ops.select_decode`: of each row the keys start <= s < lengths[b] are valid."""
    scores = index_scores(q, k, w, k.shape[1], start)
    beyond = torch.arange(k.shape[1], device=q.device) >= lengths[:, None, None]
    return topk_positions(scores.masked_fill(beyond, -torch.inf), topk)


def topk_positions(scores: Float[Tensor, "b n s"], topk: int) -> Int[Tensor, "b n k"]:
    """The selection rule on a slab of scores: everything above the k-th score, then its ties from the left."""
    s = scores.shape[-1]
    if topk >= s:
        return _ascending(scores > -torch.inf, topk)
    kth = (best := scores.topk(topk, dim=-1, sorted=False)).values.amin(dim=-1, keepdim=True)
    if not readable(scores):
        return _ties_from_left(scores, kth, topk)
    at = best.indices.masked_fill(best.values == -torch.inf, s).sort(dim=-1).values
    out = torch.where(at == s, -1, at).int()
    # Where no valid key outside the set has the k-th score, the set is unique, in whatever order topk found it.
    tied = ((scores >= kth).count_nonzero(dim=-1) > topk) & (kth[..., 0] > -torch.inf)
    out[tied] = _ties_from_left(scores[tied], kth[tied], topk)
    return out


def _ties_from_left(scores: Float[Tensor, "*n s"], kth: Float[Tensor, "*n 1"], topk: int) -> Int[Tensor, "*n k"]:
    above, tied = scores > kth, (scores == kth) & (kth > -torch.inf)
    return _ascending(above | (tied & (tied.cumsum(dim=-1) <= topk - above.sum(dim=-1, keepdim=True))), topk)


def _ascending(chosen: Bool[Tensor, "*n s"], topk: int) -> Int[Tensor, "*n k"]:
    """Positions of the True entries, at most topk a row, padded with -1."""
    rank = chosen.cumsum(dim=-1, dtype=torch.int32) - 1
    # Chosen keys go to the column of their rank, the others to one spare column that is cut off.
    column = torch.where(chosen, rank, topk).long()
    position = torch.arange(chosen.shape[-1], dtype=torch.int32, device=chosen.device).expand_as(column)
    out = torch.full((*chosen.shape[:-1], topk + 1), -1, dtype=torch.int32, device=chosen.device)
    return out.scatter_(-1, column, position)[..., :topk]


def slab_rows(device: torch.device, elements_per_row: int) -> int:
    """Query rows worked on at once: 2^19 elements on a CPU, which caches hold (2 MiB), 2^26 on a GPU (256 MiB)."""
    return max(1, 2 ** (26 if device.type == "cuda" else 19) // max(1, elements_per_row))
