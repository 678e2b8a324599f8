"""The needle heat map of mini: python -m minikeye.evaluation.niah.study --clips CLIPS --out assets/results/niah.json

Length by depth, up to the 1,024 frames that it was taught, by sparse and by dense attention of the same weights, by
generation and by teacher forcing, in videos of the generator and in real footage apart (haystack.py). "Found" is, where
the model writes the answer, a card's digit with its second within half a second, or a thing's interval by a temporal
IoU of one half; where it is given the answer, each token of it. Chance is beside each cell, a blind run beside each
length: grey frames, where nothing can be found.

--clips: a folder of videos, or what `real_clips --pack` made of one, for a machine without a decoder. The rows come a
cell at a time; a run that was stopped goes on with the missing ones.
"""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path

import torch

from minikeye.evaluation.benchmarks.choice_scores import bootstrap, niah_cells, niah_mean
from minikeye.evaluation.niah.both_ways import ask_both_ways
from minikeye.evaluation.niah.haystack import HAYSTACKS, NEEDLES, SEED, Case, Cell, cases
from minikeye.evaluation.real_clips import UNIQUE, Footage, decode, prompt_of, unpack
from minikeye.files import CHECKPOINT
from minikeye.inputs.prompt import pad
from minikeye.inputs.tokenizer import load_tokenizer
from minikeye.keye import KeyeVL
from minikeye.minivid.lessons import pixels
from minikeye.minivid.tasks import score
from minikeye.results import hardware, write_result
from minikeye.scores import wilson
from minikeye.training.step import autocast, on

