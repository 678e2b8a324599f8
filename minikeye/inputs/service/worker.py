"""What a worker does: a job, which is a few requests on one file, becomes clips and errors.

`answer` is all of it, and knows nothing of processes: a process of this machine calls it, or a Ray actor does.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from minikeye.inputs.sampling import VideoError
from minikeye.inputs.service.cache import ByteCache
from minikeye.inputs.service.request import BadVideo, Clip, FrameRequest, OutOfMemory, ServiceError, TooLarge
from minikeye.inputs.video import Video, VideoPlan, decode_video, plan_frames, plan_video
from minikeye.inputs.video.container import PacketIndex, index_packets

_INDEXES: ByteCache[PacketIndex] = ByteCache(2**26)  # of the files read last, as reading all packets of a file is slow


@dataclass(frozen=True)
class Job:
    """Requests on one file for one worker."""

    requests: tuple[FrameRequest, ...]
    threads: int  # that decode
    room: int  # bytes that the frames of a request may take


Answer = Clip | ServiceError


def answer(job: Job) -> list[Answer]:
    """A clip or an error for each request of a job.

    Requests of one size are decoded together, in one pass over the file. Where that leaves any doubt (a damaged file,
    packets without a picture), each is decoded alone instead, so that all get what they would get alone.
    """
    plans = [_typed(request, _plan, request, job.room) for request in job.requests]
    answers: list[Answer | None] = [plan if isinstance(plan, ServiceError) else None for plan in plans]
    if answers.count(None) > 1:
        _together(job, plans, answers)
    for n, request in enumerate(job.requests):
        if answers[n] is None:
            answers[n] = _typed(request, _alone, request, plans[n], job.threads)
    return answers


def _plan(request: FrameRequest, room: int) -> VideoPlan:
    """Which frames are to be read. Raises VideoError, and TooLarge where they take more than `room` bytes."""
    index = _index(request.source)
    if request.config is None:
        chosen = {"indices": request.indices or (), "seconds": request.seconds or ()}
        plan = plan_frames(request.source, index, request.size, **chosen)
    else:
        options = {"fps": request.fps, "max_frames": request.max_frames, "index": index}
        plan = plan_video(request.source, request.config, request.factor, request.videos, **options)
    count = max(len(plan.sampling.indices), len(request.indices or request.seconds or ()))  # some may be asked twice
    size = 3 * count * plan.sampling.width * plan.sampling.height
    if size > room:
        raise TooLarge(request.source, f"expected frames of at most {room:,} bytes (flight_bytes), these take {size:,}")
    return plan


def _index(path: str) -> PacketIndex:
    """The packet index of a file, kept until the file changes."""
    if not os.path.isfile(path):  # a pipe, which would be waited for; no file at all
        return index_packets(path)  # which says so
    state = os.stat(path)
    key = (os.path.realpath(path), state.st_size, state.st_mtime_ns)
    if (index := _INDEXES.get(key)) is None:
        index = index_packets(path)
        _INDEXES.put(key, index, 26 * len(index.pts))  # a time, two marks, an order; times of 8 bytes twice
    return index


def _together(job: Job, plans: Sequence[VideoPlan | ServiceError], answers: list[Answer | None]) -> None:
    """Fill in the answers to requests that one pass over the file answers without a doubt."""
    sizes: dict[tuple[int, int], list[int]] = {}
    for n, plan in enumerate(plans):
        if isinstance(plan, VideoPlan):
            sizes.setdefault((plan.sampling.width, plan.sampling.height), []).append(n)
    for size, members in sizes.items():
        frames = sorted({i for n in members for i in plans[n].sampling.indices})
        if len(members) < 2 or 3 * len(frames) * size[0] * size[1] > job.room:
            continue
        path, index = plans[members[0]].path, plans[members[0]].index
        try:
            video = decode_video(plan_frames(path, index, size, indices=frames), job.threads)
        except VideoError:
            continue
        if video.indices == tuple(frames) and video.notes == index.notes:
            for n in members:
                notes = index.notes + plans[n].sampling.notes
                answers[n] = _clip(job.requests[n], replace(video, notes=notes), plans[n].sampling.indices)


def _clip(request: FrameRequest, video: Video, planned: Sequence[int] | None = None) -> Clip:
    """The frames of a request, in its order, out of a video that holds them among others."""
    seconds = video.seconds.numpy()
    if request.indices is not None:
        rows = np.searchsorted(video.indices, request.indices)
    elif request.seconds is not None:  # the last frame that has begun; frames of one time: the last of them
        rows = np.maximum(np.searchsorted(seconds, request.seconds, side="right") - 1, 0)
    else:
        rows = np.searchsorted(video.indices, video.indices if planned is None else planned)
    same = len(rows) == len(seconds) and (rows == np.arange(len(rows))).all()
    frames = video.frames.numpy() if same else video.frames.numpy()[rows]
    indices = tuple(video.indices[row] for row in rows)
    return Clip(request.source, frames, seconds[rows], indices, video.info, video.notes)


def _alone(request: FrameRequest, plan: VideoPlan, threads: int) -> Clip:
    return _clip(request, decode_video(plan, threads))


def _typed(request: FrameRequest, work: Callable, *arguments: object) -> Clip | VideoPlan | ServiceError:
    """The result of `work`, or the one error that says what went wrong."""
    try:
        return work(*arguments)
    except ServiceError as error:
        return error
    except MemoryError as error:
        return OutOfMemory(request.source, f"decoding takes more than worker_bytes ({error or 'no memory'})")
    except VideoError as error:
        if isinstance(error.__cause__, MemoryError):
            return OutOfMemory(request.source, f"decoding takes more than worker_bytes ({error})")
        return BadVideo(request.source, str(error))
    except Exception as error:  # of a library: the worker lives on
        return ServiceError(request.source, f"{type(error).__name__}: {error}")
