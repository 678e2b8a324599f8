"""Gradients of sparse attention over union tiles, dk and dv by atomic addition: faster, and not the same bits twice.

Axes: b batch, t query position, s key position, h query head, g KV head, r query heads per group, e head width,
n tile of QUERIES neighbouring queries. Equations: sparse_backward.py. Tiles and unions: union_lists.py.

One program takes the QUERIES * r query rows of a tile and walks through the union of their sets. For every block of
gathered keys it has p and dl of all rows at once, so one pass over K and V gives the three sums

    dq[rows, e] += dl[rows, BLOCK_S] k[BLOCK_S, e]        stays in registers
    dk[s, e]    += dl^T q[rows, e]                        added to memory, once a tile and not once a query
    dv[s, e]    += p^T dout[rows, e]

Float32 addition depends on its order, and atomics have none: repeats differ in the last bits.
"""

import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.attention.online_softmax import LOG2E
from minikeye.kernels.launch import launch, upcast

LAUNCH = {
    "sm_80": {"BLOCK_S": 32, "num_warps": 8, "num_stages": 1},
    "sm_90": {"BLOCK_S": 32, "num_warps": 4, "num_stages": 2},
    "interpreter": {"BLOCK_S": 16},
}


@triton.jit
def sparse_backward_atomic_kernel(
    q, k, v, entries, sizes, out, dout, lse, dq, dk, dv, scale,
    q_b, q_t, q_h, k_b, k_s, k_g, v_b, v_s, v_g, o_b, o_t, l_b, l_t,
    T, S, TILES, ROOM, G, R,
    E: tl.constexpr, QUERIES: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, b * g). out, dout and dq have the strides o, dk and dv are float32 [b s g e], contiguous."""
    n = tl.program_id(0)
    b = (tl.program_id(1) // G).to(tl.int64)
    g = tl.program_id(1) % G
    size = tl.load(sizes + b * TILES + n)
    entries += (b * TILES + n) * ROOM
    row = tl.arange(0, QUERIES * BLOCK_R)
    width = tl.arange(0, E)
    member = row // BLOCK_R  # which query of the tile
    head = row % BLOCK_R
    t = (n * QUERIES).to(tl.int64)
    real = (member < T - n * QUERIES) & (head < R)

    q += b * q_b + t * q_t + g * R * q_h
    query = tl.load(q + (member * q_t + head * q_h)[:, None] + width[None, :], mask=real[:, None], other=0.0)
    at_row = (member * o_t + head * E)[:, None] + width[None, :]
    tile = b * o_b + t * o_t + g * R * E
    do = tl.load(dout + tile + at_row, mask=real[:, None], other=0.0)
    o = tl.load(out + tile + at_row, mask=real[:, None], other=0.0)
    delta = tl.sum(do.to(tl.float32) * o.to(tl.float32), axis=1)
    lse += b * l_b + t * l_t + g * R
    log_sum_exp = tl.load(lse + member * l_t + head, mask=real, other=0.0) * LOG2E
    k += b * k_b + g * k_g
    v += b * v_b + g * v_g
    dk += (b * S * G + g) * E
    dv += (b * S * G + g) * E
    if UPCAST:
        query, do = query.to(tl.float32), do.to(tl.float32)

    acc = tl.zeros([QUERIES * BLOCK_R, E], tl.float32)
    for first in range(0, size, BLOCK_S):
        at = first + tl.arange(0, BLOCK_S)
        entry = tl.load(entries + at)  # behind the end: the last key, without members
        s = entry >> 8
        keys = tl.load(k + s[:, None] * k_s + width[None, :])
        values = tl.load(v + s[:, None] * v_s + width[None, :])
        if UPCAST:
            keys, values = keys.to(tl.float32), values.to(tl.float32)
        selected = ((entry[None, :] >> member[:, None]) & 1) != 0
        logits = tl.dot(query, tl.trans(keys), input_precision="ieee") * (scale * LOG2E)
        p = tl.exp2(tl.where(selected, logits - log_sum_exp[:, None], float("-inf")))
        dp = tl.dot(do, tl.trans(values), input_precision="ieee")
        dl = (tl.where(selected, p * (dp - delta[:, None]), 0.0) * scale).to(keys.dtype)
        acc = tl.dot(dl, keys, acc, input_precision="ieee")
        at_key = s[:, None] * (G * E) + width[None, :]
        inside = (at < size)[:, None]
        tl.atomic_add(dv + at_key, tl.dot(tl.trans(p.to(do.dtype)), do, input_precision="ieee"), inside, sem="relaxed")
        tl.atomic_add(dk + at_key, tl.dot(tl.trans(dl), query, input_precision="ieee"), inside, sem="relaxed")
    tl.store(dq + tile + at_row, acc, mask=real[:, None])


def padded_heads(r: int) -> int:
    """Rows a query takes: dk and dv add up over the rows of a tile, and a matrix instruction adds up at least 16."""
    return max(2, triton.next_power_of_2(r))


def sparse_backward_atomic(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    unions: tuple[Tensor, Tensor],
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    scale: float,
    queries: int,
    dq: Tensor,
    dk: Tensor,
    dv: Tensor,
) -> None:
    """Fills dq [b t h e] and adds to dk, dv float32 [b s g e]. unions: with no tile left out (size -1).

    out, dout and dq must have the same strides.
    """
    b, t, h, e = q.shape
    s, g = k.shape[1:3]
    entries, sizes = unions
    tiles, room = entries.shape[1:]
    sparse_backward_atomic_kernel[(tiles, b * g)](
        q, k, v, entries, sizes, out, dout, lse, dq, dk, dv, scale,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:2], *lse.stride()[:2],
        t, s, tiles, room, g, h // g,
        E=e, QUERIES=queries, BLOCK_R=padded_heads(h // g), UPCAST=upcast(q.dtype),
        **launch(LAUNCH, q.device),
    )  # fmt: skip
