"""Saving and loading: what is on disk is read here by hand, from the bytes of the safetensors headers."""

import inspect
import json
import math
import os
import stat
import struct
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from minikeye import files
from minikeye.checkpoint import loader, tensors
from minikeye.checkpoint.tensors import INDEX, SINGLE, CheckpointError, plan_shards, save
from minikeye.config import KeyeConfig
from minikeye.cost.memory import NotEnoughMemory
from minikeye.keye import KeyeVL

LIMIT = 150_000  # bytes; the largest tensor of nano has 147,456


@pytest.fixture(scope="module")
def model() -> KeyeVL:
    torch.manual_seed(1)
    return KeyeVL(KeyeConfig.nano()).eval()


@pytest.fixture
def folder(model, tmp_path) -> Path:
    save(model, tmp_path / "nano", LIMIT)
    return tmp_path / "nano"


@pytest.fixture
def single(model, tmp_path) -> Path:
    """A checkpoint in one file, as others write small ones."""
    path = tmp_path / "single"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(model.config.to_dict()))
    save_file(model.state_dict(), path / SINGLE)
    return path


def header(path: Path) -> dict[str, dict]:
    """Eight bytes say how long the header is, the header is JSON."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    return {name: entry for name, entry in json.loads(data[8 : 8 + length]).items() if name != "__metadata__"}


def change(single: Path, **tensors: torch.Tensor | None) -> None:
    """Put tensors into the single file, or take them out where None is given; `__` stands for a dot."""
    held = load_file(single / SINGLE)
    for name, tensor in ((name.replace("__", "."), t) for name, t in tensors.items()):
        held.pop(name, None)
        held |= {} if tensor is None else {name: tensor}
    save_file(held, single / SINGLE)


def same(a: KeyeVL, b: KeyeVL) -> bool:
    theirs = b.state_dict()
    return a.state_dict().keys() == theirs.keys() and all(torch.equal(t, theirs[n]) for n, t in a.state_dict().items())


# ------------------------------------------------------------------------------------------------------- what is saved


def test_save_and_load_is_the_identity(model, folder):
    """Every tensor bit for bit, the config field for field, the same logits, ready to run."""
    loaded = KeyeVL.from_pretrained(folder)
    assert same(model, loaded) and loaded.config == model.config and not loaded.training
    ids = {"input_ids": torch.arange(20)[None]}
    assert torch.equal(model(ids).logits, loaded(ids).logits)


def test_shards_and_index(model, folder):
    """Each shard within the limit, each tensor in the shard that the index names, all bytes counted."""
    index = json.loads((folder / INDEX).read_text())
    shards = {path.name: header(path) for path in folder.glob("*.safetensors")}
    assert len(shards) > 2 and set(shards) == {
        f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors" for n in range(len(shards))
    }
    sizes = {s: sum(b - a for a, b in (e["data_offsets"] for e in entries.values())) for s, entries in shards.items()}
    assert max(sizes.values()) <= LIMIT
    assert index["weight_map"] == {name: shard for shard, entries in shards.items() for name in entries}
    assert index["weight_map"].keys() == model.state_dict().keys()
    total = sum(t.numel() * 4 for t in model.state_dict().values())
    assert index["metadata"]["total_size"] == total == sum(sizes.values())
    assert {path.name for path in folder.iterdir()} == {*shards, INDEX, "config.json"}


def test_config_on_disk(model, folder):
    assert KeyeConfig.from_dict(json.loads((folder / "config.json").read_text())) == model.config


def test_a_new_shard_only_where_the_next_tensor_does_not_fit():
    assert plan_shards({"a": 4, "b": 6, "c": 1, "d": 10, "e": 0}, 10) == [["a", "b"], ["c"], ["d", "e"]]


def test_a_tensor_larger_than_a_shard(model, tmp_path):
    with pytest.raises(CheckpointError, match=r"147456 bytes, more than a shard of 147455: allow larger shards"):
        save(model, tmp_path / "nano", 147_455)
    assert list(tmp_path.iterdir()) == []


def test_dtype_on_save(model, tmp_path):
    """bfloat16 on disk takes half the bytes; a CPU computes in float32 with the rounded numbers."""
    save(model, tmp_path / "half", dtype=torch.bfloat16)
    (shard,) = (tmp_path / "half").glob("*.safetensors")
    assert {entry["dtype"] for entry in header(shard).values()} == {"BF16"}
    total = json.loads((tmp_path / "half" / INDEX).read_text())["metadata"]["total_size"]
    assert total == sum(t.numel() * 2 for t in model.state_dict().values())
    loaded = KeyeVL.from_pretrained(tmp_path / "half").state_dict()
    assert all(torch.equal(loaded[n], t.bfloat16().float()) for n, t in model.state_dict().items())
    assert next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_dtype_on_load(model, folder, dtype):
    loaded = KeyeVL.from_pretrained(folder, dtype=dtype).state_dict()
    assert all(torch.equal(loaded[n], t.to(dtype)) and loaded[n].dtype == dtype for n, t in model.state_dict().items())


def test_one_file_without_an_index(model, single):
    assert same(model, KeyeVL.from_pretrained(single))


def test_a_hub_id_is_downloaded(model, folder, monkeypatch):
    """Nothing but configuration and safetensors is asked for."""
    asked = {}
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, allow_patterns: asked.update({name: allow_patterns}) or folder,
    )
    assert same(model, KeyeVL.from_pretrained("owner/name"))
    assert asked == {"owner/name": ["*.json", "*.jinja", "*.safetensors"]}
    files.local_folder("owner/name", weights=False)
    assert asked == {"owner/name": ["*.json", "*.jinja"]}


# ---------------------------------------------------------------------------------------------------- killed in between


def kill_on_shard(monkeypatch, number: int) -> None:
    calls = []

    def write(*args, **more):
        calls.append(args)
        if len(calls) == number:
            raise KeyboardInterrupt
        save_file(*args, **more)

    monkeypatch.setattr(tensors, "save_file", write)


def test_killed_while_saving_over_an_old_checkpoint(model, folder, monkeypatch):
    """The old one is untouched and nothing lies beside it."""
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    kill_on_shard(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        save(KeyeVL(model.config), folder, LIMIT)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder] and same(model, KeyeVL.from_pretrained(folder))


def test_killed_while_saving_for_the_first_time(model, tmp_path, monkeypatch):
    kill_on_shard(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        save(model, tmp_path / "nano", LIMIT)
    assert list(tmp_path.iterdir()) == []


def test_saving_over_an_old_checkpoint(model, folder):
    """The new one in fewer shards; none of the old shards is left."""
    other = KeyeVL(model.config)
    save(other, folder)
    assert same(other, KeyeVL.from_pretrained(folder)) and len(list(folder.glob("*.safetensors"))) == 1
    assert list(folder.parent.iterdir()) == [folder]


def test_a_folder_of_other_things_is_not_replaced(model, tmp_path):
    """Saving swaps whole folders: one that is no checkpoint is left alone."""
    (tmp_path / "holiday.txt").write_text("do not lose me")
    with pytest.raises(FileExistsError, match=r"holds other files but no config\.json"):
        save(model, tmp_path)
    assert (tmp_path / "holiday.txt").read_text() == "do not lose me"


def test_saving_over_a_checkpoint_keeps_the_other_files(model, tmp_path):
    """New weights in place of the old, in fewer shards; the tokenizer, a note and a folder stay."""
    save(model, tmp_path / "m", max_shard_bytes=400_000)
    (tmp_path / "m" / "tokenizer.json").write_text("{}")
    (tmp_path / "m" / "notes").mkdir()
    (tmp_path / "m" / "notes" / "a.txt").write_text("mine")
    save(model, tmp_path / "m")
    kept = sorted(str(path.relative_to(tmp_path / "m")) for path in (tmp_path / "m").rglob("*") if path.is_file())
    assert kept == [
        "config.json",
        "model-00001-of-00001.safetensors",
        "model.safetensors.index.json",
        "notes/a.txt",
        "tokenizer.json",
    ]


def test_a_device_that_is_not_there(single, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees no GPU: use device='cpu'"):
        KeyeVL.from_pretrained(single, device="cuda")


# ----------------------------------------------------------------------------------------------------- what is refused


def test_all_differences_in_one_error(single):
    change(
        single,
        lm_head__weight=None,
        model__norm__weight=torch.zeros(65),
        model__embed_tokens__weight=torch.zeros(320, 64, dtype=torch.int64),
        model__surplus=torch.zeros(2, 3),
    )
    with pytest.raises(CheckpointError) as error:
        KeyeVL.from_pretrained(single)
    for line in (
        "does not hold this model; differences: 4",
        "missing: lm_head.weight [320, 64]",
        "misshapen: model.norm.weight is [65], the config needs [64]",
        "wrong dtype: model.embed_tokens.weight is I64, expected F32, F16 or BF16",
        "extra: model.surplus [2, 3]",
    ):
        assert line in str(error.value)


def test_a_long_list_is_cut(single):
    change(single, **{f"x{n}": torch.zeros(1) for n in range(50)})
    with pytest.raises(CheckpointError, match=r"differences: 50(?s:.*)\.\.\. and 10 more"):
        KeyeVL.from_pretrained(single)


def test_keys_outside_the_function_are_ignored(model, single):
    """SigLIP's pooling head and the rotary buffers of older releases."""
    change(
        single,
        visual__vision_model__head__probe=torch.zeros(1, 1, 48),
        model__layers__0__self_attn__rotary_emb__inv_freq=torch.zeros(16),
    )
    assert same(model, KeyeVL.from_pretrained(single))


