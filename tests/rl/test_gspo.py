"""The objective against numbers by hand, a loop, finite differences, and a bandit; and what must not upset it."""

import inspect
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minikeye.rl.gspo import (
    CISPO,
    DAPO,
    DR_GRPO,
    GRPO,
    GSPO,
    GSPO_PAPER,
    LARGEST,
    VARIANTS,
    Variant,
    advantages,
    k3,
    objective,
    token_divisors,
)

every_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)

# Two groups of two answers, three tokens, masked tails (x: not to be looked at). Every new log-prob is -1.
#   group  A   ratios of tokens   their geometric mean
#     0   +1   2    1    x        sqrt(2) = 1.41421
#     0   -1   1/2  1/2  1/2      1/2
#     1   +2   1.1  x    x        1.1
#     1   -2   8    1/8  1        1
X = math.nan
RATIOS = torch.tensor([[2, 1, X], [0.5, 0.5, 0.5], [1.1, X, X], [8, 0.125, 1]], dtype=torch.float64)
MASK = ~RATIOS.isnan()
A = torch.tensor([1.0, -1.0, 2.0, -2.0], dtype=torch.float64)
NEW = torch.where(MASK, -1.0, X).double()
OLD = NEW - RATIOS.log()

BY_HAND = {
    # answers: min(1.41421, 1.05), min(-.5, -.95), min(2.2, 2.1), -2: their mean
    GSPO: (-(1.05 - 0.95 + 2.1 - 2) / 4, 3 / 4, 3 / 4),
    # the same with 1.0004, -.9997, 2.0008
    GSPO_PAPER: (-(1.0004 - 0.9997 + 2.0008 - 2) / 4, 3 / 4, 3 / 4),
    # tokens: 1.2, 1 | -.8, -.8, -.8 | 2.2 | -16 (only kept from falling), -1.6, -2; mean of the answers' means
    GRPO: (-((1.2 + 1) / 2 - 0.8 + 2.2 - (16 + 1.6 + 2) / 3) / 4, 5 / 9, 6 / 9),
    # the same tokens, their sum over 4 answers and L = 5
    replace(DR_GRPO, length=5): (-(1.2 + 1 - 2.4 + 2.2 - 19.6) / 20, 5 / 9, 6 / 9),
    # the first token may gain up to 1.28; the mean of 9 tokens
    DAPO: (-(1.28 + 1 - 2.4 + 2.2 - 19.6) / 9, 5 / 9, 6 / 9),
    # ratio (8 held at 6) times A times -1: -2, -1 | .5, .5, .5 | -2.2 | 12, .25, 2
    CISPO: (-(-3 + 1.5 - 2.2 + 14.25) / 9, 1 / 9, 1 / 9),
}


@pytest.mark.parametrize("variant", BY_HAND, ids=lambda v: v.name)
def test_by_hand(variant: Variant):
    loss, numbers = objective(NEW, OLD, MASK, A, variant)
    expected, clipped, outside = BY_HAND[variant]
    assert float(loss) == pytest.approx(expected, rel=1e-9)
    assert float(numbers["clipped"]) == pytest.approx(clipped)
    assert float(numbers["outside"]) == pytest.approx(outside)
    answers = (math.sqrt(2) + 0.5 + 1.1 + 1) / 4, math.sqrt(2)
    tokens = (2 + 1 + 1.5 + 1.1 + 9.125) / 9, 8.0
    mean, largest = answers if variant.ratio == "sequence" else tokens
    assert float(numbers["ratio"]) == pytest.approx(mean) and float(numbers["largest"]) == pytest.approx(largest)
    # sum of r - 1: 1 - 1.5 + .1 + 6.125; sum of log r: log 2 - 3 log 2 + log 1.1
    assert float(numbers["kl"]) == pytest.approx((5.725 + 2 * math.log(2) - math.log(1.1)) / 9)
    assert not any(value.requires_grad for value in numbers.values())


