"""Random numbers that belong to a sample, not to a batch.

Every sample owns one row of uniform numbers, drawn on the CPU from a generator whose seed is made of (seed, split,
index). All that is random about a video is computed from its row, so a video is the same in any batch, on any device.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

WIDTH = 768  # uniform numbers a sample owns; a hard video with a crowd of things uses most of them


def generator(*name: int | str) -> torch.Generator:
    """A generator seeded by a name of numbers and words, e.g. (seed, "train", 17)."""
    digest = hashlib.blake2b("/".join(map(str, name)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


class Draws:
    """Hands out the columns of a table of uniform numbers, each once; every result starts with the axis b."""

    def __init__(self, table: Float[Tensor, "b n"]):
        self._table = table
        self._used = 0

    @classmethod
    def of_samples(cls, seed: int, split: str, indices: Sequence[int]) -> "Draws":
        """One row per sample, from its own generator."""
        rows = [torch.rand(WIDTH, generator=generator(seed, split, n), dtype=torch.float64) for n in indices]
        return cls(torch.stack(rows) if rows else torch.empty(0, WIDTH, dtype=torch.float64))

    @classmethod
    def of_batch(cls, count: int, *name: int | str) -> "Draws":
        """`count` rows from one generator: quick, for batches that never need their samples one by one."""
        return cls(torch.rand(count, WIDTH, generator=generator(*name), dtype=torch.float64))

    @property
    def batch(self) -> int:
        return len(self._table)

    def uniform(self, low: float | int, high: float | int, *shape: int) -> Float[Tensor, "b ..."]:
        """float64 [b *shape], uniform in [low, high). Raises IndexError when a row is used up."""
        count = math.prod(shape)
        if self._used + count > self._table.shape[1]:
            raise IndexError(f"a sample has {self._table.shape[1]} random numbers and all are used: raise draws.WIDTH")
        columns = self._table[:, self._used : self._used + count].reshape(-1, *shape)
        self._used += count
        return low + (high - low) * columns

    def integer(self, below: int | Int[Tensor, "b ..."], *shape: int) -> Int[Tensor, "b ..."]:
        """int64 [b *shape], uniform in 0..below-1, where `below` is a number or one number per result."""
        return (self.uniform(0, 1, *shape) * below).long()  # float64: never rounds up to `below`

    def chance(self, probability: float | int, *shape: int) -> Bool[Tensor, "b ..."]:
        """bool [b *shape], true with the given probability."""
        return self.uniform(0, 1, *shape) < probability
