"""What a training run needs to go on as if it had not been interrupted: parameters, optimiser, step, log."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from minikeye.files import whole_file, write_whole
from minikeye.training.parallel.checkpoints import (
    keep_part,
    last_written,
    load_tensors,
    only,
    read_one,
    require_same,
    save_tensors,
    sizes,
)
from minikeye.training.parallel.mesh import ALONE, Ranks


def save_state(
    path: Path, parameters: dict[str, nn.Parameter], optim: torch.optim.Optimizer, step: int, ranks: Ranks = ALONE
) -> None:
    """Write the resumable state: a kill leaves the old one or the new one.

    One process writes the file `path`, many write a folder in its place (`parallel/checkpoints.py`).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    held = {n: p.detach() for n, p in parameters.items()}
    if ranks.size == 1:
        with whole_file(path) as part:
            torch.save({"parameters": held, "optim": optim.state_dict(), "step": step}, part)
        only(path, path)
        return
    tensors = {f"parameters.{n}": p for n, p in held.items()}
    for n, p in parameters.items():
        tensors |= {f"optim.{n}.{k}": x for k, x in optim.state.get(p, {}).items()}
    save_tensors(path, tensors, {"step": step}, ranks)


def resume(path: Path, parameters: dict[str, nn.Parameter], optim: torch.optim.Optimizer, ranks: Ranks = ALONE) -> int:
    """Load what `save_state` wrote, in any number of processes, into the parameters and the optimiser.

    Returns the next step: 0 where nothing was written. Raises ValueError for a state of other parameters, and for a
    file that is damaged.
    """
    if (found := last_written(path, ranks)) is None:
        return 0
    return (_from_folder if found.is_dir() else _from_file)(found, parameters, optim)


def _from_file(path: Path, parameters: dict[str, nn.Parameter], optim: torch.optim.Optimizer) -> int:
    spread = any(isinstance(p, DTensor) for p in parameters.values())
    state = read_one(path, "parameters", "optim", "step", mmap=spread)  # spread: a rank needs a part of it
    found = {n: t.shape for n, t in state["parameters"].items()}
    require_same(path, found, {n: p.shape for n, p in parameters.items()})
    for n, p in parameters.items():
        keep_part(p.detach(), state["parameters"][n])
    if not spread:
        optim.load_state_dict(state["optim"])
        return state["step"]
    learnt = {}
    for number, name in enumerate(_order(parameters, optim)):
        entries = state["optim"]["state"].get(number, {})
        learnt[name] = {k: _part(parameters[name], x) for k, x in entries.items()}
    _give(learnt, parameters, optim)
    return state["step"]


def _from_folder(folder: Path, parameters: dict[str, nn.Parameter], optim: torch.optim.Optimizer) -> int:
    held = sizes(folder)
    tensors = {f"parameters.{n}": p.detach() for n, p in parameters.items()}
    learned = {n: size for n, size in held.items() if n.startswith("parameters.")}
    require_same(folder, learned, {n: p.shape for n, p in tensors.items()})
    found: dict[str, dict[str, Tensor]] = {n: {} for n in parameters}
    for key in held.keys() - learned.keys():
        name, _, entry = key.removeprefix("optim.").rpartition(".")
        p = parameters[name]
        found[name][entry] = torch.zeros_like(p) if held[key] == p.shape else torch.zeros(held[key])
        tensors[key] = found[name][entry]
    step = load_tensors(folder, tensors)["step"]
    _give(found, parameters, optim)
    return step


def _part(like: Tensor, whole: Tensor) -> Tensor:
    """This rank's part of a whole tensor that goes with a parameter; a number of steps as it is."""
    if whole.shape != like.shape:
        return whole
    keep_part(part := torch.zeros_like(like), whole)
    return part


def _order(parameters: dict[str, nn.Parameter], optim: torch.optim.Optimizer) -> list[str]:
    """Names as an optimiser of one process numbers them: group after group, groups that differ in their mesh alone one.

    `loop.optimiser` makes groups in the order of their first parameters, which is what is followed here.
    """
    settings = {
        p: tuple((k, v) for k, v in group.items() if k not in ("params", "lr"))
        for group in optim.param_groups
        for p in group["params"]
    }
    groups: dict[tuple, list[str]] = {}
    for name, p in parameters.items():
        groups.setdefault(settings[p], []).append(name)
    return [name for group in groups.values() for name in group]


def _give(
    state: dict[str, dict[str, Tensor]], parameters: dict[str, nn.Parameter], optim: torch.optim.Optimizer
) -> None:
    """Put what belongs to each parameter, by its name, into the optimiser, whose groups stay as they are."""
    names = {p: n for n, p in parameters.items()}
    order = [names[p] for group in optim.param_groups for p in group["params"]]
    numbered = {number: state[name] for number, name in enumerate(order) if state[name]}
    optim.load_state_dict({"state": numbered, "param_groups": optim.state_dict()["param_groups"]})


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