def test_truncated_shard(folder):
    path = sorted(folder.glob("*.safetensors"))[1]
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match=f"{path.name} is not a readable safetensors file"):
        KeyeVL.from_pretrained(folder)


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"lm_head.weight": 1}}'])
def test_broken_index(folder, text):
    (folder / INDEX).write_text(text)
    with pytest.raises(CheckpointError, match="is not a safetensors index"):
        KeyeVL.from_pretrained(folder)


def test_index_names_an_absent_file(folder):
    path = sorted(folder.glob("*.safetensors"))[1]
    path.unlink()
    with pytest.raises(FileNotFoundError, match=f"names files that are not there: {path.name}"):
        KeyeVL.from_pretrained(folder)


def test_no_config(folder):
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"expected a config\.json"):
        KeyeVL.from_pretrained(folder)


def test_only_safetensors_are_read(single):
    """A pickled checkpoint could run any code: its name is not even tried."""
    (single / SINGLE).rename(single / "pytorch_model.bin")
    with pytest.raises(FileNotFoundError, match="minikeye reads safetensors only"):
        KeyeVL.from_pretrained(single)


@pytest.mark.parametrize("name", ["nowhere", "a/b/c", Path("owner/name")])
def test_neither_a_folder_nor_a_hub_id(name):
    with pytest.raises(FileNotFoundError, match="give a checkpoint folder or a hub id such as owner/name"):
        KeyeVL.from_pretrained(name)


