"""The kernels around attention in Triton's interpreter. test_interpreted_prefill.py runs this file elsewhere.

Axes: n token, c chosen expert of a token, r row of an expert, d width, b batch, t query position, h query head, g KV
head, e head width, j indexer head, i indexer width. Oracles: loops over tokens, and the model's own modules, which are
the specification. What a kernel leaves unwritten is nan: see `poison`.
"""

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from error_bounds import assert_within, head_norms, weighted_rows
from error_bounds import swiglu as swiglu_bound
from torch.testing import assert_close

from minikeye import KeyeConfig, KeyeVL, ops
from minikeye.config import IndexerConfig, TextConfig
from minikeye.kernels.launch import INTERPRETED
from minikeye.kernels.prefill import experts, heads, router
from minikeye.model.attention import Attention
from minikeye.model.cache import LayerCache
from minikeye.model.moe import MixtureOfExperts
from minikeye.model.step import Step
from minikeye.ops.checks import check_heads, check_sum

pytestmark = pytest.mark.usefixtures("poison")
NAMES = ("place_heads", "choose_experts", "swiglu", "weighted_sum")
NEAR = {"atol": 1e-5, "rtol": 1e-5}


def test_this_is_the_interpreter() -> None:
    assert INTERPRETED


@pytest.fixture
def fusing(monkeypatch) -> Counter:
    """Fused kernels answer for float32 tensors of a CPU, unless torch is asked for; counts their calls."""
    monkeypatch.setattr("minikeye.ops.backend.fusion_obstacle", lambda *tensors: "")
    calls = Counter()

    def count(module, name):
        inner = getattr(module, name)

        def counted(*arguments):
            calls[name] += 1
            return inner(*arguments)

        monkeypatch.setattr(module, name, counted)

    for module, name in (
        (experts, "swiglu"),
        (experts, "weighted_sum"),
        (heads, "place_heads"),
        (router, "choose_experts"),
    ):
        count(module, name)
    return calls


# -------------------------------------------------------------------------------------------------------------- router


@pytest.mark.parametrize(("n", "x", "c"), [(1, 8, 2), (9, 128, 8), (5, 6, 3), (4, 5, 5), (3, 1, 1)])
def test_experts_of_a_token_are_its_likeliest(n, x, c) -> None:
    logits = 3 * torch.randn(n, x)
    probabilities, weights, chosen = router.choose_experts(logits, c)
    wanted = logits.double().softmax(-1)
    assert_close(probabilities.double(), wanted, atol=1e-6, rtol=1e-6)
    assert chosen.dtype == torch.int64 and weights.dtype == torch.float32
    for row, best, share in zip(wanted, chosen.tolist(), weights.double(), strict=True):
        assert best == sorted(range(x), key=lambda n, row=row: -float(row[n]))[:c]
        assert_close(share, row[best] / row[best].sum(), atol=1e-6, rtol=1e-6)


def test_equal_logits_go_to_the_smaller_number() -> None:
    logits = torch.tensor([[1.0, 2.0, 1.0, 2.0, 1.0, 0.0], [0.0] * 6, [-300.0, -300.0, 5.0, 5.0, -300.0, 5.0]])
    probabilities, weights, chosen = router.choose_experts(logits, 3)
    assert chosen.tolist() == [[1, 3, 0], [0, 1, 2], [2, 3, 5]]
    assert_close(weights[1:], torch.full((2, 3), 1 / 3))
    assert_close(probabilities.sum(-1), torch.ones(3))


def test_a_token_that_no_second_expert_wants_gets_no_other_twice() -> None:
    """Probabilities of 0 are chosen too, and each expert once."""
    logits = torch.tensor([[500.0, -500.0, -400.0, -600.0]])
    probabilities, weights, chosen = router.choose_experts(logits, 3)
    assert chosen.tolist() == [[0, 2, 1]] and weights.tolist() == [[1.0, 0.0, 0.0]]
    assert probabilities.tolist() == [[1.0, 0.0, 0.0, 0.0]]


