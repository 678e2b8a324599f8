"""Grouped-query attention, dense or over the indexer's selection: the same weights, switched per call.

Three modes. "dense" reads every key. "sparse" gathers the selected keys and reads nothing else. "masked" computes what
"sparse" computes by a dense kernel under a mask: it reads everything and saves nothing, but in training on sequences of
a few thousand tokens one big matrix product beats gathering a set per query. It is never chosen for you.

Axes: b batch, t query position, s key position, d width, h query head, g KV head, e head width, j indexer head,
i indexer width, k selected key.
Report, section 2.3; module names are those of the released checkpoint.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.attention.bias import causal_lower_right

from minikeye import ops
from minikeye.cache import LayerCache
from minikeye.config import KeyeConfig
from minikeye.indexer import Indexer
from minikeye.rope import mrope, rotate

Mode = Literal["sparse", "dense", "masked"]
MODES = ("sparse", "dense", "masked")


@dataclass
class AttentionTrace:
    """What one attention layer worked with; handed to an observer. Keys are those of all tokens so far."""

    q: Float[Tensor, "b t h e"]
    k: Float[Tensor, "b s g e"]
    index_q: Float[Tensor, "b t j i"]
    index_k: Float[Tensor, "b s i"]
    index_w: Float[Tensor, "b t j"]
    indices: Int[Tensor, "b t k"] | None  # None in dense mode
    offset: int  # absolute position of the first query
    start: Int[Tensor, " b"] | None  # first real token of each row
    later: int = 0  # queries of the same pass that are still to come: a prompt may be read in chunks
    lengths: Int[Tensor, " b"] | None = None  # see Step

    def indexer_choice(self, topk: int, first: int = 0, backend: str = "auto") -> Int[Tensor, "b t k"]:
        """The indexer's topk keys (all there are, where they are fewer) for the queries from number `first` on."""
        topk = min(topk, self.k.shape[1])  # no more columns than there are keys
        index = self.index_q[:, first:], self.index_k, self.index_w[:, first:]
        if self.lengths is not None:
            return ops.select_decode(*index, topk, self.lengths, self.start, backend)
        return ops.select_topk(*index, topk, self.offset + first, self.start, backend)


@runtime_checkable
class Observer(Protocol):
    """Sees every layer as it runs. Training reads its losses here, the explorer its selections."""

    def attention(self, layer: int, trace: AttentionTrace) -> None: ...

    def routing(self, layer: int, probabilities: Float[Tensor, "b t x"], chosen: Int[Tensor, "b t c"]) -> None: ...


@dataclass(frozen=True)
class Step:
    """All that the layers of one forward pass share."""

    rotation: tuple[Tensor, Tensor]  # cos, sin [b t e] of the attention heads
    index_rotation: tuple[Tensor, Tensor]  # cos, sin [b t i] of the indexer
    offset: int  # absolute position of the first query
    start: Int[Tensor, " b"] | None  # first real token of each row; None: no padding
    mode: Mode
    backend: str
    observer: Observer | None
    later: int = 0  # queries of the same pass that are still to come
    lengths: Int[Tensor, " b"] | None = None  # int32: tokens of each row, this one counted; None: as offset says

    @classmethod
    def of(cls, config: KeyeConfig, positions: Int[Tensor, "3 b t"], **rest) -> "Step":
        """Work out the two rotations from the 3D positions. The indexer turns by the same positions and theta."""
        text = config.text
        main = mrope(positions, text.head_width, text.rope_theta, text.mrope_section)
        index = mrope(positions, config.indexer.width, text.rope_theta, config.indexer_section)
        return cls(rotation=main, index_rotation=index, **rest)

    def chunks(self, size: int) -> Iterator[tuple[slice, "Step"]]:
        """The same pass in pieces of at most `size` queries, in order."""
        t = self.rotation[0].shape[1]
        for first in range(0, t, size):
            part = slice(first, min(first + size, t))
            main, index = ((cos[:, part], sin[:, part]) for cos, sin in (self.rotation, self.index_rotation))
            yield (
                part,
                replace(self, rotation=main, index_rotation=index, offset=self.offset + first, later=t - part.stop),
            )

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "Step":
        """The same on another device, for a model whose layers lie on several."""
        move = lambda z: z if z is None else z.to(device, non_blocking=non_blocking)  # noqa: E731
        main, index = (tuple(map(move, pair)) for pair in (self.rotation, self.index_rotation))
        start, lengths = move(self.start), move(self.lengths)
        return replace(self, rotation=main, index_rotation=index, start=start, lengths=lengths)


