"""How kernels are launched: which row of a launch table, and what Triton's interpreter needs.

Every kernel file has a plain table from architecture to launch parameters. Nothing is tuned at run time, so that two
runs on one card execute the same instructions.
"""

import torch
import triton

INTERPRETED = triton.knobs.runtime.interpret  # TRITON_INTERPRET=1: NumPy plays the GPU, one program after another


def architecture(device: torch.device) -> str:
    """The row of a launch table that fits `device`: sm_90 where a program may have Hopper's 227 KiB of shared memory.

    That is Hopper and data centre Blackwell (9.x, 10.x); consumer Blackwell (12.x) has less than Ampere's 163 KiB.
    """
    if INTERPRETED:
        return "interpreter"
    return "sm_90" if torch.cuda.get_device_capability(device)[0] in (9, 10) else "sm_80"


def launch(table: dict[str, dict[str, int]], device: torch.device) -> dict[str, int]:
    """Keyword arguments of a launch on `device`.

    a * b + c may round once: Triton 3.10 will make that a choice, and costs time where it is not asked for.
    """
    return table[architecture(device)] | {"enable_fp_fusion": True}


def upcast(dtype: torch.dtype) -> bool:
    """The interpreter's arithmetic on bfloat16 is wrong without a word: there, and only there, go through float32."""
    return INTERPRETED and dtype == torch.bfloat16


def runs_on(device: torch.device) -> bool:
    """Whether kernels can read tensors of `device`."""
    return device.type == "cuda" or INTERPRETED
