"""How much balancing over ranks can win: batches are drawn, loads added up before and after. No clock, no GPU.

The report (section 5.1) has about 20 % more throughput for both levels together, without its batches or its baseline.
This says how evenly ranks work in batches that are stated: where all wait for the slowest, a phase takes 1 /
utilisation of the time that it would take if all worked. It says nothing of how large a part of a step the phase is.
What is drawn matters more than anything else: the longer the texts, the more uneven the tower's work.

    python -m minikeye.evaluation.training.utilisation --ranks 2 4 8 --tokens 32768 65536 262144
"""

import argparse
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

from minikeye.config import KeyeConfig
from minikeye.cost.arithmetic import frame_vision_flops
from minikeye.inputs.sampling import sample
from minikeye.results import write_result
from minikeye.scores import student_mean
from minikeye.training.parallel.balance import Plan, assign, frame_costs, utilisation

PHASES = ("before", "after", "flop_before", "flop_after")
RELEASED = KeyeConfig.keye_vl_2_30b_a3b()


@dataclass(frozen=True)
class Sample:
    tokens: int  # of text and frames, for the decoder
    frames: tuple[int, ...] = ()  # patches of each frame, for the tower

    def cut(self, room: int) -> "Sample":
        """Its first `room` tokens at most: frames first, a frame whole or not at all, text at the end."""
        merge, frames, used = RELEASED.vision.merge**2, [], 0
        for patches in self.frames:
            if used + patches // merge > room:
                return Sample(used, tuple(frames))
            frames.append(patches)
            used += patches // merge
        return Sample(min(self.tokens, room), tuple(frames))


@dataclass(frozen=True)
class Mixture:
    """What samples are drawn from. Our choice: the report states none."""

    text_share: float = 0.5  # of samples without a video
    text_tokens: tuple[int, int] = (64, 8192)  # tokens of such a sample, log-uniform
    question: int = 128  # tokens of text beside a video
    seconds: tuple[int, int] = (5, 7200)  # of a video, log-uniform
    size: tuple[int, int] = (1280, 720)  # pixels of its frames
    fps: float = 30.0  # frames a second before sampling

    def draw(self, room: int, rng: random.Random) -> Sample:
        """One sample; a video is sampled as the released model does, within `room` tokens or its own budget."""
        if rng.random() < self.text_share:
            return Sample(int(_log_uniform(self.text_tokens, rng)))
        seconds, budget = _log_uniform(self.seconds, rng), min(RELEASED.video.video_tokens, room)
        video = replace(RELEASED.video, video_tokens=budget)
        seen = sample(seconds, self.fps, int(seconds * self.fps), self.size, video)
        count = len(seen.indices)
        patches = seen.frame_tokens * RELEASED.vision.merge**2
        return Sample(count * seen.frame_tokens + self.question, (patches,) * count)

    def row(self, room: int, rng: random.Random) -> list[Sample]:
        """Samples that fill `room` tokens; the last one is cut where the row ends."""
        samples, left = [], room
        while left:
            drawn = self.draw(room, rng).cut(left)
            if not drawn.tokens:  # a frame that does not fit: the rest stays empty
                break
            samples.append(drawn)
            left -= drawn.tokens
        return samples


def _log_uniform(ends: tuple[int, int], rng: random.Random) -> float:
    return math.exp(rng.uniform(math.log(ends[0]), math.log(ends[1])))


