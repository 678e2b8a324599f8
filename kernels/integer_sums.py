"""Sums of integers in the place of sums of floats: programs add in any order and the bits are the same.

Axes: b batch, s position, g KV head, e width. A float32 sum depends on the order of its terms, and atomic additions
have none. Integers do not. So a term, whose own bits do not depend on other programs, is cut off to a multiple of a
unit, and the multiple is added as int64. The unit is a power of two, one for each batch row and KV head, so that no sum
can leave int64: with B a bound on sum |terms| for every place, found before on the device,

    unit = 2^-62 B, B rounded up to a power of two

which leaves a factor of two for what rounding does to terms and to B. Precision: n terms are off by n units in all, so
a sum is off by less than n 2^-61 B; a float32 sum by up to n 2^-24 A, A being the sum of |terms| at that very place.
Integers are the worse of the two only where A < 2^-37 B. No unit is below 2^-126, the smallest normal float32: terms
below it, which float32 holds with fewer and fewer bits, count nothing.
"""

import torch
from torch import Tensor

MOST = 2.0**126  # beyond it float32 terms may be infinite, and no integer stands for them


class IntegerSums:
    """Sums [b s g e] that kernels add to, and the unit of each batch row and KV head.

        into = IntegerSums(most, s, e)    a kernel adds int64(term / into.unit[b, g]) to into.sums[b, s, g, e]
        gradient = into.finish(torch.bfloat16)

    sums: int64 [b s g e], zeros at first, contiguous. unit: float32 [b g], powers of two. finite: bool [b g].
    """

    def __init__(self, most: Tensor, s: int, e: int, integers: bool = True):
        """Zeros to add to, on the device of `most`.

        most: B, float64 [b g], infinite or nan where a term is. s, e: sizes of those axes. integers=False: sums are
        float32 and units 1, a rival to time.
        """
        b, g = most.shape
        self.finite = most < MOST  # neither where nan
        exponent = torch.where(self.finite, most, 1.0).frexp().exponent.clamp(min=-64)  # B < 2^exponent
        self.unit = power_of_two(exponent - 62) if integers else torch.ones_like(most, dtype=torch.float32)
        kind = torch.int64 if integers else torch.float32
        self.sums = torch.zeros(b, s, g, e, dtype=kind, device=most.device)

    def finish(self, dtype: torch.dtype, finite: Tensor | None = None) -> Tensor:
        """The sums as floats [b s g e]; nan where B is not below 2^126 or `finite` [b g] says False. Call it once."""
        finite = self.finite if finite is None else self.finite & finite
        unit = torch.where(finite, self.unit, torch.nan)[:, None, :, None]
        return self.sums.float().mul_(unit).to(dtype)


def largest(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """The largest absolute value along dim; nan if there is one."""
    return torch.linalg.vector_norm(x, torch.inf, dim=dim)


def power_of_two(exponent: Tensor) -> Tensor:
    """2^exponent, exactly, from its bits: float32 of integers -126 to 127."""
    return ((exponent + 127) << 23).int().view(torch.float32)
