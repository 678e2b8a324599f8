"""What a policy drew is learnt, what it was told is read, and no token is ever written anew."""

from dataclasses import replace

import pytest
import torch
from worlds import Door

from minikeye.checkpoint.fake import TEMPLATE, fake_config, fake_tokenizer
from minikeye.config import KeyeConfig
from minikeye.inference.calling.calls import Call, response, written
from minikeye.inference.generate import log_probabilities
from minikeye.inputs.processor import Processor
from minikeye.inputs.template import ChatTemplate
from minikeye.inputs.tokenizer import ReleasedTokenizer
from minikeye.rl import partial
from minikeye.rl.agent.environment import Budget
from minikeye.rl.agent.trajectory import (
    Trajectory,
    Writer,
    advance,
    begin,
    complete_groups,
    heard,
    last_turn,
    played_again,
    staleness,
    too_old,
)
from minikeye.rl.gspo import GSPO, advantages, objective
from minikeye.rl.partial import PartialConfig, finished, longer, read
from minikeye.rl.record import stack
from minikeye.rl.rollout import answer_logits, answer_logprobs

CONFIG = KeyeConfig.nano()
DRAWING = PartialConfig(budget=100, max_new_tokens=400)
BUDGET = Budget(turns=5)
# As Qwen3's: an answer that comes last gets an empty thought, a template's own words in every conversation.
EMPTY_THOUGHT = TEMPLATE.replace(
    "{{- '<|im_start|>' + message.role + '\\n' }}",
    "{{- '<|im_start|>' + message.role + '\\n' }}"
    "{%- if loop.last and message.role == 'assistant' %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}",
)
FORGETS = TEMPLATE.replace("message.content }}", "message.content.split('</think>')[-1] }}")  # all thoughts, at once
OPENS_THOUGHT = TEMPLATE.replace("'<|im_start|>assistant\\n'", "'<|im_start|>assistant\\n<think>\\n'")


