"""Sparse attention, the fast kernel: eight neighbouring queries as one tile over the union of their sets.

Axes: b batch, t query position, s key position, h query head, g KV head, r query heads per group, e head width,
k selected keys, n tile of QUERIES neighbouring queries, c entry of a tile's union. Report, section 2.3.

Neighbouring queries select much the same keys. A tile gathers each key of U[n] = union of S[t] over its queries once
(union_lists.py), multiplies it with QUERIES * r query rows (64 on the released model: one matrix instruction of a warp
group) and masks

    l[t, h, s] = scale * q[t, h] . k[s, g]   if s in S[t], else -inf

so the result is that of sparse_forward.py: a key that a query did not select has the weight exp(-inf) = 0. The gather
shrinks by QUERIES / u and the products grow by u = |U| / k.

The softmax needs a reference m that its exponents exp2(l - m) are taken from. The running maximum of online_softmax.py
costs a seventh of the time. Any m gives the same weights while nothing leaves float32's range, so m is FIXED: the
largest logit of the first block, whether the query selected the key or not. Where a sum of exp2(l - m) comes out
above 2^64 or below 2^-64, or an output not finite, the tile is marked, and a second launch of this kernel, with the
running maximum, does it again; for the other tiles that launch only looks at their mark. So the result is never lost,
only time is. A sum of at least 2^-64 has lost less than 2^-48 of itself to what is too small for float32 or bfloat16
(2^-126), for sets of up to 2^14 keys. float16 holds no weights above 2^16: there, always the running maximum.

A nan or an infinity in a value row reaches every query of a tile in which one query selected it: 0 * inf is nan.

A prototype on an H200, 2,048 queries at the end of 128K keys: 0.692 ms with a running maximum; 0.625 with strides known
when it is compiled, so that K and V share their offsets; 0.538 with a fixed reference; 0.514 with three stages.
Tried on an H100 and not kept: blocks of 64 keys (no faster), tiles of 16 queries (twice the shared memory, slower).
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.attention.online_softmax import absorb, begin, finish
from minikeye.kernels.launch import launch, upcast

# 128 registers let four programs share a multiprocessor where their shared memory fits; at 130 only three fit.
FIXED = {
    "sm_80": {"BLOCK_S": 32, "num_warps": 4, "num_stages": 2, "maxnreg": 168},
    "sm_90": {"BLOCK_S": 32, "num_warps": 4, "num_stages": 3, "maxnreg": 128},
    "interpreter": {"BLOCK_S": 16},
}
RUNNING = {  # the best of the prototypes on an H100
    "sm_80": {"BLOCK_S": 32, "num_warps": 4, "num_stages": 2, "maxnreg": 168},
    "sm_90": {"BLOCK_S": 32, "num_warps": 4, "num_stages": 2, "maxnreg": 128},
    "interpreter": {"BLOCK_S": 16},
}
SAFE = 2.0**64  # sums of weights from 1 / SAFE to SAFE


@triton.jit
def sparse_union_kernel(
    q, k, v, entries, sizes,
    again,  # int32 [b tiles g] or None: FIXED writes 1 for a tile to be done again; else only such tiles are done
    out, lse, scale_log2,
    q_b, q_t, q_h, k_b, k_g, v_b, v_g, o_b, o_t, l_b, l_t,
    T, TILES, ROOM,
    K_S: tl.constexpr, V_S: tl.constexpr,  # strides of keys and values
    G: tl.constexpr, R: tl.constexpr, E: tl.constexpr,
    QUERIES: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr,
    FIXED: tl.constexpr, SAFE: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, b * g). Rows of the tile: the BLOCK_R heads of its first query, of its second, and so on."""
    n = tl.program_id(0)
    b = (tl.program_id(1) // G).to(tl.int64)
    g = tl.program_id(1) % G
    size = tl.load(sizes + b * TILES + n)
    if size < 0:
        return
    if again is not None:
        again += (b * TILES + n) * G + g
        if not FIXED:  # noqa: SIM102 - known when the kernel is compiled
            if tl.load(again) == 0:
                return
    entries += (b * TILES + n) * ROOM
    row = tl.arange(0, QUERIES * BLOCK_R)
    width = tl.arange(0, E)
    member = row // BLOCK_R  # which query of the tile
    head = row % BLOCK_R
    bit = 1 << member
    t = (n * QUERIES).to(tl.int64)
    there = T - n * QUERIES  # queries of the tile: fewer in the last one, where the last of them stands in for the rest

    q += b * q_b + t * q_t + g * R * q_h
    q_row = tl.minimum(member, there - 1) * q_t + head * q_h
    query = tl.load(q + q_row[:, None] + width[None, :], mask=(head < R)[:, None], other=0.0)
    k += b * k_b + g * k_g
    v += b * v_b + g * v_g
    if UPCAST:
        query = query.to(tl.float32)

    m, total, acc = begin(QUERIES * BLOCK_R, E)
    owned = tl.zeros([QUERIES * BLOCK_R, 4], tl.float32)
    if FIXED:
        s = tl.maximum(tl.load(entries + tl.arange(0, BLOCK_S)) >> 8, 0)  # -1 where the tile selected nothing
        keys = tl.load(k + (s * K_S)[:, None] + width[None, :])
        if UPCAST:
            keys = keys.to(tl.float32)
        m = tl.max(tl.dot(query, tl.trans(keys), input_precision="ieee") * scale_log2, axis=1)
    for first in range(0, size, BLOCK_S):
        at = first + tl.arange(0, BLOCK_S)
        entry = tl.load(entries + at)  # behind the end: the last key, without members
        s = entry >> 8
        keys = tl.load(k + (s * K_S)[:, None] + width[None, :])
        values = tl.load(v + (s * V_S)[:, None] + width[None, :])
        if UPCAST:
            keys, values = keys.to(tl.float32), values.to(tl.float32)
        logits = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale_log2
        selected = (entry[None, :] & bit[:, None]) != 0
        if FIXED:
            p = tl.where(selected, tl.exp2(logits - m[:, None]), 0.0)
            # A thread of a tensor core's product owns columns 8 c + 2 (lane mod 4) and the one after, for all c: it
            # adds these up alone, and the four lanes of a row meet behind the loop.
            owned += tl.sum(tl.sum(tl.reshape(p, (QUERIES * BLOCK_R, BLOCK_S // 8, 4, 2)), axis=3), axis=1)
            acc = tl.dot(p.to(values.dtype), values, acc, input_precision="ieee")
        else:
            m, total, acc = absorb(m, total, acc, tl.where(selected, logits, float("-inf")), values)

    real = (member < there) & (head < R)
    if FIXED:
        total = tl.sum(owned, axis=1)
        finite = tl.sum(acc * 0.0, axis=1) == 0.0  # nan if one of acc is infinite or nan
        safe = (total >= 1 / SAFE) & (total <= SAFE) & finite
        tl.store(again, tl.max((real & ~safe).to(tl.int32), axis=0))
    acc, log_sum_exp = finish(m, total, acc)
    out += b * o_b + t * o_t + g * R * E
    tl.store(out + (member * o_t + head * E)[:, None] + width[None, :], acc, mask=real[:, None])
    tl.store(lse + b * l_b + t * l_t + g * R + member * l_t + head, log_sum_exp, mask=real)


def sparse_union(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    unions: tuple[Tensor, Tensor],
    scale: float,
    out: Tensor,
    lse: Tensor,
    queries: int,
) -> None:
    """Fills out [b t h e] and lse float32 [b t h] for the queries of all tiles whose size is not -1."""
    if q.dtype == torch.float16:
        return _launch(q, k, v, unions, None, scale, out, lse, queries, fixed=False)
    again = torch.empty(*unions[1].shape, k.shape[2], dtype=torch.int32, device=q.device)
    for fixed in (True, False):
        _launch(q, k, v, unions, again, scale, out, lse, queries, fixed=fixed)
    return None


def _launch(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    unions: tuple[Tensor, Tensor],
    again: Tensor | None,
    scale: float,
    out: Tensor,
    lse: Tensor,
    queries: int,
    fixed: bool,
) -> None:
    b, t, h, e = q.shape
    g = k.shape[2]
    entries, sizes = unions
    tiles, room = entries.shape[1:]
    sparse_union_kernel[(tiles, b * g)](
        q, k, v, entries, sizes, again, out, lse, scale / math.log(2.0),
        *q.stride()[:3], k.stride(0), k.stride(2), v.stride(0), v.stride(2), *out.stride()[:2], *lse.stride()[:2],
        t, tiles, room,
        K_S=k.stride(1), V_S=v.stride(1), G=g, R=h // g, E=e,
        QUERIES=queries, BLOCK_R=triton.next_power_of_2(h // g), FIXED=fixed, SAFE=SAFE, UPCAST=upcast(q.dtype),
        **launch(FIXED if fixed else RUNNING, q.device),
    )  # fmt: skip
