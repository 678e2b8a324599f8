"""One run of one reader on one list of requests, in a process of its own; called by bench_service.py.

python service_readers.py READER RUN.json: prints one JSON line. Every frame of the films shows its number as sixteen
black or white squares (bench_service.py), so a wrong frame is seen whatever a reader does to sizes and colours.
"""

import json
import os
import signal
import sys
import threading
import time
from functools import partial

import numpy as np
import psutil

SIZE = (308, 168)  # of the frames that come, width x height, pixels
WARM = 2  # clips at the beginning that are not counted: processes start


def shown(frames: np.ndarray) -> list[int]:
    """The numbers that frames show, [f 3 height width] or [f height width 3]."""
    grey = frames.mean(axis=1 if frames.shape[1] == 3 else 3)
    height, width = grey.shape[1:]
    rows = slice(height // 24, height // 12)
    middles = [int((n + 0.5) * width / 16) for n in range(16)]
    bits = np.stack([grey[:, rows, m - 3 : m + 4].mean((1, 2)) > 128 for m in middles], axis=1)
    return (bits @ (1 << np.arange(16))).tolist()


# ------------------------------------------------------------------------------- readers: (path, indices) -> frames


def torchcodec(mode: str, threads: int, path: str, indices: list[int]) -> np.ndarray:
    from torchcodec.decoders import VideoDecoder
    from torchcodec.transforms import Resize

    decoder = VideoDecoder(path, seek_mode=mode, num_ffmpeg_threads=threads, transforms=[Resize(SIZE[::-1])])
    return decoder.get_frames_at(indices).data.numpy()


def decord(path: str, indices: list[int]) -> np.ndarray:
    from decord import VideoReader

    return VideoReader(path, width=SIZE[0], height=SIZE[1], num_threads=1).get_batch(indices).asnumpy()


def pyav(path: str, indices: list[int]) -> np.ndarray:
    """What one writes first: decode from the beginning, keep what is wanted."""
    import av

    wanted, kept = set(indices), {}
    with av.open(path) as container:
        for n, frame in enumerate(container.decode(video=0)):
            if n in wanted:
                kept[n] = frame.reformat(*SIZE, "rgb24").to_ndarray()
            if n == max(wanted):
                break
    return np.stack([kept[n] for n in indices])


def spdl(path: str, indices: list[int]) -> np.ndarray:
    import spdl.io

    filters = spdl.io.get_filter_desc(spdl.io.demux_video(path), scale_width=SIZE[0], scale_height=SIZE[1])
    order = sorted(set(indices))
    frames = spdl.io.sample_decode_video(spdl.io.demux_video(path), order, filter_desc=filters)
    pixels = spdl.io.to_numpy(spdl.io.convert_frames(frames))
    return pixels[np.searchsorted(order, indices)]


def alone(path: str, indices: list[int]) -> np.ndarray:
    """This project's decoding in a plain loop, on one thread: the pure decode rate."""
    from minikeye.inputs.service.request import FrameRequest
    from minikeye.inputs.service.worker import Job, answer

    (clip,) = answer(Job((FrameRequest(path, SIZE, indices=indices),), threads=1, room=2**31))
    return clip.frames


DECODERS = {
    "alone": alone,
    "torchcodec_exact_1": partial(torchcodec, "exact", 1),
    "torchcodec_exact_0": partial(torchcodec, "exact", 0),
    "torchcodec_approximate_1": partial(torchcodec, "approximate", 1),
    "torchcodec_approximate_0": partial(torchcodec, "approximate", 0),
    "decord": decord,
    "pyav": pyav,
    "spdl": spdl,
}

# ------------------------------------------------------------------------------- what runs them: requests -> results


class Files:
    """A map-style dataset for a DataLoader."""

    def __init__(self, decode, requests: list):
        self.decode, self.requests = decode, requests

    def __len__(self) -> int:
        return len(self.requests)

    def __getitem__(self, n: int) -> tuple[int, np.ndarray | Exception]:
        return numbered(self.decode, self.requests, n)


def same(sample: tuple) -> tuple:
    return sample


def loaded(name: str, requests: list):
    """Results of a reader, in order, as its own users would run it on two cores."""
    if name == "alone":
        yield from ((n, alone(*request)) for n, request in enumerate(requests))
    elif name == "spdl":  # decoders release Python's lock: threads, as its documentation has it
        from spdl.pipeline import PipelineBuilder

        decode = partial(numbered, spdl, requests)
        builder = PipelineBuilder().add_source(range(len(requests))).pipe(decode, concurrency=2, output_order="input")
        pipeline = builder.add_sink(4).build(num_threads=2)
        with pipeline.auto_stop():
            yield from pipeline.get_iterator(timeout=60)
    else:
        from torch.utils.data import DataLoader

        dataset = Files(DECODERS[name], requests)
        options = {"num_workers": 2, "batch_size": None, "collate_fn": same, "multiprocessing_context": "spawn"}
        yield from DataLoader(dataset, prefetch_factor=4, timeout=60, **options)


def numbered(decode, requests: list, n: int) -> tuple[int, np.ndarray | Exception]:
    try:
        return n, decode(*requests[n])
    except Exception as error:
        return n, RuntimeError(f"{requests[n][0]}: {error}")


def served(name: str, requests: list, run: dict, report: dict):
    """service_W: the video service with W workers."""
    from minikeye.inputs.service import FrameRequest, ServiceConfig, VideoReader

    workers = int(name.rpartition("_")[2])
    config = ServiceConfig(cores=workers, workers=workers, flight_bytes=2**26, **run.get("config", {}))
    with VideoReader(config) as reader:
        clips = reader.stream([FrameRequest(path, SIZE, indices=indices) for path, indices in requests])
        yield from ((n, r if isinstance(r, Exception) else r.frames) for n, r in clips)
        report |= {"report": reader.report(), "decodes": reader.service.statistics.decodes}
        report["deaths"] = reader.service.statistics.deaths


def children() -> list[psutil.Process]:
    return [p for p in psutil.Process().children(recursive=True) if "resource_tracker" not in " ".join(p.cmdline())]


def watch(peak: list[int], stop: threading.Event) -> None:
    """Proportional set size of this process and its children, the highest of a sample every 0.3 s."""
    while not stop.wait(0.3):
        total = 0
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
        peak[0] = max(peak[0], total)


def disturb(every: float, number: int, stop: threading.Event, sent: list[float]) -> None:
    """A signal to one child after another."""
    while not stop.wait(every):
        if found := children():
            sent.append(time.perf_counter())
            os.kill(found[len(sent) % len(found)].pid, number)


def cpu_seconds() -> float:
    """Of this process and of all that it has waited for or that still run."""
    running = sum(sum(p.cpu_times()[:2]) for p in children())
    return sum(os.times()[:4]) + running


def main() -> None:
    name = sys.argv[1]
    with open(sys.argv[2], encoding="utf-8") as file:
        run = json.load(file)
    requests, step, warm = run["requests"], run.get("step", 0.0), WARM
    peak, stop, sent, report = [0], threading.Event(), [], {}
    threading.Thread(target=watch, args=(peak, stop), daemon=True).start()
    if "signal" in run:
        number = getattr(signal, run["signal"])
        threading.Thread(target=disturb, args=(run["every"], number, stop, sent), daemon=True).start()
    wrong = errors = frames = taken = 0
    waits, reasons, begun, cpu = [], [], time.perf_counter(), 0.0
    results = served(name, requests, run, report) if name.startswith("service") else loaded(name, requests)
    try:
        while True:
            asked = time.perf_counter()
            if (result := next(results, None)) is None:
                break
            number, clip = result
            if taken >= warm:
                waits.append(time.perf_counter() - asked)
            if isinstance(clip, Exception):
                errors += 1
                reasons.append(f"{type(clip).__name__}: {str(clip)[-120:]}")
            else:
                wrong += sum(a != b for a, b in zip(shown(clip), run["expected"][number], strict=True))
                frames += len(clip) if taken >= warm else 0
            taken += 1
            if taken == warm:
                begun, cpu = time.perf_counter(), cpu_seconds()
            if step:
                time.sleep(step)
        wall = time.perf_counter() - begun
    except Exception as error:
        wall = time.perf_counter() - begun
        report["error"] = f"{type(error).__name__}: {str(error)[:160]}"
    stop.set()
    report |= {"wall_s": wall, "cpu_s": cpu_seconds() - cpu, "frames": frames, "wrong": wrong, "errors": errors}
    report |= {"taken": taken, "asked": len(requests), "peak_mib": peak[0] / 2**20, "signals": len(sent)}
    report |= {"wait_s": sum(waits), "reasons": reasons[:3], "load": os.getloadavg()[0]}
    if waits:
        report |= {
            "wait_p50_ms": 1e3 * float(np.quantile(waits, 0.5)),
            "wait_p99_ms": 1e3 * float(np.quantile(waits, 0.99)),
        }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
