"""Trajectories: an episode token by token, of which the policy learns what it drew and nothing that it was told.

    writer = Writer(processor)
    waiting = begin([Shop() for _ in range(8)], number=7, group=0, writer=writer, budget=Budget())
    while waiting:
        waiting = advance(model, waiting, config, writer, version=optimiser_steps_so_far)
        done, waiting = complete_groups(waiting, config, writer)
        ...  # `learn` teaches by them

Tokens are appended and never written anew. What a model drew, encoded again from its text, need not be the same tokens,
and a template that drops old thoughts would change what was read before: log-probabilities would belong to a text that
nobody drew, without an error. So the template is asked for the tool's turn alone, `Writer.response`. Where a template
keeps the past, writing all messages at once gives the very same tokens.

A trajectory is a `record.Rollout`: mask, log-probabilities and the version of the policy for every token. Frames that a
tool shows are placeholders among its tokens, never drawn and never learnt, and pixels beside it. `partial`
draws it in pieces, and it has ended exactly where `partial.finished` says so. Our choices: an episode may go on however
old it is unless `too_old` is asked; what its first turn's policy began, a later one may end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch

from minikeye.inference.calling.calls import Result, response
from minikeye.inputs.processor import Message, Processor
from minikeye.inputs.prompt import Prompt
from minikeye.keye import KeyeVL
from minikeye.rl import partial
from minikeye.rl.agent.environment import Budget, Environment, Episode
from minikeye.rl.agent.reading import Frames, rows
from minikeye.rl.groups import Prompts
from minikeye.rl.partial import PartialConfig, told
from minikeye.rl.record import Rollout

SAID = "ok"  # an assistant's words in a conversation whose template is looked at


@dataclass(frozen=True, eq=False)
class Passage:
    """Words as tokens, and the frames whose placeholders are among them."""

    ids: tuple[int, ...]
    frames: Frames = ()  # of each image and video, in order


class Writer:
    """Writes conversations as tokens, by the template that ships with a checkpoint, else as ChatML.

    thinking: as of `Processor.build`. Raises ValueError for a template whose turns do not end with <|im_end|>.
    """

    def __init__(self, processor: Processor, thinking: bool = True):
        self.processor, self.thinking, self.tokenizer = processor, thinking, processor.tokenizer
        self.end = self.tokenizer.token_id("<|im_end|>")
        self.response(["."])
        asked = self.prompt([{"role": "user", "content": SAID}]).ids
        opening = asked[len(asked) - asked[::-1].index(self.tokenizer.token_id("<|im_start|>")) :]
        # What the template itself begins the assistant's turn with, behind its role: "", or the mark of a thought.
        self.begun = self.tokenizer.decode(list(opening), skip_special=False).partition("\n")[2]

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """What ends a turn of an agent. No other token: a turn that ended otherwise could not be answered."""
        return (self.end,)

    def prompt(self, messages: Sequence[Message]) -> Passage:
        """A conversation, up to where the assistant is to speak."""
        prompt, frames = self.processor.build(messages, self.thinking)
        return Passage(tuple(prompt.ids), tuple(frames))

    def response(self, results: Sequence[Result]) -> Passage:
        """What a policy is told after the end of its turn, up to where it is to speak again."""
        before = [{"role": "user", "content": SAID}, {"role": "assistant", "content": SAID}]
        whole = self.prompt([*before, {"role": "user", "content": response(results)}])
        ends = [at for at, token in enumerate(whole.ids) if token == self.end]
        if len(ends) < 2 or not self.tokenizer.decode(list(whole.ids[: ends[-2]])).endswith(SAID):
            raise ValueError(
                f"expected a template that ends every turn with <|im_end|>, got one that writes "
                f"{self.tokenizer.decode(list(whole.ids), skip_special=False)!r:.200}: agents need ChatML turns"
            )
        return Passage(whole.ids[ends[-2] + 1 :], whole.frames)

    def said(self, text: str) -> list[int]:
        """A turn's words as tokens, without its end; marks of thoughts are tokens, as when a policy draws them."""
        prompt = Prompt(self.tokenizer, self.processor.config.vision.merge)
        prompt.said(text)
        return prompt.ids

    def turn(self, ids: Sequence[int]) -> str:
        """A turn's text, from what the template began it with to before the token that ends it; with marks of thoughts,
        which are tokens, written out."""
        return self.begun + self.tokenizer.decode([token for token in ids if token != self.end], skip_special=False)


