"""Which question a video is asked: one the video can answer, the same in any batch, with nothing else changed."""

from collections import Counter

import pytest

from minikeye.config import KeyeConfig
from minikeye.minivid.controls import without_card
from minikeye.minivid.dataset import make_videos
from minikeye.minivid.drawing.things import COLOURS, SHAPES
from minikeye.minivid.labels import noted
from minikeye.minivid.lessons import Size, question_prompts
from minikeye.minivid.questions.asking import TASKS, groups_of, problems_of, solved
from minikeye.minivid.questions.captions import caption
from minikeye.minivid.questions.choices import comings, options_of, ordering
from minikeye.minivid.questions.counting import counting
from minikeye.minivid.questions.referring import referring
from minikeye.minivid.questions.scoring import value
from minikeye.minivid.scene import Difficulty, frame_labels, render
from minikeye.minivid.tasks import named, naming, presence, things_of

PLAIN, ALONE = Difficulty(), Difficulty(alone=True)
CROWD = Difficulty(crowd=True)
HARD_CROWD = Difficulty(crowd=True, hard=True, second_card=0.5)
KINDS_OF_VIDEO = (PLAIN, ALONE, CROWD, HARD_CROWD)


@pytest.mark.parametrize("difficulty", KINDS_OF_VIDEO)
@pytest.mark.parametrize("frames", [4, 16, 64])
def test_every_video_can_be_asked(difficulty: Difficulty, frames: int) -> None:
    """Short and long, plain and hard: a problem each, and its own answer is worth 1."""
    videos = make_videos(0, range(60), frames, difficulty=difficulty)
    for task in TASKS:
        problems = problems_of(videos, task, 0)
        assert len(problems) == 60 and {problem.task for problem in problems} == {task}
        assert all(value(problem, problem.answer) == 1 for problem in problems)
    for group in groups_of(videos, 0):
        assert all(value(problem, problem.answer) == 1 for problem in group)


@pytest.mark.parametrize("difficulty", KINDS_OF_VIDEO)
def test_what_is_asked_is_a_question_about_the_events(difficulty: Difficulty) -> None:
    """Each drawn problem is among all that its task could ask about these very events."""
    videos = make_videos(1, range(50), 16, "test", difficulty=difficulty)
    of_task = {task: solved(videos, task, 3) for task in TASKS}
    for n, events in enumerate(videos.events):
        things = things_of(events)
        assert of_task["C"][n] in [counting(things, wanted) for wanted in ("thing", *COLOURS, *SHAPES)]
        options = options_of(of_task["O"][n].problem)
        assert of_task["O"][n] in [ordering(events, options, word) for word in ("first", "last")]
        assert of_task["S"][n] == caption(events)
        assert of_task["R"][n] in [asked for form in referring(events).values() for asked in form]


def test_groups_are_about_one_thing_and_one_frame() -> None:
    videos = make_videos(2, range(200), 16, difficulty=CROWD)
    yes, places = 0, Counter()
    for events, clock, group in zip(videos.events, videos.seconds.tolist(), groups_of(videos, 0), strict=True):
        [thing] = [thing for thing in things_of(events) if f" {thing.name} come?" in group.come.question]
        assert group.come.answer == f"{thing.start:.1f} s" and group.gone.answer == f"{thing.end:.1f} s"
        frame = next(n for n, at in enumerate(clock) if f" at {at:.1f} s?" in group.there.question)
        assert group.there == presence(thing, frame, clock[frame])
        assert group.names == naming(named(things_of(events)), frame, clock[frame])
        yes += group.there.answer == "yes"
        places[things_of(events).index(thing)] += 1
    assert abs(yes / 200 - 0.5) < 4 * 0.5 / 200**0.5 and len(places) == 6


def test_how_often_what_is_asked() -> None:
    """C: half of all things; O: each letter and word as often; R: each form."""
    videos = make_videos(3, range(800), 16, difficulty=CROWD)
    counts = Counter(problem.question for problem in problems_of(videos, "C", 0))
    assert abs(counts["How many things are visible in the video?"] / 800 - 0.5) < 4 * 0.5 / 800**0.5
    assert len(counts) == 8 and min(counts.values()) > 20
    asked = problems_of(videos, "O", 0)
    letters, words = Counter(p.answer for p in asked), Counter("first" in p.question for p in asked)
    assert set(letters) == set("ABC") and max(abs(n / 800 - 1 / 3) for n in letters.values()) < 4 * (2 / 9 / 800) ** 0.5
    assert abs(words[True] / 800 - 0.5) < 4 * 0.5 / 800**0.5
    forms = ("visible when", "next after", "last before", "there when")
    asked = [problem.question for problem in problems_of(videos, "R", 0)]
    assert all(sum(form in question for question in asked) > 70 for form in forms)


def test_options_come_at_different_times_or_not_at_all() -> None:
    videos = make_videos(4, range(300), 8, difficulty=PLAIN)
    absent = 0
    for events, problem in zip(videos.events, problems_of(videos, "O", 0), strict=True):
        coming, options = comings(events), options_of(problem)
        came = [coming[name].first for name in options if name in coming]
        assert len(options) == 3 and len(set(came)) == len(came) >= 1
        assert len(came) == min(3, len({event.first for event in coming.values()}))  # as many as the video allows
        absent += 3 - len(came)
    assert absent > 50


