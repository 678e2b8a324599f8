"""Measuring work over ranks: both scripts in miniature on a CPU, and what becomes of their files."""

import json
import os
import subprocess
import sys

import pytest
import torch

from minikeye.evaluation.training import balanced_step, parallel_equal, parallel_results, tower_memory
from minikeye.evaluation.training.utilisation import Mixture, batches, tower_loads
from minikeye.training.parallel.balance import utilisation


@pytest.fixture(autouse=True)
def nothing_to_free(monkeypatch):
    """A collection walks through all that the tests have loaded, and frees no GPU here."""
    monkeypatch.setattr(tower_memory, "free", lambda: None)


def write_memory(out, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["tower_memory", "--smoke", "--device", "cpu", "--out", str(out)])
    tower_memory.main()
    return json.loads(out.read_text())


def test_memory_in_miniature(tmp_path, monkeypatch):
    """Every size in every way; what autograd keeps is the formula's; a second run stands beside the first."""
    runs = write_memory(tmp_path / "memory.json", monkeypatch)
    assert [run["part"] for run in runs] == ["tower_memory"] and len(runs[0]["rows"]) == 12
    for row in runs[0]["rows"]:
        assert row["counted_gib"] == row["formula_gib"] and row["ms"] > 0 and row["ratio"] > 0
    kept = [row["counted_gib"] for row in runs[0]["rows"][:4]]
    assert kept == sorted(kept, reverse=True) and kept[-1] == 0
    assert [len(run["rows"]) for run in write_memory(tmp_path / "memory.json", monkeypatch)] == [12, 12]


def test_out_of_memory_is_a_row(monkeypatch):
    """And the next size goes on; a way without its "all" has no ratio, the summary takes what ran."""
    real = tower_memory.cost

    def small(tower, frames, way, device):
        if frames.count == 4 and way == "all":
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return real(tower, frames, way, device)

    monkeypatch.setattr(tower_memory, "cost", small)
    config, device = tower_memory.KeyeConfig.nano(), torch.device("cpu")
    rows = list(tower_memory.rows(config, tower_memory.SMOKE[:2], device, 32.0))
    assert [row.get("did_not_run") for row in rows[4:]] == ["CUDA out of memory", None, None, None]
    assert ["ratio" in row for row in rows] == [True] * 4 + [False] * 4
    assert tower_memory.summarise(rows)["vit_frames_kept"] == 2


def test_another_error_is_none(monkeypatch):
    def broken(*_):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(tower_memory, "cost", broken)
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        list(tower_memory.rows(tower_memory.KeyeConfig.nano(), tower_memory.SMOKE, torch.device("cpu"), 32.0))


def test_offload_asks_for_the_hosts_memory():
    """128 frames of the released tower may take 333 GiB of pinned memory: a row, before anything is allocated."""
    config, frames = tower_memory.KeyeConfig.keye_vl_2_30b_a3b(), tower_memory.Frames(128, 28, 36)
    with torch.device("meta"):
        tower = tower_memory.VisionTower(config.vision)
    row = tower_memory.measure(tower, config.vision, frames, "offload", torch.device("cpu"), 32.0)
    assert row["did_not_run"] == "may take 333 GiB of the host, --host-gib is 32" and row["passes"] == 16


def test_frames_are_laid_out_whole():
    assert balanced_step.grid(1008, 2) == (1, 28, 36) and balanced_step.grid(4 * 7, 2) == (1, 2, 14)
    config, row = balanced_step.KeyeConfig.nano(), next(batches(Mixture(), 2, 2048, 0))[0]
    inputs = balanced_step.row_inputs(row, config, torch.device("cpu"), 0)
    assert inputs["grids"].prod(dim=1).tolist() == [p for sample in row for p in sample.frames] != []
    assert int((inputs["input_ids"] == config.video_token_id).sum()) == len(inputs["patches"]) // 4
    assert inputs["input_ids"].shape[1] == sum(sample.tokens for sample in row)


