"""A stage of learning from answers: what learns, by which attention, from which losses.

The report's order in miniature (section 3): NAMING, on short videos, stands for its stages 0 and 1, in which words meet
what they name; DENSE for its stages 2 and 3; WARMUP and SPARSE teach the indexer (section 2.3). Before them the tower
learns on its own (tower.py).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from minikeye import ops
from minikeye.keye import KeyeVL
from minikeye.model.step import Mode
from minikeye.training.dsa import IndexerTeacher, draw_rows
from minikeye.training.loop import LoopConfig, train
from minikeye.training.losses import answer_accuracy, answer_loss, label_accuracy, label_loss
from minikeye.training.packing import apart
from minikeye.training.parallel.mesh import ALONE, Ranks
from minikeye.training.parallel.samples import Batch, Part, whole
from minikeye.training.step import EagerStep, autocast, beside, stepper

# The answer loss says little about pixels until attention has found them, and Adam turns little into full-size steps:
# at the decoder's rate the taught tower is destroyed, and the projector outgrows the residual stream.
SLOW = ("visual.", "mlp_AR.")


@dataclass(frozen=True)
class LossWeights:
    """Our choice: the report gives neither."""

    balance: float = 0.01  # of the experts' balance loss
    indexer: float = 1.0  # lambda: of the indexer's KL loss beside the answers'


@dataclass(frozen=True)
class Stage:
    """What one stage does; how long and from which videos, its recipe says."""

    name: str
    number: int  # its place in the order; each stage sees videos of its own
    learns: Callable[[str], bool]  # which parameters, by name
    attention: Mode  # while learning
    answers: bool  # whether it learns from answers, with the experts' balance loss
    indexer: bool  # whether it learns from the indexer's KL loss

    def loss(
        self,
        model: KeyeVL,
        inputs: dict[str, Tensor],
        weights: LossWeights = LossWeights(),
        mode: Mode | None = None,
        part: Part | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss on one batch, and numbers for the log.

        mode: of the attention; None: the stage's own, and "sparse" as `ops.learning_mode` says.
        inputs: of a pass, with answer bool [b t], the tokens to learn; where the indexer is taught, rows [n], the query
        positions it is taught from; where several documents lie in a row, start [b t] (`packing.pack`).
        part: what one of many ranks takes of the batch, inputs being `Part.inputs`; loss and numbers are then parts of
        sums over the ranks (`samples.whole`), and so are gradients.
        """
        start, tokens = inputs.get("start"), inputs["input_ids"].shape[1] if part is None else part.length
        mode = ops.learning_mode(self.attention, model.config, tokens, model.device) if mode is None else mode
        rows = inputs["rows"] if self.indexer else None
        teacher = IndexerTeacher(
            rows, start if mode == "dense" else None, None if part is None else part.portion(inputs, mode)
        )
        with autocast(model.device):
            if part is None:
                with apart(model, start, mode) as mode:
                    logits = model(inputs, attention=mode, observer=teacher).logits
            else:
                logits = part.read(model, inputs, mode, teacher)
            kl = teacher.indexer_loss() if self.indexer else torch.zeros((), device=model.device)
        if not self.answers:
            return kl, {}
        if part is None:
            answers = answer_loss(logits, inputs["input_ids"], inputs["answer"])
            right = answer_accuracy(logits.detach(), inputs["input_ids"], inputs["answer"])
        else:
            answers = label_loss(logits, inputs["labels"], part.answers)
            right = label_accuracy(logits.detach(), inputs["labels"], part.answers)
        balance = teacher.balance_loss()
        numbers = {"answer": answers.detach(), "kl": kl.detach(), "balance": balance.detach(), "right": right}
        return answers + weights.balance * balance + weights.indexer * kl, numbers


def _is_indexer(name: str) -> bool:
    return "sa_indexer" in name


NAMING = Stage("naming", 1, lambda name: not _is_indexer(name), "dense", answers=True, indexer=False)
DENSE = replace(NAMING, name="dense", number=2)
WARMUP = Stage("warmup", 3, _is_indexer, "dense", answers=False, indexer=True)  # L_warmup
SPARSE = Stage("sparse", 4, lambda name: True, "sparse", answers=True, indexer=True)  # L_NTP + lambda L_sparse
STAGES = {stage.name: stage for stage in (NAMING, DENSE, WARMUP, SPARSE)}


def teach(
    model: KeyeVL,
    stage: Stage,
    config: LoopConfig,
    lessons_from: Callable[[int], Iterator[Batch]],
    folder: Path | None,
    weights: LossWeights = LossWeights(),
    ranks: Ranks = ALONE,
) -> list[dict[str, float | int]]:
    """Run a stage, or what is left of it, on the model's device. Returns the log lines of this call.

    lessons_from: the lessons of step n, n + 1, ... for a first step n. folder: as in `loop.train`. ranks: the processes
    that share each batch, over which the model is `spread`; all of them call this, with the same lessons.
    """
    parameters = trainable(model, stage.learns)
    learnt = list(parameters.values())
    run = None if ranks.size > 1 else stepper(model.device)(lambda inputs: stage.loss(model, inputs, weights), learnt)
    lessons: Iterator[Batch] | None = None

    def backward_at(step: int) -> tuple[Tensor, dict[str, float | int | Tensor]]:
        nonlocal lessons
        lessons = lessons_from(step) if lessons is None else lessons  # only now it is known where a run goes on
        if (lesson := next(lessons, None)) is None:
            raise ValueError(f"expected lessons up to step {config.steps - 1}, got none for step {step}")
        count = max(16, min(128, 3072 // lesson.size.videos))  # rows to teach the indexer from
        rows = draw_rows(lesson.tokens["answer"], count, torch.Generator().manual_seed(step))
        device = model.device
        if run is not None:
            loss, numbers = run(beside(lambda: lesson.inputs(model.config, device) | {"rows": rows.to(device)}, device))
        else:
            part = Part.of(lesson.tokens, rows, ranks)
            step_of = EagerStep(lambda inputs: stage.loss(model, inputs, weights, part=part), learnt)
            loss, numbers = step_of(beside(lambda: part.inputs(lesson, rows, model.config, device), device))
            if device.type == "cuda":  # as a graph leaves it: a gradient of 0, by which momentum and decay still move
                for p in (p for p in learnt if p.grad is None):
                    p.grad = torch.zeros_like(p)
            loss, numbers = whole(loss, numbers, ranks)
        return loss, {"frames": lesson.size.frames, **numbers}

    return train(parameters, backward_at, config, folder, stage.name, ranks)


def trainable(model: nn.Module, wanted: Callable[[str], bool] = lambda name: True) -> dict[str, nn.Parameter]:
    """The parameters whose names are wanted, made trainable; all others frozen. The unused table is always frozen."""
    chosen = {}
    for name, p in model.named_parameters():
        p.requires_grad_(wanted(name) and "packing_position" not in name)
        if p.requires_grad:
            chosen[name] = p
    return chosen
