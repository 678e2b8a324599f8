"""Answers in pieces: what is not finished in one round goes on in a later one, drawn by whatever the policy then is.

A round gives every answer a few tokens at most, so that it ends soon however long the longest answer is. Groups whose
answers have all ended are learnt from at once; the others wait (report, Agentic RL: unfinished trajectories are cached
and resumed, complete groups are consumed). Each token keeps the log-probability and the version of the policy that drew
it, so that the ratio of the objective is the right one for every piece.

    waiting = ask(prompt=7, prompt_ids=ids, group=0, answers=8)
    while waiting:
        waiting = advance(model, waiting, prompts_of, config, stop_ids, version=optimiser_steps_so_far)
        done, waiting = complete_groups(waiting, config, stop_ids)
        ...  # with rewards, stack(done) and Stack.answers are what `objective` and `answer_logprobs` take

Our choice: no answer is too old to go on (its versions tell, and the ratio's bounds hold it); what has been drawn is
read again by the newer policy, because keys of an older one would belong to neither; and every token's random number
belongs to its answer and place alone, so that neither pieces nor neighbours nor a kill change what is said.

Axes: b answer that goes on, t token of prompt and answer so far, v vocabulary.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minikeye.inference.generate import decoder, log_probabilities, sayable
from minikeye.keye import KeyeVL
from minikeye.minivid.draws import generator
from minikeye.model.step import MODES, Mode
from minikeye.rl.groups import Prompts
from minikeye.rl.record import Rollout
from minikeye.rl.rollout import require_positions


@dataclass(frozen=True)
class PartialConfig:
    """How far answers go."""

    budget: int = 8  # tokens that an answer may draw in one round
    max_new_tokens: int = 24  # tokens that it may draw in all; one that is cut there has ended
    temperature: float = 1.0
    attention: Mode = "dense"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.budget <= self.max_new_tokens:
            raise ValueError(f"expected 1 <= budget <= max_new_tokens, got {self.budget} and {self.max_new_tokens}")
        if not 0 < self.temperature < math.inf or self.attention not in MODES:
            raise ValueError(
                f"expected a finite temperature above 0 and attention among {', '.join(MODES)}, got "
                f"{self.temperature} and {self.attention!r}"
            )


def ask(prompt: int, prompt_ids: Sequence[int], group: int, answers: int) -> list[Rollout]:
    """A group of `answers` answers that have not begun. group: a number that no other group of the run has.

    prompt: its number in the data set. prompt_ids: its tokens without padding, visual placeholders included.
    """
    return [Rollout(prompt, tuple(prompt_ids), (), (), (), (), group, number=n) for n in range(answers)]


def finished(rollout: Rollout, config: PartialConfig, stop_ids: tuple[int, ...]) -> bool:
    """Whether it has ended: its last token is a stop token that it drew, or it has drawn all that it may.

    Where a tool's words come after the stop token (mask False), it has not: it goes on behind them.
    """
    stopped = bool(rollout.mask) and rollout.mask[-1] and rollout.completion_ids[-1] in stop_ids
    return stopped or sum(rollout.mask) >= config.max_new_tokens


def advance(
    model: KeyeVL,
    rollouts: Sequence[Rollout],
    prompts_of: Callable[[list[int]], Prompts],
    config: PartialConfig,
    stop_ids: tuple[int, ...],
    version: int,
) -> list[Rollout]:
    """One round: the same answers in the same order, those that had not ended longer by 1 to `config.budget` tokens.

    prompts_of(numbers) -> inputs of a pass with one row for each of these different prompts, padded on the left, with
    positions, and with visual tokens or without (`with_visual_tokens`). version: optimiser steps that `model` has
    taken. Raises ValueError for prompts that are not those of the rollouts, and what a pass of the model raises.
    """
    return further(model, rollouts, lambda going: _so_far(going, prompts_of), config, stop_ids, version)


@torch.no_grad()
def further(
    model: KeyeVL,
    rollouts: Sequence[Rollout],
    inputs_of: Callable[[list[Rollout]], Prompts],
    config: PartialConfig,
    stop_ids: tuple[int, ...],
    version: int,
) -> list[Rollout]:
    """`advance`, where what has been said may hold more than words.

    inputs_of(rollouts) -> inputs of a pass with a row for each of them, its prompt and all that was said and told so
    far, padded on the left.
    """
    going = [n for n, rollout in enumerate(rollouts) if not finished(rollout, config, stop_ids)]
    out = list(rollouts)
    if not going:
        return out
    draws = {n: _draws(out[n], config) for n in going}
    already = {n: sum(out[n].mask) for n in going}
    said: dict[int, list[tuple[int, float]]] = {n: [] for n in going}  # token and log-probability

    def ended(n: int) -> bool:
        return (bool(said[n]) and said[n][-1][0] in stop_ids) or already[n] + len(said[n]) >= config.max_new_tokens

    inputs, options = inputs_of([out[n] for n in going]), {"attention": config.attention, "backend": "auto"}
    cache = model.new_cache(inputs["input_ids"].shape[1] + config.budget)
    answer = model(inputs, cache, last=1, **options)
    step = decoder(model, cache, options, config.budget)
    for drawn in range(config.budget):
        logits = sayable(answer.logits[:, -1], model.config)
        places = [min(already[n] + len(said[n]), config.max_new_tokens - 1) for n in going]
        u = torch.tensor([draws[n][place] for n, place in zip(going, places, strict=True)], dtype=torch.float64)
        tokens = pick(logits, u.to(logits.device), config.temperature)
        logprobs = log_probabilities(logits, tokens, config.temperature).tolist()
        for n, token, logprob in zip(going, tokens.tolist(), logprobs, strict=True):
            if not ended(n):
                said[n].append((token, logprob))
        if drawn == config.budget - 1 or all(map(ended, going)):
            break
        answer = step(tokens)
    for n, words in said.items():
        out[n] = longer(out[n], words, version)
    return out


def longer(rollout: Rollout, words: Sequence[tuple[int, float]], version: int) -> Rollout:
    """More tokens, drawn by the policy itself, each with its log-probability."""
    tokens, logprobs = zip(*words, strict=True)
    return replace(
        rollout,
        completion_ids=(*rollout.completion_ids, *tokens),
        mask=(*rollout.mask, *[True] * len(words)),
        old_logprobs=(*rollout.old_logprobs, *logprobs),
        versions=(*rollout.versions, *[version] * len(words)),
    )


def told(rollout: Rollout, tokens: Sequence[int], version: int) -> Rollout:
    """The answer with words behind it that the policy did not draw, such as a tool's: read by it, and not learnt."""
    n = len(tokens)
    return replace(
        rollout,
        completion_ids=(*rollout.completion_ids, *tokens),
        mask=(*rollout.mask, *[False] * n),
        old_logprobs=(*rollout.old_logprobs, *[0.0] * n),
        versions=(*rollout.versions, *[version] * n),
    )


