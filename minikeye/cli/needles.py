"""`minikeye evaluate niah`: needles in one film by length and depth, from the film to a heat map."""

import argparse
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from minikeye.checkpoint.taught import taught
from minikeye.cli.asking import ALL, of_model, require_room
from minikeye.cli.commands import columns, try_folder
from minikeye.cli.opening import Opened, remark
from minikeye.evaluation.benchmarks.question import Question
from minikeye.evaluation.benchmarks.run import Answer, Ask, answers_in, ask_all, digest
from minikeye.evaluation.niah.both_ways import ask_both_ways
from minikeye.evaluation.niah.film import FORM, RULE, hide, maps, questions, read_pictures, report
from minikeye.evaluation.niah.heat_map import Map, save, words
from minikeye.files import CHECKPOINT, write_whole
from minikeye.inputs.processor import Clip
from minikeye.inputs.sampling import VideoError
from minikeye.inputs.video import plan_video
from minikeye.keye import KeyeVL
from minikeye.minivid.tasks import NEEDLE_QUESTION

FILM = CHECKPOINT.parents[1] / "clips" / "big_buck_bunny.mp4"  # comes with the repository
# Depths of LongVA. The clip has 132 frames in 42 seconds; `mini` was taught frames that are at most 2.5 s apart.
LENGTHS, DEPTHS, COUNT = (32, 64, 128), (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), 64


def evaluate_needles(arguments: argparse.Namespace, out: Path) -> None:
    """Ask for every needle, go on where an earlier call stopped; print the map, write report.json and niah.png."""
    film = arguments.video or FILM
    lengths, depths = arguments.lengths or LENGTHS, arguments.depths or DEPTHS
    count = COUNT if arguments.needles is None else arguments.needles
    require_grid(lengths, depths, count, arguments)
    if not film.is_file():
        raise FileNotFoundError(f"no video {film}: name the film to hide needles in, --video FILE")
    try_folder(out)
    opened = Opened.of(arguments, [str(film)])
    pictures = read_pictures(arguments.needles_json) if arguments.needles_json else []
    form = "" if NEEDLE_QUESTION in (taught(opened.folder) or "") else FORM
    clocks = {frames: clock(opened, film, frames) for frames in lengths}
    asked = questions(film, clocks, depths, count, pictures, form)
    settings = {
        "benchmark": "niah",
        "rule": RULE,
        "film": [film.name, film.stat().st_size],
        "lengths": list(lengths),
        "depths": list(depths),
        "needles": count,
        **({"pictures": [digest_of(one.path) for one in pictures]} if pictures else {}),
        "blind": arguments.blind,
        "questions": digest(asked),
        **of_model(opened),
    }
    answers = ask_all(asked, asker(opened, film), out, settings, lambda text: remark("evaluate", text))
    blind = {} if arguments.blind else answers_in(out, {**settings, "blind": True})
    found, both = report(asked, answers, settings, blind), maps(asked, answers)
    before = "blind-" if arguments.blind else ""
    write_whole(out / f"{before}report.json", (json.dumps(found, indent=1) + "\n").encode())
    save(out / f"{before}niah.png", [both])
    print(format_needles(found, both))
    print(f"wrote     {out / f'{before}report.json'}\nwrote     {out / f'{before}niah.png'}: {words(both)}")


def require_grid(lengths: Sequence[int], depths: Sequence[float], count: int, arguments: argparse.Namespace) -> None:
    """Raise ValueError for lengths, depths and numbers that are none, and for options that have no meaning here."""
    given = {"--data": arguments.data, "--frames": arguments.frames, "--fps": arguments.fps, "--limit": arguments.limit}
    if strange := [name for name, value in given.items() if value is not None]:
        raise ValueError(f"{', '.join(strange)} is for other benchmarks: niah takes --video, --lengths and --needles")
    if min(lengths) < 2 or len(set(lengths)) < len(lengths):
        raise ValueError(f"--lengths must be different numbers of at least 2 frames, got {list(lengths)}")
    if not all(0 <= depth <= 1 for depth in depths) or len(set(depths)) < len(depths):
        raise ValueError(f"--depths must be different numbers from 0 to 1, got {list(depths)}")
    if count < 1:
        raise ValueError(f"--needles must be at least 1 a cell, got {count}")
    if arguments.max_new_tokens < 1:
        raise ValueError(f"--max-new-tokens must be at least 1, got {arguments.max_new_tokens}")
    if arguments.temperature != 0:
        raise ValueError(f"niah is answered greedily: leave out --temperature, got {arguments.temperature}")


