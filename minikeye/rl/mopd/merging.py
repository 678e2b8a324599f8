"""What distillation is compared with: teachers' weights put together, and teachers' answers imitated.

Axes: b prompt, g answer of a prompt, n token of an answer.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from minikeye.keye import KeyeVL
from minikeye.rl.groups import Prompts, share_of
from minikeye.rl.learn import learns, require_finite
from minikeye.rl.mopd.distill import require_batch
from minikeye.rl.mopd.teachers import AllTeachers, Asked, Teachers
from minikeye.rl.parallel.agreement import alike, require_rows_alone, share
from minikeye.rl.parallel.sampling import sampled_among
from minikeye.rl.rollout import Sampling, answer_logprobs
from minikeye.training.loop import LoopConfig, train
from minikeye.training.parallel.mesh import ALONE, Ranks
from minikeye.training.stage import trainable
from minikeye.training.step import autocast

State = Mapping[str, Tensor]


def arithmetic(base: State, experts: Sequence[State], scale: float) -> dict[str, Tensor]:
    """Task arithmetic (arXiv 2212.04089): base + scale * sum over experts of (expert - base).

    scale 1 / len(experts) is the average of the experts. Summed in float32, then in the base's dtype; numbers that are
    not floating point stay the base's. Raises ValueError without an expert, for one with other parameters, and for a
    scale that is not finite.
    """
    shapes = {name: value.shape for name, value in base.items()}
    if not experts or any({name: value.shape for name, value in expert.items()} != shapes for expert in experts):
        raise ValueError("expected one or more experts with the base's parameters: were they made from this base?")
    if not math.isfinite(scale):
        raise ValueError(f"expected a finite scale, got {scale}")
    return {name: _moved(value, [expert[name] for expert in experts], scale) for name, value in base.items()}


def _moved(value: Tensor, others: Sequence[Tensor], scale: float) -> Tensor:
    if not value.is_floating_point():
        return value.clone()
    start = value.float()
    return (start + scale * sum(other.float() - start for other in others)).to(value.dtype)


def imitate(
    student: KeyeVL,
    batch_at: Callable[[int], Sequence[Asked]],
    teachers: Teachers,
    config: Sampling,
    loop: LoopConfig,
    folder: Path | None = None,
    name: str = "imitate",
    *,
    ranks: Ranks = ALONE,
) -> list[dict[str, float | int]]:
    """Off-policy: the student learns what its teachers say by cross-entropy, a mean over all tokens of the batch.

    Arguments as of `distill.distill`; here the teachers are sampled, as `config` says, and the student never is, whose
    probabilities are those at temperature 1. A teacher answers the student's own prompts, `reads` is not asked. Raises
    ValueError for `AllTeachers`, which give no answers, and as `distill.require_batch`. ranks: as of `distill.distill`;
    each has its share of the answers to every kind of prompts.
    """
    if isinstance(teachers, AllTeachers):
        raise ValueError("expected one teacher for each route, got AllTeachers: a mean of teachers says nothing")
    require_rows_alone(student, ranks)
    parameters = trainable(student, learns)

    def said(each: Asked, seed: int) -> tuple[Prompts, Int[Tensor, "b g n"]]:
        """This rank's prompts with what their teacher says; where it has none, the first, and nothing said."""
        teacher, rows = teachers.of(each.route).model, share(ranks, len(each))
        asked = rows if rows.start < rows.stop else slice(0, 1)
        prompts = {key: x.to(teacher.device) for key, x in each.prompts.items()}
        answers = sampled_among(teacher, share_of(prompts, asked), asked.start, len(each), config, seed)
        teacher.eval()
        answers = answers if asked is rows else answers.silent
        return share_of(each.prompts, asked), answers.ids.to(student.device)

    def backward_at(step: int) -> tuple[Tensor, dict[str, float]]:
        for p in parameters.values():
            p.grad = None
        total, seed = torch.zeros((), device=student.device), config.seed * 1_000_003 + 1_009 * step
        batch = require_batch(student, batch_at(step), teachers)
        with alike(ranks):
            lessons = [said(each, seed + n) for n, each in enumerate(batch)]
        for prompts, ids in lessons:
            with alike(ranks), autocast(student.device):
                logprobs = answer_logprobs(student, prompts, ids, attention=config.attention)
            total = total - logprobs.sum()
        own = sum(int((ids >= 0).sum()) for _, ids in lessons)
        tokens = int(ranks.total(torch.tensor(own, device=student.device)))
        loss = total / max(tokens, 1)
        loss.backward()
        whole = ranks.total(loss)
        require_finite(whole, parameters, ranks)
        return whole, {"length": tokens / (config.group * sum(map(len, batch)))}

    return train(parameters, backward_at, loop, folder, name, ranks=ranks)
