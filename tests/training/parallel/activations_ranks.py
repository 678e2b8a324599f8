"""One of two processes with a tower that is one unit of `fully_shard`: `python activations_ranks.py FOLDER RANK`.

Leaves the gradients of each way to keep activations in FOLDER/RANK.pt, whole, the mean over the ranks.
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.training.activations import keeping

WAYS = ("all", "layers", "chunks", "offload")
FRAMES = [[(2, 4), (4, 4), (2, 2)], [(4, 4), (4, 6)]]  # of each rank, rows and columns in patches


def tower_gradients(rank: int, way: str, shard: bool) -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    model = KeyeVL(KeyeConfig.nano())
    model.visual.chunk_patches = 20  # several passes
    if shard:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        fully_shard(model.visual, mesh=init_device_mesh("cpu", (2,)))
    grids = torch.tensor([(1, *frame) for frame in FRAMES[rank]])
    patches = torch.randn(int(grids.prod(dim=1).sum()), 3, 14, 14, generator=torch.Generator().manual_seed(rank))
    with keeping(model.visual, way):
        tokens = model.visual_tokens(patches, grids)
    (tokens**2).sum().backward()
    named = {n: p.grad for n, p in model.visual.named_parameters() if p.grad is not None}
    return {n: g.full_tensor() if shard else g for n, g in named.items()}


if __name__ == "__main__":
    folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", timeout=timedelta(minutes=1))
    torch.save({way: tower_gradients(rank, way, True) for way in WAYS}, folder / f"{rank}.pt")
    dist.destroy_process_group()
