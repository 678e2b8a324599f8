"""Agents learn from reward: episodes are played, complete groups are compared, and the policy takes a few steps.

One iteration: new groups of episodes begin, all that go on speak for `rounds` rounds, groups whose episodes have all
ended are used at once, the others wait for the next iteration, whose policy is another by then (report, Agentic RL:
complete groups are consumed, unfinished trajectories are cached and resumed). Waiting groups take the places of new
ones, and too old ones are dropped: both bound how far the policy may have moved (our choice, as are all numbers).

The loss is GSPO's (`rl.gspo`): over the tokens that the policy drew, each against the log-probability that it had when
it was drawn. Vision tower, projector and indexers are frozen.

Axes: n trajectory, t token.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import torch
from jaxtyping import Bool
from torch import Tensor

from minikeye.files import write_whole
from minikeye.keye import KeyeVL
from minikeye.rl import partial
from minikeye.rl.agent.environment import Budget, Environment
from minikeye.rl.agent.reading import drawn, logprobs, rows
from minikeye.rl.agent.trajectory import (
    Trajectory,
    Writer,
    advance,
    begin,
    complete_groups,
    played_again,
    staleness,
    too_old,
)
from minikeye.rl.gspo import GSPO, Variant, advantages, objective
from minikeye.rl.learn import STILL, learns, require_finite
from minikeye.rl.parallel.agreement import require_whole
from minikeye.rl.partial import PartialConfig
from minikeye.training.loop import LoopConfig, train
from minikeye.training.stage import trainable
from minikeye.training.step import autocast

World = Callable[[], Environment]  # another copy of the same environment


@dataclass(frozen=True)
class AgentConfig:
    """How episodes are played and learnt from."""

    groups: int = 8  # that are under way in an iteration, those that waited included
    group: int = 8  # episodes in each, of the same number
    rounds: int = 8  # of `partial.PartialConfig.budget` tokens, in an iteration; an episode that goes on then waits
    most_stale: int = 8  # optimiser steps since an episode's first token; its group is dropped beyond
    minibatches: int = 2  # optimiser steps on each iteration's complete groups
    variant: Variant = GSPO
    drawing: PartialConfig = field(default_factory=lambda: PartialConfig(budget=128, max_new_tokens=512))
    budget: Budget = Budget()
    listed: bool = False  # as of `Episode`

    def __post_init__(self) -> None:
        if self.group < 2 or min(self.groups, self.rounds, self.minibatches) < 1 or self.most_stale < 0:
            raise ValueError(
                f"expected group >= 2, groups, rounds and minibatches >= 1, most_stale >= 0, got {self.group}, "
                f"{self.groups}, {self.rounds}, {self.minibatches} and {self.most_stale}"
            )
        if self.variant.kl:
            raise ValueError(f"expected a variant without kl, for which there is no reference here; got {self.variant}")


@dataclass
class Play:
    """Episodes that are under way. A run that is killed finds them in a file again (`kept`, `found`)."""

    world: World
    writer: Writer
    config: AgentConfig
    waiting: list[Trajectory] = field(default_factory=list)
    begun: int = 0  # groups so far: the number of the next one, and of its episode

    def iteration(self, model: KeyeVL, version: int) -> tuple[list[Trajectory], dict[str, float]]:
        """Complete groups, side by side, with rewards; and numbers for the log. version: optimiser steps so far.

        Numbers, over the episodes that ended: "reward", "turns", "calls", "length" (tokens that were drawn), "invalid"
        (share of calls), "stale" (mean optimiser steps since the first token) and "oldest"; and of groups: "teaches"
        (share of the complete ones), "complete", "waiting" and "dropped".
        """
        config = self.config
        self.waiting, old = too_old(self.waiting, version, config.most_stale)
        while len(self.waiting) < config.groups * config.group:
            worlds = [self.world() for _ in range(config.group)]
            self.waiting += begin(worlds, self.begun, self.begun, self.writer, config.budget, config.listed)
            self.begun += 1
        model.eval()
        for _ in range(config.rounds):
            with autocast(model.device):
                self.waiting = advance(model, self.waiting, config.drawing, self.writer, version)
        model.train()
        done, self.waiting = complete_groups(self.waiting, config.drawing, self.writer)
        groups = len(self.waiting) // config.group, len(old) // config.group
        return done, self._numbers(done, version) | {"waiting": groups[0], "dropped": groups[1]}

    def _numbers(self, done: list[Trajectory], version: int) -> dict[str, float]:
        mean = lambda values: sum(values) / max(1, len(done))  # noqa: E731
        calls, ages = sum(t.episode.calls for t in done), [staleness(t.rollout, version) for t in done]
        rewards = [t.rollout.reward or 0.0 for t in done]
        parts = [rewards[n : n + self.config.group] for n in range(0, len(done), self.config.group)]
        return {
            "reward": mean(rewards),
            "turns": mean([t.episode.turns for t in done]),
            "calls": calls / max(1, len(done)),
            "length": mean([sum(t.rollout.mask) for t in done]),
            "invalid": sum(t.episode.invalid for t in done) / max(1, calls),
            "stale": mean(ages),
            "oldest": max(ages, default=0),
            "complete": len(parts),
            "teaches": sum(max(part) > min(part) for part in parts) / max(1, len(parts)),
        }

    def kept(self) -> str:
        """All of it as text."""
        return json.dumps({"begun": self.begun, "waiting": partial.written([t.rollout for t in self.waiting])})

    def found(self, text: str) -> None:
        """Go on from what `kept` wrote: every episode is played again. Raises ValueError for a world that differs."""
        state, config = json.loads(text), self.config
        self.begun = state["begun"]
        self.waiting = [
            played_again(rollout, self.world(), self.writer, config.drawing, config.budget, config.listed)
            for rollout in partial.read(state["waiting"])
        ]


def reinforce(
    model: KeyeVL,
    world: World,
    writer: Writer,
    config: AgentConfig,
    loop: LoopConfig,
    folder: Path | None = None,
    name: str = "agent",
    wanted: Callable[[str], bool] = learns,
) -> list[dict[str, float | int]]:
    """Teach the decoder by reward; returns the log lines of this call, with the numbers of `Play.iteration`.

    world() -> another environment at each call; its episodes 0, 1, ... are played. loop: its steps are optimiser
    steps, `config.minibatches` an iteration. folder: a run that was killed goes on from there to the same numbers; the
    episodes that wait lie in NAME.waiting-STEP.json. wanted: which parameters learn, by name. Raises ValueError where
    steps or save_every are not whole iterations, and for a folder whose waiting episodes are gone; FloatingPointError
    for a loss or a gradient that is not finite, before any parameter moves; and what `train` raises. In one process:
    ValueError for a model that is spread over ranks.
    """
    if loop.steps % config.minibatches or loop.save_every % config.minibatches:
        raise ValueError(
            f"expected steps and save_every that are multiples of {config.minibatches} minibatches, got {loop.steps} "
            f"and {loop.save_every}: an iteration is used up before a state is saved"
        )
    require_whole(model)
    parameters = trainable(model, wanted)
    play, parts, numbers = Play(world, writer, config), list[list[Trajectory]](), dict[str, float]()

    def backward_at(step: int) -> tuple[Tensor, dict[str, float | Tensor]]:
        nonlocal parts, numbers
        number = step % config.minibatches
        if number == 0:
            if step and not play.begun:
                play.found(_read(folder, name, step))
            done, numbers = play.iteration(model, step)
            parts = shares(done, config)
        if folder is not None and (step + 1 == loop.steps or (loop.save_every and (step + 1) % loop.save_every == 0)):
            _write(play, folder, name, step + 1, loop.save_every)
        for p in parameters.values():
            p.grad = None
        if not parts[number]:
            return torch.zeros(()), numbers | STILL
        loss, more = learn_from(model, parts[number], config)
        require_finite(loss, parameters)
        return loss, numbers | more

    return train(parameters, backward_at, loop, folder, name)


def shares(done: Sequence[Trajectory], config: AgentConfig) -> list[list[Trajectory]]:
    """The groups that teach something, parted among the minibatches in order; some shares are empty where they lack."""
    groups = [list(done[n : n + config.group]) for n in range(0, len(done), config.group)]
    teaching = [group for group in groups if len({t.rollout.reward for t in group}) > 1]
    cuts = [len(teaching) * n // config.minibatches for n in range(config.minibatches + 1)]
    return [[t for group in teaching[a:b] for t in group] for a, b in pairwise(cuts)]


def learn_from(
    model: KeyeVL, trajectories: Sequence[Trajectory], config: AgentConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and numbers of `gspo.objective` over whole groups; leaves the gradients in the parameters."""
    rollouts = [t.rollout for t in trajectories]
    inputs = rows(model, rollouts, [t.frames for t in trajectories], "right")
    mask, old = drawn(rollouts, "mask").to(model.device), drawn(rollouts, "old_logprobs").to(model.device)
    new = logprobs(model, inputs, mask, config.drawing.temperature, config.drawing.attention)
    rewards = torch.tensor([r.reward for r in rollouts], dtype=torch.float32)
    values, kept = advantages(rewards, torch.tensor([r.group for r in rollouts]), config.variant)
    loss, numbers = objective(new, old, _of(mask, kept), values.to(model.device), config.variant)
    loss.backward()
    return loss, numbers


def _of(mask: Bool[Tensor, "n t"], kept: Bool[Tensor, " n"]) -> Bool[Tensor, "n t"]:
    return mask & kept.to(mask.device)[:, None]


def _file(folder: Path, name: str, step: int) -> Path:
    return Path(folder) / f"{name}.waiting-{step}.json"


def _write(play: Play, folder: Path, name: str, step: int, every: int) -> None:
    """Keep the episodes that wait beside the state that `train` is about to write; and those of the state before, which
    is there until then."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    write_whole(_file(folder, name, step), play.kept().encode())
    for old in Path(folder).glob(f"{name}.waiting-*.json"):
        if int(old.stem.rpartition("-")[2]) < step - every:
            old.unlink()


def _read(folder: Path | None, name: str, step: int) -> str:
    path = _file(Path(folder or "."), name, step)
    if not path.is_file():
        raise ValueError(f"expected the episodes that waited at step {step} in {path}, found none: begin the run anew")
    return path.read_text(encoding="utf-8")
