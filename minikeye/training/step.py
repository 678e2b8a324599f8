"""One step of training on a device: eagerly, or by a CUDA graph, and in which precision.

Small models are thousands of short kernels, which a CPU cannot launch fast enough.

One graph per shape holds forward and backward; a replay costs one launch. Inputs are copied into the buffers that the
graph reads, gradients appear where `loss.backward()` would have put them.
"""

from collections.abc import Callable, Hashable
from functools import cache

import torch
from torch import Tensor

Numbers = dict[str, Tensor]
Loss = Callable[[dict[str, Tensor]], tuple[Tensor, Numbers]]


class GraphedStep:
    """Computes loss, log numbers and gradients; captures each new shape once, replays it afterwards.

    loss: inputs -> (loss, numbers), free of anything that makes the CPU wait for the GPU. Tensors on the CPU (grids)
    are baked into the graph: other values mean another graph.
    """

    def __init__(self, loss: Loss, parameters: list[torch.nn.Parameter]):
        self.loss, self.parameters = loss, parameters
        self._pool = torch.cuda.graph_pool_handle()
        self._side = torch.cuda.Stream()
        self._graphs: dict[Hashable, tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Tensor, Numbers]] = {}
        for p in parameters:
            p.grad = torch.zeros_like(p)

    def __call__(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Numbers]:
        """Loss and numbers (overwritten by the next call); gradients are in `parameter.grad`."""
        key = tuple((n, tuple(t.shape), None if t.is_cuda else t.numpy().tobytes()) for n, t in inputs.items())
        if key not in self._graphs:
            self._graphs[key] = self._capture(inputs)
        graph, buffers, loss, numbers = self._graphs[key]
        for name, buffer in buffers.items():
            buffer.copy_(inputs[name], non_blocking=True)
        graph.replay()
        return loss, numbers

    def _capture(self, inputs: dict[str, Tensor]):
        buffers = {name: t.clone() for name, t in inputs.items() if t.is_cuda}
        fixed = inputs | buffers
        self._side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._side):  # libraries set themselves up on the first run, which must not be captured
            self._run(fixed)
        torch.cuda.current_stream().wait_stream(self._side)
        torch.cuda.empty_cache()  # what the eager run used is of no use to the graph's own pool
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            loss, numbers = self._run(fixed)
        return graph, buffers, loss, numbers

    def _run(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Numbers]:
        torch._foreach_zero_([p.grad for p in self.parameters])
        loss, numbers = self.loss(inputs)
        loss.backward()
        return loss.detach(), numbers


class EagerStep:
    """The same without graphs, for CPUs."""

    def __init__(self, loss: Loss, parameters: list[torch.nn.Parameter]):
        self.loss, self.parameters = loss, parameters

    def __call__(self, inputs: dict[str, Tensor]) -> tuple[Tensor, Numbers]:
        for p in self.parameters:
            p.grad = None
        loss, numbers = self.loss(inputs)
        loss.backward()
        return loss.detach(), numbers


def on(device: torch.device | str) -> torch.device:
    """The device of that name, made the current one where it is a GPU, because graphs and streams are the current's.

    Raises ValueError for a GPU that torch does not see.
    """
    device = torch.device(device)
    if device.type == "cuda":
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= gpus:
            raise ValueError(f"device {device} was asked for, but torch sees {gpus or 'no'} GPU: use --device cpu")
        torch.cuda.set_device(device.index or 0)
    return device


def stepper(device: torch.device | str) -> type[GraphedStep] | type[EagerStep]:
    """Graphs on a GPU, whichever of them it is, plain steps elsewhere."""
    return GraphedStep if torch.device(device).type == "cuda" else EagerStep


def autocast(device: torch.device | str) -> torch.autocast:
    """bfloat16 products on a GPU, float32 on a CPU."""
    kind = torch.device(device).type
    return torch.autocast(kind, dtype=torch.bfloat16, enabled=kind == "cuda")


def beside(work: Callable[[], dict[str, Tensor]], device: torch.device | str) -> dict[str, Tensor]:
    """Do `work` on a second CUDA stream, so that copying and rendering do not wait for the step before."""
    if torch.device(device).type != "cuda":
        return work()
    main = torch.cuda.current_stream()
    with torch.cuda.stream(_side_stream()):
        out = work()
    main.wait_stream(_side_stream())
    for t in out.values():
        if t.is_cuda:
            t.record_stream(main)  # its memory may be reused only when the main stream is done with it
    return out


@cache
def _side_stream() -> "torch.cuda.Stream":
    return torch.cuda.Stream()
