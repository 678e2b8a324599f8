"""The unions of the sets that neighbouring queries selected, as lists: what the tiles of sparse_union.py go through.

Axes: b batch, t query position, s key position, k selected keys, n tile of QUERIES neighbouring queries, c entry of a
tile's union. One entry of a union is one int32:

    entry = s * 256 + membership,   bit i of membership: query i of the tile selected s

Built in two steps: (1) one program a query sets its bit in a byte map [tile, s] by atomic OR, in any order;
(2) programs read the parts of a tile's map from left to right and write the entries, ascending in s.
Two kinds of tile are left to sparse_forward.py and get the size -1: those whose union does not pay, and those with a
row that is not strictly ascending with -1 at its end only (a bit cannot count a key that is listed twice).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.launch import launch

MARK = {"sm_80": {"num_warps": 4}, "sm_90": {"num_warps": 4}, "interpreter": {}}
COMPACT = {  # words of four keys in a block
    "sm_80": {"BLOCK": 2048, "num_warps": 8},
    "sm_90": {"BLOCK": 2048, "num_warps": 8},
    "interpreter": {"BLOCK": 4},
}
BLOCKS = 4  # of a part of a map, at least
FILL = 32  # so many entries of the last key and no member follow a list: blocks of up to FILL need no mask
PAYS = 5.5  # a union of up to 5.5 average sets beats the gather per query (H100, 8 queries of 8 heads)


@triton.jit
def mark_kernel(
    indices, marks, counts, ends,
    i_b, i_t, T, TILES, WORDS, TOPK, BLOCK_K: tl.constexpr, QUERIES: tl.constexpr,
):  # fmt: skip
    """Grid (t, b). Sets bit t % QUERIES of byte s of the tile's map for every s in S[t]; four bytes are one word.

    Also leaves the number of keys of the row, -1 if it is not strictly ascending, and its last key + 1.
    """
    t = tl.program_id(0)
    b = tl.program_id(1).to(tl.int64)
    slot = tl.arange(0, BLOCK_K)
    row = indices + b * i_b + t.to(tl.int64) * i_t
    s = tl.load(row + slot, mask=slot < TOPK, other=-1).to(tl.int32)
    before = tl.load(row + slot - 1, mask=(slot > 0) & (slot < TOPK), other=-1).to(tl.int32)
    is_key = s >= 0
    out_of_order = is_key & (slot > 0) & ((before < 0) | (before >= s))
    count = tl.sum(is_key.to(tl.int32), axis=0)
    tl.store(counts + b * T + t, tl.where(tl.sum(out_of_order.to(tl.int32), axis=0) > 0, -1, count))
    tl.store(ends + b * T + t, tl.max(s, axis=0) + 1)
    bit = tl.full([BLOCK_K], 1, tl.int32) << ((s & 3) * 8 + t % QUERIES)
    tl.atomic_or(marks + (b * TILES + t // QUERIES) * WORDS + (s >> 2), bit, mask=is_key, sem="relaxed")


@triton.jit
def count_bytes(word):
    """How many bytes of a word are not zero: each is folded onto its lowest bit, then the four bits are added."""
    word |= (word >> 4) & 0x0F0F0F0F
    word |= (word >> 2) & 0x33333333
    word |= (word >> 1) & 0x55555555
    return ((word & 0x01010101) * 0x01010101) >> 24


@triton.jit
def compact_kernel(
    marks, counts, ends, entries, sizes, pays,
    T, TILES, WORDS, ROOM, QUERIES: tl.constexpr, PARTS: tl.constexpr, BLOCK: tl.constexpr, FILL: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, PARTS, b). The non-zero bytes of a map as entries, ascending; their number, or -1: union not used.

    A program lists one part of its tile's map, after a look at the parts before: how many entries come from there.
    """
    n = tl.program_id(0)
    part = tl.program_id(1)
    b = tl.program_id(2).to(tl.int64)
    t = n * QUERIES + tl.arange(0, QUERIES)
    count = tl.load(counts + b * T + t, mask=t < T, other=0)
    end = tl.max(tl.load(ends + b * T + t, mask=t < T, other=0), axis=0)
    words = tl.cdiv(end, 4)
    span = tl.cdiv(words, PARTS * BLOCK) * BLOCK
    begin = tl.minimum(part * span, words)
    marks += (b * TILES + n) * WORDS
    entries += (b * TILES + n) * ROOM

    word_at = tl.max_contiguous(tl.arange(0, BLOCK), 1)  # the hint keeps the stores out of shared memory
    before = tl.zeros([BLOCK], tl.int32)
    for first in range(0, begin, BLOCK):
        at = first + word_at
        before += count_bytes(tl.load(marks + at, mask=at < begin, other=0))
    size = tl.sum(before, axis=0)
    for first in range(begin, tl.minimum(begin + span, words), BLOCK):
        at = first + word_at
        word = tl.load(marks + at, mask=at < words, other=0)
        filled = count_bytes(word)
        place = size + tl.cumsum(filled, axis=0) - filled
        for byte in tl.static_range(4):
            membership = (word >> (8 * byte)) & 255
            tl.store(entries + place, (4 * at + byte) * 256 + membership, mask=membership != 0)
            place += (membership != 0).to(tl.int32)
        size += tl.sum(filled, axis=0)
    if part == PARTS - 1:
        filling = tl.arange(0, FILL)
        tl.store(entries + size + filling, (end - 1) * 256)
        used = (tl.min(count, axis=0) >= 0) & (size * QUERIES <= pays * tl.maximum(tl.sum(count, axis=0), 1))
        tl.store(sizes + b * TILES + n, tl.where(used, size, -1))


