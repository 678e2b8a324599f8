"""The fused decode step: its launches compiled for sm_80 and sm_90 as a card would get them, and, on a GPU, a layer."""

import re
from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton")

from minikeye import KeyeConfig, ops
from minikeye.evaluation.kernels.compiled_step import Launch, distinct, step_launches
from minikeye.inference.fused_step import layer_weights
from minikeye.kernels.decode.dependent import ALONE
from minikeye.kernels.decode.step import attend, expert, experts, layer, norms, products, route, scores
from minikeye.model.cache import LayerCache
from minikeye.model.decoder import DecoderLayer
from minikeye.model.step import Step

RELEASED = KeyeConfig.keye_vl_2_30b_a3b()
SELECT = ("token_scores_kernel", "decode_filter_kernel", "decode_finish_kernel", "attend_chosen_kernel")
ONE = ("one_gate_up_kernel", "one_down_kernel")
MANY = ("awake_kernel", "gate_up_kernel", "down_kernel")


def order(attend: tuple[str, ...], mix: tuple[str, ...]) -> list[str]:
    """A layer, then the head."""
    before, after = ("add_norm_kernel", "product_kernel"), ("decode_combine_kernel", "product_kernel", "route_kernel")
    return [*before, *attend, *after, *mix, *before]


@pytest.mark.parametrize("sm", [90, 80])
@pytest.mark.parametrize(("batch", "mix"), [(1, ONE), (2, MANY), (16, MANY)])
def test_eleven_kernels_a_layer(sm, batch, mix) -> None:
    """Eight of dense attention, one more in a batch; two for the head."""
    sparse, dense = (step_launches(sm, batch, attention) for attention in ("sparse", "dense"))
    assert [launch.name for launch in sparse] == order(SELECT, mix)
    assert [launch.name for launch in dense] == order(("attend_all_kernel",), mix)


# At the released shapes, of sparse or dense attention, by batch and architecture: registers a thread and bytes of
# shared memory, at most.
CEILING = {
    "add_norm_kernel": (64, 1_024),
    "product_kernel": (64, 53_248),
    "token_scores_kernel": (72, 53_248),
    "decode_filter_kernel": (112, 1_024),
    "decode_finish_kernel": (128, 16_384),
    "attend_chosen_kernel": (112, 36_864),
    "attend_all_kernel": (128, 102_400),
    "decode_combine_kernel": (96, 4_096),
    "route_kernel": (64, 1_024),
    "one_gate_up_kernel": (112, 66_560),
    "one_down_kernel": (88, 114_688),
    "awake_kernel": (64, 4_096),
    "gate_up_kernel": (72, 73_728),
    "down_kernel": (80, 65_536),
}
CASES = [(1, "sparse", False), (1, "dense", True), (16, "sparse", True), (16, "dense", False)]


@pytest.mark.parametrize("sm", [90, 80])
@pytest.mark.parametrize(("batch", "attention", "padded"), CASES)
def test_released_shapes(batch, attention, padded, sm) -> None:
    """Some of them twice, with other numbers: two products and the head's, two norms."""
    for name, launch in distinct(step_launches(sm, batch, attention, padded=padded)).items():
        made = launch.compile(sm)
        registers, shared = CEILING[launch.name]
        assert made.spilled == 0 and made.registers <= registers and made.shared <= shared, (name, made)


def test_every_kernel_has_a_ceiling() -> None:
    assert set(CEILING) == set(order((*SELECT, "attend_all_kernel"), ONE + MANY))


MINI = KeyeConfig.mini()
ODD = replace(
    MINI,
    text=replace(MINI.text, width=240, heads=10, experts=6, experts_per_token=3, expert_width=80),
    indexer=replace(MINI.indexer, heads=5),
)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("config", [MINI, KeyeConfig.nano(), ODD], ids=("mini", "nano", "odd"))
def test_other_widths_compile(config, batch) -> None:
    """A few bytes spilled are slow, not wrong: Triton 3.6 does so in the finish of a row of 256."""
    for attention in ("sparse", "dense"):
        for name, launch in distinct(step_launches(90, batch, attention, 2000, True, config)).items():
            assert launch.compile(90).spilled <= 64, name


