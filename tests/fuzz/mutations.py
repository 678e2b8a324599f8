"""Ways to spoil a file, each drawn from a seeded generator: what storage, networks and strangers do to it."""

import os
import random
from collections.abc import Iterator

# Mutations of each file. A few hundred in all keep a test run within seconds; by hand: MINIKEYE_FUZZ=1000.
COUNT = int(os.environ.get("MINIKEYE_FUZZ", "0"))


def flip_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice((1, 3, 30))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def flip_head(data: bytearray, rng: random.Random) -> None:
    """Bits of the first bytes, where formats say what follows."""
    for _ in range(rng.choice((1, 4))):
        data[rng.randrange(min(200, len(data)))] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(1, len(data)) :]


def drop(data: bytearray, rng: random.Random) -> None:
    """A piece from the middle is missing."""
    begin = rng.randrange(len(data))
    del data[begin : begin + rng.choice((1, 16, 188, 4096))]


def repeat(data: bytearray, rng: random.Random) -> None:
    begin = rng.randrange(len(data))
    data[begin:begin] = data[begin : begin + rng.choice((16, 188, 4096))]


def blank(data: bytearray, rng: random.Random) -> None:
    """A block that was never written."""
    begin, size = rng.randrange(len(data)), rng.choice((8, 64, 512))
    data[begin : begin + size] = bytes(len(data[begin : begin + size]))


def number(data: bytearray, rng: random.Random) -> None:
    """Four or eight bytes become a number that counters and sizes dislike."""
    width = rng.choice((4, 8))
    value = rng.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 50_000_000))
    begin = rng.randrange(max(1, len(data) - width))
    data[begin : begin + width] = (value % 2 ** (8 * width)).to_bytes(width, rng.choice(("big", "little")))


def append(data: bytearray, rng: random.Random) -> None:
    data += rng.randbytes(rng.choice((1, 100, 5000)))


MUTATIONS = (flip_bits, flip_head, cut, drop, repeat, blank, number, append)


def mutated(data: bytes, seed: str, count: int) -> Iterator[tuple[str, bytes]]:
    """(name, spoiled file) pairs: up to three mutations, one after another; the name says which."""
    for n in range(count):
        rng = random.Random(f"{seed} {n}")
        spoiled, names = bytearray(data), []
        for _ in range(rng.choice((1, 1, 2, 3))):
            mutation = rng.choice(MUTATIONS)
            if spoiled:
                mutation(spoiled, rng)
            names.append(mutation.__name__)
        yield f"{seed} {n}: {', '.join(names)}", bytes(spoiled)
