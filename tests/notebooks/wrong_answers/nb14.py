"""Wrong answers to the exercises of notebook 14, and what their checkers must say."""

import torch

from minikeye.exercises.nb14 import check_average_gradient, check_overlap_advantage, check_rule_of


def masks(student, teacher, k):
    out = []
    for logs in (student, teacher):
        mask = torch.zeros_like(logs, dtype=torch.bool)
        mask[logs.topk(k).indices] = True
        out.append(mask)
    return out


def advantage(student, teacher, k, *, on="both", weights="student", logs="whole", empty=0.0, detach=True):
    """Right but for the argument that is given."""
    a, b = masks(student, teacher, k)
    on = {"both": a & b, "either": a | b, "student": a, "teacher": b}[on]
    if not on.any():
        return torch.full_like(student, empty)
    p, q = student.exp() * on, teacher.exp() * on
    s, t = p / p.sum(), q / q.sum()
    w = {"student": s, "raw": p, "teacher": t, "none": on.double()}[weights]
    ratio = teacher - student if logs == "whole" else torch.where(on, t, 1.0).log() - torch.where(on, s, 1.0).log()
    found = torch.where(on, w * ratio, 0.0)
    return found.detach() if detach else found


def changed(**change):
    return lambda student, teacher, k: advantage(student, teacher, k, **change)


def gradient(logits, numbers, *, drawn="p", less=True, sign=-1.0):
    """Right but for the argument that is given."""
    p = logits.softmax(dim=0)
    total = torch.zeros_like(p)
    for y in range(len(p)):
        often = {"p": p[y], "once": 1.0, "evenly": 1 / len(p)}[drawn]
        total = total + often * sign * numbers[y] * (torch.eye(len(p), dtype=p.dtype)[y] - less * p)
    return total


def of_first_two(logits, numbers):
    """By autograd, but drawn tokens left out."""
    z = logits.clone().requires_grad_()
    p = z.softmax(dim=0)
    return torch.autograd.grad(-(p.detach() * numbers * p.log())[:2].sum(), z)[0]


def through_the_draw(logits, numbers):
    """The probability of the draw is differentiated too."""
    z = logits.clone().requires_grad_()
    p = z.softmax(dim=0)
    return torch.autograd.grad(-(p * numbers * p.log()).sum(), z)[0]


EQUAL = torch.ones(2, 4, dtype=torch.bool)
UNEQUAL = torch.tensor([[True, True, False, False], [True] * 4])


def by(mask, same="tokens", other="answers"):
    def rule_of(weigh):
        weights = weigh(mask)
        return same if torch.isclose(weights[0, 0], weights[1, 0]) else other

    return rule_of


def by_sum(weigh):
    return "tokens" if abs(float(weigh(UNEQUAL).sum()) - 1) < 1e-6 else "answers"


def by_number(weigh):
    """Forgets the common factor."""
    return "tokens" if abs(float(weigh(UNEQUAL)[0, 0]) - 1 / 6) < 1e-6 else "answers"


WRONG_ANSWERS = [
    (check_overlap_advantage, lambda student, teacher, k: None, "write its body"),
    (check_overlap_advantage, lambda student, teacher, k: advantage(student, teacher, k).tolist(), "a tensor"),
    (check_overlap_advantage, lambda student, teacher, k: advantage(student, teacher, k).sum(), "one number for the"),
    (check_overlap_advantage, lambda student, teacher, k: advantage(student, teacher, k)[:2], "each of the 5 tokens"),
    (check_overlap_advantage, lambda student, teacher, k: -advantage(student, teacher, k), "the sign"),
    (check_overlap_advantage, changed(weights="raw"), "not renormalised"),
    (check_overlap_advantage, changed(weights="teacher"), "not the teacher's"),
    (check_overlap_advantage, changed(weights="none"), "the log-ratio alone"),
    (check_overlap_advantage, changed(logs="inside"), "only the weights are renormalised"),
    (check_overlap_advantage, changed(on="either"), "the union"),
    (check_overlap_advantage, changed(on="student"), "the student's top k"),
    (check_overlap_advantage, changed(on="teacher"), "the teacher's top k"),
    (check_overlap_advantage, lambda student, teacher, k: 2 * advantage(student, teacher, k), "expected "),
    (check_overlap_advantage, changed(empty=float("nan")), "0 / 0"),
    (check_overlap_advantage, changed(empty=1.0), "nothing is taught"),
    (check_overlap_advantage, changed(detach=False), "detach it"),
    (check_average_gradient, lambda logits, numbers: None, "write its body"),
    (check_average_gradient, lambda logits, numbers: gradient(logits, numbers).sum(), "each logit"),
    (check_average_gradient, lambda logits, numbers: gradient(logits, numbers, sign=1.0), "the sign"),
    (check_average_gradient, lambda logits, numbers: gradient(logits, numbers, drawn="once"), "counted once"),
    (check_average_gradient, lambda logits, numbers: gradient(logits, numbers, drawn="evenly"), "equally often"),
    (check_average_gradient, lambda logits, numbers: gradient(logits, numbers, less=False), "a one-hot less p"),
    (check_average_gradient, through_the_draw, "the average is 0"),
    (check_average_gradient, of_first_two, "the average is 0"),
    (check_average_gradient, lambda logits, numbers: 2 * gradient(logits, numbers), "expected "),
    (check_rule_of, lambda weigh: None, "write its body"),
    (check_rule_of, lambda weigh: "mean", "expected 'tokens' or 'answers'"),
    (check_rule_of, by(EQUAL), "answers of one length"),
    (check_rule_of, by_sum, "both sum to the same"),
    (check_rule_of, by_number, "the factor"),
    (check_rule_of, by(UNEQUAL, "answers", "tokens"), "the other way round"),
]
