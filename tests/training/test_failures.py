"""One of several processes is lost: the others say which one, and from where to go on. Nobody waits for ever."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from minikeye.training.failures import surviving
from minikeye.training.loop import LoopConfig, optimiser
from minikeye.training.parallel.mesh import ALONE
from minikeye.training.state import resume

SCRIPT = Path(__file__).with_name("failure_ranks.py")


def message(rank: int, how: str, run: str) -> str:
    return (
        f"RankLost: rank 1 {how}: rank {rank} ends too. The last whole checkpoint is {run}/state.dcp: "
        f"start the same command again"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "processes"), [("between steps", 3), ("inside a step", 2), ("inside a save", 2)], ids=lambda x: str(x)
)
def test_a_rank_is_killed(play, how, processes):
    """The others name that one alone, not those that end because of it; the state from before is whole."""
    others = play(SCRIPT, processes, (how,), lost=1)
    for rank, other in zip((0, 2), others, strict=False):
        assert other["said"] == message(rank, "was killed", other["run"])
    layer = nn.Linear(8, 8)
    optim = optimiser(dict(layer.named_parameters()), LoopConfig(steps=4, lr=1e-3))
    run = Path(others[0]["run"])
    assert resume(run / "state.pt", dict(layer.named_parameters()), optim) == 1
    assert not list(run.glob(".state*"))  # nothing half-written is left


@pytest.mark.slow
@pytest.mark.parametrize("how", ["an error", "an error, others in Python"])
def test_an_error_on_one_rank(play, how):
    """That rank's error is its own; the others are told it, whether they wait for it or work."""
    one, two = play(SCRIPT, 2, (how,))
    assert two["said"] == "KeyError: 'a video that is not there'"
    assert one["said"] == message(0, "ended by KeyError: 'a video that is not there'", one["run"])


@pytest.mark.slow
def test_a_rank_that_is_stopped(play):
    """It lives and does not answer: the process group's timeout, here a few seconds, ends the others."""
    (one,) = play(SCRIPT, 2, ("stopped",), lost=1)
    begin, _, end = one["said"].partition(" has given no sign of life for ")
    assert begin == "RankLost: rank 1" and end.partition(": ")[2] == message(0, "", one["run"]).partition(" : ")[2]


@pytest.mark.slow
def test_others_that_no_error_can_reach(tmp_path):
    """Started by torchrun, which ends the others by SIGTERM: the one that waits in a library says it, too."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(SCRIPT)]
    own = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run([*command, tmp_path, "others in a library"], capture_output=True, text=True, env=own)
    assert ended.returncode == 1
    assert message(0, "was killed", str(tmp_path / "run")) in ended.stderr.splitlines()


def test_alone_nothing_happens(tmp_path):
    with surviving(ALONE, tmp_path):
        pass
    with pytest.raises(KeyError), surviving(ALONE, tmp_path):
        raise KeyError("own")
    assert not list(tmp_path.iterdir())
