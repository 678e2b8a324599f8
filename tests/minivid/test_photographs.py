"""A folder of photographs as more backgrounds: of training videos only."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from minikeye.minivid.dataset import make_stills, make_videos
from minikeye.minivid.drawing.background import PATTERNS
from minikeye.minivid.drawing.pictures import load_pictures
from minikeye.minivid.scene import Difficulty, render

COLOURS = {"a.jpg": (200, 0, 200), "b.jpg": (0, 200, 200)}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """Two photographs of one colour each, written in the wrong order, and a file that is none."""
    for name in sorted(COLOURS, reverse=True):
        Image.new("RGB", (400, 300), COLOURS[name]).save(tmp_path / name, quality=95)
    (tmp_path / "notes.txt").write_text("no photograph", encoding="utf-8")
    return str(tmp_path)


def test_photographs_come_after_the_pictures(folder: str) -> None:
    """By name; the training split's own first."""
    pictures = load_pictures(folder)
    assert pictures.shape == (18, 3, 256, 256) and torch.equal(pictures[:16], load_pictures("train"))
    for picture, colour in zip(pictures[16:], COLOURS.values(), strict=True):
        assert (picture.float() - torch.tensor(colour)[:, None, None]).abs().max() < 4


@pytest.mark.parametrize("hard", [False, True])
def test_training_videos_show_photographs(folder: str, hard: bool) -> None:
    """Two of 18 pictures: the background of some frames is one of the two, coloured as brightness and tint allow."""
    kind = Difficulty(hard=hard, photographs=folder)
    spec = make_videos(0, range(60), 8, difficulty=kind).spec
    tile = spec.background.tile
    assert spec.pictures == folder and set(tile.unique().tolist()) == set(range(18 + PATTERNS))
    frames = render(spec, 28, 28).float().median(-1).values.median(-1).values  # [b f 3], mostly background
    for number, missing in ((16, 1), (17, 0)):
        medians = frames[tile == number]
        others = [channel for channel in range(3) if channel != missing]
        assert len(medians) > 5
        assert (medians[:, others].amin(1) > medians[:, missing]).float().mean() > 0.5
    if hard:
        assert set(spec.clutter.tile.unique().tolist()) == set(range(18 + PATTERNS))


@pytest.mark.parametrize("hard", [False, True])
def test_the_test_split_never_shows_them(folder: str, hard: bool) -> None:
    with_them, without = (
        make_videos(0, range(8), 8, "test", difficulty=Difficulty(hard=hard, photographs=photographs))
        for photographs in (folder, None)
    )
    assert with_them.spec.pictures == "test" and with_them.events == without.events
    assert torch.equal(render(with_them.spec, 28, 56), render(without.spec, 28, 56))
    assert int(with_them.spec.background.tile.max()) < 3 + PATTERNS


def test_photographs_change_the_background_only(folder: str) -> None:
    with_them, without = (
        make_videos(0, range(8), 8, difficulty=Difficulty(photographs=photographs)) for photographs in (folder, None)
    )
    assert with_them.events == without.events and with_them.problems == without.problems
    assert torch.equal(with_them.spec.things.place, without.spec.things.place)
    assert not torch.equal(render(with_them.spec, 28, 28), render(without.spec, 28, 28))


def test_stills_show_photographs(folder: str) -> None:
    with_them, without = (make_stills(0, 0, 50, difficulty=Difficulty(photographs=p))[0] for p in (folder, None))
    assert (with_them != without).flatten(1).any(1).float().mean() > 0.3


@pytest.mark.parametrize("missing", ["nowhere", "."])
def test_a_folder_without_photographs_is_refused(tmp_path: Path, missing: str) -> None:
    """It is not there, or it is empty: named at the first video, not passed over."""
    path = str(tmp_path / missing)
    with pytest.raises(ValueError, match=r"expected a split or a folder with \.jpg files in it, got "):
        make_videos(0, range(1), 8, difficulty=Difficulty(photographs=path))


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_a_split_is_no_folder_of_photographs(split: str) -> None:
    """The pictures of the test split must not get into training by a slip."""
    with pytest.raises(ValueError, match=f"expected photographs, a folder, got the name of a split, '{split}'"):
        Difficulty(photographs=split)
