"""Records of answers: what they refuse, and what a batch of them looks like."""

import math
from dataclasses import replace

import pytest
import torch

from minikeye.rl.gspo import GSPO, advantages, objective
from minikeye.rl.record import Rollout, stack

SHORT = Rollout(4, (7, 8), (5,), (True,), (-0.5,), (3,), group=0, reward=1.0)
# A tool said 9 in the middle, and a newer policy went on after it.
LONG = Rollout(4, (6, 7, 8), (5, 9, 6), (True, False, True), (-1.5, 0.0, -0.25), (2, 2, 3), group=0, reward=0.0)
EMPTY = Rollout(5, (8,), (), (), (), (), group=1, reward=0.5)


def test_a_batch_by_hand():
    batch = stack([SHORT, LONG, EMPTY], padding=1)
    assert batch.prompt_ids.tolist() == [[1, 7, 8], [6, 7, 8], [1, 1, 8]]
    assert batch.completion_ids.tolist() == [[5, 1, 1], [5, 9, 6], [1, 1, 1]]
    assert batch.attention_mask.int().tolist() == [[0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 1, 1], [0, 0, 1, 0, 0, 0]]
    assert batch.mask.int().tolist() == [[1, 0, 0], [1, 0, 1], [0, 0, 0]]
    assert batch.old_logprobs.tolist() == [[-0.5, 0, 0], [-1.5, 0, -0.25], [0, 0, 0]]
    assert batch.versions.tolist() == [[3, -1, -1], [2, 2, 3], [-1, -1, -1]]
    assert batch.prompts.tolist() == [4, 4, 5] and batch.groups.tolist() == [0, 0, 1]
    assert batch.rewards.tolist() == [1, 0, 0.5]


def test_from_records_to_a_loss():
    """The group of one is dropped, and the words of the tool are not learnt."""
    batch = stack([SHORT, LONG, EMPTY], padding=1)
    a, kept = advantages(batch.rewards, batch.groups, GSPO)
    new = batch.old_logprobs.clone().requires_grad_()
    loss, numbers = objective(new, batch.old_logprobs, batch.mask & kept[:, None], a, GSPO)
    loss.backward()
    half = 0.5 / (0.5 + 1e-4)  # advantages of 1 and 0
    assert torch.allclose(new.grad, torch.tensor([[-half / 2, 0, 0], [half / 4, 0, half / 4], [0, 0, 0]]))
    assert float(numbers["ratio"]) == 1.0


def test_only_empty_answers():
    batch = stack([EMPTY, EMPTY], padding=1)
    assert batch.completion_ids.shape == batch.mask.shape == batch.old_logprobs.shape == (2, 0)
    assert batch.mask.dtype == torch.bool and batch.old_logprobs.dtype == torch.float32
    assert batch.attention_mask.tolist() == [[True], [True]]


@pytest.mark.parametrize(
    "bad",
    [
        {"mask": (True, True)},
        {"old_logprobs": ()},
        {"versions": (1, 2)},
        {"completion_ids": (5, 6)},
        {"prompt_ids": ()},
        {"old_logprobs": (-math.inf,)},
        {"old_logprobs": (math.nan,)},
        {"reward": math.nan},
        {"reward": math.inf},
    ],
)
def test_records_that_are_none(bad):
    with pytest.raises(ValueError, match="expected"):
        replace(SHORT, **bad)


def test_what_cannot_be_stacked():
    with pytest.raises(ValueError, match="at least one rollout"):
        stack([], padding=0)
    with pytest.raises(ValueError, match=r"got none for those at \[1\]"):
        stack([SHORT, replace(LONG, reward=None)], padding=0)
