"""By which loss a student follows its teacher: one function for each, and one table of all.

Axes: n state, v vocabulary. S is the student's distribution, T the teacher's, y the token that the student took, Omega
the support, S' = S renormalised on Omega, sg[.] "without gradient". A loss is given for every state.

    estimator            loss of a state                                        on average over y it teaches
    all_actions          -sum over Omega of sg[S' (log T - log S)] log S        reverse KL where Omega is everything
    printed              -sg[sum over Omega of S' (log T - log S)] log S(y)     nothing: see below
    sampled              -sg[log T(y) - log S(y)] log S(y)                      reverse KL, up to CLIP
    full                 sum of S (log S - log T)                               reverse KL
    corrected            sum over Omega of S log(S/T) - S + T                   as all_actions there, times S(Omega)
    uncorrected          sum over Omega of S log(S/T)                           also to leave Omega, if that is not all
    k1, k2, k3           log S(y)/T(y); its square / 2; T(y)/S(y) - 1 + k1      nothing; reverse KL; forward KL
    undetached           -sum over Omega of S' (log T - log S), gradients kept  the same, and more so
    both_renormalised    KL of both renormalised on Omega                       nothing outside of Omega

The report prints an advantage that is a number of the state (its A has no index of a token) times log S(y). Whatever
number multiplies it, the gradient of log S(y) is 0 on average over y ~ S; so that loss, read to the letter, has no
direction, only noise. Our reading is that the number of each token goes to that token's own log-probability:
`all_actions` on the overlap, which is the default. `exact` proves it without sampling.

All this is said of one state whose tokens count alike. Whatever makes a token's share depend on what was drawn, kinds
of token (`shaping`) or the length of the answer (`distill.token_shares`), gives `printed` and `k1` a direction after
all, and not the teacher's, and bends `sampled` a little; the losses without y in them are what they are.

`sampled` is MiMo-V2-Flash's and NeMo RL's form, held within CLIP (our choice of 5 nats); `corrected` is of the MOPD
paper (arXiv 2606.30406).
"""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Bool, Float, Int
from torch import Tensor, where

from minikeye.rl.mopd import support as supports
from minikeye.rl.mopd.support import Mode, renormalised, reverse_kl

CLIP = 5.0  # nats, the largest advantage of one sampled token

LogProbs = Float[Tensor, "*n v"]  # of `support.distributions`; only the student's get a gradient
Taken = Int[Tensor, "*n"]  # the tokens that the student drew
Support = Bool[Tensor, "*n v"]  # Omega
PerState = Float[Tensor, "*n"]
Loss = Callable[[LogProbs, LogProbs, Taken, Support], PerState]


def all_actions(student: LogProbs, teacher: LogProbs, taken: Taken, on: Support) -> PerState:
    """Every token of the support is weighed by its own advantage, and taken as if it had been drawn."""
    return -(token_advantages(student, teacher, on) * student).sum(dim=-1)


def token_advantages(student: LogProbs, teacher: LogProbs, on: Support) -> LogProbs:
    """S'(v) (log T(v) - log S(v)) on the support, 0 elsewhere, without gradient: what the report sums over v."""
    now = student.detach()
    return renormalised(now, on) * (teacher.detach() - now)


def printed(student: LogProbs, teacher: LogProbs, taken: Taken, on: Support) -> PerState:
    """The report's equation to the letter: one advantage for the state, whichever token was taken."""
    return -token_advantages(student, teacher, on).sum(dim=-1) * of(student, taken)


def sampled(student: LogProbs, teacher: LogProbs, taken: Taken, on: Support) -> PerState:
    """The token that was taken is weighed by how much likelier it is to the teacher, within CLIP."""
    better = of(teacher, taken) - of(student, taken)
    return -better.detach().clamp(-CLIP, CLIP) * of(student, taken)


def full(student: LogProbs, teacher: LogProbs, taken: Taken, on: Support) -> PerState:
    """Reverse KL itself."""
    return reverse_kl(student, teacher.detach())


