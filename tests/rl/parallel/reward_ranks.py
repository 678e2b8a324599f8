"""One of several processes that learn from reward and from teachers: `python reward_ranks.py FOLDER`, by `play`.

Imported, it has the cases, which run alone as well; run, it plays them all and leaves what came out in FOLDER/RANK.pt.
"""

import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from minikeye.config import KeyeConfig
from minikeye.evaluation import rl_context
from minikeye.evaluation.mopd.arms import Family, Plan, learn
from minikeye.files import CHECKPOINT
from minikeye.inference.generate import generate
from minikeye.keye import KeyeVL
from minikeye.minivid.dataset import make_videos
from minikeye.minivid.lessons import Lesson, Size, question_prompts
from minikeye.rl.gspo import CISPO, DAPO, DR_GRPO, GRPO
from minikeye.rl.learn import RolloutConfig, learns, reinforce, with_visual_tokens
from minikeye.rl.mopd.distill import DistillConfig, apart_at_start, distill
from minikeye.rl.mopd.domains import EXPERTS
from minikeye.rl.mopd.estimators import SAMPLED
from minikeye.rl.mopd.merging import imitate
from minikeye.rl.mopd.teachers import Asked, Route, Teacher, Teachers
from minikeye.rl.parallel.agreement import require_whole
from minikeye.rl.second_chance import SecondChance
from minikeye.training.loop import LoopConfig
from minikeye.training.parallel.mesh import ALONE, Ranks, gathered, join, spread

CONFIG = KeyeConfig.nano()
LOOP = LoopConfig(steps=4, lr=1e-4, warmup=0, log_every=1)
SMALL = RolloutConfig(group=5, max_new_tokens=3)
REPORT = SecondChance(lambda text, known: f"{text!r} is wrong.", most=2)
TEACHING = DistillConfig(group=3, max_new_tokens=3, most_kl=9.0)
UP, DOWN = Route("up", "text"), Route("down", "text")


def early(text: str, _: int) -> float:
    """About an even chance at first."""
    return float(bool(text) and ord(text[0]) < 128)


def rarely(text: str, number: int) -> float:
    """The same of every second question; answers to the others are worth the same."""
    return early(text, number) if number % 2 else 0.5


def never_at_first(text: str, number: int) -> float:
    """0 for every answer of every second question that is not of a kind that is rare."""
    return float(bool(text) and ord(text[0]) < (128 if number % 2 else 12))


# Name -> prompts of a rollout, reward, config, second chance. Two ranks have no prompt or no group in some.
REWARDS: dict[str, tuple[int, Callable, RolloutConfig, SecondChance | None]] = {
    "GSPO": (4, early, SMALL, None),
    "GRPO": (3, early, replace(SMALL, variant=GRPO, minibatches=1), None),
    "Dr. GRPO": (2, early, replace(SMALL, variant=DR_GRPO), None),  # a group a minibatch: a rank learns from none
    "DAPO": (4, rarely, replace(SMALL, variant=DAPO, oversample=3), None),
    "CISPO": (1, early, replace(SMALL, variant=CISPO, minibatches=1), None),  # one rank has no prompt
    "replay": (3, early, replace(SMALL, attention="sparse", replay="both", minibatches=1), None),
    "second chance": (4, never_at_first, SMALL, REPORT),
    "nothing": (2, lambda text, known: 1.0, SMALL, None),
}
# Name -> prompts of both kinds, config.
LESSONS: dict[str, tuple[tuple[int, int], DistillConfig]] = {
    "overlap": ((4, 4), TEACHING),  # each rank has one kind
    "sampled": ((1, 2), replace(TEACHING, estimator=SAMPLED, average="answers", icepop=(0.5, 5.0))),
    "one": ((1, 0), TEACHING),  # one rank has none
}


def policy(ranks: Ranks = ALONE, seed: int = 0) -> KeyeVL:
    """Of low entropy, as a model that has learnt something."""
    torch.manual_seed(seed)
    model = KeyeVL(CONFIG)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.03 * torch.randn_like(p))
        model.lm_head.weight.mul_(2)
    spread(model, ranks)
    return model


