"""Checkpoints in the released layout: sharded safetensors, an index of them, config.json.

Module names are the released names, so a state dict is a checkpoint; what is left to do is shards, checks and
atomic writing. Released keys that are not part of the function are ignored by name, never in silence by pattern.
"""

import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from minikeye.config import KeyeConfig
from minikeye.memory import free_bytes, needs, require
from minikeye.model import KeyeVL
from minikeye.released import check_function, read_json

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# SigLIP's pooling head and rotary buffers: older releases carry them, the model never reads them.
IGNORED = re.compile(r"visual\.vision_model\.head\.|rotary_emb\.inv_freq$")
STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class CheckpointError(ValueError):
    """A checkpoint that does not hold exactly the model's tensors. The message lists every difference."""


def save(model: KeyeVL, folder: str | Path, max_shard_bytes: int = 5 * 2**30, dtype: torch.dtype | None = None) -> None:
    """Write config.json, safetensors shards of at most `max_shard_bytes` and their index.

    Everything is written beside the target and renamed at the end: a kill leaves the old folder or the new one (within
    the two renames that replace one, the old one under the name .NAME-old). Over an
    older checkpoint, its weights and config.json are replaced; its other files (tokenizer.json, notes) are kept.
    dtype: convert on writing. Raises CheckpointError for a tensor larger than a shard, FileExistsError for a folder
    that holds files but no config.json, where a checkpoint was hardly meant to go.
    """
    if not isinstance(model.model.layers, torch.nn.ModuleList):
        raise ValueError("a streamed model has no weights in memory to save: copy its folder")
    tensors = {n: t.detach().to("cpu", dtype or t.dtype).contiguous() for n, t in model.state_dict().items()}
    shards = plan_shards({n: t.numel() * t.element_size() for n, t in tensors.items()}, max_shard_bytes)
    target = Path(folder).resolve()  # a link stays a link to the new checkpoint
    if target.is_dir() and any(target.iterdir()) and not (target / "config.json").is_file():
        raise FileExistsError(f"{target} holds other files but no config.json: name a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        where = {}
        for n, names in enumerate(shards, 1):
            file = f"model-{n:05d}-of-{len(shards):05d}.safetensors"
            save_file({name: tensors[name] for name in names}, temporary / file, metadata={"format": "pt"})
            where |= dict.fromkeys(names, file)
        size = sum(t.numel() * t.element_size() for t in tensors.values())
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(where.items()))}
        (temporary / INDEX).write_text(json.dumps(index, indent=1) + "\n")
        (temporary / "config.json").write_text(json.dumps(model.config.to_dict(), indent=2) + "\n")
        _keep_other_files(target, temporary)
        _replace_folder(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def plan_shards(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """Names in order, cut into shards of at most `limit` bytes."""
    shards: list[list[str]] = [[]]
    room = limit
    for name, size in sizes.items():
        if size > limit:
            raise CheckpointError(f"{name} has {size} bytes, more than a shard of {limit}: allow larger shards")
        if size > room:
            shards.append([])
            room = limit
        shards[-1].append(name)
        room -= size
    return shards


def _keep_other_files(old: Path, new: Path) -> None:
    """Copy what is not part of a checkpoint, so that replacing the folder loses nothing."""
    for path in old.iterdir() if old.is_dir() else ():
        if path.name == "config.json" or re.fullmatch(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?", path.name):
            continue
        (shutil.copytree if path.is_dir() else shutil.copy2)(path, new / path.name)


def _replace_folder(new: Path, target: Path) -> None:
    """Swap the folders by renames; the old one goes only when the new one is in place."""
    if not target.exists():
        os.replace(new, target)
        return
    old = target.with_name(f".{target.name}-old")
    shutil.rmtree(old, ignore_errors=True)
    os.replace(target, old)
    try:
        os.replace(new, target)
    except BaseException:  # Ctrl-C too
        os.replace(old, target)
        raise
    shutil.rmtree(old)


def load(
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: str | torch.device | None = None,
    streaming: bool = False,
) -> KeyeVL:
    """The model in `folder`, or in the hub repository of that name, in eval mode. Three ways to hold it:

    - whole, on one device;
    - device="auto": the layers spread over all GPUs (`minikeye.devices`), whole where there is one or none;
    - streaming: weights stay in their files and are fetched layer by layer at every pass; the model's `read_log`, a
      `minikeye.streaming.ReadLog`, says what was read.

    dtype: of the weights in memory; default float32 on a CPU, as stored elsewhere. Raises FileNotFoundError where there
    is no checkpoint, CheckpointError listing all tensors that are missing, extra, misshapen or not float, ValueError
    for a device that is not there or a config.json of another function, NotEnoughMemory where the weights will not
    fit, with what would.
    """
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype must be a torch.dtype such as torch.bfloat16, or None; got {dtype!r}")
    devices = choose_devices(device, streaming)
    folder = local_folder(folder)
    config = KeyeConfig.from_folder(folder)
    check_function(folder, read_json(folder / "config.json"))
    with torch.device("meta"):
        model = KeyeVL(config)
    files = tensor_files(folder)
    check(folder, files, {n: tuple(t.shape) for n, t in model.state_dict().items()})
    files = {name: file for name, file in files.items() if not IGNORED.search(name)}
    dtype = dtype or default_dtype(folder, files, devices)
    bill = needs(config, context=1, dtype=dtype, streaming=streaming, device=devices[0])
    require(bill, sum(map(free_bytes, devices)), " + ".join(devices), ("weights",))
    if streaming:
        from minikeye.streaming import stream

        return stream(config, folder, files, torch.device(devices[0]), dtype)
    if len(devices) > 1:
        from minikeye.devices import split

        return split(model, folder, dtype)
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        with safe_open(folder / file, "pt", device=devices[0]) as shard:
            tensors |= {name: shard.get_tensor(name).to(dtype) for name in shard.keys() if name in files}  # noqa: SIM118
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
    with _open(folder / file) as shard:
        return STORED[shard.get_slice(name).get_dtype()]


def local_folder(name: str | Path, weights: bool = True) -> Path:
    """The folder itself, or the local copy of a hub repository, downloaded where it is not there yet.

    weights: whether the download needs them; a Processor does not. Raises FileNotFoundError for anything else.
    """
    if Path(name).is_dir():
        return Path(name)
    if isinstance(name, Path) or str(name).count("/") != 1:
        raise FileNotFoundError(f"no folder {name}: give a checkpoint folder or a hub id such as owner/name")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.jinja", *(["*.safetensors"] if weights else [])]
    return Path(snapshot_download(str(name), allow_patterns=patterns))


def tensor_files(folder: Path) -> dict[str, str]:
    """Which file holds which tensor, from the index or the single file."""
    if (folder / INDEX).is_file():
        try:
            files = dict(json.loads((folder / INDEX).read_text())["weight_map"].items())
            absent = sorted({file for file in files.values() if not (folder / file).is_file()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder / INDEX} is not a safetensors index: {error}") from error
        if absent:
            raise FileNotFoundError(f"{folder / INDEX} names files that are not there: {', '.join(absent)}")
        return files
    if (folder / SINGLE).is_file():
        with _open(folder / SINGLE) as shard:
            return dict.fromkeys(shard.keys(), SINGLE)
    raise FileNotFoundError(f"{folder} holds neither {INDEX} nor {SINGLE}: minikeye reads safetensors only")


def check(folder: Path, files: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> None:
    """Compare what the shards hold with what the model needs; one error for all differences. Reads headers only."""
    problems = []
    held = {}
    for file in sorted(set(files.values())):
        with _open(folder / file) as shard:
            for name in shard.keys():  # noqa: SIM118 (not a dict)
                tensor = shard.get_slice(name)
                held[name] = tuple(tensor.get_shape()), tensor.get_dtype(), file
    for name, shape in shapes.items():
        if name not in held:
            problems.append(f"missing: {name} {list(shape)}")
        elif held[name][0] != shape:
            problems.append(f"misshapen: {name} is {list(held[name][0])}, the config needs {list(shape)}")
        elif held[name][1] not in STORED:
            problems.append(f"wrong dtype: {name} is {held[name][1]}, expected F32, F16 or BF16")
        elif files.get(name) != held[name][2]:
            problems.append(f"misplaced: {name} is in {held[name][2]}, the index says {files.get(name)}")
    problems += [f"extra: {n} {list(s)}" for n, (s, *_) in held.items() if n not in shapes and not IGNORED.search(n)]
    if problems:
        shown = "\n  ".join(problems[:40]) + (f"\n  ... and {len(problems) - 40} more" if len(problems) > 40 else "")
        raise CheckpointError(f"{folder} does not hold this model; differences: {len(problems)}:\n  {shown}")


def _open(path: Path):
    try:
        return safe_open(path, "pt")
    except Exception as error:  # safetensors raises its own untyped errors for truncated and foreign files
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
