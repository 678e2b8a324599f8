"""Domains: what is asked equals what `minivid` says, true answers earn 1, and every modality can be rolled out."""

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.keye import KeyeVL
from minikeye.minivid.drawing.things import KINDS
from minikeye.minivid.scene import frame_labels
from minikeye.rl.learn import RolloutConfig, roll_out
from minikeye.rl.mopd.domains import DOMAINS, EXPERTS, PROBES, DomainCourse
from minikeye.rl.questions import Course, ask, lessons_from, prompts_from
from minikeye.rl.rollout import answer_logprobs

CONFIG = KeyeConfig.nano()
ALL = list(DOMAINS.values())


@pytest.fixture(scope="module")
def model() -> KeyeVL:
    torch.manual_seed(0)
    return KeyeVL(CONFIG).eval()


def test_the_table():
    assert len(EXPERTS) >= 6 and set(PROBES) == {"presence", "words"}
    assert {DOMAINS[name].modality for name in EXPERTS} == {"video", "image", "text"}
    assert all(name == domain.name for name, domain in DOMAINS.items())


@pytest.mark.parametrize(("name", "task"), [("grounding", "G"), ("order", "P")])
@pytest.mark.parametrize("careless", [False, True])
def test_a_domain_of_times_is_the_course_there_was(model, name, task, careless):
    """Prompts, labels and lessons number for number."""
    own = DOMAINS[name]
    old = Course(task, 8, span=own.span * careless, spot=own.spot * careless, seed=3)
    new = DomainCourse(DOMAINS[name], 3, careless)
    (a, known), (b, same) = prompts_from(model, old, 2, 5)(1), prompts_from(model, new, 2, 5)(1)
    assert known == same and a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
    for one, two in zip(lessons_from(model, old, 2, 2)(0), lessons_from(model, new, 2, 2)(0), strict=True):
        one, two = one.inputs(CONFIG, "cpu"), two.inputs(CONFIG, "cpu")
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    assert old.examination().questions(0, 3)[1] == new.examination().questions(0, 3)[1]


@pytest.mark.parametrize("domain", ALL, ids=lambda domain: domain.name)
def test_true_answers_earn_all_and_fit(domain):
    tokenizer = load_tokenizer(CONFIG)
    for split in ("train", "test"):
        _, problems = DomainCourse(domain, 1, split=split).questions(0, 60)
        assert [domain.reward(problem.answer, problem) for problem in problems] == [1.0] * 60
        assert max(len(tokenizer.encode(p.answer)) for p in problems) + 1 <= domain.max_new_tokens


@pytest.mark.parametrize("domain", ALL, ids=lambda domain: domain.name)
def test_labels_are_careless_for_experts_alone(domain):
    course = DomainCourse(domain, 1)
    _, true = course.questions(0, 200)
    _, labels = DomainCourse(domain, 1, careless=True).questions(0, 200)
    assert [p.question for p in labels] == [p.question for p in true]
    share = sum(domain.reward(a.answer, b) for a, b in zip(labels, true, strict=True)) / 200
    assert 0.35 < share < 0.75 if domain.expert else share == 1.0
    assert course.examination().questions(0, 9)[1] == DomainCourse(domain, 1, True).examination().questions(0, 9)[1]


def test_an_image_shows_what_its_answer_names():
    videos, problems = DomainCourse(DOMAINS["naming"], 2).questions(4, 80)
    _, there = frame_labels(videos.spec)
    assert videos.spec.shape == (80, 1)
    for problem, kinds in zip(problems, there[:, 0].tolist(), strict=True):
        assert problem.answer == (" and ".join(k for k, seen in zip(KINDS, kinds, strict=True) if seen) or "nothing")
    assert 0 < sum(p.answer == "nothing" for p in problems) < 24


def test_words_tell_the_card():
    """The time behind which C stands is the answer."""
    _, problems = DomainCourse(DOMAINS["words"], 2).questions(0, 30)
    for problem in problems:
        [frame] = [part for part in problem.question.split("<|frame|>")[1:] if "C" in part]
        assert f"{frame.partition('C')[0]} s" == problem.answer


@pytest.mark.parametrize("domain", ALL, ids=lambda domain: domain.name)
def test_every_modality_is_rolled_out_and_read_alike(model, domain):
    """What the sampler says of its draws the learner says too, to rounding; text has no visual tokens."""
    course = DomainCourse(domain)
    config = RolloutConfig(group=3, minibatches=1, max_new_tokens=5)
    groups = roll_out(model, prompts_from(model, course, 4), 0, domain.reward, config)
    visual = groups.prompts.get("visual")
    assert (visual is None) if domain.modality == "text" else len(visual) == 4 * 4 * domain.frames
    with torch.no_grad():
        again = answer_logprobs(model, groups.prompts, groups.answers.ids)
    assert (again - groups.answers.logprobs).abs().max() < 1e-4


def test_an_examination_of_every_modality(model):
    for domain in ALL:
        said = ask(model, DomainCourse(domain), 3)
        assert len(said.answers) == len(said.durations) == 3
        assert (min(said.durations) > 0) == (domain.modality == "video")
