"""What one pass of the model is given, checked and completed: ids, positions, padding, pixels or visual tokens.

Axes: b batch, t query position, d width, p patch, f frame, n visual token, s side of a patch in pixels.
Whatever does not fit is a ValueError here, before any layer runs.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minikeye.config import KeyeConfig
from minikeye.model.cache import Cache
from minikeye.model.step import MODES, Observer
from minikeye.ops.torch_selection import readable


@dataclass(frozen=True)
class Batch:
    """The inputs of one pass. Of pixels (patches with grids) and visual tokens there is one or neither."""

    ids: Int[Tensor, "b t"]
    positions: Int[Tensor, "3 b t"]  # time, row, column
    offset: int  # tokens that a cache holds: the absolute position of the first id
    start: Int[Tensor, " b"] | None  # first real token of each row; None: no padding
    placeholders: Bool[Tensor, "b t"]  # which tokens stand for a visual token
    patches: Float[Tensor, "p 3 s s"] | None = None  # pixels in [-1, 1]
    grids: Int[Tensor, "f 3"] | None = None  # (1, rows, columns) of every image and frame, in patches
    visual: Float[Tensor, "n d"] | None = None  # visual tokens, where the tower has run before

    @classmethod
    def of(cls, inputs: Mapping[str, Any], config: KeyeConfig, cache: Cache | None = None) -> "Batch":
        """Read `inputs` as `KeyeModel.forward` describes them. Raises ValueError, naming what does not fit."""
        ids = token_ids(inputs, config, cache)
        offset = cache.length if cache is not None else 0
        if offset + ids.shape[1] > config.text.max_positions:
            raise ValueError(
                f"{offset + ids.shape[1]} tokens exceed the context of {config.text.max_positions}: "
                f"sample fewer frames or fewer tokens per frame"
            )
        start = first_tokens(inputs.get("attention_mask"), ids, cache)
        positions = _positions(inputs, ids, cache, start)
        placeholders = is_visual(ids, config)
        patches, grids, visual = (inputs.get(name) for name in ("patches", "grids", "visual"))
        if config.vision is None and any(z is not None for z in (patches, grids, visual)):
            raise ValueError("this model has no vision tower and reads text alone: leave out patches, grids and visual")
        if (patches is None) != (grids is None) or (patches is not None and visual is not None):
            got = [name for name in ("patches", "grids", "visual") if inputs.get(name) is not None]
            raise ValueError(f"expected pixels or visual tokens, got {got}: pass patches and grids, or visual alone")
        if patches is not None and not patches.is_floating_point():
            raise ValueError(
                f"inputs['patches'] must be float in [-1, 1], got {patches.dtype}: pixels.patchify makes it"
            )
        if visual is not None and not (
            visual.is_floating_point() and visual.ndim == 2 and visual.shape[1] == config.text.width
        ):
            raise ValueError(
                f"inputs['visual'] must be [n, {config.text.width}] float, one row a placeholder, as `visual_tokens` "
                f"gives them; got {list(visual.shape)} {visual.dtype}"
            )
        if patches is None and visual is None and readable(ids) and bool(placeholders.any()):
            count = int(placeholders.sum())
            raise ValueError(f"{count} image or video placeholders but no patches: pass patches and grids, or visual")
        return cls(ids, positions, offset, start, placeholders, patches, grids, visual)


def is_visual(ids: Int[Tensor, "b t"], config: KeyeConfig) -> Bool[Tensor, "b t"]:
    """Which tokens are placeholders of visual tokens."""
    return (ids == config.image_token_id) | (ids == config.video_token_id)


def check_options(
    attention: str,
    record: bool | int,
    observer: Observer | None,
    last: int | None,
    chunk: int | None,
    recompute: bool,
    cache: Cache | None,
    learning: bool,
) -> None:
    """Raise ValueError for options that do not exist or exclude each other. learning: gradients are wanted."""
    if (chunk is not None and chunk < 1) or (last is not None and last < 1) or record < 0:
        raise ValueError(f"chunk, last and record must be at least 1 token, got {chunk}, {last} and {record}")
    if chunk is not None and learning:
        raise ValueError("chunks cannot be learnt from, later ones read a cache: use torch.no_grad(), or no chunk")
    if recompute and (cache is not None or chunk is not None):
        raise ValueError("recompute runs layers twice, and a cache or chunks would be written twice: leave them out")
    if attention not in MODES:
        raise ValueError(f"attention must be one of {', '.join(MODES)}; got {attention!r}")
    if record and observer is not None:
        raise ValueError("record and observer exclude each other: Recorder is an observer, pass one that does both")


def token_ids(inputs: Mapping[str, Any], config: KeyeConfig, cache: Cache | None = None) -> Int[Tensor, "b t"]:
    """The ids of `inputs`, checked. Raises ValueError for what is none, and for rows the cache does not have."""
    ids = inputs.get("input_ids")
    if not isinstance(ids, Tensor) or ids.ndim != 2 or ids.dtype not in (torch.int32, torch.int64) or not ids.numel():
        got = f"{ids.dtype} {list(ids.shape)}" if isinstance(ids, Tensor) else type(ids).__name__
        raise ValueError(f"inputs['input_ids'] must be a non-empty int tensor [b t], got {got}")
    low, high = (int(n) for n in ids.aminmax()) if readable(ids) else (0, 0)
    if low == -1:
        raise ValueError("input_ids hold -1, which marks a row that has ended: such rows cannot go on with others")
    if low < 0 or high >= config.text.vocab:
        raise ValueError(
            f"input_ids must lie in 0..{config.text.vocab - 1}, got {low}..{high}: use this model's tokenizer"
        )
    if cache is not None and cache.length and cache.batch != len(ids):
        raise ValueError(f"the cache holds a batch of {cache.batch}, got {len(ids)}: start a new cache")
    if cache is not None and cache.spoilt_from is not None:
        raise ValueError(
            f"rows of this cache ended at different steps and cannot go on together: cut it to {cache.spoilt_from} "
            f"tokens with truncate, or start a new cache"
        )
    return ids


def first_tokens(mask: Tensor | None, ids: Tensor, cache: Cache | None) -> Int[Tensor, " b"] | None:
    """Position of each row's first real token; None where no row is padded. Padding must be on the left."""
    if mask is not None and (mask.shape != ids.shape or mask.is_floating_point() or mask.is_complex()):
        raise ValueError(f"attention_mask must be bool or int {list(ids.shape)}, got {mask.dtype} {list(mask.shape)}")
    if cache is not None and cache.length:
        if mask is not None and not bool(mask.all()):
            raise ValueError(
                "a cache that holds tokens goes on without padding: give each row equally many new tokens, or start a "
                "new cache"
            )
        return cache.start
    if mask is None or bool(mask.all()):
        return None
    mask = mask.to(ids.device).bool()
    start = (~mask).sum(dim=1)
    padded_left = torch.arange(ids.shape[1], device=ids.device) >= start[:, None]
    if not torch.equal(mask, padded_left) or not bool(mask[:, -1].all()):
        raise ValueError(
            "attention_mask must be with False only on the left and at least one True a row, got rows that are padded "
            "elsewhere or empty: pad with Processor.batch; rows padded on the right, as for learning, need no mask"
        )
    return start


