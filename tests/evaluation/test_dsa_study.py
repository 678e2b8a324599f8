"""The study's plan, its scores by hand, its intervals against scipy's own, and a run of it in small."""

import json
import sys

import pytest
import torch
from scipy import stats

from minikeye import KeyeConfig, KeyeVL
from minikeye.evaluation import dsa_study
from minikeye.evaluation.dsa_study import (
    METHODS,
    QUESTIONS,
    RECIPE,
    SIZES,
    TRAINED_FRAMES,
    Run,
    fresh,
    known,
    measure,
    planned,
    summarise,
    teach,
)
from minikeye.minivid.scene import Difficulty
from minikeye.training.curriculum import Curriculum
from minikeye.training.loop import LoopConfig
from minikeye.training.stage import SPARSE, WARMUP

NANO = KeyeConfig.nano()


def test_the_plan():
    """Every method at 1x, 4x and 16x in both tasks; nothing twice; all questions have a number."""
    runs = list(planned(3, 256))
    assert len(set(runs)) == len(runs) and all(r.seed == 3 for r in runs)
    for method in METHODS:
        main = {(r.task, r.frames) for r in runs if r.method == method and r.k == 256 and r.frames >= 64}
        assert main == {(task, 64 * times) for task in "NG" for times in (1, 4, 16)}
    assert {r.task for r in runs if r.k != 256} == {"N"}
    assert all(QUESTIONS[r.frames][r.task] >= 20 for r in runs)


def test_what_the_study_teaches_on():
    """Plain square videos of 4 to 64 frames, each length in turn; none of the curriculum's crowds and hard footage."""
    for _, config, lengths in RECIPE:
        sizes = [lengths.size_at(step, config.steps) for step in range(config.steps)]
        seen = {(s.frames, s.height, s.width, s.difficulty) for s in sizes if s.frames}
        assert seen == {(frames, 56, 56, Difficulty()) for frames in (4, 8, 16, 32, 64)}
        assert all(s.frames * s.videos <= lengths.frames for s in sizes)
        assert {frames for frames, *_ in SIZES} == {4, 8, 16, 32, TRAINED_FRAMES}


def row(seed, method, task, frames, exact, recall=(1.0,), k=256) -> dict:
    return {**vars(Run(seed, method, task, frames, k)), "exact": exact, "recall": list(recall)}


def test_summary_by_hand():
    rows = [
        row(0, "dense", "N", 64, 100.0),
        row(1, "dense", "N", 64, 98.0),
        row(0, "dsa", "N", 64, 97.0, (0.5, 0.7)),
        row(1, "dsa", "N", 64, 97.0, (0.3, 0.5)),
        row(0, "dsa", "N", 256, 50.0, (0.1, 0.1)),
        row(0, "dsa", "N", 256, 10.0, (0.1, 0.1), k=64),  # another k is not in the summary
        row(0, "random", "G", 1024, 4.0, (0.0, 0.0)),
    ]
    low, high = stats.ttest_1samp([3.0, 1.0], 0).confidence_interval(0.95)
    assert summarise(rows, 256) == pytest.approx(
        {
            "needle_dense_1x": 99.0,
            "recall_dense_1x": 100.0,
            "needle_dsa_1x": 97.0,
            "recall_dsa_1x": 50.0,
            "needle_dsa_4x": 50.0,
            "recall_dsa_4x": 10.0,
            "grounding_random_16x": 4.0,
            "needle_dense_minus_dsa_1x": 2.0,
            "needle_dense_minus_dsa_1x_low": round(low, 2),
            "needle_dense_minus_dsa_1x_high": round(high, 2),
            "seeds": 2,
        },
        abs=1e-6,
    )


def test_a_fresh_indexer():
    """All as in the dense model but the indexers, which differ from seed to seed and come again."""
    dense = KeyeVL(NANO)
    a, b, c = (fresh(dense, seed).state_dict() for seed in (1, 1, 2))
    for name, p in dense.state_dict().items():
        drawn = "sa_indexer" in name and "norm" not in name
        assert (
            torch.equal(a[name], b[name])
            and torch.equal(a[name], p) != drawn
            and torch.equal(a[name], c[name]) != drawn
        )


SHORT = Curriculum(frames=8, longest=4, sizes=((4, 56, 56, 1.0),))
TINY = tuple((stage, LoopConfig(steps=2, lr=1e-3, warmup=1), SHORT) for stage in (WARMUP, SPARSE))


