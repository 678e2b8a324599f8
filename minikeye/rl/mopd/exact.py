"""What an estimator teaches on average, without drawing: every token is taken, and counts as often as it is drawn.

Axes: v vocabulary. One state, its logits the parameters.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from minikeye.rl.mopd.estimators import Estimator
from minikeye.rl.mopd.support import distributions, reverse_kl


def expected_gradient(
    estimator: Estimator,
    logits: Float[Tensor, " v"],
    teacher_logits: Float[Tensor, " v"],
    k: int,
    weights: Float[Tensor, " v"] | None = None,
) -> Float[Tensor, " v"]:
    """E over y ~ student of the gradient of the loss at y with respect to the student's logits, in float64.

    weights: what the loss of each taken token is multiplied by (`shaping.token_weights`); None: by 1.
    """
    z = logits.detach().double().requires_grad_()
    student = distributions(z)
    states = student.expand(len(z), -1)  # one for every token that may be taken
    teacher = distributions(teacher_logits.double()).expand(len(z), -1)
    losses = estimator(states, teacher, torch.arange(len(z), device=z.device), k)
    losses = losses if weights is None else losses * weights
    (student.detach().exp() * losses).sum().backward()
    return z.grad


def exact_gradient(logits: Float[Tensor, " v"], teacher_logits: Float[Tensor, " v"]) -> Float[Tensor, " v"]:
    """The gradient of reverse KL(student || teacher) with respect to the student's logits, in float64."""
    z = logits.detach().double().requires_grad_()
    reverse_kl(distributions(z), distributions(teacher_logits.double())).backward()
    return z.grad


def cosine(a: Float[Tensor, " v"], b: Float[Tensor, " v"], least: float = 1e-12) -> float:
    """Of the angle between two gradients; nan where one is no direction: all of it below `least`."""
    if min(float(a.norm()), float(b.norm())) < least:
        return float("nan")
    return float(torch.dot(a, b) / (a.norm() * b.norm()))


def descend(
    estimator: Estimator,
    logits: Float[Tensor, " v"],
    teacher_logits: Float[Tensor, " v"],
    k: int,
    steps: int = 1000,
    lr: float = 1.0,
) -> list[float]:
    """Reverse KL before each of `steps` steps of plain gradient descent along the expected gradient, and after all."""
    z, out = logits.detach().double(), []
    teacher = distributions(teacher_logits.double())
    for _ in range(steps):
        out.append(float(reverse_kl(distributions(z), teacher)))
        z = z - lr * expected_gradient(estimator, z, teacher_logits, k)
    return [*out, float(reverse_kl(distributions(z), teacher))]
