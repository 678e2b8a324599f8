"""Wrong answers to the exercises of notebook 11, and what their checkers must say."""

from minikeye.exercises.nb11 import check_answer_logprobs, check_group_advantages, check_span_reward
from minikeye.minivid.tasks import parse_interval
from minikeye.scores import temporal_iou


def shared(pair, start, end):
    return max(0.0, min(pair[1], end) - max(pair[0], start))


def coverage(text, start, end):
    """The share of the truth that is covered: a policy says the whole video."""
    pairs = parse_interval(text)
    return shared(pairs[0], start, end) / (end - start) if pairs and len(pairs) == 1 else 0.0


def precision(text, start, end):
    pairs = parse_interval(text)
    return shared(pairs[0], start, end) / (pairs[0][1] - pairs[0][0]) if pairs and len(pairs) == 1 else 0.0


def best(text, start, end):
    """The best of all intervals: a policy bets on many."""
    return max([temporal_iou([pair], [(start, end)]) for pair in parse_interval(text) or []], default=0.0)


def union(text, start, end):
    return temporal_iou(parse_interval(text), [(start, end)])


def signed(text, start, end):
    pairs = parse_interval(text)
    if not pairs or len(pairs) != 1:
        return 0.0
    (a, b) = pairs[0]
    return (min(b, end) - max(a, start)) / (max(b, end) - min(a, start))


def forgiving(text, start, end):
    return best(text, start, end) if parse_interval(text) else 0.1


def deviations(rewards, correction=0, delta=1e-4, dim=1):
    mean = rewards.mean() if dim is None else rewards.mean(dim=dim, keepdim=True)
    std = rewards.std(correction=correction) if dim is None else rewards.std(dim, correction=correction, keepdim=True)
    return (rewards - mean) / (std + delta)


def gathered(logits, ids, rows, tokens):
    return logits.log_softmax(dim=-1)[rows].gather(1, ids[tokens, None]).squeeze(1)


WRONG_ANSWERS = [
    (check_span_reward, lambda text, start, end: None, "write its body"),
    (check_span_reward, lambda text, start, end: 0.5, "earns 1"),
    (check_span_reward, coverage, "covers the whole video"),
    (check_span_reward, precision, "share 3 of 9"),
    (check_span_reward, best, "bet on all"),
    (check_span_reward, union, "three intervals is not an answer"),
    (check_span_reward, signed, "never less than 0"),
    (check_span_reward, forgiving, "is no interval"),
    (check_group_advantages, lambda rewards: None, "write its body"),
    (check_group_advantages, lambda rewards: rewards.mean(dim=1), "a number for each answer"),
    (check_group_advantages, lambda rewards: rewards, "Without a baseline"),
    (check_group_advantages, lambda rewards: rewards / (rewards.std(1, correction=0, keepdim=True) + 1e-4), "baseline"),
    (check_group_advantages, lambda rewards: deviations(rewards, delta=0.0), "nan"),
    (check_group_advantages, lambda rewards: deviations(rewards, dim=None), "own group"),
    (check_group_advantages, lambda rewards: deviations(rewards, dim=0), "own group"),
    (check_group_advantages, lambda rewards: rewards - rewards.mean(dim=1, keepdim=True), "divide by"),
    (check_group_advantages, lambda rewards: deviations(rewards, correction=1), "correction=0"),
    (check_group_advantages, lambda rewards: -deviations(rewards), "group 0 should get"),
    (check_answer_logprobs, lambda logits, ids, first: None, "write its body"),
    (check_answer_logprobs, lambda z, ids, n: gathered(z, ids, slice(n, None), slice(n, None)), "shifted by one"),
    (check_answer_logprobs, lambda z, ids, n: gathered(z, ids, slice(n, -1), slice(n + 1, None)), "first token"),
    (check_answer_logprobs, lambda z, ids, n: gathered(z, ids, slice(n - 1, -2), slice(n, -1)), "when to stop"),
    (check_answer_logprobs, lambda z, ids, n: gathered(z, ids, slice(n - 2, -1), slice(n - 1, None)), "did not draw"),
    (
        check_answer_logprobs,
        lambda z, ids, n: gathered(z, ids, slice(0, -1), slice(1, None)),
        "ids\\[4:\\] are 3 tokens",
    ),
    (check_answer_logprobs, lambda z, ids, n: gathered(z, ids, slice(n - 1, -1), slice(n, None)).sum(), "a number for"),
    (
        check_answer_logprobs,
        lambda z, ids, n: gathered(z, ids, slice(n - 1, -1), slice(n, None)).exp(),
        "probabilities",
    ),
    (
        check_answer_logprobs,
        lambda z, ids, n: z[n - 1 : -1].gather(1, ids[n:, None]).squeeze(1),
        "log_softmax over the vocabulary",
    ),
    (
        check_answer_logprobs,
        lambda z, ids, n: z.log_softmax(dim=0)[n - 1 : -1].gather(1, ids[n:, None]).squeeze(1),
        "expected .*, got",
    ),
]
