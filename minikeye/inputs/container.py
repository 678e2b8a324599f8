"""What a video file holds, read without decoding it: when each frame is shown, and where decoding may start.

Stated durations and frame counts are often wrong, so packets are counted. What is kept of each packet takes 17 bytes.
"""

import os
import struct
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from minikeye.inputs.sampling import VideoError, check_shape

MAX_SIDE = 16_384  # pixels. Our choice: the limit of common decoders; one RGB frame of this side is 768 MiB

# Formats that libavformat takes for video: pictures (use an image input) and text files drawn as a terminal.
_NOT_VIDEO = {"image2", "tty", "bin", "xbin", "adf", "idf"}

# What an MP4 file is made of. Another name at this level means that something else follows the video.
_BOXES = set(b"ftyp moov mdat free skip wide moof mfra sidx ssix styp emsg prft pdin uuid meta udta".split())


@dataclass(frozen=True)
class Orientation:
    """How stored pixels become shown pixels: transpose first, then the flips. From the display matrix."""

    transpose: bool = False  # rows become columns
    flip_columns: bool = False  # left and right change places
    flip_rows: bool = False  # top and bottom change places
    degrees: int = 0  # the same as an anticlockwise rotation, 0, 90, 180 or 270; a mirror image is not counted

    @classmethod
    def of(cls, frame: av.VideoFrame) -> "Orientation":
        """Read the display matrix: x' = a x + c y, y' = b x + d y. Raises VideoError unless it is a quarter turn."""
        data = frame.side_data.get("DISPLAYMATRIX")
        if data is None:
            return cls()
        a, b, _, c, d = (v / 65536 for v in struct.unpack("5i", bytes(data)[:20]))
        straight, turned = abs(a) > 0.99 and abs(d) > 0.99, abs(b) > 0.99 and abs(c) > 0.99
        if straight == turned or min(abs(b), abs(a)) > 0.01:
            raise VideoError(
                f"expected a rotation by a quarter turn, got {frame.rotation} degrees: re-encode it upright"
            )
        degrees = round(frame.rotation / 90) * 90 % 360
        return cls(turned, (c if turned else a) < 0, (b if turned else d) < 0, degrees)


@dataclass(frozen=True)
class PacketIndex:
    """The packets of a video stream in decoding order, and what the first frame says."""

    pts: array  # presentation time of each packet, in units of time_base; the ordinal where `timed` is False
    keyframes: bytearray  # 1 where decoding may start
    order: np.ndarray  # int64, decoding positions in order of presentation: frame 0 is packet order[0]
    time_base: Fraction  # seconds
    last_duration: int  # how long the last frame is shown, in units of time_base; 0 where the file does not say
    timed: bool  # False for streams that store no usable presentation time (AVI with B-frames, raw H.264)
    width: int  # pixels, as stored
    height: int
    orientation: Orientation

    def seconds(self, frame: int) -> float:
        """Time of a frame (position in order of presentation) after the first one, exact but for one rounding."""
        return float((self.pts[self.order[frame]] - self.pts[self.order[0]]) * self.time_base)


