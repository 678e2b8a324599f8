"""One reading gives what two give: greedy answers, and whether a true answer's tokens are the most likely ones."""

import pytest
import torch

from minikeye.evaluation.niah.both_ways import ask_both_ways

PROMPTS = [[5, 9, 77, 30, 12], [41, 8, 60], [17, 17, 3, 99]]
LONGEST = 6


def batch(prompts: list[list[int]]) -> dict[str, torch.Tensor]:
    """Padded on the left, positions counting from each row's first token."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[n >= width - len(row) for n in range(width)] for row in prompts])
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask, "positions": positions.expand(3, -1, -1)}


def alone(model, prompt: list[int], attention: str) -> list[int]:
    """The greedy answer, by a pass over everything for each token and no cache."""
    ids = list(prompt)
    for _ in range(LONGEST):
        logits = model({"input_ids": torch.tensor([ids])}, attention=attention).logits[0, -1]
        logits[[model.config.image_token_id, model.config.video_token_id]] = -torch.inf
        ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("attention", ["sparse", "dense"])
@torch.no_grad()
def test_what_greedy_decoding_says_is_most_likely_token_by_token(lively, attention):
    """Each row as it answers alone; a true answer passes if it is that one or begins it, and fails by one token."""
    greedy = [alone(lively, prompt, attention) for prompt in PROMPTS]
    wrong = [[*row[:-1], (row[-1] + 1) % 250] for row in greedy]
    first = [[(row[0] + 1) % 250, *row[1:]] for row in greedy]
    for truths, forced in (
        (greedy, [True, True, True]),
        ([greedy[0][:2], greedy[1], greedy[2][:1]], [True, True, True]),  # of different lengths
        ([greedy[0], wrong[1], greedy[2][:3]], [True, False, True]),
        (first, [False, False, False]),
    ):
        got = ask_both_ways(lively, batch(PROMPTS), truths, (), LONGEST, attention)
        assert [one.ids for one in got] == greedy
        assert [one.forced for one in got] == forced


def test_an_answer_ends_where_the_model_ends_it(lively):
    """What is written stops at a stop token; what is forced does not look at it."""
    greedy = alone(lively, PROMPTS[0], "dense")
    stop = greedy[3]
    [got] = ask_both_ways(lively, batch(PROMPTS[:1]), [greedy], (stop,), LONGEST, "dense")
    assert got.ids == greedy[: greedy.index(stop)] and got.forced


@pytest.mark.parametrize("truths", [[[1], [2]], [[1], [2], []]])
def test_a_true_answer_for_each_row(lively, truths):
    with pytest.raises(ValueError, match="expected 3 true answers of at least one token, got lengths"):
        ask_both_ways(lively, batch(PROMPTS), truths, (), LONGEST)
