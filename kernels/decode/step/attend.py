"""Attention of one new token a row from its raw projections: over a list of keys, or over all that a row has.

Axes: b batch, s key position, h query head, g KV head, r query heads per group, e head width, k selected keys. Report,
section 2.3. Both kernels leave parts, as decode_attention.py does, whose second kernel puts them together:

    m[p] = max l        total[p] = sum exp(l - m[p])        acc[p] = sum exp(l - m[p]) v        l[s] = scale q . k[s]

What is fused: every program normalises and rotates its group's queries. The dense kernel also writes what the new token
leaves in the cache, in the programs of the first part, which begin their sums with the new key and value, from
registers; the sparse one finds them written by scores.py, and in its list or not, like any other key.

On an H200 prototype the list took 4.7 us (64 parts), all 128K keys 64.4, at the rate of memory. Tried there and not
kept: finding the k-th score again in each of these programs, without a kernel that writes the list: 18 us for 14.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.attention.gather import gather
from minikeye.kernels.attention.online_softmax import absorb, begin
from minikeye.kernels.decode.decode_attention import combine_parts, parts_of
from minikeye.kernels.decode.decode_select import key_span
from minikeye.kernels.decode.dependent import dependent, release, wait
from minikeye.kernels.decode.step.new_token import new_key_value, turned_heads, turned_index_key
from minikeye.kernels.decode.step.shapes import LayerWeights, Rows, StepSizes
from minikeye.kernels.launch import architecture, launch
from minikeye.kernels.selection.index_scores import start_strides

CHOSEN = {  # keys gathered at once
    "sm_90": {"BLOCK_S": 64, "num_warps": 8, "num_stages": 2},
    "sm_80": {"BLOCK_S": 32, "num_warps": 2, "num_stages": 3},
    "interpreter": {"BLOCK_S": 8},
}
ALL = {  # keys at once, for one token
    "sm_90": {"BLOCK_S": 32, "num_warps": 2, "num_stages": 4},
    "sm_80": {"BLOCK_S": 32, "num_warps": 2, "num_stages": 4},
    "interpreter": {"BLOCK_S": 8},
}
WIDE = {"BLOCK_S": 64, "num_warps": 4, "maxnreg": 128}  # for more tokens, on a card
PROGRAMS = 256  # to aim at
PARTS = {"sm_90": (8, 64), "sm_80": (8, 64), "interpreter": (2, 5)}  # of a row, fewest and most


@triton.jit
def store_parts(m_parts, totals, accs, m, total, acc, row, there, E: tl.constexpr):
    e = tl.arange(0, E)
    tl.store(m_parts + row, m, mask=there)
    tl.store(totals + row, total, mask=there)
    tl.store(accs + row[:, None] * E + e[None, :], acc, mask=there[:, None])


@triton.jit
def attend_chosen_kernel(
    y, q_norm, cos, sin, k, v, indices, m_parts, totals, accs, eps, scale_log2, topk, part, parts, k_b, v_b,
    N: tl.constexpr, G: tl.constexpr, R: tl.constexpr, E: tl.constexpr, I: tl.constexpr,  # noqa: E741
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (part, g, b). part: slots of the list in one; parts: how many there are."""
    split, g, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    head, e = tl.arange(0, BLOCK_R), tl.arange(0, E)
    wait(PDL)
    cos += b * (E + I)
    sin += b * (E + I)
    query = turned_heads(y + b * N, g * R + head, head < R, q_norm, cos, sin, eps, E).to(k.dtype.element_ty)
    k += b * k_b + g * E
    v += b * v_b + g * E
    indices += b * topk
    m, total, acc = begin(BLOCK_R, E)
    stop = tl.minimum((split + 1) * part, topk)
    for first in range(split * part, stop, BLOCK_S):
        at = first + tl.arange(0, BLOCK_S)
        is_key, keys, values = gather(k, v, indices, at, stop, G * E, G * E, e, False)
        logits = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale_log2
        m, total, acc = absorb(m, total, acc, tl.where(is_key[None, :], logits, float("-inf")), values)
    release(PDL)
    row = ((b * G + g) * R + head) * parts + split
    store_parts(m_parts, totals, accs, m, total, acc, row, head < R, E)