@every_variant
def test_advantages_by_hand(variant: Variant):
    """Groups in any order: 1, 0, 0, 0 (mean .25, std sqrt(3) / 4); .9, .5 (mean .7, std .2); two that are dropped."""
    rewards = torch.tensor([1.0, 0.9, 0.3, 0.0, 0.0, 0.5, 0.3, 0.0, 1.0], dtype=torch.float64)
    groups = torch.tensor([7, 3, 5, 7, 7, 3, 5, 7, 9])
    a, kept = advantages(rewards, groups, variant)
    four, two = (math.sqrt(3) / 4 + 1e-4, 0.2 + 1e-4) if variant.divisor == "std" else (1.0, 1.0)
    by_hand = [0.75 / four, 0.2 / two, 0, -0.25 / four, -0.25 / four, -0.2 / two, 0, -0.25 / four, 0]
    assert a.tolist() == pytest.approx(by_hand)
    assert kept.tolist() == [True, True, False, True, True, True, False, True, False]


def a_child(new, old, mask, a, variant, fixed=None) -> float:
    """The loss, number by number. fixed: new log-probs that CISPO's weights are computed from and stay at."""
    fixed = new if fixed is None else fixed
    total, answers, tokens = 0.0, 0, 0
    for n in range(len(new)):
        here = [t for t in range(len(new[n])) if mask[n][t]]
        if not here:
            continue
        answers, tokens = answers + 1, tokens + len(here)
        gains = []
        for t in here:
            over = fixed if variant.clip == "weight" else new
            logs = [over[n][u] - old[n][u] for u in (here if variant.ratio == "sequence" else [t])]
            r = math.exp(sum(logs) / len(logs))
            held = min(max(r, 1 - variant.low), 1 + variant.high)
            gains.append(min(r * a[n], held * a[n]) if variant.clip == "gain" else held * a[n] * new[n][t])
        total += sum(gains) / len(gains) if variant.average == "answers" else sum(gains)
    return -total / {"answers": answers, "tokens": tokens, "length": answers * variant.length}[variant.average]


def draw(seed: int, spread: float = 0.3):
    """Six answers of up to five tokens, one of them empty, in float64."""
    g = torch.Generator().manual_seed(seed)
    new = -2 * torch.rand(6, 5, generator=g, dtype=torch.float64)
    old = new + spread * torch.randn(6, 5, generator=g, dtype=torch.float64)
    mask = torch.rand(6, 5, generator=g) < 0.7  # holes too: what a tool said
    mask[0, 0], mask[3] = True, False
    return new, old, mask, torch.randn(6, generator=g, dtype=torch.float64)


combinations = st.builds(
    Variant,
    st.just("any"),
    st.sampled_from(["sequence", "token"]),
    st.sampled_from([3e-4, 0.2, 1.0]),
    st.sampled_from([3e-4, 0.28, 5.0]),
    st.sampled_from(["gain", "weight"]),
    st.sampled_from(["std", "none"]),
    st.sampled_from(["answers", "tokens", "length"]),
    length=st.integers(1, 9),
)


@given(st.sampled_from(VARIANTS) | combinations, st.integers(0, 10**6))
def test_a_loop_and_finite_differences_agree(variant: Variant, seed: int):
    """Every row of the table and every other mixture of its columns."""
    new, old, mask, a = draw(seed)
    new.requires_grad_()
    loss, _ = objective(new, old, mask, a, variant)
    loss.backward()
    lists = [x.tolist() for x in (new.detach(), old, mask, a)]
    assert float(loss.detach()) == pytest.approx(a_child(*lists, variant), rel=1e-9, abs=1e-12)
    step = 1e-6
    for n, t in ((0, 0), (1, 2), (2, 4), (3, 1), (5, 3)):
        sides = []
        for sign in (1, -1):
            moved = [row.copy() for row in lists[0]]
            moved[n][t] += sign * step
            sides.append(a_child(moved, *lists[1:], variant, fixed=lists[0]))
        assert float(new.grad[n, t]) == pytest.approx((sides[0] - sides[1]) / (2 * step), rel=1e-4, abs=1e-8)


