"""A model without a tower, without norms of q and k, with one expert and a tied head: an older language model."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from minikeye.config import KeyeConfig, unused_keys
from minikeye.cost import active_parameters, parameters
from minikeye.cost.memory import needs
from minikeye.inference.fused_step import FusedStep
from minikeye.inputs.processor import Processor
from minikeye.keye import KeyeVL
from minikeye.ops.decode_step import beyond_step

NANO = KeyeConfig.nano()
TEXT = replace(NANO.text, experts=1, experts_per_token=1, qk_norm=False, tied=True)
OLDER = replace(NANO, vision=None, text=TEXT, image_token_id=320, video_token_id=321)
IDS = torch.arange(24)[None] * 7 % 320


@pytest.fixture
def model() -> KeyeVL:
    torch.manual_seed(0)
    return KeyeVL(OLDER)


def test_config_there_and_back():
    stated = json.loads(json.dumps(OLDER.to_dict()))
    assert KeyeConfig.from_dict(stated) == OLDER and unused_keys(stated) == []
    assert stated["vision_config"] is False and stated["text_config"]["tie_word_embeddings"] is True
    assert stated["text_config"]["qk_norm"] is False


def test_what_the_release_does_is_not_stated():
    assert not {"qk_norm", "tie_word_embeddings"} & NANO.to_dict()["text_config"].keys()


@pytest.mark.parametrize("value", [0, 1, None, "yes"])
@pytest.mark.parametrize("key", ["qk_norm", "tie_word_embeddings"])
def test_true_or_false(key, value):
    stated = OLDER.to_dict()
    stated["text_config"][key] = value
    with pytest.raises(ValueError, match=f"text_config.{key}' must be true or false; got"):
        KeyeConfig.from_dict(stated)


def test_wrong_combinations():
    with pytest.raises(ValueError, match="without a tower no token stands for pixels: ids must lie beyond 320"):
        replace(NANO, vision=None)
    with pytest.raises(ValueError, match=r"experts_per_token 2 must lie in 1\.\.1"):
        replace(TEXT, experts_per_token=2)
    with pytest.raises(ValueError, match="no vision tower"):
        _ = OLDER.token_pixels
    with pytest.raises(ValueError, match="a Processor needs a vision tower"):
        Processor(OLDER)


def test_names_are_those_that_are_needed(model):
    names = model.state_dict().keys()
    assert [n for n in names if "gate.weight" in n or "self_attn.q_norm" in n or "lm_head" in n or "visual" in n] == []
    assert sum(p.numel() for p in model.parameters()) == parameters(OLDER).total
    assert parameters(OLDER).head == 0 and active_parameters(OLDER).head == 320 * 64


def test_saved_and_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = KeyeVL.from_pretrained(tmp_path)
    assert again.config == OLDER
    assert torch.equal(again({"input_ids": IDS}).logits, model({"input_ids": IDS}).logits)
    with pytest.raises(ValueError, match="held whole, name one device"):
        KeyeVL.from_pretrained(tmp_path, streaming=True)


@torch.no_grad()
def test_one_expert_is_a_dense_mlp(model):
    """Against the three products of a SwiGLU, one after the other."""
    mlp, x = model.model.layers[0].mlp, torch.randn(2, 5, 64)
    gate, up = mlp.experts.gate_up_proj[0].chunk(2, dim=1)
    y, probabilities, chosen = mlp(x)
    assert_close(y, (torch.nn.functional.silu(x @ gate) * (x @ up)) @ mlp.experts.down_proj[0])
    assert bool((probabilities == 1).all()) and bool((chosen == 0).all())


@torch.no_grad()
def test_the_head_is_the_table_also_of_a_copy(model):
    twin = copy.deepcopy(model)
    twin.model.embed_tokens.weight.mul_(2)
    x = torch.randn(1, 3, 64)
    assert_close(twin.lm_head(x), 2 * model.lm_head(x))
    assert_close(model.lm_head(x), x @ model.model.embed_tokens.weight.T)


def test_gradients_of_a_tied_table_are_of_both_uses(model):
    """Tokens that were only said, never read, get a gradient through the head."""
    model({"input_ids": IDS}, attention="dense").logits.logsumexp(-1).sum().backward()
    unread = sorted(set(range(320)) - set(IDS[0].tolist()))
    assert bool((model.model.embed_tokens.weight.grad[unread] != 0).any(dim=1).all())


@pytest.mark.parametrize("attention", ["dense", "sparse"])
def test_generates_as_whole_passes_say(model, attention):
    out = model.generate({"input_ids": IDS}, max_new_tokens=6, attention=attention)
    ids = IDS
    for token in out.row():
        expected = int(model({"input_ids": ids}, attention=attention, last=1).logits[0, -1].argmax())
        assert token == expected
        ids = torch.cat((ids, torch.tensor([[token]])), dim=1)


def test_pixels_are_refused(model):
    with pytest.raises(ValueError, match="reads text alone"):
        model({"input_ids": IDS, "visual": torch.zeros(1, 64), "positions": torch.zeros(3, 1, 24, dtype=torch.long)})


def test_the_fused_step_leaves_it_to_torch(model):
    for text in (replace(TEXT, qk_norm=True), replace(TEXT, experts=4, experts_per_token=2)):
        assert "this model does not" in beyond_step(replace(OLDER, text=text), 1)
    with pytest.raises(ValueError, match="the fused step computes from weights alone"):
        FusedStep(model, model.new_cache())


def test_memory_without_a_tower():
    assert needs(OLDER, context=64, dtype=torch.float32).total > 0
