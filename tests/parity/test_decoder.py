"""The decoder against transformers' Qwen3-MoE: same random weights, carried over in the released checkpoint layout."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM
from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen2_vl

from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.model.moe import MixtureOfExperts

# name -> query heads, KV heads, experts, experts per token
SIZES = {"ratio 1": (4, 4, 4, 1), "ratio 4": (8, 2, 8, 2), "ratio 8": (8, 1, 6, 3)}
LENGTH = 21
CLOSE = {"atol": 1e-5, "rtol": 1e-5}

pytestmark = pytest.mark.cpu


def qwen(heads: int, kv_heads: int, experts: int, chosen: int) -> Qwen3MoeForCausalLM:
    config = Qwen3MoeConfig(
        vocab_size=97,
        hidden_size=64,
        num_hidden_layers=3,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        head_dim=32,
        num_experts=experts,
        num_experts_per_tok=chosen,
        moe_intermediate_size=40,
        norm_topk_prob=True,
        rms_norm_eps=1e-6,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": 1e7},
        tie_word_embeddings=False,
        attn_implementation="eager",
        experts_implementation="eager",
    )
    model = Qwen3MoeForCausalLM(config).eval()
    for name, p in model.named_parameters():  # far from the start of training, so that every part matters
        torch.nn.init.normal_(
            p, mean=1.0 if "norm" in name else 0.0, std=0.3 if "norm" in name else p.shape[-1] ** -0.5
        )
    return model


def write_released(theirs: Qwen3MoeForCausalLM, folder, topk: int) -> None:
    """config.json and model.safetensors as released: experts as x @ W; indexer, tower and projector random."""
    text = theirs.config
    config = {
        "vision_config": KeyeConfig.nano().to_dict()["vision_config"],
        "text_config": {
            "vocab_size": text.vocab_size,
            "hidden_size": text.hidden_size,
            "num_hidden_layers": text.num_hidden_layers,
            "num_attention_heads": text.num_attention_heads,
            "num_key_value_heads": text.num_key_value_heads,
            "head_dim": text.head_dim,
            "num_experts": text.num_experts,
            "num_experts_per_tok": text.num_experts_per_tok,
            "moe_intermediate_size": text.moe_intermediate_size,
            "rms_norm_eps": text.rms_norm_eps,
            "max_position_embeddings": text.max_position_embeddings,
            "rope_theta": text.rope_parameters["rope_theta"],
            "rope_scaling": {"type": "default", "mrope_section": [4, 6, 6]},
            "sa_config": {"indexer_num_heads": 2, "indexer_head_dim": 16, "indexer_num_kv_heads": 1, "topk": topk},
        },
    }
    tensors = {n: torch.randn_like(t) for n, t in KeyeVL(KeyeConfig.from_dict(config)).state_dict().items()}
    for name, tensor in theirs.state_dict().items():
        tensors[name] = (tensor.mT if ".experts." in name else tensor).contiguous()
    (folder / "config.json").write_text(json.dumps(config))
    save_file(tensors, folder / "model.safetensors")


@pytest.fixture(params=SIZES.values(), ids=SIZES, scope="module")
def pair(request, tmp_path_factory):
    """(transformers' model, ours) with k larger than any test's sequence."""
    torch.manual_seed(1)
    folder = tmp_path_factory.mktemp("released")
    theirs = qwen(*request.param)
    write_released(theirs, folder, topk=64)
    return theirs, KeyeVL.from_pretrained(folder)


def record_hidden(layers) -> list[torch.Tensor]:
    """What each layer's attention, experts and the layer itself put out, in order, filled by a forward pass."""
    seen: list[torch.Tensor] = []

    def keep(module, args, out):
        out = out[0] if isinstance(out, tuple) else out
        seen.append(out - args[1] if isinstance(module, MixtureOfExperts) else out)  # ours adds the residual itself

    for layer in layers:
        for part in (layer.self_attn, layer.mlp, layer):
            part.register_forward_hook(keep)
    return seen


@pytest.mark.parametrize("attention", ["dense", "sparse", "masked"])
@torch.no_grad()
def test_logits_equal(pair, attention):
    """Every mode is dense attention where the set holds every key."""
    theirs, ours = pair
    ids = torch.randint(97, (2, LENGTH))
    assert_close(ours({"input_ids": ids}, attention=attention).logits, theirs(ids).logits, **CLOSE)


@torch.no_grad()
def test_hidden_states_equal_layer_by_layer(pair):
    theirs, ours = pair
    ids = torch.randint(97, (2, LENGTH))
    expected, got = record_hidden(theirs.model.layers), record_hidden(ours.model.layers)
    theirs(ids)
    ours({"input_ids": ids}, attention="dense")
    assert len(got) == len(expected) == 9
    for mine, reference in zip(got, expected, strict=True):
        assert reference.std() > 0.1  # numbers that a tolerance of 1e-5 can tell apart
        assert_close(mine, reference, **CLOSE)


@pytest.mark.parametrize("attention", ["dense", "sparse", "masked"])
@torch.no_grad()
def test_left_padding(pair, attention):
    """Rows of length 21, 13 and 1 in one batch; what stands on the padding is of no interest."""
    theirs, ours = pair
    ids = torch.randint(97, (3, LENGTH))
    mask = torch.arange(LENGTH) >= torch.tensor([0, 8, LENGTH - 1])[:, None]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    expected = theirs(ids, attention_mask=mask.long(), position_ids=positions).logits
    got = ours({"input_ids": ids, "attention_mask": mask}, attention=attention).logits
    assert_close(got[mask], expected[mask], **CLOSE)


@pytest.mark.parametrize("attention", ["dense", "sparse"])
@torch.no_grad()
def test_cached_decode(pair, attention):
    """Seven tokens at once, then one at a time, against one pass without a cache."""
    theirs, ours = pair
    ids = torch.randint(97, (2, LENGTH))
    expected, cache, got = theirs(ids, use_cache=False).logits, ours.new_cache(), []
    for piece in (ids[:, :7], *ids[:, 7:].split(1, dim=1)):
        got.append(ours({"input_ids": piece}, cache, attention=attention).logits)
    assert cache.length == LENGTH
    assert_close(torch.cat(got, dim=1), expected, **CLOSE)


def test_greedy_generation(pair):
    theirs, ours = pair
    ids = torch.randint(97, (1, 6))
    expected = theirs.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False, pad_token_id=0
    )
    assert ours.generate({"input_ids": ids}, max_new_tokens=12, attention="dense").row() == expected[0, 6:].tolist()