def complete_groups(
    rollouts: Sequence[Rollout], config: PartialConfig, stop_ids: tuple[int, ...]
) -> tuple[list[Rollout], list[Rollout]]:
    """The answers whose whole group has ended, group beside group, and those that wait for one of their group."""
    waiting = {r.group for r in rollouts if not finished(r, config, stop_ids)}
    done = sorted((r for r in rollouts if r.group not in waiting), key=lambda r: (r.group, r.number))
    return done, [r for r in rollouts if r.group in waiting]


def written(rollouts: Sequence[Rollout]) -> str:
    """Rollouts as JSON, from which `read` makes the very same ones: what a run that may be killed keeps in a file."""
    return json.dumps([asdict(rollout) for rollout in rollouts])


def read(text: str) -> list[Rollout]:
    """The rollouts that `written` wrote."""
    tuples = lambda entry: {k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()}  # noqa: E731
    return [Rollout(**tuples(entry)) for entry in json.loads(text)]


def pick(logits: Float[Tensor, "b v"], u: Float[Tensor, " b"], temperature: float) -> Int[Tensor, " b"]:
    """The token at which the summed probabilities of softmax(logits / temperature) pass u in 0..1 (1 excluded)."""
    sums = (logits.double() / temperature).softmax(dim=-1).cumsum(dim=-1)
    return torch.searchsorted(sums, u.double()[:, None] * sums[:, -1:], right=True).squeeze(-1)


def _draws(rollout: Rollout, config: PartialConfig) -> list[float]:
    """The random number of every token that this answer may draw."""
    random = generator("partial", config.seed, rollout.group, rollout.number)
    return torch.rand(config.max_new_tokens, generator=random, dtype=torch.float64).tolist()


def _so_far(rollouts: list[Rollout], prompts_of: Callable[[list[int]], Prompts]) -> Prompts:
    """Inputs of a pass: a row for each answer, its prompt and what it has said, padded on the left."""
    numbers = sorted({rollout.prompt for rollout in rollouts})
    prompts = prompts_of(numbers)
    require_positions(prompts)
    ids = prompts["input_ids"]
    real = prompts.get("attention_mask", torch.ones_like(ids)).bool()
    rows = [numbers.index(rollout.prompt) for rollout in rollouts]
    if len(ids) != len(numbers) or any(
        ids[row][real[row]].tolist() != list(r.prompt_ids) for row, r in zip(rows, rollouts, strict=True)
    ):
        raise ValueError(f"expected the prompts {numbers} that these answers began with, got others: same data set?")
    t = max(len(r.prompt_ids) + len(r.completion_ids) for r in rollouts)
    out = {
        "input_ids": ids.new_zeros(len(rows), t),
        "positions": ids.new_zeros(3, len(rows), t),
        "attention_mask": torch.zeros(len(rows), t, dtype=torch.bool, device=ids.device),
    }
    for n, (row, rollout) in enumerate(zip(rows, rollouts, strict=True)):
        said = ids.new_tensor(rollout.completion_ids)
        whole = torch.cat((ids[row][real[row]], said))
        positions = prompts["positions"][:, row, real[row]]
        after = positions.max() + 1 + torch.arange(len(said), device=ids.device)
        out["input_ids"][n, t - len(whole) :] = whole
        out["positions"][:, n, t - len(whole) :] = torch.cat((positions, after.expand(3, -1)), dim=1)
        out["attention_mask"][n, t - len(whole) :] = True
    if "visual" in prompts:
        out["visual"] = prompts["visual"].unflatten(0, (len(ids), -1))[rows].flatten(0, 1)
    return out
