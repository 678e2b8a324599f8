"""Scores and selection without a GPU: the door, the memory they take."""

import pytest
import torch

triton = pytest.importorskip("triton")


from minikeye.kernels.selection import select_fast, select_topk  # noqa: E402 - not before it is known to be there


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
