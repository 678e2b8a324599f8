"""What pays is said more often; who is not finished waits; a kill changes nothing."""

import json
from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from test_reading import BUDGET, SCRIPTS
from test_trajectory import DRAWING, scripted, writer
from worlds import Door, Window

from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.rl.agent.environment import Budget, Environment
from minikeye.rl.agent.imitate import demonstrate, imitate
from minikeye.rl.agent.learn import AgentConfig, Play, learn_from, reinforce, shares
from minikeye.rl.agent.reading import drawn, logprobs, rows
from minikeye.rl.agent.trajectory import begin
from minikeye.rl.learn import learns
from minikeye.rl.partial import PartialConfig
from minikeye.training.loop import LoopConfig
from minikeye.training.stage import trainable


class Coin(Environment):
    """Asks; "yes" pays, unless somebody called first."""

    called = False

    def reset(self, number: int) -> str:
        self.called = False
        return "Heads?"

    def toss(self) -> str:
        """Toss."""
        self.called = True
        return "up"

    def get_reward(self) -> float:
        return float(self.answer == "yes")


def sides(world: Coin, heard) -> str:
    """Both answers equally often: the policy cannot know which."""
    return "yes" if world.number % 2 else "no"


class Numbered(Coin):
    def reset(self, number: int) -> str:
        self.number = number
        return super().reset(number)


@pytest.fixture(scope="module")
def taught():
    """A policy that says yes or no. How it is taught is no business of these tests: it is copied."""
    how, model = writer(), seeded()
    batch = [demonstrate(Numbered(), n, sides, how, Budget()) for n in range(8)]
    imitate(model, lambda step: batch, LoopConfig(steps=60, lr=3e-3, warmup=5))
    return model.state_dict()


def seeded() -> KeyeVL:
    torch.manual_seed(0)
    return KeyeVL(KeyeConfig.nano())


def policy(state) -> KeyeVL:
    model = seeded()
    model.load_state_dict(state)
    return model


SMALL = AgentConfig(
    groups=4, group=8, rounds=2, drawing=PartialConfig(budget=3, max_new_tokens=6), budget=Budget(turns=2)
)


def loop(iterations: int, **more) -> LoopConfig:
    return LoopConfig(steps=2 * iterations, lr=5e-4, warmup=0, weight_decay=0.0, log_every=1, **more)


def test_what_pays_is_said_more_often(taught):
    lines = reinforce(policy(taught), Coin, writer(), SMALL, loop(10))
    rewards = [line["reward"] for line in lines[::2]]
    assert 0.2 < sum(rewards[:2]) / 2 < 0.8 and sum(rewards[-2:]) / 2 > 0.9
    assert abs(lines[0]["ratio"] - 1) < 1e-4 and lines[0]["turns"] == 1 and lines[0]["complete"] == 4


WAITING = replace(SMALL, rounds=1, drawing=PartialConfig(budget=2, max_new_tokens=6), most_stale=100)


def test_who_is_not_finished_waits(taught):
    """yes and its mark are four tokens, which two rounds of two draw: groups of one iteration end in the next, and have
    been begun under the policy of two steps before."""
    lines = reinforce(policy(taught), Coin, writer(), WAITING, loop(6))
    first, second = lines[0], lines[2]
    assert first["waiting"] >= 3 and second["complete"] >= 1 and second["oldest"] == 2
    assert all(line["complete"] + line["waiting"] == 4 for line in lines)


def test_what_waits_too_long_is_dropped(taught):
    config = replace(WAITING, most_stale=0)
    lines = reinforce(policy(taught), Coin, writer(), config, loop(3))
    assert lines[2]["dropped"] == lines[0]["waiting"] > 0 and all(line["oldest"] == 0 for line in lines)


