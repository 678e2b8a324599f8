"""GSPO and its relatives: one loss, one table of variants.

Axes: n answer, t position in the completion.
The report (section 4.2.2) trains by GSPO: an answer is kept near the policy that drew it by ONE ratio, the geometric
mean of its tokens' ratios, because a reward is given to an answer, not to a token. The relatives differ from it in the
six columns of `VARIANTS` and in no line of code.

    a, kept = advantages(rewards, groups, variant)
    loss, numbers = objective(new_logprobs, old_logprobs, mask & kept[:, None], a, variant)

Left out: value network (the group's mean is the baseline), entropy bonus, dual clipping, DAPO's penalty for long
answers, CISPO's repeated-token filter, and every correction for a sampler that is not the trainer.
"""

from dataclasses import dataclass, fields
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

DELTA = 1e-4  # added to the standard deviation; the report does not give it
SAME_REWARD = 1e-6  # a group whose rewards differ by no more has nothing to learn from
LARGEST = 20.0  # |log ratio| is held there, e^20 = 4.9e8; beyond it a ratio is finite and moves nothing any more


@dataclass(frozen=True)
class Variant:
    """What tells one objective from another. Ratios r = pi_new / pi_old are held in 1 - low .. 1 + high."""

    name: str
    ratio: Literal["sequence", "token"]  # sequence: geometric mean over an answer's tokens
    low: float
    high: float
    clip: Literal["gain", "weight"]  # gain: min(r A, clip(r) A); weight: clip(r) A log pi, clip(r) without gradient
    divisor: Literal["std", "none"]  # of rewards minus their group's mean
    average: Literal["answers", "tokens", "length"]  # see `token_divisors`
    kl: float = 0.0  # weight of k3 against a reference policy; the report shows none
    length: int = 1024  # L of average = "length": a constant, or long answers weigh less again

    def __post_init__(self) -> None:
        for field in fields(self):
            known = get_args(field.type)
            if known and (value := getattr(self, field.name)) not in known:
                raise ValueError(f"expected {field.name} to be one of {known}, got {value!r}")
        if not (0 < self.low <= 1 and 0 < self.high < torch.inf and 0 <= self.kl < torch.inf and self.length >= 1):
            raise ValueError(f"expected low in 0..1 (not 0), high above 0, kl >= 0 and length >= 1, got {self}")


# The report gives no epsilon. Ours is .05, for answers of a few tokens, with the clipped share in the log: 3e-4 clips
# nearly every answer of a second mini-batch here, and learns at half the speed. 3e-4 and 4e-4 are of GSPO's paper
# (arXiv 2507.18071), for long answers and a learning rate of 1e-6. GRPO's own weight of KL was .04. CISPO bounds only
# from above. L of Dr. GRPO is the longest answer that the sampler may give: set it.
GSPO = Variant("GSPO", "sequence", 0.05, 0.05, "gain", "std", "answers")
GSPO_PAPER = Variant("GSPO, paper's eps", "sequence", 3e-4, 4e-4, "gain", "std", "answers")
GRPO = Variant("GRPO", "token", 0.2, 0.2, "gain", "std", "answers")
DR_GRPO = Variant("Dr. GRPO", "token", 0.2, 0.2, "gain", "none", "length")
DAPO = Variant("DAPO", "token", 0.2, 0.28, "gain", "std", "tokens")
CISPO = Variant("CISPO", "token", 1.0, 5.0, "weight", "std", "tokens")
VARIANTS = (GSPO, GSPO_PAPER, GRPO, DR_GRPO, DAPO, CISPO)


def advantages(
    rewards: Float[Tensor, " n"] | Int[Tensor, " n"], groups: Int[Tensor, " n"], variant: Variant
) -> tuple[Float[Tensor, " n"], Bool[Tensor, " n"]]:
    """How much better than its group an answer is, and which answers have a group to learn from.

    (R - mean) / (std + DELTA), or R - mean; std over the group itself, not an estimate from it (our choice: a group of
    two then gives -1 and 1). groups: the same number for answers to the same prompt, in any order. A group of equal
    rewards, or of one answer, gives 0 and False: over-sample to make up for it. Raises ValueError for a reward that is
    not finite: one nan would spread over its group.
    """
    if len(rewards) != len(groups) or not len(rewards):
        raise ValueError(f"expected a group for each of one or more rewards, got {len(groups)} and {len(rewards)}")
    if not bool(rewards.isfinite().all()):
        at = (~rewards.isfinite()).nonzero().flatten().tolist()
        raise ValueError(f"expected finite rewards, got {rewards[at].tolist()} at {at}: mend the reward of that answer")
    rewards = rewards.to(torch.promote_types(rewards.dtype, torch.float32))  # of whole numbers an advantage is none
    a, kept = torch.zeros_like(rewards), torch.zeros_like(rewards, dtype=torch.bool)
    for group in groups.unique():
        here = groups == group
        r = rewards[here].double()
        if r.max() - r.min() > SAME_REWARD:
            scale = r.std(correction=0) + DELTA if variant.divisor == "std" else 1.0
            a[here], kept[here] = ((r - r.mean()) / scale).to(a.dtype), True
    return a, kept


