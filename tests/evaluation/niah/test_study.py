"""The heat map of models whose map is known: one that finds all, one that guesses, one that sees the first half."""

import json
import random
import re
import sys

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.evaluation.niah import study
from minikeye.evaluation.niah.both_ways import Answered
from minikeye.evaluation.niah.haystack import Cell
from minikeye.evaluation.niah.heat_map import Map, of_study, save, splits, table, words
from minikeye.evaluation.real_clips import Footage
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.keye import KeyeVL
from minikeye.scores import wilson

CONFIG = KeyeConfig.nano()
TOKENIZER = load_tokenizer(CONFIG)
FRAMES = 10  # half a second apart: 0.0 to 4.5 s
CLIPS = [Footage("grey", torch.full((4, 3, 28, 28), 90, dtype=torch.uint8), (0.0, 0.5, 1.0, 1.5))]


@pytest.fixture(scope="module")
def model() -> KeyeVL:
    torch.manual_seed(0)
    return KeyeVL(CONFIG).eval()


def answering(monkeypatch, say) -> None:
    """Every question is answered by `say(truth)`; forced is right where that is the truth."""

    def ask(model, inputs, truths, stop_ids, longest, attention="sparse", backend="auto"):
        said = [say(TOKENIZER.decode(list(truth)), attention) for truth in truths]
        return [
            Answered(TOKENIZER.encode(text), TOKENIZER.encode(text) == list(truth))
            for text, truth in zip(said, truths, strict=True)
        ]

    monkeypatch.setattr(study, "ask_both_ways", ask)


def perfect(truth: str, attention: str) -> str:
    return truth


def depth_blind(truth: str, attention: str) -> str:
    """Sees what comes in the first half, and says something else of the rest."""
    second = float(re.findall(r"\d+\.\d", truth)[0])
    return truth if second < 2.5 else "3 at 99.0 s"


def rows_of(model, needle: str = "card", count: int = 12) -> list[dict]:
    cells = [cell for cell in study.planned([FRAMES], [needle], ["real"])]
    return [row for cell in cells for row in study.measure(model, cell, count, CLIPS, ("sparse", "dense"))]


def test_a_model_that_finds_all(model, monkeypatch):
    answering(monkeypatch, perfect)
    for needle in ("card", "thing"):
        rows = rows_of(model, needle)
        assert len(rows) == 2 * 7 and {(row["generated"], row["forced"], row["n"]) for row in rows} == {(100, 100, 12)}
        summary = study.summarise(rows) | study.intervals(rows)
        assert summary[f"niah_{needle}_real_sparse_generated"] == 100
        assert summary[f"niah_{needle}_real_dense_forced_worst_cell"] == 100
        assert summary[f"niah_{needle}_real_dense_minus_sparse"] == 0
    low = wilson(12, 12).low
    assert rows[0]["generated_95"] == [round(100 * low, 2), 100.0]


def test_a_model_that_sees_the_first_half(model, monkeypatch):
    """The upper half of the map is full, the lower one empty; the mean is what a child counts."""
    answering(monkeypatch, depth_blind)
    rows = rows_of(model)
    share = {row["depth"]: row["generated"] for row in study.chosen(rows, attention="sparse")}
    assert share == {0.0: 100, 0.2: 100, 0.4: 100, 0.6: 0, 0.8: 0, 1.0: 0}
    summary = study.summarise(rows)
    assert (summary["mean_sparse"], summary["worst_cell_sparse"]) == (50, 0)
    [line] = of_study(rows, "card")
    assert line[0].sentence() == (
        "real footage, sparse, written: 50.0 % on average, at worst 0 % at 10 frames, depth 0.6."
    )


def test_a_model_that_guesses(model, monkeypatch):
    """A digit of ten and a frame of all: what `chance` says, within what 150 draws differ by."""
    rng = random.Random(3)
    answering(monkeypatch, lambda truth, attention: f"{rng.randrange(10)} at {0.5 * rng.randrange(FRAMES):.1f} s")
    cells = [Cell("card", "real", FRAMES, depth) for depth in study.DEPTHS]
    rows = [row for cell in cells for row in study.measure(model, cell, 150, CLIPS, ("sparse",))]
    for row in rows:
        low, high = row["generated_95"]
        assert low - 1 <= row["chance"] <= high + 1 and 1.5 < row["chance"] < 3.1
    assert abs(study.summarise(rows)["mean_sparse"] - sum(row["chance"] for row in rows) / 6) < 2