LENGTHS, DEPTHS = (64, 128, 256, 512, 1024), (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # depths of LongVA
COUNT = 64  # needles a cell
ATTENTIONS, WAYS = ("sparse", "dense"), ("generated", "forced")
LONGEST = 40  # tokens of an answer
EVERY = 5.0  # seconds between two writings of what is known
REACH = 0.5  # temporal IoU from which a thing counts as found


def planned(lengths: Sequence[int], needles: Sequence[str], haystacks: Sequence[str]) -> Iterator[Cell]:
    """The cells of each map and length, then the control of that length, whose needles lie anywhere."""
    for kind, haystack, frames in product(needles, haystacks, lengths):
        yield from (Cell(kind, haystack, frames, depth) for depth in DEPTHS)
        yield Cell(kind, haystack, frames, 0.5, "blank")


@torch.no_grad()
def measure(
    model: KeyeVL, cell: Cell, count: int, clips: Sequence[Footage], attentions: Sequence[str], tokens: int = 2**18
) -> list[dict]:
    """Ask for `count` needles of a cell; a row for each attention."""
    begun, each = time.monotonic(), -(-tokens // 12 // cell.frames)  # a frame takes some twelve tokens
    asked: list[Case] = []
    found: dict[str, list[dict[str, float]]] = {attention: [] for attention in attentions}
    for some in cases(cell, count, clips, model.device, each):
        asked += some
        for attention, scores in answer(model, some, attentions, cell.control == "blank").items():
            found[attention] += scores
    seconds = (time.monotonic() - begun) / len(attentions)
    order = sorted(range(len(asked)), key=lambda n: asked[n].number)
    asked = [asked[n] for n in order]
    return [_row(cell, a, asked, [found[a][n] for n in order], seconds) for a in attentions]


def answer(
    model: KeyeVL, asked: Sequence[Case], attentions: Sequence[str], blank: bool
) -> dict[str, list[dict[str, float]]]:
    """By attention, what is right about the answer to each case: the parts of `tasks.score`, and both ways."""
    config, tokenizer = model.config, load_tokenizer(model.config)
    prompts = [prompt_of(config, case.clip, case.problem.question) for case in asked]
    frames = torch.cat([case.frames(blank) for case in asked])
    inputs = {name: t.to(model.device) for name, t in pad(prompts, "left").items() if name != "answer"}
    truths = [tokenizer.encode(case.problem.answer) for case in asked]
    out = {}
    with autocast(model.device):
        seen = pixels(frames, config)
        inputs["visual"] = model.visual_tokens(seen["patches"], seen["grids"])  # once for every attention
        for attention in attentions:
            stop = (tokenizer.token_id("<|im_end|>"),)
            said = ask_both_ways(model, inputs, truths, stop, LONGEST, attention)
            out[attention] = [
                _parts(case, tokenizer.decode(one.ids), one.forced) for case, one in zip(asked, said, strict=True)
            ]
    return out


def _parts(case: Case, text: str, forced: bool) -> dict[str, float]:
    parts = score(case.problem, text)
    right = parts["tiou"] >= REACH if case.problem.task == "G" else bool(parts["both"])
    return {**parts, "generated": float(right), "forced": float(forced)}


def _row(cell: Cell, attention: str, asked: Sequence[Case], scores: Sequence[dict[str, float]], seconds: float) -> dict:
    """n, percent found both ways with intervals, chance, each needle's outcome, and found by level of each factor."""
    row = {**vars(cell), "attention": attention, "n": len(asked), "seconds_taken": round(seconds, 2)}
    for way in WAYS:
        estimate = wilson(int(sum(one[way] for one in scores)), len(scores))
        row[way] = round(100 * estimate.mean, 2)
        row[f"{way}_95"] = [round(100 * estimate.low, 2), round(100 * estimate.high, 2)]
    for name in ("digit", "second", "tiou", "exact"):
        if name in scores[0]:
            row[name] = round(100 * sum(one[name] for one in scores) / len(scores), 2)
    row["chance"] = round(100 * sum(case.chance for case in asked) / len(asked), 4)
    row |= {f"each_{way}": "".join(str(int(one[way])) for one in scores) for way in WAYS}
    levels: dict[str, dict[str, list[int]]] = defaultdict(dict)  # factor, level: how many, found, found by forcing
    for case, one in zip(asked, scores, strict=True):
        for factor, level in case.levels.items():
            held = levels[factor].setdefault(level, [0, 0, 0])
            held[:] = held[0] + 1, held[1] + int(one["generated"]), held[2] + int(one["forced"])
    return row | {"levels": {factor: dict(sorted(part.items())) for factor, part in levels.items()}}


# --------------------------------------------------------------------------------------------------------- the numbers


def chosen(rows: Sequence[dict], **wanted: str) -> list[dict]:
    """Rows with these values, controls left out unless asked for."""
    return [row for row in rows if all(row[k] == v for k, v in {"control": "", **wanted}.items())]


def whole_lengths(rows: Sequence[dict]) -> list[dict]:
    """Without the lengths of a map that some depths are missing of, as while a run is under way."""
    key = lambda row: (row["needle"], row["haystack"], row["attention"], row["frames"])  # noqa: E731
    depths = defaultdict(set)
    for row in chosen(rows):
        depths[key(row)].add(row["depth"])
    return [row for row in rows if row["control"] or depths[key(row)] == set(DEPTHS)]


def cells_of(rows: Sequence[dict], way: str) -> dict:
    """(frames, depth) -> share found, from each needle's outcome."""
    return niah_cells([(row["frames"], row["depth"], one == "1") for row in rows for one in row[f"each_{way}"]])


def by_level(rows: Sequence[dict]) -> dict[str, dict[str, list[int]]]:
    """Factor, level: how many needles, how many found by generation and by forcing, over all these rows."""
    out: dict[str, dict[str, list[int]]] = defaultdict(dict)
    for row in rows:
        for factor, levels in row["levels"].items():
            for level, counts in levels.items():
                held = out[factor].setdefault(level, [0, 0, 0])
                held[:] = [a + b for a, b in zip(held, counts, strict=True)]
    return {factor: dict(sorted(levels.items())) for factor, levels in out.items()}


def summarise(rows: Sequence[dict]) -> dict[str, float]:
    """Percent. mean_sparse, mean_dense, worst_cell_sparse: cards, both haystacks, written answers. Then all apart."""
    out: dict[str, float] = {}
    rows = whole_lengths(rows)
    for attention in ATTENTIONS:
        cards = [
            cells_of(chosen(rows, needle="card", haystack=h, attention=attention), "generated")
            for h in HAYSTACKS
            if chosen(rows, needle="card", haystack=h, attention=attention)
        ]
        if cards:
            out[f"mean_{attention}"] = round(sum(map(niah_mean, cards)) / len(cards), 2)
            out[f"worst_cell_{attention}"] = round(100 * min(cell.mean for part in cards for cell in part.values()), 2)
    for needle, haystack, attention in product(NEEDLES, HAYSTACKS, ATTENTIONS):
        some = chosen(rows, needle=needle, haystack=haystack, attention=attention)
        name = f"niah_{needle}_{haystack}_{attention}"
        for way in WAYS if some else ():
            cells = cells_of(some, way)
            out[f"{name}_{way}"] = round(niah_mean(cells), 2)
            out[f"{name}_{way}_worst_cell"] = round(100 * min(cell.mean for cell in cells.values()), 2)
            longest = [row for row in some if row["frames"] == max(r["frames"] for r in some)]
            out[f"{name}_{way}_longest"] = round(niah_mean(cells_of(longest, way)), 2)
        if some:
            out[f"{name}_chance"] = round(sum(row["chance"] for row in some) / len(some), 3)
        blind = chosen(rows, needle=needle, haystack=haystack, attention=attention, control="blank")
        if blind:
            out[f"{name}_blind"] = round(niah_mean(cells_of(blind, "generated")), 2)
    return out


def intervals(rows: Sequence[dict]) -> dict[str, float]:
    """95 % intervals of the means, and of dense minus sparse on the same needles, in percent and points.

    Needles are drawn, not answers: a card that is hard to read is so in every cell.
    """
    out: dict[str, float] = {}
    for needle, haystack in product(NEEDLES, HAYSTACKS):
        each: dict[str, list[float]] = {}
        for attention in ATTENTIONS:
            some = chosen(whole_lengths(rows), needle=needle, haystack=haystack, attention=attention)
            some = sorted(some, key=lambda row: (row["frames"], row["depth"]))
            if some:
                each[attention] = [100.0 * int(one) for row in some for one in row["each_generated"]]
                numbers = [str(n) for row in some for n in range(row["n"])]
                low, high = bootstrap(each[attention], numbers)
                name = f"niah_{needle}_{haystack}_{attention}_generated"
                out |= {f"{name}_low": round(low, 2), f"{name}_high": round(high, 2)}
        if len(each) == 2 and len(each["dense"]) == len(each["sparse"]):
            apart = [dense - sparse for dense, sparse in zip(each["dense"], each["sparse"], strict=True)]
            low, high = bootstrap(apart, numbers)
            name = f"niah_{needle}_{haystack}_dense_minus_sparse"
            out |= {
                name: round(sum(apart) / len(apart), 2),
                f"{name}_low": round(low, 2),
                f"{name}_high": round(high, 2),
            }
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="folder of the model")
    parser.add_argument("--clips", type=Path, required=True, help="folder of videos, or what `real_clips --pack` wrote")
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write, or to add missing cells to")
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS), help="frames of the haystacks")
    parser.add_argument("--needles", type=int, default=COUNT, metavar="N", help="needles a cell")
    parser.add_argument("--kinds", nargs="+", default=list(NEEDLES), choices=NEEDLES, help="what is hidden")
    parser.add_argument("--haystacks", nargs="+", default=list(HAYSTACKS), choices=HAYSTACKS, help="in what")
    parser.add_argument("--tokens", type=int, default=2**18, help="tokens in a batch, about")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no cell after so many seconds")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    begun = written = time.monotonic()
    device = on(options.device)
    model = KeyeVL.from_pretrained(options.checkpoint, dtype=torch.float32, device=device)
    clips: list[Footage] = []
    if "real" in options.haystacks:
        packed = options.clips.is_file()
        clips = unpack(options.clips) if packed else decode(options.clips, model.config, fps=1000, max_frames=UNIQUE)
    rows = json.loads(options.out.read_text(encoding="utf-8"))["rows"] if options.out.is_file() else []
    # The longest last: a run that is stopped has whole maps of the shorter ones.
    for cell in sorted(planned(options.lengths, options.kinds, options.haystacks), key=lambda cell: cell.frames):
        have = {row["attention"] for row in rows if all(row[k] == v for k, v in vars(cell).items())}
        wanted = [a for a in (("sparse",) if cell.control else ATTENTIONS) if a not in have]
        if not wanted or time.monotonic() - begun > options.seconds:
            continue
        made = measure(model, cell, options.needles, clips, wanted, options.tokens)
        rows += [row | {"hardware": hardware(), "torch": torch.__version__} for row in made]
        for row in made:
            print(*(row[k] for k in (*vars(cell), "attention", *WAYS, "seconds_taken")), flush=True)
        if time.monotonic() - written > EVERY:
            report(options.out, rows, summarise(rows))
            written = time.monotonic()
    report(options.out, rows, summarise(rows) | intervals(rows))


def report(path: Path, rows: list[dict], summary: dict[str, float]) -> None:
    """Write all that is known so far."""
    where = "; ".join(sorted({row["hardware"] for row in rows}))
    what = "V-NIAH of the mini checkpoint: needles found by length and depth, sparse and dense, both ways, percent"
    command = "python -m minikeye.evaluation.niah.study --clips CLIPS --out assets/results/niah.json"
    write_result(path, what, command, rows, summary, [SEED], where=where)


if __name__ == "__main__":
    main()
