"""Stills with small cards: what their labels say is what is drawn."""

import torch

from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.minivid.drawing.things import KINDS
from minikeye.minivid.small_stills import DIGITS, make_small_stills
from minikeye.training.loop import LoopConfig
from minikeye.training.tower import teach_tower


def test_labels_by_counting():
    """Six in ten show a digit, each equally often; scribbles and frames without a card are none. Nothing repeats."""
    frames, digit, things = make_small_stills(0, 0, 600, height=28, width=28)
    assert frames.shape == (600, 3, 28, 28) and frames.dtype == torch.uint8 and things.shape == (600, len(KINDS))
    shares = torch.bincount(digit, minlength=11) / 600
    assert abs(float(shares[:10].sum()) - DIGITS) < 0.06 and float(shares[:10].min()) > 0.02
    again, others = make_small_stills(0, 0, 8, height=28, width=28), make_small_stills(0, 1, 8, height=28, width=28)
    assert not torch.equal(again[0], others[0])
    assert torch.equal(make_small_stills(0, 0, 8, height=28, width=28)[0], again[0])
    assert not torch.equal(make_small_stills(0, 0, 8, "test", 28, 28)[0], again[0])


def test_a_tower_learns_from_them():
    """Two steps of the stage, by the same loop as of the plain stills."""
    torch.manual_seed(0)
    model = KeyeVL(KeyeConfig.nano())
    before = model.visual.vision_model.embeddings.patch_embedding.weight.clone()
    loop = LoopConfig(steps=2, lr=1e-3, warmup=0, log_every=1)
    lines = teach_tower(model, loop, 4, None, ((112, 112),), make=make_small_stills, name="small")
    assert len(lines) == 2 and 0 <= lines[0]["digit"] <= 1
    assert not torch.equal(before, model.visual.vision_model.embeddings.patch_embedding.weight)
