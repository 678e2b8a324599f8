"""What decoding remembers: keys, values and index keys of every layer.

Axes: b batch, s key position, g KV head, e head width, i indexer width.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


class LayerCache:
    """Grows by doubling, so that a step appends in place and costs no copy of the past."""

    def __init__(self) -> None:
        self.length = 0
        self._stores: list[Tensor] = []

    def append(
        self, k: Float[Tensor, "b t g e"], v: Float[Tensor, "b t g e"], index_k: Float[Tensor, "b t i"]
    ) -> tuple[Float[Tensor, "b s g e"], Float[Tensor, "b s g e"], Float[Tensor, "b s i"]]:
        """Store the new tokens; return keys, values and index keys of all tokens so far (views, do not write)."""
        end = self.length + k.shape[1]
        for n, new in enumerate((k, v, index_k)):
            if n == len(self._stores):
                self._stores.append(new.new_empty(new.shape[0], 0, *new.shape[2:]))
            if new.shape[0] != len(self._stores[n]):
                raise ValueError(
                    f"the cache holds a batch of {len(self._stores[n])}, got {new.shape[0]}: start a new cache"
                )
            if end > self._stores[n].shape[1]:
                larger = new.new_empty(new.shape[0], max(end, 2 * self.length), *new.shape[2:])
                larger[:, : self.length] = self._stores[n][:, : self.length]
                self._stores[n] = larger
            self._stores[n][:, self.length : end] = new
        self.length = end
        k, v, index_k = (store[:, :end] for store in self._stores)
        return k, v, index_k


@dataclass
class Cache:
    """The caches of all layers, and where the next token stands."""

    layers: list[LayerCache]
    start: Int[Tensor, " b"] | None = None  # first real token of each row (left padding); None: 0 everywhere
    next_position: Int[Tensor, " b"] | None = None  # 3D position of the next text token: largest so far + 1

    @classmethod
    def empty(cls, layers: int) -> "Cache":
        return cls([LayerCache() for _ in range(layers)])

    @property
    def length(self) -> int:
        """Tokens held, left padding included."""
        return self.layers[0].length

    def bytes(self) -> int:
        """Memory of the tokens held."""
        return sum(z[:, : layer.length].numel() * z.element_size() for layer in self.layers for z in layer._stores)


def cache_bytes_per_token(config, dtype: torch.dtype = torch.bfloat16) -> tuple[int, int]:
    """(keys and values, index keys) in bytes per token over all layers, for a KeyeConfig."""
    size = dtype.itemsize
    text = config.text
    return 2 * text.layers * text.kv_heads * text.head_width * size, text.layers * config.indexer.width * size
