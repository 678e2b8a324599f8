"""One reading of a video, two ways to ask whether the needle was found.

Generation lets the model write its answer. Teacher forcing, LongVA's rule for V-NIAH, gives it the true answer and asks
whether each token would have been the most likely one after the true tokens before it: a model that says more than the
answer, or says it in other words, can pass there and fail here. The video is read once for both.

Axes: b batch, t query position, n answer token, v vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minikeye.cost.memory import CHUNK
from minikeye.inference.generate import sayable
from minikeye.keye import KeyeVL
from minikeye.model.step import Mode

BY_TOKEN = ("input_ids", "positions", "attention_mask")  # inputs with one entry a token; the others are of pixels


@dataclass(frozen=True)
class Answered:
    """What one row of a batch gave."""

    ids: list[int]  # that the model wrote, greedily
    forced: bool  # whether every token of the true answer is the most likely one


@torch.no_grad()
def ask_both_ways(
    model: KeyeVL,
    inputs: Mapping[str, Any],
    truths: Sequence[Sequence[int]],
    stop_ids: tuple[int, ...],
    longest: int,
    attention: Mode = "sparse",
    backend: str = "auto",
) -> list[Answered]:
    """Ask every row of `inputs`, which end where the answer begins.

    truths: the true answer's tokens of each row, without the mark of its end (as LongVA counts). longest: most tokens
    that the model may write. Raises ValueError for another number of truths than rows, or one without tokens.
    """
    ids = inputs["input_ids"]
    if len(truths) != len(ids) or not all(truths):
        raise ValueError(
            f"expected {len(ids)} true answers of at least one token, got lengths {list(map(len, truths))}"
        )
    true, counted = _padded(truths, ids.device)
    options = {"attention": attention, "backend": backend}
    cache = model.new_cache(ids.shape[1] + max(longest, true.shape[1]))
    last, head = ids[:, -1:], {name: t[..., :-1] if name in BY_TOKEN else t for name, t in inputs.items()}
    model(head, cache, last=1, chunk=CHUNK, **options)
    read, position = cache.length, cache.next_position
    logits = model({"input_ids": torch.cat((last, true[:, :-1]), dim=1)}, cache, **options).logits
    forced = (sayable(logits, model.config).argmax(dim=-1) == true) | ~counted
    cache.truncate(read, position)
    written = model.generate(
        {"input_ids": last}, max_new_tokens=longest, cache=cache, stop_ids=stop_ids, graphs=False, **options
    )
    return [Answered(written.row(n), found) for n, found in enumerate(forced.all(dim=1).tolist())]


def _padded(truths: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Tokens [b n], each row filled up with its last one, and which of them count."""
    width = max(map(len, truths))
    rows = [[*row, *[row[-1]] * (width - len(row))] for row in truths]
    counted = [[n < len(row) for n in range(width)] for row in truths]
    return torch.tensor(rows, device=device), torch.tensor(counted, device=device)
