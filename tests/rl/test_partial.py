"""Answers in pieces say what they would say in one, know who drew what, and survive a kill."""

from dataclasses import replace

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.minivid.dataset import make_videos
from minikeye.minivid.lessons import Lesson, Size, question_prompts
from minikeye.rl.gspo import GRPO, GSPO, advantages, objective
from minikeye.rl.learn import with_visual_tokens
from minikeye.rl.partial import (
    PartialConfig,
    advance,
    ask,
    complete_groups,
    finished,
    longer,
    pick,
    read,
    told,
    written,
)
from minikeye.rl.record import Rollout, stack
from minikeye.rl.rollout import answer_logprobs

CONFIG = KeyeConfig.nano()
STOP = tuple(range(0, 256, 9))  # a tenth of all bytes: answers of random weights end at different times
PIECES = PartialConfig(budget=3, max_new_tokens=10)
ONE = replace(PIECES, budget=10)


def policy(seed: int = 1) -> KeyeVL:
    """A model whose choices are not even."""
    torch.manual_seed(seed)
    model = KeyeVL(CONFIG).eval()
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return model


def prompts_of(model: KeyeVL):
    """Prompts by number: grounding questions, whose lengths differ."""

    def of(numbers: list[int]):
        size, videos = Size(4, len(numbers), 28, 28), make_videos(3, numbers, 4, "test")
        prompts = question_prompts(videos, "G", size, CONFIG)
        mask = prompts["attention_mask"]
        del prompts["frames"]
        inputs = Lesson(prompts, videos, size).inputs(CONFIG, "cpu") | {"attention_mask": mask}
        return with_visual_tokens(model, inputs)

    return of


def begun(of, prompts: tuple[int, ...] = (0, 1, 2), answers: int = 4) -> list[Rollout]:
    inputs = of(list(prompts))
    out = []
    for group, (prompt, ids, mask) in enumerate(
        zip(prompts, inputs["input_ids"], inputs["attention_mask"], strict=True)
    ):
        out += ask(prompt, ids[mask].tolist(), group, answers)
    return out


def run(model, rollouts, of, config, versions=range(100)):
    """Rounds until all have ended, and how many there were."""
    for rounds, version in enumerate(versions):
        if all(finished(r, config, STOP) for r in rollouts):
            return rollouts, rounds
        rollouts = advance(model, rollouts, of, config, STOP, version)
    raise AssertionError("answers must end")


@pytest.mark.parametrize("attention", ["dense", "sparse"])
@pytest.mark.parametrize("temperature", [1.0, 0.05])
def test_pieces_are_what_one_piece_is(attention: str, temperature: float):
    """The same words and log-probabilities in four rounds and in one, and, teacher-forced, of one packed pass."""
    model = policy()
    of = prompts_of(model)
    how = {"attention": attention, "temperature": temperature}
    whole, one = run(model, begun(of), of, replace(ONE, **how))
    pieces, many = run(model, begun(of), of, replace(PIECES, **how))
    assert one == 1 and many == 4
    lengths = {len(r.completion_ids) for r in whole}
    assert max(lengths) == 10 and len(lengths) > 1
    for a, b in zip(pieces, whole, strict=True):
        assert a.completion_ids == b.completion_ids and a.number == b.number
        assert a.old_logprobs == pytest.approx(b.old_logprobs, abs=1e-5 / temperature)
    answers = stack([replace(r, reward=0.0) for r in pieces], padding=0).answers(4)
    with torch.no_grad():
        forced = answer_logprobs(model, of([0, 1, 2]), answers.ids, temperature, attention)
    assert (forced - answers.logprobs).abs().max() < 1e-5 / temperature
    assert torch.equal(answers.mask, answers.logprobs != 0) or temperature < 1  # a sure token has log-prob 0


def test_neighbours_change_nothing():
    """An answer's random numbers are its own: alone it says what it says among others."""
    model = policy()
    of = prompts_of(model)
    among = advance(model, begun(of), of, PIECES, STOP, 0)
    alone = advance(model, begun(of)[6:7], of, PIECES, STOP, 0)
    assert alone[0].completion_ids == among[6].completion_ids
    assert len({r.completion_ids for r in among}) > 6
    other = advance(model, begun(of)[6:7], of, replace(PIECES, seed=1), STOP, 0)
    assert other[0].completion_ids != alone[0].completion_ids


def test_every_token_knows_its_policy():
    """Three policies, one a round: versions, and log-probabilities that are those of whoever drew the token."""
    models = [policy(seed) for seed in (1, 2, 3)]
    of = prompts_of(models[0])
    rollouts = begun(of)
    for version, model in zip((5, 7, 9), models, strict=True):
        rollouts = advance(model, rollouts, of, PIECES, STOP, version)
    for r in rollouts:
        assert r.versions == ((5,) * 3 + (7,) * 3 + (9,) * 3)[: len(r.versions)] and all(r.mask)
    assert max(len(r.versions) for r in rollouts) == 9
    batch = stack([replace(r, reward=0.0) for r in rollouts], padding=0)
    answers = batch.answers(4)
    with torch.no_grad():
        for version, model in zip((5, 7, 9), models, strict=True):
            forced = answer_logprobs(model, of([0, 1, 2]), answers.ids).flatten(0, 1)
            here = batch.versions == version
            assert (forced - batch.old_logprobs)[here].abs().max() < 1e-5
            others = (batch.versions >= 0) & ~here
            assert (forced - batch.old_logprobs)[others].abs().mean() > 0.1


