"""The experts in assets/ are what their names say."""

import json
from dataclasses import replace

import pytest
import torch

from minikeye.evaluation.mopd.arms import Plan, batches, config_of, route
from minikeye.evaluation.mopd.experts import BASE
from minikeye.files import CHECKPOINT
from minikeye.keye import KeyeVL
from minikeye.rl.mopd.distill import apart_at_start
from minikeye.rl.mopd.domains import DOMAINS, EXPERTS, DomainCourse
from minikeye.rl.mopd.teachers import Teacher, Teachers
from minikeye.rl.questions import ask

SHIPPED = CHECKPOINT.with_name("mopd")
QUESTIONS = 60


def load(name: str) -> KeyeVL:
    return KeyeVL.from_pretrained(SHIPPED / name, dtype=torch.float32)


def score(model: KeyeVL, name: str) -> float:
    """Mean over questions of the test split, none of which the expert learnt from."""
    said = ask(model, DomainCourse(DOMAINS[name]), QUESTIONS)
    return sum(DOMAINS[name].reward(*pair) for pair in zip(said.answers, said.problems, strict=True)) / QUESTIONS


@pytest.fixture(scope="module")
def base() -> KeyeVL:
    return load(BASE)


@pytest.mark.parametrize("name", EXPERTS)
def test_an_expert_is_better_than_its_base_in_its_own_domain(base, name):
    assert score(load(name), name) > score(base, name) + 0.08


def test_experts_forget(base):
    assert score(load("counting"), "second") < score(base, "second") - 0.1


def test_every_expert_is_near_enough_to_teach(base):
    asked = batches(base, 0, 4, EXPERTS)(0)
    teachers = Teachers({route(DOMAINS[name]): Teacher(name, load(name)) for name in EXPERTS})
    far = apart_at_start(base, asked, teachers, replace(config_of(Plan(), 0), most_kl=1.5))
    assert len(far) == 6 and all(0.05 < kl < 1.5 for kl in far.values())


def test_the_base_could_be_taught_by_reward():
    """The best of eight answers is right for a fifth of the questions and more, in every domain that got an expert."""
    rows = json.loads((SHIPPED / "scores.json").read_text(encoding="utf-8"))["rows"]
    drawn = next(row["drawn"] for row in rows if row["model"] == BASE)
    assert all(drawn[name]["pass"] >= 20 for name in EXPERTS)
