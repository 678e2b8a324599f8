"""Proof and speed on a GPU: python -m minikeye.evaluation.kernels.bench [--only PART ...]

One layer of the released model (workload.py), batch 1 unless said. Times are medians over replays of a CUDA graph
(backward and FlexAttention: over calls), each method measured beside its rivals in the same process. Prefill is
chunked: 2,048 queries are scored, selected and attended to before the next; dense methods take all at once. Useful
FLOPs only: what the selected pairs need, not what a union tile multiplies in vain. Projections are the same for all and
left out. u16: keys in the union of 16 neighbours' sets, in sets of k. Decode goes round several caches, so that none
stays in L2.
"""

import argparse
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch

from minikeye.evaluation.kernels import proof
from minikeye.evaluation.kernels.timing import DENSE, ceilings, dense, extra_mib, flex, median_ms
from minikeye.evaluation.kernels.workload import RELEASED, attention_inputs, index_inputs, union_factor
from minikeye.kernels.attention.sparse_attention import sparse_attention
from minikeye.kernels.attention.sparse_forward import sparse_forward
from minikeye.kernels.attention.sparse_union import sparse_union
from minikeye.kernels.attention.union_lists import build_unions, tile_queries
from minikeye.kernels.decode.decode_attention import decode_attention
from minikeye.kernels.decode.decode_select import decode_select
from minikeye.kernels.selection.index_scores import index_scores
from minikeye.kernels.selection.select_fast import select_rows_fast, select_topk_fast
from minikeye.kernels.selection.select_topk import select_rows
from minikeye.results import write_result

CHUNK = 2048  # queries of a prefill chunk
TOPK = RELEASED.topk


