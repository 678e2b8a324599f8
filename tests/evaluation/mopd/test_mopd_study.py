"""The study in small: every arm runs from the same base, and the summary is arithmetic that can be done by hand."""

import json
from dataclasses import replace

import pytest
import torch

from minikeye.evaluation.mopd import arms, study
from minikeye.evaluation.mopd.arms import ARMS, DISTILLED, Family, Plan, batches, itself, learn, route, routes, thinned
from minikeye.evaluation.mopd.study import headrooms, read, report, rows_of, summarise
from minikeye.files import CHECKPOINT
from minikeye.keye import KeyeVL
from minikeye.rl.mopd.domains import DOMAINS, EXPERTS, PROBES
from minikeye.rl.mopd.teachers import Teachers

THINGS = CHECKPOINT.with_name("nano_things")
TINY = Plan(steps=2, prompts=1, iterations=1, rl_prompts=2, group=2, scales=(0.5, 1.0), validation=2)


@pytest.fixture(scope="module")
def made() -> Family:
    """A base and experts that are the base with another head each."""

    def expert(seed: int) -> KeyeVL:
        model = KeyeVL.from_pretrained(THINGS, dtype=torch.float32)
        with torch.no_grad():
            head = model.lm_head.weight
            head.add_(0.02 * torch.randn(head.shape, generator=torch.Generator().manual_seed(seed)))
        return model

    base = KeyeVL.from_pretrained(THINGS, dtype=torch.float32)
    experts = {name: expert(n) for n, name in enumerate(EXPERTS)}
    return Family(0, base, experts, {name: expert(50 + n) for n, name in enumerate(EXPERTS)})


@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_starts_from_the_base_and_moves(made, arm, monkeypatch):
    """Nothing but the student moves; most_kl is out of the way: these experts are nobody's."""
    monkeypatch.setattr(
        arms, "DISTILLED", {n: replace(way, change={"most_kl": 1e9} | way.change) for n, way in DISTILLED.items()}
    )
    monkeypatch.setattr(arms, "LONGEST", 4)
    student = KeyeVL(made.base.config)
    student.load_state_dict(made.base.state_dict())
    before = {name: p.clone() for name, p in made.base.state_dict().items()}
    row = learn(arm, student, made, TINY)
    assert all(torch.equal(p, before[name]) for name, p in made.base.state_dict().items())
    assert arm in ("mixrl", "cascade", "cascade_back") or not torch.equal(
        student.lm_head.weight, made.base.lm_head.weight
    )
    asked = {"average": 0, "arithmetic": 0, "no_self": 2 * 6 * 2} | dict.fromkeys(
        ("mixrl", "cascade", "cascade_back"), 6 * 2 * 2
    )
    assert row["rollouts"] == asked.get(arm, 2 * 7 * 2) and row["cpu_seconds"] >= 0
    json.dumps(row)


def test_who_teaches_what(made):
    right = {str(key): teacher.name for key, teacher in (routes(made.experts) | itself(made)).items()}
    assert right == {f"{name} ({DOMAINS[name].modality})": name for name in EXPERTS} | {"words (text)": "itself"}
    wrong = Teachers(routes(made.experts, moved=1))
    assert (
        wrong.of(route(DOMAINS["grounding"])).name == "order" and wrong.of(route(DOMAINS["sums"])).name == "grounding"
    )
    assert {each.route.modality for each in batches(made.base, 0, 1)(0)} == {"video", "image", "text"}


def test_the_scale_of_arithmetic_is_chosen_on_validation(made, monkeypatch):
    seen = []

    def validated(model, domain, seed, count, ranks):
        seen.append(domain.name)
        moved = float((model.lm_head.weight - made.base.lm_head.weight).detach().abs().mean())
        return -abs(moved - best)  # the smaller scale is right

    heads = torch.stack([made.experts[name].lm_head.weight for name in EXPERTS]) - made.base.lm_head.weight
    best = float((0.5 * heads.sum(0)).detach().abs().mean())
    monkeypatch.setattr(arms, "validated", validated)
    assert learn("arithmetic", KeyeVL(made.base.config), made, TINY)["scale"] == 0.5
    assert {*seen} == {*EXPERTS}
    split = arms.Validation(DOMAINS["sums"], 0).examination()
    assert split.split == "validation" and not split.careless
    test = {p.question for p in arms.DomainCourse(DOMAINS["sums"], 0).examination().questions(0, 50)[1]}
    assert not test & {p.question for p in split.questions(0, 50)[1]}


def line(seed: int, arm: str, score: float, **more) -> dict:
    """All domains with the same score."""
    return {"seed": seed, "arm": arm, "scores": dict.fromkeys((*EXPERTS, *PROBES), score), "questions": 4, **more}


def family_lines(seed: int, base: float, expert: float) -> list[dict]:
    constant = dict.fromkeys((*EXPERTS, *PROBES), 45.0)
    return [line(seed, "base", base, constant=constant), *(line(seed, f"expert {name}", expert) for name in EXPERTS)]


