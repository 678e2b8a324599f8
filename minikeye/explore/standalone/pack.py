"""Numbers and pictures of a selection, packed as text for a web page.

Axes: l recorded layer, t recorded query, f frame.
"""

import base64
import io
import json
import zlib
from typing import Any

import numpy as np
from jaxtyping import Int64, UInt8
from PIL import Image
from torch import Tensor

from minikeye.explore.selection import FrameCounts

PLANES = 3  # bytes a number: no prompt selects 2 ** 24 keys, and a share has 1,000,000 millionths
SIZES = (192, 160, 128, 96, 80, 64, 48)  # pixels of a picture's longest side, tried in this order
QUALITY = 72  # of WebP, of 100
SAMPLE = 32  # frames by which a size is judged before all are written


def pack(header: dict[str, Any], selection: FrameCounts) -> str:
    """`header` as JSON, then keys and attention of every layer, query and frame, compressed, in base64.

    Attention is rounded to 6 decimals, as in `FrameCounts.to_json`. Numbers are laid out byte by byte, all lowest bytes
    first: the higher ones are nearly all zero and then take no room.
    """
    counts = selection.counts.long().numpy()
    millionths = (selection.mass.double() * 1e6).round().long().numpy()
    return zipped(header, planes(counts) + planes(millionths))


def zipped(header: dict[str, Any], body: bytes) -> str:
    """`header` as JSON and `body` behind it, compressed, in base64: for inflate() in numbers.js."""
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
    return base64.b64encode(zlib.compress(len(text).to_bytes(4, "little") + text + body, 9)).decode("ascii")


def planes(values: Int64[np.ndarray, "*n"]) -> bytes:
    """Three bytes a number, all lowest ones first."""
    flat = values.reshape(-1)
    return b"".join((flat >> 8 * n & 255).astype(np.uint8).tobytes() for n in range(PLANES))


def pictures(thumbnails: UInt8[Tensor, "f 3 height width"], room: int) -> list[str]:
    """A data URI a frame, together at most `room` characters: in the largest of SIZES that fits, else the smallest."""
    frames = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in thumbnails]
    some = frames[:: -(-len(frames) // SAMPLE)]
    *larger, smallest = sorted({min(size, max(frames[0].size)) for size in SIZES}, reverse=True)
    for size in larger:
        likely = _long(_encoded(some, size)) * len(frames) <= room * len(some)
        if likely and _long(codes := _encoded(frames, size)) <= room:
            return codes
    return _encoded(frames, smallest)


def _long(codes: list[str]) -> int:
    return sum(map(len, codes))


def _encoded(frames: list[Image.Image], size: int) -> list[str]:
    """The frames as WebP, `size` pixels wide or high."""
    codes = []
    for frame in frames:
        scale, file = size / max(frame.size), io.BytesIO()
        smaller = frame.resize([max(1, round(side * scale)) for side in frame.size], Image.Resampling.LANCZOS)
        smaller.save(file, "WEBP", quality=QUALITY, method=4)
        codes.append(f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode('ascii')}")
    return codes
