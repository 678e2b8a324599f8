"""Every kernel compiled for Hopper and Ampere: registers, spills, shared memory, and the instructions that matter."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

pytest.importorskip("triton")

from minikeye.evaluation.kernels.compiled import all_cases, attention_cases, compile_case, index_cases, prefill_cases
from minikeye.evaluation.kernels.workload import Shape

ROOT = Path(__file__).resolve().parents[2]
# At the released shapes, by architecture: registers a thread and bytes of shared memory, at most. On sm_90 four
# programs of 128 threads share a multiprocessor's 65,536 registers where a thread has 128.
CEILING = {
    "index_scores": {90: (128, 45_056), 80: (168, 45_056)},
    "select_topk": {90: (128, 16_384), 80: (128, 16_384)},
    "select_fast, sample": {90: (48, 1_024), 80: (48, 1_024)},
    "select_fast, threshold": {90: (64, 1_024), 80: (64, 1_024)},
    "select_fast, filter": {90: (48, 1_024), 80: (48, 1_024)},
    "select_fast, list": {90: (80, 1_024), 80: (80, 1_024)},
    "select_fast, pick": {90: (80, 1_024), 80: (80, 1_024)},
    "sparse_forward": {90: (128, 20_480), 80: (128, 20_480)},
    "sparse_union, mark": {90: (80, 8_192), 80: (80, 8_192)},
    "sparse_union, compact": {90: (112, 1_024), 80: (80, 1_024)},
    "sparse_union": {90: (128, 50_176), 80: (168, 40_960)},
    "sparse_union, running maximum": {90: (128, 50_176), 80: (168, 40_960)},
    "sparse_backward": {90: (255, 81_920), 80: (255, 90_112)},  # two programs a multiprocessor of sm_90
    "sparse_backward, one query": {90: (240, 45_056), 80: (255, 36_864)},
    "selected_loss": {90: (128, 40_960), 80: (128, 16_384)},  # four programs of 128 threads a multiprocessor
    "selected_backward": {90: (96, 20_480), 80: (96, 20_480)},
    "warmup_lse, heads": {90: (128, 50_176), 80: (128, 45_056)},
    "warmup_lse, rows": {90: (128, 36_864), 80: (136, 28_672)},
    "warmup_loss": {90: (240, 90_112), 80: (255, 28_672)},
    "warmup_loss, dk": {90: (240, 81_920), 80: (240, 24_576)},
    "router": {90: (96, 1_024), 80: (96, 1_024)},
    "experts, swiglu": {90: (40, 0), 80: (40, 0)},
    "experts, sum": {90: (40, 0), 80: (40, 0)},
    "heads": {90: (96, 1_024), 80: (96, 1_024)},
    "decode_select, scores": {90: (64, 53_248), 80: (72, 36_864)},
    "decode_select, filter": {90: (80, 1_024), 80: (80, 1_024)},
    "decode_select, finish": {90: (128, 16_384), 80: (128, 16_384)},
    "decode_attention": {90: (112, 20_480), 80: (128, 20_480)},
    "decode_attention, combine": {90: (48, 4_096), 80: (48, 4_096)},
}
OF_ATTENTION = [name for name in CEILING if name.startswith("sparse") and not name.endswith(("mark", "compact"))]


@pytest.mark.parametrize("sm", [90, 80])
@pytest.mark.parametrize("name", CEILING)
def test_released_shapes(name, sm):
    made = compile_case(all_cases(sm)[name], sm)
    registers, shared = CEILING[name][sm]
    assert made.spilled == 0 and made.registers <= registers and made.shared <= shared, made


def test_every_kernel_has_a_ceiling():
    assert list(CEILING) == list(all_cases(90))


def test_the_result_is_of_these_kernels():
    """assets/results/kernels_compiled.json: rows of all of them, no spills. The numbers vary with Triton's version."""
    rows = json.loads((ROOT / "assets/results/kernels_compiled.json").read_text())["rows"]
    assert [row["kernel"] for row in rows] == 2 * list(CEILING)
    assert not any(row["spilled_bytes"] for row in rows)


def test_heads_are_added_up_inside_a_thread():
    made = compile_case(index_cases(90)["index_scores"], 90)
    assert "wgmma.mma_async" in made.ptx and "shfl" not in made.ptx
    assert "max.f32" not in made.ptx and "max.NaN.f32" not in made.ptx, "ReLU is an addition"
    loop = made.ttgir[made.ttgir.index("scf.for") : made.ttgir.index("scf.yield")]
    assert "local_alloc" not in loop, "the queries must be put into shared memory once, not once a tile"


def test_the_filter_loads_16_bytes_at_a_time():
    assert re.search(r"ld\.global\S*\.v4", compile_case(index_cases(90)["select_fast, filter"], 90).ptx)


def test_the_list_is_written_without_a_way_round_through_shared_memory():
    ttgir = compile_case(index_cases(90)["select_fast, list"], 90).ttgir
    words = ttgir[ttgir.index("scf.for") : ttgir.index("scf.yield")]
    assert "tt.store" in words and "convert_layout" not in ttgir
    assert ttgir.count("barrier") >= 3


