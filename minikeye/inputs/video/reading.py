"""A video file becomes a few small RGB frames and their exact times.

Each kept frame is resized as soon as it is decoded, so memory holds the result, one decoder and 18 bytes per packet.
Times come from the presentation timestamps and count from the first frame shown: variable frame rate and a stream that
starts late stay exact. (The released code uses frame index / average rate.) Pixel aspect ratio is ignored, as released.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import av
import numpy as np
import torch
from jaxtyping import Float64, UInt8
from torch import Tensor

from minikeye.config import VideoConfig
from minikeye.inputs.sampling import Sampling, VideoError, sample
from minikeye.inputs.video.container import PacketIndex, index_packets
from minikeye.inputs.video.envelope import open_video, packets_of
from minikeye.inputs.video.frames import FrameResizer
from minikeye.inputs.video.ranges import plan_decode


@dataclass(frozen=True)
class VideoInfo:
    """What a video file holds. Counted from its packets, never taken from what the header states."""

    frames: int  # frames that are shown
    fps: float  # frames per second, frames / seconds
    seconds: float  # from the first frame shown to the end of the last
    width: int  # pixels, after rotation
    height: int  # pixels, after rotation
    rotation: int  # degrees anticlockwise that the file asks for: 0, 90, 180 or 270; frames come rotated
    start: float  # seconds, time of the first frame in the file's own clock


@dataclass(frozen=True)
class Video:
    """Sampled frames of a video, upright and at the size the model reads."""

    frames: UInt8[Tensor, "f 3 height width"]  # RGB, 0..255
    seconds: Float64[Tensor, " f"]  # time of each frame after the first frame of the file
    indices: tuple[int, ...]  # position of each frame in the file, in order of presentation
    info: VideoInfo  # the file: native size, rate, duration
    notes: tuple[str, ...] = ()  # for the user: assumed times, fewer or smaller frames than asked, concealed damage


@dataclass(frozen=True)
class VideoPlan:
    """What will be read of a video, known before it is decoded."""

    path: str | Path
    index: PacketIndex
    info: VideoInfo
    request: dict[str, object]  # what was asked of the file: arguments of `sample`, or those of `plan_frames`
    sampling: Sampling
    span: tuple[float, float] | None = None  # seconds from..to where only a part is read; None: all of it

    @property
    def seconds(self) -> list[float]:
        """Time of each frame after the first frame of the file."""
        return [self.index.seconds(i) for i in self.sampling.indices]


def probe(path: str | Path) -> VideoInfo:
    """Count the frames of a video and read its size. Decodes one frame. Raises VideoError if it is no whole video."""
    return _info(index_packets(path))


def plan_video(
    path: str | Path,
    config: VideoConfig,
    factor: int = 28,
    videos: int = 1,
    *,
    fps: float | int | None = None,
    max_frames: int | None = None,
    index: PacketIndex | None = None,
) -> VideoPlan:
    """The frames and their size that `read_video` gives, from the packets alone: `index`, where they were read before.

    Raises VideoError as `read_video` does.
    """
    request = {"config": config, "factor": factor, "videos": videos, "fps": fps, "max_frames": max_frames}
    return _planned(path, index_packets(path) if index is None else index, request)


def plan_span(
    plan: VideoPlan,
    span: tuple[float, float],
    config: VideoConfig,
    *,
    fps: float | int | None = None,
    max_frames: int | None = None,
) -> VideoPlan:
    """A part of a planned video, by numbers of its own: the frames shown from the first second of `span` to its last.

    They are sampled as a video of their own would be, and their times stay those of the whole. `config` has the budget
    of the part alone. Raises VideoError for a span that is none or lies outside of the video, and as
    `plan_video` does. Nothing of the file is read.
    """
    end = math.ceil(round(10 * plan.info.seconds, 6)) / 10  # as it is printed
    if not 0 <= span[0] < span[1] <= end:
        raise VideoError(f"expected 0 <= start < end <= {end:.1f} s of the video, got {span[0]:g} to {span[1]:g}")
    request = {**plan.request, "config": config, "videos": 1, "fps": fps, "max_frames": max_frames}
    return _planned(plan.path, plan.index, request, span)


def plan_frames(
    path: str | Path,
    index: PacketIndex,
    size: tuple[int, int],
    *,
    indices: Sequence[int] = (),
    seconds: Sequence[float] = (),
) -> VideoPlan:
    """Chosen frames at a size (width, height) in pixels: those `indices`, and those shown at `seconds`.

    Indices count in order of presentation, seconds from the first frame shown. The plan has each frame once, in order.
    Raises VideoError for a frame or a second that lies outside of the video.
    """
    return _planned(path, index, {"size": size, "chosen": tuple(indices), "seconds": tuple(seconds)})


def _chosen(index: PacketIndex, info: VideoInfo, size: tuple[int, int], frames: tuple, seconds: tuple) -> Sampling:
    if bad := [i for i in frames if not 0 <= i < info.frames]:
        raise VideoError(f"expected frames 0 to {info.frames - 1} of the video, got {bad[0]}")
    if bad := [s for s in seconds if not 0 <= s <= info.seconds]:
        raise VideoError(f"expected seconds 0 to {info.seconds:.3f} of the video, got {bad[0]:g}")
    if not frames and not seconds:
        raise VideoError("expected at least one frame or second to read, got none")
    wanted = {*frames, *(index.shown_at(second) for second in seconds)}
    return Sampling(tuple(sorted(wanted)), *size, 0, ())


def _planned(
    path: str | Path, index: PacketIndex, request: dict[str, object], span: tuple[float, float] | None = None
) -> VideoPlan:
    info = _info(index)
    if "chosen" in request:
        sampling = _chosen(index, info, request["size"], request["chosen"], request["seconds"])
        return VideoPlan(path, index, info, request, sampling)
    first, stop, seconds, fps = 0, info.frames, info.seconds, info.fps
    if span is not None:
        first, stop = index.shown_at(span[0]), index.shown_at(span[1]) + 1
        seconds = (index.seconds(stop) if stop < info.frames else info.seconds) - index.seconds(first)
        fps = (stop - first) / seconds
    sampling = sample(seconds, fps, stop - first, (info.width, info.height), **request)
    sampling = replace(sampling, indices=tuple(first + i for i in sampling.indices))
    return VideoPlan(path, index, info, request, sampling, span)


def read_video(
    path: str | Path,
    config: VideoConfig,
    factor: int = 28,
    videos: int = 1,
    *,
    fps: float | int | None = None,
    max_frames: int | None = None,
) -> Video:
    """Sample a video as the released model does: `config.fps` frames per second within the token budget.

    `factor` is the side of a visual token in pixels (patch_size * merge), `videos` the number of videos that share the
    budget, `fps` replaces `config.fps`, `max_frames` limits the frames. Frames lie at round(linspace(0, N - 1, n)) of
    the N frames of the file. Raises VideoError, naming the file and the remedy, for anything that cannot be read whole.
    """
    return decode_video(plan_video(path, config, factor, videos, fps=fps, max_frames=max_frames))


def decode_video(plan: VideoPlan, threads: int = 0) -> Video:
    """Decode a plan on `threads` threads (0: all cores). Raises VideoError where a frame cannot be decoded."""
    index, sampling = plan.index, plan.sampling
    count = len(sampling.indices)
    frames = np.empty((count, 3, sampling.height, sampling.width), dtype=np.uint8)  # torch would wake threads that spin
    rows = {int(index.order[i]): row for row, i in enumerate(sampling.indices)}  # decoding position -> row of `frames`
    reading = _Reading(plan, rows, frames, threads)
    if index.timed:
        with suppress(VideoError):  # what is really damaged raises again below
            reading.some()
    if reading.missing or reading.corrupt:  # or keyframe flags are wrong (intra refresh, APNG): then decode everything
        reading.all()
    if reading.missing and not reading.corrupt and len(reading.came) < len(index.order) and not reading.complains():
        # The decoder is content, so these packets hold no picture of their own: plan again without them.
        again = _planned(plan.path, index.only(reading.came), plan.request, plan.span)
        return decode_video(again, threads)
    if reading.missing:
        lost = index.seconds(sampling.indices[min(reading.missing)])
        raise VideoError(
            f"{plan.path} is damaged: {len(reading.missing)} of {count} frames cannot be decoded, first at {lost:.3f} s"
        )
    seconds = torch.tensor(plan.seconds, dtype=torch.float64)
    notes = index.notes + sampling.notes
    if doubtful := [f"{seconds[row]:.1f}" for position, row in rows.items() if reading.doubts(position)]:
        if threads != 1:  # several show another picture at every repeat where one is broken
            return decode_video(plan, threads=1)
        times = ", ".join(doubtful[:6]) + (f" and {len(doubtful) - 6} more" if len(doubtful) > 6 else "")
        notes += (f"{plan.path} is damaged: the frames at {times} s build on pictures that could not be decoded",)
    return Video(torch.from_numpy(frames), seconds, sampling.indices, plan.info, notes)


def _info(index: PacketIndex) -> VideoInfo:
    frames = len(index.order)
    last = float(index.last_duration * index.time_base)
    if last <= 0:  # the file does not say how long the last frame is shown: as long as the others, on average
        last = index.seconds(frames - 1) / (frames - 1) if frames > 1 else 0.0
    seconds = index.seconds(frames - 1) + last
    seconds = seconds if seconds > 0 else 1.0  # our choice: one frame without a duration is a video of one second
    width, height = (index.height, index.width) if index.orientation.transpose else (index.width, index.height)
    start = float(index.pts[index.order[0]] * index.time_base)
    return VideoInfo(frames, frames / seconds, seconds, width, height, index.orientation.degrees, start)


class _Reading:
    """Decodes the wanted frames of a plan into rows of `frames`; knows which ones are still missing, and why.

    A decoder hands a packet's time on to the frame that begins in it. So every packet is given its own number for a
    time, and the frame says which packet it came from, whatever the file's clock does.
    """

    def __init__(
        self, plan: VideoPlan, rows: dict[int, int], frames: UInt8[np.ndarray, "f 3 height width"], threads: int
    ):
        self._path, self._index, self._rows, self._frames, self._threads = plan.path, plan.index, rows, frames, threads
        self._resize = FrameResizer((plan.sampling.width, plan.sampling.height), plan.index.orientation)
        self.missing = set(rows.values())
        self.corrupt: set[int] = set()  # packets of pictures that the decoder marked as damaged
        self.came: set[int] = set()  # packets of the frames that came out when everything was decoded

    def some(self) -> None:
        """Decode from the keyframes before the wanted frames."""
        index = self._index
        wanted = [p + n for p in self._rows for n in (0, 1) if n == 0 or index.second[p + 1 : p + 2] == b"\1"]
        for frame in self._decoded(plan_decode(index.pts, index.keyframes, wanted), set(wanted)):
            self._keep(self._rows.get(frame.pts), frame)

    def all(self) -> None:
        """Decode everything. Where packets state no times, the n-th frame that comes out is the n-th that is shown."""
        numbers = {int(position): n for n, position in enumerate(self._index.order)}
        by_number = {numbers[position]: row for position, row in self._rows.items()}
        self.corrupt.clear()
        for n, frame in enumerate(self._decoded([(0, len(self._index.pts))])):
            self.came.add(frame.pts)
            self._keep(self._rows.get(frame.pts) if self._index.timed else by_number.get(n), frame)

    def complains(self) -> bool:
        """Whether a decoder that stops at errors, instead of going on as it can, stops anywhere."""
        try:
            return any(frame.is_corrupt for frame in self._decoded([(0, len(self._index.pts))], errors="explode"))
        except VideoError:
            return True

    def doubts(self, position: int) -> bool:
        """Whether a damaged picture lies between a frame and the keyframe that its decoding starts from."""
        index = self._index
        start = max(0, index.keyframes.rfind(1, 0, position + 1))
        return any(start <= p < position and index.pts[p] >= index.pts[start] for p in self.corrupt)

    def _keep(self, row: int | None, frame: av.VideoFrame) -> None:
        if frame.is_corrupt:
            self.corrupt.add(frame.pts)
        elif row is not None and row in self.missing:
            self._frames[row] = self._resize(frame)
            self.missing.discard(row)

    def _decoded(
        self, plan: list[tuple[int, int]], wanted: set[int] | None = None, errors: str = ""
    ) -> Iterator[av.VideoFrame]:
        """Decode the ranges of `plan` in one pass over the file; `pts` of a frame is the position of its packet.

        Packets between the ranges are read but not decoded. Given `wanted` positions, H.264 frames that are neither
        wanted nor a reference for others are left out. errors: libavcodec's err_detect.
        """
        with open_video(self._path) as (container, stream):
            # Threads that decode whole frames mark pictures as damaged whose second field is still to come.
            stream.thread_type = "SLICE" if any(self._index.second) else "AUTO"
            decoder = stream.codec_context
            decoder.thread_count = self._threads
            if errors:
                decoder.options = {**decoder.options, "err_detect": errors}
            lean = wanted is not None and decoder.name == "h264"
            ranges = iter(plan)
            start, stop = next(ranges)
            for position, packet in enumerate(p for p in packets_of(container, stream) if p.size):
                if position < start:
                    continue
                if lean:
                    decoder.skip_frame = "DEFAULT" if position in wanted else "NONREF"
                packet.pts = position
                yield from decoder.decode(packet)
                if position + 1 == stop:
                    yield from decoder.decode(None)  # hands out what is still in the pipeline
                    decoder.flush_buffers()
                    start, stop = next(ranges, (stop, 0))
                    if stop == 0:
                        return
