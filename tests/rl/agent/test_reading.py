"""Frames may stand anywhere in a trajectory, and every token stands where it would, were all written at once."""

from dataclasses import replace

import pytest
import torch
from test_trajectory import DRAWING, Trajectory, scripted, spoken, writer
from worlds import Door, Window, clip

from minikeye.inference.calling.calls import Call, written
from minikeye.rl import partial
from minikeye.rl.agent.environment import Budget
from minikeye.rl.agent.reading import drawn, logprobs, rows
from minikeye.rl.agent.trajectory import advance, begin, complete_groups, heard, played_again
from minikeye.rl.gspo import GSPO, advantages, objective

BUDGET = Budget(turns=5, tokens=2000)


def look(frames: int, height: int = 28) -> str:
    return written(Call("look", {"frames": frames, "height": height}))


SAY = written(Call("say", {}))


def episode(how, *turns: str, number: int = 7) -> Trajectory:
    (trajectory,) = begin([Window()], number, 0, how, BUDGET, listed=False)
    for text in turns:
        trajectory = spoken(trajectory, text, how)
    return trajectory


@pytest.mark.parametrize("turns", [(), (look(1),), (look(3, 56), SAY, look(2) + look(1)), (SAY,)])
@pytest.mark.parametrize("side", ["left", "right"])
def test_rows_are_what_is_written_at_once(turns, side, lively):
    """Tokens, positions and logits of a trajectory beside a longer one: those that the processor makes of all its
    messages. With pixels and with visual tokens."""
    how = writer()
    one, other = episode(how, *turns), episode(how, look(2, 56), "no", number=8)
    whole = how.processor(one.messages)
    rollouts, frames = [one.rollout, other.rollout], [one.frames, other.frames]
    length = whole["input_ids"].shape[1]
    with torch.no_grad():
        true = lively(whole, attention="dense").logits[0]
        for taught in (False, True):
            inputs = rows(lively, rollouts, frames, side, taught)
            place = slice(-length, None) if side == "left" else slice(0, length)
            assert torch.equal(inputs["input_ids"][0, place], whole["input_ids"][0])
            assert torch.equal(inputs["positions"][:, 0, place], whole["positions"][:, 0])
            assert ("patches" in inputs, "visual" in inputs) == (taught, not taught)
            logits = lively(inputs, attention="dense").logits[0, place]
            assert (logits - true).abs().max() < 1e-4


def test_what_is_shown_is_told():
    """Frames are appended, marked as told, and known by their pixels; a second look has its own."""
    how = writer()
    trajectory = episode(how, look(3, 56), look(1))
    frames = [tuple(part.shape) for part in trajectory.frames]
    assert frames == [(2, 3, 28, 28), (3, 3, 56, 56), (1, 3, 28, 56)]
    video = how.processor.config.video_token_id
    ids, mask = trajectory.rollout.completion_ids, trajectory.rollout.mask
    assert ids.count(video) == 3 * 4 + 2 and not any(m for i, m in zip(ids, mask, strict=True) if i == video)
    assert torch.equal(trajectory.frames[1], clip(8, 3, 56, 56).frames)
    assert trajectory.episode.environment.misses == [False, True]
    words = how.tokenizer.decode(list(ids), skip_special=False)
    assert words.count("<tool_response>\n<|vision_start|><|frame|>0.0") == 2 and "1.0<|video_pad|>" in words


def test_frames_that_do_not_fit_are_refused(lively):
    trajectory = episode(writer(), look(3))
    for frames in (trajectory.frames[:1], (*trajectory.frames, trajectory.frames[0])):
        with pytest.raises(ValueError, match="expected frames for"):
            rows(lively, [trajectory.rollout], [frames], "right")


def test_a_result_with_too_many_frames_ends_the_episode():
    (trajectory,) = begin([Window()], 7, 0, how := writer(), Budget(tokens=100), listed=False)
    trajectory = spoken(trajectory, look(20), how)
    assert trajectory.episode.over and False not in trajectory.rollout.mask and len(trajectory.frames) == 1


SCRIPTS = [(look(2, 56), "yes"), (look(1), "yes"), (SAY, "yes"), ("no",)]


