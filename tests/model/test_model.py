"""The whole model: released names and shapes, caches, padding, pixels, records, and who learns from which loss."""

import inspect
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from minikeye import ops
from minikeye.config import KeyeConfig
from minikeye.inputs.prompt import Prompt, pad
from minikeye.inputs.tokenizer import ByteTokenizer
from minikeye.keye import KeyeVL
from minikeye.ops.torch_losses import dense_targets, kl_loss, selected_scores, selected_targets
from minikeye.training.dsa import IndexerTeacher

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
MODES = ["sparse", "dense", "masked"]
LENGTH = 30  # nano selects 16 keys

# --------------------------------------------------------------------------------------------- the released checkpoint

RELEASED_PARAMETERS = 31_122_082_160
VISION = "visual.vision_model."
RELEASED = {
    VISION + "embeddings.patch_embedding.weight": (1152, 3, 14, 14),
    VISION + "embeddings.patch_embedding.bias": (1152,),
    VISION + "embeddings.position_embedding.weight": (729, 1152),
    VISION + "embeddings.packing_position_embedding.weight": (32768, 1152),
    VISION + "post_layernorm.weight": (1152,),
    VISION + "post_layernorm.bias": (1152,),
    "mlp_AR.pre_norm.weight": (4608,),
    "mlp_AR.pre_norm.bias": (4608,),
    "mlp_AR.linear_1.weight": (4608, 4608),
    "mlp_AR.linear_1.bias": (4608,),
    "mlp_AR.linear_2.weight": (2048, 4608),
    "mlp_AR.linear_2.bias": (2048,),
    "model.embed_tokens.weight": (151936, 2048),
    "model.norm.weight": (2048,),
    "lm_head.weight": (151936, 2048),
}
for part in ("layer_norm1", "layer_norm2"):
    RELEASED |= {f"{VISION}encoder.layers.{{27}}.{part}.{kind}": (1152,) for kind in ("weight", "bias")}
for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
    RELEASED[f"{VISION}encoder.layers.{{27}}.self_attn.{part}.weight"] = (1152, 1152)
    RELEASED[f"{VISION}encoder.layers.{{27}}.self_attn.{part}.bias"] = (1152,)
RELEASED |= {
    VISION + "encoder.layers.{27}.mlp.fc1.weight": (4304, 1152),
    VISION + "encoder.layers.{27}.mlp.fc1.bias": (4304,),
    VISION + "encoder.layers.{27}.mlp.fc2.weight": (1152, 4304),
    VISION + "encoder.layers.{27}.mlp.fc2.bias": (1152,),
    "model.layers.{48}.input_layernorm.weight": (2048,),
    "model.layers.{48}.post_attention_layernorm.weight": (2048,),
    "model.layers.{48}.self_attn.q_proj.weight": (4096, 2048),
    "model.layers.{48}.self_attn.k_proj.weight": (512, 2048),
    "model.layers.{48}.self_attn.v_proj.weight": (512, 2048),
    "model.layers.{48}.self_attn.o_proj.weight": (2048, 4096),
    "model.layers.{48}.self_attn.q_norm.weight": (128,),
    "model.layers.{48}.self_attn.k_norm.weight": (128,),
    "model.layers.{48}.self_attn.sa_indexer.q_proj.weight": (1040, 2048),
    "model.layers.{48}.self_attn.sa_indexer.k_proj.weight": (64, 2048),
    "model.layers.{48}.self_attn.sa_indexer.q_norm.weight": (64,),
    "model.layers.{48}.self_attn.sa_indexer.k_norm.weight": (64,),
    "model.layers.{48}.self_attn.sa_indexer.k_norm.bias": (64,),
    "model.layers.{48}.mlp.gate.weight": (128, 2048),
    "model.layers.{48}.mlp.experts.gate_up_proj": (128, 2048, 1536),
    "model.layers.{48}.mlp.experts.down_proj": (128, 768, 2048),
}


def test_the_released_model():
    """Every name, every shape, and 31,122,082,160 parameters, without a byte of weights."""
    expected = {}
    for name, shape in RELEASED.items():
        layers = 27 if "{27}" in name else 48 if "{48}" in name else 1
        expected |= {name.replace("{27}", str(n)).replace("{48}", str(n)): shape for n in range(layers)}
    with torch.device("meta"):
        model = KeyeVL(KeyeConfig.keye_vl_2_30b_a3b())
    assert {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()} == expected
    assert sum(p.numel() for p in model.parameters()) == RELEASED_PARAMETERS


# -------------------------------------------------------------------------------------------------------------- inputs