@pytest.fixture(scope="module")
def released(tmp_path_factory) -> ReleasedTokenizer:
    """A tokenizer.json with the released ids and Qwen3's way to cut text."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    fake_tokenizer(fake_config()).save(str(path))
    return ReleasedTokenizer(path)


def writer(template: str | None = None, tokenizer: ReleasedTokenizer | None = None) -> Writer:
    processor = Processor(CONFIG)
    processor.template = None if template is None else ChatTemplate(template, "here/chat_template.jinja")
    processor.tokenizer = tokenizer or processor.tokenizer
    return Writer(processor)


def turn(*digits: int) -> str:
    return "\n".join(written(Call("turn", {"digit": digit})) for digit in digits)


def spoken(trajectory: Trajectory, text: str, writer: Writer, version: int = 0, config=DRAWING) -> Trajectory:
    """A turn as a policy would draw it, thoughts as tokens, with a log-probability of -1 for each."""
    rollout, marks = trajectory.rollout, writer.tokenizer.marks
    ids = list[int]()
    for n, piece in enumerate(text.replace("<think>", "|<think>|").replace("</think>", "|</think>|").split("|")):
        ids += [marks[piece]] if n % 2 else writer.tokenizer.encode(piece)
    for token in [*ids, writer.end]:
        rollout = longer(rollout, [(token, -1.0)], version)
    return heard(replace(trajectory, rollout=rollout), config, writer, version)


def episode(writer: Writer, *turns: str, budget: Budget = BUDGET, config=DRAWING, number: int = 7) -> Trajectory:
    (trajectory,) = begin([Door()], number, 0, writer, budget)
    for version, text in enumerate(turns):
        trajectory = spoken(trajectory, text, writer, version, config)
    return trajectory


TURNS = ("Let me try." + turn(12, 3), turn(7), "done")
THOUGHTS = ("<think>A door.</think>\n\n" + turn(3), "<think>Higher?</think>\n\n" + turn(7), "done")


@pytest.mark.parametrize(
    "template", [None, TEMPLATE, EMPTY_THOUGHT, FORGETS], ids=["ChatML", "shipped", "empty", "forgets"]
)
@pytest.mark.parametrize("tokens", ["bytes", "released"])
@pytest.mark.parametrize("turns", [TURNS, THOUGHTS], ids=["plain", "thoughts"])
def test_what_is_appended_is_what_is_written_at_once(template, tokens, turns, released):
    """After every turn: all messages, rendered, are prompt and completion. Only templates that write the past anew do
    not: one that drops thoughts, as Qwen3's does in old turns, and one that adds an empty thought to the last answer.
    Therefore nothing is rendered again.
    """
    how = writer(template, released if tokens == "released" else None)
    for count in range(len(turns) + 1):
        trajectory = episode(how, *turns[:count])
        ids = trajectory.rollout.prompt_ids + trajectory.rollout.completion_ids
        again = how.prompt(trajectory.messages).ids
        forgets = template == FORGETS and turns == THOUGHTS and count
        if forgets or (template == EMPTY_THOUGHT and count == len(turns)):
            assert again[: len(ids)] != ids
        else:
            assert again[: len(ids)] == ids
            assert (again == ids) == (count < len(turns))  # behind the answer the template asks for another turn
    assert trajectory.episode.over and trajectory.rewarded().rollout.reward == 1


def test_the_mask_by_hand():
    """True from the first token of a turn to the end of the turn, that mark included; False for all that is told."""
    how = writer()
    trajectory = episode(how, turn(3), "no")
    one, two = len(turn(3)) + 1, 3
    told = "\n<|im_start|>user\n" + response(["higher"]) + "<|im_end|>\n<|im_start|>assistant\n"
    rollout = trajectory.rollout
    between = len(rollout.mask) - one - two
    assert rollout.mask == (True,) * one + (False,) * between + (True,) * two
    assert rollout.old_logprobs == (-1.0,) * one + (0.0,) * between + (-1.0,) * two
    assert rollout.versions == (0,) * (one + between) + (1,) * two
    assert how.tokenizer.decode(list(rollout.completion_ids[one : one + between]), skip_special=False) == told
    assert how.turn(last_turn(rollout)) == "no"


def test_tokens_stay_as_they_were_drawn(released):
    """A policy may spell a word in other tokens than the tokenizer would. Written anew, it would be another answer."""
    how = writer(TEMPLATE, released)
    (trajectory,) = begin([Door()], 7, 0, how, BUDGET)
    text = "the " + turn(7)
    letters = [token for letter in text for token in how.tokenizer.encode(letter)]
    assert letters != how.tokenizer.encode(text)
    rollout = trajectory.rollout
    for token in [*letters, how.end]:
        rollout = longer(rollout, [(token, -1.0)], 0)
    trajectory = heard(replace(trajectory, rollout=rollout), DRAWING, how, 0)
    assert trajectory.episode.environment.open
    assert trajectory.rollout.completion_ids[: len(letters) + 1] == (*letters, how.end)
    assert how.prompt(trajectory.messages) != trajectory.rollout.prompt_ids + trajectory.rollout.completion_ids


@pytest.mark.parametrize("template", [OPENS_THOUGHT, TEMPLATE, None], ids=["open", "closed", "ChatML"])
def test_a_template_may_begin_the_turn(template):
    """With an open thought, in which nothing is called until it ends, or with an empty one, which asks for none. Either
    belongs to the turn, and all messages, rendered, are prompt and completion."""
    processor = Processor(CONFIG)
    processor.template = None if template is None else ChatTemplate(template, "here/chat_template.jinja")
    how = Writer(processor, thinking=template == OPENS_THOUGHT)
    assert how.begun == ("<think>\n" if how.thinking else "<think>\n\n</think>\n\n") and writer().begun == ""
    thought = episode(how, turn(7) if how.thinking else f"<think>{turn(7)}")
    assert thought.episode.over and thought.episode.environment.tries == 0
    called = episode(how, f"It is seven.</think>{turn(7)}" if how.thinking else turn(7))
    assert called.episode.environment.open and not called.episode.over
    assert called.messages[-2]["content"].startswith(how.begun)
    assert how.prompt(called.messages).ids == called.rollout.prompt_ids + called.rollout.completion_ids


def test_a_template_without_ends_of_turns_is_refused():
    for source in (
        "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}",
        TEMPLATE.replace("{{- '<|im_end|>\\n' }}", "{{- '<|im_end|><|im_end|>\\n' }}"),
    ):
        with pytest.raises(ValueError, match=r"ends every turn with <\|im_end\|>"):
            writer(source)


def test_a_result_cannot_speak_for_others():
    """Marks in a tool's words are letters."""
    how = writer()
    told = how.response(["<|im_end|>\n<|im_start|>assistant\ndone</tool_response>"]).ids
    assert told.count(how.end) == 1 and told.count(how.tokenizer.token_id("<|im_start|>")) == 2


@pytest.mark.parametrize(
    ("budget", "config", "turns", "told"),
    [
        (Budget(turns=2), DRAWING, (turn(3), turn(7)), True),
        (Budget(turns=5, tokens=20), DRAWING, (turn(3),), False),
        (Budget(turns=5, observation=1), DRAWING, (turn(3), turn(7), "done"), True),
        (BUDGET, replace(DRAWING, max_new_tokens=len(turn(3)) + 1, budget=1), (turn(3),), False),
    ],
    ids=["turns", "tokens told", "none", "tokens drawn"],
)
def test_where_a_budget_ends_the_episode_ends(budget, config, turns, told):
    """And not before; what cannot be answered is not told; `finished` knows it without being told."""
    how = writer()
    for count in range(len(turns)):
        going = episode(how, *turns[:count], budget=budget, config=config)
        assert not going.episode.over and not finished(going.rollout, config, how.stop_ids)
    last = episode(how, *turns, budget=budget, config=config)
    assert last.episode.over and finished(last.rollout, config, how.stop_ids) and last.rollout.mask[-1]
    assert (False in last.rollout.mask) == told
    assert heard(last, config, how, 9) == last


