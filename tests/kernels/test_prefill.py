"""The kernels around attention: at the door, and on a GPU at released widths, bfloat16."""

from dataclasses import replace

import pytest
import torch
from error_bounds import assert_within, contract, given, head_norms, swiglu, weighted_rows

triton = pytest.importorskip("triton")

from minikeye import KeyeConfig, ops  # noqa: E402 - not before triton is known to be there
from minikeye.kernels.prefill import experts, heads, router  # noqa: E402
from minikeye.model.cache import LayerCache  # noqa: E402
from minikeye.model.decoder import DecoderLayer  # noqa: E402
from minikeye.model.step import Step  # noqa: E402

RELEASED = KeyeConfig.keye_vl_2_30b_a3b()


def test_without_a_gpu_the_doors_say_so() -> None:
    x = torch.zeros(1, 1, 4)
    with pytest.raises(ValueError, match="need a CUDA device, got cpu"):
        experts.swiglu(x[0])
    with pytest.raises(ValueError, match="need a CUDA device, got cpu"):
        experts.weighted_sum(x[0], torch.zeros(1, 1, dtype=torch.long), torch.ones(1, 1), None)
    with pytest.raises(ValueError, match=r"needs float32 on a CUDA device, got torch\.float32 on cpu"):
        router.choose_experts(x[0], 1)
    with pytest.raises(ValueError, match="needs a CUDA device, got cpu"):
        heads.place_heads((x,) * 5, (x[0, 0],) * 5, (x, x), (x, x), (x, x, x), 0.0, 0.0)


# ---------------------------------------------------------------------------------------------------- on a GPU

gpu = pytest.mark.gpu


@pytest.fixture
def card() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device("cuda")


def draw(*shape: int) -> torch.Tensor:
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


@gpu
@pytest.mark.parametrize("tokens", [1, 4099])
def test_experts_rows_on_a_gpu(tokens, card) -> None:
    """As near to float64 as arithmetic allows, and the same bits at every repeat."""
    text, n = RELEASED.text, tokens * RELEASED.text.experts_per_token
    gate_up = 3 * draw(n, 2 * text.expert_width)
    bound = swiglu(gate_up)
    got = ops.swiglu(gate_up)
    assert_within(got, bound.exact, bound.error, "activation")
    y, residual = draw(n, text.width), draw(tokens, text.width)
    place = torch.randperm(n, device=card).view(tokens, -1)
    weights = torch.rand(place.shape, device=card).softmax(-1)
    bound = weighted_rows(y, place, weights, residual)
    for _ in range(20):
        total = ops.weighted_sum(y, place, weights, torch.bfloat16, residual)
        assert_within(total, bound.exact, bound.error, "sum")
        assert total.equal(experts.weighted_sum(y, place, weights, residual))
    by_torch = ops.weighted_sum(y, place, weights, torch.bfloat16, residual, "torch")
    assert not by_torch.equal(total), "torch rounds twice: were they equal, torch would have answered both"


@gpu
def test_the_routers_product_on_a_gpu(card) -> None:
    text = RELEASED.text
    x, w = draw(16_384, text.width), draw(text.experts, text.width) * text.width**-0.5
    bound = contract("nd,xd->nx", given(x), given(w), text.width)
    got = ops.wide_product(x, w)
    assert got.dtype == torch.float32
    assert_within(got, bound.exact, bound.error)
    other = ops.wide_product(x, w, "torch")
    assert_within(other, bound.exact, bound.error)
    same = (got.topk(8).indices.sort().values == other.topk(8).indices.sort().values).all(-1).float().mean()
    assert same > 0.999, f"{float(same)} of the tokens go to the same experts"


@gpu
@pytest.mark.parametrize("tokens", [1, 5001])
def test_choice_of_experts_on_a_gpu(tokens, card) -> None:
    logits = 2 * torch.randn(tokens, RELEASED.text.experts, device=card)
    wanted = logits.double().softmax(-1)
    best = wanted.topk(RELEASED.text.experts_per_token)
    for _ in range(5):
        probabilities, weights, chosen = ops.choose_experts(logits, RELEASED.text.experts_per_token)
        torch.testing.assert_close(probabilities.double(), wanted, atol=1e-6, rtol=1e-5)
        shares = best.values / best.values.sum(-1, keepdim=True)
        torch.testing.assert_close(weights.double(), shares, atol=1e-6, rtol=1e-5)
        assert chosen.equal(best.indices), "random float32 logits hardly ever tie"


