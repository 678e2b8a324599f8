"""Files that are not what they claim: lists of other files, halves, bombs. Each is made here."""

import struct
import zlib
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from minikeye.inputs.sampling import VideoError
from minikeye.inputs.video import envelope, probe
from minikeye.inputs.video.envelope import MAX_PIXELS, check_size, open_video, stated_samples, stated_size


def write(path: Path, frames: int = 30, codec: str = "libx264", **container_options: str) -> Path:
    with av.open(str(path), "w", options=container_options) as out:
        stream = out.add_stream(codec, rate=10)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for n in range(frames):
            picture = np.full((48, 64, 3), 5 * n, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, "rgb24").reformat(format=stream.pix_fmt)))
        out.mux(stream.encode())
    return path


LISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{0}\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile '{0}'\n",
    "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><AdaptationSet><Representation>'
    "<BaseURL>{0}</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "metadata": ";FFMETADATA1\ntitle=x\n",
}


@pytest.mark.parametrize("suffix", ["mp4", "m3u8", "ts"])
@pytest.mark.parametrize("kind", LISTS)
def test_a_list_opens_no_other_file(tmp_path: Path, kind: str, suffix: str) -> None:
    """Whatever a list is called, it is refused, and the message says what is taken instead."""
    video = write(tmp_path / "secret.ts")
    path = tmp_path / f"list.{suffix}"
    path.write_text(LISTS[kind].format(video))
    with pytest.raises(VideoError, match="Playlists and lists of files are not opened"):
        probe(path)


def test_a_playlist_would_have_opened_the_file(tmp_path: Path) -> None:
    """The danger is real: without the list of formats, libavformat follows a playlist to another file."""
    (tmp_path / "a.m3u8").write_text(LISTS["hls"].format(write(tmp_path / "secret.ts")))
    with av.open(f"file:{tmp_path / 'a.m3u8'}", options={"protocol_whitelist": "file"}) as container:
        assert sum(1 for _ in container.decode(video=0)) == 30


def test_every_format_is_one_that_libavformat_knows() -> None:
    """A misspelt name would refuse a format without a word. Names that this build lacks: none."""
    known = {name for entry in av.formats_available for name in entry.split(",")}
    assert set(envelope.FORMATS.split(",")) - known == set()
    lists = {"hls", "dash", "concat", "imf", "image2", "sdp", "rtsp", "webm_dash_manifest", "lavfi", "vobsub", "tty"}
    assert set(envelope.FORMATS.split(",")) & lists == set()


# ---------------------------------------------------------------- files that end too early


@pytest.mark.parametrize("share", [0.5, 0.99])
@pytest.mark.parametrize(("name", "codec"), [("a.avi", "mpeg4"), ("a.gif", "gif"), ("a.mp4", "libx264")])
def test_a_half_is_not_a_whole(tmp_path: Path, name: str, codec: str, share: float) -> None:
    path = write(tmp_path / name, 30, codec)
    data = path.read_bytes()
    assert 0 <= len(data) - stated_size(path) <= 8 and probe(path).frames == 30
    path.write_bytes(data[: int(len(data) * share) - 10])
    with pytest.raises(VideoError, match="truncated"):
        probe(path)


def test_the_last_byte_of_a_gif_counts(tmp_path: Path) -> None:
    """Without its end mark nobody knows how many pictures are missing; what follows it is not its own."""
    path = write(tmp_path / "a.gif", 5, "gif")
    whole = path.read_bytes()
    path.write_bytes(whole + b"\0\0")
    assert stated_size(path) == len(whole) and probe(path).frames == 5
    path.write_bytes(whole[:-1])
    with pytest.raises(VideoError, match="truncated"):
        probe(path)


def test_an_avi_whose_recorder_lost_power_is_read(tmp_path: Path) -> None:
    """A size that was never filled in says nothing."""
    path = write(tmp_path / "a.avi", 30, "mpeg4")
    data = bytearray(path.read_bytes())
    data[4:8] = bytes(4)
    path.write_bytes(data)
    assert stated_size(path) == 0 and probe(path).frames == 30