@every_variant
def test_on_policy_all_are_one_gradient(variant: Variant):
    """new == old: -A over what the tokens are divided by, and nothing else tells the variants apart."""
    new, _, mask, a = draw(1)
    new.requires_grad_()
    _, numbers = objective(new, new, mask, a, variant)
    objective(new, new, mask, a, variant)[0].backward()
    lengths = mask.sum(1, keepdim=True).clamp(min=1)
    divisor = {"answers": 5 * lengths, "tokens": mask.sum(), "length": 5 * variant.length}[variant.average]
    assert torch.allclose(new.grad, -a[:, None] * mask / divisor, rtol=1e-12)
    assert torch.equal(token_divisors(mask, variant).expand_as(lengths), torch.as_tensor(divisor).expand_as(lengths))
    assert (float(numbers["clipped"]), float(numbers["outside"]), float(numbers["kl"])) == (0.0, 0.0, 0.0)
    assert (float(numbers["ratio"]), float(numbers["largest"])) == (1.0, 1.0)


def test_on_policy_answers_of_one_length_and_scale():
    """Where every answer has L tokens, no normalisation differs: all six gradients are one."""
    grads = []
    for variant in VARIANTS:
        new = torch.full((4, 3), -1.0, dtype=torch.float64, requires_grad=True)
        objective(new, new, torch.ones(4, 3, dtype=torch.bool), A, replace(variant, length=3))[0].backward()
        grads.append(new.grad)
    assert all(torch.allclose(grad, grads[0], rtol=1e-12) for grad in grads)


def test_the_ratio_of_an_answer_is_a_geometric_mean():
    """Of its tokens' ratios: 4 and 1/4 make 1, however far each is off; length does not blow it up."""
    ratios = torch.tensor([[4.0, 0.25, 1.0, 1.0], [1.02, 1.02, 1.02, 1.02]])
    new = torch.zeros(2, 4) - 1
    for n, expected in ((0, 1.0), (1, 1.02)):
        row = slice(n, n + 1)
        mask = torch.ones(1, 4, dtype=torch.bool)
        numbers = objective(new[row], new[row] - ratios[row].log(), mask, torch.ones(1), GSPO)[1]
        assert float(numbers["ratio"]) == pytest.approx(expected, rel=1e-6)
        assert expected == pytest.approx(math.prod(ratios[n].tolist()) ** (1 / 4))


@every_variant
def test_what_is_clipped_has_no_gradient(variant: Variant):
    """Beyond the bound, on the side where the gain would grow; on the other side is no bound. CISPO keeps both."""
    ratio = torch.tensor([[10.0], [10.0], [0.01], [0.01]], dtype=torch.float64)
    a = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    new = torch.full((4, 1), -1.0, dtype=torch.float64, requires_grad=True)
    loss, numbers = objective(new, new.detach() - ratio.log(), torch.ones(4, 1, dtype=torch.bool), a, variant)
    loss.backward()
    over = 4 * (variant.length if variant.average == "length" else 1)
    held = [0, 10, -0.01, 0] if variant.clip == "gain" else [-6, 6, -0.01, 0.01]
    assert new.grad.flatten().tolist() == pytest.approx([g / over for g in held])
    assert (float(numbers["clipped"]), float(numbers["outside"])) == ((0.5, 1.0) if held[0] == 0 else (0.5, 0.5))


@every_variant
def test_gradients_reach_the_new_log_probs_alone(variant: Variant):
    new, old, mask, a = draw(2)
    for x in (new, old, a):
        x.requires_grad_()
    objective(new, old, mask, a, variant)[0].backward()
    assert new.grad is not None and old.grad is None and a.grad is None
    assert torch.equal(new.grad[~mask], torch.zeros_like(new.grad[~mask]))


