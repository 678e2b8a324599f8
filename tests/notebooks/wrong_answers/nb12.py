"""Wrong answers to the exercises of notebook 12, and what their checkers must say."""

from minikeye.exercises.nb12 import check_best_constant, check_set_reward
from minikeye.scores import temporal_iou


def merged(pairs):
    out = []
    for start, end in sorted(pairs):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


def reward(pairs, truth, *, over="both", merge=merged, refuse="any", floor=True):
    """Right but for the argument that is given."""
    bad = [not start < end for start, end in pairs or []]
    if not pairs or (any(bad) if refuse == "any" else all(bad) if refuse == "all" else False):
        return 0.0
    kept = merge([pair for pair, wrong in zip(pairs, bad, strict=True) if not wrong or refuse == "none"])
    cut = (lambda x: max(0.0, x)) if floor else (lambda x: x)
    shared = sum(cut(min(end, truth[1]) - max(start, truth[0])) for start, end in kept)
    said, true = sum(end - start for start, end in kept), truth[1] - truth[0]
    return shared / {"both": said + true - shared, "truth": true, "answer": said, "sum": said + true}[over]


def changed(**change):
    return lambda pairs, truth: reward(pairs, truth, **change)


def neighbours(pairs):
    """Merged without sorting."""
    out = []
    for start, end in pairs:
        if out and out[-1][0] <= start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return out


def last_end(pairs):
    """Merged with the end of the last pair, not the later one."""
    out = []
    for start, end in sorted(pairs):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], end)
        else:
            out.append((start, end))
    return out


def crashes(pairs, truth):
    return 0.0 if pairs == [] else None if pairs is None else reward(pairs, truth)


SHARES = [(a / 20, b / 20) for b in range(21) for a in range(b)]


def mean_iou(share, truths, durations):
    scores = [temporal_iou([(share[0] * d, share[1] * d)], [t]) for t, d in zip(truths, durations, strict=True)]
    return sum(scores) / len(scores)


def best(truths, durations):
    share = max(SHARES, key=lambda share: mean_iou(share, truths, durations))
    return share, mean_iou(share, truths, durations)


def middle(truths, durations):
    """The mean start and the mean end."""
    shares = [(a / d, b / d) for (a, b), d in zip(truths, durations, strict=True)]
    share = tuple(sum(ends) / len(ends) for ends in zip(*shares, strict=True))
    return share, mean_iou(share, truths, durations)


def seconds(truths, durations):
    """One interval of seconds for videos of all lengths."""
    tried = [(a / 2, b / 2) for b in range(80) for a in range(b)]
    score = lambda pair: sum(temporal_iou([pair], [truth]) for truth in truths) / len(truths)  # noqa: E731
    pair = max(tried, key=score)
    return pair, score(pair)


def longest(truths, durations):
    """Shares of the longest video."""
    return best(truths, [max(durations)] * len(durations))


def never_whole(truths, durations):
    """Twentieths up to 19 only."""
    share = max((s for s in SHARES if s[1] < 1), key=lambda share: mean_iou(share, truths, durations))
    return share, mean_iou(share, truths, durations)


WRONG_ANSWERS = [
    (check_set_reward, lambda pairs, truth: None, "write its body"),
    (check_set_reward, changed(over="sum"), "the truth itself"),
    (check_set_reward, changed(over="truth"), "the whole video wins"),
    (check_set_reward, changed(over="answer"), "a sliver in the middle wins"),
    (check_set_reward, changed(floor=False), "never below 0"),
    (check_set_reward, lambda pairs, truth: reward(pairs[:1] if pairs else pairs, truth), "all pairs count"),
    (
        check_set_reward,
        changed(merge=lambda pairs: [(min(a for a, _ in pairs), max(b for _, b in pairs))]),
        "the gap between them",
    ),
    (check_set_reward, changed(merge=list), "each moment counts once"),
    (check_set_reward, changed(merge=lambda pairs: sorted(set(pairs))), "merge them"),
    (check_set_reward, changed(merge=neighbours), "in any order"),
    (check_set_reward, changed(merge=last_end), "a pair inside another"),
    (check_set_reward, changed(refuse="none"), "ends before it starts.*division by zero"),
    (
        check_set_reward,
        lambda pairs, truth: reward([tuple(sorted(pair)) for pair in pairs or []], truth),
        "turned round",
    ),
    (check_set_reward, changed(refuse="all"), "one pair that is no interval"),
    (check_set_reward, crashes, "no pairs, no reward"),
    (check_best_constant, lambda truths, durations: None, "write its body"),
    (check_best_constant, lambda truths, durations: best(truths, durations)[1], r"expected \(\(a, b\)"),
    (check_best_constant, lambda truths, durations: (best(truths, durations)[0][::-1], 0.5), "ends after it starts"),
    (check_best_constant, seconds, "are seconds"),
    (
        check_best_constant,
        lambda truths, durations: (best(truths, durations)[0], 100 * best(truths, durations)[1]),
        "from 0 to 1",
    ),
    (
        check_best_constant,
        lambda truths, durations: (
            best(truths, durations)[0],
            sum(mean_iou(share, truths, durations) for share in SHARES) / len(SHARES),
        ),
        "mean over all shares",
    ),
    (check_best_constant, middle, "the middle of the truths"),
    (check_best_constant, longest, "its own video's duration"),
    (
        check_best_constant,
        lambda truths, durations: (best(truths, durations)[0], best(truths, durations)[1] * 5 / 4),
        "right share, wrong score",
    ),
    (check_best_constant, never_whole, "all the time"),
]
