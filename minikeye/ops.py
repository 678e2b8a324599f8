"""The only door to kernels: index scores, exact top-k selection, sparse attention.

Axes: b batch, t query position, s key position, j indexer head, i indexer width, k selected key, h query head,
g KV head, r query heads per group, e head width, n query row of a slab.
Report, section 2.3. The "torch" backend runs everywhere and is the specification.
"""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

BACKENDS = ("auto", "torch", "triton")
FLOOR = torch.finfo(torch.float32).min  # stands in for a log-sum-exp of -inf, so that a row without keys gives zeros


def widen(x: Tensor) -> Tensor:
    """float32, or float64 where x is: softmaxes and sums are never taken in 16 bits."""
    return x if x.dtype == torch.float64 else x.float()


def readable(x: Tensor) -> bool:
    """Whether the CPU may ask for x's values: not while a CUDA graph is being captured. The eager run before may."""
    return not (x.is_cuda and torch.cuda.is_current_stream_capturing())


def choose_backend(backend: str, device: torch.device | str = "cpu") -> tuple[str, str]:
    """The backend that will run, and why. "auto" takes the Triton kernels where they can run on `device`, else torch.

    Raises RuntimeError where "triton" is asked for and cannot run: a request is never answered by another backend.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    if backend == "torch":
        return "torch", "asked for"
    obstacle = _triton_obstacle(torch.device(device))
    if obstacle and backend == "triton":
        raise RuntimeError(f"backend 'triton' cannot run: {obstacle}. Use backend='torch', or 'auto' to let it choose.")
    return ("torch", obstacle) if obstacle else ("triton", "Triton kernels present, CUDA device")


def _triton_obstacle(device: torch.device) -> str:
    if not _kernels_present():
        return "this version of minikeye has no Triton kernels"
    if device.type != "cuda":
        return f"the tensors are on {device.type}, the kernels need a CUDA device"
    return "" if importlib.util.find_spec("triton") else "the package triton is not installed"


@cache
def _kernels_present() -> bool:
    package = importlib.util.find_spec("minikeye.kernels")
    return package is not None and importlib.util.find_spec("minikeye.kernels.sparse_attention") is not None


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
    released code; it changes no selection, but the softmax of the KL losses. Raises ValueError where shapes do not fit.
    """
    _check_index(q, k, w, start)
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


def select_topk(
    q: Float[Tensor, "b t j i"],
    k: Float[Tensor, "b s i"],
    w: Float[Tensor, "b t j"],
    topk: int,
    offset: int = 0,
    start: Int[Tensor, "b *t"] | None = None,
    backend: str = "auto",
) -> Int[Tensor, "b t k"]:
    """Positions of the topk highest index scores of each query, int32 [b t topk].

    Exact over the float32 scores of the valid keys; ties go to the smaller position; ascending; padded with -1 at the
    end where fewer than topk keys are valid. Works on a slab of query rows at a time, never on a whole [t s] matrix.
    Raises ValueError for shapes that do not fit or topk < 1.
    """
    _check_index(q, k, w, start)
    if topk < 1:
        raise ValueError(f"topk must be at least 1, got {topk}")
    choose_backend(backend, q.device)
    with torch.no_grad():
        rows = slab_rows(q.device, q.shape[0] * k.shape[1])
        out = torch.empty(*q.shape[:2], topk, dtype=torch.int32, device=q.device)
        for first in range(0, q.shape[1], rows):
            slab = slice(first, first + rows)
            begin = start[:, slab] if start is not None and start.ndim == 2 else start
            end = min(k.shape[1], offset + first + q[:, slab].shape[1])  # keys past the slab's last query are not valid
            scores = index_scores(q[:, slab], k[:, :end], w[:, slab], offset + first, begin)
            out[:, slab] = topk_positions(scores, topk)
    return out


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


def _check_index(q: Tensor, k: Tensor, w: Tensor, start: Tensor | None) -> None:
    b, t, j, i = q.shape
    if k.shape[0] != b or k.shape[-1] != i or tuple(w.shape) != (b, t, j):
        raise ValueError(
            f"index queries {list(q.shape)} [b t j i] need keys [{b}, s, {i}] and gates [{b}, {t}, {j}]; "
            f"got {list(k.shape)} and {list(w.shape)}"
        )
    if start is not None and tuple(start.shape) not in ((b,), (b, t)):
        raise ValueError(f"start must be [{b}] or [{b}, {t}], got {list(start.shape)}")


@dataclass
class RowCount:
    """Key rows gathered so far (each comes with its value row). A row is one position of one KV head."""

    rows: int = 0


_counters: list[RowCount] = []


@contextmanager
def count_rows() -> Iterator[RowCount]:
    """Counts the key rows that sparse attention really reads inside the block. Forward and backward both count."""
    _counters.append(counter := RowCount())
    try:
        yield counter
    finally:
        _counters.remove(counter)


