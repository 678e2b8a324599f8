"""Agents, taught and asked: python -m minikeye.evaluation.agents.study --out FILE

For every family and seed, all from the same checkpoint:
    straight  imitates the true answer in one turn, without a tool
    imitated  imitates an expert that calls, misses, and calls again
    agent     is the imitated one, taught further by reward (GSPO)

One line each: greedy scores over test episodes that are the same for every seed, split by what the environment drew;
for imitated and agent also with the results of calls shuffled between episodes. Called again it adds missing lines;
lines that other processes wrote are added with --add. Our choice, all numbers.
"""

import argparse
import copy
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from torch.utils.data import Dataset

from minikeye.config import KeyeConfig
from minikeye.evaluation.agents.families import Family, Scale, families
from minikeye.evaluation.agents.measure import Player, play, scores, split
from minikeye.files import CHECKPOINT
from minikeye.inputs.processor import Processor
from minikeye.keye import KeyeVL
from minikeye.minivid.lessons import batches
from minikeye.results import hardware, write_result
from minikeye.rl.agent.imitate import Demonstration, demonstrate, imitate
from minikeye.rl.agent.learn import AgentConfig, reinforce
from minikeye.rl.agent.trajectory import Writer
from minikeye.rl.learn import learns
from minikeye.rl.parallel.agreement import require_one_process
from minikeye.scores import student_mean
from minikeye.training.loop import LoopConfig
from minikeye.training.stage import SLOW
from minikeye.training.state import read_log
from minikeye.training.step import on

NAMES = list(families("mini"))
ARMS = ("straight", "imitated", "agent")
WITHOUT = {"look": "one_pass", "search": "blind"}  # what a policy without a tool is called
LOGGED = (
    "step", "loss", "right", "reward", "teaches", "calls", "invalid", "length", "stale", "waiting", "clipped", "ratio"
)  # fmt: skip
UNSEEN = 1_000  # added to the seed of the worlds that reward teaches in: imitation never saw them


@dataclass(frozen=True)
class Demonstrations(Dataset):
    """What each step of an imitation learns from, made from the step's number alone; it may travel to a worker."""

    family: str
    scale: Scale
    config: KeyeConfig
    lessons: int  # episodes in a step, at most
    seed: int
    straight: bool
    steps: range

    def __len__(self) -> int:
        return len(self.steps)

    def __getitem__(self, n: int) -> list[Demonstration]:
        family, step, writer = families(self.scale)[self.family], self.steps[n], Writer(Processor(self.config))
        if family.lesson is None:
            world, episodes = family.world("train", self.seed), self.lessons
        else:
            world, episodes = family.lesson(self.seed, step)
        expert = (lambda w, heard: family.straight(w)) if self.straight else family.expert
        numbers = range(step * self.lessons, step * self.lessons + min(episodes, self.lessons))
        return [demonstrate(world, number, expert, writer, family.budget) for number in numbers]


@dataclass(frozen=True)
class Run:
    """How one family and seed are taught."""

    seed: int
    workers: int = 0  # processes that play the expert's episodes
    states: Path | None = None  # folder for logs, resumable states and the models


def taught(model: KeyeVL, family: Family, arm: str, run: Run) -> list[dict[str, Any]]:
    """Teach one arm in place; returns the log. The arm "agent" begins from what "imitated" left."""
    seed, folder = run.seed, run.states
    writer, sizes, name = Writer(Processor(model.config)), family.sizes, f"{family.name}-{seed}-{arm}"
    if arm == "agent":
        config = AgentConfig(
            groups=sizes.groups, group=sizes.group, rounds=family.rounds, budget=family.budget,
            drawing=replace(family.drawing, seed=seed),
        )  # fmt: skip
        steps = sizes.iterations * config.minibatches
        saved = 5 * config.minibatches
        loop = LoopConfig(
            steps, sizes.reward_lr, warmup=4, final_lr=0.3, weight_decay=0.0, save_every=saved, log_every=1
        )
        world, wanted = lambda: family.world("train", seed + UNSEEN), lambda n: learns(n) and family.learns(n)
        return reinforce(model, world, writer, config, loop, folder, name, wanted)
    lessons: Iterator[list[Demonstration]] | None = None

    def batch_at(step: int) -> list[Demonstration]:
        nonlocal lessons
        if lessons is None:  # only now it is known where a run goes on
            steps = range(step, sizes.imitation)
            made = (family.name, family.scale, model.config, sizes.lessons, seed, arm == "straight", steps)
            lessons = batches(Demonstrations(*made), run.workers, "forkserver")  # a sandbox does not survive a fork
        return next(lessons)

    loop = LoopConfig(steps=sizes.imitation, lr=sizes.imitation_lr, warmup=50, slow=SLOW, save_every=200)
    return imitate(model, batch_at, loop, folder, name, family.learns)


