"""DSA in a language model that others trained: python -m minikeye.evaluation.retrofit.study --seed 0 --out PART.json

SmolLM2-135M-Instruct gets indexers (`training.retrofit`), which are taught anew for every seed, and is asked for
held-out text, a number hidden in it, and a passage said again (`passages`), with k keys chosen in several ways
(`selections`), in texts from a quarter to twice the length that was taught. One call measures one seed and one number
of index heads and goes on where it was stopped; --merge PART.json ... writes the result of all calls, which must have
taught and measured alike.

Stated beforehand: at 4,096 tokens and 512 keys, perplexity within 1 % of dense, at least .95 of the attention mass
kept, needles within 2 points of dense. `tuned` is the control of the sparse stage, whose weights have seen the same
text: as many steps with dense attention. Blocks are chosen by indexers that were taught on tokens (after the warm-up).
`long` is the warm-up on sequences of twice the length, as many steps: is it the length taught that does not carry? Its
control, `more`, sees as many tokens, in twice the steps.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from minikeye.checkpoint.gguf_weights import load_gguf
from minikeye.checkpoint.indexers import save_indexers
from minikeye.checkpoint.smollm2 import smollm2
from minikeye.config import IndexerConfig, KeyeConfig
from minikeye.evaluation.retrofit.measures import measure
from minikeye.evaluation.retrofit.passages import Asked, copies, needles, windows
from minikeye.evaluation.retrofit.summary import joined, report, require_alike
from minikeye.inputs.gguf_tokenizer import gguf_tokenizer
from minikeye.inputs.tokenizer import ByteTokenizer, Tokenizer
from minikeye.keye import KeyeVL
from minikeye.results import hardware
from minikeye.training.loop import LoopConfig
from minikeye.training.retrofit.teach import STAGES, TUNED, WARMUP, Recipe, teach_text
from minikeye.training.retrofit.texts import Windows, library_texts, token_stream
from minikeye.training.step import on

HEADS = 4  # index heads of the main study; others see the warm-up alone
# What is measured -> whose weights, which keys.
METHODS = {
    "dense": ("base", "dense"),
    "dsa": ("sparse", "indexer"),
    "warmup": ("warmup", "indexer"),
    "oracle": ("base", "oracle"),
    "window": ("base", "window"),
    "block4": ("warmup", "block4"),
    "block128": ("warmup", "block128"),
    "indexers": ("indexers", "indexer"),
    "random": ("base", "random"),
    "tuned": ("tuned", "dense"),
    "adapted_dense": ("sparse", "dense"),
    "long": ("long", "indexer"),
    "more": ("more", "indexer"),
}
OTHER_WARMUPS = ("long", "more")
DENSE = tuple(name for name, (_, selection) in METHODS.items() if selection == "dense")
TESTS = ("text", "needle", "copy")


@dataclass(frozen=True)
class Cell:
    """One line of the study."""

    seed: int
    heads: int
    method: str
    k: int  # keys a query reads at most; 0 where it reads all
    length: int  # tokens of a sequence
    test: str


@dataclass(frozen=True)
class Plan:
    """Sizes of a part of the study."""

    recipe: Recipe = Recipe()
    settings: tuple[tuple[int, int], ...] = (  # tokens of a sequence, keys a query reads; what was taught comes first
        *((4096, 512), (4096, 128), (2048, 512), (1024, 512), (8192, 512)),
        *((4096, 1024), (4096, 256), (4096, 64)),
    )
    count: tuple[tuple[str, int], ...] = (("text", 16), ("needle", 70), ("blind", 70), ("copy", 32))

    @classmethod
    def smoke(cls) -> "Plan":
        loop = LoopConfig(steps=2, lr=1e-3, warmup=1, weight_decay=0.0, log_every=1)
        recipe = Recipe(length=256, rows=16, warmup=loop, sparse=replace(loop, slow_lr=0.1))
        return cls(recipe, ((256, 32), (256, 16), (320, 32)), tuple((test, 2) for test in (*TESTS, "blind")))

    def recipe_of(self, arm: str) -> Recipe:
        """What a model of METHODS is taught by."""
        if arm == "long":
            return replace(self.recipe, length=2 * self.recipe.length)
        if arm == "more":
            return replace(self.recipe, warmup=replace(self.recipe.warmup, steps=2 * self.recipe.warmup.steps))
        return self.recipe

    def cells(self, seed: int, heads: int, main: bool) -> Iterator[Cell]:
        """What matters most comes first, for a run that is stopped. main: all methods; else the warm-up's alone, in the
        first two settings, where random keys and indexers after L_sparse are measured, too. Other warm-ups last."""
        usual = [method for method in METHODS if method not in OTHER_WARMUPS]
        for n, (length, k) in enumerate(self.settings if main else self.settings[:2]):
            for method in usual if main else ("warmup",):
                if method in DENSE and k != self.settings[0][1]:
                    continue
                if (method == "block128" and k < 256) or (method in ("random", "indexers") and n > 1):
                    continue
                tests = (*TESTS, "blind") if method in ("dense", "dsa") and n == 0 else TESTS
                yield from (Cell(seed, heads, method, 0 if method in DENSE else k, length, test) for test in tests)
        for method in OTHER_WARMUPS if main else ():
            for length, k in self.settings:
                if length >= self.recipe.length and k == self.settings[0][1]:
                    yield from (Cell(seed, heads, method, k, length, test) for test in TESTS)

    def asked(self, cell: Cell, held: Tensor, tokenizer: Tokenizer) -> Asked:
        """The test of a cell: the same for every method. Half as many where sequences are longer than was taught."""
        count, seed = dict(self.count)[cell.test], 100 * cell.seed + 7
        if cell.length > self.recipe.length:
            count //= 2
        if cell.test == "text":
            return windows(held, count, cell.length, seed)
        if cell.test == "copy":
            return copies(held, count, cell.length, seed)
        return needles(held, tokenizer, count, cell.length, seed, blind=cell.test == "blind")


class Arms:
    """The models of a seed, taught when they are first asked for and kept on the CPU. folder: states, to go on from."""

    def __init__(self, base: KeyeVL, plan: Plan, stream: Tensor, seed: int, folder: Path | None):
        self.model, self.plan, self.stream, self.seed, self.folder = base, plan, stream, seed, folder
        self.weights = {"base": self._weights()}
        self.now = "base"
        self.logs: list[dict[str, Any]] = []

    def get(self, name: str) -> KeyeVL:
        """The one model, with these weights. Both sparse stages begin with the warm-up, all else with the base."""
        if name not in self.weights:
            other, recipe = name in OTHER_WARMUPS, self.plan.recipe_of(name)
            stage = WARMUP if other else STAGES[name]
            folder = self.folder and (self.folder / name if other else self.folder)
            model = self.get("base" if stage in (WARMUP, TUNED) else "warmup")
            batches = Windows(self.stream, recipe.length, recipe.repeats, 10 * self.seed + stage.number)
            begun = time.monotonic()
            lines = teach_text(model, stage, recipe, batches, folder)
            self.logs.append({"stage": name, "seconds": round(time.monotonic() - begun, 1), "log": lines[-1:]})
            self.weights[name], self.now = self._weights(), name
            model.requires_grad_(False)
            model.zero_grad(set_to_none=True)  # a graph's gradients are as large as the model
        if self.now != name:
            self.model.load_state_dict(self.weights[name])
            self.now = name
        return self.model

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in self.model.state_dict().items()}


def smoke_model(heads: int, seed: int) -> tuple[KeyeVL, Tokenizer]:
    """A small random language model of bytes."""
    nano = KeyeConfig.nano()
    text = replace(nano.text, experts=1, experts_per_token=1, qk_norm=False, tied=True)
    indexer = IndexerConfig(heads=heads, width=16, topk=32)
    torch.manual_seed(seed)
    config = KeyeConfig(vision=None, text=text, indexer=indexer, image_token_id=320, video_token_id=321)
    return KeyeVL(config).eval(), ByteTokenizer()


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows that an earlier call wrote. Raises ValueError for another file, as `summary.joined`."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return joined(content["rows"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no part of this study: {error}") from error


def run(options: argparse.Namespace) -> None:
    begun = written = time.monotonic()
    plan, device, main = Plan.smoke() if options.smoke else Plan(), on(options.device), options.heads == HEADS
    rows, texts = rows_of(options.out) if options.out.exists() else [], library_texts()
    kind = {"texts": texts.digest, "recipe": hashlib.sha256(repr(plan.recipe).encode()).hexdigest()[:16]}
    require_alike([*rows, kind])  # before the work, not after it
    known = len(rows)
    if options.smoke:
        model, tokenizer = smoke_model(options.heads, options.seed)
        streams = [torch.tensor(tokenizer.encode(part[0].words)[:6000]) for part in (texts.train, texts.held)]
    else:
        path, indexer = smollm2(), IndexerConfig(heads=options.heads, topk=plan.settings[0][1])
        model, tokenizer = load_gguf(KeyeVL, path, indexer, device, options.seed), gguf_tokenizer(path)
        streams = [token_stream(part, tokenizer, options.seed) for part in (texts.train, texts.held)]
    learnt, held = streams
    print(f"{len(learnt)} tokens to learn from, {len(held)} held out; {time.monotonic() - begun:.0f} s", flush=True)
    work = options.work and options.work / f"seed{options.seed}-heads{options.heads}"
    arms = Arms(model.to(device), plan, learnt, options.seed, work)
    about = {"hardware": hardware(), "torch": torch.__version__, **kind, "held_tokens": len(held)}
    for cell in plan.cells(options.seed, options.heads, main):
        if any(all(row[k] == v for k, v in vars(cell).items()) for row in rows):
            continue
        if time.monotonic() - begun > options.seconds:
            print("stopped: out of time, call again to go on", flush=True)
            break
        arm, selection = METHODS[cell.method]
        asked = plan.asked(cell, held, tokenizer)
        made = measure(arms.get(arm), cell.test, asked, selection, cell.k or plan.settings[0][1], options.seed)
        rows.append(vars(cell) | made | about)
        print(*vars(cell).values(), {k: made[k] for k in ("ppl", "far_right", "right") if k in made}, flush=True)
        if time.monotonic() - written > 20:
            report(options.out, rows, arms.logs)
            written = time.monotonic()
    if len(rows) > known or not rows:  # else the file would say that this commit measured it
        report(options.out, rows, arms.logs)
    for name in ("warmup", "indexers", "long") if options.save else ():
        if name not in arms.weights:
            print(f"{name}: not taught in this call, so not saved", flush=True)
        else:
            recipe = plan.recipe_of(name)
            note = f"{name}, seed {options.seed}, {recipe}, held-out texts {texts.digest}"
            save_indexers(arms.get(name), options.save / name, recipe.length, note)
    print(f"{len(rows)} cells, {time.monotonic() - begun:.0f} s, {arms.logs}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write, or to add missing cells to")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--heads", type=int, default=HEADS, help=f"index heads; {HEADS}: the main study")
    parser.add_argument("--work", type=Path, help="folder for the states of training, to go on from")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no cell after so many seconds")
    parser.add_argument("--save", type=Path, help="folder for the indexers: warmup, indexers (L_sparse alone), long")
    parser.add_argument("--smoke", action="store_true", help="a tiny random model and short texts, on a CPU")
    parser.add_argument("--merge", type=Path, nargs="+", metavar="PART", help="only put these parts together")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    if options.merge:
        report(options.out, [row for path in options.merge for row in rows_of(path)], [])
    else:
        run(options)


if __name__ == "__main__":
    main()
