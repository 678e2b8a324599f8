"""decode_select in Triton's interpreter. test_interpreted_attention.py runs this file elsewhere.

Axes: b batch, s key position, j indexer head, i indexer width, k selected key.
Oracles: ops (torch), a loop for the rule, float64 for the scores. What a kernel leaves unwritten is nan: see `poison`.
"""

import math

import error_bounds
import pytest
import torch

from minikeye import ops
from minikeye.kernels.decode import decode_select as selection
from minikeye.kernels.decode.decode_select import decode_select
from minikeye.kernels.launch import INTERPRETED

pytestmark = pytest.mark.usefixtures("poison")
CAPACITY = 150  # keys of the cache: ten tiles, chunks and blocks, the last of each cut off
# None, one, topk - 1, topk, topk + 1, more, near and at capacity; alone and beside others.
LENGTHS = [(0,), (1,), (7,), (8,), (9,), (33,), (149,), (150,), (0, 150), (149, 9), (8, 120, 5), (33, 0, 1)]


def test_this_is_the_interpreter() -> None:
    assert INTERPRETED


def draw(b, s=CAPACITY, j=4, i=16, dtype=torch.float32):
    return tuple(torch.randn(shape).to(dtype) for shape in ((b, 1, j, i), (b, s, i), (b, 1, j)))


def whole_numbers(b, s=CAPACITY, j=4, i=16, dtype=torch.float32):
    """-2 .. 2, and i a power of four: float32 holds the scores exactly, in whatever order it adds. Many ties."""
    assert math.isqrt(i) ** 2 == i
    return tuple(torch.randint(-2, 3, shape).to(dtype) for shape in ((b, 1, j, i), (b, s, i), (b, 1, j)))


def from_scores(scores):
    """q, k, w of which row b's index scores are scores[b], given that these are not negative; NaN stays NaN."""
    b = len(scores)
    q, w = torch.zeros(b, 1, 2, 16), torch.ones(b, 1, 2)
    q[:, :, 0, 0] = 4  # i^-1/2 takes it back
    return q, torch.nn.functional.pad(scores[..., None], (0, 15)), w


def hide(k, lengths, start=None):
    """The cache with NaN wherever no row may look."""
    s = torch.arange(k.shape[1])
    valid = s < lengths[:, None]
    if start is not None:
        valid &= s >= start[:, None]
    return k.masked_fill(~valid[..., None], torch.nan)


def by_torch(q, k, w, topk, lengths, start=None):
    """ops.select_topk, one row after another: a row's query stands on its last key."""
    rows = []
    for b, length in enumerate(lengths.tolist()):
        row, first = slice(b, b + 1), None if start is None else start[b : b + 1]
        rows.append(ops.select_topk(q[row], k[row], w[row], topk, length - 1, first, backend="torch"))
    return torch.cat(rows)


def by_hand(scores, topk, lengths, start=None):
    """The rule as a loop: highest first, among equals the smaller position; the first topk of these, ascending."""
    out = torch.full((len(scores), 1, topk), -1, dtype=torch.int32)
    for b, row in enumerate(scores.tolist()):
        span = range(0 if start is None else int(start[b]), int(lengths[b]))
        valid = [s for s in span if row[s] > -math.inf]
        best = sorted(sorted(valid, key=lambda s, row=row: (-row[s], s))[:topk])
        out[b, 0, : len(best)] = torch.tensor(best, dtype=torch.int32)
    return out


@pytest.fixture
def missed(monkeypatch):
    """Counts the rows that go to the radix select."""
    rows, radix = [], selection.select_kernel

    def counted(*arguments):
        rows.append(1)
        return radix(*arguments)

    monkeypatch.setattr(selection, "select_kernel", counted)
    return rows


@pytest.mark.parametrize("lengths", LENGTHS, ids=str)
def test_equals_torch_bit_by_bit(lengths) -> None:
    q, k, w = whole_numbers(len(lengths))
    lengths = torch.tensor(lengths, dtype=torch.int32)
    found = decode_select(q, hide(k, lengths), w, 8, lengths)
    want = by_torch(q, k, w, 8, lengths)
    assert found.dtype == want.dtype and torch.equal(found, want)


