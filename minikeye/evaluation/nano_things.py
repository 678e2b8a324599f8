"""Measure the nano that knows things: python -m minikeye.evaluation.nano_things --out FILE

Two minutes on one CPU core. Footage, digits and videos never trained on; dense attention, for its indexer is untaught.
What it knows is asked twice: of its vision tower, by a linear probe, and of the whole model, by questions, each split
by all that the generator draws with chance beside it (questions.py). "blank": grey frames, the control that must fail.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from minikeye.evaluation.questions import SEED, Run, measure, require_levels
from minikeye.files import CHECKPOINT
from minikeye.keye import KeyeVL
from minikeye.minivid.dataset import make_stills
from minikeye.minivid.drawing.things import KINDS
from minikeye.minivid.lessons import pixels
from minikeye.results import hardware, write_result

SIDE = 56  # pixels
RUNS = (
    *(Run(task, frames, "dense", "final") for frames in (10, 16) for task in "GDYN"),
    *(Run(task, 16, "dense", "final", control="blank", n=500) for task in "GDYN"),
)
SCORES = {"G": "tiou", "D": "exact", "Y": "exact", "N": "second"}
NAMES = {"G": "grounding_miou", "D": "naming", "Y": "presence", "N": "needle_second"}


@torch.no_grad()
def features(model: KeyeVL, split: str, count: int) -> tuple[Tensor, Tensor]:
    """Mean and maximum of the tower's patches [n 2d] on stills with one thing or none, and which [n], 12 for none."""
    frames, _, things = make_stills(SEED, 0, count, split, SIDE, SIDE)
    inputs = pixels(frames, model.config)
    patches = model.visual(inputs["patches"], inputs["grids"]).unflatten(0, (count, -1))  # [n p d]
    label = torch.where(things.any(1), things.int().argmax(1), len(KINDS))
    single = things.sum(1) < 2
    return torch.cat((patches.mean(1), patches.amax(1)), 1)[single], label[single]


def probe(model: KeyeVL, train: int = 8192, test: int = 4096) -> dict[str, float]:
    """What one linear layer reads off frozen features of `test` stills, in percent, learnt from `train` others.

    presence: a thing or none (chance 50). kind: which of 12, where there is one (chance 8.3).
    """
    x, label = features(model, "train", train)
    new, truth = features(model, "test", test)
    middle, spread = x.mean(0), x.std(0) + 1e-6
    reader = LogisticRegression(max_iter=500).fit((x - middle) / spread, label)
    said = torch.tensor(reader.predict((new - middle) / spread))
    none, there = len(KINDS), truth < len(KINDS)
    return {
        "presence": round(100 * float(((said == none) == (truth == none)).float().mean()), 2),
        "kind": round(100 * float((said == truth)[there].float().mean()), 2),
    }


def summarise(rows: Sequence[dict], tower: dict[str, float]) -> dict[str, float]:
    """The flat numbers that README and tests quote, in percent; "nano_" before each."""
    out = {f"nano_probe_{name}": value for name, value in tower.items()}
    for row in rows:
        score, where = SCORES[row["task"]], f"{row['frames']}{'_blank' * bool(row['control'])}"
        name = f"nano_{NAMES[row['task']]}_{where}"
        out |= {name: row[score], f"{name}_chance": row[f"chance_{score}"]}
        if row["task"] == "G":
            for level, part in row["levels"]["things"].items():
                out |= {f"{name}_{level}": part["tiou"], f"{name}_{level}_constant": part["chance_tiou"]}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT.parent / "nano_things")
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write")
    parser.add_argument("--n", type=int, help="questions per line; by default as many as the line says")
    options = parser.parse_args()
    model = KeyeVL.from_pretrained(options.checkpoint, dtype=torch.float32)
    tower, rows = probe(model), []
    print(json.dumps(tower), flush=True)
    for run in RUNS:
        rows.append(measure(model, run if options.n is None else Run(**vars(run) | {"n": options.n}), 2**15))
        print({name: value for name, value in rows[-1].items() if name not in ("levels", "selected")}, flush=True)
        require_levels(rows[-1])
    what = "naming, presence, grounding and the card's second by the nano that knows things, percent"
    command = "python -m minikeye.evaluation.nano_things --out assets/results/nano_things.json"
    write_result(options.out, what, command, rows, summarise(rows, tower), [SEED], where=hardware())


if __name__ == "__main__":
    main()
