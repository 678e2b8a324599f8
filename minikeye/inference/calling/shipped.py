"""The tools that come with minikeye: looking again at a part of a video, and running Python.

with shipped(["look", "python"], processor, "clip.mp4") as tools:
    Chat(model, processor, tools=tools)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from minikeye.inference.calling.sandbox import Sandbox
from minikeye.inputs.processor import Clip, Processor, decoded
from minikeye.inputs.sampling import VideoError, sample
from minikeye.inputs.video import VideoPlan, plan_span, plan_video

NAMES = ("look", "python")
FINER = 4  # times the frames a second of the first view, at most; our choice, like the next three
AT_LEAST = 2  # times, where the file has them
FRAMES = 32  # that one look shows, at most
SHARE = 4  # of the context: one look takes a quarter of it, at most


@contextmanager
def shipped(names: Sequence[str], processor: Processor, *videos: str | Path) -> Iterator[list[Callable[..., Any]]]:
    """The tools of these names, for as long as the block lasts: with its end, the sandbox ends.

    videos: what `look` is to see, one video. Raises ValueError for other names, and for `look` without a video or with
    several.
    """
    if strange := [name for name in names if name not in NAMES]:
        raise ValueError(f"expected tools among {', '.join(NAMES)}, got {', '.join(map(repr, strange))}")
    if "look" in names and len(videos) != 1:
        raise ValueError(f"expected one video for the tool look, got {len(videos)}")
    with ExitStack() as stack:
        make = {
            "look": lambda: look_at(videos[0], processor),
            "python": lambda: python_in(stack.enter_context(Sandbox())),
        }
        yield [make[name]() for name in names]


def look_at(video: str | Path, processor: Processor) -> Callable[[float, float], Clip]:
    """A tool that shows a part of a video file again, more finely than the processor shows all of it.

    Frames come at least twice as often as at first, where the file has them, and each may take the tokens that it had;
    FRAMES and SHARE bound what one look takes. The file's index is read here and once. Raises VideoError for what is no
    whole video; the tool does for spans that are none, lie outside of it or are too long.
    """
    whole = plan_video(video, processor.config.video, processor.config.token_pixels)

    def look(start: float, end: float) -> Clip:
        """Show a part of the video again, with more frames and more detail.

        start: second of the video where the part begins
        end: second where it ends, a few seconds later
        """
        return decoded(closer(whole, (start, end), processor))

    return look


def closer(whole: VideoPlan, span: tuple[float, float], processor: Processor) -> VideoPlan:
    """The plan of a look at these seconds, by the processor's config of now: a shorter context has smaller budgets."""
    config, info, side = processor.config.video, whole.info, processor.config.token_pixels
    first = sample(info.seconds, info.fps, info.frames, (info.width, info.height), config, side)
    a_second = len(first.indices) / info.seconds
    least = min(max(config.min_frame_tokens, first.frame_tokens), config.max_frame_tokens)
    tokens = min(FRAMES * config.max_frame_tokens, processor.config.text.max_positions // SHARE)
    own = replace(config, video_tokens=tokens, min_frame_tokens=least, adaptive="off")
    often = max(FINER * config.fps, AT_LEAST * a_second)
    plan = plan_span(whole, span, own, fps=often, max_frames=FRAMES)
    longest = min(FRAMES, tokens // least) / (AT_LEAST * a_second)
    if span[1] - span[0] > longest:
        raise VideoError(f"expected at most {longest:.1f} s at once, got {span[0]:g} to {span[1]:g}: look at less")
    return plan


def python_in(sandbox: Sandbox) -> Callable[[str], str]:
    """A tool that runs code in an open sandbox."""

    def python(code: str) -> str:
        """Run Python code. It gives back what the code prints and the value of its last line.

        code: a program; it has no files and no network, and remembers nothing of earlier ones
        """
        return sandbox.run(code).text

    return python
