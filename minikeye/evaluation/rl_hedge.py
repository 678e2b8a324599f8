"""Does a reward for temporal IoU teach hedging? python -m minikeye.evaluation.rl_hedge --out FILE

Where a model cannot tell which of two things is meant, an interval that covers both loses little reward, and an earlier
`mini`, at chance on videos with two things, learnt from this reward to say longer spans (from 0.30 to 0.39 of the
video). Here the shipped `mini` is taught by it: plain videos of one or two things, true labels, and sparse attention
in rollouts and learning, at 32 frames, where a prompt is longer than the 256 keys that a query reads.

One row a seed and check, the one before the first iteration included: test questions, split by number of things, with
chance beside. Said length over true length is 1 without hedging; 2 would cover both of two equal things. Our choice,
all numbers: the report does not speak of hedging.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch

from minikeye.evaluation.questions import Question, chance
from minikeye.files import CHECKPOINT
from minikeye.keye import KeyeVL
from minikeye.minivid.scene import PLAIN
from minikeye.minivid.tasks import Problem, grounding, parse_interval, things_of
from minikeye.results import hardware, write_result
from minikeye.rl.learn import RolloutConfig, reinforce
from minikeye.rl.parallel.agreement import PATIENCE
from minikeye.rl.questions import Answered, Course, ask, interval_reward, prompts_from
from minikeye.scores import bootstrap_mean
from minikeye.training.loop import LoopConfig
from minikeye.training.parallel.mesh import ALONE, Ranks, join, spread

UNSEEN = 1_000_000  # first video of the prompts
LENGTHS = ("length", "share")
LOGGED = ("step", "reward", "teaches", "ratio", "clipped")


@dataclass(frozen=True)
class Study:
    """How one seed is taught and asked."""

    frames: int = 32  # of each video
    prompts: int = 16  # an iteration
    group: int = 8  # answers to each
    checks: int = 3  # after the one before the first iteration
    iterations: int = 10  # between two checks, of two optimiser steps each
    lr: float = 1e-4  # constant, so that what drifts goes on drifting
    check: int = 100  # questions of a check between
    test: int = 300  # questions before and after

    def course(self, seed: int) -> Course:
        return Course("G", self.frames, seed=seed, difficulty=PLAIN)


def spans(said: Answered) -> list[tuple[float, float, float] | None]:
    """Of every answer its said length in seconds, the true one, and the video's; None where it cannot be read."""
    out = []
    for text, problem, duration in zip(said.answers, said.problems, said.durations, strict=True):
        pairs, [(start, end)] = parse_interval(text), parse_interval(problem.answer)
        out.append(None if pairs is None else (sum(b - a for a, b in pairs), end - start, duration))
    return out


def split(said: Answered, others: list[Problem | None]) -> dict[str, dict[str, float | int | list[float]]]:
    """Mean temporal IoU in percent and said lengths, for videos of one thing and of two, chance beside each.

    others: the same question about a video's other thing; None where there is one thing only. length: said over true.
    share: said over the video's; true_share: what it should be. Lengths are means over answers that can be read.
    """
    tiou, lengths, out = said.scores()["tiou"], spans(said), {}
    for name in ("one", "two"):
        rows = [n for n, other in enumerate(others) if (other is not None) == (name == "two")]
        read = [lengths[n] for n in rows if lengths[n] is not None]
        saying, true, video = zip(*read, strict=True) if read else ((), (), ())
        estimate = bootstrap_mean([tiou[n] for n in rows])
        asked = [Question(said.problems[n], others[n], {}, (0.0, said.durations[n])) for n in rows]
        out[name] = {
            "n": len(rows),
            "unread": len(rows) - len(read),
            "miou": round(100 * estimate.mean, 2),
            "miou_95": [round(100 * estimate.low, 2), round(100 * estimate.high, 2)],
            "length": mean_ratio(saying, true),
            "share": mean_ratio(saying, video),
            "true_share": mean_ratio(true, video),
            **{f"chance_{key}": round(100 * value, 2) for key, value in chance("G", asked).items()},
        }
    return out


def mean_ratio(some: Sequence[float], of: Sequence[float]) -> float:
    """0 of nothing."""
    return round(sum(a / b for a, b in zip(some, of, strict=True)) / max(1, len(some)), 3)


