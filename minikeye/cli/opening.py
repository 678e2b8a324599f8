"""A checkpoint as the command line opens it: found, counted against the memory that is free, and only then loaded."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from minikeye.checkpoint.loader import choose_devices, default_dtype
from minikeye.checkpoint.taught import taught
from minikeye.checkpoint.tensors import tensor_files
from minikeye.cli.plan import planned_anew, plans, prompt_tokens
from minikeye.config import KeyeConfig
from minikeye.cost.memory import MemoryBill, format_table, free_bytes, needs, require
from minikeye.files import CHECKPOINT, local_folder
from minikeye.inputs.pixels import is_picture
from minikeye.inputs.processor import Processor
from minikeye.inputs.video import VideoPlan
from minikeye.keye import KeyeVL

FRAME_TEXT = 10  # tokens beside a frame's visual ones, at most: its mark and the characters of its time


@dataclass(frozen=True)
class Opened:
    """A checkpoint's folder and processor, and where the model will be."""

    arguments: argparse.Namespace
    files: tuple[str, ...]  # videos and pictures
    folder: Path
    processor: Processor  # with the config as limited by --max-context
    devices: tuple[str, ...]  # several: the layers are split over them

    @classmethod
    def of(cls, arguments: argparse.Namespace, videos: Sequence[str]) -> "Opened":
        """Raises FileNotFoundError for a video or checkpoint that is not there, ValueError for a device that is not."""
        for video in videos:  # before the seconds that loading takes
            if not Path(video).is_file():
                raise FileNotFoundError(f"no video file {video}")
        if arguments.checkpoint is None and not CHECKPOINT.is_dir():
            raise FileNotFoundError(
                f"no checkpoint in {CHECKPOINT}: it comes with the repository, not with the installed package. "
                "Name one: --checkpoint FOLDER"
            )
        if (top_p := arguments.top_p) is not None and not 0 < top_p <= 1:
            raise ValueError(f"--top-p must lie above 0 and up to 1, got {top_p}")
        folder = local_folder(arguments.checkpoint or CHECKPOINT)
        processor = Processor(folder)
        if arguments.max_context is not None:
            processor.config = limited(processor.config, arguments.max_context, arguments.max_new_tokens)
        return cls(arguments, tuple(videos), folder, processor, choose_devices(arguments.device, arguments.streaming))

    def foresee(self, question: str = "") -> list[VideoPlan]:
        """How each video will be seen, from its index alone; what is lost by it is told on stderr.

        With --max-context, the videos get fewer frames until prompt and answer fit. Raises ValueError where they do
        not, with the flag that helps, and VideoError for what is no whole video.
        """
        pictures = [path for path in self.files if is_picture(path)]
        most, config = self.processor.config.text.max_positions, self.processor.config
        planned = plans(self.files, config)
        tokens = prompt_tokens(planned, pictures, question, self.processor) if self.files else 0
        over = tokens + self.arguments.max_new_tokens - 1 - most
        while over > 0 and self.arguments.max_context is not None and sum(len(plan.seconds) for plan in planned) > 1:
            fewer = int(config.video.video_tokens * min(0.98, 1 - over / tokens))
            if fewer < config.video.min_frame_tokens * len(planned):
                break
            config = replace(config, video=replace(config.video, video_tokens=fewer))
            planned = [planned_anew(plan, config) for plan in planned]
            tokens = prompt_tokens(planned, pictures, question, self.processor)
            over = tokens + self.arguments.max_new_tokens - 1 - most
        self.processor.config = config
        if over > 0 and planned:
            raise ValueError(f"{too_long(planned, tokens, self.arguments.max_new_tokens, most)}: {self._remedy(most)}")
        for plan in planned:
            remark_notes(plan.sampling.notes, [], f"{plan.path}: ")
        return planned

    def _remedy(self, most: int) -> str:
        if self.arguments.max_context is None:
            return f"--max-context {most} shows fewer frames"
        return "raise --max-context, lower --max-new-tokens, or ask a shorter question"

    def load(self, inputs: Mapping[str, Any] | None = None) -> KeyeVL:
        """The model, after telling on stderr what it takes. inputs: of a prompt, where it is known.

        Raises NotEnoughMemory before anything is read: for prompt and answer where the prompt is known, else for the
        weights alone, because the bill is for the longest prompt.
        """
        bill, free = self.bill(inputs), sum(map(free_bytes, self.devices))
        where = " + ".join(self.devices)
        rest = "" if inputs is not None or self.arguments.max_context is not None else "; --max-context N lowers it"
        remark("memory", f"{bill.format_line()}{rest}")
        if 10 * bill.total > free:
            print(format_table({where: (bill, free)}), file=sys.stderr)
        require(bill, free, where, ("weights",) if inputs is None else ("weights", "cache", "activations"))
        options = {"dtype": self.dtype(), "device": self.arguments.device, "streaming": self.arguments.streaming}
        model = KeyeVL.from_pretrained(self.folder, **options)
        model.config = self.processor.config
        if known := taught(self.folder):
            remark("taught", known)
        return model

    def bill(self, inputs: Mapping[str, Any] | None = None) -> MemoryBill:
        """For the prompt and its longest answer, else for as many tokens as the model takes."""
        config = self.processor.config
        options = {"dtype": self.dtype(), "streaming": self.arguments.streaming, "device": self.devices[0]}
        if inputs is None:
            return needs(config, context=config.text.max_positions, **options)
        ids = inputs["input_ids"]
        visual = int(((ids == config.image_token_id) | (ids == config.video_token_id)).sum())
        return needs(config, context=ids.shape[1] + self.arguments.max_new_tokens, visual=visual, **options)

    def dtype(self) -> torch.dtype:
        """Of the weights in memory: as asked for, else as `checkpoint.load` has it."""
        if self.arguments.dtype is not None:
            return getattr(torch, self.arguments.dtype)
        return default_dtype(self.folder, tensor_files(self.folder), self.devices)

    def given(self) -> dict[str, Any]:
        """How to sample and whether to think, as far as the arguments say so."""
        names = ("temperature", "top_k", "top_p", "seed", "thinking")
        return {name: value for name in names if (value := getattr(self.arguments, name)) is not None}

    def thinking(self) -> dict[str, bool]:
        return {name: value for name, value in self.given().items() if name == "thinking"}

    def sampling(self) -> dict[str, Any]:
        """How to sample: as the arguments say, else as the checkpoint's generation_config.json does."""
        own = self.processor.generation
        defaults = {"temperature": own.temperature, "top_k": own.top_k, "top_p": own.top_p}
        return defaults | {name: value for name, value in self.given().items() if name != "thinking"}


