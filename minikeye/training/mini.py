"""Train the shipped checkpoint: python -m minikeye.training.mini --out FOLDER

The report's order in miniature (section 3), about twelve minutes on one H100:
    tower   vision tower on its own, on labelled stills: the answer loss reaches it through one frame in many
    dense   all parameters, dense attention, lengths mixed and the cap growing (stages 1 to 3)
    warmup  indexer only, dense attention (L_warmup)
    sparse  all parameters, sparse attention (L_NTP + lambda L_sparse)
Skipped: stage 0, projector only. It aligns a projector to a language model that can already read; ours starts from
nothing, so there is nothing to align to. All learning rates, lengths and steps: our choice.
"""

import argparse
import json
import os
import random
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from minikeye.config import KeyeConfig
from minikeye.minivid.dataset import make_videos
from minikeye.model import KeyeVL
from minikeye.training.dsa import IndexerTeacher, RecallMeter, draw_rows
from minikeye.training.graphs import beside, stepper
from minikeye.training.lessons import Lesson, Lessons, Size, ask, stream
from minikeye.training.loop import LoopConfig, train
from minikeye.training.supervised import answer_accuracy, answer_loss
from minikeye.training.tower import autocast, teach_tower, trainable

# The answer loss says little about pixels until attention has found them, and Adam turns little into full-size steps:
# at the decoder's rate the taught tower is destroyed, and the projector outgrows the residual stream.
SLOW = ("visual.", "mlp_AR.")


# Frames, height and width in pixels, turns, and how often. The longest need the most steps.
SIZES = (
    (4, 56, 56, 1, 0.2),
    (8, 56, 56, 1, 0.3),
    (16, 56, 56, 4, 0.4),
    (16, 56, 84, 4, 0.3),
    (32, 56, 56, 4, 0.5),
    (64, 56, 56, 4, 0.7),
    (64, 56, 84, 4, 0.5),
    (64, 84, 56, 4, 0.3),
    (64, 56, 112, 4, 0.3),
    (64, 112, 56, 4, 0.2),
    (64, 28, 112, 4, 0.3),
    (128, 56, 56, 4, 0.8),
    (256, 56, 56, 4, 2.0),
    (512, 56, 56, 4, 2.0),
    (1024, 56, 56, 4, 4.0),
)


@dataclass(frozen=True)
class Recipe:
    """Steps and peak learning rates of the four stages."""

    tower: LoopConfig = LoopConfig(steps=1800, lr=1.5e-3)
    dense: LoopConfig = LoopConfig(steps=6000, lr=1.2e-3, warmup=100, save_every=500, slow=SLOW)
    warmup: LoopConfig = LoopConfig(steps=200, lr=3e-3, warmup=20)
    sparse: LoopConfig = LoopConfig(steps=1000, lr=4e-4, warmup=20, save_every=500, slow=SLOW)
    stills: int = 2048  # images a step of the tower stage
    frames: int = 4096  # video frames of 56x56 pixels a step, about 40,000 tokens
    longest: int = 1024  # frames
    sizes: tuple[tuple[int, int, int, int, float], ...] = SIZES
    balance: float = 0.01  # weight of the experts' balance loss
    indexer: float = 1.0  # lambda: weight of the indexer's KL loss in the sparse stage

    def scaled(self, share: float, frames: int, longest: int, stills: int) -> "Recipe":
        """The same recipe with fewer steps and smaller batches, for a smoke test."""
        stages = {n: getattr(self, n) for n in ("tower", "dense", "warmup", "sparse")}
        shorter = {
            n: replace(c, steps=max(2, int(c.steps * share)), log_every=1, save_every=0) for n, c in stages.items()
        }
        return replace(self, **shorter, frames=frames, longest=longest, stills=stills)


# Longest video until that share of the dense stage. With four frames a quarter of an attention that knows nothing yet
# already falls on the right one: that is where finding begins; from sixteen frames on it does not begin at all.
CAPS = {4: 0.08, 8: 0.14, 16: 0.18, 32: 0.24, 64: 0.32, 128: 0.40, 256: 0.50, 512: 0.60}


