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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from minikeye.keye import KeyeVL
from minikeye.rl.groups import Groups, Prompts, Reward, decoder, over_sampled, share_of
from minikeye.rl.gspo import GSPO, Variant, advantages, objective
from minikeye.rl.parallel.agreement import alike, by_rows, require_rows_alone, share, totals
from minikeye.rl.parallel.sampling import answered, tokens_of_all
from minikeye.rl.replay import Replay
from minikeye.rl.rollout import Answers, Sampling, answer_logprobs
from minikeye.rl.second_chance import SecondChance, all_wrong, importance, mixed, rolled_back, told_again
from minikeye.training.loop import LoopConfig, train
from minikeye.training.parallel.checkpoints import first
from minikeye.training.parallel.mesh import ALONE, Ranks, gathered, local
from minikeye.training.stage import trainable
from minikeye.training.step import autocast

# What the log says of a ratio where no group is left and no step is taken.
STILL = {"clipped": 0.0, "outside": 0.0, "ratio": 1.0, "largest": 1.0, "kl": 0.0, "hinted": 0, "hint_ratio": 1.0}


@dataclass(frozen=True)
class RolloutConfig(Sampling):
    """How the policy is sampled and how often a sample is used."""

    minibatches: int = 2  # optimiser steps on each rollout, each on its share of the groups that teach something
    oversample: int = 1  # batches of prompts an iteration may roll out, until as many groups teach as one batch has
    variant: Variant = GSPO
    replay: Replay = "none"  # which of the sampler's choices the learner's pass takes, see `replay`

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.group < 2 or min(self.minibatches, self.oversample) < 1:
            raise ValueError(
                f"expected group >= 2, minibatches and oversample >= 1, got {self.group}, {self.minibatches} and "
                f"{self.oversample}"
            )
        if self.variant.kl:
            raise ValueError(f"expected a variant without kl, for which there is no reference here; got {self.variant}")
        if self.replay not in get_args(Replay) or (self.replay in ("index", "both") and self.attention != "sparse"):
            raise ValueError(
                f"expected replay to be one of {', '.join(get_args(Replay))}, the last two with sparse attention, "
                f"whose keys they replay; got {self.replay!r} and {self.attention} attention"
            )


def learns(name: str) -> bool:
    """Whether reward teaches the parameter of that name: decoder and head, without the indexers."""
    return name.startswith(("model.", "lm_head.")) and "sa_indexer" not in name


@torch.no_grad()
def with_visual_tokens(model: KeyeVL, inputs: Mapping[str, Tensor], *, ranks: Ranks = ALONE) -> Prompts:
    """The same inputs with visual tokens in the place of pixels: what a frozen tower says once it says for good.

    ranks: each runs the tower on its share of the frames, and gets all tokens; all call it with the same inputs.
    """
    kept = {name: value for name, value in inputs.items() if name not in ("patches", "grids")}
    if "patches" not in inputs:
        return kept
    with autocast(model.device):
        return kept | {"visual": tokens_of_all(model, inputs["patches"], inputs["grids"], ranks)}


