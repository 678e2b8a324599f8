"""What one rank learns of a batch: its rows, its frames, its share of long rows; and of which whole that is a part.

Report, section 5.1: samples are balanced over the ranks that run the decoder, frames over those that run the tower.
Axes: b batch, t token of a share, s token of a row, n visual token, p patch, f frame.
Every rank makes the tokens of the whole batch, which is little work, and so knows alone who takes what and by which
counts losses are divided. Pixels are rendered for its own rows only. A rank that gets no row reads one token that
counts for nothing: whoever stays away from a pass lets the others wait.

    part = Part.of(lesson.tokens, rows, ranks)                       # the same batch and rows on every rank
    inputs = part.inputs(lesson, rows, config, device)
    loss, numbers = stage.loss(model, inputs, part=part)             # of a model that is `spread`
    loss.backward()
    loss, numbers = whole(loss, numbers, ranks)
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.minivid.lessons import Size
from minikeye.model.batch import is_visual
from minikeye.model.step import Mode, Observer
from minikeye.training.dsa import Portion
from minikeye.training.packing import apart
from minikeye.training.parallel.balance import assign
from minikeye.training.parallel.exchange import balanced_tokens
from minikeye.training.parallel.long_row import read_share
from minikeye.training.parallel.mesh import Ranks
from minikeye.training.parallel.zigzag import Zigzag, cut, next_tokens


@runtime_checkable
class Batch(Protocol):
    """What a step learns from: `lessons.Lesson`, `pretrain.mixture.PackedLesson`."""

    tokens: dict[str, Tensor]  # answer among them

    @property
    def size(self) -> Size: ...

    def part(self, rows: list[int]) -> "Batch": ...

    def inputs(self, config: KeyeConfig, device: torch.device | str) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Part:
    """What this rank takes of a batch. Counts are of the whole batch: losses of ranks add up."""

    own: tuple[int, ...]  # rows of the batch; the ranks along "context" have the same
    zigzag: Zigzag  # of the tokens of these rows over those ranks
    length: int  # tokens of a row of the batch
    tokens: int  # of the batch, padding included, as the experts' balance loss counts them
    answers: int  # tokens to learn
    taught: int  # rows that the indexer is taught from, in every row of the batch
    ranks: Ranks

    @classmethod
    def of(cls, tokens: dict[str, Tensor], rows: Int[Tensor, " n"], ranks: Ranks) -> "Part":
        """tokens: of the whole batch, on the CPU. rows: the positions that the indexer is taught from.

        Raises ValueError for rows that are padded on the left, where many ranks share them.
        """
        batch, length = tokens["input_ids"].shape
        (number, count), (_, sharing) = ranks.along("data"), ranks.along("context")
        if sharing > 1 and "attention_mask" in tokens and not bool(tokens["attention_mask"][:, 0].all()):
            raise ValueError("expected rows that are padded on the right, got left padding: use pad(prompts, 'right')")
        own = assign(row_tokens(tokens), count)[number]
        zigzag = Zigzag(length if own else 1, sharing)
        answers = int(tokens["answer"][:, 1:].sum())
        return cls(tuple(own), zigzag, length, batch * length, answers, batch * len(rows), ranks)

    def inputs(
        self, lesson: Batch, rows: Int[Tensor, " n"], config: KeyeConfig, device: torch.device | str
    ) -> dict[str, Tensor]:
        """What `read` and the losses take of this rank's share, on `device`.

        input_ids, positions and, of packed rows, start; labels, counted bool [b t]; rows [m] of the share and taught
        [m]; the pixels that this rank hands in, patches and grids (none: no rows), and seen [n], which of their tokens
        are those of the share's placeholders.
        """
        rank, sharing = self.ranks.along("context")
        if self.own:
            given = lesson.part(list(self.own)).inputs(config, device)
        else:
            given = {n: torch.zeros_like(t[..., :1, :1]).to(device) for n, t in lesson.tokens.items()}
            given.pop("attention_mask", None)
        tokens = {name: given[name] for name in ("input_ids", "positions", "start") if name in given}
        tokens["labels"] = next_tokens(given["input_ids"], given["answer"])
        tokens["weights"] = torch.full(given["input_ids"].shape, bool(self.own), device=device)
        seen = self._pixels(given, config, device)
        out = cut(tokens, self.zigzag, rank) if sharing > 1 else tokens
        out |= {"attention_mask": given["attention_mask"]} if "attention_mask" in given else {}
        out["counted"] = out.pop("weights")
        out["rows"], out["taught"] = (x.to(device) for x in self._taught(rows))
        return out | seen

    def portion(self, inputs: dict[str, Tensor], mode: Mode) -> Portion:
        """How the pass counts for `dsa.IndexerTeacher`."""
        rank, sharing = self.ranks.along("context")
        at = None
        if sharing > 1 and mode == "dense":
            at = self.zigzag.positions(rank).to(inputs["rows"].device)[inputs["rows"]]
        return Portion(inputs["taught"], self.taught, inputs["counted"], self.tokens, self.ranks.total, at)

    def read(self, model: KeyeVL, inputs: dict[str, Tensor], mode: Mode, observer: Observer) -> Float[Tensor, "b t v"]:
        """Logits of the share. Every rank takes part.

        One without visual tokens hands the model an empty tensor of them: its gradient, too, has to go back to where
        the tower ran, and through the same layers as on all ranks, though nothing but the tower may learn.
        """
        visual = balanced_tokens(model, inputs["patches"], inputs["grids"], self.ranks.everyone.get_group())
        visual = visual[inputs["seen"]]
        start = inputs.get("start")
        if self.ranks.along("context")[1] > 1:
            names = ("input_ids", "positions", "start")
            part = {name: inputs[name] for name in names if name in inputs}
            group = self.ranks.group("context")
            return read_share(model, part, self.zigzag, group, mode, observer, visual)
        names = ("input_ids", "positions", "attention_mask")
        with apart(model, start, mode) as mode:
            own = {name: inputs[name] for name in names if name in inputs}
            return model(own | {"visual": visual}, attention=mode, observer=observer).logits

    def _taught(self, rows: Int[Tensor, " n"]) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]]:
        """Numbers within the share of those rows that lie in it; 1 for each. One that counts 0 where none does."""
        at = self.zigzag.positions(self.ranks.along("context")[0])
        number = torch.full((self.length,), -1)
        if self.own:
            number[at[at < self.length]] = torch.arange(len(at))[at < self.length]
        found = number[rows]
        found = found[found >= 0]
        return (found, torch.ones(len(found))) if len(found) else (torch.zeros(1, dtype=torch.long), torch.zeros(1))

    def _pixels(self, given: dict[str, Tensor], config: KeyeConfig, device: torch.device | str) -> dict[str, Tensor]:
        """The frames of which the share has tokens. One that the cut goes through is handed in by both of its ranks."""
        side = config.vision.patch_size
        if "patches" not in given:
            nothing = torch.zeros(0, 3, dtype=torch.long)
            blank, none = torch.zeros(0, 3, side, side, device=device), torch.zeros(0, dtype=torch.long, device=device)
            return {"patches": blank, "grids": nothing, "seen": none}
        patches, grids = given["patches"], given["grids"].cpu()
        at = self.zigzag.positions(self.ranks.along("context")[0])
        here = torch.zeros(self.zigzag.tokens, dtype=torch.bool)
        here[at[at < self.zigzag.tokens]] = True
        ids = given["input_ids"].cpu()
        here = here.expand_as(ids)[is_visual(ids, config)]  # of all visual tokens of these rows
        counts = grids.prod(dim=1)
        frame = torch.arange(len(grids)).repeat_interleave(counts // config.vision.merge**2)
        wanted = torch.zeros(len(grids), dtype=torch.bool)
        wanted[frame[here]] = True
        seen = here[wanted[frame]].nonzero().squeeze(-1).to(device)
        kept = wanted.repeat_interleave(counts).to(device)
        return {"patches": patches[kept], "grids": grids[wanted], "seen": seen}


def row_tokens(tokens: dict[str, Tensor]) -> list[int]:
    """Tokens of each row without its padding, at least one: what the decoder's time for it is taken to go by."""
    if "attention_mask" in tokens:
        real = tokens["attention_mask"]
    elif "start" in tokens:  # a token of padding begins a document of its own
        real = tokens["start"] < torch.arange(tokens["start"].shape[1])
    else:
        real = torch.ones_like(tokens["input_ids"])
    return [max(1, n) for n in real.sum(dim=1).tolist()]


def whole(loss: Tensor, numbers: dict[str, Tensor], ranks: Ranks) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and log numbers of the whole batch from each rank's parts, without gradient, in one message."""
    if ranks.size == 1:
        return loss, numbers
    values = ranks.total(torch.stack([loss.detach().float(), *(x.float() for x in numbers.values())]))
    return values[0], dict(zip(numbers, values[1:], strict=True))
