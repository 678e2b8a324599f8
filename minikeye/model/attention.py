"""Grouped-query attention, dense or over the indexer's selection: the same weights, switched per call.

Three modes. "dense" reads every key. "sparse" gathers the selected keys and reads nothing else. "masked" computes what
"sparse" computes by a dense kernel under a mask: it reads everything and saves nothing, but in training without kernels
one big matrix product beats gathering a set per query (`ops.learning_mode`). The model never chooses it for you.

Axes: b batch, t query position, s key position, d width, h query head, g KV head, e head width, j indexer head,
i indexer width, k selected key.
Report, section 2.3; module names are those of the released checkpoint.
"""

from collections.abc import Callable

import torch
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor, nn

from minikeye import ops
from minikeye.altered import altered
from minikeye.config import KeyeConfig
from minikeye.model.cache import LayerCache
from minikeye.model.indexer import Indexer
from minikeye.model.rope import rotate
from minikeye.model.step import AttentionTrace, Step, index_choice

Rule = Callable[[AttentionTrace, int], Tensor]  # what a layer works with, k -> positions int32 [b t k], -1 for none


class Attention(nn.Module):
    """Per-head RMSNorm on q and k (where the config has it), M-RoPE, and a lightning indexer beside the projections."""

    def __init__(self, config: KeyeConfig):
        super().__init__()
        text = config.text
        self.head_width, self.topk = text.head_width, config.indexer.topk
        self.q_proj = nn.Linear(text.width, text.heads * text.head_width, bias=False)
        self.k_proj = nn.Linear(text.width, text.kv_heads * text.head_width, bias=False)
        self.v_proj = nn.Linear(text.width, text.kv_heads * text.head_width, bias=False)
        self.o_proj = nn.Linear(text.heads * text.head_width, text.width, bias=False)
        self.q_norm = nn.RMSNorm(text.head_width, eps=text.norm_eps) if text.qk_norm else None
        self.k_norm = nn.RMSNorm(text.head_width, eps=text.norm_eps) if text.qk_norm else None
        self.sa_indexer = Indexer(config)
        self.rule: Rule | None = None  # a study's choice of keys in the place of the indexer's (evaluation/rules.py)

    def forward(
        self, x: Float[Tensor, "b t d"], step: Step, cache: LayerCache | None = None
    ) -> tuple[Float[Tensor, "b t d"], AttentionTrace]:
        if self.in_place(x, step):
            (q, k, v), (index_q, index_k, index_w) = self.project_in_place(x, step, cache)
        else:
            # Queries, keys and values of the new tokens; and beside them, from the same x, the indexer's small ones.
            q, k, v = self.project(x, step)
            index_q, index_k, index_w = self.sa_indexer(x, *step.index_rotation)
            # Put the new keys behind those of earlier tokens: what follows sees all of them.
            k, v, index_k = self.remember((k, v, index_k), step, cache)
        trace = AttentionTrace(q, k, index_q, index_k, index_w, None, step.offset, step.start, step.later, step.lengths)
        # Choose the keys that each query will read. A choice has no gradient: the indexer learns from its own loss.
        if step.mode != "dense":
            trace.indices = self.select((index_q, index_k, index_w), step) if self.rule is None else self._ruled(trace)
        # Attend. One choice for all heads of a token, so that a gathered row serves a whole group of heads.
        match step.mode:
            case "dense":
                out = ops.dense_attention(q, k, v, step.offset, step.start, step.lengths)
            case "sparse":
                out, _ = ops.sparse_attention(q, k, v, trace.indices, backend=step.backend)
            case "masked":
                out = ops.masked_attention(q, k, v, trace.indices)
        # Bring the heads together again, in the width of the residual stream.
        return self.o_proj(rearrange(out, "b t h e -> b t (h e)")), trace

    def select(self, index: tuple[Tensor, Tensor, Tensor], step: Step) -> Int[Tensor, "b t k"]:
        """The keys that each query reads: the indexer's top-k. index: its queries, keys of all tokens so far, gates."""
        return index_choice(index, self.topk, step.offset, step.start, step.lengths, step.backend)

    def _ruled(self, trace: AttentionTrace) -> Int[Tensor, "b t k"]:
        return self.rule(trace, min(self.topk, trace.k.shape[1]))

    def project(self, x: Float[Tensor, "b t d"], step: Step) -> tuple[Tensor, Tensor, Tensor]:
        """q [b t h e], k and v [b t g e]; q and k normalised per head where the model does so, and rotated."""
        q, k, v = (
            rearrange(f(x), "b t (h e) -> b t h e", e=self.head_width) for f in (self.q_proj, self.k_proj, self.v_proj)
        )
        if self.q_norm is not None:
            q, k = self.q_norm(q.to(self.q_norm.weight.dtype)), self.k_norm(k.to(self.k_norm.weight.dtype))
        return rotate(q, *step.rotation).to(v.dtype), rotate(k, *step.rotation).to(v.dtype), v

    def remember(
        self, new: tuple[Tensor, Tensor, Tensor], step: Step, cache: LayerCache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and index keys of all tokens so far, the new ones stored behind the earlier."""
        if cache is None:
            return new
        if step.lengths is not None:  # only the device knows how many there are
            return cache.write(*new, step.lengths - 1)
        return cache.append(*new)

    def in_place(self, x: Tensor, step: Step) -> bool:
        """Whether one kernel may do what norms and indexer do: it passes them by, so they must be as they were made."""
        if self.q_norm is None:  # the kernel normalises
            return False
        return ops.fused(step.backend, x, *self.parameters()) and not altered(self.q_norm, self.k_norm, self.sa_indexer)

    def project_in_place(
        self, x: Float[Tensor, "b t d"], step: Step, cache: LayerCache | None
    ) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
        """What `project`, the indexer and `remember` give, (q, k, v) and (index q, k, gates), by one kernel behind the
        products: what is remembered is written once, where the cache has room for it.
        """
        index = self.sa_indexer
        raw = ops.Projected(*(f(x) for f in (self.q_proj, self.k_proj, self.v_proj, index.q_proj, index.k_proj)))
        norms = ops.Norms(
            self.q_norm.weight, self.k_norm.weight, index.q_norm.weight, index.k_norm.weight, index.k_norm.bias,
            self.q_norm.eps, index.q_norm.eps,
        )  # fmt: skip
        k, v = (rearrange(z, "b t (g e) -> b t g e", e=self.head_width) for z in (raw.k, raw.v))
        in_place = cache is not None and step.lengths is None
        slots = cache.slots(k, v, raw.index_k) if in_place else tuple(map(torch.empty_like, (k, v, raw.index_k)))
        q, index_q, index_w = ops.place_heads(raw, norms, step.rotation, step.index_rotation, slots)
        k, v, index_k = cache.extend(x.shape[1]) if in_place else self.remember(slots, step, cache)
        return (q, k, v), (index_q, index_k, index_w)
