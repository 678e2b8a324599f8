"""Exact top-k of rows of scores, fast: most keys are looked at once and cost one bit.

Axes: b batch, t query position, s key position, n sampled key, k selected key. Report, section 2.3. Same answer as
select_topk.py.

1. threshold: a sample of a row's scores gives a bound that about sqrt(k * CAPACITY) of all keys should reach
   (sampled_bound.py): half way, in ratio, between the k that are needed and the CAPACITY = 2k or more that step 4 can
   hold. Rows of at most CAPACITY keys need no sample: all their keys pass.
2. filter: reads the row once, from left to right, and writes bit s of a map where score s reaches the bound.
3. list: turns the bits into an ascending list of candidates (bit_lists.py).
4. pick: fetches their scores, finds the k-th by bisection, takes what is above it and its ties from the left, and
   writes the positions where running counts put them.

A sample can mislead, and ties can be many. A row where fewer than k or more than CAPACITY keys pass is marked, and the
radix select of select_topk.py does it again; for the others that launch only looks at their mark. So the result never
depends on the sample, only the time does.

`select_topk_fast` scores the sampled keys apart from all: to pick them out of the rows of all scores would read half of
these again.

Tried and not kept. On an H100: a second, upper bound, so that pick need not fetch the scores of keys that are surely
among the k; what it saves there, the second map costs before. Prototypes on an H200, 2,048 rows at the end of 128K
keys: scores in 8-bit floats, 0.87 ms instead of 1.10, keep 96 % of the k; a search for the k-th that interpolates,
0.181 ms instead of 0.164. A first look in float16, 0.82 ms, that writes bits alone, against a bound with a margin of
1/128, and the candidates' scores once more in float32, lost none of 4 million keys, but nothing proves that it cannot:
a score is rounded to float16 some 20 times, each time by up to 2^-12 of the sum of |w| |q| |k|. Where nearly all gates
are positive, the k-th score proves afterwards that no key was lost: of random vectors it lies 0.63 above the bound, and
the error is 0.23 at most. Where half of the gates are negative scores are small beside that sum, 0.37 against 0.66: no
row is proved, all would be done again.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.launch import launch
from minikeye.kernels.selection.bit_lists import LIST, list_kernel
from minikeye.kernels.selection.index_scores import index_scores, start_strides
from minikeye.kernels.selection.ordered_bits import bisect, ordered, write_chosen
from minikeye.kernels.selection.sampled_bound import sampled_keys, stretch, threshold_kernel
from minikeye.kernels.selection.select_topk import check_rows, check_whole, launch_select, row_span, slabs

MOST_TOPK = 4096  # candidates of a row stay in registers
LOWEST = torch.finfo(torch.float32).min

FILTER = {  # words (of 32 keys) in a tile, keys that a program goes through
    "sm_90": {"WORDS": 64, "RANGE": 16_384, "num_warps": 4},
    "sm_80": {"WORDS": 64, "RANGE": 16_384, "num_warps": 4},
    "interpreter": {"WORDS": 2, "RANGE": 128},  # small, so that small tests cross tiles and ranges
}
PICK = {"sm_90": {"num_warps": 8}, "sm_80": {"num_warps": 8}, "interpreter": {}}


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
        _select(scores, scores, topk, offset, start, out)
    return out


@torch.no_grad()
def select_topk_fast(
    q: Tensor, k: Tensor, w: Tensor, topk: int, offset: int = 0, start: Tensor | None = None
) -> Tensor:
    """As select_topk.select_topk, to the bit, for topk up to 4096."""
    out = check_whole(q, k, w, topk, start)
    _check_topk(topk)
    s = k.shape[1]
    many = s // stretch(s, topk, q.device)
    kept = 4 * (_capacity(topk) + triton.cdiv(s, 32) + many + 2)  # list, bits, sample, bound, mark
    for slab in slabs(q, k, w, offset, start, out, kept):
        sample = slab.scores
        if min(s, slab.offset + slab.q.shape[1]) > _capacity(topk):  # else no row asks for a sample
            sample = torch.empty(*slab.q.shape[:2], many, dtype=torch.float32, device=q.device)
            index_scores(slab.q, sampled_keys(slab.k, topk), slab.w, offset=many, out=sample)
        _select(slab.scores, sample, topk, slab.offset, slab.start, slab.out)
    return out


def _select(scores: Tensor, sample: Tensor, topk: int, offset: int, start: Tensor | None, out: Tensor) -> None:
    """The five launches. sample: scores of the sampled keys, or `scores` themselves."""
    b, t, s = scores.shape
    capacity, words, device = _capacity(topk), triton.cdiv(s, 32), scores.device
    bitmap = torch.empty(b, t, words, dtype=torch.int32, device=device)
    candidates = torch.empty(b, t, capacity, dtype=torch.int32, device=device)
    bound = torch.empty(b, t, dtype=torch.float32, device=device)
    passed = torch.empty(b, t, dtype=torch.int32, device=device)
    length = stretch(s, topk, device)
    many = s // length
    room = triton.next_power_of_2(max(1, many))
    rows, starts, table = scores.stride()[:2], start_strides(start), launch(FILTER, device)
    threshold_kernel[(t, b)](
        sample, start, bound, t, s, many, offset, math.isqrt(topk * capacity), *sample.stride()[:2], *starts,
        CAPACITY=capacity, SAMPLE=room, STRETCH=length, ROWS=sample is scores, LOWEST=LOWEST,
        num_warps=max(1, room // 1024), enable_fp_fusion=True,
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


def _check_topk(topk: int) -> None:
    if topk > MOST_TOPK:
        raise ValueError(f"the fast selection takes topk up to {MOST_TOPK}, got {topk}; select_rows has no limit")


def _capacity(topk: int) -> int:
    """Candidates that `pick_kernel` can hold: at least twice topk, a power of two."""
    return triton.next_power_of_2(2 * topk)
