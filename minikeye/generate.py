"""Prefill, then one token at a time: sampling, stop rules, streaming.

Axes: b batch, t position, v vocabulary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minikeye.attention import Mode, Observer
from minikeye.record import Record


@dataclass
class Generation:
    """What came out. Rows that stopped early are filled with -1."""

    ids: Int[Tensor, "b n"]
    record: Record | None  # query n is the one whose logits gave token n; None where nothing was generated or asked for

    def row(self, n: int = 0) -> list[int]:
        """The tokens of one row, without filling."""
        return [token for token in self.ids[n].tolist() if token >= 0]


def sample(
    logits: Float[Tensor, "b v"], temperature: float, top_k: int, top_p: float, generator: torch.Generator | None
) -> Int[Tensor, " b"]:
    """The next token of every row. temperature 0 takes the most likely one; top_k 0 and top_p 1 keep all.

    top_p keeps the smallest set of most likely tokens whose probability reaches top_p.
    """
    if temperature == 0.0:
        return logits.argmax(dim=-1)
    p = (logits / temperature).softmax(dim=-1)
    if top_k:
        p = p.masked_fill(p < p.topk(min(top_k, p.shape[-1])).values[:, -1:], 0.0)
    if top_p < 1.0:
        ordered, order = p.sort(dim=-1, descending=True, stable=True)
        before = ordered.cumsum(dim=-1) - ordered  # probability of everything more likely
        p = torch.zeros_like(p).scatter(-1, order, ordered.masked_fill(before >= top_p * p.sum(-1, keepdim=True), 0.0))
    return torch.multinomial(p, 1, generator=generator).squeeze(-1)


@torch.no_grad()
def generate(
    model,
    inputs: Mapping[str, Any],
    max_new_tokens: int = 256,
    *,
    stop_ids: tuple[int, ...] = (),
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int | None = None,
    attention: Mode = "sparse",
    backend: str = "auto",
    record: bool = False,
    observer: Observer | None = None,
    on_token: Callable[[Int[Tensor, " b"]], None] | None = None,
) -> Generation:
    """Continue every row of `inputs` until a stop token or `max_new_tokens`.

    model: a KeyeVL. stop_ids: tokens that end a row; they are not returned. seed: fixes the sampling. record: keep what
    the query that produced each token selected (query 0 is the prompt's last token). observer: sees every layer of
    every step, also of the step that ends the answer; not with record. on_token: called with each step's tokens [b] as
    they come, -1 for rows that have ended.
    Raises ValueError for sampling numbers out of range, FloatingPointError where the logits are not finite.
    """
    if max_new_tokens < 1 or temperature < 0 or top_k < 0 or not 0 < top_p <= 1:
        raise ValueError(
            f"expected max_new_tokens >= 1, temperature >= 0, top_k >= 0, 0 < top_p <= 1; got {max_new_tokens}, "
            f"{temperature}, {top_k}, {top_p}"
        )
    device = inputs["input_ids"].device
    generator = torch.Generator(device).manual_seed(seed) if seed is not None else None
    stop = torch.tensor(stop_ids, dtype=torch.long, device=device)
    config = model.config
    placeholders = [n for n in (config.image_token_id, config.video_token_id) if n < config.text.vocab]
    cache, steps, history = model.new_cache(), [], None
    done = torch.zeros(len(inputs["input_ids"]), dtype=torch.bool, device=device)
    for _ in range(max_new_tokens):
        options = {"attention": attention, "backend": backend, "record": int(record), "observer": observer}
        out = model(inputs, cache, last=1, **options)
        logits = out.logits[:, -1]
        if not bool(logits.isfinite().all()):
            raise FloatingPointError("the model's logits are not finite: check the checkpoint's dtype and the weights")
        logits[:, placeholders] = -torch.inf  # pixels cannot be said
        token = sample(logits, temperature, top_k, top_p, generator)
        done = done | torch.isin(token, stop)
        if record and not bool(done.all()):
            history = out.record if history is None else history.extend(out.record)
        if bool(done.all()):
            break
        steps.append(token.masked_fill(done, -1))
        if on_token is not None:
            on_token(steps[-1])
        inputs = {"input_ids": token[:, None]}
    ids = torch.stack(steps, dim=1) if steps else torch.empty(len(done), 0, dtype=torch.long, device=device)
    return Generation(ids, history)
