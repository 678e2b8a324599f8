"""The numbers of the retrofit study that a README may quote, from its rows.

A row is a dict: seed, heads (of the indexer), method, k (0 for methods that read every key), length, test, what
`measures.measure` gives of the test, texts (digest of the held-out texts), hardware; recipe (digest) where it is known.

NAME_METHOD_K: at the length with most rows (in the study 4,096 tokens) and 4 index heads; dense methods have no K.
NAME_METHOD_K_at_LENGTH and NAME_METHOD_K_headsJ for others. ppl: perplexity, mean over seeds; kept: share of the
attention mass, mean over layers; needle, blind, copy, far: percent. _low, _high: 95 %, by Student's t over seeds, for
needles by Wilson's interval over all of them, whose number is _n. ppl_METHOD_K_cost: percent above dense, paired by
seed. needle_METHOD_K_cost: points below dense, paired by needle. _cost_tuned: the same above and below `tuned`, for
weights that learnt on the same text.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minikeye.results import write_result
from minikeye.scores import student_mean, wilson

NAMES = {"text": ("ppl", "far", "kept"), "copy": ("copy",), "needle": ("needle",), "blind": ("blind",)}
CELL = ("seed", "heads", "method", "k", "length", "test")  # what makes a row another row
MEASURED = {"text": {"nll", "ppl", "far_right", "kept"}, "copy": {"right"}, "needle": {"each"}, "blind": {"each"}}
ADAPTED, CONTROLS = ("dsa", "adapted_dense"), ("dense", "tuned")
Where = tuple[str, int, int, int]  # method, k, length, heads


def _missed(row: dict[str, Any], other: dict[str, Any]) -> list[float]:
    """Of each needle: 100 where only the other found it, -100 where only this one did, else 0."""
    return [100.0 * (int(b) - int(a)) for a, b in zip(row["each"], other["each"], strict=True)]


# What a row costs beside another of the same seed: percent of perplexity, points of each needle.
COSTS = {
    "text": lambda row, other: [100 * math.expm1(row["nll"] - other["nll"])],
    "needle": _missed,
}


def joined(rows: Sequence[Any]) -> list[dict[str, Any]]:
    """Rows of one study, each cell once: one that comes twice and is the same counts once.

    Raises ValueError for what is no row of this study, for a cell that was measured twice, and for rows that cannot be
    averaged: on other texts (another Python has others) or by another recipe (`recipe`, where a row states one).
    """
    found: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        if not isinstance(row, dict) or not {*CELL, "texts"} <= row.keys():
            raise ValueError(f"expected rows of the retrofit study, got {row!r:.80}: name another file")
        first = found.setdefault(cell := tuple(row[name] for name in CELL), row)
        if {**first, "taught": None} != {**row, "taught": None}:  # seconds, which a later call may add to
            raise ValueError(f"{', '.join(map(str, cell))} was measured twice: leave out one of the files")
    require_alike(list(found.values()))
    return list(found.values())


def require_alike(rows: Sequence[dict[str, Any]]) -> None:
    """Raise ValueError for rows that cannot be averaged, as `joined`."""
    for name in ("texts", "recipe"):
        if len(others := sorted({str(row[name]) for row in rows if name in row})) > 1:
            raise ValueError(f"expected rows of the same {name}, got digests {' and '.join(others)}: keep them apart")


def report(path: Path, rows: list[dict[str, Any]], logs: list[dict[str, Any]]) -> None:
    """Write all that is known so far. logs: of training, {"stage", "seconds", "log"}, whose seconds the first row keeps
    where "log" is not empty: of stages that this call ran, not of those whose states it found. Raises ValueError
    without rows, else as `joined` and `summarise`."""
    if not (rows := joined(rows)):
        raise ValueError("no cell was measured: there is nothing to write; in a call of the study allow more --seconds")
    where = "; ".join(sorted({row["hardware"] for row in rows}))
    seeds = sorted({row["seed"] for row in rows})
    what = "DSA in SmolLM2-135M-Instruct: what a selection of k keys keeps of a pretrained language model, on real text"
    command = "python -m minikeye.evaluation.retrofit.study --seed S --heads J --out PART.json; --merge PART.json ..."
    taught = rows[0].get("taught", {}) | {log["stage"]: log["seconds"] for log in logs if log["log"]}
    rows = [rows[0] | ({"taught": taught} if taught else {}), *rows[1:]]
    packages = ("torch", "triton", "tokenizers", "gguf")
    write_result(path, what, command, rows, summarise(rows), seeds, packages, where=where)


def summarise(rows: Sequence[dict[str, Any]], heads: int = 4) -> dict[str, float]:
    """Flat names to numbers. Names leave out the length with most rows, and this number of index heads.

    rows: as the module says, each cell once (`joined`). Raises ValueError for one that lacks what its test measures,
    and for "dense" or "tuned" with another k than 0: nothing would be compared with it.
    """
    if not rows:
        return {}
    for row in rows:
        if missing := ({*CELL} | MEASURED.get(row.get("test"), {"a known test"})) - row.keys():
            raise ValueError(f"expected a row with {', '.join(sorted(missing))}, got {row!r:.200}")
        if row["method"] in CONTROLS and row["k"] != 0:
            raise ValueError(f"expected k 0 of {row['method']}, which reads every key, got {row['k']}")
    counts: dict[int, int] = defaultdict(int)
    for row in rows:
        counts[row["length"]] += 1
    usual = max(counts, key=lambda length: counts[length])
    groups: dict[tuple[Where, str], list[dict]] = defaultdict(list)
    for row in rows:
        groups[(row["method"], row["k"], row["length"], row["heads"]), row["test"]].append(row)
    out: dict[str, float] = {}
    for (where, test), found in groups.items():
        method, k, length, own = where
        tail = f"_{method}" + (f"_{k}" if k else "")
        tail += (f"_at_{length}" if length != usual else "") + (f"_heads{own}" if own != heads else "")
        for name in NAMES[test]:
            out |= _estimate(f"{name}{tail}", name, found)
        for control in CONTROLS if method in ADAPTED else CONTROLS[:1]:
            other = {row["seed"]: row for row in groups.get(((control, 0, length, heads), test), [])}
            both = [(row, other[row["seed"]]) for row in found if row["seed"] in other and method != control]
            if both and test in COSTS:
                name = f"{NAMES[test][0]}{tail}_cost" + ("_tuned" if control == "tuned" else "")
                out |= _student(name, [lost for pair in both for lost in COSTS[test](*pair)])
    return out


def _estimate(name: str, kind: str, rows: list[dict]) -> dict[str, float]:
    if kind in ("needle", "blind"):
        each = "".join(row["each"] for row in rows)
        found = wilson(each.count("1"), len(each))
        shares = {name: found.mean, f"{name}_low": found.low, f"{name}_high": found.high}
        return {key: round(100 * value, 2) for key, value in shares.items()} | {f"{name}_n": len(each)}
    key = {"ppl": "ppl", "far": "far_right", "copy": "right", "kept": "kept"}[kind]
    values = [row[key] for row in rows if row[key] not in (None, [])]
    if kind == "kept":
        values = [sum(layers) / len(layers) for layers in values]
    return _student(name, values) if values else {}


def _student(name: str, values: list[float]) -> dict[str, float]:
    found = student_mean(values)
    out = {name: round(found.mean, 4)}
    return out if found.count == 1 else out | {f"{name}_low": round(found.low, 4), f"{name}_high": round(found.high, 4)}
