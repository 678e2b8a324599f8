"""The gradient of the sparse stage's loss for the index keys, without atomics: the same bits at every repeat.

Axes: b batch, t query position, s key position, j indexer head, i indexer width, k selected keys. selected_loss.py
derives dI and leaves it behind for every pair (query, slot), at the incoming gradient 1. With S[t] the keys of query t

    dindex_k[s] = i^-1/2 sum_{t: s in S[t]} dloss[t] sum_j w[t, j] dI[t, s] [z[t, j, s] > 0] index_q[t, j]

The sum runs over the queries that selected a key, so the index lists are turned round first: pairs are sorted by
blocks of KEYS = 16 keys, in a block by query. One program for one block takes QUERIES pairs at a time, gathers their
index queries, all heads, as the columns of one matrix, makes z again for the whole block, keeps of it for every pair
the row of its one key, and adds

    dk[16, i] += dz[16, columns] index_q[columns, i]

A query that selected several keys of a block stands there as often; then its rows come out of the nearest cache.
Lists are made for a slab of queries at a time, since sorting takes some 70 bytes a pair; the sums go from slab to slab
in float32. Slabs, lists and loops have one order, hence the same bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.launch import launch, upcast
from minikeye.kernels.losses.loss_tiles import index_tile, load_index_keys, load_queries, precision, through_relu

KEYS = 16  # keys a block: the smallest side of a matrix instruction
PAIRS = 2**23  # (query, key) pairs sorted at once: 4096 queries of 2048 keys, some 600 MB
COLUMNS = 64  # index heads of pairs, side by side. Not timed yet: 120 registers on sm_90
DK = {
    "sm_80": {"num_warps": 4, "num_stages": 2},
    "sm_90": {"num_warps": 4, "num_stages": 3},
    "interpreter": {},
}


@triton.jit
def selected_dk_kernel(
    index_q, index_k, index_w, indices, dscore, dloss, pairs, begins, dk, scale,
    iq_b, iq_t, iq_j, ik_b, ik_s, w_b, w_t, w_j, i_b, i_t, d_b, d_t, g_b, g_t,
    S, TOPK, BLOCKS, J, I,  # noqa: E741 - the axis letters
    HEADS: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid (key blocks, b). Adds one slab's part to dk, float32 [b s i], contiguous."""
    b = tl.program_id(1).to(tl.int64)
    begin = tl.load(begins + b * BLOCKS + tl.program_id(0))
    end = tl.load(begins + b * BLOCKS + tl.program_id(0) + 1)
    if begin == end:
        return
    s = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    keys = load_index_keys(index_k + b * ik_b, s, ik_s, S, I, WIDTH, UPCAST)
    index_q += b * iq_b
    index_w += b * w_b
    indices += b * i_b
    dscore += b * d_b
    dloss += b * g_b
    sums = tl.zeros([KEYS, WIDTH], tl.float32)
    for first in range(begin, end, QUERIES):
        at = first + tl.arange(0, QUERIES)
        pair = tl.load(pairs + at, mask=at < end, other=-1)  # t * TOPK + slot
        is_pair = pair >= 0
        t = tl.where(is_pair, pair // TOPK, -1).to(tl.int64)
        slot = pair % TOPK
        key = tl.load(indices + t * i_t + slot, mask=is_pair, other=-1).to(tl.int32)
        d = tl.load(dscore + t * d_t + slot, mask=is_pair, other=0.0)
        d *= tl.load(dloss + t * g_t, mask=is_pair, other=0.0)
        queries, gate = load_queries(
            index_q, index_w, t, scale, iq_t, iq_j, w_t, w_j, J, I, HEADS, WIDTH, QUERIES, UPCAST
        )
        z, _ = index_tile(keys, queries, gate, KEYS, HEADS, QUERIES)
        d = tl.where(s[:, None] == key[None, :], d[None, :], 0.0)  # a pair has one key of the block
        d = through_relu(d, z, KEYS, HEADS, QUERIES) * gate[None, :]
        sums = tl.dot(d, queries.to(tl.float32), sums, input_precision=PRECISION)
    i = tl.arange(0, WIDTH)
    in_range = (s < S)[:, None] & (i < I)[None, :]
    at = (b * S + s)[:, None] * I + i[None, :]
    tl.store(dk + at, tl.load(dk + at, mask=in_range) + sums, mask=in_range)


def selected_dk(
    index_q: Tensor, index_k: Tensor, index_w: Tensor, indices: Tensor, dscore: Tensor, dloss: Tensor
) -> Tensor:
    """dindex_k in its dtype. dscore float32 [b t k]: dI at the incoming gradient 1; dloss [b t]: those gradients."""
    (b, t, j, i), s, topk = index_q.shape, index_k.shape[1], indices.shape[2]
    heads, width, blocks = max(2, triton.next_power_of_2(j)), max(16, triton.next_power_of_2(i)), triton.cdiv(s, KEYS)
    dk = torch.zeros(index_k.shape, dtype=torch.float32, device=index_k.device)
    slab = max(1, PAIRS // (b * topk))
    for first in range(0, t, slab):
        part = slice(first, min(first + slab, t))
        pairs, begins = sort_pairs(indices[:, part], s)
        selected_dk_kernel[(blocks, b)](
            index_q[:, part], index_k, index_w[:, part], indices[:, part], dscore[:, part], dloss[:, part],
            pairs, begins, dk, i**-0.5,
            *index_q.stride()[:3], *index_k.stride()[:2], *index_w.stride(), *indices.stride()[:2],
            *dscore.stride()[:2], *dloss.stride(), s, topk, blocks, j, i,
            HEADS=heads, WIDTH=width, QUERIES=max(1, COLUMNS // heads), KEYS=KEYS,
            PRECISION=precision(index_q), UPCAST=upcast(index_q.dtype), **launch(DK, index_q.device),
        )  # fmt: skip
    return dk.to(index_k.dtype)


def sort_pairs(indices: Tensor, s: int) -> tuple[Tensor, Tensor]:
    """Which pairs (query, slot) hold a key of a block: pairs int32 [b * t * k], begins int32 [b * blocks + 1].

    pairs[begins[n] : begins[n + 1]] belong to block n % blocks of batch row n // blocks: t * topk + slot, ascending.
    """
    b, t, topk = indices.shape
    blocks = triton.cdiv(s, KEYS)
    flat = indices.reshape(b, -1).int()
    row = torch.arange(b, dtype=torch.int32, device=flat.device)[:, None]
    block = torch.where(flat < 0, b * blocks, row * blocks + flat // KEYS)  # -1 goes behind the last block
    block, pair = block.flatten().sort(stable=True)
    edges = torch.arange(b * blocks + 1, dtype=torch.int32, device=flat.device)
    return (pair % (t * topk)).int(), torch.searchsorted(block, edges).int()