class Attention(nn.Module):
    """Per-head RMSNorm on q and k, M-RoPE, and a lightning indexer beside the projections."""

    def __init__(self, config: KeyeConfig):
        super().__init__()
        text = config.text
        self.head_width, self.topk = text.head_width, config.indexer.topk
        self.q_proj = nn.Linear(text.width, text.heads * text.head_width, bias=False)
        self.k_proj = nn.Linear(text.width, text.kv_heads * text.head_width, bias=False)
        self.v_proj = nn.Linear(text.width, text.kv_heads * text.head_width, bias=False)
        self.o_proj = nn.Linear(text.heads * text.head_width, text.width, bias=False)
        self.q_norm = nn.RMSNorm(text.head_width, eps=text.norm_eps)
        self.k_norm = nn.RMSNorm(text.head_width, eps=text.norm_eps)
        self.sa_indexer = Indexer(config)

    def forward(
        self, x: Float[Tensor, "b t d"], step: Step, cache: LayerCache | None = None
    ) -> tuple[Float[Tensor, "b t d"], AttentionTrace]:
        q, k, v = self.project(x, step)
        index_q, index_k, index_w = self.sa_indexer(x, *step.index_rotation)
        if cache is not None and step.lengths is not None:
            k, v, index_k = cache.write(k, v, index_k, step.lengths - 1)
        elif cache is not None:
            k, v, index_k = cache.append(k, v, index_k)
        index = index_q, index_k, index_w
        trace = AttentionTrace(q, k, *index, None, step.offset, step.start, step.later, step.lengths)
        if step.mode != "dense":
            trace.indices = self.select(trace, step.backend)
        match step.mode:
            case "dense":
                out = dense_attention(q, k, v, step.offset, step.start)
            case "sparse":
                out, _ = ops.sparse_attention(q, k, v, trace.indices, backend=step.backend)
            case "masked":
                out = masked_attention(q, k, v, trace.indices)
        return self.o_proj(rearrange(out, "b t h e -> b t (h e)")), trace

    def select(self, trace: AttentionTrace, backend: str) -> Int[Tensor, "b t k"]:
        """The keys that each query reads: the indexer's top-k. A study may put another rule in this place."""
        return trace.indexer_choice(self.topk, backend=backend)

    def project(self, x: Float[Tensor, "b t d"], step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """q [b t h e], k and v [b t g e]; q and k normalised per head and rotated."""
        q, k, v = (
            rearrange(f(x), "b t (h e) -> b t h e", e=self.head_width) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = self.q_norm(q.to(self.q_norm.weight.dtype)), self.k_norm(k.to(self.k_norm.weight.dtype))
        return rotate(q, *step.rotation).to(v.dtype), rotate(k, *step.rotation).to(v.dtype), v


def dense_attention(
    q: Float[Tensor, "b t h e"],
    k: Float[Tensor, "b s g e"],
    v: Float[Tensor, "b s g e"],
    offset: int = 0,
    start: Int[Tensor, " b"] | None = None,
) -> Float[Tensor, "b t h e"]:
    """Causal grouped-query attention over every valid key, by torch's fused kernel. Padding rows give zeros."""
    t, s = q.shape[1], k.shape[1]
    q, k, v = (rearrange(z, "b t h e -> b h t e") for z in (q, k, v))
    causal = offset == 0 and t == s and start is None
    last = t == 1 and s == offset + 1 and start is None  # one query that sees every key
    if causal or last:
        mask = None
    elif q.is_cuda and start is None and s == offset + t:
        mask = causal_lower_right(t, s)  # a chunk of a prompt: the fused kernels know this mask without storing it
    else:
        mask = ops.valid_keys(t, s, offset, start, q.device)[:, None]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, enable_gqa=True)
    if start is not None:
        out = out.masked_fill(~mask.any(dim=-1, keepdim=True), 0.0)
    return rearrange(out, "b h t e -> b t h e")


def masked_attention(
    q: Float[Tensor, "b t h e"],
    k: Float[Tensor, "b s g e"],
    v: Float[Tensor, "b s g e"],
    indices: Int[Tensor, "b t k"],
) -> Float[Tensor, "b t h e"]:
    """The function of `ops.sparse_attention` without its point: every key is read, those outside the set are masked.

    A position listed twice counts once, unlike there. Rows without keys give zeros.
    """
    b, t, s = *q.shape[:2], k.shape[1]
    columns = torch.where(indices < 0, s, indices).long()  # padding marks a spare column that is cut off
    # Eight spare columns, not one: the fused kernels want rows of the mask aligned.
    mask = torch.zeros(b, t, s + 8, dtype=torch.bool, device=q.device).scatter_(-1, columns, True)[:, None, :, :s]
    heads = q.shape[2] // k.shape[2]
    k, v = (torch.repeat_interleave(z, heads, dim=2) for z in (k, v))  # the masked kernels know no groups
    q, k, v = (rearrange(z, "b t h e -> b h t e") for z in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return rearrange(out.masked_fill(~mask.any(dim=-1, keepdim=True), 0.0), "b h t e -> b t h e")