def examine(model: KeyeVL, course: Course, n: int, ranks: Ranks = ALONE) -> dict:
    """`n` test questions, answered by sparse attention."""
    videos, _ = course.examination().questions(0, n)
    others = [grounding(things[1]) if len(things := things_of(of)) == 2 else None for of in videos.events]
    return split(ask(model, course, n, attention="sparse", rows=50, ranks=ranks), others)


def measure(
    folder: Path, study: Study, seed: int, device: torch.device | str = "cpu", ranks: Ranks = ALONE
) -> Iterator[dict]:
    """The rows of one seed, from the checkpoint on."""
    model = KeyeVL.from_pretrained(folder, dtype=torch.float32, device=device)
    spread(model, ranks)
    course = study.course(seed)
    config = RolloutConfig(group=study.group, max_new_tokens=20, attention="sparse", seed=seed)
    steps = config.minibatches * study.iterations
    loop = LoopConfig(steps, study.lr, warmup=0, final_lr=1.0, weight_decay=0.0, log_every=1)
    for number in range(study.checks + 1):
        log = []
        if number:  # a call begins Adam anew; its prompts follow those of the call before
            first = UNSEEN + (number - 1) * study.iterations * study.prompts
            prompts = prompts_from(model, course, study.prompts, first, ranks=ranks)
            lines = reinforce(model, prompts, interval_reward, config, loop, ranks=ranks)
            log = [
                {key: round(line[key], 4) for key in ("step", "reward", "teaches", "ratio", "clipped")}
                for line in lines
            ]
        asked = study.test if number in (0, study.checks) else study.check
        row = {
            "seed": seed,
            "number": number,
            **asdict(study),
            "things": examine(model, course, asked, ranks),
            "log": log,
        }
        yield row | {"hardware": hardware(), "torch": torch.__version__}


def summarise(rows: list[dict], checks: int) -> dict[str, float | int]:
    """hedge_KEY_THINGS_WHEN, means over seeds whose last check is there, before and after; chance; what taught.

    hedge_teaches: percent of groups whose answers differ in reward, over all iterations. Empty without such a seed.
    """
    seeds = sorted({row["seed"] for row in rows if row["number"] == checks})
    of = {(row["seed"], row["number"]): row for row in rows if row["seed"] in seeds}
    if not seeds:
        return {}
    mean = lambda values: round(sum(values) / len(values), 3)  # noqa: E731
    out: dict[str, float | int] = {"hedge_seeds": len(seeds)}
    for when, number in (("before", 0), ("after", checks)):
        for things in ("one", "two"):
            parts = [of[seed, number]["things"][things] for seed in seeds]
            out |= {f"hedge_{key}_{things}_{when}": mean([part[key] for part in parts]) for key in LENGTHS}
            out[f"hedge_miou_{things}_{when}"] = round(mean([part["miou"] for part in parts]), 2)
    out["hedge_miou_two_chance"] = round(mean([of[seed, 0]["things"]["two"]["chance_coin"] for seed in seeds]), 2)
    taught = [100 * line["teaches"] for row in of.values() for line in row["log"]]
    return out | {"hedge_teaches": round(mean(taught), 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="folder of the model to begin from")
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write, or to add missing seeds to")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    for field in fields(Study):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, default=field.default)
    options = parser.parse_args()
    study = Study(**{field.name: getattr(options, field.name) for field in fields(Study)})
    ranks = join(options.device, timeout=PATIENCE)
    device = ranks.device(options.device)
    rows = json.loads(options.out.read_text(encoding="utf-8"))["rows"] if options.out.is_file() else []
    done = {row["seed"] for row in rows if row["number"] == study.checks}
    rows = [row for row in rows if row["seed"] in done]  # a seed that was stopped is done again
    for seed in (seed for seed in options.seeds if seed not in done):
        for row in measure(options.checkpoint, study, seed, device, ranks):
            if ranks.rank:
                continue
            rows.append(row)
            print(json.dumps({name: row[name] for name in ("seed", "number", "things")}), flush=True)
            report(options.out, rows, study)


def report(path: Path, rows: list[dict], study: Study) -> None:
    """Write all that is known so far."""
    what = "mini taught by temporal IoU on videos of one or two things, sparse attention: does it hedge?"
    where = "; ".join(sorted({row["hardware"] for row in rows}))
    seeds = sorted({row["seed"] for row in rows})
    said = " ".join(map(str, seeds))
    command = f"python -m minikeye.evaluation.rl_hedge --device cpu --seeds {said} --out assets/results/{path.name}"
    write_result(path, what, command, rows, summarise(rows, study.checks), seeds, where=where)


if __name__ == "__main__":
    main()
