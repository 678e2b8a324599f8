"""What the functions of `ops` are given, held against each other: one ValueError that says what was expected.

Axes: b batch, t query position, s key position, j indexer head, i indexer width, k selected key, h query head,
g KV head, e head width, n token, c chosen expert of a token, r row of an expert, d width.
"""

import torch
from torch import Tensor

from minikeye.ops.torch_selection import readable


def check_index(q: Tensor, k: Tensor, w: Tensor, start: Tensor | None) -> None:
    b, t, j, i = q.shape
    if k.shape[0] != b or k.shape[-1] != i or tuple(w.shape) != (b, t, j):
        raise ValueError(
            f"index queries {list(q.shape)} [b t j i] need keys [{b}, s, {i}] and gates [{b}, {t}, {j}]; "
            f"got {list(k.shape)} and {list(w.shape)}"
        )
    if start is not None and tuple(start.shape) not in ((b,), (b, t)):
        raise ValueError(f"start must be [{b}] or [{b}, {t}], got {list(start.shape)}")


def check_attention(q: Tensor, k: Tensor, v: Tensor) -> None:
    b, _, h, e = q.shape
    fits = k.shape == v.shape and k.shape[0] == b and k.shape[-1] == e and {k.dtype, v.dtype} == {q.dtype}
    if not fits or not k.shape[2] or h % k.shape[2]:
        raise ValueError(
            f"queries {list(q.shape)} [b t h e] need keys and values of one shape [{b}, s, g, {e}], g dividing {h}, "
            f"and of their dtype {q.dtype}; got {list(k.shape)} and {list(v.shape)}, {k.dtype} and {v.dtype}"
        )


def check_loss(index_q: Tensor, index_k: Tensor, index_w: Tensor, q: Tensor, k: Tensor, start: Tensor | None) -> None:
    check_index(index_q, index_k, index_w, start)
    check_attention(q, k, k)
    if q.shape[:2] != index_q.shape[:2] or k.shape[1] != index_k.shape[1]:
        raise ValueError(
            f"queries and keys, {list(q.shape)} and {list(k.shape)}, must be as many as index queries and keys, "
            f"{list(index_q.shape)} and {list(index_k.shape)}"
        )


def check_indices(indices: Tensor, q: Tensor) -> None:
    if indices.shape[:2] != q.shape[:2] or indices.dtype not in (torch.int32, torch.int64):
        b, t = q.shape[:2]
        raise ValueError(f"indices must be int [{b}, {t}, k], got {indices.dtype} {list(indices.shape)}")


def check_range(indices: Tensor, s: int) -> None:
    low, high = (int(n) for n in indices.aminmax()) if indices.numel() and readable(indices) else (-1, -1)
    if low < -1 or high >= s:
        raise ValueError(f"indices must lie in -1..{s - 1}, got {low}..{high}")


def check_sum(y: Tensor, place: Tensor, weights: Tensor, residual: Tensor | None) -> None:
    n, d = len(place), y.shape[1]
    fits = weights.shape == place.shape and (residual is None or tuple(residual.shape) == (n, d))
    if not fits or place.dtype not in (torch.int32, torch.int64):
        got = "none" if residual is None else list(residual.shape)
        raise ValueError(
            f"rows {list(y.shape)} need int places and weights of one shape [n c] and a residual [n, {d}] or none; "
            f"got {place.dtype} {list(place.shape)}, {list(weights.shape)} and {got}"
        )


def check_heads(
    projected: tuple, norms: tuple, rotation: tuple, index_rotation: tuple, slots: tuple[Tensor, Tensor, Tensor]
) -> None:
    (b, t), e, i = projected[0].shape[:2], len(norms[0]), len(norms[2])
    kv, index = projected[1].shape[-1], projected[3].shape[-1]
    wanted = {
        "projected": [(b, t, projected[0].shape[-1] // e * e), (b, t, kv), (b, t, kv), (b, t, index), (b, t, i)],
        "norms": [(e,), (e,), (i,), (i,), (i,)],
        "rotation": [(b, t, e), (b, t, e)],
        "index_rotation": [(b, t, i), (b, t, i)],
        "slots": [(b, t, kv // e, e), (b, t, kv // e, e), (b, t, i)],
    }
    found = {"projected": projected, "norms": norms[:5], "rotation": rotation, "index_rotation": index_rotation}
    for name, tensors in (found | {"slots": slots}).items():
        shapes = [tuple(x.shape) for x in tensors]
        if shapes != wanted[name]:
            raise ValueError(f"heads of {e} and {i} channels need {name} of shapes {wanted[name]}, got {shapes}")
    if kv % e or index % (i + 1) or e % 2 or i % 2:
        raise ValueError(
            f"keys must be whole heads of {e} channels, index queries whole heads of {i} and a gate, both even; "
            f"got {kv} and {index} channels"
        )
