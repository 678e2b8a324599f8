"""The kernels of the indexer's losses: compiled, at the door, and on a GPU."""

import pytest
import torch

triton = pytest.importorskip("triton")

from minikeye.evaluation.kernels.compiled import Compiled, compile_case, loss_cases  # noqa: E402
from minikeye.evaluation.kernels.workload import RELEASED, Shape  # noqa: E402
from minikeye.kernels.losses import selected_loss, warmup_loss  # noqa: E402 - not before it is known to be there


def test_without_a_gpu_the_door_says_so():
    index_q, index_k, index_w = torch.randn(1, 2, 2, 16), torch.randn(1, 3, 16), torch.randn(1, 2, 2)
    q, k = torch.randn(1, 2, 2, 16), torch.randn(1, 3, 1, 16)
    for function, argument in (
        (selected_loss.selected_loss, torch.zeros(1, 2, 1, dtype=torch.int32)),
        (warmup_loss.warmup_loss, torch.zeros(2, dtype=torch.int32)),
    ):
        with pytest.raises(ValueError, match="must be on one CUDA device; got cpu"):
            function(index_q, index_k, index_w, q, k, argument)


# ---------------------------------------------------------------------------------------------------- compiled

NAMES = list(loss_cases(90))


def compiled(name: str, sm: int, shape: Shape = RELEASED, dtype: str = "bf16", gradients: bool = True) -> Compiled:
    return compile_case(loss_cases(sm, shape, dtype, gradients)[name], sm, dtype)


@pytest.mark.parametrize("name", ["selected_loss", "warmup_loss"])
def test_without_gradients_less_is_done(name):
    made = compiled(name, 90, gradients=False)
    assert made.spilled == 0
    assert "tf32" not in made.ptx and "tf32" in compiled(name, 90).ptx


def test_the_warm_up_is_multiplied_by_warp_groups():
    for name in ("warmup_lse, heads", "warmup_lse, rows", "warmup_loss", "warmup_loss, dk", "selected_loss"):
        ptx = compiled(name, 90).ptx
        assert "wgmma.mma_async" in ptx and "cp.async" in ptx, name


SHAPES = [  # the most of everything, the least of everything, numbers in between that are no powers of 2, and float32
    (Shape(heads=64, index_heads=64, index_width=128), "fp16"),
    (Shape(heads=4, width=16, index_heads=1, index_width=16, topk=4096), "bf16"),
    (Shape(heads=20, width=64, index_heads=5, index_width=24), "bf16"),
    (Shape(width=64), "fp32"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "dtype"), SHAPES, ids=str)
@pytest.mark.parametrize("name", NAMES)
def test_other_shapes_compile(name, shape, dtype):
    """Group sizes, widths and dtypes that the door lets in; half a kilobyte spilled is slow, not wrong."""
    made = compiled(name, 90, shape, dtype)
    assert made.shared <= 227 * 1024
    assert made.spilled <= (512 if dtype != "fp32" else 2**15), made


# ---------------------------------------------------------------------------------------------------- on a GPU


def on_gpu(t=512, s=4096, topk=512):
    """The released heads; float16, whose gradients of 1e-5 would be lost if they were cast to it before a product."""
    draw = torch.Generator("cuda").manual_seed(0)
    shapes = (1, t, 16, 64), (1, s, 64), (1, t, 16), (1, t, 32, 128), (1, s, 4, 128)
    tensors = [torch.randn(shape, device="cuda", generator=draw) for shape in shapes]
    tensors = [x if n == 2 else x.half() for n, x in enumerate(tensors)]
    positions = torch.randint(topk, s, (t,), device="cuda", generator=draw)
    scores = torch.rand(1, t, s, device="cuda", generator=draw)
    scores = scores.masked_fill(torch.arange(s, device="cuda") > positions[:, None], -torch.inf)
    return tensors, positions, scores.topk(topk).indices.sort().values.int()


@pytest.mark.gpu
@pytest.mark.parametrize("stage", ["sparse", "warm-up"])
def test_as_near_to_float64_as_one_rounding(stage):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from minikeye import ops
    from minikeye.ops import torch_losses
    from minikeye.ops.torch_attention import gather_index_rows

    tensors, positions, indices = on_gpu()
    weight = torch.rand(1, 512, device="cuda") * 1e-5

    def truth(index_q, index_k, index_w, q, k):
        if stage == "sparse":
            targets = torch_losses.selected_targets(q, ops.gather_rows(k, indices), indices)
            scores = torch_losses.selected_scores(index_q, gather_index_rows(index_k, indices), index_w, indices)
            return torch_losses.kl_loss(scores, targets)
        valid = (torch.arange(k.shape[1], device="cuda") <= positions[:, None])[None]
        scores = torch.einsum("btji,bsi->btjs", index_q, index_k).relu()
        scores = torch.einsum("btj,btjs->bts", index_w, scores) / 8
        return torch_losses.kl_loss(scores.masked_fill(~valid, -torch.inf), torch_losses.dense_targets(q, k, valid))

    def run(function, inputs, *rest):
        learners = [x.detach().requires_grad_() for x in inputs[:3]]
        loss = function(*learners, *inputs[3:], *rest)
        return loss.detach(), *torch.autograd.grad((loss * weight).sum(), learners)

    # Rows of 64 at a time, since float64 probabilities of all heads and keys are large; the keys' gradients add up.
    parts, wide = [], [x.double() for x in tensors]
    whole_positions, whole_indices, whole_weight = positions, indices, weight
    for rows in torch.arange(512, device="cuda").split(64):
        positions, indices, weight = whole_positions[rows], whole_indices[:, rows], whole_weight[:, rows]
        parts.append(run(truth, [x[:, rows] if n in (0, 2, 3) else x for n, x in enumerate(wide)]))
    positions, indices, weight = whole_positions, whole_indices, whole_weight
    expected = [torch.cat(x, dim=1) if n != 2 else sum(x) for n, x in enumerate(zip(*parts, strict=True))]
    function, argument = (
        (selected_loss.selected_loss, indices) if stage == "sparse" else (warmup_loss.warmup_loss, positions)
    )
    runs = [run(function, tensors, argument) for _ in range(20)]
    assert all(x.equal(y) for again in runs for x, y in zip(again, runs[0], strict=True))
    for n, (x, got) in enumerate(zip(expected, runs[0], strict=True)):
        step = (1e-4, 2e-3, 2e-3, 2e-3)[n]  # of float32: the loss; products with dI are tf32, its gradients float16
        floor = 2**-24 if got.dtype == torch.float16 else 0.0  # its smallest number
        assert (got.double() - x).abs().max() <= step * x.abs().max() + floor, n
