"""What further training changed of a checkpoint, alone in one file: python -m minikeye.checkpoint.changed BASE OUT FILE

An agent that left the experts as they were differs from its base in a third of the bytes. The file names its base by a
digest of all its tensors, so that it cannot be put over other weights in silence. Held in bfloat16.
"""

import argparse
import hashlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from minikeye.checkpoint.tensors import CheckpointError, open_shard, require_finite, tensor_files
from minikeye.files import file_in, whole_file
from minikeye.model.keye import KeyeModel


def save_changed(base: str | Path, tuned: str | Path, path: str | Path) -> list[str]:
    """Write to `path` the tensors of the folder `tuned` that differ, in bfloat16, from those of the folder `base`.

    Returns their names; a file that is there is replaced. Raises CheckpointError where the folders hold other names or
    shapes or what was tuned is not finite, ValueError where nothing differs; what `files.whole_file` raises.
    """
    old, new = _tensors(Path(base)), _tensors(Path(tuned))
    if {n: t.shape for n, t in old.items()} != {n: t.shape for n, t in new.items()}:
        raise CheckpointError(f"{tuned} holds other tensors than {base}: it was not made from it")
    names = sorted(name for name in old if not torch.equal(old[name], new[name]))
    if not names:
        raise ValueError(f"{tuned} equals {base} in bfloat16: there is nothing to keep")
    require_finite(Path(tuned), {name: new[name] for name in names})
    with whole_file(path) as part:
        metadata = {"format": "pt", "base": digest(old)}
        save_file({name: new[name] for name in names}, part, metadata=metadata)
        part.chmod(part.parent.stat().st_mode & 0o666)  # as readable as its folder: the library makes it 0600
    return names


@torch.no_grad()
def load_changed(model: KeyeModel, path: str | Path) -> None:
    """Put the tensors of a file by `save_changed` over a model that holds its base, in place, in the model's dtype.

    The model holds its weights in memory, in bfloat16 or float32. Nothing is changed where it raises: ValueError for
    another model, CheckpointError for a file that is none, is damaged, or belongs to other weights.
    """
    held = model.state_dict()
    if any(t.is_meta or t.dtype not in (torch.bfloat16, torch.float32) for t in held.values()):
        raise ValueError("expected a model in memory, in bfloat16 or float32: load it so, then what changed")
    with open_shard(Path(path)) as shard:
        base = (shard.metadata() or {}).get("base")
        new = {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 (not a dict)
    old = {name: held[name] for name in new if name in held}
    same = {n: t.shape for n, t in old.items()} == {n: t.shape for n, t in new.items()}
    if base is None or not same or digest(held) != base:
        raise CheckpointError(
            f"{path} was not taken from the weights that this model holds: load the checkpoint that it names, "
            f"as it lies on the disk, then this file"
        )
    require_finite(Path(path), new)
    for name, tensor in new.items():
        old[name].copy_(tensor)


def digest(tensors: dict[str, Tensor]) -> str:
    """SHA-256 over names and values in bfloat16, in the order of the names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].detach().to("cpu", torch.bfloat16).contiguous().view(torch.int16).numpy().tobytes())
    return found.hexdigest()


def _tensors(folder: Path) -> dict[str, Tensor]:
    """All of a folder, in bfloat16."""
    out: dict[str, Tensor] = {}
    for file in sorted(set(tensor_files(folder).values())):
        with open_shard(file_in(folder, file)) as shard:
            out |= {name: shard.get_tensor(name).bfloat16() for name in shard.keys()}  # noqa: SIM118 (not a dict)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", type=Path, help="folder of the checkpoint that training began with")
    parser.add_argument("tuned", type=Path, help="folder of what came out")
    parser.add_argument("file", type=Path, help="safetensors file to write")
    options = parser.parse_args()
    names = save_changed(options.base, options.tuned, options.file)
    print(f"{options.file}: {len(names)} tensors, {options.file.stat().st_size / 2**20:.1f} MiB")


if __name__ == "__main__":
    main()
