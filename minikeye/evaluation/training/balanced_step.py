"""A training step over ranks, with the tower's work as it was drawn and balanced: times, utilisation, bytes sent.

    NCCL_NVLS_ENABLE=0 torchrun --standalone --nproc-per-node 2 \\
        -m minikeye.evaluation.training.balanced_step --out balanced_step.json      # two H200, two minutes

The released tower and projector, learning, in float32 with products in bfloat16, which keep pixels alone ("chunks" of
`training.activations`); two decoder layers of released size behind them, with dense attention. A batch is one row of
32K tokens a rank, the first that `utilisation.batches` draws from each seed; pixels and words are random, the samples
of a row see each other. Forward and backward pass, no optimiser and no sum of gradients over ranks, which both ways
need alike. A row for each batch and way:

step_ms       of the slowest rank, from a common start; median of --timed steps after one to warm up
tower_ms      of each rank, its tower alone, forward and backward, measured inside those steps
measured      utilisation of the tower: mean over largest of tower_ms; predicted: of the plan's costs; flop: of
              operations
sent          bytes that each rank sent in a step, grids apart; formula: `bytes_sent`

Expected, before it was measured (two H200): 3.5 ms forward a frame of 1,008 patches, 14 ms with all that learning
takes; with the smaller frames that most batches have, 1.2 to 1.7 s for 96,000 to 130,000 patches a rank. The decoder
0.3 s, so a step of 1.6 to 2.0 s, 100 seconds in all. Seeds 0 to 4: utilisation 0.84 to 0.97 as drawn, 0.91 together
(0.92 by operations, p(p + 5.7d) where costs are p(p + 3d)), and 1.00 balanced; a step becomes 2 to 11 % shorter, 6 % in
the median. Sent: at most 0.28 GB of pixels (float32) and 0.53 GB in all, a few ms at 300 GB/s.
"""

import argparse
import os
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from math import isqrt
from pathlib import Path
from time import perf_counter

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from minikeye import KeyeConfig, KeyeVL
from minikeye.evaluation.training.utilisation import Mixture, Sample, batches, tower_loads
from minikeye.results import Row, begin_run
from minikeye.training.activations import keeping
from minikeye.training.parallel.balance import Plan, utilisation
from minikeye.training.parallel.exchange import balanced_tokens, bytes_sent, tied
from minikeye.training.parallel.wire import count_sent
from minikeye.training.stage import trainable
from minikeye.training.step import autocast, on

PART = "balanced_step"
COMMAND = f"torchrun --standalone --nproc-per-node 2 -m minikeye.evaluation.training.{PART}"
WAYS = {"drawn": "before", "balanced": "after"}  # and what `tower_loads` calls them


@dataclass(frozen=True)
class Sizes:
    config: KeyeConfig
    tokens: int  # of a rank's row
    answer: int  # tokens at its end that are learnt: logits of all would be 20 GB


def released(layers: int, tokens: int) -> Sizes:
    config = KeyeConfig.keye_vl_2_30b_a3b()
    return Sizes(replace(config, text=replace(config.text, layers=layers)), tokens, 1024)


