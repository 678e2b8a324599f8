"""What is asked about a video is answered as its labels say, and asking changes nothing in it."""

from collections import Counter
from dataclasses import fields, is_dataclass

import pytest
import torch

from minikeye.minivid.dataset import MiniVideos, make_videos
from minikeye.minivid.drawing.things import KINDS
from minikeye.minivid.draws import Draws
from minikeye.minivid.scene import Difficulty, draw_videos, frame_labels
from minikeye.minivid.tasks import (
    NEEDLE_QUESTION,
    Event,
    Problem,
    grounding,
    naming,
    needle,
    order,
    parse_order,
    presence,
    score,
)

PLAIN, HARD_CROWD = Difficulty(), Difficulty(crowd=True, hard=True, second_card=0.5)
KINDS_OF_VIDEO = (PLAIN, Difficulty(crowd=True), HARD_CROWD)


def said(names: set[str]) -> str:
    """What is there, in words."""
    return " and ".join(name for name in KINDS if name in names) or "nothing"


def things_of(videos: MiniVideos) -> list[list[Event]]:
    return [[event for event in events if event.kind == "thing"] for events in videos.events]


def labels(videos: MiniVideos) -> list[list[set[str]]]:
    """Names of what is in each frame, by the labels of the frames, which tests compare with the pixels."""
    return [
        [{name for name, there in zip(KINDS, frame, strict=True) if there} for frame in of_video]
        for of_video in frame_labels(videos.spec)[1].tolist()
    ]


def of_task(problems: tuple[Problem, ...], task: str) -> list[Problem]:
    return [problem for problem in problems if problem.task == task]


# --- each question by itself ---


@pytest.mark.parametrize("difficulty", KINDS_OF_VIDEO)
def test_every_frame_is_named_as_it_is_labelled(difficulty: Difficulty) -> None:
    """All frames, all things of them: D in the order of KINDS, whatever order they came in; Y for each."""
    videos = make_videos(0, range(25), 8, difficulty=difficulty)
    for things, named, times in zip(things_of(videos), labels(videos), videos.seconds.tolist(), strict=True):
        in_order = sorted(things, key=lambda thing: KINDS.index(thing.name))
        for frame, names in enumerate(named):
            problem = naming(in_order, frame, times[frame])
            assert problem[:3] == ("D", f"What is visible at {times[frame]:.1f} s?", said(names))
            assert problem.solution == f"Frame {frame} at {times[frame]:.1f} s: {said(names)}."
            for thing in things:
                problem = presence(thing, frame, times[frame])
                assert problem[:2] == ("Y", f"Is the {thing.name} visible at {times[frame]:.1f} s?")
                assert problem.answer == ("yes" if thing.name in names else "no")
                word = "" if thing.name in names else "not "
                assert problem.solution == f"The {thing.name} is {word}in frame {frame} at {times[frame]:.1f} s."


def test_questions_in_words() -> None:
    """A child could check these: the circle from 1.0 to 2.0 s, the square from 1.5 to 2.5 s."""
    circle, square = Event("thing", "red circle", 2, 4, 1.0, 2.0), Event("thing", "blue square", 3, 5, 1.5, 2.5)
    answers = [naming([circle, square], frame, frame / 2).answer for frame in range(6)]
    assert answers == ["nothing", "nothing", "red circle", "red circle and blue square", "blue square", "nothing"]
    assert [presence(circle, frame, frame / 2).answer for frame in range(6)] == ["no", "no", "yes", "yes", "no", "no"]
    assert presence(square, 4, 2.0).question == "Is the blue square visible at 2.0 s?"
    assert naming([circle, square], 3, 1.5).question == "What is visible at 1.5 s?"


