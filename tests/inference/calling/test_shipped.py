"""The tools that come with minikeye: looks that are finer than the first view, and code in a sandbox."""

import os
import signal
import threading
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from minikeye import KeyeConfig, Processor
from minikeye.inference.calling.calls import Call, Invalid, fitted
from minikeye.inference.calling.functions import carried_out, named, schemas_of
from minikeye.inference.calling.sandbox import Limits, Sandbox
from minikeye.inference.calling.shipped import FRAMES, SHARE, look_at, shipped
from minikeye.inputs.sampling import VideoError
from minikeye.inputs.video import reading

LEVELS = 50  # frames until a grey comes again


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """30 s at 10 frames/s, 56x56 pixels; the grey of a frame is its number."""
    path = tmp_path_factory.mktemp("video") / "grey.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width = stream.height = 56
        stream.pix_fmt = "yuv420p"
        for n in range(300):
            picture = np.full((56, 56, 3), 20 + 4 * (n % LEVELS), dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24")))
        container.mux(stream.encode())
    return path


def nano(**video) -> Processor:
    config = KeyeConfig.nano()
    return Processor(replace(config, video=replace(config.video, **video)))


def test_a_look_shows_these_seconds_more_often(video):
    """8 frames/s in the place of 2: of the 21 that are shown from 12 to 14 s, in 2.1 s, 16."""
    processor = nano()
    clip = look_at(video, processor)(12.0, 14.0)
    expected = [120 + round(n * 20 / 15) for n in range(16)]
    assert clip.seconds == [n / 10 for n in expected]
    greys = clip.frames.float().mean((1, 2, 3))
    assert [round((float(g) - 20) / 4) for g in greys] == [n % LEVELS for n in expected]
    first = processor.clip({"type": "video", "video": video})
    assert sum(12 <= second <= 14 for second in first.seconds) <= 5 and first.frames.shape == (60, 3, 56, 56)


def test_a_look_shows_larger_frames_where_the_first_were_small(video):
    """A budget of 60 tokens leaves one for each of 60 frames; a look has room for 4 each."""
    processor = nano(video_tokens=60)
    assert processor.clip({"type": "video", "video": video}).frames.shape == (60, 3, 28, 28)
    assert look_at(video, processor)(12.0, 14.0).frames.shape == (16, 3, 56, 56)


@pytest.mark.parametrize(("tokens", "frames"), [(1024, 60), (60, 60), (20, 20)])
def test_a_look_is_finer_and_bounded_wherever_it_is_taken(video, tokens, frames):
    """At least twice as often as at first, or every frame; as large at least; within frames and tokens."""
    processor = nano(video_tokens=tokens)
    first, look = processor.clip({"type": "video", "video": video}), look_at(video, processor)
    assert len(first.frames) == frames
    for start, end in ((0.0, 0.1), (0.0, 1.0), (3.33, 3.4), (3.3, 8.9), (10.0, 18.0), (29.5, 30.0)):
        clip = look(start, end)
        assert 1 <= len(clip.frames) <= FRAMES and clip.frames[0].numel() >= first.frames[0].numel()
        assert len(clip.frames) * clip.frames.shape[2] * clip.frames.shape[3] // 28**2 <= 4096 // SHARE
        shown = [n for n in range(300) if start - 0.1 < n / 10 <= end]
        assert len(clip.frames) >= min(2 * (end - start) * frames / 30, len(shown)) - 1
        assert start - 0.1 < clip.seconds[0] <= start and clip.seconds[-1] <= end


@pytest.mark.parametrize(
    ("span", "complaint"),
    [
        ((0.0, 8.1), r"expected at most 8.0 s at once, got 0 to 8.1: look at less"),
        ((5.0, 4.0), r"expected 0 <= start < end <= 30.0 s of the video, got 5 to 4"),
        ((30.5, 31.0), r"expected 0 <= start < end <= 30.0 s of the video, got 30.5 to 31"),
    ],
)
def test_spans_that_cannot_be_looked_at(video, span, complaint):
    with pytest.raises(VideoError, match=complaint):
        look_at(video, nano())(*span)


def test_a_look_takes_a_share_of_the_context_that_there_is_now(video, monkeypatch):
    """A quarter of 64 tokens are 4 frames of 4; and the index is read once."""
    read, index_packets = [], reading.index_packets
    monkeypatch.setattr(reading, "index_packets", lambda path: read.append(path) or index_packets(path))
    processor = nano()
    look = look_at(video, processor)
    processor.config = replace(processor.config, text=replace(processor.config.text, max_positions=64))
    assert len(look(3.0, 4.0).frames) == 4
    with pytest.raises(VideoError, match=r"expected at most 1.0 s at once"):
        look(3.0, 4.1)
    processor.config = replace(processor.config, text=replace(processor.config.text, max_positions=15))
    with pytest.raises(VideoError, match="holds no frame"):
        look(3.0, 4.0)
    assert read == [video]


def test_what_is_no_video(tmp_path):
    (tmp_path / "a.mp4").write_text("no video " * 99)
    with pytest.raises(VideoError), shipped(["look"], nano(), tmp_path / "a.mp4"):
        pass


def test_both_can_be_called(video):
    """By what a model writes: whole numbers for seconds, too."""
    with shipped(["look", "python"], nano(), video) as tools:
        functions = named(tools)
        schemas = schemas_of(functions)
        assert list(functions) == ["look", "python"]
        assert schemas["look"]["function"]["parameters"]["properties"]["end"]["description"].startswith("second where")
        done = carried_out(Call("look", {"start": 3, "end": 4}), functions, schemas, 99)
        assert done.result.seconds[0] == 3.0 and done.error == ""
        assert carried_out(Call("python", {"code": "print(1)\n2 + 2"}), functions, schemas, 99).result == "1\n4"
        assert "ZeroDivisionError" in carried_out(Call("python", {"code": "1 / 0"}), functions, schemas, 99).result
        assert isinstance(fitted(Call("look", {"start": "3", "end": 4}), schemas), Invalid)
        late = carried_out(Call("look", {"start": 40, "end": 41}), functions, schemas, 99)
        assert late.error == "raised" and late.result.startswith("error: VideoError: expected 0 <= start < end <= 30.0")


def test_the_sandbox_ends_with_its_block():
    with shipped(["python"], nano()) as (python,):
        assert python("x = 2\nx") == "2" and "NameError" in python("x")
    with pytest.raises(ValueError, match="expected an open sandbox"):
        python("1")


@pytest.fixture
def interruptible():
    """Ctrl-C is Python's own: where tests run side by side, their processes do not hear it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_while_code_runs(monkeypatch, interruptible):
    """What is interrupted is this process; the next code runs as if nothing had been. The limit of time is so long that
    a busy machine does not come to it before the interrupt."""
    monkeypatch.setattr("minikeye.inference.calling.shipped.Sandbox", lambda: Sandbox(Limits(seconds=5.0)))
    with shipped(["python"], nano()) as (python,):
        for _ in range(2):
            timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT))
            with pytest.raises(KeyboardInterrupt):
                timer.start()
                python("while True:\n    pass")
                timer.join()
            assert python("1 + 1") == "2"


@pytest.mark.parametrize(
    ("names", "videos", "complaint"),
    [
        (["zoom"], 1, "expected tools among look, python, got 'zoom'"),
        (["look", "", "zoom"], 1, "expected tools among look, python, got '', 'zoom'"),
        (["look"], 0, "expected one video for the tool look, got 0"),
        (["python", "look"], 2, "expected one video for the tool look, got 2"),
    ],
)
def test_tools_that_there_are_not(video, names, videos, complaint):
    with pytest.raises(ValueError, match=complaint), shipped(names, nano(), *([video] * videos)):
        pass
