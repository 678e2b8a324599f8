"""Many things in one video: how many, when, where, and that the pixels show exactly the named ones."""

from collections import Counter
from dataclasses import replace

import pytest
import torch

from minikeye.minivid.dataset import MiniVideos, make_videos
from minikeye.minivid.drawing.things import COLOURS, KINDS
from minikeye.minivid.scene import Difficulty, VideoSpec, frame_labels, render

CROWD = Difficulty(crowd=True)
LENGTHS = (4, 5, 7, 16, 64, 257)


def things_of(videos: MiniVideos) -> list[list]:
    return [[event for event in events if event.kind == "thing"] for events in videos.events]


def showing(spec: VideoSpec, numbers: list[int]) -> VideoSpec:
    """Only these things, no card."""
    shown = torch.stack([spec.things.shown[..., n] & (n in numbers) for n in range(6)], -1)
    return replace(
        spec,
        things=replace(spec.things, shown=shown),
        cards=replace(spec.cards, shown=torch.zeros_like(spec.cards.shown)),
    )


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("frames", LENGTHS)
def test_when_things_come_and_go(frames: int, hard: bool) -> None:
    """Different kinds, each a frame or longer, never in the last; at most two at once, one after another in a half."""
    videos = make_videos(0, range(60), frames, difficulty=Difficulty(crowd=True, hard=hard))
    for video, things in enumerate(things_of(videos)):
        assert 2 <= len(things) <= 6 and len({thing.name for thing in things}) == len(things)
        for frame in range(frames):
            there = [n for n, thing in enumerate(things) if thing.first <= frame < thing.stop]
            assert len({n % 2 for n in there}) == len(there)  # thing n is in half n % 2: one of each at most
        for n, thing in enumerate(things):
            assert 0 <= thing.first < thing.stop <= frames - 1
            assert all(before.stop <= thing.first for before in things[n % 2 : n : 2])
            assert (thing.start, thing.end) == tuple(videos.seconds[video, [thing.first, thing.stop]].tolist())


def test_two_to_six_are_equally_frequent() -> None:
    """Within four standard errors of a fifth; kinds within four of theirs."""
    things = things_of(make_videos(1, range(800), 8, difficulty=CROWD))
    counts = Counter(map(len, things))
    assert counts.keys() == {2, 3, 4, 5, 6}
    assert all(abs(count / 800 - 0.2) < 4 * (0.2 * 0.8 / 800) ** 0.5 for count in counts.values())
    kinds, total = Counter(thing.name for of_video in things for thing in of_video), sum(map(len, things))
    assert kinds.keys() == set(KINDS)
    assert all(abs(count / total - 1 / 12) < 4 * (1 / 12 * 11 / 12 / total) ** 0.5 for count in kinds.values())


def test_intervals_begin_and_end_anywhere() -> None:
    """The first frame may show things, and so may the last but one; lengths of 1 to all but the last frame."""
    for frames in (4, 8):
        things = [t for of_video in things_of(make_videos(2, range(400), frames, difficulty=CROWD)) for t in of_video]
        assert {thing.first for thing in things} == set(range(frames - 1))
        assert {thing.stop for thing in things} == set(range(1, frames))
        assert {thing.stop - thing.first for thing in things} == set(range(1, frames))


def test_four_frames_hold_six_things() -> None:
    """Three frames, three things a half: each has one of them."""
    crowds = [things for things in things_of(make_videos(3, range(200), 4, difficulty=CROWD)) if len(things) == 6]
    assert len(crowds) > 20
    for things in crowds:
        assert [(thing.first, thing.stop) for thing in things] == [(0, 1), (0, 1), (1, 2), (1, 2), (2, 3), (2, 3)]


