"""Loss, accuracy and right parts of answers, by loops."""

import inspect
import math

import pytest
import torch

from minikeye import KeyeConfig
from minikeye.minivid.lessons import parts_right
from minikeye.training.losses import answer_accuracy, answer_loss

NANO = KeyeConfig.nano()


def test_loss_and_accuracy_are_loops():
    """Only answer tokens count, each predicted from the token before it; the first token has none before it."""
    logits, ids = torch.randn(3, 7, 11), torch.randint(11, (3, 7))
    answer = torch.rand(3, 7) < 0.5
    answer[0, 0] = answer[1, 3] = True
    ids[1, 3] = logits[1, 2].argmax()  # one of them is right for sure
    losses, right = [], []
    for b in range(3):
        for t in range(1, 7):
            if answer[b, t]:
                row = logits[b, t - 1].tolist()
                losses.append(math.log(sum(map(math.exp, row))) - row[ids[b, t]])
                right.append(max(range(11), key=row.__getitem__) == ids[b, t])
    assert float(answer_loss(logits, ids, answer)) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    assert float(answer_accuracy(logits, ids, answer)) == pytest.approx(sum(right) / len(right)) and any(right)


def test_right_parts_by_hand():
    """Prompt of two tokens, answer of three: the logits at t speak for token t + 1. Placeholders cannot be said."""
    ids = torch.tensor([[5, 6, 7, 8, 9]] * 4)
    answer = torch.tensor([[False, False, True, True, True]] * 4)
    logits = torch.zeros(4, 5, NANO.text.vocab)
    for row in range(4):
        for t, token in enumerate((6, 7, 8, 9)):
            logits[row, t, token] = 1.0
    logits[1, 1, 30] = 2.0  # another digit
    logits[2, 3, 30] = 2.0  # another last token
    logits[3, 2, NANO.video_token_id] = 9.0  # would be the most likely, but is not allowed
    logits[3, 0, 30] = 2.0  # the prompt does not matter
    got = parts_right(logits, ids, answer, (NANO.image_token_id, NANO.video_token_id))
    assert list(zip(*(got[part].tolist() for part in ("digit", "second", "exact")), strict=True)) == [
        (True, True, True),
        (False, True, False),
        (True, False, False),
        (True, True, True),
    ]


def test_shapes_that_do_not_fit():
    """One row of answers for two rows of tokens was taken for both."""
    logits, ids = torch.zeros(2, 5, 7), torch.zeros(2, 5, dtype=torch.long)
    for more in ((ids[:1], ids.bool()), (ids, ids[:1].bool()), (ids[:, :4], ids.bool())):
        with pytest.raises(ValueError, match=r"logits \[b t v\] with ids and answer \[b t\], got"):
            inspect.unwrap(answer_loss)(logits, *more)
