"""What a training run needs to go on as if it had not been interrupted: parameters, optimiser, step, log."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from minikeye.files import whole_file, write_whole


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


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log (JSON lines), without a last one that a kill or a full disk cut. Empty where there is no file.

    Raises ValueError for any other line that is no JSON object.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n") if path.is_file() else [""]
    found = []
    for n, line in enumerate(lines[:-1], 1):  # what follows the last line break is no whole line
        try:
            entry = json.loads(line)
        except ValueError:
            entry = None
        if not isinstance(entry, dict):
            raise ValueError(f"{path} is damaged: line {n} of {len(lines) - 1} is no JSON object: {line:.80}")
        found.append(entry)
    return found


def write_log(path: Path, lines: list[dict[str, Any]]) -> None:
    """Write a log anew, whole or not at all."""
    write_whole(path, "".join(json.dumps(line) + "\n" for line in lines).encode())
