"""Checkpoints of many ranks: each writes what it holds of every tensor, and any number of ranks reads it.

By torch's distributed checkpoint: a folder NAME.dcp, where one process writes a file NAME.pt; either is read by one
process and by many. Whole or not at all: the folder has its name only when all ranks are done, until then the last one
is there. The folder must be one that all ranks see, as on a cluster's shared disk.

    save_model(out / "done.pt", model, {"stages": done}, ranks)       # every rank calls all of these
    about = load_model(out / "done.pt", model, ranks)                 # None where there is nothing yet
    export(model, out / "checkpoint", ranks, dtype=torch.bfloat16)    # the layout of `save_pretrained`
"""

import json
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, TypeVar
from zipfile import is_zipfile

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.tensor import DTensor, distribute_tensor

from minikeye.checkpoint.tensors import describe, require_place, save_shard, shard_files
from minikeye.files import local_folder, read_json, whole_file, whole_folder
from minikeye.keye import KeyeVL
from minikeye.training.parallel.mesh import ALONE, Ranks

ABOUT = "about.json"  # beside the tensors: what is no tensor
Result = TypeVar("Result")


def save_model(path: str | Path, model: KeyeVL, about: dict[str, Any], ranks: Ranks = ALONE) -> None:
    """Write a model and what is to be known about it (JSON's kinds, no key "model"): see the module.

    Raises OSError, on every rank, where one rank could not write; ValueError for what could not be read again.
    """
    path = Path(path)
    try:
        same = "model" not in about and json.loads(json.dumps(about)) == about
    except (TypeError, ValueError):
        same = False
    if not same:
        raise ValueError(f'expected text, numbers, lists and dicts of these, and no "model", got {about!r:.200}')
    if ranks.size == 1:
        with whole_file(path) as part:
            torch.save({"model": model.state_dict(), **about}, part)
        only(path, path)
    else:
        save_tensors(path, dict(model.state_dict()), about, ranks)


def load_model(path: str | Path, model: KeyeVL, ranks: Ranks = ALONE) -> dict[str, Any] | None:
    """Read what `save_model` wrote, in any number of processes, into the model; returns `about`, None without a file.

    Raises ValueError for the file of another model, and for one that is damaged.
    """
    if (found := last_written(Path(path), ranks)) is None:
        return None
    held = dict(model.state_dict())
    if found.is_dir():
        require_same(found, sizes(found), {n: t.shape for n, t in held.items()})
        return load_tensors(found, held)
    about = read_one(found, "model")
    whole = about.pop("model")
    require_same(found, {n: t.shape for n, t in whole.items()}, {n: t.shape for n, t in held.items()})
    for name, tensor in held.items():
        keep_part(tensor, whole[name])
    return about


def read_one(path: Path, *keys: str, mmap: bool = True) -> dict[str, Any]:
    """What one process wrote to a file, on the CPU. Raises ValueError where it is damaged, or has other keys."""
    wrong = f"{path} is damaged or not of this project: take it away to begin anew"
    if not is_zipfile(path):  # also one whose end is missing, of which torch says "invalid argument"
        raise ValueError(wrong)
    try:
        held = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except (RuntimeError, UnpicklingError) as error:
        raise ValueError(f"{wrong} ({error})") from error
    if not isinstance(held, dict) or not {*keys} <= held.keys():
        raise ValueError(f"{wrong} (expected {', '.join(keys)} in it)")
    return held


def export(
    model: KeyeVL,
    folder: str | Path,
    ranks: Ranks = ALONE,
    max_shard_bytes: int = 5 * 2**30,
    dtype: torch.dtype | None = None,
) -> None:
    """`model.save_pretrained(folder, max_shard_bytes, dtype)` of a model that is spread: the same files.

    Each rank writes files of its own. It holds one whole tensor on its device and the tensors of one file in memory,
    never the model (where that is more than one file). Raises what `save_pretrained` raises, on every rank.
    """
    if ranks.size == 1:
        model.save_pretrained(folder, max_shard_bytes, dtype)
        return
    held, target = model.state_dict(), Path(folder)
    size = {name: t.numel() * (dtype or t.dtype).itemsize for name, t in held.items()}
    files = shard_files(size, max_shard_bytes)
    first(ranks, lambda: require_place(target, sum(size.values())))
    with folder_of_all(target, ranks) as new:
        names = list(files)
        for begin in range(0, len(names), ranks.size):  # a file for each rank
            own: dict[str, Tensor] = {}
            for rank, file in enumerate(names[begin : begin + ranks.size]):
                for name in files[file]:
                    tensor = held[name]
                    tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor  # all ranks together
                    if rank == ranks.rank:
                        own[name] = tensor.detach().to("cpu", dtype or tensor.dtype).contiguous()
            if own:
                each(ranks, lambda own=own, file=names[begin + ranks.rank]: save_shard(own, new / file))
            else:
                each(ranks, lambda: None)
        first(ranks, lambda: describe(new, target, model.config, files, size))


