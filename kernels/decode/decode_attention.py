"""Sparse attention of one new token a batch row, split over the selected keys: two launches, ready for a CUDA graph.

Axes: b batch, s key position (up to the cache's capacity), h query head, g KV head, r query heads per group, e head
width, k selected keys. Report, section 2.3. What sparse_forward.py computes for one query,

    l[h, s] = scale * q[h] . k[s, g]        for s in S, g = h // r
    out[h] = sum_s exp(l[h, s] - lse[h]) v[s, g]        lse[h] = log sum_s exp(l[h, s])

but one query has only g programs for a whole GPU. So its slots are split into parts, one program for each part and KV
head. Part p leaves its largest logit m[p], total[p] = sum exp(l - m[p]) and acc[p] = sum exp(l - m[p]) v, and a second
kernel puts the parts of a head on the common scale M = max m[p]:

    total = sum_p exp(m[p] - M) total[p]        out = sum_p exp(m[p] - M) acc[p] / total        lse = M + log total

-1 marks no key, anywhere in a row. A row without keys gives zeros and a log-sum-exp of -inf.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.attention.gather import gather
from minikeye.kernels.attention.online_softmax import LOWEST, absorb, begin, finish
from minikeye.kernels.attention.sparse_attention import check_attention
from minikeye.kernels.attention.sparse_forward import sparse_forward
from minikeye.kernels.decode.dependent import ALONE, release, wait
from minikeye.kernels.launch import architecture, launch, upcast

# BLOCK_S: keys gathered at once, as in sparse_forward.py. A part of up to 128 slots is then in flight as a whole.
LAUNCH = {
    "sm_80": {"BLOCK_S": 32, "num_warps": 2, "num_stages": 3},
    "sm_90": {"BLOCK_S": 32, "num_warps": 2, "num_stages": 4},
    "interpreter": {"BLOCK_S": 8},  # small, so that small tests cross blocks
}
COMBINE = {"sm_80": {"num_warps": 4}, "sm_90": {"num_warps": 4}, "interpreter": {}}
# Splits by programs that one split would give, b * g: up to so many -> splits. A few hundred programs fill a GPU.
SPLITS = ((8, 32), (32, 16), (64, 8), (128, 4), (256, 2))


@triton.jit
def decode_attention_kernel(
    q, k, v, indices, m_parts, totals, accs, scale_log2,
    q_b, q_h, k_b, k_s, k_g, v_b, v_s, v_g, i_b,
    TOPK, PART, PARTS, R,
    E: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid (split, g, b). m_parts, totals float32 [b h split], accs float32 [b h split e], contiguous."""
    split, g, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    head = tl.arange(0, BLOCK_R)
    width = tl.arange(0, E)
    q += b * q_b + g * R * q_h
    query = tl.load(q + head[:, None] * q_h + width[None, :], mask=head[:, None] < R, other=0.0)
    k += b * k_b + g * k_g
    v += b * v_b + g * v_g
    indices += b * i_b
    if UPCAST:
        query = query.to(tl.float32)

    m, total, acc = begin(BLOCK_R, E)
    stop = tl.minimum((split + 1) * PART, TOPK)
    for first in range(split * PART, stop, BLOCK_S):
        at = first + tl.arange(0, BLOCK_S)
        is_key, keys, values = gather(k, v, indices, at, stop, k_s, v_s, width, UPCAST)
        logits = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale_log2
        logits = tl.where(is_key[None, :], logits, float("-inf"))
        m, total, acc = absorb(m, total, acc, logits, values)

    row = ((b * tl.num_programs(1) + g) * R + head) * PARTS + split
    tl.store(m_parts + row, m, mask=head < R)
    tl.store(totals + row, total, mask=head < R)
    tl.store(accs + row[:, None] * E + width[None, :], acc, mask=head[:, None] < R)


