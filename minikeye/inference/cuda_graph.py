"""Decoding by CUDA graphs: the kernels of one step are recorded once and replayed with one launch a token.

A step of the released model by PyTorch is thousands of short kernels, which a CPU launches no faster than one every few
microseconds. Up to 16 rows it is 8 to 12 fused ones a layer where these can run (`fused_step.py`), else the model's own
pass (`static_step.py`). In a graph no number may be Python's: how many tokens the cache holds is counted on the device,
in `lengths`, and the keys beyond are left out by the selection itself; dense attention leaves them out by a mask, and
reads all the room that the cache has.

Axes: b batch, v vocabulary.
"""

import torch
from jaxtyping import Int
from torch import Tensor, nn

from minikeye.altered import altered, altered_decoder
from minikeye.inference.fused_step import FusedStep
from minikeye.inference.static_step import StaticStep
from minikeye.model.cache import Cache
from minikeye.model.keye import KeyeOutput
from minikeye.model.step import Mode
from minikeye.ops import choose_backend, choose_step


def obstacle(model, attention: str = "sparse", backend: str = "auto", record: object = None, observer=None) -> str:
    """Why decoding cannot be captured in a CUDA graph, in words; "" where it can. The arguments are those of a pass."""
    if not isinstance(model.model.layers, nn.ModuleList):
        return "the model is streamed"
    if hasattr(model, "unshard"):  # FSDP put it there, whose import alone takes half a second
        return "the model is spread over ranks"
    places = {(p.device, p.dtype) for p in model.model.layers.parameters()}
    if len({device for device, _ in places}) > 1:
        return "the model is split over devices"
    device, dtype = next(iter(places))
    if device.type != "cuda":
        return f"the model is on {device.type}"
    if attention == "masked":
        return "masked attention has another shape at every step"
    lowered = torch.is_autocast_enabled("cuda") and torch.get_autocast_dtype("cuda") == torch.bfloat16
    if len(places) > 1 or not (dtype == torch.bfloat16 or lowered):
        return f"experts are one kernel in bfloat16 only, the weights are {dtype}"
    if record or observer is not None:
        return "every step is to be looked at"
    if any(layer.self_attn.rule is not None for layer in model.model.layers):
        return "another rule than the indexer selects"
    if any(layer.mlp.gate.rule is not None for layer in model.model.layers):
        return "another rule than the router chooses experts"
    if attention == "dense":
        return ""
    chosen, why = choose_backend(backend, device)
    return "" if chosen == "triton" else f"backend {chosen}: {why}"


def decode_step(model, cache: Cache, backend: str = "auto", attention: Mode = "sparse") -> StaticStep:
    """What a graph records: the fused step where `ops.choose_step` says that it can run, else the model's own pass.

    The model's own pass as well where somebody put hooks, adapters or rules into it: the fused step would pass them by.
    """
    dtypes = {p.dtype for p in (*model.model.parameters(), model.lm_head.weight)}
    step, _ = choose_step(model.config, cache.batch, dtypes, model.device, backend)
    own = not altered_decoder(model.model) and not altered(model.lm_head)
    return (FusedStep if step == "fused" and own else StaticStep)(model, cache, backend, attention)


class GraphedDecoder:
    """Tokens [b] -> logits of the next ones, by a graph that is captured at the first call, when the prompt is read."""

    def __init__(self, model, cache: Cache, backend: str = "auto", attention: Mode = "sparse"):
        self.model, self.cache, self.backend, self.attention = model, cache, backend, attention
        self.step: StaticStep | None = None

    @torch.no_grad()
    def __call__(self, token: Int[Tensor, " b"]) -> KeyeOutput:
        """The logits are overwritten by the next call. Weights as they were at the first call.

        Raises ValueError where the cache has no room, or was changed since the last token by anybody else.
        """
        if self.step is not None and self.cache.length != self.length:
            raise ValueError(
                f"the cache held {self.length} tokens after the last step and holds {self.cache.length}: the graph "
                f"counts for itself, make a new decoder"
            )
        if self.step is None:
            self.step = decode_step(self.model, self.cache, self.backend, self.attention)
            self.step.require_room()  # a token is written while the graph is captured, too
            self._capture()
        self.step.require_room()
        self.step.token.copy_(token[:, None])
        self.graph.replay()
        self.step.count()
        self.length = self.cache.length
        return KeyeOutput(self.logits, self.cache, None)

    def _capture(self) -> None:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):  # kernels are compiled and libraries set up outside of the recording
            self.step.run()
        torch.cuda.current_stream().wait_stream(side)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.logits = self.step.run()
        self.step.rewind()
