"""The report's two stages on text: the model stays as it is and its indexers learn; then both learn, sparsely.

Report, section 2.3. Stages, losses and loop are those of every other training here (`stage`, `dsa`, `loop`); what is
new is what they learn from. All numbers of the recipe: our choice.
"""

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minikeye.checkpoint.changed import digest
from minikeye.files import read_json, write_whole
from minikeye.keye import KeyeVL
from minikeye.training.dsa import draw_rows
from minikeye.training.loop import LoopConfig, train
from minikeye.training.retrofit.texts import Windows
from minikeye.training.stage import DENSE, SPARSE, WARMUP, Stage, trainable
from minikeye.training.step import stepper

# L_sparse alone, the model frozen: what the selection can learn where the weights must stay those of the file.
INDEXERS = replace(SPARSE, name="indexers", learns=WARMUP.learns, answers=False)
# The control of SPARSE: as many steps on the same text with dense attention, so that the text alone explains nothing.
TUNED = replace(DENSE, name="tuned", number=5)
STAGES = {stage.name: stage for stage in (WARMUP, INDEXERS, SPARSE, TUNED)}


@dataclass(frozen=True)
class Recipe:
    """Steps, rates and lengths. In the sparse stage the model's own weights learn at a tenth of the indexers' rate."""

    length: int = 4096  # tokens of a sequence, one sequence a step
    rows: int = 384  # query positions a step that the indexers are taught from
    repeats: float = 0.5  # see `texts.Windows`
    warmup: LoopConfig = LoopConfig(steps=1600, lr=2e-3, warmup=30, weight_decay=0.0, save_every=400)
    sparse: LoopConfig = LoopConfig(steps=400, lr=3e-4, warmup=20, weight_decay=0.0, slow_lr=0.1, save_every=200)

    @classmethod
    def on_cpu(cls) -> "Recipe":
        """For two cores: short sequences, fewer rows and steps."""
        return cls(
            length=1024,
            rows=64,
            warmup=LoopConfig(steps=60, lr=2e-3, warmup=10, weight_decay=0.0, save_every=10, log_every=5),
            sparse=LoopConfig(steps=20, lr=3e-4, warmup=5, weight_decay=0.0, slow_lr=0.1, save_every=5, log_every=5),
        )

    def loop_of(self, stage: Stage) -> LoopConfig:
        """`warmup` for the stage of that name, `sparse` for all others."""
        return self.warmup if stage.name == "warmup" else self.sparse


def teach_text(
    model: KeyeVL, stage: Stage, recipe: Recipe, windows: Windows, folder: Path | None = None
) -> list[dict[str, float | int]]:
    """Run a stage, or what is left of it, on the model's device; returns the log lines of this call, [] where a folder
    holds the finished stage. Afterwards what the stage does not teach has requires_grad False.

    stage: a Stage of STAGES, such as `STAGES["warmup"]`. windows: of `recipe.length` tokens. folder: for state and log,
    as in `loop.train`. Half the rows are drawn anywhere, half where a query sees more keys than it may select; in a
    window with passages that are said again, half of them there. Raises ValueError for another stage; for windows of
    another length, or no longer than the indexers' k, from which a selection learns nothing; for a folder where this
    stage began with another recipe, other windows or another model, which would be mixed.
    """
    if stage not in STAGES.values():
        raise ValueError(f"expected a Stage of STAGES ({', '.join(STAGES)}), got {stage!r:.80}")
    topk = model.config.indexer.topk
    if windows.length != recipe.length or windows.length <= topk:
        raise ValueError(
            f"expected windows of the recipe's {recipe.length} tokens, more than the {topk} keys a query selects; got "
            f"{windows.length}"
        )
    if folder is not None:
        _require_same_run(folder / f"{stage.name}.json", _about(model, stage, recipe, windows))
    parameters = trainable(model, stage.learns)
    loop = replace(recipe.loop_of(stage), slow=tuple(name for name in parameters if not WARMUP.learns(name)))
    run = stepper(model.device)(lambda inputs: stage.loss(model, inputs), list(parameters.values()))
    places = torch.arange(windows.length).expand(3, 1, -1)  # given: a CUDA graph cannot make them up
    far = places[0] >= topk

    def backward_at(step: int) -> tuple[Tensor, dict[str, float | int | Tensor]]:
        ids = windows.at(step)[None]
        inputs = {"input_ids": ids, "positions": places, "answer": torch.ones_like(ids, dtype=torch.bool)}
        if stage.indexer:
            again = far & windows.again(step)
            inputs["rows"] = draw_rows(again if again.any() else far, recipe.rows, torch.Generator().manual_seed(step))
        return run({name: tensor.to(model.device) for name, tensor in inputs.items()})

    return train(parameters, backward_at, loop, folder, stage.name)


def _about(model: KeyeVL, stage: Stage, recipe: Recipe, windows: Windows) -> dict[str, Any]:
    """What a run is resumed with, as JSON has it. How often it is saved and logged may change."""
    loop = {k: v for k, v in asdict(recipe.loop_of(stage)).items() if k not in ("slow", "save_every", "log_every")}
    words = {"length": windows.length, "rows": recipe.rows, "repeats": windows.repeats, "seed": windows.seed}
    weights = {name: tensor for name, tensor in model.state_dict().items() if not WARMUP.learns(name)}
    stream = hashlib.sha256(windows.stream.numpy().tobytes()).hexdigest()
    what = {"indexer": asdict(model.config.indexer), "weights": digest(weights)[:16], "stream": stream[:16]}
    return json.loads(json.dumps(loop | words | what))


def _require_same_run(path: Path, about: dict[str, Any]) -> None:
    """Write down what a stage begins with; raise ValueError where it began with something else."""
    if path.is_file():
        began = read_json(path)
        if others := sorted(name for name in about if began.get(name) != about[name]):
            shown = "; ".join(f"{name} {began.get(name)!r:.60}, now {about[name]!r:.60}" for name in others)
            raise ValueError(
                f"{path.parent} holds a run with other settings ({shown}): name another folder or remove it"
            )
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, (json.dumps(about, indent=1) + "\n").encode())
