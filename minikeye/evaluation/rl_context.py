"""Right answers for right reasons: python -m minikeye.evaluation.rl_context --out FILE

"Is the card before, during or after the red circle?" is answered with evidence first: the thing's interval, the card's
second, then the word. A base is taught by imitation of an annotator whose words are right and whose evidence is a frame
off. From it two arms learn by GSPO from the same prompts, for as many iterations:
    outcome  earns 1 for the right word, whatever the evidence (the control)
    context  earns 1 for the right word with evidence that agrees with the reference solution (report, Context-RL)

One line an arm and seed, the base's included, with what was measured along the way. Each seed has an annotator, videos
and draws of its own; all are asked the same test questions, truly annotated. Evidence is wrong where `context_reward`
says so, counted among answers whose word is right. Five seeds of `mini` take six minutes of one H200, one process each;
`nano_things`, which grounds one thing and knows the second of the card, four minutes of a CPU core a seed, with sizes
of its own (assets/README.md has the call). Our choice, all numbers; reference solutions are the synthetic
world's own, where the report has solutions that a model wrote and a judge verified.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from minikeye.files import CHECKPOINT
from minikeye.keye import KeyeVL
from minikeye.minivid.dataset import MAX_STEP
from minikeye.minivid.tasks import Problem, parse_order
from minikeye.results import hardware, write_result
from minikeye.rl.groups import Prompts
from minikeye.rl.learn import RolloutConfig, learns, reinforce
from minikeye.rl.parallel.agreement import PATIENCE
from minikeye.rl.questions import Answered, Course, ask, evidence_reward, lessons_from, prompts_from, word_reward
from minikeye.scores import student_mean
from minikeye.training.loop import LoopConfig
from minikeye.training.parallel.mesh import ALONE, Ranks, join, spread
from minikeye.training.stage import DENSE, teach

REWARDS = {"outcome": word_reward, "context": evidence_reward}
ARMS = ("base", *REWARDS)
UNSEEN = 1_000_000  # first video of the prompts: the base never saw it


@dataclass(frozen=True)
class Study:
    """How one seed is taught and asked."""

    frames: int = 32  # of each video
    span: int = 3  # frames by which the base's annotator is off, at most: ends of intervals
    spot: int = 1  # and cards
    lessons: int = 64  # videos a step of imitation
    base_steps: int = 334
    base_lr: float = 3e-4
    prompts: int = 64  # an iteration, with `group` answers to each
    group: int = 8
    iterations: int = 100  # of GSPO, of two optimiser steps each
    lr: float = 2e-4  # at its peak; ten steps up to it
    final_lr: float = 1.0  # at the end, as a share of the peak, half a cosine down to it; 1: as fast to the end
    every: int = 50  # iterations between two checks
    check: int = 100  # questions of a check
    test: int = 600  # questions at the end

    def course(self, seed: int) -> Course:
        """What the base imitates."""
        return Course("P", self.frames, span=self.span, spot=self.spot, seed=seed)

    def answer_tokens(self) -> int:
        """Room for the longest answer, `[[3.0, 9.5]] 7.5 during` and the end of the turn, and two tokens more."""
        return 3 * len(f"{self.frames * MAX_STEP:.1f}") + len("[[, ]]  during") + 3


def taught_base(
    folder: Path,
    study: Study,
    seed: int,
    states: Path | None,
    device: torch.device | str = "cpu",
    ranks: Ranks = ALONE,
) -> KeyeVL:
    """The checkpoint, taught the questions with careless evidence; tower, projector and indexers as they were.

    states: where a resumable state is kept, so that a base is taught once; None: nowhere.
    """
    model = KeyeVL.from_pretrained(folder, dtype=torch.float32, device=device)
    spread(model, ranks)
    loop = LoopConfig(steps=study.base_steps, lr=study.base_lr, warmup=10)
    lessons = lessons_from(model, study.course(seed), study.lessons, study.base_steps)
    teach(model, replace(DENSE, learns=learns), loop, lessons, states / f"base-{seed}" if states else None, ranks=ranks)
    return model


def rewarded(model: KeyeVL, study: Study, seed: int, arm: str, ranks: Ranks = ALONE) -> list[dict[str, float | int]]:
    """Teach one arm in place; returns its checks, the one before the first iteration first."""
    checks: list[dict[str, float | int]] = []
    true = replace(study.course(seed), span=0, spot=0)  # the reference solution of a prompt is the true one
    questions_at = prompts_from(model, true, study.prompts, UNSEEN, ranks=ranks)

    def look(iteration: int) -> None:
        said = ask(model, examination(study), study.check, ranks=ranks)
        checks.append({"iteration": iteration, **shares(said)})

    config = RolloutConfig(group=study.group, max_new_tokens=study.answer_tokens(), seed=seed)
    loop = LoopConfig(
        steps=study.iterations * config.minibatches,
        lr=study.lr,
        warmup=10,
        final_lr=study.final_lr,
        weight_decay=0.0,
        log_every=1,
    )
    reinforce(model, watched(questions_at, study.every, look), REWARDS[arm], config, loop, ranks=ranks)
    look(study.iterations)
    return checks


def examination(study: Study) -> Course:
    """The same test questions for every seed."""
    return study.course(0).examination()


def watched(
    questions_at: Callable[[int], tuple[Prompts, list[Any]]], every: int, look: Callable[[int], None]
) -> Callable[[int], tuple[Prompts, list[Any]]]:
    """The same questions; before those of every `every`-th iteration somebody looks at the policy."""

    def batch(iteration: int) -> tuple[Prompts, list[Any]]:
        if iteration % every == 0:
            look(iteration)
        return questions_at(iteration)

    return batch


def shares(said: Answered) -> dict[str, float | int]:
    """n, and in percent: right words, wrong evidence among these, answers with both right, answers out of form."""
    count, wrong = len(said.problems), said.wrong_evidence()
    unread = sum(parse_order(text) is None for text in said.answers)
    return {
        "n": count,
        "word": percent(len(wrong), count),
        "wrong_evidence": percent(sum(wrong), len(wrong)),
        "both": percent(len(wrong) - sum(wrong), count),
        "unread": percent(unread, count),
    }


def percent(part: int, of: int) -> float:
    """0 of nothing."""
    return round(100 * part / max(of, 1), 2)


def levels(said: Answered, frames: int) -> dict[str, dict[str, float | int]]:
    """`shares` of all, and split by the true word and by the thing's length in frames; chance beside each.

    chance: right words of a guesser who says each word as often as it is right. chance_wrong_evidence: of answers with
    the right word and the evidence of another question with that word.
    """
    truths = [parse_order(problem.answer) for problem in said.problems]
    words = [truth.word for truth in truths]
    lengths = [
        round((truth.interval[0][1] - truth.interval[0][0]) * (frames - 1) / duration)
        for truth, duration in zip(truths, said.durations, strict=True)
    ]
    names = {"all": range(len(words))}
    names |= {word: [n for n, own in enumerate(words) if own == word] for word in sorted(set(words))}
    names |= {f"{k} frames": [n for n, own in enumerate(lengths) if own == k] for k in sorted(set(lengths))}
    others = others_answers(said.problems)
    out = {}
    for name, rows in names.items():
        problems, durations = ([values[n] for n in rows] for values in (said.problems, said.durations))
        guessed = sum(words.count(words[n]) for n in rows) / len(words)
        blind = Answered(problems, [others[n] for n in rows], durations)
        out[name] = shares(Answered(problems, [said.answers[n] for n in rows], durations)) | {
            "chance": round(100 * guessed / len(rows), 2),
            "chance_wrong_evidence": shares(blind)["wrong_evidence"],
        }
    return out


def others_answers(problems: list[Problem]) -> list[str]:
    """For each question the true answer of the next one, in a circle, that has the same word."""
    words = [parse_order(problem.answer).word for problem in problems]
    out = []
    for n, word in enumerate(words):
        later = (m % len(words) for m in range(n + 1, n + 1 + len(words)))
        out.append(next(problems[m].answer for m in later if words[m] == word))
    return out


def measure(
    folder: Path,
    study: Study,
    seed: int,
    wanted: list[str],
    states: Path | None = None,
    device: torch.device | str = "cpu",
    ranks: Ranks = ALONE,
) -> Iterator[dict]:
    """The lines of one seed that are wanted, one after another: both arms begin from the same base."""
    base = taught_base(folder, study, seed, states, device, ranks)
    begun = {name: p.clone() for name, p in base.state_dict().items()}
    for arm in wanted:
        start = time.process_time()
        base.load_state_dict(begun)
        checks = [] if arm == "base" else rewarded(base, study, seed, arm, ranks)
        said = ask(base, examination(study), study.test, ranks=ranks)
        row = {"seed": seed, "arm": arm, **asdict(study), "checks": checks, "levels": levels(said, study.frames)}
        row |= {name: row["levels"]["all"][name] for name in shares(said)}
        row |= {"cpu_seconds": round(time.process_time() - start), "torch": torch.__version__}
        yield row | {"hardware": hardware()}


def summarise(rows: list[dict]) -> dict[str, float | int]:
    """Percent, means over seeds: accuracy_ARM (right words) and wrong_evidence_ARM (of these), chance beside.

    With _low and _high, 95 % over seeds, where there are two or more; accuracy_difference: context less outcome, seed
    by seed.
    """
    found = {arm: {row["seed"]: row for row in rows if row["arm"] == arm} for arm in ARMS}
    values = {}
    for arm, of_arm in found.items():
        values[f"accuracy_{arm}"] = [row["word"] for row in of_arm.values()]
        values[f"wrong_evidence_{arm}"] = [row["wrong_evidence"] for row in of_arm.values()]
    both = [seed for seed in found["context"] if seed in found["outcome"]]
    values["accuracy_difference"] = [found["context"][n]["word"] - found["outcome"][n]["word"] for n in both]
    out: dict[str, float | int] = {"context_seeds": len(both)}
    for name, some in values.items():
        if some:
            out[name] = round(sum(some) / len(some), 1)
        if len(some) > 1:
            estimate = student_mean(some)
            out |= {f"{name}_low": round(estimate.low, 1), f"{name}_high": round(estimate.high, 1)}
    if rows:
        chance = rows[0]["levels"]["all"]
        out |= {"accuracy_chance": chance["chance"], "wrong_evidence_chance": chance["chance_wrong_evidence"]}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="folder of the model to begin from")
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write, or to add missing lines to")
    parser.add_argument("--states", type=Path, help="folder that keeps each seed's base, to go on with when stopped")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    for field in fields(Study):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, default=field.default)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    ranks = join(options.device, timeout=PATIENCE)
    device = ranks.device(options.device)
    study = Study(**{field.name: getattr(options, field.name) for field in fields(Study)})
    torch.set_num_threads(1)  # the tensors are too small to share
    rows = json.loads(options.out.read_text(encoding="utf-8"))["rows"] if options.out.is_file() else []
    for seed in options.seeds:
        done = {row["arm"] for row in rows if row["seed"] == seed}
        wanted = [arm for arm in ARMS if arm not in done]
        for row in measure(options.checkpoint, study, seed, wanted, options.states, device, ranks) if wanted else []:
            if ranks.rank:
                continue
            rows.append(row)
            print(json.dumps({name: row[name] for name in ("seed", "arm", "word", "wrong_evidence")}), flush=True)
            report(options.out, rows, options.checkpoint, study)


def called(checkpoint: Path, study: Study) -> str:
    """The options that are not as they are by default, as they are written."""
    words = [] if checkpoint == CHECKPOINT else [f"--checkpoint {checkpoint}"]
    for field in fields(Study):
        if (value := getattr(study, field.name)) != field.default:
            words.append(f"--{field.name.replace('_', '-')} {value}")
    return " ".join(words)


def report(path: Path, rows: list[dict], checkpoint: Path, study: Study) -> None:
    """Write all that is known so far. Keys of the summary begin with the checkpoint's name if it is not mini."""
    what = "right words, and wrong evidence among them, after reward for the word alone and for word and evidence"
    options = called(checkpoint, study)
    words = ("python -m minikeye.evaluation.rl_context", options, f"--out assets/results/{path.name}")
    command, whose = " ".join(filter(None, words)), "" if checkpoint == CHECKPOINT else f"{checkpoint.name}_"
    summary = {whose + key: value for key, value in summarise(rows).items()}
    where = "; ".join(sorted({row["hardware"] for row in rows}))
    write_result(path, what, command, rows, summary, sorted({row["seed"] for row in rows}), where=where)


if __name__ == "__main__":
    main()