def test_the_clock_sees_the_tower_alone(monkeypatch):
    """A second in its forward pass and five in its backward pass; others go by before, between and behind."""
    now = [0.0]

    def let_pass(seconds):
        now[0] += seconds

    monkeypatch.setattr(balanced_step, "perf_counter", lambda: now[0])
    model = balanced_step.KeyeVL(balanced_step.KeyeConfig.nano())
    tower, projector = model.visual.vision_model, model.mlp_AR
    tower.register_forward_hook(lambda *_: let_pass(1))
    tower.post_layernorm.weight.register_post_accumulate_grad_hook(lambda _: let_pass(5))
    projector.register_forward_hook(lambda *_: let_pass(10))
    projector.linear_1.weight.register_post_accumulate_grad_hook(lambda _: let_pass(100))
    with balanced_step.tower_clock(model) as clock:
        assert clock() == 0.0  # no frames, no tower
        for _ in range(2):
            tokens = model.visual_tokens(torch.randn(8, 3, 14, 14), torch.tensor([[1, 2, 4]]))
            let_pass(1000)
            tokens.sum().backward()
            let_pass(1000)
            assert clock() == 6000.0
    assert not model.visual._forward_hooks and not model.visual._forward_pre_hooks


def bare(seed, way, tower_ms, step_ms):
    return {"ranks": 2, "seed": seed, "way": way, "tower_ms": tower_ms, "step_ms": step_ms}


def test_summary_by_hand():
    """Two batches: means 75 and 100 of largest 100 and 100; steps shorter by a quarter and not at all."""
    rows = [bare(0, "drawn", [50.0, 100.0], 120.0), bare(0, "balanced", [75.0, 75.0], 90.0)]
    rows += [bare(1, "drawn", [100.0, 100.0], 120.0), bare(1, "balanced", [100.0, 100.0], 120.0)]
    assert balanced_step.summarise(rows) == {
        "vit_utilisation_before_2": 0.875,
        "vit_utilisation_after_2": 1.0,
        "vit_balanced_step_ratio_2": 0.875,
        "vit_balanced_step_ratio_2_low": 0.75,
        "vit_balanced_step_ratio_2_high": 1.0,
    }


def run_of(part, rows, **settings):
    origin = {"command": "c", "commit": "abc", "hardware": "a GPU", "versions": {"torch": "2.11"}}
    return {"part": part, **origin, "settings": settings, "rows": rows}


EQUAL = [
    {"way": "context", "stage": "dense", "losses": 1e-7, "norms": 2e-7, "parameters": 3e-7},
    {"way": "experts", "stage": "dense", "losses": 3e-7, "norms": 1e-7, "parameters": 0.0},
    {"way": "context", "stage": "sparse", "selections_equal": True},
]


def files(folder, *runs):
    (path := folder / f"{len(list(folder.iterdir()))}.json").write_text(json.dumps(list(runs)))
    return path


def test_joined(tmp_path, monkeypatch):
    """The last of equal runs counts, one that has no rows does not."""
    gib = {"frames": 32, "way": "all", "ms": 100.0, "peak_gib": 40.0, "ratio": 1.0}
    chunks = {"frames": 32, "way": "chunks", "ms": 130.0, "peak_gib": 10.5, "ratio": 1.3}
    first = files(tmp_path, run_of("tower_memory", [gib | {"peak_gib": 99.0}, chunks]))
    second = files(tmp_path, run_of("tower_memory", [gib, chunks]), run_of("tower_memory", []))
    steps = [bare(0, "drawn", [50.0, 100.0], 120.0), bare(0, "balanced", [75.0, 75.0], 90.0)]
    third = files(tmp_path, run_of("balanced_step", steps), run_of("parallel_equal", EQUAL))
    out = tmp_path / "parallel.json"
    monkeypatch.setattr(sys, "argv", ["join", *map(str, (first, second, third)), "--out", str(out)])
    parallel_results.main()
    result = json.loads(out.read_text())
    assert result["hardware"] == "a GPU" and len(result["rows"]) == 7 and result["rows"][3]["part"] == "tower_memory"
    assert result["summary"]["vit_gib_kept"] == 40.0 and result["summary"]["vit_gib_recomputed"] == 10.5
    assert result["summary"]["vit_recompute_time_ratio"] == 1.3
    assert result["summary"]["vit_utilisation_before_2"] == 0.75
    assert result["summary"]["losses_max_difference"] == result["summary"]["parameters_max_difference"] == 3e-7
    assert result["summary"]["cp_selection_equal"] == 1
    assert parallel_equal.summarise([*EQUAL, EQUAL[2] | {"selections_equal": False}])["cp_selection_equal"] == 0