def questions(model: KeyeVL, count: int, ranks: Ranks = ALONE) -> Callable[[int], tuple[dict, list[int]]]:
    """Needle questions about four frames; all that the reward knows of one is its number."""
    size = Size(4, count, 28, 28)

    def at(iteration: int) -> tuple[dict, list[int]]:
        numbers = range(count * iteration, count * (iteration + 1))
        videos = make_videos(5, numbers, 4, "train")
        prompts = question_prompts(videos, "N", size, CONFIG)
        mask = prompts["attention_mask"]
        del prompts["frames"]
        inputs = Lesson(prompts, videos, size).inputs(CONFIG, "cpu") | {"attention_mask": mask}
        return with_visual_tokens(model, inputs, ranks=ranks), list(numbers)

    return at


def batch(number: int, sizes: tuple[int, int]) -> list[Asked]:
    """Two kinds of text, told apart by their first token."""
    random, out = torch.Generator().manual_seed(number), []
    for first, route, length, count in ((60, UP, 5, sizes[0]), (62, DOWN, 7, sizes[1])):
        ids = torch.randint(32, 127, (count, length), generator=random)
        ids[:, 0] = first
        out.append(Asked({"input_ids": ids, "positions": torch.arange(length).expand(3, count, -1).clone()}, route))
    return [each for each in out if len(each)]


def teachers() -> Teachers:
    return Teachers({UP: Teacher("up", policy(seed=1)), DOWN: Teacher("down", policy(seed=2))})


def whole(model: KeyeVL) -> dict[str, torch.Tensor]:
    """What learnt, whole."""
    learnt = {name: p.detach() for name, p in model.named_parameters() if learns(name)}
    return {name: p.full_tensor() if hasattr(p, "full_tensor") else p.clone() for name, p in learnt.items()}


def rewarded(case: str, ranks: Ranks = ALONE, folder: Path | None = None) -> dict[str, Any]:
    count, reward, config, chance = REWARDS[case]
    model = policy(ranks)
    lines = reinforce(
        model, questions(model, count, ranks), reward, config, LOOP, folder, second_chance=chance, ranks=ranks
    )
    return {"lines": lines, "parameters": whole(model)}


def taught(case: str, ranks: Ranks = ALONE) -> dict[str, Any]:
    sizes, config = LESSONS[case]
    model = policy(ranks)
    far = apart_at_start(model, batch(0, sizes), teachers(), config, ranks=ranks)
    lines = distill(model, lambda step: batch(step, sizes), teachers(), config, LOOP, ranks=ranks)
    return {"lines": lines, "parameters": whole(model), "far": far}


def imitated(ranks: Ranks = ALONE) -> dict[str, Any]:
    """Two kinds of prompts, of one of which a rank has none."""
    model = policy(ranks)
    lines = imitate(model, lambda step: batch(step, (3, 1)), teachers(), TEACHING, LOOP, ranks=ranks)
    return {"lines": lines, "parameters": whole(model)}


def resumed(ranks: Ranks, folder: Path) -> dict[str, Any]:
    """As `rewarded("GSPO")`, stopped after two of four steps by a reward that fails."""
    count, reward, config, _ = REWARDS["GSPO"]
    loop, asked = replace(LOOP, save_every=2), questions(policy(), count)

    def fails(text: str, number: int) -> float:
        if number >= count:
            raise KeyError("of the second rollout")
        return reward(text, number)

    raised(lambda: reinforce(policy(ranks), asked, fails, config, loop, folder, "resumed", ranks=ranks))
    model = policy(ranks)
    lines = reinforce(model, asked, reward, config, loop, folder, "resumed", ranks=ranks)
    return {"lines": lines, "parameters": whole(model)}


