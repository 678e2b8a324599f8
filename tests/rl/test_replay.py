"""Replay: with the sampler's choices forced on it, the trainer says what the sampler said, whatever chose for it."""

import pytest
import torch
from torch import Tensor

from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.minivid.dataset import make_videos
from minikeye.minivid.lessons import Lesson, Size, question_prompts
from minikeye.model.moe import Router
from minikeye.rl.replay import (
    ChoiceRecorder,
    Choices,
    expert_flips,
    index_jaccard,
    noisy,
    replaying,
    sampler_trainer_kl,
    together,
)
from minikeye.rl.rollout import Answers, answer_logprobs, sample_answers

CONFIG = KeyeConfig.nano()
STOP = tuple(range(0, 256, 9))  # a tenth of all bytes: answers end at different times
WORDS = ("none", "routing", "index", "both")


@pytest.fixture(scope="module")
def model() -> KeyeVL:
    """Choices that are not even, so that noise turns some and not all."""
    torch.manual_seed(1)
    model = KeyeVL(CONFIG).eval()
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return model


@pytest.fixture(scope="module")
def prompts() -> dict[str, Tensor]:
    """Grounding questions about eight frames, of different lengths, padded on the left."""
    size, videos = Size(8, 4, 28, 28), make_videos(3, range(4), 8, "test")
    prompts = question_prompts(videos, "G", size, CONFIG)
    mask = prompts["attention_mask"]
    del prompts["frames"]
    return Lesson(prompts, videos, size).inputs(CONFIG, "cpu") | {"attention_mask": mask}


def sampled(model, prompts, router: float, index: float, group: int = 1, attention: str = "sparse"):
    recorder = ChoiceRecorder()
    with noisy(model, router, index, seed=5):
        answers = sample_answers(model, prompts, group, 9, STOP, seed=3, attention=attention, observer=recorder)
    return answers, recorder.choices()


@torch.no_grad()
def divergence(model, prompts, answers: Answers, choices: Choices, replay: str) -> float:
    trained = answer_logprobs(model, prompts, answers.ids, attention="sparse", choices=choices, replay=replay)
    return float(sampler_trainer_kl(answers.logprobs, trained, answers.mask))


@pytest.mark.parametrize(
    ("router", "index", "mended"),
    [(0.0, 0.0, WORDS), (0.1, 0.0, ("routing", "both")), (0.0, 0.1, ("index", "both")), (0.1, 0.1, ("both",))],
)
def test_what_replay_mends(model, prompts, router: float, index: float, mended: tuple[str, ...]):
    """Each kind of noise is undone by its own replay, to rounding; by the other it is not."""
    answers, choices = sampled(model, prompts, router, index)
    kl = {word: divergence(model, prompts, answers, choices, word) for word in WORDS}
    for word in WORDS:
        if word in mended:
            assert kl[word] < 1e-9, kl
        else:
            assert kl[word] > 20 * max(kl["both"], 1e-7), kl


def test_a_group_in_one_pass(model, prompts):
    """Answers of different lengths packed behind their prompt: the moved positions are the right ones."""
    answers, choices = sampled(model, prompts, 0.0, 0.0, group=3)
    lengths = answers.mask.sum(-1)
    assert lengths.min() < lengths.max()
    with torch.no_grad():
        own = answer_logprobs(model, prompts, answers.ids, attention="sparse")
        replayed = answer_logprobs(model, prompts, answers.ids, attention="sparse", choices=choices)
        recorder = ChoiceRecorder()
        answer_logprobs(model, prompts, answers.ids, attention="sparse", observer=recorder)
    assert (own - replayed).abs().max() < 1e-5
    t, n = prompts["input_ids"].shape[1] - 1, answers.ids.shape[2]  # the last token is read in every answer
    packed, chosen = choices.packed(t, 3), recorder.choices()
    assert packed.experts[0].shape[:2] == (4, t + 3 * n)
    read = answers.mask.flatten(1)  # the last token of an answer is said, not read; in its place the prompt's last
    mask = torch.cat((prompts["attention_mask"][:, :-1], read), dim=1)
    assert expert_flips(packed, chosen, mask) < 0.01 and index_jaccard(packed, chosen, mask) > 0.99
    other = Choices([x.roll(1, 0) for x in packed.experts], [x.roll(1, 0) for x in packed.indices])
    assert expert_flips(other, chosen, mask) > 0.1 and index_jaccard(other, chosen, mask) < 0.9


