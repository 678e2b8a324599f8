"""Prompts split over the ranks: their pixels are looked at once, and each is answered by one rank.

Axes: b prompt, g answer of a prompt, n visual token, d width, p patch, s side of a patch, f frame.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minikeye.inference.generate import Draw
from minikeye.keye import KeyeVL
from minikeye.rl.groups import Prompts, Reward, decoder, judge, share_of
from minikeye.rl.parallel.agreement import by_rows, shares
from minikeye.rl.rollout import Answers, Sampling, joined_answers, sampled
from minikeye.training.parallel.exchange import work
from minikeye.training.parallel.mesh import Ranks
from minikeye.training.parallel.wire import all_gather


def sampled_among(
    model: KeyeVL, own: Prompts, first: int, count: int, how: Sampling, seed: int, record: bool = False
) -> Answers:
    """Answers to some of `count` prompts: those that `sampled` draws for them among all others, to rounding.

    own: the prompts, which are those from number `first` on.
    """
    if len(own["input_ids"]) == count:
        return sampled(model, own, how, seed, record)
    return sampled(model, own, how, Draw(seed, first * how.group, count * how.group), record)


def answered(
    model: KeyeVL,
    prompts: Prompts,
    known: list[Any],
    reward: Reward,
    how: Sampling,
    seed: int,
    ranks: Ranks,
    record: bool = False,
) -> tuple[Answers, Float[Tensor, "b g"]]:
    """Answers to each prompt and their rewards; each rank draws and judges those to its share of the prompts."""
    decode = decoder(model)

    def work(rows: slice) -> tuple[Answers, Tensor]:
        own = sampled_among(model, share_of(prompts, rows), rows.start, len(known), how, seed, record)
        return own, judge(own, known[rows], reward, decode)

    answers, rewards = zip(*by_rows(ranks, len(known), work), strict=True)
    return joined_answers(answers), torch.cat(rewards)


def tokens_of_all(
    model: KeyeVL, patches: Float[Tensor, "p 3 s s"], grids: Int[Tensor, "f 3"], ranks: Ranks
) -> Float[Tensor, "n d"]:
    """`model.visual_tokens(patches, grids)` on every rank, each having run the tower on its share of the frames.

    Every rank has to call it, with the same frames. Without gradient: the tower is frozen.
    """
    if ranks.everyone is None:
        return model.visual_tokens(patches, grids)
    sizes = grids.prod(dim=1).tolist()
    parts = shares(len(sizes), ranks.size)
    own = parts[ranks.rank]
    first = sum(sizes[: own.start])
    tokens = work(model, patches[first : first + sum(sizes[own])], grids[own])
    counts = [sum(sizes[part]) // model.config.vision.merge**2 for part in parts]
    padded = tokens.new_zeros(max(counts), tokens.shape[1])
    padded[: len(tokens)] = tokens
    found = all_gather(padded, ranks.everyone.get_group())
    return torch.cat([part[:count] for part, count in zip(found, counts, strict=True)])
