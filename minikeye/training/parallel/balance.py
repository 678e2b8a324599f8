"""Who works on what: frames over the ranks that run the tower, samples over the ranks that run the decoder.

Report, section 5.1: balancing on two levels, "multimodal-token" and "LM-sample"; it prints no algorithm. Ours is
longest processing time first (Graham, 1969). Pure functions of sizes that every rank knows, without a draw: every rank
works out the same plan alone, so that no two ever wait for each other in different places.
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace


def frame_costs(patches: Sequence[int], width: int) -> list[int]:
    """What the tower's time for each frame is proportional to: p(p + 3d), p patches of the frame, d = `width`.

    p * p is attention among the patches of a frame, 3 * p * d everything that is linear in them. Counted in
    multiplications the second would be 5.7 * p * d in the released tower; 3 takes it that attention does half as many
    in the same time. Our choice. Where all frames are of one size it makes no difference; a picture of 32,768 patches
    is why p * p must be there. Raises ValueError for a frame without patches.
    """
    if patches and min(patches) < 1:
        raise ValueError(f"expected frames of at least 1 patch, got {min(patches)}: leave empty frames out")
    return [p * (p + 3 * width) for p in patches]


def assign(costs: Sequence[int], ranks: int, homes: Sequence[int] | None = None) -> list[list[int]]:
    """The items of each rank, ascending: the costliest first, each to the rank that has the least to do so far.

    costs: of frames (`frame_costs`), or tokens of samples, for the decoder's level; whole numbers, because sums of them
    are the same in any order. The longest time is at most 4/3 - 1/(3 ranks) of the best possible one. Ties go to the
    lower rank. Items of one cost may change places without changing anybody's load, so each rank takes neighbours:
    frames of a video stay together where it costs nothing. Fewer items than ranks leave ranks empty.
    homes: the rank that holds each item. Then shares go to the ranks that hold most of them, and of each cost a rank
    takes its own items first: the loads are the same ones, and less travels.
    Raises ValueError for no rank, for a cost below 1, and for homes that are not one rank an item.
    """
    if ranks < 1 or (costs and min(costs) < 1):
        raise ValueError(
            f"expected at least 1 rank and costs of at least 1, got {ranks} ranks, costs {list(costs)[:8]}"
        )
    if homes is not None and (len(homes) != len(costs) or any(not 0 <= home < ranks for home in homes)):
        raise ValueError(
            f"expected a home of 0..{ranks - 1} for each of {len(costs)} items, got {len(homes)}: {list(homes)[:8]}"
        )
    loads = [(0, rank) for rank in range(ranks)]
    heapify(loads)
    shares: list[Counter[int]] = [Counter() for _ in range(ranks)]  # how many items of each cost
    for cost in sorted(costs, reverse=True):
        load, rank = loads[0]
        shares[rank][cost] += 1
        heapreplace(loads, (load + cost, rank))
    if homes is None:
        return _hand_out(costs, shares, [None] * len(costs))
    return _hand_out(costs, _settled(costs, shares, homes), homes)


def _settled(costs: Sequence[int], shares: list[Counter[int]], homes: Sequence[int]) -> list[Counter[int]]:
    """The same shares in another order: each at a rank that holds much of it, all together as much as can be."""
    from scipy.optimize import linear_sum_assignment  # slow to import, and wanted here alone

    held: list[Counter[int]] = [Counter() for _ in shares]
    for cost, home in zip(costs, homes, strict=True):
        held[home][cost] += 1
    kept = [[sum(cost * n for cost, n in (own & share).items()) for share in shares] for own in held]
    _, of_rank = linear_sum_assignment(kept, maximize=True)
    return [shares[n] for n in of_rank]


def _hand_out(costs: Sequence[int], shares: list[Counter[int]], homes: Sequence[int | None]) -> list[list[int]]:
    """So many items of each cost to each rank: first its own, then what others cannot keep, in order."""
    waiting: dict[tuple[int, int | None], deque[int]] = {}
    for number, key in enumerate(zip(costs, homes, strict=True)):
        waiting.setdefault(key, deque()).append(number)
    given: list[list[int]] = [[] for _ in shares]
    for rank, share in enumerate(shares):
        for cost, count in share.items():
            own = waiting.get((cost, rank), deque())
            given[rank] += [own.popleft() for _ in range(min(count, len(own)))]
    left: dict[int, deque[int]] = {}
    for number in sorted(number for own in waiting.values() for number in own):
        left.setdefault(costs[number], deque()).append(number)
    for rank, share in enumerate(shares):
        missing = share - Counter(costs[number] for number in given[rank])
        given[rank] += [left[cost].popleft() for cost in missing.elements()]
    return [sorted(numbers) for numbers in given]


def utilisation(steps: Sequence[Sequence[int]]) -> float:
    """The share of the time in which ranks work, where all wait for the slowest: mean loads over largest loads, summed.

    steps: for each step the load of each rank; one in which nobody has anything to do takes no time. Raises ValueError
    where that holds for all.
    """
    longest = sum(max(loads) for loads in steps)
    if longest == 0:
        raise ValueError("expected a step in which a rank has something to do, got none: draw more steps")
    return sum(sum(loads) / len(loads) for loads in steps) / longest


@dataclass(frozen=True)
class Plan:
    """Which rank holds each frame, and which one runs the tower on it. Frames are numbered rank after rank."""

    patches: tuple[int, ...]  # of each frame
    home: tuple[int, ...]  # the rank that read the frame, and whose decoder needs its features
    work: tuple[int, ...]  # the rank whose tower sees it
    ranks: int

    @classmethod
    def of(cls, held: Sequence[Sequence[int]], width: int) -> "Plan":
        """held: for each rank, the patches of each frame it holds; width: of the tower, d of `frame_costs`."""
        patches = [p for frames in held for p in frames]
        work = [0] * len(patches)
        home = [rank for rank, frames in enumerate(held) for _ in frames]
        for rank, frames in enumerate(assign(frame_costs(patches, width), len(held), home)):
            for frame in frames:
                work[frame] = rank
        return cls(tuple(patches), tuple(home), tuple(work), len(held))

    def leaving(self, rank: int) -> list[int]:
        """The frames that `rank` holds, in the order in which they leave it: by the rank they go to."""
        return sorted((f for f, home in enumerate(self.home) if home == rank), key=lambda f: self.work[f])

    def arriving(self, rank: int) -> list[int]:
        """The frames that `rank` works on, in the order in which they arrive: by the rank they come from."""
        return [f for f, work in enumerate(self.work) if work == rank]

    def travelling(self, home: int, work: int) -> int:
        """Patches that `home` holds and `work` works on."""
        where = zip(self.patches, self.home, self.work, strict=True)
        return sum(patches for patches, *ranks in where if ranks == [home, work])

    def sent(self, rank: int) -> list[int]:
        """Patches that leave `rank` for each rank, itself included."""
        return [self.travelling(rank, other) for other in range(self.ranks)]

    def received(self, rank: int) -> list[int]:
        """Patches that reach `rank` from each rank, itself included."""
        return [self.travelling(other, rank) for other in range(self.ranks)]
