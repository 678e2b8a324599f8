"""Typical wrong answers for notebook 02."""

from minikeye.exercises.nb02 import check_frame_seconds, check_frames_to_sample, check_next_position


def _sample(cut=int, slow=min, least=2, capped=True, counted=True):
    """A right answer with one mistake in it."""

    def frames_to_sample(seconds, video_fps, total, budget):
        wanted = max(cut(seconds * slow(2, video_fps)), least)
        wanted = min(wanted, budget // 64) if capped else wanted
        return min(wanted, total) if counted else wanted

    return frames_to_sample


WRONG_ANSWERS = [
    (check_frames_to_sample, lambda seconds, video_fps, total, budget: None, "write its body"),
    (check_frames_to_sample, lambda seconds, video_fps, total, budget: total, "2 frames per second"),
    (check_frames_to_sample, _sample(cut=round), "cuts off"),
    (check_frames_to_sample, _sample(slow=lambda fps, video_fps: fps, counted=False), "min\\(fps, video_fps\\)"),
    (check_frames_to_sample, _sample(least=0), "at least 2"),
    (check_frames_to_sample, _sample(capped=False), "2,880"),
    (check_frames_to_sample, _sample(counted=False), "cap by total"),
    (check_next_position, lambda start, rows, columns: None, "write its body"),
    (check_next_position, lambda start, rows, columns: start + rows * columns, "6 positions"),
    (check_next_position, lambda start, rows, columns: start + 1, "rows and columns count on"),
    (check_next_position, lambda start, rows, columns: start + rows, "longer side"),
    (check_next_position, lambda start, rows, columns: start + columns, "3 x 2"),
    (check_next_position, lambda start, rows, columns: start + max(rows, columns) + 1, "one too far"),
    (check_frame_seconds, lambda pts, time_base: None, "write its body"),
    (check_frame_seconds, lambda pts, time_base: pts, "ticks"),
    (check_frame_seconds, lambda pts, time_base: [p * time_base for p in pts], "first frame"),
    (
        check_frame_seconds,
        lambda pts, time_base: [n * (pts[-1] - pts[0]) * time_base / (len(pts) - 1) for n in range(len(pts))],
        "evenly spaced",
    ),
]
