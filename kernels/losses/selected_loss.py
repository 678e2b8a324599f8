"""The KL loss of the sparse stage, which teaches the indexer on the keys that it selected, with its gradients.

Axes: b batch, t query position, s key position, j indexer head, i indexer width, h query head, g KV head (group),
e head width, k selected keys. Report, section 2.3, L_sparse. For one query t with the selected keys S:

    p[g, s] = mean over the heads h of group g of exp(e^-1/2 q[h] . k[s, g] - lse[h])         a constant: the teacher
    I[s] = i^-1/2 sum_j w[j] ReLU(z[j, s])        z[j, s] = index_q[j] . index_k[s]        c = softmax of I over S
    loss = sum_g KL(p_g || c) = sum_g sum_{s in S} p[g, s] (log p[g, s] - log c[s])           0 log 0 = 0

lse is the log-sum-exp of the sparse attention over S. With log c = I - log sum exp I and sum_s p[g, s] = 1,

    dI[s] = G (c[s] - m[s])        m = mean over g of p_g
    dw[j] = i^-1/2 sum_s dI[s] ReLU(z[j, s])        dindex_q[j] = i^-1/2 w[j] sum_s dI[s] [z[j, s] > 0] index_k[s]
    dindex_k[s] = i^-1/2 sum_{t: s in S[t]} sum_j w[t, j] dI[t, s] [z[t, j, s] > 0] index_q[t, j]

One row of scores serves all groups, so it can follow their mean only:

    loss = sum_g KL(p_g || m) + G KL(m || c)

No c changes the first term, G times the Jensen-Shannon divergence of the groups. The loss ends there and not at 0.

Forward: one program for one query. It goes through its keys twice, first for the log-sum-exp of I, then for p, loss
and dI. Incoming gradients only scale a row of dI, so the sums over s are taken at once, where the keys are at hand
(loss_tiles.py). Backward: dindex_k, which sums over queries, in selected_backward.py. The same bits at every repeat.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from minikeye.kernels.attention.online_softmax import LN2, LOG2E
from minikeye.kernels.attention.sparse_attention import sparse_attention
from minikeye.kernels.launch import launch
from minikeye.kernels.losses.loss_tiles import (
    add_to_sums,
    begin_sums,
    check_loss,
    finish_sums,
    from_pulled,
    index_tile,
    load_index_keys,
    load_queries,
    precision,
    sizes,
    teacher_tile,
    through_relu,
)
from minikeye.kernels.losses.selected_backward import selected_dk

# BLOCK_S: keys gathered at once. Not timed yet: 64 make the logits a warp-group product on Hopper at 125 registers.
FORWARD = {
    "sm_80": {"BLOCK_S": 32, "num_warps": 4, "num_stages": 2},
    "sm_90": {"BLOCK_S": 64, "num_warps": 4, "num_stages": 2},
    "interpreter": {"BLOCK_S": 16},  # small, so that small tests cross blocks
}


@triton.jit
def selected_loss_kernel(
    index_q, index_k, index_w, q, k, lse, indices, loss, dscore, pulled, scale, scale_log2,
    iq_b, iq_t, iq_j, ik_b, ik_s, w_b, w_t, w_j, q_b, q_t, q_h, k_b, k_s, k_g, l_b, l_t, i_b, i_t,
    T, S, TOPK, J, I, G, R,  # noqa: E741 - the axis letters
    HEADS: tl.constexpr, WIDTH: tl.constexpr, E: tl.constexpr, BLOCK_R: tl.constexpr,
    BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr, PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Grid (t, b). loss [b t]; dscore [b t k] and pulled [b t j i], contiguous, or None: no gradients wanted."""
    t = tl.program_id(0).to(tl.int64)
    b = tl.program_id(1).to(tl.int64)
    row = indices + b * i_b + t * i_t
    slot = tl.arange(0, BLOCK_K)
    selected = tl.load(row + slot, mask=slot < TOPK, other=-1)
    count = tl.max(tl.where(selected >= 0, slot + 1, 0), axis=0)  # slots up to the last key

    query = t + tl.zeros([1], tl.int64)
    index_q += b * iq_b
    index_w += b * w_b
    queries, gate = load_queries(index_q, index_w, query, scale, iq_t, iq_j, w_t, w_j, J, I, HEADS, WIDTH, 1, UPCAST)
    index_k += b * ik_b
    q += b * q_b
    k += b * k_b
    lse += b * l_b

    m, total = begin_sums(BLOCK_S, 1)
    for first in range(0, count, BLOCK_S):
        at = first + tl.arange(0, BLOCK_S)
        s = tl.load(row + at, mask=at < count, other=-1).to(tl.int32)
        is_key = (s >= 0)[:, None]
        keys = load_index_keys(index_k, s, ik_s, S, I, WIDTH, UPCAST)
        _, score = index_tile(keys, queries, gate, BLOCK_S, HEADS, 1)
        m, total = add_to_sums(m, total, tl.where(is_key, score * LOG2E, float("-inf")))
    log_sum_exp = finish_sums(m, total)

    divergence = tl.zeros([BLOCK_S, 1], tl.float32)
    pull = tl.zeros([HEADS, WIDTH], tl.float32)
    for first in range(0, count, BLOCK_S):
        at = first + tl.arange(0, BLOCK_S)
        s = tl.load(row + at, mask=at < count, other=-1).to(tl.int32)
        is_key = (s >= 0)[:, None]
        p, information = teacher_tile(
            q, k, lse, s, query, is_key, scale_log2,
            q_t, q_h, k_s, k_g, l_t, S, G, R, E, BLOCK_R, BLOCK_S, 1, UPCAST,
        )  # fmt: skip
        keys = load_index_keys(index_k, s, ik_s, S, I, WIDTH, UPCAST)
        z, score = index_tile(keys, queries, gate, BLOCK_S, HEADS, 1)
        log_c = tl.where(is_key, score * LOG2E - log_sum_exp[None, :], 0.0)
        divergence += information - p * log_c
        if dscore is not None:
            d = tl.where(is_key, G * tl.exp2(log_c) - p, 0.0)
            tl.store(dscore + (b * T + t) * TOPK + at[:, None], d, mask=(at < count)[:, None])
            d = through_relu(d, z, BLOCK_S, HEADS, 1)
            pull = tl.dot(tl.trans(d), keys.to(tl.float32), pull, input_precision=PRECISION)
    tl.store(loss + b * T + t, tl.sum(tl.sum(divergence, axis=0), axis=0) * LN2)
    if dscore is not None:
        j = tl.arange(0, HEADS)[:, None]
        i = tl.arange(0, WIDTH)[None, :]
        tl.store(pulled + ((b * T + t) * J + j) * I + i, pull, mask=(j < J) & (i < I))


