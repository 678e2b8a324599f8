"""Measure the shipped checkpoint: python -m minikeye.evaluation.mini --checkpoint FOLDER --dense FOLDER --out FILE

Footage, digits and videos never trained on. Sparse attention answers greedily, and the answers are parsed and scored.
Dense attention, for comparison, is only asked whether it would give the exact answer: greedy decoding does so if and
only if every answer token is the most likely one after the true tokens before it, which one forward pass tells.
Model "dense" is the checkpoint before the indexer was taught; "final" run dense is the release's fallback.
"""

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.keye import KeyeVL
from minikeye.minivid.dataset import MiniVideos, make_videos
from minikeye.minivid.lessons import Lesson, Size, parts_right, question_prompts
from minikeye.minivid.tasks import parse_interval, score
from minikeye.model.record import Record
from minikeye.results import hardware, write_result
from minikeye.scores import bootstrap_mean, temporal_iou, wilson
from minikeye.training.step import autocast, on

SEED = 7  # of the test videos


@dataclass(frozen=True)
class Run:
    """One line of the report."""

    task: str  # "N" needle, "G" grounding
    frames: int
    attention: str  # "sparse" or "dense"
    model: str  # "final", or "dense" for the checkpoint before the indexer was taught
    blank: bool = False  # grey frames instead of the video
    height: int = 56  # pixels
    width: int = 56  # pixels


RUNS = (
    Run("N", 64, "sparse", "final"),
    Run("N", 64, "sparse", "final", blank=True),
    Run("G", 64, "sparse", "final"),
    Run("N", 256, "sparse", "final"),
    Run("N", 256, "dense", "dense"),
    Run("N", 256, "dense", "final"),
    Run("G", 64, "sparse", "final", blank=True),
    *(Run("N", 64, "sparse", "final", height=h, width=w) for h, w in ((56, 84), (84, 56), (56, 112), (28, 112))),
    *(Run(task, 64, "dense", model) for task in "NG" for model in ("dense", "final")),
    Run("N", 1024, "sparse", "final"),
    Run("N", 1024, "dense", "dense"),
    Run("N", 1024, "dense", "final"),
)


