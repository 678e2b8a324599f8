"""A model that is larger than memory: weights stay in their files, and a layer has them while it works.

    model = KeyeVL.from_pretrained(folder, streaming=True)

Files are mapped, not read. One decoder layer after the other takes its weights, works, and lets them go; meanwhile a
second thread fetches the next layer's. An expert is fetched when the router sends it a token, the others are never
read. A prompt passes one layer as a whole (`chunk` of `KeyeVL.forward`), so it costs one reading of the files; after
that every new token costs one reading of the experts it goes to and of everything that is not an expert.

Axes: d width, x expert, m hidden channel of an expert, v vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor, nn

from minikeye.checkpoint.tensors import require_finite
from minikeye.config import KeyeConfig
from minikeye.model.decoder import DecoderLayer
from minikeye.model.keye import KeyeModel
from minikeye.model.moe import Experts, looped
from minikeye.model.vision import Projector, VisionTower
from minikeye.progress import progress

__all__ = ["ReadLog", "stream"]
Model = TypeVar("Model", bound=KeyeModel)
EXPERTS = ("gate_up_proj", "down_proj")
PAGE = 4096  # bytes, the smallest page of memory in use


@dataclass
class ReadLog:
    """What was fetched from the files, by decoder layer: bytes as stored, over all passes since `clear`."""

    dense_bytes: dict[int, int] = field(default_factory=dict)  # everything of a layer that is no expert
    expert_bytes: dict[int, int] = field(default_factory=dict)
    experts: dict[int, set[int]] = field(default_factory=dict)  # the different experts that got a token
    other_bytes: int = 0  # embedding rows, head, vision tower, projector

    @property
    def total_bytes(self) -> int:
        return self.other_bytes + sum(self.dense_bytes.values()) + sum(self.expert_bytes.values())

    def add(self, bytes_of: dict[int, int], layer: int, tensors: Iterable[Tensor]) -> None:
        bytes_of[layer] = bytes_of.get(layer, 0) + sum(t.nbytes for t in tensors)

    def clear(self) -> None:
        for part in (self.dense_bytes, self.expert_bytes, self.experts):
            part.clear()
        self.other_bytes = 0


@dataclass(frozen=True)
class WeightFiles:
    """Where each tensor lies, and where and as what it is wanted."""

    folder: Path
    files: dict[str, str]  # tensor name -> file name
    device: torch.device
    dtype: torch.dtype | None  # None: as stored
    log: ReadLog = field(default_factory=ReadLog)
    stamps: dict[str, tuple[int, ...]] = field(default_factory=dict)  # file name -> which file, how large, how old
    checked: set[str] = field(default_factory=set)  # names of what is known to be finite

    def __post_init__(self) -> None:
        self.stamps.update({file: self.stamp(file) for file in set(self.files.values())})

    def stamp(self, file: str) -> tuple[int, ...]:
        about = (self.folder / file).stat()
        return about.st_ino, about.st_size, about.st_mtime_ns

    def under(self, prefix: str) -> list[str]:
        return [name for name in self.files if name.startswith(prefix)]

    def mapped(self, names: list[str]) -> dict[str, Tensor]:
        """The tensors as views of their files: nothing is read before they are touched, and all can be dropped.

        Raises RuntimeError for a file that is not the one that was opened. (One that is cut short while it is mapped
        ends the process: the system sends a signal that Python cannot catch.)
        """
        tensors = {}
        for file in sorted({self.files[name] for name in names}):
            if self.stamp(file) != self.stamps[file]:
                raise RuntimeError(f"{self.folder / file} has changed since the model was opened: open it again")
            with safe_open(self.folder / file, "pt") as shard:
                tensors |= {name: shard.get_tensor(name) for name in names if self.files[name] == file}
        return tensors

    def take(self, name: str, tensor: Tensor) -> Tensor:
        """A mapped tensor where and as what it is wanted, read now. Raises CheckpointError as `require_finite`."""
        taken = tensor.to(self.device, self.dtype or tensor.dtype)
        self.check(name, taken)
        return touched(tensor) if taken is tensor else taken

    def check(self, name: str, tensor: Tensor) -> None:
        """Look for nan and infinite numbers, the first time that a tensor of this name comes."""
        if name not in self.checked:
            require_finite(self.folder, {name: tensor})
            self.checked.add(name)


def touched(tensor: Tensor) -> Tensor:
    """The same mapped tensor, after a look at every page of it: the system has it in memory now, and may drop it."""
    tensor.view(torch.uint8).flatten()[::PAGE].sum()
    return tensor


def stream(model: Model, folder: Path, files: dict[str, str], device: torch.device, dtype: torch.dtype | None) -> Model:
    """The model, in eval mode, its weights left in `files` of `folder`. `model.read_log` says what was read.

    model: on the meta device, without weights. files: tensor name -> file name, already checked against the model's
    names and shapes (`loader.load` does both).
    """
    source = WeightFiles(folder, files, device, dtype)
    config, decoder = model.config, model.model
    model.visual = Fetched(source, "visual.", lambda: VisionTower(config.vision))
    model.mlp_AR = Fetched(source, "mlp_AR.", lambda: Projector(config.vision, config.text.width))
    model.lm_head = Fetched(source, "lm_head.", lambda: nn.Linear(config.text.width, config.text.vocab, bias=False))
    decoder.embed_tokens = FetchedRows(source, "model.embed_tokens.weight")
    del decoder.layers
    decoder.layers = FetchedLayers(source, config)
    (norm,) = source.mapped(["model.norm.weight"]).values()
    decoder.norm.load_state_dict({"weight": source.take("model.norm.weight", norm)}, assign=True)
    model.read_log = source.log
    return model.requires_grad_(False).eval()


class Fetched(nn.Module):
    """A module that takes its weights when it is called and lets them go afterwards."""

    def __init__(self, source: WeightFiles, prefix: str, build: Callable[[], nn.Module]):
        super().__init__()
        self.source, self.prefix, self.build = source, prefix, build

    def forward(self, *inputs: Tensor) -> Tensor:
        mapped = self.source.mapped(self.source.under(self.prefix))
        self.source.log.other_bytes += sum(t.nbytes for t in mapped.values())
        with torch.device("meta"):
            module = self.build().requires_grad_(False).eval()
        tensors = {name.removeprefix(self.prefix): self.source.take(name, t) for name, t in mapped.items()}
        module.load_state_dict(tensors, assign=True)
        return module(*inputs)

    def _apply(self, fn, recurse: bool = True):
        raise RuntimeError("a streamed model stays where it was opened: pass device and dtype to from_pretrained")


class FetchedRows(nn.Module):
    """An embedding of which only the rows that are asked for are read."""

    def __init__(self, source: WeightFiles, name: str):
        super().__init__()
        self.source, self.name = source, name

    def forward(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        (table,) = self.source.mapped([self.name]).values()
        rows, place = ids.cpu().unique(return_inverse=True)
        found = table[rows]
        require_finite(self.source.folder, {self.name: found})  # other rows may be nobody's
        self.source.log.other_bytes += found.nbytes
        return F.embedding(place.to(self.source.device), found.to(self.source.device, self.source.dtype or found.dtype))


class FetchedLayers:
    """The decoder's layers, to be iterated over: each has its weights until the next one is asked for."""

    def __init__(self, source: WeightFiles, config: KeyeConfig):
        self.source, self.config = source, config

    def __len__(self) -> int:
        return self.config.text.layers

    def __iter__(self) -> Iterator[DecoderLayer]:
        ahead, reader = ThreadPoolExecutor(1, "minikeye-layers"), ThreadPoolExecutor(1, "minikeye-experts")
        try:
            coming = ahead.submit(self.fetch, 0, reader)
            for n in progress(range(len(self)), "layers from disk"):
                layer = coming.result()
                if n + 1 < len(self):
                    coming = ahead.submit(self.fetch, n + 1, reader)
                yield layer
        finally:  # after Ctrl-C and errors too
            for pool in (ahead, reader):
                pool.shutdown(wait=False, cancel_futures=True)

    def fetch(self, n: int, reader: ThreadPoolExecutor) -> DecoderLayer:
        """Layer n with all its weights but the experts', which are only mapped."""
        prefix = f"model.layers.{n}."
        mapped = self.source.mapped(self.source.under(prefix))
        pair = [mapped.pop(f"{prefix}mlp.experts.{name}") for name in EXPERTS]
        self.source.log.add(self.source.log.dense_bytes, n, mapped.values())
        with torch.device("meta"):
            layer = DecoderLayer(self.config).requires_grad_(False).eval()
        layer.mlp.experts = FetchedExperts(self.source, n, pair, reader)
        tensors = {name.removeprefix(prefix): self.source.take(name, t) for name, t in mapped.items()}
        layer.load_state_dict(tensors, assign=True)
        return layer


