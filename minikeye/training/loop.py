"""A training loop that can be killed at any step and resumed to identical losses.

The loop knows nothing of models: `backward_at(step)` leaves gradients computed from whatever data belongs to that step,
so a resumed run sees the same data. AdamW, linear warm-up and cosine decay, gradient clipping; the log is JSON lines.
"""

import json
import math
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minikeye.progress import progress
from minikeye.training.failures import surviving
from minikeye.training.parallel.checkpoints import first
from minikeye.training.parallel.mesh import ALONE, Ranks
from minikeye.training.state import read_log, resume, save_state, write_log


@dataclass(frozen=True)
class LoopConfig:
    """How long and how fast to learn. A run is resumed with the config it began with."""

    steps: int  # optimiser steps
    lr: float  # peak learning rate
    warmup: int = 100  # steps of linear warm-up: choose it well below `steps`
    final_lr: float = 0.05  # learning rate at the end, as a share of the peak
    weight_decay: float = 0.05  # on matrices only
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0  # largest gradient norm
    slow: tuple[str, ...] = ()  # parameters whose names start with one of these learn at `slow_lr` of the rate
    slow_lr: float = 0.1
    save_every: int = 0  # steps between checkpoints; 0: only at the end
    log_every: int = 20  # steps between log lines

    def __post_init__(self) -> None:
        if min(self.steps, self.log_every) < 1 or min(self.warmup, self.save_every) < 0:
            raise ValueError(f"expected steps and log_every >= 1, warmup and save_every >= 0, got {self}")
        if not (0 < self.lr < math.inf and self.clip > 0 and self.weight_decay >= 0 and 0 <= self.final_lr <= 1):
            raise ValueError(f"expected lr and clip above 0, weight_decay >= 0, final_lr in 0..1, got {self}")

    def scaled(self, share: float) -> "LoopConfig":
        """The same in fewer steps, each of them logged and none saved: for a smoke test."""
        return replace(self, steps=max(2, int(self.steps * share)), log_every=1, save_every=0)


def learning_rate(step: int, config: LoopConfig) -> float:
    """(step + 1) / warmup of the peak during the warm-up, then half a cosine down to final_lr of the peak."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    return config.lr * (config.final_lr + (1 - config.final_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def optimiser(parameters: dict[str, nn.Parameter], config: LoopConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices, none on norms and biases. A group's "share" scales its learning rate.

    Parameters that are spread over other ranks than the rest are groups of their own: torch steps a group in one call,
    which takes tensors of one mesh.
    """
    groups: dict[tuple, list[nn.Parameter]] = {}
    for name, p in parameters.items():
        share = config.slow_lr if name.startswith(config.slow) else 1.0
        mesh = getattr(p, "device_mesh", None)
        groups.setdefault((config.weight_decay if p.ndim >= 2 else 0.0, share, mesh), []).append(p)
    parts = [{"params": ps, "weight_decay": decay, "share": share} for (decay, share, _), ps in groups.items()]
    on_gpu = any(p.is_cuda for p in parameters.values())
    return torch.optim.AdamW(parts, lr=config.lr, betas=config.betas, fused=on_gpu)


def train(
    parameters: dict[str, nn.Parameter],
    backward_at: Callable[[int], tuple[Tensor, dict[str, float | int | Tensor]]],
    config: LoopConfig,
    folder: str | Path | None = None,
    name: str = "train",
    ranks: Ranks = ALONE,
) -> list[dict[str, float | int]]:
    """Run `config.steps` steps, or those that are left, over the parameters that are given (others stay as they are).

    backward_at(step) leaves that step's gradients in the parameters (replacing the last ones) and returns the loss and
    numbers for the log. folder: where `NAME.pt` (resumable state, always written after the last step; of many ranks the
    folder `NAME.dcp`) and `NAME.jsonl` (log) go; None keeps nothing. A folder with a state is resumed, by any number of
    processes, to the losses of an uninterrupted run with the same config.
    Returns the log lines of this call: step, loss, norm (of the gradient), those numbers, seconds.
    ranks: the processes that run this together, each with its parts of the parameters; loss and numbers are those of
    the whole, the same on all (`samples.whole`); rank 0 alone writes the log and shows progress.
    Raises FloatingPointError for a loss or gradient that is not finite, at the next step that is logged or saved; the
    last state is then intact. With a folder, `failures.RankLost` where another rank is gone.
    """
    with nullcontext() if folder is None else surviving(ranks, folder):
        return _train(parameters, backward_at, config, folder, name, ranks)


def _train(parameters, backward_at, config: LoopConfig, folder, name: str, ranks: Ranks) -> list[dict]:
    optim = optimiser(parameters, config)
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
    state = Path(folder) / f"{name}.pt" if folder is not None else None
    start = resume(state, parameters, optim, ranks) if state is not None else 0
    if state is not None:
        first(ranks, lambda: _cut_log(state.with_suffix(".jsonl"), start))
    lines, begun = [], time.monotonic()
    steps = range(start, config.steps)
    for step in progress(steps, name) if ranks.rank == 0 else steps:
        for group in optim.param_groups:
            group["lr"] = group["share"] * learning_rate(step, config)
        loss, numbers = backward_at(step)
        norm = ranks.clip(parameters.values(), config.clip)
        optim.step()
        last = step == config.steps - 1
        saving = state is not None and (last or (config.save_every and (step + 1) % config.save_every == 0))
        logging = last or step % config.log_every == 0
        finite = torch.isfinite(loss.detach()) & torch.isfinite(norm)
        if (saving or logging) and not bool(finite):  # before log and state see it
            raise FloatingPointError(
                f"the loss of {name} is {float(loss)}, its gradient's norm {float(norm)} at step {step}: "
                f"lower the learning rate"
            )
        if logging:
            line = {
                "step": step,
                "loss": float(loss.detach()),
                "norm": float(norm),
                **{k: float(torch.as_tensor(v).detach()) for k, v in numbers.items()},
            }
            line["seconds"] = round(time.monotonic() - begun, 2)
            lines.append(line)
            if state is not None and ranks.rank == 0:
                with state.with_suffix(".jsonl").open("a", encoding="utf-8") as log:
                    log.write(json.dumps(line) + "\n")
        if saving:
            save_state(state, parameters, optim, step + 1, ranks)
    return lines


def _cut_log(log: Path, start: int) -> None:
    """Take out the lines of steps that are done again."""
    if log.is_file():
        write_log(log, [line for line in read_log(log) if line["step"] < start])
