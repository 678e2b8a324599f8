"""Ways from one base to one student that knows what several experts know, for `study`.

    distilled    a row of `DISTILLED` each: MOPD, by other estimators, K or teachers, and failures on purpose. The base
                 itself is the teacher of `KEPT`, which no expert knows better and which would be forgotten: no_self
    sft          imitation of what each prompt's teacher says, as many answers as MOPD reads
    mixrl        GSPO on all domains, one an iteration in turn
    cascade      GSPO on one domain after another, each as its expert was made, in the order of `EXPERTS`; cascade_back
                 in the other order
    average      the mean of the experts' weights
    arithmetic   base + scale * sum of (expert - base), the scale that is best on the validation split

RL takes two optimiser steps an iteration and answers each prompt eight times: four times the answers of MOPD, in about
as much CPU time. Experts are made before; their rollouts are counted apart. Only distillation and imitation are asked
about `KEPT`: RL would need a reward for what is to be kept. Two arms go the same way at different speed, state by
state: "corrected" and "teacher_on_student" (`estimators`). Our choice, all numbers.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from minikeye.evaluation.mopd import experts as made
from minikeye.keye import KeyeVL
from minikeye.minivid.tasks import Problem
from minikeye.rl.groups import Prompts
from minikeye.rl.learn import RolloutConfig, reinforce
from minikeye.rl.mopd import estimators
from minikeye.rl.mopd.distill import DistillConfig, distill
from minikeye.rl.mopd.domains import DOMAINS, EXPERTS, Domain, DomainCourse
from minikeye.rl.mopd.merging import arithmetic, imitate
from minikeye.rl.mopd.teachers import AllTeachers, Asked, Route, Teacher, Teachers
from minikeye.rl.questions import ask, prompts_from
from minikeye.rl.rollout import Sampling
from minikeye.training.loop import LoopConfig
from minikeye.training.parallel.mesh import ALONE, Ranks, spread

NEW = 500_000  # first number of what students learn from: neither base nor experts saw it
KEPT = ("words",)  # domains that their own base teaches
LONGEST = max(DOMAINS[name].max_new_tokens for name in EXPERTS)


@dataclass(frozen=True)
class Plan:
    """Sizes of one arm's run."""

    steps: int = 100  # of distillation; each asks about every domain
    prompts: int = 8  # a domain and step
    answers: int = 2  # to each
    lr: float = 1e-3  # of distillation and imitation; half a cosine down to 5 %
    k: int = 8
    iterations: int = 60  # of GSPO, a domain, two optimiser steps each
    rl_prompts: int = 16  # an iteration
    group: int = 8  # answers to each
    rl_lr: float = 1e-3  # of mixrl
    scales: tuple[float, ...] = (0.2, 0.4, 0.6, 0.8, 1.0)  # of task arithmetic
    validation: int = 60  # questions a domain to choose the scale by


@dataclass(frozen=True)
class Family:
    """One base and what was made from it."""

    seed: int
    base: KeyeVL
    experts: dict[str, KeyeVL]
    foreign: dict[str, KeyeVL]  # experts of the same domains from another base; empty where there is none


def route(domain: Domain) -> Route:
    return Route(domain.name, domain.modality)


def routes(experts: dict[str, KeyeVL], moved: int = 0) -> dict[Route, Teacher]:
    """Each domain's own expert; moved: that of the domain so many places later, which is the wrong one."""
    names = list(experts)
    others = [*names[moved:], *names[:moved]]
    return {route(DOMAINS[own]): Teacher(its, experts[its]) for own, its in zip(names, others, strict=True)}


def batches(
    model: KeyeVL, seed: int, count: int, names: Sequence[str] = (*EXPERTS, *KEPT), ranks: Ranks = ALONE
) -> Callable[[int], list[Asked]]:
    """For `distill`: `count` new prompts of every domain that has a teacher."""
    at = {name: prompts_from(model, DomainCourse(DOMAINS[name], seed), count, NEW, ranks=ranks) for name in names}
    return lambda step: [Asked(at[name](step)[0], route(DOMAINS[name])) for name in names]


def itself(family: Family) -> dict[Route, Teacher]:
    """The base teaches its student what the student knows already (MiMo-V2-Flash calls such a teacher "Self")."""
    return {route(DOMAINS[name]): Teacher("itself", family.base) for name in KEPT}


