"""Maps of bits, one a key, as ascending lists of positions: one program a row.

Axes: b batch, t query position, s key position. Bit s % 32 of word s // 32 of a row's map: key s passed. To list them,

1. a word's ones are counted, and running counts give the slot of its first key; the word enters its number there;
2. a slot finds its word by a running maximum over the slots: the last number that was entered at or before it;
3. and its bit, the n-th one of the word for the n-th slot from there, by halving the word and counting.

Each key costs the same, wherever it lies. Tried and not kept: turns that take the lowest one of every word that has one
left. They go by the fullest word, and where keys resemble their neighbours some word is full: 10.5 ms a layer of a
smooth prompt of 128K tokens, 3.7 of a random one (H200).
"""

import triton
import triton.language as tl

from minikeye.kernels.selection.select_topk import row_span

LIST = {  # words in a block
    "sm_90": {"WORDS": 2048, "num_warps": 8},
    "sm_80": {"WORDS": 2048, "num_warps": 8},
    "interpreter": {"WORDS": 4},
}


@triton.jit
def count_bits(word):
    """Ones in an int32: sums of neighbouring bits, then pairs, then half bytes, then bytes."""
    word = word - ((word >> 1) & 0x55555555)
    word = (word & 0x33333333) + ((word >> 2) & 0x33333333)
    word = (word + (word >> 4)) & 0x0F0F0F0F
    return (word * 0x01010101) >> 24


@triton.jit
def nth_one(word, n):
    """Which bit of an int32 is its n-th one from the right, n from 0 on: the half that holds it, then its half."""
    two = word - ((word >> 1) & 0x55555555)  # how many ones are in the two bits here and beside
    four = (two & 0x33333333) + ((two >> 2) & 0x33333333)
    eight = (four + (four >> 4)) & 0x0F0F0F0F
    at, n = _upper_half(eight + (eight >> 8), tl.zeros_like(n), n, 16)
    at, n = _upper_half(eight, at, n, 8)
    at, n = _upper_half(four, at, n, 4)
    at, n = _upper_half(two, at, n, 2)
    at, n = _upper_half(word, at, n, 1)
    return at


@triton.jit
def _upper_half(counts, at, n, BITS: tl.constexpr):
    """`at` and n, or where fewer than n + 1 ones are in the BITS bits from `at` on, the bit after these and n less."""
    below = (counts >> at) & (2 * BITS - 1)
    beyond = n >= below
    return tl.where(beyond, at + BITS, at), tl.where(beyond, n - below, n)


@triton.jit
def _larger(x, y):
    return tl.maximum(x, y)


@triton.jit
def list_kernel(
    start, bitmap, candidates, passed, t_count, s_count, word_count, offset, start_b, start_t,
    CAPACITY: tl.constexpr, WORDS: tl.constexpr,
):  # fmt: skip
    """Bits to an ascending list, and their number; of a list that would be too long, only the number is right."""
    t, b = tl.program_id(0), tl.program_id(1)
    row = b.to(tl.int64) * t_count + t
    begin, stop = row_span(start, b, t, s_count, offset, start_b, start_t)
    bitmap += row * word_count
    candidates += row * CAPACITY
    slot = tl.arange(0, CAPACITY)
    tl.store(candidates + slot, -1)
    tl.debug_barrier()  # stores go to slots of other threads, here and below
    listed = 0
    for block in range(begin // 32, tl.cdiv(stop, 32), WORDS):
        index = block + tl.max_contiguous(tl.arange(0, WORDS), 1)  # keeps the stores below out of shared memory
        ones = count_bits(tl.load(bitmap + index, mask=index < tl.cdiv(stop, 32), other=0))
        place = listed + tl.cumsum(ones, axis=0) - ones
        tl.store(candidates + place, index, mask=(ones > 0) & (place < CAPACITY))
        listed += tl.sum(ones, axis=0)
    tl.store(passed + row, listed)
    tl.debug_barrier()
    first = tl.associative_scan(tl.where(tl.load(candidates + slot) >= 0, slot, 0), 0, _larger)  # slot of its word
    index = tl.load(candidates + first, mask=slot < listed, other=0)
    word = tl.load(bitmap + index, mask=slot < listed, other=0)
    tl.debug_barrier()
    tl.store(candidates + slot, index * 32 + nth_one(word, slot - first), mask=slot < listed)
