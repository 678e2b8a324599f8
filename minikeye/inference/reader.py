"""What the model has read of a conversation, and what it is still to read: nothing is read twice.

A prompt is the whole conversation. A reader asks how much of it the cache holds and gives the model the rest.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from minikeye.inference.generate import Generation, generate
from minikeye.inputs.pixels import patchify
from minikeye.inputs.processor import Inputs
from minikeye.inputs.prompt import Prompt
from minikeye.model.keye import KeyeModel

Pixels = list[UInt8[Tensor, "_ 3 _ _"]]  # as `Processor.build` gives them, for a whole prompt


class Reader:
    """A model, a cache of what it has read, and which tokens the cache holds.

    A question may take several passes, `go_on`, and may be broken off in or between any of them. What it read counts
    for its own later passes, and for other questions once it is settled: they would find the same tokens there, but
    these may stand for other pixels.
    """

    def __init__(self, model: KeyeModel, room: int):
        """room: tokens to make room for at once; 0: the cache grows."""
        self.model, self._cache = model, model.new_cache(room)
        self._settled: list[int] = []  # the tokens that the cache holds and that any question may use again
        self._held: list[int] = []  # those of the present question too

    def begin(self) -> None:
        """Another question: what the last one read does not count unless it was settled."""
        self._held = self._settled

    def go_on(self, prompt: Prompt, pixels: Pixels, **options: Any) -> tuple[Generation, int]:
        """What the model says to a prompt, by `generate` with these options; and how many tokens were not read anew."""
        reused = reusable(prompt, self._held)
        self._held, self._settled = self._held[:reused], self._settled[:reused]
        self._cache.truncate(reused)
        inputs = unread(prompt, pixels, reused).to(self.model.device)
        out = generate(self.model, inputs, cache=self._cache, **options)
        self._held = (prompt.ids + out.row())[: self._cache.length]
        return out, reused

    def settle(self) -> None:
        """The question and its answer are part of the conversation."""
        self._settled = self._held


def blocks(prompt: Prompt) -> list[tuple[int, int]]:
    """First token, and one past the last, of each image and video frame, in order."""
    visual = [n for n, is_visual in enumerate(prompt.visual) if is_visual]
    counts = [rows * columns // prompt.merge**2 for _, rows, columns in prompt.grids]
    firsts = accumulate(counts, initial=0)
    return [(visual[first], visual[first] + count) for first, count in zip(firsts, counts, strict=False)]


def reusable(prompt: Prompt, held: Sequence[int]) -> int:
    """How many of the prompt's first tokens need not be read, given the tokens a cache holds.

    No part of an image or frame, whose pixels come whole; and never all, because the last token says what comes next.
    """
    pairs = enumerate(zip(prompt.ids, held, strict=False))
    same = next((n for n, (a, b) in pairs if a != b), min(len(prompt.ids) - 1, len(held)))
    return next((start for start, stop in blocks(prompt) if start < same < stop), same)


def unread(prompt: Prompt, pixels: Pixels, first: int) -> Inputs:
    """The model's inputs from token number `first` on, as a batch of one; 3D positions count from its start."""
    ids, positions = torch.tensor(prompt.ids[first:])[None], prompt.positions()[:, None, first:]
    inputs = Inputs(input_ids=ids, positions=positions)
    frames = [frame for group in pixels for frame in group]
    places = zip(frames, prompt.grids, blocks(prompt), strict=True)
    if new := [(frame, grid) for frame, grid, (start, _) in places if start >= first]:
        inputs["patches"] = torch.cat([patchify(frame[None], frame.shape[1] // grid[1]) for frame, grid in new])
        inputs["grids"] = torch.tensor([grid for _, grid in new])
    return inputs
