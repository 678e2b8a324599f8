"""What replay mends: python -m minikeye.evaluation.rl_replay --out FILE

The mini checkpoint answers grounding questions with sparse attention while noise turns some of its choices of experts
and of keys, as another engine's rounding would; then the trainer's pass says how likely the same tokens are, without
replay, with the sampler's experts, with its keys, and with both. One line a noise level and seed: each seed has videos,
draws and noise of its own.

Float32 on one machine: without noise the two agree to rounding, so the noise is all that differs (`rl.replay`). The
checkpoint is nearly sure of its answers, and what is certain cannot diverge: they are drawn at temperature 2, where it
is less so. A divergence is told, not a reward curve: one step of a policy moves it by far more than rounding does. Our
choice, all of it; the report names deterministic top-k for DSA and nothing else.
"""

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_args

import torch

from minikeye.files import CHECKPOINT
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.keye import KeyeVL
from minikeye.minivid.dataset import make_videos
from minikeye.minivid.lessons import Lesson, Size, question_prompts
from minikeye.results import hardware, write_result
from minikeye.rl.gspo import GSPO_PAPER
from minikeye.rl.learn import with_visual_tokens
from minikeye.rl.replay import ChoiceRecorder, Replay, expert_flips, index_jaccard, noisy, sampler_trainer_kl
from minikeye.rl.rollout import answer_logprobs, sample_answers
from minikeye.training.step import on

LEVELS = ((0.0, 0.0), (0.1, 0.0), (0.0, 0.1), (0.1, 0.1), (0.3, 0.3))  # noise on router logits, on index scores
MAIN = (0.1, 0.1)
REPLAYS = get_args(Replay)


@dataclass(frozen=True)
class Run:
    """One line of the study."""

    seed: int
    router: float  # standard deviation of the noise on router logits
    index: float  # and on index scores
    videos: int = 4  # with one question and one answer each
    frames: int = 64
    temperature: float = 2.0


@torch.no_grad()
def measure(model: KeyeVL, run: Run) -> dict:
    """One line: k3 in nats a token for every replay, tails of the answers' ratios, and how many choices had turned.

    outside: share of answers whose ratio (the geometric mean of their tokens') is off 1 by more than GSPO's paper
    allows a step, 3e-4. flips, jaccard: the sampler's choices against the trainer's own, over all tokens read.
    """
    begun, size = time.monotonic(), Size(run.frames, run.videos)
    first = 100_000 * run.seed
    videos = make_videos(13, range(first, first + run.videos), run.frames, "test")
    asked = question_prompts(videos, "G", size, model.config)
    del asked["frames"]
    mask = asked["attention_mask"].to(model.device)
    inputs = Lesson(asked, videos, size).inputs(model.config, model.device) | {"attention_mask": mask}
    prompts = with_visual_tokens(model, inputs)
    stop = (load_tokenizer(model.config).token_id("<|im_end|>"),)
    sampler, trainer, how = ChoiceRecorder(), ChoiceRecorder(), {"attention": "sparse"}
    with noisy(model, run.router, run.index, run.seed):
        answers = sample_answers(
            model, prompts, 1, 24, stop, seed=run.seed, temperature=run.temperature, observer=sampler, **how
        )
    choices, row = sampler.choices(), asdict(run)
    row |= {"tokens": int(answers.mask.sum()), "logprob": float(answers.logprobs[answers.mask].mean())}
    for replay in REPLAYS:
        watch = trainer if replay == "none" else None
        trained = answer_logprobs(
            model, prompts, answers.ids, run.temperature, observer=watch, choices=choices, replay=replay, **how
        )
        row[f"kl_{replay}"] = float(sampler_trainer_kl(answers.logprobs, trained, answers.mask))
        ratios = ((trained - answers.logprobs).sum(-1) / answers.mask.sum(-1)).exp()
        row[f"outside_{replay}"] = round(float(((ratios - 1).abs() > GSPO_PAPER.low).double().mean()), 4)
        row[f"largest_{replay}"] = float((trained - answers.logprobs).abs().max())
    read = torch.cat((mask.bool(), answers.mask[:, 0, 1:]), dim=1)  # the last token of an answer is said, not read
    packed, own = choices.packed(mask.shape[1], 1), trainer.choices()
    row |= {"flips": expert_flips(packed, own, read), "jaccard": index_jaccard(packed, own, read)}
    return row | {"seconds_taken": round(time.monotonic() - begun, 1)}


def summarise(rows: list[dict]) -> dict[str, float | int]:
    """Means over seeds: kl_REPLAY at MAIN, kl_REPLAY_router and kl_REPLAY_index with that noise alone, kl_REPLAY_clean.

    worst_both_over_none: the largest kl_both / kl_none of any seed at MAIN. flips and jaccard in percent, at MAIN.
    """
    names = {MAIN: "", (0.1, 0.0): "_router", (0.0, 0.1): "_index", (0.0, 0.0): "_clean"}
    out: dict[str, float | int] = {}
    for level, name in names.items():
        if some := [row for row in rows if (row["router"], row["index"]) == level]:
            mean = lambda key, some=some: sum(row[key] for row in some) / len(some)  # noqa: E731
            out |= {f"kl_{replay}{name}": float(f"{mean(f'kl_{replay}'):.3g}") for replay in REPLAYS}
            if level == MAIN:
                worst = max(row["kl_both"] / row["kl_none"] for row in some)
                out |= {
                    "worst_both_over_none": float(f"{worst:.3g}"),
                    "replay_seeds": len({row["seed"] for row in some}),
                }
                out |= {key: round(100 * mean(key), 2) for key in ("flips", "jaccard")}
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="folder of the model")
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write, or to add missing lines to")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--videos", type=int, default=Run.videos, help="of each seed")
    parser.add_argument("--frames", type=int, default=Run.frames, help="of each video")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    model = KeyeVL.from_pretrained(options.checkpoint, dtype=torch.float32, device=on(options.device)).eval()
    rows = json.loads(options.out.read_text(encoding="utf-8"))["rows"] if options.out.is_file() else []
    done = {Run(**{name: row[name] for name in Run.__dataclass_fields__}) for row in rows}
    for seed in options.seeds:
        for level in LEVELS:
            if (run := Run(seed, *level, options.videos, options.frames)) in done:
                continue
            rows.append(measure(model, run) | {"hardware": hardware(), "torch": torch.__version__})
            print(json.dumps(rows[-1]), flush=True)
            report(options.out, rows)


def report(path: Path, rows: list[dict]) -> None:
    """Write all that is known so far."""
    what = "k3 in nats a token between sampler and trainer whose choices noise turned, without and with replay"
    command = f"python -m minikeye.evaluation.rl_replay --out assets/results/{path.name}"
    where = "; ".join(sorted({row["hardware"] for row in rows}))
    write_result(path, what, command, rows, summarise(rows), sorted({row["seed"] for row in rows}), where=where)


if __name__ == "__main__":
    main()
