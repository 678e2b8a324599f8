"""Two and three processes that balance the tower's work compute what one does; nobody waits for ever."""

from pathlib import Path

import pytest
import torch
from exchange_ranks import CASES, CONFIG, batch, loss_of, network

from minikeye.training.parallel.balance import Plan
from minikeye.training.parallel.exchange import bytes_sent, in_order

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", params=[2, 3])
def played(request, play):
    """What every rank got."""
    return play(Path(__file__).with_name("exchange_ranks.py"), request.param)


def alone(case, ranks, frozen):
    """One process: the tower on what each rank holds, one loss after the other."""
    model, tokens, loss = network(frozen), [], 0.0
    for rank in range(ranks):
        patches, grids, ids = batch(case, rank)
        tokens.append(model.visual_tokens(patches, grids) if len(grids) else torch.zeros(0, CONFIG.text.width))
        part = loss_of(model, ids, tokens[-1])
        part.backward()
        loss += float(part.detach())
    return tokens, loss, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def apart(a, b):
    return float((a - b).abs().max() / b.abs().max().clamp(min=1)) if b.numel() else 0.0


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_as_one_process(played, case, frozen):
    """Every rank's tokens, in order; the summed loss; and every gradient, summed over the ranks."""
    tokens, loss, gradients = alone(case, len(played), frozen)
    ranks = [rank[case, frozen] for rank in played]
    for rank, own in zip(ranks, tokens, strict=True):
        assert rank["tokens"].shape == own.shape and apart(rank["tokens"], own.detach()) < 1e-6
    assert float(sum(rank["loss"] for rank in ranks)) == pytest.approx(loss, rel=1e-6)
    assert gradients.keys() == ranks[0]["gradients"].keys()
    assert any(name.startswith("visual.") for name in gradients) == (not frozen and case != "text alone")
    for name, gradient in gradients.items():
        assert apart(sum(rank["gradients"][name] for rank in ranks), gradient) < 1e-6, name


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_bytes_are_those_of_the_formula(played, case, frozen):
    """Counted where the library is asked to send them. A frozen tower's tokens come back without gradients."""
    held = [[rows * columns for rows, columns in CASES[case][rank]] for rank in range(len(played))]
    plan = Plan.of(held, CONFIG.vision.width)
    sent = [bytes_sent(plan, rank, CONFIG, 4, learning=not frozen) for rank in range(len(played))]
    assert [rank[case, frozen]["bytes"] for rank in played] == sent
    assert (sum(sent) > 0) == (case in ("uneven", "a rank of text"))


def test_a_frame_by_hand():
    """Of rank 1's two frames of 8 patches one goes to rank 0: 8 x 588 numbers; 2 x 64 come back, then gradients go."""
    plan = Plan.of([[], [8, 8]], CONFIG.vision.width)
    assert [bytes_sent(plan, r, CONFIG, 4, learning=True) for r in (0, 1)] == [4 * 2 * 64, 4 * (8 * 588 + 2 * 64)]
    assert [bytes_sent(plan, r, CONFIG, 2, learning=False) for r in (0, 1)] == [2 * 2 * 64, 2 * 8 * 588]
    assert bytes_sent(plan, 1, CONFIG, 4, learning=True, token_size=2) == 4 * 8 * 588 + 2 * 2 * 64


def test_the_cases_are_hard_enough():
    """Rank 0's frames leave in an order that is not its own inverse, others' arrive; somebody works on nothing."""
    orders = []
    for ranks in (2, 3):
        plan = Plan.of([[r * c for r, c in frames] for frames in CASES["uneven"][:ranks]], CONFIG.vision.width)
        orders += [plan.leaving(0)]
        assert sum(plan.sent(0)[1:]) and sum(plan.received(0))
    assert all(order != sorted(range(len(order)), key=order.__getitem__) for order in orders)
    assert Plan.of([[], [8]], CONFIG.vision.width).arriving(0) == []


def test_frames_in_another_order():
    """Frames of 1, 2 and 1 rows."""
    rows = torch.tensor([[0], [10], [11], [20]])
    assert in_order(rows, [1, 2, 1], [1, 2, 0]).flatten().tolist() == [10, 11, 20, 0]
    assert in_order(rows[:0], [], []).shape == (0, 1)


def test_grids_that_do_not_fit_are_refused_by_all(played):
    """A rank that went on alone would wait for the one that did not."""
    assert {rank["refused"] for rank in played} == {"rank 1: grids describe 4 patches, got 3"}
