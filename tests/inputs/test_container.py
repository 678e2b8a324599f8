"""Which packets are frames and when each is shown: fields, clocks that start again, clocks that are not there.

The oracle for the number of frames is plain decoding; grey levels say which frame came out.
"""

from array import array
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from minikeye.config import VideoConfig
from minikeye.inputs.sampling import VideoError
from minikeye.inputs.video import probe, read_video
from minikeye.inputs.video.container import _one_clock, _Packets, index_packets

# Every frame of a short clip, at its own size.
ALL = VideoConfig(fps=1000.0, min_frame_tokens=1, max_frame_tokens=64, video_tokens=100_000)


def plain_count(path: Path) -> int:
    with av.open(str(path)) as file:
        return sum(1 for _ in file.decode(video=0))


def levels(path: Path, **asked) -> list[int]:
    """Mean grey level of each sampled frame."""
    return read_video(path, ALL, **asked).frames.float().mean((1, 2, 3)).round().int().tolist()


# ---------------------------------------------------------------- H.264 fields, written bit by bit


class Bits:
    """Writes the parts of an H.264 stream that a decoder needs, and nothing else."""

    def __init__(self) -> None:
        self.bits: list[int] = []

    def u(self, count: int, value: int) -> "Bits":
        self.bits += [value >> (count - 1 - n) & 1 for n in range(count)]
        return self

    def ue(self, *values: int) -> "Bits":
        for value in values:
            self.u(2 * (value + 1).bit_length() - 1, value + 1)
        return self

    def unit(self, reference: int, kind: int) -> bytes:
        """The bits as a unit: mark, head, content without accidental marks."""
        self.u(1, 1)
        content = np.packbits(self.bits).tobytes()
        for last in range(3):
            content = content.replace(bytes([0, 0, last]), bytes([0, 0, 3, last]))
        return b"\0\0\0\1" + bytes([reference << 5 | kind]) + content