@pytest.mark.parametrize(
    ("problem", "wrong"),
    [
        (naming([], 3, 1.5), ("", "Nothing", "nothing ", "red circle")),
        (naming([Event("thing", "red circle", 0, 9, 0.0, 4.5)], 3, 1.5), ("red circle.", "circle", "nothing")),
        (presence(Event("thing", "red circle", 0, 9, 0.0, 4.5), 3, 1.5), ("no", "Yes", "yes.", " yes", "")),
        (presence(Event("thing", "red circle", 0, 3, 0.0, 1.5), 3, 1.5), ("yes", "No", "not")),
    ],
)
def test_naming_and_presence_are_right_or_wrong(problem: Problem, wrong: tuple[str, ...]) -> None:
    """One part only: the very text or nothing."""
    assert score(problem, problem.answer) == {"exact": 1.0}
    assert all(score(problem, answer) == {"exact": 0.0} for answer in wrong)


def test_the_order_of_two_names_counts() -> None:
    events = [Event("thing", name, 0, 2, 0.0, 1.0) for name in ("red circle", "green square")]
    problem = naming(events, 1, 0.5)
    assert problem.answer == "red circle and green square"
    assert score(problem, "green square and red circle") == {"exact": 0.0}


# --- the questions of a video ---


@pytest.mark.parametrize("difficulty", KINDS_OF_VIDEO)
def test_which_questions_a_video_has(difficulty: Difficulty) -> None:
    """N about the first card, G about every thing in the order of events, D once, Y twice; all as the events say."""
    videos = make_videos(1, range(80), 8, difficulty=difficulty)
    for problems, events, things, named, times in zip(
        videos.problems, videos.events, things_of(videos), labels(videos), videos.seconds.tolist(), strict=True
    ):
        assert [problem.task for problem in problems] == ["N", *"G" * len(things), "D", "Y", "Y"]
        cards = [event for event in events if event.kind == "card"]
        assert events[0] == min(cards, key=lambda card: card.first)
        assert problems[0] == needle(events[0]) and problems[0].question == NEEDLE_QUESTION
        assert of_task(problems, "G") == [grounding(thing) for thing in things]
        frame_at = {f"{time:.1f}": frame for frame, time in enumerate(times)}
        for problem in problems[-3:]:
            frame = frame_at[problem.question.split(" visible at ")[1].removesuffix(" s?")]
            if problem.task == "D":
                assert problem.answer == said(named[frame])
            else:
                name = problem.question.split("Is the ")[1].split(" visible")[0]
                assert name in {thing.name for thing in things}
                assert problem.answer == ("yes" if name in named[frame] else "no")


@pytest.mark.parametrize("difficulty", [PLAIN, Difficulty(crowd=True)])
def test_how_often_what_is_the_answer(difficulty: Difficulty) -> None:
    """D: four of five about a frame that shows something, else any. Y: a "yes" and a "no", either of them first."""
    videos, n, frames = make_videos(2, range(600), 8, difficulty=difficulty), 600, 8
    something = sum(0.8 + 0.2 * sum(map(bool, named)) / frames for named in labels(videos)) / n
    named = sum(of_task(problems, "D")[0].answer != "nothing" for problems in videos.problems) / n
    pairs = [(problems[-2].answer, problems[-1].answer) for problems in videos.problems]
    assert abs(named - something) < 4 * (something * (1 - something) / n) ** 0.5
    assert set(pairs) == {("yes", "no"), ("no", "yes")} and abs(pairs.count(("yes", "no")) / n - 0.5) < 4 * 0.5 / n**0.5
    assert 0.85 < something < 0.99


def test_every_frame_and_thing_is_asked_about() -> None:
    """D and Y at all times of 8 frames, from a thing's first frame to its last, about any thing of a crowd."""
    videos = make_videos(3, range(400), 8, dt=0.5, difficulty=Difficulty(crowd=True))
    times, places, numbers = Counter(), Counter(), Counter()
    for problems, things in zip(videos.problems, things_of(videos), strict=True):
        for problem in problems[-3:]:
            times[problem.task, problem.question.split(" visible at ")[1]] += 1
        by_name = {f"Is the {thing.name} visible": n for n, thing in enumerate(things)}
        question, time = next(p for p in problems[-2:] if p.answer == "yes").question.split(" at ")
        thing = things[by_name[question]]
        numbers[by_name[question]] += 1
        if thing.stop - thing.first == 3:
            places[round(float(time.removesuffix(" s?")) / 0.5) - thing.first] += 1
    asked = {f"{frame / 2:.1f} s?" for frame in range(8)}
    assert set(times) == {(task, time) for task in "DY" for time in asked}
    assert set(numbers) == set(range(6)) and numbers[0] > numbers[5]
    assert set(places) == {0, 1, 2} and min(places.values()) > 0.15 * sum(places.values())