def reinforce(
    model: KeyeVL,
    questions_at: Callable[[int], tuple[Prompts, list[Any]]],
    reward: Reward,
    config: RolloutConfig,
    loop: LoopConfig,
    folder: Path | None = None,
    name: str = "reinforce",
    second_chance: SecondChance | None = None,
    *,
    ranks: Ranks = ALONE,
) -> list[dict[str, float | int]]:
    """Teach the decoder by reward; returns the log lines of this call.

    questions_at(number) -> prompts `with_visual_tokens` and, for each, what the reward has to know; the same for the
    same number. Iteration i asks for i * oversample, and for the oversample - 1 numbers after it while groups that
    teach are lacking. loop: its steps are optimiser steps, `config.minibatches` an iteration; it is resumed at whole
    iterations, to the same numbers; whatever `learns` does not name is left frozen. second_chance: how groups that
    earned nothing are asked again; None: they are not. Log lines carry the numbers of `over_sampled` (reward, teaches,
    length, rescued, rolled, lacking) and of `learn_from`. A step for which no group is left changes nothing. Raises
    ValueError where steps or save_every are not whole iterations, where log_every would show first minibatches only, in
    which the policy has not moved yet; for a second chance that would replace whole groups, or beside replay; for
    prompts with pixels or without equally many known; FloatingPointError for a loss or a gradient that is not finite,
    before any parameter moves, naming the file `folder`/NAME.failed.pt that `Groups.save` wrote; and what `train`
    raises.

    ranks: the model is `spread` over them, and all call this alike, `questions_at` giving every rank all prompts. Each
    answers its share of the prompts, with the whole model in its memory meanwhile (`mesh.gathered`), and judges the
    answers; all hear of all, and each learns from its share of the groups: the numbers of one process. A reward that
    fails on one rank stops all. ep and cp are left out: ValueError.
    """
    require_rows_alone(model, ranks)
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
    if second_chance is not None and second_chance.most >= config.group:
        raise ValueError(f"expected to replace less than a group of {config.group} answers, got {second_chance.most}")
    if second_chance is not None and config.replay != "none":
        raise ValueError(
            f"expected no replay beside a second chance, whose answers are drawn behind other prompts than they are "
            f"learnt behind; got {config.replay!r}"
        )
    parameters = trainable(model, learns)
    rolled: tuple[Groups, dict[str, float]] | None = None

    def backward_at(step: int) -> tuple[Tensor, dict[str, float | int | Tensor]]:
        nonlocal rolled
        iteration, number = divmod(step, config.minibatches)
        if number == 0:
            asked = iteration * config.oversample
            batch_at = lambda n: roll_out(model, questions_at, asked + n, reward, config, second_chance, ranks)  # noqa: E731
            rolled = over_sampled(batch_at, config.oversample)
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
            loss, more = learn_from(model, part, config, ranks)
            require_finite(loss, parameters, ranks)
        except FloatingPointError as error:
            kept = "was not kept: give a folder"
            if folder is not None:
                path = Path(folder) / f"{name}.failed.pt"
                first(ranks, lambda: part.save(path, step))
                kept = f"(prompts, answers, advantages) is in {path}"
            raise FloatingPointError(f"{name} stopped at step {step}: {error}; its batch {kept}") from error
        return loss, numbers | more

    return train(parameters, backward_at, loop, folder, name, ranks=ranks)


def roll_out(
    model: KeyeVL,
    questions_at: Callable[[int], tuple[Prompts, list[Any]]],
    number: int,
    reward: Reward,
    config: RolloutConfig,
    second_chance: SecondChance | None = None,
    ranks: Ranks = ALONE,
) -> Groups:
    """`config.group` answers to each prompt of batch `number`, judged and compared; drawn from the number alone.

    second_chance: how prompts whose answers all earned 0 are asked again, for as many answers. ranks: as of
    `reinforce`; every rank gets all groups. Raises ValueError for prompts with pixels or without equally many known,
    and for a number of prompts that is no multiple of the minibatches.
    """
    prompts, known = questions_at(number)
    if "patches" in prompts or len(known) != len(prompts["input_ids"]):
        raise ValueError(
            f"expected prompts without pixels (with_visual_tokens) and as many known, got {sorted(prompts)}, "
            f"{len(prompts['input_ids'])} prompts and {len(known)} known"
        )
    if len(known) % config.minibatches:
        raise ValueError(f"expected prompts in {config.minibatches} equal minibatches, got {len(known)}")
    seed = config.seed * 1_000_003 + number
    with gathered(model, ranks):
        answers, rewards = answered(model, prompts, known, reward, config, seed, ranks, config.replay != "none")
        hinted = torch.zeros_like(rewards, dtype=torch.bool)
        if second_chance is not None and (rows := all_wrong(rewards)):
            wrong, about = [answers.ids[row, 0] for row in rows], [known[row] for row in rows]
            part = share_of(prompts, rows)
            again, right = asked_again(model, part, wrong, about, reward, config, second_chance, seed + 2**40, ranks)
            answers, rewards, hinted = mixed(answers, rewards, rows, again, right, second_chance.most)
        answers, ratios = stripped(model, prompts, answers, hinted, config, ranks)
    groups = torch.arange(len(known)).repeat_interleave(config.group)
    values, teaches = (x.view(rewards.shape) for x in advantages(rewards.flatten(), groups, config.variant))
    if second_chance is not None:
        values = torch.where(hinted, second_chance.weight * values, values)
    return Groups(prompts, answers, rewards, values, teaches[:, 0], hinted, ratios)


