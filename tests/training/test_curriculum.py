"""Which lengths, shapes and kinds of video come when, and that they are all that a reader's video can become."""

import random
from collections import Counter
from dataclasses import replace

import pytest
import torch
from PIL import Image

from minikeye.config import KeyeConfig
from minikeye.inputs.sampling import fit_size
from minikeye.minivid.scene import Difficulty
from minikeye.training import curriculum
from minikeye.training.curriculum import DENSE_CAPS, KINDS, NAMING_CAPS, NAMING_KINDS, SIZES, TURNS, Curriculum

MINI = KeyeConfig.mini()
CAPS = {"none": (), "naming": NAMING_CAPS, "dense": DENSE_CAPS}


def within(count: int, share: float, n: int) -> bool:
    """A count of n as expected, to four standard errors."""
    return abs(count / n - share) < 4 * (share * (1 - share) / n) ** 0.5


# ---------------------------------------------------------------------------------------------------------- the lengths


@pytest.mark.parametrize("caps", CAPS.values(), ids=CAPS)
@pytest.mark.parametrize("longest", [16, 1024])
def test_lengths(caps, longest):
    """Never longer than the cap of that share of the stage; each listed size in turn; about `frames` frames a batch."""
    lengths, steps = Curriculum(longest=longest, caps=caps), 4000
    sizes = [lengths.size_at(step, steps) for step in range(steps)]
    listed = {size[:3] for size in SIZES}
    for step, size in enumerate(sizes):
        cap = next((n for n, until in caps if step < until * steps), longest)
        assert size.frames <= min(longest, cap)
        if size.frames:
            assert (size.frames, size.height, size.width) in listed and size.turns == TURNS
            pixels = size.frames * size.height * size.width
            assert size.videos * pixels <= lengths.frames * 56 * 56 and size.videos <= 64
            assert size.videos == 64 or (size.videos + 1) * pixels > lengths.frames * 56 * 56
    last = min(longest, 16 if caps == NAMING_CAPS else 1024)
    assert {s.frames for s in sizes[-1000:]} == {f for f, *_ in SIZES if f <= last} | {0}
    assert within(sum(s.frames == 0 for s in sizes), 0.03, steps)
    assert {s.videos for s in sizes if not s.frames} == {64}


@pytest.mark.parametrize("caps", [NAMING_CAPS, DENSE_CAPS], ids=["naming", "dense"])
def test_caps_grow(caps):
    """To longer videos at later shares of the stage; each is a listed length, and is reached before the next comes."""
    frames, shares = [n for n, _ in caps], [until for _, until in caps]
    assert frames == sorted(set(frames)) and shares == sorted(set(shares)) and max(shares) <= 1
    assert set(frames) < {f for f, *_ in SIZES}
    sizes, begun = [Curriculum(caps=caps).size_at(step, 3000) for step in range(3000)], 0
    for n, until in caps:
        assert max(s.frames for s in sizes[begun : int(until * 3000)]) == n
        begun = int(until * 3000)
    assert max(s.frames for s in sizes[begun:] or sizes) == (1024 if caps == DENSE_CAPS else 16)


def test_the_smallest_batch_is_one_video():
    """However few frames a step may have."""
    assert {Curriculum(frames=1).size_at(step, 1).videos for step in range(100)} == {1, 64}  # 64 rows of text only


def test_sizes_come_as_often_as_they_should():
    """Without caps: within four standard errors of the listed weights."""
    sizes = [Curriculum().size_at(step, 1) for step in range(8000)]
    counts, total = Counter((s.frames, s.height, s.width) for s in sizes), sum(often for *_, often in SIZES)
    assert len({size[:3] for size in SIZES}) == len(SIZES)
    for *size, often in SIZES:
        assert within(counts[tuple(size)], 0.97 * often / total, 8000)


@pytest.mark.parametrize("kinds", [KINDS, NAMING_KINDS], ids=["all", "naming"])
def test_kinds_come_as_often_as_they_should(kinds):
    """At every length alike; with the photographs of the curriculum."""
    lengths = Curriculum(kinds=kinds, photographs="somewhere")
    sizes = [lengths.size_at(step, 1) for step in range(8000)]
    sizes, total = [size for size in sizes if size.frames], sum(often for _, often in kinds)
    assert total == pytest.approx(1) and {size.difficulty.photographs for size in sizes} == {"somewhere"}
    for some in (sizes, [s for s in sizes if s.frames <= 16], [s for s in sizes if s.frames == 1024]):
        counts = Counter(replace(size.difficulty, photographs=None) for size in some)
        assert counts.keys() == {kind for kind, _ in kinds}
        assert all(within(counts[kind], often / total, len(some)) for kind, often in kinds)


def test_the_kinds():
    """Crowds and others, hard and not; another card in three of ten hard videos; plain ones as results are made on."""
    found = {(kind.crowd, kind.hard): kind.second_card for kind, _ in KINDS}
    assert found == {(False, False): 0, (True, False): 0, (False, True): 0.3, (True, True): 0.3}
    assert (Difficulty(), Difficulty(crowd=True)) == (curriculum.PLAIN, curriculum.CROWD)
    assert sum(often for kind, often in NAMING_KINDS if kind.crowd) == pytest.approx(0.9)


