"""What a worker answers, in this process: the bits of `read_video`, whatever is asked together, or one typed error."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from films import FRAMES, ODD, damaged, write

from minikeye.config import VideoConfig
from minikeye.inputs.sampling import VideoError
from minikeye.inputs.service import Clip, FrameRequest, ServiceError
from minikeye.inputs.service import worker as module
from minikeye.inputs.service.request import BadVideo, OutOfMemory, TooLarge
from minikeye.inputs.service.worker import Job, answer
from minikeye.inputs.video import Video, read_video

# Frames of 84x56 keep their size, and every frame of a short film can be asked for.
ALL = VideoConfig(fps=1000.0, min_frame_tokens=1, max_frame_tokens=6, video_tokens=100_000)
ROOM = 2**30


def ask(*requests: FrameRequest, room: int = ROOM) -> list[Clip | ServiceError]:
    return answer(Job(requests, threads=1, room=room))


def expected(request: FrameRequest, whole: Video) -> list[int]:
    """Which frames of the whole film a request gets: a loop."""
    if request.seconds is None:
        return list(request.indices)
    return [max(n for n, at in enumerate(whole.seconds.tolist()) if at <= second) for second in request.seconds]


def check(request: FrameRequest, clip: Clip, whole: Video) -> None:
    """The clip is those frames of the whole film, bit for bit, with their own times."""
    assert isinstance(clip, Clip), clip
    if request.config is not None:
        alone = read_video(request.source, request.config, max_frames=request.max_frames)
        assert torch.equal(clip.video().frames, alone.frames) and torch.equal(clip.video().seconds, alone.seconds)
        assert (clip.indices, clip.info, clip.notes) == (alone.indices, alone.info, alone.notes)
        return
    rows = expected(request, whole)
    assert clip.indices == tuple(rows) and clip.info == whole.info and clip.source == request.source
    assert np.array_equal(clip.frames, whole.frames.numpy()[rows])
    assert np.array_equal(clip.seconds, whole.seconds.numpy()[rows])


@pytest.mark.parametrize("name", ODD)
def test_bits_are_those_of_read_video(tmp_path: Path, name: str) -> None:
    """Alone, and in jobs of up to six: chosen by position (out of order, twice), by second, or sampled."""
    path = str(write(tmp_path / name, **ODD[name]))
    whole, draw = read_video(path, ALL), random.Random(name)
    size = whole.frames.shape[:1:-1]
    assert len(whole.indices) == FRAMES
    for count in (1, 2, 4, 6):
        requests = []
        for _ in range(count):
            chosen = {
                "indices": {"size": size, "indices": [draw.randrange(FRAMES) for _ in range(draw.choice((1, 3, 9)))]},
                "seconds": {"size": size, "seconds": [draw.uniform(0, whole.info.seconds) for _ in range(3)]},
                "config": {"config": ALL, "max_frames": draw.choice((3, 5, 40))},
            }
            requests.append(FrameRequest(path, **chosen[draw.choice(list(chosen))]))
        for request, clip in zip(requests, ask(*requests), strict=True):
            check(request, clip, whole)


def test_a_job_of_one_size_is_one_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three requests of one size and one of another: two passes. The packets are read once, until the file changes."""
    path = write(tmp_path / "a.mp4", **ODD["short_groups.mp4"])
    passes, indexed = [], []
    real, index = module.decode_video, module.index_packets
    monkeypatch.setattr(module, "decode_video", lambda plan, threads: passes.append(plan) or real(plan, threads))
    monkeypatch.setattr(module, "index_packets", lambda path: indexed.append(path) or index(path))
    requests = [FrameRequest(str(path), (84, 56), indices=(n, n + 9)) for n in (0, 7, 20)]
    requests.append(FrameRequest(str(path), (28, 28), indices=(3,)))
    assert [len(clip.frames) for clip in ask(*requests)] == [2, 2, 2, 1]
    assert [plan.sampling.indices for plan in passes] == [(0, 7, 9, 16, 20, 29), (3,)] and len(indexed) == 1
    os.utime(path, ns=(1, 1))
    ask(requests[0])
    assert len(indexed) == 2


def test_damage_is_seen_by_each_as_if_alone(tmp_path: Path) -> None:
    """Frames 29 and 39 build on a broken picture. In a job with others, notes and bits are those of `read_video`."""
    path = str(damaged(tmp_path))
    alone = read_video(path, ALL, max_frames=5)
    assert alone.notes and alone.indices == (0, 10, 20, 29, 39)
    sampled = FrameRequest(path, config=ALL, max_frames=5)
    whole, early = FrameRequest(path, config=ALL), FrameRequest(path, (84, 56), indices=(3, 8))
    with pytest.raises(VideoError) as refusal:
        read_video(path, ALL)
    clip, refused, clean = ask(sampled, whole, early)
    assert torch.equal(clip.video().frames, alone.frames) and clip.notes == alone.notes
    assert isinstance(refused, BadVideo) and refused.reason == str(refusal.value)
    assert clean.indices == (3, 8) and clean.notes == ()


def test_each_has_its_own_error(tmp_path: Path) -> None:
    """A frame that is not there, a size that does not fit; the others of the job get theirs."""
    path = str(write(tmp_path / "a.mp4", frames=10))
    indices = [FrameRequest(path, (28, 28), indices=(n,)) for n in (9, 10, 3)]
    first, missing, large, last = ask(
        *indices[:2], FrameRequest(path, (84, 56), indices=[0] * 30), indices[2], room=10**5
    )
    assert first.indices == (9,) and last.indices == (3,)
    assert isinstance(missing, BadVideo) and "expected frames 0 to 9 of the video, got 10" in missing.reason
    assert isinstance(large, TooLarge) and f"these take {30 * 3 * 84 * 56:,}" in large.reason


def test_files_that_are_no_videos(tmp_path: Path) -> None:
    """No file, a pipe that nobody writes to, a text, a film cut off."""
    os.mkfifo(tmp_path / "pipe.mp4")
    (tmp_path / "text.mp4").write_text("no video\n" * 50, encoding="utf-8")
    cut = write(tmp_path / "cut.mp4")
    cut.write_bytes(cut.read_bytes()[:-300])
    for name, reason in {"none": "no file", "pipe": "no file", "text": "not a video", "cut": "truncated"}.items():
        (error,) = ask(FrameRequest(tmp_path / f"{name}.mp4", (28, 28), indices=(0,)))
        assert isinstance(error, BadVideo) and reason in error.reason and error.source.endswith(f"{name}.mp4")


def test_memory_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a library says so, or PyAV inside a VideoError; any other fault of a library keeps the worker alive too."""
    request = FrameRequest(str(write(tmp_path / "a.mp4")), (28, 28), indices=(0,))
    within = VideoError("it is damaged")
    within.__cause__ = MemoryError()
    for fault, kind in [(MemoryError("of 9 TiB"), OutOfMemory), (within, OutOfMemory), (KeyError("odd"), ServiceError)]:

        def fail(*_, fault=fault):
            raise fault

        monkeypatch.setattr(module, "decode_video", fail)
        (error,) = ask(request)
        assert type(error) is kind
