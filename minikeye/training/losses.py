"""Learning from answers: next-token loss on what the assistant says, and nothing else.

Axes: b batch, t position, v vocabulary.
"""

import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

IGNORED = -100  # target of a token that is not to be learnt


def answer_loss(
    logits: Float[Tensor, "b t v"], ids: Int[Tensor, "b t"], answer: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """Mean cross-entropy of the answer tokens, each predicted from the token before it (report: L_NTP).

    answer: True on the tokens to learn, as `prompt.pad` gives them. Raises ValueError for shapes that do not fit. A
    batch without any token to learn gives nan.
    """
    if logits.shape[:2] != ids.shape or ids.shape != answer.shape:
        shapes = [list(x.shape) for x in (logits, ids, answer)]
        raise ValueError(f"expected logits [b t v] with ids and answer [b t], got {shapes}")
    wanted = ids.masked_fill(~answer, IGNORED)[:, 1:]
    return F.cross_entropy(logits[:, :-1].flatten(0, 1), wanted.flatten(), ignore_index=IGNORED)


def answer_accuracy(
    logits: Float[Tensor, "b t v"], ids: Int[Tensor, "b t"], answer: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """Share of the answer tokens that are the most likely token, given the true tokens before them."""
    right = (logits[:, :-1].argmax(dim=-1) == ids[:, 1:]) & answer[:, 1:]
    return right.sum() / answer[:, 1:].sum()
