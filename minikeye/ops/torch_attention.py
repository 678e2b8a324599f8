"""Attention, the "torch" backend: over gathered rows, slab by slab (the specification), over all, and under a mask.

Axes: b batch, t query position, s key position, k selected key, h query head, g KV head, r query heads per group,
e head width, n query row of a slab. Report, section 2.3. Called through `ops`, where inputs are checked.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from minikeye.ops.torch_selection import readable, slab_rows, valid_keys, widen

FLOOR = torch.finfo(torch.float32).min  # stands in for a log-sum-exp of -inf, so that a row without keys gives zeros


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


def counting() -> bool:
    """Whether somebody counts rows now."""
    return bool(_counters)


def gather_rows(x: Float[Tensor, "b s g e"], indices: Int[Tensor, "b n k"]) -> Float[Tensor, "b n k g e"]:
    """The selected rows of x. For -1, which the caller masks, another row of the set stands in; zeros where none is."""
    for counter in _counters:
        counter.rows += int((indices >= 0).sum()) * x.shape[2]
    return _gather_uncounted(x, indices)


def gather_index_rows(index_k: Float[Tensor, "b s i"], indices: Int[Tensor, "b t k"]) -> Float[Tensor, "b t k i"]:
    """Index keys of the selected positions, uncounted; for -1 as in `gather_rows`, masked by the score."""
    return _gather_uncounted(index_k, indices)


def _logits(q: Tensor, keys: Tensor, indices: Tensor, scale: float) -> Float[Tensor, "b n g r k"]:
    logits = widen(torch.einsum("bngre,bnkge->bngrk", q, keys)) * scale
    return logits.masked_fill((indices < 0)[:, :, None, None, :], -torch.inf)


class GatheredAttention(torch.autograd.Function):
    """Slab by slab, forward and backward: the gathered rows of one slab are all that is ever held.

    Backward is FlashAttention's: p = exp(logit - lse), dv += p^T do, dlogit = p * (do . v - do . out). Once: asked for
    second derivatives, torch raises RuntimeError.
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
    @once_differentiable
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
    """Value rows ride along with their key rows, which were counted. No row outside the set counts, nan or not."""
    batch, empty = torch.arange(len(x), device=x.device)[:, None, None], (indices < 0).all(dim=-1)
    rows = x[batch, _stand_in(indices)]
    if not readable(indices) or empty.any():
        rows = rows.masked_fill(empty.reshape(*empty.shape, *(1 for _ in rows.shape[2:])), 0.0)
    return rows


def _stand_in(indices: Tensor) -> Tensor:
    """Indices with -1 replaced by the query's last selected position; by 0 where it has none."""
    if not indices.numel():
        return indices.long()
    return torch.where(indices < 0, indices.amax(dim=-1, keepdim=True), indices).clamp(min=0).long()


def _scatter_add(target: Float[Tensor, "b s g e"], indices: Tensor, rows: Float[Tensor, "b n k g e"]) -> None:
    """target[b, indices] += rows. Padded entries carry zero rows, so adding them anywhere changes nothing."""
    b, s = target.shape[:2]
    flat = _stand_in(indices) + s * torch.arange(b, device=target.device)[:, None, None]
    target.view(b * s, -1).index_add_(0, flat.flatten(), rows.flatten(3).flatten(0, 2).to(target.dtype))


def dense_attention(
    q: Float[Tensor, "b t h e"],
    k: Float[Tensor, "b s g e"],
    v: Float[Tensor, "b s g e"],
    offset: int = 0,
    start: Int[Tensor, " b"] | None = None,
    lengths: Int[Tensor, " b"] | None = None,
) -> Float[Tensor, "b t h e"]:
    """Causal grouped-query attention over every valid key, by torch's fused kernel. Padding rows give zeros.

    lengths: for one query a row, how many keys its row has, where only the device knows; offset then counts nothing,
    and the keys beyond must be finite.
    """
    t, s = q.shape[1], k.shape[1]
    q, k, v = (rearrange(z, "b t h e -> b h t e") for z in (q, k, v))
    causal = offset == 0 and t == s and start is None and lengths is None
    last = t == 1 and s == offset + 1 and start is None  # one query that sees every key
    if lengths is not None:
        place = torch.arange(s, device=q.device)
        mask = place < lengths[:, None] if start is None else (place < lengths[:, None]) & (place >= start[:, None])
        mask = mask[:, None, None]
    elif causal or last:
        mask = None
    elif q.is_cuda and start is None and s == offset + t:
        from torch.nn.attention.bias import causal_lower_right  # seconds to import, and wanted here alone

        mask = causal_lower_right(t, s)  # a chunk of a prompt: the fused kernels know this mask without storing it
    else:
        mask = valid_keys(t, s, offset, start, q.device)[:, None]
    empty = None if start is None else ~mask.any(dim=-1, keepdim=True)
    if empty is not None:
        mask = mask | empty  # see `masked_attention`
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)
    if empty is not None:
        out = out.masked_fill(empty, 0.0)
    return rearrange(out, "b h t e -> b t h e")


def masked_attention(
    q: Float[Tensor, "b t h e"],
    k: Float[Tensor, "b s g e"],
    v: Float[Tensor, "b s g e"],
    indices: Int[Tensor, "b t k"],
) -> Float[Tensor, "b t h e"]:
    """The function of `ops.sparse_attention` without its point: every key is read, those outside the set are masked.

    A position listed twice counts once, unlike there. Rows without keys give zeros.
    """
    b, t, s = *q.shape[:2], k.shape[1]
    columns = torch.where(indices < 0, s, indices).long()  # padding marks a spare column that is cut off
    # Eight spare columns, not one: the fused kernels want rows of the mask aligned.
    mask = torch.zeros(b, t, s + 8, dtype=torch.bool, device=q.device).scatter_(-1, columns, True)[:, None, :, :s]
    # A row without keys reads all of them and is set to 0 behind the kernel: of a row of nothing, some fused kernels
    # make a gradient that is not a number, which then is that of every parameter.
    empty = ~mask.any(dim=-1, keepdim=True)
    mask |= empty
    heads = q.shape[2] // k.shape[2]
    k, v = (torch.repeat_interleave(z, heads, dim=2) for z in (k, v))  # the masked kernels know no groups
    q, k, v = (rearrange(z, "b t h e -> b h t e") for z in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return rearrange(out.masked_fill(empty, 0.0), "b h t e -> b t h e")
