"""Training, validation and test share no video; the test shares no picture and no handwriting with the others."""

from itertools import product

import pytest
import torch

from minikeye.minivid.dataset import make_stills, make_videos
from minikeye.minivid.drawing.pictures import check_split, load_digits, load_pictures
from minikeye.minivid.draws import Draws
from minikeye.minivid.questions.asking import groups_of, problems_of
from minikeye.minivid.scene import Difficulty
from minikeye.minivid.tasks import text_sums

SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize("difficulty", [Difficulty(), Difficulty(crowd=True, hard=True, second_card=0.5)])
def test_no_two_splits_share_a_video(difficulty: Difficulty) -> None:
    """What is to be seen when, for two seeds and the same numbers; and where the camera looks."""
    events, views = [], []
    for seed, split in product((0, 1), SPLITS):
        videos = make_videos(seed, range(40), 16, split, difficulty=difficulty)
        events += videos.events
        views += videos.spec.background.view[:, 0, 0].tolist()
    assert len(set(events)) == len(set(views)) == 240


def test_no_two_splits_share_a_row_of_random_numbers() -> None:
    """All that is random about a video, and about what it is asked, is made of them."""
    names = [f"{split}{suffix}" for split in SPLITS for suffix in ("", " questions")]
    rows = [Draws.of_samples(seed, name, range(50)).uniform(0, 1, 1).flatten() for name in names for seed in (0, 1)]
    assert len(torch.cat(rows).unique()) == 6 * 2 * 50


def test_validation_shows_the_pictures_of_training_and_none_of_the_test() -> None:
    """Why it is so, `pictures` says. Nobody may believe otherwise."""
    assert torch.equal(load_pictures("validation"), load_pictures("train"))
    for one, other in zip(load_digits("validation"), load_digits("train"), strict=True):
        assert torch.equal(one, other)
    hands = {split: {tuple(row) for row in load_digits(split)[0].flatten(1).tolist()} for split in SPLITS}
    assert not hands["validation"] & hands["test"]
    assert make_videos(0, range(2), 4, "validation").spec.pictures == "validation"


def test_photographs_are_for_training_alone(tmp_path) -> None:
    difficulty = Difficulty(photographs=str(tmp_path / "nowhere"))
    assert make_videos(0, range(2), 4, "validation", difficulty=difficulty).spec.pictures == "validation"


def test_validation_digits_stay_as_written() -> None:
    """As those of the test do: nothing is slanted, stretched or fattened."""
    for split in ("validation", "test"):
        cards = make_videos(0, range(5), 4, split).spec.cards
        assert torch.equal(cards.warp, torch.eye(2, 3, dtype=cards.warp.dtype).expand_as(cards.warp))
    cards = make_videos(0, range(5), 4, "train").spec.cards
    assert (cards.warp != torch.eye(2, 3)).any()


def test_stills_of_the_splits_differ() -> None:
    stills = [make_stills(0, 0, 8, split, 28, 28)[0] for split in SPLITS]
    assert all((stills[a] != stills[b]).any() for a, b in ((0, 1), (0, 2), (1, 2)))


def test_sums_of_validation_are_not_those_of_training_nor_of_the_test() -> None:
    """Pairs of numbers are shared with training: which is asked at which place is not."""
    train, validation, test = ([p.question for p in text_sums(0, range(500), split)] for split in SPLITS)
    assert not set(validation) & set(test) and not set(train) & set(test)
    assert sum(a == b for a, b in zip(train, validation, strict=True)) < 5


def test_the_new_questions_differ_by_split() -> None:
    for ask in (lambda v: problems_of(v, "C", 0), lambda v: problems_of(v, "O", 0), lambda v: groups_of(v, 0)):
        asked = [ask(make_videos(0, range(20), 8, split, difficulty=Difficulty(crowd=True))) for split in SPLITS]
        assert asked[0] != asked[1] != asked[2] != asked[0]


def test_another_split_is_refused() -> None:
    with pytest.raises(ValueError, match='split must be "train", "validation" or "test", not'):
        check_split("valid")
    for split in SPLITS:
        check_split(split)