@pytest.fixture(scope="module")
def model() -> KeyeVL:
    """nano, with weights far from the start of training so that every part matters."""
    torch.manual_seed(3)
    model = KeyeVL(KeyeConfig.nano()).eval()
    for name, p in model.named_parameters():
        norm = "norm" in name and name.endswith("weight")
        torch.nn.init.normal_(p, mean=float(norm), std=0.3 if norm else 0.15)
    return model


def text(b: int = 2, t: int = LENGTH) -> torch.Tensor:
    return torch.randint(256, (b, t))


def prompt(*parts: str | tuple[int, int, list[float]]) -> Prompt:
    """Text, and videos as (rows, columns, seconds of each frame); without seconds, an image."""
    p = Prompt(ByteTokenizer(), merge=2)
    for part in parts:
        if isinstance(part, str):
            p.text(part)
        elif part[2]:
            p.video(part[2], (1, *part[:2]))
        else:
            p.image((1, *part[:2]))
    return p


PROMPTS = [
    ("Two frames", (4, 2, [0.0, 0.5]), "What?"),
    ("One larger frame, then three small ones", (4, 6, [3.0]), (2, 2, [0.0, 1.0, 2.0]), "Compare them."),
    ("No frame at all",),
    ((2, 4, [7.5]), (4, 4, []), "A frame and an image."),
]


def with_pixels(prompts: list[Prompt]) -> dict:
    """A left-padded batch, with random patches for every frame in it."""
    inputs = pad(prompts, "left")
    inputs["grids"] = torch.tensor([grid for p in prompts for grid in p.grids])
    inputs["patches"] = torch.rand(int(inputs["grids"].prod(dim=1).sum()), 3, 14, 14) * 2 - 1
    return inputs


# ------------------------------------------------------------------------------------------------------ cache, padding


@pytest.mark.parametrize("attention", MODES)
@pytest.mark.parametrize("pieces", [(29, 1), (1, 29), (7, 1, 1, 13, 8), (1,) * 30])
@torch.no_grad()
def test_pieces_equal_one_prefill(model, attention, pieces):
    """Any split of the text over cached calls: the same logits, and a cache of the same length."""
    ids, cache = text(), model.new_cache()
    expected = model({"input_ids": ids}, attention=attention).logits
    got = [model({"input_ids": piece}, cache, attention=attention).logits for piece in ids.split(pieces, dim=1)]
    assert_close(torch.cat(got, dim=1), expected, **CLOSE)
    assert cache.length == LENGTH and cache.next_position.tolist() == [LENGTH] * 2


@torch.no_grad()
def test_the_three_modes_differ_only_where_keys_are_left_out(model):
    """Sparse and masked are one function; dense parts from them after 16 tokens."""
    ids = text()
    sparse, dense, masked = (model({"input_ids": ids}, attention=mode).logits for mode in MODES)
    assert_close(sparse, masked, **CLOSE)
    assert_close(sparse[:, :16], dense[:, :16], **CLOSE)
    assert (sparse[:, 20:] - dense[:, 20:]).abs().max() > 0.01


@pytest.mark.parametrize("attention", MODES)
@torch.no_grad()
def test_padded_text_equals_single_runs(model, attention):
    rows = [text(1, n)[0] for n in (LENGTH, 21, 1)]
    ids = torch.stack([torch.nn.functional.pad(row, (LENGTH - len(row), 0), value=256) for row in rows])
    cache = model.new_cache()
    got = model({"input_ids": ids, "attention_mask": ids != 256}, cache, attention=attention).logits
    for n, row in enumerate(rows):
        alone = model.new_cache()
        assert_close(
            got[n, -len(row) :], model({"input_ids": row[None]}, alone, attention=attention).logits[0], **CLOSE
        )
        assert cache.next_position[n] == alone.next_position[0] == len(row)


@pytest.mark.parametrize("attention", MODES)
@torch.no_grad()
def test_frames_of_all_sizes_in_one_batch_equal_single_runs(model, attention):
    """Rows with two, four and no frames, and a frame beside an image; then a decoded token each, placed behind them."""
    prompts = [prompt(*parts) for parts in PROMPTS]
    inputs, cache = with_pixels(prompts), model.new_cache()
    got = model(inputs, cache, attention=attention).logits
    token = torch.tensor([[65]])
    decoded = model({"input_ids": token.expand(4, 1)}, cache, attention=attention).logits
    patches = inputs["patches"].split([sum(g[1] * g[2] for g in p.grids) for p in prompts])
    for n, p in enumerate(prompts):
        single, alone = {"input_ids": torch.tensor([p.ids]), "positions": p.positions()[:, None]}, model.new_cache()
        if p.grids:
            single |= {"patches": patches[n], "grids": torch.tensor(p.grids)}
        expected = model(single, alone, attention=attention).logits
        assert_close(got[n, -len(p.ids) :], expected[0], **CLOSE)
        assert_close(decoded[n], model({"input_ids": token}, alone, attention=attention).logits[0], **CLOSE)
        assert cache.next_position[n] == p.positions().max() + 2