def too_long(planned: Sequence[VideoPlan], tokens: int, answer: int, most: int) -> str:
    """What a prompt would hold, against the context."""
    seen = " and ".join(
        f"{plan.path} ({plan.info.seconds:,.0f} s): {len(plan.seconds):,} frames of {plan.sampling.width}x"
        f"{plan.sampling.height} pixels"
        for plan in planned
    )
    return f"{seen} make a prompt of {tokens:,} tokens; with {answer} of answer that exceeds the context of {most:,}"


def remark(what: str, text: str) -> None:
    """A line on stderr: what is worth knowing beside the answer."""
    print(f"{what:<8} {text}", file=sys.stderr, flush=True)


def remark_notes(notes: Sequence[str], planned: Sequence[VideoPlan], whose: str = "") -> None:
    """What a reading of the videos says of them, without what their plans said already."""
    for note in notes:
        if not any(note in plan.sampling.notes for plan in planned):
            remark("video", f"{whose}{note}")


def limited(config: KeyeConfig, context: int, answer: int) -> KeyeConfig:
    """The same model with a shorter context, and a video budget that leaves room in it for text and an answer.

    The budget counts on the smallest frames, which have most text beside them (our choice). Raises ValueError where
    there is no room for one frame, or the model has no such context.
    """
    frame, room = config.video.min_frame_tokens, context - answer - 256  # 256: question and marks
    frames = room // (frame + FRAME_TEXT)
    if frames < 1 or context > config.text.max_positions:
        least = frame + FRAME_TEXT + answer + 256
        raise ValueError(
            f"--max-context must lie in {least}..{config.text.max_positions}, got {context}: the least is one frame, "
            f"{answer} tokens of answer and 256 of question"
        )
    budget = min(config.video.video_tokens, frames * frame)
    video = replace(config.video, video_tokens=budget)
    return replace(config, text=replace(config.text, max_positions=context), video=video)
