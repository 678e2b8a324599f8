"""Packed documents are what each would be alone: logits, loss, gradients, the indexer's loss; and nothing leaks."""

import random
from itertools import pairwise

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.inputs.prompt import pad
from minikeye.keye import KeyeVL
from minikeye.minivid.lessons import pixels
from minikeye.minivid.scene import render
from minikeye.training.dsa import row_losses
from minikeye.training.losses import answer_loss
from minikeye.training.packing import apart, arrange, pack
from minikeye.training.pretrain.documents import SIDE, Kind, documents
from minikeye.training.pretrain.mixture import PackedLesson

CONFIG = KeyeConfig.nano()
ROOM = 200
MODES = ["dense", "masked", "sparse"]
KINDS = (Kind("sum"), Kind("when", 4), Kind("colour", 8), Kind("when", 8, pixels=False))


def uneven() -> KeyeVL:
    """A model whose choices are not even."""
    torch.manual_seed(1)
    model = KeyeVL(CONFIG).eval()
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return model


def lesson() -> PackedLesson:
    """Eight documents of four kinds, two of them with pixels, in rows of 200 tokens."""
    parts = [documents(kind, CONFIG, 3, range(10 * n, 10 * n + 2), "train") for n, kind in enumerate(KINDS)]
    tokens, order = pack([prompt for part in parts for prompt in part.prompts], ROOM)
    return PackedLesson(tokens, parts, order)


def alone(batch: PackedLesson) -> list[dict]:
    """The model inputs of each document by itself, without padding."""
    out = []
    for part in batch.parts:
        for row, prompt in enumerate(part.prompts):
            one = pad([prompt], "right")
            del one["attention_mask"]
            if part.videos is not None:
                one |= pixels(render(part.videos.spec, SIDE, SIDE, "cpu")[row], CONFIG)
            out.append(one)
    return out


def places(batch: PackedLesson) -> dict[int, tuple[int, slice]]:
    """Where each document lies: row and columns, found from the starts alone."""
    found, order = {}, iter(batch.order)
    for row, start in enumerate(batch.tokens["start"].tolist()):
        firsts = sorted({first for first in start if start.count(first) > 1})
        for first in firsts:
            found[next(order)] = row, slice(first, first + start.count(first))
    return found


@pytest.mark.parametrize("attention", MODES)
def test_logits_and_gradients_are_those_of_separate_passes(attention):
    """The loss of the packed batch is the mean over all answer tokens, as that of one pass a document would be."""
    model, batch = uneven(), lesson()
    inputs = batch.inputs(CONFIG, "cpu")
    with apart(model, inputs["start"], attention) as mode:
        logits = model(inputs, attention=mode).logits
    assert len(inputs["input_ids"]) < 8 and len(places(batch)) == 8
    loss = answer_loss(logits, inputs["input_ids"], inputs["answer"])
    loss.backward()
    packed = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    total, answers = 0.0, int(inputs["answer"].sum())
    for number, one in enumerate(alone(batch)):
        own = model(one, attention=attention).logits
        row, columns = places(batch)[number]
        assert torch.allclose(logits[row, columns], own[0], atol=1e-5), number
        share = answer_loss(own, one["input_ids"], one["answer"]) * one["answer"].sum() / answers
        share.backward()
        total += float(share.detach())
    assert float(loss.detach()) == pytest.approx(total, abs=1e-5)
    assert packed.keys() == {n for n, p in model.named_parameters() if p.grad is not None}
    for name, p in model.named_parameters():
        if name in packed:
            assert (packed[name] - p.grad).abs().max() < 1e-5 * max(1.0, float(p.grad.abs().max())), name


class Losses:
    """Collects the indexer's loss of every query."""

    def __init__(self, rows, start=None):
        self.rows, self.start, self.seen = rows, start, []

    def attention(self, layer, trace):
        self.seen.append(row_losses(trace, self.rows, self.start))

    def routing(self, layer, probabilities, chosen):
        """Not needed here."""