def test_the_pixels_show_every_thing_in_its_frames_only() -> None:
    """One thing after the other is taken away: frames change where it is said to be, and nowhere else."""
    videos = make_videos(5, range(12), 16, difficulty=CROWD)
    everything, events = render(showing(videos.spec, list(range(6))), 56, 56), things_of(videos)
    for n in range(6):
        others = render(showing(videos.spec, [m for m in range(6) if m != n]), 56, 56)
        changed = (everything != others).any(2).flatten(2).sum(-1).tolist()
        for things, pixels in zip(events, changed, strict=True):
            said = range(things[n].first, things[n].stop) if n < len(things) else ()
            assert [frame for frame in range(16) if pixels[frame]] == list(said)
            assert all(pixels[frame] > 50 for frame in said)


def test_no_thing_hides_another() -> None:
    """Of each thing at least 30 % are seen beside the other thing and the card of its frame."""
    spec = make_videos(9, range(40), 8, difficulty=CROWD).spec
    all_of_it = render(spec, 56, 56)
    for n in range(6):
        alone, there = showing(spec, [n]), spec.things.shown[..., n]
        whole = (render(alone, 56, 56) != render(showing(spec, []), 56, 56)).any(2).sum((-1, -2))
        rest = spec.things.shown & (torch.arange(6) != n)
        seen = (all_of_it != render(replace(spec, things=replace(spec.things, shown=rest)), 56, 56)).any(2)
        assert (seen.sum((-1, -2)) / whole)[there].min() > 0.3


def test_opposite_halves() -> None:
    """Even and odd things keep to opposite sides of the frame's middle, in x or in y, for the whole video."""
    spec = make_videos(4, range(200), 16, difficulty=CROWD).spec
    upright = 0
    for place in spec.things.place:  # [f n 2]
        sides = [{tuple(place[:, parity::2, axis].sign().unique().tolist()) for parity in (0, 1)} for axis in (0, 1)]
        parted = [side == {(-1.0,), (1.0,)} for side in sides]
        assert any(parted)
        upright += parted[1]
    assert 60 < upright < 140


def test_things_have_the_named_colour() -> None:
    """In the middle of the frame, upright, one at a time: the pixels' hue is nearest to that of the name."""
    videos = make_videos(7, range(15), 8, difficulty=CROWD)
    things = videos.spec.things
    middle = replace(things, place=torch.zeros_like(things.place))
    for n in range(6):
        frames = render(showing(replace(videos.spec, things=middle), [n]), 56, 56)[:, :, :, 26:30, 26:30]
        for video, of_video in enumerate(things_of(videos)):
            if n < len(of_video):
                rgb = frames[video, of_video[n].first].float().mean((1, 2))
                apart = {
                    name: float((rgb / rgb.max() - torch.tensor(c) / max(c)).norm()) for name, c in COLOURS.items()
                }
                assert min(apart, key=apart.get) == of_video[n].name.split()[0]


def test_labels_agree_with_events() -> None:
    videos = make_videos(10, range(40), 12, difficulty=CROWD)
    labelled = frame_labels(videos.spec)[1]
    for video, things in enumerate(things_of(videos)):
        for frame in range(12):
            names = {name for name, there in zip(KINDS, labelled[video, frame].tolist(), strict=True) if there}
            assert names == {thing.name for thing in things if thing.first <= frame < thing.stop}


def test_the_card_is_in_one_frame_of_a_crowd() -> None:
    videos = make_videos(6, range(30), 16, difficulty=CROWD)
    without = replace(videos.spec, cards=replace(videos.spec.cards, shown=torch.zeros_like(videos.spec.cards.shown)))
    changed = (render(videos.spec, 56, 56) != render(without, 56, 56)).any(2).flatten(2).sum(-1)
    for events, pixels in zip(videos.events, changed.tolist(), strict=True):
        [card] = [event for event in events if event.kind == "card"]
        assert events[0] == card and [frame for frame in range(16) if pixels[frame]] == [card.first]
        assert pixels[card.first] > 350  # a card of 20x20 pixels has 400
