"""Frames as the vision tower takes them: resized, cut into patches, their values brought to [-1, 1].

Axes: f frame, p patch (raster order, frame after frame), s side of a patch in pixels. Report, section 2.1.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Num, UInt8
from PIL import Image
from torch import Tensor

PICTURES = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")  # formats of still pictures; those that move are videos


def is_picture(path: str | Path) -> bool:
    """Whether a file holds one still picture. Its first bytes tell, not its name; the rest of it is not looked at."""
    try:
        with Image.open(path, formats=PICTURES) as image:
            return not getattr(image, "is_animated", False)
    except Image.DecompressionBombError:
        return True  # whoever opens it to read it says so
    except OSError:
        return False


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