def parts(length: int, data: str) -> Iterator[dict]:
    """The kernels alone, on the last chunk of a context of `length`."""
    first = length - CHUNK
    index_q, index_k, index_w = index_inputs(data, length)
    q, k, v = attention_inputs(CHUNK, length)
    queries, gates = index_q[:, first:], index_w[:, first:]
    scores = torch.full((1, CHUNK, length), -torch.inf, device="cuda")
    where = {"length": length, "data": data, "queries": CHUNK}
    pairs = CHUNK * (first + (CHUNK + 1) / 2)
    ms = median_ms(lambda: index_scores(queries, index_k, gates, first, out=scores))
    flops = 2 * RELEASED.index_heads * RELEASED.index_width * pairs
    yield {"what": "index scores", **where, "ms": ms, "tflops": flops / ms / 1e9}
    indices = select_rows(scores, TOPK, first)
    for name, run in {
        "selection": lambda: select_rows_fast(scores, TOPK, first),
        "selection, radix": lambda: select_rows(scores, TOPK, first),
        "torch.topk, unordered": lambda: scores.topk(TOPK, dim=-1, sorted=False),
    }.items():
        ms = median_ms(run, seconds=0.5)
        yield {"what": name, **where, "ms": ms, "tb_s": 4 * pairs / ms / 1e9}
    ms = median_ms(lambda: select_topk_fast(queries, index_k, gates, TOPK, first))
    yield {"what": "scores and selection", **where, "ms": ms}
    size = tile_queries(RELEASED.heads // RELEASED.kv_heads)
    where |= {"u8": union_factor(indices, 8), "u16": union_factor(indices, 16)}
    yield {"what": "union build", **where, "ms": median_ms(lambda: build_unions(indices, length, size))}
    unions = build_unions(indices, length, size, float("inf"))
    out, lse, scale = torch.empty_like(q), torch.empty(q.shape[:3], device="cuda"), RELEASED.width**-0.5
    useful = 4 * RELEASED.heads * RELEASED.width * TOPK * CHUNK
    for name, run in {
        "attention over unions": lambda: sparse_union(q, k, v, unions, scale, out, lse, size),
        "attention per query": lambda: sparse_forward(q, k, v, indices, scale, out, lse),
        "attention as dispatched": lambda: sparse_attention(q, k, v, indices),
    }.items():
        ms = median_ms(run, seconds=0.5)
        yield {"what": name, **where, "ms": ms, "useful_tflops": useful / ms / 1e9}


def prefill(length: int, data: str, methods: tuple[str, ...]) -> Iterator[dict]:
    """One layer over the whole prompt."""
    index_q, index_k, index_w = index_inputs(data, length)
    q, k, v = attention_inputs(length, length)
    out = torch.empty_like(q)

    def sparse() -> torch.Tensor:
        for t in range(0, length, CHUNK):
            now, end = slice(t, t + CHUNK), t + CHUNK
            indices = select_topk_fast(index_q[:, now], index_k[:, :end], index_w[:, now], TOPK, t)
            out[:, now] = sparse_attention(q[:, now], k[:, :end], v[:, :end], indices)[0]
        return indices

    where = {"length": length, "data": data, "u16": union_factor(sparse(), 16)}
    runs: dict[str, Callable] = {name: partial(dense, q, k, v, name) for name in DENSE} | {"dsa": sparse}
    for method in methods:
        try:
            run = flex(q, k, v) if method == "flex" else runs[method]
            extra = extra_mib(run)
        except Exception as error:
            if method != "flex":  # a rival that may not run everywhere
                raise
            yield {
                "what": "prefill",
                "method": method,
                **where,
                "did_not_run": f"{type(error).__name__}: {error}"[:300],
            }
            continue
        seconds = 0.3 if length <= 131_072 else 0.1
        row = {"what": "prefill", "method": method, **where, "ms": median_ms(run, method != "flex", seconds)}
        if method == "dsa":
            row["ms_without_graph"] = median_ms(run, False, seconds)
        yield row | {"extra_mib": extra}


def backward(length: int, data: str, methods: tuple[str, ...]) -> Iterator[dict]:
    """Forward and backward of the attention alone, the selection given."""
    index = index_inputs(data, length)
    indices = select_topk_fast(*index, TOPK)
    del index
    q, k, v = (x.requires_grad_() for x in attention_inputs(length, length))
    where = {"length": length, "data": data, "u16": union_factor(indices[:, -CHUNK:], 16)}
    for method in methods:

        def forward(method: str = method) -> torch.Tensor:
            if method in DENSE:
                return dense(q, k, v, method)
            return sparse_attention(q, k, v, indices, deterministic=method == "deterministic")[0]

        ms = {"forward_ms": median_ms(forward, False, 0.2)}
        out = forward()
        weight = torch.randn_like(out)
        run = partial(torch.autograd.grad, out, (q, k, v), weight, retain_graph=True)
        extra = extra_mib(run)
        yield {
            "what": "backward",
            "method": method,
            **where,
            "ms": median_ms(run, False, 0.5),
            **ms,
            "extra_mib": extra,
        }
        del out, weight, run


def decode(length: int, batch: int) -> Iterator[dict]:
    """One token of one layer for each of `batch` sequences of `length`, per step, under a CUDA graph."""
    caches = max(2, 8 // batch)
    sets = []
    for _ in range(caches):
        index_q, index_k, index_w = index_inputs("random", length, batch=batch)
        last = index_q[:, -1:].contiguous(), index_k, index_w[:, -1:].contiguous()
        sets.append((last, attention_inputs(1, length, batch=batch)))
        del index_q, index_w
    lengths = torch.full((batch,), length, dtype=torch.int32, device="cuda")

    def sparse() -> None:
        for index, qkv in sets:
            decode_attention(*qkv, decode_select(*index, TOPK, lengths))

    def select() -> None:
        for index, _ in sets:
            decode_select(*index, TOPK, lengths)

    runs: dict[str, Callable] = {"dsa": sparse, "dsa, selection only": select}
    for name in DENSE:
        runs[name] = lambda name=name: [dense(*qkv, name, causal=False) for _, qkv in sets]
    for method, run in runs.items():
        us = 1000 * median_ms(run, seconds=0.3) / caches
        yield {"what": "decode", "method": method, "length": length, "batch": batch, "us": us}


def plan() -> Iterator[tuple[str, Callable[[], Iterator[dict]]]]:
    """All parts of the benchmark, by name."""
    yield "proof", proof.all_checks
    yield "ceilings", ceilings
    for length in (32_768, 131_072):
        for data in ("u2", "u4", "random", "sinks", "smooth"):
            yield "parts", partial(parts, length, data)
    for length in (8192, 32_768, 131_072, 262_144):
        rivals = (*DENSE, "flex") if length <= 32_768 else tuple(DENSE)
        yield "prefill", partial(prefill, length, "u4", (*rivals, "dsa"))
        for data in ("u2", "random", "sinks"):
            yield "prefill", partial(prefill, length, data, ("dsa",))
    for length in (32_768, 131_072):
        for batch in (1, 16):
            yield "decode", partial(decode, length, batch)
        yield "backward", partial(backward, length, "u4", ("cudnn", "deterministic", "atomic"))


def summarise(rows: list[dict]) -> dict[str, float]:
    """Ratios to cuDNN's dense attention in the same run, and rates. Only what the rows hold."""

    def find(key: str, **wanted: object) -> float | None:
        return next((row[key] for row in rows if all(row.get(k) == v for k, v in wanted.items())), None)

    out: dict[str, float | None] = {}
    for name, length, data in (
        ("32k_ratio_u4", 32_768, "u4"), ("128k_ratio_u4", 131_072, "u4"), ("128k_ratio_u2", 131_072, "u2"),
        ("256k_ratio_u4", 262_144, "u4"), ("128k_ratio_random", 131_072, "random"),
        ("128k_ratio_sinks", 131_072, "sinks"),
    ):  # fmt: skip
        us = find("ms", what="prefill", method="dsa", length=length, data=data)
        theirs = find("ms", what="prefill", method="cudnn", length=length)
        out[f"prefill_{name}"] = us and theirs and us / theirs
    for batch in (1, 16):
        us, *dense_us = (find("us", what="decode", method=m, length=131_072, batch=batch) for m in ("dsa", *DENSE))
        out[f"decode_128k_b{batch}_ratio"] = us and us / min(dense_us)
    where = {"length": 131_072, "data": "u4"}
    scores, peak = find("tflops", what="index scores", **where), find("tflops", what="matrix product of 8192, bf16")
    out["index_scores_share_of_peak"] = scores and peak and scores / peak
    out["topk_tb_s"] = find("tb_s", what="selection", **where)
    out["sparse_fwd_tflops_u4"] = find("useful_tflops", what="attention over unions", **where)
    theirs = find("ms", what="backward", method="cudnn", **where)
    for name, method in (("", "atomic"), ("_deterministic", "deterministic")):
        us = find("ms", what="backward", method=method, **where)
        out[f"backward_128k_ratio_u4{name}"] = us and us / theirs
    out["extra_memory_mib"] = find("extra_mib", what="prefill", method="dsa", **where)
    out["union_factor"] = find("u16", what="prefill", method="dsa", **where)
    return {name: float(f"{value:.4g}") for name, value in out.items() if value is not None}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("assets/results/kernels_h200.json"))
    parser.add_argument("--only", nargs="*", help="parts of the benchmark; default: all")
    options = parser.parse_args()
    rows: list[dict] = []
    what = "Triton kernels for DSA on GQA: checks on a GPU, times beside dense attention in the same run"
    for name, run in plan():
        if options.only and name not in options.only:
            continue
        torch.manual_seed(0)
        for row in run():
            rows.append({"part": name, **{k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()}})
            print(rows[-1], flush=True)
        torch.cuda.empty_cache()
        command = "python -m minikeye.evaluation.kernels.bench"
        write_result(options.out, what, command, rows, summarise(rows), [0], ("torch", "triton", "numpy"))


if __name__ == "__main__":
    main()