@torch.no_grad()
def test_pixels_reach_the_logits_of_their_own_row_and_later_tokens(model):
    prompts = [prompt(*parts) for parts in PROMPTS[:2]]
    inputs = with_pixels(prompts)
    before = model(inputs, attention="dense").logits
    inputs["patches"][-4:] += 1.0  # the last frame of the second row
    changed = (model(inputs, attention="dense").logits != before).any(dim=-1)
    first = prompts[1].frames[-1].start
    assert not changed[0].any() and not changed[1, :first].any() and changed[1, first:].all()


@torch.no_grad()
def test_last_computes_only_the_last_logits(model):
    ids = text()
    assert_close(model({"input_ids": ids}, last=3).logits, model({"input_ids": ids}).logits[:, -3:], **CLOSE)


def test_int32_ids_and_bfloat16_weights(model):
    """Other integer types are ids too; logits are float32 at any precision."""
    ids = text()
    assert torch.equal(model({"input_ids": ids.int()}).logits, model({"input_ids": ids}).logits)
    low = KeyeVL(model.config).bfloat16()
    low.load_state_dict(model.state_dict())
    inputs = with_pixels([prompt(*PROMPTS[0])])
    out = low(inputs).logits
    assert out.dtype == torch.float32 and out.isfinite().all()


@pytest.mark.parametrize("attention", MODES)
@torch.no_grad()
def test_every_mode_runs_under_autocast(lively, attention):
    """Where products are bfloat16 and sums and choices are float32: near the float32 logits, also on a CPU."""
    ids = {"input_ids": torch.randint(0, 256, (2, 40))}
    expected = lively(ids, attention=attention).logits
    with torch.autocast("cpu", torch.bfloat16):
        got = lively(ids, attention=attention).logits
    assert got.dtype == torch.float32
    assert float((got - expected).norm() / expected.norm()) < 0.1


# -------------------------------------------------------------------------------------------------------------- record


@pytest.mark.parametrize("attention", MODES)
@torch.no_grad()
def test_record(model, attention):
    """Sets ascending and causal, weights sum to 1, kept in (0, 1] and 1 while every key is in the set."""
    record = model({"input_ids": text()}, attention=attention, record=True).record
    assert record.first == 0 and record.queries == LENGTH and len(record.layers) == 2
    for layer in record.layers:
        valid = layer.indices >= 0
        assert torch.equal(valid.sum(-1), torch.arange(1, LENGTH + 1).clamp(max=16).expand(2, -1))
        assert (layer.indices <= torch.arange(LENGTH)[:, None]).all()
        steps = layer.indices.diff(dim=-1)
        assert (steps[valid[..., 1:]] > 0).all()
        assert_close(layer.weights.sum(-1), torch.ones(2, LENGTH))
        assert layer.weights[~valid].eq(0).all() and (layer.weights[valid] > 0).all()
        assert (layer.kept > 0).all() and (layer.kept <= 1 + 1e-6).all()
        assert_close(layer.kept[:, :16], torch.ones(2, 16))
        assert (layer.kept[:, 20:] < 0.999).any()
        assert (layer.experts.sort().values.diff() > 0).all() and layer.experts.max() < 4


