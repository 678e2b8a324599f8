"""Replay: the trainer's pass takes the choices that the sampler made, of experts and of keys, in place of its own.

Two choices in this model are discrete, and a last digit can turn them: which experts a token goes to, and which keys a
query reads. Where sampler and trainer are different programs, a token's probability then jumps between them, which the
objective takes for learning. Replay records the sampler's choices and forces them on the trainer:
    routing  (R3, arXiv 2510.11370) recorded experts I, gate weights g_i = I_i e^s_i / sum_j I_j e^s_j by the TRAINER's
             logits s, so that the router goes on learning
    index    the same for the keys of sparse attention, by their place in the sequence; a choice has no gradient
The report names deterministic top-k for DSA in RL, and no replay: both, and this study's noise, are our choice.

One machine's sampler and trainer agree to 1e-6 here, so a study injects the difference: `noisy` adds normal noise to
the scores by which is chosen, and to nothing else, so that choices are all that differs.

    recorder = ChoiceRecorder()
    with noisy(model, router=0.1, index=0.1, seed=0):
        answers = sample_answers(model, prompts, 1, 24, stop_ids, seed=0, attention="sparse", observer=recorder)
    choices = recorder.choices()
    trained = answer_logprobs(model, prompts, answers.ids, attention="sparse", choices=choices, replay="both")
    sampler_trainer_kl(answers.logprobs, trained, answers.mask)

`learn.RolloutConfig(replay=...)` does the same in every iteration. Where sampler and learner are one program, as here,
there is nothing to mend: the first minibatch is the same to rounding, and no reward curve here was drawn with it. In
later minibatches the policy has moved, and replay holds it to the choices that its answers were drawn with. Choices are
kept, a row an answer, until the rollout is used up.

Axes: b row, t query position, s key position, k selected key, x expert, c chosen expert of a token, n router's token.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minikeye import ops
from minikeye.keye import KeyeVL
from minikeye.model.decoder import ruled
from minikeye.model.step import AttentionTrace
from minikeye.rl.gspo import k3

Replay = Literal["none", "routing", "index", "both"]


@dataclass(frozen=True)
class Choices:
    """What every layer chose for the tokens of whole sequences, left padding included."""

    experts: list[Int[Tensor, "b t c"]]
    indices: list[Int[Tensor, "b t k"]]  # positions in the row, -1 for none; an empty list where attention was dense

    def packed(self, prompt: int, group: int) -> "Choices":
        """The same for rows of [prompt | answers], as `answer_logprobs` lays them, from rows of [prompt, answer].

        prompt: its tokens that are read once for all answers, padding included. group: answers to a prompt, in rows
        beside each other.
        """
        length = self.experts[0].shape[1] - prompt  # tokens read of each answer

        def pack(x: Tensor) -> Tensor:
            answers = x[:, prompt:].unflatten(0, (-1, group)).flatten(1, 2)
            return torch.cat((x[::group, :prompt], answers), dim=1)

        def moved(x: Tensor) -> Tensor:
            number = (torch.arange(len(x), device=x.device) % group)[:, None, None]
            return torch.where(x >= prompt, x + number * length, x)

        return Choices([pack(x) for x in self.experts], [pack(moved(x)) for x in self.indices])

    def of(self, prompts: slice | list[int] | Bool[Tensor, " n"], group: int) -> "Choices":
        """Those for `group` answers each to some of the prompts."""
        some = lambda x: x.unflatten(0, (len(x) // group, group))[prompts].flatten(0, 1)  # noqa: E731
        return Choices([some(x) for x in self.experts], [some(x) for x in self.indices])

    def wide(self, left: int, right: int) -> "Choices":
        """The same in rows that are longer on both sides; what is chosen for the tokens there means nothing."""
        moved = [torch.where(x >= 0, x + left, x) for x in self.indices]
        pad = lambda x, value: F.pad(x, (0, 0, left, right), value=value)  # noqa: E731
        return Choices([pad(x, 0) for x in self.experts], [pad(x, -1) for x in moved])


class ChoiceRecorder:
    """An observer that keeps the choices of one sampling (`sample_answers`), or of one pass."""

    def __init__(self) -> None:
        self._experts: dict[int, list[Tensor]] = {}
        self._indices: dict[int, list[Tensor]] = {}

    def attention(self, layer: int, trace: AttentionTrace) -> None:
        if trace.indices is not None:
            self._indices.setdefault(layer, []).append(trace.indices)

    def routing(self, layer: int, probabilities: Tensor, chosen: Int[Tensor, "b t c"]) -> None:
        self._experts.setdefault(layer, []).append(chosen)

    def choices(self) -> Choices:
        """Everything seen so far, in order; a prompt that was read once stands in the row of each of its answers.

        Raises ValueError where nothing was seen.
        """
        if not self._experts:
            raise ValueError("expected a recorder that has watched a pass, got one that has seen nothing")
        return Choices(*([_whole(parts[n]) for n in sorted(parts)] for parts in (self._experts, self._indices)))


def together(parts: Sequence[Choices]) -> Choices:
    """The choices for several batches whose rows are equally long as those for one."""
    layers = lambda name: zip(*(getattr(part, name) for part in parts), strict=True)  # noqa: E731
    most = max((x.shape[2] for part in parts for x in part.indices), default=0)
    filled = lambda x: F.pad(x, (0, most - x.shape[2]), value=-1)  # noqa: E731
    indices = [torch.cat([filled(x) for x in layer]) for layer in layers("indices")]
    return Choices([torch.cat(layer) for layer in layers("experts")], indices)


def _whole(chunks: list[Tensor]) -> Tensor:
    """One layer's chunks as one tensor: earlier rows repeated, narrower selections filled with -1."""
    rows, k = len(chunks[-1]), max(chunk.shape[2] for chunk in chunks)
    wide = [F.pad(chunk, (0, k - chunk.shape[2]), value=-1) for chunk in chunks]
    return torch.cat([chunk.repeat_interleave(rows // len(chunk), dim=0) for chunk in wide], dim=1)


@contextmanager
def replaying(model: KeyeVL, choices: Choices, replay: Replay) -> Iterator[None]:
    """While this holds, one pass over the same tokens takes these choices: of experts, of keys, of both, or none.

    Raises ValueError for another word, for keys of a dense sampling, and in a pass over other tokens.
    """
    if replay not in get_args(Replay):
        raise ValueError(f"expected replay to be one of {', '.join(get_args(Replay))}, got {replay!r}")
    if replay in ("index", "both") and not choices.indices:
        raise ValueError(f"expected selected keys to replay, got a dense sampling: sample sparsely, not {replay!r}")
    routers = [_replayed_experts(x) for x in choices.experts] if replay in ("routing", "both") else None
    selections = [_replayed_keys(x) for x in choices.indices] if replay in ("index", "both") else None
    with ruled(model.model, selections, routers):
        yield


def _replayed_experts(recorded: Int[Tensor, "b t c"]) -> Callable:
    def rule(probabilities: Float[Tensor, "n x"]) -> Int[Tensor, "n c"]:
        _same_tokens(recorded.shape[0] * recorded.shape[1], len(probabilities))
        return recorded.flatten(0, 1)

    return rule


def _replayed_keys(recorded: Int[Tensor, "b t k"]) -> Callable:
    def rule(trace: AttentionTrace, topk: int) -> Int[Tensor, "b t k"]:
        _same_tokens(list(recorded.shape[:2]), list(trace.q.shape[:2]))
        return recorded

    return rule


def _same_tokens(recorded: int | list[int], read: int | list[int]) -> None:
    if recorded != read:
        raise ValueError(f"expected a pass over the recorded tokens, {recorded} [b t], got {read}: `Choices.packed`?")


@contextmanager
def noisy(model: KeyeVL, router: float, index: float, seed: int) -> Iterator[None]:
    """While this holds, experts and keys are chosen by scores with noise, whose deviations these are; 0 for none.

    router: on the router's logits. index: on the index scores. The weights of the chosen experts stay those of the
    logits without noise. seed: fixes the noise. Raises ValueError for a negative deviation.
    """
    if not (router >= 0 and index >= 0):
        raise ValueError(f"expected noise of 0 or more on the router and on the index scores, got {router} and {index}")
    random = torch.Generator(model.device).manual_seed(seed)

    def disturbed(scores: Tensor, deviation: float) -> Tensor:
        return scores + deviation * torch.randn(scores.shape, generator=random, device=scores.device)

    def keys(trace: AttentionTrace, topk: int) -> Int[Tensor, "b t k"]:
        rows, out = ops.slab_rows(trace.q.device, len(trace.q) * trace.k.shape[1]), []
        for first in range(0, trace.q.shape[1], rows):
            slab = slice(first, first + rows)
            index_q, index_w = trace.index_q[:, slab], trace.index_w[:, slab]
            scores = ops.index_scores(index_q, trace.index_k, index_w, trace.offset + first, trace.start)
            out.append(ops.topk_positions(disturbed(scores, index), topk))
        return torch.cat(out, dim=1)

    def experts(count: int) -> Callable:
        return lambda probabilities: disturbed(probabilities.log(), router).topk(count, dim=-1).indices

    layers = model.model.layers
    routers = [experts(layer.mlp.gate.chosen) for layer in layers] if router else None
    with ruled(model.model, [keys] * len(layers) if index else None, routers):
        yield


def sampler_trainer_kl(
    sampled: Float[Tensor, "*n"], trained: Float[Tensor, "*n"], mask: Bool[Tensor, "*n"]
) -> Float[Tensor, ""]:
    """KL(sampler || trainer), nats a token, estimated by k3 from the tokens that the sampler drew.

    sampled, trained: log-probabilities of the same tokens. mask: where there is one. Raises ValueError without any.
    """
    if not bool(mask.any()):
        raise ValueError("expected a token that was sampled, got a mask of nothing")
    return k3((trained.double() - sampled.double())[mask]).mean()


def expert_flips(a: Choices, b: Choices, mask: Bool[Tensor, "b t"]) -> float:
    """Share of (token, layer) whose sets of experts differ, where mask says that there is a token."""
    pairs = zip(a.experts, b.experts, strict=True)
    return float(
        torch.stack([(x.sort(-1).values != y.sort(-1).values).any(-1)[mask] for x, y in pairs]).double().mean()
    )


def index_jaccard(a: Choices, b: Choices, mask: Bool[Tensor, "b t"]) -> float:
    """Size of the common keys over size of all, mean over (token, layer): 1 where the same keys are read."""
    values = []
    for pair in zip(a.indices, b.indices, strict=True):
        keys = 1 + max(int(x.max()) for x in pair)  # the last column is for what fills a set up
        x, y = (torch.zeros(*z.shape[:2], keys + 1, dtype=torch.bool).to(z.device) for z in pair)
        for chosen, z in zip((x, y), pair, strict=True):
            chosen.scatter_(2, torch.where(z < 0, keys, z).long(), True)
        x, y = x[..., :keys], y[..., :keys]
        values.append(((x & y).sum(-1) / (x | y).sum(-1).clamp(min=1))[mask])
    return float(torch.stack(values).double().mean())
