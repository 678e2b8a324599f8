"""What a model needs in memory, against what is free: told before loading, refused with a remedy instead of dying.

Everything is arithmetic over the code's largest tensors, worked out for sparse attention without gradients. Weights and
cache are exact. Activations are an upper bound; tests/cost/test_memory.py holds it against what a process takes.

w: bytes of a number.
"""

import bisect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from minikeye.config import KeyeConfig
from minikeye.cost.arithmetic import parameters, scaled
from minikeye.model.cache import cache_bytes_per_token

CHUNK = 8192  # tokens that a layer, or patches that the vision tower, works on at a time; our choice
PARTS = ("weights", "cache", "activations")
# A slab of index scores and what selection keeps beside it. GPU: the torch backend's 2^26 scores with four more tensors
# of that size; the kernels stay far below (0.6 GB measured at 128K), and what they leave holds the projections that a
# fused decode step packs (1.23 GB of the released model). CPU: the same of 2^19 scores.
SLAB = {"cuda": 5 * 2**26 * 4, "cpu": 5 * 2**19 * 4}
SCRATCH = 32 * 2**20  # at most what matrix libraries keep for themselves; how much of it depends on the CPU
CGROUP = Path("/sys/fs/cgroup")


class NotEnoughMemory(MemoryError):
    """Less is free than the model needs. The message says how much is missing and what would fit."""


@dataclass(frozen=True)
class MemoryBill:
    """Bytes, by part."""

    weights: int
    cache: int  # keys, values and index keys of all tokens
    activations: int  # the most that is alive at once while a prompt is read
    asked: Mapping[str, Any]  # the arguments of `needs`, from which other bills are worked out

    @property
    def total(self) -> int:
        return self.weights + self.cache + self.activations

    def instead(self, **changes: Any) -> "MemoryBill":
        """The bill for other arguments of `needs`."""
        return needs(**{**self.asked, **changes})

    def format_line(self) -> str:
        """The bill in one line."""
        parts = ", ".join(f"{part} {scaled(getattr(self, part), 'B')}" for part in PARTS)
        return f"{scaled(self.total, 'B')} for {self.asked['context']:,} tokens: {parts}"


def needs(
    config: KeyeConfig,
    *,
    context: int,
    dtype: torch.dtype,
    batch: int = 1,
    streaming: bool = False,
    device: torch.device | str = "cpu",
    visual: int | None = None,
    chunk: int = CHUNK,
) -> MemoryBill:
    """What it takes at most, on any CPU, to read `batch` prompts of `context` tokens and to answer, in bytes.

    The bill does not know the CPU: whose libraries keep no scratch memory takes less, by up to SCRATCH.

    context: tokens of a row, prompt and answer. dtype: of weights, cache and activations. streaming: decoder layers
    come from disk, at most three are held. visual: visual tokens of a row; default: the worst case, as many as the
    video budget of the config allows in that context. chunk: tokens of a row that a layer works on at a time.
    Raises ValueError for numbers below 1 and for a device other than a CPU or a CUDA GPU.
    """
    asked = dict(locals())
    kind = torch.device(device).type
    if min(context, batch, chunk) < 1 or kind not in SLAB or (visual is not None and not 0 <= visual <= context):
        raise ValueError(
            f"expected context, batch and chunk of at least 1, visual between 0 and context, on cpu or cuda; got "
            f"{context}, {batch}, {chunk}, {visual}, on {kind}"
        )
    visual = min(context, config.video.video_tokens) if visual is None else visual
    decoder = _decoder_bytes(config, context, batch, min(chunk, context), dtype.itemsize)
    pixels, tower = _vision_bytes(config, visual * batch, dtype.itemsize)
    return MemoryBill(
        weights=_weight_bytes(config, context * batch, dtype.itemsize, streaming),
        cache=sum(cache_bytes_per_token(config, dtype)) * context * batch,
        # Frames are seen before the decoder starts; their pixels stay with the inputs.
        activations=pixels + max(tower, decoder + SLAB[kind]) + SCRATCH,
        asked=asked,
    )