@torch.no_grad()
def test_recorded_numbers_are_a_loop(model):
    """Weights and kept mass of the last query, from the queries and keys that the layer worked with."""

    class Both(list):
        def attention(self, layer, trace):
            self.append(trace)

        def routing(self, layer, probabilities, chosen):
            pass

    ids, traces = text(1), Both()
    model({"input_ids": ids}, observer=traces)
    record = model({"input_ids": ids}, record=1).record
    for trace, layer in zip(traces, record.layers, strict=True):
        weights, kept = torch.zeros(16), 0.0
        at = layer.indices[0, 0].long()
        for h in range(4):
            p = (trace.k[0, :, h // 2] @ trace.q[0, -1, h] / 32**0.5).softmax(0)
            weights, kept = weights + p[at] / p[at].sum() / 4, kept + p[at].sum() / 4
        assert_close(layer.weights[0, 0], weights)
        assert_close(layer.kept[0, 0], kept)


@pytest.mark.parametrize("attention", MODES)
@torch.no_grad()
def test_record_of_the_last_queries_is_the_tail_of_the_whole(model, attention):
    ids = text()
    whole, tail = (model({"input_ids": ids}, attention=attention, record=n).record for n in (True, 3))
    assert (tail.first, tail.queries) == (LENGTH - 3, 3)
    for a, b in zip(whole.layers, tail.layers, strict=True):
        for name in ("indices", "weights", "kept", "experts"):
            assert_close(getattr(b, name), getattr(a, name)[:, -3:])


@torch.no_grad()
def test_dense_mode_records_what_would_be_selected(model):
    """In the first layer both modes see the same hidden states, hence the same sets; kept is what dense would lose."""
    ids = text()
    sparse, dense = (
        model({"input_ids": ids}, attention=mode, record=True).record.layers for mode in ("sparse", "dense")
    )
    assert torch.equal(sparse[0].indices, dense[0].indices)
    assert_close(sparse[0].kept, dense[0].kept)
    assert not torch.equal(sparse[1].indices, dense[1].indices) or not torch.equal(sparse[1].kept, dense[1].kept)


@torch.no_grad()
def test_records_join(model):
    """Prefill's record and the decoded queries' make the record of one pass; others are refused."""
    ids, cache = text(), model.new_cache()
    whole = model({"input_ids": ids}, record=True).record
    first = model({"input_ids": ids[:, :10]}, cache, record=True).record
    second = model({"input_ids": ids[:, 10:]}, cache, record=True).record
    joined = first.extend(second)
    assert joined.first == 0 and joined.queries == LENGTH
    for a, b in zip(joined.layers, whole.layers, strict=True):
        assert torch.equal(a.indices, b.indices) and torch.equal(a.experts, b.experts)
        assert_close(a.weights, b.weights, **CLOSE)
        assert_close(a.kept, b.kept, **CLOSE)
    with pytest.raises(ValueError, match="starting at query 10, got 0"):
        first.extend(first)


@torch.no_grad()
def test_record_in_slabs(model, monkeypatch):
    """One query at a time, as a long video needs it: the same record."""
    ids = text()

    def record():
        cache = model.new_cache()
        model({"input_ids": ids[:, :9]}, cache)
        return model({"input_ids": ids[:, 9:]}, cache, record=True).record.layers

    whole = record()
    monkeypatch.setattr(ops, "slab_rows", lambda device, elements: 1)
    for a, b in zip(whole, record(), strict=True):
        assert torch.equal(a.indices, b.indices)
        assert_close((a.weights, a.kept), (b.weights, b.kept), **CLOSE)


@torch.no_grad()
def test_record_of_padded_rows(model):
    """A padding query reads nothing and keeps nothing; no key is padding."""
    ids = text()
    ids[1, :12] = 256
    record = model({"input_ids": ids, "attention_mask": ids != 256}, record=True).record
    for layer in record.layers:
        assert (
            layer.indices[1, :12].eq(-1).all() and layer.weights[1, :12].eq(0).all() and layer.kept[1, :12].eq(0).all()
        )
        real = layer.indices[1, 12:]
        assert real[real >= 0].min() == 12


# ----------------------------------------------------------------------------------------------------- who learns what


class KL:
    """Adds up the indexer losses of all layers as training does: over all keys, or over the selected ones."""

    def __init__(self, kind: str):
        self.kind, self.total = kind, torch.zeros(())

    def attention(self, layer, trace):
        index = trace.index_q, trace.index_k, trace.index_w
        if self.kind == "all keys":
            scores = ops.index_scores(*index, trace.offset, trace.start)
            valid = ops.valid_keys(trace.q.shape[1], trace.k.shape[1], trace.offset, trace.start)
            targets = dense_targets(trace.q, trace.k, valid)
        else:
            at = trace.indices
            keys = ops.gather_rows(trace.index_k[:, :, None], at).squeeze(3)
            scores = selected_scores(trace.index_q, keys, trace.index_w, at)
            targets = selected_targets(trace.q, ops.gather_rows(trace.k, at), at)
        self.total = self.total + kl_loss(scores, targets).mean()

    def routing(self, layer, probabilities, chosen):
        pass


def moved(model: KeyeVL, loss: torch.Tensor) -> dict[str, bool]:
    """Which parameters get a gradient that is not exactly zero."""
    names, parameters = zip(*((n, p) for n, p in model.named_parameters() if p.requires_grad), strict=True)
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in grads)
    return {n: g is not None and bool(g.ne(0).any()) for n, g in zip(names, grads, strict=True)}


def padded_inputs() -> dict:
    return with_pixels([prompt(*parts) for parts in PROMPTS])


@pytest.mark.parametrize("attention", MODES)
def test_language_model_loss_never_moves_the_indexer(model, attention):
    """Exactly zero there; every other parameter moves."""
    inputs = padded_inputs()
    logits = model(inputs, attention=attention).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), inputs["input_ids"][:, 1:].flatten())
    for name, moves in moved(model, loss).items():
        assert moves == ("sa_indexer" not in name), name


