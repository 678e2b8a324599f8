"""Rotary positions: rotate-half RoPE, the 2D RoPE of the vision tower, M-RoPE.

Axes: b batch, t position, h head, e head width, p patch, c rotary frequency (e = 2c).
Report, section 2; layouts as in the released code (contiguous sections, rotate-half over the whole head).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor


def frequencies(width: int, theta: float, device: torch.device | None = None) -> Float[Tensor, " c"]:
    """theta^(-2i/width) for i = 0..width/2-1: radians per position, from fast to slow.

    Written as the released code writes it: at position 200,000 another rounding of these numbers moves cos by 0.006.
    """
    return 1.0 / theta ** (torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)


def rotation(angles: Float[Tensor, "*n c"]) -> tuple[Float[Tensor, "*n e"], Float[Tensor, "*n e"]]:
    """cos and sin of each frequency's angle, laid out twice for the two halves of a head."""
    twice = torch.cat((angles, angles), dim=-1)
    return twice.cos(), twice.sin()


def rotate(x: Float[Tensor, "*n t h e"], cos: Float[Tensor, "*m t e"], sin: Float[Tensor, "*m t e"]) -> Tensor:
    """Turn channel pairs (i, i + e/2) of every head by the token's angle: float32 at least, returned in x's dtype."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat((-second, first), dim=-1)
    return (x * cos.unsqueeze(-2) + turned * sin.unsqueeze(-2)).to(x.dtype)


def mrope(
    positions: Int[Tensor, "3 b t"], width: int, theta: float, section: tuple[int, int, int]
) -> tuple[Float[Tensor, "b t e"], Float[Tensor, "b t e"]]:
    """M-RoPE: the first section[0] frequencies turn with time, the next with the row, the last with the column.

    positions: (time, row, column) of every token. width: channels of a head, 2 * sum(section).
    A text token has three equal positions, which makes this plain RoPE.
    """
    if 2 * sum(section) != width:
        raise ValueError(f"M-RoPE sections {section} must sum to half the head width {width}")
    per_frequency = [positions[axis, :, :, None].expand(-1, -1, count) for axis, count in enumerate(section)]
    angles = torch.cat(per_frequency, dim=-1) * frequencies(width, theta, positions.device)  # [b t c]
    return rotation(angles)


def grid_rope(
    rows: int, columns: int, width: int, theta: float, device: torch.device | None = None
) -> tuple[Float[Tensor, "p e"], Float[Tensor, "p e"]]:
    """2D RoPE of one image: half of a head's frequencies turn with the patch's row, half with its column.

    rows, columns: size of the image in patches, raster order. width: channels of a vision head.
    """
    f = frequencies(width // 2, theta, device)
    row = torch.arange(rows, dtype=torch.float32, device=device).repeat_interleave(columns)
    column = torch.arange(columns, dtype=torch.float32, device=device).repeat(rows)
    return rotation(torch.cat((row[:, None] * f, column[:, None] * f), dim=-1))
