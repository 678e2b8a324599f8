"""The nano that knows things: its lessons, a run in small, and that the shipped one knows what it should."""

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from minikeye import KeyeVL
from minikeye.training.recipes import nano_things
from minikeye.training.recipes.nano_things import CAPS, DENSE_KINDS, NAMING_KINDS, known, lengths

SHIPPED = Path(__file__).resolve().parents[2] / "assets" / "checkpoints" / "nano_things"


def test_its_videos_are_short_and_grow():
    grown, mixed = lengths(56, NAMING_KINDS, CAPS), lengths(56, DENSE_KINDS)
    sizes = [grown.size_at(step, 1000) for step in range(1000)]
    for longest, until in CAPS:
        assert max(size.frames for size in sizes[: int(until * 1000)]) == longest
    assert {s.frames for s in (mixed.size_at(step, 1) for step in range(300))} == {0, 4, 8, 16}
    assert all((s.height, s.width) == (56, 56) and s.videos == 64 for s in sizes if s.frames)


@pytest.mark.slow
def test_a_run_in_small_leaves_three_checkpoints_and_an_untaught_indexer(monkeypatch, tmp_path, capsys):
    options = ["--smoke", "--device", "cpu", "--workers", "0", "--side", "28", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["nano_things", *options])
    nano_things.main()
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["stage"] for line in printed] == ["tower", "naming", "dense"]
    models = [KeyeVL.from_pretrained(tmp_path / f"checkpoint-{line['stage']}").state_dict() for line in printed]
    for before, after in pairwise(models):
        moved = {name for name, value in after.items() if not torch.equal(value, before[name])}
        assert moved and not any("sa_indexer" in name for name in moved)


def test_the_shipped_model_knows_things():
    """Pictures never trained on. It does not read the digit, so that no needle is exact but by luck."""
    exact = known(KeyeVL.from_pretrained(SHIPPED), 16, 56, count=48)
    assert exact["G"] > 85 and exact["D"] > 75 and exact["Y"] > 85 and exact["N"] < 40
