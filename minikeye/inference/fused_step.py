"""The decode step by fused kernels: 8 to 12 launches a layer instead of a hundred, the same numbers up to rounding.

The step's layer, in reading order, is `kernels/decode/step/layer.py`; what it must equal is `StaticStep`, the model's
own pass. The six projections of a layer that read the same x are packed into one weight when the step is made: a copy,
of the released model 1.23 GB in all (48 layers of [6272, 2048] in bfloat16), which lives as long as the step.

Axes: b batch, n column of the projections, d width, e head width, i indexer width, v vocabulary.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from minikeye import ops
from minikeye.altered import altered, altered_decoder
from minikeye.inference.static_step import StaticStep
from minikeye.model.cache import Cache
from minikeye.model.decoder import DecoderLayer
from minikeye.model.rope import frequencies
from minikeye.model.step import Mode
from minikeye.ops.decode_step import beyond_step


class FusedStep(StaticStep):
    """`StaticStep` in a few kernels. For the models, batches and devices that `ops.choose_step` names.

    It holds a copy of the projections as they were: weights that change afterwards want a new step. Modules are not
    called. Raises ValueError for a batch or shapes beyond it, and for a model with hooks, adapters or rules.
    """

    def __init__(self, model, cache: Cache, backend: str = "auto", attention: Mode = "sparse"):
        if why := beyond_step(model.config, cache.batch) or altered_decoder(model.model) or altered(model.lm_head):
            raise ValueError(f"the fused step computes from weights alone: {why}; take StaticStep")
        super().__init__(model, cache, backend, attention)
        text, index = model.config.text, model.config.indexer
        self.sizes = ops.step_sizes(model.config)
        self.weights = [layer_weights(layer, self.sizes.columns) for layer in model.model.layers]
        # Two halves of an attention head, two of an index head: see model/rope.py.
        pairs = (frequencies(width, text.rope_theta, model.device) for width in (text.head_width, index.width))
        self.frequencies = torch.cat([half for each in pairs for half in (each, each)])

    def run(self) -> Float[Tensor, "b 1 v"]:
        """Logits after `token`."""
        self.lengths += 1
        # A token of text stands at one position, whatever its M-RoPE section.
        angles = self.position[:, None] * self.frequencies
        rows = ops.Rows(angles.cos(), angles.sin(), self.lengths, self.start)
        decoder = self.model.model
        x, parts = decoder.embed_tokens(self.token)[:, 0].contiguous(), None
        for weights, held in zip(self.weights, self.cache.layers, strict=True):
            x, parts = ops.decode_layer(x, parts, weights, held.stores, rows, self.sizes, self.attention)
        self.position += 1
        logits = ops.decode_head(x, parts, decoder.norm.weight, self.model.lm_head.weight, self.sizes.eps)
        return logits[:, None]


def layer_weights(layer: DecoderLayer, columns: int) -> ops.LayerWeights:
    """The tensors of a layer as its kernels want them: all but the packed projections are the model's own."""
    attention, mlp = layer.self_attn, layer.mlp
    index = attention.sa_indexer
    sources = attention.q_proj, attention.k_proj, attention.v_proj, index.q_proj, index.k_proj
    packed = torch.cat([source.weight.detach() for source in sources])
    weights = (
        *(layer.input_layernorm.weight, F.pad(packed, (0, 0, 0, columns - len(packed)))),
        *(attention.q_norm.weight, attention.k_norm.weight),
        *(index.q_norm.weight, index.k_norm.weight, index.k_norm.bias),
        *(attention.o_proj.weight, layer.post_attention_layernorm.weight),
        *(mlp.gate.weight, mlp.experts.gate_up_proj, mlp.experts.down_proj),
    )
    return ops.LayerWeights(*(weight.detach() for weight in weights))