def test_gradients_equal(pair):
    """Every shared weight gets the gradient that transformers gives it."""
    theirs, ours = pair
    ids = torch.randint(97, (2, LENGTH))
    theirs(ids).logits.logsumexp(-1).mean().backward()
    ours({"input_ids": ids}, attention="sparse").logits.logsumexp(-1).mean().backward()
    mine = dict(ours.named_parameters())
    for name, p in theirs.named_parameters():
        expected = p.grad.mT if ".experts." in name else p.grad
        tolerance = 1e-4 * expected.abs().max().item() + 1e-5  # one expert a token: its weight is 1, its gradient 0
        assert_close(mine[name].grad, expected, atol=tolerance, rtol=0.0, msg=lambda m, n=name: f"{n}: {m}")
    theirs.zero_grad()
    ours.zero_grad()


@torch.no_grad()
def test_heads_and_indexer_turn_by_the_same_3d_positions():
    """Time, row and column all different: M-RoPE of Qwen2-VL at both widths, with the decoder's theta."""
    config = KeyeConfig.nano()
    model, traces = KeyeVL(config), []
    observer = SimpleNamespace(attention=lambda layer, trace: traces.append(trace), routing=lambda *args: None)
    ids, positions = torch.randint(256, (2, LENGTH)), torch.randint(500, (3, 2, LENGTH))
    model({"input_ids": ids, "positions": positions}, observer=observer)
    layer = model.model.layers[0]
    x = layer.input_layernorm(model.model.embed_tokens(ids))
    attention, indexer, heads = layer.self_attn, layer.self_attn.sa_indexer, (2, LENGTH, -1)

    def turned(q, k, section):
        rope = {"rope_type": "default", "rope_theta": config.text.rope_theta, "mrope_section": section}
        numbers = SimpleNamespace(max_position_embeddings=4096, head_dim=q.shape[-1], rope_parameters=rope)
        cos, sin = qwen2_vl.Qwen2VLRotaryEmbedding(numbers)(q, positions)
        return qwen2_vl.apply_rotary_pos_emb(q, k, cos, sin, unsqueeze_dim=2)

    q, k = (proj(x).reshape(*heads, 32) for proj in (attention.q_proj, attention.k_proj))
    assert_close((traces[0].q, traces[0].k), turned(attention.q_norm(q), attention.k_norm(k), [4, 6, 6]), **CLOSE)
    q, k = indexer.q_proj(x)[..., :32].reshape(*heads, 16), indexer.k_proj(x).reshape(*heads, 16)
    q, k = turned(indexer.q_norm(q), indexer.k_norm(k), [2, 3, 3])
    assert_close((traces[0].index_q, traces[0].index_k), (q, k.squeeze(2)), **CLOSE)
