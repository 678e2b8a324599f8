"""Plans for machines that are not here; a split on the CPU; and `agrees`, for two real GPUs."""

import logging
import sys
from pathlib import Path

import pytest
import torch

from minikeye import KeyeConfig, KeyeVL
from minikeye.checkpoint.split import device_of, on_its_device, plan, split
from minikeye.cost.memory import NotEnoughMemory

GIB = 2**30


@pytest.fixture(scope="module")
def released() -> KeyeVL:
    with torch.device("meta"):
        return KeyeVL(KeyeConfig.keye_vl_2_30b_a3b())


@pytest.fixture(autouse=True)
def quiet():
    """accelerate logs that the devices of these plans are not there."""
    logging.getLogger("accelerate").setLevel(logging.ERROR)
    yield
    logging.getLogger("accelerate").setLevel(logging.NOTSET)


def meta(config: KeyeConfig) -> KeyeVL:
    with torch.device("meta"):
        return KeyeVL(config)


# ------------------------------------------------------------------------------------------------------------ the plan


@pytest.mark.parametrize("max_memory", [{0: 80, 1: 80}, {0: 24, 1: 24, 2: 24, 3: 24}, {0: 24, 1: 80}])
def test_every_device_gets_one_stretch(released, max_memory):
    where = plan(released, torch.bfloat16, {n: gib * GIB for n, gib in max_memory.items()})
    order = [
        "visual",
        "mlp_AR",
        "model.embed_tokens",
        *(f"model.layers.{n}" for n in range(48)),
        "model.norm",
        "lm_head",
    ]
    devices = [device_of(where, name) for name in order]
    assert devices == sorted(devices) and set(devices) == set(max_memory)
    assert len(where) == len(order) and set(where) == set(order)  # no layer is cut into parts
    held = dict.fromkeys(max_memory, 0)
    for name, device in where.items():
        held[device] += 2 * sum(p.numel() for p in released.get_submodule(name).parameters())
    assert all(held[n] <= gib * GIB for n, gib in max_memory.items())


def test_equal_devices_get_about_equal_shares(released):
    devices = list(plan(released, torch.bfloat16, {n: 80 * GIB for n in range(4)}).values())
    assert all(10 <= devices.count(n) <= 15 for n in range(4))


def test_too_little_room_is_refused_and_nothing_goes_to_disk(released):
    with pytest.raises(NotEnoughMemory, match=r"62\.2 GB of weights do not fit .*model\.layers\.\d+ and what follows"):
        plan(released, torch.bfloat16, {0: 20 * GIB, 1: 20 * GIB})


def test_float32_needs_more_devices(released):
    two = {0: 40 * GIB, 1: 40 * GIB}
    assert set(plan(released, torch.bfloat16, two).values()) == {0, 1}
    with pytest.raises(NotEnoughMemory, match="124 GB"):
        plan(released, torch.float32, two)


def test_what_comes_before_the_layers_stays_together(released):
    with pytest.raises(NotEnoughMemory, match="allow the first device more memory"):
        plan(released, torch.bfloat16, {0: int(2.4 * GIB), 1: 80 * GIB})


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_no_gpu_to_split_over(released):
    with pytest.raises(ValueError, match="at least one GPU"):
        plan(released, torch.bfloat16)


def test_device_of():
    where = {"visual": 0, "model.layers.1": 0, "model.layers.10": 1}
    assert (device_of(where, "model.layers.1"), device_of(where, "model.layers.10.mlp")) == (0, 1)
    assert device_of({"": "cpu"}, "anything") == "cpu"


# ----------------------------------------------------------------------------------------------------------- the split


def example(config: KeyeConfig) -> dict:
    """Twelve visual tokens among text."""
    ids = torch.arange(60)[None] % 250
    ids[:, 4:16] = config.video_token_id
    patches = torch.linspace(-1, 1, 48 * 588).reshape(48, 3, 14, 14)
    grids = torch.tensor([[1, 4, 6], [1, 4, 6]])
    return {"input_ids": ids, "patches": patches, "grids": grids, "positions": torch.arange(60).expand(3, 1, 60)}


def test_split_on_the_cpu_changes_no_bit(lively, tmp_path):
    lively.save_pretrained(tmp_path / "model")
    model = split(meta(lively.config), tmp_path / "model", torch.float32, {"cpu": GIB})
    assert hasattr(model, "_hf_hook") and not model.training
    inputs = example(lively.config)
    with torch.no_grad():
        assert torch.equal(model(inputs).logits, lively(inputs).logits)
    said = (m.generate(inputs, max_new_tokens=8).ids for m in (model, lively))
    assert torch.equal(*said)


def test_dtype_is_that_asked_for(lively, tmp_path):
    lively.save_pretrained(tmp_path / "model")
    model = split(meta(lively.config), tmp_path / "model", torch.bfloat16, {"cpu": GIB})
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}


def test_a_layers_gpu_is_current_while_it_works(monkeypatch):
    """And not afterwards, whatever happened: with stand-ins for the two calls, on a CPU."""
    current, seen = [0], []
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(
        torch.cuda, "set_device", lambda device: current.__setitem__(0, getattr(device, "index", device))
    )

    class Layer(torch.nn.Module):
        def forward(self, x):
            seen.append(current[0])
            return x.sum() if x.numel() else x.fails

    layer = Layer()
    on_its_device(layer, torch.device("cuda:1"))
    assert layer(torch.ones(2)) == 2 and seen == [1] and current == [0]
    with pytest.raises(AttributeError):
        layer(torch.ones(0))
    assert seen == [1, 1] and current == [0]


def agrees(folder: str | Path) -> dict[str, float | int]:
    """The model in `folder` on one GPU and over all of them: greedy tokens, logits, and where the layers are."""
    dtype = torch.bfloat16
    whole = KeyeVL.from_pretrained(folder, dtype=dtype, device="cuda:0")
    layers = len(whole.model.layers)
    room = sum(p.nbytes for p in whole.parameters()) // torch.cuda.device_count()
    model = split(meta(whole.config), folder, dtype, dict.fromkeys(range(torch.cuda.device_count()), 2 * room))
    devices = [next(layer.parameters()).device.index for layer in model.model.layers]
    said, logits = [], []
    for m in (whole, model):
        inputs = {name: x.to(m.lm_head.weight.device) for name, x in example(whole.config).items()}
        with torch.no_grad():
            logits.append(m(inputs).logits.cpu())
        said.append(m.generate(inputs, max_new_tokens=8, record=True))
    return {
        "devices": len(set(devices)),
        "layers": layers,
        "layers_in_order": int(devices == sorted(devices)),
        "largest_difference": float((logits[0] - logits[1]).abs().max()),
        "same_tokens": int(torch.equal(*(out.ids.cpu() for out in said))),
        "same_selection": sum(
            torch.equal(*(out.record.layers[n].indices.cpu() for out in said)) for n in range(layers)
        ),
    }


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_answer_as_one(tmp_path):
    torch.manual_seed(0)
    KeyeVL(KeyeConfig.mini()).save_pretrained(tmp_path / "model")
    found = agrees(tmp_path / "model")
    assert found["devices"] == torch.cuda.device_count() and found["layers_in_order"]
    assert found["largest_difference"] == 0.0 and found["same_tokens"] and found["same_selection"] == found["layers"]


if __name__ == "__main__":
    print(agrees(sys.argv[1]))
