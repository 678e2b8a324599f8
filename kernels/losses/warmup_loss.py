"""The KL loss of the dense warm-up, which teaches the indexer on all keys that a query may see, with its gradients.

Axes: b batch, t query row, s key position, j indexer head, i indexer width, h query head, g KV head (group), e head
width. Report, section 2.3, L_warmup. For one query t with the keys V = {s: start[t] <= s <= positions[t]}:

    p[g, s] = mean over the heads h of group g of exp(e^-1/2 q[h] . k[s, g] - lse[h])         a constant: the teacher
    I[s] = i^-1/2 sum_j w[j] ReLU(z[j, s])        z[j, s] = index_q[j] . index_k[s]        c = softmax of I over V
    loss = sum_g KL(p_g || c) = sum_g sum_{s in V} p[g, s] (log p[g, s] - log c[s])           0 log 0 = 0

    dI[s] = G (c[s] - m[s])        m = mean over g of p_g        since log c = I - log sum exp I and sum_s p[g, s] = 1
    dw[j] = i^-1/2 sum_s dI[s] ReLU(z[j, s])        dindex_q[j] = i^-1/2 w[j] sum_s dI[s] [z[j, s] > 0] index_k[s]
    dindex_k[s] = i^-1/2 sum_{t: s in V[t]} sum_j w[t, j] dI[t, s] [z[t, j, s] > 0] index_q[t, j]

The floor of the loss is not 0: it equals sum_g KL(p_g || m) + G KL(m || c), and no row c of scores, one for all groups,
changes the first term, G times the Jensen-Shannon divergence of the groups. c can follow their mean only.

All is tiled over s, and nothing of shape [t s] is kept. Two kinds of log-sum-exp are: lse [b t h], one for a head of
the main attention, and one for a row of I [b t]. With them every tile yields its own part of p, c, loss and dI:

1. warmup_lse.py             the two log-sum-exps
2. loss_kernel               the loss and, since incoming gradients only scale a row of dI, the sums over s in dw and
                             dindex_q at the incoming gradient 1 (loss_tiles.py)
3. dk_kernel (backward)      one program for one block of keys makes its tiles again, for all rows that see the block

1 and 2 cut the keys into chunks, whose parts are added up in one order. No atomics: the same bits at every repeat.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from minikeye.kernels.attention.online_softmax import LN2, LOG2E
from minikeye.kernels.launch import architecture, launch
from minikeye.kernels.losses.loss_tiles import (
    check_loss,
    columns,
    from_pulled,
    index_tile,
    load_index_keys,
    load_queries,
    precision,
    sizes,
    teacher_tile,
    through_relu,
)
from minikeye.kernels.losses.warmup_lse import Rows, arrange_rows, head_sums, row_sums, tile_keys, tile_rows
from minikeye.kernels.selection.index_scores import check_start

# KEYS of a tile. Not timed yet: these tiles fit the registers.
LAUNCH = {
    "sm_80": {"KEYS": 32, "num_warps": 4, "num_stages": 2},
    "sm_90": {"KEYS": 64, "num_warps": 8, "num_stages": 2},
    "interpreter": {"KEYS": 16},  # small, so that small tests cross tiles
}
DK = {
    "sm_80": {"KEYS": 32, "num_warps": 4, "num_stages": 2},
    "sm_90": {"KEYS": 64, "num_warps": 8, "num_stages": 2},
    "interpreter": {"KEYS": 16},
}


@triton.jit
def loss_kernel(
    index_q, index_k, index_w, q, k, order, firsts, lasts, lse, row_lse, loss, pulled, scale, scale_log2,
    iq_b, iq_t, iq_j, ik_b, ik_s, w_b, w_t, w_j, q_b, q_t, q_h, k_b, k_s, k_g,
    B, T, S, CHUNK, J, I, G, R,  # noqa: E741 - the axis letters
    HEADS: tl.constexpr, WIDTH: tl.constexpr, E: tl.constexpr, BLOCK_R: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid (tiles, chunks, b). A chunk's parts: loss [chunks b t], pulled [chunks b t j i] or None for no gradients."""
    b = tl.program_id(2).to(tl.int64)
    t, first, last = tile_rows(tl.program_id(0), order, firsts, lasts, b, T, S, QUERIES)
    begin, end = tile_keys(first, last, CHUNK, KEYS)
    index_q += b * iq_b
    index_w += b * w_b
    queries, gate = load_queries(index_q, index_w, t, scale, iq_t, iq_j, w_t, w_j, J, I, HEADS, WIDTH, QUERIES, UPCAST)
    log_sum_exp = tl.load(row_lse + b * T + t, mask=t >= 0, other=0.0) * LOG2E
    divergence = tl.zeros([KEYS, QUERIES], tl.float32)
    pull = tl.zeros([HEADS * QUERIES, WIDTH], tl.float32)
    for tile in range(begin, end, KEYS):
        s = tile + tl.arange(0, KEYS)
        valid = (s[:, None] >= first[None, :]) & (s[:, None] <= last[None, :])
        p, information = teacher_tile(
            q + b * q_b, k + b * k_b, lse + b * T * G * R, s, t, valid, scale_log2,
            q_t, q_h, k_s, k_g, G * R, S, G, R, E, BLOCK_R, KEYS, QUERIES, UPCAST,
        )  # fmt: skip
        keys = load_index_keys(index_k + b * ik_b, s, ik_s, S, I, WIDTH, UPCAST)
        z, score = index_tile(keys, queries, gate, KEYS, HEADS, QUERIES)
        log_c = tl.where(valid, score * LOG2E - log_sum_exp[None, :], 0.0)
        divergence += information - p * log_c
        if pulled is not None:
            d = through_relu(tl.where(valid, G * tl.exp2(log_c) - p, 0.0), z, KEYS, HEADS, QUERIES)
            pull = tl.dot(tl.trans(d), keys.to(tl.float32), pull, input_precision=PRECISION)
    at = (tl.program_id(1).to(tl.int64) * B + b) * T
    tl.store(loss + at + t, tl.sum(divergence, axis=0) * LN2, mask=t >= 0)
    if pulled is not None:
        j = (tl.arange(0, HEADS * QUERIES) // QUERIES)[:, None]
        i = tl.arange(0, WIDTH)[None, :]
        row = columns(t, HEADS, QUERIES)[:, None]
        tl.store(pulled + ((at + row) * J + j) * I + i, pull, mask=(row >= 0) & (j < J) & (i < I))


@triton.jit
def dk_kernel(
    index_q, index_k, index_w, q, k, order, firsts, lasts, lse, row_lse, dloss, begins, dk, scale, scale_log2,
    iq_b, iq_t, iq_j, ik_b, ik_s, w_b, w_t, w_j, q_b, q_t, q_h, k_b, k_s, k_g,
    T, S, TILES, J, I, G, R,  # noqa: E741 - the axis letters
    HEADS: tl.constexpr, WIDTH: tl.constexpr, E: tl.constexpr, BLOCK_R: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid (key blocks, b). Fills dk, float32 [b s i]. begins [key blocks]: the first tile that reaches the block."""
    b = tl.program_id(1).to(tl.int64)
    s = tl.program_id(0) * KEYS + tl.arange(0, KEYS)
    keys = load_index_keys(index_k + b * ik_b, s, ik_s, S, I, WIDTH, UPCAST)
    index_q += b * iq_b
    index_w += b * w_b
    sums = tl.zeros([KEYS, WIDTH], tl.float32)
    for tile in range(tl.load(begins + tl.program_id(0)), TILES):
        t, first, last = tile_rows(tile, order, firsts, lasts, b, T, S, QUERIES)
        valid = (s[:, None] >= first[None, :]) & (s[:, None] <= last[None, :])
        p, _ = teacher_tile(
            q + b * q_b, k + b * k_b, lse + b * T * G * R, s, t, valid, scale_log2,
            q_t, q_h, k_s, k_g, G * R, S, G, R, E, BLOCK_R, KEYS, QUERIES, UPCAST,
        )  # fmt: skip
        queries, gate = load_queries(
            index_q, index_w, t, scale, iq_t, iq_j, w_t, w_j, J, I, HEADS, WIDTH, QUERIES, UPCAST
        )
        z, score = index_tile(keys, queries, gate, KEYS, HEADS, QUERIES)
        log_sum_exp = tl.load(row_lse + b * T + t, mask=t >= 0, other=0.0) * LOG2E
        log_c = tl.where(valid, score * LOG2E - log_sum_exp[None, :], 0.0)
        weight = tl.load(dloss + b * T + t, mask=t >= 0, other=0.0)
        d = tl.where(valid, (G * tl.exp2(log_c) - p) * weight[None, :], 0.0)
        d = through_relu(d, z, KEYS, HEADS, QUERIES) * gate[None, :]
        sums = tl.dot(d, queries.to(tl.float32), sums, input_precision=PRECISION)
    i = tl.arange(0, WIDTH)
    tl.store(dk + ((b * S + s) * I)[:, None] + i[None, :], sums, mask=(s < S)[:, None] & (i < I)[None, :])


def warmup_loss(
    index_q: Tensor,
    index_k: Tensor,
    index_w: Tensor,
    q: Tensor,
    k: Tensor,
    positions: Tensor,
    start: Tensor | None = None,
) -> Tensor:
    """sum_g KL(p_g || softmax(I)) over all keys that a query may see, in nats: float32 [b t].

    index_q [b t j i], index_k [b s i], index_w [b t j], whose gradients it has; q [b t h e], k [b s g e], which are
    teachers and get none; positions int32 or int64 [t]: where in the sequence each query row stands, in any order,
    with or without repeats; start int [b] or [b t]: the first key that a row may see. Row t sees the keys
    start <= s <= positions[t]; where there is none, loss and gradient are 0. Raises ValueError for inputs that do not
    fit.
    """
    check_loss(index_q, index_k, index_w, q, k)
    check_start(start, index_q)
    t = index_q.shape[1]
    if positions.shape != (t,) or positions.dtype not in (torch.int32, torch.int64) or positions.device != q.device:
        raise ValueError(
            f"positions must be int32 or int64 [{t}] on {q.device}; "
            f"got {positions.dtype} {list(positions.shape)} on {positions.device}"
        )
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (index_q, index_k, index_w))
    return _WarmupLoss.apply(index_q, index_k, index_w, q.detach(), k.detach(), positions, start, wanted)


class _WarmupLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, index_q, index_k, index_w, q, k, positions, start, wanted: bool) -> Tensor:
        (b, t, j, i), s = index_q.shape, k.shape[1]
        new = {"dtype": torch.float32, "device": q.device}
        if not index_q.numel() or not s:
            ctx.save_for_backward(index_q, index_k, index_w)
            return torch.zeros(b, t, **new)
        rows = arrange_rows(index_q, s, positions, start)
        lse, row_lse = head_sums(q, k, index_q, rows), row_sums(index_q, index_k, index_w, q, k, rows)
        loss = torch.empty(rows.chunks, b, t, **new)
        pulled = torch.empty(rows.chunks, b, t, j, i, **new) if wanted else None
        loss_kernel[(rows.tiles, rows.chunks, b)](
            index_q, index_k, index_w, q, k, rows.order, rows.firsts, rows.lasts, lse, row_lse, loss, pulled,
            *_scales(index_q, q), *_strides(index_q, index_k, index_w, q, k),
            b, t, s, rows.chunk, j, i, k.shape[2], q.shape[2] // k.shape[2],
            QUERIES=rows.queries, PRECISION=precision(index_q), **sizes(index_q, q, k), **launch(LAUNCH, q.device),
        )  # fmt: skip
        if wanted:
            ctx.save_for_backward(index_q, index_k, index_w, q, k, lse, row_lse, pulled.sum(dim=0))
            ctx.rows = rows
        return loss.sum(dim=0)

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss: Tensor) -> tuple[Tensor | None, ...]:
        index_q, index_k, index_w, *saved = ctx.saved_tensors
        if not saved:  # no row or no key
            return *(torch.zeros_like(x) for x in (index_q, index_k, index_w)), None, None, None, None, None
        dq, dw = from_pulled(saved.pop(), index_q, index_w, dloss)
        dk = _dk(index_q, index_k, index_w, *saved, dloss.contiguous(), ctx.rows) if ctx.needs_input_grad[1] else None
        return dq, dk, dw, None, None, None, None, None


def _dk(
    index_q: Tensor, index_k: Tensor, index_w: Tensor, q: Tensor, k: Tensor,
    lse: Tensor, row_lse: Tensor, dloss: Tensor, rows: Rows,
) -> Tensor:  # fmt: skip
    (b, t, j, i), (s, g) = index_q.shape, k.shape[1:3]
    dk = torch.empty(index_k.shape, dtype=torch.float32, device=q.device)
    block = DK[architecture(q.device)]["KEYS"]
    edges = torch.arange(0, s, block, dtype=torch.int32, device=q.device)
    begins = torch.searchsorted(rows.lasts, edges).int() // rows.queries
    dk_kernel[(len(edges), b)](
        index_q, index_k, index_w, q, k, rows.order, rows.firsts, rows.lasts, lse, row_lse, dloss, begins, dk,
        *_scales(index_q, q), *_strides(index_q, index_k, index_w, q, k), t, s, rows.tiles, j, i, g, q.shape[2] // g,
        QUERIES=rows.queries, PRECISION=precision(index_q), **sizes(index_q, q, k), **launch(DK, q.device),
    )  # fmt: skip
    return dk.to(index_k.dtype)


def _scales(index_q: Tensor, q: Tensor) -> tuple[float, float]:
    return index_q.shape[3] ** -0.5, q.shape[3] ** -0.5 / math.log(2.0)


def _strides(index_q: Tensor, index_k: Tensor, index_w: Tensor, q: Tensor, k: Tensor) -> tuple[int, ...]:
    return *index_q.stride()[:3], *index_k.stride()[:2], *index_w.stride(), *q.stride()[:3], *k.stride()[:3]
