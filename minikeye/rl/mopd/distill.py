"""The student answers, its teachers say what they would have said, and the student moves towards them.

One step: a batch of prompts of several kinds is answered by the student itself (on-policy: it is corrected where it
goes, not where a teacher would go), each answer is read by the one teacher of its kind, and `estimators` gives the loss
of every place. Report, "Cross-Modal MOPD"; it gives no learning rate, K, number of answers or steps: all our choice.

    far = apart_at_start(student, batch_at(0), teachers, config)  # {"sums (text)": 0.6, ...}, nats a token
    lines = distill(student, batch_at, teachers, config, LoopConfig(steps=200, lr=6e-4), folder)

What learns is what reward teaches (`learn.learns`): decoder and head. All logits of a batch are held at once, which a
vocabulary of 152,000 would not allow: there they are made and compared in pieces.

Axes: b prompt, g answer of a prompt, n token of an answer, v vocabulary.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from minikeye.files import whole_file
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.keye import KeyeVL
from minikeye.rl.groups import Prompts, joined_prompts, share_of
from minikeye.rl.learn import learns, require_finite
from minikeye.rl.mopd.estimators import OVERLAP, Estimator
from minikeye.rl.mopd.shaping import collapse_start, token_weights
from minikeye.rl.mopd.support import apart, distributions
from minikeye.rl.mopd.teachers import Asked, Route, Teachers
from minikeye.rl.parallel.agreement import alike, by_rows, require_rows_alone, share, totals
from minikeye.rl.parallel.sampling import sampled_among
from minikeye.rl.rollout import Answers, Sampling, answer_logits, joined_answers, require_positions
from minikeye.training.loop import LoopConfig, train
from minikeye.training.parallel.checkpoints import first
from minikeye.training.parallel.mesh import ALONE, Ranks, gathered
from minikeye.training.stage import trainable
from minikeye.training.step import autocast


@dataclass(frozen=True)
class DistillConfig(Sampling):
    """How the student is sampled and corrected.

    group: answers to a prompt; nothing is compared within a group, so one would do. k: of top k. average: see
    `token_shares`. formatting: factor of tokens without a letter or digit, against 1 (`shaping.token_weights`); 1 by
    default, because of the report's two kinds nothing is known, and any other value bends the estimators that draw.
    repetition: lambda_rep in nats, subtracted from the advantage from where a loop begins. icepop: bounds of the
    trainer's over the sampler's probability of a token, outside of which it is left out; None: none. most_kl: nats a
    token; a teacher further from the student than that, at temperature 1, is refused before it teaches.
    """

    group: int = 2
    estimator: Estimator = OVERLAP
    k: int = 8
    average: Literal["tokens", "answers"] = "tokens"
    formatting: float = 1.0
    repetition: float = 1.0
    icepop: tuple[float, float] | None = None
    most_kl: float = 1.5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.average not in ("tokens", "answers"):
            raise ValueError(f"expected average tokens or answers, got {self.average!r}")
        if self.k < 1 or not (0 <= self.formatting < math.inf and 0 <= self.repetition < math.inf and self.most_kl > 0):
            raise ValueError(f"expected k >= 1, finite formatting and repetition >= 0, most_kl above 0, got {self}")
        if not isinstance(self.estimator, Estimator):
            raise ValueError(f"expected a row of estimators.ESTIMATORS, got {self.estimator!r}")
        if self.icepop is not None and not 0 <= self.icepop[0] < 1 < self.icepop[1]:
            raise ValueError(f"expected icepop bounds on both sides of 1, such as (0.5, 5.0), got {self.icepop}")


@dataclass(frozen=True)
class Compared:
    """One batch: what the student said, and both distributions at every place of it, or of a rank's rows of it."""

    asked: Sequence[Asked]
    answers: Answers  # of the rows, and so are both distributions
    student: Float[Tensor, "b g n v"]  # log-probabilities, with gradients
    teacher: Float[Tensor, "b g n v"]
    rows: slice = field(default_factory=lambda: slice(None))  # of the batch
    batch: Bool[Tensor, "all g m"] | None = None  # mask of all answers; None: the rows are all

    @property
    def mask(self) -> Bool[Tensor, "all g m"]:
        """Which places of the whole batch hold a token."""
        return self.answers.mask if self.batch is None else self.batch

    def among(self, values: Float[Tensor, "b g n"]) -> Float[Tensor, "all g m"]:
        """Numbers of the rows' tokens in their places of the whole batch, 0 elsewhere: ranks' sums are its numbers."""
        out = values.new_zeros(self.mask.shape)
        out[self.rows] = values.masked_fill(~self.answers.mask, 0.0)
        return out


