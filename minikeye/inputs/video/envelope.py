"""A video file seen from outside: is it one file, is all of it there, is it small enough to open?

A file that names other files (a playlist, a list of pictures) reads them from anywhere on the disk. So only formats
that are one file are opened, through no other protocol than the file itself.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import av

from minikeye.inputs.sampling import VideoError

# Formats of libavformat that are one file. Left out: lists of other files (hls, dash, concat, imf, image2, sdp, ...),
# devices, and formats that draw text or single pictures.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,asf,ogg,nut,mxf,gxf,wtv,rm,swf,dv,"
    "gif,apng,ivf,h261,h263,h264,hevc,vvc,obu,av1,m4v,mjpeg,vc1,vc1test,dirac,cavsvideo,avs2,avs3,yuv4mpegpipe"
)
MAX_SIDE = 16_384  # pixels. Our choice: the limit of common decoders
MAX_PIXELS = 35_651_584  # of a frame: the largest picture of the highest common levels of HEVC and AV1, 8192x4352

# What an MP4 file is made of. Another name at this level means that something else follows the video.
_BOXES = set(b"ftyp moov mdat free skip wide moof mfra sidx ssix styp emsg prft pdin uuid meta udta".split())
# Boxes that hold boxes on the way to those that count samples, and where in them those counts lie.
_PARENTS = set(b"moov trak mdia minf stbl moof traf".split())


@contextmanager
def open_video(path: str | Path) -> Iterator[tuple[av.container.InputContainer, av.VideoStream]]:
    """Open a file and its first real video stream. An error of PyAV inside the block becomes one VideoError."""
    if not Path(path).is_file():
        raise VideoError(f"expected a video file, found no file at {path}")
    check_whole(path)
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    try:
        with av.open(f"file:{path}", metadata_errors="ignore", options=options) as container:
            streams = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
            if not streams:
                kinds = sorted({s.type for s in container.streams if s.type != "video"}) or ["nothing"]
                raise VideoError(f"expected a video stream in {path}, found {' and '.join(kinds)} only")
            for other in container.streams:  # spares reading the sound
                if other.index != streams[0].index:
                    other.discard = av.stream.Discard.all
            decoder = streams[0].codec_context
            if decoder is None:
                raise VideoError(f"the video in {path} is coded in a way that FFmpeg does not know: re-encode it")
            check_size(path, decoder.width, decoder.height)
            decoder.options = {"max_pixels": str(MAX_PIXELS)}  # the header may lie, or the size change on the way
            yield container, streams[0]
    except EOFError as error:
        raise VideoError(f"expected at least one frame in {path}, which ends before it: empty or truncated") from error
    except av.error.FFmpegError as error:
        raise VideoError(
            f"{path} is not a video that can be read, or it is damaged ({error.strerror}): expected one file such as "
            f"MP4, Matroska, WebM, AVI or MPEG-TS. Playlists and lists of files are not opened; pass pictures as images"
        ) from error


def packets_of(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.Packet]:
    """The packets of a stream; the last one is empty and flushes the decoder.

    PyAV fails on a stream that first comes up in the middle of a file, but not before it has given all of ours.
    """
    with suppress(IndexError):
        yield from container.demux(stream)


def check_size(path: str | Path, width: int, height: int) -> None:
    """Raise VideoError for frames that would take more memory than any common video: sides and pixels have a limit."""
    if max(width, height) > MAX_SIDE:
        raise VideoError(f"expected sides up to {MAX_SIDE} pixels, {path} has {width}x{height}")
    if width * height > MAX_PIXELS:
        raise VideoError(
            f"expected frames of up to {MAX_PIXELS:,} pixels (8192x4352), {path} has {width}x{height}: scale it down, "
            f"for example with ffmpeg -vf scale=3840:-2"
        )


def check_whole(path: str | Path) -> None:
    """Raise VideoError for a file that is empty, shorter than it says, or says it holds more samples than bytes."""
    size = os.path.getsize(path)
    if size == 0:
        raise VideoError(f"expected a video file, {path} is empty (0 bytes)")
    stated = stated_size(path)
    if stated > size:
        raise VideoError(f"{path} is truncated: it says it holds {stated} bytes and has {size}; copy it again")
    with open(path, "rb") as file:
        movies = [name for name, *_ in _boxes(file, 0, size if file.read(8)[4:] == b"ftyp" else 0)].count(b"moov")
    if movies > 1:
        raise VideoError(f"{path} holds {movies} MP4 files in a row, of which only one would be read: split it")
    if (samples := stated_samples(path)) > size:
        raise VideoError(f"{path} is damaged: it says it holds {samples:,} samples and has {size:,} bytes")


def stated_size(path: str | Path) -> int:
    """Bytes that an MP4, Matroska, AVI or GIF file says it has, to find truncated ones; 0 where it does not say.

    A GIF states no size but marks its end: without that mark, one byte more than there is.
    """
    with open(path, "rb") as file:
        head = file.read(12)
        if head[:4] == b"\x1aE\xdf\xa3":  # EBML: a header, then one segment
            return (header := _ebml_end(file, 4)) and _ebml_end(file, header + 4)
        if head[:4] == b"RIFF" and head[8:] == b"AVI ":
            return _riff_end(file)
        if head[:4] == b"GIF8":
            return _gif_end(file)
        last = 0
        for name, _, end in _boxes(file, 0, os.path.getsize(path)):  # MP4: boxes one after another
            if name not in _BOXES or (last == 0 and name != b"ftyp"):
                break
            last = end
        return last


def stated_samples(path: str | Path) -> int:
    """Samples that the tables of an MP4 file say it has, 0 for other files.

    A table that says "n of the same" takes a few bytes whatever n is, and libavformat writes all n into memory.
    """
    with open(path, "rb") as file:
        return _samples(file, 0, os.path.getsize(path)) if file.read(8)[4:] == b"ftyp" else 0


def _samples(file: BinaryIO, start: int, stop: int, depth: int = 0) -> int:
    """The largest count in the sample tables between two places; those of fragments are added up."""
    most = fragments = 0
    for name, begin, end in _boxes(file, start, stop):
        end = min(end, stop)
        if name in _PARENTS and depth < 6:  # moov, trak, mdia, minf, stbl
            inner = _samples(file, begin, end, depth + 1)
            most, fragments = (most, fragments + inner) if name == b"moof" else (max(most, inner), fragments)
        elif name in (b"stsz", b"stz2", b"trun"):
            count = _number(file, begin + (4 if name == b"trun" else 8))
            most, fragments = (most, fragments + count) if name == b"trun" else (max(most, count), fragments)
    return max(most, fragments)


def _number(file: BinaryIO, at: int) -> int:
    file.seek(at)
    return int.from_bytes(file.read(4), "big")


def _boxes(file: BinaryIO, start: int, stop: int) -> Iterator[tuple[bytes, int, int]]:
    """(name, begin of content, end) of the MP4 boxes between two places; the last one may end beyond."""
    while start < stop:
        file.seek(start)
        head = file.read(16)
        size, begin = int.from_bytes(head[:4], "big"), start + 8
        if size == 1:  # a 64-bit size follows the name
            size, begin = int.from_bytes(head[8:16], "big"), start + 16
        if len(head) < 8 or size < begin - start:  # 0 means up to the end of the file
            return
        yield head[4:8], begin, start + size
        start += size


def _ebml_end(file: BinaryIO, at: int) -> int:
    """End of the EBML element whose size field is at `at`; 0 for a size that is not stated."""
    file.seek(at)
    first = file.read(1)
    width = 9 - first[0].bit_length() if first and first[0] else 0
    rest = file.read(max(width - 1, 0))
    unknown = (1 << 7 * width) - 1
    size = int.from_bytes(first + rest, "big") & unknown if width else unknown
    return 0 if size == unknown else at + width + size


def _riff_end(file: BinaryIO) -> int:
    """End of the last RIFF chunk of an AVI file; 0 where it was never written, as by a recorder that lost power."""
    end = start = 0
    while True:
        file.seek(start)
        head = file.read(12)
        if head[:4] != b"RIFF" or head[8:] not in (b"AVI ", b"AVIX"):
            return max(end - 8, 0)  # some writers count the chunk's own head of 8 bytes as well
        size = int.from_bytes(head[4:8], "little")
        if size in (0, 0xFFFFFFFF):
            return 0
        end = start + 8 + size
        start = end + size % 2


def _gif_end(file: BinaryIO) -> int:
    """End of a GIF, found by walking its blocks; a byte after the last one where the mark of the end is missing."""
    file.seek(10)
    flags = file.read(3)[:1]
    _skip_colours(file, flags)
    while kind := file.read(1):
        if kind == b";":
            return file.tell()
        if kind == b",":  # a picture: place and size, flags, its colours, how its data is coded
            _skip_colours(file, file.read(9)[8:])
        elif kind != b"!":
            return 0  # no GIF that we know: the decoder has the last word
        file.read(1)
        while (length := file.read(1)) and length[0]:
            file.seek(length[0], os.SEEK_CUR)
    return file.seek(0, os.SEEK_END) + 1


def _skip_colours(file: BinaryIO, flags: bytes) -> None:
    """Move past a GIF's colour table, whose presence and size are in the flags."""
    if flags and flags[0] & 128:
        file.seek(6 << (flags[0] & 7), os.SEEK_CUR)
