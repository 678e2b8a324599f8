"""Shapes are checked in every test: jaxtyping reads the annotations of minikeye, beartype enforces them."""

import os
import random
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
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
def smollm2_file() -> Path:
    """SmolLM2's GGUF file. Skips where `make real` was not run, unless MINIKEYE_REQUIRE_REAL is set, as in CI."""
    from minikeye.checkpoint.smollm2 import smollm2

    try:
        return smollm2()
    except FileNotFoundError as absent:
        if os.environ.get("MINIKEYE_REQUIRE_REAL"):
            raise
        pytest.skip(str(absent))
