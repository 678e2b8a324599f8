"""How `minikeye evaluate` puts a question to a checkpoint."""

from pathlib import Path
from typing import Any

from minikeye.cli.opening import Opened
from minikeye.evaluation.benchmarks.question import Question
from minikeye.evaluation.benchmarks.run import Answer, Ask, weights_digest
from minikeye.inference.chat import Chat
from minikeye.inference.turns import spoken
from minikeye.inputs.processor import Clip
from minikeye.inputs.sampling import VideoError
from minikeye.keye import KeyeVL

ALL = 1e6  # frames per second above any video's own: every frame, of which `max_frames` are spread evenly


def of_model(opened: Opened) -> dict[str, Any]:
    """What of the model and of its way to answer decides what it says."""
    arguments, video = opened.arguments, opened.processor.config.video
    return {
        "checkpoint": opened.folder.name,
        "weights": weights_digest(opened.folder),
        "video_tokens": video.video_tokens,
        "frame_tokens": [video.min_frame_tokens, video.max_frame_tokens],
        "adaptive": video.adaptive,
        "context": opened.processor.config.text.max_positions,
        "dtype": str(opened.dtype()).removeprefix("torch."),
        "attention": arguments.attention,
        "max_new_tokens": arguments.max_new_tokens,
        "thinking": arguments.thinking,
        **opened.sampling(),
    }


def asker(opened: Opened, fps: float | None, frames: int | None, blind: bool) -> Ask:
    """How a question is put to the model, which is loaded with the first one: a finished run needs none."""
    arguments, processor = opened.arguments, opened.processor
    limits = {"fps": fps} if frames is None else {"fps": ALL, "max_frames": frames}
    loaded: list[KeyeVL] = []
    last: dict[Path, Clip] = {}  # the video of the question before: benchmarks ask several about each in a row

    def watch(video: Path) -> Clip:
        if video not in last:
            last.clear()
            last[video] = processor.clip({"type": "video", "video": video, **limits})
        return last[video]

    def ask(question: Question) -> Answer:
        content: list[dict[str, Any]] = [{"type": "text", "text": question.prompt}]
        try:
            if not blind:
                content.insert(0, {"type": "video", "video": watch(question.video)})
            require_room(opened, question, content)
        except VideoError as error:
            return Answer(question.key, "", error=f"{type(error).__name__}: {error}")
        loaded or loaded.append(opened.load())
        options = {"attention": arguments.attention, "backend": arguments.backend, **opened.thinking()}
        chat = Chat(loaded[0], processor, system=question.system or None, **options)
        reply = chat.ask(content, max_new_tokens=arguments.max_new_tokens, **opened.sampling())
        text = spoken(reply.thought, reply.answer)
        each = reply.frames[0].stop - reply.frames[0].start if reply.frames else 0
        return Answer(question.key, text, "", len(reply.frames), each, reply.read, len(reply.ids))

    return ask


def require_room(opened: Opened, question: Question, content: list[dict[str, Any]]) -> None:
    """Raise VideoError where prompt and answer exceed the context: this question's own misfortune."""
    system = [{"role": "system", "content": question.system}] if question.system else []
    prompt, _ = opened.processor.build([*system, {"role": "user", "content": content}], **opened.thinking())
    longest, most = opened.arguments.max_new_tokens, opened.processor.config.text.max_positions
    if len(prompt.ids) + longest - 1 > most:
        raise VideoError(
            f"a prompt of {len(prompt.ids):,} tokens and {longest:,} of answer exceed the context of {most:,}: lower "
            f"--fps, --frames or --max-new-tokens"
        )
