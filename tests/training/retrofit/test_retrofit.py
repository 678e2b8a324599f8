"""The retrofit in small: which texts, which windows, what learns in each stage, kill and resume, indexers alone."""

import copy
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from minikeye.checkpoint import CheckpointError
from minikeye.checkpoint.indexers import load_indexers, read_indexer, save_indexers, taught_length
from minikeye.config import IndexerConfig, KeyeConfig
from minikeye.inputs.tokenizer import ByteTokenizer
from minikeye.keye import KeyeVL
from minikeye.training.dsa import RecallMeter
from minikeye.training.loop import LoopConfig
from minikeye.training.retrofit.teach import INDEXERS, SPARSE, STAGES, TUNED, WARMUP, Recipe, teach_text
from minikeye.training.retrofit.texts import Text, Windows, library_texts, token_stream

NANO = KeyeConfig.nano()
OLDER = replace(
    NANO,
    vision=None,
    text=replace(NANO.text, experts=1, experts_per_token=1, qk_norm=False, tied=True),
    indexer=IndexerConfig(heads=2, width=16, topk=16),
    image_token_id=320,
    video_token_id=321,
)
SHORT = LoopConfig(steps=4, lr=1e-2, warmup=1, weight_decay=0.0, save_every=2, log_every=1)
RECIPE = Recipe(length=64, rows=16, warmup=SHORT, sparse=replace(SHORT, slow_lr=0.1))
STREAM = torch.randint(320, (2000,), generator=torch.Generator().manual_seed(5))


@pytest.fixture
def model() -> KeyeVL:
    torch.manual_seed(0)
    return KeyeVL(OLDER)


@pytest.fixture
def windows() -> Windows:
    return Windows(STREAM, 64)


# --------------------------------------------------------------------------------------------------------------- texts


def test_which_texts(tmp_path):
    library, licences = tmp_path / "lib", tmp_path / "licences"
    for name in [f"m{n}.py" for n in range(40)] + [
        "test/t.py",
        "a/tests/t.py",
        "site-packages/p.py",
        "a/b.py",
        "c.txt",
    ]:
        (library / name).parent.mkdir(parents=True, exist_ok=True)
        (library / name).write_text(f"# {name}")
    (library / "copy.py").write_text("# a/b.py")  # the words of a/b.py
    (library / "latin.py").write_bytes(b"# \xe9")
    (library / "empty.py").write_text("\n")
    (library / "folder.py").mkdir()
    (licences / "old").mkdir(parents=True)
    for name in ("LGPL-2", "LGPL-2.1", "LGPL-3"):
        (licences / name).write_text(name)
    texts = library_texts(library, licences)
    names = [text.name for text in texts.all]
    assert names == sorted(
        [f"m{n}.py" for n in range(40)] + ["a/b.py"] + [f"licence:LGPL-{n}" for n in ("2", "2.1", "3")]
    )
    assert len({text.held_out for text in texts.all if "LGPL" in text.name}) == 1  # one family
    assert texts == library_texts(library, licences) and {*texts.train, *texts.held} == {*texts.all}
    assert not {*texts.train} & {*texts.held}
    held = texts.held[0]
    (library / held.name).write_text("# other words")
    assert library_texts(library, licences).digest != texts.digest


def test_nothing_to_hold_out(tmp_path):
    (licences := tmp_path / "licences").mkdir()
    for n in range(40):
        (licences / f"{n}").write_text(f"{n}")
    for library in (tmp_path, str(tmp_path / "absent")):
        with pytest.raises(ValueError, match="expected a folder with Python sources, found none in"):
            library_texts(library, licences)  # not those alone
    (tmp_path / "one.py").write_text("1")
    with pytest.raises(ValueError, match=r"expected texts to learn from and to hold out in .*, got 1 in all"):
        library_texts(tmp_path, tmp_path / "none")


def test_this_pythons_library_is_split_in_ten():
    texts = library_texts()
    assert 0.04 < len(texts.held) / len(texts.all) < 0.2
    assert sum(len(text.words) for text in texts.train) > 2**20
    assert [text.name for text in texts.all if "site-packages" in text.name or "/test/" in text.name] == []


def test_token_stream():
    texts = [Text("a", "one"), Text("b", "two"), Text("c", "three")]
    streams = {tuple(token_stream(texts, ByteTokenizer(), seed).tolist()) for seed in range(20)}
    assert len(streams) > 1  # orders differ
    for stream in streams:
        pieces = bytes(stream_part if stream_part < 256 else 0 for stream_part in stream).decode().split("\0")
        assert sorted(pieces) == ["", "one", "three", "two"] and pieces[-1] == ""
    assert token_stream([], ByteTokenizer()).dtype == torch.long


