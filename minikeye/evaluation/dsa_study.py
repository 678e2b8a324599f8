"""What is lost by reading k keys: python -m minikeye.evaluation.dsa_study --dense TRAINED/checkpoint-dense --out FILE

The dense mini checkpoint knows videos of up to 1,024 frames. Five times, with fresh indexers and other videos, its DSA
stages are repeated on videos of at most 64 frames, and the result is tested at 1x, 4x and 16x that length: needles (N)
and grounding (G), beside other ways to choose the same number of keys (`rules`). An answer is exact if every token of
it is the most likely one after the true tokens before it.

Stated beforehand: DSA counts as equal to dense at a length if the 95 % interval over seeds of their difference in exact
answers, on the same videos, lies within 2 points. The dense model is the same in all seeds: the study tells how much
the teaching of indexers varies, not how much pre-training does. Our choice, all of it: the report has no such study.
"""

import argparse
import copy
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from minikeye.evaluation.rules import RULES, interleave, selecting
from minikeye.keye import KeyeVL
from minikeye.minivid.dataset import make_videos
from minikeye.minivid.lessons import Lesson, Size, parts_right, question_prompts
from minikeye.results import hardware, write_result
from minikeye.scores import student_mean
from minikeye.training.curriculum import PLAIN, Curriculum
from minikeye.training.dsa import RecallMeter
from minikeye.training.loop import LoopConfig
from minikeye.training.stage import SLOW, SPARSE, WARMUP
from minikeye.training.stage import teach as teach_stage
from minikeye.training.step import autocast, on

