"""The study of hedging in small: what it counts by hand, its rows, and that it goes on where it was stopped."""

import json
import sys
from dataclasses import replace

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.evaluation import rl_hedge
from minikeye.evaluation.rl_hedge import Study, measure, split, summarise
from minikeye.keye import KeyeVL
from minikeye.minivid.tasks import Event, grounding, things_of
from minikeye.rl.questions import Answered, ask

SMALL = Study(frames=8, prompts=2, group=2, checks=2, iterations=1, check=4, test=6)


def folder(tmp_path):
    """A model of random weights on disk."""
    torch.manual_seed(1)
    KeyeVL(KeyeConfig.nano()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def about(start: float, end: float):
    return grounding(Event("thing", "red circle", 0, 1, start, end))


def test_split_by_hand():
    """One thing said rightly; of two, one span that covers both is twice the length, one answer is no interval."""
    problems = [about(2.0, 4.0), about(1.0, 3.0), about(0.0, 5.0)]
    others = [None, about(3.0, 5.0), about(5.0, 10.0)]
    found = split(Answered(problems, ["[[2.0, 4.0]]", "[[1.0, 5.0]]", "both"], [8.0, 10.0, 10.0]), others)
    one, two = found["one"], found["two"]
    assert (one["n"], one["unread"], one["miou"], one["length"], one["share"]) == (1, 0, 100.0, 1.0, 0.25)
    assert (two["n"], two["unread"], two["miou"], two["length"]) == (2, 1, 25.0, 2.0)
    assert (two["share"], two["true_share"]) == (0.4, 0.2)  # of the answer that can be read
    # a coin takes the other thing half of the time, which here never overlaps
    assert two["chance_coin"] == 50.0 and "chance_coin" not in one
    lost = split(Answered(problems, [""] * 3, [8.0, 10.0, 10.0]), others)["two"]
    assert (lost["unread"], lost["length"], lost["miou"]) == (2, 0.0, 0.0)


def test_rows(tmp_path, monkeypatch):
    """Checks before, between and after, each after its own prompts; sparse attention asks, samples and learns."""
    asked, rolled, plain = [], [], rl_hedge.reinforce

    def reinforce(model, questions_at, reward, config, loop, ranks):
        rolled.append((config.attention, [problem.answer for problem in questions_at(0)[1]]))
        assert reward("[[0.0, 2.0]]", about(1.0, 2.0)) == 0.5
        return plain(model, questions_at, reward, config, loop)

    def watched(model, course, n, attention, rows, ranks):
        asked.append((course, n, attention))
        return ask(model, course, n, attention=attention, rows=rows)

    monkeypatch.setattr(rl_hedge, "reinforce", reinforce)
    monkeypatch.setattr(rl_hedge, "ask", watched)
    rows = list(measure(folder(tmp_path), SMALL, 3))
    course = SMALL.course(3)
    assert asked == [(course, n, "sparse") for n in (6, 4, 6)]
    assert [row["number"] for row in rows] == [0, 1, 2] and {row["seed"] for row in rows} == {3}
    assert [len(row["log"]) for row in rows] == [0, 2, 2]  # two optimiser steps an iteration
    first = rl_hedge.UNSEEN
    true = [[problem.answer for problem in course.questions(first + n, 2)[1]] for n in (0, 2)]
    assert rolled == [("sparse", true[0]), ("sparse", true[1])]
    videos, _ = course.examination().questions(0, 6)
    two = sum(len(things_of(events)) == 2 for events in videos.events)
    assert 0 < two < 6 and rows[0]["things"]["two"]["n"] == two == rows[2]["things"]["two"]["n"]


def test_summary_by_hand():
    def row(seed, number, length, teaches=()):
        part = {"length": length, "share": length / 4, "miou": 90.0 + seed, "chance_coin": 60.0 + 2 * seed}
        log = [{"teaches": share} for share in teaches]
        return {"seed": seed, "number": number, "things": {"one": part | {"length": 1.0}, "two": part}, "log": log}

    rows = [row(0, 0, 1.0), row(0, 1, 1.2, (0.5, 0.5)), row(1, 0, 1.1), row(1, 1, 1.6, (0.0, 0.2)), row(2, 0, 9.0)]
    found = summarise(rows, 1)  # seed 2 was stopped
    expected = {
        "hedge_seeds": 2, "hedge_length_two_before": 1.05, "hedge_length_two_after": 1.4, "hedge_length_one_after": 1.0,
        "hedge_share_two_after": 0.35, "hedge_miou_two_before": 90.5, "hedge_miou_two_chance": 61.0,
        "hedge_teaches": 30.0,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert summarise(rows[:1], 1) == {}


def test_the_script(tmp_path, monkeypatch, capsys):
    """Called again it adds the seeds that are missing, and does again one that was stopped."""
    checkpoint, out = folder(tmp_path), tmp_path / "out.json"

    def call(*seeds: int) -> int:
        words = ["--checkpoint", checkpoint, "--out", out, "--device", "cpu", "--seeds", *seeds]
        for name, value in vars(replace(SMALL, checks=1)).items():
            words += [f"--{name.replace('_', '-')}", value]
        monkeypatch.setattr(sys, "argv", ["rl_hedge", *map(str, words)])
        capsys.readouterr()
        rl_hedge.main()
        return capsys.readouterr().out.count("\n")

    assert call(0) == 2 and call(0) == 0
    first = json.loads(out.read_text())
    out.write_text(json.dumps({**first, "rows": first["rows"][:1]}))
    assert call(0, 1) == 4
    result = json.loads(out.read_text())
    assert result["rows"][:2] == first["rows"] and [row["seed"] for row in result["rows"]] == [0, 0, 1, 1]
    assert result["summary"] == summarise(result["rows"], 1) and result["seeds"] == [0, 1]