def save_tensors(path: Path, tensors: dict[str, Tensor], about: dict[str, Any], ranks: Ranks) -> None:
    """Write NAME.dcp for `path` NAME.pt, of many ranks; a file NAME.pt goes afterwards. Raises as `save_model` does."""
    with folder_of_all(folder_for(path), ranks) as part:
        try:
            dcp.save(tensors, checkpoint_id=part)
        except CheckpointException as error:  # on every rank; no Exception, but nothing that should end Python either
            raise OSError(f"{folder_for(path)} was not written: {reasons(error)}") from error
        first(ranks, lambda: (part / ABOUT).write_text(json.dumps(about) + "\n", encoding="utf-8"))
    first(ranks, lambda: only(path, folder_for(path)))


def load_tensors(folder: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Fill tensors, or this rank's parts of them, from a folder by `save_tensors`; returns its `about`."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # alone, which is what was meant
        try:
            dcp.load(tensors, checkpoint_id=folder)
        except CheckpointException as error:
            raise OSError(f"{folder} could not be read: {reasons(error)}") from error
    return read_json(folder / ABOUT)


def sizes(folder: Path) -> dict[str, torch.Size]:
    """Names and shapes of the tensors in a folder by `save_tensors`. Raises ValueError for one that is none."""
    try:
        held = dcp.FileSystemReader(folder).read_metadata().state_dict_metadata
    except Exception as error:  # it is a pickle: what is wrong with one has no one type
        raise ValueError(f"{folder} holds no distributed checkpoint: {error}: remove it, or name another") from error
    return {name: entry.size for name, entry in held.items()}


def require_same(path: Path, found: dict[str, torch.Size], expected: dict[str, torch.Size]) -> None:
    """Raise ValueError where a checkpoint has not the names and shapes that are expected."""
    if found != expected:
        other = sorted(n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n))
        raise ValueError(
            f"{path} holds other parameters than those to train: it belongs to another stage or model "
            f"({len(other)} differ, first {other[0]})"
        )


@torch.no_grad()
def keep_part(tensor: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor, which every rank has, into one that may be spread: this rank's part of it."""
    if isinstance(tensor, DTensor):
        whole = distribute_tensor(whole, tensor.device_mesh, tensor.placements, src_data_rank=None)  # nothing is sent
    tensor.copy_(whole)


def folder_for(path: Path) -> Path:
    """Where many ranks write what one process writes to the file `path`."""
    return path.with_suffix(".dcp")


def last_written(path: Path, ranks: Ranks = ALONE) -> Path | None:
    """The file `path` or the folder of many ranks in its place, whichever was written last; None without either.

    There are both only where a run was killed before it removed the older one.
    """

    def look() -> Path | None:
        try:
            folder = local_folder(folder_for(path))  # also where a kill left it between two renames
        except FileNotFoundError:
            folder = None
        if folder is not None and not (folder / ABOUT).is_file():
            folder = None  # half removed
        if folder is None or not path.is_file():
            return path if path.is_file() else folder
        return path if path.stat().st_mtime_ns > (folder / ABOUT).stat().st_mtime_ns else folder

    return first(ranks, look)


def newest(folder: Path) -> Path | None:
    """The last whole state or model in a folder, of one process or of many; None where there is none."""
    spread = (p for p in folder.glob("*.dcp") if (p / ABOUT).is_file())
    states = [*spread, *(p for p in folder.glob("*.pt") if not p.stem.endswith(".failed"))]
    return max(states, key=lambda path: path.stat().st_mtime_ns, default=None)


def only(path: Path, written: Path) -> None:
    """Remove the older of the file `path` and the folder in its place, now that `written`, one of them, is whole."""
    if written != path:
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(folder_for(path), ignore_errors=True)


@contextmanager
def folder_of_all(path: Path, ranks: Ranks) -> Iterator[Path]:
    """`files.whole_folder` that all ranks fill: it takes its name when they are done, on one error on all it is gone.

    An error in the block has to be raised on every rank: see `each`.
    """
    with ExitStack() as stack:
        yield first(ranks, lambda: stack.enter_context(whole_folder(path)))
        first(ranks, stack.close)


def first(ranks: Ranks, work: Callable[[], Result]) -> Result:
    """What `work` gave on rank 0, which alone runs it, on all ranks. Raises as `each` does."""
    return each(ranks, lambda: work() if ranks.rank == 0 else None)[0]


def each(ranks: Ranks, work: Callable[[], Result]) -> list[Result]:
    """What `work` gave on each rank, on all of them. Where one raised, all raise its error: nobody waits for it."""
    if ranks.everyone is None:
        return [work()]
    error = own = None
    try:
        own = work()
    except Exception as caught:
        error = caught
    out: list[Any] = [None] * ranks.size
    told = own if error is None else f"{type(error).__name__}: {error}"
    dist.all_gather_object(out, (error is not None, told), group=ranks.everyone.get_group())
    if error is not None:
        raise error
    if failed := [f"rank {rank}: {told}" for rank, (bad, told) in enumerate(out) if bad]:
        raise OSError("; ".join(failed))
    return [value for _, value in out]


def reasons(error: CheckpointException) -> str:
    """What went wrong on which rank, in one line."""
    return "; ".join(f"rank {rank}: {cause[0]!r:.200}" for rank, cause in error.failures.items())