def test_wrong_logits_are_refused_by_name() -> None:
    assert [len(z) for z in router.choose_experts(torch.empty(0, 4), 2)] == [0, 0, 0]
    for count in (0, 5):
        with pytest.raises(ValueError, match=f"expected to choose 1 to 4 experts, got {count}"):
            router.choose_experts(torch.zeros(2, 4), count)
    with pytest.raises(ValueError, match=r"needs float32 on a CUDA device, got torch.bfloat16"):
        router.choose_experts(torch.zeros(2, 4).bfloat16(), 2)


def test_a_studys_rule_chooses_in_the_place_of_the_kernel(fusing) -> None:
    gate, x = (
        MixtureOfExperts(TextConfig(width=24, experts=6, experts_per_token=2, expert_width=20)).gate,
        torch.randn(5, 24),
    )
    gate.requires_grad_(False).rule = lambda p: torch.tensor([[5, 0]]).expand(len(p), 2)
    probabilities, weights, chosen = gate(x)
    assert chosen.tolist() == [[5, 0]] * 5 and not fusing
    assert_close(weights, F.normalize(probabilities[:, [5, 0]], p=1, dim=1))


# ------------------------------------------------------------------------------------------------------------- experts


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("r", "m"), [(1, 48), (4, 8), (5, 12), (9, 33), (3, 1)])
def test_activation(r, m, dtype) -> None:
    x = (4 * torch.randn(r, 2 * m)).to(dtype)
    got = experts.swiglu(x)
    assert got.dtype == dtype
    bound = swiglu_bound(x)
    assert_within(got, bound.exact, bound.error)
    gate, up = x.chunk(2, dim=-1)
    if dtype == torch.float32:
        assert_close(got, F.silu(gate) * up, **NEAR)