@every_variant
@pytest.mark.parametrize("filler", [math.nan, -math.inf, 1e30])
def test_what_is_masked_is_never_looked_at(variant: Variant, filler: float):
    """An empty answer and padding, whatever they hold, change neither loss nor gradient nor numbers."""
    new, old, mask, a = draw(3)
    there = mask.any(1)
    assert there.tolist() == [True, True, True, False, True, True]
    results = []
    for case in range(2):
        n, o = new.clone(), old.clone()
        n[~mask], o[~mask] = (filler, filler) if case else (0.0, 0.0)
        keep = torch.arange(6)[there] if not case else torch.arange(6)
        leaf = n[keep].requires_grad_()
        loss, numbers = objective(leaf, o[keep], mask[keep], a[keep], variant)
        loss.backward()
        results.append((loss.detach(), leaf.grad[mask[keep]], torch.stack(list(numbers.values()))))
    for a_result, b_result in zip(*results, strict=True):
        assert torch.isfinite(a_result).all() and torch.allclose(a_result, b_result, rtol=1e-12)


@every_variant
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("gap", [200.0, -200.0, 60_000.0])
def test_huge_ratios_stay_finite(variant: Variant, dtype: torch.dtype, gap: float):
    """e^200 is no float32. In half precision, too: the sums are made in float32."""
    new = torch.full((2, 3), -1.0, dtype=dtype, requires_grad=True)
    loss, numbers = objective(
        new, (new.detach() - gap).to(dtype), torch.ones(2, 3, dtype=torch.bool), torch.tensor([1.0, -1.0]), variant
    )
    loss.backward()
    assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert torch.isfinite(new.grad).all() or dtype == torch.float16  # its gradients end at 65,504
    assert all(torch.isfinite(value) for value in numbers.values())
    assert float(numbers["largest"]) == pytest.approx(math.exp(math.copysign(LARGEST, gap)), rel=1e-5)


@every_variant
def test_kl_to_a_reference(variant: Variant):
    """beta * k3 with r = reference / new, averaged as the gains are; dropped answers do not feel it."""
    new, old, mask, a = draw(4)
    reference = new + 0.2 * torch.randn_like(new)
    plain = objective(new, old, mask, a, variant)[0]
    both = objective(new, old, mask, a, replace(variant, kl=0.5), reference)[0]
    x = reference - new
    penalty = ((x.exp() - 1 - x) * mask / token_divisors(mask, variant)).sum()
    assert float(both - plain) == pytest.approx(0.5 * float(penalty), rel=1e-9)
    with pytest.raises(ValueError, match="expected the reference's log-probs"):
        objective(new, old, mask, a, replace(variant, kl=0.5))


def test_k3_is_the_divergence():
    """Exactly, over the whole vocabulary: the mean of k3(log q / p) under p is KL(p || q)."""
    p, q = torch.randn(2, 9, dtype=torch.float64).log_softmax(-1)
    assert float((p.exp() * k3(q - p)).sum()) == pytest.approx(float((p.exp() * (p - q)).sum()))
    assert (k3(torch.linspace(-5, 5, 101)) >= 0).all()
    assert float(k3(torch.tensor(1e-4))) == pytest.approx(5e-9, rel=1e-3)  # r - 1 - log r would give 0 or 1e-7


@every_variant
def test_a_batch_of_nothing(variant: Variant):
    new = torch.zeros(2, 3)
    for shape in ((2, 3), (2, 0)):
        with pytest.raises(ValueError, match="expected a token to learn"):
            objective(*[torch.zeros(shape)] * 2, torch.zeros(shape, dtype=torch.bool), torch.zeros(2), variant)
    loss, _ = objective(new, new, new == 0, torch.zeros(2), variant)  # all rewards equal, not dropped: no advantage
    assert float(loss) == 0.0


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_reward_that_is_no_number(bad: float):
    with pytest.raises(ValueError, match=r"expected finite rewards, got .* at \[1\]"):
        advantages(torch.tensor([1.0, bad, 0.0]), torch.tensor([0, 0, 0]), GSPO)


