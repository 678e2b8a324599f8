"""Wrong answers to the exercises of notebook 10, and what their checkers must say."""

import torch

from minikeye.exercises.nb10 import check_sums_needed, check_targets, check_visible


def owners(lengths):
    """Document of each token."""
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


def late(lengths):
    """Every border comes one token late."""
    owner = owners(lengths)
    return torch.cat((owner[:1], owner[:-1]))


def early(lengths):
    owner = owners(lengths)
    return torch.cat((owner[1:], owner[-1:]))


def same(owner):
    return owner[:, None] == owner


def targets(ids, answers, start, *, marks=True, borders=True):
    """Right but for the argument that is given."""
    following, said, other = (torch.roll(z, -1) for z in (ids, answers, start))
    where = torch.arange(len(ids)) < len(ids) - 1
    if marks:
        where = where & said
    if borders:
        where = where & (other == start)
    return torch.where(where, following, -100)


def unshifted_marks(ids, answers, start):
    following = torch.roll(ids, -1)
    return torch.where(answers & (torch.arange(len(ids)) < len(ids) - 1), following, -100)


def wrapped(ids, answers, start):
    """The last place learns to say the first token."""
    out = targets(ids, answers, start)
    out[-1] = ids[0]
    return out


def backwards(ids, answers, start):
    said = torch.where(answers, ids, -100)
    return torch.cat((torch.tensor([-100]), said[:-1]))


WRONG_ANSWERS = [
    (check_visible, lambda lengths: None, "write its body"),
    (check_visible, lambda lengths: torch.ones(sum(lengths)), r"expected \[6, 6\]"),
    (check_visible, lambda lengths: torch.ones(sum(lengths), sum(lengths)).tril(), "document before its own"),
    (check_visible, lambda lengths: same(owners(lengths)), "come later"),
    (check_visible, lambda lengths: same(owners(lengths)).triu(), "transposed"),
    (check_visible, lambda lengths: same(owners(lengths)).tril(-1), "sees itself"),
    (check_visible, lambda lengths: same(late(lengths)).tril(), "shifted by one: token 3"),
    (check_visible, lambda lengths: same(early(lengths)).tril(), "shifted by one: token 2"),
    (check_visible, lambda lengths: torch.zeros(sum(lengths), sum(lengths)), "query 4 should see"),
    (
        check_visible,
        lambda lengths: same(owners(lengths)).tril() if len(lengths) > 1 else torch.zeros(4, 4),
        "one document: causal",
    ),
    (check_targets, lambda ids, answers, start: None, "write its body"),
    (check_targets, lambda ids, answers, start: ids[1:], r"expected \[7\]"),
    (check_targets, lambda ids, answers, start: torch.where(answers, ids, -100), "not shifted: a token"),
    (check_targets, lambda ids, answers, start: targets(ids, answers, start, marks=False, borders=False), "everything"),
    (check_targets, backwards, "wrong way"),
    (check_targets, unshifted_marks, "marks are not shifted"),
    (check_targets, wrapped, "torch.roll"),
    (check_targets, lambda ids, answers, start: targets(ids, answers, start, borders=False), "another document"),
    (check_targets, lambda ids, answers, start: torch.full_like(ids, -100), "expected .*, got"),
    (check_sums_needed, lambda video, one, share: None, "write its body"),
    (check_sums_needed, lambda video, one, share: share / (1 - share) * video, "number of tokens"),
    (check_sums_needed, lambda video, one, share: share * video / one, "29 %"),
    (check_sums_needed, lambda video, one, share: video / one, "a half"),
    (check_sums_needed, lambda video, one, share: (1 - share) * video / one, "200 sums bring"),
    (check_sums_needed, lambda video, one, share: 200, "share of 0"),
    (check_sums_needed, lambda video, one, share: 500 * share, "for a half"),
]
