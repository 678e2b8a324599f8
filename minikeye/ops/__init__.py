"""Tensors in, tensors out, and the only door to kernels: `from minikeye import ops`.

door.py and layer.py hold the functions, checks.py what they refuse, backend.py who answers; torch_selection.py,
torch_attention.py and torch_losses.py are the backend "torch", which runs everywhere and is the specification.
decode_step.py is the door to the decode step as a whole.
"""

from minikeye.ops.backend import choose_backend, fused, learning_mode
from minikeye.ops.decode_step import LayerWeights, Rows, choose_step, decode_head, decode_layer, step_sizes
from minikeye.ops.door import (
    index_scores,
    select_decode,
    select_topk,
    selected_loss,
    sparse_attention,
    warmup_loss,
)
from minikeye.ops.layer import (
    Norms,
    Projected,
    choose_experts,
    place_heads,
    swiglu,
    weighted_sum,
    wide_product,
)
from minikeye.ops.torch_attention import count_rows, dense_attention, gather_rows, masked_attention
from minikeye.ops.torch_selection import readable, slab_rows, topk_positions, valid_keys, widen

__all__ = [
    "LayerWeights", "Norms", "Projected", "Rows", "choose_backend", "choose_experts", "choose_step", "count_rows",
    "decode_head", "decode_layer", "dense_attention", "fused", "gather_rows", "index_scores", "learning_mode",
    "masked_attention", "place_heads", "readable", "select_decode", "select_topk", "selected_loss", "slab_rows",
    "sparse_attention", "step_sizes", "swiglu", "topk_positions", "valid_keys", "warmup_loss", "weighted_sum",
    "wide_product", "widen",
]  # fmt: skip
