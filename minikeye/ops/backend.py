"""Which backend answers a call of `ops`: packages, devices, dtypes and shapes decide, before anything runs."""

import importlib.util
from functools import cache

import torch
from torch import Tensor

from minikeye.ops.torch_attention import counting

BACKENDS = ("auto", "torch", "triton")
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def choose_backend(backend: str, *tensors: Tensor | torch.device | str, unless: str = "") -> tuple[str, str]:
    """The backend that will run, and why. "auto" takes the Triton kernels where they can run, else torch.

    tensors: the inputs, or just a device; at least one. unless: what the caller knows against the kernels, if anything.
    Nothing is tried and nothing fails over: packages, devices, dtypes and shapes alone decide. Raises ValueError for an
    unknown backend, RuntimeError where "triton" is asked for and cannot run: no other backend answers a request.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")
    if not tensors:
        raise ValueError("expected the inputs or a device, got none: there is nothing to choose for")
    if backend == "torch":
        return "torch", "asked for"
    obstacle = _triton_obstacle(*tensors) or unless
    if obstacle and backend == "triton":
        raise RuntimeError(f"backend 'triton' cannot run: {obstacle}. Use backend='torch', or 'auto' to let it choose.")
    return ("torch", obstacle) if obstacle else ("triton", "Triton kernels present, CUDA device")


def _triton_obstacle(*tensors: Tensor | torch.device | str) -> str:
    for x in tensors:
        device = x.device if isinstance(x, Tensor) else torch.device(x)
        if device.type != "cuda":
            return f"the tensors are on {device.type}, the kernels need a CUDA device"
        if not torch.cuda.is_available():
            return "torch finds no CUDA device"
        if isinstance(x, Tensor) and x.is_floating_point() and x.dtype not in KERNEL_DTYPES:
            return f"the kernels take float32, float16 and bfloat16, got {x.dtype}"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return f"the kernels need compute capability 8.0, {torch.cuda.get_device_name(device)} has less"
    if not _triton_installed():
        return "the package triton is not installed"
    return "rows are being counted (`count_rows`), which only torch can do" if counting() else ""


@cache
def _triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def beyond_kernels(q: Tensor, k: Tensor, index_q: Tensor | None = None) -> str:
    """What about these shapes the attention and loss kernels cannot do."""
    if q.shape[-1] not in (16, 32, 64, 128) or q.shape[2] // k.shape[2] > 16:
        return "heads must be 16, 32, 64 or 128 wide, at most 16 a group"
    return "" if index_q is None else beyond_index_kernels(index_q, most=8192)


def beyond_index_kernels(index_q: Tensor, most: int = 2**16) -> str:
    """What about the shape of index queries the kernels cannot do; most: heads times width, as powers of two."""
    j, i = index_q.shape[2:]
    if j > 256 or i > (128 if index_q.dtype == torch.float32 else 256):
        return "the kernels take up to 256 index heads, 256 wide (128 in float32)"
    entries = 2 ** (j - 1).bit_length() * max(16, 2 ** (i - 1).bit_length())
    return "" if entries <= most else f"index heads times their width, as powers of two, must not exceed {most:,}"
