"""A record of a short text in bytes, drawn at random: every count can be made again by a plain loop."""

import pytest
import torch

from minikeye.explore.passage import PassageSelection
from minikeye.inputs.tokenizer import ByteTokenizer
from minikeye.model.record import LayerRecord, Record

TEXT = "one line\n漢字 and 😀\n\nthe needle is 7\nthe last"
BEFORE, AFTER, ANSWER = "user: ", " what?", "7 is it"
NEEDLE = "needle is 7"
LAYERS, HEADS, K = 3, 2, 12
BYTES = ByteTokenizer()
IDS = BYTES.encode(BEFORE + TEXT + AFTER + ANSWER)
FIRST = len(BYTES.encode(BEFORE))
PASSAGE = FIRST, FIRST + len(BYTES.encode(TEXT))
PROMPT = len(BYTES.encode(BEFORE + TEXT + AFTER))
TRUTH = BYTES.encode(BEFORE + TEXT.split(NEEDLE)[0]), len(BYTES.encode(NEEDLE))
TRUTH = len(TRUTH[0]), len(TRUTH[0]) + TRUTH[1]


def drawn(seed: int, queries: int = len(ANSWER), k: int = K, first: int = PROMPT - 1) -> Record:
    """Keys at random, ascending, the last place empty at times; attention at random; layer n has k + n keys."""
    draw = torch.Generator().manual_seed(seed)
    layers = []
    for n in range(LAYERS):
        rows, weights = [], []
        for t in range(queries):
            at = torch.randperm(first + t + 1, generator=draw)[: k + n].sort().values
            if t == 1:
                at[-1] = -1
            rows.append(at)
            weights.append(torch.rand(k + n, generator=draw) * (at >= 0))
        w = torch.stack(weights)
        kept = torch.rand(1, queries, generator=draw)
        experts = torch.zeros(1, queries, 1, dtype=torch.long)
        layers.append(LayerRecord(torch.stack(rows)[None], (w / w.sum(-1, keepdim=True))[None], kept, experts))
    return Record(layers, first=first)


def everything(queries: int = 4) -> Record:
    """Every query reads every key."""
    layers = []
    for n in range(LAYERS):
        at = torch.full((1, queries, PROMPT - 1 + queries), -1)
        for t in range(queries):
            at[0, t, : PROMPT + t] = torch.arange(PROMPT + t)
        draw = torch.rand(at.shape, generator=torch.Generator().manual_seed(n)) * (at >= 0)
        rest = torch.ones(1, queries), torch.zeros(1, queries, 1, dtype=torch.long)
        layers.append(LayerRecord(at, draw / draw.sum(-1, keepdim=True), *rest))
    return Record(layers, first=PROMPT - 1)


def selected(record: Record, **options) -> PassageSelection:
    known = {"passage": PASSAGE, "truth": [TRUTH], "subject": "the needle", "question": "what?", "answer": ANSWER}
    return PassageSelection.from_record(record, IDS, BYTES, **known | options)


@pytest.fixture(scope="session")
def record() -> Record:
    return drawn(0)


@pytest.fixture(scope="session")
def alone() -> list[Record]:
    return [drawn(1 + n) for n in range(HEADS)]


@pytest.fixture(scope="session")
def passage(record, alone) -> PassageSelection:
    return selected(record, heads=alone)


@pytest.fixture(scope="session")
def full() -> PassageSelection:
    return selected(everything())
