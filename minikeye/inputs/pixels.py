"""Frames as the vision tower takes them: resized, cut into patches, their values brought to [-1, 1].

Axes: f frame, p patch (raster order, frame after frame), s side of a patch in pixels. Report, section 2.1.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Num, UInt8
from torch import Tensor


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