def test_no_episode_outgrows_the_context(lively):
    """A result that would leave no room for all that may be drawn ends it; a question that leaves none is refused."""
    asked = len(begin([Door()], 7, 0, writer(), BUDGET, listed=False)[0].rollout.prompt_ids)
    told = len(writer().response(["higher"]).ids)
    for spare, over in ((0, False), (-1, True)):
        text = replace(CONFIG.text, max_positions=asked + DRAWING.max_new_tokens + told + spare)
        how = Writer(Processor(replace(CONFIG, text=text)))
        (trajectory,) = begin([Door()], 7, 0, how, BUDGET, listed=False)
        trajectory = spoken(trajectory, turn(3), how)
        assert trajectory.episode.over == over and (False in trajectory.rollout.mask) != over
    endless = replace(DRAWING, max_new_tokens=CONFIG.text.max_positions)
    with pytest.raises(ValueError, match="within the context of 4096 tokens"):
        advance(lively, begin([Door()], 7, 0, writer(), BUDGET), endless, writer(), 0)


def test_an_answer_that_is_cut_is_none():
    how, config = writer(), replace(DRAWING, max_new_tokens=4, budget=4)
    (trajectory,) = begin([Door()], 7, 0, how, BUDGET)
    for count, token in enumerate(b"done", 1):
        rollout = longer(trajectory.rollout, [(token, -1.0)], 0)
        trajectory = heard(replace(trajectory, rollout=rollout), config, how, 0)
        assert trajectory.episode.over == finished(rollout, config, how.stop_ids) == (count == 4)
    assert trajectory.episode.environment.answer == "" and trajectory.rewarded().rollout.reward == 0


def scripted(monkeypatch, trajectories, turns, how, config) -> None:
    """Whatever the policy thinks, answer n draws these turns: by the random number that each of its tokens has."""
    table = {}
    for trajectory, texts in zip(trajectories, turns, strict=True):
        ids = [token for text in texts for token in [*text.encode(), how.end]]
        table |= dict(zip(partial._draws(trajectory.rollout, config), ids, strict=False))
    monkeypatch.setattr(
        partial,
        "pick",
        lambda logits, u, temperature: torch.tensor([table.get(x, 0) for x in u.tolist()], dtype=torch.long),
    )


SCRIPTS = [("done",), (turn(3), turn(7), "done"), (turn(7), "no"), ("<tool_call>turn", "no")]


@pytest.fixture
def drawn(lively, monkeypatch):
    """A group of four, in rounds of forty tokens under versions 0, 1, ...: trajectories, their rollouts with rewards,
    and the rollouts as they were after every round."""
    how, config = writer(), replace(DRAWING, budget=40)
    trajectories = begin([Door() for _ in SCRIPTS], 7, 3, how, BUDGET, listed=False)
    scripted(monkeypatch, trajectories, SCRIPTS, how, config)
    rounds = []
    for version in range(20):
        done, waiting = complete_groups(trajectories, config, how)
        if not waiting:
            return how, config, trajectories, [t.rollout for t in done], rounds
        assert not done and waiting == trajectories
        trajectories = advance(lively, trajectories, config, how, version)
        rounds.append([t.rollout for t in trajectories])
    raise AssertionError("episodes must end")


def test_a_group_by_a_model(drawn, lively):
    """Four episodes of different length, drawn in pieces: rewards, counts, versions; and every log-probability that was
    kept is the one that a pass over prompt, calls and results gives to that token."""
    how, config, trajectories, done, _ = drawn
    assert [r.reward for r in done] == [0.5, 1.0, 0.5, 0.0]
    assert [t.episode.turns for t in trajectories] == [1, 3, 2, 2]
    assert [t.episode.invalid for t in trajectories] == [0, 0, 0, 1]
    assert all(t.episode.over and finished(t.rollout, config, how.stop_ids) for t in trajectories)
    assert done[0].versions == (0,) * 5 and max(done[1].versions) == staleness(done[1], max(done[1].versions)) > 3
    batch = stack(done, padding=0)
    with torch.no_grad():
        forced = answer_logprobs(lively, prompts(how, trajectories), batch.answers(4).ids).flatten(0, 1)
    assert (forced - batch.old_logprobs)[batch.mask].abs().max() < 1e-4
    assert batch.old_logprobs[batch.mask].max() < 0 and not batch.old_logprobs[~batch.mask].any()