def tower_loads(batch: Sequence[Sequence[Sample]]) -> dict[str, list[int]]:
    """What the tower of each rank has to do in a step, for the samples that each rank drew.

    before: the frames of its own samples. after: those of the plan. Both as the plan counts, p(p + 3d); flop_before,
    flop_after: the same frames in the tower's multiplications and additions, which the plan does not go by. held,
    away: patches that the rank drew, and those of them that leave it.
    """
    plan = Plan.of([[p for s in samples for p in s.frames] for samples in batch], RELEASED.vision.width)
    merge = RELEASED.vision.merge**2
    cost = dict(zip(sizes := sorted(set(plan.patches)), frame_costs(sizes, RELEASED.vision.width), strict=True))
    flop = {p: frame_vision_flops(RELEASED, p // merge) for p in sizes}
    loads = {name: [0] * plan.ranks for name in (*PHASES, "held", "away")}
    for patches, home, work in zip(plan.patches, plan.home, plan.work, strict=True):
        loads["before"][home] += cost[patches]
        loads["after"][work] += cost[patches]
        loads["flop_before"][home] += flop[patches]
        loads["flop_after"][work] += flop[patches]
        loads["held"][home] += patches
        loads["away"][home] += patches * (home != work)
    return loads


def decoder_loads(batch: Sequence[Sequence[Sample]]) -> dict[str, list[int]]:
    """Tokens of the decoder of each rank in a step, before and after samples are assigned by their tokens."""
    tokens = [s.tokens for samples in batch for s in samples]
    after = [sum(tokens[n] for n in share) for share in assign(tokens, len(batch))]
    return {"before": [sum(s.tokens for s in samples) for samples in batch], "after": after}


def batches(mixture: Mixture, ranks: int, tokens: int, seed: int) -> Iterator[list[list[Sample]]]:
    """Without end, what each step draws for each rank: one row of `tokens` tokens. Every rank draws the same."""
    draw = random.Random(f"tower {ranks} {tokens} {seed}")
    while True:
        yield [mixture.row(tokens, draw) for _ in range(ranks)]


def tower(mixture: Mixture, ranks: int, tokens: int, steps: int, seed: int) -> dict[str, float]:
    """Level one: every rank has one row of `tokens` tokens a step. away: share of the patches that travel."""
    loads = [tower_loads(batch) for batch in islice(batches(mixture, ranks, tokens, seed), steps)]
    out = {name: utilisation([step[name] for step in loads]) for name in PHASES}
    return out | {"away": sum(sum(step["away"]) for step in loads) / sum(sum(step["held"]) for step in loads)}


def decoder(mixture: Mixture, ranks: int, tokens: int, steps: int, seed: int, samples: int = 8) -> dict[str, float]:
    """Level two: every rank has so many samples a step, none packed, each of at most `tokens` tokens."""
    draw = random.Random(f"decoder {ranks} {tokens} {seed}")

    def batch() -> list[list[Sample]]:
        return [[mixture.draw(tokens, draw).cut(tokens) for _ in range(samples)] for _ in range(ranks)]

    loads = [decoder_loads(batch()) for _ in range(steps)]
    return {name: utilisation([step[name] for step in loads]) for name in ("before", "after")}


def measure(mixture: Mixture, ranks: int, tokens: int, steps: int, seeds: Sequence[int]) -> list[dict]:
    """A row for each level: means over seeds, and the 95 % intervals of before and after."""
    rows = []
    for level, of in (("tower", tower), ("decoder", decoder)):
        drawn = [of(mixture, ranks, tokens, steps, seed) for seed in seeds]
        row = {"level": level, "ranks": ranks, "tokens": tokens, "steps": steps, **asdict(mixture)}
        for name in drawn[0]:
            estimate = student_mean([one[name] for one in drawn])
            row[name] = round(estimate.mean, 4)
            if name in ("before", "after") and len(seeds) > 1:
                row |= {f"{name}_low": round(estimate.low, 4), f"{name}_high": round(estimate.high, 4)}
        rows.append(row)
    return rows


def summarise(rows: list[dict]) -> dict[str, float]:
    """vit_ and lm_utilisation_{before, after}_RANKS_{TOKENS / 1024}k."""
    of = {"tower": "vit", "decoder": "lm"}
    return {
        f"{of[row['level']]}_utilisation_{when}_{row['ranks']}_{row['tokens'] // 1024}k": row[when]
        for row in rows
        for when in ("before", "after")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("assets/results/utilisation.json"))
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--tokens", type=int, nargs="+", default=[32_768, 65_536, 262_144], help="of a rank and step")
    parser.add_argument("--steps", type=int, default=50, help="drawn for each seed")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--text-share", type=float, default=Mixture.text_share, help="of samples without a video")
    parser.add_argument("--longest-text", type=int, default=Mixture.text_tokens[1], help="tokens of such a sample")
    options = parser.parse_args()
    if min(*options.ranks, options.steps, options.seeds) < 1 or min(options.tokens) < 1024:
        parser.error("expected at least 1 rank, step and seed, and at least 1,024 tokens")
    if not 0 <= options.text_share < 1 or options.longest_text < Mixture.text_tokens[0]:
        parser.error("expected a text share of 0 up to but not 1, and texts of at least 64 tokens")
    mixture = Mixture(options.text_share, (Mixture.text_tokens[0], options.longest_text))
    rows = []
    for tokens in options.tokens:
        for ranks in options.ranks:
            rows += measure(mixture, ranks, tokens, options.steps, range(options.seeds))
            print(*rows[-2:], sep="\n", flush=True)
    what = "how evenly ranks work on drawn batches, before and after balancing: modelled loads, no clock"
    command = "python -m minikeye.evaluation.training.utilisation"
    write_result(options.out, what, command, rows, summarise(rows), [*range(options.seeds)])


if __name__ == "__main__":
    main()
