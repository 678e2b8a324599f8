"""The forgetting probe: after every stage, all that was learnt before is asked again.

Documents of the test split: other pictures than any that were trained on. An answer is right if each of its tokens is
the most likely one after the true tokens before it, which is what greedy decoding would write.
"""

from collections import Counter

import torch
from torch import Tensor

from minikeye.config import KeyeConfig
from minikeye.inputs.prompt import pad
from minikeye.keye import KeyeVL
from minikeye.minivid.lessons import parts_right, pixels
from minikeye.minivid.scene import render, render_blank
from minikeye.model.step import Mode
from minikeye.training.pretrain.documents import SIDE, Documents, Kind, documents
from minikeye.training.step import autocast

SEED = 99  # of the probe's documents


def asked(kind: Kind, config: KeyeConfig, count: int) -> Documents:
    """The probe's documents of that kind."""
    return documents(kind, config, SEED, range(count), "test")


def chance(kind: Kind, config: KeyeConfig, count: int) -> float:
    """Share of the probe's questions that the most frequent answer is right for: who looks at nothing gets no more."""
    answers = [
        tuple(t for t, learnt in zip(p.ids, p.answer, strict=True) if learnt)
        for p in asked(kind, config, count).prompts
    ]
    return Counter(answers).most_common(1)[0][1] / count


@torch.no_grad()
def known(model: KeyeVL, kind: Kind, attention: Mode, count: int, blank: bool = False) -> float:
    """Share of exact answers to `count` questions of that kind. blank: grey frames, the control that must fail."""
    found = asked(kind, model.config, count)
    batch: dict[str, Tensor] = {n: t.to(model.device) for n, t in pad(found.prompts, "right").items()}
    del batch["attention_mask"]  # of padding on the right, which no token sees
    if found.videos is not None:
        draw = render_blank if blank else render
        batch |= pixels(draw(found.videos.spec, SIDE, SIDE, model.device).flatten(0, 1), model.config)
    never = model.config.image_token_id, model.config.video_token_id
    with autocast(model.device):
        logits = model(batch, attention=attention).logits
    return float(parts_right(logits, batch["input_ids"], batch["answer"], never)["exact"].float().mean())
