"""Kill it anywhere: what is resumed is bit for bit the run that was never killed."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from minikeye.training import loop
from minikeye.training.loop import LoopConfig, learning_rate, optimiser, resume, train
from minikeye.training.parallel.checkpoints import read_one
from minikeye.training.state import read_log

CONFIG = LoopConfig(steps=9, lr=0.05, warmup=3, save_every=2, log_every=1)


class Killed(Exception):
    """Stands in for a kill."""


class Fit:
    """A little network that fits noise; the noise of a step depends on its number alone."""

    def __init__(self, width: int = 4, seed: int = 0):
        torch.manual_seed(seed)
        self.net = nn.Sequential(nn.Linear(3, width), nn.LayerNorm(width), nn.Linear(width, 1))
        self.parameters = dict(self.net.named_parameters())
        self.kill_at = -1
        self.factor = {}  # step -> what its loss is multiplied by

    def backward_at(self, step: int):
        if step == self.kill_at:
            raise Killed
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        self.net.zero_grad()
        loss = (self.net(x) - x.sum(-1, keepdim=True)).square().mean() * self.factor.get(step, 1.0)
        loss.backward()
        return loss.detach(), {"half": loss.detach() / 2}

    def train(self, config: LoopConfig = CONFIG, folder: Path | None = None) -> list[dict]:
        return train(self.parameters, self.backward_at, config, folder, "fit")


def losses(lines: list[dict]) -> list[float]:
    return [line["loss"] for line in lines]


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "fit.jsonl").read_text().splitlines()]


def equal(a: Fit, b: Fit) -> bool:
    return all(torch.equal(p, b.parameters[n]) for n, p in a.parameters.items())


@pytest.fixture(scope="module")
def whole() -> tuple[Fit, list[float]]:
    """The run that nobody kills, and its losses."""
    fit = Fit()
    return fit, losses(fit.train())


# --------------------------------------------------------------------------------------------------- kill and resume


@pytest.mark.parametrize("step", range(9))
def test_killed_at_any_step(whole, step, tmp_path):
    """Another process, other initial weights: the losses and parameters of the whole run all the same."""
    first = Fit()
    first.kill_at = step
    with pytest.raises(Killed):
        first.train(folder=tmp_path)
    second = Fit(seed=5)
    if step < 2:  # nothing was saved yet: it starts anew
        second = Fit()
    got = losses(second.train(folder=tmp_path))
    assert got == whole[1][step - step % 2 :] and equal(second, whole[0])
    assert [(line["step"], line["loss"]) for line in log_of(tmp_path)] == list(enumerate(whole[1]))


def test_killed_three_times(whole, tmp_path):
    for step in (3, 4, 8):
        fit = Fit()
        fit.kill_at = step
        with pytest.raises(Killed):
            fit.train(folder=tmp_path)
    last = Fit()
    last.train(folder=tmp_path)
    assert equal(last, whole[0]) and losses(log_of(tmp_path)) == whole[1]


@pytest.mark.parametrize("cut", ['{"step": 3, "lo', '{"step": 3, "loss": 1.0}', "\ufffd"])
def test_a_log_whose_last_line_was_cut(whole, cut, tmp_path):
    """By a kill or a full disk: the line is dropped, and what it said is computed again."""
    fit = Fit()
    fit.kill_at = 5
    with pytest.raises(Killed):
        fit.train(folder=tmp_path)
    with (tmp_path / "fit.jsonl").open("a", encoding="utf-8") as log:
        log.write(cut)
    last = Fit()
    last.train(folder=tmp_path)
    assert equal(last, whole[0]) and losses(log_of(tmp_path)) == whole[1]


def test_a_log_that_is_damaged_elsewhere(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n', encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.jsonl is damaged: line 2 of 3 is no JSON object: ."):
        read_log(tmp_path / "a.jsonl")


def test_a_finished_run_does_nothing(whole, tmp_path):
    Fit().train(folder=tmp_path)
    again = Fit(seed=5)
    assert again.train(folder=tmp_path) == [] and equal(again, whole[0])


def test_killed_while_writing_the_state(tmp_path, monkeypatch):
    """Half a file lies beside the state, never in its place."""
    first = Fit()
    first.kill_at = 2
    with pytest.raises(Killed):
        first.train(folder=tmp_path)
    before = (tmp_path / "fit.pt").read_bytes()

    def half(state, path):
        Path(path).write_bytes(before[:100])
        raise Killed

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(Killed):
        Fit().train(folder=tmp_path)
    assert (tmp_path / "fit.pt").read_bytes() == before
    fit = Fit(seed=5)
    assert resume(tmp_path / "fit.pt", fit.parameters, optimiser(fit.parameters, CONFIG)) == 2


@pytest.mark.parametrize("other", ["names", "shapes"])
def test_the_state_of_another_model(other, tmp_path):
    """A bias of one number would even fit a bias of many: shapes are compared, not tried. Nothing is overwritten."""
    Fit().train(folder=tmp_path)
    fit = Fit(width=6)
    if other == "names":
        fit.parameters = {f"x.{n}": p for n, p in fit.parameters.items()}
    before = {n: p.clone() for n, p in fit.parameters.items()}
    with pytest.raises(ValueError, match=r"fit\.pt holds other parameters than those to train"):
        fit.train(folder=tmp_path)
    assert all(torch.equal(p, before[n]) for n, p in fit.parameters.items())


@pytest.mark.parametrize("damage", ["empty", "cut to 50 bytes", "cut in half", "no end", "of another program", "list"])
@pytest.mark.parametrize("mmap", [True, False])
def test_a_damaged_state(damage, mmap, tmp_path):
    """One error that says which file, and what to do; the file stays for whoever wants to look at it."""
    Fit().train(folder=tmp_path)
    path = tmp_path / "fit.pt"
    data = path.read_bytes()
    cut = {"empty": 0, "cut to 50 bytes": 50, "cut in half": len(data) // 2, "no end": len(data) - 22}
    if damage in cut:
        path.write_bytes(data[: cut[damage]])
    else:
        torch.save({"weights": torch.ones(3)} if damage == "of another program" else [1, 2], path)
    left = path.read_bytes()
    for read in (lambda: Fit(seed=5).train(folder=tmp_path), lambda: read_one(path, "parameters", mmap=mmap)):
        with pytest.raises(ValueError, match=r"fit\.pt is damaged or not of this project: take it away"):
            read()
    assert path.read_bytes() == left


# ----------------------------------------------------------------------------------------------------------- divergence


@pytest.mark.parametrize("factor", [math.nan, math.inf])
@pytest.mark.parametrize("log_every", [1, 50])
@pytest.mark.parametrize("step", [3, 4, 5])
def test_a_loss_that_is_not_finite(factor, log_every, step, tmp_path):
    """The run ends, also where the bad step is not logged, and the state on disk is the last good one."""
    fit = Fit()
    fit.factor = {step: factor}
    with pytest.raises(FloatingPointError, match=r"fit .* at step \d: lower the learning rate"):
        fit.train(replace(CONFIG, log_every=log_every), tmp_path)
    good = Fit(seed=5)
    assert resume(tmp_path / "fit.pt", good.parameters, optimiser(good.parameters, CONFIG)) == step - step % 2
    assert all(p.isfinite().all() for p in good.parameters.values())


def test_a_gradient_that_is_not_finite(tmp_path):
    """The loss of that step is fine; the parameters after it are not, and are not saved."""
    fit = Fit()

    def backward_at(step):
        loss, numbers = fit.backward_at(step)
        if step == 3:
            next(iter(fit.parameters.values())).grad.fill_(math.inf)
        return loss, numbers

    with pytest.raises(FloatingPointError):
        train(fit.parameters, backward_at, CONFIG, tmp_path, "fit")
    good = Fit(seed=5)
    assert resume(tmp_path / "fit.pt", good.parameters, optimiser(good.parameters, CONFIG)) == 2


# ---------------------------------------------------------------------------------------------------- optimiser and log


def test_learning_rate():
    """Up in `warmup` equal steps to the peak, half a cosine down to the share at the end; without a jump."""
    config = LoopConfig(steps=110, lr=2.0, warmup=10, final_lr=0.1)
    rates = [learning_rate(step, config) for step in range(111)]
    assert rates[:11] == pytest.approx([0.2 * n for n in range(1, 11)] + [2.0])
    assert rates[60] == pytest.approx((2.0 + 0.2) / 2) and rates[110] == pytest.approx(0.2)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert learning_rate(0, replace(config, warmup=0)) == 2.0
    assert learning_rate(500, config) == pytest.approx(0.2)


def test_weight_decay_only_on_matrices():
    """With gradients of zero, matrices shrink by lr * decay a step and nothing else moves."""
    fit = Fit()
    before = {n: p.detach().clone() for n, p in fit.parameters.items()}

    def backward_at(step):
        for p in fit.parameters.values():
            p.grad = torch.zeros_like(p)
        return torch.zeros(()), {}

    train(fit.parameters, backward_at, LoopConfig(steps=1, lr=0.1, warmup=1, weight_decay=0.5))
    for name, p in fit.parameters.items():
        torch.testing.assert_close(p.detach(), before[name] * (0.95 if p.ndim == 2 else 1.0), rtol=1e-6, atol=0.0)


def test_slow_parameters():
    """Adam's first step is the learning rate times the sign: a tenth of it for what is slow."""
    fit = Fit()
    before = {n: p.detach().clone() for n, p in fit.parameters.items()}
    fit.train(LoopConfig(steps=1, lr=0.01, warmup=1, weight_decay=0.0, slow=("2.",)))
    moved = {n: float((p.detach() - before[n]).abs().max()) for n, p in fit.parameters.items()}
    for name in ("0.weight", "2.weight", "2.bias"):
        assert moved[name] == pytest.approx(0.001 if name.startswith("2.") else 0.01, rel=1e-3)