def sparse_attention(
    q: Float[Tensor, "b t h e"],
    k: Float[Tensor, "b s g e"],
    v: Float[Tensor, "b s g e"],
    indices: Int[Tensor, "b t k"],
    scale: float | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b t h e"], Float[Tensor, "b t h"]]:
    """u[t, g] = Attn(h[t, g], {c[s, g] : s in indices[t]}): all heads of a token share one set of keys.

    Only the selected rows of k and v are read. -1 marks no key; a position listed twice counts twice; a query without
    keys gives zeros. Nothing else is masked: causality lies in the indices. scale: default (head width)^-1/2. Returns
    the output in q's dtype and the log-sum-exp of each query's logits (float32, float64 for float64 q; -inf without
    keys; no gradient). Gradients flow to q, k, v. Raises ValueError for shapes that do not fit.
    """
    b, t, h, e = q.shape
    if k.shape != v.shape or k.shape[0] != b or k.shape[-1] != e or h % k.shape[2]:
        raise ValueError(
            f"queries {list(q.shape)} [b t h e] need keys and values of one shape [{b}, s, g, {e}], g dividing {h}; "
            f"got {list(k.shape)} and {list(v.shape)}"
        )
    if indices.shape[:2] != (b, t) or indices.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"indices must be int [{b}, {t}, k], got {indices.dtype} {list(indices.shape)}")
    low, high = (int(n) for n in indices.aminmax()) if indices.numel() and readable(indices) else (-1, -1)
    if low < -1 or high >= k.shape[1]:
        raise ValueError(f"indices must lie in -1..{k.shape[1] - 1}, got {low}..{high}")
    choose_backend(backend, q.device)
    return _SparseAttention.apply(q, k, v, indices, e**-0.5 if scale is None else scale)


def gather_rows(x: Float[Tensor, "b s g e"], indices: Int[Tensor, "b n k"]) -> Float[Tensor, "b n k g e"]:
    """The selected rows of x. The query's first row stands in for -1 and is masked by the caller."""
    for counter in _counters:
        counter.rows += int((indices >= 0).sum()) * x.shape[2]
    return _gather_uncounted(x, indices)


def _logits(q: Tensor, keys: Tensor, indices: Tensor, scale: float) -> Float[Tensor, "b n g r k"]:
    logits = widen(torch.einsum("bngre,bnkge->bngrk", q, keys)) * scale
    return logits.masked_fill((indices < 0)[:, :, None, None, :], -torch.inf)


class _SparseAttention(torch.autograd.Function):
    """Slab by slab, forward and backward: the gathered rows of one slab are all that is ever held.

    Backward is FlashAttention's: p = exp(logit - lse), dv += p^T do, dlogit = p * (do . v - do . out).
    """

    @staticmethod
    def forward(ctx, q: Tensor, k: Tensor, v: Tensor, indices: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        out = torch.empty_like(q)
        lse = torch.empty(q.shape[:-1], dtype=widen(q[:0]).dtype, device=q.device)
        for slab in _slabs(k, indices):
            queries = rearrange(q[:, slab], "b n (g r) e -> b n g r e", g=k.shape[2])
            logits = _logits(queries, gather_rows(k, indices[:, slab]), indices[:, slab], scale)
            row_lse = logits.logsumexp(dim=-1)
            p = (logits - row_lse.clamp(min=FLOOR)[..., None]).exp()
            rows = _gather_uncounted(v, indices[:, slab])
            out[:, slab] = torch.einsum("bngrk,bnkge->bngre", p.to(v.dtype), rows).flatten(2, 3)
            lse[:, slab] = row_lse.flatten(2, 3)
        ctx.save_for_backward(q, k, v, indices, out, lse)
        ctx.scale = scale
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx, d_out: Tensor, _d_lse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, indices, out, lse = ctx.saved_tensors
        groups = k.shape[2]
        dq, dk, dv = torch.empty_like(q), torch.zeros_like(widen(k)), torch.zeros_like(widen(v))
        for slab in _slabs(k, indices):
            at = indices[:, slab]
            queries, do, o = (rearrange(z[:, slab], "b n (g r) e -> b n g r e", g=groups) for z in (q, d_out, out))
            row_lse = rearrange(lse[:, slab], "b n (g r) -> b n g r 1", g=groups)
            keys, values = gather_rows(k, at), _gather_uncounted(v, at)
            p = (_logits(queries, keys, at, ctx.scale) - row_lse.clamp(min=FLOOR)).exp()
            dp = widen(torch.einsum("bngre,bnkge->bngrk", do, values))
            delta = (widen(do) * widen(o)).sum(dim=-1, keepdim=True)
            dlogits = (p * (dp - delta) * ctx.scale).to(q.dtype)
            dq[:, slab] = torch.einsum("bngrk,bnkge->bngre", dlogits, keys).flatten(2, 3)
            _scatter_add(dk, at, torch.einsum("bngrk,bngre->bnkge", dlogits, queries))
            _scatter_add(dv, at, torch.einsum("bngrk,bngre->bnkge", p.to(do.dtype), do))
        return dq, dk.to(k.dtype), dv.to(v.dtype), None, None


def _slabs(k: Tensor, indices: Tensor) -> Iterator[slice]:
    b, t, topk = indices.shape
    rows = slab_rows(k.device, b * topk * k.shape[2] * k.shape[3])
    return (slice(first, min(first + rows, t)) for first in range(0, t, rows))


def _gather_uncounted(x: Tensor, indices: Tensor) -> Tensor:
    """Value rows ride along with their key rows, which were counted. No row outside the set is touched."""
    batch = torch.arange(len(x), device=x.device)[:, None, None]
    return x[batch, _stand_in(indices)]


def _stand_in(indices: Tensor) -> Tensor:
    """Indices with -1 replaced by the query's first selected position; by 0 where it has none."""
    return torch.where(indices < 0, indices[..., :1], indices).clamp(min=0).long()


def _scatter_add(target: Float[Tensor, "b s g e"], indices: Tensor, rows: Float[Tensor, "b n k g e"]) -> None:
    """target[b, indices] += rows. Padded entries carry zero rows, so adding them anywhere changes nothing."""
    b, s = target.shape[:2]
    flat = _stand_in(indices) + s * torch.arange(b, device=target.device)[:, None, None]
    target.view(b * s, -1).index_add_(0, flat.flatten(), rows.flatten(3).flatten(0, 2).to(target.dtype))
