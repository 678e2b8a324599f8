"""minikeye.cost against the model itself, torch's FLOP counter, the caches, the processor, and plain loops."""

import dataclasses
import re

import numpy as np
import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minikeye import KeyeConfig, KeyeVL, Processor, cost, ops
from minikeye.inputs.processor import Clip
from minikeye.inputs.sampling import VideoError

FRAMES, FRAME_TOKENS = 5, 2  # 28x56 pixels at nano


@pytest.fixture(scope="module")
def model() -> KeyeVL:
    torch.manual_seed(0)
    return KeyeVL(KeyeConfig.nano()).eval()


@pytest.fixture(scope="module")
def inputs() -> dict:
    frames = torch.randint(0, 256, (FRAMES, 3, 28, 56), dtype=torch.uint8)
    clip = Clip(frames, [n / 2 for n in range(FRAMES)])
    content = [{"type": "video", "video": clip}, {"type": "text", "text": "What happens?"}]
    return Processor(KeyeConfig.nano())([{"role": "user", "content": content}])


def counted(model: KeyeVL, inputs: dict, attention: str, cache=None) -> dict[str, int]:
    """FLOP by module as torch counts them, with attention as plain matrix products so that it sees them.

    The weighted sum of a token's experts runs as a batched product; `cost` counts no sums, so neither does this.
    """
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(inputs, cache, attention=attention, last=1)
    flops = {name: dict(kinds) for name, kinds in counter.get_flop_counts().items()}
    for name in (name for name in flops if name.endswith(".mlp.experts")):
        assert flops[name].pop(torch.ops.aten.bmm) > 0
    return {name: sum(kinds.values()) for name, kinds in flops.items()}


def by_component(flops: dict[str, int], core: str) -> dict[str, int]:
    """Module counts, summed into the components of `cost.Flops`. The core is what no module inside self_attn has."""

    def total(pattern: str) -> int:
        return sum(n for name, n in flops.items() if re.fullmatch(pattern, name))

    layer = r"KeyeVL\.model\.layers\.\d+\."
    projections = total(layer + r"self_attn\.[qkvo]_proj")
    indexer = total(layer + r"self_attn\.sa_indexer")
    return {
        "vision": flops.get("KeyeVL.visual", 0),
        "projector": flops.get("KeyeVL.mlp_AR", 0),
        "projections": projections,
        "indexer_projections": indexer,
        core: total(layer + "self_attn") - projections - indexer,
        "router": total(layer + r"mlp\.gate"),
        "experts": total(layer + r"mlp\.experts"),
        "head": flops["KeyeVL.lm_head"],
    }


def test_parameters_of_every_part(model):
    sizes = {name: p.numel() for name, p in model.named_parameters()}

    def held(pattern: str) -> int:
        return sum(n for name, n in sizes.items() if re.search(pattern, name))

    p = cost.parameters(model.config)
    assert p.vision == held("^visual")
    assert p.projector == held("^mlp_AR")
    assert p.embedding == held("embed_tokens")
    assert p.attention == held(r"^model\..*self_attn\.[qkvo]_")
    assert p.indexer == held("sa_indexer")
    assert p.router == held(r"mlp\.gate\.weight")
    assert p.experts == held(r"mlp\.experts")
    assert p.norms == held(r"^model\..*layernorm|^model\.norm")
    assert p.head == held("lm_head")


@pytest.mark.parametrize("preset", ["nano", "mini", "keye_vl_2_30b_a3b"])
def test_parameters_add_up_to_the_model(preset):
    config = getattr(KeyeConfig, preset)()
    with torch.device("meta"):
        model = KeyeVL(config)
    assert cost.parameters(config).total == sum(p.numel() for p in model.parameters())


def test_released_totals():
    config = KeyeConfig.keye_vl_2_30b_a3b()
    assert cost.parameters(config).total == 31_122_082_160
    assert round(cost.active_parameters(config).total / 1e9, 1) == 3.2  # "about 3B active"


def test_dense_prefill_equals_torchs_count(model, inputs):
    tokens = inputs["input_ids"].shape[1]
    seen = by_component(counted(model, inputs, "dense"), core="attention")
    ours = dataclasses.asdict(cost.prefill_flops(model.config, tokens, FRAMES, FRAME_TOKENS, "dense"))
    # torch counts all t * t pairs of the causal product; the indexer's projections run in dense mode too
    assert seen.pop("attention") * (tokens + 1) == ours.pop("attention") * 2 * tokens
    sparse = cost.prefill_flops(model.config, tokens, FRAMES, FRAME_TOKENS, "sparse")
    assert seen.pop("indexer_projections") == sparse.indexer_projections
    assert (ours.pop("indexer_projections"), ours.pop("indexer_scores")) == (0, 0)
    assert seen == ours


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_decode_step_equals_torchs_count(model, inputs, attention):
    cache = model.new_cache()
    with torch.no_grad():
        model(inputs, cache)
    step = {"input_ids": torch.tensor([[65]])}
    seen = by_component(counted(model, step, attention, cache), core="core")
    ours = cost.decode_flops(model.config, cache.length, attention)
    assert seen.pop("core") == ours.attention + ours.indexer_scores
    for name in set(seen) - {"indexer_projections"}:
        assert seen[name] == getattr(ours, name), name
    if attention == "sparse":
        assert seen["indexer_projections"] == ours.indexer_projections
        assert cache.length > model.config.indexer.topk  # else nothing is left out


