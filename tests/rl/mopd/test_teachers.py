"""Each prompt has one teacher; what it says comes back to the rows it belongs to."""

import math

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.minivid.dataset import make_videos
from minikeye.minivid.lessons import Lesson, Size, question_prompts
from minikeye.rl.learn import with_visual_tokens
from minikeye.rl.mopd.support import distributions
from minikeye.rl.mopd.teachers import AllTeachers, Asked, Route, Teacher, Teachers
from minikeye.rl.rollout import answer_logits

CONFIG = KeyeConfig.nano()
WHEN, WHERE, SUM = Route("second", "video"), Route("grounding", "video"), Route("sum", "text")


def drawn(seed: int) -> KeyeVL:
    torch.manual_seed(seed)
    return KeyeVL(CONFIG).eval()


def video(model: KeyeVL, route: Route, frames: int, count: int = 2) -> Asked:
    size, videos = Size(frames, count, 28, 28), make_videos(3, range(count), frames, "train")
    prompts = question_prompts(videos, "N", size, CONFIG)
    mask = prompts["attention_mask"]
    del prompts["frames"]
    inputs = Lesson(prompts, videos, size).inputs(CONFIG, "cpu") | {"attention_mask": mask}
    return Asked(with_visual_tokens(model, inputs), route)


def text(count: int = 2, length: int = 6) -> Asked:
    ids = torch.randint(32, 127, (count, length), generator=torch.Generator().manual_seed(1))
    return Asked({"input_ids": ids, "positions": torch.arange(length).expand(3, count, -1).clone()}, SUM)


@pytest.fixture(scope="module")
def models() -> tuple[KeyeVL, KeyeVL, KeyeVL]:
    return drawn(0), drawn(1), drawn(2)


def answers(asked: list[Asked], length: int = 5) -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(9)
    out = [torch.randint(32, 127, (len(each), 3, length), generator=random) for each in asked]
    out[0][0, 0, 3:] = -1  # one that has ended
    return out


def test_to_the_right_teacher_and_back_in_order(models):
    student, one, two = models
    asked = [video(student, WHEN, 4), text(), video(student, WHERE, 5), text(3, 9)]
    said = answers(asked)
    teachers = Teachers({WHEN: Teacher("one", one), WHERE: Teacher("one", one), SUM: Teacher("two", two)})
    found = teachers.distributions(asked, said, 1.0, "dense")
    apart = []
    for each, ids in zip(asked, said, strict=True):
        with torch.no_grad():
            logits = answer_logits(teachers.of(each.route).model, each.prompts, ids)
        apart.append(distributions(logits))
    torch.testing.assert_close(found, torch.cat(apart), rtol=0, atol=2e-5)
    wrong = distributions(answer_logits(two, asked[0].prompts, said[0]).detach())
    assert float((found[:2] - wrong).abs().max()) > 0.1  # the other teacher would have said something else


def test_a_shared_model_is_read_once(models, monkeypatch):
    student, one, two = models
    from minikeye.rl.mopd import teachers as module

    passes = []
    plain = module.answer_logits
    monkeypatch.setattr(module, "answer_logits", lambda model, *a, **k: passes.append(model) or plain(model, *a, **k))
    asked = [video(student, WHEN, 4), text(), video(student, WHERE, 4)]
    routes = {WHEN: Teacher("one", one), WHERE: Teacher("one", one), SUM: Teacher("two", two)}
    Teachers(routes).distributions(asked, answers(asked), 1.0, "dense")
    assert passes == [one, two]


def test_unknown_routes_and_names_are_errors(models):
    _, one, two = models
    teachers = Teachers({WHEN: Teacher("one", one)})
    with pytest.raises(ValueError, match=r"one of second \(video\), got second \(image\): add its teacher"):
        teachers.of(Route("second", "image"))
    with pytest.raises(ValueError, match=r"got sum \(text\)"):
        teachers.distributions(asked := [text()], answers(asked), 1.0, "dense")
    with pytest.raises(ValueError, match="two for 'one'"):
        Teachers({WHEN: Teacher("one", one), SUM: Teacher("one", two)})
    with pytest.raises(ValueError, match="at least one route"):
        Teachers({})


def test_the_average_is_of_probabilities(models):
    _, one, two = models
    asked = [text()]
    said, routes = answers(asked), {WHEN: Teacher("one", one), SUM: Teacher("two", two), WHERE: Teacher("one", one)}
    found = AllTeachers(routes).distributions(asked, said, 1.0, "dense")
    each = [Teachers({SUM: Teacher("x", m)}).distributions(asked, said, 1.0, "dense").exp() for m in (one, two)]
    torch.testing.assert_close(found.exp(), (each[0] + each[1]) / 2, rtol=1e-4, atol=1e-6)
    assert math.isclose(float(found.exp().sum(-1).mean()), 1, abs_tol=1e-4)


def test_another_reading_is_refused(models):
    """A teacher whose server shifts the answer by a token, or drops a frame."""
    student, one, _ = models
    asked = [video(student, WHEN, 4)]
    shifted = Teacher("late", one, lambda prompts, ids: (prompts, ids.roll(1, dims=-1)))
    with pytest.raises(ValueError, match="student's answer for late"):
        Teachers({WHEN: shifted}).distributions(asked, answers(asked), 1.0, "dense")
    blind = Teacher("blind", one, lambda prompts, ids: (video(student, WHEN, 5).prompts, ids))
    with pytest.raises(ValueError, match="visual tokens for blind in prompt 0"):
        Teachers({WHEN: blind}).distributions(asked, answers(asked), 1.0, "dense")


def test_two_readers_of_one_model_are_both_asked(models):
    student, one, _ = models
    asked, calls = [video(student, WHEN, 4), text()], []

    def reading(name):
        return lambda prompts, ids: calls.append(name) or (prompts, ids)

    routes = {WHEN: Teacher("a", one, reading("a")), SUM: Teacher("b", one, reading("b"))}
    Teachers(routes).distributions(asked, answers(asked), 1.0, "dense")
    assert calls == ["a", "b"]
    AllTeachers(routes).distributions(asked, answers(asked), 1.0, "dense")
    assert calls == ["a", "b", "a", "b"]
