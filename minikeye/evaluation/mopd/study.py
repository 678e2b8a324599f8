"""Many teachers, one student, and what else could have been done: python -m minikeye.evaluation.mopd.study --out FILE

For every seed a base and six experts (`experts`), then the arms of `arms`, each from the base. One line an arm and seed
with the greedy score in every domain, of an expert or not, and the log of the way there. Called again it adds missing
lines; lines that other processes wrote, say for other seeds, are added with --add.

    headroom of a domain = (student - base) / (expert - base)

headroom_min is that of the domain in which its mean over seeds is least, headroom_worst the least of any seed. Where
the careless annotator pushed a base down to the best constant answer or below, that base no longer knows the domain,
and whether a student finds it again is another question: headroom_able_ is without these, mopd_unable counts them.
That rule was made after two of the first five seeds had shown the need of it: headroom_min is the result, without it.
"""

import argparse
import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from pathlib import Path

import torch

from minikeye.evaluation.mopd import experts
from minikeye.evaluation.mopd.arms import ARMS, Family, Plan, batches, config_of, learn, right
from minikeye.files import CHECKPOINT
from minikeye.keye import KeyeVL
from minikeye.results import hardware, write_result
from minikeye.rl.mopd.distill import apart_at_start
from minikeye.rl.mopd.domains import EXPERTS, PROBES
from minikeye.rl.parallel.agreement import PATIENCE
from minikeye.scores import student_mean
from minikeye.training.parallel.mesh import ALONE, Ranks, join

BETTER = 5.0  # points that an expert must be above its base for a headroom to be spoken of: else it is noise


def family(folder: Path, seed: int, foreign: int | None) -> Family:
    """Base and experts of a seed, and of another one's experts where that seed is made. Raises as `from_pretrained`."""
    load = lambda n, name: KeyeVL.from_pretrained(folder / f"seed-{n}" / name, dtype=torch.float32)  # noqa: E731
    others = {} if foreign is None else {name: load(foreign, name) for name in EXPERTS}
    return Family(seed, load(seed, experts.BASE), {name: load(seed, name) for name in EXPERTS}, others)


def rows_of(
    made: Family, plan: Plan, arms: list[str], questions: int, done: set[str], ranks: Ranks = ALONE
) -> Iterator[dict]:
    """The lines of one seed that are wanted and not done: base and experts first."""
    sizes = replace(experts.Plan(), questions=questions)
    for name, model in ((experts.BASE, made.base), *((f"expert {n}", m) for n, m in made.experts.items())):
        if name not in done:
            more = {"constant": experts.constants(made.seed, sizes)} if name == experts.BASE else {}
            yield {
                "seed": made.seed,
                "arm": name,
                "scores": experts.examined(model, made.seed, sizes, ranks=ranks),
                **more,
            }
    for arm in arms:
        if arm in done:
            continue
        student = copy.deepcopy(made.base)
        took = learn(arm, student, made, plan, ranks)
        yield {
            "seed": made.seed,
            "arm": arm,
            "scores": experts.examined(student, made.seed, sizes, ranks=ranks),
            **took,
        }


def headrooms(rows: list[dict], arm: str, able: bool = False) -> dict[str, dict[int, float]]:
    """In percent, of every domain with an expert: by seed, where the expert is BETTER points above its base or more.

    able: and where its base is above the best constant.
    """
    lost = unable(rows) if able else set()
    at = {(row["seed"], row["arm"]): row["scores"] for row in rows}
    out: dict[str, dict[int, float]] = {name: {} for name in EXPERTS}
    for seed in sorted({row["seed"] for row in rows if row["arm"] == arm}):
        for name in EXPERTS:
            base, expert = at[seed, experts.BASE][name], at[seed, f"expert {name}"][name]
            if expert - base >= BETTER and (seed, name) not in lost:
                out[name][seed] = 100 * (at[seed, arm][name] - base) / (expert - base)
    return {name: values for name, values in out.items() if values}


def unable(rows: list[dict]) -> set[tuple[int, str]]:
    """Seeds and domains in which the base is no better than the best answer that is the same to all questions."""
    bases = [row for row in rows if row["arm"] == experts.BASE]
    return {(row["seed"], name) for row in bases for name in EXPERTS if row["scores"][name] <= row["constant"][name]}


def summarise(rows: list[dict]) -> dict[str, float | int]:
    """The flat numbers: of MOPD without a suffix, of each other arm with its name."""
    of = lambda arm: [row for row in rows if row["arm"] == arm]  # noqa: E731
    mean = lambda values: round(sum(values) / len(values), 1)  # noqa: E731
    out: dict[str, float | int] = {"mopd_seeds": len({row["seed"] for row in of("mopd")})}
    for name in (*EXPERTS, *PROBES):
        if bases := of(experts.BASE):
            out[f"base_{name}"] = mean([row["scores"][name] for row in bases])
        if some := of(f"expert {name}"):
            out[f"expert_{name}"] = mean([row["scores"][name] for row in some])
    for arm in (arm for arm in ARMS if of(arm)):
        end = "" if arm == "mopd" else f"_{arm}"
        out |= {f"{key}{end}": value for key, value in of_arm(rows, arm).items()}
    if of("mopd") and of("mixrl"):
        spent, other = of("mopd")[0]["rollouts"], of("mixrl")[0]["rollouts"]
        sizes = experts.Plan()
        making = len(EXPERTS) * sizes.iterations * sizes.prompts * sizes.group
        out |= {"rollouts_ratio": round(spent / other, 3), "rollouts_ratio_experts": round((spent + making) / other, 3)}
    return out | {
        "mopd_domains": len(EXPERTS),
        "mopd_unable": len(unable(rows)),
        "mopd_questions": rows[0]["questions"] if rows else 0,
    }


