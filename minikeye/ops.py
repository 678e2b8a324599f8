"""The only door to kernels: index scores, exact top-k selection, sparse attention, the losses of the indexer.

Axes: b batch, t query position, s key position, j indexer head, i indexer width, k selected key, h query head,
g KV head, e head width. Report, section 2.3. Inputs are checked here, then one backend answers: "torch" (selection.py,
gathered.py, indexer.py: everywhere, the specification) or "triton" (the package `minikeye.kernels`: CUDA).
"""

import importlib.util
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minikeye import selection
from minikeye.gathered import GatheredAttention, count_rows, counting, gather_index_rows, gather_rows
from minikeye.indexer import dense_targets, kl_loss, selected_scores, selected_targets
from minikeye.selection import readable, select_slabs, slab_rows, topk_positions, valid_keys, widen

__all__ = [
    "choose_backend", "count_rows", "gather_rows", "index_scores", "select_decode", "select_topk", "selected_loss",
    "slab_rows", "sparse_attention", "topk_positions", "valid_keys", "warmup_loss", "widen",
]  # fmt: skip
BACKENDS = ("auto", "torch", "triton")
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def choose_backend(backend: str, *tensors: Tensor | torch.device | str, unless: str = "") -> tuple[str, str]:
    """The backend that will run, and why. "auto" takes the Triton kernels where they can run, else torch.

    tensors: the inputs, or just a device; at least one. unless: what the caller knows against the kernels, if anything.
    Nothing is tried and nothing fails over: packages, devices, dtypes and shapes alone decide. Raises ValueError for an
    unknown backend, RuntimeError where "triton" is asked for and cannot run: no other backend answers a request.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    if not tensors:
        raise ValueError("expected the inputs or a device, got none: there is nothing to choose for")
    if backend == "torch":
        return "torch", "asked for"
    obstacle = _triton_obstacle(*tensors) or unless
    if obstacle and backend == "triton":
        raise RuntimeError(f"backend 'triton' cannot run: {obstacle}. Use backend='torch', or 'auto' to let it choose.")
    return ("torch", obstacle) if obstacle else ("triton", "Triton kernels present, CUDA device")


def _triton_obstacle(*tensors: Tensor | torch.device | str) -> str:
    for x in tensors:
        device = x.device if isinstance(x, Tensor) else torch.device(x)
        if device.type != "cuda":
            return f"the tensors are on {device.type}, the kernels need a CUDA device"
        if not torch.cuda.is_available():
            return "torch finds no CUDA device"
        if isinstance(x, Tensor) and x.is_floating_point() and x.dtype not in KERNEL_DTYPES:
            return f"the kernels take float32, float16 and bfloat16, got {x.dtype}"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return f"the kernels need compute capability 8.0, {torch.cuda.get_device_name(device)} has less"
    if not _triton_installed():
        return "the package triton is not installed"
    return "rows are being counted (`count_rows`), which only torch can do" if counting() else ""


@cache
def _triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


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
    _check_index(q, k, w, start)
    return selection.index_scores(q, k, w, offset, start)


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
    _check_index(q, k, w, start)
    if topk < 1:
        raise ValueError(f"topk must be at least 1, got {topk}")
    match choose_backend(backend, q, k, w, unless=_beyond_index_kernels(q))[0]:
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
    _check_index(q, k, w, start)
    if topk < 1 or lengths.dtype != torch.int32:
        raise ValueError(f"expected topk >= 1 and int32 lengths, got {topk} and {lengths.dtype}")
    match choose_backend(backend, q, k, w, unless=_beyond_index_kernels(q))[0]:
        case "torch":
            return selection.select_within(q, k, w, topk, lengths, start)
        case "triton":
            from minikeye.kernels.decode_select import decode_select

            return decode_select(q, k, w, topk, lengths, start)


def _select_by_kernels(
    q: Tensor, k: Tensor, w: Tensor, topk: int, offset: int, start: Tensor | None
) -> Int[Tensor, "b t k"]:
    from minikeye.kernels.decode_select import decode_select
    from minikeye.kernels.select_fast import MOST_TOPK, select_topk_fast
    from minikeye.kernels.select_topk import select_topk as select_topk_radix

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
    _check_attention(q, k, v)
    _check_indices(indices, q)
    match choose_backend(backend, q, k, v, unless=_beyond_kernels(q, k))[0]:
        case "torch":
            _check_range(indices, k.shape[1])
            return GatheredAttention.apply(q, k, v, indices, e**-0.5 if scale is None else scale)
        case "triton":
            from minikeye.kernels.decode_attention import decode_attention
            from minikeye.kernels.sparse_attention import sparse_attention as attend

            learning = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
            return (attend if t > 1 or learning else decode_attention)(q, k, v, indices, scale)


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
    _check_loss(index_q, index_k, index_w, q, k, start)
    if positions.shape != q.shape[1:2] or positions.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"positions must be int [{q.shape[1]}], got {positions.dtype} {list(positions.shape)}")
    q, k, s = q.detach(), k.detach(), k.shape[1]
    match choose_backend(backend, index_q, q, k, unless=_beyond_kernels(q, k, index_q))[0]:
        case "torch":
            valid = valid_keys(1, s, s, start, q.device) & (torch.arange(s, device=q.device) <= positions[:, None])
            scores = selection.index_scores(index_q, index_k, index_w, offset=s).masked_fill(~valid, -torch.inf)
            return kl_loss(scores, dense_targets(q, k, valid))
        case "triton":
            from minikeye.kernels.warmup_loss import warmup_loss as loss

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
    _check_loss(index_q, index_k, index_w, q, k, None)
    _check_indices(indices, q)
    q, k = q.detach(), k.detach()
    match choose_backend(backend, index_q, q, k, unless=_beyond_kernels(q, k, index_q))[0]:
        case "torch":
            _check_range(indices, k.shape[1])
            targets = selected_targets(q, gather_rows(k, indices), indices)
            return kl_loss(selected_scores(index_q, gather_index_rows(index_k, indices), index_w, indices), targets)
        case "triton":
            from minikeye.kernels.selected_loss import selected_loss as loss

            return loss(index_q, index_k, index_w, q, k, indices)


def _beyond_kernels(q: Tensor, k: Tensor, index_q: Tensor | None = None) -> str:
    """What about these shapes the attention and loss kernels cannot do."""
    if q.shape[-1] not in (16, 32, 64, 128) or q.shape[2] // k.shape[2] > 16:
        return "heads must be 16, 32, 64 or 128 wide, at most 16 a group"
    return "" if index_q is None else _beyond_index_kernels(index_q, most=8192)


def _beyond_index_kernels(index_q: Tensor, most: int = 2**16) -> str:
    """What about the shape of index queries the kernels cannot do; most: heads times width, as powers of two."""
    j, i = index_q.shape[2:]
    if j > 256 or i > (128 if index_q.dtype == torch.float32 else 256):
        return "the kernels take up to 256 index heads, 256 wide (128 in float32)"
    entries = 2 ** (j - 1).bit_length() * max(16, 2 ** (i - 1).bit_length())
    return "" if entries <= most else f"index heads times their width, as powers of two, must not exceed {most:,}"


def _check_attention(q: Tensor, k: Tensor, v: Tensor) -> None:
    b, _, h, e = q.shape
    fits = k.shape == v.shape and k.shape[0] == b and k.shape[-1] == e and {k.dtype, v.dtype} == {q.dtype}
    if not fits or not k.shape[2] or h % k.shape[2]:
        raise ValueError(
            f"queries {list(q.shape)} [b t h e] need keys and values of one shape [{b}, s, g, {e}], g dividing {h}, "
            f"and of their dtype {q.dtype}; got {list(k.shape)} and {list(v.shape)}, {k.dtype} and {v.dtype}"
        )


def _check_loss(index_q: Tensor, index_k: Tensor, index_w: Tensor, q: Tensor, k: Tensor, start: Tensor | None) -> None:
    _check_index(index_q, index_k, index_w, start)
    _check_attention(q, k, k)
    if q.shape[:2] != index_q.shape[:2] or k.shape[1] != index_k.shape[1]:
        raise ValueError(
            f"queries and keys, {list(q.shape)} and {list(k.shape)}, must be as many as index queries and keys, "
            f"{list(index_q.shape)} and {list(index_k.shape)}"
        )


def _check_indices(indices: Tensor, q: Tensor) -> None:
    if indices.shape[:2] != q.shape[:2] or indices.dtype not in (torch.int32, torch.int64):
        b, t = q.shape[:2]
        raise ValueError(f"indices must be int [{b}, {t}, k], got {indices.dtype} {list(indices.shape)}")


def _check_range(indices: Tensor, s: int) -> None:
    low, high = (int(n) for n in indices.aminmax()) if indices.numel() and readable(indices) else (-1, -1)
    if low < -1 or high >= s:
        raise ValueError(f"indices must lie in -1..{s - 1}, got {low}..{high}")


def _check_index(q: Tensor, k: Tensor, w: Tensor, start: Tensor | None) -> None:
    b, t, j, i = q.shape
    if k.shape[0] != b or k.shape[-1] != i or tuple(w.shape) != (b, t, j):
        raise ValueError(
            f"index queries {list(q.shape)} [b t j i] need keys [{b}, s, {i}] and gates [{b}, {t}, {j}]; "
            f"got {list(k.shape)} and {list(w.shape)}"
        )
    if start is not None and tuple(start.shape) not in ((b,), (b, t)):
        raise ValueError(f"start must be [{b}] or [{b}, {t}], got {list(start.shape)}")
