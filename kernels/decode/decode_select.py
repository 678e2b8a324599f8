"""Selection for one new token a batch row, over a cache of index keys: three launches, ready for a CUDA graph.

Axes: b batch, s key position (up to the cache's capacity), j indexer head, i indexer width, k selected key. Report,
section 2.3. Same rule as select_topk.py: the k highest scores among the keys start[b] <= s < lengths[b], ties to the
smaller position, ascending, -1 behind them.

One row does not fill a GPU, and its time is the time of launches: few of them, each split over the keys.

1. scores: I[s] = i^-1/2 sum_j w[j] ReLU(q[j] . k[s]), a chunk of keys a program. Keys are the rows of the product.
2. filter: RANGES programs a row, all with the same bound from the same sample of the row's scores: a launch saved for
   some arithmetic done RANGES times. About sqrt(k * CAPACITY) keys should reach it: half way, in ratio, between the k
   that are needed and the CAPACITY = 2k or more that step 3 can hold. A program lists those of its range where the
   range begins, so that no list can overflow: positions and scores, ascending.
3. finish: slot n of the joined lists lies in range r where the running count of the ranges before r is <= n: r by
   bisection. Then the k-th score, what is above it and its ties from the left, as in select_fast.py.

A sample can mislead, and ties can be many. Where fewer than k or more than CAPACITY keys pass, the finish selects from
the whole row by radix, in the same launch: the answer never depends on the sample, only the time does.

lengths stay on the device. Programs beyond a row's length return, and nothing asks the CPU for a value: a graph may be
replayed while rows grow.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.decode.dependent import ALONE, release, wait
from minikeye.kernels.launch import INTERPRETED, architecture, launch
from minikeye.kernels.selection.index_scores import check_index, start_strides
from minikeye.kernels.selection.ordered_bits import bisect, ordered, unordered, write_chosen
from minikeye.kernels.selection.select_fast import LOWEST, MOST_TOPK
from minikeye.kernels.selection.select_topk import select_kernel

MOST_PRODUCTS = 8192  # keys * heads of one product: 64 registers a thread
RUN = 2  # neighbours in the sample. Scores of neighbours are alike in a video, and longer runs then mislead more often
# Scores: keys in a tile; keys a program goes through at batch 1, and at most at larger batches.
SCORES = {
    "sm_90": {"KEYS": 128, "CHUNK": (256, 2048), "num_warps": 4, "num_stages": 3},
    "sm_80": {"KEYS": 128, "CHUNK": (256, 2048), "num_warps": 4, "num_stages": 3},
    "interpreter": {"KEYS": 16, "CHUNK": (32, 64), "num_stages": 1},  # small, so that small tests cross tiles
}
SAMPLE = {"sm_90": (1024, 8192), "sm_80": (1024, 8192), "interpreter": (64, 64)}  # scores, least and most
# Ranges of a row, powers of two, at most and of a batch's rows: each looks at the whole sample again. At batch 16, 16
# ranges and a smaller sample took 15 us on an H200 prototype, 32 had taken 42.
RANGES = {"sm_90": (16, 64), "sm_80": (16, 64), "interpreter": (2, 4)}
FILTER = {  # scores in a block
    "sm_90": {"BLOCK": 2048, "num_warps": 8},
    "sm_80": {"BLOCK": 2048, "num_warps": 8},
    "interpreter": {"BLOCK": 16},
}
# Scores in a block of the radix select: not 4096, the released CAPACITY. Tensors of one shape would get the layout that
# suits the radix select, and the lists go through shared memory.
FINISH = {
    "sm_90": {"BLOCK": 512, "num_warps": 16},
    "sm_80": {"BLOCK": 2048, "num_warps": 8},
    "interpreter": {"BLOCK": 32},
}


@triton.jit
def key_span(lengths, start, b, s_count, start_b):
    """First valid key of a row and the end of its valid keys."""
    begin = 0
    if start is not None:
        begin = tl.maximum(tl.load(start + b * start_b).to(tl.int32), 0)
    return begin, tl.minimum(tl.load(lengths + b).to(tl.int32), s_count)


@triton.jit
def range_span(begin, stop, part, RANGES: tl.constexpr):
    """First and last + 1 key of a range. Ranges are alike, whole runs of 32 keys, and cover begin .. stop - 1."""
    width = tl.cdiv(stop - begin // 32 * 32, 32 * RANGES) * 32
    first = begin // 32 * 32 + part * width
    return first, tl.minimum(first + width, stop)


@triton.jit
def decode_scores_kernel(
    q, k, w, lengths, start, scores, s_count, scale,
    q_b, q_j, k_b, k_s, w_b, w_j, start_b, scores_b,
    J: tl.constexpr, I: tl.constexpr, HEADS: tl.constexpr, WIDTH: tl.constexpr,  # noqa: E741 - the width's letter
    KEYS: tl.constexpr, CHUNK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    begin, stop = key_span(lengths, start, b, s_count, start_b)
    first = tl.maximum(tl.program_id(0) * CHUNK, begin // KEYS * KEYS)
    end = tl.minimum((tl.program_id(0) + 1) * CHUNK, stop)
    if first >= end:
        return
    head, i = tl.arange(0, HEADS), tl.arange(0, WIDTH)
    q_at = q + b * q_b + head[None, :] * q_j + i[:, None]
    queries = tl.load(q_at, mask=(head < J)[None, :] & (i < I)[:, None], other=0.0)
    gate = tl.load(w + b * w_b + head * w_j, mask=head < J, other=0.0).to(tl.float32)
    if UPCAST:
        queries = queries.to(tl.float32)
    k += b * k_b
    scores += b * scores_b
    for tile in tl.range(first, end, KEYS):
        s = tile + tl.arange(0, KEYS)
        keys = tl.load(k + (s * k_s)[:, None] + i[None, :], mask=(s < end)[:, None] & (i < I)[None, :], other=0.0)
        if UPCAST:
            keys = keys.to(tl.float32)
        z = tl.dot(keys, queries, input_precision="ieee")
        score = tl.sum(tl.maximum(z, 0.0) * gate[None, :], axis=1) * scale
        tl.store(scores + s, score, mask=(s >= begin) & (s < end))


@triton.jit
def bound_of_row(scores, begin, stop, aim, SAMPLE: tl.constexpr, RUN: tl.constexpr, LOWEST: tl.constexpr):
    """A score that about `aim` of the row's should reach, from SAMPLE of them in runs of RUN spread evenly over it."""
    element = tl.arange(0, SAMPLE)
    run = (begin + (element // RUN).to(tl.int64) * (stop - begin) // (SAMPLE // RUN)) // RUN * RUN
    s = (run + element % RUN).to(tl.int32)
    key = ordered(tl.load(scores + s, mask=(s >= begin) & (s < stop), other=float("-inf")))
    need = tl.maximum(1, (tl.cast(aim, tl.int64) * SAMPLE // (stop - begin)).to(tl.int32))
    lower = unordered(bisect(key, tl.min(key, axis=0), tl.max(key, axis=0) + 1, need, need + need // 16))
    return tl.maximum(lower, LOWEST)


@triton.jit
def decode_filter_kernel(
    scores, lengths, start, positions, values, counts, s_count, aim, start_b, scores_b,
    CAPACITY: tl.constexpr, SAMPLE: tl.constexpr, RUN: tl.constexpr, LOWEST: tl.constexpr,
    RANGES: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    b = tl.program_id(1).to(tl.int64)
    release(PDL)
    wait(PDL)
    begin, stop = key_span(lengths, start, b, s_count, start_b)
    first, end = range_span(begin, stop, tl.program_id(0), RANGES)
    counts += b * RANGES + tl.program_id(0)
    if first >= end:
        tl.store(counts, 0)
        return
    scores += b * scores_b
    lower = tl.full((), LOWEST, tl.float32)
    if stop - begin > CAPACITY:
        lower = bound_of_row(scores, begin, stop, aim, SAMPLE, RUN, LOWEST)
    positions += b * scores_b + first
    values += b * scores_b + first
    listed = 0
    for block in range(first, end, BLOCK):
        s = block + tl.max_contiguous(tl.arange(0, BLOCK), 1)  # keeps the stores below out of shared memory
        score = tl.load(scores + s, mask=(s >= begin) & (s < end), other=float("-inf"))
        passes = score >= lower
        place = listed + tl.cumsum(passes.to(tl.int32), axis=0) - 1
        tl.store(positions + place, s, mask=passes)
        tl.store(values + place, score, mask=passes)
        listed += tl.sum(passes.to(tl.int32), axis=0)
    tl.store(counts, listed)


@triton.jit
def decode_finish_kernel(
    scores, lengths, start, positions, values, counts, out, s_count, topk, start_b, scores_b,
    CAPACITY: tl.constexpr, RANGES: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (1, b): to `select_kernel`, called as a function, this is query 0 of batch row b."""
    b = tl.program_id(1).to(tl.int64)
    release(PDL)
    wait(PDL)
    begin, stop = key_span(lengths, start, b, s_count, start_b)
    count = tl.load(counts + b * RANGES + tl.arange(0, RANGES))
    passed = tl.sum(count, axis=0)
    if (passed > CAPACITY) | ((stop - begin > CAPACITY) & (passed < topk)):
        select_kernel(scores, start, out, None, 1, stop, topk, stop, scores_b, 0, start_b, 0, BLOCK)
        return
    out += b * topk
    slot = tl.max_contiguous(tl.arange(0, CAPACITY), 1)  # as in the filter: one layout from gather to store
    ends = tl.cumsum(count, axis=0)
    part = tl.zeros((CAPACITY,), tl.int32)  # of a slot, its range: as many ranges end at or before it
    for step in tl.static_range(BITS):
        half = RANGES >> (step + 1)
        part += tl.where(tl.gather(ends, part + half - 1, axis=0) <= slot, half, 0)
    first, _ = range_span(begin, stop, part, RANGES)
    at = b * scores_b + first + slot - tl.gather(ends - count, part, axis=0)
    listed = slot < passed
    s = tl.load(positions + at, mask=listed, other=0)
    key = ordered(tl.load(values + at, mask=listed, other=float("-inf")))

    need = tl.minimum(topk, passed)
    high = tl.max(key, axis=0) + 1
    kth = bisect(key, tl.min(tl.where(listed, key, high - 1), axis=0), high, need, need)
    write_chosen(out, slot, s, key, listed, kth, need, topk)


@torch.no_grad()
def decode_select(q: Tensor, k: Tensor, w: Tensor, topk: int, lengths: Tensor, start: Tensor | None = None) -> Tensor:
    """Positions of the topk highest index scores of each row's one query: int32 [b 1 topk].

    q [b 1 j i], w [b 1 j]; k [b s i]: the cache, of which the keys start[b] <= s < lengths[b] are valid and the others
    may hold anything. lengths int32 [b], the new token counted, and start int [b] are read on the device, by kernels
    only. topk up to 4096. Capturable in a CUDA graph after one run outside it. Raises ValueError for shapes, dtypes,
    strides or devices that do not fit.
    """
    check_index(q, k, w, start)
    b, s = k.shape[:2]
    if q.shape[1] != 1:
        raise ValueError(f"decoding takes one query a batch row, q [b 1 j i]; got {list(q.shape)}")
    if not 1 <= topk <= MOST_TOPK:
        raise ValueError(f"topk must be 1 to {MOST_TOPK}, got {topk}")
    fit = lengths.dtype == torch.int32 and lengths.device == q.device and lengths.is_contiguous()
    if lengths.shape != (b,) or not fit:
        got = f"{lengths.dtype} {list(lengths.shape)} on {lengths.device}"
        raise ValueError(f"lengths must be contiguous int32 [{b}] on {q.device}; got {got}")
    if b == 0 or s == 0:
        return torch.full((b, 1, topk), -1, dtype=torch.int32, device=q.device)
    return select_scored(decode_scores(q, k, w, lengths, start), s, topk, lengths, start, ALONE)[:, None]


def select_scored(scores: Tensor, s: int, topk: int, lengths: Tensor, start: Tensor | None, follow: dict) -> Tensor:
    """Filter and finish: int32 [b topk] from scores float32 [b, at least s], s keys being room. Nothing is checked."""
    b, device = len(scores), scores.device
    fewest, ranges = RANGES[architecture(device)]
    ranges = max(fewest, ranges // triton.next_power_of_2(b))
    out, counts = (torch.empty(b, n, dtype=torch.int32, device=device) for n in (topk, ranges))
    positions, values = torch.empty_like(scores, dtype=torch.int32), torch.empty_like(scores)
    least, most = SAMPLE[architecture(device)]
    sample = min(most, max(least, triton.next_power_of_2(s // 40)))  # of 128K with room for more: 4096
    capacity = triton.next_power_of_2(2 * topk)
    lists, strides = (lengths, start, positions, values, counts), (start_strides(start)[0], scores.stride(0))
    decode_filter_kernel[(ranges, b)](
        scores, *lists, s, math.isqrt(topk * capacity), *strides,
        CAPACITY=capacity, SAMPLE=sample, RUN=RUN, LOWEST=LOWEST, RANGES=ranges, **launch(FILTER, device), **follow,
    )  # fmt: skip
    decode_finish_kernel[(1, b)](
        scores, *lists, out, s, topk, *strides,
        CAPACITY=capacity, RANGES=ranges, BITS=ranges.bit_length() - 1, **launch(FINISH, device), **follow,
    )  # fmt: skip
    return out


def decode_scores(q: Tensor, k: Tensor, w: Tensor, lengths: Tensor, start: Tensor | None) -> Tensor:
    """float32 [b, s rounded up to a cache line]: the scores of valid keys, elsewhere anything. Nothing is checked."""
    (b, _, j, i), s = q.shape, k.shape[1]
    scores = torch.empty(b, triton.cdiv(s, 32) * 32, dtype=torch.float32, device=q.device)
    heads, width = max(16, triton.next_power_of_2(j)), max(16, triton.next_power_of_2(i))
    table = launch(SCORES, q.device)
    least, most = table["CHUNK"]
    sizes = {"KEYS": min(table["KEYS"], MOST_PRODUCTS // heads), "CHUNK": min(most, least * triton.next_power_of_2(b))}
    decode_scores_kernel[(triton.cdiv(s, sizes["CHUNK"]), b)](
        q, k, w, lengths, start, scores, s, i**-0.5,
        q.stride(0), q.stride(2), *k.stride()[:2], w.stride(0), w.stride(2), start_strides(start)[0], scores.stride(0),
        J=j, I=i, HEADS=heads, WIDTH=width, UPCAST=INTERPRETED, **table | sizes,
    )  # fmt: skip
    return scores
