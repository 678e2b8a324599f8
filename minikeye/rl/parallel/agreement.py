"""Rows split over the ranks, and what all of them have to agree on: results, errors, numbers for the log.

Every rank is given the whole batch, works on its share of the rows, and is told what came of the others', which is
small. What is decided next (is there enough to learn from? is a number not finite?) follows from what all know, so that
all go the same way: a rank that went another would wait for the others, and they for it.

Report, section 5.1, names no such thing for post-training; the layout is our choice.
"""

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from itertools import pairwise
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from minikeye.keye import KeyeVL
from minikeye.training.parallel.mesh import Ranks
from minikeye.training.parallel.wire import all_gather

Result = TypeVar("Result")
PATIENCE = 600.0  # seconds for `mesh.join`: answers end at different times, and a rank waits for the longest
KINDS = (FloatingPointError, ValueError, RuntimeError)  # of errors that keep their kind on other ranks


def require_rows_alone(model: KeyeVL, ranks: Ranks) -> None:
    """Raise ValueError for ranks that split experts or context, and for a model that is not spread over them."""
    context, experts = ranks.along("context")[1], ranks.along("experts")[1]
    if context > 1 or experts > 1:
        raise ValueError(
            f"expected ranks that split rows alone, got ep {experts} and cp {context}: reward and distillation know "
            f"neither, start without --ep and --cp"
        )
    if ranks.size > 1 and not isinstance(model, FSDPModule):
        raise ValueError(f"expected a model that lies on all {ranks.size} ranks: call spread(model, ranks) first")


def require_whole(model: KeyeVL) -> None:
    """Raise ValueError for a model that is spread over ranks."""
    if isinstance(model, FSDPModule):
        raise ValueError(
            "expected a model of one process, got one that is spread over ranks: agents learn in one process each, "
            "run one for each seed"
        )


def require_one_process(instead: str) -> None:
    """Raise ValueError where torchrun started several processes. instead: what to run, in words."""
    if (size := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(f"expected one process, got {size} by torchrun: {instead}")


def shares(count: int, number: int) -> list[slice]:
    """`count` rows in order, cut into that many shares; they differ by one at most, and are empty where rows lack.

    >>> shares(3, 2)
    [slice(0, 1, None), slice(1, 3, None)]
    """
    cuts = [count * n // number for n in range(number + 1)]
    return [slice(*ends) for ends in pairwise(cuts)]


def share(ranks: Ranks, count: int) -> slice:
    """This rank's of `count` rows."""
    return shares(count, ranks.size)[ranks.rank]


def by_rows(ranks: Ranks, count: int, work: Callable[[slice], Result]) -> list[Result]:
    """work(rows) of every rank that has some of the `count` rows, in their order, on every rank; alone: [work(all)].

    Tensors come to the device of the rank that reads them, or stay on the CPU. work takes part in no collective. What
    it raises on one rank is raised on all, as of `alike`.
    """
    own, result = share(ranks, count), None
    with alike(ranks):
        if own.start < own.stop or not count:
            result = work(own)
    if ranks.everyone is None:
        return [result]
    torch.save(result, written := BytesIO())
    found = [b""] * ranks.size
    dist.all_gather_object(found, written.getvalue(), ranks.everyone.get_group())
    here = lambda storage, place: storage if place == "cpu" else storage.cuda()  # noqa: E731
    read = [torch.load(BytesIO(each), here, weights_only=False) for each in found]
    return [each for each in read if each is not None]


@contextmanager
def alike(ranks: Ranks) -> Iterator[None]:
    """What the block raises on one rank is raised on every rank, which all have to leave it; others say whose it is.

    An error in the middle of what ranks do together, such as a pass of a model that is spread, is not caught in time:
    the ranks that wait there end by the timeout.
    """
    own: Exception | None = None
    try:
        yield
    except Exception as error:
        own = error
    found: list[tuple[int, str] | None] = [None] * ranks.size
    if ranks.everyone is not None:
        if not int(ranks.total(torch.tensor(int(own is not None), device=ranks.everyone.device_type))):
            return
        dist.all_gather_object(found, None if own is None else _told(own), ranks.everyone.get_group())
    if own is not None:
        raise own
    if not any(found):
        return
    rank, (kind, words) = next((rank, each) for rank, each in enumerate(found) if each is not None)
    raise KINDS[kind](f"rank {rank}: {words}")


def _told(error: Exception) -> tuple[int, str]:
    kind = next((n for n, kind in enumerate(KINDS) if isinstance(error, kind)), None)
    return (KINDS.index(RuntimeError), f"{type(error).__name__}: {error}") if kind is None else (kind, str(error))


def totals(
    ranks: Ranks, numbers: Mapping[str, Tensor | float], largest: Collection[str] = ()
) -> dict[str, Tensor | float]:
    """Numbers of which every rank has a part, summed over the ranks; of those in `largest` the largest is taken.

    The same names in the same order on every rank. Alone: as they are.
    """
    if ranks.everyone is None:
        return dict(numbers)
    own = torch.stack(
        [torch.as_tensor(x, dtype=torch.float64, device=ranks.everyone.device_type) for x in numbers.values()]
    )
    everyone = all_gather(own.detach(), ranks.everyone.get_group())  # [ranks, numbers]
    best, sums = everyone.amax(dim=0), everyone.sum(dim=0)
    return {name: (best if name in largest else sums)[n] for n, name in enumerate(numbers)}
