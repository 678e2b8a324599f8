"""Scores, exact selection and sparse attention against loops, sorted() and dense attention in float64."""

import inspect
import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from minikeye import KeyeConfig, ops
from minikeye.ops import backend, dense_attention, masked_attention
from minikeye.ops import torch_attention as gathered
from minikeye.ops import torch_selection as selection

NEVER = -float("inf")

pytestmark = pytest.mark.cpu


@pytest.fixture
def unchecked() -> SimpleNamespace:
    """The functions without the shape checks of the test session: what a user's own call meets."""
    names = ("index_scores", "select_topk", "sparse_attention", "warmup_loss", "selected_loss")
    return SimpleNamespace(**{name: inspect.unwrap(getattr(ops, name)) for name in names})


def index_inputs(b=2, t=5, s=9, j=3, i=4, integers=False):
    """Queries, keys, gates. Small integers are exact in float32 and tie often."""
    draw = (lambda *n: torch.randint(-2, 3, n).float()) if integers else torch.randn
    return draw(b, t, j, i), draw(b, s, i), draw(b, t, j)


STARTS = {
    "none": None,
    "per row": torch.tensor([0, 3]),
    "per query": torch.tensor([[0, 1, 2, 3, 4], [0, 0, 6, 6, 6]]),
}


# -------------------------------------------------------------------------------------------------------------- scores


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
@pytest.mark.parametrize("offset", [-1, 0, 4, 20])
def test_index_scores_are_a_loop(start, offset):
    q, k, w = index_inputs()
    scores = ops.index_scores(q, k, w, offset, start)
    for b, t, s in torch.cartesian_prod(*map(torch.arange, scores.shape)).tolist():
        first = 0 if start is None else int(start[b] if start.ndim == 1 else start[b, t])
        expected = sum(w[b, t, j] * max(0.0, q[b, t, j] @ k[b, s]) for j in range(3)) / 4**0.5
        seen = first <= s <= offset + t
        assert scores[b, t, s].item() == pytest.approx(float(expected) if seen else NEVER, abs=1e-5)


def test_index_scores_are_float32():
    """bfloat16 inputs, and autocast around the call, leave products and sums in float32."""
    q, k, w = (z.bfloat16() for z in index_inputs())
    with torch.autocast("cpu", torch.bfloat16):
        scores = ops.index_scores(q, k, w)
    assert scores.dtype == torch.float32
    assert torch.equal(scores, ops.index_scores(q.float(), k.float(), w.float()))


def test_index_scores_have_a_gradient():
    q, k, w = (z.requires_grad_() for z in index_inputs())
    ops.index_scores(q, k, w, offset=8).sum().backward()
    assert_close(w.grad, torch.einsum("btji,bsi->btjs", q, k).relu().sum(-1) / 2)
    assert q.grad.abs().sum() > 0 and k.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(k=torch.zeros(2, 9, 5)), r"need keys \[2, s, 4\]"),
        (dict(k=torch.zeros(1, 9, 4)), r"need keys \[2, s, 4\]"),
        (dict(w=torch.zeros(2, 5, 2)), r"gates \[2, 5, 3\]"),
        (dict(start=torch.zeros(3, dtype=torch.long)), r"start must be \[2\] or \[2, 5\], got \[3\]"),
        (dict(start=torch.zeros(2, 4, dtype=torch.long)), r"start must be \[2\] or \[2, 5\]"),
    ],
)
def test_index_shapes_that_do_not_fit(change, message, unchecked):
    q, k, w = index_inputs()
    for function, extra in ((unchecked.index_scores, {}), (unchecked.select_topk, {"topk": 2})):
        with pytest.raises(ValueError, match=message):
            function(**{"q": q, "k": k, "w": w, **extra, **change})


def test_topk_of_nothing():
    with pytest.raises(ValueError, match="topk must be at least 1, got 0"):
        ops.select_topk(*index_inputs(), topk=0)


# ----------------------------------------------------------------------------------------------------------- selection


def sorted_selection(scores: torch.Tensor, topk: int) -> list[list[list[int]]]:
    """The rule in one line of Python: best score first, then smaller position; the winners in ascending order."""
    rows = []
    for row in scores.flatten(0, 1).tolist():
        valid = sorted((-score, s) for s, score in enumerate(row) if score > NEVER)[:topk]
        chosen = sorted(s for _, s in valid)
        rows.append(chosen + [-1] * (topk - len(chosen)))
    return [rows[n * scores.shape[1] : (n + 1) * scores.shape[1]] for n in range(len(scores))]


