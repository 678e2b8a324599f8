"""What the two KL losses of the indexer do with one tile of keys and queries, as functions that kernels inline.

Axes: s key, t query, j indexer head, i indexer width, h query head, g KV head, r query heads per group, e head width.
A tile has KEYS keys as rows and QUERIES queries; all heads of all its queries lie side by side as columns, the query
running fastest: column = head * QUERIES + query (index_scores.py says why). Exponents are in units of log2(e).

    z[s, (j, t)] = index_q[t, j] . index_k[s]         score[s, t] = sum_j gate[t, j] ReLU(z)
    p[s, t, g] = mean over the r heads h of group g of exp(e^-1/2 q[t, h] . k[s, g] - lse[t, h])
    pulled[t, j, i] = sum_s dscore[s, t] [z > 0] index_k[s, i]

With gate = i^-1/2 w, the last sum gives both gradients of the query's side: d index_q = gate * pulled, and, because
ReLU(z) = [z > 0] index_q . index_k, dw = i^-1/2 * index_q . pulled.

Products of two inputs take them as they are. dscore is float32 and may be as small as 1e-9: products with it are taken
in tf32 where the inputs have 16 bits (eleven bits and the range of float32), in float32 where they have 32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from minikeye.kernels.attention.online_softmax import LOG2E, LOWEST
from minikeye.kernels.attention.sparse_attention import DTYPES, WIDTHS
from minikeye.kernels.launch import runs_on, upcast
from minikeye.kernels.selection.index_scores import check_index

MOST_ENTRIES = 8192  # of one query's index heads: `pulled` stays in registers


@triton.jit
def columns(x, HEADS: tl.constexpr, QUERIES: tl.constexpr):
    """[query] -> [head * QUERIES + query]"""
    return tl.reshape(tl.broadcast_to(x[None, :], (HEADS, QUERIES)), (HEADS * QUERIES,))


@triton.jit
def load_queries(
    index_q, index_w, t, scale, q_t, q_j, w_t, w_j, J, I,  # noqa: E741 - the axis letters
    HEADS: tl.constexpr, WIDTH: tl.constexpr, QUERIES: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Index queries [column, i] and gates [column] of the queries t, -1 for none; 0 where there is nothing."""
    head = tl.arange(0, HEADS * QUERIES) // QUERIES
    i = tl.arange(0, WIDTH)
    row = columns(t, HEADS, QUERIES)
    real = (head < J) & (row >= 0)
    at = (row * q_t + head * q_j)[:, None] + i[None, :]
    queries = tl.load(index_q + at, mask=real[:, None] & (i < I)[None, :], other=0.0)
    gate = tl.load(index_w + row * w_t + head * w_j, mask=real, other=0.0).to(tl.float32) * scale
    if UPCAST:
        queries = queries.to(tl.float32)
    return queries, gate


@triton.jit
def load_index_keys(index_k, s, k_s, S, I, WIDTH: tl.constexpr, UPCAST: tl.constexpr):  # noqa: E741 - the axis letter
    """Index keys [key, i] of the positions s; 0 outside 0..S-1, which is no key."""
    i = tl.arange(0, WIDTH)
    real = ((s >= 0) & (s < S))[:, None] & (i < I)[None, :]
    keys = tl.load(index_k + s[:, None] * k_s + i[None, :], mask=real, other=0.0)
    if UPCAST:
        keys = keys.to(tl.float32)
    return keys


@triton.jit
def index_tile(keys, queries, gate, KEYS: tl.constexpr, HEADS: tl.constexpr, QUERIES: tl.constexpr):
    """z [key, column] and the scores [key, query]."""
    z = tl.dot(keys, tl.trans(queries), input_precision="ieee")
    relu = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)  # a broken key is seen in the loss
    weighed = tl.reshape(relu * gate[None, :], (KEYS, HEADS, QUERIES))
    return z, tl.sum(weighed, axis=1)


@triton.jit
def through_relu(dscore, z, KEYS: tl.constexpr, HEADS: tl.constexpr, QUERIES: tl.constexpr):
    """dscore [key, query] where z [key, column] is positive, else 0: [key, column]."""
    spread = tl.broadcast_to(dscore[:, None, :], (KEYS, HEADS, QUERIES))
    return tl.where(z > 0.0, tl.reshape(spread, (KEYS, HEADS * QUERIES)), 0.0)


