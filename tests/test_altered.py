"""Hooks, adapters and rules are seen, and the fused decode step does not pass them by."""

import torch
from torch import nn

from minikeye import KeyeConfig, KeyeVL, ops
from minikeye.altered import altered, altered_decoder
from minikeye.inference import cuda_graph
from minikeye.inference.cuda_graph import decode_step
from minikeye.inference.fused_step import FusedStep
from minikeye.inference.static_step import StaticStep
from minikeye.model.step import Step


class Adapter(nn.Module):
    """A projection with something beside it, which still has a weight."""

    def __init__(self, base: nn.Linear):
        super().__init__()
        self.base = base

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + 1


def changes(model: KeyeVL):
    """Every way to alter a model that we know of, one after another, each undone."""
    layer = model.model.layers[0]
    for module in (layer, layer.self_attn.q_proj, layer.self_attn.k_norm, layer.mlp.gate, layer.mlp.experts):
        for register in (module.register_forward_hook, module.register_forward_pre_hook):
            handle = register(lambda *_: None)
            yield "has a hook"
            handle.remove()
    base = layer.self_attn.q_proj
    layer.self_attn.q_proj = Adapter(base)
    yield "Adapter is not the model's own"
    layer.self_attn.q_proj = base
    layer.mlp.forward = layer.mlp.forward
    yield "another forward"
    del layer.mlp.forward
    for owner in (layer.self_attn, layer.mlp.gate):
        owner.rule = lambda *_: None
        yield "a rule chooses"
        owner.rule = None


def test_what_was_put_into_a_model_is_seen(monkeypatch):
    """And the step that calls every module is taken in the place of the one that calls none."""
    monkeypatch.setattr(cuda_graph, "choose_step", lambda *_: ("fused", ""))
    model = KeyeVL(KeyeConfig.nano()).eval()
    cache = model.new_cache(9)
    with torch.no_grad():
        model({"input_ids": torch.tensor([[1, 2, 3]])}, cache)
    assert altered_decoder(model.model) == altered(model.lm_head) == ""
    assert type(decode_step(model, cache)) is FusedStep
    for words in changes(model):
        assert words in altered_decoder(model.model), words
        assert type(decode_step(model, cache)) is StaticStep, words
    assert altered_decoder(model.model) == ""
    model.lm_head.register_forward_hook(lambda *_: None)
    assert type(decode_step(model, cache)) is StaticStep


def test_moving_between_devices_alters_nothing():
    """accelerate wraps the forward of every module that it places, and says so by `_hf_hook`."""
    linear = nn.Linear(2, 2)
    linear.forward, linear._hf_hook = linear.forward, object()
    assert altered(linear) == ""


def test_a_prompt_does_not_pass_by_norms_and_indexer_with_hooks(monkeypatch):
    """Where one kernel could do what they do, modules are called as soon as somebody listens to them."""
    monkeypatch.setattr(ops, "fused", lambda backend, *tensors: True)
    model = KeyeVL(KeyeConfig.nano())
    attention, positions = model.model.layers[0].self_attn, torch.arange(2).expand(3, 1, 2)
    step = Step.of(model.config, positions, mode="dense", backend="auto", observer=None, offset=0, start=None)
    x = torch.zeros(1, 2, 64)
    assert attention.in_place(x, step)
    for module in (attention.q_norm, attention.k_norm, attention.sa_indexer, attention.sa_indexer.k_norm):
        handle = module.register_forward_hook(lambda *_: None)
        assert not attention.in_place(x, step), type(module)
        handle.remove()
    attention.o_proj.register_forward_hook(lambda *_: None)  # a module that is called anyway
    assert attention.in_place(x, step)
