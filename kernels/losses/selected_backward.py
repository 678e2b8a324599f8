"""The gradient of the sparse stage's loss for the index keys, by integer addition: the same bits in any order.

Axes: b batch, t query position, s key position, j indexer head, i indexer width, k selected keys. selected_loss.py
derives dI and leaves it behind for every pair (query, slot), at the incoming gradient 1. With S[t] the keys of query t

    dindex_k[s] = i^-1/2 sum_{t: s in S[t]} dloss[t] sum_j w[t, j] dI[t, s] [z[t, j, s] > 0] index_q[t, j]

One program for one query gathers its keys, makes z again and adds to the rows of its keys

    dz[slots, j] index_q[j, i]

Programs add in any order, as integers (integer_sums.py). Their bound: with |dI| summed over the slots, in which a key
may stand twice, a query adds at most i^-1/2 |dloss[t]| sum_k |dI[t]| sum_j |w[t, j]| max_i |index_q[t, j]| to a key,
and B is the sum over the queries of b. Where B is not below 2^126, or a dz not in float32, the gradient of that batch
row is nan.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.integer_sums import IntegerSums, largest
from minikeye.kernels.launch import launch, upcast
from minikeye.kernels.losses.loss_tiles import index_tile, load_index_keys, load_queries, precision, through_relu

DK = {  # BLOCK_S: keys gathered at once. Not timed yet
    "sm_80": {"BLOCK_S": 32, "num_warps": 4, "num_stages": 2},
    "sm_90": {"BLOCK_S": 32, "num_warps": 4, "num_stages": 2},
    "interpreter": {"BLOCK_S": 16},
}


@triton.jit
def selected_dk_kernel(
    index_q, index_k, index_w, indices, dscore, dloss, dk, unit, scale,
    iq_b, iq_t, iq_j, ik_b, ik_s, w_b, w_t, w_j, i_b, i_t, d_b, d_t, g_b, g_t,
    S, TOPK, J, I,  # noqa: E741 - the axis letters
    HEADS: tl.constexpr, WIDTH: tl.constexpr, BLOCK_S: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid (t, b). Adds a query's part to dk, int64 [b s i], contiguous, in steps of unit [b]."""
    t = tl.program_id(0).to(tl.int64)
    b = tl.program_id(1).to(tl.int64)
    query = t + tl.zeros([1], tl.int64)
    queries, gate = load_queries(
        index_q + b * iq_b, index_w + b * w_b, query, scale, iq_t, iq_j, w_t, w_j, J, I, HEADS, WIDTH, 1, UPCAST
    )
    gate *= tl.load(dloss + b * g_b + t * g_t)
    steps = 1.0 / tl.load(unit + b)  # exact: a power of two
    index_k += b * ik_b
    dk += b * S * I
    i = tl.multiple_of(tl.arange(0, WIDTH), 1)  # a hint: the lanes of a warp add side by side (sparse_backward.py)
    for first in range(0, TOPK, BLOCK_S):
        at = first + tl.arange(0, BLOCK_S)
        s = tl.load(indices + b * i_b + t * i_t + at, mask=at < TOPK, other=-1).to(tl.int32)
        d = tl.load(dscore + b * d_b + t * d_t + at, mask=s >= 0, other=0.0)
        keys = load_index_keys(index_k, s, ik_s, S, I, WIDTH, UPCAST)
        z, _ = index_tile(keys, queries, gate, BLOCK_S, HEADS, 1)
        dz = through_relu(d[:, None], z, BLOCK_S, HEADS, 1) * gate[None, :]
        part = tl.dot(dz, queries.to(tl.float32), input_precision=PRECISION) * steps
        inside = (s >= 0)[:, None] & (i < I)[None, :]
        tl.atomic_add(dk + s[:, None] * I + i[None, :], part.to(tl.int64), inside, sem="relaxed")


def selected_dk(
    index_q: Tensor, index_k: Tensor, index_w: Tensor, indices: Tensor, dscore: Tensor, dloss: Tensor
) -> Tensor:
    """dindex_k in its dtype. dscore float32 [b t k]: dI at the incoming gradient 1; dloss [b t]: those gradients."""
    (b, t, j, i), s, topk = index_q.shape, index_k.shape[1], indices.shape[2]
    heads, width = max(16, triton.next_power_of_2(j)), max(16, triton.next_power_of_2(i))
    dk = IntegerSums(bound(index_q, index_w, indices, dscore, dloss), s, i)
    selected_dk_kernel[(t, b)](
        index_q, index_k, index_w, indices, dscore, dloss, dk.sums, dk.unit, i**-0.5,
        *index_q.stride()[:3], *index_k.stride()[:2], *index_w.stride(), *indices.stride()[:2],
        *dscore.stride()[:2], *dloss.stride(), s, topk, j, i,
        HEADS=heads, WIDTH=width, PRECISION=precision(index_q), UPCAST=upcast(index_q.dtype),
        **launch(DK, index_q.device),
    )  # fmt: skip
    return dk.finish(index_k.dtype)[:, :, 0]


def bound(index_q: Tensor, index_w: Tensor, indices: Tensor, dscore: Tensor, dloss: Tensor) -> Tensor:
    """B: float64 [b 1]. What stands in dscore for no key, maybe never written, does not count.

    Of dz it takes the float32 that the kernel has: where that is infinite, so is B, however small index_q is.
    """
    of_keys = torch.where(indices < 0, 0.0, dscore).abs().sum(dim=2)  # [b t]
    dz = index_w.float() * index_q.shape[3] ** -0.5 * dloss[..., None] * of_keys[..., None]  # [b t j]
    return (dz.double().abs() * largest(index_q, -1).double()).sum(dim=(1, 2))[:, None]
