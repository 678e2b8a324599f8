"""The report of the nano that knows things: its tower by a probe, its names, what is written."""

import json
import sys

import pytest

from minikeye.evaluation import nano_things
from minikeye.evaluation.nano_things import RUNS, probe, summarise
from minikeye.evaluation.questions import Run
from minikeye.files import CHECKPOINT
from minikeye.keye import KeyeVL


def test_the_probe_reads_the_shipped_tower_and_not_an_untaught_one():
    """Presence is one of two, kind one of twelve; a tower of random weights tells little."""
    shipped = KeyeVL.from_pretrained(CHECKPOINT.parent / "nano_things")
    taught = probe(shipped, 1024, 512)
    for p in shipped.visual.parameters():
        p.data.normal_(0, 0.05)
    untaught = probe(shipped, 1024, 512)
    assert taught["presence"] > 88 and taught["kind"] > 75
    assert untaught["kind"] < 50 and untaught["presence"] < taught["presence"] - 5


def test_the_names_of_the_numbers():
    levels = {"one": {"tiou": 99.0, "chance_tiou": 40.0}, "two": {"tiou": 98.0, "chance_tiou": 41.0}}
    row = {"task": "G", "frames": 16, "control": "", "tiou": 98.4, "chance_tiou": 40.6, "levels": {"things": levels}}
    blank = {"task": "N", "frames": 16, "control": "blank", "second": 9.0, "chance_second": 12.0}
    assert summarise([row, blank], {"presence": 97.0, "kind": 91.0}) == {
        "nano_probe_presence": 97.0,
        "nano_probe_kind": 91.0,
        "nano_grounding_miou_16": 98.4,
        "nano_grounding_miou_16_chance": 40.6,
        "nano_grounding_miou_16_one": 99.0,
        "nano_grounding_miou_16_one_constant": 40.0,
        "nano_grounding_miou_16_two": 98.0,
        "nano_grounding_miou_16_two_constant": 41.0,
        "nano_needle_second_16_blank": 9.0,
        "nano_needle_second_16_blank_chance": 12.0,
    }


@pytest.mark.slow
def test_a_report_in_small(monkeypatch, tmp_path):
    """One line of few questions; a line that lacks a level is refused before anything is written."""
    monkeypatch.setattr(nano_things, "probe", lambda model: {"presence": 1.0, "kind": 2.0})
    monkeypatch.setattr(nano_things, "RUNS", (Run("G", 16, "dense", "final", n=40),))
    out = tmp_path / "nano.json"
    monkeypatch.setattr(sys, "argv", ["nano_things", "--out", str(out)])
    nano_things.main()
    report = json.loads(out.read_text())
    assert report["summary"]["nano_grounding_miou_16_one"] > 80 and report["rows"][0]["n"] == 40
    out.unlink()
    monkeypatch.setattr(sys, "argv", ["nano_things", "--out", str(out), "--n", "1"])
    with pytest.raises(ValueError, match="ask more questions"):
        nano_things.main()
    assert not out.exists()


def test_every_task_is_asked_with_and_without_the_video():
    assert {(run.task, run.control) for run in RUNS} == {
        (task, control) for task in "GDYN" for control in ("", "blank")
    }
