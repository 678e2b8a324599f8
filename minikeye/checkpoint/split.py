"""A model split over several GPUs by layers, with the library accelerate: each device holds a stretch of the decoder.

The layers work one after the other, so this makes room and saves no time. accelerate plans the split, loads each weight
straight to its device, and moves what a layer is given to where the layer is. Each layer's cache grows on its device.
"""

from pathlib import Path

import torch
from accelerate import load_checkpoint_and_dispatch
from accelerate.utils import get_balanced_memory, infer_auto_device_map
from torch import nn

from minikeye.cost import scaled
from minikeye.cost.memory import NotEnoughMemory
from minikeye.model.keye import KeyeModel

WHOLE = ["VisionTower", "Projector", "DecoderLayer"]  # classes whose parts stay together
MaxMemory = dict[int | str, int | str]  # device number or "cpu" -> bytes, or text such as "70GB"


def plan(model: KeyeModel, dtype: torch.dtype, max_memory: MaxMemory | None = None) -> dict[str, int | str]:
    """Which module goes to which device: vision and embedding first, then stretches of layers, the head last.

    model: may be on the meta device. max_memory: what may be used of each device, weights alone: leave room for the
    cache. Default: all GPUs, the layers spread evenly. Raises NotEnoughMemory where the weights do not fit: nothing is
    put aside to disk or, unless max_memory names it, to main memory.
    """
    if max_memory is None:
        if not torch.cuda.device_count():
            raise ValueError("splitting needs at least one GPU, torch sees none: use device='cpu' or streaming=True")
        max_memory = {n: torch.cuda.mem_get_info(n)[0] for n in range(torch.cuda.device_count())}
    budget = get_balanced_memory(model, dict(max_memory), no_split_module_classes=WHOLE, dtype=dtype)
    where = infer_auto_device_map(model, dict(budget), no_split_module_classes=WHOLE, dtype=dtype)
    if outside := [name for name, device in where.items() if device not in max_memory]:
        weights = scaled(sum(p.numel() for p in model.parameters()) * dtype.itemsize, "B")
        devices = ", ".join(f"{name}: {room}" for name, room in max_memory.items())
        raise NotEnoughMemory(
            f"{weights} of weights do not fit on the devices ({devices}), whose first keeps one layer's size free: "
            f"{outside[0]} and what follows has no place. Use more devices, bfloat16, or streaming=True"
        )
    before_layers = {device_of(where, name) for name in ("visual", "mlp_AR", "model.embed_tokens")}
    if len(before_layers) > 1:
        raise NotEnoughMemory(
            f"vision tower, projector and embedding must be on one device, got {sorted(before_layers)}: "
            f"allow the first device more memory"
        )
    return dict(where)


def device_of(where: dict[str, int | str], module: str) -> int | str:
    """The device of a module under a plan, which may name one of the modules that it is part of."""
    return next(device for name, device in where.items() if not name or f"{module}.".startswith(f"{name}."))


def split(model: KeyeModel, folder: str | Path, dtype: torch.dtype, max_memory: MaxMemory | None = None) -> KeyeModel:
    """Load the checkpoint in `folder` into `model`, which is on the meta device, and split it over the devices.

    dtype: of the weights in memory. max_memory, errors: as in `plan`; names and shapes are not checked here, see
    `tensors.check`. Returns the model in eval mode; inputs may be on any device, logits come on the last one.
    """
    where = plan(model, dtype, max_memory)
    model = load_checkpoint_and_dispatch(model, str(folder), device_map=where, dtype=dtype, force_hooks=True)
    for layer in model.model.layers:
        if (device := next(layer.parameters()).device).type == "cuda":
            on_its_device(layer, device)
    return model.eval()


def on_its_device(layer: nn.Module, device: torch.device) -> None:
    """Make a layer's GPU the current one while it works: Triton launches kernels there, wherever the tensors are."""
    before: list[int] = []

    def enter(module: nn.Module, inputs: tuple) -> None:
        before.append(torch.cuda.current_device())
        torch.cuda.set_device(device)

    layer.register_forward_pre_hook(enter)
    # After an error as well, or what comes next would run on this device.
    layer.register_forward_hook(lambda *_: torch.cuda.set_device(before.pop()), always_call=True)
