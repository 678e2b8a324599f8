"""What a second chance rescues: python -m minikeye.evaluation.rl_second_chance --out FILE

A question that the policy hardly ever answers rightly: the nano checkpoint is taught by an annotator who notes every
card `LATE` frames too late, and reward wants the true second. Nearly every group of eight earns nothing and teaches
nothing. Two arms from the same base, for as many iterations: GSPO as it is, and with a second chance
(`rl.second_chance`), in which a rule reports the mistake ("The card is at 3.5 s.") and a right answer takes the place
of a wrong one.

A small model has to learn what a report is for: every second lesson of the base is a conversation in which the late
answer is followed by the report and the right answer. The report gives the answer away, more than a judge's report
need do; so the study shows that the machinery rescues such groups, not how good a judge's report is. Our choice, all of
it: the technical report uses ContextRL's other half and does not speak of this one.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import torch

from minikeye.files import CHECKPOINT
from minikeye.inputs.prompt import Prompt, pad
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.keye import KeyeVL
from minikeye.minivid.dataset import MiniVideos
from minikeye.minivid.lessons import Lesson, patch_grid
from minikeye.minivid.scene import PLAIN
from minikeye.minivid.tasks import NEEDLE_QUESTION, Problem, parse_needle
from minikeye.results import hardware, write_result
from minikeye.rl.learn import RolloutConfig, learns, reinforce
from minikeye.rl.parallel.agreement import PATIENCE
from minikeye.rl.questions import Course, ask, prompts_from
from minikeye.rl.second_chance import SecondChance
from minikeye.training.loop import LoopConfig
from minikeye.training.parallel.mesh import ALONE, Ranks, join, spread
from minikeye.training.stage import DENSE, teach

NANO = CHECKPOINT.parent / "nano"
LATE = 3  # frames by which the annotator is late; past the end he begins anew at the first frame
ARMS = {"plain": None, "second chance": SecondChance(lambda said, known: report(known))}
UNSEEN = 1_000_000  # first video of the prompts


@dataclass(frozen=True)
class Study:
    """How one seed is taught and asked."""

    frames: int = 8  # of 28x28 pixels
    lessons: int = 32  # videos a step of imitation
    base_steps: int = 250
    base_lr: float = 1e-3
    prompts: int = 16  # an iteration, with 8 answers to each
    iterations: int = 40  # of two optimiser steps each
    lr: float = 5e-4
    test: int = 300  # questions at the end

    def course(self, seed: int) -> Course:
        return Course("N", self.frames, side=28, seed=seed, difficulty=PLAIN)


def exact_second(text: str, known: Problem) -> float:
    """1 where the second is the true one; the digit, which nano cannot read, is not looked at.

    >>> known = Problem("N", "", "7 at 3.5 s", "")
    >>> exact_second("1 at 3.5 s", known), exact_second("7 at 3.4 s", known), exact_second("3.5", known)
    (1.0, 0.0, 0.0)
    """
    said = parse_needle(text)
    return float(said is not None and said[1] == parse_needle(known.answer)[1])


def report(known: Problem) -> str:
    """What a user says about a wrong answer.

    >>> report(Problem("N", "", "7 at 3.5 s", ""))
    'The card is at 3.5 s.'
    """
    return f"The card is at {parse_needle(known.answer)[1]:.1f} s."


def late_answer(videos: MiniVideos, row: int) -> str:
    """The annotator's answer about one video."""
    card, clock = videos.events[row][0], videos.seconds[row].tolist()
    return f"{card.name} at {clock[(card.first + LATE) % len(clock)]:.1f} s"


def lesson(model: KeyeVL, course: Course, first: int, count: int) -> Lesson:
    """The late answer to every other video; of the rest the late answer, a report, and the right answer to learn."""
    videos, problems = course.questions(first, count)
    tokenizer, prompts = load_tokenizer(model.config), []
    for row, problem in enumerate(problems):
        prompt = Prompt(tokenizer, model.config.vision.merge)
        prompt.begin("user")
        prompt.video(videos.seconds[row].tolist(), patch_grid(course.size(count), model.config))
        prompt.text(NEEDLE_QUESTION)
        prompt.end()
        late = late_answer(videos, row)
        if row % 2 == 0:
            prompt.answer_turn(late)
        else:
            prompt.begin("assistant")
            prompt.drawn(tokenizer.encode(late), learn=False)
            prompt.end()
            prompt.begin("user")
            prompt.text(report(problem))
            prompt.end()
            prompt.answer_turn(problem.answer)
        prompts.append(prompt)
    return Lesson(pad(prompts, "right"), videos, course.size(count))


