"""Wrong answers to the exercises of notebook 13, and what their checkers must say."""

from minikeye.exercises.nb13 import check_honest_reward, check_sequence_ratio, check_worse_than_not_looking


def flawed(right, looks, second):
    if not right or not looks:
        return float(right)
    iou = (second in looks[-1]) / len({second, *looks[-1]})
    return 0.9 if iou < 0.1 else 1 + min(max((iou - 0.2) / 0.6, 0.0), 1.0)


def showed(looks, second):
    return any(second in look for look in looks)


def looks_cost(right, looks, second):
    return max(0.0, (right and showed(looks, second)) - 0.1 * max(0, len(looks) - 1))


def ratio(new, old, mask, *, over="drawn", mean="geometric", safe=True, least=1):
    """Right but for the argument that is given."""
    difference = new - old
    difference = difference.masked_fill(~mask, 0.0) if safe else difference * mask
    count = mask.sum(dim=1).clamp(min=least) if over == "drawn" else mask.shape[1]
    if mean == "arithmetic":
        return (difference.exp() * mask).sum(dim=1) / count
    return (difference.sum(dim=1) / count).exp()


WRONG_ANSWERS = [
    (check_worse_than_not_looking, lambda: None, "write its body"),
    (check_worse_than_not_looking, lambda: [12.0], "a list of looks"),
    (check_worse_than_not_looking, lambda: 12.0, "a list of looks"),
    (check_worse_than_not_looking, lambda: [], "never looked"),
    (check_worse_than_not_looking, lambda: [[]], "at least one frame"),
    (check_worse_than_not_looking, lambda: [[31.0]], "earns 2.00"),
    (check_worse_than_not_looking, lambda: [[12.0], [31.0]], "only the last look counts"),
    (check_worse_than_not_looking, lambda: [[30.0, 31.0, 32.0]], "earns 1.22"),
    (check_worse_than_not_looking, lambda: [[float(s) for s in range(20, 40)]], "at most 4 frames"),
    (check_honest_reward, lambda right, looks, second: None, "write its body"),
    (check_honest_reward, lambda right, looks, second: "1", "expected a number"),
    (check_honest_reward, flawed, "policies learn not to look"),
    (check_honest_reward, lambda right, looks, second: float(right), "saves the look"),
    (check_honest_reward, lambda right, looks, second: float(showed(looks, second)), "say anything"),
    (check_honest_reward, lambda right, looks, second: 0.5 * right + 0.5 * showed(looks, second), "say anything"),
    (check_honest_reward, lambda right, looks, second: float(right and len(looks) > 0), "a look anywhere"),
    (check_honest_reward, looks_cost, "correcting a miss"),
    (check_honest_reward, lambda right, looks, second: float(right and showed(looks[:1], second)), "correcting a miss"),
    (check_honest_reward, lambda right, looks, second: float(right and showed(looks[-1:], second)), "a further look"),
    (check_honest_reward, lambda right, looks, second: float(right and [second] in looks), "neighbours"),
    (check_honest_reward, lambda right, looks, second: 2.0 * (right and showed(looks, second)), "expected 1 after"),
    (check_honest_reward, lambda right, looks, second: float(right and showed(looks, 31.0)), "from the argument"),
    (check_sequence_ratio, lambda new, old, mask: None, "write its body"),
    (check_sequence_ratio, lambda new, old, mask: ratio(new, old, mask).mean(), "each episode"),
    (check_sequence_ratio, lambda new, old, mask: (new - old).mean(dim=1).exp(), "told tokens are in it"),
    (check_sequence_ratio, lambda new, old, mask: ratio(new, old, mask, over="all"), "all tokens"),
    (check_sequence_ratio, lambda new, old, mask: ((new - old) * mask).sum(dim=1).exp(), "product of the ratios"),
    (check_sequence_ratio, lambda new, old, mask: ratio(new, old, mask, mean="arithmetic"), "arithmetic mean"),
    (check_sequence_ratio, lambda new, old, mask: ratio(old, new, mask), "turned round"),
    (check_sequence_ratio, lambda new, old, mask: ratio(new, old, ~mask), "inverted"),
    (check_sequence_ratio, lambda new, old, mask: 2 * ratio(new, old, mask), "expected "),
    (check_sequence_ratio, lambda new, old, mask: ratio(new, old, mask, least=0), "0 / 0"),
    (check_sequence_ratio, lambda new, old, mask: ratio(new, old, mask) * mask.any(dim=1), "moved nowhere"),
    (check_sequence_ratio, lambda new, old, mask: ratio(new, old, mask, safe=False), "must not matter"),
]
