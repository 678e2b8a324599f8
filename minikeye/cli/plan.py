"""What the model will see of a video, worked out from the file's index before the minutes that decoding may take."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from minikeye.config import KeyeConfig
from minikeye.inputs.pixels import is_picture
from minikeye.inputs.processor import Clip, Processor
from minikeye.inputs.sampling import fit_size, frame_count, frame_indices, smart_resize, video_budget
from minikeye.inputs.video import VideoInfo, probe


@dataclass(frozen=True)
class Plan:
    """One video as the model will see it."""

    path: str
    info: VideoInfo
    frames: int  # that are sampled
    asked: int  # frames at the config's rate, if the token budget were no limit
    size: tuple[int, int]  # pixels, width and height of each
    largest: tuple[int, int]  # the same, if the token budget were no limit

    @classmethod
    def of(cls, path: str, info: VideoInfo, config: KeyeConfig, videos: int) -> "Plan":
        """By the rules that `read_video` samples by. videos: how many share the budget."""
        video, side, native = config.video, config.token_pixels, (info.width, info.height)
        count = frame_count(info.seconds, info.fps, info.frames, video, videos=videos)
        free = replace(video, video_tokens=info.frames * video.max_frame_tokens * videos, adaptive="off")
        return cls(
            path,
            info,
            count,
            frame_count(info.seconds, info.fps, info.frames, free, videos=videos),
            fit_size(*native, count, video_budget(info.seconds, video, videos), video, side),
            smart_resize(*native, video.min_frame_tokens, video.max_frame_tokens, side),
        )

    def blank(self) -> Clip:
        """A clip of as many frames of this size, near their times, in the memory of one."""
        width, height = self.size
        frames = torch.zeros(1, 3, height, width, dtype=torch.uint8).expand(self.frames, -1, -1, -1)
        return Clip(frames, [n / self.info.fps for n in frame_indices(self.info.frames, self.frames)])

    def losses(self) -> str:
        """In what the token budget makes the video sparser or smaller than asked; "" where in nothing."""
        sparser, smaller = self.frames < self.asked, math.prod(self.size) < math.prod(self.largest)
        seen = [f"{self.frames:,} of the {self.asked:,} frames that its length asks for"] * sparser
        seen += ["{}x{} instead of {}x{} pixels".format(*self.size, *self.largest)] * smaller
        return " and ".join(seen)


def content(paths: Sequence[str]) -> list[dict[str, Any]]:
    """The parts of a message that show these files: pictures as images, all others as videos."""
    kinds = ["image" if is_picture(path) else "video" for path in paths]
    return [{"type": kind, kind: path} for kind, path in zip(kinds, paths, strict=True)]


def plans(paths: Sequence[str], config: KeyeConfig) -> list[Plan]:
    """A plan for each video among the files. Raises VideoError for what is no whole video."""
    videos = [path for path in paths if not is_picture(path)]
    return [Plan.of(path, probe(path), config, len(videos)) for path in videos]


def prompt_tokens(planned: Sequence[Plan], pictures: Sequence[str], question: str, processor: Processor) -> int:
    """Tokens of the prompt, up to the digits of its times."""
    parts = [{"type": "video", "video": plan.blank()} for plan in planned]
    parts += [{"type": "image", "image": path} for path in pictures]
    prompt, _ = processor.build([{"role": "user", "content": [*parts, {"type": "text", "text": question}]}])
    return len(prompt.ids)
