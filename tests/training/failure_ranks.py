"""One of several processes of which one is lost: `python failure_ranks.py FOLDER HOW`, by `play`.

The states are in FOLDER/run; what the others say about it is left in FOLDER/RANK.pt.
"""

import ctypes
import os
import signal
import sys
import time
import warnings
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import torch
from torch import nn
from torch.distributed.checkpoint import FileSystemWriter

from minikeye.training import failures
from minikeye.training.failures import surviving
from minikeye.training.loop import LoopConfig, optimiser
from minikeye.training.parallel.checkpoints import each
from minikeye.training.parallel.mesh import join, sharded
from minikeye.training.state import save_state

SHORT = 3.0  # seconds, from where a rank stops; before it a minute, which a busy machine may need


def die(*ignored) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(folder: Path, how: str) -> None:
    """Two steps and a state; then rank 1 is lost in the way that `how` says."""
    ranks = join("cpu")
    run, processes = folder / "run", each(ranks, os.getpid)
    torch.manual_seed(0)
    layer = nn.Linear(8, 8)
    sharded(layer, ranks.everyone)
    parameters = dict(layer.named_parameters())
    optim = optimiser(parameters, LoopConfig(steps=4, lr=1e-3))

    def step(dies: bool = False) -> None:
        optim.zero_grad()
        y = layer(torch.ones(1, 8))
        if dies:  # on its way back, before its gradients meet those of the others
            y.register_hook(die)
        y.square().sum().backward()
        optim.step()

    step()
    save_state(run / "state.pt", parameters, optim, 1, ranks)
    said = "nothing"
    try:
        with surviving(replace(ranks, timeout=SHORT) if how == "stopped" else ranks, run):
            if how == "stopped":
                backend = ranks.everyone.get_group()._get_backend(torch.device("cpu"))
                backend._set_default_timeout(timedelta(seconds=SHORT))
            if ranks.rank == 1:
                if how == "between steps":
                    die()
                if how == "inside a step":
                    step(dies=True)
                if how == "inside a save":
                    FileSystemWriter.write_data = die
                if how in ("an error", "an error, others in Python"):
                    raise KeyError("a video that is not there")
                if how == "stopped":
                    os.kill(os.getpid(), signal.SIGSTOP)
            if how == "between steps" and ranks.rank == 2:  # two are gone then, one because of the other
                while (run / ".rank-0").read_text() != "left":
                    time.sleep(0.05)
            if how == "an error, others in Python":  # no collective tells them
                while True:
                    time.sleep(0.05)
            if how == "others in a library":  # where no error reaches them: as one waits for a GPU that waits for a GPU
                failures.GRACE = 1.0
                if ranks.rank == 1:
                    die()
                mutex, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
                library.pthread_mutex_lock(mutex)
                library.pthread_mutex_lock(mutex)
            step()
            save_state(run / "state.pt", parameters, optim, 2, ranks)
    except Exception as error:
        said = f"{type(error).__name__}: {error}"
    if how == "stopped" and ranks.rank == 0:
        os.kill(processes[1], signal.SIGKILL)
    torch.save({"said": said, "run": str(run)}, folder / f"{ranks.rank}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # as in the tests
    main(Path(sys.argv[1]), sys.argv[2])
    os._exit(0)  # no farewell to ranks that are not there
