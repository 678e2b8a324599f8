"""Controls: other frames or no card, and answers that say so or make one up."""

from dataclasses import fields, is_dataclass, replace

import pytest
import torch

from minikeye.minivid.controls import absent_things, shuffled, without_card
from minikeye.minivid.dataset import MiniVideos, make_videos
from minikeye.minivid.drawing.things import KINDS
from minikeye.minivid.questions.absent import absent_card, absent_thing
from minikeye.minivid.questions.scoring import score
from minikeye.minivid.scene import Difficulty, frame_labels, render
from minikeye.minivid.tasks import Event, grounding, needle

PLAIN, HARD_CROWD = Difficulty(), Difficulty(crowd=True, hard=True, second_card=0.5)
CIRCLE = Event("thing", "red circle", 6, 18, 3.0, 9.0)


def order_of(videos: MiniVideos, mixed: MiniVideos) -> list[list[int]]:
    """For each video, which of its frames stands where: found by looking for equal pixels, one frame after another."""
    before, after = render(videos.spec, 28, 28), render(mixed.spec, 28, 28)
    return [
        [next(m for m in range(len(old)) if (old[m].int() - new[n].int()).abs().max() <= 1) for n in range(len(new))]
        for old, new in zip(before, after, strict=True)
    ]


@pytest.mark.parametrize("difficulty", [PLAIN, HARD_CROWD])
def test_shuffled_videos_show_every_frame_once_and_elsewhere(difficulty: Difficulty) -> None:
    videos = make_videos(0, range(12), 9, difficulty=difficulty)
    orders = order_of(videos, shuffled(videos, 0))
    for order in orders:
        assert sorted(order) == list(range(9)) and all(frame != place for place, frame in enumerate(order))
    assert len(set(map(tuple, orders))) > 6


def test_of_shuffled_videos_the_original_is_told() -> None:
    """Times ascend, events and questions are the old ones: what the frames show now is something else."""
    videos = make_videos(1, range(40), 8)
    mixed = shuffled(videos, 0)
    assert torch.equal(mixed.seconds, videos.seconds)
    assert mixed.events == videos.events and mixed.problems == videos.problems
    digits, kinds = frame_labels(mixed.spec)
    for video, (card, *things) in enumerate(mixed.events):
        assert digits[video, card.first] == 10  # never where it is said to be
        assert (digits[video] == int(card.name)).sum() == 1
        for thing in things:
            there = kinds[video, :, KINDS.index(thing.name)]
            assert there.sum() == thing.stop - thing.first  # as often, at other times
    assert not torch.equal(digits, frame_labels(videos.spec)[0])


def test_an_order_belongs_to_the_video_and_the_seed() -> None:
    batch, alone = (make_videos(3, numbers, 9, "test") for numbers in (range(10, 20), [17]))
    assert order_of(batch, shuffled(batch, 0))[7] == order_of(alone, shuffled(alone, 0))[0]
    assert order_of(batch, shuffled(batch, 0)) != order_of(batch, shuffled(batch, 1))


def test_every_cycle_of_four_frames_is_as_likely() -> None:
    """Six orders have one cycle; others leave a frame in its place, or swap two pairs."""
    videos = make_videos(4, range(600), 4, dt=1.0)
    spec = replace(videos.spec.light, noise_tile=torch.arange(4).expand(600, 4).clone())
    mixed = shuffled(replace(videos, spec=replace(videos.spec, light=spec)), 0)
    orders = list(map(tuple, mixed.spec.light.noise_tile.tolist()))
    assert len(set(orders)) == 6
    assert max(abs(orders.count(order) / 600 - 1 / 6) for order in set(orders)) < 4 * (5 / 36 / 600) ** 0.5


def test_an_order_holds_every_frame_once() -> None:
    spec = make_videos(0, range(2), 4).spec
    for order in ([[0, 1, 2, 3], [0, 1, 2, 2]], [[0, 1, 2, 3]], [[0, 1, 2], [0, 1, 2]]):
        with pytest.raises(ValueError, match="expected every one of 4 frames once in each of 2 rows"):
            spec.reordered(torch.tensor(order))