def test_saying_it_in_other_words_counts_only_where_it_is_written(model, monkeypatch):
    """0.3 s off is within half a second and not the true tokens; an interval of the right half likewise."""
    answering(monkeypatch, lambda truth, _: re.sub(r"at (\S+) s", lambda m: f"at {float(m[1]) + 0.3:.1f} s", truth))
    [row] = study.measure(model, Cell("card", "real", FRAMES, 0.4), 6, CLIPS, ("sparse",))
    assert (row["generated"], row["forced"], row["exact"], row["digit"]) == (100, 0, 0, 100)
    answering(monkeypatch, lambda truth, _: re.sub(r"(\S+)\]\]", lambda m: f"{float(m[1]) + 0.4:.1f}]]", truth))
    [row] = study.measure(model, Cell("thing", "real", FRAMES, 0.4), 6, CLIPS, ("sparse",))
    assert (row["generated"], row["forced"]) == (100, 0) and row["tiou"] == pytest.approx(100 * 5 / 9, abs=0.01)
    answering(monkeypatch, lambda truth, _: re.sub(r"(\S+)\]\]", lambda m: f"{float(m[1]) + 0.6:.1f}]]", truth))
    [row] = study.measure(model, Cell("thing", "real", FRAMES, 0.4), 6, CLIPS, ("sparse",))
    assert row["generated"] == 0


def test_what_dense_finds_more(model, monkeypatch):
    """Dense finds all, sparse the first half: half of the answers apart, and each pair is of one needle."""
    answering(
        monkeypatch, lambda truth, attention: (perfect if attention == "dense" else depth_blind)(truth, attention)
    )
    lost = study.intervals(rows_of(model))
    assert lost["niah_card_real_dense_minus_sparse"] == 50
    # Each needle is lost at three depths of six: drawn anew, needles differ in nothing.
    assert lost["niah_card_real_dense_minus_sparse_low"] == lost["niah_card_real_dense_minus_sparse_high"] == 50


def test_outcomes_stand_in_the_order_of_the_needles(model, monkeypatch):
    """Also where two shapes of frames are asked apart, and in small batches."""
    answering(monkeypatch, lambda truth, _: truth if truth.startswith("3") else "3 at 99.0 s")
    wide = Footage("wide", torch.full((4, 3, 28, 56), 90, dtype=torch.uint8), CLIPS[0].seconds)
    cell = Cell("card", "real", FRAMES, 0.4)
    [row] = study.measure(model, cell, 10, [*CLIPS, wide], ("sparse",), tokens=250)
    assert row["each_generated"] == row["each_forced"] == "0001000000"


def test_an_interval_draws_needles(model, monkeypatch):
    """A model that never reads a 3: one card of ten is lost in all cells, which is one misfortune and not sixty."""
    answering(monkeypatch, lambda truth, _: truth.replace("3 at", "8 at"))
    found = study.intervals(rows_of(model, count=10))
    assert found["niah_card_real_sparse_generated_high"] == 100 and found["niah_card_real_sparse_generated_low"] == 70


def test_levels_add_up(model, monkeypatch):
    """Every factor counts every needle once, with what was found of it."""
    answering(monkeypatch, depth_blind)
    rows = study.chosen(rows_of(model), attention="sparse")
    levels = study.by_level(rows)
    assert set(levels) == {"name", "footage", "shape", "across", "down", "size"}
    for parts in levels.values():
        assert [sum(column) for column in zip(*parts.values(), strict=True)] == [72, 36, 36]
    assert levels["name"]["0"] == [12, 6, 6] and levels["name"]["9"] == [6, 3, 3]
    lines = splits(rows, "card").splitlines()
    assert len(lines) == 6 and "real footage, shape: 28x28 50.0 % of 72" in lines


def call(monkeypatch, tmp_path, *more: str) -> None:
    options = ["--checkpoint", "x", "--clips", "clips", "--out", tmp_path / "niah.json", "--device", "cpu"]
    options += ["--lengths", 4, 6, "--needles", 2, "--haystacks", "real", "--kinds", "card", *more]
    monkeypatch.setattr(sys, "argv", ["study", *map(str, options)])
    study.main()


