"""The same worker function as Ray actors of this machine. Skipped without Ray (`pip install minikeye[ray]`)."""

from functools import partial
from pathlib import Path

import pytest
import torch
from films import ODD, write
from odd_work import by_name

from minikeye.config import VideoConfig
from minikeye.inputs.service import Clip, FrameRequest, ServiceConfig, VideoReader
from minikeye.inputs.service.request import BadVideo, TookTooLong, WorkerDied
from minikeye.inputs.video import read_video

ray = pytest.importorskip("ray")

# Ray starts a cluster of processes, and warns of its own plans and of files that it leaves to the garbage collector.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
]
FILMS = VideoConfig(fps=99.0, min_frame_tokens=1, max_frame_tokens=6, video_tokens=100_000)


@pytest.fixture(scope="module")
def cluster():
    import sys

    paths = [p for p in sys.path if p]
    environment = {"env_vars": {"PYTHONPATH": ":".join(paths)}}
    ray.init(num_cpus=2, include_dashboard=False, configure_logging=False, runtime_env=environment)
    yield
    ray.shutdown()


def test_actors_answer_as_processes_do(cluster, tmp_path: Path) -> None:
    """The bits of `read_video`; one typed error for a film cut off, one that kills its actor, one that never ends."""
    from minikeye.inputs.service.actors import RayWorker

    names = ("short_groups.mp4", "late.ts")
    good = [str(write(tmp_path / name, **ODD[name])) for name in names]
    dies, stops, cut = (write(tmp_path / f"{name}.mp4", frames=12) for name in ("dies", "stops", "cut"))
    cut.write_bytes(cut.read_bytes()[:-200])
    order = [good[0], str(dies), good[1], str(stops), str(cut), *good]
    with VideoReader(ServiceConfig(cores=2, workers=2, limit=5.0), partial(RayWorker, work=by_name)) as reader:
        results = dict(reader.stream([FrameRequest(path, (84, 56), indices=(5, 0)) for path in order]))
    assert [type(results[n]) for n in range(7)] == [Clip, WorkerDied, Clip, TookTooLong, BadVideo, Clip, Clip]
    for n in (0, 2, 5, 6):
        assert torch.equal(results[n].video().frames, read_video(order[n], FILMS).frames[[5, 0]])
        assert not results[n].frames.flags.writeable
    assert reader.service.statistics.deaths == 3