@triton.jit
def decode_combine_kernel(
    m_parts, totals, accs, out, lse, PARTS, E: tl.constexpr, BLOCK_P: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """Grid (b * h): one head of one row. lse: None where nobody asks for it."""
    row = tl.program_id(0).to(tl.int64)
    part, width = tl.arange(0, BLOCK_P), tl.arange(0, E)
    release(PDL)
    wait(PDL)
    there = part < PARTS
    m = tl.load(m_parts + row * PARTS + part, mask=there, other=LOWEST)
    total = tl.load(totals + row * PARTS + part, mask=there, other=0.0)
    acc = tl.load(accs + (row * PARTS + part)[:, None] * E + width[None, :], mask=there[:, None], other=0.0)
    most = tl.max(m, axis=0, keep_dims=True)
    grow = tl.exp2(m - most)
    total = tl.sum(total * grow, axis=0, keep_dims=True)
    acc = tl.sum(acc * grow[:, None], axis=0, keep_dims=True)
    acc, log_sum_exp = finish(most, total, acc)
    one = tl.arange(0, 1)
    tl.store(out + row * E + one[:, None] + width[None, :], acc)
    if lse is not None:
        tl.store(lse + row + one, log_sum_exp)


@torch.no_grad()
def decode_attention(
    q: Tensor, k: Tensor, v: Tensor, indices: Tensor, scale: float | None = None, splits: int | None = None
) -> tuple[Tensor, Tensor]:
    """u[g] = Attn(h[g], {c[s, g] : s in indices}) of one query a row: out [b 1 h e] in q's dtype, lse float32 [b 1 h].

    q [b 1 h e]; k, v [b s g e]: the cache, of which only the rows in `indices` [b 1 k] are read; values in -1..s-1,
    which is not checked. Heads, widths and dtypes as sparse_attention.sparse_attention takes them; no gradients.
    splits: parts of the k slots, default by batch; fewer where there are not so many blocks. Results of different
    splits differ by rounding; the same splits give the same bits. Capturable in a CUDA graph after one run outside it.
    Raises ValueError for shapes, dtypes, strides or devices that do not fit, or splits < 1.
    """
    check_attention(q, k, v, indices)
    b, t, h, e = q.shape
    g, topk = k.shape[2], indices.shape[2]
    if t != 1:
        raise ValueError(f"decoding takes one query a batch row, q [b 1 h e]; got {list(q.shape)}")
    if splits is not None and splits < 1:
        raise ValueError(f"splits must be at least 1, got {splits}")
    scale = e**-0.5 if scale is None else scale
    out = torch.empty(b, 1, h, e, dtype=q.dtype, device=q.device)
    lse = torch.empty(b, 1, h, dtype=torch.float32, device=q.device)
    if not q.numel() or not topk or not k.numel():
        return out.zero_(), lse.fill_(-torch.inf)
    part, parts = parts_of(topk, splits or _splits(b * g), LAUNCH[architecture(q.device)]["BLOCK_S"])
    if parts == 1:  # nothing to combine
        sparse_forward(q, k, v, indices, scale, out, lse)
        return out, lse
    m_parts, totals = torch.empty(2, b, h, parts, dtype=torch.float32, device=q.device)
    accs = torch.empty(b, h, parts, e, dtype=torch.float32, device=q.device)
    decode_attention_kernel[(parts, g, b)](
        q, k, v, indices, m_parts, totals, accs, scale / math.log(2.0),
        q.stride(0), q.stride(2), *k.stride()[:3], *v.stride()[:3], indices.stride(0),
        topk, part, parts, h // g,
        E=e, BLOCK_R=triton.next_power_of_2(h // g), UPCAST=upcast(q.dtype), **launch(LAUNCH, q.device),
    )  # fmt: skip
    _combine(m_parts, totals, accs, out, lse, ALONE)
    return out, lse


def combine_parts(m_parts: Tensor, totals: Tensor, accs: Tensor, dtype: torch.dtype, start: dict) -> Tensor:
    """The parts of every head, m and total float32 [b h part], acc [b h part e], put together: [b (h e)] in `dtype`.

    start: how the launch follows the one before, of dependent.py.
    """
    b, h, _, e = accs.shape
    out = torch.empty(b, h * e, dtype=dtype, device=accs.device)
    _combine(m_parts, totals, accs, out, None, start)
    return out


def _combine(m_parts: Tensor, totals: Tensor, accs: Tensor, out: Tensor, lse: Tensor | None, start: dict) -> None:
    b, h, parts, e = accs.shape
    decode_combine_kernel[(b * h,)](
        m_parts, totals, accs, out, lse, parts, E=e, BLOCK_P=triton.next_power_of_2(parts),
        **launch(COMBINE, accs.device), **start,
    )  # fmt: skip


def _splits(programs: int) -> int:
    """Splits for as many programs as one split would give."""
    return next((splits for most, splits in SPLITS if programs <= most), 1)


def parts_of(topk: int, splits: int, block: int) -> tuple[int, int]:
    """Slots in a part, whole blocks, and how many parts that makes: at most `splits`."""
    part = triton.cdiv(triton.cdiv(topk, splits), block) * block
    return part, triton.cdiv(topk, part)
