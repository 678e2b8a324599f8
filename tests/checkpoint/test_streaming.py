"""A streamed model against the same model in memory, and what it reads, counted from the files' headers."""

import json
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minikeye import KeyeConfig, KeyeVL
from minikeye.checkpoint import streaming
from minikeye.checkpoint.tensors import INDEX
from minikeye.evaluation.rules import selecting

IDS = torch.arange(3, 83).view(1, 80) * 7 % 251


@pytest.fixture(scope="module")
def folder(lively, tmp_path_factory) -> Path:
    """nano in bfloat16, in shards that part a layer's tensors."""
    path = tmp_path_factory.mktemp("streamed") / "nano"
    lively.save_pretrained(path, max_shard_bytes=150_000, dtype=torch.bfloat16)
    return path


@pytest.fixture(scope="module")
def pair(folder) -> tuple[KeyeVL, KeyeVL]:
    return KeyeVL.from_pretrained(folder), KeyeVL.from_pretrained(folder, streaming=True)


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of every tensor, from the headers."""
    out = {}
    for path in folder.glob("*.safetensors"):
        data = path.read_bytes()
        entries = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
        out |= {n: e["data_offsets"][1] - e["data_offsets"][0] for n, e in entries.items() if n != "__metadata__"}
    return out


# ------------------------------------------------------------------------------------------------------ the same model


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("attention", ["sparse", "dense"])
@torch.no_grad()
def test_logits_are_those_of_the_resident_model(folder, attention, dtype):
    """To the bit, in any chunks: it is the same code."""
    here, there = (KeyeVL.from_pretrained(folder, dtype=dtype, streaming=s) for s in (False, True))
    for chunk in (None, 32):
        a, b = (model({"input_ids": IDS}, attention=attention, chunk=chunk).logits for model in (here, there))
        assert torch.equal(a, b)


@torch.no_grad()
def test_pictures_too(pair):
    """Two frames of four patches each stand at tokens 3 and 4."""
    ids = IDS.clone()
    ids[0, 3:5] = 262
    inputs = {
        "input_ids": ids,
        "positions": torch.arange(80).expand(3, 1, 80),
        "patches": torch.randn(8, 3, 14, 14),
        "grids": torch.tensor([[1, 2, 2], [1, 2, 2]]),
    }
    a, b = (model(inputs).logits for model in pair)
    assert torch.equal(a, b) and not torch.equal(a, pair[0](inputs | {"patches": torch.zeros(8, 3, 14, 14)}).logits)


def test_answers_are_those_of_the_resident_model(pair):
    a, b = (model.generate({"input_ids": IDS}, max_new_tokens=12, record=True) for model in pair)
    assert a.ids.tolist() == b.ids.tolist()
    assert all(torch.equal(x.indices, y.indices) for x, y in zip(a.record.layers, b.record.layers, strict=True))


# -------------------------------------------------------------------------------------------------------- what is read


@torch.no_grad()
def test_a_prompt_reads_every_layer_once(folder):
    """In ten chunks, which send every expert some token."""
    model, held = KeyeVL.from_pretrained(folder, streaming=True), sizes(folder)
    model({"input_ids": IDS}, chunk=8)
    log = model.read_log
    for n in range(2):
        own = {name: size for name, size in held.items() if name.startswith(f"model.layers.{n}.")}
        experts = sum(size for name, size in own.items() if ".experts." in name)
        assert log.experts[n] == {0, 1, 2, 3}
        assert log.dense_bytes[n] == sum(own.values()) - experts and log.expert_bytes[n] == experts
    rows = len(IDS.unique()) * 64 * 2
    assert log.other_bytes == rows + held["lm_head.weight"]
    assert log.total_bytes == sum(held[n] for n in held if n.startswith(("model.layers", "lm_head"))) + rows


@torch.no_grad()
def test_experts_without_tokens_are_not_read(folder, pair):
    """One token goes to two of four experts: half of the bytes, and those of the router's choice."""
    model = KeyeVL.from_pretrained(folder, streaming=True)
    record = model({"input_ids": IDS[:, :1]}, record=True).record
    held, log = sizes(folder), model.read_log
    for n, layer in enumerate(record.layers):
        experts = sum(size for name, size in held.items() if name.startswith(f"model.layers.{n}.mlp.experts."))
        assert log.experts[n] == set(layer.experts.flatten().tolist()) and log.expert_bytes[n] == experts // 2
    log.clear()
    assert log.total_bytes == 0 and log.experts == {}


