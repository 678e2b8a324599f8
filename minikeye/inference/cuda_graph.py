"""Decoding by CUDA graphs: the kernels of one step are recorded once and replayed with one launch a token.

A step of the released model is thousands of short kernels, which a CPU launches no faster than one every few
microseconds. In a graph no number may be Python's: how many tokens the cache holds is counted on the device, in
`lengths`, and the keys beyond are left out by the selection itself; dense attention leaves them out by a mask, and
reads all the room that the cache has.

Axes: b batch, v vocabulary.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minikeye.model.cache import Cache
from minikeye.model.keye import KeyeOutput
from minikeye.model.step import Mode, Step
from minikeye.ops import choose_backend


def obstacle(model, attention: str = "sparse", backend: str = "auto", record: object = None, observer=None) -> str:
    """Why decoding cannot be captured in a CUDA graph, in words; "" where it can. The arguments are those of a pass."""
    if not isinstance(model.model.layers, nn.ModuleList):
        return "the model is streamed"
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


class StaticStep:
    """One decode step whose every number lies on the device: it reads and writes the same memory at every call.

    The cache must hold a prompt and have room for what comes. A call stores its token in the cache; `cache.length` and
    `cache.next_position` follow in `count`, outside of what a graph records.
    """

    def __init__(self, model, cache: Cache, backend: str = "auto", attention: Mode = "sparse"):
        device = model.device
        self.model, self.cache, self.backend, self.attention = model, cache, backend, attention
        if attention == "dense":
            for layer in cache.layers:
                layer.clear_room()
        self.start = None if cache.start is None else cache.start.to(device)
        self.token = torch.zeros(cache.batch, 1, dtype=torch.long, device=device)
        self.lengths = torch.empty(cache.batch, dtype=torch.int32, device=device)
        self.position = torch.empty(cache.batch, dtype=torch.long, device=device)
        self.rewind()

    def rewind(self) -> None:
        """Take the counts from the cache, which warm-up calls do not change."""
        self.lengths.fill_(self.cache.length)
        self.position.copy_(self.cache.next_position)

    def run(self) -> Float[Tensor, "b 1 v"]:
        """Logits after `token`."""
        self.lengths += 1
        positions = self.position[None, :, None].expand(3, -1, 1)
        counts = {"offset": 0, "start": self.start, "lengths": self.lengths}
        step = Step.of(self.model.config, positions, mode=self.attention, backend=self.backend, observer=None, **counts)
        x = self.model.model(self.model.model.embed_tokens(self.token), step, self.cache)
        self.position += 1
        return self.model.lm_head(x).float()

    def require_room(self) -> None:
        """Raise ValueError where the next token has no place: in the context, as in any pass, or in the cache."""
        room = min(self.model.config.text.max_positions, *(layer.room for layer in self.cache.layers))
        if self.cache.length >= room:
            raise ValueError(f"{self.cache.length + 1} tokens exceed the room of {room}: reserve more, or draw fewer")

    def count(self) -> None:
        """What a step did, told to the cache; all of it or nothing."""
        with self.cache.all_or_nothing():
            for layer in self.cache.layers:
                layer.length += 1
            self.cache.next_position = self.cache.next_position + 1


class GraphedDecoder:
    """Tokens [b] -> logits of the next ones, by a graph that is captured at the first call, when the prompt is read."""

    def __init__(self, model, cache: Cache, backend: str = "auto", attention: Mode = "sparse"):
        self.model, self.cache, self.backend, self.attention = model, cache, backend, attention
        self.step: StaticStep | None = None

    @torch.no_grad()
    def __call__(self, token: Int[Tensor, " b"]) -> KeyeOutput:
        """The logits are overwritten by the next call."""
        if self.step is None:
            self.step = StaticStep(self.model, self.cache, self.backend, self.attention)
            self.step.require_room()  # a token is written while the graph is captured, too
            self._capture()
        self.step.require_room()
        self.step.token.copy_(token[:, None])
        self.graph.replay()
        self.step.count()
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