def test_killed_and_resumed(model, monkeypatch, tmp_path, capsys):
    """The rows of both calls are those of one, and nothing is asked twice."""
    answering(monkeypatch, depth_blind)
    monkeypatch.setattr(study, "EVERY", 0.0)
    monkeypatch.setattr(study, "decode", lambda *a, **k: CLIPS)
    monkeypatch.setattr(KeyeVL, "from_pretrained", classmethod(lambda *a, **k: model))
    asked, measure = [], study.measure

    def until(most: int):
        def one(model, cell, *rest):
            if len(asked) == most:
                raise KeyboardInterrupt
            asked.append(cell)
            return measure(model, cell, *rest)

        return one

    monkeypatch.setattr(study, "measure", until(9))
    with pytest.raises(KeyboardInterrupt):
        call(monkeypatch, tmp_path)
    half = json.loads((tmp_path / "niah.json").read_text(encoding="utf-8"))
    assert len(half["rows"]) == 6 * 2 + 1 + 2 * 2  # a length, its control, two cells of the next
    assert half["summary"]["mean_sparse"] == 100 and "niah_card_real_dense_minus_sparse" not in half["summary"]
    monkeypatch.setattr(study, "measure", until(100))
    call(monkeypatch, tmp_path)
    whole = json.loads((tmp_path / "niah.json").read_text(encoding="utf-8"))
    assert len(asked) == len(set(asked)) == 14 and len(whole["rows"]) == 2 * 13
    assert (
        whole["rows"][: len(half["rows"])] == half["rows"] and "niah_card_real_dense_minus_sparse" in whole["summary"]
    )
    call(monkeypatch, tmp_path)
    assert len(asked) == 14
    assert json.loads((tmp_path / "niah.json").read_text(encoding="utf-8"))["rows"] == whole["rows"]


def test_out_of_time_starts_no_cell(model, monkeypatch, tmp_path):
    monkeypatch.setattr(study, "decode", lambda *a, **k: CLIPS)
    monkeypatch.setattr(KeyeVL, "from_pretrained", classmethod(lambda *a, **k: model))
    call(monkeypatch, tmp_path, "--seconds", "0")
    assert json.loads((tmp_path / "niah.json").read_text(encoding="utf-8"))["rows"] == []


def test_grey_frames_are_what_the_blind_see(model, monkeypatch):
    """The control's visual tokens do not depend on the needle; a cell's do."""
    seen = []

    def ask(model, inputs, truths, *rest):
        seen.append(inputs["visual"].clone())
        return [Answered([], False) for _ in truths]

    monkeypatch.setattr(study, "ask_both_ways", ask)
    for cell in (Cell("card", "real", FRAMES, 0.5, "blank"), Cell("card", "real", FRAMES, 0.4)):
        study.measure(model, cell, 3, CLIPS, ("sparse",))
    blind, sighted = (visual.unflatten(0, (3, FRAMES, -1)) for visual in seen)
    assert torch.allclose(blind, blind[:1, :1].expand_as(blind), atol=1e-5)
    assert not torch.allclose(sighted[0], sighted[1], atol=1e-3)


# --------------------------------------------------------------------------------------------------------- the picture


def test_the_picture_and_its_words(tmp_path):
    cells = {
        (frames, depth): wilson(8 - (frames == 20 and depth == 1.0) * 6, 8)
        for frames in (10, 20)
        for depth in (0.0, 1.0)
    }
    one, full = Map("written", cells), Map("forced", {cell: wilson(8, 8) for cell in cells})
    assert words([one, full]) == (
        "Heat maps of needles found, 2 lengths up to 20 frames by 2 depths. written: 81.2 % on average, at worst 25 % "
        "at 20 frames, depth 1. forced: 100 % in every cell."
    )
    save(tmp_path / "map.png", [[one, full]])
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match=r"rows of equally many maps, at least one, got \[2, 1\]"):
        save(tmp_path / "map.png", [[one, full], [one]])


def test_the_table_is_of_the_summary():
    assert table({"mean_sparse": 97.5, "other": 1.0}).splitlines()[2:] == [
        "| cards found, sparse | 97.5 | `mean_sparse` |"
    ]
