"""Videos decoded ahead of a trainer, by processes that may die. The report has one sentence on ExtraIO (5.1.1): the
design is our choice.

Read in this order: request (what is asked, what comes, what can go wrong), worker (a job becomes clips), process (a
worker that can be killed), service (asyncio: order, bytes in flight, equal requests), reader (the same without
asyncio), dataset (for a DataLoader, with a position to resume from), actors (workers on other machines, by Ray).
"""

from minikeye.inputs.service.dataset import ClipDataset, Position
from minikeye.inputs.service.reader import VideoReader
from minikeye.inputs.service.request import (
    BadVideo,
    Clip,
    FrameRequest,
    OutOfMemory,
    ServiceConfig,
    ServiceError,
    TookTooLong,
    TooLarge,
    WorkerDied,
)
from minikeye.inputs.service.service import VideoService

__all__ = [
    "BadVideo",
    "Clip",
    "ClipDataset",
    "FrameRequest",
    "OutOfMemory",
    "Position",
    "ServiceConfig",
    "ServiceError",
    "TooLarge",
    "TookTooLong",
    "VideoReader",
    "VideoService",
    "WorkerDied",
]
