"""A base and its experts: python -m minikeye.evaluation.mopd.experts --out FOLDER --seed N

From the checkpoint `nano_things`, which knows what is visible when, and sums:
    base      first taught to do what all domains ask, from true answers; then, shortly, by an annotator who is careless
              in the domains that get an expert (`rl.mopd.domains`)
    experts   from the base, one a domain, by GSPO; the reward knows the truth (report: experts by RL or SFT)
FOLDER/seed-N gets a checkpoint of each, in bfloat16, and scores.json: the scores of all in all domains, what stands
against them, and how far each expert is from the base in its own domain. Called again it makes what is missing. A seed
has videos, sums, annotators and draws of its own. One core, some minutes. All sizes: our choice.
"""

import argparse
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from minikeye.files import CHECKPOINT, write_whole
from minikeye.keye import KeyeVL
from minikeye.minivid.lessons import Lesson
from minikeye.results import hardware, write_result
from minikeye.rl.groups import decoder, judge
from minikeye.rl.learn import RolloutConfig, learns, reinforce
from minikeye.rl.mopd.domains import DOMAINS, EXPERTS, Domain, DomainCourse
from minikeye.rl.parallel.agreement import PATIENCE
from minikeye.rl.questions import ask, prompts_from
from minikeye.rl.rollout import answer_logprobs, sampled
from minikeye.training.loop import LoopConfig
from minikeye.training.parallel.checkpoints import export
from minikeye.training.parallel.mesh import ALONE, Ranks, join, spread
from minikeye.training.stage import DENSE, teach

BASE = "base"
CARELESS, EXPERT, SAMPLES = 100_000, 200_000, 300_000  # first numbers of what each learns from
ABLE_SHARES = {
    "grounding": 1, "order": 5, "second": 1, "counting": 6, "naming": 4, "sums": 2, "presence": 1, "words": 4,
}  # fmt: skip
GENTLE = ("counting",)
CARELESS_SHARES = dict.fromkeys(DOMAINS, 1) | {"grounding": 2, "second": 2}


@dataclass(frozen=True)
class Plan:
    """Sizes of one seed's runs."""

    able_steps: int = 780  # of imitation of true answers, a step one domain
    able_lr: float = 4e-3
    careless_steps: int = 360  # of imitation of careless ones
    careless_lr: float = 1.5e-3
    rows: int = 32  # prompts of a step of imitation
    iterations: int = 60  # of GSPO for each expert
    prompts: int = 24  # an iteration
    group: int = 8  # answers to each
    lr: float = 1e-3  # of GSPO
    gentle_lr: float = 5e-4  # of GSPO in `GENTLE`: at 1e-3 that expert went 1.4 nats a token away, and was no better
    questions: int = 200  # of each examination
    sampled: int = 64  # prompts for pass@8 and distances


SMOKE = Plan(2, 1e-3, 2, 1e-3, rows=2, iterations=1, prompts=2, group=2, questions=2, sampled=2)


def mixed(
    model: KeyeVL, shares: dict[str, int], seed: int, careless: bool, plan: Plan, steps: int, first: int
) -> Callable[[int], Iterator[Lesson]]:
    """For `stage.teach`: each step a domain, drawn from its own number; and questions that no other step asks."""

    def lessons(step: int) -> Iterator[Lesson]:
        for n in range(step, steps):
            name = random.Random(f"{seed} {first} {n}").choices([*shares], [*shares.values()])[0]
            course = DomainCourse(DOMAINS[name], seed, careless)
            shown, problems = course.questions(first + n * plan.rows, plan.rows)
            yield Lesson(course.tokens(shown, problems, model.config, True), shown, course.size(plan.rows))

    return lessons


def teach_base(model: KeyeVL, seed: int, plan: Plan, folder: Path, ranks: Ranks = ALONE) -> None:
    """True answers, then careless ones."""
    able = LoopConfig(plan.able_steps, plan.able_lr, warmup=20, save_every=100)
    stage = replace(DENSE, learns=learns, name="able")
    teach(model, stage, able, mixed(model, ABLE_SHARES, seed, False, plan, plan.able_steps, 0), folder, ranks=ranks)
    careless = LoopConfig(plan.careless_steps, plan.careless_lr, warmup=10, save_every=100)
    lessons = mixed(model, CARELESS_SHARES, seed, True, plan, plan.careless_steps, CARELESS)
    teach(model, replace(stage, name="careless"), careless, lessons, folder, ranks=ranks)


