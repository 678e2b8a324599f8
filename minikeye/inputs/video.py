"""A video file becomes a few small RGB frames and their exact times.

Each kept frame is resized as soon as it is decoded, so memory holds the result, one decoder and 17 bytes per packet.
Times come from the presentation timestamps and count from the first frame shown: variable frame rate and a stream that
starts late stay exact. (The released code uses frame index / average rate.) Pixel aspect ratio is ignored, as released.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import Float64, UInt8
from torch import Tensor

from minikeye.config import VideoConfig
from minikeye.inputs.container import Orientation, PacketIndex, index_packets, open_video, plan_decode
from minikeye.inputs.sampling import VideoError, fit_size, frame_count, frame_indices, video_budget


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


def probe(path: str | Path) -> VideoInfo:
    """Count the frames of a video and read its size. Decodes one frame. Raises VideoError if it is no whole video."""
    return _info(index_packets(path))


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
    index = index_packets(path)
    info = _info(index)
    count = frame_count(info.seconds, info.fps, info.frames, config, videos=videos, fps=fps, max_frames=max_frames)
    indices = frame_indices(info.frames, count)
    budget = video_budget(info.seconds, config, videos)
    width, height = fit_size(info.width, info.height, count, budget, config, factor)
    frames = np.empty((count, 3, height, width), dtype=np.uint8)  # a torch copy would wake threads that then spin
    rows = {int(index.order[i]): row for row, i in enumerate(indices)}  # decoding position -> row of `frames`
    readings = [([(0, len(index.pts))], False)]  # decode everything
    if index.timed:
        readings.insert(0, (plan_decode(index.pts, index.keyframes, list(rows)), True))
    for plan, lean in readings:  # keyframe flags can be wrong (intra refresh): then, and only then, decode everything
        missing = set(rows.values())
        for row, frame in _decode(path, index, rows, plan, lean, (width, height)):
            frames[row] = frame
            missing.discard(row)
        if not missing:
            break
    else:
        lost = index.seconds(indices[min(missing)])
        raise VideoError(
            f"{path} is damaged: {len(missing)} of {count} frames cannot be decoded, first at {lost:.3f} s"
        )
    seconds = torch.tensor([index.seconds(i) for i in indices], dtype=torch.float64)
    return Video(torch.from_numpy(frames), seconds, tuple(indices), info)


def _info(index: PacketIndex) -> VideoInfo:
    frames = len(index.order)
    last = float(index.last_duration * index.time_base)
    if last <= 0:  # the file does not say how long the last frame is shown: as long as the others, on average
        last = index.seconds(frames - 1) / (frames - 1) if frames > 1 else 0.0
    seconds = index.seconds(frames - 1) + last
    if seconds <= 0:
        seconds = 1.0  # our choice: one frame without a duration is a video of one second
    turned = index.orientation.transpose
    width, height = (index.height, index.width) if turned else (index.width, index.height)
    start = float(index.pts[index.order[0]] * index.time_base)
    return VideoInfo(frames, frames / seconds, seconds, width, height, index.orientation.degrees, start)


def _decode(
    path: str | Path,
    index: PacketIndex,
    rows: dict[int, int],
    plan: list[tuple[int, int]],
    lean: bool,
    size: tuple[int, int],
) -> Iterator[tuple[int, UInt8[np.ndarray, "3 height width"]]]:
    """Decode the packets of `plan` and yield (row, frame) for the wanted ones, resized and upright."""
    # A frame is named by its time, or by its place among all frames where packets carry no time.
    row_of = {index.pts[position] if index.timed else position: row for position, row in rows.items()}
    resize = _Resizer(size, index.orientation)
    for place, frame in enumerate(_frames(path, plan, rows if lean else None)):
        row = row_of.get(frame.pts if index.timed else place)
        if row is not None and not frame.is_corrupt:
            yield row, resize(frame)


def _frames(path: str | Path, plan: list[tuple[int, int]], wanted: dict[int, int] | None) -> Iterator[av.VideoFrame]:
    """Decode the ranges of `plan` in one pass over the file. Packets between them are read but not decoded.

    Given `wanted` decoding positions, H.264 frames that are neither wanted nor a reference for others are left out.
    """
    with open_video(path) as (container, stream):
        stream.thread_type = "AUTO"
        decoder = stream.codec_context
        lean = wanted is not None and decoder.name == "h264"
        ranges = iter(plan)
        start, stop = next(ranges)
        for position, packet in enumerate(p for p in container.demux(stream) if p.size):
            if position < start:
                continue
            if lean:
                decoder.skip_frame = "DEFAULT" if position in wanted else "NONREF"
            yield from decoder.decode(packet)
            if position + 1 == stop:
                yield from decoder.decode(None)  # hands out what is still in the pipeline
                decoder.flush_buffers()
                start, stop = next(ranges, (stop, 0))
                if stop == 0:
                    return


# Accurate rounding costs nothing measurable and keeps libswscale off a short cut for unscaled pictures that left the
# last columns of 84x56 frames unwritten.
_BILINEAR = int(Interpolation.BILINEAR | Interpolation.ACCURATE_RND)


class _Resizer:
    """Decoded frame -> RGB uint8 [3 height width], upright.

    libswscale converts and resizes in one step (a triangle filter widened by the scale, i.e. bilinear with antialias):
    about 1 ms for 1280x720 -> 588x336 on one core. torch's antialiased uint8 interpolation takes as long, but needs the
    full-size RGB picture first. Planar "gbrp" takes half the time of "rgb24", which is also up to 2 grey levels off.
    """

    def __init__(self, size: tuple[int, int], orientation: Orientation):
        self.size = size[::-1] if orientation.transpose else size  # as stored
        self.orientation = orientation
        self._flips = orientation.flip_rows, orientation.flip_columns
        self.reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "3 height width"]:
        width, height = self.size
        planar = self.reformatter.reformat(frame, width, height, "gbrp", interpolation=_BILINEAR, threads=1)
        green, blue, red = (np.frombuffer(p, np.uint8).reshape(height, p.line_size)[:, :width] for p in planar.planes)
        picture = np.stack([red, green, blue])
        if self.orientation.transpose:
            picture = picture.transpose(0, 2, 1)
        rows, columns = (slice(None, None, -1 if flip else 1) for flip in self._flips)
        return picture[:, rows, columns]
