"""The study of Video-RL in small: its rows, its summary by hand, and that it goes on where it was stopped."""

import json
import sys
from dataclasses import replace

import torch

from minikeye.config import KeyeConfig
from minikeye.evaluation import rl_video
from minikeye.evaluation.rl_video import AFTER, ARMS, Plan, exact_reward, examined, levels, run_seed, summarise
from minikeye.keye import KeyeVL
from minikeye.minivid.tasks import Event, grounding
from minikeye.rl.questions import Answered, Course
from minikeye.scores import student_mean

TINY = Plan(
    frames=4, span=1, base_steps=2, base_videos=2, iterations=2, videos=2, group=2, questions=4, checks=2,
    check_questions=2,
)  # fmt: skip
ALL = ["base", *ARMS]


def model() -> KeyeVL:
    torch.manual_seed(1)
    return KeyeVL(KeyeConfig.nano())


def grounded(*pairs: tuple[float, float]) -> list:
    return [grounding(Event("thing", "red circle", 0, 1, start, end)) for start, end in pairs]


def test_rows_and_what_learns_from_what(monkeypatch):
    """Every arm starts from the base and sees the same videos, true labels where it says so; only the decoder moves."""
    policy = model()
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    asked, begun, plain = [set()], [], Course.questions  # asked: before the arms, then of each arm

    def questions(course, first, count):
        asked[-1].add((course.split, course.span, first, count))
        return plain(course, first, count)

    def learn(policy, *rest):
        asked.append(set())
        begun.append(policy.state_dict()["lm_head.weight"].clone())
        return learnt(policy, *rest)

    learnt = rl_video.learn
    monkeypatch.setattr(Course, "questions", questions)
    monkeypatch.setattr(rl_video, "learn", learn)
    rows = list(run_seed(policy, start, 5, ALL, TINY))
    assert [row["arm"] for row in rows] == ALL and {row["seed"] for row in rows} == {5}
    assert all(row["n"] == 4 and 0 <= row["miou"] <= 100 and row["cpu_seconds"] >= 0 for row in rows)
    assert len(begun) == len(ARMS) and all(torch.equal(begun[0], weight) for weight in begun)
    assert not torch.equal(begun[0], start["lm_head.weight"])
    trained = [{call for call in calls if call[0] == "train"} for calls in asked]
    assert trained[0] == {("train", 1, 0, 2), ("train", 1, 2, 2)}
    for (clean, reward), calls in zip(ARMS.values(), trained[1:], strict=True):
        batches = range(2 if reward else 4)  # twice the videos for imitation
        assert calls == {("train", 0 if clean else 1, AFTER + 2 * n, 2) for n in batches}
    assert {call for calls in asked for call in calls if call[0] == "test"} == {("test", 0, 0, 4), ("test", 0, 0, 2)}
    for name, value in policy.state_dict().items():
        if name.startswith(("visual.", "mlp_AR.")) or "sa_indexer" in name:
            assert torch.equal(value, start[name]), name
    for row in rows[1:]:
        [(step, miou)] = row["curve"]
        assert step == 2 and 0 <= miou <= 100
        assert ("reward" in row) == (row["arm"].startswith("rl")) and ("shuffled" in row) == (row["arm"] == "rl")
    assert (rows[1]["videos"], rows[1]["answers"]) == (8, 8) and (rows[3]["videos"], rows[3]["answers"]) == (4, 8)


def test_a_seed_gives_the_same_rows_whatever_else_is_run():
    policy = model()
    start = {name: value.clone() for name, value in policy.state_dict().items()}
    kept = lambda row: {name: value for name, value in row.items() if name != "cpu_seconds"}  # noqa: E731
    small = replace(TINY, base_lr=1e-2)
    [*_, full] = run_seed(policy, start, 0, ["base", "sft_more", "rl"], small)
    [alone] = run_seed(policy, start, 0, ["rl"], small)
    [other] = run_seed(policy, start, 1, ["rl"], small)
    assert kept(full) == kept(alone) and kept(other)["constant"] != kept(alone)["constant"]


def test_a_look_on_the_way_changes_nothing():
    """The arm that is looked at ends with the weights of the one that is not."""
    ends = []
    for checks in (1, 2):  # 1: the examination alone
        policy = model()
        for arm in ("sft_more", "rl"):
            row = rl_video.learn(policy, arm, Course("G", 4, span=1), replace(TINY, checks=checks))
            assert len(row["curve"]) == checks - 1
        ends.append(policy.lm_head.weight.detach().clone())
    assert torch.equal(*ends)


def test_exact_reward():
    [problem] = grounded((1.0, 2.0))
    assert [exact_reward(said, problem) for said in ("[[1.0, 2.0]]", "[[1.0, 2.1]]")] == [1.0, 0.0]


