"""The video service beside other ways to feed a trainer, and under faults. Writes assets/results/video_service.json.

Run: python tests/benchmarks/bench_service.py [--repeats 3] [--rivals FOLDER]
FOLDER: where torchcodec, decord and spdl were installed (pip install --target FOLDER --no-deps ...); readers that are
not there get a row that says so. Each run is a process of its own (service_readers.py). Films: 50 clips of 5 s in five
kinds and one film of 120 s, in which every frame shows its number; a frame is wrong that shows another than a plain
decoding from the start shows there. The page cache is warm. Time counts from the second clip of a run: processes start
before. Share of the decode rate, wait and memory are medians, the table is one run each.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from statistics import median

from service_readers import SIZE, shown

from minikeye.files import write_whole
from minikeye.results import write_result

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "assets" / "results" / "video_service.json"
READERS = Path(__file__).with_name("service_readers.py")
CLIPS, LENGTH, FILM = 50, 150, 3600  # files, frames of a clip, frames of the film
ULTRA = {"preset": "ultrafast"}
KINDS = [  # codec, options, uneven times
    ("libx264", {**ULTRA, "g": "12"}, False),
    ("libx264", {**ULTRA, "g": "250", "bf": "3"}, False),
    ("libx265", {**ULTRA, "g": "48", "x265-params": "log-level=none"}, False),
    ("libsvtav1", {"preset": "12", "g": "60"}, False),
    ("libx264", {**ULTRA, "g": "30"}, True),
]
RIVALS = [
    "torchcodec_exact_1",
    "torchcodec_exact_0",
    "torchcodec_approximate_1",
    "torchcodec_approximate_0",
    "decord",
    "pyav",
    "spdl",
]


FEW = ["torchcodec_exact_1", "pyav", "spdl"]  # for the patterns in which requests repeat
NUMBERS: dict[str, list[int]] = {}  # that the frames of each film show


def film(path: Path, frames: int, size: tuple[int, int], codec: str, options: dict, uneven: bool) -> None:
    """A moving texture; sixteen squares at the top are the bits of the frame's number. 30 frames/s, or uneven times."""
    import av
    import numpy as np

    width, height = size
    rows, columns = np.mgrid[0:height, 0:width]
    texture = ((np.sin(columns / 17) + np.sin(rows / 11) + np.sin((rows + columns) / 29)) * 30 + 128).astype(np.uint8)
    wide = np.concatenate([texture, texture], axis=1)
    part = path.with_name("part-" + path.name)
    with av.open(str(part), "w") as out:
        stream = out.add_stream(codec, rate=30)
        stream.width, stream.height, stream.pix_fmt, stream.options = width, height, "yuv420p", options
        if uneven:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        for n in range(frames):
            planes = np.full((height * 3 // 2, width), 128, np.uint8)
            planes[:height] = wide[:, n * 3 % width :][:, :width]
            for bit in range(16):
                left, right = round(bit * width / 16), round((bit + 1) * width / 16)
                planes[: height // 8, left:right] = 235 if n >> bit & 1 else 16
            frame = av.VideoFrame.from_ndarray(planes, "yuv420p")
            frame.pts = n if not uneven else 5000 + 33 * n + 400 * (n // 10) + n % 3
            frame.time_base = Fraction(1, 1000) if uneven else Fraction(1, 30)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    part.rename(path)


def films() -> tuple[list[str], str]:
    """Paths of the clips and of the film, made where they are not there."""
    folder = Path(tempfile.gettempdir()) / "minikeye_bench_service"
    folder.mkdir(exist_ok=True)
    clips = []
    for n in range(CLIPS):
        codec, options, uneven = KINDS[n % len(KINDS)]
        path = folder / f"clip{n:02}.{'mkv' if uneven else 'mp4'}"
        if not path.exists():
            film(path, LENGTH, (640, 360), codec, options, uneven)
        clips.append(str(path))
    if not (long := folder / "film.mp4").exists():
        film(long, FILM, (1280, 720), "libx264", {**ULTRA, "g": "250"}, False)
    return clips, str(long)


def numbers_shown(paths: list[str]) -> dict[str, list[int]]:
    """What a plain decoding of each film from its first frame on shows: a coder may have lost a bit of a number."""
    import av

    found = {}
    for path in paths:
        with av.open(path) as file:
            frames = (f.reformat(width=SIZE[0], height=SIZE[1], format="rgb24") for f in file.decode(video=0))
            found[path] = [shown(frame.to_ndarray()[None])[0] for frame in frames]
    return found


def patterns(clips: list[str], long: str) -> dict[str, list]:
    """(path, frames) of each request."""
    draw = random.Random(0)
    spread = [round(i * (LENGTH - 1) / 15) for i in range(16)]
    drawn: list = []
    for _ in range(40):
        fresh = (draw.choice(clips), sorted(draw.sample(range(LENGTH), 8)))
        drawn.append(draw.choice(drawn) if len(drawn) > 5 and draw.random() < 0.2 else fresh)
    begin = [(path, [0]) for path in clips[-2:]]  # not counted: processes start
    made = {
        "film_64": [(long, [round(i * (FILM - 8) / 63) + n for i in range(64)]) for n in range(4)],
        "clips_16": [(path, spread) for path in clips],
        "equal_8": [(path, spread) for path in clips[:6] for _ in range(8)],
        "random_8": drawn,
    }
    return {name: begin + requests for name, requests in made.items()}


def run(reader: str, requests: list, rivals: str, **options) -> dict:
    """One run. Its figures, or the reason why there are none."""
    with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
        expected = [[NUMBERS[path][n] for n in indices] for path, indices in requests]
        json.dump({"requests": requests, "expected": expected, **options}, file)
        file.flush()
        rival = {"PYTHONPATH": rivals} if rivals and reader in RIVALS else {}
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **rival}
        command = [sys.executable, "-W", "ignore", str(READERS), reader, file.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
        except subprocess.TimeoutExpired:
            return {"reader": reader, "error": "no end after 300 s"}
    if done.returncode or not done.stdout.strip():
        lines = [line for line in done.stderr.splitlines() if line and not line.startswith(" ")]
        return {"reader": reader, "error": (lines or ["no message"])[-1][:200]}
    figures = json.loads(done.stdout.splitlines()[-1])
    if not figures["frames"]:
        return {"reader": reader, "error": figures.get("error", (figures["reasons"] or ["no frames"])[0])}
    return {"reader": reader, **{k: round(v, 4) if isinstance(v, float) else v for k, v in figures.items()}}


def middle(runs: list[dict]) -> dict:
    """The run with the median time, with all times; the most frames/s and CPU per frame follow from it."""
    good = [r for r in runs if "error" not in r]
    if not good:
        return {**runs[-1], "error": runs[-1]["error"]}
    row = dict(sorted(good, key=lambda r: r["wall_s"])[len(good) // 2])
    row["wall_s_all"] = [r["wall_s"] for r in good]
    row["frames_per_s"] = round(row["frames"] / row["wall_s"], 1)
    row["cpu_ms_per_frame"] = round(1e3 * row["cpu_s"] / row["frames"], 3)
    row["wrong"] = max(r["wrong"] for r in good)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--rivals", default="")
    arguments = parser.parse_args()
    os.environ["SVT_LOG"] = "1"  # its encoder tells of every file
    clips, long = films()
    NUMBERS.update(numbers_shown([*clips, long]))
    asked, rows, summary = patterns(clips, long), [], {}

    def add(pattern: str, row: dict) -> dict:
        rows.append({"pattern": pattern, **row})
        print(json.dumps(rows[-1]), flush=True)
        write_whole(RESULT.with_suffix(".part.json"), json.dumps(rows).encode())  # what is there so far
        return rows[-1]

    # The service with one worker against the same decoding in a plain loop, in turns.
    pairs = [
        (run("alone", asked["clips_16"], ""), run("service_1", asked["clips_16"], "", config={"cache_bytes": 0}))
        for _ in range(2 * arguments.repeats - 1)
    ]
    _, served = add("clips_16", middle([p[0] for p in pairs])), add("clips_16", middle([p[1] for p in pairs]))
    summary["service_share_of_decode_rate"] = round(median(a["wall_s"] / b["wall_s"] for a, b in pairs), 3)
    summary["service_cpu_per_decode_cpu"] = round(median(b["cpu_s"] / a["cpu_s"] for a, b in pairs), 3)

    # A trainer whose step takes 1.2 times as long as a clip takes one worker.
    step = 1.2 * served["wall_s"] / (served["asked"] - 2)
    waits = [
        run("service_1", asked["clips_16"], "", step=step, config={"cache_bytes": 0}) for _ in range(arguments.repeats)
    ]
    row = add("clips_16, step of 1.2 decodes", {**middle(waits), "step_s": round(step, 4)})
    summary["service_wait_share"] = round(median(r["wait_s"] / r["wall_s"] for r in waits), 4)

    # Twice as long a stream, four times: memory.
    peaks = [run("service_2", asked["clips_16"] * n, "", config={"cache_bytes": 0}) for n in (1, 4)]
    for n, peak in zip((1, 4), peaks, strict=True):
        add(f"clips_16, {n} times over", middle([peak]))
    summary["service_peak_mib_50_clips"], summary["service_peak_mib_200_clips"] = (
        round(p["peak_mib"], 1) for p in peaks
    )

    for pattern, requests in asked.items():
        for name in ("service_2", *(RIVALS if pattern in ("film_64", "clips_16") else FEW)):
            row = add(pattern, middle([run(name, requests, arguments.rivals)]))
            if pattern == "equal_8" and name == "service_2":
                summary["service_decodes_of_48_equal_in_8"] = row["decodes"] - 2  # of the beginning

    # Faults: a worker killed every 2 s, one stopped every 6 s and killed at the limit; one file of fifty cut off. More
    # often would stop workers that still load their libraries, which have START, two minutes, to be ready.
    cut = Path(clips[0]).with_name("cut.mp4")
    cut.write_bytes(Path(clips[0]).read_bytes()[:-2000])
    NUMBERS[str(cut)] = [0]
    many = [*asked["clips_16"], (str(cut), [0]), *asked["clips_16"] * 3]
    fault = {"signal": "SIGKILL", "every": 2.0, "config": {"cache_bytes": 0}}
    killed = add("a worker killed every 2 s, one file cut off", run("service_2", many, "", **fault))
    stop = {"signal": "SIGSTOP", "every": 6.0, "config": {"limit": 3.0, "cache_bytes": 0}}
    stopped = add("a worker stopped every 6 s, limit 3 s", run("service_2", many * 4, "", **stop))
    add("a worker killed every 2 s", run("pyav", asked["clips_16"] * 3, arguments.rivals, signal="SIGKILL", every=2.0))
    if not killed.get("signals") or stopped.get("signals", 0) < 2:
        raise SystemExit("the runs with faults ended before a worker was killed or stopped: give them more requests")
    summary["service_lost"] = killed["asked"] - killed["taken"] + killed["errors"] - 1  # the file that is cut off
    summary["service_deaths"] = killed["deaths"]
    summary["service_stopped_answers"] = stopped["taken"]
    summary["service_stopped_workers"] = stopped["deaths"]
    summary["service_stopped_errors"] = stopped["errors"] - 4  # the file that is cut off, four times
    ours = [r for r in rows if r["reader"].startswith("service")]
    summary["service_wrong_frames"] = sum(r["wrong"] for r in ours)
    summary["service_requests"] = sum(r["taken"] for r in ours)
    what = (
        f"a video service on {os.cpu_count()} cores: 50 clips of 5 s (640x360; H.264 with groups of 12, of 250 with "
        f"B-frames, of uneven times; HEVC; AV1) and a film of 120 s (1280x720), resized to 308x168; other "
        f"work ran on the machine (load in each row)"
    )
    command = f"python tests/benchmarks/bench_service.py --repeats {arguments.repeats} --rivals FOLDER"
    packages = ("torch", "numpy", "av", "psutil")
    write_result(RESULT, what, command, rows, summary, seeds=[0], packages=packages)
    RESULT.with_suffix(".part.json").unlink()
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
