"""The study of agents runs from end to end, small, and adds up by hand."""

import json
from dataclasses import replace

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.evaluation.agents.families import SMALL, families
from minikeye.evaluation.agents.study import (
    ARMS,
    NAMES,
    Demonstrations,
    Run,
    gathered,
    made,
    measure,
    report,
    summarise,
)
from minikeye.files import CHECKPOINT
from minikeye.keye import KeyeVL
from minikeye.minivid.lessons import batches
from minikeye.results import hardware

TINY = replace(SMALL, lessons=2, imitation=2, iterations=1, groups=2, group=2, test=3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("nano")
    KeyeVL(KeyeConfig.nano()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_every_family_runs(name, checkpoint, tmp_path):
    """Two steps of each arm; all lines, with their splits and logs, in a file; the agent is kept."""
    family = replace(families("nano")[name], turn=8, sizes=TINY, prepare=None)
    rows = list(measure(checkpoint, family, Run(0, states=tmp_path), list(ARMS), "cpu"))
    assert [row["arm"] for row in rows] == list(ARMS)
    assert all(row["n"] == 3 and row["splits"] and row["log"] for row in rows)
    assert "shuffled" in rows[1] and "shuffled" in rows[2] and "shuffled" not in rows[0]
    rows = [row | {"scale": "nano"} for row in rows]
    report(tmp_path / "out.json", rows, "command")
    kept = json.loads((tmp_path / "out.json").read_text())
    assert kept["summary"][f"nano_{name}_seeds"] == 1 and kept["seeds"] == [0] and kept["hardware"] == hardware()
    assert KeyeVL.from_pretrained(tmp_path / f"{name}-0-agent").config == KeyeConfig.nano()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scale", ["mini", "nano"])
def test_a_turn_has_room(name, scale):
    """The expert's longest turn fits into a round, and its whole episode into what an episode may draw and be told."""
    family = families(scale)[name]
    for shown in Demonstrations(name, scale, KeyeConfig.mini(), 20, 0, False, range(1))[0]:
        assert shown.rollout.reward == 1
        turns = "".join("x" if drawn else " " for drawn in shown.rollout.mask).split()
        assert max(map(len, turns)) <= family.turn and len(turns) <= family.budget.turns
        assert sum(shown.rollout.mask) <= family.drawing.max_new_tokens


def demonstrations(seed: int, straight: bool, steps: range) -> Demonstrations:
    return Demonstrations("tool", "nano", KeyeConfig.nano(), 2, seed, straight, steps)


def prompts(batch) -> list[tuple[int, ...]]:
    return [shown.rollout.prompt_ids for shown in batch]


def test_steps_have_episodes_of_their_own():
    """The same for the same step, others for another, another seed and another way."""
    all_steps = demonstrations(0, False, range(3))
    assert len(all_steps) == 3
    assert prompts(all_steps[2]) == prompts(demonstrations(0, False, range(2, 3))[0])
    seen = [*prompts(all_steps[0]), *prompts(all_steps[1]), *prompts(demonstrations(1, False, range(3))[0])]
    assert len(set(seen)) == 6
    straight = demonstrations(0, True, range(3))[0]
    assert prompts(straight) == prompts(all_steps[0]) and all(len(s.rollout.completion_ids) < 8 for s in straight)


def test_workers_play_beside_a_sandbox_that_is_in_use():
    """What runs code has threads, which a fork leaves behind: a worker that is forked then waits forever."""
    shown = Demonstrations("code", "nano", KeyeConfig.nano(), 2, 0, False, range(2))
    here = [shown[0], shown[1]]
    there = list(batches(shown, 1, "forkserver"))
    assert [prompts(batch) for batch in there] == [prompts(batch) for batch in here]


def test_lines_are_gathered_once(tmp_path):
    """From two files that share one; and never from another scale."""
    how = made(families("nano")["tool"])
    assert how["frozen"] == ["sa_indexer"] and how["sizes"]["imitation"] == 1600
    how |= {"scale": "nano", "checkpoint": "nano"}
    lines = [{"family": "tool", "seed": seed, "arm": "agent"} | how for seed in (0, 1, 2)]
    longer = lines[0] | {"sizes": how["sizes"] | {"imitation": 1}}
    others = {"c.json": [lines[0] | {"scale": "mini"}], "d.json": [longer], "e.json": [lines[0] | {"frozen": []}]}
    for name, some in {"a.json": lines[:2], "b.json": lines[1:], **others}.items():
        (tmp_path / name).write_text(json.dumps({"rows": some}), encoding="utf-8")
    assert gathered([tmp_path / "a.json", tmp_path / "b.json", tmp_path / "a.json"], "nano", "nano") == lines
    for other in others:
        with pytest.raises(ValueError, match="give another --out"):
            gathered([tmp_path / "a.json", tmp_path / other], "nano", "nano")


@pytest.mark.parametrize("scale", ["mini", "nano"])
def test_the_shipped_lines_are_of_this_study(scale):
    """Made with the sizes and frozen weights that stand in the families today, and summed up as they say."""
    path = CHECKPOINT.parent.parent / "results" / {"mini": "agents.json", "nano": "agents_nano.json"}[scale]
    rows = gathered([path], scale, scale)
    assert summarise(rows) == json.loads(path.read_text(encoding="utf-8"))["summary"]


def test_the_summary_by_hand():
    one = {"family": "tool", "success": 80.0, "right": 80.0, "corrected": 70.0, "n_slipped": 9, "calls": 4.0}
    one |= {"invalid": 1.0, "chance": 0.0, "shuffled": {"right": 2.0}, "scale": "mini"}
    rows = [one | {"arm": "agent", "seed": 0}, one | {"arm": "agent", "seed": 1, "success": 90.0, "n_slipped": 0}]
    rows += [one | {"arm": "imitated", "seed": 0, "success": 60.0}, one | {"arm": "straight", "seed": 0, "right": 0.0}]
    found = summarise(rows)
    assert (found["tool_success"], found["tool_imitated"], found["tool_no_tool"]) == (85, 60, 0)
    # t(.975, 1 degree of freedom) = 12.706; standard error 5
    assert (found["tool_success_low"], found["tool_success_high"]) == (pytest.approx(21.47, abs=0.01), 148.53)
    assert found["tool_self_correction"] == 70 and "tool_self_correction_low" not in found
    assert (found["tool_shuffled"], found["tool_seeds"], found["invalid_calls"]) == (2, 2, 1)
    assert not any(key.startswith("code") for key in found)
    rows = [row | {"family": "search", "scale": "nano"} for row in rows]
    assert summarise(rows)["nano_search_success"] == 85 and summarise(rows)["nano_search_blind"] == 0
