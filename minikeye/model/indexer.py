"""The lightning indexer of DSA: what every earlier token is scored by. Its losses are in ops/torch_losses.py.

Axes: b batch, t query position, d width, j indexer head, i indexer width.
Report, section 2.3. Left out on purpose: the released code turns q and k by a Hadamard matrix and rounds them to FP8
before the product. The rotation is orthonormal, so in exact arithmetic it changes no dot product; it only spreads
outliers so that FP8 loses less. Neither is part of the function the indexer computes.
"""

import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from minikeye.config import KeyeConfig
from minikeye.model.rope import rotate


class Indexer(nn.Module):
    """Queries, gates and one shared key per token. `ops.index_scores` and `ops.select_topk` do the rest."""

    def __init__(self, config: KeyeConfig):
        super().__init__()
        self.heads, self.width = config.indexer.heads, config.indexer.width
        d, eps = config.text.width, config.indexer.norm_eps
        self.q_proj = nn.Linear(d, self.heads * self.width + self.heads, bias=False)  # queries, then one gate a head
        self.k_proj = nn.Linear(d, self.width, bias=False)
        self.q_norm = nn.RMSNorm(self.width, eps=eps)
        self.k_norm = nn.LayerNorm(self.width, eps=eps)

    def forward(
        self, x: Float[Tensor, "b t d"], cos: Float[Tensor, "b t i"], sin: Float[Tensor, "b t i"]
    ) -> tuple[Float[Tensor, "b t j i"], Float[Tensor, "b t i"], Float[Tensor, "b t j"]]:
        """Index queries, index keys (both normalised and rotated over all their channels) and raw float32 gates.

        x is detached: the indexer learns from its KL loss alone and sends no gradient into the model.
        """
        projected = self.q_proj(x.detach())
        q, w = projected.split([self.heads * self.width, self.heads], dim=-1)
        q, k = rearrange(q, "b t (j i) -> b t j i", j=self.heads).float(), self.k_proj(x.detach()).float()
        q_weight, k_weight, k_bias = (p.float() for p in (self.q_norm.weight, self.k_norm.weight, self.k_norm.bias))
        q = F.rms_norm(q, (self.width,), q_weight, self.q_norm.eps)  # in float32 at any dtype of the weights
        k = F.layer_norm(k, (self.width,), k_weight, k_bias, self.k_norm.eps)
        q, k = rotate(q, cos, sin), rotate(k.unsqueeze(-2), cos, sin).squeeze(-2)
        return q.to(projected.dtype), k.to(projected.dtype), w.float()
