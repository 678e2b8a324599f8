"""How long a decode step of the whole model takes, beside the bytes that it reads.

Every row decodes a token of its own behind a prompt of its own: rows that say the same choose the same experts, and a
batch of them looks faster than any that people send. Both kinds of attention get every fusion that is not sparse
attention itself; the unfused steps stand beside them, dense with the fastest attention that torch has. Steps are
replays of a CUDA graph. A batch whose cache does not fit beside the weights is measured with a few layers, twice, and
continued in a straight line: its row says from which.

limit_ms: weights of the experts that are awake, all other weights, index keys, and the keys and values that are read,
each once, at the rate of a copy that was timed in the same run. Not quite a limit: reading alone is some percent
faster than a copy, and rows may share more experts than even choices do.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from minikeye import KeyeVL
from minikeye.inference.cuda_graph import decode_step
from minikeye.inference.static_step import StaticStep
from minikeye.model.cache import Cache

BATCHES = (1, 4, 16)
MOST_TOKENS = 2**19 + 2**14  # of all rows in a cache of 48 layers: 55 GB of it, beside 62 GB of weights
FEW = 6, 12  # layers
TIMED = 20  # replays


def decoding(model: KeyeVL, lengths: tuple[int, ...], device: torch.device) -> Iterator[dict]:
    """All lengths and batches; beyond 128K one row alone."""
    tb_s = copied(device)
    yield {"what": "copy, bytes read and written", "tb_s": tb_s}
    layers = len(model.model.layers)
    for length in lengths:
        for batch in BATCHES:
            if length * batch <= MOST_TOKENS:
                yield from (row | limit(model, row, tb_s) for row in decode(model, min(length, 262_080), batch, device))
            elif length <= 131_072 and layers > max(FEW):
                few = [row for n in FEW for row in decode(model, length, batch, device, n)]
                yield from few
                yield from (row | limit(model, row, tb_s) for row in continued(few, layers))


def decode(model: KeyeVL, length: int, batch: int, device: torch.device, layers: int | None = None) -> Iterator[dict]:
    """Median milliseconds of a step of the first `layers` (None: all), by attention and step."""
    with first_layers(model, layers):
        cache = filled(model, length, batch, device)
        tokens = torch.randint(model.config.image_token_id, (batch, 1), device=device)
        where = {"length": length, "context": f"{-(-length // 1024)}k", "batch": batch, "layers": len(cache.layers)}

        def torch_dense() -> None:
            """Dense attention as torch has it, recorded for one length, which no generation could use."""
            model({"input_ids": tokens}, cache, attention="dense")
            cache.truncate(length, torch.full((batch,), length, device=device))

        for attention in ("sparse", "dense"):
            for name in ("fused", "unfused"):
                step = None
                if name == "fused" or attention == "sparse":
                    step = (decode_step if name == "fused" else StaticStep)(model, cache, attention=attention)
                    step.token.copy_(tokens)
                with fastest_dense(device):
                    run = recorded(step.run if step else torch_dense, device)
                if step:
                    step.rewind()
                ms = 1000 * statistics.median(seconds_of(run, device) for _ in range(TIMED))
                kind = name if step is None or type(step) is not StaticStep else "unfused"
                row = {"what": "decode", "attention": attention, "step": kind, **where}
                yield row | {"ms": ms, "tokens_s": 1000 * batch / ms}
                del run, step


def continued(few: list[dict], layers: int) -> Iterator[dict]:
    """Rows of `layers` from rows of two smaller numbers of layers, each kind of step on its straight line."""
    less, more = ([row for row in few if row["layers"] == n] for n in FEW)
    for a, b in zip(less, more, strict=True):
        ms = b["ms"] + (b["ms"] - a["ms"]) * (layers - FEW[1]) / (FEW[1] - FEW[0])
        yield b | {"layers": layers, "ms": ms, "tokens_s": 1000 * b["batch"] / ms, "continued_from": list(FEW)}


def limit(model: KeyeVL, row: dict, tb_s: float) -> dict[str, float]:
    """Milliseconds that the bytes of a step take."""
    text, index, batch = model.config.text, model.config.indexer, row["batch"]
    layer = model.model.layers[0]
    everything = sum(p.numel() for p in layer.parameters())
    expert = sum(p[0].numel() for p in layer.mlp.experts.parameters())
    awake = text.experts * (1 - (1 - text.experts_per_token / text.experts) ** batch)  # of tokens that choose evenly
    pair = 2 * text.kv_heads * text.head_width
    read = row["length"] * pair
    if row["attention"] == "sparse":
        read = min(row["length"], index.topk) * pair + row["length"] * index.width
    numbers = row["layers"] * (everything - (text.experts - awake) * expert + batch * read)
    size = model.lm_head.weight.element_size()
    return {"limit_ms": size * (numbers + model.lm_head.weight.numel()) / tb_s / 1e9}


def copied(device: torch.device) -> float:
    """TB/s of a copy of 4 GiB, read and written."""
    x = torch.empty(2**32 if device.type == "cuda" else 2**20, dtype=torch.uint8, device=device)
    y = torch.empty_like(x)
    seconds = statistics.median(seconds_of(lambda: y.copy_(x), device) for _ in range(5))
    return 2 * len(x) / seconds / 1e12


def filled(model: KeyeVL, length: int, batch: int, device: torch.device) -> Cache:
    """A cache of `length` random tokens a row, each row its own, with room for 64 more."""
    text, index, dtype = model.config.text, model.config.indexer, model.lm_head.weight.dtype
    cache = Cache.empty(len(model.model.layers), length + 64)
    for layer in cache.layers:
        k, v = (torch.randn(batch, length, text.kv_heads, text.head_width, device=device, dtype=dtype) for _ in "kv")
        layer.append(k, v, torch.randn(batch, length, index.width, device=device, dtype=dtype))
        del k, v
    cache.next_position = torch.full((batch,), length, device=device)
    return cache


@contextmanager
def first_layers(model: KeyeVL, layers: int | None) -> Iterator[None]:
    """Inside the block the model has its first `layers` only (None: all)."""
    whole = model.model.layers
    model.model.layers = whole[:layers]
    try:
        yield
    finally:
        model.model.layers = whole


def recorded(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """`run` as a CUDA graph; itself on a CPU."""
    if device.type == "cpu":
        return run
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


@contextmanager
def fastest_dense(device: torch.device) -> Iterator[None]:
    """cuDNN's attention where it can, else flash: what dense attention is measured with."""
    if device.type == "cpu":
        yield
        return
    with sdpa_kernel([SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION], set_priority=True):
        yield


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    synchronize()
    begun = time.perf_counter()
    run()
    synchronize()
    return time.perf_counter() - begun
