"""One of two processes that split the experts of a layer: `python experts_ranks.py FOLDER`, by `play`.

Imported, it has the cases; run, it plays them all and leaves what came out in FOLDER/RANK.pt.
"""

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from minikeye.config import TextConfig
from minikeye.model.moe import Experts
from minikeye.training.parallel.experts import SpreadExperts
from minikeye.training.parallel.mesh import join
from minikeye.training.parallel.wire import count_sent

CONFIG = TextConfig(width=16, experts=4, experts_per_token=2, expert_width=8)
# Of each rank, the experts that its tokens chose; rank 0 has experts 0 and 1.
CASES = {
    "uneven": ([[3, 0], [1, 2], [2, 3], [0, 1], [3, 1]], [[1, 0], [2, 0], [3, 2]]),
    "a rank without a token": ([], [[0, 3], [1, 2], [2, 3], [3, 1]]),
    "a rank that nothing reaches": ([[0, 1], [1, 0]], [[1, 0]]),
    "experts that nobody chose": ([[0, 3], [3, 0]], [[3, 0]]),
    "nothing at all": ([], []),
}


def layer() -> Experts:
    torch.manual_seed(7)
    return Experts(CONFIG)


def tokens(case: str, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens, weights of their choices, choices, residual."""
    draw = torch.Generator().manual_seed(40 + rank)
    n = len(CASES[case][rank])
    x, weights, residual = (torch.randn(n, width, generator=draw) for width in (CONFIG.width, 2, CONFIG.width))
    chosen = torch.tensor(CASES[case][rank], dtype=torch.long).view(-1, 2)
    return x.requires_grad_(), weights.softmax(dim=-1).requires_grad_(), chosen, residual


def loss_of(y: Tensor) -> Tensor:
    """A number that every entry of every token's result moves by another amount; those of ranks add up."""
    return (y * y.detach().cos()).sum()


def play(case: str, experts: Experts, rank: int) -> dict[str, Tensor | int]:
    x, weights, chosen, residual = tokens(case, rank)
    experts.zero_grad()
    with count_sent() as sent:
        y = experts(x, weights, chosen, residual)
        forward = sent.bytes
        loss_of(y).backward()
    gradients = {n: p.grad.full_tensor() for n, p in experts.named_parameters()}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        rounded = experts(x, weights, chosen, residual)
    found = {"y": y.detach(), "x": x.grad, "weights": weights.grad, "rounded": rounded}
    return found | gradients | {"forward": forward, "bytes": sent.bytes}


def refused(mesh, experts: int, copies: int) -> str:
    """What is said to experts over two ranks, each held by so many groups of ranks."""
    try:
        SpreadExperts(Experts(replace(CONFIG, experts=experts)), mesh, copies)
    except ValueError as error:
        return str(error)
    return "nothing"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # as in the tests
    ranks = join("cpu", ep=2)
    mesh = ranks.experts["experts"]
    spread = SpreadExperts(layer(), mesh)
    out = {case: play(case, spread, ranks.rank) for case in CASES}
    kept = {n: (tuple(p.shape), tuple(p.to_local().shape)) for n, p in spread.named_parameters()}
    torch.save(
        out | {"refused": [refused(mesh, 3, 1), refused(mesh, 4, 3), refused(mesh, 4, 4)], "kept": kept},
        folder / f"{ranks.rank}.pt",
    )
    dist.destroy_process_group()