def test_clipping():
    """The norm in the log is the one before clipping; the step is that of a clipped gradient."""
    fit = Fit()
    fit.factor = {0: 1e6}
    line = fit.train(LoopConfig(steps=1, lr=0.1, clip=0.5))[0]
    assert line["norm"] > 1e4
    total = sum(float(p.grad.square().sum()) for p in fit.parameters.values())
    assert math.sqrt(total) == pytest.approx(0.5, rel=1e-4)


def test_log(tmp_path):
    """Every third step and the last; on disk what is returned; the numbers of backward_at beside the loop's own."""
    lines = Fit().train(replace(CONFIG, log_every=3), tmp_path)
    assert [line["step"] for line in lines] == [0, 3, 6, 8] and log_of(tmp_path) == lines
    assert all(line.keys() == {"step", "loss", "norm", "half", "seconds"} for line in lines)
    assert all(line["half"] == pytest.approx(line["loss"] / 2) for line in lines)


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "save_state", lambda *args: pytest.fail("saved"))
    assert len(Fit().train()) == 9 and list(tmp_path.iterdir()) == []


def test_only_the_given_parameters_move():
    fit = Fit()
    last = {n: p for n, p in fit.parameters.items() if n.startswith("2.")}
    before = {n: p.detach().clone() for n, p in fit.parameters.items()}
    train(last, fit.backward_at, CONFIG)
    assert {n for n, p in fit.parameters.items() if not torch.equal(p, before[n])} == set(last)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"log_every": 0}, {"warmup": -1}, {"save_every": -5}])
def test_a_loop_needs_steps(wrong):
    with pytest.raises(ValueError, match="steps and log_every >= 1"):
        LoopConfig(**({"steps": 3, "lr": 1e-3} | wrong))


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name in ("clip", "lr", "weight_decay", "final_lr") for value in (-1.0, NAN)]
    + [("clip", 0.0), ("lr", 0.0), ("lr", INF), ("final_lr", 2.0)],
)
def test_a_loop_goes_downhill(name, value):
    """A negative clip turns every gradient round: the loss rose without a word."""
    with pytest.raises(ValueError, match="expected lr and clip above 0"):
        LoopConfig(**({"steps": 3, "lr": 1e-3} | {name: value}))
