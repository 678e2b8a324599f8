"""How fast `mini` answers on a CPU: tokens per second, and seconds to the first token about a clip of 64 frames.

Run: python tests/benchmarks/bench_generation.py [--threads 2] [--runs 7]
First token: opening the file, sampling and resizing 64 frames, the vision tower, reading the prompt, one token; loading
the model is not counted. Decoding: 64 more tokens, with the cache and, the rival, without: every token reads the whole
prompt again. All is measured in turns within one process, after one round to warm up; figures are medians of the runs.
Waiting threads sleep (OMP_WAIT_POLICY=PASSIVE): while they spin, one other busy process costs a factor of ten.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "assets" / "results" / "generation_cpu.json"
CLIP = ROOT / "assets" / "clips" / "big_buck_bunny.mp4"
QUESTION = "Which digit is on the card, and at which second?"
FRAMES, NEW = 64, 64  # frames of the clip, tokens of an answer
REREAD = 4  # tokens written without a cache: each takes as long as a first token


def timed(what: Callable) -> tuple[float, object]:
    begun = time.perf_counter()
    result = what()
    return time.perf_counter() - begun, result


def one_round(model, processor, attention: str) -> dict:
    """Seconds of every part, for one kind of attention."""
    import torch

    video = {"type": "video", "video": str(CLIP), "max_frames": FRAMES}
    messages = [{"role": "user", "content": [video, {"type": "text", "text": QUESTION}]}]
    read, inputs = timed(lambda: processor(messages))
    came: list[float] = []
    begun = time.perf_counter()
    out = model.generate(
        inputs, max_new_tokens=NEW + 1, attention=attention, on_token=lambda _: came.append(time.perf_counter())
    )
    assert len(came) == NEW + 1 and len(inputs["frames"][0]) == FRAMES
    with torch.no_grad():
        vision, _ = timed(lambda: model.visual_tokens(inputs["patches"], inputs["grids"]))
    tokens = inputs["input_ids"].shape[1]
    return {
        "attention": attention,
        "frames": FRAMES,
        "prompt_tokens": tokens,
        "read_s": read,
        "vision_s": vision,  # measured by itself; part of prompt_s as well
        "prompt_s": came[0] - begun,
        "first_token_s": read + came[0] - begun,
        "decode_s_per_token": (came[-1] - came[0]) / NEW,
        "no_cache_s_per_token": reread(model, inputs, out.row(), attention),
    }


def reread(model, inputs: dict, said: list[int], attention: str) -> float:
    """Seconds per token when all tokens so far are read anew for each, pixels included."""
    import torch

    ids, positions = inputs["input_ids"], inputs["positions"]
    begun = time.perf_counter()
    with torch.no_grad():
        for n, token in enumerate(said[:REREAD]):
            ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
            positions = torch.cat([positions, positions[:, :, -1:] + 1], dim=2)
            grown = {"input_ids": ids, "positions": positions, "patches": inputs["patches"], "grids": inputs["grids"]}
            following = model(grown, attention=attention, last=1).logits[0, -1].argmax()
            assert int(following) == said[n + 1], "reading everything again gives another token than the cache does"
    return (time.perf_counter() - begun) / REREAD


def middle(rows: list[dict], key: str, attention: str = "sparse") -> float:
    return statistics.median(row[key] for row in rows if row["attention"] == attention)


def summarise(rows: list[dict]) -> dict[str, float]:
    """Medians, and what the cache is worth."""
    cached, anew = middle(rows, "decode_s_per_token"), middle(rows, "no_cache_s_per_token")
    return {
        "decode_tokens_s": round(1 / cached, 1),
        "decode_tokens_s_no_cache": round(1 / anew, 2),
        "decode_tokens_s_dense": round(1 / middle(rows, "decode_s_per_token", "dense"), 1),
        "first_token_64_frames_s": round(middle(rows, "first_token_s"), 3),
        "first_token_64_frames_s_dense": round(middle(rows, "first_token_s", "dense"), 3),
        "first_token_64_frames_read_s": round(middle(rows, "read_s"), 3),
        "first_token_64_frames_vision_s": round(middle(rows, "vision_s"), 3),
    }


def main() -> None:
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
    import torch

    from minikeye import KeyeVL, Processor
    from minikeye.files import CHECKPOINT
    from minikeye.results import write_result

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, processor = KeyeVL.from_pretrained(CHECKPOINT), Processor(CHECKPOINT)
    rows = []
    for run in range(options.runs + 1):
        for attention in ("sparse", "dense"):
            row = one_round(model, processor, attention)
            if run:
                rows.append({"run": run, **row, "threads": options.threads})
                print(json.dumps(rows[-1]), flush=True)
    what = (
        f"mini on a CPU: seconds to the first token about {FRAMES} frames, and per token of {NEW} more; float32, greedy"
    )
    write_result(options.out, what, "python tests/benchmarks/bench_generation.py", rows, summarise(rows), [])
    print(json.dumps(summarise(rows), indent=1))


if __name__ == "__main__":
    main()
