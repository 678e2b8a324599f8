"""Teaching the indexer: losses against loops over rows, gradients where they belong, recall that rises."""

import math
from dataclasses import replace

import pytest
import torch

from minikeye import ops
from minikeye.config import IndexerConfig, KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.model.record import selection_mass
from minikeye.model.step import AttentionTrace
from minikeye.training.dsa import IndexerTeacher, RecallMeter, draw_rows, row_losses

B, T, HEADS, GROUPS, WIDTH, J, INDEX_WIDTH, K = 2, 23, 4, 2, 8, 3, 6, 5


def make_trace(mode: str, start: list[int] | None = None) -> AttentionTrace:
    """Random queries and keys; in sparse mode the set that the indexer itself selects."""
    q, k = torch.randn(B, T, HEADS, WIDTH) * 2, torch.randn(B, T, GROUPS, WIDTH)
    index_q, index_k, index_w = torch.randn(B, T, J, INDEX_WIDTH), torch.randn(B, T, INDEX_WIDTH), torch.randn(B, T, J)
    first = None if start is None else torch.tensor(start)
    indices = ops.select_topk(index_q, index_k, index_w, K, 0, first) if mode == "sparse" else None
    return AttentionTrace(q, k, index_q, index_k, index_w, indices, 0, first)


def attention_by_hand(trace: AttentionTrace, b: int, t: int, h: int, keys: list[int]) -> list[float]:
    """One head's softmax over these keys."""
    k = trace.k[b, :, h // (HEADS // GROUPS)].double()
    logits = [float(trace.q[b, t, h].double() @ k[s]) / math.sqrt(WIDTH) for s in keys]
    total = sum(math.exp(x) for x in logits)
    return [math.exp(x) / total for x in logits]


def score_by_hand(trace: AttentionTrace, b: int, t: int, s: int) -> float:
    """sum_j w_j ReLU(q_j . k) / sqrt(i)"""
    dots = [float(trace.index_q[b, t, j].double() @ trace.index_k[b, s].double()) for j in range(J)]
    return sum(float(trace.index_w[b, t, j]) * max(x, 0.0) for j, x in enumerate(dots)) / math.sqrt(INDEX_WIDTH)


def loss_by_hand(trace: AttentionTrace, b: int, t: int) -> float:
    """Dense attention per head, cut to the set and renormalised; mean of a group; KL to the softmax of the scores."""
    valid = list(range(0 if trace.start is None else int(trace.start[b]), t + 1))
    keys = valid if trace.indices is None else [s for s in trace.indices[b, t].tolist() if s >= 0]
    if not keys:
        return 0.0
    scores = [score_by_hand(trace, b, t, s) for s in keys]
    log_total = math.log(sum(math.exp(x) for x in scores))
    loss = 0.0
    for g in range(GROUPS):
        target = [0.0] * len(keys)
        for h in range(g * HEADS // GROUPS, (g + 1) * HEADS // GROUPS):
            dense = dict(zip(valid, attention_by_hand(trace, b, t, h, valid), strict=True))
            kept = sum(dense[s] for s in keys)
            target = [p + dense[s] / kept / (HEADS // GROUPS) for p, s in zip(target, keys, strict=True)]
        loss += sum(p * (math.log(p) - (x - log_total)) for p, x in zip(target, scores, strict=True))
    return loss


@pytest.mark.parametrize("start", [None, [0, 9]])
@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_row_losses_are_a_loop_over_rows(mode, start):
    """L_warmup over all valid keys, L_sparse over the selected ones; a row of padding has loss 0."""
    trace, rows = make_trace(mode, start), torch.tensor([0, 3, 22, 11, 3])
    expected = [[loss_by_hand(trace, b, t) for t in rows.tolist()] for b in range(B)]
    torch.testing.assert_close(row_losses(trace, rows), torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert (start is None) == (expected[1][1] > 0) and expected[0][2] > 0.1


def test_sparse_equals_dense_where_the_set_is_everything():
    """The first five queries select all they may see."""
    sparse = make_trace("sparse")
    dense = replace(sparse, indices=None)
    rows = torch.arange(K)
    torch.testing.assert_close(row_losses(sparse, rows), row_losses(dense, rows), rtol=1e-5, atol=1e-6)


# ----------------------------------------------------------------------------------------------------- teacher and rows


def lively(seed: int, topk: int = 16) -> KeyeVL:
    """nano with weights large enough for attention that has preferences."""
    torch.manual_seed(seed)
    model = KeyeVL(replace(KeyeConfig.nano(), indexer=IndexerConfig(heads=2, width=16, topk=topk)))
    for name, p in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(p, std=0.2)
    return model


@pytest.mark.parametrize("mode", ["dense", "sparse", "masked"])
def test_the_teacher_moves_the_indexer_only(mode):
    """Every parameter of every layer's indexer gets a gradient, nothing else does."""
    model, teacher = lively(0), IndexerTeacher(torch.tensor([5, 17, 30]))
    model({"input_ids": torch.randint(0, 256, (2, 31))}, attention=mode, observer=teacher)
    teacher.indexer_loss().backward()
    moved = {n for n, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert moved == {n for n, _ in model.named_parameters() if "sa_indexer" in n} and len(moved) == 2 * 5
    assert all(p.grad is None for n, p in model.named_parameters() if "sa_indexer" not in n)


def test_the_teacher_takes_means():
    """Over rows, the batch and the layers; the balance loss over the layers."""
    model, rows = lively(0), torch.tensor([5, 17, 30])
    teacher = IndexerTeacher(rows)
    seen = []

    class Spy(IndexerTeacher):
        def attention(self, layer, trace):
            seen.append(row_losses(trace, rows))

    ids = {"input_ids": torch.randint(0, 256, (2, 31))}
    model(ids, attention="dense", observer=teacher)
    model(ids, attention="dense", observer=Spy(rows))
    assert float(teacher.indexer_loss().detach()) == pytest.approx(
        float(sum(x.detach().sum() for x in seen)) / (2 * 2 * 3), rel=1e-5
    )
    assert float(teacher.balance_loss().detach()) == pytest.approx(sum(float(x.detach()) for x in teacher.balance) / 2)
    assert len(teacher.balance) == 2 and 1.0 <= float(teacher.balance_loss().detach()) < 4.0


def test_without_rows_nothing_is_taught():
    teacher = IndexerTeacher(None)
    lively(0)({"input_ids": torch.randint(0, 256, (1, 9))}, observer=teacher)
    assert teacher.indexer == [] and len(teacher.balance) == 2


@pytest.mark.parametrize("count", [1, 2, 7, 64, 2001])
def test_drawn_rows(count, generator):
    """The last half are answer tokens of some row of the batch; the others lie anywhere before the padding."""
    answer = torch.zeros(3, 40, dtype=torch.bool)
    answer[0, 10:13] = answer[1, 27:31] = True
    rows = draw_rows(answer, count, generator)
    assert len(rows) == count and rows.dtype == torch.int64
    assert set(rows.tolist()) <= set(range(31))
    spoken = {10, 11, 12, 27, 28, 29, 30}
    assert count // 2 == 0 or set(rows[-(count // 2) :].tolist()) <= spoken
    if count == 2001:
        assert set(rows[:1001].tolist()) == set(range(31)) and set(rows[1001:].tolist()) == spoken


# --------------------------------------------------------------------------------------------------------------- recall


def recall_by_hand(trace: AttentionTrace, b: int, t: int, topk: int) -> float:
    """The best-scored keys by sorting, and the share of dense attention they get, mean over heads."""
    first = 0 if trace.start is None else int(trace.start[b])
    valid = list(range(first, t + 1))
    best = sorted(valid, key=lambda s: (-score_by_hand(trace, b, t, s), s))[:topk]
    shares = []
    for h in range(HEADS):
        dense = dict(zip(valid, attention_by_hand(trace, b, t, h, valid), strict=True))
        shares.append(sum(dense[s] for s in best))
    return sum(shares) / HEADS


def test_recall_is_the_same_under_autocast():
    """Reports are made under autocast: bit for bit what float32 gives."""
    trace = make_trace("dense", None)
    indices = trace.indexer_choice(4, 0)
    expected = selection_mass(trace.q, trace.k, indices)
    with torch.autocast("cpu", torch.bfloat16):
        got = selection_mass(trace.q, trace.k, indices)
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("start", [None, [0, 9]])
@pytest.mark.parametrize("mode", ["dense", "sparse"])
def test_recall_is_counted_by_hand(mode, start):
    """In any mode what the indexer's top-k would keep, at the last queries."""
    trace, meter = make_trace(mode, start), RecallMeter(topk=4, last=6)
    meter.attention(0, trace)
    expected = [[recall_by_hand(trace, b, t, 4) for t in range(T - 6, T)] for b in range(B)]
    torch.testing.assert_close(meter.kept[0], torch.tensor(expected), rtol=1e-5, atol=1e-6)
    assert 0.05 < float(meter.kept[0].mean()) < 0.95


def test_recall_of_what_was_read():
    """Without a topk of its own the meter takes the pass's selection; a dense pass has none."""
    trace, read, all_of_it = make_trace("sparse", None), RecallMeter(None, last=6), RecallMeter(T, last=6)
    read.attention(0, trace)
    expected = selection_mass(trace.q[:, -6:], trace.k, trace.indices[:, -6:], trace.offset + T - 6, trace.start)[1]
    torch.testing.assert_close(read.kept[0], expected)
    trace.indices = torch.arange(T).expand(B, T, T).int().masked_fill(torch.ones(T, T).triu(1).bool(), -1)
    for meter in (read, all_of_it):
        meter.attention(0, trace)
    torch.testing.assert_close(read.kept[1], all_of_it.kept[0])
    with pytest.raises(ValueError, match="got a dense one"):
        read.attention(0, make_trace("dense", None))


def test_recall_of_everything_is_one():
    for topk in (T, T + 100):
        meter = RecallMeter(topk, last=100)
        meter.attention(0, make_trace("dense"))
        torch.testing.assert_close(meter.kept[0], torch.ones(B, T))


def recall(model: KeyeVL, ids: torch.Tensor) -> float:
    meter = RecallMeter(model.config.indexer.topk, last=64)
    with torch.no_grad():
        model({"input_ids": ids}, attention="dense", observer=meter)
    return float(torch.stack(meter.kept).mean())


def test_warmup_raises_recall():
    """Five fixed models with sharp attention; forty steps of the indexer alone, measured on texts it has not seen."""
    before, after = [], []
    for seed in range(5):
        model = lively(seed)
        for layer in model.model.layers:
            torch.nn.init.constant_(layer.self_attn.q_norm.weight, 3.0)
        unseen = torch.randint(0, 16, (4, 128))
        before.append(recall(model, unseen))
        optimiser = torch.optim.AdamW([p for n, p in model.named_parameters() if "sa_indexer" in n], lr=1e-2)
        for _ in range(40):
            teacher = IndexerTeacher(torch.randint(16, 96, (24,)))
            model({"input_ids": torch.randint(0, 16, (2, 96))}, attention="dense", observer=teacher)
            optimiser.zero_grad()
            teacher.indexer_loss().backward()
            optimiser.step()
        after.append(recall(model, unseen))
    assert all(b > a + 0.04 for a, b in zip(before, after, strict=True)), (before, after)
    assert sum(after) / 5 > sum(before) / 5 + 0.08, (before, after)


def test_nothing_to_teach_from():
    """Losses before a pass, and rows of a batch without answers, are told apart from zero."""
    teacher = IndexerTeacher(torch.tensor([0]))
    for loss in (teacher.indexer_loss, teacher.balance_loss):
        with pytest.raises(ValueError, match="there is no loss yet"):
            loss()
    with pytest.raises(ValueError, match="nothing to teach from"):
        draw_rows(torch.zeros(2, 5, dtype=torch.bool), 4, torch.Generator())


def test_nothing_asked_for_is_an_error(generator):
    with pytest.raises(ValueError, match="at least one row, got count = 0"):
        draw_rows(torch.ones(1, 3, dtype=torch.bool), 0, generator)
    with pytest.raises(ValueError, match="at least one row, or None"):
        IndexerTeacher(torch.tensor([], dtype=torch.int64))
    for topk, last in ((0, 1), (4, 0)):
        with pytest.raises(ValueError, match=f"topk >= 1 or None and last >= 1, got {topk} and {last}"):
            RecallMeter(topk, last)


@torch.no_grad()
def test_chunks_are_refused(lively):
    """Their rows would be numbered anew in each."""
    ids = {"input_ids": torch.arange(20)[None]}
    for observer in (IndexerTeacher(torch.tensor([3])), RecallMeter(topk=4)):
        with pytest.raises(ValueError, match="expected a whole pass, got a chunk of one"):
            lively(ids, observer=observer, chunk=8)


def test_rows_are_numbers_of_queries():
    """Counted from the end, -1 gave a loss of 0 in one stage and another row's in the other."""
    with pytest.raises(ValueError, match="expected rows from 0 on, got -1"):
        IndexerTeacher(torch.tensor([3, -1]))