# --- nothing there to be found ---


def test_without_card_takes_the_card_away_and_nothing_else() -> None:
    videos = make_videos(5, range(12), 8, difficulty=HARD_CROWD)
    bare = without_card(videos)
    assert (frame_labels(bare.spec)[0] == 10).all()
    assert torch.equal(frame_labels(bare.spec)[1], frame_labels(videos.spec)[1])
    assert bare.events == tuple(tuple(e for e in events if e.kind == "thing") for events in videos.events)
    changed = (render(videos.spec, 56, 56) != render(bare.spec, 56, 56)).flatten(2).any(2)
    cards = torch.stack([part.shown for part in (videos.spec.cards, videos.spec.later)]).any(0)
    assert torch.equal(changed, cards)
    for field in fields(videos.spec):
        if field.name not in ("cards", "later"):
            before, after = getattr(videos.spec, field.name), getattr(bare.spec, field.name)
            assert before is after or not is_dataclass(before)


def test_the_question_about_the_card_has_no_digit_for_an_answer() -> None:
    videos = make_videos(6, range(8), 8)
    for old, new in zip(videos.problems, without_card(videos).problems, strict=True):
        assert new[1:] == old[1:]
        assert new[0][:3] == ("A", old[0].question, "no card")


@pytest.mark.parametrize("difficulty", [PLAIN, HARD_CROWD])
def test_absent_things_are_shown_in_no_frame(difficulty: Difficulty) -> None:
    videos = make_videos(7, range(150), 8, difficulty=difficulty)
    problems = absent_things(videos, 0)
    there = frame_labels(videos.spec)[1].any(1)
    names = set()
    for video, problem in enumerate(problems):
        name = problem.question.removeprefix("From when to when is the ").removesuffix(" visible?")
        assert not there[video, KINDS.index(name)]
        assert problem[:3] == ("A", grounding(replace(CIRCLE, name=name)).question, "never")
        names.add(name)
    assert names == set(KINDS) and problems != absent_things(videos, 1)
    alone = make_videos(7, [17], 8, difficulty=difficulty)
    assert absent_things(alone, 0) == problems[17:18]


def test_what_is_there_is_not_absent() -> None:
    with pytest.raises(ValueError, match="a thing that is not in the video, got 'red circle'"):
        absent_thing([CIRCLE], "red circle")
    with pytest.raises(ValueError, match="a thing that is not in the video, got 'purple circle'"):
        absent_thing([CIRCLE], "purple circle")
    with pytest.raises(ValueError, match="a video without a card, got one with a card"):
        absent_card([CIRCLE, Event("card", "3", 0, 1, 0.0, 0.5)])


@pytest.mark.parametrize(
    ("answer", "exact", "made_up"),
    [
        ("never", 1, 0),
        ("[[3.0, 9.0]]", 0, 1),
        ("[[9.0, 3.0]]", 0, 0),
        ("3 at 7.5 s", 0, 0),
        ("no card", 0, 0),
        ("", 0, 0),
    ],
)
def test_an_interval_for_an_absent_thing_is_made_up(answer: str, exact: float, made_up: float) -> None:
    assert score(absent_thing([CIRCLE], "blue circle"), answer) == {"exact": exact, "made_up": made_up}


@pytest.mark.parametrize(
    ("answer", "exact", "made_up"), [("no card", 1, 0), ("3 at 7.5 s", 0, 1), ("3", 0, 0), ("never", 0, 0)]
)
def test_a_digit_for_an_absent_card_is_made_up(answer: str, exact: float, made_up: float) -> None:
    problem = absent_card([CIRCLE])
    assert problem.question == needle(Event("card", "3", 0, 1, 0.0, 0.5)).question
    assert score(problem, answer) == {"exact": exact, "made_up": made_up}
