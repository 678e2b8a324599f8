"""A second chance for groups in which every answer earned 0: asked again, with a report of the mistake.

Such a group has nothing to compare with and would be dropped, hard questions first. ContextRL's reachability (arXiv
2602.22623; the report uses its other half, the context reward, and does not speak of this one):
    1. the policy reads question, its own wrong answer and a report of the mistake, and answers again;
    2. kept are answers that are right, and that stand alone: they do not speak of the earlier attempt;
    3. the report is stripped ("context rollback"): they take the place of wrong answers of the group, and are learnt as
       answers to the plain prompt.

They are not the policy's own: drawn by pi_old(y | x, report), learnt as pi(y | x). The importance ratio, for GSPO
    s0 = (pi_old(y | x) / pi_old(y | x, report))^(1 / |y|),
is in the log (`importance`), and small where the report did the work. Taken as it is it would undo the second chance:
s0 A is about the gain that plain sampling would have had, next to none. So it is clipped as the variant clips
(`rolled_back`): the ratio of the objective begins at clip(s0, 1 - low, 1 + high) and moves with the policy. That is
biased, towards answers that the policy would hardly give, and meant to be. CISPO's bound is one from above: with it, s0
stays what it is, and nothing much is learnt.

Our choice: the report is a rule's, where the source has a judge write one for each failure; ONE for a group, about its
first answer, so that the prompt is read once; at most `most` answers of a group are replaced; "scaled advantage" is
`weight`, 1 because the source gives no number; its "selective KL" is left out, for want of a reference policy here.

Axes: b prompt, g answer of a prompt, n token of an answer.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from minikeye.config import KeyeConfig
from minikeye.inputs.prompt import Prompt
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.rl.gspo import GSPO, Variant  # noqa: F401 - GSPO is for the examples
from minikeye.rl.rollout import Answers, require_positions

AGAIN = ("earlier", "previous", "attempt", "mistake", "report")  # words of an answer that does not stand alone


def stands_alone(text: str) -> bool:
    """Whether an answer does without words about an earlier one. Our choice of words.

    >>> stands_alone("[[1.0, 3.0]]"), stands_alone("My previous answer was wrong: [[1.0, 3.0]]")
    (True, False)
    """
    return not any(word in text.lower() for word in AGAIN)


@dataclass(frozen=True)
class SecondChance:
    """How a question is asked again."""

    report: Callable[[str, Any], str]  # a wrong answer's text and what is known of its question -> the mistake
    independent: Callable[[str], bool] = stands_alone  # whether an answer's text may be learnt without the report
    most: int = 4  # answers of a group that are replaced; fewer than the group has
    weight: float = 1.0  # factor on the advantages of those that replace them

    def __post_init__(self) -> None:
        if self.most < 1 or not 0 < self.weight < math.inf:
            raise ValueError(f"expected most >= 1 and a finite weight above 0, got {self.most} and {self.weight}")


def all_wrong(rewards: Float[Tensor, "b g"]) -> list[int]:
    """The rows whose answers all earned exactly 0.

    >>> all_wrong(torch.tensor([[0.0, 0.0], [0.0, 0.5], [1.0, 1.0]]))
    [0]
    """
    return (rewards == 0).all(dim=1).nonzero().flatten().tolist()


def told_again(
    prompts: dict[str, Tensor], answers: Sequence[Sequence[int]], reports: Sequence[str], config: KeyeConfig
) -> dict[str, Tensor]:
    """Prompts that go on with a wrong answer and a user's turn that reports the mistake, up to the next answer.

    prompts: inputs of a pass with positions, padded on the left, one row for each answer and report. answers: tokens as
    they were drawn, with or without the end of the turn. Visual tokens stay those of the prompts. Raises ValueError for
    other numbers of answers or reports, and for prompts without positions.
    """
    require_positions(prompts)
    ids = prompts["input_ids"]
    if not len(ids) == len(answers) == len(reports):
        raise ValueError(f"expected an answer and a report a prompt, got {len(ids)}, {len(answers)} and {len(reports)}")
    tails = [_tail(list(answer), report, config) for answer, report in zip(answers, reports, strict=True)]
    longest = max(map(len, tails))
    real = prompts.get("attention_mask", torch.ones_like(ids)).bool()
    out = {
        "input_ids": F.pad(ids, (longest, 0)),
        "positions": F.pad(prompts["positions"], (longest, 0)),
        "attention_mask": F.pad(real, (longest, 0)),
    }
    for row, tail in enumerate(tails):
        after = prompts["positions"][:, row].max() + 1 + torch.arange(len(tail), device=ids.device)
        parts = {"input_ids": ids.new_tensor(tail), "attention_mask": torch.ones_like(after, dtype=torch.bool)}
        for name, value in parts.items():  # the row moves to the left, and the tail stands at its end
            out[name][row] = torch.cat((out[name][row, len(tail) :], value))
        out["positions"][:, row] = torch.cat((out["positions"][:, row, len(tail) :], after.expand(3, -1)), dim=1)
    return out | {name: value for name, value in prompts.items() if name == "visual"}


def _tail(answer: list[int], report: str, config: KeyeConfig) -> list[int]:
    """What stands behind a prompt that ends where the assistant is to speak."""
    tokenizer = load_tokenizer(config)
    prompt = Prompt(tokenizer, config.vision.merge)
    prompt.drawn(answer, learn=False)
    if answer and answer[-1] == tokenizer.token_id("<|im_end|>"):
        prompt.text("\n")
    else:
        prompt.end()
    prompt.begin("user")
    prompt.text(report)
    prompt.end()
    prompt.begin("assistant")
    return prompt.ids


def mixed(
    answers: Answers,
    rewards: Float[Tensor, "b g"],
    rows: Sequence[int],
    again: Answers,
    again_rewards: Float[Tensor, "a h"],
    most: int,
) -> tuple[Answers, Float[Tensor, "b g"], Bool[Tensor, "b g"]]:
    """Groups in which right answers of the second round took the place of wrong ones, and which of theirs they are.

    rows: the groups that were asked again, row n of `again` for group rows[n]; their own answers all earned 0.
    again_rewards: 0 for what must not be learnt. The first `most` answers with a reward above 0 replace the first
    answers of their group, with the log-probabilities that they were drawn with, those under the report: `rolled_back`
    makes those to learn with. Raises ValueError for most >= g: nothing wrong would be left to compare with.
    """
    if not 1 <= most < rewards.shape[1]:
        raise ValueError(f"expected to replace 1 to {rewards.shape[1] - 1} of {rewards.shape[1]} answers, got {most}")
    n = max(answers.ids.shape[2], again.ids.shape[2])
    ids, new_ids = (F.pad(x.ids, (0, n - x.ids.shape[2]), value=-1) for x in (answers, again))
    logprobs, new_logprobs = (F.pad(x.logprobs, (0, n - x.logprobs.shape[2])) for x in (answers, again))
    ids, logprobs = ids.clone(), logprobs.clone()  # nothing padded is the very tensor that was given
    rewards, hinted = rewards.clone(), torch.zeros_like(rewards, dtype=torch.bool)
    for number, row in enumerate(rows):
        for place, answer in enumerate((again_rewards[number] > 0).nonzero().flatten().tolist()[:most]):
            ids[row, place], logprobs[row, place] = new_ids[number, answer], new_logprobs[number, answer]
            rewards[row, place], hinted[row, place] = again_rewards[number, answer], True
    return Answers(ids, logprobs), rewards, hinted


def importance(
    plain: Float[Tensor, "n t"], hinted: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"]
) -> Float[Tensor, " n"]:
    """s0: how likely each answer is without the report over how likely it was with it, geometric mean over its tokens.

    plain, hinted: log-probabilities under the plain prompt and under the one with the report. 1 for an empty answer.

    >>> plain, hinted = torch.tensor([[0.1, 0.2, 9.0]]).log(), torch.tensor([[0.4, 0.2, 1.0]]).log()
    >>> round(float(importance(plain, hinted, torch.tensor([[True, True, False]]))), 4)  # sqrt(1/4 * 1)
    0.5
    """
    return _mean_log_ratio(plain, hinted, mask).squeeze(1).exp()


def rolled_back(
    plain: Float[Tensor, "n t"], hinted: Float[Tensor, "n t"], mask: Bool[Tensor, "n t"], variant: Variant
) -> Float[Tensor, "n t"]:
    """Old log-probabilities for `objective`, whose ratio to `plain` is s0 held in the variant's bounds; 0 off the mask.

    One ratio an answer, or one a token, as the variant has it. plain, hinted: as for `importance`.

    >>> plain, hinted = torch.tensor([[0.1, 0.2]]).log(), torch.tensor([[0.4, 0.2]]).log()
    >>> old = rolled_back(plain, hinted, torch.tensor([[True, True]]), GSPO)
    >>> [round(ratio, 4) for ratio in (plain - old).exp()[0].tolist()]  # not 1/2, their geometric mean
    [0.95, 0.95]
    """
    log_ratio = (plain - hinted).masked_fill(~mask, 0.0)
    if variant.ratio == "sequence":
        log_ratio = _mean_log_ratio(plain, hinted, mask)
    held = log_ratio.clamp(math.log(1 - variant.low) if variant.low < 1 else -math.inf, math.log1p(variant.high))
    return (plain - held).masked_fill(~mask, 0.0)


def _mean_log_ratio(over: Tensor, under: Tensor, mask: Tensor) -> Float[Tensor, "n 1"]:
    return (over - under).masked_fill(~mask, 0.0).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