@torch.no_grad()
def test_weights_of_idle_experts_may_be_anything(folder, tmp_path):
    """Experts that get no token are filled with nan: nothing changes."""
    from safetensors.torch import load_file, save_file

    model = KeyeVL.from_pretrained(folder, streaming=True)
    before = model({"input_ids": IDS[:, :1]})
    index = json.loads((folder / INDEX).read_text())["weight_map"]
    for n in range(2):
        idle = sorted({0, 1, 2, 3} - model.read_log.experts[n])
        for name in (f"model.layers.{n}.mlp.experts.{part}" for part in ("gate_up_proj", "down_proj")):
            tensors = load_file(folder / index[name])
            kept = tensors[name].clone()
            tensors[name][idle] = torch.nan
            save_file(tensors, tmp_path / index[name])
            assert tensors[name].isnan().any() and not kept.isnan().any()
    for path in folder.iterdir():
        if not (tmp_path / path.name).exists():
            shutil.copy(path, tmp_path)
    after = KeyeVL.from_pretrained(tmp_path, streaming=True)({"input_ids": IDS[:, :1]})
    assert torch.equal(before.logits, after.logits)


MEASURE = """
import pathlib, sys, torch
from minikeye import KeyeVL
torch.set_num_threads(1)
model = KeyeVL.from_pretrained(sys.argv[1], streaming=sys.argv[2] == "streamed", dtype=torch.bfloat16)
with torch.no_grad():
    model({"input_ids": torch.arange(40).view(1, 40)}, last=1)
status = pathlib.Path("/proc/self/status").read_text()
print(next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")))
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads the peak where Linux keeps it")
def test_peak_memory_is_a_few_layers(tmp_path):
    """Twelve layers of 12 MB: resident holds them all, streamed three at most. Mapped pages count as well."""
    nano = KeyeConfig.nano()
    text = replace(nano.text, layers=12, experts=16, expert_width=2048)
    model = KeyeVL(replace(nano, text=text)).bfloat16()
    layer = sum(p.numel() * 2 for p in model.model.layers[0].parameters())
    model.save_pretrained(tmp_path / "deep")
    run = lambda how: int(  # noqa: E731
        subprocess.run(
            [sys.executable, "-c", MEASURE, str(tmp_path / "deep"), how], capture_output=True, text=True, check=True
        ).stdout
    )
    resident, streamed = run("resident"), run("streamed")
    assert layer > 12e6
    assert resident - streamed > 8.5 * layer, (resident, streamed, layer)


# ------------------------------------------------------------------------------------------------------------ the rest


@torch.no_grad()
def test_an_interrupted_pass_leaves_a_cache_that_goes_on(pair, monkeypatch):
    """Ctrl-C in the second layer: the first has stored its tokens and forgets them."""
    resident, model = pair
    cache = model.new_cache()
    model({"input_ids": IDS[:, :30]}, cache)
    fetch = streaming.FetchedLayers.fetch

    def stop(self, n, reader):
        if n == 1:
            raise KeyboardInterrupt
        return fetch(self, n, reader)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(streaming.FetchedLayers, "fetch", stop)
        model({"input_ids": IDS[:, 30:]}, cache)
    assert [layer.length for layer in cache.layers] == [30, 30]
    got = model({"input_ids": IDS[:, 30:]}, cache).logits
    torch.testing.assert_close(got, resident({"input_ids": IDS}).logits[:, 30:], atol=1e-4, rtol=1e-4)


def test_what_a_streamed_model_cannot_do(pair, tmp_path):
    model = pair[1]
    with pytest.raises(ValueError, match="no weights in memory to save: copy its folder"):
        model.save_pretrained(tmp_path / "copy")
    with pytest.raises(RuntimeError, match="stays where it was opened"):
        model.to(torch.float16)
    with pytest.raises(ValueError, match="load it without streaming"), selecting(model, topk=3):
        pass
    assert not list(tmp_path.iterdir())


def test_a_folder_that_changes_is_noticed(lively, tmp_path):
    """Other weights under the same names would be answers of no model at all."""
    lively.save_pretrained(tmp_path / "m", max_shard_bytes=150_000)
    model = KeyeVL.from_pretrained(tmp_path / "m", streaming=True)
    KeyeVL(lively.config).save_pretrained(tmp_path / "m", max_shard_bytes=150_000)
    with torch.no_grad(), pytest.raises(RuntimeError, match="has changed since the model was opened: open it again"):
        model({"input_ids": IDS})


def test_pages_are_read_by_the_second_thread(pair, monkeypatch):
    """Every expert that is mapped and not copied is touched before it works, away from the main thread."""
    import threading

    where = []
    touch = streaming.touched
    monkeypatch.setattr(streaming, "touched", lambda t: where.append(threading.current_thread().name) or touch(t))
    with torch.no_grad():
        pair[1]({"input_ids": IDS})
    experts = [name for name in where if name.startswith("minikeye-experts")]
    assert len(experts) == 2 * 2 * 4  # layers, tensors, experts


def test_threads_end_with_their_pass(pair):
    import threading

    before = threading.active_count()
    pair[1].generate({"input_ids": IDS}, max_new_tokens=3)
    for thread in threading.enumerate():
        if thread.name.startswith("minikeye"):
            thread.join(10)
            assert not thread.is_alive()
    assert threading.active_count() <= before
