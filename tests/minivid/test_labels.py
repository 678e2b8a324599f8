"""Careless labels: off by as many frames as allowed, evenly, inside the video, the same for the same video."""

from collections import Counter

import pytest

from minikeye.config import KeyeConfig
from minikeye.minivid.dataset import make_videos
from minikeye.minivid.labels import annotated, noted
from minikeye.minivid.lessons import Size, question_prompts
from minikeye.minivid.questions.asking import problems_of
from minikeye.minivid.questions.captions import caption
from minikeye.minivid.questions.captions import score as score_caption
from minikeye.minivid.scene import Difficulty
from minikeye.minivid.tasks import grounding, needle, order, parse_interval, parse_order, score

ALONE = Difficulty(alone=True)


def test_careful_labels_are_the_true_ones() -> None:
    videos = make_videos(1, range(30), 9, difficulty=ALONE)
    for task, true in (("N", lambda e: needle(e[0])), ("G", lambda e: grounding(e[1])), ("P", lambda e: order(*e[:2]))):
        assert annotated(videos, task, 0, 0, 0) == [true(events) for events in videos.events]


def test_ends_are_off_by_up_to_the_span_evenly() -> None:
    """Of things far from the first and last frame both ends take each of the seven places equally often."""
    videos = make_videos(2, range(1500), 32, dt=1.0, difficulty=ALONE)
    starts, ends, n = Counter(), Counter(), 0
    for events, problem in zip(videos.events, annotated(videos, "G", 0), strict=True):
        ((start, end),) = parse_interval(problem.answer)
        thing = events[1]
        assert abs(start - thing.start) <= 3 and abs(end - thing.end) <= 3 and 0 <= start < end <= 32
        if thing.first >= 3 and thing.stop <= 29 and thing.stop - thing.first > 6:
            starts[start - thing.start] += 1
            ends[end - thing.end] += 1
            n += 1
    for counts in (starts, ends):
        assert set(counts) == set(range(-3, 4))
        assert max(abs(count / n - 1 / 7) for count in counts.values()) < 4 * (6 / 49 / n) ** 0.5


def test_the_word_of_an_order_is_right_whatever_its_evidence() -> None:
    videos = make_videos(3, range(300), 16, difficulty=ALONE)
    wrong = Counter()
    for events, problem in zip(videos.events, annotated(videos, "P", 0), strict=True):
        parts = score(order(*events[:2]), problem.answer)
        assert parts["word"] == 1.0 and parse_order(problem.answer).interval
        wrong["span"] += parts["tiou"] < 0.5
        wrong["second"] += parse_order(problem.answer).second != events[0].start
    assert 0.1 < wrong["span"] / 300 < 0.5 and 0.5 < wrong["second"] / 300 < 0.8  # a place of three is the right one


def test_captions_and_referred_things_are_off_too() -> None:
    """Names stay, times move by at most the frames allowed; the first two events are off as in the other tasks."""
    videos = make_videos(3, range(100), 16, dt=1.0, difficulty=Difficulty(crowd=True, second_card=0.5))
    told, moves = noted(videos, 0), Counter()
    for events, problem, seen, needles in zip(
        videos.events, annotated(videos, "S", 0), told, annotated(videos, "N", 0), strict=True
    ):
        assert problem == caption(seen).problem and needles == needle(seen[0])
        assert score_caption(caption(events).problem, problem.answer)["names"] == 1
        for true, off in zip(events, seen, strict=True):
            assert (true.kind, true.name) == (off.kind, off.name)
            most = 1 if true.kind == "card" else 3
            assert abs(true.first - off.first) <= most and 0 <= off.start < off.end <= 16
            moves[true.kind, off.first - true.first] += 1
    assert {move for kind, move in moves if kind == "card"} == {-1, 0, 1}
    assert {move for kind, move in moves if kind == "thing"} == set(range(-3, 4))
    assert annotated(videos, "R", 0, asked=5) == problems_of(videos, "R", 5, told)
    assert annotated(videos, "R", 0, 0, 0) == problems_of(videos, "R", 0) != annotated(videos, "R", 0)


def test_a_video_keeps_its_label_and_another_annotator_gives_another() -> None:
    videos, alone = (make_videos(4, numbers, 16, difficulty=ALONE) for numbers in (range(10), [3]))
    first = annotated(videos, "G", 0)
    assert annotated(alone, "G", 0) == first[3:4] and annotated(videos, "G", 1) != first


def test_a_thing_alone_is_the_first_of_the_plain_video() -> None:
    """Its pixels and question too: only the second thing is left out."""
    plain, alone = (make_videos(5, range(20), 9, difficulty=d) for d in (Difficulty(), ALONE))
    assert [len(events) for events in alone.events] == [2] * 20
    assert [events[:2] for events in plain.events] == [events for events in alone.events]


def test_a_label_for_every_video_is_asked_for() -> None:
    videos = make_videos(6, range(3), 4, difficulty=ALONE)
    config, size = KeyeConfig.nano(), Size(4, 3, 28, 28)
    told = question_prompts(videos, annotated(videos, "G", 0, 0, 0), size, config, answered=True)
    asked = question_prompts(videos, "G", size, config, answered=True)
    assert (told["input_ids"] == asked["input_ids"]).all()
    with pytest.raises(ValueError, match="a problem for each of 3 videos, got 2"):
        question_prompts(videos, annotated(videos, "G", 0)[:2], size, config)


@pytest.mark.parametrize(("task", "span", "spot"), [("D", 1, 1), ("C", 1, 1), ("G", -1, 1), ("N", 1, -1)])
def test_other_labels_are_refused(task: str, span: int, spot: int) -> None:
    with pytest.raises(ValueError, match=f"task N, G, P, R or S, and span and spot of at least 0, got {task}, {span}"):
        annotated(make_videos(6, range(2), 4), task, 0, span, spot)


def test_a_crowd_is_not_alone() -> None:
    with pytest.raises(ValueError, match="a crowd of things or one alone, got both"):
        Difficulty(crowd=True, alone=True)