def _weight_bytes(config: KeyeConfig, tokens: int, w: int, streaming: bool) -> int:
    """All parameters. When streaming, embedding rows that are looked up, and the largest that is held at once: three
    decoder layers as stored, in 16 bits; or tower, projector or head, the pages of the file and what is made of them.
    """
    held, text = parameters(config), config.text
    if not streaming:
        return held.total * w
    layers = held.attention + held.indexer + held.router + held.experts + held.norms  # the last norm is small change
    three = 2 * -(-3 * layers // max(3, text.layers))
    return min(tokens, text.vocab) * text.width * w + max(three, (2 + w) * max(held.vision, held.projector, held.head))


def _decoder_bytes(config: KeyeConfig, context: int, batch: int, chunk: int, w: int) -> int:
    """The residual stream of the whole prompt, before and after a layer; of one chunk, attention or experts."""
    text, index = config.text, config.indexer
    heads, turned = text.heads * text.head_width, 2 * w + 12  # rotation: x and its half turn, three float32 products
    attention = heads * (turned + 3 * w) + 4 * text.kv_heads * text.head_width * w  # q, output, norm; k and v
    attention += index.heads * index.width * (turned + 8) + 8 * index.topk
    # A copy of the token for each chosen expert: its product, also in float32 and weighted; gate, up, what they give.
    # (Fused kernels take more tokens at once and less for each than attention does of as many: they set no bound.)
    copies = text.experts_per_token * (text.width * (8 if w == 4 else w + 8) + 3 * text.expert_width * w)
    experts = copies + text.width * (4 + 4 * w) + 12 * text.experts  # the chunk before, between and after; their sum
    layer = chunk * (3 * text.width * w + attention), min(chunk * batch, CHUNK) * experts
    rotations = 8 * (text.head_width + index.width)  # cos and sin, float32
    return batch * context * (3 * text.width * w + rotations) + max(batch * layer[0], layer[1]) + 8 * batch * text.vocab


def _vision_bytes(config: KeyeConfig, visual: int, w: int) -> tuple[int, int]:
    """Pixels of all frames; and the most that tower and projector hold beside them."""
    see, text = config.vision, config.text
    if see is None:
        return 0, 0
    patches, pixels = visual * see.merge**2, 3 * see.patch_size**2
    features = patches * see.width * w
    one_pass = min(patches, CHUNK) * w * (2 * see.mlp_width + 6 * see.width)
    tower = 2 * features + one_pass + (patches * pixels * w if w != 4 else 0)
    projector = 4 * features + visual * text.width * w  # features, normalised, two hidden tensors; the visual tokens
    return patches * pixels * 4, max(tower, projector) if visual else 0


# -------------------------------------------------------------------------------------------------------- what is free


def free_bytes(device: torch.device | str = "cpu") -> int:
    """What this process can still take: of a GPU's memory, or of main memory without swapping.

    A GPU's includes what torch holds back for later tensors; main memory is at most what a container may still use.
    Raises ValueError for a device that is neither a CPU nor a CUDA GPU that is there.
    """
    device = torch.device(device)
    if device.type == "cpu":
        return min([psutil.virtual_memory().available, *_container_room()])
    if device.type != "cuda" or not torch.cuda.is_available():
        raise ValueError(f"expected cpu or a CUDA device that torch can see, got {device}")
    return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _container_room() -> list[int]:
    """Bytes left below the limit of a container (cgroup v2); empty where there is none. Cached files can make room."""
    limit = CGROUP / "memory.max"
    if not limit.is_file() or limit.read_text(encoding="utf-8").strip() == "max":
        return []
    held = dict(line.split() for line in (CGROUP / "memory.stat").read_text(encoding="utf-8").splitlines())
    used = int((CGROUP / "memory.current").read_text(encoding="utf-8")) - int(held.get("inactive_file", 0))
    return [max(0, int(limit.read_text(encoding="utf-8")) - used)]


def require(bill: MemoryBill, free: int, where: str, parts: tuple[str, ...] = PARTS) -> None:
    """Raise NotEnoughMemory where `parts` of the bill are more than `free` bytes, with remedies that would fit.

    where: the device, for the message. parts: what is still to come. At loading that may be the weights alone; later,
    without them, they count as held already.
    """
    wanted = sum(getattr(bill, part) for part in parts)
    if wanted <= free:
        return
    counted = ", ".join(f"{part} {scaled(getattr(bill, part), 'B')}" for part in parts)
    tokens = f" for {bill.asked['context']:,} tokens" if parts != ("weights",) else ""
    room, all_of = (free, parts) if "weights" in parts else (free + bill.weights, PARTS)
    raise NotEnoughMemory(
        f"{where} has {scaled(free, 'B')} free, {scaled(wanted, 'B')} are needed{tokens} ({counted}). "
        f"What would fit: {'; '.join(_remedies(bill, room, all_of)) or 'nothing but a device with more memory'}"
    )


def _remedies(bill: MemoryBill, room: int, parts: tuple[str, ...]) -> list[str]:
    """Other ways to hold the model in `room` bytes: whole, or else with fewer tokens."""
    asked, half = bill.asked, {"dtype": torch.bfloat16}
    ways: dict[str, dict[str, Any]] = {"": {}}
    if asked["batch"] > 1:
        ways["one row at a time"] = {"batch": 1}
    if asked["dtype"].itemsize > 2:
        ways["dtype=torch.bfloat16"] = half
    if not asked["streaming"]:
        ways["streaming=True"] = {"streaming": True}
        if asked["dtype"].itemsize > 2:
            ways["streaming=True and dtype=torch.bfloat16"] = {"streaming": True, **half}
    fit = []
    for name, changes in ways.items():
        other = bill.instead(**changes)
        tokens = fitting_context(other, room, parts)
        if tokens == asked["context"]:
            fit.append(f"{name} ({scaled(sum(getattr(other, part) for part in parts), 'B')})")
        elif tokens and parts != ("weights",):
            fit.append(f"{name}{' with ' * bool(name)}at most {tokens:,} tokens")
    if torch.device(asked["device"]).type == "cuda" and torch.cuda.device_count() > 1:
        fit.append("device='auto', which splits the layers over all GPUs")
    return fit


def fitting_context(bill: MemoryBill, room: int, parts: tuple[str, ...] = PARTS) -> int:
    """The longest context up to the bill's for which `parts` are at most `room` bytes; 0 where none is.

    Visual tokens, where they were stated, keep their share of the context.
    """
    context, visual = bill.asked["context"], bill.asked["visual"]

    def fits(tokens: int) -> bool:
        less = bill.instead(context=tokens, visual=None if visual is None else visual * tokens // context)
        return sum(getattr(less, part) for part in parts) <= room

    return bisect.bisect_left(range(1, context + 1), True, key=lambda tokens: not fits(tokens))


def format_table(rows: Mapping[str, tuple[MemoryBill, int]]) -> str:
    """Bills against what is free, one named way a line."""
    table = [["", *PARTS, "total", "free", ""]]
    for name, (bill, free) in rows.items():
        sizes = [scaled(n, "B") for n in (bill.weights, bill.cache, bill.activations, bill.total, free)]
        table.append([name, *sizes, "fits" if bill.total <= free else "does not fit"])
    widths = [max(len(line[n]) for line in table) for n in range(7)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:6], widths[1:6]), line[6]]).rstrip()
        for line in table
    )