def test_windows():
    """A step's window is always the same, another seed's another; without repeats it is a piece of the stream."""
    plain = Windows(STREAM, 200, repeats=0.0)
    assert torch.equal(plain.at(3), plain.at(3)) and not torch.equal(plain.at(3), plain.at(4))
    assert not torch.equal(plain.at(3), Windows(STREAM, 200, repeats=0.0, seed=1).at(3))
    for step in range(20):
        window = plain.at(step).tolist()
        assert any(STREAM[n : n + 200].tolist() == window for n in range(len(STREAM) - 199))
        assert not plain.again(step).any()
    with pytest.raises(ValueError, match="expected a stream longer than a window of 64 tokens or more"):
        Windows(STREAM[:64], 64)
    for stream in (STREAM.tolist(), STREAM.float(), STREAM[None]):
        with pytest.raises((ValueError, TypeError), match="stream"):  # in tests, jaxtyping says it first
            Windows(stream, 64)


def test_what_is_said_again():
    """Every marked token ends a pair that stood in the window before; a quarter of a window, more or less a passage."""
    windows = Windows(STREAM, 400, repeats=1.0)
    counts = []
    for step in range(40):
        window, again = windows.at(step).tolist(), windows.again(step).tolist()
        counts.append(sum(again))
        pairs = [tuple(window[n - 1 : n + 1]) for n in range(400)]
        assert all(pairs.index(pairs[n]) < n for n in range(400) if again[n])
    assert 60 < sum(counts) / 40 < 140 and max(counts) <= 200
    halves = Windows(STREAM, 400)
    assert 20 < sum(bool(halves.again(step).any()) for step in range(80)) < 60


# -------------------------------------------------------------------------------------------------------------- stages


@pytest.mark.parametrize(
    ("stage", "moved"),
    [(WARMUP, {"sa_indexer"}), (INDEXERS, {"sa_indexer"}), (SPARSE, {"sa_indexer", "rest"}), (TUNED, {"rest"})],
    ids=STAGES,
)
def test_what_learns(stage, moved, model, windows):
    before = copy.deepcopy(model.state_dict())
    lines = teach_text(model, stage, RECIPE, windows)
    assert len(lines) == 4 and set(STAGES) == {"warmup", "indexers", "sparse", "tuned"}
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert {"sa_indexer" if "sa_indexer" in n else "rest" for n in changed} == moved
    if "rest" in moved:  # every weight of the model, the tied table too
        assert {n for n in before if "sa_indexer" not in n} <= changed


def test_the_models_own_weights_learn_slowly(model, windows):
    """Adam's first step is the rate in every weight whose gradient is not tiny: a tenth of it beside the indexers."""
    before = copy.deepcopy(model.state_dict())
    recipe = replace(RECIPE, sparse=replace(SHORT, steps=1, warmup=0, slow_lr=0.1))
    teach_text(model, SPARSE, recipe, windows)
    moved = {n: float((t - before[n]).abs().max()) for n, t in model.state_dict().items()}
    index, own = (f"model.layers.0.self_attn.{n}.weight" for n in ("sa_indexer.k_proj", "v_proj"))
    assert_close(moved[index], 1e-2, atol=1e-5, rtol=0)
    assert_close(moved[own], 1e-3, atol=1e-6, rtol=0)


