"""One of several processes that learn together: `python parallel_steps.py FOLDER EP CP`, by `play`.

What it found in every case, parameters whole, goes to FOLDER/RANK.pt.
"""

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

from minikeye.evaluation.training.parallel_equal import found_by
from minikeye.training.parallel.mesh import join


def main(folder: Path, ep: int, cp: int) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # as in the tests
    ranks = join("cpu", ep, cp)
    torch.save(found_by(ranks), folder / f"{ranks.rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
