"""The decode step whose numbers all lie on the device, against ordinary decoding; on a GPU as a CUDA graph."""

from types import SimpleNamespace

import pytest
import torch

from minikeye import KeyeVL
from minikeye.evaluation import rules
from minikeye.evaluation.rules import selecting
from minikeye.files import CHECKPOINT
from minikeye.inference import cuda_graph
from minikeye.inference.cuda_graph import GraphedDecoder, StaticStep, obstacle
from minikeye.inference.generate import decoder
from minikeye.rl.replay import noisy

PROMPT = torch.tensor([[72, 105, 32, 116, 104, 101, 114, 101], [3, 1, 4, 1, 5, 9, 2, 6]])


def ordinary(model, inputs, tokens, attention: str = "sparse") -> torch.Tensor:
    """Logits after each of `tokens` [b n], one pass a token."""
    cache, passed = model.new_cache(), []
    model(inputs, cache, attention=attention)
    for t in tokens.unbind(1):
        passed.append(model({"input_ids": t[:, None]}, cache, attention=attention).logits)
    return torch.cat(passed, dim=1)


@pytest.mark.parametrize("attention", ["sparse", "dense"])
@pytest.mark.parametrize("padded", [False, True])
@torch.no_grad()
def test_a_static_step_is_an_ordinary_step(lively, padded, attention):
    """Thirty tokens, fewer and more than the 16 keys that a query reads; unused room in the cache is nan."""
    mask = torch.ones_like(PROMPT, dtype=torch.bool)
    mask[1, :5] = not padded
    inputs = {"input_ids": PROMPT, "attention_mask": mask}
    tokens = torch.arange(60).view(2, 30)
    cache = lively.new_cache()
    lively(inputs, cache, attention=attention)
    cache.reserve(40)
    for layer in cache.layers:
        for store in layer._stores:
            store[:, 8:] = torch.nan
    step, got = StaticStep(lively, cache, attention=attention), []
    for t in tokens.unbind(1):
        step.token.copy_(t[:, None])
        got.append(step.run())
        step.count()
    assert cache.length == 38
    true = ordinary(lively, inputs, torch.cat([tokens, tokens[:, :1]], 1), attention)
    torch.testing.assert_close(torch.cat(got, dim=1), true[:, :-1], atol=1e-5, rtol=1e-4)
    after = lively({"input_ids": tokens[:, :1]}, cache, attention=attention).logits  # an ordinary pass goes on
    torch.testing.assert_close(after, true[:, -1:])


@torch.no_grad()
def test_warming_up_leaves_no_trace(lively):
    """What a run before the recording stored is overwritten, and the counts go back."""
    cache = lively.new_cache(20)
    lively({"input_ids": PROMPT}, cache)
    step = StaticStep(lively, cache)
    step.run()
    step.rewind()
    step.token.copy_(PROMPT[:, :1])
    logits = step.run()
    torch.testing.assert_close(logits, ordinary(lively, {"input_ids": PROMPT}, PROMPT[:, :1]), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_a_token_without_room_is_refused(lively):
    """Where a pass would say that the context is full, and where the cache has no place left: before anything runs."""
    cache = lively.new_cache(10)
    lively({"input_ids": PROMPT}, cache)
    step = StaticStep(lively, cache, attention="dense")
    for _ in range(2):
        step.require_room()
        step.run()
        step.count()
    with pytest.raises(ValueError, match="11 tokens exceed the room of 10"):
        step.require_room()


@torch.no_grad()
def test_a_cache_that_others_changed_is_refused(lively, monkeypatch):
    """The graph counts for itself: a token taken back would still be read."""
    monkeypatch.setattr(GraphedDecoder, "_capture", lambda self: setattr(self, "logits", torch.zeros(2, 1, 3)))
    monkeypatch.setattr(GraphedDecoder, "graph", SimpleNamespace(replay=lambda: None), raising=False)
    cache = lively.new_cache(10)
    lively({"input_ids": PROMPT}, cache)
    decode = GraphedDecoder(lively, cache, attention="dense")
    for _ in range(2):
        decode(PROMPT[:, 0])
    cache.truncate(cache.length - 1)
    with pytest.raises(ValueError, match="make a new decoder"):
        decode(PROMPT[:, 0])


def test_obstacles_are_named(lively):
    assert obstacle(lively) == "the model is on cpu"
    with pytest.raises(RuntimeError, match="CUDA graphs cannot be used: the model is on cpu"):
        lively.generate({"input_ids": PROMPT}, max_new_tokens=2, graphs=True)


def test_more_obstacles(lively, monkeypatch):
    """What a model on a GPU would be asked, with parameters that say they are there."""

    class There:
        def __init__(self, device, dtype=torch.bfloat16):
            self.device, self.dtype = torch.device(device), dtype

    def told(*places, **options):
        monkeypatch.setattr(lively.model.layers, "parameters", lambda: iter(places))
        return obstacle(lively, **options)

    assert told(There("cuda:0"), There("cuda:1")) == "the model is split over devices"
    assert "in bfloat16 only, the weights are torch.float32" in told(There("cuda", torch.float32))
    with noisy(lively, router=0.1, index=0.0, seed=0):
        assert told(There("cuda")) == "another rule than the router chooses experts"
    assert told(There("cuda"), attention="masked") == "masked attention has another shape at every step"
    assert told(There("cuda"), attention="dense", backend="torch") == ""  # no kernel of ours is in it
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind == "cuda")
    monkeypatch.setattr(torch, "get_autocast_dtype", lambda kind: torch.bfloat16)
    assert told(There("cuda", torch.float32), attention="dense") == ""
    assert told(There("cuda"), observer=object()) == "every step is to be looked at"
    assert told(There("cuda"), backend="torch") == "backend torch: asked for"
    with selecting(lively, rules.window):
        assert told(There("cuda")) == "another rule than the indexer selects"


