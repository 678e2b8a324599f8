"""Sparse attention on the kernels, as one differentiable function. The door: what comes in is checked here.

Axes: b batch, t query position, s key position, h query head, g KV head, e head width, k selected keys.
Report, section 2.3. Which kernel answers a query is decided on the device, tile by tile of eight neighbouring queries:
sparse_union.py where the union of their sets pays, sparse_forward.py elsewhere. Gradients: sparse_backward.py, over
unions wherever there is one.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minikeye.kernels.attention.sparse_backward import KeyGradients, add_tiles, single_lists
from minikeye.kernels.attention.sparse_forward import sparse_forward
from minikeye.kernels.attention.sparse_union import sparse_union
from minikeye.kernels.attention.union_lists import PAYS, build_unions, tile_queries
from minikeye.kernels.launch import runs_on

SLAB = 2**26  # bytes of membership map and union lists held at once: 64 MiB, some 2700 queries at 128K keys
DTYPES = (torch.float16, torch.bfloat16, torch.float32)
WIDTHS = (16, 32, 64, 128)


def sparse_attention(
    q: Tensor, k: Tensor, v: Tensor, indices: Tensor, scale: float | None = None, deterministic: bool = True
) -> tuple[Tensor, Tensor]:
    """u[t, g] = Attn(h[t, g], {c[s, g] : s in indices[t]}): out [b t h e] in q's dtype, lse float32 [b t h].

    q [b t h e]; k, v [b s g e], g dividing h, h / g <= 16, e 16, 32, 64 or 128; indices int32 or int64 [b t k] with
    values in -1..s-1, which is not checked here: asking the device would make the CPU wait. -1 marks no key, a key
    listed twice counts twice, a query without keys gives zeros and lse -inf. scale: default e^-1/2. Gradients flow to
    q, k and v, not through lse. Raises ValueError for shapes, dtypes, strides or devices that do not fit.

    Gradients are the same bits at every repeat; deterministic=False adds up dk and dv as floats, in any order. Where
    they or dq are not finite, or dout is so large that float32 sums might not be (sparse_backward.py), all dk and dv of
    that batch row and KV head are nan. On a CPU: set TRITON_INTERPRET=1 before this module is imported; it is slow.
    """
    check_attention(q, k, v, indices)
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    return _SparseAttention.apply(q, k, v, indices, scale, deterministic)


class _SparseAttention(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx, q: Tensor, k: Tensor, v: Tensor, indices: Tensor, scale: float, deterministic: bool
    ) -> tuple[Tensor, Tensor]:
        out, lse = _forward(q, k, v, indices, scale)
        ctx.save_for_backward(q, k, v, indices, out, lse)
        ctx.scale, ctx.deterministic = scale, deterministic
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    @once_differentiable
    def backward(ctx, dout: Tensor, _dlse: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, indices, out, lse = ctx.saved_tensors
        if not q.numel() or not indices.numel() or not k.numel():
            gradients = tuple(torch.zeros_like(x) for x in (q, k, v))
        else:
            gradients = _backward(q, k, v, indices, out, lse, dout.contiguous(), ctx.scale, ctx.deterministic)
        return *gradients, None, None, None


def _forward(q: Tensor, k: Tensor, v: Tensor, indices: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty(q.shape[:-1], dtype=torch.float32, device=q.device)
    if not q.numel() or not indices.numel() or not k.numel():
        return out.zero_(), lse.fill_(-torch.inf)
    if q.shape[1] == 1 or q.dtype == torch.float32:  # nothing to share; no matrix instruction to feed
        sparse_forward(q, k, v, indices, scale, out, lse)
        return out, lse
    queries = tile_queries(q.shape[2] // k.shape[2])
    for part in _slabs(k, indices, queries):
        unions = build_unions(indices[:, part], k.shape[1], queries, PAYS)
        sparse_union(q[:, part], k, v, unions, scale, out[:, part], lse[:, part], queries)
        sparse_forward(q[:, part], k, v, indices[:, part], scale, out[:, part], lse[:, part], unions[1], queries)
    return out, lse


def _backward(
    q: Tensor, k: Tensor, v: Tensor, indices: Tensor, out: Tensor, lse: Tensor, dout: Tensor, scale: float, exact: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dq, keys = torch.empty_like(out), KeyGradients(q, k, v, out, dout, scale, exact)
    queries = tile_queries(q.shape[2] // k.shape[2])
    for part in _slabs(k, indices, queries):
        rows = out[:, part], lse[:, part], dout[:, part]
        unions = build_unions(indices[:, part], k.shape[1], queries, math.inf)
        add_tiles(q[:, part], k, v, unions, *rows, scale, queries, dq[:, part], keys)
        single = single_lists(indices[:, part], unions[1], queries)
        add_tiles(q[:, part], k, v, single, *rows, scale, 1, dq[:, part], keys)
    return dq, *keys.finish(dq, k.dtype)


def _slabs(k: Tensor, indices: Tensor, queries: int) -> Iterator[slice]:
    """Stretches of whole tiles whose maps (s bytes a tile) and lists (4 bytes an entry) fit SLAB."""
    (b, t, topk), s = indices.shape, k.shape[1]
    rows = max(1, SLAB // (b * (s + 4 * min(queries * topk, s)))) * queries
    return (slice(first, min(first + rows, t)) for first in range(0, t, rows))


def check_attention(q: Tensor, k: Tensor, v: Tensor, indices: Tensor) -> None:
    for name, x, axes in (("q", q, "b t h e"), ("k", k, "b s g e"), ("v", v, "b s g e"), ("indices", indices, "b t k")):
        if x.ndim != len(axes.split()):
            raise ValueError(f"{name} must be [{axes}], got {list(x.shape)}")
        if x.device != q.device:
            raise ValueError(f"{name} must be on the device of q, {q.device}; got {x.device}")
        if x.numel() and x.stride(-1) != 1:
            raise ValueError(
                f"the last axis of {name} must have stride 1, got {x.stride(-1)}: call .contiguous() on it"
            )
    b, t, h, e = q.shape
    g = k.shape[2]
    if k.shape != v.shape or k.shape[0] != b or k.shape[3] != e or not g or h % g:
        raise ValueError(
            f"queries {list(q.shape)} [b t h e] need keys and values of one shape [{b}, s, g, {e}], g dividing {h}; "
            f"got {list(k.shape)} and {list(v.shape)}"
        )
    if h // g > 16 or e not in WIDTHS:
        raise ValueError(f"the kernels take 1 to 16 heads a group and head widths {WIDTHS}; got {h // g} and {e}")
    if q.dtype not in DTYPES or {k.dtype, v.dtype} != {q.dtype}:
        raise ValueError(f"q, k, v must share one dtype of {DTYPES}, got {q.dtype}, {k.dtype}, {v.dtype}")
    if indices.shape[:2] != (b, t) or indices.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"indices must be int32 or int64 [{b}, {t}, k], got {indices.dtype} {list(indices.shape)}")
    if h * q.stride(2) >= 2**31 or g * max(k.stride(2), v.stride(2)) >= 2**31:
        raise ValueError(f"offsets of heads must fit 31 bits; got strides {q.stride(2)}, {k.stride(2)}, {v.stride(2)}")
    if k.shape[1] >= 2**23 or k.shape[1] * max(k.stride(1), v.stride(1)) >= 2**31:
        raise ValueError(
            f"offsets of keys must fit 31 bits and positions 23; got {list(k.shape)}, stride {k.stride(1)}"
        )
    if not runs_on(q.device):
        raise ValueError(f"the kernels need a CUDA device, got {q.device}; on a CPU set TRITON_INTERPRET=1 beforehand")
