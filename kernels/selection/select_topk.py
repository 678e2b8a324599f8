"""Exact top-k of rows of scores by radix select: the teaching version, one program a row.

Axes: b batch, t query position, s key position, k selected key. Report, section 2.3.

Selected are the k highest scores among the keys start[t] <= s <= offset + t. Ties go to the smaller position. Positions
come out ascending, -1 behind them where fewer than k keys are valid. No sorting, and only whole numbers are counted
together: the same bits every time.

1. A float32 becomes an unsigned integer of the same order. Its 32 bits already grow with a positive number, so only the
   sign bit is set; of a negative number, which grows the wrong way, all bits are flipped.
2. The k-th largest of these is found digit by digit, 8 bits at a time from the top. A pass counts, among the keys that
   begin with the digits found so far, how many have each of the 256 next digits. at_least[d] = how many have d or more.
   The digit wanted is the largest d with at_least[d] >= need; the keys above it are taken, `need` shrinks by them.
3. After four passes `found` is the k-th score itself, and `need` is how many of its ties are taken. The fifth pass goes
   from left to right: everything above, then ties until `need` are used up. Running counts give the place of each.

`select_topk` scores and selects one slab of query rows after another in one buffer of at most SLAB_BYTES.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.launch import launch, runs_on
from minikeye.kernels.selection.index_scores import check_index, check_start, index_scores, start_strides
from minikeye.kernels.selection.ordered_bits import ordered

SLAB_BYTES = 548 * 2**20  # of scores, and of what a selection keeps beside them
LAUNCH = {  # scores in a block
    "sm_90": {"BLOCK": 4096, "num_warps": 8},
    "sm_80": {"BLOCK": 4096, "num_warps": 8},
    "interpreter": {"BLOCK": 32},
}


@triton.jit
def row_span(start, b, t, s_count, offset, start_b, start_t):
    """First valid key of a row and the end of its valid keys."""
    begin = 0
    if start is not None:
        begin = tl.maximum(tl.load(start + b * start_b + t * start_t).to(tl.int32), 0)
    return begin, tl.minimum(s_count, offset + t + 1)


@triton.jit
def select_kernel(
    scores,  # float32 [b t s]
    start,  # int [b t], or None
    out,  # int32 [b t k], contiguous
    only,  # int32 [b t] or None: -1 marks the rows to do, the others are left as they are
    t_count,
    s_count,
    topk,
    offset,
    scores_b, scores_t,
    start_b, start_t,
    BLOCK: tl.constexpr,
):  # fmt: skip
    t, b = tl.program_id(0), tl.program_id(1)
    row = b.to(tl.int64) * t_count + t
    if only is not None and tl.load(only + row) >= 0:
        return
    scores += b.to(tl.int64) * scores_b + t.to(tl.int64) * scores_t
    out += row * topk
    begin, stop = row_span(start, b, t, s_count, offset, start_b, start_t)

    # The k-th largest key, digit by digit.
    digits = tl.arange(0, 256)
    found = tl.full((), 0, tl.uint32)  # the digits found so far
    need = topk  # how many keys are still to be taken among those that begin with them
    for step in tl.static_range(4):
        shift = 24 - 8 * step
        count = tl.zeros((256,), tl.int32)
        for block in range(begin, stop, BLOCK):
            s = block + tl.arange(0, BLOCK)
            score = tl.load(scores + s, mask=s < stop, other=float("-inf"))
            key = ordered(score)
            candidate = (score > float("-inf")) & (((key >> shift) >> 8) == found)
            count += tl.histogram(((key >> shift) & 255).to(tl.int32), 256, mask=candidate)
        if step == 0:
            need = tl.minimum(topk, tl.sum(count, axis=0))  # fewer valid keys than topk: all of them
        at_least = tl.cumsum(count, axis=0, reverse=True)
        digit = tl.sum((at_least >= need).to(tl.int32), axis=0) - 1
        need -= tl.sum(tl.where(digits > digit, count, 0), axis=0)
        found = (found << 8) | digit.to(tl.uint32)

    # From left to right: everything above `found`, and the first `need` that equal it.
    written = 0
    ties = 0
    for block in range(begin, stop, BLOCK):
        s = block + tl.arange(0, BLOCK)
        score = tl.load(scores + s, mask=s < stop, other=float("-inf"))
        key = ordered(score)
        tie = ((score > float("-inf")) & (key == found)).to(tl.int32)
        chosen = (score > float("-inf")) & (key > found)
        chosen |= (tie == 1) & (ties + tl.cumsum(tie, axis=0) <= need)
        place = written + tl.cumsum(chosen.to(tl.int32), axis=0) - 1
        tl.store(out + place, s, mask=chosen)
        written += tl.sum(chosen.to(tl.int32), axis=0)
        ties += tl.sum(tie, axis=0)
    for block in range(written, topk, BLOCK):
        place = block + tl.arange(0, BLOCK)
        tl.store(out + place, -1, mask=place < topk)


def select_rows(
    scores: Tensor, topk: int, offset: int = 0, start: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """Positions of the topk highest scores [b t s] of each row among its valid keys: int32 [b t topk].

    Valid are start <= s <= offset + t where the score is above -inf; other entries of `scores` may hold anything.
    Scores must not be NaN. out: a contiguous tensor to write to. Raises ValueError for what does not fit.
    """
    out = check_rows(scores, topk, start, out)
    if out.numel():
        launch_select(scores, topk, offset, start, out, only=None)
    return out


def launch_select(
    scores: Tensor, topk: int, offset: int, start: Tensor | None, out: Tensor, only: Tensor | None
) -> None:
    """Runs the radix select, on all rows or where `only` [b t] is -1. Nothing is checked here."""
    b, t, s = scores.shape
    select_kernel[(t, b)](
        scores, start, out, only, t, s, topk, offset, *scores.stride()[:2], *start_strides(start),
        **launch(LAUNCH, scores.device),
    )  # fmt: skip


def check_rows(scores: Tensor, topk: int, start: Tensor | None, out: Tensor | None) -> Tensor:
    """`out`, new where it is None, after a look at everything that goes to a selection kernel."""
    if scores.ndim != 3 or scores.dtype != torch.float32 or scores.stride(-1) != 1:
        raise ValueError(
            f"scores must be float32 [b t s] with unit last stride; "
            f"got {scores.dtype} {list(scores.shape)}, strides {scores.stride()}"
        )
    if not runs_on(scores.device):
        raise ValueError(f"scores must be on a CUDA device, got {scores.device}")
    if topk < 1:
        raise ValueError(f"topk must be at least 1, got {topk}")
    check_start(start, scores)
    shape = (*scores.shape[:2], topk)
    if out is None:
        return torch.empty(shape, dtype=torch.int32, device=scores.device)
    if out.shape != shape or out.dtype != torch.int32 or out.device != scores.device or not out.is_contiguous():
        raise ValueError(
            f"out must be contiguous int32 {list(shape)} on {scores.device}; "
            f"got {out.dtype} {list(out.shape)}, strides {out.stride()}, on {out.device}"
        )
    return out


@torch.no_grad()
def select_topk(q: Tensor, k: Tensor, w: Tensor, topk: int, offset: int = 0, start: Tensor | None = None) -> Tensor:
    """Positions of the topk highest index scores of each query: int32 [b t topk]. See minikeye.ops.select_topk.

    q [b t j i], k [b s i], w [b t j]; start int [b] or [b t]. Raises ValueError for shapes, dtypes, strides or devices
    that do not fit, or topk < 1.
    """
    out = check_whole(q, k, w, topk, start)
    for slab in slabs(q, k, w, offset, start, out, kept=0):
        select_rows(slab.scores, topk, slab.offset, slab.start, out=slab.out)
    return out


def check_whole(q: Tensor, k: Tensor, w: Tensor, topk: int, start: Tensor | None) -> Tensor:
    """A tensor for the positions, -1 where there is nothing to do, after a look at everything."""
    check_index(q, k, w, start)
    if topk < 1:
        raise ValueError(f"topk must be at least 1, got {topk}")
    out = torch.empty(*q.shape[:2], topk, dtype=torch.int32, device=q.device)
    return out if k.shape[1] else out.fill_(-1)


@dataclass(frozen=True)
class Slab:
    """A part of the queries, their scores, and where their positions go."""

    q: Tensor  # [b t j i]
    k: Tensor  # [b s i]
    w: Tensor  # [b t j]
    offset: int  # of the first query
    start: Tensor | None
    scores: Tensor  # float32 [b t s]
    out: Tensor  # int32 [b t topk]


def slabs(q: Tensor, k: Tensor, w: Tensor, offset: int, start: Tensor | None, out: Tensor, kept: int) -> Iterator[Slab]:
    """Scores a slab of query rows into one buffer, hands it out, goes on to the next slab.

    kept: bytes that a selection keeps for a row, beside its scores.
    """
    b, t, s = *q.shape[:2], k.shape[1]
    if out.numel() == 0 or s == 0:
        return
    many_b, many_t, stride = slab_shape(b, t, s, kept)
    buffer = torch.empty(many_b, many_t, stride, dtype=torch.float32, device=q.device)
    for b0 in range(0, b, many_b):
        batch = slice(b0, b0 + many_b)
        for t0 in range(0, t, many_t):
            rows = slice(t0, t0 + many_t)
            queries, keys, gates = q[batch, rows], k[batch], w[batch, rows]
            first = None if start is None else start[batch, rows] if start.ndim == 2 else start[batch]
            scores = buffer[: queries.shape[0], : queries.shape[1], :s]
            index_scores(queries, keys, gates, offset + t0, first, out=scores)
            yield Slab(queries, keys, gates, offset + t0, first, scores, out[batch, rows])


def slab_shape(b: int, t: int, s: int, kept: int) -> tuple[int, int, int]:
    """Batch rows, queries, keys of the buffer. Whole batch rows or a part of one: a slab of the output has no gaps."""
    stride = triton.cdiv(s, 32) * 32  # each row begins with a cache line
    rows = SLAB_BYTES // (4 * stride + kept)
    if rows >= t:
        return min(b, rows // t), t, stride
    most = max(1, rows // 8 * 8)  # the score kernel takes 8 queries at a time
    slabs = triton.cdiv(t, most)
    return 1, min(most, triton.cdiv(triton.cdiv(t, slabs), 8) * 8), stride  # all slabs alike: a small one starves a GPU
