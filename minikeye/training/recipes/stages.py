"""Pre-training in stages and SFT, in miniature: python -m minikeye.training.recipes.stages --out TRAINED

On one CPU core. From a tower that knows things (`checkpoints/nano_things`) and nothing else; which stage learns what
from which documents is `pretrain/order.py`. After the first stage, `TRAINED/checkpoint-language` is what notebook 10
starts from (`checkpoints/nano_words`). After every stage all abilities are asked: `TRAINED/stages.json`. All numbers:
our choice.
"""

import argparse
import json
import time
from pathlib import Path

import torch

from minikeye.config import KeyeConfig
from minikeye.files import CHECKPOINT
from minikeye.keye import KeyeVL
from minikeye.results import write_result
from minikeye.training.failures import surviving
from minikeye.training.loop import LoopConfig
from minikeye.training.parallel.checkpoints import export, load_model, save_model
from minikeye.training.parallel.mesh import add_arguments, join, spread
from minikeye.training.pretrain.abilities import chance, known
from minikeye.training.pretrain.order import ABILITIES, COURSES, Course
from minikeye.training.stage import SLOW, teach

TOKENS = 2048  # a step, about
LOOPS = {
    "language": LoopConfig(steps=900, lr=5e-3, warmup=30),
    "projector": LoopConfig(steps=150, lr=8e-3, warmup=10),
    "general": LoopConfig(steps=300, lr=3e-3, warmup=20, slow=SLOW),
    "multitask": LoopConfig(steps=300, lr=3e-3, warmup=20, slow=SLOW),
    "switch": LoopConfig(steps=100, lr=2e-2, warmup=10),
    "long": LoopConfig(steps=400, lr=3e-3, warmup=20, slow=SLOW),
    "sft": LoopConfig(steps=200, lr=2e-3, warmup=20, slow=SLOW),
}


def begin() -> KeyeVL:
    """A tower that was taught on stills; everything else as it is drawn."""
    torch.manual_seed(0)
    model = KeyeVL(KeyeConfig.nano())
    model.visual.load_state_dict(KeyeVL.from_pretrained(CHECKPOINT.with_name("nano_things")).visual.state_dict())
    return model


def probe(model: KeyeVL, course: Course, count: int) -> dict[str, float]:
    """Share of exact answers of every ability, by the attention that the stage left the model with."""
    sparse = course.stage.indexer
    return {name: known(model, kind, "masked" if sparse else "dense", count) for name, kind in ABILITIES.items()}


def report(path: Path, rows: list[dict], config: KeyeConfig, count: int) -> None:
    """The forgetting probe of all stages so far, as a result of this project. One seed."""
    summary = {f"stages_chance_{name}": round(chance(kind, config, count), 3) for name, kind in ABILITIES.items()}
    for row in rows:
        summary |= {f"stages_{row['stage']}_{name}": round(share, 3) for name, share in row["known"].items()}
    write_result(
        path,
        f"share of exact answers after every stage, {count} questions each on pictures never trained on, and chance",
        "python -m minikeye.training.recipes.stages --out TRAINED",
        [row | {"known": {name: round(share, 3) for name, share in row["known"].items()}} for row in rows],
        {name.replace(",", "").replace(" ", "_"): number for name, number in summary.items()},
        [0],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the resumable states, logs and checkpoints")
    parser.add_argument("--smoke", action="store_true", help="two steps of every stage")
    add_arguments(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    loops = {name: loop.scaled(0.001) if options.smoke else loop for name, loop in LOOPS.items()}
    tokens, count = (256, 8) if options.smoke else (TOKENS, 500)
    model, state, recipe = begin(), options.out / "done.pt", repr((loops, tokens))
    ranks = join("cpu", options.ep, options.cp)
    spread(model, ranks)
    saved = load_model(state, model, ranks) or {"recipe": recipe, "rows": "[]"}
    if saved["recipe"] != recipe:
        raise ValueError(f"{options.out} holds a run of another recipe (--smoke): choose another --out")
    rows: list[dict] = json.loads(saved["rows"])
    with surviving(ranks, options.out):
        for course in COURSES[len(rows) :]:
            name, begun = course.stage.name, time.monotonic()
            lessons = course.lessons_from(model.config, loops[name].steps, tokens)
            teach(model, course.stage, loops[name], lessons, options.out, ranks=ranks)
            export(model, options.out / f"checkpoint-{name}", ranks, dtype=torch.bfloat16)
            rows.append({"stage": name, "report": course.report, "known": probe(model, course, count)})
            # Last: a stage is done when everything that it leaves is there.
            save_model(state, model, {"rows": json.dumps(rows), "recipe": recipe}, ranks)
            if ranks.rank == 0:
                print(json.dumps(rows[-1] | {"seconds": round(time.monotonic() - begun)}), flush=True)
    if ranks.rank == 0:
        report(options.out / "stages.json", rows, model.config, count)


if __name__ == "__main__":
    main()
