"""What the compiler makes of the kernels, without a GPU: python -m minikeye.evaluation.kernels.compiled

Compiles every kernel for Hopper (sm_90) and Ampere (sm_80) at the released shapes, as a launch would, and writes
registers a thread, bytes of spilled registers and bytes of shared memory to assets/results/kernels_compiled.json.
"""

import argparse
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from minikeye.evaluation.kernels.workload import RELEASED, Shape
from minikeye.kernels.attention import (
    sparse_backward,
    sparse_forward,
    sparse_union,
    union_lists,
)
from minikeye.kernels.decode import decode_attention, decode_select
from minikeye.kernels.launch import INTERPRETED
from minikeye.kernels.losses import selected_backward, selected_loss, warmup_loss, warmup_lse
from minikeye.kernels.prefill import experts, heads, router
from minikeye.kernels.selection import bit_lists, index_scores, sampled_bound, select_fast, select_topk
from minikeye.results import write_result

FLOATS = {"scale", "scale_log2", "pays", "eps", "index_eps"}
NOT_SIXTEENTHS = ("T", "S", "G", "R", "TILES", "BLOCKS", "t_count", "offset", "start_b", "start_t")  # integers
POINTERS = {
    **dict.fromkeys(("scores", "sample", "bound", "lse", "delta", "index_w", "loss"), "fp32"),
    **dict.fromkeys(("dscore", "pulled", "row_lse", "parts", "unit", "dk_unit", "dv_unit"), "fp32"),
    **dict.fromkeys(("start", "only", "bitmap", "candidates", "passed", "indices", "union_sizes", "marks"), "i32"),
    **dict.fromkeys(("words", "counts", "ends", "entries", "sizes", "queries", "members", "begins"), "i32"),
    **dict.fromkeys(("pairs", "order", "firsts", "lasts"), "i32"),
}
# In the inputs' dtype, where a kernel's case says nothing else.
INPUTS = {"q", "k", "v", "w", "out", "dout", "dq", "index_q", "index_k", "y", "gate_up", "residual"}
INPUTS |= {"q_norm", "k_norm", "index_q_norm", "index_k_norm", "index_k_bias"}
INPUTS |= {"q_out", "k_out", "v_out", "index_q_out", "index_k_out"}


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a kernel."""

    registers: int  # a thread
    spilled: int  # bytes of a thread's registers that went to memory
    shared: int  # bytes
    ptx: str
    ttgir: str


@dataclass(frozen=True)
class Case:
    """A kernel as one launch sees it: constants are its constexprs, its unit strides and its absent tensors."""

    kernel: triton.JITFunction
    constants: dict
    launch: dict  # of launch.py: constexprs of the table and compiler options
    pointers: dict[str, str]  # dtypes that differ from the tables above


def compile_case(case: Case, sm: int, dtype: str = "bf16") -> Compiled:
    """Compiles for GPUs of capability sm (90 or 80), pointers and strides aligned to 16 as torch's are.

    Raises RuntimeError in a process where Triton interprets.
    """
    if INTERPRETED:
        raise RuntimeError("kernels of the interpreter cannot be compiled: unset TRITON_INTERPRET and start again")
    known = case.constants | case.launch | {"UPCAST": False, "PDL": False}
    types, constants, aligned = {}, {}, {}
    for n, parameter in enumerate(case.kernel.params):
        name = parameter.name
        if parameter.is_constexpr or name in known:
            types[name], constants[name] = "constexpr", known[name]
            continue
        if pointer := case.pointers.get(name) or POINTERS.get(name) or (dtype if name in INPUTS else ""):
            types[name] = "*" + pointer
        else:
            types[name] = "fp32" if name in FLOATS else "i32"
        if types[name] != "fp32" and name not in NOT_SIXTEENTHS:
            aligned[(n,)] = [["tt.divisibility", 16]]
    names = {parameter.name for parameter in case.kernel.params}
    options = {name: value for name, value in case.launch.items() if name not in names}
    source = ASTSource(case.kernel, types, constexprs=constants, attrs=aligned)
    return compile_source(source, options | {"enable_fp_fusion": True}, sm)


def compile_source(source: ASTSource, options: dict, sm: int) -> Compiled:
    """The same of a kernel whose arguments are known already."""
    made = triton.compile(source, target=GPUTarget("cuda", sm, 32), options=options)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    used = {key: int(value) for key, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}
    return Compiled(
        used["REG"], used["STACK"] + used["LOCAL"], made.metadata.shared, made.asm["ptx"], made.asm["ttgir"]
    )


def index_cases(sm: int, shape: Shape = RELEASED, start: bool = False) -> dict[str, Case]:
    """Scores and both selections. start: with a tensor [b t] of first keys, else without."""
    row, topk = f"sm_{sm}", shape.topk
    first = {"start_t": 1} if start else {"start": None, "start_b": 0, "start_t": 0}
    heads, width = triton.next_power_of_2(shape.index_heads), max(16, triton.next_power_of_2(shape.index_width))
    queries = index_scores.queries_of_program(heads, width, 2)
    columns = queries * heads
    table = index_scores.LAUNCH[128 if columns <= 128 else 256][row] | index_scores.most_registers(columns, width, row)
    scores = {
        "J": shape.index_heads, "I": shape.index_width, "HEADS": heads, "WIDTH": width, "QUERIES": queries, "w_j": 1,
    }  # fmt: skip
    capacity = {"CAPACITY": select_fast._capacity(topk)}
    sample = sampled_bound.MOST_SAMPLED
    threshold = capacity | {"SAMPLE": sample, "STRETCH": 16, "ROWS": False, "LOWEST": select_fast.LOWEST}
    only = {} if start else {"only": None}
    listed = {"out": "i32"}
    return {
        "index_scores": Case(index_scores.index_scores_kernel, scores | first, table, {"out": "fp32"}),
        "select_topk": Case(select_topk.select_kernel, first | only, select_topk.LAUNCH[row], listed),
        "select_fast, sample": Case(
            sampled_bound.sample_kernel,
            {"I": shape.index_width, "WIDTH": triton.next_power_of_2(shape.index_width), "STRETCH": 16},
            sampled_bound.GATHER[row],
            {},
        ),
        "select_fast, threshold": Case(
            sampled_bound.threshold_kernel, threshold | first, {"num_warps": sample // 1024}, {}
        ),
        "select_fast, filter": Case(select_fast.filter_kernel, first, select_fast.FILTER[row], {}),
        "select_fast, list": Case(bit_lists.list_kernel, capacity | first, bit_lists.LIST[row], {}),
        "select_fast, pick": Case(select_fast.pick_kernel, capacity | first, select_fast.PICK[row], listed),
    }  # fmt: skip


def attention_cases(sm: int, shape: Shape = RELEASED) -> dict[str, Case]:
    """Sparse attention, forward and backward."""
    row, r = f"sm_{sm}", shape.heads // shape.kv_heads
    rows = triton.next_power_of_2(r)
    sizes = {
        "E": shape.width, "BLOCK_R": rows, "BLOCK_K": triton.next_power_of_2(shape.topk), "PARTS": 4,
        "QUERIES": union_lists.tile_queries(r), "FILL": union_lists.FILL,
    }  # fmt: skip
    stride = shape.kv_heads * shape.width
    known = sizes | {"K_S": stride, "V_S": stride, "G": shape.kv_heads, "R": r, "SAFE": sparse_union.SAFE}
    sums = {"dk": "i64", "dv": "i64"}
    tile, single = (
        sizes | {"QUERIES": n, "BLOCK_R": sparse_backward.padded_heads(r, n)} for n in (sizes["QUERIES"], 1)
    )
    return {
        "sparse_forward": Case(sparse_forward.sparse_forward_kernel, sizes, sparse_forward.LAUNCH[row], {}),
        "sparse_union, mark": Case(union_lists.mark_kernel, sizes, union_lists.MARK[row], {}),
        "sparse_union, compact": Case(union_lists.compact_kernel, sizes, union_lists.COMPACT[row], {}),
        "sparse_union": Case(
            sparse_union.sparse_union_kernel, known | {"FIXED": True}, sparse_union.FIXED[row], {"again": "i32"}
        ),
        "sparse_union, running maximum": Case(
            sparse_union.sparse_union_kernel, known | {"FIXED": False}, sparse_union.RUNNING[row], {"again": "i32"}
        ),
        "sparse_backward": Case(sparse_backward.sparse_backward_kernel, tile, sparse_backward.LAUNCH[row], sums),
        "sparse_backward, one query": Case(
            sparse_backward.sparse_backward_kernel, single, sparse_backward.LAUNCH[row], sums
        ),
    }


def loss_cases(sm: int, shape: Shape = RELEASED, dtype: str = "bf16", gradients: bool = True) -> dict[str, Case]:
    """The indexer's losses and their gradients; gradients=False: without what only the backward pass needs."""
    row, j = f"sm_{sm}", shape.index_heads
    heads = max(2, triton.next_power_of_2(j))
    constants = {
        "HEADS": heads, "WIDTH": max(16, triton.next_power_of_2(shape.index_width)), "E": shape.width,
        "BLOCK_R": triton.next_power_of_2(shape.heads // shape.kv_heads), "w_j": 1, "B": 1,
        "BLOCK_K": triton.next_power_of_2(shape.topk), "PRECISION": "ieee" if dtype == "fp32" else "tf32",
    }  # fmt: skip
    rows = constants | {"QUERIES": min(8, max(1, warmup_lse.COLUMNS[row] // heads))}
    gathered = constants | {"HEADS": max(16, heads)}
    none = {} if gradients else {"dscore": None, "pulled": None}
    pointers = dict.fromkeys(("dk", "dloss"), "fp32")
    return {
        "selected_loss": Case(
            selected_loss.selected_loss_kernel, constants | none, selected_loss.FORWARD[row], pointers
        ),
        "selected_backward": Case(
            selected_backward.selected_dk_kernel, gathered, selected_backward.DK[row], {"dk": "i64", "dloss": "fp32"}
        ),
        "warmup_lse, heads": Case(warmup_lse.heads_kernel, rows, warmup_lse.HEADS_LAUNCH[row], pointers),
        "warmup_lse, rows": Case(warmup_lse.rows_kernel, rows, warmup_lse.ROWS_LAUNCH[row], pointers),
        "warmup_loss": Case(warmup_loss.loss_kernel, rows | none, warmup_loss.LAUNCH[row], pointers),
        "warmup_loss, dk": Case(warmup_loss.dk_kernel, rows, warmup_loss.DK[row], pointers),
    }


def decode_cases(sm: int, shape: Shape = RELEASED, start: bool = False, capacity: int = 131_072) -> dict[str, Case]:
    """The five kernels of a step at batch 1. start: with a tensor of first keys, else without."""
    row, topk, r = f"sm_{sm}", shape.topk, shape.heads // shape.kv_heads
    first = {"start_b": 1} if start else {"start": None, "start_b": 0}
    heads, width = (max(16, triton.next_power_of_2(n)) for n in (shape.index_heads, shape.index_width))
    table, (_, ranges) = decode_select.SCORES[row], decode_select.RANGES[row]
    keys = min(table["KEYS"], decode_select.MOST_PRODUCTS // heads)
    sizes = {"J": shape.index_heads, "I": shape.index_width, "HEADS": heads, "WIDTH": width, "KEYS": keys, "w_j": 1}
    lists = {"CAPACITY": triton.next_power_of_2(2 * topk), "RANGES": ranges, "BITS": ranges.bit_length() - 1}
    least, most = decode_select.SAMPLE[row]
    sample = {"SAMPLE": min(most, max(least, capacity // 32)), "RUN": decode_select.RUN, "LOWEST": decode_select.LOWEST}
    rows = {"lengths": "i32", "positions": "i32", "values": "fp32"}
    parts = {"m_parts": "fp32", "totals": "fp32", "accs": "fp32"}
    group = {"E": shape.width, "BLOCK_R": triton.next_power_of_2(r), "BLOCK_P": 32}
    return {
        "decode_select, scores": Case(
            decode_select.decode_scores_kernel, sizes | first | {"CHUNK": table["CHUNK"][0]},
            {name: value for name, value in table.items() if name.startswith("num_")}, rows,
        ),
        "decode_select, filter": Case(
            decode_select.decode_filter_kernel, lists | sample | first, decode_select.FILTER[row], rows
        ),
        "decode_select, finish": Case(
            decode_select.decode_finish_kernel, lists | first, decode_select.FINISH[row], rows | {"out": "i32"}
        ),
        "decode_attention": Case(decode_attention.decode_attention_kernel, group, decode_attention.LAUNCH[row], parts),
        "decode_attention, combine": Case(
            decode_attention.decode_combine_kernel, group, decode_attention.COMBINE[row], parts
        ),
    }  # fmt: skip


def prefill_cases(sm: int, shape: Shape = RELEASED, of: int = 128, chosen: int = 8) -> dict[str, Case]:
    """What surrounds attention."""
    row = f"sm_{sm}"
    sizes = heads.sizes(shape.heads, shape.kv_heads, shape.width, shape.index_heads, shape.index_width)
    rotations = dict.fromkeys(("cos", "sin", "index_cos", "index_sin", "gates"), "fp32")
    choice = {"X": of, "C": chosen, "EXPERTS": triton.next_power_of_2(of), "CHOICES": triton.next_power_of_2(chosen)}
    chosen_by = {"logits": "fp32", "probabilities": "fp32", "weights": "fp32", "chosen": "i64"}
    moved = {"place": "i64", "weights": "fp32"}
    return {
        "router": Case(router.choose_kernel, choice, router.LAUNCH[row], chosen_by),
        "experts, swiglu": Case(experts.swiglu_kernel, {}, experts.SWIGLU[row], {}),
        "experts, sum": Case(experts.weighted_sum_kernel, {"C": chosen}, experts.SUM[row], moved),
        "heads": Case(heads.place_heads_kernel, sizes, heads.LAUNCH[row], rotations),
    }


def all_cases(sm: int, start: bool = False) -> dict[str, Case]:
    """Every kernel at the released shapes."""
    prefill = attention_cases(sm) | loss_cases(sm) | prefill_cases(sm)
    return index_cases(sm, start=start) | prefill | decode_cases(sm, start=start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("assets/results/kernels_compiled.json"))
    options = parser.parse_args()
    rows = []
    for sm in (90, 80):
        for name, case in all_cases(sm).items():
            made = compile_case(case, sm)
            used = {"registers": made.registers, "spilled_bytes": made.spilled, "shared_bytes": made.shared}
            rows.append({"kernel": name, "architecture": f"sm_{sm}", "warps": case.launch["num_warps"], **used})
            print(rows[-1], flush=True)
    hopper = [row for row in rows if row["architecture"] == "sm_90"]
    summary = {"kernels": len(hopper), "spilled_bytes": sum(row["spilled_bytes"] for row in rows)}
    summary["most_registers_sm_90"] = max(row["registers"] for row in hopper)
    summary["most_shared_bytes_sm_90"] = max(row["shared_bytes"] for row in hopper)
    what = "registers, spills and shared memory of every kernel, released shapes, bfloat16, compiled without a GPU"
    write_result(
        options.out,
        what,
        "python -m minikeye.evaluation.kernels.compiled",
        rows,
        summary,
        [],
        packages=("torch", "triton"),
    )


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
