"""From a checkpoint's folder to a model, held in one of three ways: whole, split over GPUs, streamed from its files."""

from pathlib import Path
from typing import TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from minikeye.checkpoint.tensors import IGNORED, STORED, check, open_shard, require_finite, tensor_files
from minikeye.config import KeyeConfig
from minikeye.cost.memory import free_bytes, needs, require
from minikeye.files import local_folder, read_json
from minikeye.inputs.settings import check_function
from minikeye.model.keye import KeyeModel

Model = TypeVar("Model", bound=KeyeModel)


def load(
    kind: type[Model],
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    streaming: bool = False,
) -> Model:
    """The model in `folder`, or in the hub repository of that name, in eval mode. Three ways to hold it:

    - whole, on one device;
    - device="auto": the layers spread over all GPUs (`minikeye.checkpoint.split`), whole where there is one or none;
    - streaming: weights stay in their files and are fetched layer by layer at every pass; the model's `read_log`, a
      `streaming.ReadLog`, says what was read.

    kind: the class to build; `KeyeVL.from_pretrained` gives its own. dtype: of the weights in memory; default float32
    on a CPU, as stored elsewhere. Raises FileNotFoundError where there is no checkpoint, CheckpointError listing all
    tensors that are missing, extra, misshapen or not float, or that hold nan or infinite numbers (when streaming: at
    their first use), ValueError for a device that is not there or a config.json
    of another function, NotEnoughMemory where the weights will not fit, with what would.
    """
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype must be a torch.dtype such as torch.bfloat16, or None; got {dtype!r}")
    devices = choose_devices(device, streaming)
    folder = local_folder(folder)
    config = KeyeConfig.from_folder(folder)
    check_function(folder, read_json(folder / "config.json"))
    if (streaming or len(devices) > 1) and (config.vision is None or config.text.tied):
        raise ValueError(f"{folder} has no tower or a tied head: such a model is held whole, name one device")
    with torch.device("meta"):
        model = kind(config)
    files = tensor_files(folder)
    check(folder, files, {n: tuple(t.shape) for n, t in model.state_dict().items()})
    files = {name: file for name, file in files.items() if not IGNORED.search(name)}
    dtype = dtype or default_dtype(folder, files, devices)
    bill = needs(config, context=1, dtype=dtype, streaming=streaming, device=devices[0])
    require(bill, sum(map(free_bytes, devices)), " + ".join(devices), ("weights",))
    if streaming:
        from minikeye.checkpoint.streaming import stream

        return stream(model, folder, files, torch.device(devices[0]), dtype)
    if len(devices) > 1:
        from minikeye.checkpoint.split import split

        model = split(model, folder, dtype)
        require_finite(folder, dict(model.named_parameters()))
        return model
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        with safe_open(folder / file, "pt", device=devices[0]) as shard:
            held = [name for name in shard.keys() if files.get(name) == file]  # noqa: SIM118 (not a dict)
            tensors |= {name: shard.get_tensor(name).to(dtype) for name in held}
    require_finite(folder, tensors)
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def choose_devices(device: str | torch.device | None, streaming: bool = False) -> tuple[str, ...]:
    """ "auto": every GPU, one when streaming, the CPU where there is none. ValueError for one that is not there."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        return tuple(f"cuda:{n}" for n in range(1 if streaming else gpus)) if gpus else ("cpu",)
    device = torch.device(device or "cpu")
    if device.type == "cuda" and (device.index or 0) >= gpus:
        raise ValueError(f"device {str(device)!r} was asked for, but torch sees {gpus or 'no'} GPU: use device='cpu'")
    return (str(device),)


def default_dtype(folder: Path, files: dict[str, str], devices: tuple[str, ...]) -> torch.dtype:
    """Of the weights in memory where none is asked for: float32 on a CPU, elsewhere that of the folder's first tensor.

    files: as of `tensor_files`. Released checkpoints have one dtype throughout.
    """
    if devices == ("cpu",):
        return torch.float32
    name, file = next(iter(files.items()))
    with open_shard(folder / file) as shard:
        return STORED[shard.get_slice(name).get_dtype()]
