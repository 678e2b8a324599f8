"""A short imitation before reward: an expert plays episodes, and its good turns are learnt.

    batch_at = lambda step: [demonstrate(Shop(), number, expert, writer, budget) for number in numbers_of(step)]
    imitate(model, batch_at, loop)

An expert guesses where a policy can only guess, reads what comes back and corrects itself. Its wrong guesses are read
and not learnt, so that correcting is learnt and guessing wrongly is not. VideoTemp-o3 (arXiv 2602.07801) learns the
last two turns, which is the same where wrong guesses come first; ours leaves out the turns that missed, wherever they
are, because an episode of five turns has right ones before its last two (our choice).

Axes: n trajectory, t token.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from minikeye.inference.calling.calls import Result, read_calls
from minikeye.keye import KeyeVL
from minikeye.rl import partial
from minikeye.rl.agent.environment import Budget, Environment
from minikeye.rl.agent.reading import Frames, rows
from minikeye.rl.agent.trajectory import Writer, answered, begin, results_of
from minikeye.rl.parallel.agreement import require_whole
from minikeye.rl.partial import PartialConfig
from minikeye.rl.record import Rollout
from minikeye.training.loop import LoopConfig, train
from minikeye.training.stage import DENSE, trainable

Expert = Callable[[Environment, Sequence[Sequence[Result]]], str]  # what to say next, after what each turn has given


@dataclass(frozen=True, eq=False)
class Demonstration:
    """An episode as an expert plays it. It may travel between processes."""

    rollout: Rollout
    frames: Frames
    learnt: tuple[bool, ...]  # which tokens of the completion are to be learnt: those of turns that did not miss

    def __post_init__(self) -> None:
        if len(self.learnt) != len(self.rollout.completion_ids):
            raise ValueError(
                f"expected a mark for each of {len(self.rollout.completion_ids)} tokens, got {len(self.learnt)}"
            )


def demonstrate(
    world: Environment, number: int, expert: Expert, writer: Writer, budget: Budget, listed: bool = False
) -> Demonstration:
    """Episode `number` of the world as the expert plays it, with the reward that it earns.

    listed: as of `Episode`. Raises ValueError for an expert whose episode is cut, by the budget or by the context.
    """
    (trajectory,) = begin([world], number, number, writer, budget, listed)
    context = writer.processor.config.text.max_positions
    learnt, heard = list[bool](), list[Sequence[Result]]()
    while not trajectory.episode.over:
        said = [*writer.said(turn := expert(world, heard)), writer.end]
        drawn = sum(trajectory.rollout.mask) + len(said)
        config = PartialConfig(budget=1, max_new_tokens=drawn + 1)  # an expert ends by itself
        before, first = len(world.misses), len(trajectory.rollout.mask)
        rollout = partial.longer(trajectory.rollout, [(token, 0.0) for token in said], version=0)
        trajectory, results = results_of(replace(trajectory, rollout=rollout), config, writer)
        if results:
            heard.append(results)
            trajectory = answered(trajectory, results, config, writer, version=0)
        learnt += [not any(world.misses[before:])] * len(said)
        learnt += [False] * (len(trajectory.rollout.mask) - first - len(said))
    if read_calls(turn) or len(trajectory.rollout.prompt_ids) + len(trajectory.rollout.mask) > context:
        raise ValueError(
            f"expected a budget, and a context, that episode {number} fits into, got {budget} and {context} tokens: "
            f"the expert was cut"
        )
    return Demonstration(trajectory.rewarded().rollout, trajectory.frames, tuple(learnt))


def learnt_of(demonstrations: Sequence[Demonstration]) -> Bool[Tensor, "n t"]:
    """Which tokens of the rows of `reading.rows`, on the right side, are to be learnt."""
    rollouts = [d.rollout for d in demonstrations]
    out = torch.zeros(len(rollouts), max(len(r.prompt_ids) + len(r.completion_ids) for r in rollouts), dtype=torch.bool)
    for n, (rollout, demonstration) in enumerate(zip(rollouts, demonstrations, strict=True)):
        first = len(rollout.prompt_ids)
        out[n, first : first + len(demonstration.learnt)] = torch.tensor(demonstration.learnt)
    return out


def imitate(
    model: KeyeVL,
    batch_at: Callable[[int], Sequence[Demonstration]],
    loop: LoopConfig,
    folder: Path | None = None,
    name: str = "imitate",
    wanted: Callable[[str], bool] = DENSE.learns,
) -> list[dict[str, float | int]]:
    """Teach tower, projector and decoder by demonstrations, with dense attention; returns the log lines of this call.

    batch_at(step) -> what step learns from, the same for the same step. folder, name, and what is raised: as of
    `loop.train`; and ValueError for a batch without a token to learn. wanted: which parameters learn, by name; all but
    the indexers. In one process: ValueError for a model that is spread over ranks.
    """
    require_whole(model)
    parameters = trainable(model, wanted)

    def backward_at(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        batch = batch_at(step)
        if not any(any(d.learnt) for d in batch):
            raise ValueError(f"expected demonstrations with a token to learn in step {step}, got {len(batch)} without")
        for p in parameters.values():
            p.grad = None
        inputs = rows(model, [d.rollout for d in batch], [d.frames for d in batch], "right", taught=True)
        loss, numbers = DENSE.loss(model, inputs | {"answer": learnt_of(batch).to(model.device)})
        loss.backward()
        return loss.detach(), numbers

    model.train()
    return train(parameters, backward_at, loop, folder, name)