# --- asking changes nothing ---


def same(a: object, b: object) -> bool:
    """Equal specs, tensor by tensor."""
    if torch.is_tensor(a):
        return torch.equal(a, b)
    if is_dataclass(a):
        return all(same(getattr(a, field.name), getattr(b, field.name)) for field in fields(a))
    if isinstance(a, tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("difficulty", KINDS_OF_VIDEO)
def test_questions_take_none_of_the_numbers_of_the_video(difficulty: Difficulty) -> None:
    """What is to be seen is made of the sample's own numbers, the first of which is the step between frames."""
    draws = Draws.of_samples(5, "train", range(6))
    draws.uniform(0, 1, 1)
    assert same(draw_videos(draws, 9, "train", difficulty), make_videos(5, range(6), 9, difficulty=difficulty).spec)


def test_questions_belong_to_seed_split_and_video(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generators of their own: no two alike, none that a video is drawn from."""
    seen, of_samples = [], Draws.of_samples.__func__

    def recorded(cls, seed, split, indices):
        seen.append((seed, split, tuple(indices)))
        return of_samples(cls, seed, split, indices)

    monkeypatch.setattr(Draws, "of_samples", classmethod(recorded))
    for seed in (0, 1):
        for split in ("train", "test"):
            make_videos(seed, [3], 8, split)
    assert len(seen) == len(set(seen)) == 8
    rows = {tuple(Draws.of_samples(*name).uniform(0, 1, 8)[0].tolist()) for name in set(seen)}
    assert len(rows) == 8


def test_a_question_is_the_same_in_any_batch() -> None:
    for difficulty in KINDS_OF_VIDEO:
        batch = make_videos(3, range(10, 20), 9, "test", difficulty=difficulty)
        assert batch.problems[7] == make_videos(3, [17], 9, "test", difficulty=difficulty).problems[0]


# --- order with evidence (P) ---


def test_order_agrees_with_the_frames() -> None:
    """Before the thing's first frame, in one of its frames, or after its last; the evidence is the events' own."""
    words = Counter()
    for card, *things in make_videos(21, range(60), 12).events:
        for thing in things:
            problem = order(card, thing)
            shown = range(thing.first, thing.stop)
            expected = "during" if card.first in shown else "before" if card.first < min(shown) else "after"
            said = parse_order(problem.answer)
            assert said == ([(thing.start, thing.end)], card.start, expected) and thing.name in problem.question
            assert score(problem, problem.answer) == {"word": 1, "tiou": 1, "second": 1, "exact": 1}
            words[expected] += 1
    assert min(words.values()) > 10 and len(words) == 3


@pytest.mark.parametrize(
    ("answer", "word", "tiou", "second"),
    [
        ("[[3.0, 9.0]] 7.5 after", 0, 1, 1),
        ("[[3.0, 6.0]] 8.0 during", 1, 0.5, 1),
        ("[[6.0, 9.0]] 8.1 during", 1, 0.5, 0),
        ("[[9.0, 3.0]] 7.5 during", 1, 0, 1),
        ("[[3.0, 9.0]] 7.5 between", 0, 0, 0),
        ("during", 0, 0, 0),
        ("[[3.0, 9.0]] during", 0, 0, 0),
        ("[[3.0, 9.0]] 7.5 during the", 0, 0, 0),
    ],
)
def test_order_scores(answer: str, word: float, tiou: float, second: float) -> None:
    card = Event("card", "3", 15, 16, 7.5, 8.0)
    problem = order(card, Event("thing", "red circle", 6, 18, 3.0, 9.0))
    assert problem.answer == "[[3.0, 9.0]] 7.5 during"
    assert score(problem, answer) == {"word": word, "tiou": tiou, "second": second, "exact": 0}
