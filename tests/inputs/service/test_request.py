"""What may be asked, what a request takes, and errors that survive a pickle."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minikeye.config import VideoConfig
from minikeye.inputs.sampling import VideoError, sample
from minikeye.inputs.service import FrameRequest, ServiceConfig
from minikeye.inputs.service.cache import ByteCache
from minikeye.inputs.service.request import BadVideo, OutOfMemory, TookTooLong, TooLarge, WorkerDied


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, "got none"),
        ({"size": (28, 28)}, "got none"),
        ({"size": (28, 28), "indices": (0,), "seconds": (0.0,)}, "got indices and seconds"),
        ({"indices": (0,)}, "expected a size"),
        ({"config": VideoConfig(), "size": (28, 28)}, "and none with config"),
        ({"size": (0, 28), "indices": (0,)}, "width, height"),
        ({"size": (28,), "indices": (0,)}, "width, height"),
    ],
)
def test_a_request_says_one_thing(asked: dict, message: str) -> None:
    with pytest.raises(VideoError, match=message):
        FrameRequest("a.mp4", **asked)


def test_cores_belong_to_the_service() -> None:
    assert ServiceConfig(cores=8).workers == 8 and ServiceConfig(cores=8, threads=3).workers == 2
    with pytest.raises(ValueError, match="at most 8 cores, got 5 x 2"):
        ServiceConfig(cores=8, threads=2, workers=5)
    for bad in ({"workers": 0}, {"limit": 0.0}, {"flight_bytes": -1}, {"threads": 0}):
        with pytest.raises(ValueError, match="expected a positive number"):
            ServiceConfig(cores=8, **bad)


def test_bytes_of_chosen_frames() -> None:
    assert FrameRequest("a", (10, 4), indices=[0, 5, 5]).frame_bytes == 3 * 3 * 40
    assert FrameRequest("a", (10, 4), seconds=(0.5,)).frame_bytes == 3 * 40


@given(
    seconds=st.floats(0.1, 20_000),
    rate=st.floats(1, 60),
    size=st.tuples(st.integers(500, 1000), st.integers(500, 1000)),
    tokens=st.integers(300, 200_000),
    most=st.none() | st.integers(1, 5000),
    videos=st.integers(1, 4),
)
def test_bytes_of_sampled_frames(seconds, rate, size, tokens, most, videos) -> None:
    """Against what `sample` makes of any video. Sides a and b in tokens, a b >= 64 and a <= 2 b, are rounded up by less
    than 1: to less than a b + a + b + 1 tokens, which is 1.29 times a b or less."""
    config = VideoConfig(video_tokens=tokens)
    request = FrameRequest("a", config=config, max_frames=most, videos=videos)
    made = sample(seconds, rate, max(1, int(seconds * rate)), size, config, videos=videos, max_frames=most)
    assert 3 * len(made.indices) * made.width * made.height <= 1.29 * request.frame_bytes


@pytest.mark.parametrize("kind", [BadVideo, OutOfMemory, TookTooLong, TooLarge, WorkerDied])
def test_errors_keep_what_they_say(kind: type) -> None:
    error = pickle.loads(pickle.dumps(kind("a.mp4", "for a reason")))
    assert type(error) is kind and (error.source, error.reason) == ("a.mp4", "for a reason")
    assert str(error) == "a.mp4: for a reason" and isinstance(error, VideoError)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 40) | st.none()), max_size=60))
def test_least_recently_used_goes_first(steps: list[tuple[int, int | None]]) -> None:
    """Against a plain list, newest last: puts of a size, and gets where there is none."""
    cache: ByteCache[int] = ByteCache(64)
    plain: list[tuple[int, int, int]] = []
    for n, (key, size) in enumerate(steps):
        found = [entry for entry in plain if entry[0] == key]
        plain = [entry for entry in plain if entry[0] != key]
        if size is None:
            assert cache.get(key) == (found[0][1] if found else None)
            plain += found
        else:
            cache.put(key, n, size)
            plain.append((key, n, size))
            while sum(entry[2] for entry in plain) > 64:
                plain.pop(0)
        assert cache.bytes == sum(entry[2] for entry in plain) <= 64 and len(cache) == len(plain)


def test_what_is_too_large_to_be_kept_moves_nobody_out() -> None:
    cache: ByteCache[str] = ByteCache(10)
    cache.put("a", "kept", 10)
    cache.put("b", "not kept", 11)
    assert cache.get("a") == "kept" and cache.get("b") is None
