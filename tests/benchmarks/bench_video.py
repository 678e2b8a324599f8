"""Frames per second and peak memory of sampling 64 and 512 frames from ten minutes of 720p H.264.

Run: python tests/benchmarks/bench_video.py [--repeats 3] [--python OTHER_PYTHON]
Readers: minikeye, the ffmpeg command line, torchcodec and decord. The last two are tried in OTHER_PYTHON (default: this
Python), so that they need not live in the project's environment. Each run is a process of its own: wall time is taken
inside it from opening the file to the last resized frame (imports left out; for ffmpeg, the whole process), memory is
the peak resident size of the process. All readers get the same frame positions and deliver RGB at 588x336.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "assets" / "results" / "video.json"
SECONDS, RATE, SIZE, TARGET = 600, 30, (1280, 720), (588, 336)
COUNTS = (64, 512)

BASELINE = "import sys\nimport numpy, torch\n"  # what every Python reader has loaded before it opens a file
PREPARE = """
import json, resource, sys, time
path, count, total, width, height = sys.argv[1], *map(int, sys.argv[2:6])
indices = [round(i * (total - 1) / (count - 1)) for i in range(count)]
"""
REPORT = """
elapsed = time.perf_counter() - begin
assert tuple(frames.shape) == (count, 3, height, width), frames.shape
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
mean = float(frames[::16].float().mean())
print(json.dumps({"wall_s": elapsed, "peak_mib": peak, "mean": mean, "version": version}))
"""
READERS = {
    "minikeye": """
import av, torch
from minikeye.config import VideoConfig
from minikeye.inputs.video import read_video
version = "PyAV " + av.__version__
begin = time.perf_counter()
frames = read_video(path, VideoConfig(fps=30), max_frames=count).frames
""",
    "torchcodec": """
import torch, torchcodec
from torchcodec.decoders import VideoDecoder
version = torchcodec.__version__
begin = time.perf_counter()
decoder = VideoDecoder(path, num_ffmpeg_threads=8)
frames = torch.empty((count, 3, height, width), dtype=torch.uint8)
for at in range(0, count, 16):  # 16 at a time: native frames of the whole sample would not be a fair memory figure
    batch = decoder.get_frames_at(indices[at : at + 16]).data
    small = torch.nn.functional.interpolate(batch, (height, width), mode="bilinear", antialias=True)
    frames[at : at + 16] = small
""",
    "decord": """