@pytest.mark.parametrize("size", [2**63, 2**64 - 1])
def test_boxes_of_absurd_size(tmp_path: Path, size: int) -> None:
    """A box may say it is as large as numbers go: the file is truncated, and nothing overflows."""
    path = write(tmp_path / "a.mp4")
    path.write_bytes(path.read_bytes() + struct.pack(">I4sQ", 1, b"free", size))
    with pytest.raises(VideoError, match="truncated"):
        probe(path)


def test_boxes_in_boxes_in_boxes(tmp_path: Path) -> None:
    """Boxes nested deeper than any file has them do not exhaust the stack."""
    box = b""
    for _ in range(3000):
        box = struct.pack(">I4s", 8 + len(box), b"trak") + box
    path = tmp_path / "a.mp4"
    path.write_bytes(struct.pack(">I4s4sI", 16, b"ftyp", b"isom", 0) + struct.pack(">I4s", 8 + len(box), b"moov") + box)
    assert stated_samples(path) == 0
    with pytest.raises(VideoError):
        probe(path)


# ---------------------------------------------------------------- more than memory holds


def patched(path: Path, box: bytes, at: int, value: int) -> Path:
    """The file with a number written behind the name of a box."""
    data = bytearray(path.read_bytes())
    begin = data.index(box) + 4 + at
    data[begin : begin + 4] = struct.pack(">I", value)
    path.write_bytes(data)
    return path


def test_more_samples_than_bytes(tmp_path: Path) -> None:
    """A few bytes that say "n frames of one size" ask for gigabytes; the count is read before libavformat does."""
    whole = write(tmp_path / "a.mp4")
    assert stated_samples(whole) == 30
    patched(patched(whole, b"stsz", 4, 1), b"stsz", 8, 50_000_000)
    parts = write(tmp_path / "b.mp4", movflags="frag_keyframe+empty_moov")
    assert stated_samples(parts) == 30
    patched(parts, b"trun", 4, 50_000_000)
    for path in (whole, parts):
        with pytest.raises(VideoError, match=r"50,000,0\d\d samples and has"):
            probe(path)


def test_frames_larger_than_any_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8192x4352 is the largest; the size is taken from the header, before a frame is decoded."""
    check_size("a.mp4", 8192, 4352)
    check_size("a.mp4", 4352, 8192)
    with pytest.raises(VideoError, match="8192x4353: scale it down"):
        check_size("a.mp4", 8192, 4353)
    path = write(tmp_path / "a.mp4")
    monkeypatch.setattr(envelope, "MAX_PIXELS", 64 * 48 - 1)
    with pytest.raises(VideoError, match="64x48"), open_video(path):
        pytest.fail("opened")


def chunk(name: bytes, data: bytes) -> bytes:
    """Of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def test_a_header_that_lies_about_the_size(tmp_path: Path) -> None:
    """A small header before pictures of 8192x8192: the decoder refuses what the header did not say."""
    path = tmp_path / "a.avi"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("png", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        stream.codec_context.open()
        head = chunk(b"IHDR", struct.pack(">IIBBBBB", 8192, 8192, 8, 0, 0, 0, 0))
        rows = zlib.compress(bytes(8193 * 8192), 1)
        for n in range(2):
            packet = av.Packet(b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
            packet.stream, packet.pts, packet.dts = stream, n, n
            out.mux(packet)
    assert MAX_PIXELS < 8192 * 8192
    with pytest.raises(VideoError):
        probe(path)


def test_a_picture_is_no_video(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "a.png")
    with pytest.raises(VideoError, match="pass pictures as images"):
        probe(tmp_path / "a.png")


def test_a_codec_that_nobody_knows(tmp_path: Path) -> None:
    path = write(tmp_path / "a.avi", 30, "mpeg4")
    path.write_bytes(path.read_bytes().replace(b"FMP4", b"ZZZZ"))
    with pytest.raises(VideoError, match="coded in a way that FFmpeg does not know"):
        probe(path)