@dataclass(frozen=True)
class Distilled:
    """One arm of distillation: what is changed, who teaches, and what is asked."""

    change: dict[str, Any]
    teachers: Callable[[Family], Teachers]
    names: tuple[str, ...] = (*EXPERTS, *KEPT)


def right(family: Family) -> Teachers:
    return Teachers(routes(family.experts) | itself(family))


DISTILLED = {
    "mopd": Distilled({}, right),
    "sampled": Distilled({"estimator": estimators.SAMPLED}, right),
    "full": Distilled({"estimator": estimators.FULL}, right),
    "student_only": Distilled({"estimator": estimators.STUDENT_ONLY}, right),
    "teacher_on_student": Distilled({"estimator": estimators.TEACHER_ON_STUDENT}, right),
    "corrected": Distilled({"estimator": estimators.CORRECTED}, right),
    "uncorrected": Distilled({"estimator": estimators.UNCORRECTED}, right),
    "printed": Distilled({"estimator": estimators.PRINTED}, right),
    "one_token": Distilled({"k": 1}, right),
    "categories": Distilled({"formatting": 0.5}, right),
    "no_self": Distilled({}, lambda family: Teachers(routes(family.experts)), EXPERTS),
    "all_teachers": Distilled({}, lambda family: AllTeachers(routes(family.experts) | itself(family))),
    "wrong_router": Distilled({"most_kl": 1e9}, lambda family: Teachers(routes(family.experts, 1) | itself(family))),
    "foreign": Distilled({"most_kl": 1e9}, lambda family: Teachers(routes(family.foreign) | itself(family))),
}


def config_of(plan: Plan, seed: int) -> DistillConfig:
    """What all arms of distillation have in common."""
    return DistillConfig(group=plan.answers, max_new_tokens=LONGEST, k=plan.k, seed=seed)


def distilled(arm: str, student: KeyeVL, family: Family, plan: Plan, ranks: Ranks = ALONE) -> dict:
    """One row of `DISTILLED`."""
    way = DISTILLED[arm]
    loop = LoopConfig(plan.steps, plan.lr, warmup=min(10, plan.steps), weight_decay=0.0, log_every=1)
    asked = batches(student, family.seed, plan.prompts, way.names, ranks)
    config = replace(config_of(plan, family.seed), **way.change)
    lines = distill(student, asked, way.teachers(family), config, loop, ranks=ranks)
    return {"rollouts": plan.steps * len(way.names) * plan.prompts * plan.answers, "log": thinned(lines)}


