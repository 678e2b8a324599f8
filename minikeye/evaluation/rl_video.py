"""Learning when, from careless labels: python -m minikeye.evaluation.rl_video --out FILE

The checkpoint `nano_things` knows from when to when a thing is visible. It is first taught by imitation of an annotator
who puts either end a frame too early, right or a frame too late: that is the base. From there five ways go on, all
examined by the same truly annotated questions about videos of the test split:
    sft_more   imitation of the same annotator, as many optimiser steps
    sft_clean  imitation of true labels: the ceiling
    rl         GSPO (report, Video-RL), the reward the temporal IoU with the careless labels
    rl_exact   GSPO, the reward 1 where an answer is the careless label to the letter
    rl_true    GSPO, the temporal IoU with true labels
All make as many optimiser steps and see the same new videos, imitation twice as many of them: a step of it takes as
many as an iteration of GSPO, which is two steps. About as many tokens pass the decoder then (notebook 12); a row's
cpu_seconds, without the checks, say what it took.

One row a seed and arm: a seed has videos, annotator and sampling of its own. Called again it adds missing rows.
Vision tower, projector and indexer are frozen, attention is dense (`learn.learns`). All sizes are our choice.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from minikeye.files import CHECKPOINT
from minikeye.keye import KeyeVL
from minikeye.minivid.dataset import MAX_STEP, MIN_STEP
from minikeye.minivid.lessons import Lesson
from minikeye.minivid.tasks import Problem, parse_interval, score
from minikeye.results import hardware, write_result
from minikeye.rl.learn import RolloutConfig, learns, reinforce
from minikeye.rl.parallel.agreement import PATIENCE
from minikeye.rl.questions import Answered, Course, ask, interval_reward, lessons_from, prompts_from
from minikeye.scores import student_mean
from minikeye.training.loop import LoopConfig
from minikeye.training.parallel.mesh import ALONE, Ranks, join, spread
from minikeye.training.stage import DENSE, teach

SFT = replace(DENSE, learns=learns)
AFTER = 100_000  # the first video after the base's


@dataclass(frozen=True)
class Plan:
    """Sizes of one seed's runs."""

    frames: int = 8
    span: int = 1  # frames by which the annotator may be off
    base_steps: int = 60  # of imitation
    base_videos: int = 32  # a step
    base_lr: float = 1e-3
    iterations: int = 60  # of GSPO, two optimiser steps each; imitation takes the same number of steps
    videos: int = 16  # an iteration of GSPO, and a step of imitation
    group: int = 8  # answers to each
    lr: float = 1e-3  # both ways, down to 5 % of it along a cosine
    questions: int = 300  # of the examination
    checks: int = 4  # times that an arm is looked at on its way
    check_questions: int = 100


def exact_reward(text: str, known: Problem) -> float:
    """1 where the answer is the annotator's to the letter: no answer is nearly right."""
    return score(known, text)["exact"]


# arm: whether labels are true, and the reward; None: imitation
ARMS: dict[str, tuple[bool, Callable[[str, Problem], float] | None]] = {
    "sft_more": (False, None),
    "sft_clean": (True, None),
    "rl": (False, interval_reward),
    "rl_true": (True, interval_reward),
    "rl_exact": (False, exact_reward),
}


class Checks:
    """The learning curve of an arm: wraps what a run asks for step by step, and looks at the model on the way."""

    def __init__(self, model: KeyeVL, course: Course, plan: Plan, steps: int, ranks: Ranks = ALONE):
        self.model, self.course, self.count, self.ranks = model, course, plan.check_questions, ranks
        self.at = {round(n * steps / plan.checks) for n in range(1, plan.checks)}  # the end is the examination
        self.curve: list[tuple[int, float]] = []  # step, mean temporal IoU in percent
        self.seconds = 0.0  # CPU time that looking took

    def look(self, step: int) -> None:
        if step in self.at:
            begun, training = time.process_time(), self.model.training
            self.curve.append((step, percent(ask(self.model, self.course, self.count, ranks=self.ranks))))
            self.model.train(training)
            self.seconds += time.process_time() - begun

    def prompts(self, batch_at: Callable[[int], Any]) -> Callable[[int], Any]:
        return lambda number: (self.look(number), batch_at(number))[1]

    def lessons(self, lessons_at: Callable[[int], Iterator[Lesson]]) -> Callable[[int], Iterator[Lesson]]:
        def looked(step: int) -> Iterator[Lesson]:
            for n, lesson in enumerate(lessons_at(step), start=step):
                self.look(n)
                yield lesson

        return looked