class FetchedExperts(Experts):
    """Experts that are fetched when a token comes, and stay until the layer is done."""

    def __init__(self, source: WeightFiles, layer: int, pair: list[Tensor], reader: ThreadPoolExecutor):
        nn.Module.__init__(self)  # no parameters
        self.log, self.layer = source.log, layer
        self.gate_up_proj, self.down_proj = (
            Shelf(source, layer, name, tensor, reader) for name, tensor in zip(EXPERTS, pair, strict=True)
        )

    def mix(
        self, x: Float[Tensor, "n d"], weights: Float[Tensor, "n c"], chosen: Int[Tensor, "n c"], *rest
    ) -> Float[Tensor, "n d"]:
        wanted = chosen.unique().tolist()
        self.log.experts.setdefault(self.layer, set()).update(wanted)
        for shelf in (self.gate_up_proj, self.down_proj):
            shelf.order(wanted)
        return super().mix(x, weights, chosen, *rest)

    def multiply(self, x: Float[Tensor, "n d"], w: "Shelf", counts: Int[Tensor, " x"]) -> Float[Tensor, "n m"]:
        return looped(x, w, counts)  # the grouped product would want all experts in one tensor


class Shelf:
    """One tensor [x d m] of a layer's experts, fetched expert by expert by a second thread, in the order of use."""

    def __init__(
        self, source: WeightFiles, layer: int, name: str, tensor: Float[Tensor, "x d m"], reader: ThreadPoolExecutor
    ):
        self.source, self.layer, self.tensor, self.reader = source, layer, tensor, reader
        self.name = f"model.layers.{layer}.mlp.experts.{name}"
        self._fetched: dict[int, Future[Tensor]] = {}

    def __len__(self) -> int:
        return len(self.tensor)

    def order(self, experts: list[int]) -> None:
        """Begin to fetch those that are not there yet."""
        for i in experts:
            if i not in self._fetched:
                self._fetched[i] = self.reader.submit(self._fetch, i)

    def __getitem__(self, i: int) -> Float[Tensor, "d m"]:
        return self._fetched[i].result()

    def _fetch(self, i: int) -> Float[Tensor, "d m"]:
        self.source.log.add(self.source.log.expert_bytes, self.layer, [self.tensor[i]])
        there = self.tensor[i].to(self.source.device)  # in the stored dtype: half the memory; converted when multiplied
        self.source.check(f"expert {i} of {self.name}", there)
        return touched(there) if there.device.type == "cpu" else there