@pytest.mark.parametrize(
    ("attention", "kind"),
    [("dense", "all keys"), ("sparse", "selected"), ("masked", "selected"), ("sparse", "all keys")],
)
def test_indexer_losses_move_nothing_else(model, attention, kind):
    """Exactly zero outside the indexers; all of their parameters move, in both layers, padding or not."""
    observer = KL(kind)
    model(padded_inputs(), attention=attention, observer=observer)
    for name, moves in moved(model, observer.total).items():
        assert moves == ("sa_indexer" in name), name


# -------------------------------------------------------------------------------------------------------------- errors


def pixels(rows: int = 4, columns: int = 4) -> dict:
    return {
        "patches": torch.zeros(rows * columns, 3, 14, 14),
        "grids": torch.tensor([[1, rows, columns]]),
        "positions": torch.arange(6).expand(3, 1, -1),
    }


VISUAL = torch.tensor([[262, 262, 262, 262, 65, 66]])
POSITIONS = torch.arange(6).expand(3, 1, 6)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"must be a non-empty int tensor \[b t\], got NoneType"),
        ({"input_ids": [1, 2]}, "got list"),
        ({"input_ids": torch.tensor([1, 2])}, r"got torch.int64 \[2\]"),
        ({"input_ids": torch.tensor([[1.0]])}, "got torch.float32"),
        ({"input_ids": torch.empty(1, 0, dtype=torch.long)}, "non-empty"),
        ({"input_ids": torch.zeros(1, 4097, dtype=torch.long)}, "4097 tokens exceed the context of 4096: sample fewer"),
        ({"input_ids": VISUAL}, "4 image or video placeholders but no patches"),
        ({"input_ids": VISUAL, **pixels(2, 4)}, "2 visual tokens for 4 placeholders"),
        ({"input_ids": VISUAL[:, 1:], **pixels(), "positions": torch.zeros(3, 1, 5).long()}, "4 visual tokens for 3"),
        (
            {"input_ids": VISUAL, **pixels(), "positions": None},
            "inputs with patches or visual need 3D positions",
        ),
        ({"input_ids": VISUAL, **pixels(), "positions": torch.zeros(3, 1, 5).long()}, r"positions must be \[3, 1, 6\]"),
        ({"input_ids": VISUAL, **pixels(), "patches": torch.zeros(15, 3, 14, 14)}, "grids describe 16 patches, got 15"),
        ({"input_ids": VISUAL, **pixels(), "grids": None}, "pass patches and grids"),
        (
            {"input_ids": text(1, 3), "attention_mask": torch.tensor([[True, True, False]])},
            "with False only on the left .* pad with Processor.batch",
        ),
        (
            {"input_ids": text(1, 3), "attention_mask": torch.tensor([[False, True]])},
            r"attention_mask must be bool or int \[1, 3\].*got torch.bool \[1, 2\]",
        ),
        ({"input_ids": text(1, 3), "attention_mask": torch.tensor([[False] * 3])}, "at least one True a row"),
    ],
)
def test_inputs_that_do_not_fit(model, inputs, message):
    with pytest.raises(ValueError, match=message):
        model(inputs)


def test_calls_that_do_not_fit(model):
    """A mode there is not, a record beside an observer, a cache of another batch, a token the model does not have."""
    forward, ids = inspect.unwrap(KeyeVL.forward), {"input_ids": text(2, 3)}
    with pytest.raises(ValueError, match="attention must be one of sparse, dense, masked; got 'flash'"):
        forward(model, ids, attention="flash")
    with pytest.raises(ValueError, match="record and observer exclude each other"):
        model(ids, record=True, observer=KL("all keys"))
    cache = model.new_cache()
    model(ids, cache)
    with pytest.raises(ValueError, match="the cache holds a batch of 2, got 1: start a new cache"):
        model({"input_ids": text(1, 1)}, cache)
    with pytest.raises(ValueError, match=r"input_ids must lie in 0\.\.319, got 1\.\.320"):
        model({"input_ids": torch.tensor([[1, 320]])})