def test_letters_agree_with_the_frames() -> None:
    """A child's loop: go through the frames until one of the options is seen; backwards for the last to come."""
    videos = make_videos(5, range(100), 12, difficulty=CROWD)
    digits, kinds = frame_labels(videos.spec)
    names = [f"{colour} {shape}" for shape in SHAPES for colour in COLOURS]
    for video, problem in enumerate(problems_of(videos, "O", 1)):
        came = []
        for frame in range(12):
            there = [name for name, shown in zip(names, kinds[video, frame].tolist(), strict=True) if shown]
            there += ["card"] * int(digits[video, frame] < 10)
            came += [name for name in there if name in options_of(problem) and name not in came]
        right = came[0] if "first" in problem.question else came[-1]
        assert options_of(problem)["ABC".index(problem.answer)] == right


# --- the same for the same video ---


@pytest.mark.parametrize("difficulty", [PLAIN, HARD_CROWD])
def test_a_question_is_the_same_in_any_batch(difficulty: Difficulty) -> None:
    batch, alone = (make_videos(3, numbers, 9, "test", difficulty=difficulty) for numbers in (range(10, 20), [17]))
    for task in TASKS:
        assert solved(batch, task, 0)[7] == solved(alone, task, 0)[0]
    assert groups_of(batch, 0)[7] == groups_of(alone, 0)[0]


def test_another_seed_asks_another_question() -> None:
    videos = make_videos(3, range(30), 16, difficulty=CROWD)
    for task in ("C", "O", "R"):
        assert problems_of(videos, task, 0) == problems_of(videos, task, 0) != problems_of(videos, task, 1)
    assert groups_of(videos, 0) != groups_of(videos, 1)


def test_asking_changes_no_video() -> None:
    """Nor the questions that it brings: compared with the same video, never asked."""
    asked, untouched = (make_videos(6, range(4), 8, difficulty=HARD_CROWD) for _ in range(2))
    for task in TASKS:
        problems_of(asked, task, 0)
    groups_of(asked, 0)
    assert asked.problems == untouched.problems and asked.events == untouched.events
    assert (render(asked.spec, 28, 28) == render(untouched.spec, 28, 28)).all()


def test_problems_become_prompts() -> None:
    videos = make_videos(6, range(3), 4)
    for task in TASKS:
        prompts = question_prompts(videos, problems_of(videos, task, 0), Size(4, 3, 28, 28), KeyeConfig.nano(), True)
        assert prompts["answer"].any(1).all()


# --- noted times, and what is refused ---


def test_true_times_change_nothing() -> None:
    videos = make_videos(7, range(30), 16, difficulty=CROWD)
    for task in TASKS:
        assert solved(videos, task, 0, noted(videos, 0, 0, 0)) == solved(videos, task, 0)
    assert groups_of(videos, 0, noted(videos, 0, 0, 0)) == groups_of(videos, 0)


def test_noted_times_change_times_alone() -> None:
    """The question stays, and with it what is meant; counts and letters stay; intervals and seconds move."""
    videos = make_videos(8, range(120), 16, difficulty=CROWD)
    told = noted(videos, 0)
    for task in TASKS:
        true, off = problems_of(videos, task, 0), problems_of(videos, task, 0, told)
        assert [problem.question for problem in true] == [problem.question for problem in off]
        moved = sum(a.answer != b.answer for a, b in zip(true, off, strict=True))
        assert moved == 0 if task in "CO" else moved > 60
    for true, off in zip(groups_of(videos, 0), groups_of(videos, 0, told), strict=True):
        assert true[2:] == off[2:] and true.come.question == off.come.question
    assert sum(a.come != b.come for a, b in zip(groups_of(videos, 0), groups_of(videos, 0, told), strict=True)) > 60


@pytest.mark.parametrize("task", ["N", "V", "c", ""])
def test_other_tasks_are_refused(task: str) -> None:
    with pytest.raises(ValueError, match=f"expected task C, O, S, R, got {task!r}"):
        problems_of(make_videos(0, range(2), 4), task, 0)


def test_times_of_other_videos_are_refused() -> None:
    videos = make_videos(0, range(3), 8)
    for told in (noted(videos, 0)[:2], [events[:1] for events in videos.events]):
        with pytest.raises(ValueError, match="expected noted times of every event of 3 videos"):
            problems_of(videos, "S", 0, told)


def test_without_a_card_and_a_second_thing_nothing_can_be_referred_to() -> None:
    videos = without_card(make_videos(0, range(3), 8, difficulty=ALONE))
    with pytest.raises(ValueError, match="expected videos with a card or with two things"):
        problems_of(videos, "R", 0)
    assert all("card" not in problem.answer for problem in problems_of(videos, "S", 0))
    assert all("A" <= problem.answer <= "C" for problem in problems_of(videos, "O", 0))