@pytest.fixture
def played(lively, monkeypatch):
    """A group of four, complete, drawn in rounds of forty tokens."""
    how, config = writer(), replace(DRAWING, budget=40)
    trajectories = begin([Window() for _ in SCRIPTS], 7, 3, how, BUDGET, listed=False)
    scripted(monkeypatch, trajectories, SCRIPTS, how, config)
    for version in range(20):
        done, waiting = complete_groups(trajectories, config, how)
        if not waiting:
            return how, config, done
        trajectories = advance(lively, trajectories, config, how, version)
    raise AssertionError("episodes must end")


def test_log_probabilities_are_those_of_drawing(played, lively):
    """Whatever was shown before a token; nothing stands outside of what was drawn."""
    _, _, done = played
    rollouts = [t.rollout for t in done]
    assert [r.reward for r in rollouts] == [1, 1, 0, 0]
    inputs = rows(lively, rollouts, [t.frames for t in done], "right")
    mask, old = drawn(rollouts, "mask"), drawn(rollouts, "old_logprobs")
    with torch.no_grad():
        new = logprobs(lively, inputs, mask)
    assert (new - old).abs().max() < 1e-4 and not new[~mask].any() and not old[~mask].any()
    assert mask.sum().item() == sum(sum(r.mask) for r in rollouts)


def learnt(model, done, mask, changed) -> list[torch.Tensor]:
    """GSPO's loss and all gradients with other targets where `changed` is; what is read stays as it is."""
    rollouts = [t.rollout for t in done]
    inputs = rows(model, rollouts, [t.frames for t in done], "right")
    logits = model(inputs, attention="dense").logits[:, :-1].log_softmax(-1)
    targets = inputs["input_ids"][:, 1:].clone()
    targets[changed] = (targets[changed] + 1) % 256
    new = logits.gather(-1, targets[..., None]).squeeze(-1)
    values, _ = advantages(
        torch.tensor([r.reward for r in rollouts]), torch.zeros(len(rollouts), dtype=torch.long), GSPO
    )
    loss, _ = objective(new, drawn(rollouts, "old_logprobs"), mask, values, GSPO)
    parameters = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [loss.detach(), *(g for g in found if g is not None)]


def depends(model, done, mask) -> tuple[bool, bool]:
    """Whether the loss or a gradient depends, in any bit, on what was told, and on one token that was drawn."""
    rollouts = [t.rollout for t in done]
    right = drawn(rollouts, "mask")
    there = torch.zeros_like(right)
    for n, r in enumerate(rollouts):
        there[n, len(r.prompt_ids) - 1 : len(r.prompt_ids) - 1 + len(r.completion_ids)] = True
    one = torch.zeros_like(right)
    one[0, right[0].nonzero()[5]] = True
    before, nothing = learnt(model, done, mask, torch.zeros_like(right)), []
    for places in (there & ~right, one):
        after = learnt(model, done, mask, places)
        nothing.append(all(torch.equal(x, y) for x, y in zip(before, after, strict=True)))
    return not nothing[0], not nothing[1]


def test_only_what_was_drawn_is_learnt(played, lively):
    """Frames and words of tools are targets of nothing; a mask turned round, or of everything, is found out."""
    _, _, done = played
    mask = drawn([t.rollout for t in done], "mask")
    assert depends(lively, done, mask) == (False, True)
    assert depends(lively, done, torch.ones_like(mask)) == (True, True)
    turned = ~mask
    assert depends(lively, done, turned) == (True, False)


def test_frames_are_played_again(played):
    """From tokens in a file: the pixels come from the world."""
    how, config, done = played
    for trajectory in done:
        kept = replace(trajectory.rollout, reward=None)
        (again,) = partial.read(partial.written([kept]))
        found = played_again(again, Window(), how, config, BUDGET, listed=False)
        assert found.rollout == kept
        assert all(torch.equal(a, b) for a, b in zip(found.frames, trajectory.frames, strict=True))


def test_a_group_shares_its_prompt():
    """One tensor for all, so that a frozen tower sees it once."""
    group = begin([Window(), Window()], 7, 0, writer(), BUDGET, listed=False)
    assert group[0].frames[0] is group[1].frames[0]
    with pytest.raises(ValueError, match="ask the same"):
        begin([Window(), Door()], 7, 0, writer(), BUDGET, listed=False)
    assert heard(group[0], DRAWING, writer(), 0) == group[0]
