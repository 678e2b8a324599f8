"""Mixture of experts: a router sends each token to a few SwiGLU experts, and a loss keeps their load even.

Axes: n token (batch and time flattened), d width, x expert, c chosen expert of a token, m hidden channel of an expert.
Report, section 2 (Qwen3-MoE): softmax over all experts, top-8, the eight weights renormalised, no shared expert.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minikeye import ops
from minikeye.config import TextConfig

Rule = Callable[[Tensor], Tensor]  # the router's probabilities [n x] -> numbers of the chosen experts, int64 [n c]


class Router(nn.Module):
    """Which experts see a token, and how much each counts."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.chosen = config.experts_per_token
        self.weight = None  # one expert, a dense MLP: there is nothing to choose
        if config.experts > 1:
            self.weight = nn.Parameter(torch.empty(config.experts, config.width))
            nn.init.normal_(self.weight, std=config.width**-0.5)
        self.rule: Rule | None = None  # a study's choice of experts in the place of the most likely (rl/replay.py)

    def forward(
        self, x: Float[Tensor, "n d"], backend: str = "auto"
    ) -> tuple[Float[Tensor, "n x"], Float[Tensor, "n c"], Int[Tensor, "n c"]]:
        """Probabilities of all experts, weights of the chosen ones (they sum to 1), and their numbers.

        float32 throughout, under autocast too: a rounded probability changes which expert is chosen.
        """
        if self.weight is None:
            one = torch.ones(len(x), 1, device=x.device)
            return one, one, torch.zeros(len(x), 1, dtype=torch.long, device=x.device)
        logits = ops.wide_product(x, self.weight, backend)
        if self.rule is None and ops.fused(backend, x, self.weight):
            return ops.choose_experts(logits, self.chosen)  # what follows, in one kernel
        probabilities = logits.softmax(dim=-1)
        if self.rule is None:
            weights, chosen = probabilities.topk(self.chosen, dim=-1)
        else:
            chosen = self.rule(probabilities)
            weights = probabilities.gather(-1, chosen)
        return probabilities, weights / weights.sum(dim=-1, keepdim=True), chosen


class Experts(nn.Module):
    """All experts of a layer in two tensors, as the checkpoint holds them: x @ W, gate channels first, then up."""

    # Tokens per pass, whose copies, one a chosen expert, are what takes memory. At released widths in bfloat16 a token
    # takes 143 KB where rows are brought back and widened before they are summed, 57 KB where they are summed where
    # they lie: 1.2 and 1.9 GB a pass. Many at once make the products fast: in a prototype on an H200, 128K tokens took
    # a layer's fused experts 30 ms by 8,192, 21 by 32,768 and no less at once.
    chunk_tokens = 8192
    fused_tokens = 32_768

    def __init__(self, config: TextConfig):
        super().__init__()
        x, d, m = config.experts, config.width, config.expert_width
        self.gate_up_proj = nn.Parameter(torch.empty(x, d, 2 * m))
        self.down_proj = nn.Parameter(torch.empty(x, m, d))
        nn.init.normal_(self.gate_up_proj, std=d**-0.5)
        nn.init.normal_(self.down_proj, std=m**-0.5)

    def forward(
        self,
        x: Float[Tensor, "n d"],
        weights: Float[Tensor, "n c"],
        chosen: Int[Tensor, "n c"],
        residual: Float[Tensor, "n d"] | None = None,
        backend: str = "auto",
    ) -> Float[Tensor, "n d"]:
        """The weighted sum of what each token's experts make of it, with a residual that plus the residual.

        A token at a time or all, the sum is the same.
        """
        lean = not torch.is_grad_enabled() and ops.fused(backend, x)  # of the sum: a gradient keeps every row
        size = self.fused_tokens if lean else self.chunk_tokens
        parts = [slice(first, first + size) for first in range(0, len(x), size)] or [slice(0)]
        pieces = [
            self.mix(x[p], weights[p], chosen[p], None if residual is None else residual[p], backend) for p in parts
        ]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces)

    def mix(
        self,
        x: Float[Tensor, "n d"],
        weights: Float[Tensor, "n c"],
        chosen: Int[Tensor, "n c"],
        residual: Float[Tensor, "n d"] | None = None,
        backend: str = "auto",
    ) -> Float[Tensor, "n d"]:
        """Sort token copies by expert, run each expert on its own stretch, find the results again and add them up."""
        order = chosen.flatten().argsort(stable=True)
        token = order // chosen.shape[1]
        counts = tokens_per_expert(chosen, len(self.gate_up_proj))
        h = ops.swiglu(self.multiply(x[token], self.gate_up_proj, counts), backend)
        y = self.multiply(h, self.down_proj, counts)
        place = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        return ops.weighted_sum(y, place.view_as(chosen), weights, x.dtype, residual, backend)

    def multiply(
        self, x: Float[Tensor, "n d"], w: Float[Tensor, "x d m"], counts: Int[Tensor, " x"]
    ) -> Float[Tensor, "n m"]:
        """Rows sorted by expert times that expert's matrix: in one kernel where there is one, else in a loop."""
        return (grouped if x.is_cuda and compute_dtype(x) == torch.bfloat16 else looped)(x, w, counts)