def test_weights_that_do_not_fit_are_refused(folder, monkeypatch):
    """With what would fit: here, nothing."""
    monkeypatch.setattr(loader, "free_bytes", lambda device: 10_000)
    with pytest.raises(NotEnoughMemory, match=r"cpu has 10.0 kB free, 1.\d+ MB are needed \(weights"):
        KeyeVL.from_pretrained(folder)


def test_auto_is_the_cpu_where_there_is_no_gpu(single, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert next(KeyeVL.from_pretrained(single, device="auto").parameters()).device.type == "cpu"


def test_a_config_of_another_function_is_refused(single):
    """What minikeye does not compute is not loaded as if it did."""
    stated = json.loads((single / "config.json").read_text())
    stated["text_config"]["hidden_act"] = "gelu"
    (single / "config.json").write_text(json.dumps(stated))
    with pytest.raises(ValueError, match="hidden_act"):
        KeyeVL.from_pretrained(single)


def test_a_dtype_by_name_is_none(single):
    """Without the tests' import hook, which would complain first."""
    message = r"^dtype must be a torch\.dtype such as torch\.bfloat16, or None; got 'bfloat16'"
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(loader.load)(KeyeVL, single, dtype="bfloat16")


def test_interrupted_between_the_renames(model, folder, monkeypatch):
    """The old checkpoint comes back to its name."""
    calls, replace = [], files.os.replace

    def stop(old, new):
        calls.append(new)
        if len(calls) == 2:
            raise KeyboardInterrupt
        replace(old, new)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files.os, "replace", stop)
        save(KeyeVL(model.config), folder, LIMIT)
    assert same(model, KeyeVL.from_pretrained(folder)) and list(folder.parent.iterdir()) == [folder]


def test_saving_through_a_link(model, folder, tmp_path):
    (tmp_path / "link").symlink_to(folder)
    other = KeyeVL(model.config)
    save(other, tmp_path / "link")
    assert (tmp_path / "link").is_symlink() and same(other, KeyeVL.from_pretrained(folder))


def test_an_index_that_names_the_wrong_shard(folder):
    """Read as a whole it would load; streamed it would fail in the middle."""
    index = json.loads((folder / INDEX).read_text())
    right = index["weight_map"]["model.norm.weight"]
    wrong = next(file for file in index["weight_map"].values() if file != right)
    index["weight_map"]["model.norm.weight"] = wrong
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"misplaced: model.norm.weight is in {right}, the index says {wrong}"):
        KeyeVL.from_pretrained(folder)


# ------------------------------------------------------------------------------------------- what is not what it claims


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.sa_indexer.k_proj.weight", "model.norm.weight", "visual.vision_model.encoder"]
)
@pytest.mark.parametrize("streaming", [False, True])
def test_a_number_that_is_none(single, name, value, streaming):
    """One in one tensor of any kind, an indexer's above all: it would choose arbitrary keys and answer all the same."""
    held = load_file(single / SINGLE)
    name = next(n for n in held if n.startswith(name))
    held[name].view(-1)[-1] = value
    save_file(held, single / SINGLE)
    with pytest.raises(CheckpointError, match=rf"holds weights that are nan or not finite as torch.float32: {name}; "):
        model = KeyeVL.from_pretrained(single, streaming=streaming)
        pixels = {"patches": torch.zeros(4, 3, 14, 14), "grids": torch.tensor([[1, 2, 2]])}
        positions = torch.arange(3).expand(3, 1, 3)
        model({"input_ids": torch.tensor([[261, 1, 2]]), "positions": positions, **pixels})


