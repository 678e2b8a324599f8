"""index_scores, select_topk and select_fast in Triton's interpreter. test_interpreted_losses.py runs this file.

Axes: b batch, t query position, s key position, j indexer head, i indexer width, k selected key.
"""

import math

import error_bounds
import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder

from minikeye import ops
from minikeye.evaluation.kernels.workload import process
from minikeye.kernels.selection import bit_lists, sampled_bound, select_fast, select_topk
from minikeye.kernels.selection import index_scores as scores_module
from minikeye.kernels.selection.index_scores import INTERPRETED, index_scores

SELECTIONS = {"radix": select_topk.select_rows, "fast": select_fast.select_rows_fast}
WHOLE = {"radix": select_topk.select_topk, "fast": select_fast.select_topk_fast}
FIRST_KEY = {
    "none": lambda b, t, s: None,
    "row": lambda b, t, s: torch.arange(b) * (s // 3),
    "query": lambda b, t, s: torch.randint(0, s, (b, t)),
}


def first_key(kind: str, b: int, t: int, s: int) -> torch.Tensor | None:
    return FIRST_KEY[kind](b, t, s)


def draw(b: int, t: int, s: int, j: int, i: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
    return tuple(torch.randn(shape).to(dtype) for shape in ((b, t, j, i), (b, s, i), (b, t, j)))


def whole_numbers(b: int, t: int, s: int, j: int, i: int) -> tuple[torch.Tensor, ...]:
    """-2 .. 2, and i a power of four: float32 holds the scores exactly, in whatever order it adds."""
    assert math.isqrt(i) ** 2 == i
    return tuple(torch.randint(-2, 3, shape).float() for shape in ((b, t, j, i), (b, s, i), (b, t, j)))


def scores64(q: torch.Tensor, k: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    q, k, w = q.double(), k.double(), w.double()
    return torch.einsum("btj,btjs->bts", w, torch.einsum("btji,bsi->btjs", q, k).relu()) * q.shape[-1] ** -0.5


def sorted_by_hand(scores: torch.Tensor, topk: int, offset: int, start: torch.Tensor | None) -> torch.Tensor:
    """The rule as a loop: highest first, among equals the smaller position; the first topk of these, ascending."""
    out = torch.full((*scores.shape[:2], topk), -1, dtype=torch.int32)
    for b, rows in enumerate(scores.tolist()):
        for t, row in enumerate(rows):
            begin = 0 if start is None else int(start[b] if start.ndim == 1 else start[b, t])
            valid = [s for s in range(begin, min(len(row), offset + t + 1)) if row[s] > -math.inf]
            best = sorted(sorted(valid, key=lambda s, row=row: (-row[s], s))[:topk])
            out[b, t, : len(best)] = torch.tensor(best, dtype=torch.int32)
    return out


def poisoned(scores: torch.Tensor, offset: int, start: torch.Tensor | None) -> torch.Tensor:
    """Scores with NaN wherever no selection may look."""
    valid = ops.valid_keys(scores.shape[1], scores.shape[2], offset, start)
    return scores.masked_fill(~valid, torch.nan)


def test_this_is_the_interpreter() -> None:
    assert INTERPRETED


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    ("b", "t", "s", "j", "i", "offset", "kind"),
    [
        (1, 1, 1, 1, 16, 0, "none"),
        (2, 21, 100, 3, 24, 79, "row"),
        (1, 33, 70, 16, 64, 40, "query"),
        (2, 9, 128, 5, 7, 119, "none"),
        (1, 3, 40, 48, 16, 20, "query"),
        (1, 17, 17, 4, 32, -1, "none"),
        (1, 5, 20, 2, 16, 100, "row"),
    ],
)
def test_scores_are_near_float64(b, t, s, j, i, offset, kind, dtype) -> None:
    q, k, w = draw(b, t, s, j, i, dtype)
    start = first_key(kind, b, t, s)
    found = index_scores(q, k, w, offset, start)
    assert found.dtype == torch.float32
    exact = scores64(q, k, w).masked_fill(~ops.valid_keys(t, s, offset, start), -torch.inf)
    error_bounds.assert_within(found, exact, error_bounds.index_scores(q, k, w).error)


def test_only_valid_keys_are_written_and_only_tiles_with_one_computed(monkeypatch) -> None:
    b, t, s, offset = 2, 21, 128, 40
    q, k, w = draw(b, t, s, 4, 16)
    start = torch.tensor([0, 50])
    fresh = index_scores(q, k, w, offset, start)
    products, product = [], InterpreterBuilder.create_dot
    monkeypatch.setattr(InterpreterBuilder, "create_dot", lambda *a: (products.append(1), product(*a))[1])
    buffer = torch.full((b, t, 160), torch.nan)
    used = index_scores(q, k, w, offset, start, out=buffer[:, :, :s])
    valid = ops.valid_keys(t, s, offset, start)
    assert torch.equal(used[valid], fresh[valid])
    assert used[~valid].isnan().all() and buffer[:, :, s:].isnan().all()
    # 8 queries, tiles of 16 keys: row 0 sees keys up to 47, 55, 60; row 1 from 50, so from the tile at 48 on.
    assert len(products) == (3 + 4 + 4) + (0 + 1 + 1)


def test_queries_keys_and_gates_may_be_slices() -> None:
    q, k, w = draw(2, 20, 60, 6, 32)
    want = index_scores(q[:, 4:15, 1:4, :16].contiguous(), k[:, ::2, 16:].contiguous(), w[:, 4:15, 1:4].contiguous(), 8)
    assert torch.equal(index_scores(q[:, 4:15, 1:4, :16], k[:, ::2, 16:], w[:, 4:15, 1:4], 8), want)


@triton.jit
def twice_maximum(z):
    return 2.0 * tl.maximum(z, 0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_an_addition_gives_the_bits_of_a_maximum(dtype, monkeypatch) -> None:
    q, k, w = draw(1, 9, 90, 16, 64, dtype)
    q[:, :3], k[:, :40] = q[:, :3] * 1e-3, k[:, :40] * 1e-3
    w[:, ::2] *= 2.0**-100  # products and sums down to what float32 holds with fewer bits
    found = index_scores(q, k, w, 81)
    monkeypatch.setattr(scores_module, "twice_relu", twice_maximum)
    assert torch.equal(found.view(torch.int32), index_scores(q, k, w, 81).view(torch.int32))


def test_an_addition_is_a_maximum_at_the_ends_of_float32() -> None:
    """One head of width 1, whose product is the key itself. Eight queries: an absent one would be 0 times infinity."""
    keys = [0.0, -0.0, 1e-45, -1e-45, 1e-39, -1e-39, 1.1754944e-38, 1.5, -1.5, 1.7e38, -1.7e38, -3.4e38, math.inf]
    gates = torch.tensor([1.0, -1.0, 3.0, -0.3, 1e-30, 7e20, 0.1, 2.0**-125]).reshape(1, -1, 1)
    k, q = torch.tensor(keys).reshape(1, -1, 1), torch.ones(1, gates.shape[1], 1, 1)
    with np.errstate(all="ignore"):  # NumPy tells of every infinity
        found = index_scores(q, k, gates, offset=k.shape[1])
        of_nan = index_scores(q, torch.full_like(k, torch.nan), gates, offset=k.shape[1])
    assert torch.equal(found, gates * k.mT.relu())
    assert of_nan.isnan().all()  # as in torch


def special(b: int, t: int, s: int) -> torch.Tensor:
    most = torch.finfo(torch.float32).max
    values = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-44, -1e-44, most, -most, 1.0, -1.0, 1.0000001])
    return values[torch.randint(0, len(values), (b, t, s))]


KINDS = {
    "normal": torch.randn,
    "half steps": lambda *shape: (torch.randn(shape) * 2).round() / 2,  # more than topk ties at the threshold
    "all equal": lambda *shape: torch.full(shape, -0.25),
    "zeros of both signs": lambda *shape: torch.where(torch.rand(shape) < 0.5, 0.0, -0.0),
    "special": special,
    "few finite": lambda *shape: torch.randn(shape).masked_fill(torch.rand(shape) < 0.93, -torch.inf),
    "last bit": lambda *shape: 1 + torch.randint(0, 40, shape) * 2**-23,
    "rising": lambda b, t, s: torch.arange(float(s)).expand(b, t, s).contiguous(),
}


# Every kind of score without a first key and with one; a first key a row, and topk beyond the length, are about
# addresses and masks and not about scores.
ROWS = [(shape, kind) for kind in KINDS for shape in ((1, 2, 100, 16, 98, "none"), (1, 2, 70, 4, 68, "query"))]
ROWS += [(shape, "few finite") for shape in ((2, 1, 75, 5, 60, "row"), (1, 2, 20, 24, 10, "none"))]


@pytest.mark.parametrize("name", SELECTIONS)
@pytest.mark.parametrize(("shape", "kind"), ROWS, ids=str)
def test_selection_is_the_stable_sort(shape, kind, name) -> None:
    b, t, s, topk, offset, first = shape
    start = first_key(first, b, t, s)
    scores = KINDS[kind](b, t, s)
    out = torch.full((b, t, topk), 12345, dtype=torch.int32)
    found = SELECTIONS[name](poisoned(scores, offset, start), topk, offset, start, out=out)
    assert found is out
    assert found.tolist() == sorted_by_hand(scores, topk, offset, start).tolist()
    masked = scores.masked_fill(~ops.valid_keys(t, s, offset, start), -torch.inf)
    assert torch.equal(found, ops.topk_positions(masked, topk))


@pytest.mark.parametrize("name", SELECTIONS)
def test_selection_of_slices_and_of_rows_without_keys(name) -> None:
    scores = torch.randn(3, 4, 96)[1:, 1:3, :90]
    start = torch.tensor([[95, 0], [40, 88]], dtype=torch.int32)
    want = sorted_by_hand(scores, 16, 60, start)
    assert (want[0, 0] == -1).all() and (want[1, 1] == -1).all()
    assert torch.equal(SELECTIONS[name](scores, 16, 60, start), want)


def marks_of(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Collects which rows the fast selection hands to the radix select."""
    marks, launch = [], select_fast.launch_select

    def marked(*arguments, only: torch.Tensor) -> None:
        marks.append(only.clone())
        launch(*arguments, only=only)

    monkeypatch.setattr(select_fast, "launch_select", marked)
    return marks


def test_rows_that_mislead_the_sample_are_done_again(monkeypatch) -> None:
    marks = marks_of(monkeypatch)
    scores = torch.stack([torch.zeros(400), torch.rand(400), torch.randn(400), torch.randn(400)])[None]
    scores[0, 1, sampled(400, 16)[:8]] += 100  # the bound comes out so high that 8 keys pass where 16 are needed
    scores[0, 2, 30:] = -torch.inf  # fewer valid keys than the length promises
    found = select_fast.select_rows_fast(scores, 16, 400)
    assert torch.equal(found, sorted_by_hand(scores, 16, 400, None))
    assert marks[0][0, :2].tolist() == [-1, -1]  # 400 ties fit no list of 32 candidates


def sampled(s: int, topk: int) -> torch.Tensor:
    """Positions of the sampled keys: keys of width 3 that hold their position are picked out."""
    k = torch.arange(float(s)).reshape(1, s, 1).expand(2, s, 3) + torch.tensor([0.0, 0.25]).reshape(2, 1, 1)
    found = sampled_bound.sampled_keys(k.contiguous(), topk)
    assert torch.equal(found, found[:1, :, :1] + torch.tensor([0.0, 0.25]).reshape(2, 1, 1).expand(2, 1, 3))
    return found[0, :, 0].long()


def test_one_key_of_every_stretch_is_sampled(monkeypatch) -> None:
    monkeypatch.setitem(sampled_bound.STRETCH, "interpreter", sampled_bound.STRETCH["sm_90"])
    for s, topk, stretch in ((131_072, 2048, 16), (1000, 512, 8), (4099, 16, 4), (2**20, 2048, 64)):
        assert torch.equal(sampled(s, topk) // stretch, torch.arange(s // stretch))
    at = sampled(131_072, 2048)
    golden = (math.sqrt(5) - 1) / 2
    assert at[:200].tolist() == [16 * n + int(16 * (n * golden % 1)) for n in range(200)]
    assert (at[1000:1400] % 16).bincount().tolist() == pytest.approx([25] * 16, abs=2), "every place alike, anywhere"


def smooth(rho: float, s: int) -> torch.Tensor:
    return process(s, 1, rho, "cpu").mT.contiguous()


LONG = {  # rows [1 1 s] that must not miss their bound
    "normal": lambda s: torch.randn(1, 1, s),
    "runs of 64 alike": lambda s: torch.randn(1, 1, s // 64).repeat_interleave(64, dim=-1) + torch.randn(1, 1, s) / 4,
    "smooth": lambda s: smooth(0.9925, s),
    "half smooth": lambda s: smooth(0.9, s),
    "many ties": lambda s: (torch.randn(1, 1, s) * 4).round() / 4,
    "period of 16": lambda s: torch.arange(s).remainder(16) + torch.randn(1, 1, s) / 8,
    "period of 256": lambda s: torch.arange(s).remainder(256) // 16 * torch.ones(1, 1, 1) + torch.randn(1, 1, s) / 8,
    "one stretch of high scores": lambda s: torch.randn(1, 1, s) + 9.0 * (torch.arange(s) // 2100 == 31),
}
BEYOND = {  # rows of more ties than a list holds: done again
    "constant": lambda s: torch.full((1, 1, s), 0.5),
    "sawtooth": lambda s: torch.arange(s).remainder(16).float().expand(1, 1, s).contiguous(),
}


@pytest.mark.parametrize("kind", LONG | BEYOND)
def test_at_full_length_with_the_launch_parameters_of_a_gpu(kind, monkeypatch) -> None:
    tables = select_topk.LAUNCH, sampled_bound.STRETCH, select_fast.FILTER, bit_lists.LIST, select_fast.PICK
    for table in tables:
        monkeypatch.setitem(table, "interpreter", table["sm_90"])
    marks = marks_of(monkeypatch)
    s, topk = 131_072, 2048
    scores = (LONG | BEYOND)[kind](s).float()
    found = select_fast.select_rows_fast(scores, topk, s)
    assert torch.equal(found, ops.topk_positions(scores, topk))
    assert marks[0].ge(0).all() == (kind in LONG), "a sample of 8192 finds a bound for keys like these"


@pytest.mark.parametrize("chance", [0.02, 0.5, 1.0])
def test_bits_are_listed_in_order(chance) -> None:
    """Lists that just fit, that are too long, and of rows with a first key or none at all; words with every bit set."""
    b, t, s, capacity = 2, 5, 200, 128
    bits = torch.rand(b, t, s) < chance
    bits[..., 64:96] = True
    bits &= ops.valid_keys(t, s, 190, torch.tensor([0, 37]))
    words = torch.nn.functional.pad(bits, (0, 24)).reshape(b, t, 7, 32).int()
    bitmap = (words << torch.arange(32, dtype=torch.int32)).sum(-1, dtype=torch.int32)
    candidates, passed = torch.full((b, t, capacity), -7, dtype=torch.int32), torch.empty(b, t, dtype=torch.int32)
    start = torch.tensor([0, 37])
    bit_lists.list_kernel[(t, b)](
        start, bitmap, candidates, passed, t, s, 7, 190, 1, 0, CAPACITY=capacity, **bit_lists.LIST["interpreter"]
    )
    assert torch.equal(passed, bits.sum(-1))
    for row, count, listed in zip(bits.flatten(0, 1), passed.flatten(), candidates.flatten(0, 1), strict=True):
        if count <= capacity:
            assert listed[:count].tolist() == row.nonzero().flatten().tolist()


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize(
    ("b", "t", "s", "j", "i", "topk", "offset", "first", "dtype"),
    [
        (1, 1, 90, 4, 16, 16, 89, "none", torch.float32),  # one token of decoding
        (3, 1, 50, 4, 16, 8, 49, "row", torch.bfloat16),
        (2, 11, 60, 3, 16, 8, 49, "query", torch.float16),
        (1, 12, 12, 2, 64, 16, 0, "none", torch.float32),  # fewer keys than topk
        (2, 9, 37, 16, 64, 4, 30, "row", torch.float32),  # offset + t runs past the last key
    ],
)
def test_select_topk_equals_torch_bit_by_bit(b, t, s, j, i, topk, offset, first, dtype, name, monkeypatch) -> None:
    monkeypatch.setattr(select_topk, "SLAB_BYTES", 9 * 4 * 96)  # a few rows a slab: slabs of queries and of batch rows
    q, k, w = (x.to(dtype) for x in whole_numbers(b, t, s, j, i))
    start = first_key(first, b, t, s)
    found = WHOLE[name](q, k, w, topk, offset, start)
    want = ops.select_topk(q, k, w, topk, offset, start, backend="torch")
    assert found.dtype == want.dtype and torch.equal(found, want)


@pytest.mark.parametrize("name", WHOLE)
def test_select_topk_on_real_numbers_picks_the_best_up_to_rounding(name) -> None:
    b, t, s, topk = 1, 3, 110, 16
    q, k, w = draw(b, t, s, 4, 32)
    found = WHOLE[name](q, k, w, topk, s - t)
    exact = scores64(q, k, w).masked_fill(~ops.valid_keys(t, s, s - t, None), -torch.inf)
    kth = exact.topk(topk).values[..., -1:]
    slack = 2 * error_bounds.index_scores(q, k, w).error.max()  # one may be as much too high as another is too low
    assert (exact.gather(-1, found.long()) >= kth - slack).all()
    assert (found.diff(dim=-1) > 0).all()
    assert torch.equal(found, ops.topk_positions(index_scores(q, k, w, s - t), topk))
    assert torch.equal(found, WHOLE[name](q, k, w, topk, s - t))


def test_nothing_to_do_gives_empty_or_minus_one() -> None:
    for whole in WHOLE.values():
        q, k, w = draw(1, 3, 5, 2, 16)
        assert whole(q[:, :0], k, w[:, :0], 4).shape == (1, 0, 4)
        assert whole(q, k[:, :0], w, 4).tolist() == [[[-1] * 4] * 3]
        assert whole(q, k, w, 2, offset=-3).tolist() == [[[-1] * 2] * 3]


def test_wrong_input_is_refused_by_name() -> None:
    q, k, w = draw(2, 3, 5, 2, 16)
    bad = {
        r"expected q \[b t j i\]": (q, k[:1], w, 4),
        r"w \[b t j\]; got": (q, k, w[..., :1], 4),
        "must share one of": (q, k.half(), w, 4),
        "w must be float32": (q, k, w.double(), 4),
        "stride 1": (q, k.mT.contiguous().mT, w, 4),
        "topk must be at least 1": (q, k, w, 0),
        r"start must be int32 or int64 \[2\] or \[2, 3\]": (q, k, w, 4, 0, torch.zeros(3, dtype=torch.int64)),
        "start must be int32 or int64": (q, k, w, 4, 0, torch.zeros(2)),
        "heads of width": (q.new_zeros(2, 3, 2, 300), k.new_zeros(2, 5, 300), w, 4),
    }
    for whole in WHOLE.values():
        for message, arguments in bad.items():
            with pytest.raises(ValueError, match=message):
                whole(*arguments)
    for select in SELECTIONS.values():
        with pytest.raises(ValueError, match=r"scores must be float32 \[b t s\]"):
            select(torch.zeros(1, 2, 8, dtype=torch.float64), 4)
        with pytest.raises(ValueError, match="out must be contiguous int32"):
            select(torch.zeros(1, 2, 8), 4, out=torch.zeros(1, 2, 4))
    with pytest.raises(ValueError, match="out must be float32"):
        index_scores(q, k, w, out=torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="topk up to 4096"):
        select_fast.select_rows_fast(torch.zeros(1, 2, 8), 5000)