@torch.no_grad()
def exact(model: KeyeVL, run: Run, n: int, tokens: int = 262_144) -> dict:
    """Share of n questions that dense attention would answer exactly, by one pass over prompt and answer each."""
    begun, right = time.monotonic(), 0
    batch = max(1, min(100, tokens // (10 * run.frames)))
    size = Size(run.frames, batch, run.height, run.width)
    never = model.config.image_token_id, model.config.video_token_id
    for first in range(0, n, batch):
        videos = make_videos(SEED, range(first, min(first + batch, n)), run.frames, "test")
        asked = question_prompts(videos, run.task, size, model.config, answered=True)
        inputs = Lesson(asked, videos, size).inputs(model.config, model.device)
        with autocast(model.device):
            logits = model(inputs, attention=run.attention).logits
        right += int(parts_right(logits, inputs["input_ids"], inputs["answer"], never)["exact"].sum())
    estimate = wilson(right, n)
    interval = [round(100 * estimate.low, 2), round(100 * estimate.high, 2)]
    seconds = round(time.monotonic() - begun, 1)
    return {**vars(run), "n": n, "seconds_taken": seconds, "exact": round(100 * right / n, 2), "exact_95": interval}


@torch.no_grad()
def measure(model: KeyeVL, run: Run, n: int, tokens: int = 262_144) -> dict:
    """Answer n questions; returns one row: scores with 95 % intervals, share of keys selected, hits per layer."""
    begun = time.monotonic()
    tokenizer = load_tokenizer(model.config)
    stop = (tokenizer.token_id("<|im_end|>"),)
    batch = max(1, min(100, tokens // (10 * run.frames)))
    scores: list[dict[str, float]] = []
    hits, context = torch.zeros(model.config.text.layers), 0
    size = Size(run.frames, batch, run.height, run.width)
    for first in range(0, n, batch):
        videos = make_videos(SEED, range(first, min(first + batch, n)), run.frames, "test")
        prompts = question_prompts(videos, run.task, size, model.config)
        frames = prompts.pop("frames")
        mask = prompts["attention_mask"].to(model.device)
        inputs = Lesson(prompts, videos, size).inputs(model.config, model.device, run.blank) | {"attention_mask": mask}
        with autocast(model.device):
            out = model.generate(inputs, max_new_tokens=24, stop_ids=stop, attention=run.attention, record=True)
        for row, problems in enumerate(videos.problems):
            problem = next(p for p in problems if p.task == run.task)
            scores.append(score(problem, tokenizer.decode(out.row(row))))
        context += int(mask.sum())
        if run.task == "N" and out.record is not None:  # None: every answer is empty
            hits += needle_hits(out.record, frames, videos, mask.shape[1] - mask.sum(dim=1))
    row = {**vars(run), "n": n, "seconds_taken": round(time.monotonic() - begun, 1), "context": round(context / n)}
    for name in scores[0]:
        values = [s[name] for s in scores]
        estimate = bootstrap_mean(values) if name == "tiou" else wilson(int(sum(values)), n)
        row[name] = round(100 * estimate.mean, 2)
        row[f"{name}_95"] = [round(100 * estimate.low, 2), round(100 * estimate.high, 2)]
    if run.task == "N":
        row["hit_per_layer"] = [round(100 * float(h) / n, 2) for h in hits]
        row["selected_share"] = round(min(1.0, model.config.indexer.topk / row["context"]), 4)
    return row


def needle_hits(record: Record, frames: list, videos: MiniVideos, padding: torch.Tensor) -> torch.Tensor:
    """For each layer, how many rows select a visual token of the card's frame for the first answer token."""
    out = torch.zeros(len(record.layers))
    for row, spans in enumerate(frames):
        span = spans[videos.events[row][0].first]
        first = span.start + int(padding[row])
        for n, layer in enumerate(record.layers):
            at = layer.indices[row, 0]
            out[n] += float(((at >= first) & (at < first + span.stop - span.start)).any())
    return out


def best_constant_iou(n: int) -> float:
    """Mean temporal IoU of the best blind answer: one interval, in shares of the duration, for all videos."""
    videos = make_videos(SEED, range(n), 64, "test")
    truths = []
    for row, problems in enumerate(videos.problems):
        end = float(videos.seconds[row][-1])
        answer = parse_interval(next(p.answer for p in problems if p.task == "G"))
        truths.append([(a / end, b / end) for a, b in answer])
    grid = [x / 20 for x in range(21)]
    pairs = [(a, b) for a in grid for b in grid if a < b]
    return max(sum(temporal_iou([pair], truth) for truth in truths) / n for pair in pairs)


def summarise(rows: list[dict], constant: float) -> dict[str, float]:
    """The flat numbers that README and tests quote, in percent or percentage points; only what was measured."""
    out = {"grounding_miou_64_constant": round(100 * constant, 2)}
    for row in rows:
        if row["attention"] == "dense" or (row["blank"] and row["frames"] != 64):
            continue
        sides = row["height"], row["width"]
        name = f"{row['frames']}" + (f"_{sides[0]}x{sides[1]}" if sides != (56, 56) else "")
        if row["task"] == "G":
            out[f"grounding_miou_{name}{'_blank' if row['blank'] else ''}"] = row["tiou"]
        elif row["blank"]:
            out |= {f"blind_digit_{name}": row["digit"], f"blind_second_{name}": row["second"]}
        else:
            out |= {f"needle_digit_{name}": row["digit"], f"needle_second_{name}": row["second"]}
            out[f"needle_frame_hit_{name}"] = max(row["hit_per_layer"])
            out[f"selected_share_{name}"] = row["selected_share"]
            for model, key in (("dense", "dense_minus_sparse"), ("final", "same_weights_dense_minus_sparse")):
                twin = {**{k: row[k] for k in vars(RUNS[0])}, "attention": "dense", "model": model}
                found = [r["exact"] for r in rows if all(r[k] == v for k, v in twin.items()) and r["n"] == row["n"]]
                out |= {f"{key}_{name}": round(found[0] - row["exact"], 2)} if found else {}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="the final checkpoint")
    parser.add_argument(
        "--dense", type=Path, help="the checkpoint before the indexer was taught; without it, no such lines"
    )
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write, or to add missing lines to")
    parser.add_argument("--n", type=int, default=1000, help="questions per line")
    parser.add_argument("--frames", type=int, nargs="+", default=[64, 256, 1024], help="lengths to measure")
    parser.add_argument("--tokens", type=int, default=2**18, help="tokens in a batch, about")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    device = on(options.device)
    folders = {"final": options.checkpoint, "dense": options.dense}
    models = {
        name: KeyeVL.from_pretrained(folder, dtype=torch.float32, device=device)
        for name, folder in folders.items()
        if folder is not None
    }
    rows = json.loads(options.out.read_text(encoding="utf-8"))["rows"] if options.out.is_file() else []
    for run in (r for r in RUNS if r.frames in options.frames and r.model in models):
        if any(all(row[k] == v for k, v in vars(run).items()) for row in rows):
            continue  # measured by an earlier call
        answer = exact if run.attention == "dense" else measure
        row = answer(models[run.model], run, options.n, options.tokens)
        rows.append(row | {"hardware": hardware(), "torch": torch.__version__})
        print(rows[-1], flush=True)
        report(options.out, rows)
    report(options.out, rows)


def report(path: Path, rows: list[dict]) -> None:
    """Write all that is known so far."""
    where = "; ".join(sorted({row["hardware"] for row in rows}))
    what = "needle and grounding accuracy of the mini checkpoint on footage and digits never trained on, percent"
    folders = "--checkpoint assets/checkpoints/mini --dense TRAINED/checkpoint-dense"
    command = f"python -m minikeye.evaluation.mini {folders} --out assets/results/mini.json"
    write_result(path, what, command, rows, summarise(rows, best_constant_iou(1000)), [SEED], where=where)


if __name__ == "__main__":
    main()
