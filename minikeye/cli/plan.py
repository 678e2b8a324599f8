"""What the model will see of a video, worked out from the file's index before the minutes that decoding may take."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from minikeye.config import KeyeConfig
from minikeye.inputs.pixels import is_picture
from minikeye.inputs.processor import Clip, Processor
from minikeye.inputs.sampling import sample
from minikeye.inputs.video import VideoPlan, plan_video


def content(paths: Sequence[str]) -> list[dict[str, Any]]:
    """The parts of a message that show these files: pictures as images, all others as videos."""
    kinds = ["image" if is_picture(path) else "video" for path in paths]
    return [{"type": kind, kind: path} for kind, path in zip(kinds, paths, strict=True)]


def plans(paths: Sequence[str], config: KeyeConfig) -> list[VideoPlan]:
    """A plan for each video among the files. Raises VideoError for what is no whole video."""
    videos = [path for path in paths if not is_picture(path)]
    return [plan_video(path, config.video, config.token_pixels, len(videos)) for path in videos]


def planned_anew(plan: VideoPlan, config: KeyeConfig) -> VideoPlan:
    """The same video by the numbers of another config."""
    info, request = plan.info, {**plan.request, "config": config.video}
    sampling = sample(info.seconds, info.fps, info.frames, (info.width, info.height), **request)
    return replace(plan, request=request, sampling=sampling)


def blank(plan: VideoPlan) -> Clip:
    """A clip of as many frames, as large and at the same times, in the memory of one."""
    frames = torch.zeros(1, 3, plan.sampling.height, plan.sampling.width, dtype=torch.uint8)
    return Clip(frames.expand(len(plan.seconds), -1, -1, -1), plan.seconds)


def prompt_tokens(planned: Sequence[VideoPlan], pictures: Sequence[str], question: str, processor: Processor) -> int:
    """Tokens of a prompt that shows these and asks `question`."""
    parts = [{"type": "video", "video": blank(plan)} for plan in planned]
    parts += [{"type": "image", "image": path} for path in pictures]
    prompt, _ = processor.build([{"role": "user", "content": [*parts, {"type": "text", "text": question}]}])
    return len(prompt.ids)
