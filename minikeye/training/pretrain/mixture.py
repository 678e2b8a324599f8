"""Mixtures of documents by their share of the tokens, and the packed batches drawn from them.

Report: long to short 1:1 in the long-context stage, about 40 % of SFT is text only. It does not say what the shares are
counted in; ours are shares of tokens, because a long video is worth many sums.
"""

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from minikeye.config import KeyeConfig
from minikeye.minivid.lessons import Size, pixels
from minikeye.minivid.scene import render
from minikeye.training.packing import pack
from minikeye.training.pretrain.documents import SIDE, Documents, Kind, documents


@dataclass(frozen=True)
class Mixture:
    """Kinds of documents with their shares of the tokens."""

    parts: tuple[tuple[Kind, float], ...]

    def __post_init__(self) -> None:
        shares = [share for _, share in self.parts]
        if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"expected positive shares of the tokens that sum to 1, got {shares}")
        if len({kind for kind, _ in self.parts}) < len(self.parts):
            raise ValueError("expected each kind of document once: add up its shares")

    def share(self, wanted: Callable[[Kind], bool]) -> float:
        """Share of the tokens in documents of the kinds that are wanted."""
        return sum(share for kind, share in self.parts if wanted(kind))

    @property
    def text_only(self) -> float:
        return self.share(lambda kind: kind.text_only)

    def without_text(self) -> "Mixture":
        """The same documents of video alone, in the same proportion to each other. Raises ValueError without any."""
        return self.only(lambda kind: not kind.text_only)

    def only(self, wanted: Callable[[Kind], bool]) -> "Mixture":
        """The kinds that are wanted alone, in the same proportion to each other. Raises ValueError where none is."""
        total = self.share(wanted)
        return Mixture(tuple((kind, share / total) for kind, share in self.parts if wanted(kind)))

    def counts(self, tokens: int, lengths: dict[Kind, int], rng: random.Random) -> dict[Kind, int]:
        """How many documents of each kind make about so many tokens, if each kind has that length.

        Rounded up or down at random, in the mean right: of a kind whose share is half a document every second batch
        gets one. At least one document in all: of the kind with the largest share, should chance give none.
        """
        counts = {kind: math.floor(share * tokens / lengths[kind] + rng.random()) for kind, share in self.parts}
        if not any(counts.values()):
            counts[max(self.parts, key=lambda part: part[1])[0]] = 1
        return counts


@dataclass
class PackedLesson:
    """A batch of a mixture: what `stage.teach` takes, as `lessons.Lesson` is."""

    tokens: dict[str, Tensor]  # of `packing.pack`
    parts: list[Documents]
    order: list[int]  # numbers of the documents, as they are counted through the parts, row after row

    @property
    def size(self) -> Size:
        """The frames of the longest video, and the number of rows."""
        return Size(max(part.kind.frames for part in self.parts), len(self.tokens["input_ids"]), SIDE, SIDE)

    def part(self, rows: list[int]) -> "PackedLesson":
        """These rows alone, with the videos of their documents."""
        start = self.tokens["start"]
        counts = (start[:, 1:] == torch.arange(start.shape[1] - 1)).sum(dim=1)  # documents of a row: seen by the second
        numbers = torch.tensor(self.order).split(counts.tolist())  # token of each, which says where the first stands
        tokens = {name: t[..., rows, :] for name, t in self.tokens.items()}
        return PackedLesson(tokens, self.parts, [n for row in rows for n in numbers[row].tolist()])

    def inputs(self, config: KeyeConfig, device: torch.device | str) -> dict[str, Tensor]:
        """Model inputs on `device`, pixels rendered there in the order of the packed documents."""
        out = {name: t.to(device, non_blocking=True) for name, t in self.tokens.items()}
        clips, first = {}, 0
        for part in self.parts:
            here = [n - first for n in sorted(self.order) if first <= n < first + len(part.prompts)]
            if part.videos is not None and here:
                shown = render(part.videos.spec.take(here, range(part.kind.frames)), SIDE, SIDE, device)
                clips |= {first + n: clip for n, clip in zip(here, shown, strict=True)}
            first += len(part.prompts)
        frames = [clips[n] for n in self.order if n in clips]
        return out | pixels(torch.cat(frames), config) if frames else out


def packed(mixture: Mixture, config: KeyeConfig, seed: int, step: int, tokens: int, room: int) -> PackedLesson:
    """The batch of that step: about `tokens` tokens of training documents in rows of `room`.

    Raises ValueError for a document that is longer than a row.
    """
    lengths = {kind: usual_length(kind, config) for kind, _ in mixture.parts}
    counts = mixture.counts(tokens, lengths, random.Random(f"{seed} {step}"))
    parts, first = [], step * 4096  # no two steps share a video, and no two documents of a step
    for kind, count in counts.items():
        if count:
            parts.append(documents(kind, config, seed, range(first, first + count), "train"))
            first += count
    batch, order = pack([prompt for part in parts for prompt in part.prompts], room)
    return PackedLesson(batch, parts, order)


@cache
def usual_length(kind: Kind, config: KeyeConfig) -> int:
    """Tokens of a document of that kind: the mean of eight, which differ by a few figures of their times."""
    eight = documents(kind, config, 0, range(8), "train").prompts
    return round(sum(len(prompt.ids) for prompt in eight) / len(eight))


def batches_from(
    mixture_at: Callable[[int], Mixture], config: KeyeConfig, steps: int, seed: int, tokens: int, room: int
) -> Callable[[int], Iterator[PackedLesson]]:
    """For `stage.teach`: the batches of step n to the last, for any n, of the mixture of each step."""
    return lambda n: (packed(mixture_at(step), config, seed, step, tokens, room) for step in range(n, steps))