def asked(model: KeyeVL, family: Family, shuffled: bool = False) -> tuple[dict[str, Any], dict[str, Any]]:
    """Scores over the test, and apart by what was drawn."""
    player = Player(lambda: family.world("test", 0), Writer(Processor(model.config)), family.budget, family.drawing)
    played = play(model, player, range(family.sizes.test), shuffled, rows=family.sizes.test)
    return scores(played, family.right), split(played, family.factors, family.right)


def measure(
    folder: Path, family: Family, run: Run, wanted: list[str], device: torch.device | str
) -> Iterator[dict[str, Any]]:
    """The lines of one family and seed that are wanted, one after another."""
    model, prepared = KeyeVL.from_pretrained(folder, dtype=torch.float32, device=device), {}
    if family.prepare is not None:
        name = f"{family.name}-tower"  # the same for every seed: taught once
        log = family.prepare(model, run.states, name)
        log = log if run.states is None else read_log(run.states / f"{name}.jsonl")
        prepared = {"prepared": {k: round(log[-1][k], 4) for k in ("step", "loss", "digit")}}
    begun = copy.deepcopy(model.state_dict())
    for arm in [arm for arm in ARMS if arm in wanted or (arm == "imitated" and "agent" in wanted)]:
        if arm != "agent":
            model.load_state_dict(begun)
        row = row_of(model, family, arm, run)
        if run.states is not None:
            model.save_pretrained(run.states / f"{family.name}-{run.seed}-{arm}")
        if arm in wanted:
            yield row | prepared