def looped(x: Float[Tensor, "n d"], w, counts: Int[Tensor, " x"]) -> Float[Tensor, "n m"]:
    """One product per expert; w [x d m] is a tensor or anything that gives matrix w[i]. Idle experts stay untouched."""
    pieces = x.split(counts.tolist())
    return torch.cat([piece @ w[i].to(x.dtype) for i, piece in enumerate(pieces) if len(piece)])


def grouped(x: Float[Tensor, "n d"], w: Float[Tensor, "x d m"], counts: Int[Tensor, " x"]) -> Float[Tensor, "n m"]:
    """The same as `looped` in one kernel (torch's grouped matmul), which takes bfloat16 only."""
    ends = counts.cumsum(0).to(torch.int32)
    return F.grouped_mm(x.bfloat16(), w.bfloat16(), offs=ends)


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a matrix product of x runs: autocast's where it is on, else x's own."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


class MixtureOfExperts(nn.Module):
    """Router and experts in place of the dense MLP, which it is with one expert."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.gate = Router(config)
        self.experts = Experts(config)

    def forward(
        self, x: Float[Tensor, "b t d"], residual: Float[Tensor, "b t d"] | None = None, backend: str = "auto"
    ) -> tuple[Float[Tensor, "b t d"], Tensor, Int[Tensor, "b t c"]]:
        """Output, with a residual that plus the residual; the router's probabilities [b t x]; the experts chosen."""
        b, t, _ = x.shape
        flat = rearrange(x, "b t d -> (b t) d")
        probabilities, weights, chosen = self.gate(flat, backend)
        stream = None if residual is None else rearrange(residual, "b t d -> (b t) d")
        y = self.experts(flat, weights, chosen, stream, backend)
        return tuple(rearrange(z, "(b t) d -> b t d", b=b, t=t) for z in (y, probabilities, chosen))


def tokens_per_expert(
    chosen: Int[Tensor, "*n c"], experts: int, counted: Bool[Tensor, "*n"] | None = None
) -> Int[Tensor, " x"]:
    """How many tokens each expert got. (torch.bincount would make a GPU wait for the CPU.)

    counted: which tokens count; None: all.
    """
    flat = chosen.flatten()
    ones = torch.ones_like(flat) if counted is None else counted[..., None].expand_as(chosen).flatten().to(flat.dtype)
    return torch.zeros(experts, dtype=flat.dtype, device=flat.device).scatter_add_(0, flat, ones)


def balance_loss(probabilities: Float[Tensor, "*n x"], chosen: Int[Tensor, "*n c"]) -> Float[Tensor, ""]:
    """x * sum over experts of (share of choices) * (mean probability): 1 when balanced.

    Worst is x / c, when the same c experts take every token: x where a token has one choice.

    The loss of Switch Transformer (equation 4) over all choices of a token, as Qwen3-MoE has it divided by its number
    of choices. The report does not say which loss Keye-VL-2.0 used: our choice.
    """
    experts = probabilities.shape[-1]
    share = tokens_per_expert(chosen, experts) / chosen.numel()
    return imbalance(share, probabilities.reshape(-1, experts).mean(dim=0))


def imbalance(share: Float[Tensor, "*n x"], probability: Float[Tensor, "*n x"]) -> Float[Tensor, "*n"]:
    """`balance_loss` of each expert's share of the choices and mean probability, over whatever tokens these are."""
    return share.shape[-1] * (share * probability).sum(dim=-1)