@pytest.mark.parametrize("integers", [False, True], ids=["no ties", "many ties"])
@pytest.mark.parametrize("topk", [1, 2, 4, 8, 9, 12])
@pytest.mark.parametrize("offset", [0, 4, 20])
@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_selection_is_sorted(integers, topk, offset, start):
    q, k, w = index_inputs(integers=integers)
    got = ops.select_topk(q, k, w, topk, offset, start)
    assert got.dtype == torch.int32 and tuple(got.shape) == (2, 5, topk)
    assert got.tolist() == sorted_selection(ops.index_scores(q, k, w, offset, start), topk)


def test_all_equal_scores_take_the_first_keys():
    q, k, _ = index_inputs(b=1, t=3, s=9)
    got = ops.select_topk(q, k, torch.zeros(1, 3, 3), 4, offset=6, start=torch.tensor([2]))
    assert got.tolist() == [[[2, 3, 4, 5]] * 3]


def test_a_key_and_its_double():
    """The best key stands at 1 and 6: with room for one, the first copy; with room for two, both."""
    q, k, w = torch.ones(1, 1, 1, 2), torch.rand(1, 8, 2), torch.ones(1, 1, 1)
    k[:, [1, 6]] = 3.0
    assert ops.select_topk(q, k, w, 1, offset=7).tolist() == [[[1]]]
    assert ops.select_topk(q, k, w, 2, offset=7).tolist() == [[[1, 6]]]


def test_negative_gates_count():
    """A key that no head likes scores 0, which beats a key that a negative gate punishes."""
    q, k = torch.ones(1, 1, 1, 2), torch.tensor([[[1.0, 1.0], [-1.0, -1.0], [2.0, 2.0]]])
    assert ops.select_topk(q, k, -torch.ones(1, 1, 1), 1, offset=2).tolist() == [[[1]]]


def test_selection_repeats_itself():
    q, k, w = index_inputs(b=1, t=64, s=256, integers=True)
    first = ops.select_topk(q, k, w, 32, offset=192)
    assert all(torch.equal(first, ops.select_topk(q, k, w, 32, offset=192)) for _ in range(10))


@pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)
def test_slabs_equal_whole(start, monkeypatch):
    """One query row at a time gives the same selection, and never more than that row of scores."""
    q, k, w = index_inputs(integers=True)
    expected = ops.select_topk(q, k, w, 3, 4, start)
    largest, score = [], selection.index_scores
    monkeypatch.setattr(selection, "slab_rows", lambda device, elements: 1)
    monkeypatch.setattr(selection, "index_scores", lambda *args: largest.append((z := score(*args)).shape[1]) or z)
    assert torch.equal(ops.select_topk(q, k, w, 3, 4, start), expected)
    assert largest == [1] * 5


def test_slab_size():
    """2^19 scores on a CPU, 2^26 on a GPU, one row at least."""
    assert ops.slab_rows(torch.device("cpu"), 2**12) == 2**7
    assert ops.slab_rows(torch.device("cuda"), 2**12) == 2**14
    assert ops.slab_rows(torch.device("cpu"), 2**30) == 1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**30), topk=st.integers(1, 12), s=st.integers(1, 12))
def test_permuted_keys_permute_the_selection(seed, topk, s):
    """Without ties the selected set follows its keys wherever they go (all keys valid, scores all different)."""
    draw = torch.Generator().manual_seed(seed)
    q, k = torch.rand(1, 1, 2, 4, generator=draw), torch.rand(1, s, 4, generator=draw)
    w, order = torch.rand(1, 1, 2, generator=draw), torch.randperm(s, generator=draw)
    scores = ops.index_scores(q, k, w, offset=s - 1)
    if scores.diff(dim=-1).numel() and scores.sort().values.diff(dim=-1).min() < 1e-5:
        return
    here = ops.select_topk(q, k, w, topk, offset=s - 1).flatten().tolist()
    there = ops.select_topk(q, k[:, order], w, topk, offset=s - 1).flatten().tolist()
    assert sorted(order[n].item() for n in there if n >= 0) == [n for n in here if n >= 0]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**30), s=st.integers(1, 12), offset=st.integers(0, 12))
def test_more_room_keeps_what_was_selected(seed, s, offset):
    """The set for k is within the set for k + 1, ties or not."""
    draw = torch.Generator().manual_seed(seed)
    q, k, w = (torch.randint(-1, 2, n, generator=draw).float() for n in ((1, 3, 2, 2), (1, s, 2), (1, 3, 2)))
    sets = [[{*row} - {-1} for row in ops.select_topk(q, k, w, n, offset)[0].tolist()] for n in range(1, s + 1)]
    for smaller, larger in pairwise(sets):
        assert all(a <= b for a, b in zip(smaller, larger, strict=True))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**30), s=st.integers(2, 40), topk=st.integers(1, 40), levels=st.integers(1, 60))
