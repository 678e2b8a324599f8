"""Groups of answers with what they are worth, and which of them a policy learns from.

A group whose answers all earned the same has no advantage and teaches nothing. Such groups are dropped, and more
prompts are rolled out in their place (report, General RL: over-sampling, and dropping of zero-variance groups; the
report gives no numbers). Batch after batch until there are enough, as DAPO's dynamic sampling does (arXiv 2503.14476),
with an upper bound: our choice.

Axes: b prompt, g answer of a prompt, n token of an answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from minikeye.files import whole_file
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.keye import KeyeVL
from minikeye.rl.parallel.agreement import shares as parts_of
from minikeye.rl.rollout import Answers, joined_answers

Prompts = dict[str, Tensor]  # inputs of a pass, padded on the left; visual tokens in the place of pixels

Reward = Callable[[str, Any], float]  # an answer's text and what is known of its question -> 0..1
VALUES = ("rewards", "advantages", "teaches", "hinted", "importance")


@dataclass(frozen=True)
class Groups:
    """Prompts, the answers to each, and what these are worth, which lies on the CPU."""

    prompts: Prompts
    answers: Answers
    rewards: Float[Tensor, "b g"]
    advantages: Float[Tensor, "b g"]  # of `gspo.advantages`
    teaches: Bool[Tensor, " b"]  # the rewards of the group differ
    hinted: Bool[Tensor, "b g"]  # drawn under a report of the mistake, learnt without it (`second_chance`)
    importance: Float[Tensor, "b g"]  # of those, s0 of `second_chance`; 1 elsewhere

    def __len__(self) -> int:
        return len(self.rewards)

    def of(self, rows: slice | Bool[Tensor, " b"]) -> "Groups":
        """Some of the groups."""
        values = (getattr(self, name)[rows] for name in VALUES)
        return Groups(share_of(self.prompts, rows), self.answers.of(rows), *values)

    def share(self, number: int, shares: int) -> "Groups":
        """Share `number` of `shares`, in order; sizes differ by one at most, and some are empty where groups lack."""
        return self.of(parts_of(len(self), shares)[number])

    def save(self, path: Path, step: int) -> None:
        """Write everything to one file that `torch.load(path)` reads as a dict of tensors and the step."""
        parts = {name: getattr(self, name) for name in ("prompts", *VALUES)}
        with whole_file(path) as part:
            torch.save({"step": step, **parts, "ids": self.answers.ids, "logprobs": self.answers.logprobs}, part)


def share_of(prompts: Prompts, rows: slice | list[int] | Bool[Tensor, " b"]) -> Prompts:
    """Some of the prompts, with their visual tokens. Raises ValueError where not every prompt has equally many."""
    count, out = len(prompts["input_ids"]), {}
    if isinstance(rows, slice) and range(count)[rows] == range(count):
        return dict(prompts)
    if count and len(visual := prompts.get("visual", ())) % count:
        raise ValueError(f"expected equally many visual tokens a prompt, got {len(visual)} for {count} prompts")
    for name, value in prompts.items():
        if name == "positions":
            out[name] = value[:, rows]
        elif name == "visual":
            out[name] = value.unflatten(0, (count, len(value) // max(count, 1)))[rows].flatten(0, 1)
        else:
            out[name] = value[rows]
    return out


def judge(
    answers: Answers, known: list[Any], reward: Reward, decode: Callable[[list[int]], str]
) -> Float[Tensor, "b g"]:
    """The reward of every answer, on the CPU. Raises ValueError for one that is not a finite number."""
    texts = [[decode([token for token in row if token >= 0]) for row in group] for group in answers.ids.tolist()]
    rewards = torch.tensor([[float(reward(text, k)) for text in group] for group, k in zip(texts, known, strict=True)])
    if not bool(rewards.isfinite().all()):
        row, column = (~rewards.isfinite()).nonzero()[0].tolist()
        raise ValueError(f"the reward of {texts[row][column]!r} is {rewards[row, column]}: expected a finite number")
    return rewards


def decoder(model: KeyeVL) -> Callable[[list[int]], str]:
    """From an answer's tokens, filled with -1 or not, to its text without the end of the turn."""
    tokenizer = load_tokenizer(model.config)
    silent = {-1, tokenizer.token_id("<|im_end|>")}
    return lambda ids: tokenizer.decode([token for token in ids if token not in silent])