@pytest.mark.parametrize("attention", MODES)
def test_the_indexer_learns_from_its_own_document(attention):
    """Warm-up loss in the dense mode, sparse loss in the others: of each query what it is without neighbours."""
    model, batch = uneven(), lesson()
    inputs = batch.inputs(CONFIG, "cpu")
    watch = Losses(torch.arange(ROOM), inputs["start"] if attention == "dense" else None)
    with torch.no_grad(), apart(model, inputs["start"], attention) as mode:
        model(inputs, attention=mode, observer=watch)
    for number, one in enumerate(alone(batch)):
        single = Losses(torch.arange(one["input_ids"].shape[1]))
        with torch.no_grad():
            model(one, attention=attention, observer=single)
        row, columns = places(batch)[number]
        for many, few in zip(watch.seen, single.seen, strict=True):
            assert torch.allclose(many[row, columns], few[0], atol=1e-5), number
            assert float(few.max()) > 1e-3


@pytest.mark.parametrize("attention", MODES)
def test_nothing_leaks(attention):
    """Other words in a document change its own logits and no other's; without `apart` they do."""
    model, batch = uneven(), lesson()
    row = next(r for r, columns in places(batch).values() if columns.start > 0)
    first, second, *_ = sorted((c for r, c in places(batch).values() if r == row), key=lambda c: c.start)
    inputs = batch.inputs(CONFIG, "cpu")
    text = inputs["input_ids"][row, first] < 256
    other = {"input_ids": inputs["input_ids"].clone()}
    other["input_ids"][row, first][text] = 65

    def logits(changed: dict, start: torch.Tensor | None) -> torch.Tensor:
        with torch.no_grad(), apart(model, start, attention) as mode:
            return model(inputs | changed, attention=mode).logits[row]

    before, after = logits({}, inputs["start"]), logits(other, inputs["start"])
    assert torch.allclose(before[second], after[second], atol=1e-6)
    assert (before[first] - after[first]).abs().max() > 0.1
    assert (logits({}, None)[second] - logits(other, None)[second]).abs().max() > 1e-2


def test_what_is_packed_by_hand():
    """Two sums of 26 and 27 tokens or so in one row: starts, positions that restart, answers that do not touch."""
    prompts = documents(Kind("sum"), CONFIG, 0, range(2), "train").prompts
    (a, b), room = (len(p.ids) for p in prompts), 64
    tokens, order = pack(prompts, room)
    long, short = max(a, b), min(a, b)
    assert tokens["start"][0].tolist() == [0] * long + [long] * short + list(range(a + b, room))
    run = [*range(long), *range(short), *[0] * (room - a - b)]
    assert tokens["positions"].tolist() == [[run]] * 3
    assert tokens["input_ids"][0, : a + b].tolist() == prompts[order[0]].ids + prompts[order[1]].ids
    assert int(tokens["answer"].sum()) == sum(sum(p.answer) for p in prompts)


def test_a_first_token_is_never_learnt():
    """It would be predicted from another document's last one."""
    prompts = documents(Kind("sum"), CONFIG, 0, range(2), "train").prompts
    for prompt in prompts:
        prompt.answer[0] = True
    tokens, _ = pack(prompts, 64)
    assert not tokens["answer"][0, 0] and not tokens["answer"][0, max(len(p.ids) for p in prompts)]


def test_rows_are_filled():
    """By hand, then: every document once, no row too full, no two neighbouring rows that one could hold."""
    assert arrange([3, 9, 6, 4, 2], 10) == [[1], [2, 3], [0, 4]]
    draw = random.Random(0)
    for _ in range(50):
        room, lengths = draw.randint(20, 60), [draw.randint(1, 20) for _ in range(draw.randint(1, 40))]
        rows = arrange(lengths, room)
        assert sorted(n for row in rows for n in row) == list(range(len(lengths)))
        assert max(sum(lengths[n] for n in row) for row in rows) <= room
        assert all(sum(lengths[n] for n in a + b) > room for a, b in pairwise(rows))


@pytest.mark.parametrize("lengths", [[], [5, 11], [0, 3]])
def test_documents_that_fit_no_row(lengths):
    with pytest.raises(ValueError, match=r"expected documents of 1 to room = 10 tokens, got .*: take a larger room"):
        arrange(lengths, 10)


def test_layers_get_their_rules_back():
    """Also where the pass fails; and one document a row changes nothing."""
    model, start = uneven(), lesson().tokens["start"]
    with pytest.raises(KeyError), apart(model, start, "dense") as mode:
        assert mode == "masked" and all(layer.self_attn.rule is not None for layer in model.model.layers)
        raise KeyError
    assert all(layer.self_attn.rule is None for layer in model.model.layers)
    with apart(model, None, "dense") as mode:
        assert mode == "dense" and all(layer.self_attn.rule is None for layer in model.model.layers)
