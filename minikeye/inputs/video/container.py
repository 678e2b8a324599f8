"""What a video file holds, read without decoding it: which packets are frames, and when each is shown.

Stated durations and frame counts are often wrong, so packets are counted. A packet is not always a frame: a camcorder's
picture may come as two fields, a packet each. What is kept of each packet takes 18 bytes.
"""

from array import array
from bisect import bisect_right
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from minikeye.inputs.sampling import VideoError, check_shape
from minikeye.inputs.video.envelope import check_size, open_video, packets_of
from minikeye.inputs.video.frames import Orientation

_NO_TIME = -(2**63)  # a packet without a decoding time


@dataclass(frozen=True)
class PacketIndex:
    """The packets of a video stream in decoding order, and what the first frame says."""

    pts: array  # presentation time of each packet, in units of time_base, on one clock that never starts again
    keyframes: bytearray  # 1 where decoding may start
    second: bytearray  # 1 where a packet only completes the frame of the packet before it
    order: np.ndarray  # int64, decoding positions in order of presentation: frame 0 is packet order[0]
    time_base: Fraction  # seconds
    last_duration: int  # how long the last frame is shown, in units of time_base; 0 where the file does not say
    timed: bool  # False: packets state no presentation times (AVI with B-frames, raw H.264), so frames are counted
    width: int  # pixels, as stored
    height: int
    orientation: Orientation
    notes: tuple[str, ...] = ()  # what had to be assumed

    def seconds(self, frame: int) -> float:
        """Time of a frame (position in order of presentation) after the first one, exact but for one rounding."""
        return float((self.pts[self.order[frame]] - self.pts[self.order[0]]) * self.time_base)

    def shown_at(self, second: float) -> int:
        """The frame that is shown at that second after the first one: the last that has begun."""
        return max(0, bisect_right(range(len(self.order)), second, key=self.seconds) - 1)

    def only(self, came: set[int]) -> "PacketIndex":
        """The index if of all packets only those that `came` hold frames."""
        order = np.array([p for p in self.order if int(p) in came], dtype=np.int64)
        pts = array("q", self.pts)
        if not self.timed and self.last_duration:  # a raw stream, whose n-th frame is shown at n
            for n, position in enumerate(order):
                pts[position] = n
        return replace(self, pts=pts, order=order)


@dataclass
class _Packets:
    """What one pass over the packets of a file collects, in decoding order."""

    pts: array  # as stored; the decoding time where there is none
    dts: array  # as stored; _NO_TIME where there is none
    keyframes: bytearray
    second: bytearray
    hidden: list[int]  # positions that an edit list hides
    starts: list[int]  # positions at which the clock starts, the first of them 0
    durations: list[int]  # of the frame shown last before the next start, in units of time_base; 0: not stated
    timed: bool = True


def index_packets(path: str | Path) -> PacketIndex:
    """Read all packets of a video, decode one frame. Raises VideoError for anything that is not a whole video.

    No frames are: packets that an edit list hides, second fields, and leading frames that lean on a group of pictures
    cut off before the file, or a part of it, begins.
    """
    with open_video(path) as (container, stream):
        packets, first = _read_packets(path, container, stream)
        time_base, decoder = stream.time_base, stream.codec_context
        # AVI stores decoding times only; libavformat passes them off as presentation times.
        timed = packets.timed and not (container.format.name == "avi" and decoder.has_b_frames)
        rate = decoder.framerate or stream.guessed_rate or stream.average_rate
    if first is None:
        raise VideoError(f"expected at least one frame in {path}, found none that can be decoded")
    check_size(path, first.width, first.height)
    check_shape(first.width, first.height)
    notes: tuple[str, ...] = ()
    shown = ~np.frombuffer(packets.second, dtype=bool)
    shown[packets.hidden] = False
    if timed:
        pts, last_duration = _one_clock(packets, shown)
    else:
        pts, time_base, last_duration, notes = _counted_clock(path, packets, shown, time_base, rate)
    positions = np.flatnonzero(shown)
    if not len(positions):
        raise VideoError(f"expected at least one frame in {path}, found none that is shown")
    order = positions[np.argsort(np.array(pts)[positions], kind="stable")]
    return PacketIndex(
        pts,
        packets.keyframes,
        packets.second,
        order,
        time_base,
        last_duration,
        timed,
        first.width,
        first.height,
        Orientation.of(first),
        notes,
    )


