"""The whole model on a GPU with the kernels against the same model on a CPU without them: answers and teaching.

The shipped `mini` checkpoint in float32, on videos of the synthetic world. Every check raises AssertionError where it
fails.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from minikeye.files import CHECKPOINT
from minikeye.keye import KeyeVL
from minikeye.minivid.dataset import make_videos
from minikeye.minivid.lessons import Lesson, Size
from minikeye.minivid.lessons import question_prompts as ask
from minikeye.training.dsa import IndexerTeacher

FRAMES, VIDEOS = 256, 2


def questions(model: KeyeVL, answered: bool) -> Lesson:
    """Needle questions about VIDEOS videos of FRAMES frames."""
    size, videos = Size(FRAMES, VIDEOS), make_videos(11, range(VIDEOS), FRAMES, "test")
    asked = ask(videos, "N", size, model.config, answered=answered)
    return Lesson({name: asked[name] for name in asked if name != "frames"}, videos, size)


def share_in_both(a: Tensor, b: Tensor) -> float:
    """Of the keys that a [... k] lists (-1: none), the share that b [... k] lists too, wherever in its row."""
    in_b = (a[..., :, None] == b[..., None, :]).any(dim=-1)
    return float((in_b & (a >= 0)).sum() / (a >= 0).sum())


@torch.no_grad()
def model_agrees(devices: tuple[str, str] = ("cpu", "cuda")) -> Iterator[dict]:
    """Logits of the answers, sparse. Rounding decides between near ties of the selection: few keys may differ."""
    runs = []
    for device in devices:
        model = KeyeVL.from_pretrained(CHECKPOINT, dtype=torch.float32, device=device).eval()
        lesson = questions(model, answered=True)
        out = model(lesson.inputs(model.config, device), record=16)
        answer = lesson.tokens["answer"]
        runs.append((out.logits.cpu()[answer], torch.stack([layer.indices.cpu() for layer in out.record.layers])))
    (here, these), (there, those) = runs
    same = share_in_both(these, those)
    best = float((here.argmax(-1) == there.argmax(-1)).float().mean())
    gap = float((here - there).abs().max())
    assert best == 1.0 and same > 0.999 and gap < 0.05, (best, same, gap)
    yield {
        "what": "mini, float32, GPU with kernels against CPU", "frames": FRAMES, "largest logit difference": gap,
        "share of selected keys that both selected": same, "answer tokens equal": best,
    }  # fmt: skip


def teaching_agrees(devices: tuple[str, str] = ("cpu", "cuda")) -> Iterator[dict]:
    """Losses of both stages on drawn rows, and the gradients that they send into the indexers, as in training.

    A key that rounding selects differently moves a gradient more than rounding itself.
    """
    for mode in ("dense", "sparse"):
        runs: list[dict[str, Tensor]] = []
        for device in devices:
            model = KeyeVL.from_pretrained(CHECKPOINT, dtype=torch.float32, device=device)
            lesson = questions(model, answered=True)
            rows = torch.randint(
                0, lesson.tokens["input_ids"].shape[1], (64,), generator=torch.Generator().manual_seed(3)
            )
            teacher = IndexerTeacher(rows.to(device))
            model(lesson.inputs(model.config, device), attention=mode, observer=teacher)
            loss = teacher.indexer_loss()
            loss.backward()
            named = {n: p.grad.cpu() for n, p in model.named_parameters() if p.grad is not None}
            assert named and all("sa_indexer" in name for name in named)
            runs.append({"loss": loss.detach().cpu(), **named})
        here, there = runs
        assert here.keys() == there.keys()
        gaps = {n: float((here[n] - there[n]).norm() / here[n].norm()) for n in here}
        worst = max(gaps, key=gaps.get)
        assert gaps["loss"] < 1e-3 and gaps[worst] < 5e-2, (gaps["loss"], worst, gaps[worst])
        yield {
            "what": "teaching, GPU with kernels against CPU", "attention": mode, "loss": float(here["loss"]),
            "loss, relative difference": gaps["loss"], "worst gradient, relative difference": gaps[worst],
        }  # fmt: skip


def all_checks() -> Iterator[dict]:
    """One row a check that held."""
    yield from model_agrees()
    yield from teaching_agrees()