def test_advantages_are_refused_without_groups():
    for rewards, groups in ((0, 0), (1, 2)):
        with pytest.raises(ValueError, match="expected a group for each"):
            inspect.unwrap(advantages)(torch.zeros(rewards), torch.zeros(groups, dtype=torch.long), GSPO)


def test_equal_rewards_are_equal_in_any_precision():
    """Their mean is another number in float32: no advantage may come of it."""
    for value in (0.1, 1 / 3, 0.7, 1e-8, 0.0):
        a, kept = advantages(torch.full((7,), value), torch.zeros(7, dtype=torch.long), GSPO)
        assert a.tolist() == [0.0] * 7 and not kept.any()


@pytest.mark.parametrize(
    "bad",
    [
        {"ratio": "word"},
        {"clip": "both"},
        {"divisor": "mean"},
        {"average": "mean"},
        {"low": 0.0},
        {"low": 1.5},
        {"high": math.inf},
        {"high": math.nan},
        {"kl": -1.0},
        {"length": 0},
    ],
)
def test_variants_that_are_none(bad):
    """Checked by hand: the tests' own type checks would come first for a word that is none."""
    variant = replace(GSPO)
    for name, value in bad.items():
        object.__setattr__(variant, name, value)
    with pytest.raises(ValueError, match="expected"):
        variant.__post_init__()


def bandit(variant: Variant, worth, steps: int, epochs: int = 2, group: int = 8) -> tuple[list[float], int]:
    """A softmax policy over one token; arm n pays worth[n]. The probabilities after `steps` rollouts, updates made."""
    g = torch.Generator().manual_seed(0)
    logits, updates = torch.zeros(3, requires_grad=True), 0
    lr = 0.5 * (variant.length if variant.average == "length" else 1)
    for _ in range(steps):
        with torch.no_grad():
            old = logits.log_softmax(-1)
            arms = torch.multinomial(old.exp(), 4 * group, replacement=True, generator=g)
        a, kept = advantages(worth[arms], torch.arange(4).repeat_interleave(group), variant)
        if not kept.any():
            continue
        for _ in range(epochs):
            new = logits.log_softmax(-1)[arms, None]
            loss, _ = objective(new, old[arms, None], kept[:, None], a, variant)
            with torch.no_grad():
                logits -= lr * torch.autograd.grad(loss, logits)[0]
            updates += 1
    return logits.detach().softmax(-1).tolist(), updates


@every_variant
def test_a_bandit_is_learnt(variant: Variant):
    """Three arms that pay 0.2, 0.6 and 0.5, 80 rollouts of 4 groups, 2 updates each: the best arm wins."""
    learnt, updates = bandit(variant, torch.tensor([0.2, 0.6, 0.5]), steps=80)
    assert learnt[1] > 0.85 and updates > 20, learnt


@every_variant
def test_a_bandit_that_pays_the_same_is_left_alone(variant: Variant):
    learnt, updates = bandit(variant, torch.tensor([0.3, 0.3, 0.3]), steps=20)
    assert learnt == pytest.approx([1 / 3] * 3) and updates == 0


def test_whole_numbers_and_shapes(unchecked):
    """Rewards of 0 and 1 as whole numbers are rewards; shapes that would spread are refused."""
    groups = torch.zeros(4, dtype=torch.int64)
    wanted = advantages(torch.tensor([1.0, 0.0, 0.0, 0.0]), groups, GSPO)[0]
    assert torch.equal(advantages(torch.tensor([1, 0, 0, 0]), groups, GSPO)[0], wanted)
    new, mask = torch.zeros(4, 3), torch.ones(4, 3, dtype=torch.bool)
    for old, a in ((new, wanted[:, None]), (new[:, :1], wanted), (new, wanted[:1])):
        with pytest.raises(ValueError, match=r"log-probs and mask \[n t\] and advantages \[n\]"):
            objective(new, old, mask, a, GSPO)
