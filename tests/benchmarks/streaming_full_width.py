"""What streaming takes: four layers of the released width, read from disk as they are needed, on a CPU.

Run: python tests/benchmarks/streaming_full_width.py [--tokens 1024] [--threads 2] [--folder FOLDER]
A folder of four full-width layers with random weights in bfloat16 is written (7.3 GB; FOLDER is kept and used again).
Each way to hold the model runs in a process of its own, in float32: a prompt, then 8 more tokens. The peak is the
process's largest resident set, mapped pages of the files included. The aim: a prompt's peak within three layers (in
bfloat16, as stored), cache and activations; logits within 1e-5 of the resident model's. That one takes 17 GB of
memory, so `make bench` leaves this script out.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "assets" / "results" / "streaming_cpu.json"
NEW = 8  # tokens after the prompt


def peak_bytes() -> int:
    """The largest resident set of this process so far (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def measure(folder: Path, streaming: bool, tokens: int, threads: int, logits_to: Path) -> dict:
    """One way to hold the model; its last logits are written to a file."""
    import torch

    from minikeye import KeyeVL

    torch.set_num_threads(threads)
    model = KeyeVL.from_pretrained(folder, streaming=streaming)
    before, begun = peak_bytes(), time.perf_counter()
    ids = torch.randint(0, 100_000, (1, tokens), generator=torch.Generator().manual_seed(0))
    cache = model.new_cache(tokens + NEW)
    with torch.no_grad():
        logits = [model({"input_ids": ids}, cache, last=1, chunk=512).logits]
        prompt_s, prompt_peak = time.perf_counter() - begun, peak_bytes()
        row = {"way": "streamed" if streaming else "resident", "tokens": tokens}
        if streaming:
            log = model.read_log
            row |= {
                "prompt_read_bytes": log.total_bytes,
                "layer_read_bytes": log.dense_bytes[0] + log.expert_bytes[0],
                "experts_read": [len(log.experts[n]) for n in sorted(log.experts)],
            }
            log.clear()
        begun = time.perf_counter()
        for n in range(NEW):
            logits.append(model({"input_ids": ids[:, n : n + 1]}, cache).logits)
        decode_s = (time.perf_counter() - begun) / NEW
        if streaming:
            row |= {"token_read_bytes": log.total_bytes / NEW}
    torch.save(torch.cat(logits, dim=1), logits_to)
    return row | {
        "prompt_s": prompt_s,
        "token_s": decode_s,
        "before_bytes": before,
        "prompt_peak_bytes": prompt_peak - before,
        "peak_bytes": peak_bytes() - before,
        "cache_bytes": cache.bytes(),
    }


def one_layer(folder: Path) -> int:
    """Bytes of decoder layer 0, as stored."""
    from safetensors import safe_open

    from minikeye.checkpoint.tensors import tensor_files

    total = 0
    for name, file in tensor_files(folder).items():
        if name.startswith("model.layers.0."):
            with safe_open(folder / file, "pt") as shard:
                total += shard.get_tensor(name).nbytes
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="kept, and used again where it is there; default: a temporary one")
    parser.add_argument("--out", type=Path, default=RESULT)
    parser.add_argument("--measure", choices=("streamed", "resident"), help=argparse.SUPPRESS)
    parser.add_argument("--logits", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        row = measure(options.folder, options.measure == "streamed", options.tokens, options.threads, options.logits)
        print(json.dumps(row))
        return
    with tempfile.TemporaryDirectory(prefix="minikeye-") as temporary:
        run(options, Path(temporary))


def run(options: argparse.Namespace, temporary: Path) -> None:
    import torch

    from minikeye.checkpoint.fake import fake_config, write_fake_checkpoint
    from minikeye.config import KeyeConfig
    from minikeye.cost.memory import needs
    from minikeye.results import write_result

    folder = options.folder or temporary / "full-width"
    if not folder.is_dir():
        write_fake_checkpoint(folder, fake_config(options.layers))
    rows, logits = [], {}
    for way in ("streamed", "resident"):
        file = temporary / f"{way}.pt"
        command = [sys.executable, __file__, "--measure", way, "--logits", str(file), "--folder", str(folder)]
        command += ["--tokens", str(options.tokens), "--threads", str(options.threads)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append(json.loads(done.stdout))
        logits[way] = torch.load(file, weights_only=True)
        print(rows[-1])
    streamed, layer = rows[0], one_layer(folder)
    gap = (logits["streamed"] - logits["resident"]).abs().max()
    bill = needs(KeyeConfig.from_folder(folder), context=options.tokens + NEW, dtype=torch.float32, visual=0, chunk=512)
    allowed = 3 * layer + bill.cache + bill.activations
    summary = {
        "layer_gb": layer / 1e9,
        "prompt_peak_gb": streamed["prompt_peak_bytes"] / 1e9,
        "allowed_gb": allowed / 1e9,
        "peak_gb": streamed["peak_bytes"] / 1e9,
        "resident_peak_gb": (rows[1]["before_bytes"] + rows[1]["peak_bytes"]) / 1e9,
        "largest_logit_difference": float(gap),
        "prompt_s": streamed["prompt_s"],
        "token_s": streamed["token_s"],
        "resident_prompt_s": rows[1]["prompt_s"],
        "prompt_read_gb": streamed["prompt_read_bytes"] / 1e9,
        "token_read_gb": streamed["token_read_bytes"] / 1e9,
    }
    summary = {name: float(f"{value:.4g}") for name, value in summary.items()}
    what = f"{options.layers} layers of the released width streamed from disk, {options.tokens} tokens, float32"
    packages = ("torch", "safetensors")
    write_result(options.out, what, "python tests/benchmarks/streaming_full_width.py", rows, summary, [0], packages)
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