def rate(name: str, plan: Plan) -> float:
    """The learning rate at which a domain is learnt by reward."""
    return plan.gentle_lr if name in GENTLE else plan.lr


def teach_expert(model: KeyeVL, domain: Domain, seed: int, plan: Plan, ranks: Ranks = ALONE) -> list[dict]:
    """GSPO with true answers; the log lines of the first minibatches."""
    config = RolloutConfig(group=plan.group, max_new_tokens=domain.max_new_tokens, seed=seed)
    lr = rate(domain.name, plan)
    loop = LoopConfig(2 * plan.iterations, lr, warmup=0, weight_decay=0.0, log_every=1)
    prompts = prompts_from(model, DomainCourse(domain, seed), plan.prompts, EXPERT, ranks=ranks)
    return reinforce(model, prompts, domain.reward, config, loop, ranks=ranks)[::2]


def percent(values: Sequence[float]) -> float:
    return round(100 * sum(values) / len(values), 2)


def examined(model: KeyeVL, seed: int, plan: Plan, blank: bool = False, ranks: Ranks = ALONE) -> dict[str, float]:
    """Score of greedy answers in every domain, in percent. blank: grey pixels; domains of text are left out."""
    out = {}
    for name, domain in DOMAINS.items():
        if not (blank and domain.modality == "text"):
            said = ask(model, DomainCourse(domain, seed), plan.questions, blank=blank, ranks=ranks)
            out[name] = percent([domain.reward(*pair) for pair in zip(said.answers, said.problems, strict=True)])
    return out


def constants(seed: int, plan: Plan) -> dict[str, float]:
    """Score of the best answer that is the same to all questions of the examination, in percent."""
    out = {}
    for name, domain in DOMAINS.items():
        _, problems = DomainCourse(domain, seed).examination().questions(0, plan.questions)
        tried = {problem.answer for problem in problems}
        out[name] = max(percent([domain.reward(said, problem) for problem in problems]) for said in tried)
    return out


def drawn(model: KeyeVL, seed: int, plan: Plan, group: int = 8) -> dict[str, dict[str, float]]:
    """Of `group` answers at temperature 1 to each prompt: mean score, and pass@group, in percent.

    pass: the best answer scores 1; where a score is a temporal IoU, at least 0.9.
    """
    out = {}
    for name, domain in DOMAINS.items():
        config = RolloutConfig(group=group, max_new_tokens=domain.max_new_tokens)
        test = DomainCourse(domain, seed).examination()
        prompts, problems = prompts_from(model, test, plan.sampled)(0)
        rewards = judge(sampled(model, prompts, config, seed), problems, domain.reward, decoder(model))
        passed = (rewards.amax(dim=1) >= 0.9).float().tolist()
        out[name] = {"mean": percent(rewards.flatten().tolist()), "pass": percent(passed)}
    return out


@torch.no_grad()
def distance(student: KeyeVL, teacher: KeyeVL, domain: Domain, seed: int, plan: Plan) -> float:
    """Reverse KL student || teacher in nats a token, over the student's own answers at temperature 1 (an estimate)."""
    config = RolloutConfig(group=8, max_new_tokens=domain.max_new_tokens)
    prompts, _ = prompts_from(student, DomainCourse(domain, seed), plan.sampled, SAMPLES)(0)
    answers = sampled(student, prompts, config, seed)
    gap = answers.logprobs - answer_logprobs(teacher.eval(), prompts, answers.ids)
    return round(float(gap[answers.mask].mean()), 4)


