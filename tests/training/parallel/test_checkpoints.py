"""What one number of processes saved, another goes on from; experts spread or not; exported as one process would."""

import json
import os
from pathlib import Path

import pytest
import torch
from checkpoint_ranks import CONFIG, SAVED, Learner, network

from minikeye.checkpoint.tensors import tensor_files
from minikeye.config import KeyeConfig
from minikeye.keye import KeyeVL
from minikeye.training.parallel.checkpoints import last_written, load_model, newest, save_model

SCRIPT = Path(__file__).with_name("checkpoint_ranks.py")
CLOSE = 1e-5  # of float32 sums in another order


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process: its losses, parameters, and the state that it saved."""
    learner, state = Learner(), tmp_path_factory.mktemp("alone") / "state.pt"
    losses = [learner.step(n) for n in range(SAVED)]
    learner.save(state, SAVED)
    losses += [learner.step(n) for n in range(SAVED, CONFIG.steps)]
    return {"losses": losses, "parameters": learner.whole(), "state": state, "model": learner.model}


@pytest.fixture(scope="module")
def two(alone, play):
    """Two processes, which also go on from the one's state."""
    return play(SCRIPT, 2, (1, alone["state"]))


@pytest.fixture(scope="module")
def four(two, play):
    """Four, with experts over two, which also go on from the two's state."""
    return play(SCRIPT, 4, (2, Path(two[0]["folder"]) / "own.pt"))


@pytest.fixture(scope="module")
def experts(four, play):
    """Two, with experts over both, which also go on from the four's state."""
    return play(SCRIPT, 2, (2, Path(four[0]["folder"]) / "own.pt"))


RUNS = ["two", "four", "experts"]


@pytest.fixture(params=RUNS)
def ranks(request):
    return request.getfixturevalue(request.param)


@pytest.mark.slow
def test_losses_and_parameters_of_one_process(ranks, alone):
    for rank in ranks:
        assert rank["losses"] == pytest.approx(alone["losses"], abs=CLOSE)
        for name, whole in alone["parameters"].items():
            assert (rank["parameters"][name] - whole).abs().max() < CLOSE, name


@pytest.mark.slow
def test_goes_on_to_the_same_bits(ranks):
    """As many processes as before, from a state into a model with other weights."""
    assert all(rank["own"] == ranks[0]["losses"][SAVED:] for rank in ranks)


@pytest.mark.slow
def test_goes_on_from_what_another_number_saved(ranks, alone):
    """1 -> 2, 2 -> 4 with experts over 2, 4 with experts over 2 -> 2 with experts over 2."""
    for rank in ranks:
        assert rank["other"] == pytest.approx(alone["losses"][SAVED:], abs=CLOSE)


@pytest.mark.slow
def test_one_process_goes_on_from_many(ranks, alone):
    learner = Learner(seed=6)
    assert learner.resume(Path(ranks[0]["folder"]) / "own.pt") == SAVED
    assert [learner.step(n) for n in range(SAVED, CONFIG.steps)] == pytest.approx(alone["losses"][SAVED:], abs=CLOSE)


@pytest.mark.slow
def test_a_whole_model_comes_back(ranks):
    assert all(rank["about"] == {"stages": ["a", "b"]} and rank["same"] for rank in ranks)


@pytest.mark.slow
def test_exported_as_by_one_process(ranks, tmp_path):
    """The same files with the same names in them, and the same bits."""
    folder, whole = Path(ranks[0]["folder"]) / "exported", network()
    whole.load_state_dict(ranks[0]["parameters"], strict=False)  # all that learn
    whole.save_pretrained(tmp_path / "one", max_shard_bytes=2**17, dtype=torch.bfloat16)
    assert tensor_files(folder) == tensor_files(tmp_path / "one") and len(set(tensor_files(folder).values())) > 2
    for path in (tmp_path / "one").iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes(), path.name


