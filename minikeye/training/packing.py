"""Several short documents in one row, each blind to the others: what separate passes compute, without their padding.

Axes: b row, t query position, s key position, k selected key.
The report trains on packed sequences (its kernels' section) and prints no mask. Ours: a document begins at `start`, and
no query looks left of its own document's start. Positions restart with every document.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Int
from torch import Tensor

from minikeye import ops
from minikeye.inputs.prompt import Prompt
from minikeye.keye import KeyeVL
from minikeye.model.decoder import ruled
from minikeye.model.step import AttentionTrace, Mode


def arrange(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Which documents lie in which row of `room` tokens: the longest first, each in the first row that has room.

    Returns the numbers of the documents of each row, in order. First-fit decreasing is our choice; it needs at most
    11/9 of the fewest rows possible, and one. Raises ValueError for no document, and for one that is longer than a row.
    """
    if not lengths or min(lengths) < 1 or max(lengths) > room:
        got = f"{min(lengths)} to {max(lengths)}" if lengths else "none"
        raise ValueError(f"expected documents of 1 to room = {room} tokens, got {got}: take a larger room")
    rows: list[list[int]] = []
    left: list[int] = []  # tokens that are free in each row
    for number in sorted(range(len(lengths)), key=lambda n: -lengths[n]):
        row = next((r for r, free in enumerate(left) if free >= lengths[number]), len(rows))
        if row == len(rows):
            rows.append([])
            left.append(room)
        rows[row].append(number)
        left[row] -= lengths[number]
    return rows


def pack(prompts: Sequence[Prompt], room: int) -> tuple[dict[str, Tensor], list[int]]:
    """Documents in rows of `room` tokens; and their order, row after row, in which their pixels belong.

    The tokens: input_ids [b t], positions [3 b t], answer bool [b t] (the tokens to learn), and start int32 [b t]:
    where the document of each token begins, the key that `apart` lets it look back to. Padding takes the id of
    <|endoftext|>, position 0 and a start of its own. A document's first token is never learnt: the token before it is
    another's. Raises ValueError as `arrange` does.
    """
    rows = arrange([len(p.ids) for p in prompts], room)
    filler, shape = prompts[0].tokenizer.token_id("<|endoftext|>"), (len(rows), room)
    ids, answer = torch.full(shape, filler), torch.zeros(shape, dtype=torch.bool)
    positions = torch.zeros(3, *shape, dtype=torch.long)
    start = torch.arange(room, dtype=torch.int32).repeat(len(rows), 1)
    for row, numbers in enumerate(rows):
        first = 0
        for prompt in (prompts[n] for n in numbers):
            place = slice(first, first + len(prompt.ids))
            ids[row, place] = torch.tensor(prompt.ids)
            answer[row, place] = torch.tensor(prompt.answer)
            answer[row, first] = False
            positions[:, row, place] = prompt.positions()
            start[row, place] = first
            first = place.stop
    order = [n for numbers in rows for n in numbers]
    return {"input_ids": ids, "positions": positions, "answer": answer, "start": start}, order


@contextmanager
def apart(model: KeyeVL, start: Int[Tensor, "b t"] | None, attention: Mode) -> Iterator[Mode]:
    """While this holds, no token of a packed batch sees another document. Yields the mode to run the model in.

        with apart(model, inputs["start"], "sparse") as mode:
            model(inputs, attention=mode)

    start: from `pack`; None, for a batch with one document a row, changes nothing. "dense" gives a token all keys of
    its document up to itself (a mask does it), any other mode the indexer's best of them.
    """
    if start is None:
        yield attention
        return
    position = torch.arange(start.shape[1], dtype=torch.int32, device=start.device)
    own = (position >= start[..., None]) & (position <= position[:, None])  # [b t s]
    everything = torch.where(own, position, -1)

    def rule(trace: AttentionTrace, topk: int) -> Int[Tensor, "b t k"]:
        if attention == "dense":
            return everything
        return ops.select_topk(trace.index_q, trace.index_k, trace.index_w, topk, trace.offset, start)

    with ruled(model.model, keys=[rule] * model.config.text.layers):
        yield "sparse" if attention == "sparse" else "masked"