TRAINED_FRAMES = 64  # longest video of the DSA stages: 1x
# Frames, height and width in pixels, and how often. The study's own, and plain videos only, as what it is tested on: it
# asks what lengths do, and stays the same when the curriculum of `mini` changes.
SIZES = ((4, 56, 56, 0.2), (8, 56, 56, 0.3), (16, 56, 56, 0.4), (32, 56, 56, 0.5), (TRAINED_FRAMES, 56, 56, 0.7))
LENGTHS = Curriculum(2048, TRAINED_FRAMES, SIZES, ((PLAIN, 1.0),))
# (stage, steps and rate, lengths), one after the other. Masks are dear: fewer frames a step in the sparse stage.
RECIPE = (
    (WARMUP, LoopConfig(steps=200, lr=3e-3, warmup=20), LENGTHS),
    (SPARSE, LoopConfig(steps=300, lr=2e-4, warmup=20, slow=SLOW), replace(LENGTHS, frames=LENGTHS.frames * 3 // 4)),
)
# Questions of each task, per seed and method.
QUESTIONS = {16: {"N": 60}, 64: {"N": 100, "G": 60}, 256: {"N": 100, "G": 50}, 1024: {"N": 40, "G": 20}}
METHODS = ("dense", "dsa", "warmup", "random", "window", "firstlast", "oracle", "wrongrope", "densefallback")
OTHER_K = (64, 128, 512)  # at 256 frames, needles only


@dataclass(frozen=True)
class Run:
    """One line of the study."""

    seed: int
    method: str
    task: str  # "N" needle, "G" grounding
    frames: int
    k: int  # keys a query reads at most; dense methods read all


def planned(seed: int, topk: int) -> Iterator[Run]:
    """All lines of one seed, method by method."""
    for method in METHODS:
        for frames, tasks in QUESTIONS.items():
            if frames >= TRAINED_FRAMES or method in ("dense", "dsa", "wrongrope"):
                yield from (Run(seed, method, task, frames, topk) for task in tasks)
        if method in ("dsa", "oracle"):
            yield from (Run(seed, method, "N", 256, k) for k in OTHER_K)


def fresh(dense: KeyeVL, seed: int) -> KeyeVL:
    """The dense model with indexers that know nothing, drawn anew."""
    torch.manual_seed(seed)
    model = KeyeVL(dense.config).to(dense.lm_head.weight.device)
    model.load_state_dict({n: t for n, t in dense.state_dict().items() if "sa_indexer" not in n}, strict=False)
    return model


def teach(dense: KeyeVL, seed: int, recipe: tuple, workers: int) -> dict[str, KeyeVL]:
    """The models of this seed: after the warm-up, after the sparse stage, and that with the wrong layout."""
    model, after = fresh(dense, seed), {}
    model.visual.chunk_patches = 2**20
    for stage, config, lengths in recipe:
        lessons = lengths.lessons_from(model.config, config.steps, 100 * seed + stage.number, workers)
        teach_stage(model, stage, config, lessons, None)
        after[stage.name] = copy.deepcopy(model)
    interleave(model)
    return {"warmup": after["warmup"].eval(), "dsa": after["sparse"].eval(), "wrongrope": model.eval()}


def in_small(recipe: tuple) -> tuple:
    """The recipe for a smoke test."""
    return tuple(
        (stage, config.scaled(0.01), replace(lengths, frames=32, longest=16)) for stage, config, lengths in recipe
    )


@torch.no_grad()
def measure(model: KeyeVL, run: Run, n: int, tokens: int = 2**17) -> dict:
    """Exact answers of n questions in percent, parts of needle answers, and what the selection keeps, per layer.

    run.method: one of METHODS; those that are no rule of `RULES` are told by the model that is given. Raises ValueError
    for another method or task, or n < 1.
    """
    if run.method not in METHODS or run.task not in ("N", "G") or n < 1:
        raise ValueError(f"expected a method of {METHODS}, task N or G and n >= 1; got {run.method}, {run.task}, {n}")
    begun, config = time.monotonic(), model.config
    mode = (
        "dense" if run.method in ("dense", "densefallback") else "masked" if model.device.type == "cuda" else "sparse"
    )
    batch = max(1, min(n, tokens // (10 * run.frames)))
    size, never = Size(run.frames, batch), (config.image_token_id, config.video_token_id)
    right = dict.fromkeys(("exact", "digit", "second"), 0)
    kept: list[Tensor] = []
    with selecting(model, RULES.get(run.method), run.k), autocast(model.device):
        torch.manual_seed(run.seed)  # of random_keys
        for first in range(0, n, batch):
            numbers = range(100_000 * run.seed + first, 100_000 * run.seed + min(first + batch, n))
            videos = make_videos(11, numbers, run.frames, "test")
            asked = question_prompts(videos, run.task, size, config, answered=True)
            inputs = Lesson(asked, videos, size).inputs(config, model.device)
            logits = model(inputs, attention=mode).logits
            parts = parts_right(logits, inputs["input_ids"], inputs["answer"], never)
            right = {name: right[name] + int(parts[name].sum()) for name in right}
            if mode != "dense" and first == 0:  # one batch tells
                prompts = question_prompts(videos, run.task, size, config)
                mask = {"attention_mask": prompts["attention_mask"].to(model.device)}
                del prompts["frames"]
                meter = RecallMeter(None, last=1)
                asked = Lesson(prompts, videos, size).inputs(config, model.device) | mask
                model(asked, attention=mode, observer=meter, last=1)
                kept = meter.kept
    row = {**vars(run), "n": n, "seconds_taken": round(time.monotonic() - begun, 1)}
    for name in right if run.task == "N" else ("exact",):
        row[name] = round(100 * right[name] / n, 2)
    return row | {"recall": [round(float(layer.mean()), 4) for layer in kept] or [1.0] * config.text.layers}


def summarise(rows: list[dict], topk: int) -> dict[str, float | int]:
    """needle_M_Lx, grounding_M_Lx, recall_M_Lx (percent, mean over seeds); dense minus DSA with its interval."""
    out: dict[str, float | int] = {}

    def by_seed(method: str, task: str, frames: int, name: str) -> dict[int, float]:
        wanted = (method, task, frames, topk)
        found = [r for r in rows if (r["method"], r["task"], r["frames"], r["k"]) == wanted]
        return {r["seed"]: 100 * sum(r[name]) / len(r[name]) if name == "recall" else r[name] for r in found}

    for method in METHODS:
        for times in (1, 4, 16):
            for key, task, name in (("needle", "N", "exact"), ("grounding", "G", "exact"), ("recall", "N", "recall")):
                if values := by_seed(method, task, times * TRAINED_FRAMES, name):
                    out[f"{key}_{method}_{times}x"] = round(student_mean(list(values.values())).mean, 2)
    for times in (1, 4, 16):
        for key, task in (("needle", "N"), ("grounding", "G")):
            dense, dsa = (by_seed(m, task, times * TRAINED_FRAMES, "exact") for m in ("dense", "dsa"))
            if len(both := sorted(dense.keys() & dsa.keys())) > 1:
                lost = student_mean([dense[s] - dsa[s] for s in both])
                name = f"{key}_dense_minus_dsa_{times}x"
                out |= {
                    name: round(lost.mean, 2),
                    f"{name}_low": round(lost.low, 2),
                    f"{name}_high": round(lost.high, 2),
                }
    return out | {"seeds": len({r["seed"] for r in rows})}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dense", type=Path, required=True, help="checkpoint of `training.mini` after its dense stage")
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write, or to add missing lines to")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--add", type=Path, nargs="*", default=[], help="results of other seeds, to join")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=8, help="processes that make prompts")
    parser.add_argument("--smoke", action="store_true", help="a few steps and questions, for a CPU")
    options = parser.parse_args()
    device = on(options.device)
    recipe, share = (in_small(RECIPE), 0.02) if options.smoke else (RECIPE, 1.0)
    dense = KeyeVL.from_pretrained(options.dense, dtype=torch.float32, device=device)
    topk = dense.config.indexer.topk
    rows = [row for path in (options.out, *options.add) for row in known(path)]
    done = {Run(**{k: r[k] for k in Run.__dataclass_fields__}) for r in rows}
    for seed in options.seeds:
        if all(run in done for run in planned(seed, topk)):
            continue
        begun = time.monotonic()
        models = teach(dense, seed, recipe, options.workers)
        models |= {"densefallback": models["dsa"]}
        print(json.dumps({"seed": seed, "teaching": round(time.monotonic() - begun, 1)}), flush=True)
        for run in (r for r in planned(seed, topk) if r not in done and (r.frames <= 64 or not options.smoke)):
            n = max(2, round(share * QUESTIONS[run.frames][run.task]))
            where = {"hardware": hardware(), "torch": torch.__version__}
            rows.append(measure(models.get(run.method, dense), run, n) | where)
            print(json.dumps(rows[-1]), flush=True)
            report(options.out, rows, topk)
    report(options.out, rows, topk)


def known(path: Path) -> list[dict]:
    """The rows of an earlier result, each with the torch that made it; none where there is no file."""
    if not path.is_file():
        return []
    result = json.loads(path.read_text(encoding="utf-8"))
    return [{"torch": result["versions"]["torch"], **row} for row in result["rows"]]


def report(path: Path, rows: list[dict], topk: int) -> None:
    """Write all that is known so far."""
    what = "exact answers and attention mass kept, dense, DSA and other selections, taught on 64 frames, percent"
    command = (
        "python -m minikeye.evaluation.dsa_study --dense TRAINED/checkpoint-dense --out assets/results/dsa_study.json"
    )
    rows = sorted(rows, key=lambda r: (r["seed"], METHODS.index(r["method"]), r["task"], r["frames"], r["k"]))
    where = "; ".join(sorted({r["hardware"] for r in rows}))
    write_result(path, what, command, rows, summarise(rows, topk), sorted({r["seed"] for r in rows}), where=where)


if __name__ == "__main__":
    main()