def token_divisors(
    mask: Bool[Tensor, "n t"], variant: Variant, batch: Bool[Tensor, "all s"] | None = None
) -> Int[Tensor, "n 1"]:
    """What the gain of each token is divided by; on-policy, the loss's gradient with respect to log pi is -A over it.

    With n answers that have a token, of |o_i| tokens: "answers" n |o_i|, a mean of means; "tokens" sum |o_i|, where all
    tokens of the batch are alike; "length" n L, a sum over a constant. An answer without a token is not counted.
    """
    lengths = mask.sum(dim=1, keepdim=True).clamp(min=1)
    batch = mask if batch is None else batch
    answers = batch.any(dim=1).sum()
    if variant.average == "answers":
        return answers * lengths
    return (batch.sum() if variant.average == "tokens" else answers * variant.length).expand_as(lengths)


def k3(log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """r - 1 - log r: never negative, and on average KL(p || q) where r = q / p at tokens that p drew."""
    return log_ratio.expm1() - log_ratio  # near 0, where r - 1 would keep no digit of it


def objective(
    new_logprobs: Float[Tensor, "n t"],
    old_logprobs: Float[Tensor, "n t"],
    mask: Bool[Tensor, "n t"],
    advantages: Float[Tensor, " n"],
    variant: Variant,
    reference_logprobs: Float[Tensor, "n t"] | None = None,
    batch: Bool[Tensor, "all s"] | None = None,
) -> tuple[Float[Tensor, ""], dict[str, Float[Tensor, ""]]]:
    """The loss to minimise, and numbers for the log. Only new_logprobs gets a gradient.

    mask: the tokens to learn, which the policy drew itself; what stands elsewhere is never looked at. An answer without
    any adds nothing, the KL term included. Numbers, the first four over the units of the ratio (answers or tokens):
    "clipped": the bound holds, so that a gain has no gradient, or a weight is not its ratio; "outside": the ratio is
    beyond 1 - low .. 1 + high, on the harmless side too; "ratio": mean; "largest"; and "kl": KL(old || new), nats a
    token. batch: the mask of a whole batch of which these are some answers, perhaps none with a token; loss and numbers
    are then parts of the batch's, which is the sum of all parts; of "largest", the largest. Raises ValueError for a
    batch without a token to learn, and for kl > 0 without a reference.
    """
    shapes = [list(x.shape) for x in (new_logprobs, old_logprobs, mask, advantages)]
    if shapes[:3] != [shapes[0]] * 3 or len(shapes[0]) != 2 or shapes[3] != shapes[0][:1]:
        raise ValueError(f"expected log-probs and mask [n t] and advantages [n], got {shapes}")
    batch = mask if batch is None else batch
    if not bool(batch.any()):
        raise ValueError("expected a token to learn, got a mask of nothing: skip a batch whose groups were all dropped")
    if variant.kl > 0 and reference_logprobs is None:
        raise ValueError(f"expected the reference's log-probs for kl = {variant.kl}, got none: give them or set kl = 0")
    new = new_logprobs.to(torch.promote_types(new_logprobs.dtype, torch.float32))
    token = _log_ratio(new, old_logprobs.detach(), mask)
    log_ratio, unit, units = token, mask, batch.sum()
    if variant.ratio == "sequence":
        log_ratio = token.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)  # [n 1]
        unit, units = mask.any(dim=1, keepdim=True), batch.any(dim=1).sum()
    ratio = log_ratio.clamp(-LARGEST, LARGEST).exp()
    bounded = ratio.clamp(1 - variant.low, 1 + variant.high)
    a = advantages.detach()[:, None]
    gain = torch.minimum(ratio * a, bounded * a) if variant.clip == "gain" else bounded.detach() * a * new
    if variant.kl > 0:
        to_reference = _log_ratio(reference_logprobs.detach(), new, mask).clamp(-LARGEST, LARGEST)
        gain = gain - variant.kl * k3(to_reference)
    loss = -(torch.where(mask, gain, 0.0) / token_divisors(mask, variant, batch)).sum()

    with torch.no_grad():
        outside = bounded != ratio
        clipped = outside & (ratio * a > bounded * a) if variant.clip == "gain" else outside
        share = lambda what: (what & unit).sum() / units  # noqa: E731
        numbers = {
            "clipped": share(clipped),
            "outside": share(outside),
            "ratio": torch.where(unit, ratio, 0.0).sum() / units,
            "largest": ratio.masked_fill(~unit, 0.0).max(),
            "kl": k3(token.clamp(-LARGEST, LARGEST)).sum() / batch.sum(),
        }
    return loss, numbers


def _log_ratio(over: Float[Tensor, "n t"], under: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"]) -> Tensor:
    """log(over / under), 0 outside of the mask, where either may hold anything, -inf and nan too."""
    return (over - under).masked_fill(~mask, 0.0)
