"""Who judges what: exactly one teacher for every prompt, chosen by task and modality (report: 13 of them).

Axes: b prompt, g answer of a prompt, n token of an answer, v vocabulary.
Domains whose teachers are one model are read in one pass. A teacher may live on another device than the student.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minikeye.keye import KeyeVL
from minikeye.model.step import Mode
from minikeye.rl.groups import Prompts, joined_prompts
from minikeye.rl.mopd.aligned import require_aligned
from minikeye.rl.mopd.support import distributions
from minikeye.rl.rollout import answer_logits
from minikeye.training.step import autocast


class Route(NamedTuple):
    """What a prompt is about."""

    task: str  # such as "grounding"
    modality: str  # "video", "image" or "text"

    def __str__(self) -> str:
        return f"{self.task} ({self.modality})"


@dataclass(frozen=True)
class Asked:
    """Prompts of one kind, `with_visual_tokens`, padded on the left.

    prompts: input_ids [b t] and positions [3 b t], with attention_mask bool [b t] where rows are padded, and visual
    [n d] unless they are of text alone.
    """

    prompts: Prompts
    route: Route

    def __len__(self) -> int:
        return len(self.prompts["input_ids"])


def as_written(prompts: Prompts, ids: Int[Tensor, "b g n"]) -> tuple[Prompts, Int[Tensor, "b g n"]]:
    """A teacher of the student's own family reads what the student read and wrote."""
    return prompts, ids


@dataclass(frozen=True)
class Teacher:
    """An expert. It is not trained, and should share the student's tokenizer."""

    name: str
    model: KeyeVL
    # The student's prompts and answers -> the same as this teacher's own processor makes them, checked by `aligned`.
    reads: Callable[[Prompts, Int[Tensor, "b g n"]], tuple[Prompts, Int[Tensor, "b g n"]]] = as_written


class Teachers:
    """The router: strict, because a prompt without a teacher, or with the wrong one, is taught in silence."""

    def __init__(self, routes: Mapping[Route, Teacher]):
        """Raises ValueError without a route, and where two different models have one name."""
        by_name: dict[str, KeyeVL] = {}
        for teacher in routes.values():
            if by_name.setdefault(teacher.name, teacher.model) is not teacher.model:
                raise ValueError(f"expected one model for each name, got two for {teacher.name!r}: name them apart")
        if not routes:
            raise ValueError("expected at least one route to a teacher, got none")
        self.routes = dict(routes)

    def of(self, route: Route) -> Teacher:
        """Raises ValueError for a route that nobody teaches, naming those that are taught."""
        if route not in self.routes:
            known = ", ".join(map(str, self.routes))
            raise ValueError(f"expected a prompt about one of {known}, got {route}: add its teacher, or leave it out")
        return self.routes[route]

    def distributions(
        self, asked: Sequence[Asked], answers: Sequence[Int[Tensor, "_ g n"]], temperature: float, attention: Mode
    ) -> Float[Tensor, "b g n v"]:
        """What its teacher would say at every place of each answer, log-probabilities, in the order of `asked`.

        answers: the students' answers to each of `asked`, filled with -1 to one length. Raises ValueError as `of`, and
        where a teacher reads another sequence (`aligned`).
        """
        parts: list[Tensor | None] = [None] * len(asked)
        by_reader: dict[tuple[int, int], list[int]] = {}
        for n, each in enumerate(asked):
            by_reader.setdefault(reader(self.of(each.route)), []).append(n)
        for numbers in by_reader.values():
            prompts, ids = joined_prompts([asked[n].prompts for n in numbers]), torch.cat([answers[n] for n in numbers])
            read = judged(self.of(asked[numbers[0]].route), prompts, ids, temperature, attention)
            for n, part in zip(numbers, read.split([len(asked[n]) for n in numbers]), strict=True):
                parts[n] = part
        return torch.cat(parts)


class AllTeachers(Teachers):
    """The mean of all teachers' probabilities for every prompt that has one: what one public project does."""

    def distributions(
        self, asked: Sequence[Asked], answers: Sequence[Int[Tensor, "_ g n"]], temperature: float, attention: Mode
    ) -> Float[Tensor, "b g n v"]:
        """As of `Teachers`, whichever teacher a prompt has."""
        prompts, ids = joined_prompts([each.prompts for each in asked]), torch.cat(list(answers))
        everyone = {reader(teacher): teacher for teacher in self.routes.values()}.values()
        read = [judged(teacher, prompts, ids, temperature, attention) for teacher in everyone]
        return torch.stack(read).logsumexp(dim=0) - math.log(len(read))


def reader(teacher: Teacher) -> tuple[int, int]:
    """What one pass has in common: the model, and how it is given its prompts."""
    return id(teacher.model), id(teacher.reads)


@torch.no_grad()
def judged(
    teacher: Teacher, prompts: Prompts, ids: Int[Tensor, "b g n"], temperature: float, attention: Mode
) -> Float[Tensor, "b g n v"]:
    """One teacher's distributions, on the device of the answers. Raises ValueError as `require_aligned`."""
    its_prompts, its_ids = teacher.reads(prompts, ids)
    require_aligned(prompts, its_prompts, ids, its_ids, teacher.model.config, teacher.name)
    there, training = teacher.model.device, teacher.model.training
    teacher.model.eval()
    try:
        with autocast(there):
            inputs = {name: x.to(there) for name, x in its_prompts.items()}
            logits = answer_logits(teacher.model, inputs, its_ids.to(there), attention)
    except FloatingPointError as error:
        raise FloatingPointError(f"the teacher {teacher.name}: {error}") from error
    finally:
        teacher.model.train(training)
    return distributions(logits, temperature).to(ids.device)
