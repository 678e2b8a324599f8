"""Learning from reward: roll out, score, and take a few steps; the loop of `training.loop` does the rest.

One iteration: the policy answers a batch of prompts G times each, a reward judges every answer, the answers of a group
are compared with each other, groups that agree are dropped and made up for (`groups`), and the policy takes
`minibatches` optimiser steps on the rest. From the second step on the answers are a little old, which is what the ratio
and its clipping are for.

Vision tower and projector are frozen (report, Video-RL): their tokens are computed once per prompt. The indexer is
frozen too, and attention is dense unless told otherwise: our choice.

Axes: b prompt, g answer of a prompt, n token of an answer.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.keye import KeyeVL
from minikeye.model.step import MODES, Mode
from minikeye.rl.groups import Groups, Prompts, over_sampled
from minikeye.rl.gspo import GSPO, Variant, advantages, objective
from minikeye.rl.rollout import Answers, answer_logprobs, sample_answers
from minikeye.training.loop import LoopConfig, train
from minikeye.training.stage import trainable
from minikeye.training.step import autocast

Reward = Callable[[str, Any], float]  # an answer's text and what is known of its question -> 0..1


# What the log says of a ratio where no group is left and no step is taken.
STILL = {"clipped": 0.0, "outside": 0.0, "ratio": 1.0, "largest": 1.0, "kl": 0.0}


@dataclass(frozen=True)
class RolloutConfig:
    """How the policy is sampled and how often a sample is used."""

    group: int = 8  # answers to a prompt
    minibatches: int = 2  # optimiser steps on each rollout, each on its share of the groups that teach something
    oversample: int = 1  # batches of prompts an iteration may roll out, until as many groups teach as one batch has
    max_new_tokens: int = 24
    temperature: float = 1.0
    attention: Mode = "dense"
    variant: Variant = GSPO
    seed: int = 0

    def __post_init__(self) -> None:
        if self.group < 2 or min(self.minibatches, self.oversample) < 1:
            raise ValueError(
                f"expected group >= 2, minibatches and oversample >= 1, got {self.group}, {self.minibatches} and "
                f"{self.oversample}"
            )
        if not self.temperature > 0 or self.attention not in MODES or self.variant.kl:
            raise ValueError(
                f"expected temperature above 0 (else a group's answers are one), attention among {', '.join(MODES)}, "
                f"a variant without kl, for which there is no reference here; got {self}"
            )


def learns(name: str) -> bool:
    """Whether reward teaches the parameter of that name: decoder and head, without the indexers."""
    return name.startswith(("model.", "lm_head.")) and "sa_indexer" not in name


@torch.no_grad()
def with_visual_tokens(model: KeyeVL, inputs: Mapping[str, Tensor]) -> Prompts:
    """The same inputs with visual tokens in the place of pixels: what a frozen tower says once it says for good."""
    kept = {name: value for name, value in inputs.items() if name not in ("patches", "grids")}
    if "patches" not in inputs:
        return kept
    with autocast(model.device):
        return kept | {"visual": model.visual_tokens(inputs["patches"], inputs["grids"])}


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


def reinforce(
    model: KeyeVL,
    questions_at: Callable[[int], tuple[Prompts, list[Any]]],
    reward: Reward,
    config: RolloutConfig,
    loop: LoopConfig,
    folder: Path | None = None,
    name: str = "reinforce",
) -> list[dict[str, float | int]]:
    """Teach the decoder by reward; returns the log lines of this call.

    questions_at(number) -> prompts `with_visual_tokens` and, for each, what the reward has to know; the same for the
    same number. Iteration i asks for i * oversample, and for the oversample - 1 numbers after it while groups that
    teach are lacking. loop: its steps are optimiser steps, `config.minibatches` an iteration; it is resumed at whole
    iterations, to the same numbers; whatever `learns` does not name is left frozen. Log lines carry the numbers of
    `over_sampled` (reward, teaches, length, rolled, lacking) and of `objective`. A step whose groups all agreed, or
    were none, changes nothing. Raises ValueError where steps or save_every are not whole iterations, where log_every
    would show first minibatches only, in which the policy has not moved yet; for prompts with pixels or without equally
    many known; FloatingPointError for a loss or a gradient that is not finite, before any parameter moves, naming the
    file `folder`/NAME.failed.pt that `Groups.save` wrote; and what `train` raises.
    """
    if loop.steps % config.minibatches or loop.save_every % config.minibatches:
        raise ValueError(
            f"expected steps and save_every that are multiples of {config.minibatches} minibatches, got {loop.steps} "
            f"and {loop.save_every}: a rollout is used up before a state is saved"
        )
    if config.minibatches > 1 and loop.log_every > 1 and loop.log_every % config.minibatches == 0:
        raise ValueError(
            f"expected log_every 1 or no multiple of {config.minibatches} minibatches, got {loop.log_every}: the log "
            f"would show the first of each rollout alone, whose ratio is 1"
        )
    parameters = trainable(model, learns)
    rolled: tuple[Groups, dict[str, float]] | None = None

    def backward_at(step: int) -> tuple[Tensor, dict[str, float | int | Tensor]]:
        nonlocal rolled
        iteration, number = divmod(step, config.minibatches)
        if number == 0:
            first = iteration * config.oversample
            rolled = over_sampled(lambda n: roll_out(model, questions_at, first + n, reward, config), config.oversample)
        if rolled is None:
            raise ValueError(
                f"expected to go on at a whole rollout of {config.minibatches} minibatches, got step {step}: resume "
                f"with the config that the run began with"
            )
        groups, numbers = rolled
        for p in parameters.values():
            p.grad = None
        if not len(part := groups.share(number, config.minibatches)):  # no gradient, and so no step
            return torch.zeros(()), numbers | STILL
        try:
            loss, more = learn_from(model, part, config)
            require_finite(loss, parameters)
        except FloatingPointError as error:
            kept = "was not kept: give a folder"
            if folder is not None:
                part.save(path := Path(folder) / f"{name}.failed.pt", step)
                kept = f"(prompts, answers, advantages) is in {path}"
            raise FloatingPointError(f"{name} stopped at step {step}: {error}; its batch {kept}") from error
        return loss, numbers | more

    return train(parameters, backward_at, loop, folder, name)


def roll_out(
    model: KeyeVL,
    questions_at: Callable[[int], tuple[Prompts, list[Any]]],
    number: int,
    reward: Reward,
    config: RolloutConfig,
) -> Groups:
    """`config.group` answers to each prompt of batch `number`, judged and compared; drawn from the number alone.

    Raises ValueError for prompts with pixels or without equally many known, and for a number of prompts that is no
    multiple of the minibatches.
    """
    prompts, known = questions_at(number)
    if "patches" in prompts or len(known) != len(prompts["input_ids"]):
        raise ValueError(
            f"expected prompts without pixels (with_visual_tokens) and as many known, got {sorted(prompts)}, "
            f"{len(prompts['input_ids'])} prompts and {len(known)} known"
        )
    if len(known) % config.minibatches:
        raise ValueError(f"expected prompts in {config.minibatches} equal minibatches, got {len(known)}")
    tokenizer = load_tokenizer(model.config)
    stop = (tokenizer.token_id("<|im_end|>"),)
    model.eval()
    with autocast(model.device):
        answers = sample_answers(
            model, prompts, config.group, config.max_new_tokens, stop,
            seed=config.seed * 1_000_003 + number, temperature=config.temperature, attention=config.attention,
        )  # fmt: skip
    model.train()
    decode = lambda ids: tokenizer.decode([token for token in ids if token not in stop])  # noqa: E731
    rewards = judge(answers, known, reward, decode)
    groups = torch.arange(len(known)).repeat_interleave(config.group)
    values, teaches = (x.view(rewards.shape) for x in advantages(rewards.flatten(), groups, config.variant))
    return Groups(prompts, answers, rewards, values, teaches[:, 0])


def learn_from(model: KeyeVL, groups: Groups, config: RolloutConfig) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and numbers of `objective` over all answers of these groups; leaves the gradients in the parameters."""
    answers = groups.answers
    with autocast(model.device):
        new = answer_logprobs(model, groups.prompts, answers.ids, config.temperature, config.attention)
    rows = (x.flatten(0, 1) for x in (new, answers.logprobs, answers.mask))
    loss, numbers = objective(*rows, groups.advantages.flatten().to(new.device), config.variant)
    loss.backward()
    return loss, numbers


def require_finite(loss: Tensor, parameters: dict[str, nn.Parameter]) -> None:
    """Raise FloatingPointError for a loss or a gradient that is not finite, naming the first such parameter."""
    if not bool(loss.isfinite()):
        raise FloatingPointError(f"the loss is {float(loss.detach())}")
    graded = {name: p.grad for name, p in parameters.items() if p.grad is not None}
    finite = torch.stack([grad.isfinite().all() for grad in graded.values()]).tolist()  # a GPU waits once
    if not all(finite):
        raise FloatingPointError(f"the gradient of {list(graded)[finite.index(False)]} is not finite")
