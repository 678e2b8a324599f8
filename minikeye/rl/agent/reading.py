"""Passes over whole trajectories: their tokens as rows, and what stands for every placeholder among them.

A placeholder may stand anywhere, in the question or in what a tool has shown, and rows have as many as they have. So
positions are counted over the whole row, as `Prompt` counts them: what was drawn behind frames stands where it would
stand, had all been written at once. While only reward teaches, the tower is frozen, and frames that several rows share,
as the answers of a group do, are seen once.

Axes: n trajectory, t token, c column that predicts token c + 1, f frame, d width.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from minikeye.config import KeyeConfig
from minikeye.inference.generate import log_probabilities, sayable
from minikeye.inputs.pixels import patchify
from minikeye.inputs.positions import position_ids
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.keye import KeyeVL
from minikeye.model.step import Mode
from minikeye.rl.groups import Prompts
from minikeye.rl.record import Rollout
from minikeye.training.step import autocast

Frames = tuple[UInt8[Tensor, "_ 3 _ _"], ...]  # [f 3 height width] of each image and video of a conversation, in order


def rows(
    model: KeyeVL,
    rollouts: Sequence[Rollout],
    frames: Sequence[Frames],
    side: Literal["left", "right"],
    taught: bool = False,
) -> Prompts:
    """Inputs of a pass, a row for each trajectory, on the model's device: prompt, and all that was said and told.

    side: where padding goes. "left" to draw what comes next; "right" to learn, where causal attention never looks at
    it: there is no mask then. taught: with pixels, through which the tower learns, in the place of visual tokens.
    Raises ValueError where placeholders and frames of a row do not fit.
    """
    config, device = model.config, model.device
    filler = load_tokenizer(config).token_id("<|endoftext|>")
    t = max(len(r.prompt_ids) + len(r.completion_ids) for r in rollouts)
    ids = torch.full((len(rollouts), t), filler)
    positions, mask = (
        torch.zeros(3, len(rollouts), t, dtype=torch.long),
        torch.zeros(len(rollouts), t, dtype=torch.bool),
    )
    for n, (rollout, shown) in enumerate(zip(rollouts, frames, strict=True)):
        whole = (*rollout.prompt_ids, *rollout.completion_ids)
        place = slice(t - len(whole), t) if side == "left" else slice(0, len(whole))
        ids[n, place], mask[n, place] = torch.tensor(whole), True
        positions[:, n, place] = positions_of(whole, shown, config)
    inputs = {"input_ids": ids.to(device), "positions": positions.to(device)}
    if side == "left":
        inputs["attention_mask"] = mask.to(device)
    return inputs | (pixels(frames, config, device) if taught else seen(model, frames))


def positions_of(ids: Sequence[int], frames: Frames, config: KeyeConfig) -> Int[Tensor, "3 t"]:
    """Temporal, height and width position of every token. Raises ValueError for frames that are not those of `ids`."""
    visual = [token in (config.image_token_id, config.video_token_id) for token in ids]
    grids = [grid for shown in frames for grid in grids_of(shown, config)]
    count = sum(h * w for _, h, w in grids) // config.vision.merge**2
    if count != sum(visual):
        raise ValueError(
            f"expected frames for {sum(visual)} placeholders, got {len(grids)} frames of {count} visual tokens: give "
            f"those of the prompt and of every result, in order"
        )
    return position_ids(visual, grids, config.vision.merge)


def grids_of(frames: UInt8[Tensor, "f 3 height width"], config: KeyeConfig) -> list[tuple[int, int, int]]:
    """(1, rows, columns) of each frame, in patches."""
    size = config.vision.patch_size
    return [(1, frames.shape[2] // size, frames.shape[3] // size)] * len(frames)


def pixels(frames: Sequence[Frames], config: KeyeConfig, device: torch.device) -> Prompts:
    """Patches and grids of all rows' frames, in the order of their placeholders; nothing where there are none."""
    shown = [part for row in frames for part in row]
    if not shown:
        return {}
    patches = torch.cat([patchify(part.to(device), config.vision.patch_size) for part in shown])
    return {"patches": patches, "grids": torch.tensor([grid for part in shown for grid in grids_of(part, config)])}


@torch.no_grad()
def seen(model: KeyeVL, frames: Sequence[Frames]) -> Prompts:
    """The visual tokens of all rows' frames, in the order of their placeholders; nothing where there are none."""
    parts = {id(part): part for row in frames for part in row}  # those that several rows share are one tensor
    if not parts:
        return {}
    inputs = pixels([tuple(parts.values())], model.config, model.device)
    with autocast(model.device):
        tokens = model.visual_tokens(inputs["patches"], inputs["grids"])
    side = model.config.token_pixels
    counts = [len(part) * (part.shape[2] // side) * (part.shape[3] // side) for part in parts.values()]
    by_part: dict[int, Float[Tensor, "n d"]] = dict(zip(parts, tokens.split(counts), strict=True))
    return {"visual": torch.cat([by_part[id(part)] for row in frames for part in row])}


def drawn(rollouts: Sequence[Rollout], values: Literal["mask", "old_logprobs"]) -> Tensor:
    """Mask or log-probs of rows on the right side, as `logprobs` has them: column c belongs to token c + 1."""
    t = max(len(r.prompt_ids) + len(r.completion_ids) for r in rollouts)
    out = torch.zeros(len(rollouts), t, dtype=torch.bool if values == "mask" else torch.float32)
    for n, rollout in enumerate(rollouts):
        first = len(rollout.prompt_ids)
        out[n, first : first + len(rollout.completion_ids)] = torch.tensor(getattr(rollout, values)).to(out.dtype)
    return out[:, 1:]


def logprobs(
    model: KeyeVL, inputs: Prompts, mask: Bool[Tensor, "n c"], temperature: float = 1.0, attention: Mode = "dense"
) -> Float[Tensor, "n c"]:
    """Log-probability of every token but the first, given those before it, with gradients; 0 outside of `mask`.

    inputs: of `rows` on the right side.
    """
    with autocast(model.device):
        logits = model(inputs, attention=attention).logits[:, :-1]
    targets, wanted = inputs["input_ids"][:, 1:], mask.to(logits.device)
    out = torch.zeros(targets.shape, device=logits.device)
    told = sayable(logits[wanted], model.config)  # [tokens v]: of what is not learnt no softmax is taken
    out[wanted] = log_probabilities(told, targets[wanted], temperature)
    return out