def test_a_streamed_expert_that_is_none(single):
    """Checked when a token comes to it."""
    held = load_file(single / SINGLE)
    held["model.layers.0.mlp.experts.down_proj"][2] = math.nan
    save_file(held, single / SINGLE)
    model = KeyeVL.from_pretrained(single, streaming=True)
    with pytest.raises(CheckpointError, match=r"expert 2 of model\.layers\.0\.mlp\.experts\.down_proj"):
        model({"input_ids": torch.arange(200)[None]})


def test_numbers_beyond_the_range_of_a_dtype(single):
    """100,000 is a number in bfloat16 and none in float16."""
    change(single, model__norm__weight=torch.full((64,), 1e5))
    assert KeyeVL.from_pretrained(single, dtype=torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"not finite as torch\.float16: model\.norm\.weight; .* a larger range"):
        KeyeVL.from_pretrained(single, dtype=torch.float16)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("file", ["../{}", "{}/../{}", "/etc/hostname", "sub/{}", "", "..", 7, None])
def test_an_index_that_leads_elsewhere(folder, file, streaming):
    """Even where the file there is the very shard: names in an index are plain."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    shard = index["weight_map"]["model.norm.weight"]
    for place in (folder.parent / shard, folder / "sub" / shard):
        place.parent.mkdir(exist_ok=True)
        place.write_bytes((folder / shard).read_bytes())
    index["weight_map"]["model.norm.weight"] = file.format(shard, shard) if isinstance(file, str) else file
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError, match="is not a safetensors index: expected the plain name of a file in"):
        KeyeVL.from_pretrained(folder, streaming=streaming)


def test_a_shard_that_is_a_link_elsewhere(folder, tmp_path):
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.rename(tmp_path / "elsewhere")
    shard.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=f"{shard.name} is a link out of its folder"):
        KeyeVL.from_pretrained(folder)


def test_a_hub_snapshot(model, folder, tmp_path):
    """As huggingface_hub lays one out: every file is a link to the cache of its repository."""
    blobs = tmp_path / "models--a--b" / "blobs"
    snapshot = tmp_path / "models--a--b" / "snapshots" / "c0ffee"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for n, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(n))
        (snapshot / path.name).symlink_to(f"../../blobs/{n}")
    assert same(model, KeyeVL.from_pretrained(snapshot))


@pytest.mark.parametrize("streaming", [False, True])
def test_an_entry_that_no_file_holds(folder, streaming):
    """Whole and streamed alike: the folder is not what its index says."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    index["weight_map"]["model.surplus"] = index["weight_map"]["model.norm.weight"]
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"nowhere: model\.surplus is in no file, the index says model-0"):
        KeyeVL.from_pretrained(folder, streaming=streaming)


@pytest.mark.parametrize("streaming", [False, True])
def test_a_copy_in_another_shard(model, folder, streaming):
    """The one that the index names is read, whatever the other holds."""
    index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
    where = index["weight_map"]["model.norm.weight"]
    for shard in sorted(folder.glob("*.safetensors")):
        if shard.name != where:
            save_file({**load_file(shard), "model.norm.weight": torch.full((64,), 9.0)}, shard)
    ids = {"input_ids": torch.arange(20)[None]}
    assert torch.equal(KeyeVL.from_pretrained(folder, streaming=streaming)(ids).logits, model(ids).logits)


@pytest.mark.parametrize(("mask", "modes"), [(0o022, (0o755, 0o644)), (0o077, (0o700, 0o600)), (0o002, (0o775, 0o664))])
def test_who_may_read_it(model, tmp_path, mask, modes):
    """As the umask has it, also over a folder that is there."""
    before = os.umask(mask)
    try:
        for _ in range(2):
            save(model, tmp_path / "m", LIMIT)
    finally:
        os.umask(before)
    paths = [tmp_path / "m", *(tmp_path / "m").iterdir()]
    assert {(path.is_dir(), stat.S_IMODE(path.stat().st_mode)) for path in paths} == {
        (True, modes[0]),
        (False, modes[1]),
    }


def test_a_disk_that_is_too_small(model, tmp_path, monkeypatch):
    """Said before a byte is written."""
    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    with pytest.raises(OSError, match=r"m needs 0\.0 GiB, .* has 0\.0 GiB free"):
        save(model, tmp_path / "m")
    assert list(tmp_path.iterdir()) == []
