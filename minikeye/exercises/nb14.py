"""Checkers of notebook 14, many teachers and one student."""

import torch

from minikeye.exercises import checker, written


def _logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def _top(logprobs: torch.Tensor, k: int) -> torch.Tensor:
    """The k likeliest tokens, [v]; without ties."""
    return logprobs >= logprobs.sort(descending=True).values[k - 1]


def _share(logprobs: torch.Tensor, on: torch.Tensor) -> torch.Tensor:
    """Probabilities renormalised on a support that is not empty, 0 outside."""
    return logprobs.exp() * on / (logprobs.exp() * on).sum()


def _advantages(student: torch.Tensor, teacher: torch.Tensor, on: torch.Tensor) -> torch.Tensor:
    return _share(student, on) * (teacher - student)


@checker
def check_overlap_advantage(answer):
    """answer(student, teacher, k) -> the advantage of every token [v], 0 outside of the overlap."""
    student, teacher, k = _logs(0.40, 0.35, 0.15, 0.07, 0.03), _logs(0.20, 0.70, 0.04, 0.01, 0.05), 3
    got = answer(student.clone(), teacher.clone(), k)
    written(got, "overlap_advantage")
    assert torch.is_tensor(got), f"expected a tensor [v], got {type(got).__name__}"
    ours, theirs = _top(student, k), _top(teacher, k)
    on = ours & theirs
    wanted = _advantages(student, teacher, on)
    same = lambda other: got.shape == other.shape and torch.allclose(got.double(), other, atol=1e-6)  # noqa: E731
    assert got.shape != (), (
        "this is the sum, one number for the state: on average it teaches nothing. Leave each token its own"
    )
    assert got.shape == student.shape, f"expected a number for each of the 5 tokens, got shape {list(got.shape)}"
    ratio = (teacher - student) * on
    assert not same(-wanted), "the sign: a token that the teacher likes better has an advantage above 0"
    assert not same(student.exp() * ratio), (
        "the student's probabilities are not renormalised: on the overlap they must sum to 1"
    )
    assert not same(_share(teacher, on) * ratio), "the weights are the student's probabilities, not the teacher's"
    assert not same(ratio), "the log-ratio alone: weigh it by the student's renormalised probabilities"
    inside = (_share(teacher, on) / _share(student, on)).nan_to_num(1.0).log()
    assert not same(_share(student, on) * inside), (
        "only the weights are renormalised: the logarithms are those of the probabilities as they are, else nobody "
        "sees how much mass lies outside"
    )
    for where, name in ((ours | theirs, "the union"), (ours, "the student's top k"), (theirs, "the teacher's top k")):
        assert not same(_advantages(student, teacher, where)), f"this is {name}: a token must be likely to both"
    assert same(wanted), f"expected {wanted.numpy().round(4)}, got {got.detach().numpy().round(4)}"
    apart = answer(_logs(0.5, 0.3, 0.1, 0.1), _logs(0.1, 0.1, 0.3, 0.5), 2)
    assert torch.is_tensor(apart) and not bool(apart.isnan().any()), "0 / 0: where the overlap is empty, all are 0"
    assert not bool(apart.any()), f"where the overlap is empty nothing is taught, all are 0: got {apart.tolist()}"
    leaf = student.clone().requires_grad_()
    assert not answer(leaf, teacher, k).requires_grad, (
        "an advantage is a number, without a gradient: detach it, or its own weights are differentiated"
    )


@checker
def check_average_gradient(answer):
    """answer(logits, numbers) -> E over y ~ p of the gradient of -numbers[y] log p(y), [v]."""
    logits = torch.tensor([1.0, 0.2, -0.5, 0.7], dtype=torch.float64)
    numbers = torch.tensor([0.5, -1.0, 2.0, 0.3], dtype=torch.float64)
    got = answer(logits.clone(), numbers.clone())
    written(got, "average_gradient")
    assert torch.is_tensor(got) and got.shape == logits.shape, "expected a gradient for each logit, a tensor [v]"
    p = logits.softmax(dim=0)
    wanted = -p * (numbers - (p * numbers).sum())
    same = lambda a, b: torch.allclose(a.double(), b, atol=1e-6)  # noqa: E731
    assert not same(got, -wanted), "the sign: the loss is -c log p, so a large c makes its token likelier downhill"
    assert not same(got, -(numbers - numbers.sum() * p)), (
        "every token is counted once here: it is drawn with probability p(y), so weigh each by that"
    )
    assert not same(got, -(numbers - numbers.sum() * p) / len(p)), (
        "every token is counted equally often here: it is drawn with probability p(y), so weigh each by that"
    )
    assert not same(got, -p * numbers), "d log p(y) / dz is a one-hot less p: the one-hot alone is not all of it"
    level = answer(logits.clone(), torch.full_like(numbers, -0.7))
    assert float(level.abs().max()) < 1e-9, (
        f"with one number for all tokens, the printed form, the average is 0, got {level.tolist()}: are the numbers "
        f"held fixed, and the probabilities those of a softmax?"
    )
    assert same(got, wanted), f"expected {wanted.numpy().round(4)}, got {got.detach().numpy().round(4)}"


def _by_tokens(mask: torch.Tensor) -> torch.Tensor:
    return mask / mask.sum()


def _by_answers(mask: torch.Tensor) -> torch.Tensor:
    return mask / mask.sum(dim=1, keepdim=True) / len(mask)


@checker
def check_rule_of(answer):
    """answer(weigh) -> "tokens" or "answers", for a function that gives weights up to a common factor."""
    found = {}
    for factor in (1.0, 40.0):
        for rule, weights in (("tokens", _by_tokens), ("answers", _by_answers)):
            got = answer(lambda mask, weights=weights, factor=factor: factor * weights(mask))
            written(got, "rule_of")
            assert got in ("tokens", "answers"), f"expected 'tokens' or 'answers', got {got!r}"
            found[rule, factor] = got
        plain = {rule: found[rule, factor] for rule in ("tokens", "answers")}
        assert len(set(plain.values())) == 2, (
            f"both rules are called {plain['tokens']!r}: with answers of one length they weigh alike (or the factor "
            f"hides it), and both sum to the same: give weigh answers of two lengths, and compare two tokens"
        )
        assert plain["tokens"] == "tokens", "the other way round: if all tokens weigh alike, the rule is 'tokens'"