@dataclass(frozen=True)
class Trajectory:
    """An episode and its tokens. The episode's world goes on with it: a trajectory is advanced once."""

    rollout: Rollout
    episode: Episode
    messages: tuple[Message, ...]  # the same in words
    frames: Frames = field(default=(), compare=False)  # those of its placeholders, in order

    def rewarded(self) -> "Trajectory":
        """The trajectory whose rollout has what the episode has earned."""
        return replace(self, rollout=replace(self.rollout, reward=self.episode.reward()))


def begin(
    environments: Sequence[Environment], number: int, group: int, writer: Writer, budget: Budget, listed: bool = True
) -> list[Trajectory]:
    """A group: as many trajectories of episode `number` as there are environments, none of which has begun to speak.

    group: a number that no other group of the run has. listed: as of `Episode`. Raises ValueError for environments that
    do not ask the same, as a group must, and for one that stands twice among them: its end would count for both.
    """
    if len({id(environment) for environment in environments}) < len(environments):
        raise ValueError(f"expected {len(environments)} environments, got one of them twice: make another for each")
    episodes = [Episode(environment, number, budget, listed) for environment in environments]
    asked = [writer.prompt(episode.asked) for episode in episodes]
    if not episodes or any(not same(passage, asked[0]) for passage in asked):
        raise ValueError(f"expected one or more environments that ask the same in episode {number}: mend `reset`")
    ids, frames = asked[0].ids, asked[0].frames  # one copy for all: what is seen once is not seen again
    rollouts = partial.ask(number, ids, group, len(episodes))
    return [Trajectory(r, e, tuple(e.asked), frames) for r, e in zip(rollouts, episodes, strict=True)]


def same(one: Passage, other: Passage) -> bool:
    """Whether two passages have the same tokens and the same pixels."""
    alike = one.ids == other.ids and len(one.frames) == len(other.frames)
    return alike and all(torch.equal(a, b) for a, b in zip(one.frames, other.frames, strict=True))


def advance(
    model: KeyeVL, trajectories: Sequence[Trajectory], config: PartialConfig, writer: Writer, version: int
) -> list[Trajectory]:
    """One round of `partial.further`; then whoever has ended a turn by calls is told what they gave."""
    return [heard(t, config, writer, version) for t in spoken(model, trajectories, config, writer, version)]


def spoken(
    model: KeyeVL, trajectories: Sequence[Trajectory], config: PartialConfig, writer: Writer, version: int
) -> list[Trajectory]:
    """The first half of `advance`: what the policy says, of which no world has heard yet.

    Raises ValueError, before anything is drawn, for an episode that could outgrow the model's context.
    """
    for t in trajectories:
        if (most := longest(t.rollout, config)) > model.config.text.max_positions:
            raise ValueError(
                f"expected episodes within the context of {model.config.text.max_positions} tokens, got {most} in "
                f"episode {t.rollout.prompt}, all that it may draw included: ask for less, or lower max_new_tokens"
            )
    frames = {(t.rollout.group, t.rollout.number): t.frames for t in trajectories}

    def inputs_of(rollouts: list[Rollout]) -> Prompts:
        return rows(model, rollouts, [frames[r.group, r.number] for r in rollouts], "left")

    rollouts = [t.rollout for t in trajectories]
    drawn = partial.further(model, rollouts, inputs_of, config, writer.stop_ids, version)
    return [replace(t, rollout=rollout) for t, rollout in zip(trajectories, drawn, strict=True)]


def heard(trajectory: Trajectory, config: PartialConfig, writer: Writer, version: int) -> Trajectory:
    """The trajectory after its world has heard the turn that it ends with; the same where it ends with none."""
    trajectory, results = results_of(trajectory, config, writer)
    return answered(trajectory, results, config, writer, version) if results else trajectory


def results_of(trajectory: Trajectory, config: PartialConfig, writer: Writer) -> tuple[Trajectory, list[Result]]:
    """What the calls of the turn that it ends with give; nothing where there are none, or where the episode is over."""
    rollout, episode = trajectory.rollout, trajectory.episode
    if episode.over or not rollout.mask or not rollout.mask[-1]:
        return trajectory, []
    if rollout.completion_ids[-1] != writer.end:
        episode.over = partial.finished(rollout, config, writer.stop_ids)  # cut in the middle of a turn
        return trajectory, []
    turn = writer.turn(last_turn(rollout))
    results = episode.hear(turn)
    return replace(trajectory, messages=(*trajectory.messages, {"role": "assistant", "content": turn})), results