def test_context_overflows_in_decoding(model):
    short = KeyeVL(replace(model.config, text=replace(model.config.text, max_positions=5)))
    cache = short.new_cache()
    short({"input_ids": text(1, 5)}, cache)
    with pytest.raises(ValueError, match="6 tokens exceed the context of 5"):
        short({"input_ids": text(1, 1)}, cache)


# -------------------------------------------------------------------------------------------------------- in chunks


@pytest.mark.parametrize("attention", ["sparse", "dense", "masked"])
@pytest.mark.parametrize("chunk", [1, 7, 40, 74, 75, 1000])
@torch.no_grad()
def test_any_chunk_gives_the_same(lively, attention, chunk):
    """Logits, what the last queries selected, and a cache to go on with; one row of the batch is padded."""
    ids = torch.randint(0, 250, (2, 75))
    mask = torch.ones(2, 75, dtype=torch.bool)
    mask[1, :9] = False
    inputs = {"input_ids": ids, "attention_mask": mask}
    whole, cache = lively(inputs, attention=attention, record=20), lively.new_cache()
    for out in (
        lively(inputs, attention=attention, record=20, chunk=chunk),
        lively(inputs, cache, attention=attention, record=20, chunk=chunk),
    ):
        torch.testing.assert_close(out.logits[mask], whole.logits[mask], atol=1e-4, rtol=1e-4)
        assert out.record.first == whole.record.first == 55
        for a, b in zip(out.record.layers, whole.record.layers, strict=True):
            assert torch.equal(a.indices, b.indices) and torch.equal(a.experts, b.experts)
            torch.testing.assert_close(a.kept, b.kept, atol=1e-5, rtol=1e-4)
    longer = {"input_ids": torch.cat([ids, ids[:, :1]], 1), "attention_mask": torch.cat([mask, mask[:, -1:]], 1)}
    after = lively({"input_ids": ids[:, :1]}, cache, attention=attention).logits
    torch.testing.assert_close(after, lively(longer, attention=attention).logits[:, -1:], atol=1e-4, rtol=1e-4)


def test_a_chunk_below_one_token(lively):
    with pytest.raises(ValueError, match="chunk, last and record must be at least 1 token, got 0, None"):
        lively({"input_ids": torch.ones(1, 3, dtype=torch.long)}, chunk=0)


@torch.no_grad()
def test_a_failed_pass_leaves_the_cache_as_it_was(lively, monkeypatch):
    """The head fails after all layers have stored their tokens."""
    ids, cache = torch.randint(0, 250, (1, 30)), lively.new_cache()
    lively({"input_ids": ids[:, :20]}, cache)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no"):
        patch.setattr(lively.lm_head, "forward", lambda x: (_ for _ in ()).throw(RuntimeError("no")))
        lively({"input_ids": ids[:, 20:]}, cache, chunk=4)
    assert [layer.length for layer in cache.layers] == [20, 20]
    torch.testing.assert_close(
        lively({"input_ids": ids[:, 20:]}, cache).logits, lively({"input_ids": ids}).logits[:, 20:]
    )


@torch.no_grad()
def test_a_cut_cache_goes_on_from_the_cut(lively):
    """With positions, or with the next one told; without either, where a video may have stood, it is an error."""
    ids, cache = torch.randint(0, 250, (2, 30)), lively.new_cache(50)
    lively({"input_ids": ids}, cache)
    cache.truncate(20)
    with pytest.raises(ValueError, match="the cache was cut short: pass positions"):
        lively({"input_ids": ids[:, 20:]}, cache)
    want = lively({"input_ids": ids}).logits[:, 20:]
    positions = torch.arange(20, 30).expand(3, 2, 10)
    torch.testing.assert_close(lively({"input_ids": ids[:, 20:], "positions": positions}, cache).logits, want)
    cache.truncate(20, torch.tensor([20, 20]))
    torch.testing.assert_close(lively({"input_ids": ids[:, 20:]}, cache).logits, want)
    with pytest.raises(ValueError, match="holds 30 tokens, cannot keep 31"):
        cache.truncate(31)


