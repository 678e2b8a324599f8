"""An expert's right turns are learnt, its wrong guesses are read."""

import pytest
import torch
from test_trajectory import writer
from worlds import Door, Window

from minikeye.config import KeyeConfig
from minikeye.inference.calling.calls import Call, written
from minikeye.keye import KeyeVL
from minikeye.rl.agent.environment import Budget
from minikeye.rl.agent.imitate import Demonstration, demonstrate, imitate, learnt_of
from minikeye.training.loop import LoopConfig

BUDGET = Budget(turns=6, tokens=2000)


def turn(digit: int) -> str:
    return written(Call("turn", {"digit": digit}))


def opens(world: Door, heard) -> str:
    """Tries 12, which the lock has not, then from the code itself down by one where it was too low."""
    said = [turn(12), turn(world._code), "done"]
    return said[len(heard)]


def looks(world: Window, heard) -> str:
    """Looks too little, then again."""
    return [written(Call("look", {"frames": frames})) for frames in (1, 3)][len(heard)] if len(heard) < 2 else "yes"


def test_a_miss_is_read_and_not_learnt():
    how = writer()
    shown = demonstrate(Door(), 4, opens, how, BUDGET)
    rollout = shown.rollout
    assert rollout.reward == 1
    learnt = [token for token, mark in zip(rollout.completion_ids, shown.learnt, strict=True) if mark]
    assert how.tokenizer.decode(learnt, skip_special=False) == turn(4) + "<|im_end|>done<|im_end|>"
    missed = [
        token
        for token, drawn, mark in zip(rollout.completion_ids, rollout.mask, shown.learnt, strict=True)
        if drawn and not mark
    ]
    assert how.tokenizer.decode(missed, skip_special=False) == turn(12) + "<|im_end|>"
    assert "the lock has no 12" in how.tokenizer.decode(list(rollout.completion_ids), skip_special=False)


def test_frames_are_in_it():
    shown = demonstrate(Window(), 4, looks, writer(), BUDGET)
    assert [len(part) for part in shown.frames] == [2, 1, 3] and shown.rollout.reward == 1
    assert sum(shown.learnt) == len(written(Call("look", {"frames": 3}))) + 1 + len("yes") + 1


def test_an_expert_that_is_cut_is_refused():
    with pytest.raises(ValueError, match="the expert was cut"):
        demonstrate(Door(), 4, opens, writer(), Budget(turns=2))
    with pytest.raises(ValueError, match="the expert was cut"):
        demonstrate(Door(), 4, opens, writer(), Budget(turns=6, tokens=5))
    good = demonstrate(Door(), 4, opens, writer(), BUDGET)
    with pytest.raises(ValueError, match="a mark for each"):
        Demonstration(good.rollout, good.frames, good.learnt[1:])


def test_marks_stand_on_their_tokens():
    batch = [demonstrate(Door(), n, opens, writer(), BUDGET) for n in (1, 2)]
    batch.append(demonstrate(Window(), 1, looks, writer(), BUDGET))
    marks = learnt_of(batch)
    for row, shown in zip(marks, batch, strict=True):
        rollout = shown.rollout
        ids = (*rollout.prompt_ids, *rollout.completion_ids)
        learnt = [ids[n] for n in row.nonzero().flatten().tolist()]
        assert learnt == [i for i, m in zip(rollout.completion_ids, shown.learnt, strict=True) if m]


def test_imitation_learns_and_leaves_the_indexers():
    """The loss falls, over text and frames in one batch; the tower learns as well."""
    how = writer()
    batch = [demonstrate(Door(), 3, opens, how, BUDGET), demonstrate(Window(), 1, looks, how, BUDGET)]
    loop = LoopConfig(steps=12, lr=3e-3, warmup=2, log_every=1)
    torch.manual_seed(0)
    model = KeyeVL(KeyeConfig.nano())
    indexers = {n: p.clone() for n, p in model.named_parameters() if "sa_indexer" in n}
    tower = model.visual.vision_model.embeddings.patch_embedding.weight.clone()
    lines = imitate(model, lambda step: batch, loop)
    assert lines[-1]["answer"] < 0.7 * lines[0]["answer"]
    assert all(torch.equal(p, dict(model.named_parameters())[n]) for n, p in indexers.items())
    assert not torch.equal(tower, model.visual.vision_model.embeddings.patch_embedding.weight)


def test_thoughts_are_learnt_as_a_policy_draws_them():
    """Their marks are tokens, not letters."""
    how = writer()
    shown = demonstrate(Door(), 3, lambda world, heard: "<think>Well.</think>done", how, BUDGET)
    marks = how.tokenizer.marks
    assert [shown.rollout.completion_ids.count(marks[name]) for name in ("<think>", "</think>")] == [1, 1]
    assert shown.rollout.reward == 0.5 and all(shown.learnt)


def test_context_is_counted_as_it_is_used():
    """A large budget costs nothing that is not told; what does not fit is refused, an answer at once too."""
    assert demonstrate(Door(), 4, opens, writer(), Budget(turns=6, tokens=4000)).rollout.reward == 1
    long = type("Long", (Door,), {"reset": lambda self, number: "words " * 800 * (Door.reset(self, number) != "")})
    with pytest.raises(ValueError, match="4096 tokens: the expert was cut"):
        demonstrate(long(), 4, lambda world, heard: "done", writer(), BUDGET)


def test_nothing_to_learn_is_refused():
    model = KeyeVL(KeyeConfig.nano())
    for batch in ([], [replace_marks(demonstrate(Door(), 4, opens, writer(), BUDGET))]):
        with pytest.raises(ValueError, match="with a token to learn in step 0"):
            imitate(model, lambda step, batch=batch: batch, LoopConfig(steps=1, lr=1e-3))


def replace_marks(shown: Demonstration) -> Demonstration:
    return Demonstration(shown.rollout, shown.frames, (False,) * len(shown.learnt))
