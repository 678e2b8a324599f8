"""The two log-sum-exps of the dense warm-up: of every head's attention logits, and of every row's index scores.

Axes: b batch, t query row, s key position, j indexer head, i indexer width, h query head, g KV head (group), e head
width. For the keys start[t] <= s <= positions[t] of row t, which may be any row of a sequence:

    lse[t, h] = log sum_s exp(e^-1/2 q[t, h] . k[s, g])
    row_lse[t] = log sum_s exp(I[t, s])        I[t, s] = i^-1/2 sum_j w[t, j] ReLU(index_q[t, j] . index_k[s])

-inf for a row that sees no key. Tiles take QUERIES rows by ascending position, so that the rows of a tile end at about
the same key, and skip the keys that none of them sees. A few rows would not fill a GPU: the keys are cut into chunks,
one program for a tile and a chunk, and the chunks' log-sum-exps are put together afterwards, in one order.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.attention.online_softmax import LN2, LOG2E
from minikeye.kernels.launch import architecture, launch
from minikeye.kernels.losses.loss_tiles import (
    add_to_sums,
    begin_sums,
    columns,
    finish_sums,
    index_tile,
    load_index_keys,
    load_queries,
    sizes,
)

# KEYS of a tile. Not timed yet: these tiles leave room for two programs a multiprocessor and more.
HEADS_LAUNCH = {
    "sm_80": {"KEYS": 64, "num_warps": 4, "num_stages": 3},
    "sm_90": {"KEYS": 64, "num_warps": 8, "num_stages": 2},
    "interpreter": {"KEYS": 16},  # small, so that small tests cross tiles
}
ROWS_LAUNCH = {
    "sm_80": {"KEYS": 64, "num_warps": 4, "num_stages": 3},
    "sm_90": {"KEYS": 64, "num_warps": 8, "num_stages": 2},
    "interpreter": {"KEYS": 16},
}
COLUMNS = {"sm_80": 64, "sm_90": 128, "interpreter": 32}  # index heads of a tile's rows, side by side
PROGRAMS = {"sm_80": 1024, "sm_90": 1024, "interpreter": 6}  # of a launch, at least, where the keys suffice
SHORTEST = {"sm_80": 512, "sm_90": 512, "interpreter": 16}  # keys of a chunk


@dataclass(frozen=True)
class Rows:
    """Query rows in the order of their positions, and how tiles and chunks divide the work."""

    order: Tensor  # int32 [t]: which row is the n-th
    firsts: Tensor  # int32 [b t]: first key that the n-th row sees
    lasts: Tensor  # int32 [t]: last key that the n-th row sees, s - 1 at most
    queries: int  # rows of a tile
    tiles: int
    chunk: int  # keys
    chunks: int


def arrange_rows(index_q: Tensor, s: int, positions: Tensor, start: Tensor | None) -> Rows:
    """positions int [t]; start int [b] or [b t], None for 0."""
    (b, t, j, _), device = index_q.shape, index_q.device
    lasts, order = positions.clamp(max=s - 1).int().sort(stable=True)
    start = torch.zeros(b, 1, dtype=torch.int32, device=device) if start is None else start.int().reshape(b, -1)
    firsts = start.expand(b, t)[:, order].contiguous()
    machine = architecture(device)
    queries = min(8, max(1, COLUMNS[machine] // triton.next_power_of_2(j)))
    tiles = triton.cdiv(t, queries)
    chunk = triton.cdiv(s, triton.cdiv(PROGRAMS[machine], tiles * b))
    chunk = triton.cdiv(chunk, SHORTEST[machine]) * SHORTEST[machine]
    return Rows(order.int(), firsts, lasts, queries, tiles, chunk, triton.cdiv(s, chunk))


@triton.jit
def tile_rows(tile, order, firsts, lasts, b, T, S, QUERIES: tl.constexpr):
    """The rows of a tile, -1 behind the last row, and the first and the last key that each sees."""
    at = tile * QUERIES + tl.arange(0, QUERIES)
    t = tl.load(order + at, mask=at < T, other=-1).to(tl.int64)
    return t, tl.load(firsts + b * T + at, mask=at < T, other=S), tl.load(lasts + at, mask=at < T, other=-1)


@triton.jit
def tile_keys(first, last, CHUNK, KEYS: tl.constexpr):
    """Begin and end of the keys of this chunk that some row of the tile sees."""
    chunk = tl.program_id(1) * CHUNK
    begin = tl.maximum(chunk, tl.min(first, axis=0) // KEYS * KEYS)
    return begin, tl.minimum(chunk + CHUNK, tl.max(last, axis=0) + 1)


@triton.jit
def heads_kernel(
    q, k, order, firsts, lasts, parts, scale_log2,
    q_b, q_t, q_h, k_b, k_s, k_g,
    B, T, S, CHUNK, G, R,
    E: tl.constexpr, BLOCK_R: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, chunks, b * g). parts [chunks b t h]: the log-sum-exp of a head's logits over a chunk."""
    b = (tl.program_id(2) // G).to(tl.int64)
    g = tl.program_id(2) % G
    t, first, last = tile_rows(tl.program_id(0), order, firsts, lasts, b, T, S, QUERIES)
    begin, end = tile_keys(first, last, CHUNK, KEYS)
    width = tl.arange(0, E)
    head = tl.arange(0, BLOCK_R * QUERIES) // QUERIES
    row = columns(t, BLOCK_R, QUERIES)
    row_first = columns(first, BLOCK_R, QUERIES)
    row_last = columns(last, BLOCK_R, QUERIES)
    h = g * R + head
    real = (head < R) & (row >= 0)
    query = tl.load(q + b * q_b + (row * q_t + h * q_h)[:, None] + width[None, :], mask=real[:, None], other=0.0)
    if UPCAST:
        query = query.to(tl.float32)
    k += b * k_b + g * k_g
    m, total = begin_sums(KEYS, BLOCK_R * QUERIES)
    for tile in range(begin, end, KEYS):
        s = tile + tl.arange(0, KEYS)
        keys = tl.load(k + s[:, None] * k_s + width[None, :], mask=(s < S)[:, None], other=0.0)
        if UPCAST:
            keys = keys.to(tl.float32)
        logits = tl.dot(keys, tl.trans(query), input_precision="ieee") * scale_log2
        valid = (s[:, None] >= row_first[None, :]) & (s[:, None] <= row_last[None, :])
        m, total = add_to_sums(m, total, tl.where(valid, logits, float("-inf")))
    at = ((tl.program_id(1).to(tl.int64) * B + b) * T + row) * G * R + h
    tl.store(parts + at, finish_sums(m, total) * LN2, mask=real)


@triton.jit
def rows_kernel(
    index_q, index_k, index_w, order, firsts, lasts, parts, scale,
    iq_b, iq_t, iq_j, ik_b, ik_s, w_b, w_t, w_j,
    B, T, S, CHUNK, J, I,  # noqa: E741 - the axis letters
    HEADS: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, KEYS: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, chunks, b). parts [chunks b t]: the log-sum-exp of a row's index scores over a chunk."""
    b = tl.program_id(2).to(tl.int64)
    t, first, last = tile_rows(tl.program_id(0), order, firsts, lasts, b, T, S, QUERIES)
    begin, end = tile_keys(first, last, CHUNK, KEYS)
    index_q += b * iq_b
    index_w += b * w_b
    queries, gate = load_queries(index_q, index_w, t, scale, iq_t, iq_j, w_t, w_j, J, I, HEADS, WIDTH, QUERIES, UPCAST)
    m, total = begin_sums(KEYS, QUERIES)
    for tile in range(begin, end, KEYS):
        s = tile + tl.arange(0, KEYS)
        keys = load_index_keys(index_k + b * ik_b, s, ik_s, S, I, WIDTH, UPCAST)
        _, score = index_tile(keys, queries, gate, KEYS, HEADS, QUERIES)
        valid = (s[:, None] >= first[None, :]) & (s[:, None] <= last[None, :])
        m, total = add_to_sums(m, total, tl.where(valid, score * LOG2E, float("-inf")))
    at = (tl.program_id(1).to(tl.int64) * B + b) * T + t
    tl.store(parts + at, finish_sums(m, total) * LN2, mask=t >= 0)


def head_sums(q: Tensor, k: Tensor, index_q: Tensor, rows: Rows) -> Tensor:
    """lse, float32 [b t h]."""
    (b, t, h, e), (s, g) = q.shape, k.shape[1:3]
    parts = torch.empty(rows.chunks, b, t, h, dtype=torch.float32, device=q.device)
    constants = {name: value for name, value in sizes(index_q, q, k).items() if name in ("E", "BLOCK_R", "UPCAST")}
    heads_kernel[(rows.tiles, rows.chunks, b * g)](
        q, k, rows.order, rows.firsts, rows.lasts, parts, e**-0.5 / math.log(2.0),
        *q.stride()[:3], *k.stride()[:3], b, t, s, rows.chunk, g, h // g,
        QUERIES=rows.queries, **constants, **launch(HEADS_LAUNCH, q.device),
    )  # fmt: skip
    return parts.logsumexp(dim=0)


def row_sums(index_q: Tensor, index_k: Tensor, index_w: Tensor, q: Tensor, k: Tensor, rows: Rows) -> Tensor:
    """row_lse, float32 [b t]."""
    (b, t, j, i), s = index_q.shape, index_k.shape[1]
    parts = torch.empty(rows.chunks, b, t, dtype=torch.float32, device=q.device)
    constants = {name: value for name, value in sizes(index_q, q, k).items() if name in ("HEADS", "WIDTH", "UPCAST")}
    rows_kernel[(rows.tiles, rows.chunks, b)](
        index_q, index_k, index_w, rows.order, rows.firsts, rows.lasts, parts, i**-0.5,
        *index_q.stride()[:3], *index_k.stride()[:2], *index_w.stride(), b, t, s, rows.chunk, j, i,
        QUERIES=rows.queries, **constants, **launch(ROWS_LAUNCH, q.device),
    )  # fmt: skip
    return parts.logsumexp(dim=0)
