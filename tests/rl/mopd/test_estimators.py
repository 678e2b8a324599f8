"""Every estimator against the exact gradient: where it is still, where it points, what it teaches on average."""

import math

import pytest
import torch

from minikeye.rl.mopd import estimators
from minikeye.rl.mopd.estimators import ESTIMATORS, OVERLAP, PRINTED, Estimator, all_actions, token_advantages
from minikeye.rl.mopd.exact import cosine, descend, exact_gradient, expected_gradient
from minikeye.rl.mopd.support import LEAST, apart, distributions, renormalised, reverse_kl, support

V, K = 32, 8

# still at the teacher, still everywhere, the exact gradient's direction
CLAIMS = {
    "overlap": (True, False, False),
    "student only": (True, False, False),
    "teacher on student": (True, False, False),
    "printed": (True, True, False),
    "sampled": (True, False, True),
    "full": (True, False, True),
    "teacher's top k, corrected": (True, False, False),
    "teacher's top k": (False, False, False),
    "k1": (True, True, False),
    "k2": (True, False, True),
    "k3": (True, False, False),
    "undetached": (False, False, False),
    "both renormalised": (True, False, False),
}


def states(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a student and of a teacher made from it."""
    random = torch.Generator().manual_seed(seed)
    student = 1.5 * torch.randn(V, generator=random)
    return student, student + 0.8 * torch.randn(V, generator=random)


def test_every_estimator_has_a_claim():
    assert [each.name for each in ESTIMATORS] == list(CLAIMS)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda each: each.name)
def test_what_it_teaches_on_average(estimator: Estimator, seed: int):
    student, teacher = states(seed)
    still_there, still_everywhere, exact = CLAIMS[estimator.name]
    gradient, true = expected_gradient(estimator, student, teacher, K), exact_gradient(student, teacher)
    at_teacher = float(expected_gradient(estimator, teacher, teacher, K).norm())
    assert (at_teacher < 1e-12) == still_there
    assert (float(gradient.norm()) < 1e-12) == still_everywhere
    if still_everywhere:
        assert math.isnan(cosine(gradient, true))
    elif exact:
        torch.testing.assert_close(gradient, true, rtol=1e-9, atol=1e-12)
    else:
        assert 0.2 < cosine(gradient, true) < 0.999  # some way downhill, and not the way itself


def test_the_exact_gradient_is_softmax_calculus():
    """dKL/dz_v = S(v) (log S(v)/T(v) - KL), by hand."""
    student, teacher = states(3)
    s, t = student.double().log_softmax(0), teacher.double().log_softmax(0)
    kl = (s.exp() * (s - t)).sum()
    torch.testing.assert_close(exact_gradient(student, teacher), s.exp() * (s - t - kl))


def test_forward_kl_is_what_k3_teaches():
    student, teacher = states(4)
    z = student.double().requires_grad_()
    t = teacher.double().log_softmax(0)
    (t.exp() * (t - z.log_softmax(0))).sum().backward()
    torch.testing.assert_close(expected_gradient(estimators.K3, student, teacher, K), z.grad, rtol=1e-6, atol=1e-9)


def test_all_actions_are_exact_where_the_support_is_everything():
    student, teacher = states(5)
    everywhere = Estimator("all", all_actions, "overlap")
    torch.testing.assert_close(expected_gradient(everywhere, student, teacher, V), exact_gradient(student, teacher))


def test_descent_by_each():
    """Plain descent without noise: who arrives, who stays, who goes away."""
    student, teacher = states(0)
    ways = {each.name: descend(each, student, teacher, K, steps=300) for each in ESTIMATORS}
    start = ways["full"][0]
    assert ways["full"][-1] < 0.02 * start and ways["sampled"][-1] == pytest.approx(ways["full"][-1], abs=1e-6)
    for name in ("overlap", "student only", "teacher on student", "teacher's top k, corrected"):
        assert ways[name][-1] < 0.6 * start
    for name in ("printed", "k1"):
        assert ways[name][-1] == pytest.approx(start, abs=1e-9)
    for name in ("teacher's top k", "undetached"):
        assert ways[name][-1] > start


def test_one_state_by_hand():
    """Three tokens, k 2: the overlap is the middle one and the first."""
    student = torch.tensor([0.5, 0.3, 0.2]).log()
    teacher = torch.tensor([0.25, 0.7, 0.05]).log()
    on = support(student, teacher, 2, "overlap")
    assert on.tolist() == [True, True, False]
    assert renormalised(student, on).tolist() == pytest.approx([0.625, 0.375, 0.0])
    weights = [0.625 * math.log(0.25 / 0.5), 0.375 * math.log(0.7 / 0.3), 0.0]
    assert token_advantages(student, teacher, on).tolist() == pytest.approx(weights)
    taken = torch.tensor(2)
    assert float(OVERLAP(student, teacher, taken, 2)) == pytest.approx(
        -weights[0] * math.log(0.5) - weights[1] * math.log(0.3)
    )
    assert float(PRINTED(student, teacher, taken, 2)) == pytest.approx(-sum(weights) * math.log(0.2))
    assert float(estimators.SAMPLED(student, teacher, taken, 2)) == pytest.approx(-math.log(0.05 / 0.2) * math.log(0.2))


def test_category_weights_give_the_printed_form_a_direction_that_is_not_the_teacher():
    student, teacher = states(6)
    kinds = torch.where(torch.arange(V) % 2 == 0, 1.0, 0.5).double()
    gradient = expected_gradient(PRINTED, student, teacher, K, kinds)
    p = student.double().softmax(0)
    advantage = token_advantages(
        distributions(student.double()),
        distributions(teacher.double()),
        support(distributions(student.double()), distributions(teacher.double()), K, "overlap"),
    ).sum()
    # -A * grad of E[c]: mass moves from one kind to the other, whatever the teacher prefers within a kind
    torch.testing.assert_close(gradient, -advantage * p * (kinds - (p * kinds).sum()))
    assert float(gradient.norm()) > 1e-3


@pytest.mark.parametrize("mode", ["overlap", "student", "teacher", "all"])
def test_supports_by_a_loop(mode):
    student, teacher = (distributions(torch.stack(x)) for x in zip(*map(states, range(4)), strict=True))
    best = lambda row: set(sorted(range(V), key=row.tolist().__getitem__, reverse=True)[:5])  # noqa: E731
    for row, on in enumerate(support(student, teacher, 5, mode).tolist()):
        sets = {"student": best(student[row]), "teacher": best(teacher[row]), "all": set(range(V))}
        sets["overlap"] = sets["student"] & sets["teacher"]
        assert {v for v in range(V) if on[v]} == sets[mode]


def test_empty_overlap_teaches_nothing():
    student = torch.tensor([4.0, 3.0, 0.0, 0.0]).log_softmax(0).requires_grad_()
    teacher = torch.tensor([0.0, 0.0, 3.0, 4.0]).log_softmax(0)
    for estimator in (OVERLAP, PRINTED):
        loss = estimator(student, teacher, torch.tensor(0), 2)
        (gradient,) = torch.autograd.grad(loss, student)
        assert float(loss.detach()) == 0 and bool((gradient == 0).all())
    assert float(apart(student, teacher, torch.tensor(0), 2)["empty"]) == 1


def test_what_may_not_be_said_changes_nothing():
    """A placeholder is -inf to both: finite losses, no gradient there."""
    z = torch.tensor([1.0, 0.5, -torch.inf, 0.0]).requires_grad_()
    t = torch.tensor([0.0, 1.5, -torch.inf, 0.0])
    for estimator in ESTIMATORS:
        student, teacher = distributions(z), distributions(t)
        assert float(student[2].detach()) == LEAST
        loss = estimator(student, teacher, torch.tensor(1), 3)
        (gradient,) = torch.autograd.grad(loss, z)
        assert bool(loss.isfinite()) and bool(gradient[[0, 1, 3]].isfinite().all()) and not float(gradient[2])


def test_self_distillation():
    """Mean advantage 0, state by state, and so is every number of how far they are apart."""
    student = distributions(torch.randn(6, V, generator=torch.Generator().manual_seed(7)))
    on = support(student, student, K, "overlap")
    assert not bool(token_advantages(student, student, on).any())
    seen = apart(student, student, torch.zeros(6, dtype=torch.long), K)
    assert float(seen["kl"].abs().max()) == 0 and bool((seen["overlap"] == 1).all()) and not bool(seen["empty"].any())


def test_numbers_against_scipy():
    stats = pytest.importorskip("scipy.stats")
    student, teacher = (distributions(x) for x in states(8))
    p, q = student.exp().numpy(), teacher.exp().numpy()
    seen = apart(student, teacher, torch.tensor(0), K)
    assert float(seen["kl"]) == pytest.approx(stats.entropy(p, q), rel=1e-5)
    assert float(seen["entropy"]) == pytest.approx(stats.entropy(p), rel=1e-5)
    assert float(seen["teacher_entropy"]) == pytest.approx(stats.entropy(q), rel=1e-5)
    assert float(reverse_kl(student, teacher)) == pytest.approx(stats.entropy(p, q), rel=1e-5)


def test_what_does_not_fit_is_refused(unchecked):
    a = torch.zeros(3).log_softmax(0)
    with pytest.raises(ValueError, match="share the student's tokenizer"):
        support(a, torch.zeros(4).log_softmax(0), 1, "overlap")
    for k, mode in ((0, "overlap"), (4, "overlap"), (1, "union")):
        with pytest.raises(ValueError, match=r"expected a mode among .* and k in 1..3"):
            support(a, a, k, mode)
