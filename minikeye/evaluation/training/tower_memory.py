"""Memory against time: what the released tower keeps for its backward pass, in each way of `training.activations`.

    python -m minikeye.evaluation.training.tower_memory --out tower_memory.json      # one H200, 80 seconds

450 M parameters in float32 with their gradients, random weights, products in bfloat16; frames of 28 x 36 patches and
one picture of 128 x 128, passes of 8,192 patches. A row for each number of frames and way:

held_gib      between forward and backward pass, on the GPU, the output not counted; on a CPU 0
counted_gib   what autograd says that it keeps (`count_kept`); formula_gib: `kept_bytes`. Both with the pixels, which
              held_gib leaves out where they are the caller's own (chunks)
peak_gib      of both passes, above parameters, gradients, pixels and the output's gradient
ms, ratio     of both passes, median of 5 after 2 to warm up (3 where one takes longer than 0.7 s); ratio: to "all"

A row that ran out of memory says so in did_not_run. offload is left out where the host's memory would exceed
--host-gib: torch's pinned copies take the next power of two, up to twice the bytes, and memory is slow to get.

Expected, before it was measured (H200): a patch keeps 1.28 MB by "all", so 10.4, 39 and 155 GiB for 8, 32 and 128
frames, of which the last does not fit; 20 GiB for the picture. layers: 131 kB a patch, so 1.0, 3.9 and 15.7 GiB, and
about 0.5 GiB for the layer at work. chunks: 0.3 GiB at most, but a peak of one pass, 10.4 GiB, whatever the number of
frames; nothing won for the picture, which is one pass. Time: 0.96 TFLOP forward a frame, about 3.5 ms; both passes
11 ms; a third more for layers and chunks. offload: 10 GiB each way at 50 GB/s, not hidden: 0.4 s on top of 0.09 s for 8
frames.
"""

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import torch

from minikeye import KeyeConfig
from minikeye.config import VisionConfig
from minikeye.evaluation.kernels.decoding import seconds_of
from minikeye.evaluation.training.sparse_step import free, gib
from minikeye.model.vision import VisionTower
from minikeye.results import Row, begin_run
from minikeye.training.activations import Keeping, count_kept, keeping, kept_bytes
from minikeye.training.step import autocast, on

PART = "tower_memory"
COMMAND = f"python -m minikeye.evaluation.training.{PART}"
WAYS: tuple[Keeping, ...] = get_args(Keeping)
LONG = 0.7  # seconds


@dataclass(frozen=True)
class Frames:
    count: int
    rows: int  # of patches
    columns: int

    @property
    def patches(self) -> int:
        return self.count * self.rows * self.columns


SIZES = (Frames(8, 28, 36), Frames(32, 28, 36), Frames(128, 28, 36), Frames(1, 128, 128))
SMOKE = (Frames(2, 4, 6), Frames(4, 4, 6), Frames(1, 8, 8))


def random_tower(config: KeyeConfig, device: torch.device) -> VisionTower:
    """A tower with gradients that are there already."""
    with torch.device(device):
        tower = VisionTower(config.vision)
    for p in tower.parameters():
        if p.requires_grad:
            p.grad = torch.zeros_like(p)
    return tower


def host_bytes(config: VisionConfig, frames: Frames, passes: int) -> int:
    """What "offload" may take of the host's memory: all, with weights once a pass, in powers of two."""
    weights = kept_bytes(config, 0, 0, "all", autocast=True)
    return 2 * (kept_bytes(config, frames.patches, frames.count, "all", autocast=True) + (passes - 1) * weights)


def measure(
    tower: VisionTower, config: VisionConfig, frames: Frames, way: Keeping, device: torch.device, host_gib: float
) -> Row:
    """One row, without its ratio."""
    a_pass = max(1, tower.chunk_patches // (frames.rows * frames.columns))
    passes = -(-frames.count // a_pass)
    row = {"frames": frames.count, "patches": frames.patches, "way": way, "passes": passes}
    row["formula_gib"] = kept_bytes(config, frames.patches, frames.count, way, device.type == "cuda") / 2**30
    needed = host_bytes(config, frames, passes) / 2**30
    if way == "offload" and needed > host_gib:
        return row | {"did_not_run": f"may take {needed:.0f} GiB of the host, --host-gib is {host_gib:g}"}
    try:
        return row | cost(tower, frames, way, device)
    except RuntimeError as error:  # of the GPU, or of the host's pinned memory, which has no error of its own
        if "out of memory" not in str(error):
            raise
        return row | {"did_not_run": str(error)[:200]}
    finally:
        free()


def cost(tower: VisionTower, frames: Frames, way: Keeping, device: torch.device) -> Row:
    """Memory of a forward and a backward pass, then their milliseconds."""
    side = tower.patch_size
    patches = torch.randn(frames.patches, 3, side, side, device=device)
    grids = torch.tensor([(1, frames.rows, frames.columns)] * frames.count)
    # Random: products of zeros are faster, on a card whose clock follows its power.
    gradient = torch.randn(frames.patches, tower.vision_model.post_layernorm.normalized_shape[0], device=device)

    def forward() -> torch.Tensor:
        with keeping(tower, way), autocast(device):
            return tower(patches, grids)

    free()
    before = gib(device)
    with count_kept(tower) as kept:
        out = forward()
    held = gib(device) - before - (out.nbytes / 2**30 if device.type == "cuda" else 0)
    out.backward(gradient)
    memory = {"held_gib": held, "counted_gib": kept.total / 2**30, "peak_gib": gib(device, peak=True) - before}
    del out
    warm = [seconds_of(lambda: forward().backward(gradient), device) for _ in range(2)]
    runs = 5 if warm[1] < LONG else 3
    ms = 1000 * statistics.median(seconds_of(lambda: forward().backward(gradient), device) for _ in range(runs))
    return memory | {"ms": ms, "runs": runs}


def rows(config: KeyeConfig, sizes: tuple[Frames, ...], device: torch.device, host_gib: float) -> Iterator[Row]:
    """Every size in every way."""
    torch.manual_seed(0)
    tower = random_tower(config, device)
    for frames in sizes:
        whole = None
        for way in WAYS:
            row = measure(tower, config.vision, frames, way, device, host_gib)
            whole = row.get("ms") if way == "all" else whole
            yield row | ({"ratio": row["ms"] / whole} if whole and "ms" in row else {})


def summarise(rows: list[Row]) -> dict[str, float]:
    """Of the most frames that "all" has room for: peaks above parameters and gradients, and the time of "chunks"."""
    whole = max((r for r in rows if r["way"] == "all" and "ms" in r), key=lambda r: r["frames"])
    again = next(r for r in rows if r["way"] == "chunks" and r["frames"] == whole["frames"])
    return {
        "vit_frames_kept": float(whole["frames"]),
        "vit_gib_kept": whole["peak_gib"],
        "vit_gib_recomputed": again["peak_gib"],
        "vit_recompute_time_ratio": again["ratio"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="a JSON list of runs, to which this one is appended")
    parser.add_argument("--host-gib", type=float, default=32.0, help="memory of the host that offload may take")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smoke", action="store_true", help="a tiny tower, for a CPU")
    options = parser.parse_args()
    device = on(options.device)
    config = KeyeConfig.nano() if options.smoke else KeyeConfig.keye_vl_2_30b_a3b()
    settings = {"host_gib": options.host_gib, "smoke": options.smoke, "device": device.type}
    add = begin_run(options.out, PART, COMMAND, settings)
    for row in rows(config, SMOKE if options.smoke else SIZES, device, options.host_gib):
        add(row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
