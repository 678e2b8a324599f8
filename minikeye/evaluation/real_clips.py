"""Cards in real footage: python -m minikeye.evaluation.real_clips --clips FOLDER --out FILE

The footage comes out of packages whose pictures the checkpoint was not taught with (`assets/footage/fetch.py`, folder
held_out). A card of a handwriting that the checkpoint never saw goes into one frame, anywhere, as `--insert-card` does
it, and the question is which digit it shows, and when. Every clip is seen in two ways:
    own     as `minikeye frames` reads it: as many frames a second as the checkpoint wants, at their own times
    slowed  as 64, 256 and 1,024 frames half a second apart: UNIQUE evenly spaced ones at most, then back and forth

`--pack FILE` only decodes the clips and writes the frames of the second way, for a machine without a decoder, where
`--clips FILE` reads them.
"""

import argparse
import io
import json
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from minikeye.config import KeyeConfig
from minikeye.files import CHECKPOINT, whole_file
from minikeye.inputs.prompt import Prompt, pad
from minikeye.inputs.sampling import frame_indices
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.keye import KeyeVL
from minikeye.minivid.draws import generator
from minikeye.minivid.lessons import pixels
from minikeye.minivid.needle import insert_card
from minikeye.minivid.tasks import NEEDLE_QUESTION, parse_needle
from minikeye.results import hardware, write_result
from minikeye.scores import needle_score, wilson
from minikeye.training.step import autocast, on

UNIQUE = 128  # frames of a slowed clip that are different, at most
STEP = 0.5  # seconds between two frames of it
QUESTIONS = {"own": 16, "64": 24, "256": 16, "1024": 8}  # about each clip
QUALITY = 95  # of the packed JPEG frames


@dataclass(frozen=True)
class Footage:
    """A clip as the model sees it, before a card is put into it."""

    name: str
    frames: UInt8[Tensor, "f 3 h w"]
    seconds: tuple[float, ...]  # time of each frame

    def slowed(self, length: int) -> "Footage":
        """`length` frames, STEP apart: evenly spaced ones of this clip, or all of them back and forth."""
        count = len(self.frames)
        there_and_back = [*range(count), *range(count - 2, 0, -1)]
        if count < length:
            chosen = [there_and_back[n % len(there_and_back)] for n in range(length)]
        else:
            chosen = frame_indices(count, length)
        return Footage(self.name, self.frames[chosen], tuple(STEP * n for n in range(length)))

    def on(self, device: torch.device | str) -> "Footage":
        """The same with its frames on `device`."""
        return replace(self, frames=self.frames.to(device))


def decode(folder: Path, config: KeyeConfig, **sampling: float | int) -> list[Footage]:
    """Every file of a folder, which must be videos. sampling: fps and max_frames, as `plan_video` takes them; else the
    model's own. Raises VideoError for a file that is none, ValueError where there is no file.
    """
    from minikeye.inputs.video import decode_video, plan_video  # the device of a measurement may lack a decoder

    footage = []
    for path in sorted(path for path in folder.iterdir() if path.is_file()):
        video = decode_video(plan_video(path, config.video, config.token_pixels, **sampling))
        footage.append(Footage(path.name, video.frames, tuple(video.seconds.tolist())))
    if not footage:
        raise ValueError(f"expected video files in {folder}, found none: assets/footage/fetch.py fetches them")
    return footage


def pack(path: Path, footage: list[Footage]) -> None:
    """Write the frames as JPEG files of one archive, NAME/NUMBER.jpg. Their times are left out."""
    with whole_file(path) as part, zipfile.ZipFile(part, "w") as archive:
        for clip in footage:
            for n, frame in enumerate(clip.frames):
                jpeg = io.BytesIO()
                Image.fromarray(frame.permute(1, 2, 0).numpy()).save(jpeg, "JPEG", quality=QUALITY, subsampling=0)
                archive.writestr(f"{clip.name}/{n:04}.jpg", jpeg.getvalue())


def unpack(path: Path) -> list[Footage]:
    """What `pack` wrote, frames STEP apart. Raises ValueError for another file."""
    clips: dict[str, list[Tensor]] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(archive.namelist()):
                with Image.open(io.BytesIO(archive.read(name))) as frame:
                    seen = torch.from_numpy(np.array(frame.convert("RGB")))
                clips.setdefault(name.split("/")[0], []).append(seen.permute(2, 0, 1))
    except (zipfile.BadZipFile, OSError):  # no archive; no picture, or half of one
        clips = {}
    if not clips or any(len({frame.shape for frame in frames}) > 1 for frames in clips.values()):
        raise ValueError(f"expected what --pack wrote, an archive of JPEG frames; {path} is none")
    return [Footage(name, torch.stack(f), tuple(STEP * n for n in range(len(f)))) for name, f in clips.items()]


@dataclass(frozen=True)
class Card:
    """One question about a clip: where the card goes and what it shows."""

    frame: int
    digit: int
    seed: int  # of its handwriting, size, place and colours


def cards(name: str, length: int, count: int) -> list[Card]:
    """`count` cards, one in each of as many equal parts of the clip; digits in turn. The same in every run."""
    random = generator("real clips", name, length)
    draws = torch.rand(count, generator=random).tolist()
    return [Card(int((n + x) * length / count), n % 10, n) for n, x in enumerate(draws)]


