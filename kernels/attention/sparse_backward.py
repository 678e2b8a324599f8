"""Gradients of sparse attention, without atomics: the same bits at every repeat.

Axes: b batch, t query position, s key position, h query head, g KV head, r query heads per group, e head width,
k selected keys. With the weights p[t, h, s] = exp(scale * q . k - lse) of the forward pass and dout = gradient of out:

    dp = dout . v        delta = dout . out        dl = p * (dp - delta)
    dq[t, h] = scale * sum_{s in S[t]} dl k[s]
    dk[s] = scale * sum_{t: s in S[t]} sum_h dl q[t, h]        dv[s] = sum_{t: s in S[t]} sum_h p dout[t, h]

dq: one program for one query and one KV head gathers K and V as the forward pass does, and leaves delta behind.
dk, dv: the sum runs over the queries that selected a key, so the index lists are turned round first. KEYS = 16
neighbouring keys form a block; its list has every query that selected one of them, ascending, with 16 bits that say
which. One program for one block and one KV head walks through its list: gathers the query rows and adds

    dk[16, e] += dl[rows, 16]^T q[rows, e]        dv[16, e] += p[rows, 16]^T dout[rows, e]

where p is zero outside the membership. (The rows of K and V of a block are read whole, its unselected keys too.) Lists
are made for a slab of queries at a time, since sorting takes some 70 bytes a pair; the sums go from slab to slab in
float32. Slabs, lists and loops have one order, hence the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.attention.gather import gather
from minikeye.kernels.attention.online_softmax import LOG2E
from minikeye.kernels.launch import launch, upcast

KEYS = 16  # keys a block: the smallest side of a matrix instruction, and one bit each in a membership
PAIRS = 2**23  # (query, key) pairs sorted at once: 4096 queries of 2048 keys, some 600 MB
DQ = {
    "sm_80": {"BLOCK_S": 32, "num_warps": 2, "num_stages": 2},
    "sm_90": {"BLOCK_S": 32, "num_warps": 2, "num_stages": 3},
    "interpreter": {"BLOCK_S": 16},
}
DKV = {
    "sm_80": {"ROWS": 64, "num_warps": 4, "num_stages": 2},
    "sm_90": {"ROWS": 64, "num_warps": 4, "num_stages": 2},
    "interpreter": {"ROWS": 16},
}


@triton.jit
def sparse_dq_kernel(
    q, k, v, indices, out, dout, lse, dq, delta, scale,
    q_b, q_t, q_h, k_b, k_s, k_g, v_b, v_s, v_g, i_b, i_t,
    T, TOPK, G, R,
    E: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid (t, b * g). out, dout, dq [b t h e] and lse, delta [b t h] are contiguous."""
    t = tl.program_id(0).to(tl.int64)
    b = (tl.program_id(1) // G).to(tl.int64)
    g = tl.program_id(1) % G
    head = tl.arange(0, BLOCK_R)
    width = tl.arange(0, E)
    slot = tl.arange(0, BLOCK_K)
    row = indices + b * i_b + t * i_t
    selected = tl.load(row + slot, mask=slot < TOPK, other=-1)
    count = tl.max(tl.where(selected >= 0, slot + 1, 0), axis=0)

    real = head < R
    h = (b * T + t) * G * R + g * R + head
    at_h = h[:, None] * E + width[None, :]
    q += b * q_b + t * q_t + g * R * q_h
    query = tl.load(q + head[:, None] * q_h + width[None, :], mask=real[:, None], other=0.0)
    do = tl.load(dout + at_h, mask=real[:, None], other=0.0)
    o = tl.load(out + at_h, mask=real[:, None], other=0.0)
    d = tl.sum(do.to(tl.float32) * o.to(tl.float32), axis=1)
    tl.store(delta + h, d, mask=real)
    log_sum_exp = tl.load(lse + h, mask=real, other=0.0) * LOG2E
    k += b * k_b + g * k_g
    v += b * v_b + g * v_g
    if UPCAST:
        query, do = query.to(tl.float32), do.to(tl.float32)

    acc = tl.zeros([BLOCK_R, E], tl.float32)
    for first in range(0, count, BLOCK_S):
        at = first + tl.arange(0, BLOCK_S)
        is_key, keys, values = gather(k, v, row, at, count, k_s, v_s, width, UPCAST)
        logits = tl.dot(query, tl.trans(keys), input_precision="ieee") * (scale * LOG2E)
        p = tl.exp2(tl.where(is_key[None, :], logits - log_sum_exp[:, None], float("-inf")))
        dp = tl.dot(do, tl.trans(values), input_precision="ieee")
        dl = p * (dp - d[:, None]) * scale
        acc = tl.dot(dl.to(keys.dtype), keys, acc, input_precision="ieee")
    tl.store(dq + at_h, acc, mask=real[:, None])


@triton.jit
def sparse_dkv_kernel(
    q, k, v, dout, lse, delta, queries, members, begins, dk, dv, scale,
    q_b, q_t, q_h, k_b, k_s, k_g, v_b, v_s, v_g, d_b, d_t, l_b, l_t,
    S, BLOCKS, G, R,
    E: tl.constexpr, BLOCK_R: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid (key blocks, b * g). Adds one slab's part to dk and dv, float32 [b s g e], contiguous."""
    b = (tl.program_id(1) // G).to(tl.int64)
    g = tl.program_id(1) % G
    begin = tl.load(begins + b * BLOCKS + tl.program_id(0))
    end = tl.load(begins + b * BLOCKS + tl.program_id(0) + 1)
    if begin == end:
        return
    row = tl.arange(0, ROWS)
    width = tl.arange(0, E)
    column = tl.arange(0, KEYS)
    entry = row // BLOCK_R  # which query of the ROWS // BLOCK_R that are gathered at once
    h = g * R + row % BLOCK_R

    s = tl.program_id(0) * KEYS + column
    in_range = (s < S)[:, None]
    keys = tl.load(k + b * k_b + g * k_g + s[:, None] * k_s + width[None, :], mask=in_range, other=0.0)
    values = tl.load(v + b * v_b + g * v_g + s[:, None] * v_s + width[None, :], mask=in_range, other=0.0)
    if UPCAST:
        keys, values = keys.to(tl.float32), values.to(tl.float32)
    q += b * q_b
    dout += b * d_b
    lse += b * l_b
    delta += b * l_b
    dk_sum = tl.zeros([KEYS, E], tl.float32)
    dv_sum = tl.zeros([KEYS, E], tl.float32)
    for first in range(begin, end, ROWS // BLOCK_R):
        real = (first + entry < end) & (row % BLOCK_R < R)
        t = tl.load(queries + first + entry, mask=real, other=0).to(tl.int64)
        member = tl.load(members + first + entry, mask=real, other=0)
        query = tl.load(q + (t * q_t + h * q_h)[:, None] + width[None, :], mask=real[:, None], other=0.0)
        do = tl.load(dout + (t * d_t + h * E)[:, None] + width[None, :], mask=real[:, None], other=0.0)
        log_sum_exp = tl.load(lse + t * l_t + h, mask=real, other=0.0) * LOG2E
        d = tl.load(delta + t * l_t + h, mask=real, other=0.0)
        if UPCAST:
            query, do = query.to(tl.float32), do.to(tl.float32)
        logits = tl.dot(query, tl.trans(keys), input_precision="ieee") * (scale * LOG2E)
        selected = ((member[:, None] >> column[None, :]) & 1) != 0
        p = tl.exp2(tl.where(selected, logits - log_sum_exp[:, None], float("-inf")))
        dp = tl.dot(do, tl.trans(values), input_precision="ieee")
        dl = tl.where(selected, p * (dp - d[:, None]) * scale, 0.0)
        dv_sum = tl.dot(tl.trans(p.to(do.dtype)), do, dv_sum, input_precision="ieee")
        dk_sum = tl.dot(tl.trans(dl.to(query.dtype)), query, dk_sum, input_precision="ieee")
    at = ((b * S + s) * G + g)[:, None] * E + width[None, :]
    tl.store(dk + at, tl.load(dk + at, mask=in_range) + dk_sum, mask=in_range)
    tl.store(dv + at, tl.load(dv + at, mask=in_range) + dv_sum, mask=in_range)


def transpose_lists(indices: Tensor, s: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which queries selected a key of a block: queries, members int32 [b * t * k], begins int32 [b * blocks + 1].

    Entries begins[n] .. begins[n + 1] belong to block n % blocks of row n // blocks, ascending in the query. Bit c of
    a member: the query selected key c of the block. A key listed twice makes a second entry, so that it counts twice.
    """
    b, t, topk = indices.shape
    blocks = triton.cdiv(s, KEYS)
    flat = indices.reshape(-1).int()
    row = torch.arange(b, dtype=torch.int32, device=flat.device).repeat_interleave(t * topk)
    block = torch.where(flat < 0, b * blocks, row * blocks + flat // KEYS)  # -1 goes behind the last block
    block, pair = block.sort(stable=True)  # inside a block: by query, then by slot
    query, column = (pair // topk).int(), flat[pair] % KEYS
    same = (block[1:] == block[:-1]) & (query[1:] == query[:-1]) & (column[1:] > column[:-1])
    entry = torch.nn.functional.pad(~same, (1, 0), value=True).cumsum(0) - 1  # pairs of one entry have one number
    queries = torch.empty_like(query).scatter_(0, entry, query % t)
    members = torch.zeros_like(query).scatter_add_(0, entry, torch.ones_like(column) << column)
    edges = torch.arange(b * blocks + 1, dtype=block.dtype, device=flat.device)
    ends = torch.cat([entry, entry[-1:] + 1])
    return queries, members, ends[torch.searchsorted(block, edges)].int()


def sparse_backward(
    q: Tensor, k: Tensor, v: Tensor, indices: Tensor, out: Tensor, lse: Tensor, dout: Tensor, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """dq, dk, dv in the dtypes of q, k, v. out, lse, dout: contiguous. Deterministic."""
    (b, t, h, e), (s, g), topk = q.shape, k.shape[1:3], indices.shape[2]
    dq, delta = torch.empty(q.shape, dtype=q.dtype, device=q.device), torch.empty_like(lse)
    shape = {"E": e, "BLOCK_R": triton.next_power_of_2(h // g), "UPCAST": upcast(q.dtype)}
    strides = (*q.stride()[:3], *k.stride()[:3], *v.stride()[:3])
    sparse_dq_kernel[(t, b * g)](
        q, k, v, indices, out, dout, lse, dq, delta, scale, *strides, *indices.stride()[:2], t, topk, g, h // g,
        BLOCK_K=triton.next_power_of_2(topk), **shape, **launch(DQ, q.device),
    )  # fmt: skip
    dk, dv = torch.zeros(2, b, s, g, e, dtype=torch.float32, device=q.device)
    slab = max(1, PAIRS // (b * topk))
    for first in range(0, t, slab):
        part = slice(first, min(first + slab, t))
        lists = transpose_lists(indices[:, part], s)
        blocks = triton.cdiv(s, KEYS)
        sparse_dkv_kernel[(blocks, b * g)](
            q[:, part], k, v, dout[:, part], lse[:, part], delta[:, part], *lists, dk, dv, scale,
            *strides, *dout.stride()[:2], *lse.stride()[:2], s, blocks, g, h // g,
            KEYS=KEYS, **shape, **launch(DKV, q.device),
        )  # fmt: skip
    return dq, dk.to(k.dtype), dv.to(v.dtype)