def test_teaching_moves_what_it_should():
    """Warm-up: indexers alone. Sparse stage: everything. Wrong layout: indexers. The dense model stays as it was."""
    torch.manual_seed(0)
    dense = KeyeVL(NANO)
    before = {n: p.clone() for n, p in dense.state_dict().items()}
    models = teach(dense, 0, TINY, 0)
    start = fresh(dense, 0).state_dict()
    after = {name: model.state_dict() for name, model in models.items()}
    assert all(torch.equal(p, before[n]) for n, p in dense.state_dict().items())
    moved = {n for n, p in after["warmup"].items() if not torch.equal(p, start[n])}
    assert moved and all("sa_indexer" in n for n in moved)
    later = {n for n, p in after["dsa"].items() if not torch.equal(p, after["warmup"][n])}
    assert any("sa_indexer" not in n for n in later) and any("sa_indexer" in n for n in later)
    wrong = {n for n, p in after["wrongrope"].items() if not torch.equal(p, after["dsa"][n])}
    assert wrong and all("sa_indexer" in n for n in wrong)


def test_a_line_of_the_study(monkeypatch):
    """The oracle keeps most, a window of one key little; dense keeps all by definition; the same call, the same row."""
    torch.manual_seed(0)
    model = KeyeVL(NANO).eval()
    rows = {m: measure(model, Run(0, m, "N", 4, 3), 3) for m in ("dense", "dsa", "oracle", "random")}
    assert rows["dense"]["recall"] == [1.0, 1.0]
    assert all(0 < kept < 1 for m in ("dsa", "oracle", "random") for kept in rows[m]["recall"])
    assert rows["oracle"]["recall"][0] > max(rows["dsa"]["recall"][0], rows["random"]["recall"][0])
    again = measure(model, Run(0, "random", "N", 4, 3), 3)
    assert {k: v for k, v in again.items() if k != "seconds_taken"} == {
        k: v for k, v in rows["random"].items() if k != "seconds_taken"
    }
    assert "digit" not in measure(model, Run(0, "dsa", "G", 4, 3), 2)


def test_the_script_resumes_and_joins(tmp_path, monkeypatch, capsys):
    """Each line once, written as soon as it is known; parts of other machines are joined with their torch."""
    torch.manual_seed(0)
    KeyeVL(NANO).save_pretrained(tmp_path / "dense")
    plan = lambda seed, topk: [Run(seed, m, "N", 4, topk) for m in ("dense", "dsa", "wrongrope")]  # noqa: E731
    monkeypatch.setattr(dsa_study, "planned", plan)
    monkeypatch.setattr(dsa_study, "RECIPE", TINY)
    monkeypatch.setattr(dsa_study, "QUESTIONS", {4: {"N": 2}})

    def call(out: str, *more: str) -> dict:
        argv = [
            "study",
            "--dense",
            tmp_path / "dense",
            "--out",
            tmp_path / out,
            "--device",
            "cpu",
            "--workers",
            0,
            *more,
        ]
        monkeypatch.setattr(sys, "argv", [str(word) for word in argv])
        dsa_study.main()
        return json.loads((tmp_path / out).read_text())

    first = call("a.json", "--seeds", "0")
    assert [r["method"] for r in first["rows"]] == ["dense", "dsa", "wrongrope"]
    assert capsys.readouterr().out.count("\n") == 4
    assert call("a.json", "--seeds", "0")["rows"] == first["rows"] and capsys.readouterr().out == ""
    other = json.loads((tmp_path / "a.json").read_text())
    for r in other["rows"]:
        r["seed"] = 1
        del r["torch"]
    other["versions"]["torch"] = "9.9"
    (tmp_path / "b.json").write_text(json.dumps(other))
    joined = call("c.json", "--seeds", "--add", str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    assert joined["seeds"] == [0, 1] and joined["summary"]["seeds"] == 2
    assert {r["torch"] for r in joined["rows"] if r["seed"] == 1} == {"9.9"}
    assert known(tmp_path / "nothing.json") == []


@pytest.mark.parametrize(("method", "task", "n"), [("foo", "N", 1), ("dsa", "Z", 1), ("dsa", "N", 0)])
def test_what_is_not_in_the_plan_is_not_measured(lively, method, task, n):
    with pytest.raises(ValueError, match=f"got {method}, {task}, {n}"):
        dsa_study.measure(lively, dsa_study.Run(0, method, task, 16, 4), n)
