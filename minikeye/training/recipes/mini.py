"""Train the shipped checkpoint: python -m minikeye.training.recipes.mini --out FOLDER

The report's order in miniature (section 3), 21 minutes on one H200:
    tower   vision tower on its own, on labelled stills: the answer loss reaches it through one frame in many
    naming  all parameters, dense attention, short videos of many things: which word belongs to what (stages 0 and 1)
    dense   the same, lengths mixed and the cap growing (stages 2 and 3)
    warmup  indexer only, dense attention (L_warmup)
    sparse  all parameters, sparse attention (L_NTP + lambda L_sparse)
Skipped: a projector learning alone, the report's stage 0. It aligns a projector to a language model that can already
read; ours starts from nothing, so there is nothing to align to. All learning rates, lengths and steps: our choice.
"""

import argparse
import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.minivid.dataset import make_videos
from minikeye.minivid.lessons import Lesson, Size, parts_right, question_prompts
from minikeye.training.curriculum import CROWD, DENSE_CAPS, HARD, NAMING_CAPS, NAMING_KINDS, PLAIN, Curriculum
from minikeye.training.dsa import RecallMeter
from minikeye.training.failures import surviving
from minikeye.training.loop import LoopConfig
from minikeye.training.parallel.checkpoints import export, load_model, save_model
from minikeye.training.parallel.mesh import ALONE, Ranks, add_arguments, join, spread
from minikeye.training.stage import SLOW, STAGES, teach
from minikeye.training.state import read_log, write_log
from minikeye.training.step import autocast
from minikeye.training.tower import teach_tower


