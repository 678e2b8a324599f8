"""Sparse attention, the readable kernel: one program for one query and one KV head.

Axes: b batch, t query position, s key position, h query head, g KV head, r query heads per group, e head width,
k selected keys. Report, section 2.3: all heads of query t attend to the one set S[t] that the indexer selected,

    l[h, s] = scale * q[t, h] . k[s, g]        for s in S[t], g = h // r
    out[t, h] = sum_s exp(l[h, s] - lse[t, h]) v[s, g]        lse[t, h] = log sum_s exp(l[h, s])

A program gathers the rows of K and V block by block and multiplies them with the r queries of its group: r products a
gathered row, so the gather sets the speed. The softmax goes along (online_softmax.py).

-1 marks no key, anywhere in a row; the loop ends behind a row's last key. A key listed twice counts twice.
"""

import math

import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.attention.gather import gather
from minikeye.kernels.attention.online_softmax import absorb, begin, finish
from minikeye.kernels.launch import launch, upcast

# BLOCK_S: keys gathered at once. The best of the prototypes on an H100: 66 TFLOP/s, 8.2 TB/s out of the L2 cache.
LAUNCH = {
    "sm_80": {"BLOCK_S": 32, "num_warps": 2, "num_stages": 3},
    "sm_90": {"BLOCK_S": 32, "num_warps": 2, "num_stages": 4},
    "interpreter": {"BLOCK_S": 16},  # small, so that small tests cross blocks
}


@triton.jit
def sparse_forward_kernel(
    q, k, v, indices, union_sizes, out, lse, scale_log2,
    q_b, q_t, q_h, k_b, k_s, k_g, v_b, v_s, v_g, i_b, i_t, o_b, o_t, l_b, l_t, u_b,
    TOPK, G, R,
    E: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr,
    QUERIES: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid (t, b * g): neighbouring programs share a KV head, whose rows then stay in the L2 cache."""
    t = tl.program_id(0).to(tl.int64)
    b = (tl.program_id(1) // G).to(tl.int64)
    g = tl.program_id(1) % G
    # sparse_union.py answers whole tiles of QUERIES queries; those that it leaves have the size -1
    if QUERIES > 0:  # noqa: SIM102 - the first is known when the kernel is compiled
        if tl.load(union_sizes + b * u_b + t // QUERIES) >= 0:
            return

    head = tl.arange(0, BLOCK_R)
    width = tl.arange(0, E)
    slot = tl.arange(0, BLOCK_K)
    row = indices + b * i_b + t * i_t
    selected = tl.load(row + slot, mask=slot < TOPK, other=-1)
    count = tl.max(tl.where(selected >= 0, slot + 1, 0), axis=0)  # slots up to the last key

    q += b * q_b + t * q_t + g * R * q_h
    query = tl.load(q + head[:, None] * q_h + width[None, :], mask=head[:, None] < R, other=0.0)
    k += b * k_b + g * k_g
    v += b * v_b + g * v_g
    if UPCAST:
        query = query.to(tl.float32)

    m, total, acc = begin(BLOCK_R, E)
    for first in range(0, count, BLOCK_S):
        at = first + tl.arange(0, BLOCK_S)
        is_key, keys, values = gather(k, v, row, at, count, k_s, v_s, width, UPCAST)
        logits = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale_log2
        logits = tl.where(is_key[None, :], logits, float("-inf"))
        m, total, acc = absorb(m, total, acc, logits, values)

    acc, log_sum_exp = finish(m, total, acc)
    h = g * R + head
    tl.store(out + b * o_b + t * o_t + h[:, None] * E + width[None, :], acc, mask=head[:, None] < R)
    tl.store(lse + b * l_b + t * l_t + h, log_sum_exp, mask=head < R)


def sparse_forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    indices: Tensor,
    scale: float,
    out: Tensor,
    lse: Tensor,
    union_sizes: Tensor | None = None,
    queries: int = 0,
) -> None:
    """Fills out [b t h e] and lse float32 [b t h] for q [b t h e], k and v [b s g e], indices int [b t k].

    union_sizes int32 [b, tiles]: only the queries of tiles with the size -1 are answered, `queries` queries a tile.
    Shapes are taken as they come: `sparse_attention.py` is the door that checks them.
    """
    b, t, h, e = q.shape
    g, topk = k.shape[2], indices.shape[2]
    sparse_forward_kernel[(t, b * g)](
        q, k, v, indices, lse if union_sizes is None else union_sizes, out, lse, scale / math.log(2.0),
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *indices.stride()[:2], *out.stride()[:2], *lse.stride()[:2],
        0 if union_sizes is None else union_sizes.stride(0),
        topk, g, h // g,
        E=e, BLOCK_R=triton.next_power_of_2(h // g), BLOCK_K=triton.next_power_of_2(topk),
        QUERIES=queries, UPCAST=upcast(q.dtype),
        **launch(LAUNCH, q.device),
    )  # fmt: skip