def _positions(
    inputs: Mapping[str, Any], ids: Tensor, cache: Cache | None, start: Tensor | None
) -> Int[Tensor, "3 b t"]:
    """Those that are given, held against the cache; for text alone the running index."""
    positions, held = inputs.get("positions"), cache is not None and cache.length > 0
    if positions is None and held and cache.next_position is None:
        raise ValueError(
            "the cache was cut short: pass positions [3 b t], Processor and positions.position_ids make them"
        )
    if positions is None and (inputs.get("patches") is not None or inputs.get("visual") is not None):
        raise ValueError(
            "inputs with patches or visual need 3D positions [3 b t]: Processor and positions.position_ids make them"
        )
    if positions is None:
        first = cache.next_position if held else torch.zeros(len(ids), dtype=torch.long)
        first = first.to(ids.device) - (start if start is not None and not held else 0)
        run = (first[:, None] + torch.arange(ids.shape[1], device=ids.device)).clamp(min=0)
        return run.expand(3, -1, -1)
    if tuple(positions.shape) != (3, *ids.shape):
        raise ValueError(f"positions must be [3, {ids.shape[0]}, {ids.shape[1]}], got {list(positions.shape)}")
    positions = positions.to(ids.device)
    if held and cache.next_position is not None:
        follows = cache.next_position.to(ids.device)
        if not bool((positions[:, :, 0] == follows).all()):
            raise ValueError(
                f"the cache goes on at positions {follows.tolist()}, got {positions[0, :, 0].tolist()}: leave "
                f"positions out for text, or count on from there"
            )
    return positions
