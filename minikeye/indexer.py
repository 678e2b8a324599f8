"""The lightning indexer of DSA, and the two KL losses that teach it.

Axes: b batch, t query position, s key position, d width, j indexer head, i indexer width, g KV head (group),
r query heads per group, e head width, k selected key.
Report, section 2.3. Left out on purpose: the released code turns q and k by a Hadamard matrix and rounds them to FP8
before the product. The rotation is orthonormal, so in exact arithmetic it changes no dot product; it only spreads
outliers so that FP8 loses less. Neither is part of the function the indexer computes.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minikeye.config import KeyeConfig
from minikeye.rope import rotate
from minikeye.selection import widen


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


def kl_loss(scores: Float[Tensor, "b t s"], targets: Float[Tensor, "b t g s"]) -> Float[Tensor, "b t"]:
    """sum_g KL(p[t, g] || softmax(I[t])) for each query (report, equations L_warmup and L_sparse).

    scores: index scores, -inf for keys that do not take part. targets: one distribution per group over the same keys,
    zero where the score is -inf; detached here. A query without keys has loss 0.
    The gradient is g * (softmax(I) - mean_g p), so the loss bottoms out at g times the Jensen-Shannon divergence of
    the groups, not at 0: measure progress by the attention mass selected, not by this number.
    """
    targets = widen(targets.detach())
    absent = scores == -torch.inf
    nothing = absent.all(dim=-1, keepdim=True)  # whose softmax would be nan
    log_q = scores.masked_fill(nothing, 0.0).log_softmax(dim=-1).masked_fill(absent, 0.0)
    return (torch.xlogy(targets, targets) - targets * log_q[:, :, None]).sum(dim=(-1, -2))


def dense_targets(
    q: Float[Tensor, "b t h e"], k: Float[Tensor, "b s g e"], valid: Bool[Tensor, "#b t s"]
) -> Float[Tensor, "b t g s"]:
    """Warm-up targets: the dense attention of each query over its valid keys, averaged over the heads of a group.

    "Aggregated within the group" in the report; mean of the probabilities after the softmax is our choice.
    """
    logits = _group_logits(q, k)  # [b t g r s]
    p = logits.masked_fill(~valid[:, :, None, None], -torch.inf).softmax(dim=-1)
    return p.nan_to_num(0.0).mean(dim=3)


def _group_logits(q: Tensor, k: Tensor) -> Float[Tensor, "b t g r s"]:
    grouped = rearrange(q, "b t (g r) e -> b t g r e", g=k.shape[2])
    return widen(torch.einsum("btgre,bsge->btgrs", grouped, k)) * q.shape[-1] ** -0.5


def selected_probabilities(
    q: Float[Tensor, "b t h e"], keys: Float[Tensor, "b t k g e"], indices: Int[Tensor, "b t k"]
) -> Float[Tensor, "b t h k"]:
    """The sparse attention's own softmax, from the selected keys alone: no dense pass. Zero where the set is padded.

    keys: rows of the selected positions, `ops.gather_rows(k, indices)`.
    """
    grouped = rearrange(q, "b t (g r) e -> b t g r e", g=keys.shape[3])
    logits = widen(torch.einsum("btgre,btkge->btgrk", grouped, keys)).flatten(2, 3) * q.shape[-1] ** -0.5
    return logits.masked_fill((indices < 0)[:, :, None], -torch.inf).softmax(dim=-1).nan_to_num(0.0)


def selected_targets(
    q: Float[Tensor, "b t h e"], keys: Float[Tensor, "b t k g e"], indices: Int[Tensor, "b t k"]
) -> Float[Tensor, "b t g k"]:
    """Sparse-adaptation targets: each head's dense attention truncated to the selected set and renormalised over it,
    which is its softmax over the set; then the mean over the heads of a group.

    Not the same as `dense_targets` truncated: a head with little attention inside the set counts in full. Our reading.
    """
    p = selected_probabilities(q, keys, indices)
    return rearrange(p, "b t (g r) k -> b t g r k", g=keys.shape[3]).mean(dim=3)


def selected_scores(
    q: Float[Tensor, "b t j i"],
    keys: Float[Tensor, "b t k i"],
    w: Float[Tensor, "b t j"],
    indices: Int[Tensor, "b t k"],
) -> Float[Tensor, "b t k"]:
    """Index scores of the selected keys only, float32, -inf where the set is padded. keys: their index keys."""
    with torch.autocast(q.device.type, enabled=False):
        dots = F.relu(torch.einsum("btji,btki->btjk", widen(q), widen(keys)))
        scores = torch.einsum("btj,btjk->btk", widen(w), dots) * q.shape[-1] ** -0.5
    return scores.masked_fill(indices < 0, -torch.inf)
