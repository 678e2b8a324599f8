"""Many teachers, one student, and what else could have been done: python -m minikeye.evaluation.mopd.study --out FILE

For every seed a base and six experts (`experts`), then the arms of `arms`, each from the base. One line an arm and seed
with the greedy score in every domain, of an expert or not, and the log of the way there. Called again it adds missing
lines; lines that other processes wrote, say for other seeds, are added with --add.

    headroom of a domain = (student - base) / (expert - base)

headroom_min is that of the domain in which its mean over seeds is least, headroom_worst the least of any seed.
"""

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

from minikeye.evaluation.mopd import experts
from minikeye.evaluation.mopd.arms import ARMS, Family, Plan, batches, learn, right
from minikeye.files import CHECKPOINT
from minikeye.keye import KeyeVL
from minikeye.results import hardware, write_result
from minikeye.rl.mopd.distill import DistillConfig, apart_at_start
from minikeye.rl.mopd.domains import EXPERTS, PROBES
from minikeye.scores import student_mean

BETTER = 1.0  # points that an expert must be above its base for a headroom to be spoken of


def family(folder: Path, seed: int, foreign: int | None) -> Family:
    """Base and experts of a seed, and of another one's experts where that seed is made. Raises as `from_pretrained`."""
    load = lambda n, name: KeyeVL.from_pretrained(folder / f"seed-{n}" / name, dtype=torch.float32)  # noqa: E731
    others = {} if foreign is None else {name: load(foreign, name) for name in EXPERTS}
    return Family(seed, load(seed, experts.BASE), {name: load(seed, name) for name in EXPERTS}, others)


def rows_of(made: Family, plan: Plan, arms: list[str], questions: int, done: set[str]) -> Iterator[dict]:
    """The lines of one seed that are wanted and not done: base and experts first."""
    sizes = replace(experts.Plan(), questions=questions)
    for name, model in ((experts.BASE, made.base), *((f"expert {n}", m) for n, m in made.experts.items())):
        if name not in done:
            yield {"seed": made.seed, "arm": name, "scores": experts.examined(model, made.seed, sizes)}
    begun = {name: p.clone() for name, p in made.base.state_dict().items()}
    student = KeyeVL(made.base.config)
    for arm in arms:
        if arm in done or (arm == "foreign" and not made.foreign):
            continue
        student.load_state_dict(begun)
        took = learn(arm, student, made, plan)
        yield {"seed": made.seed, "arm": arm, "scores": experts.examined(student, made.seed, sizes), **took}


def headrooms(rows: list[dict], arm: str) -> dict[str, list[float]]:
    """In percent, of every domain with an expert, one number for each seed whose expert is better than its base."""
    at = {(row["seed"], row["arm"]): row["scores"] for row in rows}
    out: dict[str, list[float]] = {name: [] for name in EXPERTS}
    for seed in sorted({row["seed"] for row in rows if row["arm"] == arm}):
        for name in EXPERTS:
            base, expert = at[seed, experts.BASE][name], at[seed, f"expert {name}"][name]
            if expert - base >= BETTER:
                out[name].append(100 * (at[seed, arm][name] - base) / (expert - base))
    return {name: values for name, values in out.items() if values}


