"""Scores and selection without a GPU: the door, the memory they take."""

import pytest
import torch

triton = pytest.importorskip("triton")


from minikeye import ops  # noqa: E402 - not before triton is known to be there
from minikeye.evaluation.kernels.workload import index_inputs  # noqa: E402
from minikeye.kernels.selection import select_fast, select_topk  # noqa: E402
from minikeye.kernels.selection.index_scores import index_scores  # noqa: E402


def test_without_a_gpu_the_door_says_so() -> None:
    q, k, w = torch.randn(1, 2, 2, 16), torch.randn(1, 3, 16), torch.randn(1, 2, 2)
    for whole in (select_topk.select_topk, select_fast.select_topk_fast):
        with pytest.raises(ValueError, match="must be on one CUDA device; got cpu"):
            whole(q, k, w, 2)


@pytest.mark.parametrize("kept", [0, 4 * (4096 + 8192)])
@pytest.mark.parametrize("b", [1, 3, 16])
@pytest.mark.parametrize("t", [1, 7, 4096, 262_144])
@pytest.mark.parametrize("s", [1, 4097, 131_072, 262_144])
def test_slabs_stay_under_560_mib_are_alike_and_not_needlessly_small(b: int, t: int, s: int, kept: int) -> None:
    many_b, many_t, stride = select_topk.slab_shape(b, t, s, kept)
    assert stride >= s and 1 <= many_b <= b and 1 <= many_t <= t
    assert many_b == 1 or many_t == t
    taken = many_b * many_t * (4 * stride + kept)
    assert taken <= 560 * 2**20
    assert (many_b, many_t) == (b, t) or taken >= 2**28 * 0.9
    assert many_t - (-t % many_t) >= many_t - 8 * -(-t // many_t), "the last slab is as large as the others, but for 8"


# ---------------------------------------------------------------------------------------------------- on a GPU


def released(kind: str, length: int) -> tuple[torch.Tensor, ...]:
    """Index vectors of the released shapes; "smooth": keys resemble their neighbours too; "picture": 16 columns."""
    q, k, w = index_inputs(kind if kind in ("random", "smooth") else "u2", length)
    if kind == "picture":
        k = (k[:, :16].repeat(1, length // 16, 1) + k / 4).to(k.dtype)
    if kind == "equal":
        k = k[:, :1].expand_as(k).contiguous()
    return q, k, w


@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["random", "smooth", "picture", "equal"])
@pytest.mark.parametrize("first", [None, 3000])
def test_on_a_gpu_the_selection_is_that_of_torch_at_every_repeat(kind, first, monkeypatch) -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    length, rows, topk = 65_536, 512, 2048
    q, k, w = released(kind, length)
    q, w, offset = q[:, -rows:], w[:, -rows:], length - rows
    start = None if first is None else torch.tensor([first], device="cuda")
    want = ops.topk_positions(index_scores(q, k, w, offset, start), topk)
    marks, launch = [], select_fast.launch_select
    monkeypatch.setattr(select_fast, "launch_select", lambda *a, only: (marks.append(only.clone()), launch(*a, only)))
    for _ in range(20):
        assert torch.equal(select_fast.select_topk_fast(q, k, w, topk, offset, start), want)
    again = torch.stack(marks).eq(-1).float().mean().item()
    assert again == 1 if kind == "equal" else again < 0.005, f"{again:.2%} of the rows were done again"


@pytest.mark.gpu
def test_on_a_gpu_short_rows_come_out_as_by_torch() -> None:
    """A prompt from its first token on: rows of fewer keys than topk, of a list's length, of more."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    q, k, w = released("smooth", 6000)
    assert torch.equal(select_fast.select_topk_fast(q, k, w, 2048), ops.topk_positions(index_scores(q, k, w), 2048))
