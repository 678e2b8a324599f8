"""Train the nano checkpoint that notebook 07 starts from: python -m minikeye.training.recipes.nano --out TRAINED

Ten minutes on one CPU core. The vision tower on stills, then the answer loss with dense attention: needle questions
about videos of 4 to 16 frames of 28x28 pixels, one token each, four frames first (why: assets/README.md). The indexer
stays as it was drawn: teaching it is what the notebook is about. The model learns at which second the card comes. It
does not learn to read the digit. All numbers: our choice.
"""

import argparse
import json
import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.minivid.lessons import Lesson, needle_lesson, needles, right
from minikeye.training.failures import surviving
from minikeye.training.loop import LoopConfig
from minikeye.training.parallel.checkpoints import export
from minikeye.training.parallel.mesh import add_arguments, join, spread
from minikeye.training.stage import SLOW, STAGES, teach
from minikeye.training.tower import teach_tower

TOWER = LoopConfig(steps=400, lr=3e-3, warmup=20)
DENSE = LoopConfig(steps=2000, lr=3e-3, warmup=50, slow=SLOW)
STILLS, VIDEOS = 128, 32  # images and videos a step
CAPS = {4: 0.12, 8: 0.27}  # longest video until that share of the dense stage, then 16 frames


def frames_at(step: int, steps: int) -> int:
    """Frames of that step's videos: lengths are mixed, the longest one is twice as frequent, and the cap grows."""
    cap = next((n for n, until in CAPS.items() if step < until * steps), 16)
    return random.Random(f"frames {step}").choice([n for n in (4, 8, 16, 16) if n <= cap])


def lessons_from(config: KeyeConfig, steps: int, step: int) -> Iterator[Lesson]:
    """The lessons of that step of `steps` and of all later ones."""
    for n in range(step, steps):
        yield needle_lesson(config, 0, n * VIDEOS, VIDEOS, frames_at(n, steps), "train")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the resumable states, logs and checkpoint")
    add_arguments(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    begun, model = time.monotonic(), KeyeVL(KeyeConfig.nano())
    ranks = join("cpu", options.ep, options.cp)
    spread(model, ranks)
    with surviving(ranks, options.out):
        teach_tower(model, TOWER, STILLS, options.out, ranks=ranks)
        teach(model, STAGES["dense"], DENSE, partial(lessons_from, model.config, DENSE.steps), options.out, ranks=ranks)
        export(model.eval(), options.out / "checkpoint-nano", ranks, dtype=torch.bfloat16)
        tell = print if ranks.rank == 0 else lambda line: None
        tell(json.dumps({"seconds": round(time.monotonic() - begun)}))
        for frames in (4, 8, 16):
            for blank in (False, True):
                score = right(model, needles(model.config, 11, 0, 1000, frames, "test", blank), "dense")
                tell(json.dumps({"frames": frames, "blank": blank, **{n: round(100 * s, 1) for n, s in score.items()}}))


if __name__ == "__main__":
    main()
