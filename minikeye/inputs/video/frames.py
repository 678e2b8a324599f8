"""Decoded frames as people see them: upright, over white where they are transparent, at the size the model reads."""

import struct
from dataclasses import dataclass

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter
from jaxtyping import UInt8

from minikeye.inputs.sampling import VideoError


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
