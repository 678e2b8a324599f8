"""Experts split over two processes compute what those of one layer do, whoever has tokens and wherever they go."""

from pathlib import Path

import pytest
import torch
from experts_ranks import CASES, CONFIG, layer, loss_of, tokens

from minikeye.training.parallel.experts import exchanged_bytes

# Both add up the same float32 terms, d and then m of them, perhaps in another order.
CLOSE = (CONFIG.width + CONFIG.expert_width) * 2**-24
ROUNDED = 2**-7  # of bfloat16: two roundings, of the hidden channels and of the result


@pytest.fixture(scope="module")
def played(play):
    return play(Path(__file__).with_name("experts_ranks.py"))


def alone(case):
    """One process: all experts, the tokens of one rank after the other."""
    experts, out = layer(), []
    for rank in range(2):
        x, weights, chosen, residual = tokens(case, rank)
        if not len(x):
            out.append({"y": x.detach(), "x": x.detach(), "weights": weights.detach(), "rounded": x.detach()})
            continue
        y = experts(x, weights, chosen, residual)
        loss_of(y).backward()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            rounded = experts(x, weights, chosen, residual)
        out.append({"y": y.detach(), "x": x.grad, "weights": weights.grad, "rounded": rounded})
    return out, {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in experts.named_parameters()}


def apart(a, b):
    assert a.shape == b.shape
    return float((a - b).abs().max() / b.abs().max().clamp(min=1)) if b.numel() else 0.0


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_as_one_process(played, case):
    """Every rank's results and its tokens' gradients; the experts' gradients, summed over ranks."""
    expected, gradients = alone(case)
    for rank, own in zip(played, expected, strict=True):
        for name in ("y", "x", "weights"):
            assert apart(rank[case][name], own[name]) <= CLOSE, name
        assert apart(rank[case]["rounded"], own["rounded"]) <= ROUNDED
        for name, gradient in gradients.items():
            assert apart(rank[case][name], gradient) <= CLOSE, name


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_bytes_are_those_of_the_formula(played, case):
    """Rows to the other rank, counted by hand from who chose what: experts 0 and 1 are rank 0's."""
    away = [sum(x // 2 != rank for token in CASES[case][rank] for x in token) for rank in range(2)]
    for rank, got in enumerate(played):
        numbers = away[rank], away[1 - rank], 4, 2, CONFIG.width, 4
        assert got[case]["bytes"] == exchanged_bytes(*numbers, learning=True)
        assert got[case]["forward"] == exchanged_bytes(*numbers, learning=False)


def test_a_row_by_hand():
    """One row of 2,048 bfloat16 numbers goes out and its result comes from elsewhere; counts for 64 of 128 experts."""
    assert exchanged_bytes(1, 0, 128, 2, 2048, 2, learning=False) == 4096 + 8 * 64
    assert exchanged_bytes(1, 0, 128, 2, 2048, 2, learning=True) == 2 * 4096 + 8 * 64


@pytest.mark.slow
def test_a_rank_keeps_its_experts_alone(played):
    """Under the names that they had, whole to whoever asks for their shape."""
    for rank in played:
        assert rank["kept"] == {"gate_up_proj": ((4, 16, 16), (2, 16, 16)), "down_proj": ((4, 8, 16), (2, 8, 16))}


@pytest.mark.slow
def test_experts_that_do_not_divide_are_refused(played):
    """And widths of 16 and 8 that three groups of ranks do not divide; four do."""
    said = "expected an ep that divides the {} experts of a layer, and a number of processes / ep that divides their "
    said += "widths 16 and 8, got 2 and {}: choose another --ep"
    for rank in played:
        assert rank["refused"] == [said.format(3, 1), said.format(4, 3), "nothing"]