def test_start() -> None:
    """In the first tile, in the last, at a tile's border, at the end of the row, behind it, and before 0."""
    lengths = torch.tensor([150, 150, 100, 60, 60, 40], dtype=torch.int32)
    start = torch.tensor([3, 145, 32, 60, 77, 0], dtype=torch.int32)
    q, k, w = whole_numbers(6)
    want = by_torch(q, k, w, 8, lengths, start)
    assert (want[3:5] == -1).all() and want[1, 0, -1] == -1
    assert torch.equal(decode_select(q, hide(k, lengths, start), w, 8, lengths, start), want)
    q, k, w, lengths = q[:1], k[:1], w[:1], lengths[:1]
    assert torch.equal(decode_select(q, k, w, 8, lengths, torch.tensor([-9])), by_torch(q, k, w, 8, lengths))


@pytest.mark.parametrize(
    ("j", "i", "dtype", "topk"),
    [
        (1, 16, torch.float32, 40),
        (3, 64, torch.float16, 5),
        (16, 64, torch.bfloat16, 40),
        (5, 4, torch.float16, 40),
        (48, 16, torch.float32, 5),
    ],
)
def test_indexers(j, i, dtype, topk) -> None:
    q, k, w = whole_numbers(2, j=j, i=i, dtype=dtype)
    lengths = torch.tensor([140, 90], dtype=torch.int32)
    start = torch.tensor([0, 20])
    found = decode_select(q, hide(k, lengths, start), w, topk, lengths, start)
    assert torch.equal(found, by_torch(q, k, w, topk, lengths, start))


KINDS = {
    "random": lambda b: torch.rand(b, CAPACITY),
    "few values": lambda b: torch.randint(0, 3, (b, CAPACITY)).float(),
    "all equal": lambda b: torch.full((b, CAPACITY), 0.25),
    "all zero": lambda b: torch.zeros(b, CAPACITY),
    "rising": lambda b: torch.arange(float(CAPACITY)).expand(b, -1),
    "falling": lambda b: torch.arange(float(CAPACITY)).flip(0).expand(b, -1),
    "last bit": lambda b: 1 + torch.randint(0, 20, (b, CAPACITY)) * 2**-23,
    "one range has them all": lambda b: torch.rand(b, CAPACITY) + 9 * (torch.arange(CAPACITY) // 20 == 3),
    "a sink": lambda b: torch.rand(b, CAPACITY) + 100 * (torch.arange(CAPACITY) == 0),
    "subnormal": lambda b: torch.randint(0, 9, (b, CAPACITY)) * 2.0**-140,
    "large": lambda b: torch.rand(b, CAPACITY) * 2.0**120,
}


@pytest.mark.parametrize(
    ("kind", "topk"), [(kind, 16) for kind in KINDS] + [(kind, 1) for kind in ("random", "few values", "a sink")]
)
def test_any_ties_and_any_sample(kind, topk) -> None:
    scores = KINDS[kind](3)
    lengths = torch.tensor([CAPACITY, 97, topk + 1], dtype=torch.int32)
    start = torch.tensor([0, 11, 0])
    q, k, w = from_scores(scores)
    found = decode_select(q, hide(k, lengths, start), w, topk, lengths, start)
    assert found.tolist() == by_hand(scores, topk, lengths, start).tolist()


MOST = torch.finfo(torch.float32).max
SPECIAL = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, 1e-44, -1e-44, MOST, -MOST, 1.0, -1.0, 1.0000001])
TABLES = {
    "special": lambda b: SPECIAL[torch.randint(0, len(SPECIAL), (b, CAPACITY))],
    "lowest": lambda b: torch.where(torch.rand(b, CAPACITY) < 0.1, 1.0, -MOST),
    "negative": lambda b: -torch.rand(b, CAPACITY),
    "zeros of both signs": lambda b: torch.where(torch.rand(b, CAPACITY) < 0.5, 0.0, -0.0),
    "few finite": lambda b: torch.randn(b, CAPACITY).masked_fill(torch.rand(b, CAPACITY) < 0.95, -torch.inf),
}


