"""Where a step runs: every GPU counts as one, whatever its number, and one that is not there is refused."""

import inspect
import re
from pathlib import Path

import pytest
import torch

from minikeye.keye import KeyeVL
from minikeye.training import step
from minikeye.training.step import EagerStep, GraphedStep, autocast, beside, on, stepper


@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3", torch.device("cuda", 1)])
def test_every_gpu_is_a_gpu(device, monkeypatch):
    """`--device cuda:0` is not "cuda" as text: it once trained eagerly in float32 without a word."""
    asked, real = [], torch.autocast

    class Spy(real):
        def __init__(self, kind: str, dtype: torch.dtype, enabled: bool):
            asked.append((kind, dtype, enabled))
            super().__init__("cpu", enabled=False)

    monkeypatch.setattr(torch, "autocast", Spy)
    autocast(device)
    assert stepper(device) is GraphedStep and asked == [("cuda", torch.bfloat16, True)]


def test_a_cpu_steps_eagerly_in_float32():
    assert stepper("cpu") is EagerStep
    with autocast("cpu"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    assert beside(lambda: {"a": torch.ones(1)}, "cpu")["a"].item() == 1.0


@pytest.mark.parametrize(("device", "gpus"), [("cuda", 0), ("cuda:0", 0), ("cuda:2", 2)])
def test_a_gpu_that_is_not_there(device, gpus, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(ValueError, match=f"device {device} was asked for, but torch sees {gpus or 'no'} GPU"):
        on(device)


def test_the_gpu_that_is_asked_for_is_the_current_one(monkeypatch):
    """Streams and graphs are the current device's."""
    made = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", made.append)
    assert on("cuda:3") == torch.device("cuda", 3) and on("cuda") == torch.device("cuda") and made == [3, 0]
    assert on("cpu") == torch.device("cpu") and len(made) == 2


def test_no_device_is_told_by_its_name():
    """Comparing a device with a text misses cuda:1; the type is what counts."""
    package = Path(step.__file__).resolve().parents[1]
    for path in package.rglob("*.py"):
        assert not re.search(r'device [!=]= "cuda', path.read_text()), path


def test_the_face_shows_what_its_methods_take():
    """Help and tab completion see every option."""
    assert {"max_new_tokens", "temperature", "on_token"} <= set(inspect.signature(KeyeVL.generate).parameters)
    assert list(inspect.signature(KeyeVL.from_pretrained).parameters) == ["folder", "dtype", "device", "streaming"]
    assert "max_shard_bytes" in inspect.signature(KeyeVL.save_pretrained).parameters
