"""Pictures as viewers show them, and pictures that are not what they claim; frames with transparency."""

import struct
import subprocess
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageOps

from minikeye.config import VideoConfig
from minikeye.inputs.pixels import MAX_PICTURE_PIXELS, picture
from minikeye.inputs.sampling import VideoError
from minikeye.inputs.video import read_video

ALL = VideoConfig(fps=1000.0, min_frame_tokens=1, max_frame_tokens=64, video_tokens=100_000)


# ---------------------------------------------------------------- pictures


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photo_is_turned_as_its_tag_says(tmp_path: Path, orientation: int) -> None:
    image = Image.new("RGB", (112, 56), "blue")
    ImageDraw.Draw(image).rectangle((0, 0, 27, 20), fill="red")
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    seen = picture(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as stored:
        assert np.array_equal(seen, np.asarray(ImageOps.exif_transpose(stored)))
        assert np.array_equal(picture(stored), seen)  # opened by the caller: the same
    assert seen.shape[:2] == ((56, 112) if orientation < 5 else (112, 56))
    corner = {1: (0, 0), 2: (0, -1), 3: (-1, -1), 4: (-1, 0), 5: (0, 0), 6: (0, -1), 7: (-1, -1), 8: (-1, 0)}
    assert seen[corner[orientation]].tolist() == [255, 0, 0]


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P", "L", "RGB", "1"])
def test_transparent_is_white(tmp_path: Path, mode: str) -> None:
    """A black drawing on nothing: black on white, however the mode says "nothing"."""
    drawing = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    ImageDraw.Draw(drawing).rectangle((10, 10, 19, 19), fill=(0, 0, 0, 255))
    white = np.full((30, 40, 3), 255, np.uint8)
    white[10:20, 10:20] = 0
    if mode in ("RGBA", "LA", "PA"):
        image, extra = drawing.convert(mode), {}
    else:  # one value, colour or number stands for nothing
        image = Image.fromarray(np.where(white[:, :, 0] == 0, 0, 7).astype(np.uint8)).convert("L")
        image = image.point(lambda v: 255 if v else 0) if mode == "1" else image
        image, extra = image.convert(mode), {"transparency": {"RGB": (7, 7, 7), "1": 255}.get(mode, 7)}
        if mode == "P":
            extra = {"transparency": int(np.asarray(image)[0, 0])}
    suffix = "tiff" if mode == "PA" else "png"
    if mode != "PA":
        image.save(tmp_path / f"a.{suffix}", **extra)
        image = tmp_path / f"a.{suffix}"
    assert np.array_equal(picture(image), white)


def test_half_transparent_is_half_white() -> None:
    assert picture(Image.new("RGBA", (4, 4), (0, 0, 0, 128)))[0, 0].tolist() == [127, 127, 127]
    assert picture(Image.new("RGBA", (4, 4), (255, 0, 0, 0)))[0, 0].tolist() == [255, 255, 255]


def test_sixteen_bits_keep_their_range(tmp_path: Path) -> None:
    """Black, middle and white of 65,535; convert() alone makes the middle white."""
    Image.fromarray(np.array([[0, 32768, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert picture(tmp_path / "a.png")[0, :, 0].tolist() == [0, 128, 255]
    for dtype in (np.int32, np.float32):
        with pytest.raises(ValueError, match="which number is white"):
            picture(Image.fromarray(np.zeros((4, 4), dtype)))


def test_postscript_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """EPS under the name of a picture: Pillow would hand it to Ghostscript, which runs what it says."""
    path = tmp_path / "x.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n")
    started = []
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **m: started.append(a))
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **m: started.append(a))
    with pytest.raises(ValueError, match=r"x\.png is not a readable image"):
        picture(path)
    with Image.open(path) as image:
        assert started == [] and image.format == "EPS"


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(path: Path, width: int, height: int) -> Path:
    """A grey PNG that says it has this size, and has not."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(height))) + chunk(b"IEND", b""))
    return path


@pytest.mark.parametrize("side", [9_460, 13_000, 60_000])
def test_a_small_file_of_a_huge_picture(tmp_path: Path, side: int) -> None:
    """Refused by the size in its head, without a warning of Pillow's; 60,000 is what Pillow itself refuses."""
    assert side**2 > MAX_PICTURE_PIXELS
    named = f"{side}x{side} pixels" if side < 60_000 else "too large"
    with pytest.raises(ValueError, match=f"up to 89,478,485 pixels, .*{named}"):  # a warning would be an error here
        picture(png(tmp_path / "a.png", side, side))


def test_damaged_pictures_are_one_error(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((50, 50), 90).save(path)
    path.write_bytes(path.read_bytes()[:1000])
    (tmp_path / "empty.png").touch()
    (tmp_path / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0\0\x10JFIF")
    for name in (path, tmp_path / "empty.png", tmp_path / "cut.jpg", tmp_path):
        with pytest.raises(ValueError, match="is not a readable image"):
            picture(name)


# ---------------------------------------------------------------- frames


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [("a.mov", "qtrle", "argb"), ("a.apng", "apng", "rgba"), ("a.mov", "prores_ks", "yuva444p10le")],
)
def test_transparent_frames_are_over_white(tmp_path: Path, name: str, codec: str, pix_fmt: str) -> None:
    """A black square on nothing, frame after frame: white around it, at native size and shrunk."""
    path = tmp_path / name
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 112, 112, pix_fmt
        for n in range(3):
            drawing = np.zeros((112, 112, 4), np.uint8)
            drawing[28:84, 28:84, 3] = 255
            frame = av.VideoFrame.from_ndarray(drawing, "rgba").reformat(format=pix_fmt)
            frame.pts = n
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    for config in (ALL, VideoConfig(min_frame_tokens=1, max_frame_tokens=4, video_tokens=1000)):
        frames = read_video(path, config).frames
        side = frames.shape[2]
        assert int(frames[:, :, : side // 8].min()) > 250
        assert int(frames[:, :, side * 3 // 8 : side * 5 // 8, side * 3 // 8 : side * 5 // 8].max()) < 5


def test_frames_that_cannot_be_converted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pixel format that libswscale does not read is named."""
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")))
        out.mux(stream.encode())

    class Unable:
        def reformat(self, *_, **__):
            raise av.error.ArgumentError(22, "Invalid argument")

    monkeypatch.setattr("minikeye.inputs.video.frames.VideoReformatter", Unable)
    with pytest.raises(VideoError, match="pixel format yuv420p cannot be converted to RGB"):
        read_video(path, ALL)
