"""Teaching the vision tower on its own: what is on a still, from labels that minivid knows.

The report's tower comes pre-trained (SigLIP). Ours starts from nothing, and the answer loss would reach it through one
frame in many: without this stage digits stay at chance. Our choice.
"""

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method

from minikeye.keye import KeyeVL
from minikeye.minivid.dataset import make_stills
from minikeye.minivid.drawing.things import KINDS
from minikeye.minivid.lessons import pixels
from minikeye.minivid.scene import PLAIN, Difficulty
from minikeye.training.loop import LoopConfig, train
from minikeye.training.parallel.mesh import ALONE, Ranks, sharded
from minikeye.training.parallel.samples import whole
from minikeye.training.stage import trainable
from minikeye.training.step import EagerStep, autocast, stepper

# Height and width of the stills in pixels, in turn: what frames between 1:2 and 3:1 are resized to (sampling.py).
SIDES = ((56, 56), (56, 84), (28, 112), (56, 56), (84, 56), (56, 112), (56, 56), (112, 56))


class LabelHead(nn.Module):
    """Which digit and which things are on a still, from the mean of its patch features. Thrown away after the stage."""

    def __init__(self, width: int):
        super().__init__()
        self.digit, self.things = nn.Linear(2 * width, 11), nn.Linear(2 * width, len(KINDS))

    def loss(self, features: Tensor, digit: Tensor, things: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """features [n p d]: mean and maximum over patches; digit [n], 10 for none; things bool [n kinds]."""
        pooled = torch.cat((features.mean(dim=1), features.amax(dim=1)), dim=-1)
        logits = self.digit(pooled)
        seen = F.binary_cross_entropy_with_logits(self.things(pooled), things.float())
        right = (logits.argmax(dim=-1) == digit).float().mean()
        return F.cross_entropy(logits, digit) + 4 * seen, {"digit": right, "things": seen.detach()}


def teach_tower(
    model: KeyeVL,
    config: LoopConfig,
    stills: int,
    folder: Path | None,
    sides: tuple[tuple[int, int], ...] = SIDES,
    difficulties: tuple[Difficulty, ...] = (PLAIN,),
    make: Callable[..., tuple[Tensor, Tensor, Tensor]] | None = None,
    name: str = "tower",
    ranks: Ranks = ALONE,
) -> list[dict[str, float | int]]:
    """Train the tower and a throw-away head on `stills` fresh images a step; returns the log.

    sides: heights and widths in pixels, in turn. difficulties: of the stills; the next one after each round of the
    sides, so that every difficulty comes in every shape. make: makes them; None: `make_stills`. folder, name: as in
    `train`. ranks: the processes that share the images; the model is `spread` over them, and so is the head.
    """
    device = model.device
    head = LabelHead(model.config.vision.width).to(device)
    if ranks.everyone is not None:
        sharded(head, ranks.everyone)
        register_fsdp_forward_method(head, "loss")
    parameters = trainable(model, lambda name: name.startswith("visual."))
    parameters |= {f"head.{n}": p for n, p in head.named_parameters()}

    def loss(inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        with autocast(device):
            features = model.visual(inputs["patches"], inputs["grids"])
        features = features.unflatten(0, (len(inputs["digit"]), -1)).float()
        return head.loss(features, inputs["digit"], inputs["things"])  # in float32

    learnt = list(parameters.values())
    # A rank's stills are equally large, so it takes a run of them; with none it looks at the first, for nothing.
    first, last = (n * stills // ranks.size for n in (ranks.rank, ranks.rank + 1))
    own, share = slice(first, last) if last > first else slice(1), (last - first) / stills
    part = lambda inputs: scaled(*loss(inputs), share)  # noqa: E731
    run = EagerStep(part, learnt) if ranks.size > 1 else stepper(device)(loss, learnt)

    def backward_at(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        height, width = sides[step % len(sides)]
        difficulty = difficulties[step // len(sides) % len(difficulties)]
        made = (make or make_stills)(1, step, stills, "train", height, width, device, difficulty)
        frames, digit, things = made if ranks.size == 1 else (x[own] for x in made)
        return whole(*run(pixels(frames, model.config) | {"digit": digit, "things": things}), ranks)

    return train(parameters, backward_at, config, folder, name, ranks)


def scaled(loss: Tensor, numbers: dict[str, Tensor], share: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Means over a rank's stills -> its parts of the means over all, of which it has that share."""
    return loss * share, {name: x * share for name, x in numbers.items()}
