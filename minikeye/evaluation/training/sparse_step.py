"""Training with sparse attention: gradients of one layer, a step of `mini`, the memory of long sequences.

    python -m minikeye.evaluation.training.sparse_step    # one H200, four minutes; --only PART ..., --lengths ...

attention   one layer of the released model (kernels/workload.py), batch 1, bfloat16, the selection given: forward and
            backward, by cuDNN's dense attention and over the selection. u16: keys in the union of 16 neighbours'
            sets, in sets of k. Median of at least three calls each.
step        the sparse stage of `mini` from the shipped checkpoint, on a batch of its own recipe: loss, gradients,
            clipping and AdamW, by one CUDA graph and what follows it, with masks and with kernels. Beside the times:
            how far the two losses and gradients are apart, and two runs of the same.
memory      the peak of one eager step on one sequence of random tokens; answers are the last 1,024, the indexer learns
            from 128 rows. "mini": all of it, nothing computed twice. "released": decoder layers of released size with
            the whole vocabulary's embedding and head, and a tower of mini's size, which learns nothing; each layer is
            run again in the backward pass. State, of what learns: weights, gradients and AdamW's two moments in
            float32, 16 bytes a parameter; autocast's bfloat16 copies come on top, and are in the peak.

Expected, before it was measured (H200, 128K tokens, u16 about 4): forward 245 ms by cuDNN, 50 over the selection;
backward 650 and 350 (0.54; 205 with sums of floats, but integers are twice the bytes, and additions are what a tile
waits for). Random data, u16 14: three times that. `mini` at 1,024 frames: 200 ms a step with masks, 100 with kernels;
at 64 frames masks win. Memory: mini 4 GB at 16K and 16 at 64K tokens; four released layers 60 GB of state and 20 more
at 64K. With masks, 64K tokens take 4 GB a layer for masks alone.
"""

import argparse
import gc
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minikeye import KeyeConfig, KeyeVL, ops
from minikeye.evaluation.kernels.decoding import seconds_of
from minikeye.evaluation.kernels.workload import RELEASED, Shape, attention_inputs, index_inputs, union_factor
from minikeye.files import CHECKPOINT
from minikeye.minivid.lessons import Lessons, Size
from minikeye.model.step import Mode
from minikeye.results import write_result
from minikeye.training.dsa import IndexerTeacher, draw_rows
from minikeye.training.loop import LoopConfig, optimiser
from minikeye.training.losses import answer_loss
from minikeye.training.stage import STAGES, trainable
from minikeye.training.step import autocast, on, stepper

BY: dict[str, Mode] = {"masks": "masked", "kernels": "sparse"}
DATA = ("random", "smooth")
LOOP = LoopConfig(steps=10, lr=1e-6)  # of the optimiser that is timed: the weights stay where they are, nearly


@dataclass(frozen=True)
class Sizes:
    """What is measured, and on what."""

    lengths: tuple[int, ...] = (32_768, 131_072)  # tokens, of one layer's attention
    shape: Shape = RELEASED  # of that layer
    frames: tuple[int, ...] = (64, 256, 1024)  # of the videos of a step
    tokens: tuple[int, ...] = (16_384, 65_536)  # of a sequence whose memory is measured
    layers: tuple[int, ...] = (2, 4)  # decoder layers of released size
    released: KeyeConfig = KeyeConfig.keye_vl_2_30b_a3b()
    answer: int = 1024  # tokens of that sequence that are learnt


SMOKE = Sizes((64,), Shape(4, 2, 16, 2, 16, 8), (4,), (96,), (1,), KeyeConfig.nano(), 8)


def free() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def gib(device: torch.device, peak: bool = False) -> float:
    """Memory of the GPU that tensors take, or took at most since `free`; 0 on a CPU."""
    if device.type != "cuda":
        return 0.0
    return (torch.cuda.max_memory_allocated if peak else torch.cuda.memory_allocated)(device) / 2**30


def median_ms(run: Callable[[], object], device: torch.device, least: int = 3, seconds: float = 0.5) -> float:
    """Of at least `least` runs and of as many as fit `seconds`, up to 50, after one to warm up."""
    first = seconds_of(run, device)
    runs = max(least, min(50, int(seconds / max(first, 1e-3))))
    return 1000 * statistics.median(seconds_of(run, device) for _ in range(runs))


