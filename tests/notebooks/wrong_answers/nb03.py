"""Wrong answers to the exercises of notebook 03, and what their checkers must say."""

from minikeye.exercises.nb03 import check_busy_share, check_chosen_weights, check_experts_read

WRONG_ANSWERS = [
    (check_chosen_weights, lambda logits, c: None, "write its body"),
    (check_chosen_weights, lambda logits, c: logits.softmax(dim=-1).topk(c, dim=-1).values, "not renormalised"),
    (check_chosen_weights, lambda logits, c: logits.topk(c, dim=-1).values.softmax(dim=0), "over the tokens"),
    (check_chosen_weights, lambda logits, c: logits.softmax(dim=-1), "one for each chosen expert"),
    (check_chosen_weights, lambda logits, c: logits.new_full((len(logits), c), 1 / c), "not the router's weights"),
    (check_busy_share, lambda load, devices: None, "write its body"),
    (check_busy_share, lambda load, devices: load.float().mean() / load.max(), "compares experts"),
    (
        check_busy_share,
        lambda load, devices: load.view(devices, -1).sum(1).max() / load.view(devices, -1).sum(1).float().mean(),
        "cannot exceed 1",
    ),
    (
        check_busy_share,
        lambda load, devices: load.view(devices, -1).sum(1).min() / load.view(devices, -1).sum(1).max(),
        "on average",
    ),
    (check_experts_read, lambda tokens, experts, chosen: None, "write its body"),
    (check_experts_read, lambda tokens, experts, chosen: min(experts, tokens * chosen), "share an expert"),
    (
        check_experts_read,
        lambda tokens, experts, chosen: experts * (1 - (1 - 1 / experts) ** (tokens * chosen)),
        "same expert twice",
    ),
    (check_experts_read, lambda tokens, experts, chosen: 1 - (1 - chosen / experts) ** tokens, "not a share"),
]