def percent(answered: Answered) -> float:
    """Mean temporal IoU."""
    values = answered.scores()["tiou"]
    return round(100 * sum(values) / len(values), 2)


def base_of(model: KeyeVL, course: Course, plan: Plan, ranks: Ranks = ALONE) -> None:
    """Imitation of the careless annotator."""
    loop = LoopConfig(plan.base_steps, plan.base_lr, warmup=min(10, plan.base_steps))
    teach(model, SFT, loop, lessons_from(model, course, plan.base_videos, plan.base_steps), None, ranks=ranks)


def learn(model: KeyeVL, arm: str, course: Course, plan: Plan, ranks: Ranks = ALONE) -> dict:
    """One arm from the base on; what it took, and its curve in optimiser steps."""
    clean, reward = ARMS[arm]
    course = replace(course, span=0) if clean else course
    steps, begun = 2 * plan.iterations, time.process_time()
    loop = LoopConfig(steps, plan.lr, warmup=0, weight_decay=0.0, log_every=1)
    if reward is None:
        checks = Checks(model, course, plan, steps, ranks)
        lessons = lessons_from(model, course, plan.videos, steps, AFTER)
        teach(model, SFT, loop, checks.lessons(lessons), None, ranks=ranks)
        row = {"videos": steps * plan.videos, "answers": steps * plan.videos, "curve": checks.curve}
    else:
        checks = Checks(model, course, plan, plan.iterations, ranks)
        prompts = prompts_from(model, course, plan.videos, AFTER, ranks=ranks)
        config = RolloutConfig(group=plan.group, max_new_tokens=26, seed=course.seed)
        lines = reinforce(model, checks.prompts(prompts), reward, config, loop, ranks=ranks)
        videos = plan.iterations * plan.videos
        row = {"videos": videos, "answers": videos * plan.group, "curve": [(2 * n, x) for n, x in checks.curve]}
        row |= {name: [round(line[name], 3) for line in lines[::2]] for name in ("reward", "teaches")}
        row["clipped"] = [round(line["clipped"], 3) for line in lines[1::2]]  # second minibatches: the first is 0
    return row | {"cpu_seconds": round(time.process_time() - begun - checks.seconds, 1)}


def levels(answered: Answered, frames: int) -> list[tuple[str, str, str]]:
    """For each question where it stands among what the generator draws: length and place of the thing, duration."""
    out = []
    for problem, duration in zip(answered.problems, answered.durations, strict=True):
        [(start, end)] = parse_interval(problem.answer)
        step = duration / (frames - 1)
        length = "short" if round((end - start) / step) <= frames // 4 else "long"
        place = "early" if start + end < duration + step else "late"
        out.append((length, place, "brief" if step < (MIN_STEP + MAX_STEP) / 2 else "lasting"))
    return out


def examined(answered: Answered, frames: int) -> dict:
    """The numbers of a row: over all questions, and by level with the best constant of that level beside it."""
    parts, by = levels(answered, frames), {}
    for level in ("short", "long", "early", "late", "brief", "lasting"):
        if chosen := [n for n, part in enumerate(parts) if level in part]:
            lists = (answered.problems, answered.answers, answered.durations)
            some = Answered(*([values[n] for n in chosen] for values in lists))
            by[level] = {"n": len(chosen), "miou": percent(some), "constant": round(100 * some.constant(), 2)}
    exact = answered.scores()["exact"]
    row = {"n": len(exact), "miou": percent(answered), "exact": round(100 * sum(exact) / len(exact), 2)}
    return row | {"constant": round(100 * answered.constant(), 2), "by": by}


def kept(model: KeyeVL) -> dict:
    """A copy of its parameters, or of this rank's parts of them."""
    return {name: p.clone() for name, p in model.state_dict().items()}


def run_seed(
    model: KeyeVL, start: dict, seed: int, arms: list[str], plan: Plan, ranks: Ranks = ALONE
) -> Iterator[dict]:
    """Rows of the arms that are named, the base's among them if it is; the base is made in any case."""
    course = Course("G", plan.frames, span=plan.span, seed=seed)
    model.load_state_dict(start)
    begun = time.process_time()
    base_of(model, course, plan, ranks)
    base, seconds = kept(model), round(time.process_time() - begun, 1)
    if "base" in arms:
        videos = plan.base_steps * plan.base_videos
        took = {"videos": videos, "answers": videos, "cpu_seconds": seconds}
        yield (
            {"seed": seed, "arm": "base"}
            | examined(ask(model, course, plan.questions, ranks=ranks), plan.frames)
            | took
        )
    for arm in (arm for arm in ARMS if arm in arms):
        model.load_state_dict(base)
        took = learn(model, arm, course, plan, ranks)
        row = {"seed": seed, "arm": arm} | examined(ask(model, course, plan.questions, ranks=ranks), plan.frames) | took
        if arm == "rl":
            row["shuffled"] = percent(ask(model, course, plan.questions, shuffle=True, ranks=ranks))
        yield row