def folder_of(path: Path, **about) -> Path:
    """What stands where many processes wrote a state, its tensors apart."""
    folder = path.with_suffix(".dcp")
    folder.mkdir()
    (folder / "about.json").write_text(json.dumps(about))
    return folder


def test_what_was_written_last_counts(tmp_path):
    """Both are there where a run was killed before it removed the older one."""
    path = tmp_path / "state.pt"
    assert last_written(path) is None and newest(tmp_path) is None
    path.write_bytes(b"")
    assert last_written(path) == newest(tmp_path) == path
    folder = folder_of(path, step=2)
    for first, second in ((path, folder), (folder, path)):
        for number, written in enumerate((first, second)):
            for file in (written, written / "about.json") if written == folder else (written,):
                os.utime(file, (1000 + number, 1000 + number))
        assert last_written(path) == newest(tmp_path) == second
    (tmp_path / "state.failed.pt").write_bytes(b"")  # of a rollout that was not learnt from
    assert newest(tmp_path) == path


def test_a_state_of_one_process_takes_the_place_of_many(tmp_path):
    folder, learner = folder_of(tmp_path / "state.pt", step=2), Learner()
    learner.save(tmp_path / "state.pt", 3)
    assert not folder.exists() and Learner().resume(tmp_path / "state.pt") == 3
    folder = folder_of(tmp_path / "done.pt")
    save_model(tmp_path / "done.pt", learner.model, {"stages": ["a"]})
    assert not folder.exists() and load_model(tmp_path / "done.pt", network(6)) == {"stages": ["a"]}


def test_a_state_between_two_renames_is_found(tmp_path):
    """The kill came when the old folder had been moved aside, and the new one had not its name yet."""
    folder = folder_of(tmp_path / "state.pt", step=2)
    os.rename(folder, tmp_path / ".state.dcp-old")
    with pytest.warns(UserWarning, match="was being replaced when its writer was killed"):
        assert last_written(tmp_path / "state.pt") == tmp_path / ".state.dcp-old"


def test_nothing_is_read_from_a_damaged_or_foreign_state(tmp_path):
    learner, path = Learner(), tmp_path / "state.pt"
    assert learner.resume(path) == 0 and load_model(path, learner.model) is None
    folder_of(path, step=2)
    with pytest.raises(ValueError, match="holds no distributed checkpoint"):
        learner.resume(path)
    save_model(path, learner.model, {})
    with pytest.raises(ValueError, match=r"other parameters than those to train.*1 differ, first extra"):
        learner.model.register_parameter("extra", torch.nn.Parameter(torch.zeros(2)))
        load_model(path, learner.model)


@pytest.mark.slow
def test_a_state_of_other_parameters_is_refused(two):
    learner = Learner()
    learner.parameters.pop("lm_head.weight")
    with pytest.raises(ValueError, match=r"other parameters than those to train.*first parameters\.lm_head\.weight"):
        learner.resume(Path(two[0]["folder"]) / "own.pt")


@pytest.mark.parametrize("about", [{"x": Path("a")}, {"model": 1}, {"x": (1, 2)}])
def test_what_could_not_be_read_again_is_not_written(tmp_path, about):
    model = KeyeVL(KeyeConfig.nano())
    save_model(tmp_path / "m.pt", model, {"step": 1})
    with pytest.raises(ValueError, match="expected text, numbers, lists and dicts"):
        save_model(tmp_path / "m.pt", model, about)
    assert load_model(str(tmp_path / "m.pt"), model) == {"step": 1}
    (tmp_path / "m.pt").write_bytes((tmp_path / "m.pt").read_bytes()[:-100])
    with pytest.raises(ValueError, match="is damaged"):
        load_model(tmp_path / "m.pt", model)


def test_a_half_removed_folder_does_not_hide_the_file(tmp_path):
    model = KeyeVL(KeyeConfig.nano())
    save_model(tmp_path / "m.pt", model, {"step": 1})
    (tmp_path / "m.dcp").mkdir()
    assert load_model(tmp_path / "m.pt", model) == {"step": 1} and newest(tmp_path) == tmp_path / "m.pt"