@dataclass(frozen=True)
class Recipe:
    """Steps, peak learning rates and lengths of the five stages."""

    tower: LoopConfig = LoopConfig(steps=1800, lr=1.5e-3)
    naming: LoopConfig = LoopConfig(steps=2000, lr=1.2e-3, warmup=100, final_lr=0.3, save_every=500, slow=SLOW)
    dense: LoopConfig = LoopConfig(steps=6000, lr=1.0e-3, warmup=100, save_every=500, slow=SLOW)
    warmup: LoopConfig = LoopConfig(steps=200, lr=3e-3, warmup=20)
    sparse: LoopConfig = LoopConfig(steps=1000, lr=4e-4, warmup=20, save_every=500, slow=SLOW)
    stills: int = 2048  # images a step of the tower stage
    lengths: Curriculum = Curriculum()

    def scaled(self, share: float, frames: int, longest: int, stills: int) -> "Recipe":
        """The same recipe with fewer steps and smaller batches, for a smoke test."""
        stages = {n: getattr(self, n).scaled(share) for n in ("tower", *STAGES)}
        return replace(self, **stages, stills=stills, lengths=replace(self.lengths, frames=frames, longest=longest))

    def lengths_of(self, stage: str) -> Curriculum:
        """In the first stages the cap grows; masks are dear: the sparse one takes fewer long videos at once."""
        if stage == "naming":
            return replace(self.lengths, caps=NAMING_CAPS, longest=min(16, self.lengths.longest), kinds=NAMING_KINDS)
        if stage == "dense":
            return replace(self.lengths, caps=DENSE_CAPS)
        return replace(self.lengths, frames=self.lengths.frames * 3 // 4) if stage == "sparse" else self.lengths


def learn(model: KeyeVL, recipe: Recipe, name: str, folder: Path, workers: int, ranks: Ranks = ALONE) -> None:
    """One stage by its name; what it did is in `folder`."""
    config: LoopConfig = getattr(recipe, name)
    if name == "tower":
        kinds = tuple(replace(kind, photographs=recipe.lengths.photographs) for kind in (PLAIN, HARD))
        teach_tower(model, config, recipe.stills, folder, difficulties=kinds, ranks=ranks)
        return
    stage = STAGES[name]
    lessons = recipe.lengths_of(name).lessons_from(model.config, config.steps, stage.number, workers)
    teach(model, stage, config, lessons, folder, ranks=ranks)


@torch.no_grad()
def recall(model: KeyeVL, frames: int, mode: str) -> list[float]:
    """Share of dense attention mass in the indexer's top-k, per layer, where the answers to fresh questions begin."""
    size, videos = Size(frames, 4), make_videos(99, range(4), frames, "train")
    prompts = question_prompts(videos, "N", size, model.config)  # padded on the left: the last tokens are real ones
    mask = prompts["attention_mask"].to(model.device)
    del prompts["frames"]
    inputs = Lesson(prompts, videos, size).inputs(model.config, model.device) | {"attention_mask": mask}
    meter = RecallMeter(model.config.indexer.topk)
    with autocast(model.device):
        model(inputs, attention=mode, observer=meter)
    return [round(float(kept.mean()), 4) for kept in meter.kept]


@torch.no_grad()
def known(model: KeyeVL, frames: int, count: int = 64) -> dict[str, float]:
    """Share of exact answers, by dense attention, about fresh training videos: of each task on plain videos, of G by
    number of things; "crowd": the same on crowds, where two things are another case than on plain videos.
    """
    size, out = Size(frames, count), {}
    never = model.config.image_token_id, model.config.video_token_id
    for task, kind in (*((task, PLAIN) for task in "NDYG"), ("G", CROWD)):
        videos = make_videos(99, range(count), frames, "train", difficulty=kind)
        things = torch.tensor([sum(p.task == "G" for p in problems) for problems in videos.problems])
        prompts = question_prompts(videos, task, size, model.config, answered=True)
        inputs = Lesson(prompts, videos, size).inputs(model.config, model.device)
        with autocast(model.device):
            logits = model(inputs, attention="dense").logits
        exact = parts_right(logits, inputs["input_ids"], inputs["answer"], never)["exact"].cpu().float()
        parts = {task: exact}
        if task == "G":
            groups = {"one": things == 1, "two": things == 2, "three to six": things > 2}
            where = "G crowd" if kind == CROWD else "G"
            parts = {f"{where} {name}": exact[group] for name, group in groups.items()}
        out |= {name: round(float(part.mean()), 3) for name, part in parts.items() if len(part)}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the resumable states, logs and checkpoints")
    parser.add_argument("--stages", nargs="+", default=["tower", *STAGES], choices=["tower", *STAGES], metavar="STAGE")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=12, help="processes that make prompts")
    parser.add_argument(
        "--photographs", type=Path, help="folder of more backgrounds, .jpg; assets/README.md says which"
    )
    parser.add_argument("--begin", type=Path, metavar="CHECKPOINT", help="start from it, not from nothing")
    parser.add_argument("--smoke", action="store_true", help="a few tiny steps of every stage, on a CPU")
    add_arguments(parser)
    options = parser.parse_args()
    ranks = join(options.device, options.ep, options.cp)
    torch.manual_seed(0)
    recipe = Recipe().scaled(0.0012, frames=32, longest=16, stills=16) if options.smoke else Recipe()
    if options.photographs is not None:
        recipe = replace(recipe, lengths=replace(recipe.lengths, photographs=str(options.photographs)))
    model = KeyeVL(KeyeConfig.mini()).to(ranks.device(options.device))
    if options.begin is not None:
        model.load_state_dict(KeyeVL.from_pretrained(options.begin, dtype=torch.float32).state_dict())
    model.visual.chunk_patches = 2**20  # one pass: memory is not short here
    spread(model, ranks)
    progress = options.out / "done.pt"
    saved = load_model(progress, model, ranks) or {"recipe": repr(recipe), "stages": []}
    if saved["recipe"] != repr(recipe):
        raise ValueError(f"{options.out} holds a run of another recipe (--smoke, --photographs): choose another --out")
    done: list[str] = saved["stages"]
    with surviving(ranks, options.out):
        for stage in (s for s in options.stages if s not in done):
            begun = time.monotonic()
            learn(model, recipe, stage, options.out, options.workers, ranks)
            lengths = (16,) if options.smoke else (64, 256, 1024)
            kept = {n: recall(model, n, "dense") for n in lengths} if stage not in ("tower", "naming") else {}
            asked = (4,) if options.smoke else (4, 8, 16) if stage == "naming" else (16, 64, 256)
            shown = {n: known(model, n, 4 if options.smoke else 128) for n in asked} if stage != "tower" else {}
            if ranks.rank == 0:
                # Not what the call returned: that lacks what was logged before a kill.
                lines, log = read_log(options.out / f"{stage}.jsonl"), options.out / "mini_training.jsonl"
                before = [line for line in read_log(log) if line["stage"] != stage]
                write_log(log, before + [{"stage": stage, **line} for line in lines])
            shard = 15 * 2**20
            export(model, options.out / f"checkpoint-{stage}", ranks, max_shard_bytes=shard, dtype=torch.bfloat16)
            # Last: a stage is done when all that it leaves is there. Killed before, it is resumed at its last step.
            done.append(stage)
            save_model(progress, model, {"stages": done, "recipe": repr(recipe)}, ranks)
            if ranks.rank == 0:
                seconds = round(time.monotonic() - begun, 1)
                print(
                    json.dumps(
                        {"stage": stage, "seconds": seconds, "last": lines[-1:], "recall": kept, "known": shown}
                    ),
                    flush=True,
                )


if __name__ == "__main__":
    main()
