"""Do many processes learn what one does? python -m minikeye.evaluation.training.parallel_equal --out FILE

Three steps of each stage by one process, by two that share the samples, every row, or the experts, and by four that
share rows and experts, on a CPU in float32: the largest difference of a loss and of a parameter, and whether sparse
attention selects the same keys bit for bit. Batches are uneven on purpose: three rows of several lengths, then text
alone, then a single row.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.minivid.lessons import Lessons, Size
from minikeye.model.step import AttentionTrace
from minikeye.results import Row, begin_run
from minikeye.training.loop import LoopConfig
from minikeye.training.packing import apart
from minikeye.training.parallel.mesh import ALONE, Ranks, add_arguments, join, spread
from minikeye.training.parallel.samples import Batch, Part
from minikeye.training.parallel.wire import all_gather
from minikeye.training.pretrain.documents import Kind
from minikeye.training.pretrain.mixture import Mixture, packed
from minikeye.training.pretrain.order import ORDER
from minikeye.training.stage import STAGES, teach
from minikeye.training.tower import teach_tower

PART = "parallel_equal"
COMMAND = f"python -m minikeye.evaluation.training.{PART}"
# Processes, ep, cp.
WAYS = {"samples": (2, 1, 1), "context": (2, 1, 2), "experts": (2, 2, 1), "experts, context": (4, 2, 2)}
# Adam makes steps of about the learning rate out of gradients of any size, and where one is hardly more than rounding,
# that of rounding: a parameter may differ by a share of a step.
LEARNING = LoopConfig(steps=3, lr=1e-4, warmup=0, log_every=1)
KINDS = ("plain", "packed")
LEARNT = STAGES | {"projector": ORDER["projector"].stage}
CASES = [(stage, kind) for stage in ("dense", "warmup", "sparse") for kind in KINDS]
CASES += [("projector", "shown"), ("tower", "5"), ("tower", "1")]
WHEN, SUM = Kind("when", 4), Kind("sum")
MIXTURES = (Mixture(((WHEN, 0.8), (SUM, 0.2))), Mixture(((SUM, 1.0),)), Mixture(((WHEN, 1.0),)))
ROOM, TOKENS = 101, (270, 60, 80)  # of a packed row; of a packed batch


def lessons(kind: str, config: KeyeConfig, step: int) -> Iterator[Batch]:
    """Batches from that step on. "plain": padded rows of a video each; "packed": several documents in a row.

    "shown": as plain, two single videos in the place of text, from which a projector learns nothing.
    """
    sizes = Size(4, 3, 28, 56, 2), Size(0, 3, turns=1), Size(5, 1, 56, 56, 1)
    sizes = sizes if kind != "shown" else (sizes[0], sizes[2], sizes[2])
    if kind in ("plain", "shown"):
        made = Lessons(config, lambda n: sizes[n], range(3), seed=4)
        yield from (made[n] for n in range(step, 3))
    else:
        yield from (packed(MIXTURES[n], config, 4, n, TOKENS[n], ROOM) for n in range(step, 3))


def begin(ranks: Ranks) -> KeyeVL:
    torch.manual_seed(3)
    model = KeyeVL(KeyeConfig.nano())
    spread(model, ranks)
    return model


def three_steps(ranks: Ranks, stage: str, kind: str) -> tuple[list[dict], dict[str, Tensor]]:
    """Log lines of three steps, and the parameters after them, whole. Every rank calls it.

    stage: a name of LEARNT, or "tower", whose kind is the number of stills a step.
    """
    model = begin(ranks)
    if stage == "tower":
        lines = teach_tower(model, LEARNING, int(kind), None, ranks=ranks)
    else:
        lines = teach(model, LEARNT[stage], LEARNING, partial(lessons, kind, model.config), None, ranks=ranks)
    whole = {n: p.full_tensor() if isinstance(p, DTensor) else p for n, p in model.named_parameters()}
    return lines, {n: p.detach() for n, p in whole.items()}


@dataclass
class Selections:
    """An observer: the keys that every query reads, of each layer."""

    found: list[Tensor] = field(default_factory=list)

    def attention(self, layer: int, trace: AttentionTrace) -> None:
        self.found.append(trace.indices)

    def routing(self, layer: int, probabilities: Tensor, chosen: Tensor) -> None:
        """Not asked for."""


@torch.no_grad()
def selections(ranks: Ranks, kind: str) -> Tensor:
    """Keys that sparse attention selects for every token of the first batch, [layer b s k].

    All ranks share the rows.
    """
    model, watch = begin(ranks), Selections()
    lesson, rows = next(lessons(kind, model.config, 0)), torch.zeros(1, dtype=torch.long)
    if ranks.size == 1:
        inputs = lesson.inputs(model.config, "cpu")
        with apart(model, inputs.get("start"), "masked") as mode:
            model(inputs, attention=mode, observer=watch)
        return torch.stack(watch.found)
    part = Part.of(lesson.tokens, rows, ranks)
    part.read(model, part.inputs(lesson, rows, model.config, "cpu"), "masked", watch)
    shares = all_gather(torch.stack(watch.found), ranks.group("context"))  # [ranks layer b t k]
    return torch.cat(list(shares), dim=2)[:, :, part.zigzag.inverse()]


def cases(ep: int) -> list[tuple[str, str]]:
    """Stages and batches to play. Experts neither know stages nor batches: with ep > 1, one of each."""
    return CASES if ep == 1 else [("dense", "plain"), ("warmup", "plain"), ("sparse", "packed")]


def found_by(ranks: Ranks) -> dict[tuple[str, str], tuple]:
    """What these processes found in every case. The parameters are whole on each rank."""
    found = {case: three_steps(ranks, *case) for case in cases(ranks.along("experts")[1])}
    if ranks.size == 1 or ranks.along("context")[1] == ranks.size:
        found |= {("selections", kind): (selections(ranks, kind),) for kind in KINDS}
    return found


Found = tuple[list[dict], dict[str, Tensor]]  # of `three_steps`


def apart_by(one: Found, many: Found) -> dict[str, float]:
    """The largest difference of a loss, of a gradient's norm by its size, and of a parameter.

    Raises ValueError for other names.
    """
    (lines, parameters), (others, spread_out) = one, many
    if parameters.keys() != spread_out.keys() or [line.keys() for line in lines] != [line.keys() for line in others]:
        raise ValueError("expected the same parameters and log lines: play the same case")
    pairs, apart = list(zip(lines, others, strict=True)), ("step", "seconds", "norm")
    return {
        "losses": max(abs(a[n] - b[n]) for a, b in pairs for n in a if n not in apart),
        "norms": max(abs(a["norm"] - b["norm"]) / a["norm"] for a, b in pairs),
        "parameters": max(float((p - spread_out[n]).abs().max()) for n, p in parameters.items()),
    }


def summarise(rows: list[Row]) -> dict[str, float]:
    """The largest differences of all cases; 1 where sparse attention over shared rows chose the same keys, else 0."""
    steps = [row for row in rows if "losses" in row]
    out = {f"{name}_max_difference": max(row[name] for row in steps) for name in ("losses", "norms", "parameters")}
    return out | {"cp_selection_equal": int(all(row["selections_equal"] for row in rows if "losses" not in row))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        help="a JSON list of runs, to which this one is appended; of a rank, a folder",
    )
    add_arguments(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ranks = join("cpu", options.ep, options.cp)
    if ranks.size > 1:
        torch.save(found_by(ranks), options.out / f"{ranks.rank}.pt")
        dist.destroy_process_group()
        return
    add, one = begin_run(options.out, PART, COMMAND, {}), found_by(ALONE)
    for way, (processes, ep, cp) in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
            command += [str(processes), "-m", f"minikeye.evaluation.training.{PART}", "--out", folder]
            subprocess.run([*command, "--ep", str(ep), "--cp", str(cp)], check=True)
            many = torch.load(Path(folder) / "0.pt")
        for stage, kind in cases(ep):
            add({"way": way, "stage": stage, "batches": kind} | apart_by(one[stage, kind], many[stage, kind]))
        for case in (case for case in many if case[0] == "selections"):
            equal = torch.equal(one[case][0], many[case][0])
            add({"way": way, "stage": "sparse", "batches": case[1], "selections_equal": equal})


if __name__ == "__main__":
    main()