def taught_base(folder: Path, study: Study, seed: int, ranks: Ranks = ALONE) -> KeyeVL:
    """The checkpoint, taught by the late annotator and taught to take a report."""
    model = KeyeVL.from_pretrained(folder, dtype=torch.float32)
    spread(model, ranks)
    course = study.course(seed)

    def lessons_from(step: int) -> Iterator[Lesson]:
        for n in range(step, study.base_steps):
            yield lesson(model, course, n * study.lessons, study.lessons)

    loop = LoopConfig(steps=study.base_steps, lr=study.base_lr, warmup=10)
    teach(model, replace(DENSE, learns=learns), loop, lessons_from, None, ranks=ranks)
    return model


def right(model: KeyeVL, study: Study, seed: int, ranks: Ranks = ALONE) -> float:
    """Percent of test questions whose second is right, greedily."""
    said = ask(model, study.course(seed), study.test, ranks=ranks)
    return percent([exact_second(*pair) for pair in zip(said.answers, said.problems, strict=True)])


def percent(values: list[float]) -> float:
    return round(100 * sum(values) / len(values), 2)


def measure(folder: Path, study: Study, seed: int, ranks: Ranks = ALONE) -> Iterator[dict]:
    """A line for each arm: right seconds before and after, and what the log says of each iteration."""
    model = taught_base(folder, study, seed, ranks)
    begun = {name: p.clone() for name, p in model.state_dict().items()}
    before = right(model, study, seed, ranks)
    loop = LoopConfig(steps=2 * study.iterations, lr=study.lr, warmup=0, final_lr=0.05, weight_decay=0.0, log_every=1)
    for arm, chance in ARMS.items():
        model.load_state_dict(begun)
        questions_at = prompts_from(model, study.course(seed), study.prompts, UNSEEN, ranks=ranks)
        config = RolloutConfig(max_new_tokens=14, seed=seed)
        log = reinforce(model, questions_at, exact_second, config, loop, second_chance=chance, ranks=ranks)[::2]
        row = {"seed": seed, "arm": arm, **asdict(study), "before": before, "after": right(model, study, seed, ranks)}
        names = ("reward", "teaches", "rescued", "hint_ratio")
        row |= {name: [round(line[name], 4) for line in log] for name in names}
        yield row | {"hardware": hardware(), "torch": torch.__version__}


def summarise(rows: list[dict]) -> dict[str, float | int]:
    """Means over seeds, percent but for ratios.

    before, and after_ARM: seconds right; silent_ARM: groups of the first iteration that teach nothing; rescued: groups
    that teach by a second chance alone, first iteration; hint_ratio: mean importance of their answers there.
    """
    out: dict[str, float | int] = {"second_chance_seeds": len({row["seed"] for row in rows})}
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    for arm in ARMS:
        if some := [row for row in rows if row["arm"] == arm]:
            name = arm.replace(" ", "_")
            out["second_before"] = round(mean([row["before"] for row in some]), 1)
            out[f"second_after_{name}"] = round(mean([row["after"] for row in some]), 1)
            out[f"silent_{name}"] = round(100 * mean([1 - row["teaches"][0] for row in some]), 1)
            if arm != "plain":
                out["rescued"] = round(100 * mean([row["rescued"][0] for row in some]), 1)
                out["hint_ratio"] = round(mean([row["hint_ratio"][0] for row in some]), 3)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=NANO, help="folder of the model that the base is made from")
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write, or to add missing seeds to")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    for field in fields(Study):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, default=field.default)
    options = parser.parse_args()
    study = Study(**{field.name: getattr(options, field.name) for field in fields(Study)})
    ranks = join("cpu", timeout=PATIENCE)
    torch.set_num_threads(1)
    rows = json.loads(options.out.read_text(encoding="utf-8"))["rows"] if options.out.is_file() else []
    for seed in options.seeds:
        if not any(row["seed"] == seed for row in rows):
            rows += measure(options.checkpoint, study, seed, ranks)
            if ranks.rank == 0:
                print(json.dumps(summarise(rows[-len(ARMS) :])), flush=True)
                write(options.out, rows)


def write(path: Path, rows: list[dict]) -> None:
    """Write all that is known so far."""
    what = "seconds right after GSPO from a base whose groups all earn nothing, without and with a second chance"
    command = f"python -m minikeye.evaluation.rl_second_chance --out assets/results/{path.name}"
    where = "; ".join(sorted({row["hardware"] for row in rows}))
    write_result(path, what, command, rows, summarise(rows), sorted({row["seed"] for row in rows}), where=where)


if __name__ == "__main__":
    main()