@pytest.mark.filterwarnings("ignore:overflow")
def test_activation_of_gates_whose_exponential_is_infinite_or_0() -> None:
    x = torch.tensor([[-200.0, 200.0, -90.0, 0.0, 3.0, 3.0, 1e6, 3.0]])
    assert_close(experts.swiglu(x), torch.tensor([[0.0, 600.0, 0.0, 0.0]]), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize(("n", "c", "d"), [(1, 2, 16), (3, 1, 24), (7, 3, 40), (2, 8, 33)])
def test_sum_of_rows_where_they_lie(n, c, d, residual, dtype) -> None:
    y, weights = torch.randn(n * c, d).to(dtype), torch.rand(n, c)
    place, stream = torch.randperm(n * c).view(n, c), torch.randn(n, d).to(dtype) if residual else None
    got = experts.weighted_sum(y, place, weights, stream)
    bound = weighted_rows(y, place, weights, stream)
    assert got.dtype == dtype
    assert_within(got, bound.exact, bound.error)
    for token in range(n):
        by_hand = sum(weights[token, k] * y[place[token, k]].float() for k in range(c))
        by_hand = by_hand + (stream[token].float() if residual else 0)
        assert_close(got[token].float(), by_hand, atol=1e-5 if dtype == torch.float32 else 0.05, rtol=1e-2)
    assert torch.equal(experts.weighted_sum(y, place.int(), weights, stream), got)


def test_nothing_to_activate_or_to_add_up() -> None:
    assert experts.swiglu(torch.empty(0, 8)).shape == (0, 4)
    empty = torch.empty(0, 2)
    assert experts.weighted_sum(torch.empty(0, 8), empty.long(), empty, None).shape == (0, 8)


@pytest.mark.parametrize("tokens", [1, 2, 7])
def test_mixture_as_pytorch_computes_it(tokens, fusing) -> None:
    config = TextConfig(width=24, experts=6, experts_per_token=3, expert_width=20)
    mixture, x, stream = MixtureOfExperts(config), torch.randn(1, tokens, 24), torch.randn(1, tokens, 24)
    with torch.no_grad():
        for residual in (None, stream):
            wanted, _, chosen = mixture(x, residual, "torch")
            got, _, again = mixture(x, residual)
            assert torch.equal(chosen, again)
            assert_close(got, wanted, **NEAR)
    assert fusing["swiglu"] == fusing["weighted_sum"] == fusing["choose_experts"] == 2


def test_idle_experts_and_pieces(fusing) -> None:
    """Two of six experts are asked, five tokens pass in pieces of two; a residual goes with its piece."""
    layer = MixtureOfExperts(TextConfig(width=24, experts=6, experts_per_token=2, expert_width=20)).experts
    x, stream, weights = torch.randn(5, 24), torch.randn(5, 24), torch.rand(5, 2)
    chosen = torch.tensor([[1, 3], [3, 1], [1, 3], [1, 3], [3, 1]])
    with torch.no_grad():
        wanted = layer(x, weights, chosen, stream, "torch")
        layer.fused_tokens = 2
        assert_close(layer(x, weights, chosen, stream), wanted, **NEAR)
    assert fusing["weighted_sum"] == 3


# --------------------------------------------------------------------------------------------------------------- heads


def attention(h=4, g=2, e=16, j=2, i=8) -> tuple[Attention, KeyeConfig]:
    """A layer of attention whose every weight matters, norms and the bias included."""
    nano, part = KeyeConfig.nano(), e // (6 if e % 8 else 8)
    section = (e // 2 - 2 * part, part, part)
    text = replace(nano.text, width=24, heads=h, kv_heads=g, head_width=e, mrope_section=section, norm_eps=0.25)
    config = replace(nano, text=text, indexer=IndexerConfig(heads=j, width=i, topk=4, norm_eps=0.06))
    layer = Attention(config).eval().requires_grad_(False)
    for name, p in layer.named_parameters():
        torch.nn.init.normal_(p, mean=float("norm" in name), std=0.3)
    return layer, config


def step_of(config, b, t, offset=0, **rest) -> Step:
    positions = torch.randint(0, 50, (3, b, t))
    options = {"offset": offset, "start": None, "mode": "dense", "backend": "auto", "observer": None}
    return Step.of(config, positions, **(options | rest))


def by_modules(layer, x, step) -> dict[str, torch.Tensor]:
    index_q, index_k, gates = layer.sa_indexer(x, *step.index_rotation)
    q, k, v = layer.project(x, step)
    return {"q": q, "k": k, "v": v, "index_q": index_q, "index_k": index_k, "gates": gates}


def by_kernel(layer, x, step, cache=None) -> dict[str, torch.Tensor]:
    (q, k, v), (index_q, index_k, gates) = layer.project_in_place(x, step, cache)
    return {"q": q, "k": k, "v": v, "index_q": index_q, "index_k": index_k, "gates": gates}


@pytest.mark.parametrize(
    ("h", "g", "e", "j", "i"),
    [(4, 2, 16, 2, 8), (1, 1, 6, 1, 6), (6, 3, 12, 3, 6), (8, 1, 32, 5, 16), (2, 2, 16, 16, 24)],
)
@pytest.mark.parametrize(("b", "t"), [(1, 1), (2, 5)])
def test_heads_as_the_modules_make_them(h, g, e, j, i, b, t) -> None:
    layer, config = attention(h, g, e, j, i)
    x, step = torch.randn(b, t, 24), step_of(config, b, t)
    got, wanted = by_kernel(layer, x, step), by_modules(layer, x, step)
    assert got["gates"].dtype == torch.float32
    for name, z in wanted.items():
        assert_close(got[name], z, **NEAR, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_are_as_near_as_their_arithmetic_allows(dtype) -> None:
    layer, config = attention(e=32, i=16)
    layer, x, step = layer.to(dtype), torch.randn(2, 3, 24).to(dtype), step_of(config, 2, 3)
    got, bounds = by_kernel(layer, x, step), head_norms(layer, x, step)
    for name, bound in bounds.items():
        assert_within(got[name], bound.exact, bound.error, name)


def test_rotation_turns_and_norms_are_those_of_the_right_head() -> None:
    """By hand: one head of two channels, (3, 4) / rms, a quarter turn."""
    rows = ([3.0, 4.0], [4.0, 3.0], [5.0, 6.0], [3.0, 4.0, 0.5], [1.0, 3.0])
    raw = ops.Projected(*(torch.tensor([[x]]) for x in rows))
    one = torch.ones(2)
    norms = ops.Norms(one, 2 * one, 3 * one, one, torch.tensor([0.0, 10.0]), 0.0, 0.0)
    quarter = torch.zeros(1, 1, 2), torch.ones(1, 1, 2)
    slots = torch.empty(1, 1, 1, 2), torch.empty(1, 1, 1, 2), torch.empty(1, 1, 2)
    q, index_q, gates = ops.place_heads(raw, norms, quarter, quarter, slots)
    rms = 12.5**0.5
    assert_close(q.flatten(), torch.tensor([-4 / rms, 3 / rms]))
    assert_close(slots[0].flatten(), torch.tensor([-6 / rms, 8 / rms]))
    assert_close(slots[1].flatten(), torch.tensor([5.0, 6.0]))
    assert_close(index_q.flatten(), torch.tensor([-12 / rms, 9 / rms]))
    assert_close(slots[2].flatten(), torch.tensor([-11.0, -1.0]))  # (1, 3) -> (-1, 1), plus (0, 10)
    assert gates.item() == 0.5


def test_keys_go_where_the_cache_has_room_and_nowhere_else() -> None:
    """Two chunks of a prompt, then a store that has to grow; rows of the batch lie a capacity apart."""
    layer, config = attention()
    ours, theirs = LayerCache(9), LayerCache(9)
    whole = step_of(config, 2, 11)
    x = torch.randn(2, 11, 24)
    for part, step in zip((slice(0, 3), slice(3, 7), slice(7, 11)), (*whole.chunks(4),), strict=True):
        cos, sin = (z[:, part] for z in whole.rotation)
        step = replace(whole, rotation=(cos, sin), index_rotation=tuple(z[:, part] for z in whole.index_rotation))
        got, new = by_kernel(layer, x[:, part], step, ours), by_modules(layer, x[:, part], step)
        kept = theirs.append(new["k"], new["v"], new["index_k"])
        assert ours.length == theirs.length == part.stop
        for name, z in zip(("k", "v", "index_k"), kept, strict=True):
            assert_close(got[name], z, **NEAR)
        for store in ours._stores:
            assert store[:, part.stop :].isnan().all(), "room that nobody asked for was written"


def test_keys_go_where_only_the_device_knows() -> None:
    """As in a CUDA graph: one token a row, at lengths - 1."""
    layer, config = attention()
    lengths = torch.tensor([3, 6], dtype=torch.int32)
    caches = LayerCache(8), LayerCache(8)
    for cache in caches:
        cache.append(torch.ones(2, 5, 2, 16), torch.ones(2, 5, 2, 16), torch.ones(2, 5, 8))
        cache.clear_room()
    x, step = torch.randn(2, 1, 24), step_of(config, 2, 1, lengths=lengths)
    got, new = by_kernel(layer, x, step, caches[0]), by_modules(layer, x, step)
    wanted = caches[1].write(new["k"], new["v"], new["index_k"], lengths - 1)
    assert caches[0].length == 5
    for name, z in zip(("k", "v", "index_k"), wanted, strict=True):
        assert_close(got[name], z, **NEAR)


def test_wrong_input_is_refused_by_name() -> None:
    layer, config = attention()
    step, x = step_of(config, 1, 2), torch.randn(1, 2, 24)
    raw = [f(x) for f in (layer.q_proj, layer.k_proj, layer.v_proj, layer.sa_indexer.q_proj, layer.sa_indexer.k_proj)]
    norms = ops.Norms(*(torch.ones(n) for n in (16, 16, 8, 8, 8)), 1e-6, 1e-6)
    slots = [torch.empty(1, 2, 2, 16), torch.empty(1, 2, 2, 16), torch.empty(1, 2, 8)]
    good = {"projected": raw, "norms": norms, "rotation": step.rotation, "index_rotation": step.index_rotation}
    bad = {
        "projected": ops.Projected(raw[0], raw[1], raw[2][..., :16], raw[3], raw[4]),
        "norms": norms._replace(k=torch.ones(8)),
        "rotation": step.index_rotation,
        "index_rotation": step.rotation,
        "slots": (slots[0], slots[1][..., :1, :], slots[2]),
    }
    ops.place_heads(**good | {"projected": ops.Projected(*raw), "slots": tuple(slots)})
    for name, value in bad.items():
        arguments = good | {"projected": ops.Projected(*raw), "slots": tuple(slots)} | {name: value}
        with pytest.raises(ValueError, match=f"need {name} of shapes"):
            check_heads(**arguments)
    with pytest.raises(ValueError, match="expected gate channels and as many of up, got 5 in all"):
        ops.swiglu(torch.randn(2, 5))
    y, place, weights = torch.randn(6, 8), torch.zeros(3, 2, dtype=torch.long), torch.rand(3, 2)
    for wrong in ((place[:2], weights, None), (place.float(), weights, None), (place, weights, y)):
        with pytest.raises(ValueError, match=r"rows \[6, 8\] need int places"):
            check_sum(y, *wrong)
    gaps = (torch.empty(1, 2, 2, 32)[..., ::2], slots[1], slots[2])
    with pytest.raises(ValueError, match="channels side by side"):
        ops.place_heads(**good | {"projected": ops.Projected(*raw), "slots": gaps})


# --------------------------------------------------------------------------------------------------------- whole model


class Seen:
    """What an observer is shown."""

    def __init__(self):
        self.tensors = []

    def attention(self, layer, trace) -> None:
        self.tensors += [trace.q, trace.k, trace.index_q, trace.index_k, trace.index_w]

    def routing(self, layer, probabilities, chosen) -> None:
        self.tensors += [probabilities, chosen.float()]


@pytest.fixture
def model() -> KeyeVL:
    torch.manual_seed(9)
    model = KeyeVL(KeyeConfig.nano()).eval().requires_grad_(False)
    for name, p in model.named_parameters():
        norm = "norm" in name and name.endswith("weight")
        torch.nn.init.normal_(p, mean=float(norm), std=0.3 if norm else 0.15)
    return model


@pytest.mark.parametrize(
    ("attention", "t", "padding", "chunk"),
    [("sparse", 1, 0, None), ("sparse", 19, 0, None), ("sparse", 19, 2, 7), ("dense", 19, 2, 7)],
)
def test_a_prompt_and_what_follows(model, attention, t, padding, chunk, fusing) -> None:
    """Fused against torch: logits, caches, what an observer is shown; then two more tokens from each one's cache."""
    ids, mask = torch.randint(256, (2, t)), torch.ones(2, t, dtype=torch.long)
    mask[0, :padding] = 0
    runs = {}
    for backend in ("auto", "torch"):
        cache, seen = model.new_cache(), Seen()
        options = {"attention": attention, "backend": backend}
        inputs = {"input_ids": ids, "attention_mask": mask}
        logits = [model(inputs, cache, chunk=chunk, observer=seen, **options).logits[mask.bool()]]
        for token in (torch.tensor([[5], [7]]), torch.tensor([[250], [3]])):
            inputs = {"input_ids": token}
            logits.append(model(inputs, cache, **options).logits)
        held = [store[:, : layer.length][:, padding:] for layer in cache.layers for store in layer._stores]
        runs[backend] = logits, held, seen.tensors
        chunks = -(-t // (chunk or t)) + 2
        assert fusing == {name: 2 * chunks for name in NAMES}
    for got, wanted in zip(*runs.values(), strict=True):
        assert len(got) == len(wanted)
        for a, x in zip(got, wanted, strict=True):
            assert_close(a, x, **NEAR)


def test_the_same_tokens_are_generated(model, fusing) -> None:
    inputs = {"input_ids": torch.randint(256, (2, 20))}
    said = [model.generate(inputs, max_new_tokens=6, backend=backend).ids for backend in ("auto", "torch")]
    assert fusing["place_heads"] == 2 * 6 and torch.equal(*said)
    assert len(set(said[0].flatten().tolist())) > 3, "a model that repeats one token would show nothing"
