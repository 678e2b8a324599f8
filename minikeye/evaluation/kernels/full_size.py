"""The whole model at released widths on one GPU: reading prompts, decoding, memory, dense against sparse in one run.

    python -m minikeye.evaluation.kernels.full_size     # one H200: 62 GB of weights and up to 27 GB of cache

Weights are random, drawn as for training, in bfloat16; both backends and both kinds of attention run the same model.
Random weights bias the figures. Neighbouring queries select almost nothing in common, so the union tiles of the sparse
attention are wider than on trained indexers: sparse looks slower than it is. Experts get even shares, so the grouped
products are as fast as they can be: both look faster. So prompts come in two kinds: "random" tokens, and "smooth" ones,
whose embeddings follow an AR(1) process along the prompt as neighbouring frames do; the union that results, u16 (the
report has about 4 at 128K), and the busiest expert's share are read off six layers in a second reading of a sparse
prompt, which is not timed.
"""

import argparse
import json
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from minikeye import KeyeConfig, KeyeVL
from minikeye.evaluation.kernels.decoding import decoding, fastest_dense, filled, first_layers, seconds_of
from minikeye.evaluation.kernels.workload import process, union_factor
from minikeye.inference.cuda_graph import decode_step
from minikeye.inference.static_step import StaticStep
from minikeye.model.cache import Cache
from minikeye.model.moe import tokens_per_expert as load
from minikeye.model.step import AttentionTrace
from minikeye.ops import choose_backend
from minikeye.results import write_result

RHO = 0.9925  # of the smooth prompts: neighbours then share about what the report says, u16 about 4
# Tokens that a pass reads: experts are fed 32K at a time; cuDNN's causal kernel is fastest on the whole prompt at once.
CHUNK = {"sparse": 32_768, "dense": None}
LENGTHS = (8192, 32_768, 131_072, 262_144)
PROFILED = 4  # layers
# In the names of the kernels of attention and of what selects for it.
OF_ATTENTION = ("index_scores", "threshold", "filter", "list_k", "pick", "mark", "compact", "sparse_", "sdpa", "flash")
FRAMES, ROWS, COLUMNS = 504, 24, 42  # 127,008 visual tokens: 504 frames of 16:9, as 252 s become at 2 frames/s


