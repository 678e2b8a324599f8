"""What decoding remembers: keys, values and index keys of every layer.

Axes: b batch, s key position, g KV head, e head width, i indexer width.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor


class LayerCache:
    """Grows by doubling, so that a step appends in place and costs no copy of the past.

    capacity: tokens to make room for at the first append; with room for all that comes, nothing is ever copied.
    """

    def __init__(self, capacity: int = 0) -> None:
        self.length, self.capacity = 0, capacity
        self._stores: list[Tensor] = []

    def append(
        self, k: Float[Tensor, "b t g e"], v: Float[Tensor, "b t g e"], index_k: Float[Tensor, "b t i"]
    ) -> tuple[Float[Tensor, "b s g e"], Float[Tensor, "b s g e"], Float[Tensor, "b s i"]]:
        """Store the new tokens; return keys, values and index keys of all tokens so far (views, do not write)."""
        for slot, new in zip(self.slots(k, v, index_k), (k, v, index_k), strict=True):
            slot[:] = new
        return self.extend(k.shape[1])

    def slots(
        self, k: Float[Tensor, "b t g e"], v: Float[Tensor, "b t g e"], index_k: Float[Tensor, "b t i"]
    ) -> tuple[Float[Tensor, "b t g e"], Float[Tensor, "b t g e"], Float[Tensor, "b t i"]]:
        """Where new tokens like these belong: room to be written, which `extend` then counts. No value is read."""
        end = self.length + k.shape[1]
        if not self._stores:
            self._stores = [new.new_empty(len(new), self.capacity, *new.shape[2:]) for new in (k, v, index_k)]
        if len(k) != len(self._stores[0]):
            raise ValueError(f"the cache holds a batch of {len(self._stores[0])}, got {len(k)}: start a new cache")
        if end > min(store.shape[1] for store in self._stores):  # not the first: memory may have run out after it
            self.reserve(max(end, 2 * self.length))
        k, v, index_k = (store[:, self.length : end] for store in self._stores)
        return k, v, index_k

    def extend(self, tokens: int) -> tuple[Float[Tensor, "b s g e"], Float[Tensor, "b s g e"], Float[Tensor, "b s i"]]:
        """Count so many more tokens, whose slots are written; return all tokens so far (views, do not write)."""
        self.length += tokens
        k, v, index_k = (store[:, : self.length] for store in self._stores)
        return k, v, index_k

    def reserve(self, capacity: int) -> None:
        """Make room for so many tokens in all, now or at the first append. Views handed out before go stale."""
        self.capacity = max(capacity, self.capacity)
        for n, store in enumerate(self._stores):
            if capacity > store.shape[1]:
                larger = store.new_empty(len(store), capacity, *store.shape[2:])
                larger[:, : self.length] = store[:, : self.length]
                self._stores[n] = larger

    @property
    def stores(self) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and index keys with their unused room, for whoever writes where only the device knows."""
        k, v, index_k = self._stores
        return k, v, index_k

    @property
    def room(self) -> int:
        """Tokens that it can hold without growing."""
        return min((store.shape[1] for store in self._stores), default=self.capacity)

    def clear_room(self) -> None:
        """Zeros in the unused room: what is left out by a mask alone must be finite."""
        for store in self._stores:
            store[:, self.length :] = 0

    def write(
        self, k: Float[Tensor, "b 1 g e"], v: Float[Tensor, "b 1 g e"], index_k: Float[Tensor, "b 1 i"], at: Tensor
    ) -> tuple[Float[Tensor, "b s g e"], Float[Tensor, "b s g e"], Float[Tensor, "b s i"]]:
        """Store one token a row where `at` says, int [b] on the device; return the stores, unused room included.

        For CUDA graphs, in which no number may be Python's: there must be room, `length` stays as it is, and whoever
        replays the graph keeps count.
        """
        rows = torch.arange(len(at), device=at.device)
        for store, new in zip(self._stores, (k, v, index_k), strict=True):
            store[rows, at] = new[:, 0]
        return self.stores

    def repeat(self, times: int, capacity: int) -> "LayerCache":
        """A copy in which each row stands `times` times, with room for `capacity` tokens or for those that are held."""
        out = LayerCache(max(capacity, self.length))
        out.length = self.length
        for store in self._stores:
            copies = store.new_empty(len(store), times, out.capacity, *store.shape[2:])
            copies[:, :, : self.length] = store[:, None, : self.length]
            out._stores.append(copies.flatten(0, 1))
        return out

    def truncate(self, length: int) -> None:
        """Forget every token from position `length` on. Raises ValueError where fewer are held."""
        if not isinstance(length, int) or not 0 <= length <= self.length:
            raise ValueError(f"the cache holds {self.length} tokens, cannot keep {length}")
        self.length = length


