"""The benchmark's inputs, its summary and the reading of counters; on a CPU, without its times."""

import json
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from minikeye.evaluation.kernels import bench, counters, proof_model
from minikeye.evaluation.kernels.workload import Shape, index_inputs, process, union_factor

RESULTS = Path(__file__).resolve().parents[2] / "assets" / "results"


@pytest.mark.parametrize("rho", [0.0, 0.9, 0.9925])
def test_a_process_remembers_as_much_as_it_should(rho):
    """Variance 1 everywhere, correlation rho^lag: measured over many channels."""
    x = process(64, 20_000, rho, "cpu")[0]
    assert x.square().mean(dim=1).sub(1).abs().max() < 0.05
    for lag in (1, 3, 17):
        assert float((x[lag:] * x[:-lag]).mean()) == pytest.approx(rho**lag, abs=0.01)


def test_a_process_is_the_recursion():
    torch.manual_seed(3)
    noise = torch.randn(1, 50, 4)
    torch.manual_seed(3)
    got, x = process(50, 4, 0.8, "cpu"), noise[:, 0]
    for t in range(1, 50):
        x = 0.8 * x + 0.6 * noise[:, t]
        torch.testing.assert_close(got[:, t], x, atol=1e-5, rtol=1e-5)


def test_union_factor_is_counted_by_hand():
    indices = torch.tensor([[[0, 1], [1, 2], [5, 6], [5, 6], [7, 8], [9, 9]]])
    assert union_factor(indices, 2) == pytest.approx((3 / 2 + 2 / 2 + 3 / 2) / 3)  # the last row holds 9 twice
    assert union_factor(torch.tensor([[[0, -1], [0, -1]]]), 2) == 0.5


def test_sinks_are_wanted_by_every_query():
    shape = Shape(index_heads=4, index_width=16)
    q, k, w = index_inputs("sinks", 256, "cpu", shape, dtype=torch.float32)
    scores = torch.einsum("btj,btjs->bts", w, torch.einsum("btji,bsi->btjs", q, k).relu())[0]
    assert (scores.topk(16).indices < 4).sum(dim=-1).float().mean() > 3


def test_the_summary_is_of_these_rows():
    """Ratios beside dense attention of the same run, nothing left out, and every check that held."""
    result = json.loads((RESULTS / "kernels_h200.json").read_text())
    assert bench.summarise(result["rows"]) == result["summary"] and len(result["summary"]) == 15
    parts = [name for name, _ in bench.plan()]
    assert {row["part"] for row in result["rows"]} == set(parts)
    checks = [row["what"] for row in result["rows"] if row["part"] == "proof"]
    assert checks.count("selection equal to torch") == 3 and len(checks) >= 20
    assert "H200" in result["hardware"] and result["versions"]["triton"] != "not installed"


def test_rates_follow_from_times():
    """TFLOP/s and TB/s are recomputed from the milliseconds and the shapes, by hand."""
    for row in json.loads((RESULTS / "kernels_h200.json").read_text())["rows"]:
        if row["part"] != "parts":
            continue
        length, queries, seconds = row["length"], row["queries"], row["ms"] / 1000
        pairs = sum(range(length - queries + 1, length + 1))
        if "tflops" in row:
            assert 2 * 16 * 64 * pairs / seconds / 1e12 == pytest.approx(row["tflops"], rel=2e-3)
        if "tb_s" in row:
            assert 4 * pairs / seconds / 1e12 == pytest.approx(row["tb_s"], rel=2e-3)
        if "useful_tflops" in row:
            assert 4 * 32 * 128 * 2048 * queries / seconds / 1e12 == pytest.approx(row["useful_tflops"], rel=2e-3)


CSV = """==PROF== Connected
"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","a_kernel(int)","GPU Speed Of Light Throughput","Duration","ns","663,872"
"0","a_kernel(int)","GPU Speed Of Light Throughput","DRAM Throughput","%","24.39"
"1","b_kernel","GPU Speed Of Light Throughput","Duration","us","3.5"
"1","b_kernel","Occupancy","Unknown","","1"
"""


def test_counters_are_read_from_ncus_csv(tmp_path):
    (tmp_path / "counters.csv").write_text(CSV)
    assert counters.read(tmp_path / "counters.csv") == [
        {"kernel": "a_kernel", "duration_us": 663.87, "dram_percent": 24.39},
        {"kernel": "b_kernel", "duration_us": 3.5},
    ]
    (tmp_path / "empty.csv").write_text("==PROF== nothing\n")
    with pytest.raises(ValueError, match="expected the CSV that ncu writes"):
        counters.read(tmp_path / "empty.csv")


def test_keys_that_two_selections_share_are_counted_wherever_they_stand():
    """One key more in front moves all others by a place, and is still one key."""
    a, b = torch.tensor([[[1, 3, 5, 7], [2, 4, -1, -1]]]), torch.tensor([[[0, 1, 3, 5], [2, 4, 6, -1]]])
    assert proof_model.share_in_both(a, b) == pytest.approx(5 / 6)
    assert proof_model.share_in_both(b, a) == pytest.approx(5 / 7)
