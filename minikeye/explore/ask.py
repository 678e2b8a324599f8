"""One question about one real video: the answer, and which frames the model read to give it.

Optionally a card with a digit goes into one frame first (a needle), so that it is known where the answer lies.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minikeye.explore.frames import FrameSelection
from minikeye.files import CHECKPOINT, local_folder, whole_file
from minikeye.inputs.pixels import is_picture
from minikeye.inputs.processor import Clip, Processor
from minikeye.inputs.prompt import FrameSpan
from minikeye.inputs.sampling import VideoError
from minikeye.inputs.video import decode_video, plan_video
from minikeye.keye import KeyeVL
from minikeye.minivid import needle
from minikeye.minivid.tasks import Event, parse_needle, score
from minikeye.minivid.tasks import needle as needle_problem
from minikeye.model.record import Record
from minikeye.model.step import Mode

OnStep = Callable[[str, float, str], None]  # name of the step, its seconds, what it did


@dataclass(frozen=True, eq=False)
class Asked:
    """An answer and everything that shows how it came about."""

    answer: str
    clip: Clip  # the frames the model saw, card included, and their times
    frames: tuple[FrameSpan, ...]  # where each frame stands in the prompt
    record: Record  # one query per generated token
    selection: FrameSelection  # keys and attention per frame; its labels are the generated tokens
    truth: tuple[int, ...]  # numbers of the frames that hold the card; () without a card
    card: tuple[int, float] | None  # its digit, and the time of its frame in seconds
    seconds: Mapping[str, float]  # time that each step took: video, prefill, decode

    def verdict(self) -> str:
        """Whether the answer tells the card's digit and its second (to half a second), in words.

        Raises ValueError where no card was inserted.
        """
        if self.card is None:
            raise ValueError("no card was inserted, so there is nothing to compare the answer with")
        if parse_needle(self.answer) is None:
            return "the answer is not of the form '7 at 3.0 s'"
        digit, seconds = self.card
        frame = self.truth[0]
        parts = score(needle_problem(Event("card", str(digit), frame, frame + 1, seconds, seconds)), self.answer)
        if parts["both"]:
            return "the answer is right"
        wrong = [part for part in ("digit", "second") if not parts[part]]
        return f"the answer is wrong in the {' and the '.join(wrong)}"

    def save(self, folder: str | Path) -> Path:
        """Write selection.png and selection.json into `folder`; the picture's path.

        Both are written under other names first, so that an error leaves the old ones. They take their names when the
        old picture is gone: a kill may leave one file, but never numbers beside a picture of other numbers.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        picture, numbers = folder / "selection.png", folder / "selection.json"
        with whole_file(picture) as drawn, whole_file(numbers) as written:
            written.write_text(self.selection.to_json(), encoding="utf-8")
            self.selection.figure().savefig(drawn, format="png", metadata={"Software": None})
            picture.resolve().unlink(missing_ok=True)  # a link stays, as `whole_file` has it
        return picture


def ask(
    model: KeyeVL,
    processor: Processor,
    path: str | Path,
    question: str,
    *,
    insert_card: tuple[int, float | int] | None = None,
    card_seed: int = 0,
    max_new_tokens: int = 32,
    attention: Mode = "sparse",
    backend: str = "auto",
    on_step: OnStep | None = None,
    on_answer: Callable[[str], None] | None = None,
    thinking: bool = True,
    **sampling: Any,
) -> Asked:
    """Ask `question` about the video in `path`, and record what the query of each generated token selected.

    insert_card: (digit, seconds) of a card to put into the sampled frame nearest to that second; the earlier one of
    two that are equally near. card_seed: picks its handwriting, size, place and colours. attention: "dense" records
    what the indexer would have selected. on_step: called after each step. on_answer: gets the answer as soon as it is
    there, before what it read is counted. thinking: as `Processor` takes it. sampling: temperature, top_k, top_p and
    seed of `generate`; greedy by default. Raises ValueError (VideoError for the file and for a time outside it), and
    RuntimeError where the answer is empty, because then there is no query to show.
    """
    watch = _Stopwatch(on_step)
    clip, truth = read_clip(processor, path, insert_card, card_seed)
    height, width = clip.frames.shape[-2:]
    watch.lap("video", f"{len(clip.frames)} frames of {width}x{height} pixels, 0.0 to {clip.seconds[-1]:.1f} s")
    content = [{"type": "video", "video": clip}, {"type": "text", "text": question}]
    inputs = processor([{"role": "user", "content": content}], thinking).to(model.device)

    def on_token(_: Tensor) -> None:
        if "prefill" not in watch.seconds:
            watch.lap("prefill", f"{inputs['input_ids'].shape[1]} tokens read, {attention} attention")

    out = model.generate(
        inputs,
        max_new_tokens=max_new_tokens,
        stop_ids=processor.stop_ids,
        attention=attention,
        backend=backend,
        record=True,
        on_token=on_token,
        **sampling,
    )
    ids, decode = out.row(), processor.tokenizer.decode
    if out.record is None:
        raise RuntimeError("the model's answer is empty, so no query can be shown: ask another question")
    watch.lap("decode", f"{len(ids)} tokens written")
    answer = decode(ids)
    if on_answer is not None:
        on_answer(answer)
    selection = FrameSelection.from_record(
        out.record,
        inputs["frames"][0],
        thumbnails=clip.frames,
        truth=truth,
        labels=[decode([n], skip_special=False) for n in ids],
        subject="the card" if truth else "",
        question=question,
        answer=answer,
    )
    card = (insert_card[0], clip.seconds[truth[0]]) if insert_card is not None else None
    return Asked(answer, clip, tuple(inputs["frames"][0]), out.record, selection, truth, card, watch.seconds)


