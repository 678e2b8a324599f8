"""Dense against sparse attention on a CPU, one layer at the widths of `mini`: reading a prompt, and one decode step.

Run: python tests/benchmarks/bench_dsa_cpu.py [--threads 2]
Dense is torch's fused kernel; sparse is `ops.select_topk` (index scores, exact selection) and `ops.sparse_attention`.
Times are medians of up to nine runs within about five seconds, after one run to warm up; extra memory is the peak of a
process beyond its inputs. Projections are the same for both and left out. The crossover is the shortest measured length
from which sparse takes less time; 0 where there is none.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

RESULT = Path(__file__).resolve().parents[2] / "assets" / "results" / "dsa_cpu.json"
LENGTHS = [2**n for n in range(10, 16)]

CHILD = """
import json, resource, statistics, sys, time
import torch
from minikeye import KeyeConfig, ops
from minikeye.ops import dense_attention
what, mode, s, threads = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
torch.set_num_threads(threads)
torch.manual_seed(0)
config = KeyeConfig.mini()
text, indexer, t = config.text, config.indexer, 1 if what == "decode" else s
draw = lambda n, *shape: torch.randn(1, n, *shape)
q, (k, v) = draw(t, text.heads, text.head_width), (draw(s, text.kv_heads, text.head_width) for _ in range(2))
index = draw(t, indexer.heads, indexer.width), draw(s, indexer.width), draw(t, indexer.heads)

def dense(n):
    return dense_attention(q[:, :n], k, v, s - t) if n < t else dense_attention(q, k, v, s - t)

def sparse(n):
    begun = time.perf_counter()
    indices = ops.select_topk(index[0][:, :n], index[1], index[2][:, :n], indexer.topk, s - t, backend="torch")
    took = time.perf_counter() - begun
    ops.sparse_attention(q[:, :n], k, v, indices, backend="torch")
    return took

run = dense if mode == "dense" else sparse
run(min(t, 64))
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
now = int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
ballast = torch.ones(int((peak() - now + 8) * 2**18))  # imports peaked higher than this: fill up, so that growth shows
before = peak()
times, parts, begun = [], [], time.perf_counter()
while len(times) < 9 and (not times or time.perf_counter() - begun < 5):
    start = time.perf_counter()
    parts.append(run(t))
    times.append(time.perf_counter() - start)
row = {"seconds": statistics.median(times), "runs": len(times), "extra_mib": round(peak() - before, 1)}
if mode == "sparse":
    row["select_seconds"] = statistics.median(parts)
print(json.dumps(row))
"""


def measure(what: str, mode: str, length: int, threads: int) -> dict:
    """One process, one line."""
    command = [sys.executable, "-c", CHILD, what, mode, str(length), str(threads)]
    row = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {"what": what, "mode": mode, "tokens": length, **row}


def summarise(rows: list[dict]) -> dict[str, float]:
    """Ratios dense / sparse, crossovers, memory."""
    time = {(r["what"], r["mode"], r["tokens"]): r["seconds"] for r in rows}
    longest, out = max(r["tokens"] for r in rows), {}
    for what in ("prefill", "decode"):
        ratio = {n: time[what, "dense", n] / time[what, "sparse", n] for n in sorted({r["tokens"] for r in rows})}
        from_here = [n for n in ratio if all(ratio[m] > 1 for m in ratio if m >= n)]
        out[f"{what}_crossover_tokens"] = min(from_here, default=0)
        out[f"{what}_speedup_{longest}"] = round(ratio[longest], 2)
        sparse = [r for r in rows if (r["what"], r["mode"], r["tokens"]) == (what, "sparse", longest)]
        out[f"{what}_extra_mib_{longest}"] = sparse[0]["extra_mib"]
    return out


def main() -> None:
    from minikeye.results import write_result

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS, help="tokens")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    rows = []
    for what in ("decode", "prefill"):
        for length in options.lengths:
            for mode in ("dense", "sparse"):
                rows.append(measure(what, mode, length, options.threads) | {"threads": options.threads})
                print(json.dumps(rows[-1]), flush=True)
    what = "seconds of one attention layer on a CPU, dense SDPA against selection and sparse attention, k = 256"
    write_result(options.out, what, "python tests/benchmarks/bench_dsa_cpu.py", rows, summarise(rows), [0])


if __name__ == "__main__":
    main()