def test_a_missing_part_names_its_command(tmp_path, monkeypatch, capsys):
    """A run in miniature counts for none."""
    path = files(tmp_path, run_of("tower_memory", [{"a": 1}]), run_of("balanced_step", [{"a": 1}], smoke=True))
    monkeypatch.setattr(sys, "argv", ["join", str(path), "--out", str(tmp_path / "parallel.json")])
    with pytest.raises(SystemExit):
        parallel_results.main()
    assert balanced_step.COMMAND in capsys.readouterr().err and not (tmp_path / "parallel.json").exists()
    with pytest.raises(ValueError, match="expected a list of runs of parallel_equal, tower_memory, balanced_step"):
        parallel_results.runs_in([files(tmp_path, {"part": "another"})])


@pytest.mark.parametrize("left", [1, 3])
def test_a_run_that_was_broken_off(tmp_path, left):
    gib = {"frames": 32, "way": "all", "ms": 100.0, "peak_gib": 40.0, "ratio": 1.0}
    steps = [bare(n, way, [50.0, 100.0], 120.0) for n in (0, 1) for way in ("drawn", "balanced")]
    runs = [run_of("tower_memory", [gib, gib | {"way": "chunks"}]), run_of("balanced_step", steps[:left])]
    runs.append(run_of("parallel_equal", EQUAL))
    with pytest.raises(ValueError, match="broken off: torchrun "):
        parallel_results.join([files(tmp_path, *runs)], tmp_path / "parallel.json")


def test_without_torchrun(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr(sys, "argv", ["balanced_step", "--out", str(tmp_path / "x.json")])
    with pytest.raises(SystemExit):
        balanced_step.main()
    assert "start it by `torchrun " in capsys.readouterr().err


@pytest.mark.slow
def test_two_ranks_in_miniature(tmp_path):
    """Started as on GPUs. Bytes are counted and equal the formula; loads are those of the batches."""
    out = tmp_path / "step.json"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    small = ["--smoke", "--device", "cpu", "--tokens", "1100", "--batches", "2", "--timed", "1", "--out", str(out)]
    process = subprocess.run(
        [*launch, "-m", "minikeye.evaluation.training.balanced_step", *small],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300, cwd=tmp_path,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    (run,) = json.loads(out.read_text())
    assert run["settings"]["ranks"] == 2 and [row["way"] for row in run["rows"]] == ["drawn", "balanced"] * 2
    for drawn, balanced in zip(run["rows"][::2], run["rows"][1::2], strict=True):
        loads = tower_loads(next(batches(Mixture(), 2, 1100, drawn["seed"])))
        assert drawn["predicted"] == pytest.approx(utilisation([loads["before"]]), rel=1e-4)
        assert balanced["sent"] == balanced["formula"] and min(balanced["sent"]) > 0 == max(drawn["sent"])
        assert [ms > 0 for ms in drawn["tower_ms"]] == [patches > 0 for patches in drawn["patches"]]
        assert min(balanced["tower_ms"]) > 0 and max(drawn["tower_ms"]) < drawn["step_ms"]
    assert set(balanced_step.summarise(run["rows"])) >= {"vit_utilisation_before_2", "vit_utilisation_after_2"}