def over_sampled(batch_at: Callable[[int], Groups], most: int) -> tuple[Groups, dict[str, float]]:
    """As many groups that teach as a batch has groups, from up to `most` batches; and numbers for the log.

    batch_at(n) -> batch n = 0, 1, ..., asked for until enough groups teach. What comes first is kept, so that the same
    batches give the same groups. Numbers: "reward", "length" (tokens of an answer) and "teaches" (share of groups), all
    three over everything that was rolled out, what was dropped included; "rescued": share of groups that teach by a
    second chance alone, whose answers count as the 0 in whose place they are; "rolled": groups rolled out; "lacking":
    how many of the wanted groups were not found. Raises ValueError as `joined` does.
    """
    drawn: list[Groups] = []
    while len(drawn) < most and (not drawn or sum(int(b.teaches.sum()) for b in drawn) < len(drawn[0])):
        drawn.append(batch_at(len(drawn)))
    wanted, rolled = len(drawn[0]), sum(map(len, drawn))
    kept = joined([batch.of(batch.teaches) for batch in drawn]).of(slice(wanted))
    over_all = lambda values: float(torch.cat([v.double().flatten() for v in values]).mean())  # noqa: E731
    return kept, {
        "reward": over_all([batch.rewards.masked_fill(batch.hinted, 0.0) for batch in drawn]),
        "teaches": over_all([batch.teaches for batch in drawn]),
        "length": over_all([batch.answers.mask.sum(-1) for batch in drawn]),
        "rescued": over_all([batch.hinted.any(dim=1) for batch in drawn]),
        "rolled": rolled,
        "lacking": wanted - len(kept),
    }


def joined_prompts(parts: Sequence[Prompts]) -> Prompts:
    """The prompts of several batches as one, in order, padded further on the left. Some may be of text alone."""
    names = {name for part in parts for name in part} - {"attention_mask"}
    t = max(part["input_ids"].shape[1] for part in parts)
    out: dict[str, list[Tensor]] = {name: [] for name in (*sorted(names), "attention_mask")}
    for part in parts:
        ids = part["input_ids"]
        for name, value in ({"attention_mask": torch.ones_like(ids, dtype=torch.bool)} | part).items():
            out[name].append(value if name == "visual" else F.pad(value, (t - ids.shape[1], 0)))
    return {name: torch.cat(values, dim=1 if name == "positions" else 0) for name, values in out.items()}


def joined(parts: Sequence[Groups]) -> Groups:
    """The groups of several batches as one: prompts padded further on the left, answers on the right.

    Raises ValueError where prompts of different batches hold other things or other numbers of visual tokens.
    """
    if len(parts := [part for part in parts if len(part)] or parts[:1]) == 1:
        return parts[0]
    names = {name for part in parts for name in part.prompts} - {"attention_mask"}
    visual = {len(part.prompts["visual"]) // len(part) for part in parts if "visual" in part.prompts}
    if any(names - part.prompts.keys() for part in parts) or len(visual) > 1:
        raise ValueError(
            f"expected batches of prompts with the same inputs and equally many visual tokens a prompt, got "
            f"{[sorted(part.prompts) for part in parts]} and {sorted(visual)}: over-sample from one kind of prompts"
        )
    prompts = joined_prompts([part.prompts for part in parts])
    t = prompts["input_ids"].shape[1]
    return Groups(
        prompts,
        joined_answers([part.answers for part in parts], [t - part.prompts["input_ids"].shape[1] for part in parts]),
        *(
            torch.cat([getattr(part, name) for part in parts])
            for name in ("rewards", "advantages", "teaches", "hinted", "importance")
        ),
    )