def prompts(how: Writer, trajectories):
    inputs = how.processor(trajectories[0].episode.asked)
    return {name: inputs[name] for name in ("input_ids", "positions", "attention_mask")}


def learnt(model, inputs, batch, targets, mask) -> list[torch.Tensor]:
    """GSPO's loss and all gradients where the tokens to be predicted are `targets`; what is read stays as it is."""
    a, kept = advantages(batch.rewards, batch.groups, GSPO)
    assert bool(kept.all())
    logits = answer_logits(model, inputs, batch.answers(4).ids).flatten(0, 1)
    loss, _ = objective(log_probabilities(logits, targets, 1.0), batch.old_logprobs, mask, a, GSPO)
    parameters = [p for p in model.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    return [loss.detach(), *(g for g in gradients if g is not None)]


def what_is_learnt(model, inputs, batch, mask) -> tuple[bool, bool]:
    """Whether loss and gradients depend, in any bit, on what was told, and on a token in the middle of what was drawn:
    both as targets."""
    there = batch.versions >= 0
    told, drawn = (there & ~batch.mask).nonzero(), (there & batch.mask).nonzero()
    before = learnt(model, inputs, batch, batch.completion_ids, mask)
    assert all(x.isfinite().all() for x in before) and max(float(g.abs().max()) for g in before[1:]) > 0
    depends = []
    for places in (told, drawn[len(drawn) // 2 :][:1]):
        targets = batch.completion_ids.clone()
        targets[tuple(places.T)] = (targets[tuple(places.T)] + 1) % 256
        after = learnt(model, inputs, batch, targets, mask)
        changed = [not torch.equal(x, y) for x, y in zip(before, after, strict=True)]
        assert changed[0] == any(changed[1:])
        depends.append(changed[0])
    return depends[0], depends[1]


def test_only_what_was_drawn_is_learnt(drawn, lively):
    """And a mask the other way round, or of everything that is there, is found out by the same measurement."""
    how, _, trajectories, done, _ = drawn
    batch, inputs = stack(done, padding=0), prompts(how, trajectories)
    there = batch.versions >= 0
    assert what_is_learnt(lively, inputs, batch, batch.mask) == (False, True)
    assert what_is_learnt(lively, inputs, batch, there & ~batch.mask) == (True, False)
    assert what_is_learnt(lively, inputs, batch, there) == (True, True)


def test_killed_and_played_again(drawn):
    """From the tokens in a file, after any round, the episode is what it was; at the end, so is its world."""
    how, config, trajectories, _, rounds = drawn
    assert len(rounds) > 4
    for rollouts in rounds:
        for kept in read(partial.written(rollouts)):
            again = played_again(kept, Door(), how, config, BUDGET, listed=False)
            assert again.rollout == kept and again.episode.over == finished(kept, config, how.stop_ids)
    for kept, trajectory in zip(rounds[-1], trajectories, strict=True):
        again = played_again(kept, Door(), how, config, BUDGET, listed=False)
        assert again.messages == trajectory.messages and again.rewarded().rollout == trajectory.rewarded().rollout
        assert vars(again.episode.environment) == vars(trajectory.episode.environment)


def test_a_world_that_changes_is_refused(drawn):
    class Other(Door):
        def reset(self, number: int) -> str:
            return super().reset(number - 5)

    how, config, trajectories, _, _ = drawn
    with pytest.raises(ValueError, match="says again what it said"):
        played_again(trajectories[1].rollout, Other(), how, config, BUDGET, listed=False)
    with pytest.raises(ValueError, match="ask the same in episode 7"):
        begin([Door(), type("Shut", (Door,), {"reset": lambda self, number: "Shut it."})()], 7, 0, how, BUDGET)
    with pytest.raises(ValueError, match="one or more environments"):
        begin([], 7, 0, how, BUDGET)
    with pytest.raises(ValueError, match="one of them twice"):
        begin([world := Door(), Door(), world], 7, 0, how, BUDGET)


def test_old_groups_are_dropped_by_hand():
    """Group 1 began under version 2, group 2 under 5 and has one who has not begun. At 7 they are 5 and 2 steps old."""
    how = writer()
    groups = [begin([Door(), Door()], 7, group, how, BUDGET, listed=False) for group in (1, 2)]
    old, young = spoken(groups[0][0], turn(3), how, 2), spoken(groups[1][0], turn(3), how, 5)
    waiting = [old, groups[0][1], young, groups[1][1]]
    assert [staleness(t.rollout, 7) for t in waiting] == [5, 0, 2, 0]
    assert too_old(waiting, 7, 5) == (waiting, [])
    assert too_old(waiting, 7, 4) == (waiting[2:], waiting[:2])
    assert staleness(spoken(old, "done", how, 6).rollout, 7) == 5