def test_the_union_is_multiplied_by_warp_groups():
    made = compile_case(attention_cases(90)["sparse_union"], 90)
    assert "wgmma.mma_async" in made.ptx and "cp.async" in made.ptx
    loop = made.ttgir[made.ttgir.index("scf.for") : made.ttgir.index("scf.yield")]
    converted = [line for line in loop.splitlines() if "convert_layout" in line]
    assert len(converted) == 1 and "dot_op" in converted[0], "weights are summed where they are, and multiplied there"


def test_gradients_of_keys_are_multiplied_by_warp_groups_and_added_side_by_side():
    """A warp's 32 lanes add to 32 neighbouring channels of one key, one integer each: whole sectors of memory."""
    made = compile_case(attention_cases(90)["sparse_backward"], 90)
    assert "mma.sync" not in made.ptx and len(re.findall(r"(?:red|atom)\.\S*add\.u64", made.ptx)) == 2 * 32 * 128 // 128
    assert "v2.u64" not in made.ptx
    (layout,) = set(re.findall(r"atomic_rmw add.*(#blocked\d*)>, tensor", made.ttgir))
    (lanes,) = re.findall(rf"^{layout} = .*", made.ttgir, re.MULTILINE)
    assert "sizePerThread = [1, 1], threadsPerWarp = [32, 1]" in lanes  # channels are the first axis


@pytest.mark.parametrize("sm", [90, 80])
def test_rows_of_experts_move_16_bytes_at_a_time(sm):
    for name, loads in (("experts, swiglu", 2), ("experts, sum", 9)):  # gate and up; eight experts and the residual
        ptx = compile_case(prefill_cases(sm)[name], sm).ptx
        assert len(re.findall(r"ld\.global\S*\.v4", ptx)) == loads and len(re.findall(r"st\.global\S*\.v4", ptx)) == 1


def test_a_token_is_loaded_before_anything_is_added_up():
    """All that its program reads of the projections is on its way when the first sum waits."""
    ptx = compile_case(prefill_cases(90)["heads"], 90).ptx
    first_sum = ptx.index("shfl.sync")
    assert ptx[:first_sum].count(".v4") >= 8 and "st.global" not in ptx[:first_sum]


def test_one_token_is_enough():
    """As `test_one_key_is_enough`: a launch with one row compiles other code."""
    for name, ones in (("router", {"N": 1}), ("experts, swiglu", {"R": 1})):
        case = prefill_cases(90)[name]
        made = compile_case(dataclasses.replace(case, constants=case.constants | ones), 90)
        assert made.spilled == 0 and "st.global.v4" in made.ptx, name


@pytest.mark.parametrize(
    ("shape", "experts", "chosen"),
    [(Shape(heads=64, kv_heads=8, index_heads=64), 256, 1), (Shape(heads=6, kv_heads=3, width=24), 60, 6)],
)
def test_other_layers_do_not_spill(shape, experts, chosen):
    for name, case in prefill_cases(90, shape, experts, chosen).items():
        for dtype in ("bf16", "fp32"):
            assert compile_case(case, 90, dtype).spilled == 0, (name, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("heads", "width", "topk", "sm"),
    [
        *((4, 128, 2048, 90), (16, 128, 4096, 90), (32, 128, 2048, 90), (64, 128, 2048, 90), (32, 256, 2048, 90)),
        *((256, 256, 64, 90), (16, 128, 4096, 80), (256, 256, 64, 80)),
    ],
)
def test_other_indexers_do_not_spill(heads, width, topk, sm):
    """With a first key for each query, too. On sm_80: the most registers, and the most shared memory."""
    shape = Shape(index_heads=heads, index_width=width, topk=topk)
    for name, case in index_cases(sm, shape, start=True).items():
        made = compile_case(case, sm)
        assert made.spilled == 0 and made.shared <= {90: 227, 80: 163}[sm] * 1024, name


def test_one_key_is_enough():
    """Triton takes an integer argument of 1 for a constant of the program: other code than for 2, and no tensor."""
    sm = 90  # the constant goes in before the code is made for an architecture
    for name in ("select_topk", "select_fast, threshold", "select_fast, pick", "decode_select, filter"):
        case = all_cases(sm)[name]
        ones = {parameter.name: 1 for parameter in case.kernel.params if parameter.name in ("aim", "topk")}
        assert ones
        made = compile_case(dataclasses.replace(case, constants=case.constants | {"CAPACITY": 2} | ones), sm)
        assert made.spilled == 0, name


SHAPES = [  # the most and the fewest heads a group, with the widest and the narrowest; a number that is no power of 2
    (Shape(heads=64), "fp16"),
    (Shape(heads=4, width=16, topk=4096), "bf16"),
    (Shape(heads=20, width=64), "bf16"),
    (Shape(width=64), "fp32"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "dtype"), SHAPES, ids=str)
@pytest.mark.parametrize("name", OF_ATTENTION)
def test_other_heads_compile(name, shape, dtype):
    """Group sizes, widths and dtypes that the door lets in; half a kilobyte spilled is slow, not wrong."""
    made = compile_case(attention_cases(90, shape)[name], 90, dtype)
    assert made.shared <= 227 * 1024
    assert made.spilled <= (64 if dtype != "fp32" else 2**15), made
