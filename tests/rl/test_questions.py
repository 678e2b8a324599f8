"""Courses of videos: what a policy is asked and taught is what `minivid` says; rewards and scores by hand."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.minivid.dataset import make_videos
from minikeye.minivid.labels import annotated
from minikeye.minivid.lessons import Lesson, Size, needles, question_prompts
from minikeye.minivid.scene import PLAIN, Difficulty
from minikeye.minivid.tasks import Event, grounding, needle, order, parse_interval
from minikeye.rl.questions import (
    Answered,
    Course,
    ask,
    evidence_reward,
    interval_reward,
    lessons_from,
    prompts_from,
    prompts_of,
    second_reward,
    shuffled,
    solution,
    word_reward,
)
from minikeye.scores import temporal_iou
from minikeye.training.loop import LoopConfig
from minikeye.training.stage import DENSE, teach

CONFIG = KeyeConfig.nano()
ALONE = Difficulty(alone=True)
CIRCLE = Event("thing", "red circle", 4, 10, 4.0, 10.0)


@pytest.fixture(scope="module")
def model() -> KeyeVL:
    torch.manual_seed(0)
    return KeyeVL(CONFIG).eval()


def test_questions_are_those_of_the_annotator():
    """Videos of their number, split and seed, and the labels that belong to them; an examination is truly annotated."""
    course = Course("G", 8, span=2, seed=3)
    videos, problems = course.questions(5, 4)
    plain = make_videos(3, range(5, 9), 8, "train", difficulty=ALONE)
    assert videos.events == plain.events and problems == annotated(plain, "G", 3, 2, 0)
    test, asked = course.examination().questions(5, 4)
    unseen = make_videos(3, range(5, 9), 8, "test", difficulty=ALONE)
    assert test.events == unseen.events != plain.events
    assert asked == [grounding(events[1]) for events in unseen.events]
    assert problems != [grounding(events[1]) for events in plain.events]


def test_prompts_equal_a_plain_lesson(model):
    """Visual tokens in the place of pixels change no logit of the answer's first token."""
    course = Course("P", 5, side=28, span=1, spot=1)
    prompts, problems = prompts_from(model, course, 3, first=6)(2)
    videos, same = course.questions(12, 3)
    assert problems == same and "patches" not in prompts
    size = Size(5, 3, 28, 28)
    tokens = question_prompts(videos, problems, size, CONFIG)
    del tokens["frames"]
    assert torch.equal(prompts["input_ids"], tokens["input_ids"])
    assert torch.equal(prompts["attention_mask"], tokens["attention_mask"])
    with torch.no_grad():
        plain = model(Lesson(tokens, videos, size).inputs(CONFIG, "cpu"), attention="dense").logits[:, -1]
        ours = model(prompts, attention="dense").logits[:, -1]
    assert torch.allclose(plain, ours, atol=1e-5)


def test_lessons_teach_the_annotators_words(model):
    """Step n has the videos that the same batch of prompts has, ends after `steps`, and starts where it is told."""
    course = Course("N", 5, side=28, spot=1)
    lessons = list(lessons_from(model, course, 2, steps=4, first=10)(1))
    assert len(lessons) == 3
    for n, lesson in enumerate(lessons, start=1):
        videos, problems = course.questions(10 + 2 * n, 2)
        assert lesson.videos.events == videos.events
        expected = question_prompts(videos, problems, Size(5, 2, 28, 28), CONFIG, answered=True)
        assert all(torch.equal(lesson.tokens[name], expected[name]) for name in expected)
        assert prompts_from(model, course, 2, first=10)(n)[1] == problems


def test_a_plain_course_is_taught_as_ever(model):
    """One lesson of true labels about plain videos is a needle lesson of `minivid`, number for number."""
    course = Course("N", 5, side=28, seed=7, difficulty=PLAIN)
    [lesson] = lessons_from(model, course, 3, steps=1, first=4)(0)
    ours, expected = lesson.inputs(CONFIG, "cpu"), needles(CONFIG, 7, 4, 3, 5, "train")
    assert ours.keys() == expected.keys() and all(torch.equal(ours[name], expected[name]) for name in ours)


@pytest.mark.parametrize(("task", "frames", "side"), [("N", 8, 28), ("G", 32, 56), ("P", 32, 56)])
def test_lessons_on_a_gpu_are_of_one_length(task: str, frames: int, side: int):
    """The longest question with its answer fits into the length that a GPU's graphs are captured for."""
    course = Course(task, frames, side=side, span=3, spot=1)
    videos, problems = course.questions(0, 40)
    size = course.size(40)
    own = question_prompts(videos, problems, size, CONFIG, answered=True)
    wide = question_prompts(videos, problems, size, CONFIG, answered=True, length=size.tokens(CONFIG))
    assert wide["input_ids"].shape[1] == size.tokens(CONFIG) > own["input_ids"].shape[1]
    assert torch.equal(wide["attention_mask"].sum(1), own["attention_mask"].sum(1))


def test_shuffled_moves_frames_and_nothing_else(model):
    """Frames stay whole, in their video, under the same timestamps; most videos get another order."""
    course = Course("G", 6)
    prompts = prompts_of(model, course, *course.questions(0, 5))
    before = prompts["visual"].clone()
    moved = shuffled(prompts, 6, seed=1)
    assert torch.equal(prompts["visual"], before)  # the prompts that were given stay
    assert all(torch.equal(moved[name], prompts[name]) for name in prompts if name != "visual")
    orders = []
    for old, new in zip(before.view(5, 6, -1), moved["visual"].view(5, 6, -1), strict=True):
        orders.append([next(n for n in range(6) if torch.equal(old[n], frame)) for frame in new])
    assert all(sorted(order) == list(range(6)) for order in orders)
    assert len({tuple(order) for order in orders}) > 3
    assert torch.equal(shuffled(prompts, 6, seed=1)["visual"], moved["visual"])
    assert not torch.equal(shuffled(prompts, 6, seed=2)["visual"], moved["visual"])


