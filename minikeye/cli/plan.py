"""What the model will see of a video, worked out from the file's index before the minutes that decoding may take."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from minikeye.config import KeyeConfig
from minikeye.inputs.pixels import is_picture
from minikeye.inputs.processor import Clip, Processor
from minikeye.inputs.sampling import Sampling, sample
from minikeye.inputs.video import VideoInfo, probe


@dataclass(frozen=True)
class Plan:
    """One video as the model will see it."""

    path: str
    info: VideoInfo
    sampling: Sampling

    @classmethod
    def of(cls, path: str, info: VideoInfo, config: KeyeConfig, videos: int) -> "Plan":
        """By the rules that `read_video` samples by. videos: how many share the budget."""
        size, rules = (info.width, info.height), (config.video, config.token_pixels, videos)
        return cls(path, info, sample(info.seconds, info.fps, info.frames, size, *rules))

    @property
    def frames(self) -> int:
        """How many are sampled."""
        return len(self.sampling.indices)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of each in pixels."""
        return self.sampling.width, self.sampling.height

    def blank(self) -> Clip:
        """A clip of as many frames of this size, near their times, in the memory of one."""
        width, height = self.size
        frames = torch.zeros(1, 3, height, width, dtype=torch.uint8).expand(self.frames, -1, -1, -1)
        return Clip(frames, [n / self.info.fps for n in self.sampling.indices])


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
