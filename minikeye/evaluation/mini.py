"""Measure the shipped checkpoint: python -m minikeye.evaluation.mini --checkpoint FOLDER --dense FOLDER --out FILE

Footage, digits and videos never trained on. Sparse attention answers greedily, and the answers are parsed and scored.
Dense attention, for comparison, is only asked whether it would give the exact answer: greedy decoding does so if and
only if every answer token is the most likely one after the true tokens before it, which one forward pass tells.
Model "dense" is the checkpoint before the indexer was taught; "final" run dense is the release's fallback.
Every line is split by all that the generator draws, chance beside each split (questions.py).
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from minikeye.evaluation.questions import SEED, Run, exact, measure, require_levels
from minikeye.keye import KeyeVL
from minikeye.results import hardware, write_result
from minikeye.training.step import on

WIDE = {"height": 56, "width": 84}  # what footage of 4:3 and of 16:9 becomes
RUNS = (
    Run("G", 64, "sparse", "final"),
    Run("N", 64, "sparse", "final"),
    Run("D", 64, "sparse", "final"),
    Run("N", 64, "sparse", "final", **WIDE, footage="hard"),
    Run("G", 64, "sparse", "final", **WIDE, footage="hard"),
    Run("N", 64, "sparse", "final", **WIDE, footage="two cards", n=500),
    *(Run(task, 64, "sparse", "final", control="blank", n=500) for task in "NGDY"),
    Run("G", 64, "sparse", "final", control="wrong word", n=500),
    Run("Y", 64, "sparse", "final", n=500),
    Run("G", 64, "sparse", "final", footage="crowd", n=500),
    *(Run("N", 64, "sparse", "final", height=h, width=w, n=500) for h, w in ((56, 84), (84, 56), (56, 112), (28, 112))),
    *(Run(task, 64, "dense", model) for task in "NG" for model in ("dense", "final")),
    Run("N", 256, "sparse", "final", n=500),
    Run("N", 256, "sparse", "final", **WIDE, footage="hard", n=500),
    *(Run("N", 256, "dense", model, n=500) for model in ("dense", "final")),
    Run("N", 1024, "sparse", "final", n=300),
    *(Run("N", 1024, "dense", model, n=300) for model in ("dense", "final")),
    Run("N", 1024, "sparse", "final", **WIDE, footage="hard", n=200),
    Run("G", 256, "sparse", "final", n=300),
    Run("G", 1024, "sparse", "final", n=100),
)
TASKS = {"N": ("digit", "second"), "G": ("tiou",), "D": ("exact",), "Y": ("exact",)}
NAMES = {
    "digit": "needle_digit",
    "second": "needle_second",
    "tiou": "grounding_miou",
    "D": "naming",
    "Y": "presence",
}


def summarise(rows: Sequence[dict]) -> dict[str, float]:
    """The flat numbers that README and tests quote, in percent or percentage points; only what was measured."""
    out: dict[str, float] = {}
    for row in (row for row in rows if row["attention"] == "sparse"):
        where = _where(row)
        for score in TASKS[row["task"]]:
            name = NAMES.get(score, NAMES.get(row["task"]))
            out[f"{name}_{where}"] = row[score]
            out[f"{name}_{where}_chance"] = row[f"chance_{score}"]
        if row["footage"] == "two cards":
            out["two_cards_consistent"] = row["consistent"]
        if row["task"] == "G":
            for level, part in row["levels"]["things"].items():
                key = f"grounding_miou_{where}_{level.replace(' ', '_')}"
                out |= {key: part["tiou"], f"{key}_constant": part["chance_tiou"]}
                out |= {f"{key}_chance": part["chance_coin"]} if "chance_coin" in part else {}
        elif row["task"] == "N" and "selected" in row:
            out[f"needle_frame_hit_{where}"] = max(row["selected"]["hit"])
            out[f"selected_share_{where}"] = row["selected_share"]
        if not row["control"]:
            for model, key in (("dense", "dense_minus_sparse"), ("final", "same_weights_dense_minus_sparse")):
                twin = {name: row[name] for name in vars(RUNS[0])} | {"attention": "dense", "model": model}
                found = [r["exact"] for r in rows if all(r[k] == v for k, v in twin.items())]
                task = "" if row["task"] == "N" else f"_{row['task']}"
                out |= {f"{key}{task}_{where}": round(found[0] - row["exact"], 2)} if found else {}
    return out


def _where(row: dict) -> str:
    """Length, and what is not as usual: shape, footage, control."""
    shape = f"{row['height']}x{row['width']}" if (row["height"], row["width"]) != (56, 56) else ""
    footage = row["footage"] if row["footage"] != "plain" else ""
    parts = (str(row["frames"]), shape, footage.replace(" ", "_"), row["control"].replace(" ", "_"))
    return "_".join(part for part in parts if part)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, required=True, help="the final checkpoint")
    parser.add_argument(
        "--dense", type=Path, help="the checkpoint before the indexer was taught; without it, no such lines"
    )
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write, or to add missing lines to")
    parser.add_argument("--n", type=int, help="questions per line; by default as many as the line says")
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
    if rows:
        print(f"kept {len(rows)} lines of {options.out}: for another checkpoint choose another --out", file=sys.stderr)
    for run in (r for r in RUNS if r.frames in options.frames and r.model in models):
        run = replace(run, n=options.n) if options.n else run
        if any(all(row[k] == v for k, v in vars(run).items()) for row in rows):
            continue  # measured by an earlier call
        answer = exact if run.attention == "dense" else measure
        row = answer(models[run.model], run, options.tokens)
        print({k: v for k, v in row.items() if k not in ("levels", "selected")}, flush=True)
        rows.append(row | {"hardware": hardware(), "torch": torch.__version__})
        report(options.out, rows)


def report(path: Path, rows: list[dict]) -> None:
    """Write all that is known so far. Raises ValueError for a line that lacks a level of a factor."""
    for row in rows:
        require_levels(row)
    where = "; ".join(sorted({row["hardware"] for row in rows}))
    what = "needle, grounding and naming by the mini checkpoint on footage and digits never trained on, percent"
    folders = "--checkpoint assets/checkpoints/mini --dense TRAINED/checkpoint-dense"
    command = f"python -m minikeye.evaluation.mini {folders} --out assets/results/mini.json"
    write_result(path, what, command, rows, summarise(rows), [SEED], where=where)


if __name__ == "__main__":
    main()
