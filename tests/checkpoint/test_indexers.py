"""Folders of indexers that are damaged or hold something else: an error, the model as it was, nobody's file gone."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from minikeye.checkpoint import CheckpointError
from minikeye.checkpoint.indexers import SETTINGS, load_indexers, read_indexer, save_indexers
from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL

FILE = "indexers-00001-of-00001.safetensors"


@pytest.fixture
def model() -> KeyeVL:
    nano = KeyeConfig.nano()
    return KeyeVL(replace(nano, vision=None, image_token_id=320, video_token_id=321))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda t: torch.full_like(t, 1e300, dtype=torch.float64),  # finite, and infinite in the model
        lambda t: torch.ones_like(t, dtype=torch.int8),
        lambda t: torch.ones_like(t).to(torch.float8_e4m3fn),
        lambda t: torch.full_like(t, torch.nan),
    ],
    ids=["float64", "int8", "float8", "nan"],
)
def test_other_numbers(spoil, model, tmp_path):
    save_indexers(model, tmp_path / "ix", 64)
    save_file({name: spoil(t) for name, t in load_file(tmp_path / "ix" / FILE).items()}, tmp_path / "ix" / FILE)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(CheckpointError, match=r"must hold bfloat16, got torch|nan or not finite as torch.float32"):
        load_indexers(model, tmp_path / "ix")
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_too_large_for_the_models_dtype(model, tmp_path):
    """1e5 is a bfloat16 and no float16."""
    half = copy.deepcopy(model).half()
    save_indexers(half, tmp_path / "ix", 64)
    save_file(
        {n: torch.full_like(t, 1e5) for n, t in load_file(tmp_path / "ix" / FILE).items()}, tmp_path / "ix" / FILE
    )
    with pytest.raises(CheckpointError, match=r"nan or not finite as torch.float16"):
        load_indexers(half, tmp_path / "ix")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"heads": "2"}, "heads must be .* got '2'"),
        ({"width": 15}, "indexer width 15 must be even"),
        ({"topk": None}, "must state an indexer's heads, .*topk"),  # else the default, in silence
        ({"layers": 2}, "must state an indexer's heads"),
    ],
)
def test_other_settings(change, complaint, model, tmp_path):
    """The complaint names the file."""
    save_indexers(model, tmp_path / "ix", 64)
    settings = json.loads((tmp_path / "ix" / SETTINGS).read_text(encoding="utf-8"))
    settings["indexer"] = {k: v for k, v in (settings["indexer"] | change).items() if v is not None}
    (tmp_path / "ix" / SETTINGS).write_text(json.dumps(settings), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"indexer\.json .*{complaint}"):
        read_indexer(tmp_path / "ix")


def test_notes_beside_indexers_are_not_replaced(model, tmp_path):
    save_indexers(model, tmp_path / "ix", 64)
    (tmp_path / "ix" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(FileExistsError, match=r"holds other files than indexers \(notes\.txt\): name a new folder"):
        save_indexers(model, tmp_path / "ix", 64)
    assert (tmp_path / "ix" / "notes.txt").is_file()
