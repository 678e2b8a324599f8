"""Exact top-k of rows of scores, fast: most keys are looked at once and cost one bit.

Axes: b batch, t query position, s key position, k selected key. Report, section 2.3. Same answer as select_topk.py.

1. threshold: a sixteenth of a row's scores, in runs of 8 (one 32-byte sector) spread evenly over it, gives a bound that
   about sqrt(k * CAPACITY) of all keys should reach: half way, in ratio, between the k that are needed and the CAPACITY
   = 2k or more that step 4 can hold. Rows of at most CAPACITY keys need no sample: all their keys pass.
2. filter: reads the row once, from left to right, and writes bit s of a map where score s reaches the bound.
3. list: turns the bits into an ascending list of candidates.
4. pick: fetches their scores, finds the k-th by bisection, takes what is above it and its ties from the left, and
   writes the positions where running counts put them.

A sample can mislead, and ties can be many. A row where fewer than k or more than CAPACITY keys pass is marked, and the
radix select of select_topk.py does it again; for the others that launch only looks at their mark. So the result never
depends on the sample, only the time does.

Tried on an H100 and slower: a second, upper bound, so that pick need not fetch the scores of keys that are surely among
the k. What it saves there, the second map costs before.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.launch import architecture, launch
from minikeye.kernels.selection.index_scores import start_strides
from minikeye.kernels.selection.ordered_bits import bisect, count_bits, ordered, unordered, write_chosen
from minikeye.kernels.selection.select_topk import check_rows, launch_select, row_span, slab_by_slab

MOST_TOPK = 4096  # candidates of a row stay in registers
LOWEST = torch.finfo(torch.float32).min

SAMPLE = {"sm_90": (4096, 16_384), "sm_80": (4096, 16_384), "interpreter": (64, 64)}  # scores, least and most
FILTER = {  # words (of 32 keys) in a tile, keys that a program goes through
    "sm_90": {"WORDS": 64, "RANGE": 16_384, "num_warps": 4},
    "sm_80": {"WORDS": 64, "RANGE": 16_384, "num_warps": 4},
    "interpreter": {"WORDS": 2, "RANGE": 128},  # small, so that small tests cross tiles and ranges
}
LIST = {  # words in a block
    "sm_90": {"WORDS": 1024, "num_warps": 8},
    "sm_80": {"WORDS": 1024, "num_warps": 8},
    "interpreter": {"WORDS": 4},
}
PICK = {"sm_90": {"num_warps": 8}, "sm_80": {"num_warps": 8}, "interpreter": {}}


@triton.jit
def threshold_kernel(
    scores, start, bound, t_count, s_count, offset, aim,
    scores_b, scores_t, start_b, start_t,
    CAPACITY: tl.constexpr, SAMPLE: tl.constexpr, LOWEST: tl.constexpr,
):  # fmt: skip
    t, b = tl.program_id(0), tl.program_id(1)
    begin, stop = row_span(start, b, t, s_count, offset, start_b, start_t)
    keys = stop - begin
    lower = tl.full((), LOWEST, tl.float32)
    if keys > CAPACITY:
        scores += b.to(tl.int64) * scores_b + t.to(tl.int64) * scores_t
        element = tl.arange(0, SAMPLE)
        sector = (begin + (element // 8).to(tl.int64) * keys // (SAMPLE // 8)) // 8 * 8
        s = sector + element % 8
        key = ordered(tl.load(scores + s, mask=(s >= begin) & (s < stop), other=float("-inf")))
        need = tl.maximum(1, (tl.cast(aim, tl.int64) * SAMPLE // keys).to(tl.int32))
        lower = unordered(bisect(key, tl.min(key, axis=0), tl.max(key, axis=0) + 1, need, need + need // 16))
        lower = tl.maximum(lower, LOWEST)
    tl.store(bound + b.to(tl.int64) * t_count + t, lower)


@triton.jit
def filter_kernel(
    scores, start, bound, bitmap, t_count, s_count, word_count, offset,
    scores_b, scores_t, start_b, start_t,
    WORDS: tl.constexpr, RANGE: tl.constexpr,
):  # fmt: skip
    t, b = tl.program_id(0), tl.program_id(2)
    row = b.to(tl.int64) * t_count + t
    begin, stop = row_span(start, b, t, s_count, offset, start_b, start_t)
    lower = tl.load(bound + row)
    scores += b.to(tl.int64) * scores_b + t.to(tl.int64) * scores_t
    bit = tl.arange(0, 32)
    first = tl.program_id(1) * RANGE
    end = tl.minimum(stop, first + RANGE)
    first = tl.maximum(first, begin // (32 * WORDS) * (32 * WORDS))
    for tile in range(first, end, 32 * WORDS):
        word = tile // 32 + tl.arange(0, WORDS)
        s = word[:, None] * 32 + bit[None, :]
        score = tl.load(scores + s, mask=s < s_count, other=float("-inf"))
        passes = (score >= lower) & (s >= begin) & (s < stop)
        tl.store(
            bitmap + row * word_count + word, tl.sum(passes.to(tl.int32) << bit[None, :], axis=1), word < word_count
        )


@triton.jit
def list_kernel(
    start, bitmap, candidates, passed, t_count, s_count, word_count, offset, start_b, start_t,
    CAPACITY: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Bits to an ascending list. Each turn of the inner loop takes the lowest bit of every word that has one left."""
    t, b = tl.program_id(0), tl.program_id(1)
    row = b.to(tl.int64) * t_count + t
    begin, stop = row_span(start, b, t, s_count, offset, start_b, start_t)
    bitmap += row * word_count
    candidates += row * CAPACITY
    listed = 0
    for block in range(begin // 32, tl.cdiv(stop, 32), WORDS):
        index = block + tl.max_contiguous(tl.arange(0, WORDS), 1)  # keeps the stores below out of shared memory
        word = tl.load(bitmap + index, mask=index < tl.cdiv(stop, 32), other=0)
        count = count_bits(word)
        place = listed + tl.cumsum(count, axis=0) - count
        listed += tl.sum(count, axis=0)
        turns = tl.where(listed > CAPACITY, 0, tl.max(count, axis=0))  # a row with too many is done again anyway
        for _ in range(turns):
            lowest = word & -word
            tl.store(candidates + place, index * 32 + count_bits(lowest - 1), mask=(word != 0) & (place < CAPACITY))
            word ^= lowest
            place += 1
    tl.store(passed + row, listed)


@triton.jit
def pick_kernel(
    scores, start, candidates, passed, out, t_count, s_count, topk, offset,
    scores_b, scores_t, start_b, start_t,
    CAPACITY: tl.constexpr,
):  # fmt: skip
    """The k-th of a row's candidates, then those above it and its ties from the left. Marks a miss: passed = -1."""
    t, b = tl.program_id(0), tl.program_id(1)
    row = b.to(tl.int64) * t_count + t
    begin, stop = row_span(start, b, t, s_count, offset, start_b, start_t)
    count = tl.load(passed + row)
    if (count > CAPACITY) | ((stop - begin > CAPACITY) & (count < topk)):
        tl.store(passed + row, -1)
        return
    scores += b.to(tl.int64) * scores_b + t.to(tl.int64) * scores_t
    out += row * topk
    place = tl.max_contiguous(tl.arange(0, CAPACITY), 1)  # keeps the stores below out of shared memory
    listed = place < count
    s = tl.load(candidates + row * CAPACITY + place, mask=listed, other=0)
    key = ordered(tl.load(scores + s, mask=listed, other=float("-inf")))
    need = tl.minimum(topk, count)
    kth = bisect(key, tl.min(key, axis=0), tl.max(key, axis=0) + 1, need, need)
    write_chosen(out, place, s, key, listed, kth, need, topk)


def select_rows_fast(
    scores: Tensor, topk: int, offset: int = 0, start: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """As select_topk.select_rows, to the bit, for topk up to 4096."""
    out = check_rows(scores, topk, start, out)
    if topk > MOST_TOPK:
        raise ValueError(f"the fast selection takes topk up to {MOST_TOPK}, got {topk}; select_rows has no limit")
    if out.numel() == 0:
        return out
    b, t, s = scores.shape
    capacity, words, device = _capacity(topk), triton.cdiv(s, 32), scores.device
    bitmap = torch.empty(b, t, words, dtype=torch.int32, device=device)
    candidates = torch.empty(b, t, capacity, dtype=torch.int32, device=device)
    bound = torch.empty(b, t, dtype=torch.float32, device=device)
    passed = torch.empty(b, t, dtype=torch.int32, device=device)
    sample = _sample(s, device)
    rows, starts, table = scores.stride()[:2], start_strides(start), launch(FILTER, device)
    threshold_kernel[(t, b)](
        scores, start, bound, t, s, offset, math.isqrt(topk * capacity), *rows, *starts,
        CAPACITY=capacity, SAMPLE=sample, LOWEST=LOWEST, num_warps=max(1, sample // 1024), enable_fp_fusion=True,
    )  # fmt: skip
    filter_kernel[(t, triton.cdiv(s, table["RANGE"]), b)](
        scores, start, bound, bitmap, t, s, words, offset, *rows, *starts, **table
    )
    list_kernel[(t, b)](
        start, bitmap, candidates, passed, t, s, words, offset, *starts, CAPACITY=capacity, **launch(LIST, device)
    )
    pick_kernel[(t, b)](
        scores, start, candidates, passed, out, t, s, topk, offset, *rows, *starts,
        CAPACITY=capacity, **launch(PICK, device),
    )  # fmt: skip
    launch_select(scores, topk, offset, start, out, only=passed)
    return out


def select_topk_fast(
    q: Tensor, k: Tensor, w: Tensor, topk: int, offset: int = 0, start: Tensor | None = None
) -> Tensor:
    """As select_topk.select_topk, to the bit, for topk up to 4096."""
    kept = 4 * (_capacity(topk) + triton.cdiv(k.shape[1], 32) + 2) if topk >= 1 else 0  # list, bits, bound, mark
    return slab_by_slab(select_rows_fast, q, k, w, topk, offset, start, kept)


def _capacity(topk: int) -> int:
    """Candidates that `pick_kernel` can hold: at least twice topk, a power of two."""
    return triton.next_power_of_2(2 * topk)


def _sample(s: int, device: torch.device) -> int:
    """Scores in the sample of a row of s: a sixteenth, as a power of two, within limits.

    Then 180 of the sample reach the bound where k is 2048, and if keys are independent, less than one row in 10,000 is
    misled; of half as many, one in a thousand.
    """
    least, most = SAMPLE[architecture(device)]
    return min(most, max(least, triton.next_power_of_2(s) // 16))
