"""How often agents are right, what it takes them, and whether they read what their tools say.

`play` lets a model play many episodes. With results shuffled between them, every call is answered by what another
episode's call gave: whoever is still right has not read it. `scores` counts; `split` counts apart, by whatever an
environment drew.

Self-correction is our reading of a word that the report does not define: an episode slipped whose decisive first try
failed or missed (`slipped` of the world), and is corrected if it is right at the end.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from minikeye.inference.calling.calls import Result
from minikeye.keye import KeyeVL
from minikeye.rl.agent.environment import Budget, Environment
from minikeye.rl.agent.trajectory import Trajectory, Writer, answered, begin, results_of, spoken
from minikeye.rl.partial import PartialConfig, finished
from minikeye.training.step import autocast

GREEDY = 1e-3  # temperature: the likeliest token, but for ties within a thousandth


@dataclass(frozen=True)
class Player:
    """How a model plays."""

    world: Callable[[], Environment]  # another copy of the same environment
    writer: Writer
    budget: Budget
    drawing: PartialConfig
    listed: bool = False  # as of `Episode`


@torch.no_grad()
def play(
    model: KeyeVL, player: Player, numbers: Sequence[int], shuffled: bool = False, rows: int = 128
) -> list[Trajectory]:
    """Greedy episodes of these numbers, with their rewards. rows: that are played side by side.

    shuffled: with the results of calls handed round among episodes. The model is left in evaluation mode.
    """
    drawing, writer, out = replace(player.drawing, temperature=GREEDY), player.writer, list[Trajectory]()
    model.eval()
    for first in range(0, len(numbers), rows):
        going: list[Trajectory] = []
        for number in numbers[first : first + rows]:
            going += begin([player.world()], number, number, writer, player.budget, player.listed)
        spare = Spare()
        while not all(finished(t.rollout, drawing, writer.stop_ids) for t in going):
            with autocast(model.device):
                going = spoken(model, going, drawing, writer, version=0)
            going, results = map(list, zip(*(results_of(t, drawing, writer) for t in going), strict=True))
            if shuffled:
                results, spare = handed_on(results, spare)
            heard = zip(going, results, strict=True)
            going = [answered(t, told, drawing, writer, version=0) if told else t for t, told in heard]
        out += [t.rewarded() for t in going]
    return out


@dataclass(frozen=True)
class Spare:
    """A result that was handed out before, and whose it was: for who calls alone."""

    owner: int = -1
    results: tuple[Result, ...] = ("error: nothing",)


def handed_on(results: list[list[Result]], spare: Spare) -> tuple[list[list[Result]], Spare]:
    """The results of every turn, handed to the next that called; who calls alone gets `spare`. And the next spare.

    Nobody gets a result of its own: where the spare is, its words are those of an error.
    """
    called = [n for n, told in enumerate(results) if told]
    if not called:
        return results, spare
    out = list(results)
    if len(called) == 1:
        out[called[0]] = list((Spare() if spare.owner == called[0] else spare).results)
    else:
        for n, other in zip(called, [*called[1:], called[0]], strict=True):
            out[n] = results[other]
    return out, Spare(called[0], tuple(results[called[0]]))


def scores(played: Sequence[Trajectory], right: Callable[[Any], bool] | None = None) -> dict[str, float | int]:
    """Counts over episodes, in percent where they are shares.

    n; "success" (reward 1), "right" (answers that are right, whatever the reward asks besides), "reward" (mean, 0..1),
    "calls" and "turns" (an episode), "invalid" (of calls), "slipped" (of episodes), "corrected" (right ones of those
    that slipped), "n_slipped". right: of the world; None: where the reward is 1.
    """
    worlds = [t.episode.environment for t in played]
    won = [(t.rollout.reward or 0.0) == 1.0 for t in played]
    good = won if right is None else [right(world) for world in worlds]
    slips = [good[n] for n, world in enumerate(worlds) if world.slipped]
    calls = sum(t.episode.calls for t in played)
    return {
        "n": len(played),
        "success": percent(sum(won), len(won)),
        "right": percent(sum(good), len(good)),
        "reward": round(sum(t.rollout.reward or 0.0 for t in played) / max(1, len(played)), 4),
        "calls": round(calls / max(1, len(played)), 3),
        "turns": round(sum(t.episode.turns for t in played) / max(1, len(played)), 3),
        "invalid": percent(sum(t.episode.invalid for t in played), calls),
        "slipped": percent(len(slips), len(played)),
        "corrected": percent(sum(slips), len(slips)),
        "n_slipped": len(slips),
    }


def split(
    played: Sequence[Trajectory],
    factors: Callable[[Any], dict[str, str]],
    right: Callable[[Any], bool] | None = None,
) -> dict[str, dict[str, float | int]]:
    """`scores` by every value of every factor that an environment drew, named "FACTOR VALUE"."""
    found: dict[str, list[Trajectory]] = {}
    for t in played:
        for name, value in factors(t.episode.environment).items():
            found.setdefault(f"{name} {value}", []).append(t)
    return {name: scores(found[name], right) for name in sorted(found)}


def percent(part: int, of: int) -> float:
    """0 of nothing."""
    return round(100 * part / max(of, 1), 2)
