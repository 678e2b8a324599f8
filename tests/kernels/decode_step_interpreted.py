"""The fused decode step in Triton's interpreter. test_interpreted_step.py runs this file elsewhere.

Axes: b batch, d width, s key position, h query head, g KV head, e head width, j indexer head, i indexer width,
k selected key, x expert, m hidden channel of an expert.
Oracle: the model's own layers and steps in float32. What a kernel leaves unwritten is nan: see `poison`; and so is the
cache wherever no row has a token.
"""

import copy
from dataclasses import replace

import pytest
import torch

from minikeye import KeyeConfig, KeyeVL, ops
from minikeye.files import CHECKPOINT
from minikeye.inference.fused_step import FusedStep, layer_weights
from minikeye.inference.static_step import StaticStep
from minikeye.kernels.decode.decode_select import select_scored
from minikeye.kernels.decode.dependent import ALONE, dependent
from minikeye.kernels.decode.step.expert import one_token_experts
from minikeye.kernels.decode.step.experts import batch_experts
from minikeye.kernels.decode.step.norms import add_norm
from minikeye.kernels.decode.step.products import product, tile
from minikeye.kernels.decode.step.route import awake_experts, route
from minikeye.kernels.decode.step.scores import token_scores
from minikeye.kernels.launch import INTERPRETED
from minikeye.model.cache import LayerCache
from minikeye.model.decoder import DecoderLayer
from minikeye.model.moe import MixtureOfExperts
from minikeye.model.step import Step
from minikeye.ops.decode_step import beyond_step

pytestmark = pytest.mark.usefixtures("poison")
ROOM = 70  # tokens that a cache can hold: tiles, chunks and blocks of all kernels, the last of each cut off


def test_this_is_the_interpreter() -> None:
    assert INTERPRETED and dependent(torch.device("cpu")) == ALONE


# ------------------------------------------------------------------------------------------------------- whole layers

NANO = KeyeConfig.nano()
ODD = replace(  # nothing is a power of two that need not be
    NANO,
    text=replace(NANO.text, width=80, heads=10, experts=6, experts_per_token=3),
    indexer=replace(NANO.indexer, heads=3, topk=20),
)
ALONE_IN_GROUPS = replace(  # a KV head for each query head, one expert for each token, norms that can be told apart
    NANO,
    text=replace(NANO.text, heads=3, kv_heads=3, experts_per_token=1, norm_eps=0.3),
    indexer=replace(NANO.indexer, norm_eps=0.7),
)
CONFIGS = {"nano": NANO, "odd": ODD, "alone in groups": ALONE_IN_GROUPS}


def a_layer(config: KeyeConfig) -> DecoderLayer:
    """With weights that make scores and routers lively, and norms that are not the identity."""
    layer = DecoderLayer(config)
    for name, p in layer.named_parameters():
        torch.nn.init.normal_(p, mean=float("norm" in name and "bias" not in name), std=0.2)
    return layer.requires_grad_(False)


def a_cache(config: KeyeConfig, b: int, lengths: torch.Tensor, start: torch.Tensor | None) -> LayerCache:
    """Random tokens where a row has some before its newest, nan everywhere else."""
    text, cache = config.text, LayerCache()
    k, v = torch.randn(2, b, ROOM, text.kv_heads, text.head_width)
    cache.append(k, v, torch.randn(b, ROOM, config.indexer.width))
    s = torch.arange(ROOM)
    held = (s < lengths[:, None] - 1) & (s >= (0 if start is None else start[:, None]))
    for store in cache.stores:
        store.masked_fill_(~held.view(*held.shape, *(1 for _ in store.shape[2:])), torch.nan)
    return cache


def rows_of(step: Step) -> ops.Rows:
    cos, sin = (torch.cat(pair, dim=-1)[:, 0] for pair in zip(step.rotation, step.index_rotation, strict=True))
    return ops.Rows(cos, sin, step.lengths, step.start)


def a_step(config: KeyeConfig, lengths: torch.Tensor, start: torch.Tensor | None, mode: str) -> Step:
    positions = torch.randint(0, 3000, (len(lengths),))[None, :, None].expand(3, -1, -1)
    counts = {"offset": 0, "start": start, "lengths": lengths}
    return Step.of(config, positions, mode=mode, backend="torch", observer=None, **counts)


LENGTHS = {1: [50], 2: [70, 9], 3: [41, 64, 1], 16: [*range(5, 69, 4)]}
CASES = [
    *(("nano", b, mode, padded) for b in LENGTHS for mode in ("sparse", "dense") for padded in (False, True)),
    *((name, b, mode, True) for name in ("odd", "alone in groups") for b in (1, 3) for mode in ("sparse", "dense")),
]


