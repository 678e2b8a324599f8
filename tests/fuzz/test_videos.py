"""Spoiled videos: each is read with times that make sense, or refused with one VideoError; nothing else happens.

A few per format here; by hand, for example a thousand per format: MINIKEYE_FUZZ=1000 .venv/bin/pytest tests/fuzz
"""

import resource
import time
from pathlib import Path

import av
import numpy as np
import pytest
from mutations import COUNT, mutated

from minikeye.config import VideoConfig
from minikeye.inputs.pixels import is_picture
from minikeye.inputs.sampling import VideoError
from minikeye.inputs.video import read_video

SOME = VideoConfig(fps=5.0, min_frame_tokens=1, max_frame_tokens=4, video_tokens=1000)
FORMATS = {
    "a.mp4": ("libx264", "yuv420p", {}),
    "parts.mp4": ("libx264", "yuv420p", {"movflags": "frag_keyframe+empty_moov"}),
    "a.mkv": ("libx264", "yuv420p", {}),
    "a.ts": ("libx264", "yuv420p", {}),
    "a.avi": ("mpeg4", "yuv420p", {}),
    "a.mpg": ("mpeg2video", "yuv420p", {}),
    "a.flv": ("flv", "yuv420p", {}),
    "a.webm": ("libvpx", "yuv420p", {}),
    "a.264": ("libx264", "yuv420p", {}),
    "a.gif": ("gif", "rgb8", {}),
    "a.apng": ("apng", "rgba", {}),
}
# What reading may take beyond what the whole file takes: seconds by the clock of the CPU, and MB.
SECONDS, MEGABYTES = 5.0, 700


@pytest.fixture(scope="module")
def wholes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    for name, (codec, pix_fmt, options) in FORMATS.items():
        with av.open(str(folder / name), "w", options=options) as out:
            stream = out.add_stream(codec, rate=25)
            stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
            stream.gop_size = 10
            for n in range(40):
                picture = np.full((48, 64, 3), 6 * n, np.uint8)
                picture[:, n : n + 8] = 255
                out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=pix_fmt)))
            out.mux(stream.encode())
    return {name: (folder / name).read_bytes() for name in FORMATS}


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


@pytest.mark.parametrize("name", FORMATS)
def test_spoiled_videos(wholes: dict[str, bytes], tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(wholes[name])
    assert len(read_video(path, SOME).frames) >= 7 and not is_picture(path)
    outcomes = {"read": 0, "refused": 0}
    for how, data in mutated(wholes[name], name, COUNT or 25):
        path.write_bytes(data)
        begun, before = time.process_time(), peak()
        is_picture(path)
        try:
            video = read_video(path, SOME)
        except VideoError as error:
            assert str(error) and "Traceback" not in str(error), how
            outcomes["refused"] += 1
        else:
            seconds = video.seconds
            assert len(seconds) == len(video.frames) == len(video.indices) >= 1, how
            assert seconds[0] == 0 and (seconds.diff() >= 0).all() and seconds.isfinite().all(), how
            assert video.info.frames >= len(seconds) and 0 < video.info.seconds < 1e12, how
            assert float(seconds[-1]) <= video.info.seconds, how
            outcomes["read"] += 1
        assert time.process_time() - begun < SECONDS, how
        assert peak() - before < MEGABYTES, how
    assert min(outcomes.values()) > 0, outcomes  # both happen, else the mutations test nothing


PLAYLISTS = (
    "#EXTM3U\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n",
    "ffconcat version 1.0\nfile '{}'\n",
    "<MPD><BaseURL>{}</BaseURL></MPD>",
)


@pytest.mark.parametrize("suffix", ["m3u8", "ffconcat", "mpd", "mp4", "txt", "sdp"])
def test_spoiled_lists_open_nothing(tmp_path: Path, suffix: str) -> None:
    """Lists of other files, whole and spoiled, are refused every time."""
    for number, text in enumerate(PLAYLISTS):
        whole = text.format("/etc/hostname").encode()
        for how, data in [("whole", whole), *mutated(whole, f"list {suffix} {number}", max(5, COUNT // 10))]:
            path = tmp_path / f"a.{suffix}"
            path.write_bytes(data)
            with pytest.raises(VideoError):
                read_video(path, SOME)
                pytest.fail(how)
