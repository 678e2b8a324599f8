"""Which backend answers a call of `ops`: packages, devices, dtypes and shapes decide, before anything runs."""

import importlib.util
from functools import cache

import torch
from torch import Tensor

from minikeye.config import KeyeConfig
from minikeye.ops.torch_attention import counting

BACKENDS = ("auto", "torch", "triton")
KERNELS_FROM = 2048  # tokens of a row that is learnt by kernels: on an H200 masks won at 1,152, kernels at 3,456
BEYOND_HEADS = "heads must be 16, 32, 64 or 128 wide, at most 16 a group"
KERNEL_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def choose_backend(backend: str, *tensors: Tensor | torch.device | str, unless: str = "") -> tuple[str, str]:
    """The backend that will run, and why. "auto" takes the Triton kernels where they can run, else torch.

    tensors: the inputs, or just a device; at least one. unless: what the caller knows against the kernels, if anything.
    Nothing is tried and nothing fails over: packages, devices, dtypes and shapes alone decide. Raises ValueError for an
    unknown backend, RuntimeError where "triton" is asked for and cannot run: no other backend answers a request.
    """
    _require_known(backend)
    if not tensors:
        raise ValueError("expected the inputs or a device, got none: there is nothing to choose for")
    if backend == "torch":
        return "torch", "asked for"
    obstacle = _triton_obstacle(*tensors) or unless
    if obstacle and backend == "triton":
        raise RuntimeError(f"backend 'triton' cannot run: {obstacle}. Use backend='torch', or 'auto' to let it choose.")
    return ("torch", obstacle) if obstacle else ("triton", "Triton kernels present, CUDA device")


def _require_known(backend: str) -> None:
    if backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}; got {backend!r}")


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


def learning_mode(attention: str, config: KeyeConfig, tokens: int, device: torch.device | str) -> str:
    """In which mode the model computes this attention while it learns: "sparse" becomes "masked" where that is faster.

    "masked" has the numbers of "sparse" by one dense product over all tokens of a row. It is faster on short rows, and
    wherever the kernels cannot run, since torch gathers a set per query.
    """
    if attention != "sparse":
        return attention
    text, short = config.text, f"rows of {tokens} tokens are short" if tokens < KERNELS_FROM else ""
    beyond = short or beyond_heads(text.head_width, text.group_heads)
    chosen, _ = choose_backend("auto", device, unless=beyond)
    return "sparse" if chosen == "triton" else "masked"


def fused(backend: str, *tensors: Tensor) -> bool:
    """Whether kernels that do several small steps of a layer at once may answer for these tensors.

    Where they lie on a GPU, all in bfloat16, nothing needs a gradient, and nobody asked for torch. "triton" is a demand
    on selection, attention and losses; these kernels it allows, as "auto" does: in training, in float32 or under
    autocast there are none, and PyTorch answers. Raises ValueError for an unknown backend.
    """
    _require_known(backend)
    return backend != "torch" and not fusion_obstacle(*tensors)


def fusion_obstacle(*tensors: Tensor) -> str:
    """Why the fused kernels of a layer cannot take these tensors, in words; "" where they can."""
    if learning(*tensors):
        return "a gradient is needed, and the fused kernels have none"
    if other := next((x.dtype for x in tensors if x.dtype != torch.bfloat16), None):
        return f"the fused kernels take bfloat16 alone, got {other}"
    if torch.is_autocast_enabled(tensors[0].device.type):
        return "autocast chooses dtypes"
    return _triton_obstacle(*tensors) or _elsewhere(tensors[0].device)


def _elsewhere(device: torch.device) -> str:
    """Triton launches on the current device, wherever the tensors lie."""
    if device.type != "cuda" or device.index in (None, here := torch.cuda.current_device()):
        return ""
    return f"the tensors are on {device}, Triton launches on cuda:{here}"


def learning(*tensors: Tensor) -> bool:
    """Whether a gradient will flow to any of these."""
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


@cache
def _triton_installed() -> bool:
    return importlib.util.find_spec("triton") is not None


def beyond_heads(width: int, group_heads: int) -> str:
    """The same of heads alone."""
    return "" if width in (16, 32, 64, 128) and group_heads <= 16 else BEYOND_HEADS


def beyond_kernels(q: Tensor, k: Tensor, index_q: Tensor | None = None) -> str:
    """What about these shapes the attention and loss kernels cannot do."""
    if beyond := beyond_heads(q.shape[-1], q.shape[2] // k.shape[2]):
        return beyond
    return "" if index_q is None else beyond_index_kernels(index_q, most=8192)


def beyond_index_kernels(index_q: Tensor, most: int = 2**16) -> str:
    """What about the shape of index queries the kernels cannot do; most: heads times width, as powers of two."""
    j, i = index_q.shape[2:]
    if j > 256 or i > (128 if index_q.dtype == torch.float32 else 256):
        return "the kernels take up to 256 index heads, 256 wide (128 in float32)"
    entries = 2 ** (j - 1).bit_length() * max(16, 2 ** (i - 1).bit_length())
    return "" if entries <= most else f"index heads times their width, as powers of two, must not exceed {most:,}"