@pytest.fixture(scope="module")
def by_name() -> dict[str, Launch]:
    """Of batch 1, both kinds of attention, and of a batch."""
    launches = [step_launches(90, *case) for case in ((16, "dense"), (1, "dense"), (1, "sparse"))]
    return {launch.name: launch for some in launches for launch in some}


def loads(ptx: str) -> int:
    return len(re.findall(r"ld\.global|cp\.async\.c[ag]\.shared\.global", ptx))


def test_nothing_that_another_kernel_wrote_is_read_before_the_wait(by_name) -> None:
    """Weights may be: in the kernels that say so. And nothing is written."""
    early = {"add_norm_kernel": 1, "route_kernel": 2}  # what the source loads before it waits: norms, a router
    for name, launch in by_name.items():
        ptx = launch.compile(90).ptx
        assert ptx.count("griddepcontrol.wait") == 1, name
        before = ptx[: ptx.index("griddepcontrol.wait")]
        assert (loads(before) > 0) == (name in early) and "st.global" not in before, name


def test_the_next_kernel_is_let_in_before_the_last_store_or_at_the_start(by_name) -> None:
    at_the_start = {"add_norm_kernel", "decode_filter_kernel", "decode_finish_kernel", "decode_combine_kernel"}
    at_the_start |= {"route_kernel", "awake_kernel"}
    for name, launch in by_name.items():
        ptx = launch.compile(90).ptx
        assert ptx.count("griddepcontrol.launch_dependents") == 1, name
        released, waited = (ptx.index(f"griddepcontrol.{word}") for word in ("launch_dependents", "wait"))
        assert (released < waited) == (name in at_the_start), name


def test_cards_without_dependent_launch_do_without() -> None:
    for launch in step_launches(80, 1, "sparse"):
        assert "launch_pdl" not in launch.options and "griddepcontrol" not in launch.compile(80).ptx, launch.name


def test_weights_come_16_bytes_at_a_time_and_in_stages(by_name) -> None:
    for name in ("product_kernel", *ONE, "gate_up_kernel", "down_kernel", "attend_chosen_kernel", "attend_all_kernel"):
        ptx = by_name[name].compile(90).ptx
        assert re.search(r"cp\.async\.cg\.shared\.global[^;]*0x10", ptx) and "mma.sync" in ptx, name
    assert "wgmma.mma_async" in by_name["token_scores_kernel"].compile(90).ptx


# ---------------------------------------------------------------------------------------------------------- on a GPU


def needs_a_gpu() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(scope="module")
def released_layer() -> DecoderLayer:
    """One layer of the released widths on a GPU, bfloat16, norms that are not the identity."""
    needs_a_gpu()
    torch.manual_seed(5)
    with torch.device("cuda"):
        made = DecoderLayer(RELEASED).to(torch.bfloat16).requires_grad_(False)
    for name, p in made.named_parameters():
        if "norm" in name:
            torch.nn.init.normal_(p, mean=float("bias" not in name), std=0.1)
        elif p.ndim == 2:
            torch.nn.init.normal_(p, std=p.shape[1] ** -0.5)
    return made


def held(b: int, length: int, dtype: torch.dtype) -> LayerCache:
    """A cache of `length` tokens a row, the last of which is to be written."""
    random = torch.Generator("cuda").manual_seed(b)
    text, cache = RELEASED.text, LayerCache()
    shapes = 2 * [(b, length, text.kv_heads, text.head_width)] + [(b, length, RELEASED.indexer.width)]
    cache.append(*(torch.randn(s, device="cuda", generator=random).bfloat16().to(dtype) for s in shapes))
    return cache


