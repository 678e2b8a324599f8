"""Videos decoded ahead of a trainer, by processes that may die. The report has one sentence on ExtraIO (5.1.1): the
design is our choice.

Read in this order: request (what is asked, what comes, what can go wrong), worker (a job becomes clips), process (a
worker that can be killed), service (asyncio: order, bytes in flight, equal requests), reader (the same without
asyncio), dataset (for a DataLoader, with a position to resume from), actors (workers on other machines, by Ray).
"""

from minikeye.inputs.service.dataset import ClipDataset
from minikeye.inputs.service.reader import VideoReader
from minikeye.inputs.service.request import Clip, FrameRequest, ServiceConfig, ServiceError
from minikeye.inputs.service.service import VideoService

__all__ = ["Clip", "ClipDataset", "FrameRequest", "ServiceConfig", "ServiceError", "VideoReader", "VideoService"]
