"""The two KL losses that teach the indexer, the "torch" backend: targets, scores of selected keys, the divergence.

Axes: b batch, t query position, s key position, j indexer head, i indexer width, g KV head (group),
r query heads per group, h query head, e head width, k selected key.
Report, section 2.3, equations L_warmup and L_sparse. Called through `ops.warmup_loss` and `ops.selected_loss`.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minikeye.ops.torch_selection import widen


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
