"""A tower whose weights are spread over two processes learns the same whatever it keeps of its forward pass."""

from pathlib import Path

import pytest
import torch
from activations_ranks import WAYS, tower_gradients


@pytest.mark.slow
def test_as_one_process_and_the_same_bits(play):
    ranks = play(str(Path(__file__).with_name("activations_ranks.py")))
    alone = [tower_gradients(rank, "all", shard=False) for rank in range(2)]
    for got in ranks:
        for name, first in alone[0].items():
            mean = (first + alone[1][name]) / 2
            # Float32 sums in the same order but for the mean over two ranks.
            assert (got["all"][name] - mean).abs().max() <= 1e-6 * mean.abs().max().clamp(min=1), name
            for way in WAYS[1:]:
                assert torch.equal(got[way][name], got["all"][name]), (way, name)
