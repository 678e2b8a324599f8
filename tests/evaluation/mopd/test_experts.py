"""A base and its experts in small: what is taught what, controls and summary by hand, and that it goes on."""

import sys

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.evaluation.mopd import experts
from minikeye.evaluation.mopd.experts import (
    ABLE_SHARES,
    BASE,
    CARELESS,
    CARELESS_SHARES,
    EXPERT,
    SMOKE,
    constants,
    distance,
    mixed,
    rows_of,
    summarise,
)
from minikeye.keye import KeyeVL
from minikeye.minivid.tasks import parse_interval
from minikeye.rl.mopd.domains import DOMAINS, EXPERTS, DomainCourse
from minikeye.scores import temporal_iou


def nano(seed: int = 1) -> KeyeVL:
    torch.manual_seed(seed)
    return KeyeVL(KeyeConfig.nano())


def test_what_is_taught_what(tmp_path, monkeypatch):
    """True answers first, careless ones next, true ones to judge experts by; only decoders move."""
    nano().save_pretrained(tmp_path / "start", dtype=torch.bfloat16)
    asked, plain = [], DomainCourse.questions

    def questions(course, first, count):
        asked.append((course.domain.name, course.split, course.careless, first))
        return plain(course, first, count)

    monkeypatch.setattr(DomainCourse, "questions", questions)
    monkeypatch.setattr(experts, "EXPERTS", ("naming", "sums"))
    rows = list(rows_of(tmp_path / "start", tmp_path / "out", 3, SMOKE, set()))
    assert [row["model"] for row in rows] == [BASE, "naming", "sums"]
    assert all(row["scores"].keys() == DOMAINS.keys() for row in rows)
    trained = [call for call in asked if call[1] == "train"]
    assert [(careless, first) for *_, careless, first in trained[:4]] == [
        (False, 0), (False, 2), (True, CARELESS), (True, CARELESS + 2),
    ]  # fmt: skip
    assert [call for call in trained if call[3] == EXPERT] == [
        (name, "train", False, EXPERT) for name in ("naming", "sums")
    ]
    assert not any(careless for _, split, careless, _ in asked if split == "test")
    folders = (tmp_path / "start", *(tmp_path / "out" / name for name in (BASE, "sums")))
    start, base, expert = (KeyeVL.from_pretrained(folder).state_dict() for folder in folders)
    moved = {name for name in start if not torch.equal(start[name], base[name])}
    assert moved and all(name.startswith(("model.", "lm_head.")) and "sa_indexer" not in name for name in moved)
    assert all(torch.equal(base[name], expert[name]) for name in base)  # whose answers, of noise, all earn 0: no step


def test_a_step_is_a_domain_drawn_from_its_number():
    model = nano()
    small = lambda shares, seed=0: mixed(model, shares, seed, False, SMOKE, 12, 40)  # noqa: E731
    only = list(small({"sums": 1})(0))
    assert len(only) == 12 and all(lesson.videos is None for lesson in only)
    shown = [lesson.size.frames for lesson in small(ABLE_SHARES)(0)]
    assert set(shown) == {0, 1, 8} and [lesson.size.frames for lesson in small(ABLE_SHARES)(5)] == shown[5:]
    assert [lesson.size.frames for lesson in small(ABLE_SHARES, 1)(0)] != shown
    assert ABLE_SHARES.keys() == CARELESS_SHARES.keys() == DOMAINS.keys()


def test_best_constants_by_hand():
    """The most frequent answer where answers are right or wrong; of intervals the best of those that are asked for."""
    found = constants(0, SMOKE)
    for name in ("counting", "presence"):
        answers = [p.answer for p in DomainCourse(DOMAINS[name], 0, split="test").questions(0, 2)[1]]
        assert found[name] == (100.0 if len(set(answers)) == 1 else 50.0)
    one, two = (
        parse_interval(p.answer) for p in DomainCourse(DOMAINS["grounding"], 0, split="test").questions(0, 2)[1]
    )
    assert found["grounding"] == round(50 * (1 + temporal_iou(one, two)), 2)


def test_distance_is_nothing_from_itself_and_more_from_others():
    student, small = nano(), DOMAINS["sums"]
    assert distance(student, nano(), small, 0, SMOKE) == pytest.approx(0, abs=1e-4)
    other = nano()
    with torch.no_grad():
        other.lm_head.weight.mul_(30)
    assert distance(student, other, small, 0, SMOKE) > 0.1


def test_summary_by_hand():
    of = lambda value: dict.fromkeys(DOMAINS, value)  # noqa: E731
    passed = {name: {"mean": 1.0, "pass": 90.0} for name in DOMAINS}
    rows = [
        {"model": BASE, "scores": of(60.0), "constant": of(20.0), "drawn": passed, "all_cpu_seconds": 90.0},
        {"model": "sums", "scores": of(3.0) | {"sums": 95.0}, "distance": 0.5, "all_cpu_seconds": 30.0},
    ]
    out = summarise(rows)
    assert out["base_sums"] == 60 and out["expert_sums"] == 95 and out["constant_sums"] == 20
    assert out["pass8_words"] == 90 and out["distance_sums"] == 0.5 and out["cpu_minutes"] == 2
    assert "expert_naming" not in out


def test_the_script(tmp_path, monkeypatch, capsys):
    """Called again it makes what is missing; a folder of other sizes is refused."""
    nano().save_pretrained(tmp_path / "model")

    def call(*words: object) -> int:
        every = ["experts", "--checkpoint", tmp_path / "model", "--out", tmp_path / "out", "--seed", 2, *words]
        monkeypatch.setattr(sys, "argv", [str(word) for word in every])
        capsys.readouterr()
        experts.main()
        return capsys.readouterr().out.count("\n")

    monkeypatch.setattr(experts, "EXPERTS", EXPERTS[-1:])
    assert call("--smoke") == 2
    monkeypatch.setattr(experts, "EXPERTS", EXPERTS[-2:])
    assert call("--smoke") == 1 and call("--smoke") == 0
    with pytest.raises(ValueError, match="other sizes"):
        call()