def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q [b t h e], k, v [b s g e], by cuDNN where there is a GPU."""
    if q.is_cuda:
        from minikeye.evaluation.kernels import timing  # which needs Triton

        return timing.dense(q, k, v, "cudnn")
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)


def attention(length: int, data: str, shape: Shape, device: torch.device) -> Iterator[dict]:
    """Forward and backward of one layer's attention."""
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    inputs = index_inputs(data, length, str(device), shape, dtype=dtype)
    indices = ops.select_topk(*inputs, shape.topk)
    del inputs
    where = {"length": length, "data": data, "u16": union_factor(indices, 16)}
    qkv = [x.requires_grad_() for x in attention_inputs(length, length, str(device), shape, dtype=dtype)]
    for name, attend in {"dense": dense, "sparse": lambda *qkv: ops.sparse_attention(*qkv, indices)[0]}.items():
        forward = median_ms(lambda attend=attend: attend(*qkv), device)
        out = attend(*qkv)
        run = partial(torch.autograd.grad, out, qkv, torch.randn_like(out), retain_graph=True)
        free()
        before = gib(device)
        run()
        extra, backward = gib(device, peak=True) - before, median_ms(run, device)
        times = {"forward_ms": forward, "backward_ms": backward, "backward_extra_gib": extra}
        yield {"what": "attention", "method": name, **where, **times}
        del out, run


