"""The door to the fused decode step: whether its kernels can run a model, a layer of it, and the head.

Axes: b batch, d width, s key position, g KV head, e head width, i indexer width, v vocabulary. The specification is the
model's own pass of one token a row (`minikeye.inference.static_step`), which also answers wherever this cannot.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from minikeye.config import KeyeConfig
from minikeye.kernels.decode.step.shapes import LayerWeights, Rows, StepSizes
from minikeye.ops.backend import choose_backend

MOST_BATCH = 16  # rows of one product of tensor cores
MOST_TOPK = 4096  # what a selection of one launch holds

Store = tuple[Float[Tensor, "b s g e"], Float[Tensor, "b s g e"], Float[Tensor, "b s i"]]


def step_sizes(config: KeyeConfig) -> StepSizes:
    """The numbers of a model that the kernels need."""
    text, index = config.text, config.indexer
    return StepSizes(
        text.heads, text.kv_heads, text.head_width, index.heads, index.width, index.topk, text.experts_per_token,
        text.norm_eps, index.norm_eps,
    )  # fmt: skip


def beyond_step(config: KeyeConfig, batch: int) -> str:
    """What about a model or a batch the fused step cannot do; "" where it can."""
    text, index = config.text, config.indexer
    if not 1 <= batch <= MOST_BATCH:
        return f"the fused step takes 1 to {MOST_BATCH} rows, got {batch}"
    if not text.qk_norm or text.experts == 1:
        return "the fused step normalises q and k and routes tokens, and this model does not"
    if text.head_width not in (16, 32, 64, 128) or text.group_heads > 16:
        return "heads must be 16, 32, 64 or 128 wide, at most 16 a group"
    if index.width not in (16, 32, 64, 128) or index.heads * index.width > 4096 or index.topk > MOST_TOPK:
        return f"the indexer must be 16 to 128 wide, a power of two, of 4096 channels in all, topk up to {MOST_TOPK}"
    if text.width % 16 or text.expert_width % 16 or text.width > 8192 or text.experts > 128:
        return "widths of the model and of an expert must be multiples of 16, up to 8192, and experts at most 128"
    return ""


def choose_step(
    config: KeyeConfig, batch: int, dtypes: set[torch.dtype], device: torch.device, backend: str = "auto"
) -> tuple[str, str]:
    """Which decode step answers, "fused" or "unfused", and why: packages, device, dtypes and shapes decide.

    dtypes: of the decoder's weights. Backend "triton" asks for kernels, of which the unfused step has some too. Raises
    as `choose_backend` does.
    """
    chosen, why = choose_backend(backend, device)
    if chosen != "triton":
        return "unfused", why
    if torch.is_autocast_enabled(device.type):
        return "unfused", "autocast chooses dtypes"
    if dtypes != {torch.bfloat16}:
        return "unfused", f"the fused step takes weights in bfloat16, got {', '.join(sorted(map(str, dtypes)))}"
    beyond = beyond_step(config, batch)
    return ("unfused", beyond) if beyond else ("fused", why)


def decode_layer(
    x: Float[Tensor, "b d"],
    parts: Float[Tensor, "p b d"] | None,
    w: LayerWeights,
    store: Store,
    rows: Rows,
    sizes: StepSizes,
    attention: str,
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "q b d"]]:
    """One decoder layer for one token a row: the residual stream, and what is still to be added to it, in parts.

    parts: float32, what the layer before left to be added to x; None before the first. w: as
    `inference.fused_step.layer_weights` makes them. rows: cos and sin of the attention heads' angles, then of the
    indexer's; lengths count the new token. store: keys, values and index keys of the layer with their unused room; the
    token is written at lengths - 1.
    attention: "sparse" or "dense". Nothing that depends on data is read on the CPU: fit for a CUDA graph. No gradients.
    Raises ValueError for tensors that do not fit.
    """
    _check_stream(x, parts)
    _check(x, w, store, rows, sizes)
    if attention not in ("sparse", "dense"):
        raise ValueError(f"the fused step attends sparse or dense, got {attention!r}: use the model's own pass")
    from minikeye.kernels.decode.step.layer import decode_layer as layer

    return layer(x, parts, w, store, rows, sizes, attention == "dense")


def decode_head(
    x: Float[Tensor, "b d"],
    parts: Float[Tensor, "p b d"] | None,
    norm: Float[Tensor, " d"],
    head: Float[Tensor, "v d"],
    eps: float,
) -> Float[Tensor, "b v"]:
    """Logits in float32: the last norm of x and its parts, and the product with the head.

    Raises ValueError for tensors that do not fit, or are not contiguous and of one dtype and device.
    """
    _check_stream(x, parts)
    d = x.shape[1]
    if norm.shape != (d,) or head.ndim != 2 or head.shape[1] != d:
        raise ValueError(f"expected norm [{d}] and head [v, {d}], got {list(norm.shape)} and {list(head.shape)}")
    if not all(z.is_contiguous() and z.dtype == x.dtype and z.device == x.device for z in (norm, head)):
        raise ValueError(f"norm and head must be contiguous, {x.dtype} on {x.device}, as x is")
    from minikeye.kernels.decode.step.layer import decode_head as to_logits

    return to_logits(x, parts, norm, head, eps)


def _check_stream(x: Tensor, parts: Tensor | None) -> None:
    """The stream of at most 16 rows, and what is to be added to it."""
    if x.ndim != 2 or not 1 <= len(x) <= MOST_BATCH or not x.is_contiguous():
        raise ValueError(f"expected a contiguous x [b, d] of 1 to {MOST_BATCH} rows, got {list(x.shape)}")
    if parts is None:
        return
    if parts.shape[1:] != x.shape or parts.dtype != torch.float32 or not parts.is_contiguous():
        raise ValueError(
            f"expected contiguous float32 parts [p, {x.shape[0]}, {x.shape[1]}], got {parts.dtype} {list(parts.shape)}"
        )


def _check(x: Tensor, w: LayerWeights, store: Store, rows: Rows, sizes: StepSizes) -> None:
    (b, d), g, e, i = x.shape, sizes.kv_heads, sizes.head_width, sizes.index_width
    wanted = [(b, g, e), (b, g, e), (b, i)]
    if [(*z.shape[:1], *z.shape[2:]) for z in store] != wanted or not all(z[:1].is_contiguous() for z in store):
        raise ValueError(
            f"expected keys, values and index keys of a cache, contiguous [{b}, s, {g}, {e}] twice and [{b}, s, {i}]; "
            f"got {[list(z.shape) for z in store]}"
        )
    if w.projections.shape != (sizes.columns, d) or w.o_proj.shape != (d, sizes.heads * e):
        raise ValueError(
            f"expected projections [{sizes.columns}, {d}] and o_proj [{d}, {sizes.heads * e}], "
            f"got {list(w.projections.shape)} and {list(w.o_proj.shape)}"
        )
    if not all(z.is_contiguous() and z.dtype == x.dtype and z.device == x.device for z in (x, *w)):
        raise ValueError(f"x and weights must be contiguous, of one dtype and device: {x.dtype} on {x.device}")
    if {(z.dtype, z.device) for z in store} != {(x.dtype, x.device)}:
        raise ValueError(f"the cache must be {x.dtype} on {x.device}, as x is; got {[z.dtype for z in store]}")
    turns = b, e + i
    if rows.cos.shape != turns or rows.sin.shape != turns or rows.lengths.shape != (b,):
        raise ValueError(
            f"expected cos and sin {list(turns)} and lengths [{b}], "
            f"got {list(rows.cos.shape)}, {list(rows.sin.shape)}, {list(rows.lengths.shape)}"
        )
    turned = rows.cos.dtype == rows.sin.dtype == torch.float32 and rows.lengths.dtype == torch.int32
    if not turned or not all(z.is_contiguous() for z in rows[:3]):
        raise ValueError("cos and sin must be float32, lengths int32, all contiguous")
    x_count, m2 = len(w.router), w.gate_up.shape[-1]
    wanted = {
        "norms": ([(d,), (d,), (e,), (e,), (i,), (i,), (i,)], [
            w.input_norm, w.post_norm, w.q_norm, w.k_norm, w.index_q_norm, w.index_k_norm, w.index_k_bias
        ]),
        "experts": ([(x_count, d), (x_count, d, m2), (x_count, m2 // 2, d)], [w.router, w.gate_up, w.down]),
    }  # fmt: skip
    for what, (shapes, given) in wanted.items():
        if shapes != (got := [tuple(z.shape) for z in given]):
            raise ValueError(f"expected {what} of shapes {shapes}, got {got}")