def of_arm(rows: list[dict], arm: str) -> dict[str, float]:
    """Headrooms (able: see the file's head), losses in domains without an expert (drop_, in points; text_drop is that
    of words), CPU seconds, and the distance to the teachers in the first and the last twentieth, nats a token.
    """
    mean = lambda values: round(sum(values) / len(values), 1)  # noqa: E731
    some, out = [row for row in rows if row["arm"] == arm], {}
    if found := headrooms(rows, arm):
        means = {name: mean(by_seed.values()) for name, by_seed in found.items()}
        out |= {"headroom_min": min(means.values()), "headroom_mean": mean(means.values())}
        out["headroom_worst"] = round(min(min(by_seed.values()) for by_seed in found.values()), 1)
        seeds = sorted({seed for by_seed in found.values() for seed in by_seed})
        per_seed = [mean([by_seed[n] for by_seed in found.values() if n in by_seed]) for n in seeds]
        if len(per_seed) > 1:
            estimate = student_mean(per_seed)
            out |= {"headroom_mean_low": round(estimate.low, 1), "headroom_mean_high": round(estimate.high, 1)}
        out |= {f"headroom_{name}": value for name, value in means.items()}
        if able := [mean(by_seed.values()) for by_seed in headrooms(rows, arm, able=True).values()]:
            out |= {"headroom_able_min": min(able), "headroom_able_mean": mean(able)}
    at = {(row["seed"], row["arm"]): row["scores"] for row in rows}
    for name in PROBES:
        out[f"drop_{name}"] = mean([at[row["seed"], experts.BASE][name] - row["scores"][name] for row in some])
    out |= {"text_drop": out["drop_words"], "cpu_seconds_mopd": mean([row["cpu_seconds"] for row in some])}
    if "kl" in some[0].get("log", [{}])[0]:
        ends = {"kl_start": 0, "kl_end": -1}
        out |= {key: round(sum(row["log"][n]["kl"] for row in some) / len(some), 3) for key, n in ends.items()}
    return out


def report(path: Path, rows: list[dict]) -> None:
    """Write all that is known so far."""
    rows = sorted(rows, key=lambda row: row["seed"])
    what = "greedy score in percent in every domain of a base, its experts, and students made from them in several ways"
    command = f"OMP_NUM_THREADS=1 python -m minikeye.evaluation.mopd.study --out assets/results/{path.name}"
    where = "; ".join(sorted({row["hardware"] for row in rows}))
    write_result(path, what, command, rows, summarise(rows), sorted({row["seed"] for row in rows}), where=where)


def read(paths: list[Path]) -> list[dict]:
    """The lines of several files, each arm of a seed once. Raises ValueError where they are of different sizes."""
    found = {}
    for path in paths:
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []:
            found.setdefault((row["seed"], row["arm"]), row)
    require_alike([*found.values()])
    return [*found.values()]


def require_alike(rows: list[dict]) -> None:
    """Raise ValueError where lines were not asked as many questions, or taught by another plan."""
    sizes = {json.dumps([row["questions"], row.get("plan")], sort_keys=True) for row in rows}
    if len(sizes) > 1:
        raise ValueError(f"expected lines of one size, got {len(sizes)}: {sorted(sizes)}: write to another file")


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
    parser.add_argument("--foreign", type=int, help="seed whose experts are the foreign ones; default: the next seed's")
    parser.add_argument("--questions", type=int, default=300, help="of each examination")
    parser.add_argument("--smoke", action="store_true", help="tiny experts; give tiny sizes too")
    for field in fields(Plan):
        if field.type in (int, float):
            parser.add_argument(f"--{field.name.replace('_', '-')}", type=field.type, default=field.default)
    options = parser.parse_args()
    ranks = join("cpu", timeout=PATIENCE)
    torch.set_num_threads(1)
    plan = Plan(**{field.name: getattr(options, field.name) for field in fields(Plan) if hasattr(options, field.name)})
    folder = options.models or options.out.with_suffix("")
    sizes = {"questions": options.questions, "plan": asdict(plan)}
    rows = read([options.out, *options.add])
    require_alike([*rows, sizes])
    for seed in options.seeds:
        done = {row["arm"] for row in rows if row["seed"] == seed}
        foreign = other_seed(seed, options.seeds) if options.foreign is None else options.foreign
        arms = [arm for arm in options.arms if arm != "foreign" or foreign not in (None, seed)]
        if not {*arms, experts.BASE, *(f"expert {name}" for name in EXPERTS)} - done:
            continue
        for each in {seed, foreign} - {None} if "foreign" in arms else {seed}:
            experts.make(options.checkpoint, folder, each, experts.SMOKE if options.smoke else experts.Plan(), ranks)
        made = family(folder, seed, foreign if "foreign" in arms else None)
        student = copy.deepcopy(made.base)
        far = apart_at_start(student, batches(student, seed, plan.prompts)(0), right(made), config_of(plan, seed))
        if ranks.rank == 0:
            print({route: round(kl, 2) for route, kl in far.items()}, "nats a token, student || teacher", flush=True)
        for row in rows_of(made, plan, arms, options.questions, done, ranks):
            if ranks.rank:
                continue
            rows.append(row | sizes | {"hardware": hardware(), "torch": torch.__version__, "start_kl": far})
            print(json.dumps({key: row[key] for key in ("seed", "arm", "scores")}), flush=True)
            report(options.out, rows)
    if rows and ranks.rank == 0:
        report(options.out, rows)


def other_seed(seed: int, seeds: list[int]) -> int | None:
    """The next one in a circle; None where there is no other."""
    return seeds[(seeds.index(seed) + 1) % len(seeds)] if len(seeds) > 1 else None


if __name__ == "__main__":
    main()
