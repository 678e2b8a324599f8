"""A probe selects again what the model selected; with one head or another k, what a sort in plain Python selects."""

import pytest
import torch

from minikeye import ops
from minikeye.explore.probe import Probe
from minikeye.model.record import Recorder

TOPK = 16


class Both:
    """A probe and a recorder that watch the same pass."""

    def __init__(self, **options):
        self.probe, self.recorder, self.traces = Probe(TOPK, **options), Recorder(TOPK), []

    def attention(self, layer, trace):
        self.traces.append(trace)
        self.probe.attention(layer, trace)
        self.recorder.attention(layer, trace)

    def routing(self, *of):
        self.probe.routing(*of)
        self.recorder.routing(*of)


@pytest.fixture(scope="module", params=["sparse", "masked", "dense"])
def both(request, model, inputs) -> Both:
    watched = Both()
    with torch.no_grad():
        model(inputs, observer=watched, attention=request.param)
    return watched


def valid(indices: torch.Tensor) -> list[int]:
    return [n for n in indices.flatten().tolist() if n >= 0]


def test_all_heads_and_the_models_k_are_the_record(both):
    """Every token as the query, every layer: the same keys, weights, mass and experts."""
    probe, record = both.probe, both.recorder.record
    assert probe.positions == list(range(record.queries)) and record.queries > 4 * TOPK
    for query in probe.positions:
        for mine, theirs in zip(probe.record(query).layers, record.layers, strict=True):
            assert valid(mine.indices) == valid(theirs.indices[0, query])
            n = len(valid(mine.indices))
            torch.testing.assert_close(mine.weights[0, 0, :n], theirs.weights[0, query, :n])
            torch.testing.assert_close(mine.kept[0, 0], theirs.kept[0, query])
            assert torch.equal(mine.experts[0, 0], theirs.experts[0, query])


def test_generation_is_one_sequence(model, inputs, processor):
    """The prompt's pass and the steps of the answer: as generate's own record of the same answer."""
    out = model.generate(inputs, max_new_tokens=6, record=True)
    probe = Probe(TOPK)
    assert model.generate(inputs, max_new_tokens=6, observer=probe).row() == out.row()
    first = inputs["input_ids"].shape[1] - 1
    assert out.record.first == first and probe.tokens == first + len(out.row())
    for n in range(6):
        for mine, theirs in zip(probe.record(first + n).layers, out.record.layers, strict=True):
            assert torch.equal(mine.indices[0, 0], theirs.indices[0, n])
            torch.testing.assert_close(mine.kept[0, 0], theirs.kept[0, n])


@torch.no_grad()
def test_a_prompt_in_chunks_is_one_prompt(model, inputs):
    """Every chunk passes the first layer before any passes the second; some chunks hold no kept query at all."""
    length = inputs["input_ids"].shape[1]
    wanted = [3, 40, 41, length - 1]
    for queries in (None, wanted):
        whole, parts = Probe(TOPK, queries=queries), Probe(TOPK, queries=queries)
        model(inputs, observer=whole)
        model(inputs, observer=parts, chunk=17)
        assert parts.positions == whole.positions and parts.tokens == length
        for query in wanted:
            torch.testing.assert_close(parts.scores(query), whole.scores(query), atol=1e-4, rtol=1e-4)
            for mine, theirs in zip(parts.record(query).layers, whole.record(query).layers, strict=True):
                assert torch.equal(mine.indices, theirs.indices) and torch.equal(mine.experts, theirs.experts)


def test_scores_by_a_loop_and_their_sum(both):
    """w[j] * ReLU(q[j] . k[s]) / sqrt(i) for each head; the heads add up to ops.index_scores."""
    probe, query = both.probe, 40
    for layer, trace in enumerate(both.traces):
        q, k, w = trace.index_q[0, query], trace.index_k[0], trace.index_w[0, query]
        for j in range(2):
            looped = [w[j] * torch.relu(q[j] @ k[s]) / q.shape[1] ** 0.5 for s in range(query + 1)]
            torch.testing.assert_close(probe.scores(query, j)[layer], torch.stack(looped))
        total = ops.index_scores(trace.index_q, trace.index_k, trace.index_w)[0, query, : query + 1]
        torch.testing.assert_close(probe.scores(query)[layer], total)
        torch.testing.assert_close(probe.scores(query, 0)[layer] + probe.scores(query, 1)[layer], total)
        torch.testing.assert_close(probe.gates(query)[layer], w)
    assert probe.heads == 2 and len(both.traces) == len(probe.scores(query)) == 2


@pytest.mark.parametrize("head", [None, 0, 1])
@pytest.mark.parametrize("topk", [1, 7, 17, 10_000])
def test_selection_by_a_sort(both, head, topk):
    """Highest scores first, ties to the smaller position; ReLU makes many ties at zero."""
    ties = 0
    for query in (0, 5, 40, both.probe.positions[-1]):
        scores = both.probe.scores(query, head).tolist()
        for row, layer in zip(scores, both.probe.record(query, head, topk).layers, strict=True):
            best = sorted(range(query + 1), key=lambda s: (-row[s], s))[:topk]
            assert valid(layer.indices) == sorted(best)
            ties += len(row) - len(set(row))
    assert ties > 0


def test_kept_is_the_dense_mass_of_the_selected(both):
    """`attended` sums to 1 and, over the selected keys, to what the record keeps; with every key that is all."""
    for query in (3, 40, 80):
        attended = both.probe.attended(query)
        torch.testing.assert_close(attended.sum(dim=-1), torch.ones(2))
        for head, topk in ((None, None), (1, 5), (None, 10_000)):
            for mass, layer in zip(attended, both.probe.record(query, head, topk).layers, strict=True):
                torch.testing.assert_close(mass[valid(layer.indices)].sum(), layer.kept[0, 0])
        torch.testing.assert_close(layer.kept, torch.ones(1, 1))  # of the last case, all keys


def test_only_wanted_queries_are_kept(model, inputs):
    watched = Both(queries={3, 40, 1000})
    with torch.no_grad():
        model(inputs, observer=watched)
    probe = watched.probe
    assert probe.positions == [3, 40] and probe.tokens == inputs["input_ids"].shape[1]
    for mine, theirs in zip(probe.record(40).layers, watched.recorder.record.layers, strict=True):
        assert torch.equal(mine.indices[0, 0], theirs.indices[0, 40])
    with pytest.raises(ValueError, match="among the 2 kept positions, got 41"):
        probe.record(41)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.record(40, head=2), "indexer head from 0 to 1"),
        (lambda p: p.scores(40, head=-1), "indexer head from 0 to 1"),
        (lambda p: p.record(40, topk=0), "k of at least 1, got 0"),
        (lambda p: p.attended(10_000), "kept positions, got 10000"),
    ],
)
def test_questions_without_an_answer(both, call, message):
    with pytest.raises(ValueError, match=message):
        call(both.probe)


def test_passes_that_do_not_fit(model, inputs):
    ids = torch.tensor([[72, 105, 33]])
    with pytest.raises(ValueError, match="one row without padding, got 2"):
        model({"input_ids": ids.expand(2, -1)}, observer=Probe(TOPK))
    with pytest.raises(ValueError, match="seen nothing yet"):
        Probe(TOPK).heads  # noqa: B018
    probe = Probe(TOPK)
    model({"input_ids": ids}, observer=probe)
    with pytest.raises(ValueError, match="goes on at token 3, got one that starts at 0"):
        model({"input_ids": ids}, observer=probe)