def row_of(model: KeyeVL, family: Family, arm: str, run: Run) -> dict[str, Any]:
    """Teach one arm, and ask it. seconds: of teaching, whenever that was done."""
    log = taught(model, family, arm, run)
    if run.states is not None:  # an arm that was taught before is not taught again, and has no log of this call
        log = read_log(run.states / f"{family.name}-{run.seed}-{arm}.jsonl")
    found, splits = asked(model, family)
    row = {"family": family.name, "seed": run.seed, "arm": arm, **found, "splits": splits}
    if arm != "straight":
        row["shuffled"], _ = asked(model, family, shuffled=True)
    row["log"] = [{k: round(line[k], 5) for k in LOGGED if k in line} for line in log[:: max(1, len(log) // 30)]]
    how = {"seconds": round(log[-1]["seconds"]), **made(family), "chance": family.chance}
    return row | how | {"torch": torch.__version__, "hardware": hardware()}


def summarise(rows: list[dict[str, Any]]) -> dict[str, float | int]:
    """Percent, means over seeds, with _low and _high (95 %) from two seeds on; FAMILY_seeds counts them.

    FAMILY_success of the agent, FAMILY_imitated of imitation alone, FAMILY_shuffled with other episodes' results, and
    without a tool search_blind, look_one_pass, code_no_tool, tool_no_tool: right answers, whatever the reward asks
    besides. FAMILY_self_correction: right ones of those that slipped; code_pass: share of hidden tests; FAMILY_calls;
    invalid_calls is over all families. All begin with nano_ at that scale.
    """
    out: dict[str, float | int] = {}
    for name in NAMES:
        of = {arm: [row for row in rows if row["family"] == name and row["arm"] == arm] for arm in ARMS}
        agent = of["agent"]
        values = {
            f"{name}_success": [row["success"] for row in agent],
            f"{name}_imitated": [row["success"] for row in of["imitated"]],
            f"{name}_imitated_self_correction": [row["corrected"] for row in of["imitated"] if row["n_slipped"]],
            f"{name}_{WITHOUT.get(name, 'no_tool')}": [row["right"] for row in of["straight"]],
            f"{name}_shuffled": [row["shuffled"]["right"] for row in agent],
            f"{name}_self_correction": [row["corrected"] for row in agent if row["n_slipped"]],
            f"{name}_calls": [row["calls"] for row in agent],
        }
        if name == "code":
            values["code_pass"] = [100 * row["reward"] for row in agent]
        for key, some in values.items():
            out |= spread(key, some)
        if agent:
            out |= {f"{name}_seeds": len(agent), f"{name}_chance": agent[0]["chance"]}
    out |= spread("invalid_calls", [row["invalid"] for row in rows if row["arm"] == "agent"])
    return {("nano_" if rows[0]["scale"] == "nano" else "") + key: value for key, value in out.items()}


def spread(name: str, values: list[float]) -> dict[str, float]:
    """Mean, and interval from two values on."""
    if not values:
        return {}
    out = {name: round(sum(values) / len(values), 2)}
    if len(values) > 1:
        estimate = student_mean(values)
        out |= {f"{name}_low": round(estimate.low, 2), f"{name}_high": round(estimate.high, 2)}
    return out


def report(path: Path, rows: list[dict[str, Any]], command: str) -> None:
    ordered = sorted(rows, key=lambda row: (NAMES.index(row["family"]), row["seed"], ARMS.index(row["arm"])))
    seeds = sorted({row["seed"] for row in rows})
    machines = ", ".join(sorted({row["hardware"] for row in rows}))
    what = "agents that call tools: success, self-correction, and controls, by family, seed and arm"
    write_result(path, what, command, ordered, summarise(ordered), seeds, where=machines)


def made(family: Family) -> dict[str, Any]:
    """How a line of this family is made, as it is kept in it."""
    return {"sizes": asdict(family.sizes), "frozen": list(family.frozen)}


def gathered(files: list[Path], scale: Scale, checkpoint: str) -> list[dict[str, Any]]:
    """The lines of several files, each once.

    Raises ValueError for a line that was made otherwise: another scale, checkpoint or size is another study.
    """
    rows: dict[tuple[str, int, str], dict[str, Any]] = {}
    for path in files:
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"]:
            wanted = {"scale": scale, "checkpoint": checkpoint} | made(families(scale)[row["family"]])
            if (found := {key: row.get(key) for key in wanted}) != wanted:
                raise ValueError(f"expected lines made with {wanted} in {path}, got {found}: give another --out")
            rows.setdefault((row["family"], row["seed"], row["arm"]), row)
    return list(rows.values())


def called(options: argparse.Namespace) -> str:
    """The command that makes such a file again: what is not as it is by default."""
    words = "python -m minikeye.evaluation.agents.study --out FILE"
    words += f" --checkpoint {options.checkpoint}" * (options.checkpoint != CHECKPOINT)
    return words + f" --scale {options.scale}" * (options.scale != "mini")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="folder of the model to begin from")
    parser.add_argument("--out", type=Path, required=True, help="the JSON to write, or to add missing lines to")
    parser.add_argument(
        "--add", type=Path, nargs="*", default=[], help="JSON files of other calls, whose lines are added"
    )
    parser.add_argument("--states", type=Path, help="folder for logs, resumable states and the agents")
    parser.add_argument("--families", nargs="*", choices=NAMES, default=NAMES)
    parser.add_argument("--arms", nargs="*", choices=ARMS, default=list(ARMS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--scale", choices=get_args(Scale), default="mini", help="how hard, and how long it is taught")
    parser.add_argument("--workers", type=int, default=0, help="processes that play the expert's episodes")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    require_one_process("run one for each family and seed (--families, --seeds, --out), and join their files by --add")
    device, command = on(options.device), called(options)
    files = [path for path in (options.out, *options.add) if path.is_file()]
    rows = gathered(files, options.scale, options.checkpoint.name)
    for name in options.families:
        for seed in options.seeds:
            done = {row["arm"] for row in rows if (row["family"], row["seed"]) == (name, seed)}
            wanted = [arm for arm in options.arms if arm not in done]
            run = Run(seed, options.workers, options.states)
            lines = measure(options.checkpoint, families(options.scale)[name], run, wanted, device) if wanted else []
            for row in lines:
                shown = ("family", "seed", "arm", "success", "right", "corrected", "calls", "invalid", "seconds")
                print(json.dumps({k: row[k] for k in shown}), flush=True)
                rows.append(row | {"scale": options.scale, "checkpoint": options.checkpoint.name})
                report(options.out, rows, command)
    if rows:
        report(options.out, rows, command)


if __name__ == "__main__":
    main()