def test_the_two_roads_to_the_set_agree(seed, s, topk, levels):
    """The short cut where nothing ties with the k-th score, and the general rule: from all scores equal to none."""
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, levels, (1, 4, s), generator=draw).float()
    scores[torch.rand(scores.shape, generator=draw) < 0.2] = NEVER
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "readable", lambda x: False)  # as inside a CUDA graph, where the CPU may not look
        general = ops.topk_positions(scores, topk)
    assert ops.topk_positions(scores, topk).tolist() == general.tolist() == sorted_selection(scores, topk)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**30), lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4), topk=st.integers(1, 8))
def test_packed_documents_do_not_see_each_other(seed, lengths, topk):
    """Several documents in one row, each query starting at its own: selection and attention of each alone."""
    draw = torch.Generator().manual_seed(seed)
    s = sum(lengths)
    index_q, index_k, w = (torch.randn(1, s, *n, generator=draw) for n in ((2, 4), (4,), (2,)))
    q, k, v = (torch.randn(1, s, heads, 4, generator=draw) for heads in (4, 2, 2))
    begins = [sum(lengths[:n]) for n in range(len(lengths))]
    start = torch.tensor(begins).repeat_interleave(torch.tensor(lengths))[None]
    packed = ops.select_topk(index_q, index_k, w, topk, start=start)
    out = ops.sparse_attention(q, k, v, packed)[0]
    for first, length in zip(begins, lengths, strict=True):
        own = slice(first, first + length)
        alone = ops.select_topk(index_q[:, own], index_k[:, own], w[:, own], topk)
        assert torch.equal(packed[:, own], torch.where(alone >= 0, alone + first, -1))
        assert_close(out[:, own], ops.sparse_attention(q[:, own], k[:, own], v[:, own], alone)[0])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**30), s=st.integers(1, 12), topk=st.integers(1, 14), copies=st.integers(2, 4))
def test_duplicates_of_a_key_go_from_the_left(seed, s, topk, copies):
    """Every key several times in a row: the set holds a duplicate only if it holds all its earlier twins."""
    draw = torch.Generator().manual_seed(seed)
    q, k, w = (torch.randn(n, generator=draw) for n in ((1, 1, 2, 4), (1, s, 4), (1, 1, 2)))
    got = ops.select_topk(q, k.repeat_interleave(copies, dim=1), w, topk, offset=s * copies - 1)[0, 0].tolist()
    chosen = {n for n in got if n >= 0}
    assert all(n - 1 in chosen for n in chosen if n % copies)


