"""Messages with text, images and videos -> everything the model reads.

    processor = Processor(config_or_folder_or_hub_id)
    inputs = processor([{"role": "user", "content": [{"type": "video", "video": "clip.mp4"},
                                                     {"type": "text", "text": "What happens?"}]}])

Report, section 2.2, and the released processor: every sampled frame is an image of its own, its time stands before it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from minikeye.config import KeyeConfig
from minikeye.files import local_folder
from minikeye.inputs.pixels import patchify, picture, resize
from minikeye.inputs.prompt import FrameSpan, Prompt, Turn, Visual, chatml, pad
from minikeye.inputs.sampling import Sampling, VideoError, image_size, sample
from minikeye.inputs.settings import default_generation, read_folder, require_tower
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.inputs.video import VideoPlan, decode_video, plan_video

Message = Mapping[str, Any]


class Inputs(dict[str, Any]):
    """What the model reads, by name: input_ids, positions, attention_mask, frames; for pixels patches and grids."""

    notes: tuple[str, ...] = ()  # sentences for the user about its videos: `Video.notes`

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "Inputs":
        """The same with every tensor on `device`: `processor(messages).to(model.device)`."""
        move = lambda x: x.to(device, non_blocking=non_blocking) if isinstance(x, Tensor) else x  # noqa: E731
        moved = Inputs({name: move(value) for name, value in self.items()})
        moved.notes = self.notes
        return moved


@dataclass(frozen=True)
class Clip:
    """Frames in memory, already sampled and sized: pass one where a message takes a video to skip both."""

    frames: UInt8[Tensor, "f 3 height width"]  # RGB, sides multiples of one visual token
    seconds: list[float]  # time of each frame
    notes: tuple[str, ...] = ()  # sentences for the user: `Video.notes`


class Processor:
    """Turns conversations into model inputs. Holds what `settings.read_folder` found in the folder, no state.

    A config alone gives the byte tokenizer, ChatML and greedy answers. `unused` lists the keys that nobody reads;
    `folder` is where it was read from, None for a config.
    """

    def __init__(self, source: KeyeConfig | str | Path):
        if isinstance(source, KeyeConfig):
            require_tower(source)
            self.config, self.tokenizer = source, load_tokenizer(source)
            self.template, self.generation, self.unused = None, default_generation(self.tokenizer), []
            self.folder = None
            return
        self.folder = local_folder(source, weights=False)
        released = read_folder(self.folder)
        self.config, self.tokenizer, self.template = released.config, released.tokenizer, released.template
        self.generation, self.unused = released.generation, released.unused

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """Tokens that end an answer: pass them to `generate`."""
        return self.generation.stop_ids

    def __call__(self, messages: Sequence[Message], thinking: bool = True) -> Inputs:
        """Inputs of one conversation, ending where the assistant is to speak.

        messages: {"role", "content"}, content a string or a list of {"type": "text", "text"}, {"type": "image",
        "image": path, PIL image, uint8 array [height width 3] or what `image` gave} and {"type": "video", "video":
        path, uint8 array [f height width 3] or Clip; "fps": for a file the rate to sample at, for an array its own
        rate; optional "max_frames"}; a Clip is taken whole. thinking: False asks for an answer without a thought first.
        Returns input_ids [1 t], positions [3 1 t], attention_mask [1 t], frames [[FrameSpan, ...]], and with pixels
        patches [p 3 s s] and grids [n 3]. Raises ValueError (VideoError for videos), naming what is wrong.
        """
        return self.batch([messages], thinking)

    def batch(self, conversations: Sequence[Sequence[Message]], thinking: bool = True) -> Inputs:
        """Inputs of several conversations, each as in a call, padded on the left; `frames` has one list per row."""
        if not conversations:
            raise ValueError("expected at least one conversation, got none")
        prompts, pixels = zip(*(self.build(messages, thinking) for messages in conversations), strict=True)
        inputs = Inputs(pad(list(prompts), "left"))
        inputs.notes = tuple(note for prompt in prompts for note in prompt.notes)
        inputs.pop("answer")
        longest = inputs["input_ids"].shape[1]
        inputs["frames"] = [_moved(prompt.frames, longest - len(prompt.ids)) for prompt in prompts]
        if frames := [f for group in pixels for f in group]:
            size = self.config.vision.patch_size
            inputs["patches"] = torch.cat([patchify(f, size) for f in frames])
            inputs["grids"] = torch.tensor([grid for prompt in prompts for grid in prompt.grids])
        return inputs

    @property
    def announces_tools(self) -> bool:
        """Whether the checkpoint's template has words of its own for tools; else a system's words must name them."""
        return self.template is not None and self.template.takes_tools

    def build(
        self, messages: Sequence[Message], thinking: bool = True, tools: Sequence[Mapping[str, Any]] = ()
    ) -> tuple[Prompt, list[UInt8[Tensor, "f 3 height width"]]]:
        """The prompt of one conversation, and its frames and images at the size the model reads, in order.

        tools: schemas for the template to show. Raises ValueError for them unless it `announces_tools`.
        """
        if isinstance(messages, str | Mapping):
            raise ValueError(
                f"expected a list of messages, got {messages!r:.100}: one is {{'role': 'user', 'content': ...}}; "
                f"several conversations go to `batch`"
            )
        parts = [(_role(message), _content(message)) for message in messages]
        if not parts:
            raise ValueError("expected at least one message, got an empty conversation")
        videos = sum(part["type"] == "video" for _, content in parts for part in content)
        pixels: list[Tensor] = []
        notes: list[str] = []
        conversation: list[Turn] = [
            (role, [self._read(part, videos, pixels, notes) for part in content]) for role, content in parts
        ]
        prompt = Prompt(self.tokenizer, self.config.vision.merge, notes=notes)
        if tools and not self.announces_tools:
            raise ValueError("expected no tools, for which this checkpoint has no words: name them in a system message")
        if self.template is None:
            chatml(prompt, conversation, thinking)
        else:
            self.template.write(prompt, conversation, thinking, tools)
        return prompt, pixels

    def _read(self, part: Mapping[str, Any], videos: int, pixels: list[Tensor], notes: list[str]) -> str | Visual:
        """A part of a message as the prompt takes it; its frames are appended to `pixels`, what to say to `notes`."""
        if part["type"] == "text":
            return part["text"]
        if part["type"] == "image":
            frames, seconds = self.image(part["image"]), None
        else:
            clip = self.clip(part, videos)
            frames, seconds = clip.frames, list(clip.seconds)
            notes += clip.notes
        pixels.append(frames)
        return Visual(self.grid(frames), seconds)

    def grid(self, frames: UInt8[Tensor, "f 3 height width"]) -> tuple[int, int, int]:
        """(1, rows, columns) in patches. Raises ValueError for sides that are not multiples of one visual token."""
        side, (height, width) = self.config.token_pixels, frames.shape[-2:]
        if height % side or width % side or not len(frames):
            raise ValueError(
                f"expected frames with sides multiples of {side} pixels, got {len(frames)} of {width}x{height}"
            )
        return 1, height // self.config.vision.patch_size, width // self.config.vision.patch_size

    def image(self, source: Any) -> UInt8[Tensor, "1 3 height width"]:
        """An image at the size the model reads: sides near the original's, in whole visual tokens.

        A file or PIL image is read by `pixels.picture`. A tensor is what this function gave before, and stays as it is.
        """
        if isinstance(source, Tensor):
            return source
        array = picture(source) if isinstance(source, str | Path | Image.Image) else np.asarray(source)
        frames = _channels_first(array[None], "an image", "[height width 3]")
        width, height = image_size(frames.shape[3], frames.shape[2], self.config.video, self.config.token_pixels)
        return resize(frames, height, width)

    def clip(self, part: Mapping[str, Any], videos: int = 1) -> Clip:
        """The sampled frames of one video of a message; `videos` of them share the budget.

        Raises VideoError, before anything is decoded, for a video that does not fit the model's context.
        """
        source, config, side = part["video"], self.config.video, self.config.token_pixels
        if isinstance(source, Clip):
            if len(source.seconds) != len(source.frames):
                raise ValueError(f"a Clip needs one time per frame, got {len(source.seconds)} for {len(source.frames)}")
            return source
        limits = {"fps": part.get("fps"), "max_frames": part.get("max_frames")}
        if isinstance(source, str | Path):
            plan = plan_video(source, config, side, videos, **limits)
            self.check_room(plan.sampling, plan.seconds, str(source))
            return decoded(plan)
        frames, rate = _channels_first(np.asarray(source), "a video", "[f height width 3]"), part.get("fps")
        if not rate or not rate > 0:
            raise VideoError(
                f"frames in memory need their rate: add 'fps' (frames per second) to the message, got {rate!r}"
            )
        size, total = (frames.shape[3], frames.shape[2]), len(frames)
        plan = sample(total / rate, rate, total, size, config, side, videos, max_frames=part.get("max_frames"))
        seconds = [n / rate for n in plan.indices]
        self.check_room(plan, seconds, "the video")
        return Clip(resize(frames[list(plan.indices)], plan.height, plan.width), seconds, plan.notes)

    def check_room(self, sampling: Sampling, seconds: list[float], name: str) -> None:
        """Raise VideoError where the tokens of a video's frames and times exceed the context: before it is decoded."""
        words = sum(len(self.tokenizer.encode(format(time, ".1f"))) + 1 for time in seconds)
        tokens, context = len(seconds) * sampling.frame_tokens + words, self.config.text.max_positions
        if tokens >= context:
            raise VideoError(
                f"{name} takes {tokens:,} tokens ({len(seconds):,} frames of {sampling.frame_tokens} and their times), "
                f"the context holds {context:,}: lower fps or set max_frames in the message; on the command line, "
                f"--max-context {context} plans fewer frames"
            )


