"""Programmatic dependent launch: a kernel's programs start while the kernel before it still runs, and wait inside.

Every dependent kernel costs about 2 us even where it does nothing. Where the card can (Hopper and later), the next
kernel of the stream may be set up meanwhile: it loads what does not depend on the one before, its weights, waits for
that one to end with all that it wrote, and goes on. The order of reads and writes is that of one stream, because every
kernel waits before it touches anything that another wrote or still reads.

`release` says that the next kernel may be set up. Before the last store, as a rule: programs that wait take the room
of those that run. On an H200 prototype of the released model's step, triggers at every kernel's start cost 20 to 26 us
a layer; before the last store they saved 5 of 83. Kernels of few programs release at their start.
"""

import torch
import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from minikeye.kernels.launch import architecture

ALONE = {"PDL": False}  # launch parameters of a kernel that starts when the one before has ended


def dependent(device: torch.device) -> dict[str, bool]:
    """Launch parameters of a kernel that may start early on `device`: the one place that decides where."""
    return {"PDL": True, "launch_pdl": True} if architecture(device) == "sm_90" else ALONE


@triton.jit
def wait(PDL: tl.constexpr):
    """Until the kernel before has ended and all that it wrote can be read."""
    if PDL:
        gdc_wait()


@triton.jit
def release(PDL: tl.constexpr):
    """The kernel behind may be set up, once all programs have said so or ended."""
    if PDL:
        gdc_launch_dependents()