def test_killed_and_resumed(model, windows, tmp_path):
    """Cut after two steps of four: the same weights and the same log as in one go."""
    twin, whole = copy.deepcopy(model), copy.deepcopy(model)
    expected = teach_text(whole, SPARSE, RECIPE, windows)

    class Cut(Windows):
        def at(self, step: int):
            if step == 3:
                raise KeyboardInterrupt
            return super().at(step)

    with pytest.raises(KeyboardInterrupt):
        teach_text(twin, SPARSE, RECIPE, Cut(STREAM, 64), tmp_path)
    fresh = copy.deepcopy(model)
    lines = teach_text(fresh, SPARSE, RECIPE, windows, tmp_path)
    assert [line["step"] for line in lines] == [2, 3]
    assert [line["loss"] for line in lines] == [line["loss"] for line in expected[2:]]
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), whole.parameters(), strict=True))


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"warmup": replace(SHORT, steps=6)}, "steps 4, now 6"),
        ({"warmup": replace(SHORT, lr=1e-3)}, "lr 0.01, now 0.001"),
        ({"rows": 8}, "rows 16, now 8"),
        ({"seed": 1}, "seed 0, now 1"),
        ({"repeats": 1.0}, "repeats 0.5, now 1.0"),
        ({"stream": STREAM.flip(0)}, "stream '.*', now '"),
        ({"topk": 8}, "indexer {.*'topk': 16.*, now {.*'topk': 8"),
        ({"weights": 2.0}, "weights '.*', now '"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_folder_holds_one_run(other, complaint, model, windows, tmp_path):
    """Else a finished run of one seed would be given out as that of another, and no error would say so."""
    teach_text(model, WARMUP, RECIPE, windows, tmp_path)
    often = replace(RECIPE, warmup=replace(SHORT, save_every=0, log_every=2))
    assert teach_text(model, WARMUP, often, windows, tmp_path) == []  # done; this may change
    recipe = replace(RECIPE, **{k: v for k, v in other.items() if k in ("warmup", "rows")})
    windows = replace(windows, **{k: v for k, v in other.items() if k in ("seed", "repeats", "stream")})
    if "topk" in other:
        model = KeyeVL(replace(OLDER, indexer=replace(OLDER.indexer, topk=other["topk"])))
    if "weights" in other:
        model.model.norm.weight.data[0] = other["weights"]
    with pytest.raises(ValueError, match=rf"holds a run with other settings \(.*{complaint}"):
        teach_text(model, WARMUP, recipe, windows, tmp_path)


def test_windows_that_do_not_fit(model, windows):
    for recipe, topk in ((replace(RECIPE, length=128), 16), (RECIPE, 64)):
        other = KeyeVL(replace(OLDER, indexer=replace(OLDER.indexer, topk=topk)))
        with pytest.raises(ValueError, match="expected windows of the recipe's"):
            teach_text(other, WARMUP, recipe, windows)


def test_only_these_stages(model, windows):
    with pytest.raises(ValueError, match=r"expected a Stage of STAGES \(warmup, indexers, sparse, tuned\), got Stage"):
        teach_text(model, replace(WARMUP, name="naming"), RECIPE, windows)


def test_warm_up_raises_what_is_kept(model, windows):
    """The selection of the taught indexer holds more of the attention than that of the untaught one."""
    for layer in model.model.layers:  # attention that prefers some tokens to others, as a trained model's does
        layer.self_attn.q_proj.weight.data *= 8

    def kept() -> float:
        meter = RecallMeter(16, last=32)
        with torch.no_grad():
            model({"input_ids": STREAM[:640].view(10, 64)}, attention="dense", observer=meter)
        return float(torch.stack(meter.kept).mean())

    before = kept()
    recipe = replace(RECIPE, warmup=replace(SHORT, steps=60, lr=2e-2, log_every=20, save_every=0))
    lines = teach_text(model, WARMUP, recipe, replace(windows, repeats=0.0))  # rows of one kind: their losses compare
    assert lines[-1]["loss"] < lines[0]["loss"] and kept() > before


# ------------------------------------------------------------------------------------------------------ indexers alone


def test_indexers_alone(model, tmp_path):
    save_indexers(model, tmp_path / "ix", 64, "a note")
    assert read_indexer(tmp_path / "ix") == OLDER.indexer and taught_length(tmp_path / "ix") == 64
    with pytest.raises(ValueError, match="expected the tokens of the longest text that was taught, got 0"):
        save_indexers(model, tmp_path / "ix", 0)
    stated = (tmp_path / "ix" / "indexer.json").read_text()
    for length, got in (('"64"', "'64'"), ("true", "True")):
        (tmp_path / "ix" / "indexer.json").write_text(stated.replace('"length": 64', f'"length": {length}'))
        with pytest.raises(ValueError, match=f"states no length that was taught, got {got}"):
            taught_length(tmp_path / "ix")
    (tmp_path / "ix" / "indexer.json").write_text(stated)
    other = copy.deepcopy(model)
    for name, p in other.named_parameters():
        if "sa_indexer" in name:
            p.data.zero_()
    load_indexers(other, tmp_path / "ix")
    for name, p in other.named_parameters():
        assert_close(
            p, model.state_dict()[name].bfloat16().float() if "sa_indexer" in name else model.state_dict()[name]
        )
    save_indexers(other, tmp_path / "ix", 64)  # over its own kind
    with pytest.raises(NotADirectoryError, match="expected the name of a folder"):
        save_indexers(other, tmp_path / "ix" / "indexer.json", 64)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="holds other files than indexers"):
        save_indexers(model, tmp_path / "else", 64)


def test_indexers_of_others(model, tmp_path):
    save_indexers(model, tmp_path / "ix", 64)
    tuned = copy.deepcopy(model)
    tuned.model.norm.weight.data[0] = 2.0
    before = copy.deepcopy(tuned.state_dict())
    with pytest.raises(CheckpointError, match="taught on other weights"):
        load_indexers(tuned, tmp_path / "ix")
    assert all(torch.equal(t, before[n]) for n, t in tuned.state_dict().items())
    wider = KeyeVL(replace(OLDER, indexer=replace(OLDER.indexer, heads=3)))
    with pytest.raises(CheckpointError, match="the model has IndexerConfig"):
        load_indexers(wider, tmp_path / "ix")
    deeper = KeyeVL(replace(OLDER, text=replace(OLDER.text, layers=3)))
    with pytest.raises(CheckpointError, match="belong to another model"):
        load_indexers(deeper, tmp_path / "ix")
    with pytest.raises(FileNotFoundError, match=r"expected indexer\.json"):
        load_indexers(model, tmp_path)


def test_files_stay_small(model, tmp_path, monkeypatch):
    """More than a file's worth is spread over several, and comes back."""
    monkeypatch.setattr("minikeye.checkpoint.indexers.LARGEST", 2**17 + 6000)
    save_indexers(model, tmp_path / "ix", 64)
    assert len(files := list((tmp_path / "ix").glob("*.safetensors"))) > 1
    assert max(path.stat().st_size for path in files) <= 2**17 + 6000
    load_indexers(model, tmp_path / "ix")
