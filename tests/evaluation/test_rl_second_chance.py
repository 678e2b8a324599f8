"""The study of second chances in small: what its base is taught, its lines, its summary."""

import json
import sys

import torch

from minikeye.config import KeyeConfig
from minikeye.evaluation import rl_second_chance
from minikeye.evaluation.rl_second_chance import ARMS, Study, exact_second, lesson, report, summarise
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.keye import KeyeVL
from minikeye.minivid.tasks import Problem

SMALL = Study(frames=4, lessons=2, base_steps=1, prompts=2, iterations=1, test=4)


def nano() -> KeyeVL:
    torch.manual_seed(1)
    return KeyeVL(KeyeConfig.nano())


def test_a_lesson():
    """Row 0: the late answer, three of four frames on, around the end; row 1: it, the report, the true one to learn."""
    model, course = nano(), SMALL.course(0)
    (videos, problems), tokens = course.questions(0, 2), lesson(model, course, 0, 2).tokens
    decode = load_tokenizer(model.config).decode
    text = [decode(row[mask].tolist(), skip_special=False) for row, mask in zip(*(
        tokens[name] for name in ("input_ids", "attention_mask")), strict=True)]  # fmt: skip
    learnt = [decode(tokens["input_ids"][n][tokens["answer"][n]].tolist()) for n in range(2)]
    late = []
    for row, problem in enumerate(problems):
        clock, true = videos.seconds[row].tolist(), float(problem.answer.split()[2])
        late.append(f"{problem.answer[0]} at {clock[(clock.index(true) + 3) % 4]:.1f} s")
    assert learnt == [late[0], problems[1].answer] and late[1] != problems[1].answer
    told = f"{late[1]}<|im_end|>\n<|im_start|>user\n{report(problems[1])}<|im_end|>\n<|im_start|>assistant\n"
    assert f"assistant\n{told}{problems[1].answer}<|im_end|>" in text[1]
    assert "The card is at" not in text[0]


def test_the_digit_is_not_looked_at():
    known = Problem("N", "", "7 at 3.5 s", "")
    said = ("7 at 3.5 s", "1 at 3.5 s", "7 at 4.0 s", "3.5")  # half a second off is off
    assert [exact_second(text, known) for text in said] == [1.0, 1.0, 0.0, 0.0]


def test_summary_by_hand():
    def line(seed, arm, before, after, teaches, rescued, ratio):
        logged = {"teaches": [teaches, 1.0], "rescued": [rescued, 0.0], "hint_ratio": [ratio, 1.0]}
        return {"seed": seed, "arm": arm, "before": before, "after": after, **logged}

    rows = [line(0, "plain", 1.0, 2.0, 0.0, 0.0, 1.0), line(0, "second chance", 1.0, 80.0, 0.75, 0.75, 0.1)]
    rows += [line(1, "plain", 3.0, 6.0, 0.25, 0.0, 1.0), line(1, "second chance", 3.0, 90.0, 1.0, 0.75, 0.3)]
    assert summarise(rows) == {
        "second_chance_seeds": 2,
        "second_before": 2.0,
        "second_after_plain": 4.0,
        "silent_plain": 87.5,
        "second_after_second_chance": 85.0,
        "silent_second_chance": 12.5,
        "rescued": 75.0,
        "hint_ratio": 0.2,
    }


def test_the_script(tmp_path, monkeypatch, capsys):
    """Both arms of every seed; called again it adds the seeds that are missing."""
    nano().save_pretrained(tmp_path / "model")
    out = tmp_path / "out.json"

    def call(*seeds: int) -> int:
        words = ["--checkpoint", tmp_path / "model", "--out", out, "--seeds", *seeds]
        for name, value in vars(SMALL).items():
            words += [f"--{name.replace('_', '-')}", value]
        monkeypatch.setattr(sys, "argv", ["rl_second_chance", *map(str, words)])
        capsys.readouterr()
        rl_second_chance.main()
        return capsys.readouterr().out.count("\n")

    assert call(0) == 1 and call(0, 1) == 1 and call(0, 1) == 0
    result = json.loads(out.read_text())
    assert [(row["seed"], row["arm"]) for row in result["rows"]] == [(seed, arm) for seed in (0, 1) for arm in ARMS]
    assert result["summary"] == summarise(result["rows"])
    assert all(len(row["teaches"]) == SMALL.iterations for row in result["rows"])
