"""Router, experts and balance loss against loops and transformers."""

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from minikeye.config import TextConfig
from minikeye.model import moe

EXPERTS, CHOSEN = 6, 2
CONFIG = TextConfig(
    width=16,
    experts=EXPERTS,
    experts_per_token=CHOSEN,
    expert_width=12,
    heads=2,
    kv_heads=1,
    head_width=8,
    mrope_section=(1, 1, 2),
)


def mixture() -> moe.MixtureOfExperts:
    model = moe.MixtureOfExperts(CONFIG)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.4)
    return model


def token_by_token(model: moe.MixtureOfExperts, x: torch.Tensor) -> torch.Tensor:
    """Each token asks its two experts and adds their answers, weighted."""
    rows = []
    for token in x.flatten(0, 1):
        probability = (model.gate.weight @ token).softmax(0)
        best = sorted(range(EXPERTS), key=lambda n: -probability[n])[:CHOSEN]
        total, y = sum(probability[n] for n in best), 0
        for n in best:
            gate, up = (token @ model.experts.gate_up_proj[n]).split(12)
            y = y + probability[n] / total * ((F.silu(gate) * up) @ model.experts.down_proj[n])
        rows.append(y)
    return torch.stack(rows).reshape(x.shape)


def test_mixture_is_a_loop_over_tokens():
    model, x = mixture(), torch.randn(2, 7, 16)
    assert_close(model(x)[0], token_by_token(model, x), atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_the_loop():
    model, x = mixture().double(), torch.randn(1, 4, 16, dtype=torch.float64, requires_grad=True)
    model.gate.float()  # the router works in float32
    parts = (x, *model.parameters())
    got = torch.autograd.grad(model(x)[0].square().sum(), parts)
    model.gate.double()
    expected = torch.autograd.grad(token_by_token(model, x).square().sum(), (x, *model.parameters()))
    for mine, theirs in zip(got, expected, strict=True):
        assert_close(mine.double(), theirs, atol=1e-4, rtol=1e-4)


def test_weights_are_the_chosen_probabilities_renormalised():
    model, x = mixture(), torch.randn(9, 16)
    probabilities, weights, chosen = model.gate(x)
    assert_close(probabilities.sum(-1), torch.ones(9))
    assert_close(weights.sum(-1), torch.ones(9))
    assert_close(weights, F.normalize(probabilities.gather(1, chosen), p=1, dim=1))
    for row, best in zip(probabilities.tolist(), chosen.tolist(), strict=True):
        assert set(best) == set(sorted(range(EXPERTS), key=row.__getitem__)[-CHOSEN:])


def test_router_works_in_float32():
    """bfloat16 logits would tie and change the choice."""
    gate, x = mixture().gate.bfloat16(), torch.randn(50, 16).bfloat16()
    expected = F.linear(x.double(), gate.weight.double()).softmax(-1)
    assert_close(gate(x)[0].double(), expected, atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_router_works_in_float32_under_autocast(dtype):
    """Training routes under autocast, `generate` without: bit for bit the same experts and weights."""
    gate, x = moe.Router(TextConfig(width=256, experts=128)).to(dtype), torch.randn(500, 256, dtype=dtype)
    expected = gate(x)
    with torch.autocast("cpu", torch.bfloat16):
        got = gate(x)
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(got, expected, strict=True))


def test_shapes_and_choices():
    y, probabilities, chosen = mixture()(torch.randn(2, 3, 16))
    assert [tuple(z.shape) for z in (y, probabilities, chosen)] == [(2, 3, 16), (2, 3, EXPERTS), (2, 3, CHOSEN)]


def test_an_expert_without_tokens():
    """All tokens go to experts 1 and 3."""
    experts = mixture().experts
    chosen = torch.tensor([[1, 3]] * 5)
    y = experts(torch.randn(5, 16), torch.full((5, 2), 0.5), chosen)
    y.sum().backward()
    used = experts.down_proj.grad.flatten(1).abs().sum(1) > 0
    assert used.tolist() == [n in (1, 3) for n in range(EXPERTS)]


@pytest.mark.parametrize("counts", [[2, 0, 3, 1, 0, 0], [0, 0, 0, 0, 0, 6], [1] * 6])
def test_looped_multiplies_each_stretch_by_its_expert(counts):
    x, w = torch.randn(6, 16), torch.randn(EXPERTS, 16, 12)
    owner = [n for n, count in enumerate(counts) for _ in range(count)]
    expected = torch.stack([row @ w[n] for row, n in zip(x, owner, strict=True)])
    assert_close(moe.looped(x, w, torch.tensor(counts)), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("counts", [[8, 0, 16, 8, 0, 0], [5, 1, 2, 9, 3, 12]])
def test_grouped_equals_looped(counts):
    """torch's grouped matmul, where this torch has it for CPUs."""
    x, w, counts = torch.randn(32, 16).bfloat16(), torch.randn(EXPERTS, 16, 8).bfloat16(), torch.tensor(counts)
    try:
        got = moe.grouped(x, w, counts)
    except (RuntimeError, NotImplementedError) as error:
        pytest.skip(f"torch's grouped matmul does not run on this CPU: {error}")
    assert_close(got, moe.looped(x, w, counts), atol=0.05, rtol=0.02)


# ------------------------------------------------------------------------------------------------------------- balance


def test_balanced_router_has_loss_one():
    chosen = torch.arange(EXPERTS).reshape(-1, CHOSEN).repeat(4, 1)
    assert moe.balance_loss(torch.full((12, EXPERTS), 1 / EXPERTS), chosen).item() == pytest.approx(1.0)


def test_collapsed_router_has_loss_x():
    """All probability and every choice on one expert (one choice a token)."""
    probabilities = F.one_hot(torch.zeros(12, dtype=torch.long), EXPERTS).float()
    assert moe.balance_loss(probabilities, torch.zeros(12, 1, dtype=torch.long)).item() == pytest.approx(EXPERTS)


def test_balance_loss_is_transformers_over_the_number_of_choices():
    # Here, not above: the GPU test below runs where there is no transformers.
    from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

    logits = torch.randn(3, 5, EXPERTS)
    probabilities = logits.softmax(-1)
    expected = load_balancing_loss_func((logits.flatten(0, 1),), EXPERTS, CHOSEN) / CHOSEN
    assert_close(moe.balance_loss(probabilities, probabilities.topk(CHOSEN).indices), expected)


def test_balance_loss_pushes_the_busy_expert_down():
    logits = torch.zeros(8, EXPERTS).index_fill(1, torch.tensor([0]), 1.0).requires_grad_()
    moe.balance_loss(logits.softmax(-1), torch.tensor([[0, 1]] * 8)).backward()
    assert (logits.grad[:, 0] > 0).all() and (logits.grad[:, 2:] < 0).all()


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 5, 9000])
def test_one_kernel_for_all_experts_equals_a_loop_on_a_gpu(tokens):
    """Released widths, bfloat16; more tokens than a pass takes; in float64 both are as near to the loop."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    config = TextConfig()
    torch.manual_seed(0)
    mixture = moe.MixtureOfExperts(config).cuda().bfloat16()
    mixture.experts.fused_tokens = 8192
    x = torch.randn(1, tokens, config.width, device="cuda", dtype=torch.bfloat16)
    with torch.no_grad():
        fast, _, chosen = mixture(x)
        mixture.experts.multiply = moe.looped
        slow, _, again = mixture(x)
        exact = mixture.double()(x.double())[0]
    assert torch.equal(chosen, again)
    errors = [float((y.double() - exact).norm() / exact.norm()) for y in (fast, slow)]
    assert errors[0] < 1.2 * errors[1] + 1e-4 < 2e-2, errors
