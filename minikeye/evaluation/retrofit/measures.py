"""One cell of the study: a model, a way to choose keys, a test. Numbers out.

Axes: b sequence, t position, v vocabulary.
"""

import math
import time
from typing import Any

import torch
from torch import Tensor

from minikeye.evaluation.retrofit.passages import DEPTHS, Asked
from minikeye.evaluation.retrofit.selections import SELECTIONS
from minikeye.evaluation.rules import selecting
from minikeye.keye import KeyeVL
from minikeye.training.dsa import RecallMeter
from minikeye.training.step import autocast

QUERIES = 128  # last queries of a sequence whose attention mass is measured
BATCH = {"cpu": 2**11, "cuda": 2**15}  # tokens a pass


@torch.no_grad()
def predict(
    model: KeyeVL, asked: Asked, selection: str, topk: int, seed: int = 0, mass: bool = False
) -> tuple[Tensor, Tensor, list[float]]:
    """Of the last `asked.last - 1` tokens: loss in nats [b t], whether each was the likeliest [b t]; share (0..1) of
    the dense attention mass that the selection keeps, a layer each ([] unless `mass`, and with "dense").

    selection: "dense", where topk is not used, or one of SELECTIONS with topk keys a query. seed: of the selection
    "random" alone. Raises ValueError for another selection, and as its rule does.
    """
    if selection != "dense" and selection not in SELECTIONS:
        raise ValueError(f"expected 'dense' or one of {', '.join(SELECTIONS)}; got {selection!r}")
    device = model.device
    mode = "dense" if selection == "dense" else "sparse" if device.type == "cuda" else "masked"
    batch = max(1, BATCH[device.type] // asked.ids.shape[1])
    losses, right, kept = [], [], []
    with selecting(model, SELECTIONS.get(selection), topk), autocast(device):
        torch.manual_seed(seed)  # of random keys
        for ids in asked.ids.split(batch):
            ids = ids.to(device)
            meter = RecallMeter(None, QUERIES) if mass and mode != "dense" else None
            logits = model({"input_ids": ids}, attention=mode, last=asked.last, observer=meter).logits[:, :-1]
            targets = ids[:, 1 - asked.last :]
            losses.append(torch.nn.functional.cross_entropy(logits.mT, targets, reduction="none").cpu())
            right.append((logits.argmax(dim=-1) == targets).cpu())
            if meter is not None:
                kept.append(torch.stack([layer.mean() for layer in meter.kept]).cpu() * len(ids))
    mean = (torch.stack(kept).sum(dim=0) / len(asked.ids)).tolist() if kept else []
    return torch.cat(losses), torch.cat(right), mean


def measure(model: KeyeVL, test: str, asked: Asked, selection: str, topk: int, seed: int = 0) -> dict[str, Any]:
    """The numbers of one test.

    All have n (sequences) and seconds_taken. "text", of `windows`: nll (nats a token), ppl, far_right (percent of the
    far_n tokens that a far passage tells; None where far_n is 0), kept (share in 0..1 by layer; [] for "dense").
    "needle" and "blind", of `needles`: right (percent with all digits), each (a string of a 1 or 0 a needle, at 5
    depths in turn), by_depth (percent; fewer than 5 numbers for fewer needles). "copy", of `copies`: right (percent of
    tokens). Raises ValueError for another test, for one asked of another's sequences (text needs `asked.far`, which the
    others do not have), else as `predict`.
    """
    if test not in ("text", "needle", "blind", "copy"):
        raise ValueError(f"expected text, needle, blind or copy, got {test!r}")
    if (test == "text") != (asked.far is not None):
        made = "with tokens marked as far, as windows() makes them" if test == "text" else "of needles() or copies()"
        raise ValueError(f"expected sequences {made}, for the test {test}, got others")
    begun = time.monotonic()
    loss, right, kept = predict(model, asked, selection, topk, seed, mass=test == "text")
    cut = lambda marks: marks[:, 1 - asked.last :]  # noqa: E731
    wanted, row = cut(asked.wanted), {"n": len(asked.ids)}
    if test == "text":
        far = cut(asked.far)
        nll = float(loss[wanted].double().mean())
        row |= {"nll": round(nll, 5), "ppl": round(math.exp(nll), 4), "far_n": int(far.sum())}
        row["far_right"] = round(100 * float(right[far].double().mean()), 3) if row["far_n"] else None
        row["kept"] = [round(share, 4) for share in kept]
    elif test == "copy":
        row["right"] = round(100 * float(right[wanted].double().mean()), 3)
    else:
        whole = (right | ~wanted).all(dim=1)
        row["right"], row["each"] = round(100 * float(whole.double().mean()), 3), "".join(str(int(w)) for w in whole)
        row["by_depth"] = [
            round(100 * float(whole[d::DEPTHS].double().mean()), 2) for d in range(min(DEPTHS, len(whole)))
        ]
    return row | {"seconds_taken": round(time.monotonic() - begun, 2)}