def _read_packets(
    path: str | Path, container: av.container.InputContainer, stream: av.VideoStream
) -> tuple[_Packets, av.VideoFrame | None]:
    """All packets, and the first frame that can be decoded."""
    packets = _Packets(array("q"), array("q"), bytearray(), bytearray(), [], [0], [])
    fields = FieldPairs(stream.codec_context.extradata) if stream.codec_context.name == "h264" else None
    first, latest, duration, clock = None, None, 0, _NO_TIME
    stream.thread_type = "NONE"  # one frame is decoded here; threads would only delay it
    for packet in packets_of(container, stream):
        if packet.size:
            here = len(packets.pts)
            if packet.is_corrupt:
                raise VideoError(f"{path} is damaged or truncated at packet {here}")
            dts, key = _NO_TIME if packet.dts is None else packet.dts, packet.is_keyframe
            # Recordings one after another: the second begins with a keyframe, whose clock is behind the first one's.
            # Without a keyframe a step back has to be long, because decoding times of broken files tremble.
            if _NO_TIME < dts < clock and (key or (clock - dts) * stream.time_base > 1):
                packets.starts.append(here)
                packets.durations.append(duration)
                latest = None
            clock = clock if dts == _NO_TIME else dts
            if packet.is_discard:
                packets.hidden.append(here)
            packets.timed = packets.timed and packet.pts is not None
            time = (dts if packet.dts is not None else 0) if packet.pts is None else packet.pts
            second = fields is not None and fields.completes(memoryview(packet)[:4096])
            if second and packets.pts[-1] == latest:
                duration += packet.duration or 0
            elif latest is None or time >= latest:
                latest, duration = time, packet.duration or 0
            packets.pts.append(packets.pts[-1] if second and packets.timed else time)
            packets.dts.append(dts)
            packets.keyframes.append(key and not second)
            packets.second.append(second)
        if first is None:  # the last packet of demux is empty and flushes the decoder
            first = next(iter(packet.decode()), None)
    packets.durations.append(duration)
    return packets, first


def _one_clock(packets: _Packets, shown: np.ndarray) -> tuple[array, int]:
    """Presentation times on one clock, and how long the last frame is shown. Frames without a beginning leave `shown`.

    Where the clock starts again, times count on from where the part before it ended.
    """
    times = np.array(packets.pts)
    end = None  # when the last frame of the parts so far is over
    for start, stop, duration in zip(packets.starts, [*packets.starts[1:], len(times)], packets.durations, strict=True):
        part = slice(start, stop)
        if (key := packets.keyframes.find(1, start, stop)) >= 0:
            shown[start:key] = False
            shown[part] &= times[part] >= times[key]
        if not shown[part].any():
            continue
        begin, last = int(times[part][shown[part]].min()), int(times[part][shown[part]].max())
        shift = 0 if end is None else end - begin
        if max(abs(begin), abs(last), abs(shift)) > 2**60:
            raise VideoError(f"expected times that fit a clock, got ticks {begin} to {last}: the file is damaged")
        times[part] += shift
        step = duration or (last - begin) // max(int(shown[part].sum()) - 1, 1)
        end = last + shift + step
    return array("q", times.tolist()), packets.durations[-1]


def _counted_clock(
    path: str | Path, packets: _Packets, shown: np.ndarray, time_base: Fraction, rate: Fraction | None
) -> tuple[array, Fraction, int, tuple[str, ...]]:
    """Times where packets state none to show them at: (times, time base, duration of the last frame, notes).

    Frames come out of the decoder in order, so the n-th one is shown at the n-th decoding time. A raw stream has no
    times at all: then n / rate.
    """
    count = int(shown.sum())
    if _NO_TIME not in packets.dts:
        times = np.array(packets.dts)
        times[shown] = np.sort(times[shown])
        return array("q", times.tolist()), time_base, 0, ()
    if not rate:
        raise VideoError(f"{path} stores neither presentation times nor a frame rate: remux it into MP4 or Matroska")
    times = np.zeros(len(shown), dtype=np.int64)
    times[shown] = np.arange(count)
    note = f"{path} holds no times: taken as {float(rate):g} frames per second, 25 where the stream states no rate"
    return array("q", times.tolist()), 1 / Fraction(rate), 1, (note,)


