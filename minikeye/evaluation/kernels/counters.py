"""What limits each kernel, by Nsight Compute's counters, on the last prefill chunk of 131,072 tokens:

    ncu --profile-from-start off --section SpeedOfLight --section Occupancy --section ComputeWorkloadAnalysis \\
        --csv --log-file COUNTERS.csv python -m minikeye.evaluation.kernels.counters
    python -m minikeye.evaluation.kernels.counters --csv COUNTERS.csv  # assets/results/kernels_counters.json

ncu repeats a kernel for each group of counters and lowers the clocks: its times are longer than the benchmark's.
"""

import argparse
import csv
from pathlib import Path

import torch

from minikeye.evaluation.kernels.workload import RELEASED, attention_inputs, index_inputs
from minikeye.kernels.attention.sparse_attention import sparse_attention
from minikeye.kernels.selection.select_fast import select_topk_fast
from minikeye.results import write_result

KEPT = {
    "Duration": "duration_us",
    "Compute (SM) Throughput": "compute_percent",
    "DRAM Throughput": "dram_percent",
    "L2 Cache Throughput": "l2_percent",
    "L1/TEX Cache Throughput": "l1_percent",
    "Achieved Occupancy": "occupancy_percent",
    "Issue Slots Busy": "issue_slots_busy_percent",
    "Executed Ipc Active": "ipc",
}
MICROSECONDS = {"ns": 1e-3, "us": 1.0, "ms": 1e3, "nsecond": 1e-3, "usecond": 1.0, "msecond": 1e3}


def profiled(length: int = 131_072, queries: int = 1024) -> None:
    """One chunk, twice: the first run compiles, the second is between the profiler's start and stop."""
    torch.manual_seed(0)
    first = length - queries
    index_q, index_k, index_w = index_inputs("u4", length)
    q, k, v = attention_inputs(queries, length)
    for measured in (False, True):
        torch.cuda.synchronize()
        if measured:
            torch.cuda.profiler.start()
        indices = select_topk_fast(index_q[:, first:], index_k, index_w[:, first:], RELEASED.topk, first)
        sparse_attention(q, k, v, indices)
        torch.cuda.synchronize()
    torch.cuda.profiler.stop()


def read(path: Path) -> list[dict]:
    """One row a kernel launch, out of ncu's CSV. Raises ValueError where it holds no known counter."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line.startswith('"')]
    rows: dict[str, dict] = {}
    for record in csv.DictReader(lines):
        if name := KEPT.get(record["Metric Name"]):
            value = float(record["Metric Value"].replace(",", ""))
            scale = MICROSECONDS[record["Metric Unit"]] if name == "duration_us" else 1.0
            row = rows.setdefault(record["ID"], {"kernel": record["Kernel Name"].split("(")[0]})
            row[name] = round(value * scale, 2)
    if not rows:
        raise ValueError(f"expected the CSV that ncu writes with --csv --log-file, got none of its counters in {path}")
    return list(rows.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, help="what ncu wrote; without it the kernels run, for ncu to watch")
    parser.add_argument("--out", type=Path, default=Path("assets/results/kernels_counters.json"))
    options = parser.parse_args()
    if options.csv is None:
        profiled()
        return
    rows = [row for row in read(options.csv) if row["kernel"].endswith("_kernel")]
    summary = {f"{row['kernel'].removesuffix('_kernel')}_dram_percent": row["dram_percent"] for row in rows}
    what = (
        "Nsight Compute's counters for the kernels of one prefill chunk: 1,024 queries at the end of 131,072, u about 4"
    )
    command = "python -m minikeye.evaluation.kernels.counters --csv COUNTERS.csv"
    write_result(options.out, what, command, rows, summary, [0], ("torch", "triton"))


if __name__ == "__main__":
    main()
