"""Which video frames the selected keys belong to: a record of key positions becomes counts per frame.

Axes: l recorded layer, t recorded query, f frame, k selected key.
Report, section 2.3: every query attends only to the keys that the lightning indexer selects.
"""

import base64
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from minikeye.explore.reads import check_record, chosen, dense_rows, from_text, rounded, sparse_row, to_text, whole
from minikeye.files import write_whole
from minikeye.inputs.prompt import FrameSpan
from minikeye.model.record import Record

FORMAT = "minikeye.frame_selection"
VERSION = 2
THUMBNAIL = 192  # pixels, longest side of a thumbnail


@dataclass(frozen=True, eq=False)
class FrameCounts:
    """How many of the keys that each query selected lie in each video frame. Every tensor is on the CPU.

    `frames.FrameSelection` is this with words and pictures.
    """

    counts: Int[Tensor, "l t f"]  # selected keys that are visual tokens of the frame
    keys: Int[Tensor, "l t"]  # selected keys in all, text included
    mass: Float[Tensor, "l t f"]  # share of the attention that goes to those keys, mean over heads
    kept: Float[Tensor, "l t"]  # share of the dense attention mass that the selection holds
    layers: tuple[int, ...]  # number of each recorded layer in the model
    seconds: tuple[float, ...]  # seconds, time of each frame in its video
    videos: tuple[int, ...]  # number of the video of each frame, from 0
    labels: tuple[str, ...] = ()  # text of the token that each query was about to produce; () where not known
    truth: tuple[int, ...] = ()  # numbers of the frames that hold the answer; () where not known
    subject: str = ""  # what those frames show, for the sentence: "the card"; "" says "the frame"
    thumbnails: UInt8[Tensor, "f 3 height width"] | None = None  # RGB, 0..255
    whole: Bool[Tensor, "l t"] | None = None  # the query selected every key that it sees; None: not known
    question: str = ""  # what the model was asked; "" where not known
    answer: str = ""  # what it said; "" where not known

    @classmethod
    def from_record(
        cls,
        record: Record,
        frames: list[FrameSpan],
        *,
        layers: Sequence[int] | None = None,
        queries: Sequence[int] | None = None,
        thumbnails: UInt8[Tensor, "f 3 height width"] | None = None,
        truth: Sequence[int] | None = None,
        labels: Sequence[str] | None = None,
        subject: str = "",
        question: str = "",
        answer: str = "",
        row: int = 0,
        length: int | None = None,
    ) -> "FrameCounts":
        """Count the selected keys of one batch row by frame.

        frames: the spans of that row, `inputs["frames"][row]`. layers, queries: numbers from 0 within the record, None
        takes all. labels: one per chosen query. thumbnails: the frames' pictures, kept at no more than 192 pixels a
        side. truth: numbers of the frames that hold the answer. length: tokens of the whole prompt, for queries that
        stand before its end; None: the prompt ends with the record.
        Raises ValueError where the record has no layers or no such row, layer or query, where there are no frames or
        they are not those of the recorded prompt, and where labels, truth or thumbnails do not fit.
        """
        check_record(record, row)
        total = record.queries
        layers = chosen(layers, len(record.layers), "layers")
        queries = chosen(queries, total, "queries")
        _check_frames(frames, record.first + total if length is None else length)
        if thumbnails is not None and len(thumbnails) != len(frames):
            raise ValueError(f"expected one thumbnail for each of {len(frames)} frames, got {len(thumbnails)}")
        picked = [record.layers[n] for n in layers]
        indices = [r.indices[row, queries].cpu().long() for r in picked]  # k may differ between layers
        weights = [r.weights[row, queries].cpu().float() for r in picked]
        places = record.first + torch.tensor(queries)
        return cls(
            counts=torch.stack([_per_frame((at >= 0).int(), at, frames) for at in indices]),
            keys=torch.stack([(at >= 0).sum(dim=-1, dtype=torch.int32) for at in indices]),
            mass=torch.stack([_per_frame(w, at, frames) for w, at in zip(weights, indices, strict=True)]),
            kept=torch.stack([r.kept[row, queries].cpu().float() for r in picked]),
            layers=tuple(layers),
            seconds=tuple(float(f.seconds) for f in frames),
            videos=tuple(f.video for f in frames),
            labels=tuple(labels or ()),
            truth=tuple(sorted(set(truth or ()))),
            subject=subject,
            thumbnails=None if thumbnails is None else shrink(thumbnails.cpu()),
            whole=torch.stack([whole(at, places) for at in indices]),
            question=question,
            answer=answer,
        )

    def __post_init__(self) -> None:
        f, t = len(self.seconds), self.counts.shape[1]
        if self.labels and len(self.labels) != t:
            raise ValueError(f"expected one label for each of {t} queries, got {len(self.labels)}")
        if any(not 0 <= n < f for n in self.truth):
            raise ValueError(f"expected truth to be frame numbers from 0 to {f - 1}, got {list(self.truth)}")

    @property
    def shares(self) -> Float[Tensor, "l t f"]:
        """Share of each query's selected keys that lie in each frame. A query without keys gives zeros."""
        return self.counts / self.keys.clamp(min=1)[..., None]

    @property
    def reads_all(self) -> bool:
        """Whether every query selected every key that it sees, as in prompts of at most k tokens."""
        return self.whole is not None and bool(self.whole.all())

    @property
    def shown(self) -> Float[Tensor, "l t f"]:
        """What tables and pictures go by: shares of the keys, or of the attention where every key is read, because
        then frames of one size have equal shares of the keys whatever the model does."""
        return self.mass if self.reads_all else self.shares

    @property
    def text_share(self) -> Float[Tensor, "l t"]:
        """Share of each query's selected keys that lie in no frame: text, marks, still images."""
        return (self.keys - self.counts.sum(dim=-1)) / self.keys.clamp(min=1)

    def hit_rate(self) -> Float[Tensor, " l"]:
        """Share of the queries whose selection contains a key of a truth frame. Raises ValueError without truth."""
        if not self.truth:
            raise ValueError("expected to know which frames hold the answer: pass truth=[...] to from_record")
        return (self.counts[:, :, list(self.truth)] > 0).any(dim=-1).float().mean(dim=-1)

    def to_json(self, thumbnails: bool = False) -> str:
        """Versioned JSON. Counts, times and thumbnails come back exactly; mass and kept to 6 decimals.

        thumbnails: keep the pictures too, which take a hundred times as much as all numbers. "reads" holds, per layer
        and query, three lists of equal length: frames with any key, keys, attention mass.
        """
        l, t = self.keys.shape  # noqa: E741 - the axis letter
        document = {
            "format": FORMAT,
            "version": VERSION,
            "layers": self.layers,
            "seconds": self.seconds,
            "videos": self.videos,
            "labels": self.labels,
            "truth": self.truth,
            "subject": self.subject,
            "question": self.question,
            "answer": self.answer,
            "keys": self.keys.tolist(),
            "kept": rounded(self.kept.tolist()),
            "whole": None if self.whole is None else self.whole.tolist(),
            "reads": [[sparse_row(self.counts[n, q], self.mass[n, q]) for q in range(t)] for n in range(l)],
            "thumbnails": [_png(z) for z in self.thumbnails] if thumbnails and self.thumbnails is not None else None,
        }
        return to_text(document)

    @classmethod
    def from_json(cls, text: str) -> "FrameCounts":
        """Read what `to_json` wrote. text: the JSON, not a path: `Path(path).read_text(encoding="utf-8")`.

        Raises ValueError for anything else, or for another version of the format.
        """
        document = from_text(text, (FORMAT, VERSION), "FrameSelection.to_json")
        counts, mass = dense_rows(document["reads"], len(document["seconds"]))
        pictures, full = document["thumbnails"], document["whole"]
        return cls(
            counts=counts,
            keys=torch.tensor(document["keys"], dtype=torch.int32),
            mass=mass,
            kept=torch.tensor(document["kept"], dtype=torch.float32),
            whole=None if full is None else torch.tensor(full, dtype=torch.bool),
            thumbnails=None if pictures is None else torch.stack([_picture(png) for png in pictures]),
            **{name: document[name] for name in ("subject", "question", "answer")},
            **{name: tuple(document[name]) for name in ("layers", "seconds", "videos", "labels", "truth")},
        )

    def to_csv(self) -> str:
        """One line per layer, query and frame, frames without a key too. Shares are of 1; token: the query's number."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        lines.writerow(["layer", "token", "text", "frame", "video", "seconds", "keys", "of_keys", "attention", "truth"])
        for l, t, f in np.ndindex(*self.counts.shape):  # noqa: E741 - the axis letter
            label = self.labels[t] if self.labels else ""
            keys = int(self.counts[l, t, f]), int(self.keys[l, t]), round(self.mass[l, t, f].item(), 6)
            place = f, self.videos[f], round(self.seconds[f], 6)
            lines.writerow([self.layers[l], t, label, *place, *keys, int(f in self.truth)])
        return text.getvalue()

    def save(self, path: str | Path, thumbnails: bool = False) -> None:
        """Write the JSON whole or not at all. thumbnails: as `to_json` takes it."""
        write_whole(path, self.to_json(thumbnails).encode())


def _per_frame(values: Tensor, at: Int[Tensor, "t k"], frames: list[FrameSpan]) -> Tensor:
    """Sum `values` [t k] of the keys at positions `at` by frame -> [t f]. Padding and text fall into a spare column."""
    starts, stops = torch.tensor([span.start for span in frames]), torch.tensor([span.stop for span in frames])
    last = torch.searchsorted(starts, at, right=True) - 1  # the last frame that starts at the key or before; -1: none
    column = torch.where((last >= 0) & (at < stops[last]), last, len(frames))
    return torch.zeros(len(at), len(frames) + 1, dtype=values.dtype).scatter_add_(-1, column, values)[:, : len(frames)]


def _check_frames(frames: list[FrameSpan], end: int) -> None:
    """Raise ValueError unless `frames` are spans in order that end before token `end`, where the record ends."""
    if not frames:
        raise ValueError("expected at least one video frame, got none: this row's prompt has no video")
    edges = [edge for span in frames for edge in (span.start, span.stop)]
    if edges != sorted(edges) or edges[0] < 0:
        raise ValueError(f"expected frame spans in the order of the prompt without overlap, got {frames}")
    if edges[-1] > end:
        raise ValueError(
            f"expected the frames of the recorded prompt, which ends at token {end}, got frames up to {edges[-1]}: "
            "pass the frames of the same inputs and row"
        )


def shrink(pictures: UInt8[Tensor, "f 3 height width"]) -> UInt8[Tensor, "f 3 smaller_height smaller_width"]:
    """Pictures with a longest side of at most THUMBNAIL pixels; smaller ones as they are."""
    scale = THUMBNAIL / max(pictures.shape[-2:])
    if scale >= 1:
        return pictures
    size = [max(1, round(side * scale)) for side in pictures.shape[-2:]]
    resize = lambda z: F.interpolate(z[None].float(), size, mode="bilinear", antialias=True)[0]  # noqa: E731
    return torch.stack([resize(z).round().clamp(0, 255).byte() for z in pictures])  # one by one: videos can be long


def _png(picture: UInt8[Tensor, "3 height width"]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(buffer, "png")
    return base64.b64encode(buffer.getvalue()).decode("ascii")


def _picture(png: str) -> UInt8[Tensor, "3 height width"]:
    with Image.open(io.BytesIO(base64.b64decode(png))) as image:
        return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)
