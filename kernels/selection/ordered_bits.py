"""Floats as integers of the same order, counting among them and choosing: functions that selection kernels inline."""

import triton
import triton.language as tl


@triton.jit
def ordered(score):
    """float32 -> uint32 with a < b exactly where a < b. Zero has one sign: -0.0 and 0.0 are a tie."""
    bits = tl.where(score == 0.0, 0.0, score).to(tl.int32, bitcast=True)
    return (bits ^ tl.where(bits < 0, -1, -(2**31))).to(tl.uint32, bitcast=True)


@triton.jit
def unordered(key):
    """The float32 that `ordered` made `key` of."""
    bits = key.to(tl.int32, bitcast=True)
    return (bits ^ tl.where(bits < 0, -(2**31), -1)).to(tl.float32, bitcast=True)


@triton.jit
def bisect(key, low, high, need, enough):
    """A key that `need` to `enough` of `key` reach; where ties forbid that, the largest that at least `need` reach."""
    reach = tl.sum((key >= low).to(tl.int32), axis=0)
    while (high - low > 1) & (reach > enough):
        middle = low + ((high - low) >> 1)
        count = tl.sum((key >= middle).to(tl.int32), axis=0)
        if count >= need:
            low = middle
            reach = count
        else:
            high = middle
    return low


@triton.jit
def write_chosen(out, slot, s, key, listed, kth, need, topk):
    """Positions s of what is above kth, and of its ties from the left, `need` in all; -1 behind them up to topk."""
    above = listed & (key > kth)
    tie = listed & (key == kth)
    so_far = tl.cumsum(above.to(tl.int32) + (tie.to(tl.int32) << 16), axis=0)  # two running counts in one scan
    above_so_far, ties_so_far = so_far & 65535, so_far >> 16
    left = need - tl.sum(above.to(tl.int32), axis=0)
    chosen = above | (tie & (ties_so_far <= left))
    tl.store(out + above_so_far + tl.minimum(ties_so_far, left) - 1, s, mask=chosen)
    tl.store(out + slot, -1, mask=(slot >= need) & (slot < topk))
