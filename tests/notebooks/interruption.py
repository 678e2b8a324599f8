"""What test_interrupted_training.py runs inside a kernel: trainings cut short, a real interrupt, and a state."""

import hashlib
import json
import signal
from itertools import islice

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from minikeye.training import loop

STEPS = 12  # of each training: enough to be stopped in the middle
taken, stop_at = 0, None  # optimiser steps since `start`, and after which of them the interrupt comes


def watch() -> None:
    """Count the optimiser steps of this process, and let each training end after STEPS."""
    progress = loop.progress
    loop.progress = lambda steps, what: islice(progress(steps, what), STEPS)
    register_optimizer_step_post_hook(_after_step)


def start(interrupt_after: int | None = None) -> None:
    """Count from 0, and send SIGINT after that step: what the stop button of Jupyter does."""
    global taken, stop_at
    taken, stop_at = 0, interrupt_after


def _after_step(*_) -> None:
    global taken
    taken += 1
    if taken == stop_at:
        signal.raise_signal(signal.SIGINT)


def report(namespace: dict) -> None:
    """Print, as JSON: how many steps were taken, and if any, the state."""
    print(json.dumps([taken, state(namespace) if taken else {}]))


def state(namespace: dict) -> dict[str, str]:
    """What every public name of a notebook holds, as a digest of all bits."""
    public = {
        name: value for name, value in namespace.items() if not name.startswith("_") and name not in ("In", "Out")
    }
    found = {}
    for name, value in public.items():
        hasher = hashlib.sha256()
        _absorb(hasher, value)
        found[name] = hasher.hexdigest()
    return found


def _absorb(hasher, value) -> None:
    """Tensors, arrays, modules, numbers and words, also inside containers; of other things the type only."""
    hasher.update(type(value).__name__.encode())
    if isinstance(value, nn.Module):
        value = dict(value.state_dict())
    if isinstance(value, Tensor):
        value = value.detach().reshape(-1).contiguous().view(torch.uint8).numpy()
    if isinstance(value, np.ndarray):
        hasher.update(value.tobytes())
    elif isinstance(value, dict):
        for key, part in value.items():
            if key != "seconds":  # a log's: times are never the same
                _absorb(hasher, key)
                _absorb(hasher, part)
    elif isinstance(value, list | tuple):
        for part in value:
            _absorb(hasher, part)
    elif value is None or isinstance(value, bool | int | float | str):
        hasher.update(repr(value).encode())
