"""Exact top-k of rows of scores, fast: most keys are looked at once and cost one bit.

Axes: b batch, t query position, s key position, n sampled key, k selected key. Report, section 2.3. Same answer as
select_topk.py.

1. threshold: the scores of every 16th key or so, one by one, give a bound that about sqrt(k * CAPACITY) of all keys
   should reach: half way, in ratio, between the k that are needed and the CAPACITY = 2k or more that step 4 can hold.
   Rows of at most CAPACITY keys need no sample: all their keys pass.
2. filter: reads the row once, from left to right, and writes bit s of a map where score s reaches the bound.
3. list: turns the bits into an ascending list of candidates (bit_lists.py).
4. pick: fetches their scores, finds the k-th by bisection, takes what is above it and its ties from the left, and
   writes the positions where running counts put them.

A sample can mislead, and ties can be many. A row where fewer than k or more than CAPACITY keys pass is marked, and the
radix select of select_topk.py does it again; for the others that launch only looks at their mark. So the result never
depends on the sample, only the time does.

The sample, our choice: one key of every stretch of so many, so that keys that resemble their neighbours are all
represented; at a place of the stretch that changes from stretch to stretch and never in a period, so that scores with a
period, such as those of the columns of a picture, are represented too. `select_topk_fast` scores the sampled keys apart
from all: to pick them out of the rows of all scores would read half of these again.

Tried and not kept: a second, upper bound, so that pick need not fetch the scores of keys that are surely among the k:
what it saves there, the second map costs before (H100). A sample of runs of 8 neighbours, one sector each: where
neighbours are alike, of 1,024 runs only so many samples are left, rows miss their bound, and the radix select and a
list that went by the fullest word cost a smooth prompt of 128K tokens 26 of 149 ms a layer (H200).
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.launch import architecture, launch
from minikeye.kernels.selection.bit_lists import LIST, list_kernel
from minikeye.kernels.selection.index_scores import index_scores, start_strides
from minikeye.kernels.selection.ordered_bits import bisect, ordered, unordered, write_chosen
from minikeye.kernels.selection.select_topk import check_rows, check_whole, launch_select, row_span, slabs

MOST_TOPK = 4096  # candidates of a row stay in registers
LOWEST = torch.finfo(torch.float32).min
GOLDEN = 2654435769  # 2^32 / 1.618...

# Keys in a stretch, of which one is sampled, for topk of 1024 and more. Then 181 of the sample reach the bound where k
# is 2048, and if keys are independent, less than one row in 10,000 is misled; with 90, one in a thousand.
STRETCH = {"sm_90": 16, "sm_80": 16, "interpreter": 4}
MOST_SAMPLED = 16_384  # keys: longer rows have longer stretches
FILTER = {  # words (of 32 keys) in a tile, keys that a program goes through
    "sm_90": {"WORDS": 64, "RANGE": 16_384, "num_warps": 4},
    "sm_80": {"WORDS": 64, "RANGE": 16_384, "num_warps": 4},
    "interpreter": {"WORDS": 2, "RANGE": 128},  # small, so that small tests cross tiles and ranges
}
PICK = {"sm_90": {"num_warps": 8}, "sm_80": {"num_warps": 8}, "interpreter": {}}


@triton.jit
def threshold_kernel(
    sample,  # float32 [b t n], scores of the keys `at`; or with ROWS, [b t s], of all keys
    at,  # int32 [n]
    start, bound, t_count, s_count, n_count, offset, aim,
    sample_b, sample_t, start_b, start_t,
    CAPACITY: tl.constexpr, SAMPLE: tl.constexpr, ROWS: tl.constexpr, LOWEST: tl.constexpr,
):  # fmt: skip
    t, b = tl.program_id(0), tl.program_id(1)
    begin, stop = row_span(start, b, t, s_count, offset, start_b, start_t)
    keys = stop - begin
    lower = tl.full((), LOWEST, tl.float32)
    if keys > CAPACITY:
        sample += b.to(tl.int64) * sample_b + t.to(tl.int64) * sample_t
        n = tl.arange(0, SAMPLE)
        s = tl.load(at + n, mask=n < n_count, other=-1)
        valid = (s >= begin) & (s < stop)
        key = ordered(tl.load(sample + (s if ROWS else n), mask=valid, other=float("-inf")))
        high = tl.max(key, axis=0)
        low = tl.min(tl.where(key > ordered(float("-inf")), key, high), axis=0)
        need = tl.maximum(1, tl.cast(aim, tl.int32) * tl.sum(valid.to(tl.int32), axis=0) // keys)
        lower = tl.maximum(unordered(bisect(key, low, high + 1, need, need + need // 16)), LOWEST)
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
    _check_topk(topk)
    if out.numel():
        _select(scores, scores, sampled_keys(scores.shape[2], topk, scores.device), topk, offset, start, out)
    return out


@torch.no_grad()
def select_topk_fast(
    q: Tensor, k: Tensor, w: Tensor, topk: int, offset: int = 0, start: Tensor | None = None
) -> Tensor:
    """As select_topk.select_topk, to the bit, for topk up to 4096."""
    out = check_whole(q, k, w, topk, start)
    _check_topk(topk)
    s = k.shape[1]
    at = sampled_keys(s, topk, q.device)
    kept = 4 * (_capacity(topk) + triton.cdiv(s, 32) + len(at) + 2)  # list, bits, sample, bound, mark
    for slab in slabs(q, k, w, offset, start, out, kept):
        sample = slab.scores
        if min(s, slab.offset + slab.q.shape[1]) > _capacity(topk):
            sample = torch.empty(*slab.q.shape[:2], len(at), dtype=torch.float32, device=q.device)
            index_scores(slab.q, slab.k[:, at], slab.w, offset=len(at), out=sample)
        _select(slab.scores, sample, at, topk, slab.offset, slab.start, slab.out)
    return out


def _select(
    scores: Tensor, sample: Tensor, at: Tensor, topk: int, offset: int, start: Tensor | None, out: Tensor
) -> None:
    """The five launches. sample: scores of the keys `at`, or `scores` themselves."""
    b, t, s = scores.shape
    capacity, words, device = _capacity(topk), triton.cdiv(s, 32), scores.device
    bitmap = torch.empty(b, t, words, dtype=torch.int32, device=device)
    candidates = torch.empty(b, t, capacity, dtype=torch.int32, device=device)
    bound = torch.empty(b, t, dtype=torch.float32, device=device)
    passed = torch.empty(b, t, dtype=torch.int32, device=device)
    room = triton.next_power_of_2(len(at))
    rows, starts, table = scores.stride()[:2], start_strides(start), launch(FILTER, device)
    threshold_kernel[(t, b)](
        sample, at, start, bound, t, s, len(at), offset, math.isqrt(topk * capacity), *sample.stride()[:2], *starts,
        CAPACITY=capacity, SAMPLE=room, ROWS=sample is scores, LOWEST=LOWEST, num_warps=max(1, room // 1024),
        enable_fp_fusion=True,
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


def sampled_keys(s: int, topk: int, device: torch.device) -> Tensor:
    """Positions of the sample among s keys, ascending: int32 [n], one of each whole stretch.

    Its place in the n-th stretch is the n-th multiple of the golden ratio, without its whole part: these are spread as
    evenly as can be, in whichever part of the row one looks, and repeat in no period.
    """
    stretch = min(STRETCH[architecture(device)], max(4, triton.next_power_of_2(topk) // 64))
    stretch = max(stretch, triton.next_power_of_2(triton.cdiv(s, MOST_SAMPLED)))
    n = torch.arange(max(1, s // stretch), dtype=torch.int64, device=device)
    return (n * stretch + ((n * GOLDEN % 2**32 * stretch) >> 32)).int()


def _check_topk(topk: int) -> None:
    if topk > MOST_TOPK:
        raise ValueError(f"the fast selection takes topk up to {MOST_TOPK}, got {topk}; select_rows has no limit")


def _capacity(topk: int) -> int:
    """Candidates that `pick_kernel` can hold: at least twice topk, a power of two."""
    return triton.next_power_of_2(2 * topk)
