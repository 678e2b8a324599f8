"""Processes that share samples, rows or experts learn what one process does: losses, and parameters after three steps.

Shares first as a list, held against the batch token by token; then real processes (parallel_steps.py).
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from minikeye.config import KeyeConfig
from minikeye.evaluation.training.parallel_equal import KINDS, WAYS, apart_by, cases, found_by, lessons
from minikeye.keye import KeyeVL
from minikeye.model.batch import is_visual
from minikeye.training.losses import IGNORED, answer_accuracy, answer_loss, label_accuracy, label_loss
from minikeye.training.parallel.mesh import ALONE, Ranks
from minikeye.training.parallel.samples import Part, row_tokens

CONFIG = KeyeConfig.nano()


@dataclass(frozen=True)
class Seat(Ranks):
    """A place among ranks that are not there: number and count along both axes."""

    data: tuple[int, int] = (0, 1)
    context: tuple[int, int] = (0, 1)

    def along(self, name: str) -> tuple[int, int]:
        return getattr(self, name)


def fingerprints(inputs: dict[str, Tensor]) -> list[tuple[float, int]]:
    """In the place of visual tokens: which picture, and which token of it."""
    found, first = [], 0
    for frame in inputs["grids"].prod(dim=1).tolist():
        pixels = float(inputs["patches"][first : first + frame].double().sum())
        found += [(pixels, n) for n in range(frame // 4)]
        first += frame
    return found


@pytest.mark.parametrize(("data", "context"), [(1, 1), (2, 1), (5, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_shares_are_the_batch(kind, data, context):
    """Every token once, with its id, label and picture; every row that the indexer is taught from, in every row."""
    rows = torch.tensor([0, 20, 20, 39])
    for lesson in lessons(kind, CONFIG, 0):
        whole, answer = lesson.inputs(CONFIG, "cpu"), lesson.tokens["answer"]
        ids = whole["input_ids"]
        seen = (
            dict(zip(map(tuple, is_visual(ids, CONFIG).nonzero().tolist()), fingerprints(whole), strict=True))
            if ("patches" in whole)
            else {}
        )
        found, taught = {}, Counter()
        for seat in (Seat(data=(d, data), context=(c, context)) for d in range(data) for c in range(context)):
            part = Part.of(lesson.tokens, rows, seat)
            assert (part.answers, part.tokens, part.taught) == (int(answer[:, 1:].sum()), ids.numel(), 4 * len(ids))
            share = part.inputs(lesson, rows, CONFIG, "cpu")
            pictures = iter([fingerprints(share)[n] for n in share["seen"].tolist()])
            at = part.zigzag.positions(seat.context[0]).tolist()
            for row in range(len(share["input_ids"])):
                for t, token in enumerate(share["input_ids"][row].tolist()):
                    picture = next(pictures) if token in (CONFIG.image_token_id, CONFIG.video_token_id) else None
                    if bool(share["counted"][row, t]):
                        place = (part.own[row], at[t])
                        assert place not in found
                        found[place] = token, int(share["labels"][row, t]), picture
                    else:
                        assert int(share["labels"][row, t]) == IGNORED and picture is None
            assert next(pictures, None) is None
            for number, counts in zip(share["rows"].tolist(), share["taught"].tolist(), strict=True):
                taught.update({(row, at[number]): int(counts) for row in part.own if counts})
        expected = {}
        for row in range(len(ids)):
            for t, token in enumerate(ids[row].tolist()):
                last = t + 1 == ids.shape[1]
                label = IGNORED if last or not answer[row, t + 1] else int(ids[row, t + 1])
                expected[row, t] = token, label, seen.get((row, t))
        assert found == expected
        assert taught == Counter((row, t) for row in range(len(ids)) for t in rows.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_a_batch_is_these_rows(kind):
    lesson = next(lessons(kind, CONFIG, 0))
    whole, part = (x.inputs(CONFIG, "cpu") for x in (lesson, lesson.part([2, 0])))
    assert torch.equal(part["input_ids"], whole["input_ids"][[2, 0]])
    assert torch.equal(part["positions"], whole["positions"][:, [2, 0]])
    marks = is_visual(whole["input_ids"], CONFIG).sum(dim=1).tolist()
    by_row = torch.tensor(fingerprints(whole)).split(marks)
    assert torch.equal(torch.tensor(fingerprints(part)), torch.cat((by_row[2], by_row[0])))


def test_rows_go_by_their_tokens():
    """By hand: padding is not counted; a rank takes the long row, the other the two short ones."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0]]).bool()
    tokens = {"input_ids": torch.zeros(3, 4, dtype=torch.long), "attention_mask": mask, "answer": mask}
    assert row_tokens(tokens) == [2, 4, 2]
    assert [Part.of(tokens, torch.zeros(1, dtype=torch.long), Seat(data=(n, 2))).own for n in (0, 1)] == [(1,), (0, 2)]
    tokens["attention_mask"] = mask.flip(1)
    with pytest.raises(ValueError, match="expected rows that are padded on the right"):
        Part.of(tokens, torch.zeros(1, dtype=torch.long), Seat(context=(0, 2)))


def test_parts_of_the_losses_add_up(generator):
    """A rank with one label and one with many: a mean of means would weigh them alike."""
    logits, ids = torch.randn(2, 9, 5, generator=generator), torch.randint(0, 5, (2, 9), generator=generator)
    answer = torch.zeros(2, 9, dtype=torch.bool)
    answer[0, 3], answer[1, 2:] = True, True
    labels = torch.where(answer, ids, IGNORED)[:, 1:]
    parts = [(logits[row, None, :-1], labels[row, None], 8) for row in (0, 1)]
    torch.testing.assert_close(sum(label_loss(*part) for part in parts), answer_loss(logits, ids, answer))
    torch.testing.assert_close(sum(label_accuracy(*part) for part in parts), answer_accuracy(logits, ids, answer))
    means = sum(label_loss(x, y) for x, y, _ in parts) / 2
    assert not torch.isclose(means, answer_loss(logits, ids, answer))


def test_no_visual_tokens_are_still_a_part_of_the_pass():
    """The bits of a pass of text alone, and a gradient that goes back to them."""
    model, ids = KeyeVL(CONFIG), torch.arange(7)[None]
    positions, visual = torch.arange(7).expand(3, 1, -1), torch.zeros(0, CONFIG.text.width, requires_grad=True)
    logits = model({"input_ids": ids, "positions": positions, "visual": visual}).logits
    assert torch.equal(logits, model({"input_ids": ids, "positions": positions}).logits)
    logits.sum().backward()
    assert visual.grad is not None and visual.grad.shape == visual.shape


# --------------------------------------------------------------------------------------------------------- processes


@pytest.fixture(scope="module")
def one() -> dict:
    """What one process found."""
    return found_by(ALONE)


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_many_processes_learn_what_one_does(one, play, way):
    """Rows of several lengths, text alone, fewer rows and stills than ranks; every rank has the whole's numbers."""
    processes, ep, cp = WAYS[way]
    for rank in play(Path(__file__).with_name("parallel_steps.py"), processes, (ep, cp)):
        for case in cases(ep):
            found = apart_by(one[case], rank[case])
            assert max(found.values()) < 1e-5, (case, found)
