"""Answers laid behind one prompt are what each would be alone; what was sampled has the probability that it had."""

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.inference.generate import log_probabilities, sayable
from minikeye.keye import KeyeVL
from minikeye.minivid.dataset import make_videos
from minikeye.minivid.lessons import Lesson, Size, question_prompts
from minikeye.rl.rollout import answer_logprobs, looking, sample_answers, visible

CONFIG = KeyeConfig.nano()
STOP = (258,)


def model_and_prompts(count: int = 3, frames: int = 8) -> tuple[KeyeVL, dict]:
    """A model whose choices are not even, and prompts of different lengths, padded on the left."""
    torch.manual_seed(1)
    model = KeyeVL(CONFIG).eval()
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    size, videos = Size(frames, count, 28, 28), make_videos(3, range(count), frames, "test")
    prompts = question_prompts(videos, "G", size, CONFIG)
    mask = prompts["attention_mask"]
    del prompts["frames"]
    inputs = Lesson(prompts, videos, size).inputs(CONFIG, "cpu") | {"attention_mask": mask}
    assert len(set(mask.sum(1).tolist())) > 1
    return model, inputs


def alone(model: KeyeVL, inputs: dict, row: int, answer: torch.Tensor, attention: str) -> torch.Tensor:
    """Log-probabilities of one answer by a plain pass over its prompt, without padding, and itself."""
    real = inputs["attention_mask"][row].bool()
    ids, positions = inputs["input_ids"][row][real], inputs["positions"][:, row][:, real]
    tokens = answer[answer >= 0]
    after = positions.max() + 1 + torch.arange(len(tokens))
    frames = len(inputs["grids"]) // len(inputs["input_ids"])
    patches = inputs["patches"].unflatten(0, (len(inputs["grids"]), -1))[row * frames : (row + 1) * frames]
    logits = model(
        {
            "input_ids": torch.cat((ids, tokens))[None],
            "positions": torch.cat((positions, after.expand(3, -1)), 1)[:, None],
            "patches": patches.flatten(0, 1),
            "grids": inputs["grids"][row * frames : (row + 1) * frames],
        },
        attention=attention,
    ).logits[0]
    return log_probabilities(sayable(logits[len(ids) - 1 : -1], CONFIG), tokens)


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_answers_side_by_side_are_answers_alone(attention):
    """Values and gradients, for answers of different lengths, in both modes: k = 16 of a hundred keys."""
    model, inputs = model_and_prompts()
    ids = torch.randint(0, 256, (3, 4, 6), generator=torch.Generator().manual_seed(0))
    ids[0, 1, 4:], ids[2, 3, 1:] = -1, -1
    packed = answer_logprobs(model, inputs, ids, attention=attention)
    weight = torch.randn(packed.shape, generator=torch.Generator().manual_seed(2))
    (packed * weight).sum().backward()
    gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    assert packed.shape == ids.shape and not packed[ids < 0].any()
    for row in range(3):
        for answer in range(4):
            one = alone(model, inputs, row, ids[row, answer], attention if attention == "dense" else "masked")
            assert torch.allclose(packed[row, answer, : len(one)].detach(), one.detach(), atol=1e-5)
            (one * weight[row, answer, : len(one)]).sum().backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            scale = p.grad.abs().max() + 1e-6
            assert (gradients[name] - p.grad).abs().max() < 2e-4 * scale, name


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_the_ratio_of_a_policy_to_itself_is_one(attention):
    """What the sampler said a token's probability was, the learner says."""
    model, inputs = model_and_prompts()
    drawn = sample_answers(model, inputs, 5, 7, STOP, seed=3, attention=attention)
    again = sample_answers(model, inputs, 5, 7, STOP, seed=3, attention=attention)
    assert torch.equal(drawn.ids, again.ids) and drawn.ids.shape[:2] == (3, 5)
    with torch.no_grad():
        learnt = answer_logprobs(model, inputs, drawn.ids, attention=attention)
    assert (learnt - drawn.logprobs).abs().max() < 1e-5
    assert (drawn.logprobs[drawn.mask] < 0).all() and not drawn.logprobs[~drawn.mask].any()
    assert len({tuple(answer) for answer in drawn.ids.flatten(0, 1).tolist()}) > 5  # answers of a group differ


def test_what_is_visible_by_hand():
    """Two answers of two tokens behind a prompt of three, whose first token is padding."""
    got = visible(torch.tensor([[False, True, True]]), 2, 2)[0].int().tolist()
    assert got == [
        [0, 0, 0, 0, 0, 0, 0],
        [0, 1, 0, 0, 0, 0, 0],
        [0, 1, 1, 0, 0, 0, 0],
        [0, 1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 1, 0, 0],
        [0, 1, 1, 0, 0, 1, 0],
        [0, 1, 1, 0, 0, 1, 1],
    ]


def test_layers_get_their_rules_back():
    """Also where the pass fails."""
    model, _ = model_and_prompts()
    with pytest.raises(KeyError), looking(model, torch.ones(1, 2, 2, dtype=torch.bool), "dense"):
        assert all(layer.self_attn.rule is not None for layer in model.model.layers)
        raise KeyError
    assert all(layer.self_attn.rule is None for layer in model.model.layers)


def test_what_does_not_fit_is_refused(unchecked):
    model, inputs = model_and_prompts()
    ids, mask = torch.zeros(3, 1, 4, dtype=torch.int64), inputs["attention_mask"]
    for wrong in (mask[:, 1:], mask[:1], mask.flip(1)):  # another length, other rows, padding on the right
        with pytest.raises(ValueError, match="attention_mask must be"):
            answer_logprobs(model, inputs | {"attention_mask": wrong}, ids)
    with pytest.raises(ValueError, match="attention must be one of sparse, dense, masked; got 'Dense'"):
        answer_logprobs(model, inputs, ids, attention="Dense")
    with pytest.raises(ValueError, match="expected prompts with positions"):
        sample_answers(model, {"input_ids": inputs["input_ids"]}, 2, 3, STOP, seed=0)
    with pytest.raises(ValueError, match="group >= 1"):
        sample_answers(model, inputs, 0, 4, STOP, seed=0)
    with pytest.raises(ValueError, match=r"answers \[b g n\] to 3 prompts, got \[2, 1, 4\]"):
        answer_logprobs(model, inputs, torch.zeros(2, 1, 4, dtype=torch.int64))