PEAK = """
import json, resource, torch
from minikeye import ops
torch.set_num_threads(1)
s, t, topk = 32_768, 1_024, 256  # the last rows of a prefill: every slab sees all keys; widths of `mini`
index = torch.randn(1, t, 4, 32), torch.randn(1, s, 32), torch.randn(1, t, 4)
q, k, v = (torch.randn(1, n, heads, 64) for n, heads in ((t, 8), (s, 2), (s, 2)))
indices = torch.rand(1, t, s // 8).topk(topk).indices.sort().values
calls = {"select": lambda n: ops.select_topk(index[0][:, :n], index[1], index[2][:, :n], topk, s - t),
         "attend": lambda n: ops.sparse_attention(q[:, :n], k, v, indices[:, :n])}
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
now = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize() / 2**20
took, ballast = {}, []
for what, call in calls.items():
    call(1)  # libraries load what they need
    ballast.append(torch.ones(int((peak() - now() + 8) * 2**18)))  # it was larger before: fill up, so growth shows
    before = peak()
    call(t)
    took[what] = peak() - before
print(json.dumps(took))
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the process's memory from /proc")
def test_memory_at_32768_tokens():
    """At most 256 MiB beyond the inputs; all scores would be 4 GiB, all gathered rows 8 GiB."""
    returned = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}  # what one call frees is not there for the next one
    run = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True, env=returned)
    for what, took in json.loads(run.stdout).items():
        assert 2 < took <= 256, what  # less than a slab would mean that nothing was measured


# ---------------------------------------------------------------------------------------------------- sparse attention

GROUPS = [(2, 2), (4, 2), (8, 1)]


def attention_inputs(b=2, t=5, s=9, h=4, g=2, e=8, dtype=torch.float32):
    return tuple(torch.randn(b, n, heads, e, dtype=dtype) for n, heads in ((t, h), (s, g), (s, g)))


def random_sets(b=2, t=5, s=9, k=4) -> torch.Tensor:
    """k different positions a query, ascending; the last query of every row has one key less, padded."""
    indices = torch.rand(b, t, s).argsort(dim=-1)[..., :k].sort(dim=-1).values.int()
    indices[:, -1, -1] = -1
    return indices


def masked_softmax(q, k, v, indices):
    """Dense attention in float64 with everything outside the set at -inf; also its log-sum-exp."""
    ratio = q.shape[2] // k.shape[2]
    k, v = (z.double().repeat_interleave(ratio, dim=2) for z in (k, v))
    logits = torch.einsum("bthe,bshe->bths", q.double(), k) * q.shape[-1] ** -0.5
    outside = torch.ones(*indices.shape[:2], k.shape[1], dtype=torch.bool)
    for b, t in torch.cartesian_prod(*map(torch.arange, indices.shape[:2])).tolist():
        outside[b, t, [n for n in indices[b, t].tolist() if n >= 0]] = False
    logits = logits.masked_fill(outside[:, :, None], NEVER)
    return torch.einsum("bths,bshe->bthe", logits.softmax(-1), v), logits.logsumexp(-1)


@pytest.mark.parametrize(("h", "g"), GROUPS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_sparse_attention_is_masked_softmax(h, g, dtype):
    q, k, v = attention_inputs(h=h, g=g, dtype=dtype)
    indices = random_sets()
    tolerance = {"atol": 1e-6 if dtype == torch.float32 else 1e-12, "rtol": 0.0}
    got = ops.sparse_attention(q, k, v, indices)
    for mine, expected in zip(got, masked_softmax(q, k, v, indices), strict=True):
        assert mine.dtype == dtype
        assert_close(mine.double(), expected, **tolerance)
    assert_close(masked_attention(q, k, v, indices).double(), masked_softmax(q, k, v, indices)[0], **tolerance)


@pytest.mark.parametrize(("h", "g"), GROUPS)
def test_gradients_are_those_of_masked_softmax(h, g):
    inputs = tuple(z.requires_grad_() for z in attention_inputs(h=h, g=g, dtype=torch.float64))
    indices, weight = random_sets(), torch.randn(2, 5, h, 8, dtype=torch.float64)
    got = torch.autograd.grad((ops.sparse_attention(*inputs, indices)[0] * weight).sum(), inputs)
    expected = torch.autograd.grad((masked_softmax(*inputs, indices)[0] * weight).sum(), inputs)
    assert_close(got, expected, atol=1e-12, rtol=0.0)


def test_gradcheck():
    """Padding, a double entry and a query without keys included."""
    q, k, v = (z.requires_grad_() for z in attention_inputs(b=1, t=3, s=5, h=4, g=2, e=3, dtype=torch.float64))
    indices = torch.tensor([[[0, 2, 4], [1, 1, -1], [-1, -1, -1]]])
    assert torch.autograd.gradcheck(lambda *qkv: ops.sparse_attention(*qkv, indices)[0], (q, k, v))


@pytest.mark.parametrize("start", [None, torch.tensor([0, 3])])
@pytest.mark.parametrize(("t", "offset"), [(9, 0), (4, 5), (1, 8)])
def test_every_key_is_dense_attention(start, t, offset):
    """Selecting k >= length gives torch's own causal attention, whatever the scores say."""
    q, k, v = attention_inputs(t=t)
    indices = ops.select_topk(*index_inputs(t=t), 9, offset, start)
    dense = dense_attention(q, k, v, offset, start)
    assert_close(ops.sparse_attention(q, k, v, indices)[0], dense)
    if start is None and offset == 0:
        q, k, v = (z.transpose(1, 2) for z in (q, k, v))
        expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        assert torch.equal(dense, expected.transpose(1, 2))


def test_scale():
    q, k, v = attention_inputs()
    indices = random_sets()
    got = ops.sparse_attention(q, k, v, indices, scale=0.5)
    assert_close(got, ops.sparse_attention(q * 0.5 * 8**0.5, k, v, indices))


def careless_kernel(q, k, v, attn_mask=None, is_causal=False, enable_gqa=False):
    """Attention by the formula, as some fused kernels do it: of a row without keys comes nan, and a gradient of nan."""
    if enable_gqa:
        k, v = (z.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for z in (k, v))
    scores = q @ k.mT / q.shape[-1] ** 0.5
    mask = torch.ones(scores.shape[-2:]).tril().bool() if is_causal else attn_mask
    return scores.masked_fill(~mask, NEVER).softmax(dim=-1) @ v


