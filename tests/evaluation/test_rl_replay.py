"""The study of replay in small: its lines, its summary by hand, and that it goes on where it was stopped."""

import json
import sys

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.evaluation import rl_replay
from minikeye.evaluation.rl_replay import LEVELS, MAIN, REPLAYS, Run, measure, summarise
from minikeye.keye import KeyeVL


def model() -> KeyeVL:
    """Of random weights, with choices that noise of .1 turns."""
    torch.manual_seed(1)
    model = KeyeVL(KeyeConfig.nano()).eval()
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return model


def test_a_line():
    """Both kinds of noise: replay of both mends all, of one not; the same seed gives the same line, another another."""
    run = Run(3, *MAIN, videos=3, frames=4)
    row, again, other = (measure(model(), r) for r in (run, run, Run(4, *MAIN, videos=3, frames=4)))
    assert {name: row[name] for name in vars(run)} == vars(run)
    assert row["kl_both"] < 1e-9 and row["kl_both"] < row["kl_none"] / 20
    assert row["kl_routing"] > 100 * row["kl_both"] and row["kl_index"] > 100 * row["kl_both"]
    assert row["largest_both"] < 1e-4 < row["largest_none"]
    assert row["outside_both"] == 0.0 < row["outside_none"] <= 1.0
    assert 0 < row["flips"] < 1 and 0 < row["jaccard"] < 1 and row["logprob"] < 0 < row["tokens"]
    kept = lambda line: {name: value for name, value in line.items() if name != "seconds_taken"}  # noqa: E731
    assert kept(again) == kept(row) and other["kl_none"] != row["kl_none"]


def test_without_noise_nothing_is_turned():
    row = measure(model(), Run(3, 0.0, 0.0, videos=3, frames=4))
    assert all(row[f"kl_{replay}"] < 1e-9 for replay in REPLAYS)
    assert row["flips"] < 0.01 and row["jaccard"] > 0.99


def test_summary_by_hand():
    def line(seed, level, kls, flips=0.25):
        kl = {f"kl_{replay}": value for replay, value in zip(REPLAYS, kls, strict=True)}
        return {"seed": seed, "router": level[0], "index": level[1], **kl, "flips": flips, "jaccard": 0.5}

    rows = [
        line(0, MAIN, (4e-4, 3e-4, 2e-4, 1e-6)),
        line(1, MAIN, (2e-4, 1e-4, 4e-4, 1e-6), flips=0.75),
        line(0, (0.1, 0.0), (1e-4, 2e-9, 1e-4, 2e-9)),
        line(0, (0.3, 0.3), (1.0, 1.0, 1.0, 1.0)),  # a line, and not in the summary
    ]
    assert summarise(rows) == pytest.approx(
        {
            "kl_none": 3e-4,
            "kl_routing": 2e-4,
            "kl_index": 3e-4,
            "kl_both": 1e-6,
            "worst_both_over_none": 0.005,
            "replay_seeds": 2,
            "flips": 50.0,
            "jaccard": 50.0,
            "kl_none_router": 1e-4,
            "kl_routing_router": 2e-9,
            "kl_index_router": 1e-4,
            "kl_both_router": 2e-9,
        }
    )


def test_the_script(tmp_path, monkeypatch, capsys):
    """Every level for every seed; called again it adds the seeds that are missing."""
    model().save_pretrained(tmp_path / "model")
    out = tmp_path / "out.json"

    def call(*seeds: int) -> int:
        words = ["--checkpoint", tmp_path / "model", "--out", out, "--device", "cpu", "--videos", 2, "--frames", 4]
        monkeypatch.setattr(sys, "argv", [str(word) for word in ["rl_replay", *words, "--seeds", *seeds]])
        capsys.readouterr()
        rl_replay.main()
        return capsys.readouterr().out.count("\n")

    assert call(0) == len(LEVELS) and call(0, 1) == len(LEVELS) and call(0, 1) == 0
    result = json.loads(out.read_text())
    assert [(row["seed"], row["router"], row["index"]) for row in result["rows"]] == [
        (seed, *level) for seed in (0, 1) for level in LEVELS
    ]
    assert result["summary"] == summarise(result["rows"]) and result["seeds"] == [0, 1]
    assert {"kl_none", "kl_routing", "kl_index", "kl_both"} <= result["summary"].keys()