import decord, torch
version = decord.__version__
begin = time.perf_counter()
reader = decord.VideoReader(path, width=width, height=height, num_threads=0)
batch = reader.get_batch(indices).asnumpy()
frames = torch.from_numpy(batch).permute(0, 3, 1, 2).contiguous()
""",
}


def make_video(path: Path) -> None:
    """Ten minutes of a moving pattern: x264 ultrafast, default group of pictures (a keyframe every 250 frames)."""
    import av
    import numpy as np

    width, height = SIZE
    rows, columns = np.mgrid[0:height, 0:width]
    texture = ((np.sin(columns / 17) + np.sin(rows / 11) + np.sin((rows + columns) / 29)) * 30 + 128).astype(np.uint8)
    wide = np.concatenate([texture, texture], axis=1)
    part = path.with_suffix(".part.mp4")
    with av.open(str(part), "w") as container:
        stream = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "ultrafast"}
        for i in range(SECONDS * RATE):
            planes = np.full((height * 3 // 2, width), 128, np.uint8)
            planes[:height] = wide[:, i * 3 % width :][:, :width]
            side = 64 + i % 64
            planes[(i * 2) % (height - side) :][:side, (i * 5) % (width - side) :][:, :side] = i % 256
            frame = av.VideoFrame.from_ndarray(planes, "yuv420p")
            frame.pts = i
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    part.rename(path)


def run_python(python: str, name: str, path: Path, count: int) -> dict:
    """One reader in a child process. Returns its figures, or the reason why it cannot run."""
    arguments = [str(path), str(count), str(SECONDS * RATE), *map(str, TARGET)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    command = [python, "-c", BASELINE + PREPARE + READERS[name] + REPORT, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line and not line.startswith(" ")]
        return {"error": (lines or ["no message"])[-1][:200]}
    return json.loads(done.stdout.splitlines()[-1])


def run_ffmpeg(path: Path, count: int) -> dict:
    """The ffmpeg command line: select the same positions, resize, write raw RGB to a pipe that is read to the end."""
    total = SECONDS * RATE
    if not shutil.which("ffmpeg"):
        return {"error": "ffmpeg is not installed"}
    positions = [round(i * (total - 1) / (count - 1)) for i in range(count)]
    # The expression of `select` has a length limit, so it repeats the rule of round(linspace(0, total - 1, count)).
    nearest = f"round(n*{count - 1}/{total - 1})"
    select = f"select='eq(n,round({nearest}*{total - 1}/{count - 1}))'"
    filters = f"{select},scale={TARGET[0]}:{TARGET[1]}:flags=bilinear"
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-an", "-vf", filters, "-vsync", "0"]
    command += ["-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    begin = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    size = 0
    while chunk := child.stdout.read(1 << 20):
        size += len(chunk)
    _, status, usage = os.wait4(child.pid, 0)
    wall = time.perf_counter() - begin
    frames = size / (TARGET[0] * TARGET[1] * 3)
    if status or frames != len(positions):
        return {"error": f"ffmpeg ended with status {status} after {frames:g} frames, expected {count}"}
    first = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True).stdout.split()[2]
    return {"wall_s": wall, "peak_mib": usage.ru_maxrss / 1024, "version": first}


def measure(path: Path, repeats: int, python: str) -> list[dict]:
    """Rows of the table: the median of `repeats` runs, readers taking turns so that load on the machine hits all."""
    runs: dict[tuple[str, int], list[dict]] = {}
    for _ in range(repeats):
        for count in COUNTS:
            for name in ("minikeye", "ffmpeg", "torchcodec", "decord"):
                if any("error" in r for r in runs.get((name, count), [])):
                    continue
                if name == "ffmpeg":
                    run = run_ffmpeg(path, count)
                else:
                    run = run_python(sys.executable if name == "minikeye" else python, name, path, count)
                runs.setdefault((name, count), []).append(run)
                print(name, count, run, flush=True)
    rows = []
    for (name, count), results in runs.items():
        row = {"reader": name, "frames": count}
        if "error" in results[-1]:
            rows.append({**row, "error": results[-1]["error"]})
            continue
        middle = sorted(results, key=lambda r: r["wall_s"])[len(results) // 2]
        row |= {"version": middle["version"], "wall_s": round(middle["wall_s"], 3)}
        row |= {"wall_s_all": [round(r["wall_s"], 3) for r in results], "frames_per_s": round(count / row["wall_s"], 1)}
        rows.append({**row, "peak_mib": round(max(r["peak_mib"] for r in results), 1)})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--python", default=sys.executable, help="Python that has torchcodec and decord")
    arguments = parser.parse_args()
    path = Path(tempfile.gettempdir()) / "minikeye_bench_720p.mp4"
    if not path.exists():
        make_video(path)
    rows = measure(path, arguments.repeats, arguments.python)
    summary = {}
    for row in rows:
        if "error" not in row:
            key = f"{row['reader']}_{row['frames']}"
            summary |= {f"{key}_frames_per_s": row["frames_per_s"], f"{key}_peak_mib": row["peak_mib"]}
    # Imported only now: a child of a process that holds torch would be charged for torch's memory.
    from minikeye.results import write_result

    what = (
        f"sampling frames of {SECONDS} s of {SIZE[0]}x{SIZE[1]} H.264 at {RATE} fps, resized to "
        f"{TARGET[0]}x{TARGET[1]}; median of {arguments.repeats} runs, peak memory the largest"
    )
    command = f"python tests/benchmarks/bench_video.py --repeats {arguments.repeats} --python OTHER_PYTHON"
    write_result(RESULT, what, command, rows, summary, seeds=[])
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
