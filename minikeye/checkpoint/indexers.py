"""The indexers of a retrofit alone: a folder of files that are put over a model which others trained.

    save_indexers(model, folder, length)
    model = load_gguf(KeyeVL, path, read_indexer(folder)); load_indexers(model, folder)

bfloat16, in safetensors files of at most 16 MiB. The folder names the weights it was taught on by a digest, so that it
cannot be put over others in silence.
"""

import json
import re
from dataclasses import asdict, fields
from pathlib import Path

import torch
from torch import Tensor

from minikeye.checkpoint.changed import digest
from minikeye.checkpoint.tensors import INDEX, CheckpointError, open_shard, plan_shards, require_finite, save_shard
from minikeye.checkpoint.tensors import tensor_files as files_of
from minikeye.config import IndexerConfig
from minikeye.config_json import check_value
from minikeye.files import file_in, read_json, whole_folder
from minikeye.model.keye import KeyeModel

SETTINGS = "indexer.json"  # the numbers of the indexer, and whose indexers these are
LARGEST = 16 * 2**20  # bytes of a file
OURS = re.compile(rf"{re.escape(SETTINGS)}|{re.escape(INDEX)}|indexers-\d+-of-\d+\.safetensors")


def save_indexers(model: KeyeModel, folder: str | Path, length: int, note: str = "") -> None:
    """Write the model's indexers in bfloat16. A folder of them is replaced.

    length: tokens of the longest text they were taught on; beyond it they may choose badly. note: how they were made.
    Raises ValueError for length < 1, FileExistsError for a folder with other files, NotADirectoryError for a file,
    CheckpointError for numbers that are not finite.
    """
    if length < 1:
        raise ValueError(f"expected the tokens of the longest text that was taught, got {length}")
    target = Path(folder)
    if target.is_dir() and (others := sorted(p.name for p in target.iterdir() if not OURS.fullmatch(p.name))):
        raise FileExistsError(f"{target} holds other files than indexers ({', '.join(others[:3])}): name a new folder")
    tensors = {name: t.detach().to("cpu", torch.bfloat16).contiguous() for name, t in _own(model).items()}
    require_finite(target, tensors)
    shards = plan_shards({name: t.nbytes for name, t in tensors.items()}, LARGEST - 2**17)  # and room for the header
    with whole_folder(target) as new:
        where = {}
        for n, names in enumerate(shards, 1):
            file = f"indexers-{n:05d}-of-{len(shards):05d}.safetensors"
            save_shard({name: tensors[name] for name in names}, new / file)
            where |= dict.fromkeys(names, file)
        made = {"base": digest(_base(model)), "length": length, "note": note}
        settings = {"indexer": asdict(model.config.indexer), **made}
        for name, content in ((INDEX, {"weight_map": where}), (SETTINGS, settings)):
            (new / name).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_indexer(folder: str | Path) -> IndexerConfig:
    """The numbers of the indexers in a folder.

    Raises FileNotFoundError where there are none, ValueError unless all are stated and an indexer can have them.
    """
    path = Path(folder) / SETTINGS
    if not path.is_file():
        raise FileNotFoundError(f"expected {SETTINGS} in {folder}, found none: give a folder of `save_indexers`")
    stated, names = read_json(path).get("indexer"), {field.name for field in fields(IndexerConfig)}
    if not isinstance(stated, dict) or stated.keys() != names:
        raise ValueError(f"{path} must state an indexer's {', '.join(sorted(names))}; got {stated!r:.200}")
    try:
        for field in fields(IndexerConfig):
            check_value(field.name, field.default, stated[field.name], field.name)
        return IndexerConfig(**stated)
    except ValueError as error:
        raise ValueError(f"{path} states no indexer: {error}") from error


def taught_length(folder: str | Path) -> int:
    """Tokens of the longest text that the indexers in a folder were taught on. Raises as `read_indexer`."""
    read_indexer(folder)
    length = read_json(Path(folder) / SETTINGS).get("length")
    if type(length) is not int or length < 1:  # true is no number of tokens
        raise ValueError(f"{Path(folder) / SETTINGS} states no length that was taught, got {length!r}")
    return length


@torch.no_grad()
def load_indexers(model: KeyeModel, folder: str | Path) -> None:
    """Put the indexers of a folder over the model's, in place, in the model's dtype.

    Nothing is changed where it raises: CheckpointError for a model of another IndexerConfig than `read_indexer` gives,
    k included, for tensors that are not the model's, not bfloat16, not finite in the model's dtype, or were taught on
    other weights than the model has; else as `read_indexer`.
    """
    folder, held = Path(folder), _own(model)
    if (stated := read_indexer(folder)) != model.config.indexer:
        raise CheckpointError(f"{folder} holds indexers of {stated}, the model has {model.config.indexer}")
    new: dict[str, Tensor] = {}
    for file in sorted(set(files_of(folder).values())):
        with open_shard(file_in(folder, file)) as shard:
            new |= {name: shard.get_tensor(name) for name in shard.keys()}  # noqa: SIM118 (not a dict)
    if {n: t.shape for n, t in new.items()} != {n: t.shape for n, t in held.items()}:
        raise CheckpointError(f"{folder} holds other tensors than this model's indexers: they belong to another model")
    if kinds := sorted({str(t.dtype) for t in new.values() if t.dtype != torch.bfloat16}):
        raise CheckpointError(f"{folder} must hold bfloat16, got {', '.join(kinds)}: write it with `save_indexers`")
    if read_json(folder / SETTINGS).get("base") != digest(_base(model)):
        raise CheckpointError(
            f"{folder} was taught on other weights than this model has: load the file it was made from"
        )
    new = {name: tensor.to(held[name].dtype) for name, tensor in new.items()}
    require_finite(folder, new)
    for name, tensor in new.items():
        held[name].copy_(tensor)


def _own(model: KeyeModel) -> dict[str, Tensor]:
    return {name: t for name, t in model.state_dict().items() if "sa_indexer" in name}


def _base(model: KeyeModel) -> dict[str, Tensor]:
    return {name: t for name, t in model.state_dict().items() if "sa_indexer" not in name}
