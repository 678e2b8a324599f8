"""The study of Context-RL in small: its lines, what they count, and that it goes on where it was stopped."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.evaluation import rl_context
from minikeye.evaluation.rl_context import (
    ARMS,
    Study,
    called,
    examination,
    levels,
    others_answers,
    rewarded,
    shares,
    summarise,
    taught_base,
    watched,
)
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.keye import KeyeVL
from minikeye.minivid.tasks import Problem
from minikeye.rl.questions import Answered
from minikeye.training.loop import learning_rate

SMALL = Study(frames=4, lessons=2, base_steps=2, prompts=2, group=2, iterations=2, every=1, check=4, test=4)


def folder(tmp_path):
    """A model of random weights on disk."""
    torch.manual_seed(1)
    KeyeVL(KeyeConfig.nano()).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def asked(*answers: str) -> list[Problem]:
    return [Problem("P", "", answer, "") for answer in answers]


def test_shares_by_hand():
    """Four answers: right with evidence, right without, wrong word with evidence, out of form."""
    problems = asked(*["[[3.0, 9.0]] 7.5 during"] * 4)
    said = ["[[3.0, 8.5]] 7.5 during", "[[20.0, 29.0]] 7.5 during", "[[3.0, 9.0]] 7.5 after", "during"]
    found = shares(Answered(problems, said, [10.0] * 4))
    assert found == {"n": 4, "word": 50.0, "wrong_evidence": 50.0, "both": 25.0, "unread": 25.0}
    none = shares(Answered(problems[:1], ["[[3.0, 9.0]] 7.5 after"], [10.0]))
    assert none["word"] == none["wrong_evidence"] == 0.0  # of no right word none has wrong evidence


def test_levels_by_hand():
    """Words and lengths with their own chance: 3 of 4 say during, and 8 frames over 7 s are a second apart."""
    truths = ["[[3.0, 5.0]] 4.0 during", "[[1.0, 3.0]] 2.0 during", "[[3.0, 6.0]] 3.0 during", "[[1.0, 3.0]] 5.0 after"]
    problems = asked(*truths)
    said = [truths[0], "[[4.0, 6.0]] 2.0 during", "[[3.0, 6.0]] 3.0 after", truths[3]]
    found = levels(Answered(problems, said, [7.0] * 4), frames=8)
    assert list(found) == ["all", "after", "during", "2 frames", "3 frames"]
    assert [found[name]["n"] for name in found] == [4, 1, 3, 3, 1]
    assert found["all"]["word"] == 75.0 and found["all"]["wrong_evidence"] == pytest.approx(33.33)
    assert found["during"]["word"] == pytest.approx(66.67) and found["3 frames"]["word"] == 0.0
    assert found["all"]["chance"] == 62.5  # 3/4 of the time during, of which 3/4 are right, and 1/4 of 1/4
    assert found["during"]["chance"] == 75.0 and found["after"]["chance"] == 25.0
    assert found["2 frames"]["chance"] == pytest.approx(58.33)  # (3/4 + 3/4 + 1/4) / 3
    # the evidence of the next one with that word is wrong for all but the only "after", which gets its own
    assert found["all"]["chance_wrong_evidence"] == 75.0 and found["after"]["chance_wrong_evidence"] == 0.0
    assert others_answers(problems) == [truths[1], truths[2], truths[0], truths[3]]


def test_who_looks_when():
    """Before every second iteration, the first included; the questions pass through."""
    looked: list[int] = []
    questions_at = watched(lambda number: ({}, [number]), 2, looked.append)
    assert [questions_at(number) for number in range(5)] == [({}, [number]) for number in range(5)]
    assert looked == [0, 2, 4]


def test_every_seed_has_an_annotator_and_all_are_asked_the_same():
    questions = [SMALL.course(seed).questions(0, 6)[1] for seed in (0, 1)]
    assert questions[0] != questions[1]
    test = examination(SMALL)
    assert (test.split, test.span, test.spot, test.seed) == ("test", 0, 0, 0)


def test_room_for_the_longest_answer():
    """The longest true answers about long videos, each with the end of its turn, fit; of short ones as ever 26 do."""
    tokenizer = load_tokenizer(KeyeConfig.nano())
    study = Study(frames=32, span=3)
    assert (Study(frames=8).answer_tokens(), study.answer_tokens()) == (26, 29)
    answers = [problem.answer for problem in study.course(0).questions(0, 200)[1]]
    assert max(len(tokenizer.encode(answer)) + 1 for answer in answers) == 27


def test_what_is_not_by_default_is_written():
    assert called(rl_context.CHECKPOINT, Study()) == ""
    study = Study(frames=8, final_lr=0.5)
    assert called(Path("assets/nano"), study) == "--checkpoint assets/nano --frames 8 --final-lr 0.5"


def test_an_arm_learns_from_true_references(tmp_path, monkeypatch):
    """Prompts of the arms carry the true evidence, though the base saw careless labels; checks stand at 0, 1 and 2."""
    known, loops, study = [], [], replace(SMALL, final_lr=1.0)

    def reinforce(model, questions_at, reward, config, loop, ranks):
        known.extend(problem for number in range(2) for problem in questions_at(number)[1])
        loops.append(loop)
        assert reward("[[9.0, 9.5]] 1.0 during", asked("[[3.0, 9.0]] 1.0 during")[0]) == float(arm == "outcome")

    monkeypatch.setattr(rl_context, "reinforce", reinforce)
    model = taught_base(folder(tmp_path), SMALL, 0, None)
    for arm in ("outcome", "context"):
        assert [check["iteration"] for check in rewarded(model, study, 0, arm)] == [0, 1, 2]
    assert {learning_rate(step, loop) for loop in loops for step in (10, 1000)} == {SMALL.lr}  # to the end
    true = replace(SMALL.course(0), span=0, spot=0).questions(rl_context.UNSEEN, 4)[1]
    assert known == true * 2 != SMALL.course(0).questions(rl_context.UNSEEN, 4)[1] * 2


def test_summary_by_hand():
    def line(seed, arm, word, wrong):
        chance = {"all": {"chance": 37.5, "chance_wrong_evidence": 95.0}}
        return {"seed": seed, "arm": arm, "word": word, "wrong_evidence": wrong, "levels": chance}

    rows = [line(0, "base", 90.0, 20.0), line(0, "outcome", 91.0, 60.0), line(0, "context", 93.0, 4.0)]
    rows += [line(1, "base", 92.0, 30.0), line(1, "outcome", 93.0, 60.0), line(1, "context", 91.0, 2.0)]
    found = summarise(rows)
    means = {"accuracy_base": 91.0, "accuracy_outcome": 92.0, "accuracy_context": 92.0, "accuracy_difference": 0.0}
    means |= {"wrong_evidence_base": 25.0, "wrong_evidence_outcome": 60.0, "wrong_evidence_context": 3.0}
    means |= {"context_seeds": 2}
    means |= {"accuracy_chance": 37.5, "wrong_evidence_chance": 95.0}
    assert {name: found[name] for name in means} == means
    # two seeds: half of the interval is 12.706 standard errors, of 4 and 2 here 1
    assert (found["wrong_evidence_context_low"], found["wrong_evidence_context_high"]) == (-9.7, 15.7)
    assert found["wrong_evidence_outcome_low"] == found["wrong_evidence_outcome_high"] == 60.0
    one = summarise(rows[:3])
    assert "accuracy_context" in one and "accuracy_context_low" not in one  # of one seed there is no interval


def test_the_script(tmp_path, monkeypatch, capsys):
    """Base and both arms of every seed; called again it adds what is missing, from the base that was kept."""
    checkpoint, out = folder(tmp_path), tmp_path / "out.json"

    def call(*seeds: int) -> int:
        words = ["--checkpoint", checkpoint, "--out", out, "--states", tmp_path / "states", "--seeds", *seeds]
        for name, value in vars(SMALL).items():
            words += [f"--{name.replace('_', '-')}", value]
        monkeypatch.setattr(sys, "argv", ["rl_context", *map(str, words)])
        capsys.readouterr()
        rl_context.main()
        return capsys.readouterr().out.count("\n")

    assert call(0) == len(ARMS)
    result = json.loads(out.read_text())
    first, kept = result["rows"], [row for row in result["rows"] if row["arm"] != "context"]
    out.write_text(json.dumps({**result, "rows": kept}))
    assert call(0) == 1 and call(0, 1) == len(ARMS) and call(0, 1) == 0
    result = json.loads(out.read_text())
    same = lambda row: {name: value for name, value in row.items() if name != "cpu_seconds"}  # noqa: E731
    assert [same(row) for row in result["rows"][:3]] == [same(row) for row in first]
    assert [(row["seed"], row["arm"]) for row in result["rows"]] == [(seed, arm) for seed in (0, 1) for arm in ARMS]
    assert result["summary"] == {f"model_{key}": value for key, value in summarise(result["rows"]).items()}
    assert result["seeds"] == [0, 1]
    assert [check["iteration"] for check in result["rows"][1]["checks"]] == [0, 1, 2]
