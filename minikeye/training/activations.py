"""What the tower keeps from its forward pass for its backward pass: all, little, or nothing on the GPU.

Axes: p patch, s side of a patch, f frame, d width, e head width.
Report, section 5.1: "recompute-or-offload" brings the tower's activations to nearly zero; it does not say how. Four
ways, from outside: the model knows nothing of them. Gradients are the same bits. A frozen tower keeps nothing whatever
the way (`rl.learn.with_visual_tokens`: its tokens are computed once for all answers of a group).

    with keeping(model.visual, "chunks"):
        loss = ...      # the backward pass may run after the block
    loss.backward()
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial, wraps
from typing import Literal, get_args

from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu, saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from minikeye.config import VisionConfig
from minikeye.model.vision import VisionTower

Keeping = Literal["all", "layers", "chunks", "offload"]


@contextmanager
def keeping(tower: VisionTower, way: Keeping | str) -> Iterator[None]:
    """Forward passes of the tower inside the block keep what `way` says. Afterwards the tower is as it was.

    all: everything, as without this. layers: each layer's input; the backward pass runs each layer again. chunks: the
    pixels; it runs the whole tower again, a pass of `tower.chunk_patches` at a time, which is exact because frames
    never meet. Its peak is what one pass keeps by "all": to lower it, lower `chunk_patches`. offload: everything, in
    the memory of the host; copies weights as well, once a pass, and waits for each copy (torch's `save_on_cpu`).
    Works on a tower that is one unit of `fully_shard`. Raises ValueError for another way, and inside another block
    for the same tower.
    """
    if way not in get_args(Keeping):
        raise ValueError(f"expected one of {', '.join(get_args(Keeping))}, got {way!r}")
    whole, layers = tower.vision_model, [*tower.vision_model.encoder.layers]
    if any(hasattr(module.forward, "keeps") for module in (whole, *layers)):
        raise ValueError("expected a tower that keeps all, got one inside another `keeping`: leave that block first")
    modules = {"all": [], "layers": layers}.get(way, [whole])
    around = _offloaded if way == "offload" else _recomputed
    before = [vars(module).get("forward") for module in modules]
    try:
        for module in modules:
            module.forward = around(module.forward)
            module.forward.keeps = way
        yield
    finally:
        for module, forward in zip(modules, before, strict=True):
            vars(module).pop("forward", None)
            if forward is not None:  # somebody else's, who came first
                module.forward = forward


def _recomputed(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The same function, which keeps its inputs alone. The tower draws nothing, so no random state is kept either."""
    return wraps(forward)(partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False))


def _offloaded(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(forward)
    def run(x: Tensor, *rest: object) -> Tensor:
        with save_on_cpu(pin_memory=x.is_cuda):
            return forward(x, *rest)

    return run


@dataclass
class Kept:
    """What passes have kept for their backward passes, each storage once: bytes by the address of the storage."""

    storages: dict[int, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        return sum(self.storages.values())


@contextmanager
def count_kept(module: nn.Module) -> Iterator[Kept]:
    """Counts what passes inside the block keep on their device, parameters of `module` apart. Holds nothing itself.

    What the passes return must be held until `total` is read: an address is used again once its tensor is gone.
    """
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept = Kept()

    def note(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in own:
            kept.storages[storage.data_ptr()] = storage.nbytes()
        return x.detach()  # not x: an output that its own node keeps would never be freed without a backward pass

    with saved_tensors_hooks(note, lambda x: x):
        yield kept


def kept_bytes(config: VisionConfig, patches: int, frames: int, way: Keeping, autocast: bool) -> int:
    """What a tower that learns keeps, in bytes, for float32 weights and pixels; with `autocast`, products in bfloat16.

    patches: of all `frames` together. Of a patch in float32, d the width, m the MLP's, h heads, e channels of a head:

    all       588 numbers of pixels; 2e of cos and sin; a layer: 9d + 2m (inputs of both norms, their outputs, q, k, v,
              what attention gives and its copy; before and after the activation), h + 4 of statistics; d + 2 behind
    layers    588; 2e; d for the input of each layer; d + 2 behind
    chunks    588, and three integers of 8 bytes a frame
    offload   nothing on the device

    With autocast norms stay in float32, what enters a product is in bfloat16, and q, k, v each keep a copy of their
    input (11d); the products' weights come on top, once, in bfloat16. Fused attention without a mask is assumed.
    """
    d, m, layers = config.width, config.mlp_width, config.layers
    pixels = 3 * config.patch_size**2
    if way == "offload":
        return 0
    if way == "chunks":
        return patches * 4 * pixels + frames * 3 * 8
    size = 2 if autocast else 4  # bytes of a number that enters a product
    shared = size * pixels + 4 * (2 * config.head_width + d + 2)
    weights = pixels * d
    layer = 4 * d
    if way == "all":
        layer = 4 * (2 * d + config.heads + 4) + size * ((9 if autocast else 7) * d + 2 * m)
        weights += layers * (4 * d * d + 2 * d * m)
    return patches * (shared + layers * layer) + (2 * weights if autocast else 0)