def a_step(b: int, length: int, mode: str, backend: str = "auto") -> Step:
    lengths = torch.full((b,), length, dtype=torch.int32, device="cuda")
    lengths -= 3 * torch.arange(b, dtype=torch.int32, device="cuda")
    start = 5 * torch.arange(b, device="cuda")
    positions = (lengths.long() - 1)[None, :, None].expand(3, -1, 1)
    counts = {"offset": 0, "start": start, "lengths": lengths}
    return Step.of(RELEASED, positions, mode=mode, backend=backend, observer=None, **counts)


def rows_of(step: Step) -> ops.Rows:
    cos, sin = (torch.cat(pair, dim=-1)[:, 0] for pair in zip(step.rotation, step.index_rotation, strict=True))
    return ops.Rows(cos, sin, step.lengths, step.start)


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["sparse", "dense"])
@pytest.mark.parametrize(("b", "length"), [(1, 131_072), (1, 900), (5, 4096), (16, 16_384)])
@torch.no_grad()
def test_a_released_layer_rounds_as_the_model_does(released_layer, b, length, mode) -> None:
    """What the layer adds to the stream, from float32's: no further than the model's own bfloat16 is.

    Of half of the rows: rounding lets a row now and then choose another expert, in either.
    """
    x = torch.randn(b, RELEASED.text.width, device="cuda").bfloat16()
    step = a_step(b, length, mode)
    with torch.device("cuda"):
        exact_layer = DecoderLayer(RELEASED).requires_grad_(False)
    exact_layer.load_state_dict({name: p.float() for name, p in released_layer.state_dict().items()})
    exact = exact_layer(x.float()[:, None], step, held(b, length, torch.float32))[0][:, 0]
    del exact_layer
    caches = [held(b, length, torch.bfloat16) for _ in range(2)]
    plain = released_layer(x[:, None], step, caches[0])[0][:, 0]
    sizes = ops.step_sizes(RELEASED)
    weights = layer_weights(released_layer, sizes.columns)
    out, rest = ops.decode_layer(x, None, weights, caches[1].stores, rows_of(step), sizes, mode)
    errors = ((z - exact).norm(dim=1) / (exact - x.float()).norm(dim=1) for z in (plain.float(), out + rest.sum(0)))
    of_plain, of_fused = (error.median() for error in errors)
    assert of_fused <= 1.2 * of_plain + 0.01, (of_plain, of_fused)
    for ours, theirs in zip(caches[1].stores, caches[0].stores, strict=True):
        gap = (ours.float() - theirs.float()).abs()
        assert gap.max() < 0.1 and (gap > 0).sum() <= gap[:, :1].numel(), "only the new tokens' rows may differ"


@pytest.mark.gpu
@pytest.mark.parametrize("mode", ["sparse", "dense"])
@pytest.mark.parametrize("b", [1, 16])
@torch.no_grad()
def test_early_starts_change_no_bit(released_layer, b, mode, monkeypatch) -> None:
    """Kernel by kernel, each behind the last, against a row of layers in a graph, where each may start early."""
    rows, cache = rows_of(a_step(b, 8192, mode)), held(b, 8192, torch.bfloat16)
    sizes = ops.step_sizes(RELEASED)
    weights = layer_weights(released_layer, sizes.columns)
    first = torch.randn(b, RELEASED.text.width, device="cuda").bfloat16()

    def run() -> torch.Tensor:
        x, parts = first, None
        for _ in range(6):
            x, parts = ops.decode_layer(x, parts, weights, cache.stores, rows, sizes, mode)
        return x.float() + parts.sum(0)

    with monkeypatch.context() as patch:
        for module in (attend, expert, experts, layer, norms, products, route, scores):
            patch.setattr(module, "dependent", lambda _: ALONE)
        want = run()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = run()
    for n in range(50):
        got.fill_(torch.nan)
        graph.replay()
        assert torch.equal(got, want), n
