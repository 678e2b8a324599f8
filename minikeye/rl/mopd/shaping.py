"""What is done to an advantage once it is had: kinds of token weigh differently, and a loop is told to stop.

Report, "Cross-Modal MOPD": formatting tokens are scaled down, perception and reasoning tokens up (A~), and
lambda_rep is subtracted from where repetition sets in (A^). It gives neither the factors, nor the kinds, nor the
detector: all three are our choice.

Axes: n token of an answer, v vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

REPEATS, SHORTEST, LONGEST = 4, 8, 16  # times, tokens in all, tokens of the piece that is said again and again


def token_weights(
    decode: Callable[[list[int]], str], vocab: int, formatting: float, content: float = 1.0
) -> Float[Tensor, " v"]:
    """The factor of every token: content has a letter or a digit, all else is formatting.

    The weight is that of the token which was drawn, for the whole state: so the report's equation has it. decode: the
    student's tokenizer's, which gives nothing for special tokens; a token that is part of a letter (U+FFFD) counts as
    content. To Adam only the ratio matters.
    """
    says = [any(letter.isalnum() or letter == "\ufffd" for letter in decode([token])) for token in range(vocab)]
    return torch.where(torch.tensor(says), content, formatting)


def collapse_start(ids: Sequence[int]) -> int | None:
    """tau: the place in an answer from which on it only says again what it has said; None where it does not.

    The first place at which a piece of 1 to LONGEST tokens begins to be said for the second time, of REPEATS or more
    times one after another that fill SHORTEST tokens or more. So "1111" is a number, and a list of intervals a list.
    """
    found = []
    for length in range(1, LONGEST + 1):
        run, wanted = 0, max((REPEATS - 1) * length, SHORTEST - length)
        for n in range(length, len(ids)):
            run = run + 1 if ids[n] == ids[n - length] else 0
            if run >= wanted:
                found.append(n - run + 1)
                break
    return min(found, default=None)
