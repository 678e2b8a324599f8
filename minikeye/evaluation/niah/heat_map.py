"""The heat maps as a picture: python -m minikeye.evaluation.niah.heat_map --result FILE --out PICTURE

Length to the right, depth downwards; every square says its percentage and below it the 95 % interval, so that nobody
needs to read colours. Printed are the picture's words and a table, as the README has them, and all levels of all
factors.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from minikeye.evaluation.benchmarks.choice_scores import niah_mean
from minikeye.evaluation.niah.study import ATTENTIONS, HAYSTACKS, WAYS, by_level, cells_of, chosen, whole_lengths
from minikeye.explore.figures import STYLE
from minikeye.files import whole_file
from minikeye.scores import Estimate

SAID = {"generated": "written", "forced": "teacher forcing", "generator": "generated videos", "real": "real footage"}


@dataclass(frozen=True)
class Map:
    """One heat map."""

    title: str
    cells: Mapping[tuple[int, float], Estimate]  # (frames, depth) -> share found; a whole grid

    @property
    def lengths(self) -> list[int]:
        return sorted({frames for frames, _ in self.cells})

    @property
    def depths(self) -> list[float]:
        return sorted({depth for _, depth in self.cells})

    def sentence(self) -> str:
        """What it shows: its mean, and where it is worst."""
        mean = niah_mean(self.cells)
        frames, depth = min(self.cells, key=lambda cell: (self.cells[cell].mean, -cell[0], cell[1]))
        least = 100 * self.cells[frames, depth].mean
        if least == 100:
            return f"{self.title}: 100 % in every cell."
        return f"{self.title}: {mean:.1f} % on average, at worst {least:.0f} % at {frames:,} frames, depth {depth:g}."


def words(maps: Sequence[Map]) -> str:
    """The text for whoever does not see the picture."""
    first = maps[0]
    of = f"{len(first.lengths)} lengths up to {first.lengths[-1]:,} frames by {len(first.depths)} depths"
    return " ".join([f"Heat maps of needles found, {of}.", *(one.sentence() for one in maps)])


def save(path: Path, rows: Sequence[Sequence[Map]]) -> None:
    """Write a PNG of maps in rows. Raises ValueError where rows differ in length or there is none."""
    if not rows or not rows[0] or len({len(row) for row in rows}) > 1:
        raise ValueError(f"expected rows of equally many maps, at least one, got {[len(row) for row in rows]}")
    import matplotlib

    with matplotlib.rc_context({**STYLE, "axes.grid": False, "font.size": 8}):
        from matplotlib.figure import Figure

        across, down = len(rows[0][0].lengths), len(rows[0][0].depths)
        size = (len(rows[0]) * (0.9 + 0.48 * across), len(rows) * (0.8 + 0.34 * down))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
        for row, ones in zip(axes, rows, strict=True):
            for ax, one in zip(row, ones, strict=True):
                _draw(ax, one)
        with whole_file(path) as part:
            figure.savefig(part, format="png", dpi=130, metadata={"Software": None})


def _draw(ax: Any, one: Map) -> None:
    lengths, depths = one.lengths, one.depths
    shares = [[100 * one.cells[frames, depth].mean for frames in lengths] for depth in depths]
    ax.imshow(shares, vmin=0, vmax=100, aspect="auto", cmap="cividis")
    for (y, depth), (x, frames) in product(enumerate(depths), enumerate(lengths)):
        cell = one.cells[frames, depth]
        ink = "black" if cell.mean > 0.5 else "white"
        ax.text(x, y - 0.12, f"{100 * cell.mean:.0f}", ha="center", va="center", color=ink, fontsize=8)
        interval = f"{100 * cell.low:.0f}-{100 * cell.high:.0f}"
        ax.text(x, y + 0.26, interval, ha="center", va="center", color=ink, fontsize=5.5)
    ax.set_xticks(range(len(lengths)), [f"{frames:,}" for frames in lengths])
    ax.set_yticks(range(len(depths)), [f"{depth:g}" for depth in depths])
    ax.set(title=f"{one.title}\nmean {niah_mean(one.cells):.1f} %", xlabel="frames", ylabel="depth")
    ax.spines[["left", "bottom"]].set_visible(False)


def of_study(rows: Sequence[dict], needle: str) -> list[list[Map]]:
    """The maps of the study's rows for a kind of needle: a line for each haystack, attention by way."""
    rows, lines = whole_lengths(rows), []
    for haystack in HAYSTACKS:
        line = []
        for attention, way in product(ATTENTIONS, WAYS):
            some = chosen(rows, needle=needle, haystack=haystack, attention=attention)
            if some:
                line.append(Map(f"{SAID[haystack]}, {attention}, {SAID[way]}", cells_of(some, way)))
        lines += [line] if line else []
    return lines


def table(summary: Mapping[str, float]) -> str:
    """Rows of the README's form, of what a reader wants first."""
    keys = {
        "cards found, sparse": "mean_sparse",
        "cards found, dense, same weights": "mean_dense",
        "worst cell, sparse": "worst_cell_sparse",
        "worst cell, dense": "worst_cell_dense",
        "generated videos, sparse": "niah_card_generator_sparse_generated",
        "the same by teacher forcing": "niah_card_generator_sparse_forced",
        "the same, chance": "niah_card_generator_sparse_chance",
        "the same, grey frames": "niah_card_generator_sparse_blind",
        "real footage, sparse": "niah_card_real_sparse_generated",
        "a thing in one frame, generated videos": "niah_thing_generator_sparse_generated",
        "a thing in one frame, real footage": "niah_thing_real_sparse_generated",
    }
    rows = [f"| {name} | {summary[key]:g} | `{key}` |" for name, key in keys.items() if key in summary]
    return "\n".join(["| needles | % | key in niah.json |", "| --- | --- | --- |", *rows])


def splits(rows: Sequence[dict], needle: str, attention: str = "sparse") -> str:
    """A line for each haystack and factor: percent found, written, of every level, the worst first."""
    lines = []
    for haystack in HAYSTACKS:
        for factor, levels in by_level(chosen(rows, needle=needle, haystack=haystack, attention=attention)).items():
            shares = sorted((100 * right / asked, level, asked) for level, (asked, right, _) in levels.items())
            said = ", ".join(f"{level} {share:.1f} % of {asked:,}" for share, level, asked in shares)
            lines.append(f"{SAID[haystack]}, {factor}: {said}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--result", type=Path, default=Path("assets/results/niah.json"), help="what the study wrote")
    parser.add_argument("--out", type=Path, default=Path("assets/figures/niah.png"), help="the picture to write")
    parser.add_argument("--needle", default="card", help="kind of needle: card or thing")
    options = parser.parse_args()
    result = json.loads(options.result.read_text(encoding="utf-8"))
    lines = of_study(result["rows"], options.needle)
    save(options.out, lines)
    alt = words([one for line in lines for one in line])
    print(f"![{alt}]({options.out})\n\n{table(result['summary'])}\n\n{splits(result['rows'], options.needle)}")


if __name__ == "__main__":
    main()
