"""What a training run needs to go on as if it had not been interrupted: parameters, optimiser, the next step."""

from pathlib import Path

import torch
from torch import nn

from minikeye.files import whole_file


def save_state(path: Path, parameters: dict[str, nn.Parameter], optim: torch.optim.Optimizer, step: int) -> None:
    """Write the resumable state: a kill leaves the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = {n: p.detach() for n, p in parameters.items()}
    with whole_file(path) as part:
        torch.save({"parameters": held, "optim": optim.state_dict(), "step": step}, part)


def resume(path: Path, parameters: dict[str, nn.Parameter], optim: torch.optim.Optimizer) -> int:
    """Load a state written by `save_state` into the parameters and the optimiser; returns the next step."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    if {n: t.shape for n, t in state["parameters"].items()} != {n: p.shape for n, p in parameters.items()}:
        raise ValueError(f"{path} holds other parameters than those to train: it belongs to another stage or model")
    with torch.no_grad():
        for n, p in parameters.items():
            p.copy_(state["parameters"][n])
    optim.load_state_dict(state["optim"])
    return state["step"]
