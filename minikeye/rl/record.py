"""The record of one answer, from the moment it is drawn until the policy has learnt from it.

`learn` keeps whole groups as `rollout.Answers`, in one piece; these are for answers that end at different times
(`partial`).

Axes: n answer, s position in the prompt, t position in the completion.
An answer that is not finished, or that calls a tool, needs no second type: the mask tells what the policy drew from
what it was told, and each token knows the version of the policy that drew it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minikeye.rl.rollout import Answers


@dataclass(frozen=True)
class Rollout:
    """One answer. The four tuples of the completion are equally long; it may be empty."""

    prompt: int  # its number in the data set, where its video and its reference solution are
    prompt_ids: tuple[int, ...]  # placeholders of the visual tokens included
    completion_ids: tuple[int, ...]
    mask: tuple[bool, ...]  # True on what the policy drew, the end of the turn included; False on what it was told
    old_logprobs: tuple[float, ...]  # of each token when it was drawn, at the temperature of drawing; 0 where told
    versions: tuple[int, ...]  # optimiser steps that the policy had taken when it drew the token
    group: int  # the same for all answers that are compared with each other
    reward: float | None = None  # None: not given yet
    number: int = 0  # which answer of its group it is

    def __post_init__(self) -> None:
        lengths = [len(part) for part in (self.completion_ids, self.mask, self.old_logprobs, self.versions)]
        if not self.prompt_ids or len(set(lengths)) > 1:
            raise ValueError(
                f"expected a prompt and as many completion ids as marks, log-probs and versions, got a prompt of "
                f"{len(self.prompt_ids)} and {lengths}"
            )
        if not all(math.isfinite(p) for p in self.old_logprobs):
            raise ValueError(f"expected finite log-probs, got {self.old_logprobs}: a token of probability 0 was drawn")
        if self.reward is not None and not math.isfinite(self.reward):
            raise ValueError(f"expected a finite reward for prompt {self.prompt}, got {self.reward}: mend the reward")


@dataclass(frozen=True)
class Stack:
    """Answers as rows. Prompts are padded on the left, completions on the right: in every row the last column of the
    prompts predicts the first of the completions."""

    prompts: Int[Tensor, " n"]
    prompt_ids: Int[Tensor, "n s"]
    completion_ids: Int[Tensor, "n t"]
    attention_mask: Bool[Tensor, "n s+t"]  # True on tokens, False on padding, of prompt and completion
    mask: Bool[Tensor, "n t"]  # True on the tokens to learn
    old_logprobs: Float[Tensor, "n t"]  # 0 on padding
    versions: Int[Tensor, "n t"]  # -1 on padding
    rewards: Float[Tensor, " n"]
    groups: Int[Tensor, " n"]

    def answers(self, group: int) -> Answers:
        """The completions as `answer_logprobs` takes them, told tokens included: [n / group, group, t], filled with -1.

        group: answers to a prompt, which lie beside each other. Log-probs come back for told tokens too; `mask` leaves
        them out of the objective. Raises ValueError for rows that are no whole groups of that size.
        """
        rows = self.groups.unflatten(0, (-1, group)) if len(self.groups) % group == 0 else self.groups[:, None]
        if rows.shape[1] != group or not bool((rows == rows[:, :1]).all()):
            raise ValueError(f"expected groups of {group} answers beside each other, got groups {self.groups.tolist()}")
        there = self.attention_mask[:, self.prompt_ids.shape[1] :]
        ids = self.completion_ids.masked_fill(~there, -1)
        return Answers(ids.unflatten(0, (-1, group)), self.old_logprobs.unflatten(0, (-1, group)))


def stack(rollouts: Sequence[Rollout], padding: int) -> Stack:
    """Pad answers to one batch. padding: id of the token that fills the gaps, <|endoftext|> for example.

    Raises ValueError without answers, or for one without a reward.
    """
    if not rollouts:
        raise ValueError("expected at least one rollout to stack, got none")
    if waiting := [n for n, rollout in enumerate(rollouts) if rollout.reward is None]:
        raise ValueError(f"expected a reward for every rollout, got none for those at {waiting}: finish them first")
    s = max(len(r.prompt_ids) for r in rollouts)
    t = max(len(r.completion_ids) for r in rollouts)
    there = [
        [False] * (s - len(r.prompt_ids))
        + [True] * (len(r.prompt_ids) + len(r.completion_ids))
        + [False] * (t - len(r.completion_ids))
        for r in rollouts
    ]

    def right(name: str, filler: int | float) -> Tensor:
        rows = [list(getattr(r, name)) for r in rollouts]
        return torch.tensor([row + [filler] * (t - len(row)) for row in rows], dtype=torch.tensor(filler).dtype)

    return Stack(
        prompts=torch.tensor([r.prompt for r in rollouts]),
        prompt_ids=torch.tensor([[padding] * (s - len(r.prompt_ids)) + list(r.prompt_ids) for r in rollouts]),
        completion_ids=right("completion_ids", padding),
        attention_mask=torch.tensor(there),
        mask=right("mask", False),
        old_logprobs=right("old_logprobs", 0.0),
        versions=right("versions", -1),
        rewards=torch.tensor([r.reward for r in rollouts], dtype=torch.float32),
        groups=torch.tensor([r.group for r in rollouts]),
    )
