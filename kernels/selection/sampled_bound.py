"""A bound for every row of scores that about as many keys reach as wanted, from the scores of a few.

Axes: b batch, t query position, s key position, n sampled key, i indexer width.

The sample, our choice: one key of every stretch of so many, so that keys that resemble their neighbours are all
represented; at a place of the stretch that changes from stretch to stretch and never in a period, so that scores with a
period, such as those of the columns of a picture, are represented too. Every 16th key sees one column of 16: it missed
the bound of 183 of 200 such rows of 131,072 scores, this sample of none.

Tried and not kept: runs of 8 neighbours, one sector of memory each. Where neighbours are alike, rows miss their bound;
doing them again and listing their candidates cost a smooth prompt of 128K tokens 26 of 149 ms a layer (H200).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.launch import architecture, launch
from minikeye.kernels.selection.ordered_bits import bisect, ordered, unordered
from minikeye.kernels.selection.select_topk import row_span

GOLDEN = tl.constexpr(2654435769)  # 2^32 / 1.618...
# Keys in a stretch, of which one is sampled, for topk of 1024 and more. Then 181 of the sample reach the bound where k
# is 2048, and if keys are independent, less than one row in 10,000 is misled; with 90, one in a thousand.
STRETCH = {"sm_90": 16, "sm_80": 16, "interpreter": 4}
MOST_SAMPLED = 16_384  # keys: longer rows have longer stretches
GATHER = {  # sampled keys in a block
    "sm_90": {"ROWS": 64, "num_warps": 4},
    "sm_80": {"ROWS": 64, "num_warps": 4},
    "interpreter": {"ROWS": 8},
}


@triton.jit
def sampled_position(n, STRETCH: tl.constexpr):
    """Which key is the n-th of the sample: one of the n-th STRETCH keys, STRETCH a power of two.

    Its place there is the n-th multiple of the golden ratio, without its whole part: these are spread as evenly as can
    be, in whichever part of the row one looks, and repeat in no period.
    """
    fraction = n.to(tl.uint32) * GOLDEN  # of 2^32
    return n * STRETCH + (fraction // (4294967296 // STRETCH)).to(tl.int32)


@triton.jit
def sample_kernel(
    k, out, n_count, k_b, k_s,
    I: tl.constexpr,  # noqa: E741 - the axis letter of the width
    WIDTH: tl.constexpr, STRETCH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """The sampled ones of the keys k [b s i] to out [b n i], contiguous."""
    n = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    b = tl.program_id(1).to(tl.int64)
    i = tl.arange(0, WIDTH)
    there = (n < n_count)[:, None] & (i < I)[None, :]
    keys = tl.load(k + b * k_b + (sampled_position(n, STRETCH) * k_s)[:, None] + i[None, :], mask=there)
    tl.store(out + b * n_count * I + (n * I)[:, None] + i[None, :], keys, mask=there)


@triton.jit
def threshold_kernel(
    sample,  # float32 [b t n], scores of the sampled keys; or with ROWS, [b t s], of all keys
    start, bound, t_count, s_count, n_count, offset, aim,
    sample_b, sample_t, start_b, start_t,
    CAPACITY: tl.constexpr, SAMPLE: tl.constexpr, STRETCH: tl.constexpr, ROWS: tl.constexpr, LOWEST: tl.constexpr,
):  # fmt: skip
    t, b = tl.program_id(0), tl.program_id(1)
    begin, stop = row_span(start, b, t, s_count, offset, start_b, start_t)
    keys = stop - begin
    lower = tl.full((), LOWEST, tl.float32)
    if keys > CAPACITY:
        sample += b.to(tl.int64) * sample_b + t.to(tl.int64) * sample_t
        n = tl.arange(0, SAMPLE)
        s = sampled_position(n, STRETCH)
        valid = (n < n_count) & (s >= begin) & (s < stop)
        key = ordered(tl.load(sample + (s if ROWS else n), mask=valid, other=float("-inf")))
        high = tl.max(key, axis=0)
        low = tl.min(tl.where(key > ordered(float("-inf")), key, high), axis=0)
        need = tl.maximum(1, tl.cast(aim, tl.int32) * tl.sum(valid.to(tl.int32), axis=0) // keys)
        lower = tl.maximum(unordered(bisect(key, low, high + 1, need, need + need // 16)), LOWEST)
    tl.store(bound + b.to(tl.int64) * t_count + t, lower)


def sampled_keys(k: Tensor, topk: int) -> Tensor:
    """The sample of keys [b s i], in their order: [b n i]."""
    b, s, i = k.shape
    length = stretch(s, topk, k.device)
    out = torch.empty(b, s // length, i, dtype=k.dtype, device=k.device)
    sample_kernel[lambda meta: (triton.cdiv(out.shape[1], meta["ROWS"]), b)](
        k, out, out.shape[1], *k.stride()[:2],
        I=i, WIDTH=triton.next_power_of_2(i), STRETCH=length, **launch(GATHER, k.device),
    )  # fmt: skip
    return out


def stretch(s: int, topk: int, device: torch.device) -> int:
    """Keys of which one is sampled, a power of two: fewer than STRETCH for small topk, more for very long rows."""
    most = min(STRETCH[architecture(device)], max(4, triton.next_power_of_2(topk) // 64))
    return max(most, triton.next_power_of_2(triton.cdiv(s, MOST_SAMPLED)))
