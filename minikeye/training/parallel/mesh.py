"""The processes of a run, and what of a model lies on which of them. The model knows nothing of it.

Report, section 5.1: tower and decoder on the same ranks, each with a sharding of its own; it names no engine. Ours is
torch's: `torchrun` starts the processes, `fully_shard` (FSDP2) spreads parameters, gradients and optimiser.

    ranks = join("cuda", ep=2)             # alone where torchrun did not start this process
    spread(model, ranks)                   # every rank keeps 1 / R of every parameter
    loss = ...                             # of this rank's samples, divided by counts of all (`ranks.total`)

A rank's loss is its part of the sum that is the whole loss, so gradients of ranks are added up, never averaged: a mean
of means over ranks would weigh a token by how few others its rank holds.

Left out: pipelines, tensor parallelism, copies of the whole among which gradients are averaged (HSDP).
"""

import argparse
import os
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.distributed_c10d import _set_pg_timeout
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.utils import _pytree as pytree

from minikeye.keye import KeyeVL
from minikeye.model.keye import KeyeOutput
from minikeye.model.step import AttentionTrace
from minikeye.training.parallel.experts import SpreadExperts
from minikeye.training.step import on

# What a unit returns is looked through for tensors whose gradient says that its parameters are needed again; before
# torch 2.13 dataclasses are not, unless they are made known. Without the first, a loss on queries and keys alone
# (`IndexerTeacher`) would run backwards through parameters that have left; without the second, every loss would.
pytree.register_dataclass(AttentionTrace)
pytree.register_dataclass(KeyeOutput)


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, in a grid: all, [data, context] and [copies, experts] are the same ranks, read by rows.

    Neighbours in rank share a row of tokens (context) and split the experts among them.
    """

    everyone: DeviceMesh | None = None  # [R]: over them, parameters are spread
    rows: DeviceMesh | None = None  # [data, context]: who holds which samples, and which piece of them
    experts: DeviceMesh | None = None  # [copies, experts]: who holds which experts
    timeout: float = 60.0  # seconds until a rank that does not answer ends the others

    @property
    def size(self) -> int:
        return 1 if self.everyone is None else self.everyone.size()

    @property
    def rank(self) -> int:
        """This process's number; 0 writes logs and files."""
        return 0 if self.everyone is None else self.everyone.get_rank()

    def device(self, asked: str) -> torch.device:
        """Where this process computes: on the device that was asked for; of many GPUs on the one `join` gave it."""
        kind = torch.device(asked).type
        return on(asked) if self.everyone is None or kind == "cpu" else torch.device(kind, torch.cuda.current_device())

    def along(self, name: str) -> tuple[int, int]:
        """This rank's number and how many there are, along "data", "context", "copies" or "experts"."""
        if (mesh := self._mesh(name)) is None:
            return 0, 1
        return mesh.get_local_rank(name), mesh[name].size()

    def group(self, name: str) -> dist.ProcessGroup | None:
        """The ranks that differ from this one along that axis only; None where this process is alone."""
        return None if (mesh := self._mesh(name)) is None else mesh.get_group(name)

    def total(self, x: Tensor) -> Tensor:
        """The sum of x [*n] over all ranks, without gradient. Every rank has to call it, with the same shape."""
        x = x.detach().clone()
        if self.everyone is not None:
            dist.all_reduce(x, group=self.everyone.get_group())
        return x

    def clip(self, parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
        """`nn.utils.clip_grad_norm_` where every rank holds other parts of the gradients: the norm of the whole."""
        parameters = list(parameters)
        if self.everyone is None:
            return nn.utils.clip_grad_norm_(parameters, largest)
        own = [local(p.grad) for p in parameters if p.grad is not None]
        squares = sum((g.float().square().sum() for g in own), torch.zeros((), device=parameters[0].device))
        norm = self.total(squares).sqrt()
        for g in own:
            g.mul_((largest / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def _mesh(self, name: str) -> DeviceMesh | None:
        return self.rows if name in ("data", "context") else self.experts


ALONE = Ranks()


def join(device: str, ep: int = 1, cp: int = 1, timeout: float = 60.0) -> Ranks:
    """The processes that torchrun started with this one, which becomes the one of its own GPU.

    device: "cpu" (gloo) or "cuda" (NCCL). ep: ranks that split the experts of a layer; cp: ranks that split every row
    of tokens. timeout: seconds until a rank that does not answer ends the others. Not started by torchrun: `ALONE`.
    Raises ValueError for an ep or cp that does not divide the number of processes.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if min(ep, cp) < 1 or size % ep or size % cp:
        raise ValueError(
            f"expected ep and cp that divide the {size} processes, got {ep} and {cp}: start more with "
            f"torchrun --nproc-per-node N -m ..."
        )
    if size == 1:
        return ALONE
    kind = torch.device(device).type
    if kind == "cuda":
        on(f"cuda:{os.environ['LOCAL_RANK']}")
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=timedelta(seconds=timeout))
    everyone = init_device_mesh(kind, (size,), mesh_dim_names=("everyone",))
    rows = init_device_mesh(kind, (size // cp, cp), mesh_dim_names=("data", "context"))
    experts = init_device_mesh(kind, (size // ep, ep), mesh_dim_names=("copies", "experts"))
    for group in (group for mesh in (everyone, rows, experts) for group in mesh.get_all_groups()):
        _set_pg_timeout(timedelta(seconds=timeout), group)  # a mesh makes its groups with torch's own, half an hour
    return Ranks(everyone, rows, experts, timeout)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--ep and --cp, as `join` takes them."""
    parser.add_argument("--ep", type=int, default=1, help="of the processes of torchrun, how many share the experts")
    parser.add_argument("--cp", type=int, default=1, help="how many of them share each row of tokens")


def spread(model: KeyeVL, ranks: Ranks) -> None:
    """Leave 1 / R of the model's parameters on each rank; a unit's are gathered for its pass and let go after it.

    Units: tower, projector, every decoder layer (where ep > 1 its experts apart, `SpreadExperts` in their place), and
    what is left (embedding, last norm, head). The tower is one unit, though it is long: the ranks run it on different
    numbers of chunks, and inner units would wait for each other.
    Under autocast, what is let go is the float32: the bfloat16 copy that a weight's product worked with stays until the
    backward pass, 2 bytes a parameter on every rank, except where layers are recomputed.
    Every rank must have the same parameters before, and take part in every pass afterwards.
    Raises ValueError for an ep that does not divide the experts (`SpreadExperts`).
    """
    if ranks.everyone is None:
        return
    # A layer's index keys come from a split: views, which nothing here changes in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor", UserWarning)
    if ranks.along("experts")[1] > 1:
        copies = ranks.along("copies")[1]
        for layer in model.model.layers:
            layer.mlp.experts = SpreadExperts(layer.mlp.experts, ranks.experts["experts"], copies)
            sharded(layer.mlp.experts, ranks.experts["copies"], axis=1)  # axis 0, of the experts, is cut already
    for unit in (model.visual, model.mlp_AR, *model.model.layers, model):
        sharded(unit, ranks.everyone)
    # What is gathered ahead on the way back is said here. FSDP would take it from all passes since the last way back,
    # of which ranks that answer apart (`gathered`) make different numbers: they would wait for each other.
    back = [model.visual, model.mlp_AR, *model.model.layers, model]
    for unit, ahead in zip(back, [model.visual, model.mlp_AR, model.model.layers[0], *back[2:-1]], strict=True):
        unit.set_modules_to_backward_prefetch([ahead])  # itself: nothing
    # The tower may run before the decoder does, and FSDP takes the unit that runs first for the root of all others.
    with torch.no_grad():
        model({"input_ids": torch.zeros(1, 1, dtype=torch.long, device=model.device)}, attention="dense")


def sharded(unit: nn.Module, mesh: DeviceMesh, axis: int = 0) -> None:
    """`fully_shard` along one axis of every parameter, with gradients added up."""
    # The root too is let go after a pass, or it would outlive a step without it.
    fully_shard(unit, mesh=mesh, reshard_after_forward=True, shard_placement_fn=lambda p: Shard(axis))
    assert isinstance(unit, FSDPModule)
    unit.set_gradient_divide_factor(1.0)
    unit.set_force_sum_reduction_for_comms(True)


@contextmanager
def gathered(model: KeyeVL, ranks: Ranks) -> Iterator[None]:
    """While this holds, every rank has all parameters of a model that was `spread`, and passes need no partner.

    For sampling: answers are of different lengths, and a pass that gathers parameters waits for all ranks. Every rank
    has to enter and to leave; in between each may make as many passes as it likes, without gradient. It takes the
    memory of the whole model. With ep the experts of other ranks stay where they are: not for such a model.
    """
    units = [unit for unit in model.modules() if isinstance(unit, FSDPModule)] if ranks.everyone is not None else []
    for unit in units:
        unit.unshard()
        unit.set_reshard_after_forward(False, recurse=False)
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()


def local(x: Tensor) -> Tensor:
    """This rank's part of a tensor that is spread; one that is not as it is."""
    return x.to_local() if isinstance(x, DTensor) else x
