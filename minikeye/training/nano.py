"""Train the nano checkpoint that notebook 07 starts from: python -m minikeye.training.nano --out TRAINED

Ten minutes on one CPU core. The vision tower on stills, then the answer loss with dense attention: needle questions
about videos of 4 to 16 frames of 28x28 pixels, one token each, four frames first (why: assets/README.md). The indexer
stays as it was drawn: teaching it is what the notebook is about. The model learns at which second the card comes. It
does not learn to read the digit. All numbers: our choice.
"""

import argparse
import json
import random
import time
from pathlib import Path

import torch
from torch import Tensor

from minikeye.config import KeyeConfig
from minikeye.minivid.dataset import make_videos
from minikeye.minivid.pictures import Split
from minikeye.model import KeyeVL
from minikeye.training.lessons import Lesson, Size, ask
from minikeye.training.loop import LoopConfig, train
from minikeye.training.mini import SLOW, TRAINED, Recipe, stage_loss
from minikeye.training.supervised import parts_right
from minikeye.training.tower import teach_tower, trainable

TOWER = LoopConfig(steps=400, lr=3e-3, warmup=20)
DENSE = LoopConfig(steps=2000, lr=3e-3, warmup=50, slow=SLOW)
STILLS, VIDEOS = 128, 32  # images and videos a step
CAPS = {4: 0.12, 8: 0.27}  # longest video until that share of the dense stage, then 16 frames


def needles(
    config: KeyeConfig, seed: int, first: int, count: int, frames: int, split: Split, blank: bool = False
) -> dict[str, Tensor]:
    """Model inputs of needle questions with their answers about videos first, first + 1, ..., right padded.

    answer bool [b t] marks the answer tokens. blank: grey frames, the control that must fail.
    """
    size, videos = Size(frames, count, 28, 28), make_videos(seed, range(first, first + count), frames, split)
    return Lesson(ask(videos, "N", size, config, answered=True), videos, size).inputs(config, "cpu", blank)


def frames_at(step: int, steps: int) -> int:
    """Frames of that step's videos: lengths are mixed, the longest one is twice as frequent, and the cap grows."""
    cap = next((n for n, until in CAPS.items() if step < until * steps), 16)
    return random.Random(f"frames {step}").choice([n for n in (4, 8, 16, 16) if n <= cap])


def teach_dense(model: KeyeVL, config: LoopConfig, folder: Path | None) -> list[dict]:
    """Everything but the indexers, from the answer loss, with dense attention. Returns the log."""
    parameters, recipe = trainable(model, TRAINED["dense"]), Recipe()

    def backward_at(step: int):
        for p in parameters.values():
            p.grad = None
        inputs = needles(model.config, 0, step * VIDEOS, VIDEOS, frames_at(step, config.steps), "train")
        loss, numbers = stage_loss(model, recipe, "dense", "cpu", inputs)
        loss.backward()
        return loss.detach(), numbers

    return train(parameters, backward_at, config, folder, "dense")


@torch.no_grad()
def right(model: KeyeVL, inputs: dict[str, Tensor], attention: str) -> dict[str, float]:
    """Share of the answers whose digit, and whose second, is right (`supervised.parts_right`)."""
    never = model.config.image_token_id, model.config.video_token_id
    parts = parts_right(model(inputs, attention=attention).logits, inputs["input_ids"], inputs["answer"], never)
    return {part: float(parts[part].float().mean()) for part in ("digit", "second")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the resumable states, logs and checkpoint")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    begun, model = time.monotonic(), KeyeVL(KeyeConfig.nano())
    teach_tower(model, TOWER, STILLS, options.out, "cpu")
    teach_dense(model, DENSE, options.out)
    model.eval().save_pretrained(options.out / "checkpoint-nano", dtype=torch.bfloat16)
    print(json.dumps({"seconds": round(time.monotonic() - begun)}))
    for frames in (4, 8, 16):
        for blank in (False, True):
            score = right(model, needles(model.config, 11, 0, 1000, frames, "test", blank), "dense")
            print(json.dumps({"frames": frames, "blank": blank, **{n: round(100 * s, 1) for n, s in score.items()}}))


if __name__ == "__main__":
    main()