def test_a_length_depends_on_its_step_only():
    random.seed(1)
    sizes = [Curriculum(caps=DENSE_CAPS).size_at(step, 100) for step in range(100)]
    random.seed(2)
    assert [Curriculum(caps=DENSE_CAPS).size_at(step, 100) for step in reversed(range(100))] == sizes[::-1]


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"longest": 2}, {"sizes": ()}, {"sizes": ((-4, 56, 56, 1.0),)}])
def test_a_curriculum_without_a_lesson(wrong):
    with pytest.raises(ValueError, match="expected frames >= 1 and a size of 1 to longest frames"):
        Curriculum(**wrong)


@pytest.mark.parametrize(
    ("caps", "message"),
    [
        (((2, 0.5),), r"at least the shortest size, 4 frames, got \[2\]"),
        (((4, 0.1), (3, 0.2), (1, 1.0)), r"at least the shortest size, 4 frames, got \[3, 1\]"),
        (((4, 0.5), (8, 0.2)), r"growing shares of the stage, got \[0\.5, 0\.2\]"),
    ],
)
def test_caps_that_leave_no_video(caps, message):
    """Told when the curriculum is made, not at the step that finds nothing to draw from."""
    with pytest.raises(ValueError, match=message):
        Curriculum(caps=caps)


@pytest.mark.parametrize("caps", [(), ((4, 1.0),), ((4, 0.0), (8, 0.0))])
def test_caps_that_leave_one(caps):
    assert max(Curriculum(caps=caps).size_at(step, 50).frames for step in range(50)) >= 4


# ----------------------------------------------------------------------------------------------------------- the shapes


@pytest.fixture(scope="module")
def shapes() -> dict[tuple[int, int], set[int]]:
    """Height and width that the processor makes of videos of 1:8 to 8:1, and of how many frames."""
    ratios, found = [8 ** (n / 48) for n in range(-48, 49)], {}
    pictures = [(1920, 1080), (1440, 1080), (1080, 1920), (1000, 1000), (720, 480), (2048, 858)]
    pictures += [(round(1000 * r), 1000) if r >= 1 else (1000, round(1000 / r)) for r in ratios]
    for size in pictures:
        for frames in range(1, 1025):
            width, height = fit_size(*size, frames, MINI.video.video_tokens, MINI.video)
            found.setdefault((height, width), set()).add(frames)
    return found


def test_every_shape_of_a_video_is_taught(shapes):
    """None is left out: what a reader's video is resized to was seen in training."""
    assert set(shapes) == {(height, width) for _, height, width, _ in SIZES}


def test_the_shapes_fit_the_model(shapes):
    """4 to 8 tokens a frame; at 1,024 frames all of them are within the budget."""
    for (height, width), frames in shapes.items():
        tokens = height * width // 28**2
        assert height % 28 == width % 28 == 0 and 4 <= tokens <= 8
        assert max(frames) * tokens <= MINI.video.video_tokens
    assert all({1, 1024} <= frames for frames in shapes.values())  # the shape does not depend on the length


def test_what_is_taught_fits_the_positions():
    """The longest row of every size."""
    for frames, height, width, _ in SIZES:
        size = curriculum.Size(frames, 1, height, width, TURNS)
        assert size.tokens(MINI) <= MINI.text.max_positions


# ---------------------------------------------------------------------------------------------------------- the lessons


def test_lessons_are_those_of_the_curriculum(tmp_path):
    """From any step on: sizes, kinds and photographs as `size_at` says; the same videos whenever they are asked for."""
    Image.new("RGB", (300, 200), (200, 0, 200)).save(tmp_path / "one.jpg")
    lengths = Curriculum(frames=64, longest=16, photographs=str(tmp_path))
    lessons_from = lengths.lessons_from(KeyeConfig.nano(), 12, 3, 0)
    whole, rest = list(lessons_from(0)), list(lessons_from(7))
    assert [lesson.size for lesson in whole] == [lengths.size_at(step, 12) for step in range(12)]
    for lesson, again in zip(whole[7:], rest, strict=True):
        assert torch.equal(lesson.tokens["input_ids"], again.tokens["input_ids"])
    videos = [lesson.videos for lesson in whole if lesson.videos is not None]
    assert (
        videos and {v.spec.pictures for v in videos} == {str(tmp_path)} and {v.spec.split for v in videos} == {"train"}
    )
    crowds = [lesson.size.difficulty.crowd for lesson in whole if lesson.videos is not None]
    assert [v.spec.things.shown.shape[2] == 6 for v in videos] == crowds and len(set(crowds)) == 2


def test_kinds_keep_their_photographs():
    """A folder of the curriculum's own comes before them; without kinds there is nothing to draw."""
    sizes = Curriculum(kinds=((Difficulty(photographs="theirs"), 1.0),))
    assert {sizes.size_at(n, 10).difficulty.photographs for n in range(20)} <= {"theirs", None}
    assert sizes.size_at(1, 10).difficulty.photographs == "theirs"
    assert replace(sizes, photographs="own").size_at(1, 10).difficulty.photographs == "own"
    with pytest.raises(ValueError, match="expected kinds of videos"):
        Curriculum(kinds=())
