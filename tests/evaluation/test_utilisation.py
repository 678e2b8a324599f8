"""What balancing can win: loads by hand, samples that fill rows, and the whole script."""

import json
import random
import sys

import pytest

from minikeye.evaluation.training import utilisation
from minikeye.evaluation.training.utilisation import Mixture, Sample, decoder_loads, measure, tower_loads


def test_loads_by_hand():
    """Four equal frames on one of two ranks: two travel. p = 1,008 patches: 1,008 x (1,008 + 3 x 1,152) each."""
    video = Sample(4 * 252 + 128, (1008,) * 4)
    loads, one = tower_loads([[video], [Sample(500)]]), 1008 * 4464
    assert (loads["before"], loads["after"]) == ([4 * one, 0], [2 * one, 2 * one])
    assert (loads["held"], loads["away"]) == ([4032, 0], [2016, 0])
    assert loads["flop_after"] == [sum(loads["flop_before"]) / 2] * 2
    assert decoder_loads([[video, Sample(100)], [Sample(500), Sample(64)]]) == {
        "before": [1236, 564],
        "after": [1136, 664],
    }


def test_a_sample_is_cut_at_frames():
    """Frames of 252 tokens: two fit 600 tokens, and no text; all fit 760, with four tokens of text."""
    video = Sample(3 * 252 + 128, (1008,) * 3)
    assert video.cut(600) == Sample(504, (1008, 1008)) and video.cut(760) == Sample(760, (1008,) * 3)
    assert video.cut(10_000) == video and Sample(70).cut(50) == Sample(50) and video.cut(100) == Sample(0)


def test_rows_are_filled():
    draw, mixture = random.Random(0), Mixture()
    for _ in range(20):
        row = mixture.row(32_768, draw)
        assert 32_768 - 256 < sum(s.tokens for s in row) <= 32_768
        assert all(sum(s.frames) // 4 <= s.tokens for s in row)
    assert not any(s.frames for s in Mixture(text_share=1.0).row(32_768, draw))
    assert all(s.frames for s in Mixture(text_share=0.0).row(32_768, draw)[:-1])


def test_what_is_drawn_again_is_the_same_and_balancing_helps():
    rows = measure(Mixture(), 4, 32_768, 5, range(2))
    assert rows == measure(Mixture(), 4, 32_768, 5, range(2)) and rows != measure(Mixture(), 4, 32_768, 5, range(2, 4))
    for row in rows:
        assert 0.25 <= row["before"] < row["after"] <= 1
        assert row["before_low"] <= row["before"] <= row["before_high"]
    assert all(row["before"] == row["after"] == 1 for row in measure(Mixture(), 1, 32_768, 2, range(2)))


def test_the_whole_script(tmp_path, monkeypatch):
    out = tmp_path / "utilisation.json"
    wanted = ["--ranks", "2", "3", "--tokens", "16384", "--steps", "3", "--seeds", "2"]
    wanted += ["--text-share", "0.25", "--longest-text", "1000", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["utilisation", *wanted])
    utilisation.main()
    result = json.loads(out.read_text())
    mixture = Mixture(0.25, (64, 1000))
    rows = [row for ranks in (2, 3) for row in measure(mixture, ranks, 16_384, 3, range(2))]
    assert result["rows"] == json.loads(json.dumps(rows))
    summary = result["summary"]
    assert summary == utilisation.summarise(result["rows"]) and len(summary) == 8
    assert summary["vit_utilisation_before_2_16k"] == result["rows"][0]["before"]


@pytest.mark.parametrize(
    "wrong", [["--ranks", "0"], ["--tokens", "100"], ["--seeds", "0"], ["--text-share", "1"], ["--longest-text", "9"]]
)
def test_bad_numbers(monkeypatch, capsys, wrong):
    monkeypatch.setattr(sys, "argv", ["utilisation", *wrong])
    with pytest.raises(SystemExit):
        utilisation.main()
    assert "expected " in capsys.readouterr().err