def test_a_run_that_was_killed_goes_on(taught, tmp_path):
    """With groups under way: the same rewards, losses and parameters."""
    straight, broken = policy(taught), policy(taught)
    whole = reinforce(straight, Coin, writer(), WAITING, loop(6, save_every=4), tmp_path / "whole")
    seen = 0

    class Killed(Exception):
        pass

    class Mortal(Coin):
        def get_reward(self) -> float:
            nonlocal seen
            seen += 1
            if seen > 60:
                raise Killed
            return super().get_reward()

    with pytest.raises(Killed):
        reinforce(broken, Mortal, writer(), WAITING, loop(6, save_every=4), tmp_path / "broken")
    kept = sorted(path.name for path in (tmp_path / "broken").glob("*.json"))
    assert kept and json.loads((tmp_path / "broken" / kept[-1]).read_text())["begun"] >= 4
    resumed = policy(taught)
    rest = reinforce(resumed, Coin, writer(), WAITING, loop(6, save_every=4), tmp_path / "broken")
    assert 0 < len(rest) < len(whole)
    without = lambda lines: [{k: v for k, v in line.items() if k != "seconds"} for line in lines]  # noqa: E731
    assert without(rest) == without(whole[-len(rest) :])
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))
    for path in (tmp_path / "broken").glob("*.json"):
        path.unlink()
    (tmp_path / "broken" / "agent.jsonl").unlink()
    with pytest.raises(ValueError, match="expected the episodes that waited at step"):
        reinforce(policy(taught), Coin, writer(), WAITING, loop(9, save_every=4), tmp_path / "broken")


def test_groups_that_agree_teach_nothing():
    """Four groups of which one agrees: three are parted among two steps."""
    config = replace(SMALL, group=2)
    how, done = writer(), []
    for group, rewards in enumerate([(0, 1), (1, 1), (1, 0), (0, 1)]):
        for t, reward in zip(begin([Door(), Door()], 7, group, how, Budget()), rewards, strict=True):
            done.append(replace(t, rollout=replace(t.rollout, reward=float(reward))))
    parts = shares(done, config)
    assert [[t.rollout.group for t in part] for part in parts] == [[0, 0], [2, 2, 3, 3]]
    assert shares(done[2:4], config) == [[], []]


def test_a_step_raises_what_was_right(lively, monkeypatch):
    """By a policy that calls and looks, over words and frames: after one step the tokens of what paid are likelier, and
    those of what did not less; no parameter of tower, projector or indexer has a gradient."""
    how = writer()
    config = AgentConfig(groups=1, group=4, rounds=12, drawing=replace(DRAWING, budget=40), budget=BUDGET)
    play = Play(Window, how, config)
    play.waiting = begin([Window() for _ in SCRIPTS], 0, 0, how, BUDGET, listed=False)
    play.begun = 1
    scripted(monkeypatch, play.waiting, SCRIPTS, how, config.drawing)
    done, numbers = play.iteration(lively, version=0)
    assert numbers["reward"] == 0.5 and numbers["calls"] == 0.75 and numbers["invalid"] == 0
    lively = deepcopy(lively)
    trainable(lively, learns)
    loss, _ = learn_from(lively, done, config)
    graded = {n.split(".")[0] for n, p in lively.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert abs(float(loss.detach())) < 1e-5 and graded == {"model", "lm_head"}
    rollouts = [t.rollout for t in done]
    inputs, mask = rows(lively, rollouts, [t.frames for t in done], "right"), drawn([*rollouts], "mask")
    with torch.no_grad():
        before = logprobs(lively, inputs, mask).sum(1) / mask.sum(1)
        for p in lively.parameters():
            if p.grad is not None:
                p -= 0.02 * p.grad
        after = logprobs(lively, inputs, mask).sum(1) / mask.sum(1)
    gain = after - before
    assert gain[:2].sum() > 0 > gain[2:].sum()


def test_configs_are_checked():
    for bad in ({"group": 1}, {"groups": 0}, {"rounds": 0}, {"minibatches": 0}, {"most_stale": -1}):
        with pytest.raises(ValueError, match="expected group >= 2"):
            replace(SMALL, **bad)
    with pytest.raises(ValueError, match="multiples of 2 minibatches"):
        reinforce(seeded(), Coin, writer(), SMALL, LoopConfig(steps=3, lr=1e-3))
