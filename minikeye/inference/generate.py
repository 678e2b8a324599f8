"""Prefill, then one token at a time: sampling, stop rules, streaming.

Axes: b batch, t position, v vocabulary.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from minikeye.config import KeyeConfig
from minikeye.cost.memory import CHUNK, PARTS, free_bytes, needs, require
from minikeye.inference.cuda_graph import GraphedDecoder, obstacle
from minikeye.model.batch import token_ids
from minikeye.model.cache import Cache
from minikeye.model.keye import KeyeModel
from minikeye.model.record import Record
from minikeye.model.step import Mode, Observer

WORTH_A_GRAPH = 16  # tokens from which on a captured graph pays for its capture; our choice


@dataclass
class Generation:
    """What came out. Rows that stopped early are filled with -1, and their log-probabilities with 0."""

    ids: Int[Tensor, "b n"]
    logprobs: Float[Tensor, "b n"]  # log-probability of each token, nats: see `log_probabilities`
    stops: Int[Tensor, " b"]  # the stop token that ended each row, which `ids` do not have; -1 where nothing ended it
    stop_logprobs: Float[Tensor, " b"]  # 0 where nothing ended the row
    record: Record | None  # query n is the one whose logits gave token n; None where nothing was generated or asked for
    cache: Cache | None = None  # of everything that was read: the prompt and every token drawn but the last

    def row(self, n: int = 0) -> list[int]:
        """The tokens of one row, without filling."""
        return [token for token in self.ids[n].tolist() if token >= 0]

    def drawn(self, n: int = 0) -> tuple[list[int], list[float]]:
        """Every token of row n with its log-probability, the stop token included: what learning by reward needs."""
        ids, stop = self.row(n), int(self.stops[n])
        logprobs = self.logprobs[n, : len(ids)].tolist()
        return (ids, logprobs) if stop < 0 else ([*ids, stop], [*logprobs, float(self.stop_logprobs[n])])


@dataclass(frozen=True)
class Draw:
    """The random numbers of a batch of which only some rows are generated here: what they would be among all others."""

    seed: int
    first: int  # number of the first row that is generated here
    rows: int  # of the whole batch


class _Answers:
    """The rows of a generation while they grow."""

    def __init__(self, rows: int, stop_ids: tuple[int, ...], device: torch.device):
        self.stop = torch.tensor(stop_ids, dtype=torch.long, device=device)
        self.done = torch.zeros(rows, dtype=torch.bool, device=device)
        self.ended = 0  # rows
        self.stops = torch.full((rows,), -1, dtype=torch.long, device=device)
        self.stop_logprobs = torch.zeros(rows, device=device)
        self.steps: list[tuple[Int[Tensor, " b"], Float[Tensor, " b"]]] = []

    def add(self, token: Int[Tensor, " b"], logprob: Float[Tensor, " b"]) -> bool:
        """One more token a row; False where it ended the last row that had not ended."""
        ends = torch.isin(token, self.stop) & ~self.done
        self.stops = torch.where(ends, token, self.stops)
        self.stop_logprobs = torch.where(ends, logprob, self.stop_logprobs)
        self.done = self.done | ends
        self.ended = int(self.done.sum())
        if self.ended == len(self.done):
            return False
        self.steps.append((token.masked_fill(self.done, -1), logprob.masked_fill(self.done, 0.0)))
        return True

    def generation(self, record: Record | None, cache: Cache) -> Generation:
        ids, logprobs = self.stops.new_empty(len(self.stops), 0), self.stop_logprobs.new_empty(len(self.stops), 0)
        if self.steps:
            ids, logprobs = (torch.stack(parts, dim=1) for parts in zip(*self.steps, strict=True))
        return Generation(ids, logprobs, self.stops, self.stop_logprobs, record, cache)


def sample(
    logits: Float[Tensor, "b v"],
    temperature: float,
    top_k: int,
    top_p: float,
    generator: torch.Generator | None,
    among: Draw | None = None,
) -> Int[Tensor, " b"]:
    """The next token of every row. temperature 0 takes the most likely one; top_k 0 and top_p 1 keep all.

    top_p keeps the smallest set of most likely tokens whose probability reaches top_p. among: the batch of which these
    are some rows.
    """
    if temperature == 0.0:
        return logits.argmax(dim=-1)
    p = ((logits - logits.amax(dim=-1, keepdim=True)) / temperature).softmax(dim=-1)  # 0 at least once, at any heat
    if top_k:
        best = p.topk(min(top_k, p.shape[-1]))
        p = torch.zeros_like(p).scatter(-1, best.indices, best.values)
    if top_p < 1.0:
        ordered, order = p.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered  # probability of everything more likely
        beyond = before >= top_p * p.sum(-1, keepdim=True)
        beyond[:, 0] = False  # the most likely token stays, however small top_p
        p = torch.zeros_like(p).scatter(-1, order, ordered.masked_fill(beyond, 0.0))
    if among is None:
        return torch.multinomial(p, 1, generator=generator).squeeze(-1)
    # What `multinomial` does for one token a row, with the noise of all rows.
    noise = p.new_empty(among.rows, p.shape[-1]).exponential_(generator=generator)
    return (p / noise[among.first : among.first + len(p)]).argmax(dim=-1)


def log_probabilities(
    logits: Float[Tensor, "*n v"], tokens: Int[Tensor, "*n"], temperature: float = 1.0
) -> Float[Tensor, "*n"]:
    """log softmax(logits / temperature) of one token each, nats; temperature 0 counts as 1.

    The whole softmax, also where top_k and top_p draw from a part of it, so that the ratio of two models' probabilities
    is one of the same function (our choice). logits: as `sayable` gives them, where the tokens were generated. Raises
    ValueError for tokens that do not fit, filling (-1) among them, and a temperature below 0.
    """
    if logits.shape[:-1] != tokens.shape or not 0 <= temperature < math.inf:
        raise ValueError(
            f"expected one token for each row of logits {list(logits.shape)} and 0 <= temperature < inf, got "
            f"{list(tokens.shape)} and {temperature}"
        )
    if bool((tokens < 0).any()) or bool((tokens >= logits.shape[-1]).any()):
        raise ValueError(f"tokens must lie in 0..{logits.shape[-1] - 1}: leave out the filling of rows that ended")
    return _picked(logits, tokens, temperature)


def _picked(logits: Float[Tensor, "*n v"], tokens: Int[Tensor, "*n"], temperature: float) -> Float[Tensor, "*n"]:
    """`log_probabilities` of tokens that are known to fit: a GPU need not wait for a check."""
    scaled = logits.float() / (temperature or 1.0)
    return scaled.log_softmax(dim=-1).gather(-1, tokens[..., None]).squeeze(-1)


@torch.no_grad()
def generate(
    model: KeyeModel,
    inputs: Mapping[str, Any],
    max_new_tokens: int = 256,
    *,
    cache: Cache | None = None,
    chunk: int | None = CHUNK,
    stop_ids: tuple[int, ...] = (),
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | Draw | None = None,
    attention: Mode = "sparse",
    backend: str = "auto",
    record: bool = False,
    observer: Observer | None = None,
    on_token: Callable[[Int[Tensor, " b"]], None] | None = None,
    graphs: bool | None = None,
) -> Generation:
    """Continue every row of `inputs` until a stop token or `max_new_tokens`.

    inputs: as a Processor makes them. cache: what earlier calls have read; `inputs` then hold what is new, without a
    Processor's positions, which count from 0. After a call the cache holds the prompt and every token drawn but the
    last: to go on, give the tokens from `cache.length` on; after an error or Ctrl-C it is what it was before. Rows that
    stopped at different steps cannot go on together; for conversations there is `chat.Chat`, for many answers to one
    prompt `Cache.repeat`. chunk: tokens of the prompt that pass through a layer at a time; None: all at once. stop_ids:
    tokens that end a row; they are told in `stops`.
    Greedy unless told otherwise: at temperature 0, top_k, top_p and seed change nothing; `processor.generation` has the
    checkpoint's own numbers. seed: fixes the sampling; a `Draw` that of some rows of a larger batch. record: keep what
    the query that produced each token selected (query 0 is the prompt's last token). observer: sees every layer of
    every step, also of the step that ends the answer; not with record. on_token: called with each step's tokens [b] as
    they come, -1 for rows that have ended.
    graphs: decode by replaying a CUDA graph; None: where that is possible (`cuda_graph.obstacle` says why not).
    Raises ValueError for inputs that are none, sampling numbers out of range, a draw without these rows and more tokens
    than the context holds, FloatingPointError where the logits are not finite, NotEnoughMemory before anything is read
    where cache and activations will not fit, RuntimeError for graphs=True where there is an obstacle.
    """
    whole = isinstance(max_new_tokens, int) and isinstance(top_k, int)
    if not whole or max_new_tokens < 1 or not 0 <= temperature < math.inf or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"expected whole max_new_tokens >= 1, 0 <= temperature < inf, whole top_k >= 0, 0 < top_p <= 1; got "
            f"{max_new_tokens}, {temperature}, {top_k}, {top_p}"
        )
    if beyond := [token for token in stop_ids if not 0 <= token < model.config.text.vocab]:
        raise ValueError(f"stop_ids must lie in 0..{model.config.text.vocab - 1}, got {beyond}")
    if not isinstance(inputs, Mapping):
        raise ValueError(f"inputs must be what a Processor returns, or {{'input_ids': int [b t]}}; got {inputs!r:.100}")
    ids = token_ids(inputs, model.config, cache)
    device = ids.device
    among = seed if isinstance(seed, Draw) else None
    if among is not None and not 0 <= among.first <= among.rows - len(ids):
        raise ValueError(f"expected {len(ids)} rows within those of the draw, got {among}")
    number = seed if among is None else among.seed
    generator = torch.Generator(device).manual_seed(number) if number is not None else None
    cache = model.new_cache() if cache is None else cache
    room = _room(model.config, cache.length + ids.shape[1], max_new_tokens)
    _require_memory(model, ids, cache, room, chunk)
    options = {"attention": attention, "backend": backend, "record": int(record), "observer": observer}
    step = decoder(model, cache, options, max_new_tokens, graphs)
    answers, history, spoilt_from = _Answers(len(ids), stop_ids, device), None, None
    with cache.all_or_nothing():
        cache.reserve(room)
        out = model(inputs, cache, last=1, chunk=chunk, **options)
        while True:
            logits = sayable(out.logits[:, -1].to(device), model.config)
            token = sample(logits, temperature, top_k, top_p, generator, among)
            if not answers.add(token, _picked(logits, token, temperature)):
                break
            if record:
                history = out.record if history is None else history.extend(out.record)
            if on_token is not None:
                on_token(answers.steps[-1][0])
            if len(answers.steps) == max_new_tokens:
                break
            if spoilt_from is None and answers.ended:  # those rows read on beside the others
                spoilt_from = cache.length
            out = step(token)
        cache.spoilt_from = spoilt_from
    return answers.generation(history, cache)


def _room(config: KeyeConfig, prompt: int, new: int) -> int:
    """Tokens that the cache will hold. Raises ValueError where they do not fit into the context."""
    if prompt + new - 1 > config.text.max_positions:
        raise ValueError(
            f"{prompt} tokens and up to {new} new ones exceed the context of {config.text.max_positions}: "
            f"ask for fewer new tokens, sample fewer frames or fewer tokens per frame"
        )
    return prompt + new - 1  # the last token is said, not read


def _require_memory(model, ids: Int[Tensor, "b t"], cache: Cache, room: int, chunk: int | None) -> None:
    """Raise NotEnoughMemory where cache and activations will not fit: beside the weights, or with those of a stream."""
    devices, streamed = {p.device for p in model.parameters()}, not isinstance(model.model.layers, nn.ModuleList)
    bill = needs(
        model.config,
        context=room,
        dtype=model.model.norm.weight.dtype,
        batch=len(ids),
        streaming=streamed,
        device=ids.device,
        visual=int(model.is_visual(ids).sum()) // len(ids),
        chunk=chunk or room,
    )
    free = sum(map(free_bytes, devices)) + cache.room_bytes()  # what it has taken already is part of the bill
    require(bill, free, " + ".join(map(str, devices)), PARTS if streamed else PARTS[1:])


def sayable(logits: Float[Tensor, "*n v"], config: KeyeConfig) -> Float[Tensor, "*n v"]:
    """The logits, -inf at placeholders of pixels, which cannot be said. FloatingPointError where one is not finite."""
    if not bool(logits.isfinite().all()):
        raise FloatingPointError(
            "the model's logits are not finite: check the checkpoint's dtype and weights, and the pixels"
        )
    placeholders = [n for n in (config.image_token_id, config.video_token_id) if n < config.text.vocab]
    return logits.index_fill(-1, torch.tensor(placeholders, dtype=torch.long, device=logits.device), -torch.inf)


def decoder(
    model, cache: Cache, options: dict[str, Any], tokens: int, graphs: bool | None = None
) -> Callable[[Int[Tensor, " b"]], Any]:
    """What turns a token a row into the next output: a replayed graph, whose cache must have room, or a pass.

    options: attention, backend, record and observer, as in `generate`. tokens: that are to come. graphs: as there.
    """
    why_not = obstacle(model, **options)
    if graphs and why_not:
        raise RuntimeError(f"CUDA graphs cannot be used: {why_not}. Leave `graphs` out to decode without them.")
    if graphs or (graphs is None and not why_not and tokens >= WORTH_A_GRAPH):
        return GraphedDecoder(model, cache, options["backend"], options["attention"])
    return lambda token: model({"input_ids": token[:, None]}, cache, **options)
