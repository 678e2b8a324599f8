"""What the model asks for: index scores, exact top-k selection, sparse attention, the losses of the indexer.

Axes: b batch, t query position, s key position, j indexer head, i indexer width, k selected key, h query head,
g KV head, e head width. Report, section 2.3. Inputs are checked here, then one backend answers: "torch" (everywhere,
the specification) or "triton" (the package `minikeye.kernels`: CUDA).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minikeye.ops import torch_selection
from minikeye.ops.backend import beyond_index_kernels, beyond_kernels, choose_backend, learning
from minikeye.ops.checks import check_attention, check_index, check_indices, check_loss, check_range
from minikeye.ops.torch_attention import GatheredAttention, gather_index_rows, gather_rows
from minikeye.ops.torch_losses import dense_targets, kl_loss, selected_scores, selected_targets
from minikeye.ops.torch_selection import select_slabs, valid_keys


def index_scores(
    q: Float[Tensor, "b t j i"],
    k: Float[Tensor, "b s i"],
    w: Float[Tensor, "b t j"],
    offset: int = 0,
    start: Int[Tensor, "b *t"] | None = None,
) -> Float[Tensor, "b t s"]:
    """I[t, s] = sum_j w[t, j] * ReLU(q[t, j] . k[s]) / sqrt(i), in float32; -inf where query t may not see key s.

    Query t stands at absolute position offset + t and sees the keys start <= s <= offset + t; an offset below 0 or
    beyond s - t is not refused. start: one first key a row [b], or one a query [b t]; None means 0. The factor is the
    released code's: it changes no selection, but the softmax of the KL losses. By torch on every device, with
    gradients. Raises ValueError where shapes do not fit.
    """
    check_index(q, k, w, start)
    return torch_selection.index_scores(q, k, w, offset, start)


def select_topk(
    q: Float[Tensor, "b t j i"],
    k: Float[Tensor, "b s i"],
    w: Float[Tensor, "b t j"],
    topk: int,
    offset: int = 0,
    start: Int[Tensor, "b *t"] | None = None,
    backend: str = "auto",
) -> Int[Tensor, "b t k"]:
    """Positions of the topk highest index scores of each query, int32 [b t topk].

    Exact over the float32 scores of the valid keys, which must not be nan; ties go to the smaller position; ascending;
    padded with -1 at the end where fewer than topk keys are valid. Works on a slab of query rows at a time, never on a
    whole [t s] matrix. The backends add up heads in different orders: scores that differ in the last bit may be
    selected differently. Raises ValueError for shapes that do not fit or topk < 1, RuntimeError as `choose_backend`
    does.
    """
    check_index(q, k, w, start)
    if topk < 1:
        raise ValueError(f"topk must be at least 1, got {topk}")
    match choose_backend(backend, q, k, w, unless=beyond_index_kernels(q))[0]:
        case "torch":
            return select_slabs(q, k, w, topk, offset, start)
        case "triton":
            return _select_by_kernels(q, k, w, topk, offset, start)


def select_decode(
    q: Float[Tensor, "b 1 j i"],
    k: Float[Tensor, "b s i"],
    w: Float[Tensor, "b 1 j"],
    topk: int,
    lengths: Int[Tensor, " b"],
    start: Int[Tensor, " b"] | None = None,
    backend: str = "auto",
) -> Int[Tensor, "b 1 k"]:
    """`select_topk` of one query a row, whose valid keys start <= s < lengths[b] only the device knows.

    k: the room of a cache; beyond lengths[b] it may hold anything. With kernels, fit for a CUDA graph. Raises alike.
    """
    check_index(q, k, w, start)
    if topk < 1 or lengths.dtype != torch.int32:
        raise ValueError(f"expected topk >= 1 and int32 lengths, got {topk} and {lengths.dtype}")
    match choose_backend(backend, q, k, w, unless=beyond_index_kernels(q))[0]:
        case "torch":
            return torch_selection.select_within(q, k, w, topk, lengths, start)
        case "triton":
            from minikeye.kernels.decode.decode_select import decode_select

            return decode_select(q, k, w, topk, lengths, start)


def _select_by_kernels(
    q: Tensor, k: Tensor, w: Tensor, topk: int, offset: int, start: Tensor | None
) -> Int[Tensor, "b t k"]:
    from minikeye.kernels.decode.decode_select import decode_select
    from minikeye.kernels.selection.select_fast import MOST_TOPK, select_topk_fast
    from minikeye.kernels.selection.select_topk import select_topk as select_topk_radix

    if topk > MOST_TOPK:
        return select_topk_radix(q, k, w, topk, offset, start)
    if q.shape[1] > 1:
        return select_topk_fast(q, k, w, topk, offset, start)
    lengths = torch.full(k.shape[:1], min(offset + 1, k.shape[1]), dtype=torch.int32, device=q.device)
    return decode_select(q, k, w, topk, lengths, None if start is None else start.reshape(-1))


def sparse_attention(
    q: Float[Tensor, "b t h e"],
    k: Float[Tensor, "b s g e"],
    v: Float[Tensor, "b s g e"],
    indices: Int[Tensor, "b t k"],
    scale: float | None = None,
    backend: str = "auto",
) -> tuple[Float[Tensor, "b t h e"], Float[Tensor, "b t h"]]:
    """u[t, g] = Attn(h[t, g], {c[s, g] : s in indices[t]}): all heads of a token share one set of keys.

    Only the selected rows of k and v are read. -1 marks no key; a position listed twice counts twice; a query without
    keys gives zeros. Nothing else is masked: causality lies in the indices. scale: default (head width)^-1/2. Returns
    the output in q's dtype and the log-sum-exp of each query's logits (float32, float64 for float64 q; -inf without
    keys; no gradient). Gradients flow to q, k, v, once; by kernels they are the same bits at every repeat. Raises
    ValueError for shapes that do not fit; on torch, for indices out of range (kernels do not look); RuntimeError as
    `choose_backend` does.
    """
    t, e = q.shape[1], q.shape[3]
    check_attention(q, k, v)
    check_indices(indices, q)
    match choose_backend(backend, q, k, v, unless=beyond_kernels(q, k))[0]:
        case "torch":
            check_range(indices, k.shape[1])
            return GatheredAttention.apply(q, k, v, indices, e**-0.5 if scale is None else scale)
        case "triton":
            from minikeye.kernels.attention.sparse_attention import sparse_attention as attend
            from minikeye.kernels.decode.decode_attention import decode_attention

            return (attend if t > 1 or learning(q, k, v) else decode_attention)(q, k, v, indices, scale)


def warmup_loss(
    index_q: Float[Tensor, "b t j i"],
    index_k: Float[Tensor, "b s i"],
    index_w: Float[Tensor, "b t j"],
    q: Float[Tensor, "b t h e"],
    k: Float[Tensor, "b s g e"],
    positions: Int[Tensor, " t"],
    start: Int[Tensor, "b *t"] | None = None,
    backend: str = "auto",
) -> Float[Tensor, "b t"]:
    """L_warmup of each query row, nats: sum_g KL(p_g || softmax(I)) over its valid keys.

    p_g: the dense attention of KV group g, mean over its heads. positions: where the rows stand, in any order; a row
    sees the keys start <= s <= its position. start: one first key a batch row [b], or one a query [b t]. Gradients
    reach index_q, index_k and index_w alone. A row that sees no key has loss 0. Raises ValueError where shapes do not
    fit, RuntimeError as `choose_backend` does.
    """
    check_loss(index_q, index_k, index_w, q, k, start)
    if positions.shape != q.shape[1:2] or positions.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"positions must be int [{q.shape[1]}], got {positions.dtype} {list(positions.shape)}")
    q, k, s = q.detach(), k.detach(), k.shape[1]
    match choose_backend(backend, index_q, q, k, unless=beyond_kernels(q, k, index_q))[0]:
        case "torch":
            valid = valid_keys(1, s, s, start, q.device) & (torch.arange(s, device=q.device) <= positions[:, None])
            scores = torch_selection.index_scores(index_q, index_k, index_w, offset=s).masked_fill(~valid, -torch.inf)
            return kl_loss(scores, dense_targets(q, k, valid))
        case "triton":
            from minikeye.kernels.losses.warmup_loss import warmup_loss as loss

            return loss(index_q, index_k, index_w, q, k, positions.int(), start)


def selected_loss(
    index_q: Float[Tensor, "b t j i"],
    index_k: Float[Tensor, "b s i"],
    index_w: Float[Tensor, "b t j"],
    q: Float[Tensor, "b t h e"],
    k: Float[Tensor, "b s g e"],
    indices: Int[Tensor, "b t k"],
    backend: str = "auto",
) -> Float[Tensor, "b t"]:
    """L_sparse of each query row, nats: the same over its selected keys alone, p_g the sparse attention of group g.

    -1 marks no key. Gradients, empty rows, errors as in `warmup_loss`; on torch, ValueError for indices out of range.
    """
    check_loss(index_q, index_k, index_w, q, k, None)
    check_indices(indices, q)
    q, k = q.detach(), k.detach()
    match choose_backend(backend, index_q, q, k, unless=beyond_kernels(q, k, index_q))[0]:
        case "torch":
            check_range(indices, k.shape[1])
            targets = selected_targets(q, gather_rows(k, indices), indices)
            return kl_loss(selected_scores(index_q, gather_index_rows(index_k, indices), index_w, indices), targets)
        case "triton":
            from minikeye.kernels.losses.selected_loss import selected_loss as loss

            return loss(index_q, index_k, index_w, q, k, indices)