@contextmanager
def open_video(path: str | Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file and its first real video stream. An error of PyAV inside the block becomes one VideoError."""
    if not Path(path).is_file():
        raise VideoError(f"expected a video file, found no file at {path}")
    size = os.path.getsize(path)
    if size == 0:
        raise VideoError(f"expected a video file, {path} is empty (0 bytes)")
    stated = stated_size(path)
    if stated > size:
        raise VideoError(f"{path} is truncated: it says it holds {stated} bytes and has {size}; copy it again")
    try:
        with av.open(f"file:{path}", metadata_errors="ignore", options={"protocol_whitelist": "file"}) as container:
            name = container.format.name
            if name in _NOT_VIDEO or name.endswith("_pipe"):
                raise VideoError(f"expected a video, {path} is read as {name!r}: pass pictures as images")
            streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
            if not streams:
                kinds = sorted({s.type for s in container.streams if s.type != "video"}) or ["nothing"]
                raise VideoError(f"expected a video stream in {path}, found {' and '.join(kinds)} only")
            for other in container.streams:  # spares reading the sound
                if other.index != streams[0].index:
                    other.discard = av.stream.Discard.all
            yield container, streams[0]
    except EOFError as error:
        raise VideoError(f"expected at least one frame in {path}, which ends before it: empty or truncated") from error
    except av.error.FFmpegError as error:
        raise VideoError(f"{path} is not a video that can be read, or it is damaged: {error}") from error


def stated_size(path: str | Path) -> int:
    """Bytes that an MP4 or Matroska file says it has, to find truncated ones; 0 where the container does not say."""
    with open(path, "rb") as file:
        if file.read(4) == b"\x1aE\xdf\xa3":  # EBML: a header, then one segment
            return _skip_ebml(file, 4) and _skip_ebml(file, file.tell() + 4)
        end = 0
        while True:  # MP4: boxes one after another, each starting with its size and its name
            file.seek(end)
            head = file.read(16)
            if head[4:8] not in _BOXES or (end == 0 and head[4:8] != b"ftyp"):
                return end
            size = int.from_bytes(head[:4], "big")
            if size == 1:  # a 64-bit size follows the name
                size = int.from_bytes(head[8:16], "big")
            if size < 8:  # 0 means up to the end of the file
                return end
            end += size


def _skip_ebml(file, at: int) -> int:
    """End of the EBML element whose size field is at `at`, the file left there; 0 for a size that is not stated."""
    file.seek(at)
    first = file.read(1)
    width = 9 - first[0].bit_length() if first and first[0] else 0
    rest = file.read(max(width - 1, 0))
    unknown = (1 << 7 * width) - 1
    size = int.from_bytes(first + rest, "big") & unknown if width else unknown
    if size == unknown:
        return 0
    return file.seek(file.tell() + size)


def index_packets(path: str | Path) -> PacketIndex:
    """Read all packets of a video, decode one frame. Raises VideoError for anything that is not a whole video.

    Packets that an edit list hides, and leading frames that lean on a group of pictures cut off before the file
    begins, are no frames.
    """
    pts, keyframes, hidden, first, timed = array("q"), bytearray(), [], None, True
    last_pts, last_duration = None, 0
    with open_video(path) as (container, stream):
        stream.thread_type = "NONE"  # one frame is decoded here; threads would only delay it
        for packet in container.demux(stream):
            if packet.size:
                if packet.is_corrupt:
                    raise VideoError(f"{path} is damaged or truncated at packet {len(pts)}")
                if packet.is_discard:
                    hidden.append(len(pts))
                timed = timed and packet.pts is not None
                time = packet.pts or 0
                if last_pts is None or time >= last_pts:
                    last_pts, last_duration = time, packet.duration or 0
                pts.append(time)
                keyframes.append(packet.is_keyframe)
            if first is None:  # the last packet of demux is empty and flushes the decoder
                first = next(iter(packet.decode()), None)
        # AVI stores decoding times only; libavformat passes them off as presentation times.
        timed = timed and not (container.format.name == "avi" and stream.codec_context.has_b_frames)
        time_base, rate = stream.time_base, stream.average_rate or stream.guessed_rate
    if first is None:
        raise VideoError(f"expected at least one frame in {path}, found none that can be decoded")
    if max(first.width, first.height) > MAX_SIDE:
        raise VideoError(f"expected sides up to {MAX_SIDE} pixels, {path} has {first.width}x{first.height}")
    check_shape(first.width, first.height)
    if not timed:
        if not rate:
            raise VideoError(
                f"{path} stores neither presentation times nor a frame rate: remux it into MP4 or Matroska"
            )
        pts, time_base, last_duration = array("q", range(len(pts))), 1 / Fraction(rate), 1
    times = np.array(pts)
    shown = np.ones(len(times), dtype=bool)
    shown[hidden] = False
    if timed and (start := keyframes.find(1)) >= 0:
        shown[:start] = False
        shown &= times >= times[start]
    positions = np.flatnonzero(shown)
    order = positions[np.unique(times[positions], return_index=True)[1]]  # of two frames at one time one is shown
    if not len(order):
        raise VideoError(f"expected at least one frame in {path}, found none that is shown")
    orientation = Orientation.of(first)
    return PacketIndex(pts, keyframes, order, time_base, last_duration, timed, first.width, first.height, orientation)


def plan_decode(
    pts: array | list[int], keyframes: bytearray | list[bool], wanted: list[int], restart: int = 8
) -> list[tuple[int, int]]:
    """Packets to decode, as ascending [start, stop) ranges of decoding positions, so that `wanted` ones come out.

    A range begins at the last keyframe that is neither decoded nor shown after the wanted frame (frames shown before an
    open group's keyframe lean on the group before it). Ranges closer than `restart` packets are joined: emptying the
    decoder costs about as much (our choice). One range from 0 is plain sequential decoding.
    """
    plan: list[tuple[int, int]] = []
    key = [i for i, flag in enumerate(keyframes) if flag]
    last = -1  # the last of `key` at or before the wanted packet
    for position in sorted(wanted):
        while last + 1 < len(key) and key[last + 1] <= position:
            last += 1
        start = next((key[i] for i in range(last, -1, -1) if pts[key[i]] <= pts[position]), 0)
        if plan and start < plan[-1][1] + restart:
            plan[-1] = (plan[-1][0], position + 1)
        else:
            plan.append((start, position + 1))
    return plan
