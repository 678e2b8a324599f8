"""The dataset for a DataLoader: the order of an epoch, the position it goes on from, bad videos."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from films import ODD, write
from odd_work import Local
from torch.utils.data import DataLoader

from minikeye.config import VideoConfig
from minikeye.inputs.service import ClipDataset, FrameRequest, ServiceConfig
from minikeye.inputs.service.dataset import Position, epoch_order
from minikeye.inputs.service.request import BadVideo
from minikeye.inputs.video import read_video

REQUESTS = [FrameRequest("a.mp4", (10, 10), indices=(n,)) for n in range(50)]
HERE = ServiceConfig(cores=1, flight_bytes=1500)


def local(_: ServiceConfig, work=None) -> Local:
    return Local() if work is None else Local(work)


def test_an_epoch_is_a_permutation_of_its_seed() -> None:
    """As numpy's generator gives it. Without a seed, the order of the requests."""
    dataset = ClipDataset(REQUESTS, HERE, position=Position(seed=7), worker=local)
    samples = list(DataLoader(dataset, batch_size=None))
    order = np.random.default_rng(7).permutation(50).tolist()
    assert [s["request"] for s in samples] == [int(s["frames"][0, 0, 0, 0]) for s in samples] == order
    assert [s["index"] for s in samples] == list(range(50)) and epoch_order(50, 8) != order
    assert [s["request"] for s in ClipDataset(REQUESTS, HERE, worker=local)] == list(range(50))
    samples[0]["frames"].zero_()  # a copy, which may be written to
    assert dataset.position == Position(7, 50) and list(dataset) == [] and "0 frames" in dataset.report


@pytest.mark.parametrize("stop", [0, 1, 17, 50])
def test_resuming_repeats_and_loses_nothing(stop: int) -> None:
    """Whatever is in flight when a loop is left: a new dataset at the saved position gives exactly the rest."""
    dataset = ClipDataset(REQUESTS, HERE, position=Position(seed=3), worker=local)
    loop, before, saved = iter(dataset), [], dataset.position
    for _ in range(stop):
        before.append(next(loop)["request"])
        saved = dataset.position  # as a checkpoint after the step
    loop.close()
    after = [s["request"] for s in ClipDataset(REQUESTS, HERE, position=saved, worker=local)]
    assert saved.index == stop and before + after == epoch_order(50, 3)


def test_bad_videos() -> None:
    """One raises, and the next loop goes on after it; or it is told and left out; the position moves."""

    def work(job) -> list:
        good = Local().work(job)
        return [
            BadVideo(r.source, "bad") if r.indices[0] in (4, 9) else c for r, c in zip(job.requests, good, strict=True)
        ]

    dataset, seen = ClipDataset(REQUESTS[:12], HERE, worker=partial(local, work=work)), []
    for _ in range(3):
        try:
            for sample in dataset:
                seen.append(sample["request"])
        except BadVideo as error:
            seen.append(str(error))
    assert seen == [0, 1, 2, 3, "a.mp4: bad", 5, 6, 7, 8, "a.mp4: bad", 10, 11]
    told: list[Exception] = []
    dataset = ClipDataset(REQUESTS[:12], HERE, worker=partial(local, work=work), on_error=told.append)
    assert [s["index"] for s in dataset] == [0, 1, 2, 3, 5, 6, 7, 8, 10, 11] and len(told) == 2
    assert dataset.position.index == 12


@pytest.mark.slow
@pytest.mark.parametrize("loaders", [0, 2])
def test_with_a_data_loader(tmp_path: Path, loaders: int) -> None:
    """Real files, real processes, also started by the workers of a DataLoader: the bits of `read_video`, in order."""
    config = VideoConfig(fps=99.0, min_frame_tokens=1, max_frame_tokens=6, video_tokens=100_000)
    paths = [str(write(tmp_path / name, **ODD[name])) for name in ("short_groups.mp4", "late.ts", "untimed.avi")]
    alone = {path: read_video(path, config) for path in paths}
    requests = [FrameRequest(path, (84, 56), indices=(n, 39 - n)) for n in range(6) for path in paths]
    dataset = ClipDataset(requests, ServiceConfig(cores=2, workers=2), position=Position(5, 4))
    # Workers of a DataLoader are forked, which Python 3.12 warns about where threads run; a fresh start is told.
    context = "spawn" if loaders else None
    loader = DataLoader(dataset, batch_size=None, num_workers=loaders, multiprocessing_context=context)
    order = epoch_order(len(requests), 5)[4:]
    for sample, n in zip(loader, order, strict=True):
        video, rows = alone[requests[n].source], list(requests[n].indices)
        assert torch.equal(sample["frames"], video.frames[rows]) and torch.equal(sample["seconds"], video.seconds[rows])
        assert (sample["source"], sample["request"]) == (requests[n].source, n)
    assert dataset.position.index == (4 if loaders else len(requests))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_reader_of_another_process_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a fork the reader's thread is not there: an error, not a wait for ever."""
    from minikeye.inputs.service import VideoReader

    with VideoReader(HERE, local) as reader:
        here = os.getpid()
        with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="a fork does not have its thread"):
            patch.setattr(os, "getpid", lambda: here + 1)
            reader.read(REQUESTS[0])


@pytest.mark.slow
@pytest.mark.parametrize("end", ["sys.exit(3)", "raise KeyError"])
def test_a_program_ends_with_an_unfinished_iterator(tmp_path: Path, end: str) -> None:
    """Its reader's thread is stopped by then, and nothing may wait for it."""
    path = write(tmp_path / "a.mp4", frames=12)
    program = (
        "import sys\nfrom torch.utils.data import DataLoader\nfrom minikeye.inputs.service import *\n"
        f"requests = [FrameRequest({str(path)!r}, (84, 56), indices=(n,)) for n in range(9)]\n"
        "clips = iter(DataLoader(ClipDataset(requests, ServiceConfig(workers=1)), batch_size=None))\n"
        f"next(clips)\n{end}\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert ended.returncode == (3 if "exit" in end else 1), ended.stderr


@pytest.mark.parametrize("index", [-1, 6, 99])
def test_a_position_outside_of_the_epoch_is_refused(index: int) -> None:
    requests = [FrameRequest("a.mp4", (84, 56), indices=(n,)) for n in range(5)]
    with pytest.raises(ValueError, match=f"an epoch of 5, got {index}: begin the next one"):
        next(iter(ClipDataset(requests, ServiceConfig(workers=1), position=Position(0, index))))