def test_sparse_core_reads_the_rows_that_are_counted(model, inputs):
    tokens, text = inputs["input_ids"].shape[1], model.config.text
    with torch.no_grad(), ops.count_rows() as counter:
        model(inputs, attention="sparse")
    ours = cost.prefill_flops(model.config, tokens, FRAMES, FRAME_TOKENS, "sparse").attention
    # every row gathered serves r query heads with 2 FLOP for q.k and 2 for p.v per channel
    assert ours == counter.rows * text.group_heads * 4 * text.head_width


@pytest.mark.parametrize("attention", ["dense", "sparse"])
@pytest.mark.parametrize("tokens", [1, 2, 15, 16, 17, 40])
def test_prefill_is_the_sum_of_its_queries(attention, tokens):
    config = KeyeConfig.nano()  # topk 16
    whole = cost.prefill_flops(config, tokens, attention=attention)
    steps = [cost.decode_flops(config, context, attention) for context in range(1, tokens + 1)]
    for name in ("projections", "indexer_projections", "indexer_scores", "attention", "router", "experts"):
        assert getattr(whole, name) == sum(getattr(step, name) for step in steps)


def test_scores_are_quadratic_and_the_sparse_core_is_not():
    config = KeyeConfig.keye_vl_2_30b_a3b()
    short, long = (cost.prefill_flops(config, n) for n in (131_072, 262_144))
    assert long.indexer_scores / short.indexer_scores == pytest.approx(4, rel=1e-4)
    assert long.attention / short.attention == pytest.approx(2, rel=1e-2)
    dense = cost.prefill_flops(config, 131_072, attention="dense")
    assert short.indexer_scores * 8 == dense.attention  # 2 * 16 * 64 against 4 * 32 * 128


@pytest.mark.parametrize("context", [3, 60])
def test_decode_bytes(model, context):
    cache, text, topk = model.new_cache(), model.config.text, model.config.indexer.topk
    with torch.no_grad():
        model({"input_ids": torch.randint(0, 256, (1, context))}, cache)
    dense = cost.decode_bytes(model.config, context, "dense", torch.float32)
    sparse = cost.decode_bytes(model.config, context, "sparse", torch.float32)
    assert dense.keys_values + sparse.index_keys == cache.bytes()
    assert sparse.keys_values == 2 * text.layers * min(context, topk) * text.kv_heads * text.head_width * 4
    assert dense.index_keys == 0
    indexer = sum(p.numel() for name, p in model.named_parameters() if "sa_indexer" in name)
    assert sparse.weights - dense.weights == 4 * indexer
    # one token's weights: all but the vision parts, the unread embedding rows and the idle experts
    experts = sum(p.numel() for name, p in model.named_parameters() if ".experts." in name)
    decoder = sum(p.numel() for name, p in model.named_parameters() if name.startswith(("model.", "lm_head")))
    idle = experts * (text.experts - text.experts_per_token) // text.experts + (text.vocab - 1) * text.width
    assert sparse.weights == 4 * (decoder - idle)


@pytest.mark.parametrize("preset", ["nano", "mini"])
@pytest.mark.parametrize(("seconds", "width", "height"), [(3.0, 84, 56), (20.0, 56, 56), (130.0, 320, 180)])
def test_video_cost_is_what_the_processor_makes(preset, seconds, width, height):
    config, rate = getattr(KeyeConfig, preset)(), 4
    v = cost.video_cost(config, seconds, width, height, video_fps=rate)
    array = np.zeros((round(seconds * rate), height, width, 3), dtype=np.uint8)
    processor = Processor(config)
    inputs = processor([{"role": "user", "content": [{"type": "video", "video": array, "fps": rate}]}])
    names = ("<|vision_start|>", "<|vision_end|>")
    first, last = ((inputs["input_ids"][0] == processor.tokenizer.token_id(n)).nonzero().item() for n in names)
    assert v.tokens == last - first + 1
    assert v.frames == len(inputs["frames"][0])
    assert v.visual_tokens == int((inputs["input_ids"] == config.video_token_id).sum())
    assert v.height // 14 * (v.width // 14) == int(inputs["grids"][0].prod())


def test_an_hour_at_the_released_model():
    v = cost.video_cost(KeyeConfig.keye_vl_2_30b_a3b(), 3600)
    assert (v.frames, v.width, v.height, v.frame_tokens) == (2880, 280, 168, 60)  # section 2.2: 2,880 frames at most
    assert v.tokens < KeyeConfig.keye_vl_2_30b_a3b().text.max_positions


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c: cost.prefill_flops(c, 0), ValueError, "at least 1 token, got 0"),
        (lambda c: cost.prefill_flops(c, 9, 5, 2), ValueError, "5 frames of 2 tokens are not part of a prompt of 9"),
        (lambda c: cost.decode_flops(c, 0), ValueError, "a query sees at least itself"),
        (lambda c: cost.decode_bytes(c, 0), ValueError, "a query sees at least itself"),
        (lambda c: cost.video_cost(c, 0), ValueError, "positive duration"),
        (lambda c: cost.video_cost(c, float("nan")), ValueError, "positive duration"),
        (lambda c: cost.video_cost(c, 5, fps=0), VideoError, "fps must be a positive number"),
        (lambda c: cost.video_cost(c, 5, 0, 9), VideoError, "at least 1 pixel"),
    ],
)
def test_errors(call, error, message):
    with pytest.raises(error, match=message):
        call(KeyeConfig.nano())


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (12_345, "12.3 kB"), (999_600, "1.00 MB"), (3e21, "3000 EB")],
)
def test_scaled(value, text):
    assert cost.scaled(value, "B") == text
