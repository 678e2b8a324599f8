"""A student of a few thousand parameters: it goes to its teachers, can be killed, and says no in time."""

import math
from dataclasses import replace

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.rl.learn import learns
from minikeye.rl.mopd.distill import Compared, DistillConfig, apart_at_start, compare, distill, objective, token_shares
from minikeye.rl.mopd.estimators import FULL, PRINTED, SAMPLED
from minikeye.rl.mopd.merging import arithmetic, imitate
from minikeye.rl.mopd.support import distributions
from minikeye.rl.mopd.teachers import AllTeachers, Asked, Route, Teacher, Teachers
from minikeye.rl.rollout import Answers
from minikeye.training.loop import LoopConfig

CONFIG = KeyeConfig.nano()
UP, DOWN = Route("up", "text"), Route("down", "text")
SMALL = DistillConfig(group=4, max_new_tokens=3, most_kl=9.0)
LOOP = LoopConfig(steps=6, lr=1e-3, warmup=0, log_every=1, save_every=2)


def policy(seed: int = 0) -> KeyeVL:
    """Of low entropy, as a model that has learnt something."""
    torch.manual_seed(seed)
    model = KeyeVL(CONFIG)
    with torch.no_grad():
        model.lm_head.weight.mul_(4)
    return model


def near(seed: int, scale: float = 0.5) -> KeyeVL:
    """The policy with another head: an expert made from it."""
    model, random = policy(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head = model.lm_head.weight
        head.add_(scale * head.std() * torch.randn(head.shape, generator=random))
    return model


def batch(number: int) -> list[Asked]:
    """Two routes, told apart by their first token; the same prompts at every second step."""
    random, out = torch.Generator().manual_seed(number % 2), []
    for first, route, length in ((60, UP, 5), (62, DOWN, 7)):
        ids = torch.randint(32, 127, (4, length), generator=random)
        ids[:, 0] = first
        out.append(Asked({"input_ids": ids, "positions": torch.arange(length).expand(3, 4, -1).clone()}, route))
    return out


@pytest.fixture(scope="module")
def teachers() -> Teachers:
    return Teachers({UP: Teacher("up", near(1)), DOWN: Teacher("down", near(2))})


@pytest.mark.parametrize("estimator", [SMALL.estimator, SAMPLED, FULL], ids=lambda each: each.name)
def test_it_goes_to_its_teachers_and_only_the_decoder_moves(teachers, estimator):
    student = policy()
    before = {n: p.detach().clone() for n, p in student.named_parameters()}
    config = replace(SMALL, estimator=estimator, k=32)
    lines = distill(student, batch, teachers, config, replace(LOOP, steps=40, save_every=0))
    for route in (UP, DOWN):
        start, end = (sum(line[f"kl {route}"] for line in part) / 5 for part in (lines[:5], lines[-5:]))
        assert end < 0.85 * start
    moved = {n for n, p in student.named_parameters() if not torch.equal(p, before[n])}
    assert moved <= {n for n in before if learns(n)} and "lm_head.weight" in moved
    assert {"overlap", "mass", "empty", "inside", "entropy", "teacher_entropy", "length"} <= lines[0].keys()


def test_a_student_of_itself_stands_still():
    student = policy()
    itself = Teacher("itself", policy())
    lines = distill(student, batch, Teachers({UP: itself, DOWN: itself}), SMALL, replace(LOOP, steps=2))
    assert lines[0]["kl"] == pytest.approx(0, abs=1e-6) and lines[0]["norm"] < 1e-4
    assert lines[0]["overlap"] > 0.99 and lines[0]["empty"] == 0


def test_killed_and_resumed_to_the_same_numbers(teachers, tmp_path):
    whole = policy()
    lines = distill(whole, batch, teachers, SMALL, LOOP, tmp_path / "whole")

    class Killed(Exception):
        pass

    def dies(number: int) -> list[Asked]:
        if number == 4:
            raise Killed
        return batch(number)

    half = policy()
    with pytest.raises(Killed):
        distill(half, dies, teachers, SMALL, LOOP, tmp_path / "half")
    again = policy(5)  # whatever is in memory, the file knows
    rest = distill(again, batch, teachers, SMALL, LOOP, tmp_path / "half")
    strip = lambda some: [{k: v for k, v in line.items() if k != "seconds"} for line in some]  # noqa: E731
    assert strip(rest) == strip(lines)[4:]
    for name, p in whole.named_parameters():
        if learns(name):
            assert torch.equal(p, dict(again.named_parameters())[name])


def test_a_teacher_too_far_is_refused_before_training(teachers):
    student = policy()
    before = student.lm_head.weight.detach().clone()
    far = Teachers({UP: Teacher("up", near(1)), DOWN: Teacher("far", near(2, scale=40.0))})
    with pytest.raises(ValueError, match=r"within 1.5 nats a token of the student, got \{'down \(text\)': "):
        distill(student, batch, far, replace(SMALL, most_kl=1.5), LOOP)
    assert torch.equal(student.lm_head.weight, before)
    kls = apart_at_start(student, batch(0), teachers, SMALL)
    assert kls.keys() == {str(UP), str(DOWN)} and all(0 < kl < 9 for kl in kls.values())


def test_a_route_without_teacher_is_refused_before_sampling(teachers, monkeypatch):
    lonely = [*batch(0), replace(batch(0)[0], route=Route("up", "image"))]
    monkeypatch.setattr("minikeye.rl.mopd.distill.sampled_among", None)
    with pytest.raises(ValueError, match=r"got up \(image\)"):
        compare(policy(), lonely, teachers, SMALL, 0)


def test_a_gradient_that_is_not_finite_names_its_file(teachers, tmp_path, monkeypatch):
    def nan(both, how, weights):
        return both.student.sum() * float("nan"), {}

    monkeypatch.setattr("minikeye.rl.mopd.distill.objective", nan)
    student = policy()
    before = student.lm_head.weight.detach().clone()
    with pytest.raises(FloatingPointError, match=r"mopd stopped at step 0: .* is in .*mopd.failed.pt"):
        distill(student, batch, teachers, SMALL, LOOP, tmp_path)
    kept = torch.load(tmp_path / "mopd.failed.pt")
    assert kept["step"] == 0 and kept["asked"][0]["prompts"]["input_ids"].shape == (4, 5)
    assert [each["route"] for each in kept["asked"]] == [("up", "text"), ("down", "text")]
    assert torch.equal(student.lm_head.weight, before)


def by_hand(logprobs: list[list[float]] | None = None) -> Compared:
    """Two prompts of one answer: tokens a b, and a alone; a vocabulary of three."""
    ids = torch.tensor([[[0, 1]], [[0, -1]]])
    student = distributions(torch.tensor([[[[2.0, 1, 0], [0, 1, 2]]], [[[1, 1, 1], [9, 9, 0]]]])).requires_grad_()
    teacher = distributions(torch.tensor([[[[1.0, 2, 0], [0, 2, 1]]], [[[3, 1, 1], [0, 0, 9]]]]))
    asked = [Asked({"input_ids": torch.tensor([[1]])}, route) for route in (UP, DOWN)]
    drawn = torch.tensor(logprobs or [[0.0, 0], [0, 0]])[:, None]
    return Compared(asked, Answers(ids, drawn), student, teacher)


def test_the_objective_by_a_loop():
    both, weights = by_hand(), torch.tensor([0.5, 1.0, 1.0])
    how = DistillConfig(estimator=SAMPLED, k=2)
    loss, numbers = objective(both, how, weights)
    s, t = both.student.detach(), both.teacher
    terms = [
        -float(weights[y] * (t[b, 0, n, y] - s[b, 0, n, y]) * s[b, 0, n, y])
        for b, n, y in ((0, 0, 0), (0, 1, 1), (1, 0, 0))
    ]
    assert float(loss.detach()) == pytest.approx(sum(terms) / 3)
    loss, _ = objective(both, replace(how, average="answers"), weights)
    assert float(loss.detach()) == pytest.approx((sum(terms[:2]) / 2 + terms[2]) / 2)
    (gradient,) = torch.autograd.grad(loss, both.student)
    assert not bool(gradient[1, 0, 1].any())  # filling
    kl = [float((s[b, 0, n].exp() * (s[b, 0, n] - t[b, 0, n])).sum()) for b, n in ((0, 0), (0, 1), (1, 0))]
    assert numbers["kl"] == pytest.approx(sum(kl) / 3)
    assert numbers[f"kl {UP}"] == pytest.approx(sum(kl[:2]) / 2) and numbers[f"kl {DOWN}"] == pytest.approx(kl[2])
    assert numbers["length"] == 1.5


def test_icepop_leaves_out_what_the_sampler_saw_otherwise():
    both, weights = by_hand(), torch.ones(3)
    own = both.student.detach().gather(-1, both.answers.ids.clamp(min=0)[..., None]).squeeze(-1)
    drawn = own.clone()
    drawn[0, 0, 1] -= math.log(10)  # the trainer holds that token for ten times as likely
    drawn[1, 0, 0] -= math.log(2)
    both = replace(both, answers=Answers(both.answers.ids, drawn))
    how = DistillConfig(estimator=SAMPLED, k=2, icepop=(0.5, 5.0))
    loss, numbers = objective(both, how, weights)
    s, t = both.student.detach(), both.teacher
    term = lambda b, n, y: -float((t[b, 0, n, y] - s[b, 0, n, y]) * s[b, 0, n, y])  # noqa: E731
    assert float(loss.detach()) == pytest.approx((term(0, 0, 0) + 2 * term(1, 0, 0)) / 3)
    assert numbers["kept"] == pytest.approx(2 / 3)


def test_a_loop_is_told_to_stop_where_the_teacher_likes_it():
    """Student and teacher agree on saying it for ever: the distance is 0, and the penalty is all there is."""
    ids = torch.tensor([[[1, 2, *[0] * 10]]])
    student = distributions(torch.randn(1, 1, 12, 3, generator=torch.Generator().manual_seed(0))).requires_grad_()
    asked = [Asked({"input_ids": torch.tensor([[1]])}, UP)]
    both = Compared(asked, Answers(ids, torch.zeros(1, 1, 12)), student, student.detach())
    how = DistillConfig(k=2, repetition=0.7)
    loss, numbers = objective(both, how, torch.ones(3))
    own = student.detach().gather(-1, ids[..., None]).squeeze(-1)[0, 0]
    assert float(loss.detach()) == pytest.approx(0.7 * float(own[3:].sum()) / 12)  # tau: the second 0
    (gradient,) = torch.autograd.grad(loss, student)
    assert not bool(gradient[0, 0, :3].any()) and bool((gradient[0, 0, 3:, 0] > 0).all())  # descent makes it rarer
    assert numbers["collapsed"] == 1
    loss, _ = objective(both, replace(how, repetition=0.0), torch.ones(3))
    assert float(loss.detach()) == 0


def test_shares_of_tokens():
    mask = torch.tensor([[[True] * 4], [[True, False, False, False]], [[False] * 4]])
    assert token_shares(mask, "tokens").flatten().tolist() == pytest.approx([0.2] * 5 + [0.0] * 7)
    assert token_shares(mask, "answers").flatten().tolist() == pytest.approx([0.125] * 4 + [0.5] + [0.0] * 7)


def test_off_policy_imitates_its_teachers(teachers):
    student = policy()
    lines = imitate(student, batch, teachers, replace(SMALL, group=8), replace(LOOP, steps=40, save_every=0))
    assert sum(line["loss"] for line in lines[-10:]) < 0.95 * sum(line["loss"] for line in lines[:10])
    assert 1 <= lines[0]["length"] <= 3


def test_task_arithmetic_by_hand():
    base, one, two = ({"w": torch.tensor([x]), "n": torch.tensor([3])} for x in (1.0, 2.0, 5.0))
    assert float(arithmetic(base, [one, two], 0.5)["w"]) == 3.5  # the average of 2 and 5
    assert float(arithmetic(base, [one, two], 1.0)["w"]) == 6.0
    assert int(arithmetic(base, [one, two], 1.0)["n"]) == 3
    for bad in ([], [{"w": torch.zeros(2), "n": torch.tensor([3])}], [{"w": torch.zeros(1)}]):
        with pytest.raises(ValueError, match="the base's parameters"):
            arithmetic(base, bad, 1.0)


@pytest.mark.parametrize(
    "bad",
    [
        {"k": 0}, {"formatting": -1.0}, {"repetition": -1.0}, {"most_kl": 0.0}, {"average": "sum"}, {"group": 0},
        {"formatting": math.nan}, {"repetition": math.inf}, {"estimator": "overlap"}, {"temperature": 0.0},
        {"icepop": (1.0, 2.0)}, {"icepop": (0.5, 1.0)}, {"attention": "Dense"},
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(unchecked, bad):
    with pytest.raises(ValueError, match="expected"):
        DistillConfig(**bad)


def test_the_printed_form_moves_the_student_and_not_towards_the_teachers(teachers):
    """In no state an expected gradient, and yet Adam takes whole steps: nearly a random walk."""
    config, loop = replace(SMALL, k=32), replace(LOOP, steps=40, save_every=0)
    walks = {}
    for estimator in (PRINTED, SMALL.estimator):
        student = policy()
        lines = distill(student, batch, teachers, replace(config, estimator=estimator), loop)
        walks[estimator.name] = sum(line["kl"] for line in lines[-5:]) / sum(line["kl"] for line in lines[:5])
    assert walks["printed"] > 1.1 and walks["overlap"] < 0.85


def test_what_cannot_be_taught_is_refused_before_sampling(teachers, monkeypatch):
    monkeypatch.setattr("minikeye.rl.mopd.distill.sampled_among", None)
    student, asked = policy(), batch(0)
    with pytest.raises(ValueError, match=r"prompts to ask, got \[\]"):
        compare(student, [], teachers, SMALL, 0)
    pixels = [replace(asked[0], prompts=asked[0].prompts | {"patches": torch.zeros(1)}), asked[1]]
    with pytest.raises(ValueError, match=r"without pixels for up \(text\)"):
        compare(student, pixels, teachers, SMALL, 0)
    with pytest.raises(ValueError, match="itself is the student: give a copy"):
        compare(student, asked, Teachers({UP: Teacher("itself", student), DOWN: Teacher("d", near(1))}), SMALL, 0)
    other = KeyeVL(replace(CONFIG, text=replace(CONFIG.text, vocab=400)))
    with pytest.raises(ValueError, match="a vocabulary of 320 for wide, got 400"):
        compare(student, asked, Teachers({UP: Teacher("wide", other), DOWN: Teacher("d", near(1))}), SMALL, 0)


def test_a_route_that_comes_later_is_looked_at_before_it_teaches():
    routed = Teachers({UP: Teacher("up", near(1)), DOWN: Teacher("far", near(2, scale=40.0))})
    seen = []

    def batch_at(number: int) -> list[Asked]:
        seen.append(number)
        return batch(number)[: 1 + (number == 2)]

    with pytest.raises(ValueError, match=r"within 3.0 nats a token of the student, got \{'down"):
        distill(policy(), batch_at, routed, replace(SMALL, most_kl=3.0), LOOP)
    assert seen == [0, 1, 2]


def test_a_teacher_of_nan_is_named_and_its_batch_kept(tmp_path):
    broken = near(1)
    with torch.no_grad():
        broken.lm_head.weight.fill_(math.nan)
    routed = Teachers({UP: Teacher("broken", broken), DOWN: Teacher("down", near(2))})
    with pytest.raises(
        FloatingPointError, match=r"mopd stopped at step 0: the teacher broken: .* is in .*mopd.failed.pt"
    ):
        distill(policy(), batch, routed, SMALL, LOOP, tmp_path)
    assert torch.load(tmp_path / "mopd.failed.pt")["asked"]


def test_imitation_needs_one_voice(teachers):
    everyone = AllTeachers(teachers.routes)
    with pytest.raises(ValueError, match="a mean of teachers says nothing"):
        imitate(policy(), batch, everyone, SMALL, LOOP)
