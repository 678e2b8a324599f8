"""A recipe under torchrun: the same log as alone, evaluations between the stages included."""

import json
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from minikeye.keye import KeyeVL
from minikeye.training.recipes import stages
from minikeye.training.state import read_log


def main(folder: Path, *options: str) -> None:
    """One rank of the recipe, or all of it."""
    torch.set_num_threads(1)
    sys.argv = ["stages", "--smoke", "--out", str(folder), *options]
    stages.main()


@pytest.mark.slow
def test_two_processes_write_what_one_does(play, tmp_path, monkeypatch):
    """Seven stages of two steps, each asked about all abilities; the experts are spread. Then a checkpoint to load.

    Adam, at rates up to 2e-2, makes steps out of gradients that are rounding, and a stage begins where the last one
    ended: numbers agree to a thousandth, not to the last bits. Three single steps do (test_samples.py).
    """
    monkeypatch.setattr(sys, "argv", sys.argv)
    main(tmp_path)
    (folder, *_) = play(__file__, 2, ("--ep", "2"))
    for name in ("language", "projector", "general", "multitask", "switch", "long", "sft"):
        alone, many = read_log(tmp_path / f"{name}.jsonl"), read_log(Path(folder) / f"{name}.jsonl")
        assert [line["step"] for line in many] == [0, 1]
        for a, b in zip(alone, many, strict=True):
            assert a.keys() == b.keys()
            for n in a.keys() - {"seconds", "right"}:  # one answer more that is right is a step, no rounding
                assert b[n] == pytest.approx(a[n], rel=1e-3, abs=1e-3), (name, n, a, b)
    told = [json.loads((Path(f) / "stages.json").read_text())["summary"].keys() for f in (tmp_path, folder)]
    assert told[0] == told[1]
    KeyeVL.from_pretrained(Path(folder) / "checkpoint-sft")


if __name__ == "__main__":
    warnings.simplefilter("error")  # as in the tests
    place = Path(sys.argv[1])
    main(place, *sys.argv[2:])
    torch.save(str(place), place / f"{dist.get_rank()}.pt")
    dist.destroy_process_group()