@pytest.mark.parametrize("kind", ["masked", "dense"])
def test_a_row_without_keys_spoils_no_gradient(kind, monkeypatch):
    """On a GPU one padded row had made every gradient nan, at some lengths and not at others."""
    q, k, v = (torch.randn(2, 5, heads, 8) for heads in (4, 2, 2))
    indices = torch.arange(5).expand(2, 5, 5).clone()
    indices[1, :3] = -1  # padding, and the second row's first real token is token 3
    indices[1, 3:, :3] = -1
    indices = torch.where(indices > torch.arange(5)[:, None], -1, indices).int()

    def gradients():
        leaves = [z.clone().requires_grad_() for z in (q, k, v)]
        out = (
            masked_attention(*leaves, indices)
            if kind == "masked"
            else dense_attention(*leaves, 0, torch.tensor([0, 3]))
        )
        out.square().sum().backward()
        return [out.detach(), *(z.grad for z in leaves)]

    plain = gradients()
    monkeypatch.setattr(gathered.F, "scaled_dot_product_attention", careless_kernel)
    for a, b in zip(gradients(), plain, strict=True):
        assert_close(a, b)
    assert not bool(plain[0][1, :3].any()) and not bool(plain[1][1, :3].any())


def test_a_query_without_keys_gives_zeros():
    q, k, v = (z.requires_grad_() for z in attention_inputs())
    indices = random_sets()
    indices[1, 2] = -1
    out, lse = ops.sparse_attention(q, k, v, indices)
    out.sum().backward()
    assert out[1, 2].eq(0).all() and lse[1, 2].eq(NEVER).all() and q.grad[1, 2].eq(0).all()
    assert all(z.grad.isfinite().all() for z in (q, k, v)) and out[1, 1].ne(0).any()
    assert masked_attention(q, k, v, indices)[1, 2].eq(0).all()


def test_a_position_listed_twice_counts_twice():
    q, k, v = attention_inputs(b=1, t=1, s=3, h=1, g=1)
    p = (q[0, 0, 0] @ k[0, :, 0].T / 8**0.5).exp()
    got = ops.sparse_attention(q, k, v, torch.tensor([[[0, 2, 2]]]))[0]
    assert_close(got[0, 0, 0], (p[0] * v[0, 0, 0] + 2 * p[2] * v[0, 2, 0]) / (p[0] + 2 * p[2]))


def test_slabs_equal_whole_attention(monkeypatch):
    inputs = tuple(z.requires_grad_() for z in attention_inputs(dtype=torch.float64))
    indices = random_sets()

    def run():
        out, lse = ops.sparse_attention(*inputs, indices)
        return out, lse, *torch.autograd.grad(out.square().sum(), inputs)

    expected = run()
    monkeypatch.setattr(gathered, "slab_rows", lambda device, elements: 1)
    assert_close(run(), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_near_float64(dtype):
    """Output in the input's dtype, log-sum-exp in float32, near float64 by one rounding of p and v."""
    q, k, v = (z.to(dtype) for z in attention_inputs())
    indices = random_sets()
    out, lse = ops.sparse_attention(q, k, v, indices)
    expected = masked_softmax(q, k, v, indices)
    assert out.dtype == dtype and lse.dtype == torch.float32
    step = 4 * torch.finfo(dtype).eps
    assert_close(out.double(), expected[0], atol=step, rtol=step)
    assert_close(lse.double(), expected[1], atol=step, rtol=step)


# ---------------------------------------------------------------------------------------------------- rows really read


def test_rows_read_are_counted():
    """Selected positions x KV heads: 2 rows of 4 queries x 4 keys + 1 x 3, on 2 KV heads; backward reads them again."""
    q, k, v = (z.requires_grad_() for z in attention_inputs())
    with ops.count_rows() as counter:
        out, _ = ops.sparse_attention(q, k, v, random_sets())
        assert counter.rows == 2 * (4 * 4 + 3) * 2
        out.sum().backward()
        assert counter.rows == 2 * 2 * (4 * 4 + 3) * 2
    ops.sparse_attention(q, k, v, random_sets())
    assert counter.rows == 2 * 2 * (4 * 4 + 3) * 2  # outside the block nothing is counted


def test_rows_not_selected_are_not_read():
    """They hold nan, which no mask can hide: 0 x nan is nan. The masked imitation fails, forward and backward."""
    q, k, v = attention_inputs()
    indices = torch.tensor([[[1, 4, 7]] * 5, [[2, 4, -1]] * 5])  # -1 reads nothing, not even row 0 or the last
    unread = torch.ones(2, 9, dtype=torch.bool).scatter(1, torch.tensor([[1, 4, 7], [2, 4, 2]]), False)
    poisoned = [z.masked_fill(unread[:, :, None, None], float("nan")).requires_grad_() for z in (k, v)]
    out = ops.sparse_attention(q, *poisoned, indices)[0]
    assert torch.equal(out, ops.sparse_attention(q, k, v, indices)[0])
    out.square().sum().backward()
    assert all(z.grad.isfinite().all() and z.grad[unread].eq(0).all() for z in poisoned)
    assert masked_attention(q, *poisoned, indices).isnan().any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(v=torch.zeros(2, 8, 2, 8)), "need keys and values of one shape"),
        (dict(k=torch.zeros(2, 9, 3, 8), v=torch.zeros(2, 9, 3, 8)), "g dividing 4"),
        (dict(k=torch.zeros(2, 9, 2, 4), v=torch.zeros(2, 9, 2, 4)), r"\[2, s, g, 8\]"),
        (dict(indices=torch.zeros(2, 4, 3, dtype=torch.long)), r"indices must be int \[2, 5, k\]"),
        (dict(indices=torch.zeros(2, 5, 3)), "got torch.float32"),
        (dict(indices=torch.full((2, 5, 3), 9)), r"lie in -1\.\.8, got 9\.\.9"),
        (dict(indices=torch.full((2, 5, 3), -2)), r"lie in -1\.\.8, got -2\.\.-2"),
    ],
)
def test_attention_shapes_that_do_not_fit(change, message, unchecked):
    q, k, v = attention_inputs()
    with pytest.raises(ValueError, match=message):
        unchecked.sparse_attention(**{"q": q, "k": k, "v": v, "indices": random_sets(), **change})


