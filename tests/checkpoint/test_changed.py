"""What training changed goes into a file, comes back over its base, and over nothing else."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from minikeye.checkpoint import CheckpointError
from minikeye.checkpoint.changed import load_changed, save_changed
from minikeye.config import KeyeConfig
from minikeye.files import CHECKPOINT
from minikeye.keye import KeyeVL

CHANGED = ["lm_head.weight", "model.layers.0.self_attn.q_proj.weight"]
LOOK = CHECKPOINT.parent / "look" / "changed.safetensors"


@pytest.fixture()
def folders(tmp_path):
    """A base, and what differs from it in two tensors, in one of them in a single number."""
    torch.manual_seed(0)
    model = KeyeVL(KeyeConfig.nano()).bfloat16()
    model.save_pretrained(tmp_path / "base")
    state = model.state_dict()
    state[CHANGED[0]] += 1
    state[CHANGED[1]][0, 0] = 7
    model.save_pretrained(tmp_path / "tuned")
    return tmp_path


def test_what_changed_comes_back(folders):
    """Those two tensors and no other are in the file; with it the base is what was tuned, to the bit."""
    assert save_changed(folders / "base", folders / "tuned", folders / "x.safetensors") == CHANGED
    assert set(load_file(folders / "x.safetensors")) == set(CHANGED)
    for dtype in (torch.bfloat16, torch.float32):
        model = KeyeVL.from_pretrained(folders / "base", dtype=dtype)
        load_changed(model, folders / "x.safetensors")
        expected = KeyeVL.from_pretrained(folders / "tuned", dtype=dtype).state_dict()
        assert all(torch.equal(t, expected[name]) for name, t in model.state_dict().items())


def test_other_weights_are_refused_and_stay(folders):
    """The tuned model is not the base; nor is what the file was put over already, nor another size."""
    save_changed(folders / "base", folders / "tuned", folders / "x.safetensors")
    for folder in ("tuned", None):
        model = KeyeVL(KeyeConfig.mini()) if folder is None else KeyeVL.from_pretrained(folders / folder)
        before = {name: t.clone() for name, t in model.state_dict().items()}
        with pytest.raises(CheckpointError, match="not taken from the weights"):
            load_changed(model, folders / "x.safetensors")
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_a_base_that_differs_elsewhere_is_another(folders):
    """In a single number of a tensor that the file does not hold."""
    save_changed(folders / "base", folders / "tuned", folders / "x.safetensors")
    model = KeyeVL.from_pretrained(folders / "base")
    model.state_dict()["model.norm.weight"][0] += 1
    with pytest.raises(CheckpointError, match="not taken from the weights"):
        load_changed(model, folders / "x.safetensors")


def test_what_cannot_be_loaded_is_not_written(folders):
    model = KeyeVL.from_pretrained(folders / "base", dtype=torch.float16)
    save_changed(folders / "base", folders / "tuned", folders / "x.safetensors")
    with pytest.raises(ValueError, match="in bfloat16 or float32"):
        load_changed(model, folders / "x.safetensors")
    state = load_file(folders / "tuned" / "model-00001-of-00001.safetensors")
    state[CHANGED[1]][0, 0] = torch.nan
    save_file(state, folders / "tuned" / "model-00001-of-00001.safetensors")
    (folders / "x.safetensors").unlink()
    with pytest.raises(CheckpointError, match="not finite"):
        save_changed(folders / "base", folders / "tuned", folders / "x.safetensors")
    assert not (folders / "x.safetensors").exists()


def test_damaged_files_are_refused(folders):
    path = folders / "x.safetensors"
    save_changed(folders / "base", folders / "tuned", path)
    model = KeyeVL.from_pretrained(folders / "base")
    with safe_open(path, "pt") as shard:
        metadata, tensors = shard.metadata(), {name: shard.get_tensor(name) for name in CHANGED}
    for change, words in (
        (lambda: save_file(tensors, path), "not taken from the weights"),  # no digest
        (lambda: save_file(tensors | {"more": torch.zeros(1)}, path, metadata), "not taken from the weights"),
        (lambda: save_file({n: t * torch.nan for n, t in tensors.items()}, path, metadata), "not finite"),
        (lambda: path.write_bytes(path.read_bytes()[:100]), "not a readable safetensors file"),
    ):
        change()
        with pytest.raises(CheckpointError, match=words):
            load_changed(model, path)


def test_folders_that_do_not_belong_together(folders):
    KeyeVL(KeyeConfig.mini()).save_pretrained(folders / "mini")
    with pytest.raises(CheckpointError, match="holds other tensors"):
        save_changed(folders / "base", folders / "mini", folders / "x.safetensors")
    with pytest.raises(ValueError, match="nothing to keep"):
        save_changed(folders / "base", folders / "base", folders / "x.safetensors")
    assert not (folders / "x.safetensors").exists()


def test_the_shipped_look_agent_belongs_to_mini():
    """It is the tower, the attention and the rest; experts and indexers are mini's."""
    model = KeyeVL.from_pretrained(CHECKPOINT)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    load_changed(model, LOOK)
    changed = [name for name, t in model.state_dict().items() if not torch.equal(t, before[name])]
    assert changed and not any("mlp.experts" in name or "sa_indexer" in name for name in changed)