def summarise(rows: list[dict]) -> dict[str, float | int]:
    """Means over seeds in percent: miou_ARM, of rl with its 95 % interval, the controls, differences of pairs of arms
    (their least over seeds: _min), levels (miou_ARM_LEVEL, miou_constant_LEVEL), CPU seconds.
    """
    found = {(row["arm"], row["seed"]): row for row in rows}
    of = lambda arm: {seed: row for (a, seed), row in found.items() if a == arm}  # noqa: E731
    mean = lambda values: round(sum(values) / len(values), 2)  # noqa: E731
    out: dict[str, float | int] = {}
    for arm in ("base", *ARMS):
        if some := list(of(arm).values()):
            out |= {f"{key}_{arm}": mean([row[key] for row in some]) for key in ("miou", "exact", "cpu_seconds")}
            for level in some[0]["by"]:
                parts = [row["by"][level] for row in some if level in row["by"]]
                out[f"miou_{arm}_{level}"] = mean([part["miou"] for part in parts])
                out[f"miou_constant_{level}"] = mean([part["constant"] for part in parts])
    if rl := of("rl"):
        if len(rl) > 1:
            estimate = student_mean([row["miou"] for row in rl.values()])
            out |= {"miou_rl_low": round(estimate.low, 2), "miou_rl_high": round(estimate.high, 2)}
        out["miou_shuffled"] = mean([row["shuffled"] for row in rl.values()])
        out["miou_constant"] = mean([row["constant"] for row in rl.values()])
    for a, b in (("rl", "base"), ("rl", "sft_more"), ("rl", "rl_exact"), ("sft_clean", "rl")):
        if both := of(a).keys() & of(b).keys():
            gains = [of(a)[seed]["miou"] - of(b)[seed]["miou"] for seed in sorted(both)]
            out |= {f"{a}_minus_{b}": mean(gains), f"{a}_minus_{b}_min": round(min(gains), 2)}
    if rows:
        out |= {"video_seeds": len({row["seed"] for row in rows}), "questions": min(row["n"] for row in rows)}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT.with_name("nano_things"), help="folder")
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write, or to add missing rows to")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", default=["base", *ARMS], choices=["base", *ARMS])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    sizes = parser.add_argument_group("sizes, for a smoke test")
    for name, field in Plan.__dataclass_fields__.items():
        sizes.add_argument(f"--{name.replace('_', '-')}", type=type(field.default), default=field.default)
    options = parser.parse_args()
    plan = Plan(**{name: getattr(options, name) for name in Plan.__dataclass_fields__})
    rows = json.loads(options.out.read_text(encoding="utf-8"))["rows"] if options.out.is_file() else []
    ranks = join(options.device, timeout=PATIENCE)
    model = KeyeVL.from_pretrained(options.checkpoint, dtype=torch.float32, device=ranks.device(options.device))
    spread(model, ranks)
    start = kept(model)
    for seed in options.seeds:
        done = {row["arm"] for row in rows if row["seed"] == seed}
        if missing := [arm for arm in options.arms if arm not in done]:
            for row in run_seed(model, start, seed, missing, plan, ranks):
                if ranks.rank:
                    continue
                rows.append(row | {"hardware": hardware(), "torch": torch.__version__})
                print({name: row[name] for name in ("seed", "arm", "n", "miou", "exact", "cpu_seconds")}, flush=True)
                report(options.out, rows)


def report(path: Path, rows: list[dict]) -> None:
    """Write all that is known so far."""
    what = "mean temporal IoU of a small model that learns from careless labels, by imitation and by reward, in percent"
    command = f"OMP_NUM_THREADS=1 python -m minikeye.evaluation.rl_video --device cpu --out assets/results/{path.name}"
    where = "; ".join(sorted({row["hardware"] for row in rows}))
    write_result(path, what, command, rows, summarise(rows), sorted({row["seed"] for row in rows}), where=where)


if __name__ == "__main__":
    main()
