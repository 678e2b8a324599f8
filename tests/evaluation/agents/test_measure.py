"""What is counted about agents, by hand; and the control that hands results to the wrong episodes."""

from dataclasses import replace

import pytest
from test_trajectory import BUDGET, DRAWING, episode, turn, writer
from worlds import Door

from minikeye.config import KeyeConfig
from minikeye.evaluation.agents.measure import Player, Spare, handed_on, play, scores, split
from minikeye.keye import KeyeVL
from minikeye.rl import partial


def test_results_are_handed_on_by_hand():
    """To the next who called; who calls alone gets what was spared of the turn before."""
    results, spare = handed_on([["a"], [], ["b", "c"], ["d"]], Spare(1, ("old",)))
    assert results == [["b", "c"], [], ["d"], ["a"]] and spare == Spare(0, ("a",))
    results, spare = handed_on([[], ["e"]], spare)
    assert results == [[], ["a"]] and spare == Spare(1, ("e",))
    assert handed_on([[], []], spare) == ([[], []], spare)
    assert handed_on([[], ["f"]], spare) == ([[], ["error: nothing"]], Spare(1, ("f",)))  # not its own of before


class Told(Door):
    """The door; the first turn of the lock decides whether an episode slipped."""

    def turn(self, digit: int) -> str:
        """Turn the lock to a digit.

        digit: 0 to 9
        """
        told = super().turn(digit)
        self.slipped = self.slipped or (self.tries == 1 and not self.open)
        return told


def test_scores_by_hand(monkeypatch):
    """Three episodes of codes 7, 8 and 9: one opens at once, one at the second try, one never, with an invalid call."""
    how = writer()
    turns = {7: (turn(7), "done"), 8: (turn(3), turn(8), "done"), 9: (turn(1), "<tool_call>?</tool_call>", "no")}
    played = play_scripted(monkeypatch, how, turns)
    found = scores(played)
    assert found == {
        "n": 3,
        "success": 66.67,
        "right": 66.67,
        "reward": 0.6667,
        "calls": 1.667,
        "turns": 2.667,
        "invalid": 20.0,
        "slipped": 66.67,
        "corrected": 50.0,
        "n_slipped": 2,
    }
    assert scores(played, lambda world: world.answer != "")["right"] == 100
    assert scores(played, lambda world: world.answer != "")["success"] == 66.67
    parts = split(played, lambda world: {"code": "even" if world._code % 2 == 0 else "odd"})
    assert {name: part["n"] for name, part in parts.items()} == {"code even": 1, "code odd": 2}
    assert parts["code even"]["corrected"] == 100 and parts["code odd"]["success"] == 50
    assert scores([])["success"] == scores([])["corrected"] == 0


def play_scripted(monkeypatch, how, turns, shuffled: bool = False):
    """What `play` makes of a policy that says these turns, whatever it is told."""
    left = {number: list(said) for number, said in turns.items()}

    def further(model, rollouts, inputs_of, config, stop_ids, version):
        out = []
        for r in rollouts:
            if partial.finished(r, config, stop_ids):
                out.append(r)
                continue
            said = left[r.prompt].pop(0)
            out.append(partial.longer(r, [(t, -1.0) for t in [*how.tokenizer.encode(said), how.end]], version))
        return out

    monkeypatch.setattr(partial, "further", further)
    player = Player(Told, how, replace(BUDGET, turns=4), DRAWING)
    return play(KeyeVL(KeyeConfig.nano()), player, list(turns), shuffled)


@pytest.mark.parametrize("shuffled", [False, True])
def test_shuffled_results_belong_to_others(monkeypatch, shuffled):
    """Each is told what the other's lock said; the worlds themselves go on as they were called."""
    turns = {3: (turn(5), turn(3), "done"), 8: (turn(5), turn(8), "done")}
    one, other = play_scripted(monkeypatch, writer(), turns, shuffled)
    told = lambda t: [m["content"] for m in t.messages if m["role"] == "user"][1]  # noqa: E731
    assert ("lower" in told(one), "higher" in told(other)) == ((False, False) if shuffled else (True, True))
    assert one.rollout.reward == other.rollout.reward == 1


def test_rewards_are_those_of_the_episode():
    assert episode(writer(), turn(7), "done").rewarded().rollout.reward == 1
