"""What a language model is asked: held-out text, a number hidden in it, a passage said again.

Axes: b sequence, t position. All tests are teacher-forced: `wanted` marks the tokens to be predicted, each from the
true tokens before it. Sequences of a test have one length and no padding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from minikeye.inputs.tokenizer import Tokenizer

DEPTHS = 5  # places of a needle, from the beginning to the end of the text, in turn
COPIED, CUE = 32, 8  # tokens that are said again; those of them that are given as a cue
GRAM = 3  # tokens that must have stood before in the same order
OWNERS = ("harbour", "violin", "meadow", "lantern", "glacier", "orchard", "bridge", "parrot", "castle", "ribbon")


@dataclass(frozen=True)
class Asked:
    """Sequences, and what is to be predicted of them. Raises ValueError where `wanted` or `far` do not fit `ids`, and
    where nothing is wanted, or what nothing stands before.
    """

    ids: Int[Tensor, "b t"]
    wanted: Bool[Tensor, "b t"]
    far: Bool[Tensor, "b t"] | None = None  # of the wanted tokens those that can be read off a passage far away

    def __post_init__(self) -> None:
        shapes = [tuple(marks.shape) for marks in (self.ids, self.wanted, self.far) if marks is not None]
        if len(set(shapes)) > 1 or not self.wanted.any() or self.wanted[:, 0].any():
            raise ValueError(
                f"expected wanted and far [b t] as ids, some tokens wanted and not the first of a sequence; got "
                f"{int(self.wanted.sum())} wanted in shapes {', '.join(map(str, shapes))}"
            )

    @property
    def last(self) -> int:
        """So many last positions hold all wanted tokens and the one before the first of them."""
        return self.ids.shape[1] - int(self.wanted.any(dim=0).nonzero()[0]) + 1


def windows(stream: Int[Tensor, " n"], count: int, length: int, seed: int) -> Asked:
    """Stretches of the text that do not overlap, in an order drawn from seed; the second half is to be predicted.

    count: at most; a short text has fewer. far: see `antecedents`, from a quarter of the length on. Raises ValueError
    for a text shorter than one stretch, for count < 1 or length < 4.
    """
    _require_some(count, length)
    if len(stream) < length:
        raise ValueError(f"expected a text of at least {length} tokens, got {len(stream)}: ask for shorter stretches")
    order = torch.randperm(len(stream) // length, generator=torch.Generator().manual_seed(seed))[:count]
    ids = torch.stack([stream[n * length : (n + 1) * length] for n in order.tolist()])
    wanted = torch.zeros_like(ids, dtype=torch.bool)
    wanted[:, length // 2 :] = True
    far = torch.tensor([antecedents(row, length // 4) for row in ids.tolist()])
    return Asked(ids, wanted, far & wanted)


def _require_some(count: int, length: int) -> None:
    if count < 1 or length < 4:
        raise ValueError(f"expected at least one sequence of at least 4 tokens, got {count} of {length}")


def antecedents(ids: Sequence[int], distance: int) -> list[bool]:
    """Which tokens follow three that stood before in the same order, last time at least `distance` tokens earlier, and
    were followed by the same token then: real text that can be continued by reading one place far away.

    ids: numbers, as `tensor.tolist()`. Raises TypeError for a tensor, whose elements are equal to nothing but
    themselves.
    """
    if isinstance(ids, Tensor):
        raise TypeError("expected ids as numbers, got a tensor: pass ids.tolist()")
    seen: dict[tuple[int, ...], int] = {}
    out = []
    for n, token in enumerate(ids):
        gram = tuple(ids[max(0, n - GRAM) : n])
        before = seen.get(gram) if n >= GRAM else None
        out.append(before is not None and n - before >= distance and ids[before] == token)
        seen[gram] = n
    return out


def needles(
    stream: Int[Tensor, " n"], tokenizer: Tokenizer, count: int, length: int, seed: int, blind: bool = False
) -> Asked:
    """A number of four digits is said once in a text and asked for at its end; the digits are to be predicted.

    "\\nThe secret number of the harbour is 4719.\\n" (one of ten such owners) stands at depth n % 5 of text n, and the
    text ends with "\\nThe secret number of the harbour is 4719". blind: it is asked for without having been said, the
    control. Raises ValueError for a length without room for both and a token of text (29 tokens with SmolLM2's
    tokenizer, up to 85 bytes), for a stream that is no longer than that text, and for count < 1.
    """
    _require_some(count, length)
    draws = torch.Generator().manual_seed(seed)
    rows = []
    for n in range(count):
        code = "".join(str(d) for d in torch.randint(10, (4,), generator=draws).tolist())
        owner = OWNERS[int(torch.randint(len(OWNERS), (), generator=draws))]
        said = tokenizer.encode(f"\nThe secret number of the {owner} is {code}.\n")
        question = tokenizer.encode(f"\nThe secret number of the {owner} is ") + tokenizer.encode(code)
        said = [] if blind else said
        room = length - len(said) - len(question)
        if not 0 < room < len(stream):
            raise ValueError(
                f"expected room for text around a needle, a length above {length - room}, and a stream longer than "
                f"that text; got a length of {length} and a stream of {len(stream)} tokens"
            )
        first = int(torch.randint(len(stream) - room, (), generator=draws))
        text = stream[first : first + room].tolist()
        at = round(room * (0.02 + 0.9 * (n % DEPTHS + float(torch.rand((), generator=draws))) / DEPTHS))
        rows.append(text[:at] + said + text[at:] + question)
    ids = torch.tensor(rows)
    wanted = torch.zeros_like(ids, dtype=torch.bool)
    wanted[:, -len(tokenizer.encode("0000")) :] = True
    return Asked(ids, wanted)


def copies(stream: Int[Tensor, " n"], count: int, length: int, seed: int) -> Asked:
    """Text whose last 32 tokens are a passage of its first half again: all but the first 8 are to be predicted.

    length: 128 tokens at least. Raises ValueError for less, for a text shorter than length, and for count < 1.
    """
    _require_some(count, length)
    if length < 4 * COPIED or len(stream) < length:
        raise ValueError(
            f"expected a length of {4 * COPIED} tokens or more, and a text as long; got a length of {length} and a "
            f"text of {len(stream)}"
        )
    draws = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        first = int(torch.randint(len(stream) - length + COPIED + 1, (), generator=draws))
        text = stream[first : first + length - COPIED]
        at = int(torch.randint(length // 2 - COPIED, (), generator=draws))
        rows.append(torch.cat((text, text[at : at + COPIED])))
    ids = torch.stack(rows)
    wanted = torch.zeros_like(ids, dtype=torch.bool)
    wanted[:, CUE - COPIED :] = True
    return Asked(ids, wanted)