def test_what_was_told_is_read_and_not_learnt():
    """A tool's words stand between two pieces: the second depends on them, the loss does not touch them."""
    model = policy()
    of = prompts_of(model)
    config = replace(PIECES, max_new_tokens=6)
    first = advance(model, begun(of, (0,), 2), of, config, (), 0)
    words = (72, 105)
    after = advance(model, [told(r, words, 0) for r in first], of, config, (), 1)
    without = advance(model, first, of, config, (), 1)
    for r, plain in zip(after, without, strict=True):
        assert r.completion_ids[3:5] == words and r.mask == (True,) * 3 + (False,) * 2 + (True,) * 3
        assert r.old_logprobs[3:5] == (0.0, 0.0) and r.versions == (0,) * 5 + (1,) * 3
        assert r.completion_ids[5:] != plain.completion_ids[3:] or r.old_logprobs[5:] != plain.old_logprobs[3:]
    batch = stack([replace(r, reward=float(n)) for n, r in enumerate(after)], padding=0)
    a, kept = advantages(batch.rewards, batch.groups, GRPO)
    new = answer_logprobs(model, of([0]), batch.answers(2).ids).flatten(0, 1)
    assert (new - batch.old_logprobs)[batch.mask].abs().max() < 1e-5 and (new[~batch.mask] < 0).all()
    leaf = new.detach().requires_grad_()
    objective(leaf, batch.old_logprobs, batch.mask & kept[:, None], a, GRPO)[0].backward()
    assert torch.equal(leaf.grad != 0, batch.mask)


def test_killed_and_read_back():
    """What was written is what is read, digit for digit, and goes on to the same end."""
    model = policy()
    of = prompts_of(model)
    waiting = advance(model, begun(of), of, PIECES, STOP, 0)
    again = read(written(waiting))
    assert again == waiting
    assert run(model, again, of, PIECES)[0] == run(model, waiting, of, PIECES)[0]


def test_whole_groups_are_taken_at_once():
    """By hand: a group waits for its last answer, whatever the order; nothing is lost."""
    row = lambda group, number, *ids: Rollout(  # noqa: E731
        group, (1,), ids, (True,) * len(ids), (-1.0,) * len(ids), (0,) * len(ids), group, number=number
    )
    ends = STOP[3]
    rollouts = [row(1, 1, 5, ends), row(0, 0, ends), row(1, 0, *[5] * 10), row(0, 1, 5), row(2, 0, ends)]
    done, waiting = complete_groups(rollouts, PIECES, STOP)
    assert [(r.group, r.number) for r in done] == [(1, 0), (1, 1), (2, 0)]
    assert waiting == [rollouts[1], rollouts[3]]


def test_what_has_ended_by_hand():
    ends, empty = STOP[3], ask(4, [7, 8], 0, 1)[0]
    assert not finished(empty, PIECES, STOP)
    assert finished(longer(empty, [(ends, -1.0)], 0), PIECES, STOP)
    assert not finished(told(longer(empty, [(ends, -1.0)], 0), [5], 0), PIECES, STOP)  # the tool has answered
    assert not finished(told(empty, [ends], 0), PIECES, STOP)  # it was not the policy that ended
    nine = empty
    for _ in range(9):
        nine = longer(nine, [(5, -1.0)], 0)
    assert not finished(told(nine, [5] * 9, 0), PIECES, STOP) and finished(longer(nine, [(5, -1.0)], 0), PIECES, STOP)


def test_a_token_is_picked_by_hand():
    """Probabilities 1/2, 0, 1/4, 1/4: u below .5 is the first, the second is never picked."""
    logits = torch.tensor([0.5, 0.0, 0.25, 0.25]).log()
    u = torch.tensor([0.0, 0.49, 0.51, 0.74, 0.76, 1 - 2**-53], dtype=torch.float64)
    assert pick(logits.expand(6, -1), u, 1.0).tolist() == [0, 0, 2, 2, 3, 3]
    # Squared and summed to 1, as temperature 1/2 does: 4/6, 0, 1/6, 1/6.
    assert pick(logits.expand(2, -1), torch.tensor([0.66, 0.67], dtype=torch.float64), 0.5).tolist() == [0, 2]


def test_pieces_teach_a_policy():
    """From pieces of two policies to a step: the objective takes records as they are."""
    model = policy()
    of = prompts_of(model)
    rollouts = advance(policy(2), begun(of), of, PIECES, STOP, 0)
    done, waiting = complete_groups(run(model, rollouts, of, PIECES, range(1, 9))[0], PIECES, STOP)
    assert not waiting
    batch = stack([replace(r, reward=float(r.completion_ids[0] < 100)) for r in done], padding=0)
    a, kept = advantages(batch.rewards, batch.groups, GSPO)
    new = answer_logprobs(model, of([0, 1, 2]), batch.answers(4).ids).flatten(0, 1)
    loss, numbers = objective(new, batch.old_logprobs, batch.mask & kept[:, None], a, GSPO)
    loss.backward()
    assert model.lm_head.weight.grad.abs().max() > 0 and abs(float(numbers["ratio"]) - 1) > 1e-3


def test_what_does_not_fit_is_refused():
    model = policy()
    of = prompts_of(model)
    for bad in ({"budget": 0}, {"budget": 25}, {"temperature": 0.0}, {"temperature": float("inf")}):
        with pytest.raises(ValueError, match="expected"):
            PartialConfig(**bad)
    rollouts = begun(of)
    for wrong in (lambda numbers: of([n + 5 for n in numbers]), lambda numbers: of(numbers[:2])):
        with pytest.raises(ValueError, match=r"the prompts \[0, 1, 2\] that these answers began with"):
            advance(model, rollouts, wrong, PIECES, STOP, 0)
    batch = stack([replace(r, reward=0.0) for r in advance(model, rollouts, of, PIECES, STOP, 0)], padding=0)
    for group in (3, 5):
        with pytest.raises(ValueError, match=f"expected groups of {group} answers beside each other"):
            batch.answers(group)