@pytest.mark.parametrize("kind", TABLES)
def test_any_scores_between_the_highest_there_are(kind, monkeypatch) -> None:
    """Scores that no indexer gives, too; infinite ones wherever no row may look, which every selection would want."""
    table, topk = TABLES[kind](4), 16
    lengths = torch.tensor([CAPACITY, 97, 139, topk + 1], dtype=torch.int32)
    start = torch.tensor([0, 11, 40, 0])
    s = torch.arange(160)
    valid = (s >= start[:, None]) & (s < lengths[:, None])
    scores = torch.nn.functional.pad(table, (0, 10)).masked_fill(~valid, torch.inf)
    monkeypatch.setattr(selection, "decode_scores", lambda *_: scores)
    found = decode_select(*draw(4), topk, lengths, start)
    assert found.tolist() == by_hand(table, topk, lengths, start).tolist()


def test_a_sample_that_misleads_is_done_again_in_the_same_launch(missed) -> None:
    scores = torch.rand(4, CAPACITY)
    runs = (torch.arange(32) * CAPACITY // 32 // 2 * 2)[:, None] + torch.arange(2)
    low, high = scores.clone(), scores.clone()
    low[0, runs.flatten()] /= 1000  # the sample sees small ones only: the bound lets all others pass
    high[1, runs.flatten()[:7]] += 100  # 7 of the few large ones lie in the sample, and 8 are needed
    scores = torch.stack([low[0], high[1], torch.full((CAPACITY,), 0.5), torch.linspace(0, 1, CAPACITY)])
    lengths = torch.full((4,), CAPACITY, dtype=torch.int32)
    q, k, w = from_scores(scores)
    found = decode_select(q, k, w, 8, lengths)
    assert found.tolist() == by_hand(scores, 8, lengths).tolist()
    assert len(missed) == 3
    missed.clear()
    assert torch.equal(decode_select(*from_scores(scores[3:]), 8, lengths[:1]), found[3:])
    assert not missed, "a row like its sample needs no second pass"


@pytest.mark.filterwarnings("ignore:invalid value")  # infinity times the zeros that stand for keys outside the row
@pytest.mark.parametrize("gate", [-1.0, -torch.inf, torch.inf])
def test_negative_and_infinite_scores(gate) -> None:
    """A key whose score is -inf is no key, as in ops.select_topk."""
    q, k, w = from_scores(torch.rand(1, CAPACITY) + 0.1)
    q, w = q[:, :, :1], torch.full((1, 1, 1), gate)
    lengths = torch.tensor([100], dtype=torch.int32)
    found = decode_select(q, k, w, 8, lengths)
    assert torch.equal(found, by_torch(q, k, w, 8, lengths))
    assert (found == -1).all() == (gate == -torch.inf)


def test_on_real_numbers_it_picks_the_best_up_to_rounding() -> None:
    q, k, w = draw(3, j=16, i=64)
    lengths = torch.tensor([150, 100, 30], dtype=torch.int32)
    found = decode_select(q, k, w, 16, lengths)
    dots = torch.einsum("btji,bsi->bjs", q.double(), k.double()).relu()
    exact = torch.einsum("btj,bjs->bs", w.double(), dots) / 8
    scores, bound = selection.decode_scores(q, k, w, lengths, None), error_bounds.index_scores(q, k, w)
    for b, length in enumerate(lengths.tolist()):
        row, error = exact[b, :length], bound.error[b, 0, :length]
        error_bounds.assert_within(scores[b, :length], row, error)
        # the k-th may be scored as much too high as a better key is scored too low
        assert (row[found[b, 0].long()] >= row.topk(16).values[-1] - 2 * error.max()).all()
        assert torch.equal(found[b, :1], ops.topk_positions(scores[b : b + 1, None, :length], 16)[0])
    assert torch.equal(found, decode_select(q, k, w, 16, lengths))


def test_lengths_are_read_at_every_run_and_programs_beyond_them_do_nothing() -> None:
    q, k, w = whole_numbers(2)
    lengths = torch.tensor([3, 17], dtype=torch.int32)
    for _ in range(5):
        assert torch.equal(decode_select(q, hide(k, lengths), w, 8, lengths), by_torch(q, k, w, 8, lengths))
        lengths += 33
    scores = selection.decode_scores(q, k, w, torch.tensor([40, 0], dtype=torch.int32), torch.tensor([18, 0]))
    assert scores[0, 18:40].isfinite().all() and scores[0, :18].isnan().all()
    assert scores[0, 40:].isnan().all() and scores[1].isnan().all()


def test_lengths_outside_the_cache_are_cut_off() -> None:
    q, k, w = whole_numbers(2)
    lengths = torch.tensor([CAPACITY + 70, -3], dtype=torch.int32)
    assert torch.equal(decode_select(q, k, w, 8, lengths), by_torch(q, k, w, 8, lengths.clamp(0, CAPACITY)))


def test_the_cache_may_be_a_slice() -> None:
    q, k, w = whole_numbers(2, s=80, j=6)
    cache = torch.full((3, 100, 40), torch.nan)
    cache[1:, 5:85, 8:24] = k
    lengths, start = torch.tensor([80, 41], dtype=torch.int32), torch.tensor([[9, 3], [1, 2]])[:, 1]
    found = decode_select(q[:, :, 1:4], cache[1:, 5:85, 8:24], w[:, :, 1:4], 8, lengths, start)
    assert torch.equal(found, by_torch(q[:, :, 1:4], k, w[:, :, 1:4], 8, lengths, start))


@pytest.mark.parametrize("kind", ["random", "neighbours alike", "many ties", "all equal"])
def test_at_full_length_with_the_launch_parameters_of_a_gpu(kind, monkeypatch, missed) -> None:
    for table in (selection.SCORES, selection.SAMPLE, selection.RANGES, selection.FILTER, selection.FINISH):
        monkeypatch.setitem(table, "interpreter", table["sm_90"])
    s, topk = 131_072, 2048
    scores = torch.randn(1, s) + 9
    if kind == "neighbours alike":
        scores = scores[:, : s // 16].repeat_interleave(16, dim=-1) + scores / 4
    if kind == "many ties":
        scores = (scores * 4).round() / 4
    if kind == "all equal":
        scores = torch.ones(1, s)
    q, k, w = from_scores(scores)
    monkeypatch.setattr(selection, "decode_scores", lambda *_: scores)  # its kernel has been proved above
    found = decode_select(q, k, w, topk, torch.tensor([s - 5], dtype=torch.int32))
    assert torch.equal(found, ops.topk_positions(scores[:, None, : s - 5], topk))
    assert len(missed) == (kind == "all equal")


def test_no_rows_and_no_cache() -> None:
    q, k, w = draw(2)
    none = torch.zeros(0, dtype=torch.int32)
    assert decode_select(q[:0], k[:0], w[:0], 4, none).shape == (0, 1, 4)
    assert decode_select(q, k[:, :0], w, 4, torch.zeros(2, dtype=torch.int32)).tolist() == [[[-1] * 4]] * 2


def test_wrong_selection_input_is_refused_by_name() -> None:
    q, k, w = draw(2)
    lengths = torch.tensor([5, 6], dtype=torch.int32)
    bad = {
        r"expected q \[b t j i\]": (q, k[:1], w, 4, lengths),
        r"one query a batch row": (q.expand(2, 3, 4, 16), k, w.expand(2, 3, 4), 4, lengths),
        "must share one of": (q, k.half(), w, 4, lengths),
        "stride 1": (q, k.mT.contiguous().mT, w, 4, lengths),
        "topk must be 1 to 4096, got 0": (q, k, w, 0, lengths),
        "topk must be 1 to 4096, got 5000": (q, k, w, 5000, lengths),
        r"lengths must be contiguous int32 \[2\] on cpu; got torch.int64": (q, k, w, 4, lengths.long()),
        r"lengths must be contiguous int32 \[2\] on cpu; got torch.int32 \[1\]": (q, k, w, 4, lengths[:1]),
        r"start must be int32 or int64": (q, k, w, 4, lengths, torch.zeros(2)),
    }
    for message, arguments in bad.items():
        with pytest.raises(ValueError, match=message):
            decode_select(*arguments)