def model_and_processor(
    checkpoint: str | Path | None = None,
    model: KeyeVL | None = None,
    processor: Processor | None = None,
    device: str | torch.device | None = None,
) -> tuple[KeyeVL, Processor]:
    """The model to ask: `model` with its `processor` where they are given, else loaded from `checkpoint`.

    checkpoint: folder or hub id. None takes the checkpoint of the repository that this package stands in, as the
    command line does, wherever the caller's working directory is. device: where to load it, as `from_pretrained` takes
    it; None: the CPU. Raises ValueError for one of model and processor without the other or both beside a checkpoint or
    device, FileNotFoundError where there is no checkpoint.
    """
    if model is not None and processor is not None and checkpoint is None and device is None:
        return model, processor
    if model is not None or processor is not None:
        raise ValueError(
            "expected either model and processor together, or checkpoint: a folder or hub id, and with it device"
        )
    if checkpoint is None and not CHECKPOINT.is_dir():
        raise FileNotFoundError(
            f"no checkpoint in {CHECKPOINT}: it comes with the repository, not with the installed package. "
            "Name one: checkpoint=FOLDER"
        )
    folder = local_folder(checkpoint or CHECKPOINT)
    return KeyeVL.from_pretrained(folder, device=device).eval(), Processor(folder)


def read_clip(
    processor: Processor, path: str | Path, insert_card: tuple[int, float | int] | None = None, card_seed: int = 0
) -> tuple[Clip, tuple[int, ...]]:
    """The sampled frames of a video file, with a card where one is asked for, and the numbers of the card's frames.

    insert_card, card_seed: as in `ask`. Raises VideoError for a file that is no whole video, one too long for the model
    (before it is decoded) and a time outside it, ValueError for a digit outside 0..9.
    """
    if is_picture(path):
        raise VideoError(f"{path} is a picture and has no frames to choose from: give a video")
    plan = plan_video(path, processor.config.video, processor.config.token_pixels)
    processor.check_room(plan.sampling, plan.seconds, str(path))
    video = decode_video(plan)
    times = video.seconds.tolist()
    if insert_card is None:
        return Clip(video.frames, times, video.notes), ()
    digit, seconds = insert_card
    if not 0 <= seconds <= video.info.seconds:
        raise VideoError(
            f"the card must go between 0 and {video.info.seconds:.1f} s, where {path} ends; got {seconds} s"
        )
    nearest = min(range(len(times)), key=lambda n: abs(times[n] - seconds))
    return Clip(needle.insert_card(video.frames, nearest, digit, card_seed), times, video.notes), (nearest,)


class _Stopwatch:
    """Keeps the time of each step and tells it as it ends."""

    def __init__(self, on_step: OnStep | None):
        self.seconds: dict[str, float] = {}
        self._on_step, self._begun = on_step, time.perf_counter()

    def lap(self, step: str, what: str) -> None:
        now = time.perf_counter()
        self.seconds[step], self._begun = now - self._begun, now
        if self._on_step is not None:
            self._on_step(step, self.seconds[step], what)
