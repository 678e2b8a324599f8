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
    return label_loss(logits[:, :-1], ids.masked_fill(~answer, IGNORED)[:, 1:])


def label_loss(
    logits: Float[Tensor, "b t v"], labels: Int[Tensor, "b t"], count: int | None = None
) -> Float[Tensor, ""]:
    """Cross-entropy of the labels, each of the token that follows its position; IGNORED where none is to be learnt.

    count: labels of the whole batch, where these are one rank's: then its part of the mean over all. None: their mean.
    """
    flat = logits.flatten(0, 1), labels.flatten()
    if count is None:
        return F.cross_entropy(*flat, ignore_index=IGNORED)
    return F.cross_entropy(*flat, ignore_index=IGNORED, reduction="sum") / count


def answer_accuracy(
    logits: Float[Tensor, "b t v"], ids: Int[Tensor, "b t"], answer: Bool[Tensor, "b t"]
) -> Float[Tensor, ""]:
    """Share of the answer tokens that are the most likely token, given the true tokens before them."""
    return label_accuracy(logits[:, :-1], ids.masked_fill(~answer, IGNORED)[:, 1:])


def label_accuracy(
    logits: Float[Tensor, "b t v"], labels: Int[Tensor, "b t"], count: int | None = None
) -> Float[Tensor, ""]:
    """Share of the labels that are the most likely token. count: as in `label_loss`."""
    right = (logits.argmax(dim=-1) == labels).sum()
    return right / ((labels != IGNORED).sum() if count is None else count)