@triton.jit
def attend_all_kernel(
    y, q_norm, k_norm, index_k_norm, index_k_bias, cos, sin, k, v, index_k, lengths, start, m_parts, totals, accs,
    s_count, eps, index_eps, scale_log2, parts, k_b, v_b, index_b, start_b,
    K_AT: tl.constexpr, V_AT: tl.constexpr, INDEX_K_AT: tl.constexpr,
    N: tl.constexpr, G: tl.constexpr, R: tl.constexpr, E: tl.constexpr, I: tl.constexpr,  # noqa: E741
    BLOCK_R: tl.constexpr, BLOCK_S: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (part, g, b)."""
    split, g, b = tl.program_id(0), tl.program_id(1), tl.program_id(2).to(tl.int64)
    head, e, i = tl.arange(0, BLOCK_R), tl.arange(0, E), tl.arange(0, I)
    wait(PDL)
    first_key, stop = key_span(lengths, start, b, s_count, start_b)
    new = stop - 1
    y += b * N
    cos += b * (E + I)
    sin += b * (E + I)
    query = turned_heads(y, g * R + head, head < R, q_norm, cos, sin, eps, E).to(k.dtype.element_ty)
    k += b * k_b + g * E
    v += b * v_b + g * E
    m, total, acc = begin(BLOCK_R, E)
    if split == 0:
        one = tl.arange(0, 1)
        key, value = new_key_value(y, g + one, one == 0, k_norm, cos, sin, eps, K_AT, V_AT, E)
        key, value = key.to(k.dtype.element_ty), value.to(v.dtype.element_ty)
        tl.store(k + new * (G * E) + one[:, None] + e[None, :], key)
        tl.store(v + new * (G * E) + one[:, None] + e[None, :], value)
        m = tl.sum(query.to(tl.float32) * key.to(tl.float32), axis=1) * scale_log2
        total = tl.full([BLOCK_R], 1.0, tl.float32)
        acc = tl.broadcast_to(value.to(tl.float32), (BLOCK_R, E))
        if g == 0:
            own = turned_index_key(y + INDEX_K_AT, index_k_norm, index_k_bias, cos + E, sin + E, index_eps, I)
            tl.store(index_k + b * index_b + new * I + i, own.to(index_k.dtype.element_ty))
    share = tl.cdiv(tl.cdiv(new - first_key, parts), BLOCK_S) * BLOCK_S
    end = tl.minimum(first_key + (split + 1) * share, new)
    for first in range(first_key + split * share, end, BLOCK_S):
        s = first + tl.arange(0, BLOCK_S)
        at, there = (s * (G * E))[:, None] + e[None, :], s < end
        keys = tl.load(k + at, mask=there[:, None], other=0.0)
        values = tl.load(v + at, mask=there[:, None], other=0.0)
        logits = tl.dot(query, tl.trans(keys), input_precision="ieee") * scale_log2
        m, total, acc = absorb(m, total, acc, tl.where(there[None, :], logits, float("-inf")), values)
    release(PDL)
    row = ((b * G + g) * R + head) * parts + split
    store_parts(m_parts, totals, accs, m, total, acc, row, head < R, E)


def attend_chosen(
    y: Tensor, w: LayerWeights, store: tuple[Tensor, Tensor, Tensor], indices: Tensor, rows: Rows, z: StepSizes
) -> Tensor:
    """Attention over the keys of indices int32 [b k], -1 for none: [b (h e)] in the dtype of the keys."""
    (b, n), (k, v, _), topk = y.shape, store, indices.shape[1]
    table = launch(CHOSEN, y.device)
    part, parts = parts_of(topk, _splits(b * z.kv_heads, y.device), table["BLOCK_S"])
    left = _room_for_parts(b, z.heads, parts, z.head_width, y)
    attend_chosen_kernel[(parts, z.kv_heads, b)](
        y, w.q_norm, rows.cos, rows.sin, k, v, indices, *left, z.eps, z.head_width**-0.5 / math.log(2.0),
        topk, part, parts, k.stride(0), v.stride(0), **_heads(n, z), **table, **dependent(y.device),
    )  # fmt: skip
    return combine_parts(*left, k.dtype, dependent(y.device))


def attend_all(y: Tensor, w: LayerWeights, store: tuple[Tensor, Tensor, Tensor], rows: Rows, z: StepSizes) -> Tensor:
    """Attention over all keys start <= s < lengths: [b (h e)] in the dtype of the keys. Writes the new token's rows."""
    (b, n), (k, v, index_k) = y.shape, store
    table = launch(ALL, y.device)
    if b > 1 and "num_warps" in table:
        table |= WIDE
    parts = _splits(b * z.kv_heads, y.device)
    left = _room_for_parts(b, z.heads, parts, z.head_width, y)
    places = {name: at for name, at in z.places.items() if name in ("K_AT", "V_AT", "INDEX_K_AT")}
    attend_all_kernel[(parts, z.kv_heads, b)](
        y, w.q_norm, w.k_norm, w.index_k_norm, w.index_k_bias, rows.cos, rows.sin, k, v, index_k, rows.lengths,
        rows.start, *left, min(x.shape[1] for x in store), z.eps, z.index_eps, z.head_width**-0.5 / math.log(2.0),
        parts, k.stride(0), v.stride(0), index_k.stride(0), start_strides(rows.start)[0],
        **places, **_heads(n, z), **table, **dependent(y.device),
    )  # fmt: skip
    return combine_parts(*left, k.dtype, dependent(y.device))


def _heads(n: int, z: StepSizes) -> dict[str, int]:
    """Constants of both kernels. n: columns of the projections."""
    r = z.heads // z.kv_heads
    return {
        "N": n, "G": z.kv_heads, "R": r, "E": z.head_width, "I": z.index_width, "BLOCK_R": triton.next_power_of_2(r),
    }  # fmt: skip


def _splits(programs: int, device: torch.device) -> int:
    """Parts of a row, where one part would give as many programs."""
    least, most = PARTS[architecture(device)]
    return min(most, max(least, PROGRAMS // triton.next_power_of_2(programs)))


def _room_for_parts(b: int, h: int, parts: int, e: int, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    m_parts, totals = torch.empty(2, b, h, parts, dtype=torch.float32, device=like.device)
    return m_parts, totals, torch.empty(b, h, parts, e, dtype=torch.float32, device=like.device)