def prompt_of(config: KeyeConfig, clip: Footage, question: str = NEEDLE_QUESTION) -> Prompt:
    """A question about a clip, the needle question by default, up to where the answer begins."""
    grid = (1, *(side // config.vision.patch_size for side in clip.frames.shape[-2:]))
    prompt = Prompt(load_tokenizer(config), config.vision.merge)
    prompt.begin("user")
    prompt.video(list(clip.seconds), grid)
    prompt.text(question)
    prompt.end()
    prompt.begin("assistant")
    return prompt


@torch.no_grad()
def measure(model: KeyeVL, clip: Footage, view: str, attention: str = "sparse", tokens: int = 2**18) -> dict:
    """Ask QUESTIONS[view] about one clip; one row: how many are right, with intervals, and every wrong answer."""
    config, tokenizer, count = model.config, load_tokenizer(model.config), QUESTIONS[view]
    asked, prompt = cards(clip.name, len(clip.frames), count), prompt_of(config, clip)
    batch = max(1, tokens // len(prompt.ids))
    digits, seconds, wrong = 0, 0, []
    for first in range(0, count, batch):
        some = asked[first : first + batch]
        frames = torch.cat([insert_card(clip.frames, card.frame, card.digit, card.seed) for card in some])
        inputs = pad([prompt] * len(some), "left") | pixels(frames, config)
        inputs = {name: t.to(model.device) if name != "grids" else t for name, t in inputs.items()}
        with autocast(model.device):
            stop = (tokenizer.token_id("<|im_end|>"),)
            out = model.generate(inputs, max_new_tokens=24, stop_ids=stop, attention=attention)
        for row, card in enumerate(some):
            answer, truth = tokenizer.decode(out.row(row)), clip.seconds[card.frame]
            parts = needle_score(parse_needle(answer), (card.digit, round(truth, 1)))
            digits, seconds = digits + parts.digit, seconds + parts.second
            if not parts.both:
                wrong.append([f"{card.digit} at {truth:.1f} s", answer])
    frames, _, height, width = clip.frames.shape
    row = {"clip": clip.name, "view": view, "frames": frames, "height": height, "width": width}
    row |= {"attention": attention, "n": count}
    for name, right in (("digit", digits), ("second", seconds)):
        estimate = wilson(right, count)
        row |= {name: right, f"{name}_95": [round(100 * estimate.low, 1), round(100 * estimate.high, 1)]}
    return row | {"wrong": wrong}


def percent_right(rows: list[dict], name: str) -> float:
    """Over all questions of these rows. name: "digit" or "second"."""
    return round(100 * sum(row[name] for row in rows) / sum(row["n"] for row in rows), 2)


def summarise(rows: list[dict], prefix: str = "real_clips") -> dict[str, float]:
    """Over all clips, then by view, by shape, and of the worst clip. prefix: of the names, which of two sets differ."""
    out = {f"{prefix}_{name}": percent_right(rows, name) for name in ("digit", "second")}
    levels = {row["view"]: [r for r in rows if r["view"] == row["view"]] for row in rows}
    levels |= {
        f"{height}x{width}": [r for r in rows if (r["height"], r["width"]) == (height, width)]
        for height, width in sorted({(row["height"], row["width"]) for row in rows})
    }
    for level, some in levels.items():
        out |= {f"{prefix}_{name}_{level}": percent_right(some, name) for name in ("digit", "second")}
    by_clip = [[row for row in rows if row["clip"] == clip] for clip in sorted({row["clip"] for row in rows})]
    return out | {f"{prefix}_second_worst_clip": min(percent_right(some, "second") for some in by_clip)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=Path, required=True, help="folder of video files, or what --pack wrote")
    parser.add_argument("--pack", type=Path, help="only decode the clips, and write their frames to this file")
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="folder; also says how clips are sampled")
    parser.add_argument("--out", type=Path, help="the JSON to write, or to add missing lines to")
    parser.add_argument("--views", nargs="+", default=list(QUESTIONS), choices=list(QUESTIONS), metavar="VIEW")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if (options.out is None) == (options.pack is None):
        parser.error("expected either --out or --pack")
    if not options.clips.exists():
        parser.error(f"expected a folder of clips or what --pack wrote, got {options.clips}, which is not there")
    config, packed = KeyeConfig.from_folder(options.checkpoint), options.clips.is_file()
    if packed and options.pack is not None:
        parser.error(f"{options.clips} is packed: expected a folder of clips to pack")
    if packed and "own" in options.views:
        parser.error("packed frames have lost their own times: expected a folder of clips, or --views 64 256 1024")
    footage = unpack(options.clips) if packed else decode(options.clips, config, fps=1000, max_frames=UNIQUE)
    if options.pack is not None:
        pack(options.pack, footage)
        return
    model = KeyeVL.from_pretrained(options.checkpoint, dtype=torch.float32, device=on(options.device))
    rows = json.loads(options.out.read_text(encoding="utf-8"))["rows"] if options.out.is_file() else []
    if rows:
        print(f"kept {len(rows)} lines of {options.out}: for another checkpoint choose another --out", file=sys.stderr)
    for view in options.views:
        for clip in decode(options.clips, config) if view == "own" else footage:
            if any(row["clip"] == clip.name and row["view"] == view for row in rows):
                continue
            row = measure(model, clip if view == "own" else clip.slowed(int(view)), view)
            rows.append(row | {"hardware": hardware(), "torch": torch.__version__})
            print({name: row[name] for name in ("clip", "view", "n", "digit", "second")}, flush=True)
            report(options.out, rows)


def report(path: Path, rows: list[dict]) -> None:
    """Write all that is known so far."""
    where = "; ".join(sorted({row["hardware"] for row in rows}))
    what = "cards put into real footage, asked of the mini checkpoint: right digits and seconds of n questions"
    command = f"python -m minikeye.evaluation.real_clips --clips CLIPS --out assets/results/{path.name}"
    write_result(path, what, command, rows, summarise(rows, path.stem), [0], where=where)


if __name__ == "__main__":
    main()
