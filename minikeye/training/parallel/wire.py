"""Collectives that count: what this process sends to the others, in bytes.

Ranks are those of a `group` (a torch.distributed ProcessGroup), in its order.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup | None  # None: all processes


@dataclass
class Sent:
    """What one process has sent to others so far."""

    bytes: int = 0


_counters: list[Sent] = []


@contextmanager
def count_sent() -> Iterator[Sent]:
    """Counts the bytes that this process sends to others inside the block. Forward and backward both count."""
    _counters.append(counter := Sent())
    try:
        yield counter
    finally:
        _counters.remove(counter)


def all_gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[*n] of each rank -> [ranks *n] on all of them, in rank order. Every rank must bring the same shape."""
    out = x.new_empty(group.size(), *x.shape)
    # Not the form that fills one tensor: versions of torch disagree on its name.
    dist.all_gather(list(out), x.contiguous(), group=group)
    _count(x.nbytes * (group.size() - 1))
    return out


def all_to_all(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """x[r] goes to rank r; entry r of what comes back is rank r's. [ranks *n] -> [ranks *n], the same on every rank."""
    return travel(x, [1] * group.size(), [1] * group.size(), group)


def travel(x: Tensor, sent: Sequence[int], received: Sequence[int], group: Group) -> Tensor:
    """x: sum(sent) rows, those for rank 0 first. The result: sum(received) rows, those from rank 0 first."""
    result, rank = x.new_empty(sum(received), *x.shape[1:]), dist.get_rank(group)
    dist.all_to_all_single(result, x.contiguous(), list(received), list(sent), group)
    _count((sum(sent) - sent[rank]) * x[:1].numel() * x.element_size())
    return result


class Exchange(torch.autograd.Function):
    """`travel`, whose gradients go the opposite way."""

    @staticmethod
    def forward(ctx, x: Tensor, sent: list[int], received: list[int], group: Group) -> Tensor:
        """x: sum(sent) rows, those for rank 0 first. The result: sum(received) rows, those from rank 0 first."""
        ctx.back = received, sent, group
        return travel(x, sent, received, group)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return travel(gradient, *ctx.back), None, None, None


def _count(sent: int) -> None:
    for counter in _counters:
        counter.bytes += sent