def size_at(step: int, steps: int, recipe: Recipe, growing: bool) -> Size:
    """Lengths are mixed in every phase, never switched; in the dense stage the cap grows from 4 frames."""
    rng = random.Random(f"size {step}")
    if rng.random() < 0.04:
        return Size(0, 64)
    cap = next((n for n, until in CAPS.items() if growing and step < until * steps), 1024)
    sizes = [size for size in recipe.sizes if size[0] <= min(cap, recipe.longest)]
    frames, height, width, turns, _ = rng.choices(sizes, [size[-1] for size in sizes])[0]
    videos = max(1, min(96 if turns > 1 else 256, recipe.frames * 56 * 56 // (frames * height * width)))
    return Size(frames, videos, height, width, turns)


def teach_answers(
    model: KeyeVL, recipe: Recipe, folder: Path, device: str, stage: str, workers: int, seed: int = 0
) -> list[dict]:
    """The stages "dense", "warmup" and "sparse": they differ in what is trained, in the attention, and in the loss.

    seed: of the videos, beside the stage.
    """
    config: LoopConfig = getattr(recipe, stage)
    parameters = trainable(model, TRAINED[stage])
    state = folder / f"{stage}.pt"
    done = torch.load(state, map_location="cpu", weights_only=True)["step"] if state.is_file() else 0
    seed = 100 * seed + list(TRAINED).index(stage) + 2
    if stage == "sparse":  # masks are dear: three videos of 1,024 frames, not four
        recipe = replace(recipe, frames=recipe.frames * 3 // 4)
    sizes = partial(size_at, steps=config.steps, recipe=recipe, growing=stage == "dense")
    batches = stream(Lessons(model.config, sizes, range(done, config.steps), seed), workers)

    def backward_at(step: int):
        lesson = next(batches)
        generator = torch.Generator().manual_seed(step)
        count = max(16, min(128, 3072 // lesson.size.videos))  # rows to teach the indexer from
        rows = draw_rows(lesson.tokens["answer"], count, generator)
        loss, numbers = run(beside(lambda: lesson.inputs(model.config, device) | {"rows": rows.to(device)}, device))
        return loss, {"frames": lesson.size.frames, **numbers}

    run = stepper(device)(partial(stage_loss, model, recipe, stage, device), list(parameters.values()))
    return train(parameters, backward_at, config, folder, stage)


TRAINED = {
    "dense": lambda name: "sa_indexer" not in name,
    "warmup": lambda name: "sa_indexer" in name,
    "sparse": lambda name: True,
}


def stage_loss(model: KeyeVL, recipe: Recipe, stage: str, device: str, inputs: dict[str, Tensor]):
    """The stage's loss on one batch, and numbers for the log."""
    teacher = IndexerTeacher(None if stage == "dense" else inputs["rows"])
    with autocast(device):
        logits = model(inputs, attention="masked" if stage == "sparse" else "dense", observer=teacher).logits
        kl = teacher.indexer_loss() if stage != "dense" else torch.zeros((), device=device)
    if stage == "warmup":
        return kl, {}
    answers = answer_loss(logits, inputs["input_ids"], inputs["answer"])
    balance = teacher.balance_loss()
    right = answer_accuracy(logits.detach(), inputs["input_ids"], inputs["answer"])
    numbers = {"answer": answers.detach(), "kl": kl.detach(), "balance": balance.detach(), "right": right}
    return answers + recipe.balance * balance + recipe.indexer * kl, numbers


@torch.no_grad()
def recall(model: KeyeVL, frames: int, device: str, mode: str) -> list[float]:
    """Share of dense attention mass in the indexer's top-k, per layer, where the answers to fresh questions begin."""
    size, videos = Size(frames, 4), make_videos(99, range(4), frames, "train")
    prompts = ask(videos, "N", size, model.config)  # padded on the left: the last tokens are real ones
    mask = prompts["attention_mask"].to(device)
    del prompts["frames"]
    inputs = Lesson(prompts, videos, size).inputs(model.config, device) | {"attention_mask": mask}
    meter = RecallMeter(model.config.indexer.topk)
    with autocast(device):
        model(inputs, attention=mode, observer=meter)
    return [round(float(kept.mean()), 4) for kept in meter.kept]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the resumable states, logs and checkpoints")
    parser.add_argument("--stages", nargs="+", default=["tower", "dense", "warmup", "sparse"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=12, help="processes that make prompts")
    parser.add_argument("--smoke", action="store_true", help="a few tiny steps of every stage, on a CPU")
    options = parser.parse_args()
    torch.manual_seed(0)
    recipe = Recipe().scaled(0.0012, frames=32, longest=16, stills=16) if options.smoke else Recipe()
    model = KeyeVL(KeyeConfig.mini()).to(options.device)
    model.visual.chunk_patches = 2**20  # one pass: memory is not short here
    progress = options.out / "done.pt"
    done: list[str] = []
    if progress.is_file():
        saved = torch.load(progress, weights_only=True, map_location=options.device)
        done = saved["stages"]
        model.load_state_dict(saved["model"])
    for stage in (s for s in options.stages if s not in done):
        begun = time.monotonic()
        if stage == "tower":
            teach_tower(model, recipe.tower, recipe.stills, options.out, options.device)
        else:
            teach_answers(model, recipe, options.out, options.device, stage, options.workers)
        # Not what the call returned: that lacks what was logged before a kill.
        lines = [json.loads(line) for line in (options.out / f"{stage}.jsonl").read_text().splitlines()]
        done.append(stage)
        torch.save({"model": model.state_dict(), "stages": done}, progress.with_suffix(".tmp"))
        os.replace(progress.with_suffix(".tmp"), progress)
        shard = 15 * 2**20
        model.save_pretrained(options.out / f"checkpoint-{stage}", max_shard_bytes=shard, dtype=torch.bfloat16)
        lengths = (16,) if options.smoke else (64, 256, 1024)
        kept = {n: recall(model, n, options.device, "dense") for n in lengths} if stage != "tower" else {}
        seconds = round(time.monotonic() - begun, 1)
        with (options.out / "mini_training.jsonl").open("a") as log:
            log.writelines(json.dumps({"stage": stage, **line}) + "\n" for line in lines)
        print(json.dumps({"stage": stage, "seconds": seconds, "last": lines[-1:], "recall": kept}), flush=True)


if __name__ == "__main__":
    main()
