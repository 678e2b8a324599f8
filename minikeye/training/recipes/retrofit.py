"""DSA for SmolLM2: python -m minikeye.training.recipes.retrofit --out FOLDER [--heads 4] [--cpu-size]

Indexers beside the 30 layers of a language model that others trained (`make real`), taught on the sources of the Python
library: dense warm-up with the model frozen, then the sparse stage. Minutes on one GPU at 4,096 tokens; --cpu-size is
for two cores, at 1,024. In texts longer than --length indexers choose badly. Killed and started again, it goes on;
other settings want another folder. FOLDER/warmup and FOLDER/indexers hold the indexers after each stage, a few MB that
go over the GGUF file (`checkpoint.indexers`). --adapt lets all parameters learn in the sparse stage, as the report
does: that changes 135 million numbers, so it leaves no small file, only its state, sparse.pt.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

from minikeye.checkpoint.gguf_weights import load_gguf
from minikeye.checkpoint.indexers import save_indexers
from minikeye.checkpoint.smollm2 import smollm2
from minikeye.config import IndexerConfig
from minikeye.files import write_whole
from minikeye.inputs.gguf_tokenizer import gguf_tokenizer
from minikeye.keye import KeyeVL
from minikeye.training.retrofit.teach import INDEXERS, SPARSE, WARMUP, Recipe, teach_text
from minikeye.training.retrofit.texts import Windows, library_texts, token_stream
from minikeye.training.step import on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for states, logs and indexers")
    parser.add_argument("--heads", type=int, default=4, help="heads of an indexer")
    parser.add_argument("--topk", type=int, help="keys a query selects (512; with --cpu-size 128)")
    parser.add_argument("--length", type=int, help="tokens of a text (4096; with --cpu-size 1024)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--cpu-size", action="store_true", help="1,024 tokens a sequence and fewer steps")
    parser.add_argument("--adapt", action="store_true", help="all parameters learn in the sparse stage")
    parser.add_argument("--steps", type=int, help="steps of each stage, for a smoke test")
    options = parser.parse_args()
    recipe, begun = Recipe.on_cpu() if options.cpu_size else Recipe(), time.monotonic()
    if options.length is not None:
        recipe = replace(recipe, length=options.length)
    if options.steps:
        loops = (replace(loop, steps=options.steps, log_every=1) for loop in (recipe.warmup, recipe.sparse))
        recipe = replace(recipe, **dict(zip(("warmup", "sparse"), loops, strict=True)))
    indexer = IndexerConfig(heads=options.heads, topk=options.topk or (128 if options.cpu_size else 512))
    path, texts, device = smollm2(), library_texts(), on(options.device)
    model, tokenizer = load_gguf(KeyeVL, path, indexer, device, options.seed), gguf_tokenizer(path)
    stream = token_stream(texts.train, tokenizer, options.seed)
    note = f"SmolLM2-135M-Instruct, {len(stream)} tokens of {len(texts.train)} texts, held-out {texts.digest[:16]}"
    options.out.mkdir(parents=True, exist_ok=True)
    write_whole(options.out / "heldout.sha256", f"{texts.digest}  {len(texts.held)} held-out texts\n".encode())
    print(f"{note}; {time.monotonic() - begun:.0f} s", flush=True)
    for stage in (WARMUP, SPARSE if options.adapt else INDEXERS):
        windows = Windows(stream, recipe.length, recipe.repeats, 10 * options.seed + stage.number)
        lines = teach_text(model, stage, recipe, windows, options.out)
        for line in lines[:-1][:: max(1, len(lines) // 8)] + lines[-1:]:
            print(stage.name, {name: round(value, 4) for name, value in line.items()}, flush=True)
        if stage is not SPARSE:
            made = f"{note}; {stage.name}, {recipe.loop_of(stage).steps} steps"
            save_indexers(model, options.out / stage.name, recipe.length, made)
    print(f"{time.monotonic() - begun:.0f} s in all")


if __name__ == "__main__":
    main()
