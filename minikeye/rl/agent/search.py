"""Search: a question about a library of clips that takes two searches, of which the first says what the second is for.

    user       One other clip shows the same things as clip tavi. Which digit is on its card?
    model      {"name": "search", "arguments": {"words": "tavi"}}
    tool       tavi: red circle, blue square; card 4
    model      {"name": "search", "arguments": {"words": "red circle blue square"}}
    tool       runo: red circle, blue square; card 7
               tavi: red circle, blue square; card 4
    model      7

The clips are such as minivid draws, told by a line each; names of clips are invented anew in every episode, so that
nothing is to be known by heart. Who searches for one thing alone gets two of the many clips that show it, and has to
search again.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations, pairwise, permutations, product
from math import comb

import torch

from minikeye.inference.calling.calls import Call, Result, written
from minikeye.minivid.drawing.pictures import Split, check_split
from minikeye.minivid.drawing.things import KINDS
from minikeye.minivid.draws import generator
from minikeye.rl.agent.environment import Budget, Environment

QUESTION = "One other clip shows the same things as clip {name}. Which digit is on its card?"
NOTHING = "nothing found"
BEST = 2  # captions that one search gives
TRAIN_NAMES = 1_500  # of the 1,892; the rest is the test split

BUDGET = Budget(turns=4, tokens=560)  # two searches, the answer, one to spare


@dataclass(frozen=True)
class SearchDifficulty:
    """How hard it is. Raises ValueError for what cannot be drawn."""

    clips: int = 60  # in the library: no two but those in question show the same things
    things: int = 2  # in each clip, of 12 kinds: 2 or 3

    def __post_init__(self) -> None:
        if self.things not in (2, 3):
            raise ValueError(f"expected 2 or 3 things in a clip, got {self.things}")
        most = comb(len(KINDS), self.things) + 1
        if not 2 <= self.clips <= most:
            raise ValueError(f"expected 2 to {most} clips of {self.things} things, got {self.clips}")


class Search(Environment):
    """A library of captions, and a question about what two of them share.

    Earns 1 for the digit alone, as `7`; else `light` where a search gave the caption with the digit, as the report's
    search rewards may; else 0. light: below 1, and 0 unless asked for, since it pays for an answer that is wrong.
    An episode is a function of (seed, split, number) and the difficulty. No name of a clip is in "test" and in another
    split; validation has training's names in libraries of its own.
    """

    captions: list[str]  # of every clip, in the order of their numbers
    named: int  # number of the clip in the question
    other: int  # number of the clip in the answer
    digit: int  # on the card of the other
    found: bool  # whether a search gave the other's caption

    def __init__(
        self,
        difficulty: SearchDifficulty = SearchDifficulty(),
        split: Split = "train",
        seed: int = 0,
        light: float | int = 0.0,
    ):
        check_split(split)
        if not 0 <= light < 1:
            raise ValueError(f"expected a light reward of at least 0 and below 1, got {light}")
        self.difficulty, self.light, self._split, self._seed = difficulty, light, split, seed

    def reset(self, number: int) -> str:
        chance = generator(self._seed, "search", self._split, number)
        count, names, kinds = self.difficulty.clips, _names(self._split), _things(self.difficulty.things)
        self.named, self.other = torch.randperm(count, generator=chance)[:2].tolist()
        self._names = [names[n] for n in torch.randperm(len(names), generator=chance)[:count].tolist()]
        self._shown = [kinds[n] for n in torch.randperm(len(kinds), generator=chance)[: count - 1].tolist()]
        self._shown.insert(self.other, "")
        self._shown[self.other] = self._shown[self.named]
        digits = torch.randint(10, (count,), generator=chance).tolist()
        self.digit, further = digits[self.other], 1 + int(torch.randint(9, (), generator=chance))
        digits[self.named] = (self.digit + further) % 10  # another: to copy it is wrong
        clips = zip(self._names, self._shown, digits, strict=True)
        self.captions = [f"{name}: {things}; card {digit}" for name, things, digit in clips]
        self.found, self.misses = False, []
        return QUESTION.format(name=self._names[self.named])

    def search(self, words: str) -> str:
        """Find the clips whose captions fit best.

        words: to look for
        """
        best = ranked(words, self.captions)[:BEST]
        self.found = self.found or self.other in best
        self.misses.append(not {self.named, self.other} & set(best))
        return "\n".join(self.captions[clip] for clip in best) or NOTHING

    @property
    def slipped(self) -> bool:
        """Whether the first search missed: it gave neither clip in question, or was none that could be carried out."""
        return self.misses[:1] == [True]

    def get_reward(self) -> float:
        return 1.0 if self.answer == str(self.digit) else float(self.light * self.found)


def ranked(words: str, captions: Sequence[str]) -> list[int]:
    """Numbers of the captions that share something with the words, best first; of equals the smaller number.

    What counts is how many different words they share, and how many pairs of neighbours: by words alone, red circle and
    blue square would be found in red square and blue circle. So who asks for all things of a clip gets the clips that
    show them all before any other: no caption has every pair of theirs but those.
    """
    wanted = _terms(words)
    shared = [len(wanted & _terms(caption)) for caption in captions]
    return sorted((n for n, score in enumerate(shared) if score), key=lambda n: -shared[n])  # sorting keeps the order


def demonstrated(world: Search, heard: Sequence[Sequence[Result]]) -> str:
    """The expert's next turn: a search for the clip of the question, one for what it shows, then the digit."""
    told = {line for results in heard for result in results if isinstance(result, str) for line in result.split("\n")}
    if world.captions[world.named] not in told:
        return written(Call("search", {"words": world._names[world.named]}))
    if world.captions[world.other] not in told:
        return written(Call("search", {"words": world._shown[world.named].replace(",", "")}))
    return straight(world)


def straight(world: Search) -> str:
    """The digit at once. Who has not searched guesses: right one time in 10."""
    return str(world.digit)


def _terms(text: str) -> set[tuple[str, ...]]:
    """The words of a text, and the pairs of words that stand side by side."""
    words = re.findall(r"\w+", text.lower())
    return {*((word,) for word in words), *pairwise(words)}


@cache
def _things(count: int) -> list[str]:
    """All sets of so many things, each in the order of KINDS, as captions have them."""
    return [", ".join(kinds) for kinds in combinations(KINDS, count)]


@cache
def _names(split: Split) -> list[str]:
    """Names of clips: two different syllables each."""
    syllables = ["".join(letters) for letters in product("bdfklmnrstv", "aiou")]
    names = ["".join(pair) for pair in permutations(syllables, 2)]
    names = [names[n] for n in torch.randperm(len(names), generator=generator("names of clips")).tolist()]
    return names[TRAIN_NAMES:] if split == "test" else names[:TRAIN_NAMES]