def selected_loss(
    index_q: Tensor, index_k: Tensor, index_w: Tensor, q: Tensor, k: Tensor, indices: Tensor, lse: Tensor | None = None
) -> Tensor:
    """sum_g KL(p_g || softmax(I)) over the selected keys of each query, in nats: float32 [b t].

    index_q [b t j i], index_k [b s i], index_w [b t j], whose gradients it has; q [b t h e], k [b s g e], which are
    teachers and get none; indices int32 or int64 [b t k], values in -1..s-1, -1 for no key, which is not checked here;
    lse float32 [b t h]: what sparse_attention gave for these very indices and the default scale; None: found again.
    A query without keys has loss 0 and gradient 0. Raises ValueError for inputs that do not fit.
    """
    check_loss(index_q, index_k, index_w, q, k)
    _check(q, indices, lse)
    q, k = q.detach(), k.detach()
    if lse is None:
        lse = sparse_attention(q, k, k, indices)[1]
    wanted = torch.is_grad_enabled() and any(x.requires_grad for x in (index_q, index_k, index_w))
    return _SelectedLoss.apply(index_q, index_k, index_w, q, k, indices, lse.detach(), wanted)


class _SelectedLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, index_q, index_k, index_w, q, k, indices, lse, wanted: bool) -> Tensor:
        (b, t, j, i), (s, g), topk = index_q.shape, k.shape[1:3], indices.shape[2]
        new = {"dtype": torch.float32, "device": q.device}
        dscore = torch.empty(b, t, topk, **new) if wanted else None
        pulled = torch.empty(b, t, j, i, **new) if wanted else None
        ctx.save_for_backward(index_q, index_k, index_w, indices, dscore, pulled)
        if not index_q.numel() or not indices.numel() or not s:
            return torch.zeros(b, t, **new)
        loss = torch.empty(b, t, **new)
        selected_loss_kernel[(t, b)](
            index_q, index_k, index_w, q, k, lse, indices, loss, dscore, pulled,
            i**-0.5, q.shape[3] ** -0.5 / math.log(2.0),
            *index_q.stride()[:3], *index_k.stride()[:2], *index_w.stride(), *q.stride()[:3], *k.stride()[:3],
            *lse.stride()[:2], *indices.stride()[:2], t, s, topk, j, i, g, q.shape[2] // g,
            BLOCK_K=triton.next_power_of_2(topk), PRECISION=precision(index_q),
            **sizes(index_q, q, k), **launch(FORWARD, q.device),
        )  # fmt: skip
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, dloss: Tensor) -> tuple[Tensor | None, ...]:
        index_q, index_k, index_w, indices, dscore, pulled = ctx.saved_tensors
        if not index_q.numel() or not indices.numel() or not index_k.numel():
            return *(torch.zeros_like(x) for x in (index_q, index_k, index_w)), None, None, None, None, None
        dk = selected_dk(index_q, index_k, index_w, indices, dscore, dloss) if ctx.needs_input_grad[1] else None
        dq, dw = from_pulled(pulled, index_q, index_w, dloss)
        return dq, dk, dw, None, None, None, None, None


def _check(q: Tensor, indices: Tensor, lse: Tensor | None) -> None:
    b, t, h = q.shape[:3]
    if indices.ndim != 3 or indices.shape[:2] != (b, t) or indices.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"indices must be int32 or int64 [{b}, {t}, k], got {indices.dtype} {list(indices.shape)}")
    if indices.device != q.device or (indices.numel() and indices.stride(-1) != 1):
        raise ValueError(
            f"indices must be on {q.device} with unit last stride; got {indices.device}, {indices.stride()}"
        )
    if lse is not None and (lse.shape != (b, t, h) or lse.dtype != torch.float32 or lse.device != q.device):
        raise ValueError(f"lse must be float32 [{b}, {t}, {h}] on {q.device}; got {lse.dtype} {list(lse.shape)}")
    if lse is not None and lse.numel() and lse.stride(-1) != 1:
        raise ValueError(f"the last axis of lse must have stride 1; got {lse.stride()}")
