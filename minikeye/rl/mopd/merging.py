"""What distillation is compared with: teachers' weights put together, and teachers' answers imitated.

Axes: b prompt, g answer of a prompt, n token of an answer.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from minikeye.keye import KeyeVL
from minikeye.rl.learn import learns, require_finite
from minikeye.rl.mopd.distill import require_batch
from minikeye.rl.mopd.teachers import AllTeachers, Asked, Teachers
from minikeye.rl.rollout import Sampling, answer_logprobs, sampled
from minikeye.training.loop import LoopConfig, train
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
) -> list[dict[str, float | int]]:
    """Off-policy: the student learns what its teachers say by cross-entropy, a mean over all tokens of the batch.

    Arguments as of `distill.distill`; here the teachers are sampled, as `config` says, and the student never is, whose
    probabilities are those at temperature 1. A teacher answers the student's own prompts, `reads` is not asked. Raises
    ValueError for `AllTeachers`, which give no answers, and as `distill.require_batch`.
    """
    if isinstance(teachers, AllTeachers):
        raise ValueError("expected one teacher for each route, got AllTeachers: a mean of teachers says nothing")
    parameters = trainable(student, learns)

    def backward_at(step: int) -> tuple[Tensor, dict[str, float]]:
        for p in parameters.values():
            p.grad = None
        total, tokens, answers = torch.zeros((), device=student.device), 0, 0
        for n, each in enumerate(require_batch(student, batch_at(step), teachers)):
            teacher = teachers.of(each.route).model
            prompts = {key: x.to(teacher.device) for key, x in each.prompts.items()}
            said = sampled(teacher, prompts, config, config.seed * 1_000_003 + 1_009 * step + n).ids.to(student.device)
            teacher.eval()
            with autocast(student.device):
                logprobs = answer_logprobs(student, each.prompts, said, attention=config.attention)
            total = total - logprobs.sum()
            tokens, answers = tokens + int((said >= 0).sum()), answers + said.shape[0] * said.shape[1]
        loss = total / max(tokens, 1)
        loss.backward()
        require_finite(loss, parameters)
        return loss.detach(), {"length": tokens / answers}

    return train(parameters, backward_at, loop, folder, name)