def test_headroom_by_hand():
    rows = [*family_lines(0, 50.0, 90.0), *family_lines(1, 60.0, 80.0)]
    one, two = line(0, "mopd", 70.0, rollouts=10, cpu_seconds=3.0), line(1, "mopd", 80.0, rollouts=10, cpu_seconds=5.0)
    one["scores"]["sums"], one["scores"]["words"] = 50.0, 46.0
    rows += [one, two, line(0, "mixrl", 90.0, rollouts=40, cpu_seconds=1.0)]
    assert headrooms(rows, "mopd")["grounding"] == {0: 50.0, 1: 100.0} and headrooms(rows, "mopd")["sums"] == {
        0: 0.0,
        1: 100.0,
    }
    found = summarise(rows)
    assert found["headroom_min"] == 50.0 and found["headroom_sums"] == 50.0 and found["headroom_worst"] == 0.0
    assert found["headroom_mean"] == pytest.approx((5 * 75 + 50) / 6, abs=0.1)
    assert found["text_drop"] == -8.0  # (50 - 46 + 60 - 80) / 2
    assert found["rollouts_ratio"] == 0.25 and found["headroom_min_mixrl"] == 100.0 and found["mopd_seeds"] == 2


def test_an_expert_that_is_no_better_has_no_headroom():
    rows = [*family_lines(0, 50.0, 50.5), line(0, "mopd", 50.0, rollouts=1, cpu_seconds=1.0)]
    assert not any(headrooms(rows, "mopd").values()) and "headroom_min" not in summarise(rows)


def test_lines_are_kept_added_and_not_made_again(made, tmp_path):
    rows = [*family_lines(3, 50.0, 90.0)]
    rows = [row | {"hardware": "here"} for row in rows]
    report(tmp_path / "a.json", rows)
    report(tmp_path / "b.json", [line(4, "base", 1.0, hardware="there", constant=dict.fromkeys(EXPERTS, 0.0))])
    found = read([tmp_path / "a.json", tmp_path / "b.json", tmp_path / "none.json"])
    assert {(row["seed"], row["arm"]) for row in found} == {(3, row["arm"]) for row in rows} | {(4, "base")}
    done = {"base", *(f"expert {name}" for name in EXPERTS), "mopd"}
    assert list(rows_of(made, TINY, ["mopd"], 2, done)) == []
    (row,) = rows_of(made, TINY, ["average"], 2, done)
    assert row["arm"] == "average" and row["scores"].keys() == DOMAINS.keys()


def test_the_log_is_thinned_by_means():
    lines = [{"step": n, "kl": float(n), "seconds": 0.1} for n in range(45)]
    kept = thinned(lines)
    assert len(kept) == 15 and kept[0] == {"step": 0, "kl": 1.0} and kept[-1] == {"step": 42, "kl": 43.0}


def test_the_command_refuses_arms_that_are_none(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["study", "--out", "x.json", "--arms", "magic"])
    with pytest.raises(SystemExit):
        study.main()
    assert "magic" in capsys.readouterr().err


def test_a_seed_that_drops_out_of_a_domain_takes_no_other_seed_with_it():
    """Headroom 20, 80 and 50 % everywhere; one expert is no better in seed 0, another in seed 1."""
    rows = []
    for seed, percent in enumerate((20, 80, 50)):
        lines = family_lines(seed, 40.0, 80.0)
        lines.append(line(seed, "mopd", 40.0 + 0.4 * percent, rollouts=1, cpu_seconds=1.0))
        rows += lines
    for seed, name in ((0, "counting"), (1, "sums")):
        next(r for r in rows if r["seed"] == seed and r["arm"] == f"expert {name}")["scores"][name] = 41.0
    found = summarise(rows)
    assert found["headroom_counting"] == 65.0 and found["headroom_sums"] == 35.0 and found["headroom_grounding"] == 50.0
    assert found["headroom_mean_low"] == pytest.approx(50 - 4.303 * 30 / 3**0.5, abs=0.2)


def test_lines_of_other_sizes_are_refused(tmp_path):
    for name, questions in (("a", 2), ("b", 4)):
        row = line(questions, "base", 1.0, hardware="x", constant=dict.fromkeys(EXPERTS, 0.0))
        report(tmp_path / f"{name}.json", [row | {"questions": questions}])
    with pytest.raises(ValueError, match="expected lines of one size, got 2"):
        read([tmp_path / "a.json", tmp_path / "b.json"])


def test_a_base_below_the_best_constant_is_told_apart():
    rows = [*family_lines(0, 50.0, 90.0), *family_lines(1, 50.0, 90.0)]
    rows[0]["scores"]["second"] = 30.0  # the best constant has 45
    rows += [line(n, "mopd", 90.0, rollouts=1, cpu_seconds=1.0) for n in (0, 1)]
    rows[-2]["scores"]["second"] = 36.0
    assert study.unable(rows) == {(0, "second")}
    assert headrooms(rows, "mopd")["second"] == {0: 10.0, 1: 100.0}
    assert headrooms(rows, "mopd", able=True)["second"] == {1: 100.0}
    found = summarise(rows)
    assert (found["headroom_min"], found["headroom_able_min"], found["mopd_unable"]) == (55.0, 100.0, 1)


def test_the_foreign_seed_is_another():
    assert [study.other_seed(n, [3, 5, 7]) for n in (3, 5, 7)] == [5, 7, 3] and study.other_seed(3, [3]) is None