@torch.no_grad()
def test_room_in_a_cache(lively):
    """Stores keep their place while there is room, and grow without loss where there is none."""
    ids, cache = torch.randint(0, 250, (1, 40)), lively.new_cache(30)
    lively({"input_ids": ids[:, :10]}, cache)
    place = [store.data_ptr() for store in cache.layers[0]._stores]
    lively({"input_ids": ids[:, 10:30]}, cache)
    assert [store.data_ptr() for store in cache.layers[0]._stores] == place
    cache.reserve(40)
    assert cache.layers[1]._stores[0].shape[1] == 40
    got = lively({"input_ids": ids[:, 30:]}, cache).logits
    torch.testing.assert_close(got, lively({"input_ids": ids}).logits[:, 30:])


def test_positions_go_on_from_the_cache(lively):
    """A Processor counts from 0: with a cache that would put new tokens among the old ones."""
    ids, cache = torch.randint(0, 250, (1, 12)), lively.new_cache()
    lively({"input_ids": ids}, cache)
    again = {"input_ids": ids[:, :3], "positions": torch.arange(3).expand(3, 1, 3)}
    with pytest.raises(ValueError, match=r"the cache goes on at positions \[12\], got \[0\]: leave positions out"):
        lively(again, cache)
    lively(again | {"positions": torch.arange(12, 15).expand(3, 1, 3)}, cache)
    with pytest.raises(ValueError, match="-1, which marks a row that has ended"):
        lively({"input_ids": torch.tensor([[-1]])}, cache)


def test_a_cache_goes_on_without_padding(lively):
    """A mask of the new tokens would be about other positions than the cache's."""
    cache, ids = lively.new_cache(), torch.randint(0, 250, (2, 8))
    lively({"input_ids": ids}, cache)
    mask = torch.ones(2, 8, dtype=torch.bool)
    lively({"input_ids": ids, "attention_mask": mask}, cache)
    mask[1, 0] = False
    with pytest.raises(ValueError, match="goes on without padding: give each row equally many new tokens"):
        lively({"input_ids": ids, "attention_mask": mask}, cache)


def test_chunks_are_for_reading(lively):
    ids = {"input_ids": torch.randint(0, 250, (1, 8))}
    with pytest.raises(ValueError, match=r"chunks cannot be learnt from.*torch\.no_grad"):
        lively(ids, chunk=4)
    with pytest.raises(ValueError, match="chunk, last and record must be at least 1 token, got None, 0"):
        lively(ids, last=0)


@torch.no_grad()
def test_memory_that_ran_out_while_the_cache_grew(lively, monkeypatch):
    """The keys had grown, the values had not: the next attempt grows the rest."""
    ids, cache = torch.randint(0, 250, (1, 30)), lively.new_cache()
    lively({"input_ids": ids[:, :20]}, cache)
    grown, new_empty = [], torch.Tensor.new_empty

    def scarce(self, *shape, **more):
        grown.append(shape)
        if len(grown) == 2:
            raise RuntimeError("out of memory")
        return new_empty(self, *shape, **more)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(torch.Tensor, "new_empty", scarce)
        lively({"input_ids": ids[:, 20:]}, cache)
    got = lively({"input_ids": ids[:, 20:]}, cache).logits
    torch.testing.assert_close(got, lively({"input_ids": ids}).logits[:, 20:])


@torch.no_grad()
def test_a_first_pass_that_failed_leaves_the_batch_open(lively, monkeypatch):
    cache = lively.new_cache()
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="no"):
        patch.setattr(lively.lm_head, "forward", lambda x: (_ for _ in ()).throw(RuntimeError("no")))
        lively({"input_ids": torch.ones(1, 5, dtype=torch.long)}, cache)
    assert lively({"input_ids": torch.ones(3, 5, dtype=torch.long)}, cache).logits.shape[0] == 3


def test_room_never_shrinks(lively):
    cache = lively.new_cache(30)
    cache.reserve(10)
    with torch.no_grad():
        lively({"input_ids": torch.ones(1, 5, dtype=torch.long)}, cache)
    assert {store.shape[1] for layer in cache.layers for store in layer._stores} == {30}
    with pytest.raises(ValueError, match="cannot keep -1"):
        cache.truncate(-1)
    assert cache.next_position.tolist() == [5]


# ---------------------------------------------------------------------------------------- visual tokens made beforehand


def test_one_clip_and_many_questions_need_the_tower_once(model, monkeypatch):
    """Visual tokens as an input give what their pixels give, bit for bit, and gradients reach them."""
    pair = {"input_ids": VISUAL.expand(2, -1), "positions": POSITIONS.expand(-1, 2, -1)}
    seen = pixels()
    twice = {name: torch.cat([seen[name]] * 2) for name in ("patches", "grids")}
    expected = model({**pair, **twice}).logits
    visual = model.visual_tokens(seen["patches"], seen["grids"]).detach().requires_grad_()
    monkeypatch.setattr(model.visual, "forward", lambda *_: pytest.fail("the tower ran again"))
    got = model({**pair, "visual": torch.cat([visual] * 2)}).logits
    assert torch.equal(got, expected)
    got.sum().backward()
    assert (visual.grad != 0).any(dim=1).all()
    out = model.generate({**pair, "visual": torch.cat([visual.detach()] * 2)}, max_new_tokens=3)
    assert out.row(0) == out.row(1) and len(out.row(0)) == 3