def summarise(rows: list[dict]) -> dict[str, float | int]:
    """The flat numbers: of MOPD without a suffix, of each other arm with its name."""
    seeds = sorted({row["seed"] for row in rows})
    of = lambda arm: [row for row in rows if row["arm"] == arm]  # noqa: E731
    mean = lambda values: round(sum(values) / len(values), 1)  # noqa: E731
    out: dict[str, float | int] = {"mopd_seeds": len({row["seed"] for row in of("mopd")})}
    for name in (*EXPERTS, *PROBES):
        if bases := of(experts.BASE):
            out[f"base_{name}"] = mean([row["scores"][name] for row in bases])
        if some := of(f"expert {name}"):
            out[f"expert_{name}"] = mean([row["scores"][name] for row in some])
    at = {(row["seed"], row["arm"]): row["scores"] for row in rows}
    for arm in ARMS:
        if not (some := of(arm)):
            continue
        end = "" if arm == "mopd" else f"_{arm}"
        if not (found := headrooms(rows, arm)):
            continue
        means = {name: mean(values) for name, values in found.items()}
        out |= {f"headroom_min{end}": min(means.values()), f"headroom_mean{end}": mean([*means.values()])}
        out[f"headroom_worst{end}"] = round(min(min(values) for values in found.values()), 1)
        per_seed = [mean(seed) for seed in zip(*found.values(), strict=False)]
        if len(per_seed) > 1:
            estimate = student_mean(per_seed)
            out |= {
                f"headroom_mean{end}_low": round(estimate.low, 1),
                f"headroom_mean{end}_high": round(estimate.high, 1),
            }
        out |= {f"headroom_{name}{end}": value for name, value in means.items()}
        drops = {n: mean([at[row["seed"], experts.BASE][n] - row["scores"][n] for row in some]) for n in PROBES}
        out |= {f"drop_{name}{end}": value for name, value in drops.items()}
        out[f"text_drop{end}"] = drops["words"]
        out[f"cpu_seconds_mopd{end}"] = mean([row["cpu_seconds"] for row in some])
        if "log" in some[0] and "kl" in some[0]["log"][0]:
            out |= {f"kl_start{end}": round(sum(r["log"][0]["kl"] for r in some) / len(some), 3)}
            out |= {f"kl_end{end}": round(sum(r["log"][-1]["kl"] for r in some) / len(some), 3)}
    if of("mopd") and of("mixrl"):
        out["rollouts_ratio"] = round(of("mopd")[0]["rollouts"] / of("mixrl")[0]["rollouts"], 3)
    return out | {"mopd_domains": len(EXPERTS), "mopd_questions": 0 if not seeds else rows[0]["questions"]}


def report(path: Path, rows: list[dict]) -> None:
    """Write all that is known so far."""
    rows = sorted(rows, key=lambda row: row["seed"])
    what = "greedy score in percent in every domain of a base, its experts, and students made from them in several ways"
    command = f"OMP_NUM_THREADS=1 python -m minikeye.evaluation.mopd.study --out assets/results/{path.name}"
    where = "; ".join(sorted({row["hardware"] for row in rows}))
    write_result(path, what, command, rows, summarise(rows), sorted({row["seed"] for row in rows}), where=where)


def read(paths: list[Path]) -> list[dict]:
    """The lines of several files, each arm of a seed once."""
    found = {}
    for path in paths:
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []:
            found.setdefault((row["seed"], row["arm"]), row)
    return [*found.values()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--checkpoint", type=Path, default=CHECKPOINT.with_name("nano_things"), help="where bases begin"
    )
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write, or to add missing lines to")
    parser.add_argument("--add", type=Path, nargs="*", default=[], help="JSON files whose lines are added")
    parser.add_argument("--models", type=Path, help="folder of bases and experts; default: beside the JSON")
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="*", default=list(ARMS), choices=ARMS)
    parser.add_argument("--foreign", type=int, help="seed whose experts are the foreign ones; default: none")
    parser.add_argument("--questions", type=int, default=300, help="of each examination")
    parser.add_argument("--smoke", action="store_true", help="tiny experts; give tiny sizes too")
    for field in fields(Plan):
        if field.type is not tuple[float, ...]:
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, default=field.default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    plan = Plan(**{field.name: getattr(options, field.name) for field in fields(Plan) if hasattr(options, field.name)})
    folder = options.models or options.out.with_suffix("")
    rows = read([options.out, *options.add])
    for seed in options.seeds:
        done = {row["arm"] for row in rows if row["seed"] == seed}
        if not {*options.arms, experts.BASE, *(f"expert {name}" for name in EXPERTS)} - done:
            continue
        experts.make(options.checkpoint, folder, seed, experts.SMOKE if options.smoke else experts.Plan())
        made = family(folder, seed, options.foreign)
        far = apart_at_start(made.base, batches(made.base, seed, plan.prompts)(0), right(made), DistillConfig(k=plan.k))
        print({route: round(kl, 2) for route, kl in far.items()}, "nats a token, student || teacher", flush=True)
        for row in rows_of(made, plan, options.arms, options.questions, done):
            rows.append(
                row | {"questions": options.questions, "plan": asdict(plan), "hardware": hardware(), "start_kl": far}
            )
            print(json.dumps({key: row[key] for key in ("seed", "arm", "scores")}), flush=True)
            report(options.out, rows)
    if rows:
        report(options.out, rows)


if __name__ == "__main__":
    main()