@pytest.mark.parametrize(
    ("said", "reward"),
    [
        ("[[4.0, 10.0]]", 1.0),
        ("[[7.0, 13.0]]", 3 / 9),
        ("[[0.0, 20.0]]", 6 / 20),
        ("[[10.0, 12.0]]", 0.0),
        ("[[10.0, 4.0]]", 0.0),  # backwards
        ("from 4 to 10", 0.0),
        ("", 0.0),
    ],
)
def test_reward_of_an_interval(said, reward):
    assert interval_reward(said, grounding(CIRCLE)) == pytest.approx(reward)


def test_rewards_of_order():
    """Card at 7.0 s, circle from 4.0 to 10.0 s: word and evidence right, one of them, neither, and unreadable."""
    problem = order(Event("card", "3", 7, 8, 7.0, 8.0), CIRCLE)
    expected = {  # answer: word, evidence, second, interval
        "[[4.0, 10.0]] 7.0 during": (1, 1, 1, 1),
        "[[4.0, 10.0]] 7.5 during": (1, 1, 1, 1),
        "[[4.0, 10.0]] 7.6 during": (1, 0, 0, 1),  # more than half a second off
        "[[7.0, 10.0]] 7.0 during": (1, 1, 1, 0.5),  # half of it: just
        "[[7.1, 10.0]] 7.0 during": (1, 0, 1, 2.9 / 6),
        "[[4.0, 10.0]] 7.0 before": (0, 0, 1, 1),
        "[[10.0, 4.0]] 7.0 during": (0, 0, 1, 0),
        "during": (0, 0, 0, 0),
    }
    for said, (word, evidence, second, interval) in expected.items():
        rewards = (word_reward, evidence_reward, second_reward, interval_reward)
        assert [r(said, problem) for r in rewards] == pytest.approx([word, evidence, second, interval]), said
    assert solution("during") is None and solution("[[10.0, 4.0]] 7.0 during") is None


def test_reward_of_a_second():
    problem = needle(Event("card", "3", 7, 8, 7.0, 8.0))
    assert [second_reward(said, problem) for said in ("9 at 7.5 s", "3 at 7.6 s", "at 7.0 s")] == [1.0, 0.0, 0.0]


def test_best_constant_and_scores_by_hand():
    """Four things in the second quarter of ten seconds and one that fills them: the quarter earns .25 there."""
    truths = [(2.5, 5.0)] * 4 + [(0.0, 10.0)]
    problems = [grounding(replace(CIRCLE, start=a, end=b)) for a, b in truths]
    answered = Answered(problems, ["[[2.5, 5.0]]", "[[2.5, 7.5]]", "[[5.0, 7.5]]", "", "[[0.0, 5.0]]"], [10.0] * 5)
    assert answered.constant() == pytest.approx((4 * 1 + 0.25) / 5)
    assert answered.scores() == {"tiou": pytest.approx([1, 0.5, 0, 0, 0.5]), "exact": [1, 0, 0, 0, 0]}


def test_wrong_evidence_counts_right_words_only():
    problem = order(Event("card", "3", 7, 8, 7.0, 8.0), CIRCLE)
    said = ["[[4.0, 10.0]] 7.0 during", "[[0.0, 1.0]] 7.0 during", "[[0.0, 1.0]] 7.0 after", "during"]
    assert Answered([problem] * 4, said, [12.0] * 4).wrong_evidence() == [False, True]


def test_ask_says_what_the_model_says(model):
    """Greedy answers to true test questions, the same in batches of any size; shuffled prompts are other prompts."""
    course = Course("G", 5, side=28, span=3)
    answered = ask(model, course, 5, rows=2)
    videos, problems = course.examination().questions(0, 5)
    assert answered.problems == problems and answered.durations == videos.seconds[:, -1].tolist()
    assert ask(model, course, 5, rows=5).answers == answered.answers and len(answered.answers) == 5
    assert not model.training


def test_ask_reads_what_was_taught():
    """A model that is taught one label by heart says it, until the frames are another video's."""
    torch.manual_seed(0)
    pupil, course = KeyeVL(CONFIG), Course("G", 4, side=28)
    videos, problems = course.examination().questions(0, 1)

    def lessons(step: int):
        for _ in range(step, 40):
            size = course.size(1)
            yield Lesson(question_prompts(videos, problems, size, CONFIG, answered=True), videos, size)

    teach(pupil, DENSE, LoopConfig(40, 5e-3, warmup=4, log_every=40), lessons, None)
    answered = ask(pupil, course, 3)
    assert answered.answers[0] == problems[0].answer and answered.scores()["exact"][0] == 1.0
    truths = [parse_interval(problem.answer) for problem in answered.problems]
    said = [parse_interval(answer) for answer in answered.answers]
    by_hand = [temporal_iou(one, other) for one, other in zip(said, truths, strict=True)]
    assert answered.scores()["tiou"] == pytest.approx(by_hand)


def test_labels_of_a_course_are_off_as_told():
    """Span 1 of 8 frames: ends of things far from the first and last frame take three places, and no fourth."""
    course, off = Course("G", 8, span=1, seed=1), Counter()
    videos, problems = course.questions(0, 200)
    for events, seconds, problem in zip(videos.events, videos.seconds.tolist(), problems, strict=True):
        [(start, _)] = parse_interval(problem.answer)
        off[seconds.index(start) - events[1].first] += 1
    assert set(off) == {-1, 0, 1} and min(off.values()) > 30
