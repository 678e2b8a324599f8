"""How many workers may run tests side by side here: a core and 3 GB of memory each; one, where there is a GPU.

A notebook's kernel takes up to 1 GB and a worker of the unit tests 1.3 GB. `make WORKERS=4 test` overrules this.
"""

import os

import torch

from minikeye.cost.memory import free_bytes

if __name__ == "__main__":
    # Those this process may use, hyperthreads too; `pytest -n auto` counts neither so.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    print(1 if torch.cuda.is_available() else max(1, min(cores, free_bytes() // (3 * 10**9))))