def digest_of(picture: Path) -> str:
    """Of a needle's bytes: another picture under the same name is another run."""
    return hashlib.sha256(picture.read_bytes()).hexdigest()[:16]


def clock(opened: Opened, film: Path, frames: int) -> list[float]:
    """Times of `frames` frames of the film. Raises VideoError, before any is decoded, where there are fewer."""
    config = opened.processor.config
    plan = plan_video(film, config.video, config.token_pixels, fps=ALL, max_frames=frames)
    if len(plan.seconds) != frames:
        raise VideoError(
            f"expected {frames:,} frames, got {len(plan.seconds):,}: {film} has {plan.info.frames:,}, and the model "
            f"takes {config.video.video_tokens:,} tokens a video. Take a longer --video, lower --lengths or raise "
            "--max-context"
        )
    return list(plan.seconds)


def asker(opened: Opened, film: Path) -> Ask:
    """How a question is put to the model, which is loaded with the first one: a finished run needs none."""
    arguments, processor = opened.arguments, opened.processor
    loaded: list[KeyeVL] = []
    last: dict[int, Clip] = {}  # the film in as many frames as the question before had

    def watch(frames: int) -> Clip:
        if frames not in last:
            last.clear()
            last[frames] = processor.clip({"type": "video", "video": film, "fps": ALL, "max_frames": frames})
        return last[frames]

    def ask(question: Question) -> Answer:
        content: list[dict[str, Any]] = [{"type": "text", "text": question.prompt}]
        if not arguments.blind:
            clip = watch(question.details["frames"])  # a damaged film ends the run: no needle can be asked for
            content.insert(0, {"type": "video", "video": Clip(hide(question, clip.frames), clip.seconds)})
        try:
            require_room(opened, question, content)
        except VideoError as error:
            return Answer(question.key, "", error=f"{type(error).__name__}: {error}")
        loaded or loaded.append(opened.load())
        inputs = processor([{"role": "user", "content": content}], **opened.thinking())
        spans = inputs["frames"][0]
        tensors = {name: value for name, value in inputs.to(loaded[0].device).items() if isinstance(value, Tensor)}
        truth = processor.tokenizer.encode(str(question.truth))
        options = {"attention": arguments.attention, "backend": arguments.backend}
        [said] = ask_both_ways(
            loaded[0], tensors, [truth], processor.stop_ids, max(arguments.max_new_tokens, len(truth)), **options
        )
        text, each = processor.tokenizer.decode(said.ids), spans[0].stop - spans[0].start if spans else 0
        read = inputs["input_ids"].shape[1]
        return Answer(question.key, text, "", len(spans), each, read, len(said.ids), said.forced)

    return ask


def format_needles(found: Mapping[str, Any], both: Sequence[Map]) -> str:
    """The report as it is printed: both maps side by side, a row a depth, in percent."""
    settings = found["settings"]
    lines = [
        f"niah: {found['questions']:,} needles in {settings['film'][0]}; unparsed: {found['unparsed']}, of these never "
        f"asked for an error: {found['errors']}",
        f"rule      {found['rule']}",
        f"model     {settings['checkpoint']}, {settings['dtype']}, {settings['attention']} attention",
        *(["blind     the film was not shown"] if settings["blind"] else []),
    ]
    for one in both:
        rows = [
            [f"{depth:g}", *(f"{100 * one.cells[frames, depth].mean:.0f}" for frames in one.lengths)]
            for depth in one.depths
        ]
        lines += ["", columns([f"{one.title}, %", *(f"{frames:,}" for frames in one.lengths)], rows)]
        blind = "" if found["blind"] is None else f", blind {found['blind'][one.title]:.1f} %"
        chance = f", chance {found['chance']:.2f} %" if one.title == "written" else ""
        lines.append(f"mean over the cells {found['means'][one.title]:.1f} %{chance}{blind}")
    return "\n".join(lines) + "\n"
