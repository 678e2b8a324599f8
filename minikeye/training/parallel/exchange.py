"""Pixels travel to the rank that runs the tower on them, visual tokens travel back, and so do their gradients.

Report, section 5.1: tower and decoder on the same ranks, each split in its own way. Every rank holds some frames; the
plan (`balance.py`) says who works on which. Our choice: two `all_to_all_single`, which gloo and NCCL both have with
uneven sizes (the form that takes lists of tensors fails on gloo).

    tokens = balanced_tokens(model, patches, grids, group)      # on every rank, also with no frame: [0 3 s s], [0 3]
    loss = ...                                                  # inputs | {"visual": tokens}, where there are any
    tied(loss, tokens).backward()                               # on every rank

Axes: p patch, s side of a patch, f frame, n visual token, d width.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor

from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.training.parallel.balance import Plan
from minikeye.training.parallel.wire import Exchange, Group


def balanced_tokens(
    model: KeyeVL, patches: Float[Tensor, "p 3 s s"], grids: Int[Tensor, "f 3"], group: Group = None
) -> Float[Tensor, "n d"]:
    """What `model.visual_tokens(patches, grids)` gives, with the tower's work spread evenly over the ranks of `group`.

    Every rank calls it with the frames it holds, and gets their tokens in their order. The tower's gradients on a rank
    are those of the frames that it worked on: their sum over the ranks is the gradient of the summed losses.
    Where no rank has a frame, nobody runs the tower, and it gets no gradient. Raises ValueError, on every rank alike,
    where some rank's grids and patches are not what the tower takes.
    """
    config, rank = model.config, dist.get_rank(group)
    everyone = gather_grids(model, patches, grids, group)
    plan = Plan.of([frames.prod(dim=1).tolist() for frames in everyone], config.vision.width)
    if not plan.patches:
        return patches.new_zeros(0, config.text.width)
    pixels = patches.to(model.visual.vision_model.post_layernorm.weight.dtype)  # as the tower would: fewer bytes
    leaving, sent, received = plan.leaving(rank), plan.sent(rank), plan.received(rank)
    first = plan.home.index(rank) if leaving else 0
    pixels = in_order(pixels, [int(n) for n in grids.prod(dim=1)], [f - first for f in leaving])
    pixels = Exchange.apply(pixels, sent, received, group)

    tokens = work(model, pixels, torch.cat(everyone)[plan.arriving(rank)])

    merge = config.vision.merge**2  # patches that become one token
    back = Exchange.apply(tokens, [n // merge for n in received], [n // merge for n in sent], group)
    counts = [plan.patches[f] // merge for f in leaving]
    return in_order(back, counts, sorted(range(len(leaving)), key=leaving.__getitem__))


def gather_grids(
    model: KeyeVL, patches: Float[Tensor, "p 3 s s"], grids: Int[Tensor, "f 3"], group: Group = None
) -> list[Int[Tensor, "f 3"]]:
    """The grids of every rank's frames, on the CPU. Raises ValueError, on every rank, as `balanced_tokens` does."""
    ranks, device = dist.get_world_size(group), patches.device
    sizes = [torch.zeros(5, dtype=torch.long, device=device) for _ in range(ranks)]
    shape = [*patches.shape, 0, 0, 0][:4]  # five numbers whatever was passed: a rank that is wrong keeps up, too
    dist.all_gather(sizes, torch.tensor([len(grids), *shape], device=device), group)
    frames, *shapes = torch.stack(sizes).T.tolist()
    padded = torch.zeros(max(frames), 3, dtype=torch.long, device=device)
    padded[: len(grids)] = grids
    found = [torch.empty_like(padded) for _ in range(ranks)]
    if max(frames):
        dist.all_gather(found, padded, group)
    everyone = [own[:n].cpu() for own, n in zip(found, frames, strict=True)]
    for rank, (own, *shape) in enumerate(zip(everyone, *shapes, strict=True)):
        if len(own) == shape[0] == 0:
            continue
        try:
            model.visual.validate(torch.empty(shape, device="meta"), own)
        except ValueError as error:
            raise ValueError(f"rank {rank}: {error}") from error
    return everyone


def work(model: KeyeVL, pixels: Float[Tensor, "p 3 s s"], grids: Int[Tensor, "f 3"]) -> Float[Tensor, "n d"]:
    """Visual tokens of the frames that reached this rank.

    A rank that none reached runs the tower on a blank one and keeps nothing of it: a tower whose weights are spread
    over the ranks meets them all in its pass, and every rank's result has a gradient or none has.
    """
    if len(grids):
        return model.visual_tokens(pixels, grids)
    side = model.config.vision.merge
    blank = pixels.new_zeros(side**2, *pixels.shape[1:])
    return model.visual_tokens(blank, grids.new_tensor([[1, side, side]]))[:0]


def tied(loss: Float[Tensor, ""], tokens: Float[Tensor, "n d"]) -> Float[Tensor, ""]:
    """The same loss, of which `tokens` are a part even where they are none, or not used.

    Gradients come back to where the tower ran only if every rank goes back through the exchange: without this, a rank
    whose batch is text alone would not, and the others would wait for it. Of a model that is `spread`, give the pass
    the empty tokens instead, as `samples.Part` does: all its units, too, must be gone back through in one order.
    """
    return loss + tokens[:0].sum().to(loss.dtype)


def in_order(x: Tensor, counts: Sequence[int], order: Sequence[int]) -> Tensor:
    """Frames of `x` (counts: rows of each) in another order: the first of the result is frame order[0]."""
    pieces = x.split(list(counts)) if counts else ()
    return torch.cat([pieces[n] for n in order]) if order else x


def bytes_sent(
    plan: Plan, rank: int, config: KeyeConfig, size: int, learning: bool, token_size: int | None = None
) -> int:
    """What `rank` sends to others for a plan, grids apart: pixels, visual tokens, and with `learning` their gradients.

    size: bytes of a number of a pixel; token_size: of a visual token, None for the same: under autocast it is less.
    At released sizes a patch is 588 numbers and its share of a visual token 512.
    """
    see = config.vision
    away = sum(plan.sent(rank)) - plan.sent(rank)[rank]  # patches held here, worked on elsewhere
    here = sum(plan.received(rank)) - plan.received(rank)[rank]  # worked on here, held elsewhere
    tokens = (here + (away if learning else 0)) // see.merge**2
    return size * away * 3 * see.patch_size**2 + (token_size or size) * tokens * config.text.width
