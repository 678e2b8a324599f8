"""Learning that is interrupted and goes on in other numbers of processes: `python checkpoint_ranks.py FOLDER EP STATE`.

Imported, it is the learning; run by `play`, each process learns from the state that another number of them left in
STATE, leaves states of its own in FOLDER, and what came out in FOLDER/RANK.pt.
"""

import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F

from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.training.loop import LoopConfig, learning_rate, optimiser
from minikeye.training.parallel.checkpoints import export, load_model, save_model
from minikeye.training.parallel.mesh import ALONE, join, spread
from minikeye.training.stage import trainable
from minikeye.training.state import resume, save_state

CONFIG = LoopConfig(steps=5, lr=1e-3, warmup=2, slow=("lm_head",))
ROWS, TOKENS, SAVED = 8, 12, 2  # of a batch; steps before the state is saved


def network(seed: int = 5) -> KeyeVL:
    torch.manual_seed(seed)
    model = KeyeVL(KeyeConfig.nano())
    for p in model.parameters():
        p.data += 0.05 * torch.randn_like(p)
    return model


class Learner:
    """A model, spread over ranks, and its optimiser. The tower sees nothing: its parameters have no gradients."""

    def __init__(self, ranks=ALONE, seed: int = 5):
        self.model, self.ranks = network(seed), ranks
        spread(self.model, ranks)
        self.parameters = trainable(self.model)
        self.optim = optimiser(self.parameters, CONFIG)

    def step(self, number: int, recompute: bool = False) -> float:
        """One step on this rank's rows of the batch; the loss of the whole batch."""
        ids = torch.randint(0, 200, (ROWS, TOKENS), generator=torch.Generator().manual_seed(number))
        ids = ids[self.ranks.rank :: self.ranks.size]
        for group in self.optim.param_groups:
            group["lr"] = group["share"] * learning_rate(number, CONFIG)
        for p in self.parameters.values():
            p.grad = None
        logits = self.model({"input_ids": ids}, attention="dense", recompute=recompute).logits[:, :-1]
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten(), reduction="sum") / ROWS / (TOKENS - 1)
        loss.backward()
        self.ranks.clip(self.parameters.values(), CONFIG.clip)
        self.optim.step()
        return float(self.ranks.total(loss))

    def save(self, path: Path, step: int) -> None:
        save_state(path, self.parameters, self.optim, step, self.ranks)

    def resume(self, path: Path) -> int:
        return resume(path, self.parameters, self.optim, self.ranks)

    def whole(self) -> dict[str, torch.Tensor]:
        """All parameters, gathered."""
        return {n: getattr(p, "full_tensor", lambda p=p: p)().detach().clone() for n, p in self.parameters.items()}


def main(folder: Path, ep: int, state: Path) -> dict:
    ranks = join("cpu", ep=ep)
    begun = Learner(ranks)
    out = {"losses": [begun.step(n, recompute=n == 1) for n in range(SAVED)]}
    begun.save(folder / "own.pt", SAVED)
    out["losses"] += [begun.step(n) for n in range(SAVED, CONFIG.steps)]
    out["parameters"] = begun.whole()
    save_model(folder / "done.pt", begun.model, {"stages": ["a", "b"]}, ranks)
    export(begun.model, folder / "exported", ranks, max_shard_bytes=2**17, dtype=torch.bfloat16)

    other = Learner(ranks, seed=6)
    for name, path in (("own", folder / "own.pt"), ("other", state)):
        first = other.resume(path)
        out[name] = [other.step(n) for n in range(first, CONFIG.steps)]
    out["about"] = load_model(folder / "done.pt", other.model, ranks)
    out["same"] = all(torch.equal(x, out["parameters"][n]) for n, x in other.whole().items())
    return out


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    warnings.simplefilter("error")  # as in the tests
    out = main(folder, int(sys.argv[2]), Path(sys.argv[3]))
    torch.save(out | {"folder": str(folder)}, folder / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()