def test_levels_by_hand():
    """Eight frames, half a second and a second apart. Things of two frames are short; the middle is at frame 4."""
    problems = grounded((0.5, 1.5), (2.0, 3.5), (3.0, 7.0), (2.0, 4.0))
    answered = Answered(problems, ["[[0.5, 1.5]]", "", "[[3.0, 5.0]]", "[[2.0, 3.0]]"], [3.5, 3.5, 7.0, 7.0])
    assert levels(answered, 8) == [
        ("short", "early", "brief"),
        ("long", "late", "brief"),
        ("long", "late", "lasting"),
        ("short", "early", "lasting"),
    ]
    row = examined(answered, 8)
    assert (row["n"], row["miou"], row["exact"]) == (4, 50.0, 25.0)
    assert {name: (part["n"], part["miou"]) for name, part in row["by"].items()} == {
        "short": (2, 75.0), "long": (2, 25.0), "early": (2, 75.0), "late": (2, 25.0), "brief": (2, 50.0),
        "lasting": (2, 50.0),
    }  # fmt: skip
    assert row["by"]["early"]["constant"] >= row["constant"] > 0


def test_summary_by_hand():
    def line(seed, arm, miou, exact, constant=40.0, **more):
        by = {"short": {"n": 3, "miou": miou - 10, "constant": 30.0 + seed}}
        return {
            "seed": seed, "arm": arm, "n": 9, "miou": miou, "exact": exact, "constant": constant, "by": by,
            "cpu_seconds": 2.0 * seed,
        } | more  # fmt: skip

    rows = [
        line(0, "base", 70.0, 20.0), line(1, "base", 74.0, 30.0), line(0, "sft_more", 72.0, 25.0),
        line(0, "rl", 90.0, 80.0, shuffled=20.0), line(1, "rl", 80.0, 60.0, constant=44.0, shuffled=30.0),
        line(0, "sft_clean", 99.0, 98.0), line(1, "sft_clean", 97.0, 98.0),
    ]  # fmt: skip
    out, estimate = summarise(rows), student_mean([90.0, 80.0])
    assert out["miou_rl_low"] == round(estimate.low, 2) < 80 and out["miou_rl_high"] == round(estimate.high, 2) > 90
    expected = {
        "miou_base": 72.0, "exact_base": 25.0, "cpu_seconds_base": 1.0, "miou_base_short": 62.0, "miou_sft_more": 72.0,
        "miou_rl": 85.0, "miou_rl_short": 75.0, "miou_sft_clean": 98.0, "miou_shuffled": 25.0, "miou_constant": 42.0,
        "miou_constant_short": 30.5, "rl_minus_base": 13.0, "rl_minus_base_min": 6.0, "rl_minus_sft_more": 18.0,
        "rl_minus_sft_more_min": 18.0, "sft_clean_minus_rl": 13.0, "sft_clean_minus_rl_min": 9.0, "video_seeds": 2,
        "questions": 9,
    }  # fmt: skip
    assert {name: out[name] for name in expected} == expected
    assert not {name for name in out if "rl_true" in name or "rl_exact" in name}
    assert summarise(rows[:1])["miou_base"] == 70.0 and summarise([]) == {}


def test_the_script(tmp_path, monkeypatch, capsys):
    """Called again it adds the rows that are missing, arms as well as seeds."""
    model().save_pretrained(tmp_path / "model")
    out = tmp_path / "out.json"

    def call(*words: object) -> int:
        sizes = [f"--{name.replace('_', '-')}={getattr(TINY, name)}" for name in Plan.__dataclass_fields__]
        every = ["rl_video", "--checkpoint", tmp_path / "model", "--out", out, "--device", "cpu", *sizes, *words]
        monkeypatch.setattr(sys, "argv", [str(word) for word in every])
        capsys.readouterr()
        rl_video.main()
        return capsys.readouterr().out.count("\n")

    assert call("--seeds", 0, "--arms", "base", "rl") == 2
    assert call("--seeds", 0, 1, "--arms", "rl", "sft_more") == 3 and call("--seeds", 0, "--arms", "base", "rl") == 0
    result = json.loads(out.read_text())
    assert [(row["seed"], row["arm"]) for row in result["rows"]] == [
        (0, "base"), (0, "rl"), (0, "sft_more"), (1, "sft_more"), (1, "rl"),
    ]  # fmt: skip
    assert result["summary"] == summarise(result["rows"]) and result["seeds"] == [0, 1]
    assert {"miou_base", "miou_rl", "miou_rl_low", "miou_shuffled", "miou_constant"} <= result["summary"].keys()