def corrected(student: LogProbs, teacher: LogProbs, taken: Taken, on: Support) -> PerState:
    """Reverse KL on the support, made up for what lies outside: each token's term is least, and 0, where S = T."""
    s, t = student.exp(), teacher.detach().exp()
    return where(on, s * (student - teacher.detach()) - s + t, 0.0).sum(dim=-1)


def uncorrected(student: LogProbs, teacher: LogProbs, taken: Taken, on: Support) -> PerState:
    """The same without the correction: at the teacher its gradient is not 0, it moves mass away from the support."""
    return where(on, student.exp() * (student - teacher.detach()), 0.0).sum(dim=-1)


def k1(student: LogProbs, teacher: LogProbs, taken: Taken, on: Support) -> PerState:
    """As a value it is reverse KL on average; as a loss it teaches nothing."""
    return of(student, taken) - of(teacher.detach(), taken)


def k2(student: LogProbs, teacher: LogProbs, taken: Taken, on: Support) -> PerState:
    """Biased as a value; as a loss its gradient is that of reverse KL."""
    return k1(student, teacher, taken, on).square() / 2


def k3(student: LogProbs, teacher: LogProbs, taken: Taken, on: Support) -> PerState:
    """Never negative, reverse KL on average; as a loss its gradient is that of FORWARD KL(teacher || student)."""
    log_ratio = -k1(student, teacher, taken, on)
    return log_ratio.clamp(max=-supports.LEAST).expm1() - log_ratio


def undetached(student: LogProbs, teacher: LogProbs, taken: Taken, on: Support) -> PerState:
    """A bug to know: the printed sum as a loss, differentiated through its own weights."""
    return -(renormalised(student, on) * (teacher.detach() - student)).sum(dim=-1)


def both_renormalised(student: LogProbs, teacher: LogProbs, taken: Taken, on: Support) -> PerState:
    """Reverse KL of both on the support: right on it, blind to how much mass lies there."""
    s, t = renormalised(student, on), renormalised(teacher.detach(), on)
    least = 10**-30
    return where(on, s * (s.clamp(min=least).log() - t.clamp(min=least).log()), 0.0).sum(dim=-1)


def of(logprobs: LogProbs, taken: Taken) -> PerState:
    """The log-probability of the token that was taken."""
    return logprobs.gather(-1, taken[..., None]).squeeze(-1)


@dataclass(frozen=True)
class Estimator:
    """A loss, and the tokens that it looks at."""

    name: str
    loss: Loss
    support: Mode

    def __call__(self, student: LogProbs, teacher: LogProbs, taken: Taken, k: int) -> PerState:
        """The loss of every state. Raises ValueError as `support.support`."""
        on = supports.support(student, teacher, k, self.support)
        return self.loss(student, teacher, taken, on)


OVERLAP = Estimator("overlap", all_actions, "overlap")
STUDENT_ONLY = Estimator("student only", all_actions, "student")
TEACHER_ON_STUDENT = Estimator("teacher on student", all_actions, "teacher")
PRINTED = Estimator("printed", printed, "overlap")
SAMPLED = Estimator("sampled", sampled, "all")
FULL = Estimator("full", full, "all")
CORRECTED = Estimator("teacher's top k, corrected", corrected, "teacher")
UNCORRECTED = Estimator("teacher's top k", uncorrected, "teacher")
K1, K2, K3 = (Estimator(name, loss, "all") for name, loss in (("k1", k1), ("k2", k2), ("k3", k3)))
UNDETACHED = Estimator("undetached", undetached, "overlap")
BOTH_RENORMALISED = Estimator("both renormalised", both_renormalised, "overlap")
ESTIMATORS = (
    *(OVERLAP, STUDENT_ONLY, TEACHER_ON_STUDENT, PRINTED, SAMPLED, FULL, CORRECTED, UNCORRECTED),
    *(K1, K2, K3, UNDETACHED, BOTH_RENORMALISED),
)  # fmt: skip