def rows_of(
    checkpoint: Path, folder: Path, seed: int, plan: Plan, done: set[str], ranks: Ranks = ALONE
) -> Iterator[dict]:
    """Lines of what is not done: the base, then an expert for each domain; the checkpoint of each is there before.

    ranks: teach together; what is measured is a whole model on each.
    """
    for name in (BASE, *EXPERTS):
        if name in done:
            continue
        begun, row = time.process_time(), {"seed": seed, "model": name}
        model = KeyeVL.from_pretrained(checkpoint if name == BASE else folder / BASE, dtype=torch.float32)
        spread(model, ranks)
        if name == BASE:
            teach_base(model, seed, plan, folder, ranks)
        else:
            log = teach_expert(model, DOMAINS[name], seed, plan, ranks)
            row |= {key: [round(line[key], 3) for line in log] for key in ("reward", "teaches")}
        export(model.eval(), folder / name, ranks, dtype=torch.bfloat16)
        row["cpu_seconds"] = round(time.process_time() - begun, 1)
        model = KeyeVL.from_pretrained(folder / name, dtype=torch.float32)  # what is measured is what is kept
        row["scores"] = examined(model, seed, plan, ranks=ranks)
        if name == BASE:
            row |= {"blank": examined(model, seed, plan, blank=True, ranks=ranks), "constant": constants(seed, plan)}
            row["drawn"] = drawn(model, seed, plan)
        else:
            base = KeyeVL.from_pretrained(folder / BASE, dtype=torch.float32)
            row["distance"] = distance(base, model, DOMAINS[name], seed, plan)
        row["all_cpu_seconds"] = round(time.process_time() - begun, 1)
        yield row


def summarise(rows: list[dict]) -> dict[str, float | int]:
    """By domain, in percent: base_, expert_ (its own), pass8_, constant_; distance_ in nats a token; cpu_minutes."""
    out: dict[str, float | int] = {}
    for row in rows:
        if row["model"] == BASE:
            for name in DOMAINS:
                out |= {f"base_{name}": row["scores"][name], f"constant_{name}": row["constant"][name]}
                out[f"pass8_{name}"] = row["drawn"][name]["pass"]
        else:
            name = row["model"]
            out |= {f"expert_{name}": row["scores"][name], f"distance_{name}": row["distance"]}
    out["cpu_minutes"] = round(sum(row["all_cpu_seconds"] for row in rows) / 60, 1)
    return out


def make(checkpoint: Path, out: Path, seed: int, plan: Plan, ranks: Ranks = ALONE) -> list[dict]:
    """All lines of a seed, made or found. Raises ValueError where the folder holds a seed of other sizes."""
    folder, path = out / f"seed-{seed}", out / f"seed-{seed}" / "scores.json"
    rows, sizes = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else [], folder / "plan.txt"
    folder.mkdir(parents=True, exist_ok=True)
    if sizes.is_file() and sizes.read_text(encoding="utf-8") != repr(plan):
        raise ValueError(f"{folder} holds a seed of other sizes (--smoke?): choose another --out")
    if ranks.rank == 0:
        write_whole(sizes, repr(plan).encode())
    for row in rows_of(checkpoint, folder, seed, plan, {row["model"] for row in rows}, ranks):
        rows.append(row | {"hardware": hardware(), "torch": torch.__version__})
        if ranks.rank:
            continue
        shown = {key: row[key] for key in ("model", "scores", "drawn", "distance", "cpu_seconds") if key in row}
        print(json.dumps(shown), flush=True)
        what = "greedy score in percent of a base and its experts in all domains, and distances in nats a token"
        command = f"OMP_NUM_THREADS=1 python -m minikeye.evaluation.mopd.experts --out FOLDER --seed {seed}"
        write_result(path, what, command, rows, summarise(rows), [seed])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT.with_name("nano_things"), help="where to begin")
    parser.add_argument("--out", type=Path, required=True, help="folder of states, checkpoints and scores")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--smoke", action="store_true", help="a few tiny steps of everything")
    options = parser.parse_args()
    ranks = join("cpu", timeout=PATIENCE)
    torch.set_num_threads(1)
    make(options.checkpoint, options.out, options.seed, SMOKE if options.smoke else Plan(), ranks)


if __name__ == "__main__":
    main()
