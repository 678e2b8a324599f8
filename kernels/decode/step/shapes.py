"""What the kernels of a decode step are given: a layer's weights, the rows of the batch, and the model's sizes.

Axes: b batch, d width, n column of the projections, h query head, g KV head, e head width, j indexer head, i indexer
width, x expert, m hidden channel of an expert.
"""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

PADDED = 64  # columns of the projections come in multiples of this, so that no tile of them needs a mask


class LayerWeights(NamedTuple):
    """Of one decoder layer, all of one dtype, contiguous."""

    input_norm: Tensor  # [d]
    projections: Tensor  # [n d]: rows of all six projections, in the order of `StepSizes`, zeros behind them
    q_norm: Tensor  # [e]
    k_norm: Tensor  # [e]
    index_q_norm: Tensor  # [i]
    index_k_norm: Tensor  # [i]
    index_k_bias: Tensor  # [i]
    o_proj: Tensor  # [d (h e)]
    post_norm: Tensor  # [d]
    router: Tensor  # [x d]
    gate_up: Tensor  # [x d 2m]: gate channels first, then up
    down: Tensor  # [x m d]


class Rows(NamedTuple):
    """What the layers of one step share about its batch rows, all of it on the device."""

    cos: Tensor  # float32 [b (e i)]: of the attention heads, then of the indexer
    sin: Tensor  # the same
    lengths: Tensor  # int32 [b]: tokens of each row, the new one counted
    start: Tensor | None  # int [b]: first real token of each row; None: 0


@dataclass(frozen=True)
class StepSizes:
    """Numbers of the model. Columns of the projections: q | k | v | index q | gates | index k."""

    heads: int  # h
    kv_heads: int  # g
    head_width: int  # e
    index_heads: int  # j
    index_width: int  # i
    topk: int  # keys that a query reads
    chosen: int  # experts of a token
    eps: float  # of the RMSNorms
    index_eps: float  # of the indexer's norms

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each projection, in order."""
        one, index = self.kv_heads * self.head_width, self.index_width
        return self.heads * self.head_width, one, one, self.index_heads * index, self.index_heads, index

    @property
    def columns(self) -> int:
        """Columns in all, padded."""
        return -(-sum(self.widths) // PADDED) * PADDED

    @property
    def places(self) -> dict[str, int]:
        """Where each projection but the first begins, as the kernels name it."""
        names = ("K_AT", "V_AT", "INDEX_Q_AT", "GATE_AT", "INDEX_K_AT")
        return {name: sum(self.widths[: n + 1]) for n, name in enumerate(names)}