def require_batch(student: KeyeVL, asked: Sequence[Asked], teachers: Teachers) -> Sequence[Asked]:
    """The batch, if it can be taught; looked at before minutes of sampling.

    Raises ValueError for a batch or prompts of nothing, prompts with pixels or without positions, a route without
    teacher, a teacher that is the student itself (give it a copy), and one with another vocabulary.
    """
    if not asked or not all(len(each) for each in asked):
        raise ValueError(f"expected prompts to ask, got {[len(each) for each in asked]} of them")
    for each in asked:
        require_positions(each.prompts)
        if "patches" in each.prompts:
            raise ValueError(f"expected prompts without pixels for {each.route}: see learn.with_visual_tokens")
        teacher, own = teachers.of(each.route), student.config.text.vocab
        if teacher.model is student:
            raise ValueError(
                f"expected a teacher that stays as it is, {teacher.name} is the student: give a copy of it"
            )
        if (its := teacher.model.config.text.vocab) != own:
            raise ValueError(
                f"expected a vocabulary of {own} for {teacher.name}, got {its}: teachers share a tokenizer"
            )
    return asked


def compare(
    student: KeyeVL, asked: Sequence[Asked], teachers: Teachers, how: DistillConfig, seed: int, ranks: Ranks = ALONE
) -> Compared:
    """Let the student answer, and its teachers read. Raises ValueError as `require_batch`.

    ranks: each for its share of the rows; one without a row passes over the first, where nothing is said then.
    """
    require_batch(student, asked, teachers)
    count = sum(map(len, asked))

    def prompts(rows: slice) -> Prompts:
        return joined_prompts([each.prompts for each in of_rows(asked, rows)])

    with gathered(student, ranks):
        work = lambda rows: sampled_among(student, prompts(rows), rows.start, count, how, seed)  # noqa: E731
        answers = joined_answers(by_rows(ranks, count, work))
    rows = share(ranks, count)
    own = answers.of(rows)
    if rows.start == rows.stop:
        rows, own = slice(0, 1), answers.of(slice(0, 1)).silent
    with alike(ranks):  # what each rank does alone, before the pass that all take together
        parts = of_rows(asked, rows)
        theirs = teachers.distributions(parts, own.ids.split([*map(len, parts)]), how.temperature, how.attention)
    with alike(ranks), autocast(student.device):
        logits = answer_logits(student, prompts(rows), own.ids, how.attention)
        ours = distributions(logits, how.temperature)
    return Compared(asked, own, ours, theirs, rows, answers.mask)


def of_rows(asked: Sequence[Asked], rows: slice) -> list[Asked]:
    """The prompts of some rows of the batch, by kind; kinds without any are left out."""
    found, first = [], 0
    for each in asked:
        part = slice(max(0, rows.start - first), max(0, rows.stop - first))
        if range(len(each))[part]:
            found.append(replace(each, prompts=share_of(each.prompts, part)))
        first += len(each)
    return found


def token_shares(mask: Tensor, average: Literal["tokens", "answers"]) -> Float[Tensor, "b g n"]:
    """What each token counts for; all sum to 1, filling counts 0. mask: [b g n], where there is a token.

    "answers": 1 / |M_i| in each answer, as the report prints it; a token of a two-token answer then weighs ten times
    one of twenty, and a domain of short answers as much more than the others. "tokens": all tokens of the batch alike,
    our choice, which makes the loss nats a token.
    """
    if average == "tokens":
        return mask / mask.sum().clamp(min=1)
    return mask / mask.sum(dim=-1, keepdim=True).clamp(min=1) / mask.any(dim=-1).sum().clamp(min=1)


def objective(
    both: Compared, how: DistillConfig, weights: Float[Tensor, " v"]
) -> tuple[Float[Tensor, ""], dict[str, float]]:
    """The loss to minimise, and numbers for the log.

    -E[ A^ log pi ], with A^ = weight of the token times A, less lambda_rep from tau on. weights: of
    `shaping.token_weights`. Numbers, means over the tokens of the batch: those of `support.apart`, "length" (tokens of
    an answer), "collapsed" (share of answers), "kept" (of tokens, by icepop), and "kl TASK (MODALITY)" for every route.
    Of a rank's rows, loss and numbers are their parts of the batch's: sums over the ranks are what they are called.
    """
    mask, taken = both.answers.mask, both.answers.ids.clamp(min=0)
    own = both.student.gather(-1, taken[..., None]).squeeze(-1)
    scale = weights.to(own.device)[taken]
    starts = [collapse_start([x for x in row if x >= 0]) for row in both.answers.ids.flatten(0, 1).tolist()]
    tau = torch.tensor([mask.shape[-1] if start is None else start for start in starts], device=own.device)
    looping = torch.arange(mask.shape[-1], device=own.device) >= tau.view(*mask.shape[:2], 1)
    loss = scale * how.estimator(both.student, both.teacher, taken, how.k) + how.repetition * looping * own
    counted = mask
    if how.icepop is not None:  # pi_trainer / pi_sampler; outside of the bounds a token is left out, not clipped
        ratio = (own.detach() - both.answers.logprobs).exp()
        counted = mask & (ratio >= how.icepop[0]) & (ratio <= how.icepop[1])
        loss = loss * ratio
    loss = (torch.where(counted, loss, 0.0) * token_shares(both.mask, how.average)[both.rows]).sum()

    seen = apart(both.student, both.teacher, taken, how.k)
    everywhere = both.mask
    mean = lambda values: float(both.among(values)[everywhere].mean()) if bool(everywhere.any()) else 0.0  # noqa: E731
    numbers = {name: mean(values) for name, values in seen.items()}
    numbers |= {"length": float(both.among(mask.float()).sum(-1).mean()), "kept": mean(counted.float())}
    numbers["collapsed"] = sum(start is not None for start in starts) / everywhere[..., 0].numel()
    return loss, numbers | {f"kl {route}": kl for route, kl in by_route(both, seen["kl"]).items()}


