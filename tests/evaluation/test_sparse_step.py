"""Timing training: the whole script in miniature on a CPU, where masks and gathers take the parts of the rivals."""

import json
import sys

import pytest

from minikeye.evaluation.training import sparse_step


@pytest.mark.slow
def test_the_whole_script_in_miniature(tmp_path, monkeypatch):
    out = tmp_path / "step.json"
    monkeypatch.setattr(sys, "argv", ["sparse_step", "--smoke", "--device", "cpu", "--out", str(out)])
    sparse_step.main()
    result = json.loads(out.read_text())
    rows, summary = result["rows"], result["summary"]
    assert summary == sparse_step.summarise(rows)
    agreement = {tuple(row["of"]): row for row in rows if row["what"] == "agreement"}
    assert agreement["masks", "kernels"]["gradient_off"] < 1e-4  # float32: the same sums in another order
    assert agreement["kernels", "kernels, again"]["same_bits"] == 1
    assert {(row["model"], row["by"]) for row in rows if row["what"] == "memory"} == {
        ("mini", "masks"), ("mini", "kernels"), ("released", "kernels"),
    }  # fmt: skip
    sparse, dense = (
        next(row for row in rows if row.get("method") == name and row["data"] == "smooth")
        for name in ("sparse", "dense")
    )
    ratio = sparse["backward_ms"] / dense["backward_ms"]
    assert summary["train_backward_0k_ratio_smooth"] == pytest.approx(ratio, rel=1e-3)


def test_a_part_that_ran_out_of_memory_is_a_row_and_no_number():
    row = {"what": "memory", "model": "mini", "layers": 6, "tokens": 65_536, "by": "masks"}
    assert sparse_step.summarise([{**row, "did_not_run": "out of memory"}]) == {}
    assert sparse_step.summarise([{**row, "by": "kernels", "peak_gib": 2.5}]) == {
        "train_mini_6_layers_64k_peak_gib": 2.5
    }
