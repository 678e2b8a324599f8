"""The video service for `torch.utils.data.DataLoader`, with a position from which an epoch goes on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from minikeye.inputs.service.process import ProcessWorker, Worker
from minikeye.inputs.service.reader import VideoReader
from minikeye.inputs.service.request import FrameRequest, ServiceConfig, ServiceError


@dataclass(frozen=True)
class Position:
    """Where an epoch stands. All that a checkpoint has to keep: the order follows from the seed."""

    seed: int | None = None  # of the epoch; None: the requests in their own order
    index: int = 0  # samples of the epoch that have been handed out, bad ones included


def epoch_order(count: int, seed: int | None) -> list[int]:
    """In which order an epoch goes through `count` requests."""
    return list(range(count)) if seed is None else np.random.default_rng(seed).permutation(count).tolist()


class ClipDataset(IterableDataset):
    """Samples {"frames" uint8 [f 3 height width], "seconds" float64 [f], "source", "request", "index"}.

    >>> dataset = ClipDataset(requests, ServiceConfig(workers=2), position=Position(seed=epoch))
    >>> for sample in DataLoader(dataset, batch_size=None):
    ...     ...  # dataset.position is what to save after a step, sample["index"] + 1 of the epoch
    >>> dataset.position = Position(epoch, 1200)  # what was saved: the next loop begins there

    "request" is the position in `requests`, "index" the one in the epoch. Tensors are copies and may be written to.
    A bad video raises its ServiceError, and the next loop goes on after it; or `on_error` is called with it and the
    sample is left out. One worker of a DataLoader is enough, or none (num_workers=0), as the service has processes of
    its own. Several take turns, each with a service of its own. With any worker, `position` is not moved here, and the
    whole rounds that have come give it: Position(seed, sample["index"] + 1) after the last sample of a round.
    Samples of different shapes do not stack: batch_size=None, or a collate_fn. A loop that begins where an epoch ended
    gives nothing: set `position` for the next one. Raises ValueError for a position outside of the epoch.
    """

    def __init__(
        self,
        requests: Sequence[FrameRequest],
        config: ServiceConfig | None = None,
        *,
        position: Position | None = None,
        on_error: Callable[[ServiceError], None] | None = None,
        worker: Callable[[ServiceConfig], Worker] = ProcessWorker,
    ):
        super().__init__()
        self.requests, self.config = requests, ServiceConfig() if config is None else config
        self.position = Position() if position is None else position
        self.report = ""  # of the last loop that ended here, in one line
        self._on_error, self._worker = on_error, worker

    def __iter__(self) -> Iterator[dict[str, "Tensor | str | int"]]:
        seed, first = self.position.seed, self.position.index
        if not 0 <= first <= len(self.requests):
            raise ValueError(
                f"expected a position in an epoch of {len(self.requests)}, got {first}: begin the next one with "
                f"dataset.position = Position(seed)"
            )
        order = epoch_order(len(self.requests), seed)
        share = get_worker_info()
        number, workers = (0, 1) if share is None else (share.id, share.num_workers)
        mine = range(first + number, len(order), workers)
        config = replace(self.config, workers=max(1, self.config.workers // workers))
        with VideoReader(config, self._worker) as reader:
            try:
                for n, result in reader.stream(self.requests[order[index]] for index in mine):
                    self.position = Position(seed, mine[n] + 1)
                    if not isinstance(result, ServiceError):
                        yield {
                            "frames": torch.from_numpy(result.frames.copy()),
                            "seconds": torch.from_numpy(result.seconds.copy()),
                            "source": result.source,
                            "request": order[mine[n]],
                            "index": mine[n],
                        }
                    elif self._on_error is None:
                        raise result
                    else:
                        self._on_error(result)
            finally:
                self.report = reader.report()