@pytest.mark.parametrize(
    ("visual", "message"),
    [
        (torch.zeros(3, 64), "3 visual tokens for 4 placeholders"),
        (torch.zeros(4, 63), r"inputs\['visual'\] must be \[n, 64\]"),
        (torch.zeros(1, 4, 64), r"inputs\['visual'\] must be \[n, 64\]"),
    ],
)
def test_visual_tokens_that_do_not_fit(model, visual, message):
    with pytest.raises(ValueError, match=message):
        model({"input_ids": VISUAL, "positions": POSITIONS, "visual": visual})


def test_pixels_and_visual_tokens_at_once(model):
    with pytest.raises(ValueError, match="or visual alone"):
        model({"input_ids": VISUAL, **pixels(), "visual": torch.zeros(4, 64)})


# ------------------------------------------------------------------------------------------- activations computed again


@pytest.mark.parametrize("mode", MODES)
def test_recomputing_changes_no_gradient(mode):
    """Loss, the indexer's loss read off by an observer, and every gradient: bit for bit those of a pass without."""
    torch.manual_seed(3)
    model = KeyeVL(KeyeConfig.nano())
    ids, rows = torch.randint(256, (2, LENGTH)), torch.tensor([4, 17, 29])
    seen = []
    for recompute in (False, True):
        model.zero_grad()
        teacher = IndexerTeacher(rows)
        out = model({"input_ids": ids}, attention=mode, observer=teacher, recompute=recompute)
        loss = out.logits.logsumexp(-1).mean() + teacher.indexer_loss() + teacher.balance_loss()
        loss.backward()
        assert len(teacher.indexer) == len(teacher.balance) == 2  # layers; the second run of a layer is not watched
        seen.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None} | {"loss": loss})
    assert seen[0].keys() == seen[1].keys() and all(torch.equal(seen[0][n], seen[1][n]) for n in seen[0])


def test_recomputing_keeps_the_input_of_a_layer_alone():
    """What autograd holds between the passes: less than half, and less than two tensors of the stream a layer more."""
    model, ids = KeyeVL(KeyeConfig.nano()), torch.randint(256, (1, 200))
    held = []
    for recompute in (False, True):
        kept: dict[int, int] = {}

        def keep(x: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
            model({"input_ids": ids}, recompute=recompute)
        held.append(sum(kept.values()))
    assert held[1] < held[0] / 2


@pytest.mark.parametrize("option", [{"chunk": 4}, {"cache": True}])
def test_recomputing_excludes_a_cache(model, option):
    option = {"cache": model.new_cache()} if "cache" in option else option
    with torch.no_grad(), pytest.raises(ValueError, match="recompute runs layers twice"):
        model({"input_ids": torch.randint(256, (1, 9))}, recompute=True, **option)


# ---------------------------------------------------------------------------- what callers who read docstrings only met


@pytest.mark.parametrize("mask", [torch.ones(2, 3), torch.ones(1), torch.ones(7, 99).long(), torch.full((2, 9), 0.5)])
def test_a_mask_of_another_shape_or_kind_is_refused_though_all_of_it_is_true(model, mask):
    with torch.no_grad(), pytest.raises(ValueError, match=r"attention_mask must be bool or int \[2, 9\]"):
        model({"input_ids": text(2, 9), "attention_mask": mask})


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool])
def test_pixels_and_visual_tokens_are_floats(model, dtype):
    """Bytes in place of [-1, 1] gave another answer in silence."""
    seen = pixels()
    with pytest.raises(ValueError, match=r"must be float in \[-1, 1\]"):
        model({"input_ids": VISUAL, **seen, "patches": seen["patches"].to(dtype)})
    with pytest.raises(ValueError, match=r"must be \[n, 64\] float"):
        model({"input_ids": VISUAL, "positions": POSITIONS, "visual": torch.zeros(4, 64).to(dtype)})


def test_a_record_of_less_than_nothing(model):
    with pytest.raises(ValueError, match="record must be at least 1"):
        model({"input_ids": text(1, 9)}, record=-1)