def studied(ranks: Ranks = ALONE) -> dict[str, list[dict]]:
    """A study of reward, from a checkpoint on; and an arm of that of many teachers, with prompts of all kinds."""
    sizes = {"frames": 8, "span": 1, "lessons": 3, "base_steps": 2, "prompts": 4, "group": 3, "iterations": 2}
    study = rl_context.Study(**sizes, every=1, check=3, test=5)
    folder = CHECKPOINT.with_name("nano_things")
    rows = [*rl_context.measure(folder, study, 0, ["base", "context"], ranks=ranks)]
    family = Family(0, policy(), {name: policy(seed=n) for n, name in enumerate(EXPERTS, 1)}, {})
    log = learn("wrong_router", policy(), family, Plan(steps=2, prompts=1), ranks)["log"]
    rows = [{k: x for k, x in row.items() if k not in ("cpu_seconds", "hardware", "torch")} for row in rows]
    return {"reward": rows, "teachers": log}


def raised(run: Callable[[], Any]) -> tuple[str, str]:
    try:
        run()
    except Exception as error:
        return type(error).__name__, str(error)
    return "nothing", ""


def wrong(ranks: Ranks, folder: Path) -> dict[str, tuple[str, str]]:
    """What every rank says where one of them fails, or where the ranks are of a kind that is left out."""

    def broken(text: str, number: int) -> float:
        return math.nan if number == 3 else 1.0  # of four prompts, the last rank's

    def unknown(text: str, number: int) -> float:
        raise KeyError("no such question") if number == 0 else ValueError("as well")

    def spoilt(when: str) -> KeyeVL:
        """On the last rank numbers become nan: while it answers, while it learns, or on the way back."""
        model, last = policy(ranks), ranks.rank == ranks.size - 1

        def hook(module: torch.nn.Module, given: Any, out: torch.Tensor) -> torch.Tensor:
            if when == "gradient" and module.training:
                out.register_hook(lambda grad: grad * math.nan)
            here = last and when == ("learning" if module.training else "answering")
            return out * math.nan if here else out

        if last:
            model.model.norm.register_forward_hook(hook)
        return model

    def run(model: KeyeVL, reward: Callable = early, among: Ranks = ranks) -> tuple[str, str]:
        return raised(lambda: reinforce(model, questions(alone, 4), reward, SMALL, LOOP, folder, ranks=among))

    alone = policy()
    found = {"reward": run(policy(ranks), broken), "bug": run(policy(ranks), unknown), "whole": run(policy())}
    found["agent"] = raised(lambda: require_whole(policy(ranks)))
    found |= {when: run(spoilt(when)) for when in ("answering", "learning", "gradient")}
    two, one = (init_device_mesh("cpu", sizes, mesh_dim_names=("data", "context")) for sizes in ((1, 2), (2, 1)))
    split = init_device_mesh("cpu", (1, 2), mesh_dim_names=("copies", "experts"))
    found |= {
        "context": run(alone, among=replace(ranks, rows=two)),
        "experts": run(alone, among=Ranks(None, one, split)),
    }
    return found


def passes(ranks: Ranks) -> dict[str, Any]:
    """Different numbers of passes on each rank, while parameters are gathered; and a pass together afterwards."""
    model, alone = policy(ranks).eval(), policy().eval()
    prompt = {"input_ids": torch.arange(5)[None], "positions": torch.arange(5).expand(3, 1, -1)}
    number = 2 + 5 * ranks.rank
    with gathered(model, ranks):
        said = generate(model, prompt, number, temperature=1.0, seed=3).ids
    with torch.no_grad():
        logits = model(prompt, attention="dense").logits
    spread_again = all(p.to_local().numel() < p.numel() for p in model.parameters() if p.shape[0] > 1)
    expected = generate(alone, prompt, number, temperature=1.0, seed=3).ids
    together = bool(torch.allclose(logits, alone(prompt, attention="dense").logits, atol=1e-6))
    return {"said": torch.equal(said, expected), "again": spread_again, "together": together}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("error")
    ranks = join("cpu")
    out: dict[str, Any] = {"reward": {case: rewarded(case, ranks) for case in REWARDS}}
    out["lessons"] = {case: taught(case, ranks) for case in LESSONS}
    prompts, _ = questions(policy(ranks), 3, ranks)(1)
    out |= {"studied": studied(ranks), "imitated": imitated(ranks), "resumed": resumed(ranks, folder)}
    out |= {"visual": prompts["visual"], "wrong": wrong(ranks, folder), "passes": passes(ranks)}
    torch.save(out, folder / f"{ranks.rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