def answered(
    trajectory: Trajectory, results: Sequence[Result], config: PartialConfig, writer: Writer, version: int
) -> Trajectory:
    """The trajectory with the results behind its turn.

    They are appended where the policy may still speak behind them (`config.max_new_tokens`), where they fit into what
    an episode may be told (`Budget.tokens`), and into the context. Else nothing is, and the episode is over.
    """
    rollout, episode = trajectory.rollout, trajectory.episode
    words = writer.response(results)
    room = episode.budget.tokens - (len(rollout.mask) - sum(rollout.mask))
    longer = told(rollout, words.ids, version)
    beyond = longest(longer, config) > writer.processor.config.text.max_positions
    if len(words.ids) > room or beyond or partial.finished(longer, config, writer.stop_ids):
        episode.over = True
        return trajectory
    messages = (*trajectory.messages, {"role": "user", "content": response(results)})
    return replace(trajectory, rollout=longer, messages=messages, frames=(*trajectory.frames, *words.frames))


def longest(rollout: Rollout, config: PartialConfig) -> int:
    """Tokens that an episode may come to, if nothing more is told: what it holds, and all that it may still draw."""
    return len(rollout.prompt_ids) + len(rollout.mask) - sum(rollout.mask) + config.max_new_tokens


def last_turn(rollout: Rollout) -> tuple[int, ...]:
    """What the policy has drawn since it was last told something."""
    told_last = max((at for at, drawn in enumerate(rollout.mask) if not drawn), default=-1)
    return rollout.completion_ids[told_last + 1 :]


def complete_groups(
    trajectories: Sequence[Trajectory], config: PartialConfig, writer: Writer
) -> tuple[list[Trajectory], list[Trajectory]]:
    """Trajectories with rewards of the groups whose episodes have all ended, side by side; and who waits for one.

    Report, Agentic RL: complete groups are consumed at once, unfinished trajectories are cached and resumed.
    """
    done, _ = partial.complete_groups([t.rollout for t in trajectories], config, writer.stop_ids)
    ended = {rollout.group for rollout in done}
    by_place = {(t.rollout.group, t.rollout.number): t for t in trajectories}
    rewarded = [by_place[rollout.group, rollout.number].rewarded() for rollout in done]
    return rewarded, [t for t in trajectories if t.rollout.group not in ended]


def staleness(rollout: Rollout, version: int) -> int:
    """Optimiser steps between the policy that drew its first token and `version`; 0 for one that has not begun."""
    return version - min((v for v, drawn in zip(rollout.versions, rollout.mask, strict=True) if drawn), default=version)


def too_old(trajectories: Sequence[Trajectory], version: int, most: int) -> tuple[list[Trajectory], list[Trajectory]]:
    """(kept, dropped): whole groups are dropped in which a trajectory is staler than `most` steps.

    The report bounds the gap that unfinished interactions carry across steps and does not say how: our choice.
    """
    old = {t.rollout.group for t in trajectories if staleness(t.rollout, version) > most}
    kept = [t for t in trajectories if t.rollout.group not in old]
    return kept, [t for t in trajectories if t.rollout.group in old]


def played_again(
    rollout: Rollout,
    environment: Environment,
    writer: Writer,
    config: PartialConfig,
    budget: Budget,
    listed: bool = True,
) -> Trajectory:
    """The trajectory of a rollout that was kept in a file (`partial.written`): its world hears every turn once more.

    Raises ValueError where it says something else than it said then: reset must depend on its number alone.
    """
    (again,) = begin([environment], rollout.prompt, rollout.group, writer, budget, listed)
    again = replace(again, rollout=replace(again.rollout, number=rollout.number))
    for token, drawn, logprob, version in zip(
        rollout.completion_ids, rollout.mask, rollout.old_logprobs, rollout.versions, strict=True
    ):
        if drawn:
            spoken_to = replace(again, rollout=partial.longer(again.rollout, [(token, logprob)], version))
            again = heard(spoken_to, config, writer, version)
    if again.rollout != replace(rollout, reward=None):
        raise ValueError(
            f"expected an environment that says again what it said, got another episode {rollout.prompt}: it must be a "
            f"function of the number and the calls, and writer, config and budget those of before"
        )
    return again
