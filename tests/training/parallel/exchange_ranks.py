"""One of several processes that balance the tower's work: `python exchange_ranks.py FOLDER`, by `play`.

Imported, it has the cases; run, it plays them all and leaves what came out in FOLDER/RANK.pt.
"""

import sys
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.training.parallel.exchange import balanced_tokens, tied

# What each rank holds: rows and columns of its frames, in patches. Of two ranks, nobody holds the last.
CASES = {
    "uneven": ([(2, 4), (4, 4), (2, 2), (6, 4), (4, 4), (2, 2)], [(2, 2)], [(4, 2), (8, 4)]),
    "a rank of text": ([], [(2, 2), (4, 2), (2, 2), (4, 4)], []),
    "fewer frames than ranks": ([], [(2, 4)], []),
    "text alone": ([], [], []),
}
CONFIG = KeyeConfig.nano()


def network(frozen: bool = False) -> KeyeVL:
    torch.manual_seed(3)
    model = KeyeVL(CONFIG)
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    model.visual.requires_grad_(not frozen)
    model.mlp_AR.requires_grad_(not frozen)
    return model


def batch(case: str, rank: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Patches, grids, and a row of tokens with a placeholder for every visual token, of what `rank` holds."""
    draw = torch.Generator().manual_seed(100 + rank)
    frames = CASES[case][rank]
    grids = torch.tensor([(1, *frame) for frame in frames], dtype=torch.long).view(-1, 3)
    patches = torch.randn(int(grids.prod(dim=1).sum()), 3, 14, 14, generator=draw)
    text = torch.randint(0, 200, (1, 6), generator=draw)
    marks = torch.full((1, len(patches) // 4), CONFIG.video_token_id)
    return patches, grids, torch.cat((text[:, :3], marks, text[:, 3:]), dim=1)


def loss_of(model: KeyeVL, ids: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """A decoder's loss, summed over tokens: those of several ranks add up."""
    inputs = {"input_ids": ids, "positions": torch.arange(ids.shape[1]).expand(3, 1, -1)}
    if len(tokens):
        inputs["visual"] = tokens
    logits = model(inputs, attention="dense").logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits[-5:], ids[0, -5:].clamp(max=255), reduction="sum")


@contextmanager
def counted(rank: int):
    """Bytes that leave for other ranks while this holds, as the library is asked to send them."""
    real, total = dist.all_to_all_single, [0]

    def counting(out, x, out_split, in_split, group):
        rows = len(x) - in_split[rank]
        total[0] += rows * x[:1].numel() * x.element_size()
        return real(out, x, out_split, in_split, group)

    dist.all_to_all_single = counting
    yield total
    dist.all_to_all_single = real


def play(case: str, rank: int, frozen: bool) -> dict:
    model = network(frozen)
    patches, grids, ids = batch(case, rank)
    with counted(rank) as total:
        tokens = balanced_tokens(model, patches, grids)
        loss = tied(loss_of(model, ids, tokens), tokens)
        loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"tokens": tokens.detach(), "loss": loss.detach(), "gradients": gradients, "bytes": total[0]}


def refused(rank: int) -> str:
    """One rank's grids do not describe its patches, and every rank says so."""
    patches, grids, _ = batch("uneven", rank)
    try:
        balanced_tokens(network(), patches[: len(patches) - (rank == 1)], grids)
    except ValueError as error:
        return str(error)
    return "nothing"


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(minutes=2))
    rank = dist.get_rank()
    out = {(case, frozen): play(case, rank, frozen) for case in CASES for frozen in (False, True)}
    torch.save(out | {"refused": refused(rank)}, folder / f"{rank}.pt")
    dist.destroy_process_group()