class FieldPairs:
    """Tells which packets of an H.264 stream complete the picture of the packet before them.

    Interlaced recordings (camcorders, broadcasts) may code a picture as two fields, each in a packet of its own. They
    share a frame number and have opposite parities (ITU-T H.264, 7.3.3 and 7.4.1.2.4).
    """

    def __init__(self, extradata: bytes | None):
        data = extradata or b""
        self._length = (data[4] & 3) + 1 if data[:1] == b"\1" and len(data) > 6 else 0  # bytes of a size; 0: marks
        self._number_bits = 0  # of a frame number; 0: no fields can come
        self._pending: tuple[int, int] | None = None  # frame number and parity of a field that waits for the other
        for at in range(len(data) - 4):  # the sequence's parameters, in either packing
            if data[at] & 31 == 7 and (data[max(0, at - 3) : at] == b"\0\0\1" or (self._length and at == 8)):
                self._read_sequence(data[at + 1 :])

    def completes(self, packet: memoryview) -> bool:
        """Whether the packet is the second field of the picture that the last packet began."""
        if not self._number_bits:
            return False
        for unit in self._units(bytes(packet)):
            if unit[:1] and unit[0] & 31 == 7:
                self._read_sequence(unit[1:])
            elif unit[:1] and unit[0] & 31 in (1, 5):
                return self._slice(_Bits(unit[1:64]))
        return False

    def _slice(self, bits: "_Bits") -> bool:
        for _ in range(3):  # first macroblock, type, picture parameters
            bits.golomb()
        number, before = bits.read(self._number_bits), self._pending
        self._pending = (number, bits.read(1)) if bits.read(1) else None
        second = self._pending is not None and before == (number, 1 - self._pending[1])
        if second:
            self._pending = None
        return second

    def _units(self, data: bytes):
        at = 0
        if not self._length:
            while (at := data.find(b"\0\0\1", at)) >= 0:
                at += 3
                yield data[at:]
        while self._length and at + self._length < len(data):
            yield data[at + self._length :]
            at += self._length + int.from_bytes(data[at : at + self._length], "big")

    def _read_sequence(self, data: bytes) -> None:
        """7.3.2.1.1: how long a frame number is, and whether pictures may be fields."""
        bits = _Bits(data[:512])
        profile = bits.read(8)
        bits.read(16)
        bits.golomb()
        planes = False
        if profile in (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135):
            chroma = bits.golomb()
            planes = chroma == 3 and bool(bits.read(1))
            bits.golomb(), bits.golomb(), bits.read(1)  # depths, bypass
            if bits.read(1):  # scaling lists
                for n in range(12 if chroma == 3 else 8):
                    if bits.read(1):
                        bits.skip_scaling(16 if n < 6 else 64)
        number_bits = bits.golomb() + 4
        order = bits.golomb()
        if order == 0:
            bits.golomb()
        elif order == 1:
            bits.read(1), bits.golomb(), bits.golomb()
            for _ in range(min(bits.golomb(), 255)):
                bits.golomb()
        bits.golomb(), bits.read(1), bits.golomb(), bits.golomb()  # references, gaps, width, height
        frames_only = bits.read(1)
        self._number_bits = 0 if frames_only or planes else number_bits


class _Bits:
    """A bit reader over an H.264 unit; zeros follow its end."""

    def __init__(self, data: bytes):
        data = data.replace(b"\0\0\3", b"\0\0")  # bytes put in so that no mark appears by chance
        self._bits, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            return 0
        return self._bits >> self._left & (1 << count) - 1

    def golomb(self) -> int:
        """An Exp-Golomb number: n zeros, a one, n more bits."""
        zeros = 0
        while zeros < 32 and not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)

    def skip_scaling(self, size: int) -> None:
        last = 8
        for _ in range(size):
            code = self.golomb()
            last = (last + ((code + 1) // 2 if code % 2 else -(code // 2))) % 256
            if not last:
                return