def test_packed_by_hand():
    """Two answers of two tokens behind a prompt of two: positions from 2 on move by two for the second answer."""
    experts = torch.arange(8).view(2, 4, 1)
    indices = torch.tensor([[[0, -1], [0, 1], [1, 2], [2, 3]], [[0, -1], [0, 1], [0, 2], [0, 3]]])
    packed = Choices([experts], [indices]).packed(prompt=2, group=2)
    assert packed.experts[0].flatten().tolist() == [0, 1, 2, 3, 6, 7]
    assert packed.indices[0].tolist() == [[[0, -1], [0, 1], [1, 2], [2, 3], [0, 4], [0, 5]]]


def test_some_and_wider_by_hand():
    """Answers to the second prompt alone; then a token more on either side, for which nothing is meant."""
    experts = torch.arange(8).view(4, 2, 1)
    indices = torch.tensor([[[0, -1], [0, 1]]] * 3 + [[[0, -1], [1, -1]]])
    some = Choices([experts], [indices]).of([1], group=2)
    assert some.experts[0].flatten().tolist() == [4, 5, 6, 7] and some.indices[0].tolist() == indices[2:].tolist()
    wide = some.wide(1, 1)
    assert wide.experts[0][:, 1:3].flatten().tolist() == [4, 5, 6, 7] and wide.experts[0].shape == (2, 4, 1)
    assert wide.indices[0][1].tolist() == [[-1, -1], [1, -1], [2, -1], [-1, -1]]
    both = together([wide, Choices(wide.experts, [x[..., :1] for x in wide.indices])])
    assert both.indices[0].shape == (4, 4, 2) and both.indices[0][3].tolist() == [[-1, -1], [1, -1], [2, -1], [-1, -1]]


def test_gate_weights_are_the_trainers():
    """R3 by hand: logits log 8, log 4, log 2, log 1 over the recorded experts 1 and 3 are weights 4/5 and 1/5."""
    torch.manual_seed(0)
    router = Router(CONFIG.text)
    router.weight = torch.nn.Parameter(torch.tensor([[8.0], [4], [2], [1]]).log())
    router.chosen, x = 2, torch.ones(1, 1)
    assert router(x)[2].tolist() == [[0, 1]]
    router.rule = lambda probabilities: torch.tensor([[1, 3]])
    probabilities, weights, chosen = router(x)
    assert chosen.tolist() == [[1, 3]] and weights[0].tolist() == pytest.approx([0.8, 0.2])
    assert probabilities[0].tolist() == pytest.approx([8 / 15, 4 / 15, 2 / 15, 1 / 15])
    weights[0, 0].backward()  # d g_1 / d s = g_1 (1 - g_1) for its own logit, -g_1 g_3 for the other, 0 for the rest
    assert router.weight.grad.flatten().tolist() == pytest.approx([0, 0.16, 0, -0.16], abs=1e-7)


def test_the_router_goes_on_learning(model, prompts):
    """Under replay the trainer's logits get gradients; the indexer, which makes no choice, gets none."""
    answers, choices = sampled(model, prompts, 0.1, 0.1)
    model.zero_grad()
    answer_logprobs(model, prompts, answers.ids, attention="sparse", choices=choices).sum().backward()
    for layer in model.model.layers:
        assert layer.mlp.gate.weight.grad.abs().max() > 0
        assert all(p.grad is None for p in layer.self_attn.sa_indexer.parameters())
    model.zero_grad()


