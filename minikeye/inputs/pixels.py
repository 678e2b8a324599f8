"""A picture or a video frame as the vision tower takes it: upright, opaque, RGB, resized, cut into patches.

Axes: f frame, p patch (raster order, frame after frame), s side of a patch in pixels. Report, section 2.1.
"""

import struct
import warnings
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import torch
import torch.nn.functional as F
from av.video.reformatter import Interpolation, VideoReformatter
from einops import rearrange
from jaxtyping import Float, Num, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from minikeye.inputs.sampling import VideoError

# Formats of Pillow that are pixels only. Left out above all: EPS, for which Pillow starts Ghostscript.
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "AVIF", "JPEG2000", "ICO", "TGA")
MAX_PICTURE_PIXELS = 89_478_485  # the size above which Pillow warns of a decompression bomb; takes 1.5 GB here


def resize(frames: UInt8[Tensor, "f 3 _ _"], height: int, width: int) -> UInt8[Tensor, "f 3 height width"]:
    """Bilinear with antialias, as released."""
    if tuple(frames.shape[-2:]) == (height, width):
        return frames
    resized = F.interpolate(frames.float(), (height, width), mode="bilinear", align_corners=False, antialias=True)
    return resized.round().clamp(0, 255).to(torch.uint8)


def patchify(frames: Num[Tensor, "f 3 height width"], size: int) -> Float[Tensor, "p 3 s s"]:
    """Frames with values 0..255 -> patches of size x size pixels in raster order, values in [-1, 1]."""
    pixels = (frames.float() / 255 - 0.5) / 0.5
    return rearrange(pixels, "f c (r s1) (q s2) -> (f r q) c s1 s2", s1=size, s2=size)


def is_picture(path: str | Path) -> bool:
    """Whether a file holds one still picture. Its first bytes tell, not its name; the rest of it is not looked at."""
    try:
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            opened = Image.open(path, formats=PICTURE_FORMATS)
        with opened as image:
            return not getattr(image, "is_animated", False)
    except Image.DecompressionBombError:
        return True  # whoever opens it to read it says so
    except OSError:
        return False


def picture(source: str | Path | Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    """A picture as people see it: turned as its EXIF tag says, over white where it is transparent (our choice).

    Raises ValueError, naming file and reason, for what is no picture, a damaged one, one of more than
    MAX_PICTURE_PIXELS pixels (before it is decoded), and for modes that do not say which number is white.
    """
    name = "the image" if isinstance(source, Image.Image) else str(source)
    try:
        if isinstance(source, Image.Image):
            return _as_seen(source)
        with warnings.catch_warnings(action="ignore", category=Image.DecompressionBombWarning):
            opened = Image.open(source, formats=PICTURE_FORMATS)
        with opened as image:
            return _as_seen(image)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"expected a picture of up to {MAX_PICTURE_PIXELS:,} pixels, {name} is too large ({error}): scale it down"
        ) from error
    except Exception as error:  # Pillow raises many kinds for damaged files; all mean the same to a user
        raise ValueError(f"{name} is not a readable image: {error}") from error


def _as_seen(image: Image.Image) -> UInt8[np.ndarray, "height width 3"]:
    if image.width * image.height > MAX_PICTURE_PIXELS:
        raise Image.DecompressionBombError(f"{image.width}x{image.height} pixels")
    if image.mode in ("I", "F"):
        raise ValueError(f"mode {image.mode!r} does not say which number is white: convert it to 8 bits a channel")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):  # convert() would cut off at 255 of 65,535
        grey = np.rint(np.asarray(image).astype(np.float32) / 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.array(image.convert("RGB"))


@dataclass(frozen=True)
class Orientation:
    """How stored pixels become shown pixels: transpose first, then the flips. From the display matrix."""

    transpose: bool = False  # rows become columns
    flip_columns: bool = False  # left and right change places
    flip_rows: bool = False  # top and bottom change places
    degrees: int = 0  # the same as an anticlockwise rotation, 0, 90, 180 or 270; a mirror image is not counted

    @classmethod
    def of(cls, frame: av.VideoFrame) -> "Orientation":
        """Read the display matrix: x' = a x + c y, y' = b x + d y. Raises VideoError unless it is a quarter turn."""
        data = frame.side_data.get("DISPLAYMATRIX")
        if data is None:
            return cls()
        a, b, _, c, d = (v / 65536 for v in struct.unpack("5i", bytes(data)[:20]))
        straight, turned = abs(a) > 0.99 and abs(d) > 0.99, abs(b) > 0.99 and abs(c) > 0.99
        if straight == turned or min(abs(b), abs(a)) > 0.01:
            raise VideoError(
                f"expected a rotation by a quarter turn, got {frame.rotation} degrees: re-encode it upright"
            )
        degrees = round(frame.rotation / 90) * 90 % 360
        return cls(turned, (c if turned else a) < 0, (b if turned else d) < 0, degrees)


# Accurate rounding costs nothing measurable and keeps libswscale off a short cut for unscaled pictures that left the
# last columns of 84x56 frames unwritten.
BILINEAR = int(Interpolation.BILINEAR | Interpolation.ACCURATE_RND)


class FrameResizer:
    """Decoded frame -> RGB uint8 [3 height width], upright, over white where it is transparent.

    libswscale converts and resizes in one step (a triangle filter widened by the scale, i.e. bilinear with antialias):
    about 1 ms for 1280x720 -> 588x336 on one core. torch's antialiased uint8 interpolation takes as long, but needs the
    full-size RGB picture first. Planar "gbrp" takes half the time of "rgb24", which is also up to 2 grey levels off.
    """

    def __init__(self, size: tuple[int, int], orientation: Orientation):
        self.size = size[::-1] if orientation.transpose else size  # as stored
        self.orientation = orientation
        self._flips = orientation.flip_rows, orientation.flip_columns
        self.reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> UInt8[np.ndarray, "3 height width"]:
        """Raises VideoError for a pixel format that libswscale cannot read."""
        width, height = self.size
        try:
            if frame.format.has_palette or any(part.is_alpha for part in frame.format.components):
                frame = _over_white(frame)
            planar = self.reformatter.reformat(frame, width, height, "gbrp", interpolation=BILINEAR, threads=1)
        except (av.error.FFmpegError, ValueError, RuntimeError) as error:
            raise VideoError(
                f"frames of pixel format {frame.format.name} cannot be converted to RGB ({error}): re-encode the video"
            ) from error
        green, blue, red = _planes(planar)
        pixels = np.stack([red, green, blue])
        if self.orientation.transpose:
            pixels = pixels.transpose(0, 2, 1)
        rows, columns = (slice(None, None, -1 if flip else 1) for flip in self._flips)
        return pixels[:, rows, columns]


def _planes(frame: av.VideoFrame) -> list[UInt8[np.ndarray, "height width"]]:
    """The 8-bit planes of a frame, without the bytes that pad their rows."""
    return [np.frombuffer(p, np.uint8).reshape(frame.height, p.line_size)[:, : frame.width] for p in frame.planes]


def _over_white(frame: av.VideoFrame) -> av.VideoFrame:
    """A frame without transparency. At its own size, so that colours nobody sees do not bleed into those one does."""
    green, blue, red, alpha = _planes(frame.reformat(format="gbrap"))
    alpha = alpha.astype(np.uint16)
    opaque = [(c * alpha + 255 * (255 - alpha) + 127) // 255 for c in (red, green, blue)]
    return av.VideoFrame.from_ndarray(np.stack(opaque, axis=2).astype(np.uint8), "rgb24")
