"""What the tower keeps: the same gradients in every way, and bytes that a child could add up."""

import gc
import weakref
from dataclasses import replace

import pytest
import torch

from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.model.vision import VisionTower
from minikeye.training.activations import count_kept, keeping, kept_bytes

WAYS = ("all", "layers", "chunks", "offload")
CONFIG = KeyeConfig.nano()
# Rows and columns of frames in patches, and patches of a pass: one pass; a frame each; passes that end between frames.
CASES = [
    ([(4, 6)], 8192),
    ([(4, 6), (4, 6), (2, 4)], 8192),
    ([(4, 6), (2, 4), (2, 4), (6, 2)], 1),
    ([(2, 2), (4, 4), (4, 4), (2, 8), (2, 2)], 20),
]


def tower(chunk=8192):
    torch.manual_seed(1)
    made = VisionTower(CONFIG.vision)
    made.chunk_patches = chunk
    for p in made.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return made


def pixels(frames):
    grids = torch.tensor([(1, *frame) for frame in frames])
    return torch.randn(int(grids.prod(dim=1).sum()), 3, 14, 14, generator=torch.Generator().manual_seed(2)), grids


def gradients(way, frames, chunk, autocast, inside):
    """Features and gradients; the backward pass inside the block or after it."""
    model, (patches, grids) = tower(chunk), pixels(frames)
    patches.requires_grad_()
    with keeping(model, way):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model(patches, grids)
        if inside:
            (out.float() ** 2).sum().backward()
    if not inside:
        (out.float() ** 2).sum().backward()
    named = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"out": out.detach(), "patches": patches.grad, **named}


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("frames", "chunk"), CASES)
@pytest.mark.parametrize("way", WAYS[1:])
def test_the_same_bits(way, frames, chunk, autocast):
    expected = gradients("all", frames, chunk, autocast, True)
    assert len(expected) > 30 and all(x.abs().max() > 0 for n, x in expected.items() if "k_proj.bias" not in n)
    for inside in (True, False):
        got = gradients(way, frames, chunk, autocast, inside)
        assert got.keys() == expected.keys()
        assert [n for n in got if not torch.equal(got[n], expected[n])] == []


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(("frames", "chunk"), CASES)
@pytest.mark.parametrize("way", WAYS)
def test_bytes_are_those_of_the_formula(way, frames, chunk, autocast):
    model, (patches, grids) = tower(chunk), pixels(frames)
    with keeping(model, way), count_kept(model) as kept, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = model(patches, grids)
    assert kept.total == kept_bytes(CONFIG.vision, len(patches), len(frames), way, autocast) and out.requires_grad


def test_a_patch_by_hand():
    """The released tower in bfloat16: 47,248 bytes a layer and patch, or 4,608 for its input alone."""
    see = KeyeConfig.keye_vl_2_30b_a3b().vision
    a_layer = {
        way: [kept_bytes(replace(see, layers=n), 10, 1, way, True) for n in (26, 27)] for way in ("all", "layers")
    }
    weights = 2 * (4 * 1152**2 + 2 * 1152 * 4304)
    assert a_layer["all"][1] - a_layer["all"][0] == 10 * (26 * 1152 + 4 * 4304 + 4 * 16 + 16) + weights
    assert a_layer["layers"][1] - a_layer["layers"][0] == 10 * 4608
    assert kept_bytes(see, 1008, 1, "chunks", True) == 1008 * 588 * 4 + 24
    assert kept_bytes(see, 1008, 1, "offload", True) == 0


@pytest.mark.parametrize("way", WAYS)
def test_a_frozen_tower_keeps_nothing(way):
    model, (patches, grids) = tower().requires_grad_(False), pixels([(4, 6), (2, 2)])
    with keeping(model, way), count_kept(model) as kept, torch.no_grad():
        assert not model(patches, grids).requires_grad and kept.total == 0


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("way", WAYS[1:])
def test_in_a_pass_of_the_model(way, recompute):
    """With the decoder behind the tower, which has its own way to run layers again."""

    def run(way):
        torch.manual_seed(3)
        model, (patches, grids) = KeyeVL(CONFIG), pixels([(4, 6), (2, 4)])
        ids = torch.cat((torch.full((1, 8), CONFIG.video_token_id), torch.arange(5)[None]), dim=1)
        with keeping(model.visual, way):
            inputs = {"input_ids": ids, "positions": torch.arange(13).expand(3, 1, -1)}
            inputs |= {"patches": patches, "grids": grids}
            logits = model(inputs, attention="dense", recompute=recompute).logits
        logits.logsumexp(dim=-1).sum().backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    expected, got = run("all"), run(way)
    assert got.keys() == expected.keys() and any(n.startswith("visual.") for n in got)
    assert [n for n in got if not torch.equal(got[n], expected[n])] == []


def test_the_tower_is_as_it_was():
    """After an error too; and what somebody put around a forward before is called inside, and is there afterwards."""
    model, (patches, grids) = tower(), pixels([(2, 2)])
    plain, calls = model.vision_model.forward, []

    def theirs(*inputs):
        calls.append(1)
        return plain(*inputs)

    with pytest.raises(ValueError, match="grids describe 4 patches, got 3"), keeping(model, "layers"):
        model(patches[:3], grids)
    assert all("forward" not in vars(module) for module in model.modules())
    model.vision_model.forward = theirs
    with keeping(model, "chunks"):
        model(patches, grids).sum().backward()
    assert model.vision_model.forward is theirs and len(calls) == 2


def test_one_way_at_a_time():
    model = tower()
    with keeping(model, "layers"), pytest.raises(ValueError, match="leave that block first"), keeping(model, "chunks"):
        pass
    with pytest.raises(ValueError, match="expected one of all, layers, chunks, offload, got 'none'"):
        keeping(model, "none").__enter__()


class Marked(torch.autograd.Function):
    """Keeps its own output, and an object whose end can be seen."""

    @staticmethod
    def forward(ctx, x, mark):
        out = x.exp()
        ctx.save_for_backward(out)
        ctx.mark = mark
        return out

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0], None


def test_counting_a_pass_that_fails_keeps_nothing_of_it():
    """As where memory runs out: the next row of a table must find all of it free."""
    module, mark = torch.nn.Linear(2, 2), {"alive"}
    seen = weakref.ref(mark)
    with pytest.raises(MemoryError), count_kept(module):
        Marked.apply(module(torch.ones(1, 2)), mark)
        raise MemoryError
    del mark
    gc.collect()
    assert seen() is None
