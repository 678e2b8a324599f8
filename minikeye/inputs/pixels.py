"""Pictures as people see them, and frames as the vision tower takes them: resized, cut into patches.

Axes: f frame, p patch (raster order, frame after frame), s side of a patch in pixels. Report, section 2.1.
"""

import warnings
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Num, UInt8
from PIL import Image, ImageOps
from torch import Tensor

# Formats of Pillow that are pixels only and begin with a mark of their own. Left out: EPS above all, for which Pillow
# starts Ghostscript, and TGA, which has no mark and may be any file.
PICTURE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
MAX_PICTURE_PIXELS = 89_478_485  # the size above which Pillow warns of a decompression bomb; takes 2 GB here


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
    except Exception:  # Pillow raises many kinds for files that are none
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
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))
