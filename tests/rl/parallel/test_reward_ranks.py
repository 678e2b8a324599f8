"""Two processes that learn from reward, and from teachers, say and become what one does; they fail together."""

from pathlib import Path

import pytest
import torch
from reward_ranks import LESSONS, LOOP, REWARDS, imitated, policy, questions, rewarded, studied, taught

from minikeye.rl.parallel.agreement import alike, by_rows, shares, totals
from minikeye.training.parallel.mesh import ALONE

# Four steps of AdamW: each moves a parameter by its rate or so, however small the gradient, and so makes of a gradient
# that is rounding alone a step of up to the rate. Gradients here differ in the seventh digit, and most are no rounding.
APART = 0.1 * LOOP.lr


@pytest.fixture(scope="module")
def ranks(play) -> list[dict]:
    """All cases, by one pair of processes."""
    return play(Path(__file__).with_name("reward_ranks.py"))


def as_one(found: list[dict], one: dict) -> None:
    """The log to seven digits of numbers around 1, and the parameters, on every rank."""
    for rank in found:
        assert len(rank["lines"]) == len(one["lines"]) == LOOP.steps
        for ours, theirs in zip(rank["lines"], one["lines"], strict=True):
            strip = lambda line: {name: x for name, x in line.items() if name != "seconds"}  # noqa: E731
            assert strip(ours) == pytest.approx(strip(theirs), rel=1e-5, abs=1e-5)
        assert rank["parameters"].keys() == one["parameters"].keys()
        for name, p in one["parameters"].items():
            assert float((rank["parameters"][name] - p).abs().max()) < APART, name


@pytest.mark.slow
@pytest.mark.parametrize("case", REWARDS)
def test_reward_teaches_as_in_one_process(ranks, case):
    """Drawn, judged and learnt from on two ranks: uneven shares, a rank without a prompt, one without a group."""
    one = rewarded(case)
    as_one([rank["reward"][case] for rank in ranks], one)
    before = dict(policy().named_parameters())
    moved = [float((p - before[name].detach()).abs().max()) for name, p in one["parameters"].items()]
    assert (max(moved) > LOOP.lr / 2) == (case != "nothing")


@pytest.mark.slow
def test_the_cases_are_those_that_they_are_called(ranks):
    """Over-sampling asks for more; the second chance replaces answers, to some groups; the whole log is not zeros."""
    lines = {case: ranks[0]["reward"][case]["lines"] for case in REWARDS}
    assert max(line["rolled"] for line in lines["DAPO"]) > REWARDS["DAPO"][0]
    assert max(line["hinted"] for line in lines["second chance"]) > 0
    assert 0 < max(line["rescued"] for line in lines["second chance"]) < 1
    assert all(any(line["loss"] for line in lines[case]) for case in REWARDS if case != "nothing")


@pytest.mark.slow
@pytest.mark.parametrize("case", LESSONS)
def test_teachers_teach_as_in_one_process(ranks, case):
    """Each rank has one kind of prompts; a part of both; none."""
    one = taught(case)
    as_one([rank["lessons"][case] for rank in ranks], one)
    for rank in ranks:
        assert rank["lessons"][case]["far"] == pytest.approx(one["far"], abs=1e-5)


@pytest.mark.slow
def test_teachers_are_imitated_as_in_one_process(ranks):
    as_one([rank["imitated"] for rank in ranks], imitated())


@pytest.mark.slow
def test_studies_have_the_rows_of_one_process(ranks):
    """What is written is rounded, scores and logs alike."""
    one = studied()
    for rank in ranks:
        assert rank["studied"]["reward"] == one["reward"] and len(one["reward"]) == 2
        for ours, theirs in zip(rank["studied"]["teachers"], one["teachers"], strict=True):
            assert ours == pytest.approx(theirs, abs=1e-4, rel=1e-5)


@pytest.mark.slow
def test_two_ranks_that_stopped_go_on_to_the_same_bits(ranks):
    for rank in ranks:
        strip = lambda lines: [{k: x for k, x in line.items() if k != "seconds"} for line in lines]  # noqa: E731
        assert strip(rank["resumed"]["lines"]) == strip(rank["reward"]["GSPO"]["lines"])[2:]
        for name, p in rank["reward"]["GSPO"]["parameters"].items():
            assert torch.equal(rank["resumed"]["parameters"][name], p), name


@pytest.mark.slow
def test_ranks_fail_together(ranks):
    """The one that failed says what it always says, the other whose it was. Nobody waits for the timeout."""
    first, second = (rank["wrong"] for rank in ranks)
    assert second["reward"][0] == first["reward"][0] == "ValueError"
    assert (
        "is nan: expected a finite number" in second["reward"][1]
        and first["reward"][1] == f"rank 1: {second['reward'][1]}"
    )
    assert first["bug"] == ("KeyError", "'no such question'") and second["bug"] == ("ValueError", "as well")
    for when in ("answering", "learning", "gradient"):
        assert first[when][0] == second[when][0] == "FloatingPointError"
        assert first[when][1].replace("rank 1: ", "") == second[when][1]
        assert ("rank 1: " in first[when][1]) == (when != "gradient")
    assert "stopped at step 0: " in first["learning"][1] and "reinforce.failed.pt" in first["learning"][1]
    assert "the gradient of model." in first["gradient"][1]
    assert first["whole"] == second["whole"] and "call spread(model, ranks) first" in first["whole"][1]
    assert first["agent"] == second["agent"] and "agents learn in one process each" in first["agent"][1]
    assert first["experts"] == second["experts"] and "got ep 2 and cp 1" in first["experts"][1]
    assert first["context"] == second["context"] and "got ep 1 and cp 2" in first["context"][1]


@pytest.mark.slow
def test_passes_of_a_gathered_model_need_no_partner(ranks):
    """Two passes here, seven there, without a collective; then both are spread again, and pass together."""
    for rank in ranks:
        assert rank["passes"] == {"said": True, "again": True, "together": True}


@pytest.mark.slow
def test_visual_tokens_are_those_of_one_process(ranks):
    expected, _ = questions(policy(), 3)(1)
    for rank in ranks:
        assert torch.allclose(rank["visual"], expected["visual"], atol=1e-6)


def test_shares_are_all_rows_once():
    for size in range(1, 5):
        for count in range(9):
            parts = [[*range(count)[part]] for part in shares(count, size)]
            assert [row for part in parts for row in part] == [*range(count)]
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_alone_nothing_is_different():
    error = KeyError("mine")
    assert by_rows(ALONE, 3, lambda rows: rows) == [slice(0, 3)]
    assert totals(ALONE, {"a": 1.5}) == {"a": 1.5}
    with pytest.raises(KeyError) as caught, alike(ALONE):
        raise error
    assert caught.value is error
