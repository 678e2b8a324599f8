"""Shapes are checked in every test: jaxtyping reads the annotations of minikeye, beartype enforces them."""

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch
import torch.distributed as dist
from jaxtyping import install_import_hook

ROOT = Path(__file__).resolve().parent.parent

# Before the first import of minikeye. Its kernels are left out: triton.jit reads the source of the very function it
# decorates and must not be handed a wrapper.
_PARTS = sorted({path.stem for path in (ROOT / "minikeye").iterdir() if path.suffix == ".py" or path.is_dir()})
install_import_hook(
    [f"minikeye.{part}" for part in _PARTS if part != "kernels" and not part.startswith("_")],
    "beartype.beartype",
)

# The tensors of the tests are tiny: a second thread costs more than it brings, and one thread adds in one order.
torch.set_num_threads(1)

# A busy machine fails no test by being slow, and no run by drawing what the last one did not. To look for new examples:
# --hypothesis-profile=default.
hypothesis.settings.register_profile(
    "repeatable", deadline=None, derandomize=True, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes first, then those with slow tests: at the end, one would leave the other workers idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (item.path.parent.name not in ("notebooks", "kernels"), item.path not in slow))


@pytest.fixture(autouse=True)
def seeds() -> None:
    """Every test starts from the same state of all three random generators."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global generator is what libraries use
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def lively():
    """nano with weights large enough for lively scores and logits: 2 layers, 2 indexer heads, k = 16. Not to change."""
    from minikeye import KeyeConfig, KeyeVL  # not before the hook

    torch.manual_seed(9)
    model = KeyeVL(KeyeConfig.nano()).eval()
    for name, p in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(p, std=0.2)
    return model


@pytest.fixture
def generator() -> torch.Generator:
    """A seeded generator of its own, for tests that draw their inputs."""
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def play(tmp_path_factory) -> Callable[..., list[Any]]:
    """Runs a script in several processes at once, as torchrun would, and loads what each left in FOLDER/RANK.pt.

        play(script, processes=2, arguments=(), **environment)         # each: python SCRIPT FOLDER *ARGUMENTS
        play(script, lost=1)                                           # rank 1 is killed, and leaves nothing

    The rank is in the environment: `join("cpu")`, or `init_process_group("gloo", timeout=...)`. A rank whose partner
    does not answer ends by that timeout; none outlives the call. The store lives here, as it does in torchrun: its port
    is free, and nobody takes it before the ranks come.
    """

    def run(
        script: str | Path, processes: int = 2, arguments: tuple = (), lost: int | None = None, **environment: str
    ) -> list[Any]:
        folder = tmp_path_factory.mktemp("ranks")
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        own = os.environ | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "OMP_NUM_THREADS": "1"}
        own |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
        own |= {"WORLD_SIZE": str(processes)} | environment
        command = [sys.executable, str(script), str(folder), *map(str, arguments)]
        with ExitStack() as stack:
            started = []
            for rank in range(processes):
                place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
                started.append(process := subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=own | place))
                stack.callback(process.wait)
                stack.callback(process.kill)
            errors = [process.communicate()[1] for process in started]
            expected = [-signal.SIGKILL if rank == lost else 0 for rank in range(processes)]
            assert [process.returncode for process in started] == expected, "\n".join(errors)
        return [torch.load(folder / f"{rank}.pt") for rank in range(processes) if rank != lost]

    return run


@pytest.fixture(scope="session")
def smollm2_file() -> Path:
    """SmolLM2's GGUF file. Skips where `make real` was not run, unless MINIKEYE_REQUIRE_REAL is set, as in CI."""
    from minikeye.checkpoint.smollm2 import left_out, smollm2

    if absent := left_out():
        pytest.skip(absent)
    return smollm2()
