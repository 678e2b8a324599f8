"""Gradients of sparse attention over union tiles: dk and dv by integer addition, the same bits in any order.

Axes: b batch, t query position, s key position, h query head, g KV head, r query heads per group, e head width,
k selected keys, n tile of QUERIES neighbouring queries. With the weights p[t, h, s] = exp(scale * q . k - lse) of the
forward pass and dout = gradient of out:

    dp = dout . v        delta = dout . out        dl = p * (dp - delta) * scale
    dq[t, h] = sum_{s in S[t]} dl k[s]
    dk[s] = sum_{t: s in S[t]} sum_h dl q[t, h]        dv[s] = sum_{t: s in S[t]} sum_h p dout[t, h]

One program takes the QUERIES * r query rows of a tile and walks through the union of their sets (union_lists.py). For
every block of gathered keys it has p and dl of all rows at once, so one pass over K and V gives the three sums: dq
stays in registers, the tile's part of dk and dv is added to memory, once a tile and not once a query. Queries of a tile
that has no union (a key listed twice, no order) are tiles of their own, and their lists the entries.

Programs add in any order, so a tile's part, whose own order is fixed, is added as integers (integer_sums.py). Their
bound: as p <= 1, which the kernel makes sure of, a query row adds to a key at most

    |dv[s, e]| <= max_e |dout[t, h]|
    |dk[s, e]| <= scale sum_e |dout[t, h]| (max_s,e |v[s]| + max_e |out[t, h]|) max_e |q[t, h]|

and B is the sum over all rows of b and g. Rounding of p, dl, products and B adds 2^-7 of it at most, where a factor of
two is left. (A key that a query lists m times gets m p <= 1, up to the rounding of lse: for such lists alone the bound
wants logits below 2^20.) Where dout, out, q or a dq is not finite, or B not below 2^126, dk and dv of that batch row
and KV head are nan.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.attention.online_softmax import LOG2E
from minikeye.kernels.attention.union_lists import FILL
from minikeye.kernels.integer_sums import IntegerSums, largest
from minikeye.kernels.launch import launch, upcast

LAUNCH = {
    "sm_80": {"BLOCK_S": 32, "num_warps": 8, "num_stages": 1},
    "sm_90": {"BLOCK_S": 32, "num_warps": 4, "num_stages": 2},
    "interpreter": {"BLOCK_S": 16},
}


@triton.jit
def sparse_backward_kernel(
    q, k, v, entries, sizes, out, dout, lse, dq, dk, dv, dk_unit, dv_unit, scale,
    q_b, q_t, q_h, k_b, k_s, k_g, v_b, v_s, v_g, o_b, o_t, l_b, l_t,
    T, S, TILES, ROOM, G, R,
    E: tl.constexpr, QUERIES: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, b * g). out, dout and dq have the strides o, dk and dv are int64 [b s g e], contiguous.

    dk_unit, dv_unit float32 [b g]: what one of an integer means. float32 dk and dv get sums of floats: a rival to time.
    """
    n = tl.program_id(0)
    b = (tl.program_id(1) // G).to(tl.int64)
    g = tl.program_id(1) % G
    size = tl.load(sizes + b * TILES + n)
    if size < 0:
        return
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
    dk_steps = 1.0 / tl.load(dk_unit + tl.program_id(1))  # exact: powers of two
    dv_steps = 1.0 / tl.load(dv_unit + tl.program_id(1))
    if UPCAST:
        query, do = query.to(tl.float32), do.to(tl.float32)

    acc = tl.zeros([QUERIES * BLOCK_R, E], tl.float32)
    # A hint, so that a warp's lanes add side by side: with two integers a lane, an addition half fills its sectors.
    place = tl.multiple_of(tl.arange(0, E), 1)
    for first in range(0, size, BLOCK_S):
        at = first + tl.arange(0, BLOCK_S)
        entry = tl.load(entries + at)  # behind the end: the last key, without members
        s = entry >> 8
        keys = tl.load(k + s[:, None] * k_s + width[None, :])
        values = tl.load(v + s[:, None] * v_s + width[None, :])
        if UPCAST:
            keys, values = keys.to(tl.float32), values.to(tl.float32)
        selected = ((entry[None, :] >> member[:, None]) & 1) != 0
        logits = tl.dot(query, tl.trans(keys), input_precision="ieee") * (scale * LOG2E) - log_sum_exp[:, None]
        logits = tl.minimum(logits, 0.0, propagate_nan=tl.PropagateNan.ALL)  # rounding may leave p above 1
        p = tl.exp2(tl.where(selected, logits, float("-inf")))
        dp = tl.dot(do, tl.trans(values), input_precision="ieee")
        dl = (tl.where(selected, p * (dp - delta[:, None]), 0.0) * scale).to(keys.dtype)
        acc = tl.dot(dl, keys, acc, input_precision="ieee")
        at_key = s[None, :] * (G * E) + place[:, None]
        inside = (at < size)[None, :]
        dv_part = tl.dot(tl.trans(do), p.to(do.dtype), input_precision="ieee") * dv_steps
        tl.atomic_add(dv + at_key, dv_part.to(dv.dtype.element_ty), inside, sem="relaxed")
        dk_part = tl.dot(tl.trans(query), dl, input_precision="ieee") * dk_steps
        tl.atomic_add(dk + at_key, dk_part.to(dk.dtype.element_ty), inside, sem="relaxed")
    tl.store(dq + tile + at_row, acc, mask=real[:, None])


class KeyGradients:
    """dk and dv while they are sums."""

    def __init__(self, q: Tensor, k: Tensor, v: Tensor, out: Tensor, dout: Tensor, scale: float, integers: bool = True):
        most = bounds(q, v, out, dout, scale)
        self.dk, self.dv = (IntegerSums(x, k.shape[1], k.shape[3], integers) for x in most)

    def finish(self, dq: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """dk and dv [b s g e]. A weight that is not finite, whatever made it so, is seen in dq."""
        finite = largest(dq.unflatten(2, (self.dk.unit.shape[1], -1)), (1, 3, 4)).isfinite()
        return self.dk.finish(dtype, finite), self.dv.finish(dtype, finite)


def bounds(q: Tensor, v: Tensor, out: Tensor, dout: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """B of dk and of dv: float64 [b g] each; nan or infinite where q, out or dout is.

    Keys and values that no query selected may hold anything, so a row of v that is not finite counts nothing here:
    where it was selected, out is not finite.
    """
    of_v = largest(v, -1).double()  # [b s g]
    of_v = torch.where(of_v.isfinite(), of_v, 0.0).amax(dim=1)[:, None, :, None]
    rows = torch.linalg.vector_norm(dout, 1, dim=-1, dtype=torch.float32), *(largest(x, -1) for x in (dout, out, q))
    total, most, of_out, of_q = (x.double().unflatten(2, (v.shape[2], -1)) for x in rows)  # [b t g r]
    dk = abs(scale) * total * (of_v + of_out) * of_q
    return dk.sum(dim=(1, 3)), most.sum(dim=(1, 3))


def single_lists(indices: Tensor, sizes: Tensor, queries: int) -> tuple[Tensor, Tensor]:
    """Lists of single queries of indices [b t k], in the form of union lists, with the size -1 where a union is used.

    sizes [b tiles]: of the unions of `queries` queries. A query's last key stands in for no key, as behind unions.
    """
    t, topk = indices.shape[1:]
    last = indices.amax(dim=-1, keepdim=True).int()
    entries = torch.where(indices < 0, last * 256, indices.int() * 256 + 1)
    entries = torch.cat([entries, (last * 256).expand(*last.shape[:2], FILL)], dim=-1)
    alone = sizes.repeat_interleave(queries, dim=1, output_size=sizes.shape[1] * queries)[:, :t] < 0
    return entries, torch.where(alone, topk * (last[..., 0] >= 0), -1).int()


def padded_heads(r: int, queries: int) -> int:
    """Rows a query takes: dk and dv add up over the rows of a tile, and a matrix instruction adds up at least 16."""
    return max(16 // queries, triton.next_power_of_2(r))


def add_tiles(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    lists: tuple[Tensor, Tensor],
    out: Tensor,
    lse: Tensor,
    dout: Tensor,
    scale: float,
    queries: int,
    dq: Tensor,
    into: KeyGradients,
) -> None:
    """Fills dq [b t h e] for the tiles whose size is not -1 and adds their part of dk and dv.

    lists: entries int32 [b tiles room] and sizes [b tiles] of tiles of `queries` queries. out, dout and dq must have
    the same strides.
    """
    (b, t, h, e), (s, g), dk, dv = q.shape, k.shape[1:3], into.dk, into.dv
    entries, sizes = lists
    tiles, room = entries.shape[1:]
    sparse_backward_kernel[(tiles, b * g)](
        q, k, v, entries, sizes, out, dout, lse, dq, dk.sums, dv.sums, dk.unit, dv.unit, scale,
        *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *out.stride()[:2], *lse.stride()[:2],
        t, s, tiles, room, g, h // g,
        E=e, QUERIES=queries, BLOCK_R=padded_heads(h // g, queries), UPCAST=upcast(q.dtype),
        **launch(LAUNCH, q.device),
    )  # fmt: skip
