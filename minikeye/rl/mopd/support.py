"""On which tokens of the vocabulary teacher and student are compared, and how far they are apart.

Axes: n state (a place in an answer), v vocabulary. All distributions are log-probabilities in nats, as
`distributions` gives them.

The report compares them on the tokens that are likely to both, Omega = TopK(teacher) & TopK(student), and names three
modes: Overlap, Student-Only and Teacher-on-Student. It defines the first. Our reading of the others: the student's own
top k, and the teacher's top k under the student's weights. It gives no K: 8 here (our choice).
"""

import math
from typing import Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Mode = Literal["overlap", "student", "teacher", "all"]
MODES = get_args(Mode)

# Log-probabilities are held there. What may not be said (-inf) then has probability e^-60 to both, and no difference.
LEAST = -60.0


def distributions(logits: Float[Tensor, "*n v"], temperature: float = 1.0) -> Float[Tensor, "*n v"]:
    """log softmax(logits / temperature), nats, held at LEAST, in float32 or better. -inf may be among the logits.

    Raises ValueError for a temperature that is not above 0.
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"expected a finite temperature above 0, got {temperature}")
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return (wide / temperature).log_softmax(dim=-1).clamp(min=LEAST)


def support(student: Float[Tensor, "*n v"], teacher: Float[Tensor, "*n v"], k: int, mode: Mode) -> Bool[Tensor, "*n v"]:
    """Which tokens count: Omega of the report, or one of its relatives. "all": every token, whatever k is.

    Ties at the k-th place go as `torch.topk` decides. Raises ValueError for k outside of 1..v (unless the mode is
    "all"), an unknown mode and vocabularies of different sizes.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"expected student and teacher over the same states and vocabulary, got {list(student.shape)} and "
            f"{list(teacher.shape)}: a teacher must share the student's tokenizer"
        )
    if mode not in MODES or (mode != "all" and not 1 <= k <= student.shape[-1]):
        raise ValueError(f"expected a mode among {', '.join(MODES)} and k in 1..{student.shape[-1]}, got {mode!r}, {k}")
    if mode == "all":
        return torch.ones_like(student, dtype=torch.bool)
    if mode == "overlap":
        return top(student, k) & top(teacher, k)
    return top(student if mode == "student" else teacher, k)


def top(logprobs: Float[Tensor, "*n v"], k: int) -> Bool[Tensor, "*n v"]:
    """The k likeliest tokens of each state."""
    best = logprobs.detach().topk(k, dim=-1).indices
    return torch.zeros_like(logprobs, dtype=torch.bool).scatter(-1, best, True)


def renormalised(logprobs: Float[Tensor, "*n v"], where: Bool[Tensor, "*n v"]) -> Float[Tensor, "*n v"]:
    """pi(v) / sum of pi over the support, 0 outside of it; all 0 where it is empty."""
    p = torch.where(where, logprobs.exp(), 0.0)
    return p / p.sum(dim=-1, keepdim=True).clamp(min=torch.finfo(p.dtype).tiny)


def reverse_kl(student: Float[Tensor, "*n v"], teacher: Float[Tensor, "*n v"]) -> Float[Tensor, "*n"]:
    """KL(student || teacher) of each state, nats, over the whole vocabulary."""
    return (student.exp() * (student - teacher)).sum(dim=-1)


def entropy(logprobs: Float[Tensor, "*n v"]) -> Float[Tensor, "*n"]:
    """Of each state, nats."""
    return -(logprobs.exp() * logprobs).sum(dim=-1)


@torch.no_grad()
def apart(
    student: Float[Tensor, "*n v"], teacher: Float[Tensor, "*n v"], taken: Int[Tensor, "*n"], k: int
) -> dict[str, Float[Tensor, "*n"]]:
    """What to watch in every state. taken: any token where there is none, such as 0; k: at most v.

    "kl": reverse KL, nats; "entropy" and "teacher_entropy", nats; "overlap": |Omega| / k; "mass": the student's
    probability on Omega; "empty": 1 where Omega is empty; "inside": 1 where the token that was taken lies in Omega.
    """
    both = support(student, teacher, k, "overlap")
    return {
        "kl": reverse_kl(student, teacher),
        "entropy": entropy(student),
        "teacher_entropy": entropy(teacher),
        "overlap": both.sum(dim=-1).to(student.dtype) / k,
        "mass": torch.where(both, student.exp(), 0.0).sum(dim=-1),
        "empty": (~both.any(dim=-1)).to(student.dtype),
        "inside": both.gather(-1, taken[..., None]).squeeze(-1).to(student.dtype),
    }