@torch.no_grad()
def test_an_interrupt_while_counting(lively):
    """Layers that have counted go back."""

    class Interrupt:
        def __add__(self, one):
            raise KeyboardInterrupt

    cache = lively.new_cache(20)
    lively({"input_ids": PROMPT}, cache)
    step = StaticStep(lively, cache)
    step.run()
    cache.next_position = Interrupt()
    with pytest.raises(KeyboardInterrupt):
        step.count()
    assert [layer.length for layer in cache.layers] == [8, 8] and isinstance(cache.next_position, Interrupt)


# ---------------------------------------------------------------------------------------------------------- on a GPU


@pytest.fixture(scope="module")
def mini() -> KeyeVL:
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return KeyeVL.from_pretrained(CHECKPOINT, device="cuda", dtype=torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize(("rows", "padding"), [(1, 0), (3, 0), (3, 90)])
def test_replayed_answers_are_ordinary_answers(mini, rows, padding, monkeypatch):
    """The same kernels in the same order, of the model's own pass: the same tokens, and a cache that goes on."""
    assert obstacle(mini) == ""
    monkeypatch.setattr(cuda_graph, "choose_step", lambda *_: ("unfused", ""))  # the fused one rounds otherwise
    ids = torch.randint(0, 256, (rows, 700), generator=torch.Generator().manual_seed(1)).cuda()
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[-1, :padding] = False
    inputs = {"input_ids": ids, "attention_mask": mask}
    plain, replayed = (mini.generate(inputs, max_new_tokens=60, graphs=g) for g in (False, True))
    assert plain.ids.tolist() == replayed.ids.tolist()
    assert plain.cache.length == replayed.cache.length == 759
    on = {"inputs": {"input_ids": ids[:, :5]}, "max_new_tokens": 20, "graphs": False}
    assert mini.generate(cache=plain.cache, **on).ids.tolist() == mini.generate(cache=replayed.cache, **on).ids.tolist()


@pytest.mark.gpu
@pytest.mark.parametrize("padding", [0, 90])
@torch.no_grad()
def test_replayed_dense_steps_are_ordinary_steps(mini, padding):
    """Weights in float32 under autocast, as a policy has them that learns: logits to bfloat16's rounding."""
    model = KeyeVL.from_pretrained(CHECKPOINT, device="cuda", dtype=torch.float32).requires_grad_(True)
    random = torch.Generator().manual_seed(1)
    ids, tokens = (torch.randint(0, 256, (3, n), generator=random).cuda() for n in (300, 40))
    mask = torch.ones_like(ids, dtype=torch.bool)
    mask[-1, :padding] = False
    inputs = {"input_ids": ids, "attention_mask": mask}
    with torch.autocast("cuda", dtype=torch.bfloat16):
        true, cache = ordinary(model, inputs, tokens, "dense"), model.new_cache(340)
        model(inputs, cache, attention="dense")
        step = decoder(model, cache, {"attention": "dense", "backend": "auto"}, 40)
        assert isinstance(step, GraphedDecoder)
        got = torch.cat([step(t).logits.clone() for t in tokens.unbind(1)], dim=1)
    gap = (got - true).abs()
    assert gap.mean() < 0.02 * true.abs().mean() and cache.length == 340, (gap.mean(), gap.max())
    assert (got.argmax(-1) == true.argmax(-1)).float().mean() > 0.95


@pytest.mark.gpu
def test_what_cannot_be_replayed(mini):
    assert obstacle(mini, attention="masked") == "masked attention has another shape at every step"
    assert obstacle(mini, record=1) == "every step is to be looked at"
    assert obstacle(mini, backend="torch") == "backend torch: asked for"
    other = KeyeVL.from_pretrained(CHECKPOINT, device="cuda", dtype=torch.float32)
    assert "in bfloat16 only" in obstacle(other)


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["torch", "triton"])
@pytest.mark.parametrize("attention", ["sparse", "dense"])
@torch.no_grad()
def test_chunks_on_a_gpu(mini, attention, backend):
    """Products of other shapes round differently, which decides between near ties of the selection: few keys differ."""
    model = KeyeVL.from_pretrained(CHECKPOINT, device="cuda", dtype=torch.float32)
    ids = torch.randint(0, 256, (1, 3000), generator=torch.Generator().manual_seed(2)).cuda()
    whole = model({"input_ids": ids}, attention=attention, backend=backend, record=True)
    for chunk in (700, 1024):
        out = model({"input_ids": ids}, attention=attention, backend=backend, record=True, chunk=chunk)
        gap = (out.logits - whole.logits).abs()
        assert gap.median() < 1e-3 and (attention == "sparse" or gap.max() < 2e-2), (gap.median(), gap.max())
        for a, b in zip(out.record.layers, whole.record.layers, strict=True):
            assert (a.indices == b.indices).float().mean() > 0.99


@pytest.mark.gpu
@torch.no_grad()
def test_streaming_to_a_gpu(mini):
    streamed = KeyeVL.from_pretrained(CHECKPOINT, device="cuda", dtype=torch.bfloat16, streaming=True)
    ids = torch.randint(0, 256, (1, 500), generator=torch.Generator().manual_seed(3)).cuda()
    here, there = mini({"input_ids": ids}).logits, streamed({"input_ids": ids}).logits
    assert (here.argmax(-1) == there.argmax(-1)).float().mean() > 0.98  # experts in a loop, not in one kernel
    assert torch.isfinite(there).all() and (here - there).abs().mean() < 0.05 * here.abs().mean()
