"""What is asked of the video service, what comes back, and what can go wrong."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float64, UInt8

from minikeye.config import VideoConfig
from minikeye.inputs.sampling import VideoError
from minikeye.inputs.video import Video, VideoInfo


def available_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class ServiceConfig:
    """How many workers decode, and what they and the clips may take. All numbers are our choice.

    Raises ValueError where workers x threads is more than the cores: then every decoder waits for the others.
    """

    cores: int = field(default_factory=available_cores)  # that the service may use; the trainer's are not among them
    threads: int = 1  # of a worker. One thread a worker decodes most for the CPU it takes; more answer sooner
    workers: int | None = None  # None: as many as the cores allow
    flight_bytes: int = 2**30  # of a stream's clips that are being decoded or wait to be taken
    cache_bytes: int = 2**30  # of clips that are kept, the least recently used go first; 0: none are
    worker_bytes: int = 4 * 2**30  # address space that a worker may take for a job (Linux)
    limit: float = 60.0  # seconds by the clock that a worker may take for a request
    merged: int = 8  # waiting requests on one file that are decoded together, at most

    def __post_init__(self) -> None:
        if self.workers is None:
            object.__setattr__(self, "workers", max(1, self.cores // max(1, self.threads)))
        positive = ("cores", "threads", "workers", "flight_bytes", "worker_bytes", "limit", "merged")
        if bad := [name for name in positive if not getattr(self, name) > 0]:
            raise ValueError(f"expected a positive number for {bad[0]}, got {getattr(self, bad[0])}")
        if self.workers * self.threads > self.cores:
            raise ValueError(
                f"expected workers x threads of at most {self.cores} cores, got {self.workers} x {self.threads}: "
                f"lower one of them"
            )


@dataclass(frozen=True)
class FrameRequest:
    """Frames of one video file: exactly one of `indices`, `seconds` and `config` says which.

    >>> FrameRequest("a.mp4", (588, 336), indices=(0, 30, 60))  # in order of presentation, repeated or not
    >>> FrameRequest("a.mp4", (588, 336), seconds=(0.0, 1.0))  # the frames shown then, counted from the first one
    >>> FrameRequest("a.mp4", config=VideoConfig(), max_frames=64)  # those of read_video("a.mp4", ...), and their size

    Raises VideoError for anything else. Whether the file has these frames is found out where it is read.
    """

    source: str | Path
    size: Sequence[int] | None = None  # width, height of the frames that come, in pixels
    indices: Sequence[int] | None = None
    seconds: Sequence[float | int] | None = None
    config: VideoConfig | None = None  # sampled as `read_video` does, with the same options
    factor: int = 28
    videos: int = 1
    fps: float | int | None = None
    max_frames: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "source", os.fspath(self.source))
        for name in ("size", "indices", "seconds"):
            if (value := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(value))
        given = [name for name in ("indices", "seconds", "config") if getattr(self, name) is not None]
        if len(given) != 1:
            raise VideoError(f"expected one of indices, seconds and config, got {' and '.join(given) or 'none'}")
        if (self.size is None) != (self.config is not None):
            raise VideoError(f"expected a size with indices or seconds, and none with config, got {self.size}")
        if self.size is not None and (len(self.size) != 2 or min(self.size) < 1):
            raise VideoError(f"expected a size of (width, height) in pixels, got {self.size}")

    @property
    def frame_bytes(self) -> int:
        """Bytes of the frames. Where a config says which: of all that its budget allows, as the file is unknown.

        Only rounding of odd shapes to whole tokens exceeds that. A service counts the true bytes once a clip is there;
        so `max_frames`, where it is less, lets more requests be decoded at once.
        """
        if self.config is None:
            count = len(self.indices if self.seconds is None else self.seconds)
            return 3 * count * math.prod(self.size)
        config, budget = self.config, self.config.video_tokens / self.videos
        frames = max(1, math.floor(budget / config.min_frame_tokens))
        frames = frames if self.max_frames is None else max(1, min(frames, self.max_frames))
        return math.ceil(3 * self.factor**2 * min(frames * config.max_frame_tokens, budget + frames))


@dataclass(frozen=True)
class Clip:
    """The frames of one request. The array may be shared with others who asked for the same, so it is read-only."""

    source: str  # as it was asked for
    frames: UInt8[np.ndarray, "f 3 height width"]  # RGB, 0..255
    seconds: Float64[np.ndarray, " f"]  # when each frame is shown, after the first frame of the file: not when asked
    indices: tuple[int, ...]  # position of each frame in the file, in order of presentation
    info: VideoInfo
    notes: tuple[str, ...] = ()  # as of `read_video`

    def video(self) -> Video:
        """A copy as `read_video` gives it, whose tensors may be written to."""
        frames, seconds = torch.from_numpy(self.frames.copy()), torch.from_numpy(self.seconds.copy())
        return Video(frames, seconds, self.indices, self.info, self.notes)


class ServiceError(VideoError):
    """A request that got no clip: `source` is the file, `reason` says why. Other requests are not concerned."""

    def __init__(self, source: str, reason: str):
        super().__init__(source, reason)  # both, so that it can be pickled
        self.source, self.reason = source, reason

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}" if self.source else self.reason


class BadVideo(ServiceError):
    """The file cannot be read, or has no such frames. Asking again gives the same."""


class TooLarge(ServiceError):
    """The frames take more than `flight_bytes`."""


class OutOfMemory(ServiceError):
    """Decoding takes more than `worker_bytes`."""


class TookTooLong(ServiceError):
    """The worker did not answer within `limit` seconds and was killed."""


class WorkerDied(ServiceError):
    """Three workers died on this request, one after another, or workers do not start."""