def lesson_inputs(config: KeyeConfig, frames: int, device: torch.device, smoke: bool) -> dict[str, Tensor]:
    """A batch as the recipe's sparse stage has it: 56x84 pixels, as many videos as it takes of that length."""
    budget = 4096 * 3 // 4 if not smoke else 2 * frames
    size = Size(frames, max(1, min(64, budget * 2 // (3 * frames))), 56, 84)
    lesson = Lessons(config, lambda step: size, range(1), STAGES["sparse"].number)[0]
    rows = draw_rows(lesson.tokens["answer"], max(16, min(128, 3072 // size.videos)), torch.Generator().manual_seed(0))
    return lesson.inputs(config, device) | {"rows": rows.to(device)}


def step(frames: int, device: torch.device, smoke: bool) -> Iterator[dict]:
    """A training step of mini's sparse stage, with masks and with kernels, and whether they agree."""
    found: dict[str, tuple[Tensor, list[Tensor]]] = {}
    for name in (*BY, "kernels, again"):
        free()
        by = name.removesuffix(", again")
        model = KeyeVL.from_pretrained(CHECKPOINT, dtype=torch.float32).to(device)
        model.visual.chunk_patches = 2**20
        inputs = lesson_inputs(model.config, frames, device, smoke)
        parameters = trainable(model)
        run = stepper(device)(
            partial(lambda m, mode, x: STAGES["sparse"].loss(m, x, mode=mode), model, BY[by]), list(parameters.values())
        )
        loss, _ = run(inputs)
        found[name] = loss.clone(), [p.grad.clone() for p in parameters.values() if p.grad is not None]
        optim = optimiser(parameters, LOOP)

        def whole(run=run, inputs=inputs, parameters=parameters, optim=optim) -> None:
            run(inputs)
            nn.utils.clip_grad_norm_(parameters.values(), 1.0)
            optim.step()

        if name in BY:
            b, t = inputs["input_ids"].shape
            ms = median_ms(whole, device, seconds=1.0)
            yield {
                "what": "step", "by": name, "frames": frames, "videos": b, "tokens": t, "ms": ms,
                "loss": float(loss), "peak_gib": gib(device, peak=True),
            }  # fmt: skip
        del run, whole, optim, model, parameters, inputs
    for pair in (("masks", "kernels"), ("kernels", "kernels, again")):
        (a, ga), (b, gb) = (found[name] for name in pair)
        apart = sum(float((x.double() - y.double()).square().sum()) for x, y in zip(ga, gb, strict=True)) ** 0.5
        size = sum(float(x.double().square().sum()) for x in ga) ** 0.5
        same = float(bool(a == b) and all(map(torch.equal, ga, gb)))
        off = {"loss_off": abs(float(a - b)) / abs(float(a)), "gradient_off": apart / size, "same_bits": same}
        yield {"what": "agreement", "of": list(pair), "frames": frames, **off}


def model_of(kind: str, layers: int, sizes: Sizes) -> KeyeConfig:
    """mini, or so many decoder layers of released size with the released vocabulary and mini's tower."""
    config = KeyeConfig.mini()
    if kind == "mini":  # with room for more tokens than it was taught
        return replace(config, text=replace(config.text, max_positions=sizes.released.text.max_positions))
    text = replace(sizes.released.text, layers=layers)
    return replace(config, text=text, indexer=sizes.released.indexer, image_token_id=0, video_token_id=1)


def memory(kind: str, layers: int, tokens: int, by: str, sizes: Sizes, device: torch.device) -> Iterator[dict]:
    """The peak of the second step: by then the optimiser has its state."""
    free()
    torch.manual_seed(0)
    before = gib(device)
    with device:
        model = KeyeVL(model_of(kind, layers, sizes))
        ids = torch.randint(2, min(256, model.config.text.vocab), (1, tokens))
    parameters = trainable(model, lambda name: name.startswith(("model.", "lm_head.")))
    optim = optimiser(parameters, LOOP)
    answer = torch.zeros(1, tokens, dtype=torch.bool, device=device)
    answer[:, -sizes.answer :] = True
    rows = draw_rows(answer.cpu(), 128, torch.Generator().manual_seed(0)).to(device)
    last = slice(-sizes.answer - 1, None)

    def one() -> None:
        teacher = IndexerTeacher(rows)
        with autocast(device):
            logits = model(
                {"input_ids": ids}, attention=BY[by], observer=teacher, last=sizes.answer + 1,
                recompute=kind == "released",
            ).logits  # fmt: skip
            kl = teacher.indexer_loss()
        loss = answer_loss(logits, ids[:, last], answer[:, last]) + kl + 0.01 * teacher.balance_loss()
        optim.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optim.step()

    where = {"what": "memory", "model": kind, "layers": model.config.text.layers, "tokens": tokens, "by": by}
    count = sum(p.numel() for p in parameters.values())
    try:
        one()
        state = gib(device) - before
        free()
        ms = 1000 * seconds_of(one, device)
        yield {**where, "parameters": count, "state_gib": state, "peak_gib": gib(device, peak=True) - before, "ms": ms}
    except torch.cuda.OutOfMemoryError as error:
        yield {**where, "parameters": count, "did_not_run": str(error)[:200]}


def plan(sizes: Sizes, device: torch.device, smoke: bool) -> Iterator[tuple[str, Callable[[], Iterator[dict]]]]:
    """All parts, by name, those that fit a small card first."""
    for length in sizes.lengths:
        for data in DATA:
            yield "attention", partial(attention, length, data, sizes.shape, device)
    for frames in sizes.frames:
        yield "step", partial(step, frames, device, smoke)
    for tokens in sizes.tokens:
        for by in BY:
            yield "memory", partial(memory, "mini", 0, tokens, by, sizes, device)
        for layers in sizes.layers:
            yield "memory", partial(memory, "released", layers, tokens, "kernels", sizes, device)


def summarise(rows: list[dict]) -> dict[str, float]:
    """Ratios to cuDNN in the same run, of kernels to masks, and peaks. Only what the rows hold."""
    out: dict[str, float] = {}
    for row in rows:
        match row:
            case {"what": "attention", "method": "sparse", "length": length, "data": data}:
                rival = next(
                    r for r in rows if {"method": "dense", "length": length, "data": data}.items() <= r.items()
                )
                for way in ("forward", "backward"):
                    out[f"train_{way}_{length // 1024}k_ratio_{data}"] = row[f"{way}_ms"] / rival[f"{way}_ms"]
            case {"what": "step", "by": by, "frames": frames, "ms": ms}:
                out[f"train_mini_{frames}_frames_{by}_ms"] = ms
            case {"what": "memory", "peak_gib": peak, "tokens": tokens, "by": "kernels"}:
                out[f"train_{row['model']}_{row['layers']}_layers_{tokens // 1024}k_peak_gib"] = peak
    return {name: float(f"{value:.4g}") for name, value in out.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("assets/results/training_step.json"))
    parser.add_argument("--only", nargs="*", choices=("attention", "step", "memory"), help="default: all")
    parser.add_argument("--lengths", type=int, nargs="*", help="tokens of one layer's attention")
    parser.add_argument("--frames", type=int, nargs="*", help="of the videos of a step")
    parser.add_argument("--tokens", type=int, nargs="*", help="of a sequence whose memory is measured")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, for a CPU")
    options = parser.parse_args()
    device, sizes = on(options.device), SMOKE if options.smoke else Sizes()
    asked = {name: tuple(x) for name in ("lengths", "frames", "tokens") if (x := getattr(options, name))}
    rows: list[dict] = []
    for name, run in plan(replace(sizes, **asked), device, options.smoke):
        if options.only and name not in options.only:
            continue
        torch.manual_seed(0)
        for row in run():
            rows.append({k: float(f"{v:.4g}") if isinstance(v, float) else v for k, v in row.items()})
            print(rows[-1], flush=True)
        free()
        what = "training with sparse attention: gradients, a step of mini, memory of long sequences"
        command = "python -m minikeye.evaluation.training.sparse_step"
        write_result(options.out, what, command, rows, summarise(rows), [0], ("torch", "triton", "numpy"))


if __name__ == "__main__":
    main()