def parameters(width: int, height: int) -> bytes:
    """Sequence (fields allowed, 50 a second) and picture parameters."""
    s = Bits().u(8, 77).u(8, 0).u(8, 30).ue(0, 4, 0, 4, 1).u(1, 0).ue(width // 16 - 1, height // 32 - 1)
    s.u(5, 0b00101).u(5, 0b00001).u(32, 1).u(32, 50).u(5, 0b10000)
    p = Bits().ue(0, 0).u(2, 0).ue(0, 0, 0).u(3, 0).ue(0, 0, 0).u(3, 0b100)
    return s.unit(3, 7) + p.unit(3, 8)


def picture(level: int, width: int, height: int, number: int, key: bool, parity: int | None) -> bytes:
    """A picture of one grey level, uncompressed. parity None: the whole frame, 0 top field, 1 bottom field."""
    s = Bits().ue(0, 7, 0).u(8, number)
    s.u(1, 0) if parity is None else s.u(1, 1).u(1, parity)
    if key:
        s.ue(number % 2)
    s.u(8, 2 * number + (parity or 0)).u(2 if key else 1, 0).ue(0, 1)
    for _ in range(width // 16 * height // 16):
        s.ue(25).u(-len(s.bits) % 8, 0)
        s.bits += np.unpackbits(np.array([level] * 256 + [128] * 128, np.uint8)).tolist()
    return s.unit(3, 5 if key else 1)


def interlaced(frames: int, fields, width: int = 64, height: int = 64) -> bytes:
    """A raw H.264 stream whose frame n is coded as two fields where `fields(n)`; its level is 40 + 10 n."""
    out, delimiter = b"", b"\0\0\0\1\x09\xf0"
    for n in range(frames):
        key, level = n % 5 == 0, 40 + 10 * n
        out += delimiter + (parameters(width, height) if key else b"")
        if fields(n):
            out += picture(level, width, height // 2, n % 5, key, 0)
            out += delimiter + picture(level, width, height // 2, n % 5, False, 1)
        else:
            out += picture(level, width, height, n % 5, key, None)
    return out


def remux(source: Path, path: Path) -> Path:
    """The packets of a raw stream, 50 a second, in another container."""
    with av.open(str(source)) as raw, av.open(str(path), "w") as out:
        stream = out.add_stream_from_template(raw.streams.video[0])
        for n, packet in enumerate(p for p in raw.demux(video=0) if p.size):
            packet.stream, packet.time_base = stream, Fraction(1, 50)
            packet.pts = packet.dts = n
            packet.duration = 1
            out.mux(packet)
    return path


@pytest.mark.parametrize("suffix", ["264", "ts", "mp4", "mkv"])
def test_two_fields_are_one_frame(tmp_path: Path, suffix: str) -> None:
    """Ten pictures in twenty packets: ten frames at 25 a second, each of them found."""
    path = tmp_path / "raw.264"
    path.write_bytes(interlaced(10, lambda n: True))
    if suffix != "264":
        path = remux(path, tmp_path / f"a.{suffix}")
    info, index = probe(path), index_packets(path)
    assert len(index.pts) == 20 and plain_count(path) == 10
    assert info.frames == 10 and info.fps == pytest.approx(25) and info.seconds == pytest.approx(0.4)
    expected = [round((40 + 10 * n - 16) * 255 / 219) for n in range(10)]
    assert levels(path) == expected
    assert levels(path, max_frames=3) == [expected[n] for n in (0, 4, 9)]
    assert read_video(path, ALL).seconds.tolist() == pytest.approx([n / 25 for n in range(10)])


def test_fields_and_frames_in_turn(tmp_path: Path) -> None:
    """Cameras code still pictures whole and moving ones as fields, within one stream."""
    path = tmp_path / "raw.264"
    path.write_bytes(interlaced(10, lambda n: n in (3, 4, 8)))
    assert len(index_packets(path).pts) == 13 and plain_count(path) == 10
    assert probe(path).frames == 10 and levels(path) == [round((40 + 10 * n - 16) * 255 / 219) for n in range(10)]


@pytest.mark.parametrize("suffix", ["264", "ts"])
def test_a_packet_without_a_picture_is_no_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    """Where nothing in a packet tells beforehand that it shows nothing, decoding does, and frames are sampled anew."""
    path = tmp_path / "raw.264"
    path.write_bytes(interlaced(10, lambda n: True))
    if suffix == "ts":
        path = remux(path, tmp_path / "a.ts")
    monkeypatch.setattr("minikeye.inputs.video.container.FieldPairs.completes", lambda *_: False)
    assert probe(path).frames == 20
    video = read_video(path, ALL)
    assert video.info.frames == len(video.frames) == 10
    assert video.frames.float().mean((1, 2, 3)).diff().min() > 10  # ten levels, in order
    assert video.seconds.tolist() == pytest.approx([n / 25 for n in range(10)])


# ---------------------------------------------------------------- clocks


def write(path: Path, grey: int = 40, step: int = 0, tick: Fraction = Fraction(1, 30), **options: str) -> Path:
    """60 frames, two seconds; grey level of frame n: grey + n * step."""
    codec = {".mpg": "mpeg2video"}.get(path.suffix, "libx264")
    signal = {"mpegts_flags": "initial_discontinuity"} if path.suffix == ".ts" else {}
    with av.open(str(path), "w", options=signal) as out:
        stream = out.add_stream(codec, rate=30, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = stream.time_base = tick
        for n in range(60):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), grey + n * step, np.uint8), "rgb24")
            frame.pts, frame.time_base = round(Fraction(n, 30) / tick), tick
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


@pytest.mark.parametrize("suffix", ["ts", "mpg", "mkv", "flv"])
def test_a_clock_that_starts_again_goes_on(tmp_path: Path, suffix: str) -> None:
    """Two recordings one after another in one file: 120 frames, four seconds, dark ones first."""
    dark, bright = write(tmp_path / f"a.{suffix}", 40), write(tmp_path / f"b.{suffix}", 220)
    both = tmp_path / f"ab.{suffix}"
    head = 13 if suffix == "flv" else 0  # a second head would end an FLV
    both.write_bytes(dark.read_bytes() + bright.read_bytes()[head:])
    assert plain_count(both) == 120
    info, video = probe(both), read_video(both, ALL)
    assert info.frames == 120 and info.seconds == pytest.approx(4.0, abs=0.002) and info.fps == pytest.approx(30, 0.01)
    assert video.seconds.tolist() == pytest.approx([n / 30 for n in range(120)], abs=0.002)
    grey = video.frames.float().mean((1, 2, 3))
    assert (grey[:60] < 60).all() and (grey[60:] > 200).all()
    assert [level > 100 for level in levels(both, max_frames=4)] == [False, False, True, True]


def test_two_mp4_files_in_one_are_refused(tmp_path: Path) -> None:
    """Only the first would be read."""
    one = write(tmp_path / "a.mp4").read_bytes()
    (tmp_path / "ab.mp4").write_bytes(one + one)
    with pytest.raises(VideoError, match="2 MP4 files in a row"):
        probe(tmp_path / "ab.mp4")


def test_frames_at_one_time_are_all_kept(tmp_path: Path) -> None:
    """A clock too coarse for its frames gives two of them the same time; neither is dropped."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=2000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for n in range(20):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.full((48, 64, 3), 10 * n, np.uint8), "rgb24")))
        out.mux(stream.encode())
    assert plain_count(path) == probe(path).frames == 20
    assert levels(path, fps=10_000) == pytest.approx([10 * n for n in range(20)], abs=2)


@pytest.mark.parametrize("tick", [Fraction(1, 30), Fraction(1, 600)])
def test_avi_frames_are_shown_at_its_decoding_times(tmp_path: Path, tick: Fraction) -> None:
    """With B-frames the n-th frame that comes out is shown at the n-th time, whatever rate the header states."""
    path = write(tmp_path / "a.avi", 0, 4, tick, bf="2")
    video = read_video(path, ALL)
    assert video.info.frames == 60 and video.info.fps == pytest.approx(30) and video.info.seconds == pytest.approx(2)
    assert video.seconds.tolist() == pytest.approx([n / 30 for n in range(60)])
    grey = video.frames.float().mean((1, 2, 3))
    assert (grey.diff() > 0).all() and grey[0] < 3 and video.notes == ()


def test_a_raw_stream_is_shown_at_the_rate_it_states(tmp_path: Path) -> None:
    """The demuxer says 25; the stream says 30. That a rate stands in for a clock is said."""
    video = read_video(write(tmp_path / "a.264", 0, 4, bf="2"), ALL)
    assert video.info.fps == pytest.approx(30) and video.info.seconds == pytest.approx(2)
    assert len(video.notes) == 1 and "30 frames per second" in video.notes[0]


def test_times_beyond_any_clock() -> None:
    """Ticks so large that sums of them would not fit 64 bits are damage, not times."""
    shown = np.ones(2, dtype=bool)
    clock = lambda last: _Packets(  # noqa: E731
        array("q", [0, last]), array("q", [0, last]), bytearray(b"\1\0"), bytearray(2), [], [0], [1]
    )
    assert _one_clock(clock(2**59), shown)[0].tolist() == [0, 2**59]
    with pytest.raises(VideoError, match="times that fit a clock"):
        _one_clock(clock(2**62), shown)