class Watch:
    """An observer of the last chunk of every eighth layer: how much neighbours share, and how uneven experts are."""

    def __init__(self, layers: int):
        self.every, self.u16, self.busiest = max(1, layers // 6), [], []

    def attention(self, layer: int, trace: AttentionTrace) -> None:
        if trace.later == 0 and layer % self.every == 0 and trace.indices is not None and trace.q.shape[1] >= 16:
            self.u16.append(union_factor(trace.indices, 16))

    def routing(self, layer: int, probabilities: Tensor, chosen: Tensor) -> None:
        if layer % self.every == 0:
            experts = probabilities.shape[-1]
            self.busiest.append(float(load(chosen, experts).max()) * experts / chosen.numel())

    def numbers(self) -> dict[str, float]:
        found = {"u16": self.u16, "busiest expert, of the mean": self.busiest}
        return {name: statistics.mean(values) for name, values in found.items() if values}


class Smooth(nn.Module):
    """In place of the token embedding: vectors that follow an AR(1) process along the prompt, whatever the tokens."""

    def __init__(self, length: int, width: int, like: Tensor):
        super().__init__()
        parts = [process(length, 256, RHO, str(like.device)).to(like.dtype) for _ in range(-(-width // 256))]
        self.vectors = torch.cat(parts, dim=-1)[..., :width]  # before anything is timed

    def forward(self, ids: Tensor) -> Tensor:
        return self.vectors[:, : ids.shape[1]].expand(len(ids), -1, -1)


@contextmanager
def reading(model: KeyeVL, data: str, length: int, layers: int | None = None) -> Iterator[None]:
    """Inside the block the model has its first `layers` only (None: all), and the embedding of "smooth" where asked."""
    before = model.model.embed_tokens
    if data == "smooth":
        model.model.embed_tokens = Smooth(length, model.config.text.width, model.lm_head.weight)
    try:
        with first_layers(model, layers):
            yield
    finally:
        model.model.embed_tokens = before


def prompt(
    model: KeyeVL, length: int, attention: str, cache: Cache, watch: Watch | None, device: torch.device
) -> Callable:
    ids = torch.randint(model.config.image_token_id, (1, length), device=device)
    options = {"attention": attention, "observer": watch, "last": 1, "chunk": CHUNK[attention]}
    return lambda: model({"input_ids": ids}, cache, **options)


def prefill(model: KeyeVL, length: int, attention: str, data: str, device: torch.device) -> Iterator[dict]:
    """One reading of a prompt of text, after two layers of the same to warm up."""
    watch = Watch(len(model.model.layers))
    with fastest_dense(device):
        with reading(model, data, length, 2):
            prompt(model, length, attention, Cache.empty(2, length), None, device)()
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        with reading(model, data, length):
            cache = model.new_cache(length)
            seconds = seconds_of(prompt(model, length, attention, cache, None, device), device)
            peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
            if attention == "sparse":
                cache.truncate(0)
                prompt(model, length, attention, cache, watch, device)()
    yield {
        "what": "prefill", "attention": attention, "data": data, "length": length, "seconds": seconds,
        "tokens_s": length / seconds, "peak_gib": peak, **watch.numbers(),
    }  # fmt: skip


def see(model: KeyeVL, frames: int, rows: int, columns: int, device: torch.device) -> Iterator[dict]:
    """Vision tower and projector on the frames of a video."""
    size = model.config.vision.patch_size
    grids = torch.tensor([[1, rows, columns]] * frames)
    patches = torch.randn(frames * rows * columns, 3, size, size, device=device, dtype=model.lm_head.weight.dtype)
    model.visual_tokens(patches[: rows * columns], grids[:1])
    seconds = seconds_of(lambda: model.visual_tokens(patches, grids), device)
    tokens = frames * rows * columns // 4
    yield {"what": "vision", "frames": frames, "tokens": tokens, "seconds": seconds, "tokens_s": tokens / seconds}


def profile(run: Callable[[], object], device: torch.device, **about: object) -> Iterator[dict]:
    """Where the time goes: the kernels that `run` starts, by their own time (torch's profiler)."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    with profiler(activities=[ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU]) as found:
        seconds_of(run, device)
    own = lambda e: e.self_device_time_total if device.type == "cuda" else e.self_cpu_time_total  # noqa: E731
    events = sorted(found.key_averages(), key=own, reverse=True)
    total = sum(map(own, events))
    for e in events[:16]:
        times = {"ms": own(e) / 1000, "share": own(e) / total}
        yield {"what": "profile", **about, "kernel": e.key[:90], "calls": e.count, **times}


def profiles(model: KeyeVL, length: int, device: torch.device) -> Iterator[dict]:
    """Reading a prompt by four layers, of both kinds of attention and data; one decode step of all layers."""
    for attention, data in (("sparse", "random"), ("dense", "random"), ("sparse", "smooth")):
        with reading(model, data, length, PROFILED), fastest_dense(device):
            run = prompt(model, length, attention, Cache.empty(len(model.model.layers), length), None, device)
            yield from profile(run, device, part="prefill", attention=attention, data=data, length=length)
    cache = filled(model, length, 1, device)
    for name, step in (("fused", decode_step(model, cache)), ("unfused", StaticStep(model, cache))):
        step.run()
        yield from profile(step.run, device, part="decode", step=name, attention="sparse", length=length)


def plan(
    model: KeyeVL, device: torch.device, lengths: tuple[int, ...]
) -> Iterator[tuple[str, Callable[[], Iterator[dict]]]]:
    for length in lengths:  # dense attention does not depend on what it reads
        for attention, data in (("sparse", "random"), ("sparse", "smooth"), ("dense", "random")):
            yield "prefill", partial(prefill, model, length, attention, data, device)
    yield "decode", partial(decoding, model, lengths, device)
    yield "vision", partial(see, model, *((FRAMES, ROWS, COLUMNS) if device.type == "cuda" else (2, 4, 4)), device)
    yield "profile", partial(profiles, model, sorted(lengths)[len(lengths) // 2], device)


def layer_ms(rows: list[dict], attention: str, data: str) -> tuple[float, float]:
    """Of a layer that reads 128K tokens, by the profile: ms of attention with its selection, and of all the rest.

    The shortest kernels of attention have no row, and count as rest.
    """
    about = {"what": "profile", "part": "prefill", "attention": attention, "data": data, "length": 131_072}
    found = [r for r in rows if about.items() <= r.items()]
    if not found:
        return float("nan"), float("nan")
    own = sum(r["ms"] for r in found if any(word in r["kernel"] for word in OF_ATTENTION))
    return own / PROFILED, (found[0]["ms"] / found[0]["share"] - own) / PROFILED


def summarise(rows: list[dict]) -> dict[str, float]:
    def find(key: str, **wanted: object) -> float:
        return next((r[key] for r in rows if all(r.get(k) == v for k, v in wanted.items())), float("nan"))

    out = {}
    for name, length in (("8k", 8192), ("32k", 32_768), ("128k", 131_072), ("256k", 262_144)):
        for data, tail in (("random", ""), ("smooth", "_smooth")):
            sparse = find("seconds", what="prefill", attention="sparse", data=data, length=length)
            dense = find("seconds", what="prefill", attention="dense", length=length)
            out |= {f"prefill_{name}_ratio{tail}": sparse / dense, f"prefill_{name}_tokens_s{tail}": length / sparse}
        for batch in (1, 4, 16):
            where = {"what": "decode", "batch": batch, "context": name, "step": "fused", "layers": 48}
            sparse, dense = (find("ms", **where, attention=a) for a in ("sparse", "dense"))
            tail = f"_b{batch}"
            out |= {f"decode_{name}_ms{tail}": sparse, f"decode_{name}_ms_dense{tail}": dense}
            out |= {f"decode_{name}_limit_ms{tail}": find("limit_ms", **where, attention="sparse")}
            tail = tail if batch > 1 else ""  # as these two were always called
            out[f"decode_{name}_ratio{tail}"] = sparse / dense
            out[f"decode_{name}_tokens_s{tail}"] = 1000 * batch / sparse
    (sparse, rest), (dense, _) = layer_ms(rows, "sparse", "smooth"), layer_ms(rows, "dense", "random")
    out |= {"layer_128k_attention_ratio_smooth": sparse / dense, "layer_128k_rest_ms_smooth": rest}
    out["peak_gib_256k"] = find("peak_gib", what="prefill", attention="sparse", data="random", length=262_144)
    out["u16_128k"] = find("u16", what="prefill", data="random", length=131_072)
    out["u16_128k_smooth"] = find("u16", what="prefill", data="smooth", length=131_072)
    out["vision_tokens_s"] = find("tokens_s", what="vision")
    return {name: float(f"{value:.4g}") for name, value in out.items() if value == value}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("assets/results/full_size.json"))
    parser.add_argument("--smoke", action="store_true", help="nano on a CPU: that the script runs, not a measurement")
    parser.add_argument("--layers", type=int, default=48, help="fewer for a look at the parts (default: 48)")
    parser.add_argument("--only", nargs="*", help="prefill, decode, vision, profile; default: all")
    parser.add_argument("--lengths", type=int, nargs="*", default=list(LENGTHS), help="of prompts and contexts, tokens")
    parser.add_argument(
        "--add", type=Path, nargs="*", default=[], help="files of other calls, whose rows are put first"
    )
    options = parser.parse_args()
    if options.smoke and options.out == parser.get_default("out"):
        parser.error("--smoke measures nothing: say with --out where its file may go")
    device, config = torch.device("cuda"), KeyeConfig.keye_vl_2_30b_a3b()
    config = replace(config, text=replace(config.text, layers=options.layers))
    lengths = tuple(options.lengths)
    if options.smoke:
        device, config, lengths = torch.device("cpu"), KeyeConfig.nano(), (48, 64, 96, 192)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float32 if options.smoke else torch.bfloat16)
    with torch.device(device):
        model = KeyeVL(config).eval()
    torch.set_default_dtype(torch.float32)
    rows = [row for path in options.add for row in json.loads(path.read_text(encoding="utf-8"))["rows"]]
    backend, _ = choose_backend("auto", device)
    dtype = str(model.lm_head.weight.dtype).removeprefix("torch.")
    what = f"{config.text.layers} layers of width {config.text.width}, random weights, {dtype}; sparse by {backend}"
    for part, run in plan(model, device, lengths):
        if options.only is not None and part not in options.only:
            continue
        for row in run():
            rows.append({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()})
            print(rows[-1], flush=True)
        if device.type == "cuda":
            torch.cuda.empty_cache()
        command = "python -m minikeye.evaluation.kernels.full_size"
        write_result(options.out, what, command, rows, summarise(rows), [0], ("torch", "triton", "numpy"))


if __name__ == "__main__":
    main()