def tile_queries(r: int) -> int:
    """Queries a tile: 8, or 4 where a group has more than 8 heads, so that a tile never has more than 64 rows."""
    return 8 if r <= 8 else 4


def build_unions(indices: Tensor, s: int, queries: int, pays: float = PAYS) -> tuple[Tensor, Tensor]:
    """Union lists of indices int [b t k] over s keys: entries int32 [b, tiles, room] and sizes int32 [b, tiles].

    Only the first sizes[b, n] entries of a tile mean something. A tile whose union is larger than `pays` average sets
    of its queries gets the size -1, and so does one with a row out of order. Memory: s + 4 * min(queries * k, s) bytes
    a tile. queries: 4 or 8, from `tile_queries`. Nothing is checked; `sparse_attention.py` is the door.
    """
    b, t, topk = indices.shape
    tiles, words, room = (
        triton.cdiv(t, queries),
        triton.cdiv(s, 4),
        triton.cdiv(min(queries * topk, s), FILL) * FILL + FILL,
    )
    marks = torch.zeros(b, tiles, words, dtype=torch.int32, device=indices.device)
    counts, ends = torch.empty(2, b, t, dtype=torch.int32, device=indices.device)
    entries = torch.empty(b, tiles, room, dtype=torch.int32, device=indices.device)
    sizes = torch.empty(b, tiles, dtype=torch.int32, device=indices.device)
    mark_kernel[(t, b)](
        indices, marks, counts, ends, *indices.stride()[:2], t, tiles, words, topk,
        BLOCK_K=triton.next_power_of_2(topk), QUERIES=queries, **launch(MARK, indices.device),
    )  # fmt: skip
    table = launch(COMPACT, indices.device)
    parts = min(8, triton.next_power_of_2(triton.cdiv(words, BLOCKS * table["BLOCK"])))
    compact_kernel[(tiles, parts, b)](
        marks, counts, ends, entries, sizes, pays, t, tiles, words, room,
        QUERIES=queries, PARTS=parts, FILL=FILL, **table,
    )  # fmt: skip
    return entries, sizes