# ------------------------------------------------------------------------------------------------------------ backends


def test_triton_on_a_cpu_is_an_error_with_a_reason():
    q, k, w = index_inputs()
    calls = (
        lambda: ops.select_topk(q, k, w, 2, backend="triton"),
        lambda: ops.sparse_attention(*attention_inputs(), random_sets(), backend="triton"),
        lambda: ops.choose_backend("triton", "cpu"),
    )
    for call in calls:
        with pytest.raises(RuntimeError, match=r"'triton' cannot run: the tensors are on cpu.*Use backend='torch'"):
            call()


def test_auto_says_what_it_picked_and_why():
    name, why = ops.choose_backend("auto", "cpu")
    assert name == "torch" and "are on cpu" in why
    assert ops.choose_backend("torch", "cpu") == ("torch", "asked for")


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend must be one of auto, torch, triton; got 'cuda'"):
        ops.choose_backend("cuda")


def test_a_device_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert ops.choose_backend("auto", "cuda") == ("torch", "torch finds no CUDA device")


@pytest.mark.parametrize(
    ("tensor", "unless", "why"),
    [
        (torch.zeros(1, dtype=torch.float64, device="meta"), "", "float32, float16 and bfloat16, got torch.float64"),
        (torch.zeros(1, dtype=torch.bfloat16, device="meta"), "heads must be", "heads must be"),
        (torch.zeros(1, dtype=torch.bfloat16, device="meta"), "", "Triton kernels present"),
    ],
)
def test_what_auto_takes_on_a_gpu(monkeypatch, tensor, unless, why):
    """Of a GPU that this machine need not have: the choice looks at names, dtypes and shapes, and runs nothing."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(backend, "_triton_installed", lambda: True)
    monkeypatch.setattr(torch.Tensor, "device", property(lambda x: torch.device("cuda")))
    name, reason = ops.choose_backend("auto", tensor, unless=unless)
    assert why in reason and name == ("triton" if "present" in reason else "torch")
    with ops.count_rows():
        assert ops.choose_backend("auto", tensor)[0] == "torch"


LOSS = {
    "must be as many as index queries and keys": lambda x: {"index_k": x["index_k"][:, :-1]},
    "and of their dtype": lambda x: {"q": x["q"].double()},
    "g dividing": lambda x: {"k": x["k"].repeat(1, 1, 3, 1)[:, :, :3]},
}


@pytest.mark.parametrize("message", LOSS)
@pytest.mark.parametrize("loss", ["warmup_loss", "selected_loss"])
def test_losses_refuse_what_does_not_fit(loss, message, unchecked):
    q, k, _ = attention_inputs()
    b, t, s = *q.shape[:2], k.shape[1]
    inputs = {"index_q": torch.randn(b, t, 2, 4), "index_k": torch.randn(b, s, 4), "index_w": torch.randn(b, t, 2)}
    inputs |= {"q": q, "k": k}
    inputs |= {"positions": torch.arange(t)} if loss == "warmup_loss" else {"indices": random_sets()}
    getattr(unchecked, loss)(**inputs)
    with pytest.raises(ValueError, match=message):
        getattr(unchecked, loss)(**inputs | LOSS[message](inputs))


def test_losses_refuse_other_positions_and_indices(unchecked):
    q, k, _ = attention_inputs()
    b, t, s = *q.shape[:2], k.shape[1]
    inputs = [torch.randn(b, t, 2, 4), torch.randn(b, s, 4), torch.randn(b, t, 2), q, k]
    with pytest.raises(ValueError, match=rf"positions must be int \[{t}\], got torch.int64 \[{t + 1}\]"):
        unchecked.warmup_loss(*inputs, torch.arange(t + 1))
    with pytest.raises(ValueError, match=rf"indices must lie in -1..{s - 1}, got -5..0"):
        unchecked.selected_loss(*inputs, torch.zeros(b, t, 3, dtype=torch.int64).index_fill(2, torch.tensor([1]), -5))


def test_a_backend_is_chosen_for_something():
    with pytest.raises(ValueError, match="expected the inputs or a device, got none"):
        ops.choose_backend("auto")


@pytest.mark.parametrize("grad", [False, True])
def test_nan_outside_the_set_reaches_nothing(grad):
    """-1 anywhere in a row, or everywhere: no row stands in for it that the query did not select."""
    q, k, v = (x.clone() for x in attention_inputs())
    k[:, 0] = v[:, 0] = torch.nan
    indices = torch.tensor([-1, 3, 2]).repeat(*q.shape[:2], 1)
    indices[:, 1] = -1
    for x in (q, k, v):
        x.requires_grad_(grad)
    out, lse = ops.sparse_attention(q, k, v, indices)
    assert out.isfinite().all() and out[:, 1].eq(0).all() and lse[:, 1].isneginf().all()
    if grad:
        assert all(x.isfinite().all() for x in torch.autograd.grad(out.square().sum(), (q, k, v)))
    index = torch.randn(2, 5, 2, 4), torch.randn(2, k.shape[1], 4), torch.randn(2, 5, 2)
    index[1][:, 0] = torch.nan
    for x in index:
        x.requires_grad_(grad)
    loss = ops.selected_loss(*index, q.detach(), k.detach(), indices)
    assert loss.isfinite().all() and loss[:, 1].eq(0).all()
    if grad:
        assert all(x.isfinite().all() for x in torch.autograd.grad(loss.sum(), index))


def test_second_derivatives_are_refused():
    """They would be wrong without a word: the backward pass takes the log-sum-exp for a constant."""
    q, k, v = (x.clone().requires_grad_() for x in attention_inputs())
    out, _ = ops.sparse_attention(q, k, v, random_sets())
    (g,) = torch.autograd.grad(out.square().sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        g.sum().backward()


@pytest.mark.parametrize(
    ("shape", "dtype", "why"),
    [
        ((16, 64), torch.bfloat16, ""),
        ((16, 256), torch.bfloat16, ""),
        ((16, 256), torch.float32, "128 in float32"),
        ((16, 512), torch.bfloat16, "256 wide"),
        ((512, 16), torch.bfloat16, "256 index heads"),
        ((256, 256), torch.bfloat16, ""),
    ],
)
def test_index_shapes_for_the_kernels(shape, dtype, why):
    index_q = torch.zeros(1, 1, *shape, dtype=dtype)
    assert why in backend.beyond_index_kernels(index_q) and bool(why) == bool(backend.beyond_index_kernels(index_q))
    q, k = torch.zeros(1, 1, 8, 64), torch.zeros(1, 1, 1, 64)
    assert bool(backend.beyond_kernels(q, k, index_q)) == bool(why or shape[0] * shape[1] > 8192)


def test_no_kv_heads_is_an_error(unchecked):
    with pytest.raises(ValueError, match="g dividing 4"):
        unchecked.sparse_attention(torch.zeros(1, 1, 4, 8), *torch.zeros(2, 1, 3, 0, 8), torch.zeros(1, 1, 1).int())


# --------------------------------------------------------------------------------------------------------------- layer


def test_why_a_layers_steps_are_not_fused():
    """Gradients, other dtypes, autocast, a CPU: each alone is reason enough, and torch may be asked for."""
    x, w = torch.zeros(2, 4, dtype=torch.bfloat16), torch.zeros(3, 4, dtype=torch.bfloat16)
    learned = torch.zeros(3, 4, dtype=torch.bfloat16, requires_grad=True)
    assert "a gradient is needed" in backend.fusion_obstacle(x, learned)
    with torch.no_grad():
        assert "on cpu" in backend.fusion_obstacle(x, learned)
    assert "bfloat16 alone, got torch.float32" in backend.fusion_obstacle(x, w.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert "autocast" in backend.fusion_obstacle(x, w)
    assert "on cpu" in backend.fusion_obstacle(x, w) and not ops.fused("auto", x, w)
    with pytest.raises(ValueError, match="backend must be one of auto, torch, triton; got 'cuda'"):
        ops.fused("cuda", x)


def test_fused_where_nothing_stands_in_the_way(monkeypatch):
    monkeypatch.setattr(backend, "_triton_obstacle", lambda *tensors: "")
    x = torch.zeros(2, 4, dtype=torch.bfloat16)
    assert ops.fused("auto", x, x) and ops.fused("triton", x) and not ops.fused("torch", x)


def test_sparse_attention_is_learnt_by_kernels_or_under_a_mask(monkeypatch):
    """Masks where no kernel can run; another mode than sparse is what it is."""
    config = KeyeConfig.mini()
    assert ops.learning_mode("sparse", config, 4096, "cpu") == "masked"
    assert ops.learning_mode("dense", config, 4096, "cpu") == "dense"
    monkeypatch.setattr(backend, "_triton_obstacle", lambda *tensors: "")
    assert ops.learning_mode("sparse", config, 4096, "cuda") == "sparse"
    assert ops.learning_mode("masked", config, 4096, "cuda") == "masked"
    assert ops.learning_mode("sparse", config, backend.KERNELS_FROM - 1, "cuda") == "masked"
    odd = replace(config, text=replace(config.text, heads=34, kv_heads=2))  # 17 heads a group
    assert ops.learning_mode("sparse", odd, 4096, "cuda") == "masked"


def test_the_routers_product_is_float32_whatever_goes_in():
    x, w = torch.randn(5, 64), torch.randn(3, 64)
    for a, b in ((x, w), (x.bfloat16(), w.bfloat16()), (x.bfloat16(), w)):
        with torch.autocast("cpu", torch.bfloat16):
            got = ops.wide_product(a, b)
        assert got.dtype == torch.float32
        assert_close(got.double(), a.double() @ b.double().mT, atol=1e-4, rtol=1e-5)


def test_a_weighted_sum_by_hand():
    """Three rows; token 0 takes rows 2 and 0, token 1 rows 1 and 1."""
    y, place = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([[2, 0], [1, 1]])
    weights, residual = torch.tensor([[0.5, 2.0], [1.0, 3.0]]), torch.tensor([[10.0, 0.0], [0.0, 20.0]])
    plain = ops.weighted_sum(y, place, weights, torch.float32)
    assert_close(plain, torch.tensor([[4.5, 7.0], [12.0, 16.0]]))
    assert_close(ops.weighted_sum(y, place, weights, torch.float32, residual), plain + residual)


def test_the_head_of_a_decode_step_refuses_what_does_not_fit():
    """Before any kernel: rows beyond 16 would be left as they were, strides read other numbers."""
    x, norm, head = torch.randn(2, 8), torch.ones(8), torch.randn(5, 8)
    for arguments, words in (
        ((torch.randn(17, 8), None, norm, head), "1 to 16 rows"),
        ((x.T.contiguous().T, None, norm, head), "contiguous x"),
        ((x, torch.randn(3, 2, 8).bfloat16(), norm, head), "float32 parts"),
        ((x, None, norm, head.T.contiguous().T), "must be contiguous"),
        ((x, None, norm, head.bfloat16()), "as x is"),
    ):
        with pytest.raises(ValueError, match=words):
            ops.decode_head(*arguments, 1e-6)


def test_under_autocast_the_models_own_step_answers(monkeypatch):
    monkeypatch.setattr("minikeye.ops.decode_step.choose_backend", lambda backend, device: ("triton", "a card"))
    chosen = lambda: ops.choose_step(KeyeConfig.nano(), 1, {torch.bfloat16}, torch.device("cuda"))  # noqa: E731
    assert chosen() == ("fused", "a card")
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    assert chosen() == ("unfused", "autocast chooses dtypes")