def thinned(lines: Sequence[dict], points: int = 20) -> list[dict]:
    """Means over equal stretches of the log, without what the clock says."""
    size = -(-len(lines) // points)
    parts = [lines[n : n + size] for n in range(0, len(lines), size)]
    names = [name for name in lines[0] if name not in ("seconds", "step")]
    return [
        {"step": part[0]["step"], **{k: round(sum(line[k] for line in part) / len(part), 5) for k in names}}
        for part in parts
    ]


def sft(student: KeyeVL, family: Family, plan: Plan, ranks: Ranks) -> dict:
    """Off-policy: the teachers' own answers."""
    config = Sampling(group=plan.answers, max_new_tokens=LONGEST, seed=family.seed)
    loop = LoopConfig(plan.steps, plan.lr, warmup=min(10, plan.steps), weight_decay=0.0, log_every=1)
    asked = batches(student, family.seed, plan.prompts, ranks=ranks)
    lines = imitate(student, asked, right(family), config, loop, ranks=ranks)
    return {"rollouts": plan.steps * len((*EXPERTS, *KEPT)) * plan.prompts * plan.answers, "log": thinned(lines)}


def by_domain(said: str, known: tuple[Domain, Problem]) -> float:
    """The reward of whichever domain was asked."""
    domain, problem = known
    return domain.reward(said, problem)


def reinforced(
    student: KeyeVL, family: Family, plan: Plan, order: Sequence[str], lr: float, ranks: Ranks, first: int = 0
) -> list[dict]:
    """GSPO, iteration n about the domain order[n]; its own optimiser and schedule. first: number of its first batch."""
    at = {
        name: prompts_from(student, DomainCourse(DOMAINS[name], family.seed), plan.rl_prompts, NEW, ranks=ranks)
        for name in EXPERTS
    }

    def asked(number: int) -> tuple[Prompts, list[tuple[Domain, Problem]]]:
        prompts, problems = at[order[number]](first + number)
        return prompts, [(DOMAINS[order[number]], problem) for problem in problems]

    config = RolloutConfig(group=plan.group, max_new_tokens=LONGEST, seed=family.seed + first)
    loop = LoopConfig(2 * len(order), lr, warmup=0, weight_decay=0.0, log_every=1)
    lines = reinforce(student, asked, by_domain, config, loop, ranks=ranks)
    return [{key: line[key] for key in ("step", "reward", "teaches", "length")} for line in lines[::2]]


def mixrl(student: KeyeVL, family: Family, plan: Plan, ranks: Ranks) -> dict:
    lines = reinforced(student, family, plan, [*EXPERTS] * plan.iterations, plan.rl_lr, ranks)
    return {"rollouts": len(lines) * plan.rl_prompts * plan.group, "log": thinned(lines)}


def cascade(student: KeyeVL, family: Family, plan: Plan, ranks: Ranks, order: Sequence[str] = EXPERTS) -> dict:
    lines: list[dict] = []
    for name in order:
        lr = made.rate(name, made.Plan())
        lines += reinforced(student, family, plan, [name] * plan.iterations, lr, ranks, first=len(lines))
    return {"rollouts": len(lines) * plan.rl_prompts * plan.group, "log": thinned(lines, len(order))}


def cascade_back(student: KeyeVL, family: Family, plan: Plan, ranks: Ranks) -> dict:
    return cascade(student, family, plan, ranks, EXPERTS[::-1])


def added(student: KeyeVL, family: Family, scale: float) -> None:
    """Task arithmetic, in place."""
    states = [expert.state_dict() for expert in family.experts.values()]
    student.load_state_dict(arithmetic(family.base.state_dict(), states, scale))


def average(student: KeyeVL, family: Family, plan: Plan, ranks: Ranks) -> dict:
    added(student, family, 1 / len(family.experts))
    return {"rollouts": 0}


def chosen_arithmetic(student: KeyeVL, family: Family, plan: Plan, ranks: Ranks) -> dict:
    """The scale whose mean score over all domains with an expert is best on the validation split."""
    found = {}
    for scale in plan.scales:
        added(student, family, scale)
        found[scale] = sum(validated(student, DOMAINS[name], family.seed, plan.validation, ranks) for name in EXPERTS)
    best = max(found, key=found.__getitem__)
    added(student, family, best)
    return {"rollouts": 0, "scale": best}


@torch.no_grad()
def validated(model: KeyeVL, domain: Domain, seed: int, count: int, ranks: Ranks = ALONE) -> float:
    """Mean score of greedy answers about the validation split."""
    said = ask(model, Validation(domain, seed), count, ranks=ranks)
    return sum(domain.reward(*pair) for pair in zip(said.answers, said.problems, strict=True)) / count


class Validation(DomainCourse):
    """A course whose examination is not the test."""

    def examination(self) -> DomainCourse:
        return replace(DomainCourse(self.domain, self.seed), split="validation")


RIVALS: dict[str, Callable[[KeyeVL, Family, Plan, Ranks], dict]] = {
    "mixrl": mixrl,
    "cascade": cascade,
    "cascade_back": cascade_back,
    "sft": sft,
    "average": average,
    "arithmetic": chosen_arithmetic,
}
ARMS = (*DISTILLED, *RIVALS)
WHOLE = ("average", "arithmetic")  # arms that learn nothing: weights are added up


def learn(arm: str, student: KeyeVL, family: Family, plan: Plan, ranks: Ranks = ALONE) -> dict:
    """Teach the student in place; rollouts, log and the CPU seconds it took, as a row keeps them.

    ranks: over which the student, a whole one, is then spread, unless its arm is among `WHOLE`.
    """
    if arm not in WHOLE:
        spread(student, ranks)
    begun = time.process_time()
    way = RIVALS.get(arm)
    row = way(student, family, plan, ranks) if way else distilled(arm, student, family, plan, ranks)
    return row | {"cpu_seconds": round(time.process_time() - begun, 1)}