@pytest.mark.parametrize(("name", "b", "mode", "padded"), CASES)
def test_a_layer_is_the_models_layer(name, b, mode, padded) -> None:
    """Output and cache; rows longer and shorter than the keys that a query reads, of one token too."""
    config, lengths = CONFIGS[name], torch.tensor(LENGTHS[b], dtype=torch.int32)
    start = (lengths // 3).long() if padded else None
    layer, sizes = a_layer(config), ops.step_sizes(config)
    assert beyond_step(config, b) == ""
    true, fused = a_cache(config, b, lengths, start), LayerCache()
    fused.append(*(store.clone() for store in true.stores))
    x, parts, step = torch.randn(b, config.text.width), torch.randn(2, b, config.text.width), None
    step = a_step(config, lengths, start, mode)
    if mode == "dense":
        for store in true.stores:  # the masks of torch's kernel do not stop nan
            store.nan_to_num_()
    want, _ = layer((x + parts.sum(0))[:, None], step, true)
    weights = layer_weights(layer, sizes.columns)
    got, rest = ops.decode_layer(x, parts, weights, fused.stores, rows_of(step), sizes, mode)
    torch.testing.assert_close(got + rest.sum(0), want[:, 0], atol=1e-5, rtol=1e-5)
    assert got.isfinite().all() and rest.isfinite().all()
    for written, model in zip(fused.stores, true.stores, strict=True):
        torch.testing.assert_close(written, torch.where(written.isnan(), torch.nan, model), equal_nan=True)
        assert torch.equal(written[range(b), lengths.long() - 1].isnan(), torch.zeros_like(written[:, 0]).bool())
        assert written.isnan().sum() == torch.where(model == 0, torch.nan, model).isnan().sum()


def test_the_same_bits_again() -> None:
    lengths = torch.tensor([40, 55], dtype=torch.int32)
    layer, sizes, step = a_layer(NANO), ops.step_sizes(NANO), a_step(NANO, lengths, None, "sparse")
    weights, x = layer_weights(layer, sizes.columns), torch.randn(2, NANO.text.width)
    cache = a_cache(NANO, 2, lengths, None)
    first, again = (ops.decode_layer(x, None, weights, cache.stores, rows_of(step), sizes, "sparse") for _ in "ab")
    assert all(map(torch.equal, first, again))


# --------------------------------------------------------------------------------------------------------- the kernels


@pytest.mark.parametrize("b", [1, 5, 16])
@pytest.mark.parametrize("d", [64, 80, 7])
def test_sum_and_norm(b, d) -> None:
    x, parts, weight = torch.randn(b, d), torch.randn(3, b, d), torch.randn(d)
    total, z = add_norm(x, parts, weight, 0.1)
    torch.testing.assert_close(total, x + parts.sum(0))
    torch.testing.assert_close(z, torch.nn.functional.rms_norm(x + parts.sum(0), (d,), weight, 0.1))
    assert torch.equal(add_norm(x, None, weight, 0.1)[0], x)


@pytest.mark.parametrize("b", [1, 2, 16])
@pytest.mark.parametrize(("n", "k", "splits"), [(64, 96, 1), (33, 80, 1), (50, 64, 2), (5, 160, 2)])
def test_products(b, n, k, splits) -> None:
    """The splits are shares of the sum in order."""
    x, w = torch.randn(b, k), torch.randn(n, k)
    shares = zip(x.chunk(splits, dim=1), w.chunk(splits, dim=1), strict=True)
    torch.testing.assert_close(product(x, w, splits), torch.stack([a @ c.T for a, c in shares]), atol=1e-5, rtol=1e-5)


def test_tiles_divide() -> None:
    assert [tile(n, 64) for n in (768, 48, 80, 32, 2048)] == [64, 16, 16, 32, 64]


@pytest.mark.parametrize("padded", [False, True])
def test_scores_and_the_keys_they_choose(padded) -> None:
    """Scores by the formula from the columns as they lie; the choice from these very scores bit by bit, ties too."""
    lengths = torch.tensor([70, 33, 18, 2, 1], dtype=torch.int32)
    start = torch.tensor([40, 3, 0, 1, 0]) if padded else None
    sizes, layer, step = ops.step_sizes(NANO), a_layer(NANO), a_step(NANO, lengths, start, "sparse")
    cache = a_cache(NANO, 5, lengths, start)
    index_k = cache.stores[2]
    index_k[:, 10:30] = torch.where(index_k[:, 10:30].isnan(), torch.nan, 1.0)  # many equal scores
    x = torch.randn(5, 1, NANO.text.width)
    weights = layer_weights(layer, sizes.columns)
    scores = token_scores(x[:, 0] @ weights.projections.T, weights, cache.stores, rows_of(step), sizes)
    q, _, w = layer.self_attn.sa_indexer(x, *step.index_rotation)
    chosen = select_scored(scores, ROOM, sizes.topk, lengths, start, ALONE)
    for b, length in enumerate(lengths.tolist()):
        row, first = slice(b, b + 1), None if start is None else start[b : b + 1]
        want = ops.index_scores(q[row], index_k[row, :length], w[row], length - 1, first)
        got = scores[b, :length].masked_fill(want[0, 0] == -torch.inf, -torch.inf)
        torch.testing.assert_close(got, want[0, 0], atol=1e-5, rtol=1e-5)
        assert torch.equal(chosen[b], ops.topk_positions(got[None, None], sizes.topk)[0, 0])


@pytest.mark.parametrize("b", [1, 4, 16])
def test_the_router(b) -> None:
    x, parts, norm, w = torch.randn(b, 80), torch.randn(2, b, 80), torch.randn(80), torch.randn(6, 80)
    total, z, logits = route(x, parts, norm, w, 1e-3)
    want = torch.nn.functional.rms_norm(x + parts.sum(0), (80,), norm, 1e-3)
    torch.testing.assert_close(total, x + parts.sum(0))
    torch.testing.assert_close(z, want)
    torch.testing.assert_close(logits, want @ w.T, atol=1e-5, rtol=1e-5)


def test_awake_experts_by_hand() -> None:
    """Two of six: the largest two, of equals the first; rows of no token choose nothing."""
    logits = torch.tensor([[0.0, 3, 1, 3, 3, 2], [5, 5, 5, 5, 5, 5], [-1, -9, -8, -7, 0, -2]])
    weights, awake, count = awake_experts(logits, 2)
    assert count.tolist() == [4] and awake[:4].tolist() == [0, 1, 3, 4]
    e = torch.tensor(1.0).exp()
    want = torch.zeros(16, 6)
    want[0, [1, 3]], want[1, [0, 1]] = 0.5, 0.5
    want[2, 4], want[2, 0] = e / (1 + e), 1 / (1 + e)
    torch.testing.assert_close(weights, want)


@pytest.mark.parametrize("b", [1, 2, 16])
@pytest.mark.parametrize(("experts", "chosen", "m"), [(4, 2, 48), (6, 3, 16), (8, 8, 32), (5, 1, 80)])
def test_experts(b, experts, chosen, m) -> None:
    """Against the model's mixture of experts; in a batch some experts sleep."""
    text = replace(NANO.text, experts=experts, experts_per_token=chosen, expert_width=m)
    mlp = MixtureOfExperts(text).requires_grad_(False)
    z = torch.randn(b, text.width)
    logits = z @ mlp.gate.weight.T
    w = mlp.experts.gate_up_proj, mlp.experts.down_proj
    if b == 1:
        got = one_token_experts(z, logits, *w, chosen)
    else:
        got = batch_experts(z, awake_experts(logits, chosen), *w, min(experts, b * chosen))
    torch.testing.assert_close(got.sum(0), mlp(z[:, None])[0][:, 0], atol=1e-5, rtol=1e-4)


def test_equal_logits_of_one_token() -> None:
    """All alike: the first experts, with equal weights."""
    z, gate_up, down = torch.randn(1, 64), torch.randn(6, 64, 32), torch.randn(6, 16, 64)
    got = one_token_experts(z, torch.zeros(1, 6), gate_up, down, 3)
    gate, up = torch.einsum("d,xdm->xm", z[0], gate_up[:3]).chunk(2, dim=1)
    want = torch.einsum("xm,xmd->xd", torch.nn.functional.silu(gate) * up, down[:3]) / 3
    torch.testing.assert_close(got[:, 0], want, atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize("broken", [[2], [0, 3], range(6)])
def test_logits_that_are_nan_choose_experts_and_give_nan(broken) -> None:
    """Never a number that is no expert's, whose weights would be read from nowhere; and nothing that looks right."""
    torch.manual_seed(0)
    logits = torch.randn(3, 6)
    sound = logits.clone()
    logits[1, list(broken)] = torch.nan
    (weights, awake, count), (want, _, _) = awake_experts(logits, 3), awake_experts(sound, 3)
    named = awake[: int(count)].tolist()
    assert named == sorted(set(named)) and set(named) <= set(range(6))
    assert torch.equal(weights[[0, 2]], want[[0, 2]]) and weights[1].isnan().any()
    z, gate_up, down = torch.randn(1, 64), torch.randn(6, 64, 32), torch.randn(6, 16, 64)
    assert one_token_experts(z, logits[1:2].contiguous(), gate_up, down, 3).sum(0).isnan().all()


# ----------------------------------------------------------------------------------------------------------- the step


def walk(made: type[StaticStep], model: KeyeVL, ids: torch.Tensor, padding: int, mode: str, steps: int):
    """Logits and greedy tokens of a few steps behind a prompt, and the cache."""
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[-1, :padding] = False
    cache = model.new_cache(ids.shape[1] + steps + 3)
    logits = model({"input_ids": ids, "attention_mask": mask}, cache, attention=mode, last=1).logits
    step, found = made(model, cache, attention=mode), []
    for _ in range(steps):
        step.require_room()
        step.token.copy_(logits[:, -1].argmax(-1)[:, None])
        logits = step.run()
        step.count()
        found.append(logits)
    return torch.cat(found, dim=1), cache


@pytest.mark.parametrize(("b", "padding"), [(1, 0), (2, 5)])
@pytest.mark.parametrize("mode", ["sparse", "dense"])
@torch.no_grad()
def test_a_fused_step_is_a_static_step(lively, b, padding, mode) -> None:
    """From 14 tokens, fewer than a query may read, to 19; the cache goes on with an ordinary pass of the other mode."""
    ids = torch.randint(0, 256, (b, 14))
    (want, true), (got, cache) = (walk(made, lively, ids, padding, mode, 5) for made in (StaticStep, FusedStep))
    torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-5)
    assert torch.equal(got.argmax(-1), want.argmax(-1)) and cache.length == true.length == 19
    assert torch.equal(cache.next_position, true.next_position)
    other = {"attention": "dense" if mode == "sparse" else "sparse"}
    ahead, after = (lively({"input_ids": ids[:, :3]}, held, **other).logits for held in (true, cache))
    torch.testing.assert_close(after, ahead, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("b", "mode"), [(1, "sparse"), (3, "dense")])
@torch.no_grad()
def test_half_precision_rounds_as_the_model_does(lively, b, mode) -> None:
    """float16, which the interpreter can do: logits from float32's, no further than the model's own float16 is."""
    half = copy.deepcopy(lively).half()
    ids = torch.randint(0, 256, (b, 40))
    pairs = (StaticStep, copy.deepcopy(half).float()), (StaticStep, half), (FusedStep, half)
    exact, plain, fused = (walk(made, model, ids, 0, mode, 1)[0] for made, model in pairs)
    of_plain, of_fused = ((got - exact).abs().mean() for got in (plain, fused))
    assert 0 < of_fused <= 1.3 * of_plain, (of_fused, of_plain)


@torch.no_grad()
def test_the_shipped_checkpoint() -> None:
    """Other widths than the released model's: 300 tokens held, 256 read. 200 tokens of it: test_fused_step.py."""
    mini = KeyeVL.from_pretrained(CHECKPOINT, dtype=torch.float32)
    ids = torch.randint(0, 256, (1, 300))
    want, got = (walk(made, mini, ids, 0, "sparse", 1)[0] for made in (StaticStep, FusedStep))
    torch.testing.assert_close(got, want, atol=1e-3, rtol=1e-5)


@torch.no_grad()
def test_what_does_not_fit_is_refused(lively) -> None:
    sizes, layer = ops.step_sizes(NANO), lively.model.layers[0]
    lengths = torch.tensor([40], dtype=torch.int32)
    rows, stores = rows_of(a_step(NANO, lengths, None, "sparse")), a_cache(NANO, 1, lengths, None).stores
    weights, x = layer_weights(layer, sizes.columns), torch.randn(1, NANO.text.width)
    narrow = (*(store[..., :16].contiguous() for store in stores[:2]), stores[2])
    bad = {
        "attends sparse or dense, got 'masked'": (x, None, weights, stores, rows, sizes, "masked"),
        "expected keys, values and index keys": (x, None, weights, narrow, rows, sizes, "sparse"),
        r"expected projections \[320, 64\]": (x, None, layer_weights(layer, 300), stores, rows, sizes, "sparse"),
        "must be contiguous, of one dtype": (x.half(), None, weights, stores, rows, sizes, "sparse"),
        "the cache must be torch.float32": (x, None, weights, tuple(z.half() for z in stores), rows, sizes, "sparse"),
        "expected cos and sin": (x, None, weights, stores, rows._replace(cos=rows.sin[:, :5]), sizes, "sparse"),
    }
    for message, arguments in bad.items():
        with pytest.raises(ValueError, match=message):
            ops.decode_layer(*arguments)