def asked_again(
    model: KeyeVL,
    prompts: Prompts,
    wrong: list[Int[Tensor, " n"]],
    known: list[Any],
    reward: Reward,
    config: RolloutConfig,
    chance: SecondChance,
    seed: int,
    ranks: Ranks = ALONE,
) -> tuple[Answers, Float[Tensor, "b g"]]:
    """Answers to prompts that were answered wrongly, told the mistake; and rewards, 0 for what does not stand alone."""
    decode = decoder(model)
    said = [[token for token in ids.tolist() if token >= 0] for ids in wrong]
    reports = [chance.report(decode(ids), about) for ids, about in zip(said, known, strict=True)]
    alone = lambda text, about: reward(text, about) if chance.independent(text) else 0.0  # noqa: E731
    return answered(model, told_again(prompts, said, reports, model.config), known, alone, config, seed, ranks)


@torch.no_grad()
def stripped(
    model: KeyeVL,
    prompts: Prompts,
    answers: Answers,
    hinted: Bool[Tensor, "b g"],
    config: RolloutConfig,
    ranks: Ranks = ALONE,
) -> tuple[Answers, Float[Tensor, "b g"]]:
    """The answers as ones to the plain prompts: old log-probs `rolled_back` where hinted, and `importance` there."""
    ratios = torch.ones(hinted.shape)
    if not (rows := hinted.any(dim=1).nonzero().flatten().tolist()):
        return answers, ratios

    def work(part: slice) -> Tensor:
        asked, ids = share_of(prompts, rows[part]), answers.ids[rows[part]]
        with autocast(model.device):
            return answer_logprobs(model, asked, ids, config.temperature, config.attention)

    plain = torch.cat(by_rows(ranks, len(rows), work))
    where = hinted.to(plain.device)
    three = plain[where[rows]], answers.logprobs[where], answers.mask[where]
    logprobs = answers.logprobs.clone()
    logprobs[where], ratios[hinted] = rolled_back(*three, config.variant), importance(*three).cpu()
    return Answers(answers.ids, logprobs), ratios


def learn_from(
    model: KeyeVL, groups: Groups, config: RolloutConfig, ranks: Ranks = ALONE
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and numbers over all answers of these groups; leaves the gradients in the parameters.

    ranks: each passes over its share of the groups; one without a group over the first, which then counts for nothing.

    Choices that were recorded are taken again (`config.replay`): experts and keys are the sampler's, gate weights and
    gradients are this pass's.
    Numbers: those of `objective`; "hinted": answers of a second chance; "hint_ratio": mean of their importance, 1
    where there are none.
    """
    own = groups.of(share(ranks, len(groups)))
    if not len(own):
        own = replace(first := groups.of(slice(1)), answers=first.answers.silent)
    answers, batch = own.answers, groups.answers.mask.flatten(0, 1)
    with alike(ranks):
        with autocast(model.device):
            new = answer_logprobs(
                model, own.prompts, answers.ids, config.temperature, config.attention,
                choices=answers.choices, replay=config.replay,
            )  # fmt: skip
        rows = (x.flatten(0, 1) for x in (new, answers.logprobs, answers.mask))
        loss, numbers = objective(*rows, own.advantages.flatten().to(new.device), config.variant, batch=batch)
    loss.backward()
    numbers = totals(ranks, {"loss": loss.detach()} | numbers, largest=("largest",))
    ratios = groups.importance[groups.hinted]
    return numbers.pop("loss"), numbers | {
        "hinted": groups.hinted.sum(),
        "hint_ratio": ratios.mean() if len(ratios) else torch.ones(()),
    }


def require_finite(loss: Tensor, parameters: dict[str, nn.Parameter], ranks: Ranks = ALONE) -> None:
    """Raise FloatingPointError for a loss or a gradient that is not finite, naming the first such parameter.

    loss: the whole one, the same on all ranks.
    """
    if not bool(loss.isfinite()):
        raise FloatingPointError(f"the loss is {float(loss.detach())}")
    graded = {name: local(p.grad) for name, p in parameters.items() if p.grad is not None}
    broken = torch.stack([~grad.isfinite().all() for grad in graded.values()]).int()
    spoilt = ranks.total(broken).tolist()  # a GPU waits once
    if any(spoilt):
        name = next(name for name, ranks_with in zip(graded, spoilt, strict=True) if ranks_with)
        raise FloatingPointError(f"the gradient of {name} is not finite")
