"""One decode step whose every number lies on the device: the model's own pass of one token a row, fit for a CUDA graph.

Axes: b batch, v vocabulary.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from minikeye.model.cache import Cache
from minikeye.model.step import Mode, Step


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
