"""Sparse attention's kernels without a GPU: in Triton's interpreter, and compiled for sm_80 and sm_90."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
triton = pytest.importorskip("triton")


from minikeye.kernels import sparse_attention as door  # noqa: E402 - not before it is known to be installed


def pytest_in_a_process(file: str, **environment: str) -> subprocess.CompletedProcess:
    """Triton reads TRITON_INTERPRET when a kernel is defined: too late for this process."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(HERE / file)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=HERE.parent.parent, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_in_the_interpreter():
    done = pytest_in_a_process("sparse_interpreted.py", TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert int(re.search(r"(\d+) passed", done.stdout)[1]) > 60


def test_without_a_gpu_the_door_says_so():
    torch = pytest.importorskip("torch")
    q, k = torch.randn(1, 2, 2, 16), torch.randn(1, 3, 1, 16)
    with pytest.raises(ValueError, match="need a CUDA device, got cpu"):
        door.sparse_attention(q, k, k, torch.zeros(1, 2, 1, dtype=torch.int32))


# ---------------------------------------------------------------------------------------------------- on a GPU


def on_gpu(torch, length=4096, topk=512):
    """Released heads in bfloat16; the selection of slowly moving random scores, some keys popular with all queries."""
    ops = pytest.importorskip("minikeye.ops")
    draw = torch.Generator("cuda").manual_seed(0)
    shapes = (1, length, 32, 128), (1, length, 4, 128), (1, length, 4, 128)
    qkv = [torch.randn(shape, device="cuda", dtype=torch.bfloat16, generator=draw).requires_grad_() for shape in shapes]
    scores = torch.randn(1, length, length, device="cuda", generator=draw).cumsum(dim=1) / 8
    scores = scores.masked_fill(~ops.valid_keys(length, length, 0, None, scores.device), -torch.inf)
    return qkv, ops.topk_positions(scores, topk), torch.randn(shapes[0], device="cuda", generator=draw).bfloat16()


@pytest.mark.gpu
@pytest.mark.parametrize("deterministic", [True, False])
def test_as_near_to_float64_as_torch(deterministic):
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from minikeye import ops

    qkv, indices, weight = on_gpu(torch)

    def run(function, inputs, **options):
        out, lse = function(*inputs, indices, **options)
        return out, lse, *torch.autograd.grad(out, inputs, weight.to(out.dtype))

    truth = run(ops.sparse_attention, [x.detach().double().requires_grad_() for x in qkv], backend="torch")
    torchs = run(ops.sparse_attention, qkv, backend="torch")
    runs = [run(door.sparse_attention, qkv, deterministic=deterministic) for _ in range(20)]
    for name, x, reference, *got in zip(("out", "lse", "dq", "dk", "dv"), truth, torchs, *runs, strict=True):
        error, bound = ((y.double() - x).abs().max().item() for y in (got[0], reference))
        assert error <= bound + torch.finfo(torch.bfloat16).eps * x.abs().max().item(), name
        if deterministic or name not in ("dk", "dv"):
            assert all(y.equal(got[0]) for y in got), name