def by_route(both: Compared, values: Float[Tensor, "b g n"]) -> dict[str, float]:
    """Mean of a number over the tokens of each route; of a rank's rows, their part of it."""
    sizes, found = [len(each) for each in both.asked], {}
    for each, value, where in zip(both.asked, both.among(values).split(sizes), both.mask.split(sizes), strict=True):
        found.setdefault(str(each.route), []).append(value[where])
    return {route: float(torch.cat(parts).sum()) / max(1, sum(map(len, parts))) for route, parts in found.items()}


@torch.no_grad()
def apart_at_start(
    student: KeyeVL, asked: Sequence[Asked], teachers: Teachers, how: DistillConfig, *, ranks: Ranks = ALONE
) -> dict[str, float]:
    """Reverse KL(student || teacher) of every route, named "TASK (MODALITY)", nats a token.

    On the student's own answers at temperature 1, eight to a prompt, or `how.group` if that is more. Raises ValueError
    where one is above `how.most_kl`: what a student cannot do at all, nobody corrects on-policy. ranks: as of
    `distill`; all get the same numbers.
    """
    both = compare(student, asked, teachers, replace(how, group=max(8, how.group), temperature=1.0), how.seed, ranks)
    taken = both.answers.ids.clamp(min=0)
    found = totals(ranks, by_route(both, apart(both.student, both.teacher, taken, how.k)["kl"]))
    far = {route: float(kl) for route, kl in found.items()}
    if beyond := {route: round(kl, 2) for route, kl in far.items() if kl > how.most_kl}:
        raise ValueError(
            f"expected every teacher within {how.most_kl} nats a token of the student, got {beyond}: teach the student "
            f"the form of the answers first, or make the teacher from the student's own checkpoint in gentler steps"
        )
    return far


def distill(
    student: KeyeVL,
    batch_at: Callable[[int], Sequence[Asked]],
    teachers: Teachers,
    config: DistillConfig,
    loop: LoopConfig,
    folder: Path | None = None,
    name: str = "mopd",
    *,
    ranks: Ranks = ALONE,
) -> list[dict[str, float | int]]:
    """Teach the student by its teachers; returns the log lines of this call, with the numbers of `objective`.

    batch_at(step) -> prompts of one or more kinds, the same for the same step. folder, name: as of `loop.train`; a run
    that was killed goes on to the same numbers, with the config it began with. Before a teacher teaches, it is looked
    whether it is too far. The student is left in training mode, all but what `learns` names frozen. Raises ValueError
    as `apart_at_start` and `require_batch`; FloatingPointError for logits, a loss or a gradient that is not finite,
    before any parameter moves, naming the file `folder`/NAME.failed.pt with the prompts; and what `train` raises.

    ranks: the student is `spread` over them, teachers are whole on each; all call this alike, with all prompts. Each
    answers its share of the rows, with the whole student in its memory meanwhile (`mesh.gathered`), and learns from it:
    the numbers of one process. ep and cp are left out: ValueError.
    """
    require_rows_alone(student, ranks)
    known: set[Route] = set()
    parameters = trainable(student, learns)
    tokenizer = load_tokenizer(student.config)
    weights = token_weights(
        lambda ids: tokenizer.decode(ids, skip_special=True), student.config.text.vocab, config.formatting
    )

    def backward_at(step: int) -> tuple[Tensor, dict[str, float]]:
        for p in parameters.values():
            p.grad = None
        asked = batch_at(step)
        try:
            if new := [each for each in asked if each.route not in known]:
                apart_at_start(student, new, teachers, config, ranks=ranks)
                known.update(each.route for each in new)
            both = compare(student, asked, teachers, config, config.seed * 1_000_003 + step, ranks)
            loss, numbers = objective(both, config, weights)
            loss.backward()
            numbers = totals(ranks, {"loss": loss.detach()} | numbers)
            require_finite(loss := numbers.pop("loss"), parameters, ranks)
        except FloatingPointError as error:
            kept = "was not kept: give a folder"
            if folder is not None:
                path = Path(folder) / f"{name}.failed.pt"
                first(ranks, lambda: save(asked, path, step))
                kept = f"is in {path}"
            raise FloatingPointError(f"{name} stopped at step {step}: {error}; its batch {kept}") from error
        return loss, numbers

    return train(parameters, backward_at, loop, folder, name, ranks=ranks)


def save(asked: Sequence[Asked], path: Path, step: int) -> None:
    """Write what was asked to one file that `torch.load(path)` reads; what was said follows from it and the step."""
    kept = [{"route": tuple(each.route), "prompts": each.prompts} for each in asked]
    with whole_file(path) as part:
        torch.save({"step": step, "asked": kept}, part)
