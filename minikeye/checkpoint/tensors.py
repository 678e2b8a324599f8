"""Checkpoints in the released layout: sharded safetensors, an index of them, config.json.

Module names are the released names, so a state dict is a checkpoint; what is left to do is shards, checks and
whole writing. Released keys that are not part of the function are ignored by name, never in silence by pattern.
"""

import json
import re
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from minikeye.config import KeyeConfig
from minikeye.files import file_in, read_json, require_room, whole_folder
from minikeye.model.keye import KeyeModel

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# SigLIP's pooling head and rotary buffers: older releases carry them, the model never reads them.
IGNORED = re.compile(r"visual\.vision_model\.head\.|rotary_emb\.inv_freq$")
STORED = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


class CheckpointError(ValueError):
    """A checkpoint that does not hold exactly the model's tensors. The message lists every difference."""


def save(
    model: KeyeModel, folder: str | Path, max_shard_bytes: int = 5 * 2**30, dtype: torch.dtype | None = None
) -> None:
    """Write config.json, safetensors shards of at most `max_shard_bytes` and their index.

    Whole or not at all: see `files.whole_folder`. Over an older checkpoint, its weights and config.json are replaced;
    its other files (tokenizer.json, notes) are kept. dtype: convert on writing. Raises CheckpointError for a tensor
    larger than a shard, FileExistsError for a folder that holds files but no config.json, where a checkpoint was hardly
    meant to go, ValueError for a streamed model, OSError where the disk is too small.
    """
    if not isinstance(model.model.layers, torch.nn.ModuleList):
        raise ValueError("a streamed model has no weights in memory to save: copy its folder")
    tensors = {n: t.detach().to("cpu", dtype or t.dtype).contiguous() for n, t in model.state_dict().items()}
    size = {n: t.numel() * t.element_size() for n, t in tensors.items()}
    files = shard_files(size, max_shard_bytes)
    target = Path(folder)
    require_place(target, sum(size.values()))
    with whole_folder(target) as new:
        for file, names in files.items():
            save_shard({name: tensors[name] for name in names}, new / file)
        describe(new, target, model.config, files, size)


def shard_files(size: dict[str, int], limit: int) -> dict[str, list[str]]:
    """The shards of at most `limit` bytes that tensors of these sizes (bytes) go to: file name -> names of tensors.

    Raises CheckpointError for a tensor larger than a shard.
    """
    shards = plan_shards(size, limit)
    return {f"model-{n:05d}-of-{len(shards):05d}.safetensors": names for n, names in enumerate(shards, 1)}


def require_place(target: Path, size: int) -> None:
    """Raise FileExistsError or OSError, as `save`, where `size` bytes of a checkpoint cannot go to `target`."""
    if target.is_dir() and any(target.iterdir()) and not (target / "config.json").is_file():
        raise FileExistsError(f"{target} holds other files but no config.json: name a new folder")
    require_room(target, size)


def describe(new: Path, target: Path, config: KeyeConfig, files: dict[str, list[str]], size: dict[str, int]) -> None:
    """Write what stands beside the shards in the folder `new`, before it takes the place of `target`.

    The index, config.json, and the files of `target` that are no part of a checkpoint. files: `shard_files(size, ...)`.
    """
    where = {name: file for file, names in files.items() for name in names}
    index = {"metadata": {"total_size": sum(size.values())}, "weight_map": dict(sorted(where.items()))}
    (new / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    (new / "config.json").write_text(json.dumps(config.to_dict(), indent=2) + "\n", encoding="utf-8")
    _keep_other_files(target, new)


def save_shard(tensors: dict[str, Tensor], path: Path) -> None:
    """Write a safetensors file, as readable for others as the folder it lies in (the library makes it 0600)."""
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(path.parent.stat().st_mode & 0o666)


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


def tensor_files(folder: Path) -> dict[str, str]:
    """Which file of the folder holds which tensor, from the index or the single file.

    Raises FileNotFoundError where there is neither or a named file is absent, CheckpointError for an index that is none
    or names files in other places.
    """
    if (folder / INDEX).is_file():
        try:
            files = read_json(folder / INDEX)["weight_map"]
            absent = sorted({file for file in files.values() if not file_in(folder, file).is_file()})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{folder / INDEX} is not a safetensors index: {error}") from error
        if absent:
            raise FileNotFoundError(f"{folder / INDEX} names files that are not there: {', '.join(absent)}")
        return files
    if (folder / SINGLE).is_file():
        with open_shard(file_in(folder, SINGLE)) as shard:
            return dict.fromkeys(shard.keys(), SINGLE)
    raise FileNotFoundError(f"{folder} holds neither {INDEX} nor {SINGLE}: minikeye reads safetensors only")


def check(folder: Path, files: dict[str, str], shapes: dict[str, tuple[int, ...]]) -> None:
    """Compare what the shards hold with what the model needs; one error for all differences. Reads headers only.

    A tensor counts where the index says that it is; a copy of it in another shard is nobody's.
    """
    problems = []
    held: dict[str, tuple[tuple[int, ...], str, str]] = {}  # name -> shape, dtype, file
    for file in sorted(set(files.values())):
        with open_shard(folder / file) as shard:
            for name in shard.keys():  # noqa: SIM118 (not a dict)
                if name not in held or files.get(name) == file:
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
    strangers = sorted(files.keys() - held.keys() - shapes.keys())
    problems += [f"nowhere: {name:.200} is in no file, the index says {files[name]}" for name in strangers]
    if problems:
        shown = "\n  ".join(problems[:40]) + (f"\n  ... and {len(problems) - 40} more" if len(problems) > 40 else "")
        raise CheckpointError(f"{folder} does not hold this model; differences: {len(problems)}:\n  {shown}")


def require_finite(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Raise CheckpointError for weights with nan or an infinite number, which would answer all the same.

    One pass over each tensor and no copy of it: a fraction of what reading it from a disk takes.
    """
    if broken := [name for name, tensor in tensors.items() if not finite(tensor)]:
        dtype, more = tensors[broken[0]].dtype, f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise CheckpointError(
            f"{folder} holds weights that are nan or not finite as {dtype}: {', '.join(broken[:5])}{more}; "
            f"it is damaged, or needs a dtype with a larger range"
        )


def finite(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor are: its least and largest are, which both are nan where one number is."""
    return not tensor.numel() or all(bool(end.isfinite()) for end in tensor.aminmax())


def open_shard(path: Path):
    """A safetensors file, its header read. Raises CheckpointError for one that is none."""
    try:
        return safe_open(path, "pt")
    except Exception as error:  # safetensors raises its own untyped errors for truncated and foreign files
        raise CheckpointError(f"{path} is not a readable safetensors file: {error}") from error