def grid(patches: int, merge: int) -> tuple[int, int, int]:
    """A frame of so many patches, as square as can be: (1, rows, columns), multiples of `merge`."""
    tokens = patches // merge**2
    rows = next(n for n in range(isqrt(tokens), 0, -1) if tokens % n == 0)
    return 1, merge * rows, merge * (tokens // rows)


def row_inputs(row: list[Sample], config: KeyeConfig, device: torch.device, seed: int) -> dict[str, Tensor]:
    """Ids and positions of a row, frames before the text of each sample, and its pixels, all random."""
    draw, merge, side = torch.Generator().manual_seed(seed), config.vision.merge, config.vision.patch_size
    pieces = []
    for sample in row:
        visual = sum(sample.frames) // merge**2
        pieces += [torch.full((visual,), config.video_token_id)]
        pieces += [torch.randint(min(config.image_token_id, 1000), (sample.tokens - visual,), generator=draw)]
    ids = torch.cat(pieces)[None].to(device)
    grids = torch.tensor([grid(p, merge) for sample in row for p in sample.frames], dtype=torch.long).view(-1, 3)
    patches = torch.randn(int(grids.prod(dim=1).sum()), 3, side, side, device=device)
    positions = torch.arange(ids.shape[1], device=device).expand(3, 1, -1)
    return {"input_ids": ids, "positions": positions, "patches": patches, "grids": grids}


def step(model: KeyeVL, inputs: dict[str, Tensor], way: str, answer: int) -> None:
    """Forward and backward pass of this rank. "drawn": it runs the tower on its own frames, where it has any."""
    text = {name: inputs[name] for name in ("input_ids", "positions")}
    pixels, ids = (inputs["patches"], inputs["grids"]), inputs["input_ids"]
    answer = min(answer, ids.shape[1] - 1)
    with keeping(model.visual, "chunks"), autocast(model.device):
        tokens = None
        if way == "balanced":
            tokens = balanced_tokens(model, *pixels)
        elif len(pixels[1]):
            tokens = model.visual_tokens(*pixels)
        seen = {} if tokens is None or not len(tokens) else {"visual": tokens}
        logits = model(text | seen, attention="dense", last=answer + 1).logits
    loss = F.cross_entropy(logits[0, :-1], ids[0, -answer:])
    (tied(loss, tokens) if way == "balanced" else loss).backward()


@contextmanager
def tower_clock(model: KeyeVL) -> Iterator[Callable[[], float]]:
    """Inside the block, milliseconds that the tower took in the last step, both passes; 0 where it did not run.

    From its inputs to its output; from its output's gradient to that of its first weights, the last to get one. What a
    rank waits for lies outside of both.
    """
    cuda, marks = model.device.type == "cuda", {}

    def mark(name: str) -> None:
        marks[name] = torch.cuda.Event(enable_timing=True) if cuda else perf_counter()
        if cuda:
            marks[name].record()

    def begun(*_: object) -> None:
        marks.clear()
        mark("forward")

    def done(_module: object, _inputs: object, out: Tensor) -> None:
        mark("features")
        out.register_hook(lambda _: mark("backward"))

    def between(a: str, b: str) -> float:
        return marks[a].elapsed_time(marks[b]) if cuda else 1000 * (marks[b] - marks[a])

    first = model.visual.vision_model.embeddings.patch_embedding.weight
    hooks = [
        model.visual.register_forward_pre_hook(begun),
        model.visual.register_forward_hook(done),
        first.register_post_accumulate_grad_hook(lambda _: mark("end")),
    ]
    try:
        yield lambda: between("forward", "features") + between("backward", "end") if marks else 0.0
    finally:
        for hook in hooks:
            hook.remove()


def gathered(number: float, device: torch.device) -> list[float]:
    """The number of each rank. Nobody goes on before all have come."""
    own = torch.tensor([number], dtype=torch.float64, device=device)
    out = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(out, own)
    return [float(x) for x in out]


def measure(model: KeyeVL, batch: list[list[Sample]], way: str, sizes: Sizes, timed: int, seed: int) -> Row:
    """One row. Every rank calls it and gets the same."""
    rank, device, times, tower = dist.get_rank(), model.device, [], []
    inputs = row_inputs(batch[rank], sizes.config, device, 1000 * seed + rank)
    held = [[p for sample in row for p in sample.frames] for row in batch]
    plan, size = Plan.of(held, sizes.config.vision.width), 2 if device.type == "cuda" else 4
    with tower_clock(model) as clock:
        for _ in range(1 + timed):
            model.zero_grad()
            gathered(0.0, device)
            begun = perf_counter()
            with count_sent() as sent:
                step(model, inputs, way, sizes.answer)
            if device.type == "cuda":
                torch.cuda.synchronize()
            times.append(max(gathered(1000 * (perf_counter() - begun), device)))
            tower.append(gathered(clock(), device))
    tower_ms = [statistics.median(of) for of in zip(*tower[1:], strict=True)]
    loads, name = tower_loads(batch), WAYS[way]
    formula = bytes_sent(plan, rank, sizes.config, 4, learning=True, token_size=size) if way == "balanced" else 0
    return {
        "seed": seed, "way": way, "ranks": len(batch), "patches": [sum(frames) for frames in held],
        "step_ms": statistics.median(times[1:]), "tower_ms": [round(ms, 2) for ms in tower_ms],
        "measured": busy([tower_ms]), "predicted": utilisation([loads[name]]),
        "flop": utilisation([loads[f"flop_{name}"]]),
        "sent": [int(x) for x in gathered(sent.bytes, device)], "formula": [int(x) for x in gathered(formula, device)],
    }  # fmt: skip


def busy(steps: list[list[float]]) -> float:
    """`utilisation` of milliseconds."""
    return utilisation([[round(1000 * ms) for ms in ranks] for ranks in steps])


def summarise(rows: list[Row]) -> dict[str, float]:
    """By number of ranks R: utilisation over all batches, and the median and ends of the steps' ratio."""
    out: dict[str, float] = {}
    for ranks in sorted({row["ranks"] for row in rows}):
        by = {way: [row for row in rows if row["ranks"] == ranks and row["way"] == way] for way in WAYS}
        for way, name in WAYS.items():
            out[f"vit_utilisation_{name}_{ranks}"] = busy([row["tower_ms"] for row in by[way]])
        pairs = zip(by["balanced"], by["drawn"], strict=True)
        ratios = [balanced["step_ms"] / drawn["step_ms"] for balanced, drawn in pairs]
        ends = {"": statistics.median(ratios), "_low": min(ratios), "_high": max(ratios)}
        out |= {f"vit_balanced_step_ratio_{ranks}{name}": ratio for name, ratio in ends.items()}
    return {name: float(f"{value:.4g}") for name, value in out.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a JSON list of runs, to which this one is appended")
    parser.add_argument(
        "--batches", type=int, default=5, help="drawn, one a seed; those without a frame are passed over"
    )
    parser.add_argument("--timed", type=int, default=3, help="steps that are timed for each batch and way")
    parser.add_argument("--tokens", type=int, default=32_768, help="of a rank's row")
    parser.add_argument("--layers", type=int, default=2, help="of the decoder")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smoke", action="store_true", help="the smallest model, for CPUs")
    options = parser.parse_args()
    if "RANK" not in os.environ:
        parser.error(f"expected one process for each rank, got one without a rank: start it by `{COMMAND} --out FILE`")
    if min(options.batches, options.timed, options.layers) < 1 or options.tokens < 1024:
        parser.error("expected at least 1 batch, timed step and layer, and at least 1,024 tokens")
    device = on("cpu" if options.device == "cpu" else f"cuda:{os.environ['LOCAL_RANK']}")
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=timedelta(minutes=2))
    try:
        run(options, device)
    finally:
        dist.destroy_process_group()


def run(options: argparse.Namespace, device: torch.device) -> None:
    """All batches, both ways; rank 0 writes."""
    sizes = released(options.layers, options.tokens)
    if options.smoke:
        sizes = Sizes(KeyeConfig.nano(), options.tokens, 16)
    torch.manual_seed(0)
    with torch.device(device):
        model = KeyeVL(sizes.config)
    trainable(model)
    ranks, add = dist.get_world_size(), None
    if dist.get_rank() == 0:
        settings = {"ranks": ranks, **{n: x for n, x in vars(options).items() if n not in ("out",)}}
        add = begin_run(options.out, PART, COMMAND, settings)
    seed = done = 0
    while done < options.batches:
        batch = next(batches(Mixture(), ranks, sizes.tokens, seed))
        if any(sample.frames for row in batch for sample in row):
            done += 1
            for way in WAYS:
                row = measure(model, batch, way, sizes, options.timed, seed)
                if add is not None:
                    add(row)
                    print(row, flush=True)
        seed += 1


if __name__ == "__main__":
    main()
