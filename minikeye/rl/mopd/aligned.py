"""Do teacher and student look at the same? Checked before a token is compared, because training would not notice.

The report tokenises prompt and response apart on the teacher's side and rebuilds the prompt with the teacher's own
processor: chat template, visual tokens, positions. One token too many and every distribution is held against that of
its neighbour: the loss stays finite, falls even, and teaches nonsense.

How many visual tokens there are and where is compared; what they are is not: a teacher with a tower of its own sees
with its own.

Axes: b prompt, g answer of a prompt, t token of a prompt, n token of an answer.
"""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from minikeye.config import KeyeConfig
from minikeye.model.batch import is_visual
from minikeye.rl.groups import Prompts


def segmented(encode: Callable[[str], list[int]], prompt: str, response: str) -> tuple[list[int], list[int]]:
    """Tokens of prompt and response, each on its own: no token may lie across the border.

    Encoded in one piece, a tokenizer that merges may join the prompt's last letter with the response's first; then
    there is one token less, and no token of the student's answer stands where it stood.
    """
    return encode(prompt), encode(response)


def require_aligned(
    student: Prompts,
    teacher: Prompts,
    said: Int[Tensor, "b g n"],
    read: Int[Tensor, "..."],
    config: KeyeConfig,
    name: str,
) -> None:
    """Raise ValueError where a teacher was given another sequence than the student wrote, saying what differs first.

    student, teacher: prompts as each of them reads them, padded on the left. said: the student's answers, filled with
    -1; read: what the teacher takes them for. config: says which ids stand for visual tokens. name: of the teacher.
    """
    if missing := {"input_ids", "positions"} - teacher.keys():
        raise ValueError(f"expected input_ids and positions from the reader of {name}, got no {sorted(missing)}")
    if len(student["input_ids"]) != len(teacher["input_ids"]):
        raise ValueError(f"expected {len(student['input_ids'])} prompts for {name}, got {len(teacher['input_ids'])}")
    for row, (own, other) in enumerate(zip(real_rows(student), real_rows(teacher), strict=True)):
        (ids, places), (its, its_places) = own, other
        count, its_count = (int(is_visual(x[None], config).sum()) for x in (ids, its))
        if count != its_count:
            raise ValueError(
                f"expected {count} visual tokens for {name} in prompt {row}, got {its_count}: give it the same frames "
                f"at the same size"
            )
        if ids.tolist() != its.tolist():
            raise ValueError(f"expected the prompt of the student for {name} in row {row}, {_difference(ids, its)}")
        if places.tolist() != its_places.tolist():
            raise ValueError(f"expected the student's positions for {name} in prompt {row}, got others: same seconds?")
    if said.ndim != read.ndim or said.shape[:2] != read.shape[:2]:
        raise ValueError(
            f"expected the student's answers {list(said.shape)} for {name}, got {list(read.shape)}: its reader must "
            f"keep prompts and answers in order"
        )
    for ours, theirs in zip(said.flatten(0, 1), read.flatten(0, 1), strict=True):
        if ours.tolist() != theirs.tolist():
            difference = _difference(ours[ours >= 0], theirs[theirs >= 0])
            raise ValueError(f"expected the student's answer for {name}, {difference}")


def real_rows(prompts: Prompts) -> list[tuple[Int[Tensor, " t"], Int[Tensor, "3 t"]]]:
    """ids and positions of every prompt, without padding."""
    ids = prompts["input_ids"]
    real = prompts.get("attention_mask", torch.ones_like(ids)).bool()
    return [(ids[row][real[row]], prompts["positions"][:, row, real[row]]) for row in range(len(ids))]


def _difference(ours: Int[Tensor, " n"], theirs: Int[Tensor, " m"]) -> str:
    """Where two sequences part, and the usual reason."""
    a, b = ours.tolist(), theirs.tolist()
    first = next((n for n, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
    if a == b:
        return "got the same tokens, filled to another length: keep the filling"
    moved = shift(a, b)
    why = f"moved by {moved} token(s)" if moved else "another template or tokenizer"
    if a[: len(b)] == b or b[: len(a)] == a:
        why = "the longer goes on where the other ends: padding read as tokens, or an end of the turn that one lacks"
    return f"got one that parts at token {first} of {len(a)} (theirs has {len(b)}): {why}"


def shift(ours: Sequence[int], theirs: Sequence[int], most: int = 4) -> int:
    """By how many tokens theirs lies later (below 0: earlier), all that is left equal; 0 where no move explains it."""
    if list(ours) == list(theirs):
        return 0
    for by in range(1, min(most, len(ours) - 1, len(theirs) - 1) + 1):
        for sign, (late, early) in ((by, (theirs, ours)), (-by, (ours, theirs))):
            length = min(len(late) - by, len(early))
            if 2 * length > len(early) and list(late[by : by + length]) == list(early[:length]):
                return sign
    return 0