@triton.jit
def teacher_tile(
    q, k, lse, s, t, valid, scale_log2,
    q_t, q_h, k_s, k_g, l_t, S, G, R,
    E: tl.constexpr, BLOCK_R: tl.constexpr, KEYS: tl.constexpr, QUERIES: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """sum_g p_g and sum_g p_g log2 p_g, [key, query], 0 where not valid. 0 log 0 = 0.

    s [key], outside 0..S-1 for no key, and t [query], -1 for no query, need not be neighbours.
    """
    width = tl.arange(0, E)
    head = tl.arange(0, BLOCK_R * QUERIES) // QUERIES
    row = columns(t, BLOCK_R, QUERIES)
    real = (head < R) & (row >= 0)
    is_key = (s >= 0) & (s < S)
    together = tl.zeros([KEYS, QUERIES], tl.float32)
    information = tl.zeros([KEYS, QUERIES], tl.float32)
    for g in range(0, G):
        keys = tl.load(k + g * k_g + s[:, None] * k_s + width[None, :], mask=is_key[:, None], other=0.0)
        h = g * R + head
        query = tl.load(q + (row * q_t + h * q_h)[:, None] + width[None, :], mask=real[:, None], other=0.0)
        log_sum_exp = tl.load(lse + row * l_t + h, mask=real, other=float("inf")) * LOG2E  # no head: p = 0
        if UPCAST:
            keys, query = keys.to(tl.float32), query.to(tl.float32)
        logits = tl.dot(keys, tl.trans(query), input_precision="ieee") * scale_log2
        p = tl.exp2(tl.minimum(logits - log_sum_exp[None, :], 0.0))  # a key that is not valid could be above
        p = tl.sum(tl.reshape(p, (KEYS, BLOCK_R, QUERIES)), axis=1) / R
        p = tl.where(valid, p, 0.0)
        together += p
        information += p * tl.log2(tl.where(p > 0.0, p, 1.0))
    return together, information


# The log-sum-exp of columns, tile by tile. Every entry [key, column] of a tile keeps a maximum and a sum of its own:
# one exponential an element, and nothing crosses threads before the end.


@triton.jit
def begin_sums(KEYS: tl.constexpr, COLUMNS: tl.constexpr):
    return tl.full([KEYS, COLUMNS], LOWEST, tl.float32), tl.zeros([KEYS, COLUMNS], tl.float32)


@triton.jit
def add_to_sums(m, total, logits):
    """m and total after a tile of logits; -inf adds nothing. Of exp2(m - new m) and exp2(logit - new m), one is 1."""
    smaller = tl.exp2(-tl.abs(logits - m))
    total = tl.where(logits > m, total * smaller + 1.0, total + smaller)
    return tl.maximum(m, logits), total


@triton.jit
def finish_sums(m, total):
    """log2 of the sum of exp2 of each column; -inf for a column that got nothing."""
    most = tl.max(m, axis=0)
    total = tl.sum(total * tl.exp2(m - most[None, :]), axis=0)
    empty = total == 0.0
    return tl.where(empty, float("-inf"), most + tl.log2(tl.where(empty, 1.0, total)))


def sizes(index_q: Tensor, q: Tensor, k: Tensor) -> dict[str, int | bool | str]:
    """The constants that both losses compile for."""
    j, i = index_q.shape[2:]
    return {
        "HEADS": max(2, triton.next_power_of_2(j)),
        "WIDTH": max(16, triton.next_power_of_2(i)),
        "E": q.shape[3],
        "BLOCK_R": triton.next_power_of_2(q.shape[2] // k.shape[2]),
        "UPCAST": upcast(index_q.dtype) or upcast(q.dtype),
    }


def precision(index_q: Tensor) -> str:
    """Of products with a gradient."""
    return "ieee" if index_q.dtype == torch.float32 else "tf32"


def from_pulled(pulled: Tensor, index_q: Tensor, index_w: Tensor, dloss: Tensor) -> tuple[Tensor, Tensor]:
    """d index_q and d index_w, in their dtypes, out of `pulled` float32 [b t j i] and the rows' gradients [b t]."""
    scale = (dloss * index_q.shape[-1] ** -0.5)[..., None]
    dq = pulled * (index_w.float() * scale)[..., None]
    dw = torch.linalg.vecdot(pulled, index_q.float()) * scale
    return dq.to(index_q.dtype), dw.to(index_w.dtype)


def check_loss(index_q: Tensor, index_k: Tensor, index_w: Tensor, q: Tensor, k: Tensor) -> None:
    """One ValueError for whatever the kernels of a loss could not read rightly.

    They take index heads x width (powers of two) up to 8192, 1 to 16 heads a group, head widths of 16, 32, 64 or 128.
    """
    try:
        check_index(index_q, index_k, index_w, None)
    except ValueError as error:
        raise ValueError(f"of index_q, index_k, index_w: {error}") from None
    (b, t), s = index_q.shape[:2], index_k.shape[1]
    if triton.next_power_of_2(index_q.shape[2]) * max(16, triton.next_power_of_2(index_q.shape[3])) > MOST_ENTRIES:
        raise ValueError(f"heads x width of index_q may be {MOST_ENTRIES} at most, got {list(index_q.shape[2:])}")
    if q.ndim != 4 or q.shape[:2] != (b, t) or k.ndim != 4 or k.shape[:2] != (b, s) or k.shape[3] != q.shape[3]:
        raise ValueError(
            f"with these index tensors q must be [{b}, {t}, h, e] and k [{b}, {s}, g, e]; "
            f"got {list(q.shape)} and {list(k.shape)}"
        )
    h, g, e = q.shape[2], k.shape[2], q.shape[3]
    if not g or h % g or not 1 <= h // g <= 16 or e not in WIDTHS:
        raise ValueError(f"g must divide h, with 1 to 16 heads a group, and e be one of {WIDTHS}; got {h}, {g} and {e}")
    if q.dtype not in DTYPES or k.dtype != q.dtype:
        raise ValueError(f"q and k must share one of float32, float16, bfloat16; got {q.dtype} and {k.dtype}")
    if q.device != index_q.device or k.device != q.device or not runs_on(q.device):
        raise ValueError(f"all tensors must be on one CUDA device; got {index_q.device}, {q.device} and {k.device}")
    if any(x.numel() and x.stride(-1) != 1 for x in (q, k)):
        raise ValueError(f"the last axis of q and k must have stride 1; got {q.stride()} and {k.stride()}")
    if s * k.stride(1) >= 2**31:
        raise ValueError(f"offsets of keys must fit 31 bits; got {list(k.shape)}, stride {k.stride(1)}")