def test_noise_turns_choices_and_says_how_many(model, prompts):
    """More noise, more flips; without noise the sampler is the plain one; the seed fixes all."""
    plain = sample_answers(model, prompts, 1, 9, STOP, seed=3, attention="sparse")
    calm, chosen = sampled(model, prompts, 0.0, 0.0)
    assert torch.equal(plain.ids, calm.ids) and torch.equal(plain.logprobs, calm.logprobs)
    t, previous = prompts["input_ids"].shape[1], (0.0, 1.0)
    cut = lambda choices: Choices([x[:, :t] for x in choices.experts], [x[:, :t] for x in choices.indices])  # noqa: E731
    for noise in (0.05, 0.3, 2.0):
        answers, choices = sampled(model, prompts, noise, noise)
        again, same = sampled(model, prompts, noise, noise)
        assert torch.equal(answers.ids, again.ids) and torch.equal(choices.indices[1], same.indices[1])
        real = prompts["attention_mask"]
        now = expert_flips(cut(choices), cut(chosen), real), index_jaccard(cut(choices), cut(chosen), real)
        assert now[0] > previous[0] and now[1] < previous[1]
        previous = now
        start = t - real.sum(1)  # padding is never read, however loud the noise
        assert all(((x < 0) | (x >= start[:, None, None]))[:, :t][real].all() for x in choices.indices)


def test_flips_and_jaccard_by_hand():
    """Sets, whatever their order; padding is no key; what is masked does not count."""
    a = Choices([torch.tensor([[[0, 1], [2, 3], [0, 3]]])], [torch.tensor([[[0, -1], [0, 1], [1, 2]]])])
    b = Choices([torch.tensor([[[1, 0], [2, 1], [1, 2]]])], [torch.tensor([[[0, -1], [1, 2], [0, 3]]])])
    assert expert_flips(a, b, torch.tensor([[True, True, False]])) == 0.5
    assert index_jaccard(a, b, torch.tensor([[True, True, False]])) == pytest.approx((1 + 1 / 3) / 2)
    assert index_jaccard(a, b, torch.tensor([[True, True, True]])) == pytest.approx((1 + 1 / 3 + 0) / 3)


def test_the_divergence_by_hand():
    """r = 2 and 1/2: k3 is 1 - log 2 and log 2 - 1/2, whose mean is 1/4; masked places may hold anything."""
    sampled = torch.tensor([[-1.0, -2.0, float("nan")]])
    trained = torch.tensor([[-1.0, -2.0, 3.0]]) + torch.tensor([[2.0, 0.5, 1.0]]).log()
    mask = torch.tensor([[True, True, False]])
    assert float(sampler_trainer_kl(sampled, trained, mask)) == pytest.approx(0.25, rel=1e-6)
    assert float(sampler_trainer_kl(sampled, sampled, mask)) == 0.0
    with pytest.raises(ValueError, match="mask of nothing"):
        sampler_trainer_kl(sampled, trained, mask & False)


def test_rules_are_given_back(model, prompts):
    """Also where a pass fails."""
    _, choices = sampled(model, prompts, 0.0, 0.0)
    with pytest.raises(KeyError), replaying(model, choices, "both"), noisy(model, 0.1, 0.0, 0):
        assert all(layer.mlp.gate.rule and layer.self_attn.rule for layer in model.model.layers)
        raise KeyError
    assert not any(layer.mlp.gate.rule or layer.self_attn.rule for layer in model.model.layers)


def test_what_cannot_be_replayed_is_refused(model, prompts, unchecked):
    answers, choices = sampled(model, prompts, 0.0, 0.0)
    dense, seen = sampled(model, prompts, 0.0, 0.0, attention="dense")
    assert divergence(model, prompts, answers, choices, "both") < 1e-9
    with pytest.raises(ValueError, match="expected selected keys to replay, got a dense sampling"):
        answer_logprobs(model, prompts, dense.ids, attention="sparse", choices=seen, replay="index")
    with pytest.raises(ValueError, match="replay to be one of none, routing, index, both, got 'all'"):
        answer_logprobs(model, prompts, answers.ids, choices=choices, replay="all")
    for word in ("routing", "index"):
        with pytest.raises(ValueError, match="expected a pass over the recorded tokens"):
            answer_logprobs(model, prompts, answers.ids[..., :4], attention="sparse", choices=choices, replay=word)
    with pytest.raises(ValueError, match="seen nothing"):
        ChoiceRecorder().choices()
    for bad in ((-0.1, 0.0), (0.0, float("nan"))):
        with pytest.raises(ValueError, match="noise of 0 or more"), noisy(model, *bad, seed=0):
            pass
