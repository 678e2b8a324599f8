"""Small video files of many kinds, written with PyAV: every frame needs the ones before it and shows its number."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FRAMES, SIZE = 40, (84, 56)
X264 = {"preset": "ultrafast", "sc_threshold": "0"}
UNEVEN = [0, 40, 90, 100, 300, 310, 500, 900]  # milliseconds, then on


def picture(number: int) -> np.ndarray:
    """A random texture that moves; its brightness grows with the number."""
    texture = np.random.default_rng(0).integers(0, 90, (*SIZE[::-1], 3), dtype=np.uint8)
    return np.roll(texture, 3 * number, axis=1) + np.uint8(4 * number)


def write(
    path: Path,
    codec: str = "libx264",
    *,
    frames: int = FRAMES,
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    times: list[int] | None = None,  # milliseconds
    rotation: int = 0,
    container: dict[str, str] | None = None,
) -> Path:
    with av.open(str(path), "w", options=container or {}) as out:
        stream = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = *SIZE, pix_fmt
        stream.options = options or {}
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for n in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(n), "rgb24").reformat(format=pix_fmt)
            frame.pts = n if times is None else times[n]
            frame.time_base = Fraction(1, 10) if times is None else Fraction(1, 1000)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    return path


def uneven() -> list[int]:
    return [1000 * (n // len(UNEVEN)) + UNEVEN[n % len(UNEVEN)] + 5000 for n in range(FRAMES)]


ODD = {
    "short_groups.mp4": {"options": {**X264, "g": "12", "bf": "2"}},
    "one_group.mp4": {"options": {**X264, "g": "250"}},
    "open_groups.mkv": {"options": {"g": "8", "bf": "3", "sc_threshold": "0", "x264-params": "open-gop=1"}},
    "intra_refresh.mp4": {"options": {**X264, "g": "12", "x264-params": "intra-refresh=1"}},
    "uneven_late.mkv": {"times": uneven(), "options": {**X264, "g": "9"}},
    "index_first.mp4": {"container": {"movflags": "faststart"}, "options": X264},
    "fragments.mp4": {"container": {"movflags": "frag_keyframe+empty_moov"}, "options": {**X264, "g": "10"}},
    "turned.mp4": {"rotation": 90, "options": X264},
    "late.ts": {"options": {**X264, "g": "10"}},
    "untimed.avi": {"codec": "mpeg4", "options": {"bf": "2", "g": "12"}},
    "raw.264": {"options": {**X264, "g": "10"}},
    "transparent.apng": {"codec": "apng", "pix_fmt": "rgba"},
    "vp8.webm": {"codec": "libvpx"},
}


def damaged(folder: Path) -> Path:
    """Frames after number 25 of a group build on one that cannot be decoded: read, with a note."""
    path = write(folder / "damaged.mp4", options={"g": "20", "bf": "0", "sc_threshold": "0"})
    with av.open(str(path)) as file:
        packets = [(p.pos, p.size) for p in file.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    begin, size = packets[25]
    data[begin + size // 2 : begin + size // 2 + 40] = bytes(40)
    path.write_bytes(data)
    return path


def odd_films(folder: Path) -> list[Path]:
    """All kinds, whole and one damaged."""
    return [*(write(folder / name, **what) for name, what in ODD.items()), damaged(folder)]
