"""Many answers to one prompt: sampled from a prompt that is read once, and learnt from in one pass, [prompt | answers].

A group is a prompt's G sampled answers. The sampler reads the prompt into a cache and copies it G times; its last token
starts every answer. The learner lays the G answers behind the prompt, each with that token and blind to the others, so
that the prompt passes through the model once, not G times, and every token is read as often as it was sampled from,
which `replay` needs. Both compute what a plain pass over prompt and answer computes, to rounding: the ratio of a policy
to itself is 1, and what differs from 1 is learning.

Axes: b prompt, g answer of a prompt, n token of an answer, t token of a prompt, s key position, v vocabulary.
Report, "Post-Training": GSPO samples groups. The layout is our choice; sharing the prompt's pass is common practice.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minikeye import ops
from minikeye.inference.generate import Draw, log_probabilities, sayable
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.keye import KeyeVL
from minikeye.model.batch import first_tokens
from minikeye.model.decoder import ruled
from minikeye.model.step import MODES, AttentionTrace, Mode, Observer
from minikeye.rl.replay import ChoiceRecorder, Choices, Replay, replaying, together
from minikeye.training.step import autocast


@dataclass(frozen=True)
class Answers:
    """Sampled answers, the stop token included; filled with -1, and their log-probabilities with 0."""

    ids: Int[Tensor, "b g n"]
    logprobs: Float[Tensor, "b g n"]  # nats, of each token under the policy that drew it
    choices: Choices | None = None  # of experts and keys, in rows b * g of [prompt, answer], where they are replayed

    @property
    def mask(self) -> Bool[Tensor, "b g n"]:
        """Which places hold a token."""
        return self.ids >= 0

    def of(self, rows: slice | list[int] | Bool[Tensor, " b"]) -> "Answers":
        """Those to some of the prompts."""
        choices = None if self.choices is None else self.choices.of(rows, self.ids.shape[1])
        return Answers(self.ids[rows], self.logprobs[rows], choices)

    @property
    def silent(self) -> "Answers":
        """Answers of the same shape that say nothing: a pass over them counts for nothing."""
        return replace(self, ids=torch.full_like(self.ids, -1), logprobs=torch.zeros_like(self.logprobs))


def joined_answers(parts: Sequence[Answers], moved: Sequence[int] | None = None) -> Answers:
    """Answers to several batches of prompts as one, filled further on the right.

    moved: by how many tokens each batch's prompts are padded further on the left.
    """
    n = max(part.ids.shape[2] for part in parts)
    wide = lambda x, value: F.pad(x, (0, n - x.shape[2]), value=value)  # noqa: E731
    choices = [
        chosen.wide(left, n - part.ids.shape[2])
        for part, left in zip(parts, moved or [0] * len(parts), strict=True)
        if (chosen := part.choices) is not None
    ]
    return Answers(
        torch.cat([wide(part.ids, -1) for part in parts]),
        torch.cat([wide(part.logprobs, 0.0) for part in parts]),
        together(choices) if choices else None,
    )


@dataclass(frozen=True)
class Sampling:
    """How a policy is sampled."""

    group: int = 8  # answers to a prompt
    max_new_tokens: int = 24
    temperature: float = 1.0
    attention: Mode = "dense"
    seed: int = 0

    def __post_init__(self) -> None:
        if min(self.group, self.max_new_tokens) < 1:
            raise ValueError(f"expected group and max_new_tokens >= 1, got {self.group} and {self.max_new_tokens}")
        if not self.temperature > 0 or self.attention not in MODES:
            raise ValueError(
                f"expected temperature above 0 (else a group's answers are one) and attention among "
                f"{', '.join(MODES)}, got {self.temperature} and {self.attention!r}"
            )


def sampled(
    model: KeyeVL, prompts: Mapping[str, Any], how: Sampling, seed: int | Draw, record: bool = False
) -> Answers:
    """`how.group` answers to each prompt, by the model as it answers, not as it learns; left in training mode.

    seed: as of `sample_answers`. record: with the choices of experts and keys. Raises as `sample_answers`.
    """
    recorder = ChoiceRecorder() if record else None
    stop = (load_tokenizer(model.config).token_id("<|im_end|>"),)
    model.eval()
    with autocast(model.device):
        answers = sample_answers(
            model, prompts, how.group, how.max_new_tokens, stop,
            seed=seed, temperature=how.temperature, attention=how.attention, observer=recorder,
        )  # fmt: skip
    model.train()
    return answers if recorder is None else replace(answers, choices=recorder.choices())


@torch.no_grad()
def sample_answers(
    model: KeyeVL,
    prompts: Mapping[str, Any],
    group: int,
    max_new_tokens: int,
    stop_ids: tuple[int, ...],
    seed: int | Draw,
    temperature: float = 1.0,
    attention: Mode = "dense",
    observer: Observer | None = None,
) -> Answers:
    """`group` answers to each prompt, of at most max_new_tokens tokens, drawn at `temperature` from one reading.

    prompts: inputs of a pass with positions, padded on the left, each ending where its answer begins, such as
    `Lesson(question_prompts(...), videos, size).inputs(config, device)`. seed: fixes the draw; of some prompts of a
    batch, `Draw` of its answers b * g. observer: sees every layer of every pass, of the prompts once and then of each
    token in rows b * g (`replay.ChoiceRecorder`). Raises ValueError for group < 1 or prompts of one token, and what
    `generate` raises.
    """
    require_positions(prompts)
    ids, mask = prompts["input_ids"], prompts.get("attention_mask")
    if group < 1 or ids.shape[1] < 2:
        raise ValueError(f"expected group >= 1 and prompts of at least 2 tokens, got {group} and {list(ids.shape)}")
    # All but the last token is read once; the last one starts every answer.
    begun = dict(prompts) | {"input_ids": ids[:, :-1], "positions": prompts["positions"][..., :-1]}
    if mask is not None:
        begun["attention_mask"] = mask[:, :-1]
    cache = model.new_cache()
    model(begun, cache, attention=attention, last=1, observer=observer)
    out = model.generate(
        {"input_ids": ids[:, -1:].repeat_interleave(group, dim=0)},
        max_new_tokens=max_new_tokens,
        cache=cache.repeat(group, ids.shape[1] + max_new_tokens),
        stop_ids=stop_ids,
        temperature=temperature,
        seed=seed,
        attention=attention,
        observer=observer,
    )
    rows = [out.drawn(row) for row in range(len(ids) * group)]
    longest = max(len(tokens) for tokens, _ in rows)
    answers = torch.full((len(rows), longest), -1, dtype=torch.int64)
    logprobs = torch.zeros(len(rows), longest)
    for row, (tokens, values) in enumerate(rows):
        answers[row, : len(tokens)], logprobs[row, : len(tokens)] = torch.tensor(tokens), torch.tensor(values)
    shape = len(ids), group, longest
    return Answers(answers.view(shape).to(ids.device), logprobs.view(shape).to(ids.device))


def answer_logprobs(
    model: KeyeVL,
    prompts: Mapping[str, Any],
    ids: Int[Tensor, "b g n"],
    temperature: float = 1.0,
    attention: Mode = "dense",
    observer: Observer | None = None,
    choices: Choices | None = None,
    replay: Replay = "both",
) -> Float[Tensor, "b g n"]:
    """Log-probability of every answer token, with gradients; 0 where ids are -1. The rest is as of `answer_logits`."""
    logits = answer_logits(model, prompts, ids, attention, observer, choices, replay)
    return log_probabilities(logits, ids.clamp(min=0), temperature).masked_fill(ids < 0, 0.0)


def answer_logits(
    model: KeyeVL,
    prompts: Mapping[str, Any],
    ids: Int[Tensor, "b g n"],
    attention: Mode = "dense",
    observer: Observer | None = None,
    choices: Choices | None = None,
    replay: Replay = "both",
) -> Float[Tensor, "b g n v"]:
    """What predicts every answer token, with gradients, by one pass over [prompt | answers]; -inf for placeholders.

    What stands where ids are -1 means nothing.

    prompts: as for `sample_answers`. attention: "dense", or "sparse" for the indexer's top-k among the keys that a
    token may see; a mask stands for the gather, as in training. choices: what the sampler of these very answers chose,
    to be taken in place of the model's own: replay says what of it. Raises ValueError for answers that do not fit the
    prompts, and as `replay.replaying`.
    """
    prompt, mask = prompts["input_ids"], prompts.get("attention_mask")
    require_positions(prompts)
    first_tokens(mask, prompt, None)  # refuses a mask that does not fit, or that has gaps
    if attention not in MODES:
        raise ValueError(f"attention must be one of {', '.join(MODES)}; got {attention!r}")
    if ids.ndim != 3 or len(ids) != len(prompt) or not ids.numel():
        raise ValueError(f"expected answers [b g n] to {len(prompt)} prompts, got {list(ids.shape)}")
    g, n, t = *ids.shape[1:], prompt.shape[1] - 1  # t tokens are read once, and in every answer those that predict it
    read = torch.cat((prompt[:, None, -1:].expand(-1, g, -1), ids[..., :-1].clamp(min=0)), dim=2).flatten(1)
    positions = prompts["positions"]
    after = positions.amax(dim=(0, 2))[:, None] + 1 + torch.arange(n - 1, device=ids.device)  # [b n-1]
    own = torch.cat((positions[..., -1:], after.expand(3, -1, -1)), dim=2)
    inputs = {name: value for name, value in prompts.items() if name not in ("attention_mask", "answer")}
    inputs["input_ids"] = torch.cat((prompt[:, :-1], read), dim=1)
    inputs["positions"] = torch.cat((positions[..., :-1], own.repeat(1, 1, g)), dim=2)
    real = torch.ones_like(prompt, dtype=torch.bool) if mask is None else mask.bool()
    allowed = visible(real[:, :-1], g, n)
    forced = nullcontext() if choices is None else replaying(model, choices.packed(t, g), replay)
    with looking(model, allowed, attention), forced:
        logits = model(inputs, attention="masked", observer=observer).logits
    return sayable(logits[:, t:].unflatten(1, (g, n)), model.config)


def require_positions(prompts: Mapping[str, Any]) -> None:
    """Raise ValueError for prompts without positions: behind a video they are not what could be counted."""
    if "positions" not in prompts:
        raise ValueError(f"expected prompts with positions, got {sorted(prompts)}: take them from `Lesson.inputs`")


def visible(prompt: Bool[Tensor, "b t"], group: int, length: int) -> Bool[Tensor, "b q s"]:
    """Which of [prompt | answers] each of them may see: the prompt's real tokens up to itself, then its own answer's.

    prompt: its real tokens. length: tokens that are read of each answer.
    """
    t = prompt.shape[1]
    owner = torch.arange(group, device=prompt.device).repeat_interleave(length)
    number = torch.cat((owner.new_full((t,), -1), owner))  # -1: the prompt, which belongs to all
    shared = (number == -1) | (number[:, None] == number)
    real = torch.cat((prompt, prompt.new_ones(len(prompt), group * length)), dim=1)
    return shared.tril() & real[:, None]


@contextmanager
def looking(model: KeyeVL, allowed: Bool[Tensor, "b q s"], attention: Mode) -> Iterator[None]:
    """While this holds, every layer's tokens read allowed keys alone: all of them, or the indexer's best among them."""
    where = torch.arange(allowed.shape[-1], dtype=torch.int32, device=allowed.device)
    everything = torch.where(allowed, where, -1)

    def rule(trace: AttentionTrace, topk: int) -> Int[Tensor, "b q k"]:
        if attention == "dense":
            return everything
        with torch.no_grad():  # a choice has no gradient
            scores = ops.index_scores(trace.index_q, trace.index_k, trace.index_w)
            return ops.topk_positions(scores.masked_fill(~allowed, -torch.inf), topk)

    with ruled(model.model, keys=[rule] * model.config.text.layers):
        yield
