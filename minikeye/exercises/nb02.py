"""Checkers for notebook 02, video to tokens."""

from fractions import Fraction

from minikeye.exercises import checker, written


@checker
def check_frames_to_sample(answer):
    """answer(seconds, video_fps, total, budget) -> frames to sample at 2 per second, at least 64 tokens each."""
    got = answer(10, 30, 300, 184_320)
    written(got, "frames_to_sample")
    assert got == 20, f"ten seconds at 2 frames per second are 20 frames, got {got}"
    got = answer(10.4, 30, 312, 184_320)
    assert got != 21, "10.4 s give 20.8, and int() cuts off: 20, not 21"
    got = answer(10, 1, 10, 184_320)
    assert got == 10, f"a file of 1 frame per second has no 2 per second to give: min(fps, video_fps); got {got}"
    got = answer(0.4, 30, 12, 184_320)
    assert got != 0, "a video of 0.4 s must not vanish: at least 2 frames"
    got = answer(3600, 30, 108_000, 184_320)
    assert got != 7200, "an hour does not fit: the budget holds 184,320 / 64 = 2,880 smallest frames"
    got = answer(0.02, 50, 1, 184_320)
    assert got == 1, f"a file of one frame has no second one to give: cap by total; got {got}"
    for case, expected in (
        ((10.4, 30, 312, 184_320), 20),
        ((0.4, 30, 12, 184_320), 2),
        ((3600, 30, 108_000, 184_320), 2880),
        ((600, 25, 15_000, 23_040), 360),
    ):
        got = answer(*case)
        assert got == expected, f"frames_to_sample{case} is {expected}, got {got}"


@checker
def check_next_position(answer):
    """answer(start, rows, columns) -> position of the token after a frame of rows x columns visual tokens at start."""
    got = answer(10, 2, 3)
    written(got, "next_position")
    assert got != 16, "6 tokens do not take 6 positions: they share rows and columns"
    assert got != 11, "the time of a frame stays, but its rows and columns count on: the largest of the three decides"
    assert got != 12, "the frame is wider than high: the longer side decides"
    assert got != 14, "one too far: a side of 3 takes the positions 10, 11 and 12, so the next one is 13"
    assert got == 13, f"a frame of 2 x 3 at position 10 is followed by position 13, got {got}"
    for start, rows, columns in ((10, 3, 2), (0, 1, 1), (7, 12, 21)):
        expected, got = start + max(rows, columns), answer(start, rows, columns)
        assert got == expected, f"a frame of {rows} x {columns} at {start} is followed by {expected}, got {got}"


@checker
def check_frame_seconds(answer):
    """answer(pts, time_base) -> seconds of every frame after the first one, from integer presentation times."""
    pts, time_base = [1000, 1040, 1500, 3000], Fraction(1, 1000)
    got = answer(pts, time_base)
    written(got, "frame_seconds")
    got = [float(seconds) for seconds in got]
    assert got != [float(p) for p in pts], "these are still ticks: multiply by the time base"
    assert got != [0, 40, 500, 2000], "these are still ticks: multiply by the time base"
    assert got[0] == 0, f"the clock of this file starts at 1 s: count from the first frame, got {got[0]} for it"
    even = [n * (got[-1] / 3) for n in range(4)]
    assert max(abs(g - e) for g, e in zip(got, even, strict=True)) > 1e-9, (
        "these are evenly spaced, as if the frame rate were constant: use the time of each frame, not its number"
    )
    assert max(abs(g - e) for g, e in zip(got, [0, 0.04, 0.5, 2], strict=True)) < 1e-9, (
        f"expected [0, 0.04, 0.5, 2], got {got}"
    )
    got = [float(seconds) for seconds in answer([0, 3], Fraction(1, 30))]
    assert max(abs(g - e) for g, e in zip(got, [0, 0.1], strict=True)) < 1e-9, f"3 ticks of 1/30 s are 0.1 s, got {got}"