@dataclass
class Cache:
    """The caches of all layers, and where the next token stands."""

    layers: list[LayerCache]
    start: Int[Tensor, " b"] | None = None  # first real token of each row (left padding); None: 0 everywhere
    next_position: Int[Tensor, " b"] | None = None  # 3D position of the next text token: largest so far + 1
    spoilt_from: int | None = None  # from here on a row that had ended holds tokens it did not say; None: none does

    @classmethod
    def empty(cls, layers: int, capacity: int = 0) -> "Cache":
        return cls([LayerCache(capacity) for _ in range(layers)])

    @property
    def length(self) -> int:
        """Tokens held, left padding included. While a pass is under way, those of the layer that is furthest behind."""
        return min(layer.length for layer in self.layers)

    def reserve(self, capacity: int) -> None:
        """Make room for so many tokens in all, so that no later step copies anything."""
        for layer in self.layers:
            layer.reserve(capacity)

    @property
    def batch(self) -> int:
        """Rows of the batch; 0 where nothing is held."""
        return len(self.layers[0]._stores[0]) if self.length else 0

    def repeat(self, times: int, capacity: int = 0) -> "Cache":
        """A copy in which each row stands `times` times, one beside the other: one prompt, read once, many answers.

        capacity: tokens to make room for, answers included. `model(inputs, cache, last=1)` reads all of the prompt but
        its last token into `cache = model.new_cache()`; repeat it, and go on with that token in every row. Raises
        ValueError where nothing is held, or times < 1.
        """
        if times < 1 or not self.length:
            raise ValueError(
                f"expected a cache that holds tokens and times >= 1, got {self.length} tokens, {times} times"
            )
        again = lambda x: None if x is None else x.repeat_interleave(times, dim=0)  # noqa: E731
        layers = [layer.repeat(times, capacity) for layer in self.layers]
        return Cache(layers, again(self.start), again(self.next_position), self.spoilt_from)

    def truncate(self, length: int, next_position: Int[Tensor, " b"] | None = None) -> None:
        """Forget every token from position `length` on.

        next_position: where the next text token stands. Without it the next call must pass `positions`, unless nothing
        was forgotten: what is cut away may have been a video, whose positions are not one a token.
        """
        forgets = length < self.length
        for layer in self.layers:
            layer.truncate(length)
        if self.spoilt_from is not None and length <= self.spoilt_from:
            self.spoilt_from = None
        if forgets or next_position is not None:
            self.next_position = next_position

    @contextmanager
    def all_or_nothing(self) -> Iterator[None]:
        """Whatever ends the block early, an error or Ctrl-C: layers that have stored new tokens forget them."""
        before, start, next_position, spoilt_from = self.length, self.start, self.next_position, self.spoilt_from
        try:
            yield
        except BaseException:
            for layer in self.layers:
                layer.length = before
                if not before:  # the next batch may be of another size
                    layer._stores = []
            self.start, self.next_position, self.spoilt_from = start, next_position, spoilt_from
            raise

    def room_bytes(self) -> int:
        """Memory of the stores, room for tokens to come included."""
        return sum(store.nbytes for layer in self.layers for store in layer._stores)

    def bytes(self) -> int:
        """Memory of the tokens held."""
        return sum(z[:, : layer.length].numel() * z.element_size() for layer in self.layers for z in layer._stores)


def cache_bytes_per_token(config, dtype: torch.dtype = torch.bfloat16) -> tuple[int, int]:
    """(keys and values, index keys) in bytes per token over all layers, for a KeyeConfig."""
    size = dtype.itemsize
    text = config.text
    return 2 * text.layers * text.kv_heads * text.head_width * size, text.layers * config.indexer.width * size
