"""Index scores of one new token a row from its raw projections, and the token's place in the cache: one launch.

Axes: b batch, s key position, j indexer head, i indexer width, g KV head, e head width, n column of the projections.
Report, section 2.3. As in decode_select.py,

    I[s] = i^-1/2 sum_j w[j] ReLU(q[j] . k[s])        start[b] <= s < lengths[b]

with a chunk of keys a program. What is fused: every program normalises and rotates the index queries for itself, and
the first program of a row writes what the token leaves behind, its key, value and index key, where the cache has room
at lengths[b] - 1. No program reads what another one writes: the new key's score is made from its registers.

7.5 us at 128K on an H200 prototype, of which the bytes need 3.9; 69 of 63 at batch 16.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.decode.decode_select import MOST_PRODUCTS, SCORES, key_span
from minikeye.kernels.decode.dependent import dependent, release, wait
from minikeye.kernels.decode.step.new_token import new_key_value, turned_heads, turned_index_key
from minikeye.kernels.decode.step.shapes import LayerWeights, Rows, StepSizes
from minikeye.kernels.launch import architecture, launch
from minikeye.kernels.selection.index_scores import start_strides

CHUNK = {"sm_90": (512, 2048), "sm_80": (512, 2048), "interpreter": (32, 64)}  # keys a program, at batch 1 and at most


@triton.jit
def token_scores_kernel(
    y, k_norm, index_q_norm, index_k_norm, index_k_bias, cos, sin, k, v, index_k, lengths, start, scores,
    s_count, eps, index_eps, scale, k_b, v_b, index_b, start_b, scores_b,
    K_AT: tl.constexpr, V_AT: tl.constexpr, INDEX_Q_AT: tl.constexpr, GATE_AT: tl.constexpr, INDEX_K_AT: tl.constexpr,
    N: tl.constexpr, G: tl.constexpr, E: tl.constexpr, J: tl.constexpr, I: tl.constexpr,  # noqa: E741
    BLOCK_G: tl.constexpr, HEADS: tl.constexpr, KEYS: tl.constexpr, CHUNK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Grid (chunks, b)."""
    chunk, b = tl.program_id(0), tl.program_id(1).to(tl.int64)
    wait(PDL)
    begin, stop = key_span(lengths, start, b, s_count, start_b)
    new = stop - 1
    first = tl.maximum(chunk * CHUNK, begin // KEYS * KEYS)
    end = tl.minimum((chunk + 1) * CHUNK, new)  # of the keys before the new one
    if (chunk > 0) & (first >= end):
        return
    y += b * N
    cos += b * (E + I)
    sin += b * (E + I)
    index_k += b * index_b
    scores += b * scores_b
    head, i = tl.arange(0, HEADS), tl.arange(0, I)
    query = turned_heads(y + INDEX_Q_AT, head, head < J, index_q_norm, cos + E, sin + E, index_eps, I)
    query = query.to(index_k.dtype.element_ty)
    gate = tl.load(y + GATE_AT + head, mask=head < J, other=0.0)
    if chunk == 0:
        own = turned_index_key(y + INDEX_K_AT, index_k_norm, index_k_bias, cos + E, sin + E, index_eps, I)
        own = own.to(index_k.dtype.element_ty)
        tl.store(index_k + new * I + i, own)
        z = tl.sum(query.to(tl.float32) * own.to(tl.float32)[None, :], axis=1)
        tl.store(scores + new, tl.sum(tl.maximum(z, 0.0) * gate, axis=0) * scale)
        group, e = tl.arange(0, BLOCK_G), tl.arange(0, E)
        key, value = new_key_value(y, group, group < G, k_norm, cos, sin, eps, K_AT, V_AT, E)
        at = (new * (G * E) + group * E)[:, None] + e[None, :]
        tl.store(k + b * k_b + at, key.to(k.dtype.element_ty), mask=(group < G)[:, None])
        tl.store(v + b * v_b + at, value.to(v.dtype.element_ty), mask=(group < G)[:, None])
    queries = tl.trans(query)
    for tile in range(first, end, KEYS):
        s = tile + tl.arange(0, KEYS)
        keys = tl.load(index_k + (s * I)[:, None] + i[None, :], mask=(s < end)[:, None], other=0.0)
        z = tl.dot(keys, queries, input_precision="ieee")
        score = tl.sum(tl.maximum(z, 0.0) * gate[None, :], axis=1) * scale
        tl.store(scores + s, score, mask=s < end)
    release(PDL)


def token_scores(y: Tensor, w: LayerWeights, store: tuple[Tensor, Tensor, Tensor], rows: Rows, z: StepSizes) -> Tensor:
    """float32 [b, s rounded up to a cache line]: the scores of valid keys, elsewhere anything.

    y float32 [b n]: projections, columns as `StepSizes` says. store: keys, values [b s g e] and index keys [b s i],
    written at lengths - 1.
    """
    (b, n), (k, v, index_k), device = y.shape, store, y.device
    s = min(x.shape[1] for x in store)
    scores = torch.empty(b, triton.cdiv(s, 32) * 32, dtype=torch.float32, device=device)
    heads, (least, most) = max(16, triton.next_power_of_2(z.index_heads)), CHUNK[architecture(device)]
    chunk = min(most, least * triton.next_power_of_2(b))
    table = launch(SCORES, device) | {"CHUNK": chunk}
    table["KEYS"] = min(table["KEYS"], MOST_PRODUCTS // heads)
    token_scores_kernel[(triton.cdiv(s, chunk), b)](
        y, w.k_norm, w.index_q_norm, w.index_k_norm, w.index_k_bias, rows.cos, rows.sin, k, v, index_k,
        rows.lengths, rows.start, scores, s, z.eps, z.index_eps, z.index_width**-0.5,
        k.stride(0), v.stride(0), index_k.stride(0), start_strides(rows.start)[0], scores.stride(0),
        **z.places, N=n, G=z.kv_heads, E=z.head_width, J=z.index_heads, I=z.index_width,
        BLOCK_G=triton.next_power_of_2(z.kv_heads), HEADS=heads, **table, **dependent(device),
    )  # fmt: skip
    return scores