def decoded(plan: VideoPlan) -> Clip:
    """The frames of a planned video. Raises VideoError where one cannot be decoded."""
    video = decode_video(plan)
    return Clip(video.frames, video.seconds.tolist(), video.notes)


def _moved(spans: list[FrameSpan], by: int) -> list[FrameSpan]:
    """Spans of a prompt as they lie behind `by` tokens of padding."""
    return [replace(span, start=span.start + by, stop=span.stop + by) for span in spans]


def _channels_first(array: np.ndarray, what: str, shape: str) -> UInt8[Tensor, "f 3 height width"]:
    if array.ndim != 4 or array.shape[-1] != 3 or array.dtype != np.uint8 or 0 in array.shape:
        raise VideoError(f"{what} in memory must be a uint8 array {shape}, got {array.dtype} {list(array.shape)}")
    return torch.from_numpy(np.ascontiguousarray(array)).permute(0, 3, 1, 2)


def _role(message: Message) -> str:
    if not isinstance(message, Mapping) or message.get("role") not in ("system", "user", "assistant"):
        raise ValueError(
            f"a message is {{'role': 'system' | 'user' | 'assistant', 'content': ...}}, got {message!r:.200}"
        )
    return message["role"]


def _content(message: Message) -> list[Mapping[str, Any]]:
    content = message.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for part in parts if isinstance(parts, list) else [None]:
        kind = part.get("type") if isinstance(part, Mapping) else None
        if (
            kind not in ("text", "image", "video")
            or kind not in part
            or (kind == "text" and not isinstance(part[kind], str))
        ):
            raise ValueError(
                "content is a string or a list of {'type': 'text', 'text': str}, {'type': 'image', 'image': ...}, "
                f"{{'type': 'video', 'video': ...}}; got {part if isinstance(parts, list) else content!r:.200}"
            )
    return parts