def layer_of(card) -> DecoderLayer:
    """One released layer whose norms matter."""
    torch.manual_seed(0)
    with torch.device(card):
        layer = DecoderLayer(RELEASED).bfloat16().eval().requires_grad_(False)
    for name, p in layer.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(p, mean=float(name.endswith("weight")), std=0.3)
    return layer


def step_of(b: int, t: int, card, backend: str = "auto", offset: int = 0) -> Step:
    positions = torch.arange(offset, offset + t, device=card).expand(3, b, t) + 100_000
    return Step.of(RELEASED, positions, offset=offset, start=None, mode="dense", backend=backend, observer=None)


@gpu
@pytest.mark.parametrize(("b", "t"), [(1, 1), (2, 515)])
def test_heads_on_a_gpu(b, t, card) -> None:
    """In a cache that holds tokens already; the room behind them stays as it was."""
    attention, step, x = layer_of(card).self_attn, step_of(b, t, card, offset=7), draw(b, t, RELEASED.text.width)
    held = draw(b, 7, 4, 128), draw(b, 7, 4, 128), draw(b, 7, 64)
    for _ in range(5):
        cache = LayerCache(t + 20)
        cache.append(*held)
        cache.clear_room()
        (q, k, v), (index_q, index_k, gates) = attention.project_in_place(x, step, cache)
        bounds = head_norms(attention, x, step)
        new = {"q": q, "k": k[:, 7:], "v": v[:, 7:], "index_q": index_q, "index_k": index_k[:, 7:], "gates": gates}
        for name, bound in bounds.items():
            assert_within(new[name], bound.exact, bound.error, name)
        for store, before in zip(cache._stores, held, strict=True):
            assert store[:, :7].equal(before) and not store[:, 7 + t :].any()


@gpu
@pytest.mark.parametrize(("b", "t"), [(1, 1), (2, 700)])
@torch.no_grad()
def test_a_layer_is_no_further_from_float64_than_unfused(b, t, card) -> None:
    """What a layer adds to its residual, dense, once fused and once not; the roundings of the stream are most of it.

    Experts are given: near ties would be chosen differently by all three, and one such token outweighs all rounding.
    """
    layer, x = layer_of(card), draw(b, t, RELEASED.text.width)
    given_experts = torch.rand(b * t, RELEASED.text.experts, device=card).topk(RELEASED.text.experts_per_token).indices
    layer.mlp.gate.rule = lambda probabilities: given_experts
    outs, caches = {}, {}
    for backend in ("auto", "torch"):
        caches[backend] = LayerCache(t)
        outs[backend], _ = layer(x, step_of(b, t, card, backend), caches[backend])
        again, _ = layer(x, step_of(b, t, card, backend), LayerCache())
        assert outs[backend].equal(again), f"{backend}: other bits at a repeat"
    for store, other in zip(caches["auto"]._stores, caches["torch"]._stores, strict=True):
        assert (store.float() - other.float()).norm() < 0.01 * other.float().norm()
    assert not outs["auto"].equal(outs["torch"]), "fused and unfused round differently: one of them ran twice"
    exact, _ = layer.double()(x.double(), step_of(b, t, card, "torch"), None)
    update = (exact - x.double()).norm()
    errors = [float((out.double() - exact).norm() / update) for out in outs.values()]
    assert errors[0] < 1.05 * errors[1] and errors[1] < 0.1, errors


@gpu
@torch.no_grad()
def test_pieces_of_tokens_change_nothing(card) -> None:
    """More tokens than a pass of the experts takes; what may differ is the tiling of their products."""
    mixture, x = layer_of(card).mlp, draw(1, 5000, RELEASED.text.width)
    whole, _, chosen = mixture(x, x)
    mixture.experts.fused_tokens = 1024
    pieces, _, again = mixture(x, x)
    assert chosen.equal(again)
    assert (whole.float() - pieces.float()).norm() < 0.01 * whole.float().norm()


@gpu
@torch.no_grad()
def test_a_layer_in_a_graph(card) -> None:
    """Captured after one run outside, replayed on another input: what the eager layer gives."""
    layer, (x, other) = layer_of(card), (draw(2, 1, RELEASED.text.width) for _ in range(2))
    cache, lengths = LayerCache(16), torch.full((2,), 6, dtype=torch.int32, device=card)
    cache.append(draw(2, 5, 4, 128), draw(2, 5, 4, 128), draw(2, 5, 64))
    cache.clear_room()
    step = replace(step_of(2, 1, card), lengths=lengths)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        stale, _ = layer(x, step, cache)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out, _ = layer(x, step, cache)
    x.copy_(other)
    graph.replay()
    wanted, _ = layer(other, step, cache)
    assert (out - wanted).norm() < 0.01 * wanted.norm() < 0.1 * (out - stale).norm()
