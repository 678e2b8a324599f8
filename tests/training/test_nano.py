"""The nano checkpoint of notebook 07: its lessons, its score, and that the shipped one knows what it should."""

from functools import partial
from pathlib import Path

import pytest
import torch

from minikeye import KeyeConfig, KeyeVL
from minikeye.minivid.lessons import needles, right
from minikeye.training.loop import LoopConfig
from minikeye.training.recipes.nano import CAPS, frames_at, lessons_from
from minikeye.training.stage import DENSE, teach

NANO = Path(__file__).resolve().parents[2] / "assets" / "checkpoints" / "nano"


def test_lengths_grow():
    """Four frames only, then up to eight, then up to sixteen, which is then the most frequent."""
    lengths = [frames_at(step, 1000) for step in range(1000)]
    for longest, until in CAPS.items():
        assert max(lengths[: int(until * 1000)]) == longest
    assert max(lengths) == 16 and lengths.count(16) > lengths.count(8)


def test_teaching_leaves_the_indexer_alone():
    torch.manual_seed(0)
    model = KeyeVL(KeyeConfig.nano())
    before = {n: p.clone() for n, p in model.state_dict().items()}
    log = teach(model, DENSE, LoopConfig(steps=2, lr=1e-3, warmup=1), partial(lessons_from, model.config, 2), None)
    moved = {n for n, p in model.state_dict().items() if not torch.equal(p, before[n])}
    assert len(log) == 2 and moved and not any("sa_indexer" in n for n in moved)


def test_the_shipped_model_knows_the_second_and_needs_the_video():
    """Pictures and digits never trained on; grey frames are the control. The digit stays near one in ten."""
    model = KeyeVL.from_pretrained(NANO)
    seen, grey = (right(model, needles(model.config, 5, 0, 64, 8, "test", blank), "dense") for blank in (False, True))
    assert seen["second"] > 0.85 and grey["second"] < 0.3 and seen["digit"] == pytest.approx(0.1, abs=0.2)
