"""Who works on what: by hand, against every possible assignment, and a whole exchange played with lists."""

from collections import Counter
from itertools import chain, permutations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minikeye.training.parallel.balance import Plan, assign, frame_costs, utilisation

COSTS = st.lists(st.integers(1, 50), max_size=40)
HELD = st.lists(st.lists(st.sampled_from([4, 8, 16, 36, 1008]), max_size=9), min_size=1, max_size=6)


def loads(costs, shares):
    return [sum(costs[n] for n in share) for share in shares]


def test_by_hand():
    """9 and 7 go to ranks 0 and 1, 6 to rank 1, 5 to rank 0, 4 to rank 1; 2 to rank 0, which has 14 against 17."""
    assert assign([4, 9, 6, 2, 7, 5], 2) == [[1, 3, 5], [0, 2, 4]]
    assert utilisation([[16, 17]]) == 33 / 34 and utilisation([[16, 17], [0, 0], [3, 1]]) == 37 / 40


def test_costs_by_hand():
    """The released tower is 1,152 wide: 3d = 3,456. A frame of 1,008 patches is 77 % linear, a large picture 10 %."""
    assert frame_costs([4, 1008, 32_768], 1152) == [4 * 3460, 1008 * 4464, 32_768 * 36_224]
    assert round(3456 / 4464, 2) == 0.77 and round(3456 / 36_224, 2) == 0.1


@given(COSTS, st.integers(1, 9))
def test_every_item_once_and_again_the_same(costs, ranks):
    shares = assign(costs, ranks)
    assert len(shares) == ranks and sorted(n for share in shares for n in share) == list(range(len(costs)))
    assert all(share == sorted(share) for share in shares)
    assert assign(costs, ranks) == shares


@given(st.lists(st.integers(1, 30), min_size=1, max_size=7), st.integers(1, 3))
def test_grahams_bound_against_every_assignment(costs, ranks):
    """No more than 4/3 - 1/(3 ranks) of the best of all: in whole numbers, 3 ranks x ours <= (4 ranks - 1) x best."""
    every = product(range(ranks), repeat=len(costs))
    best = min(
        max(sum(c for c, r in zip(costs, way, strict=True) if r == rank) for rank in range(ranks)) for way in every
    )
    assert 3 * ranks * max(loads(costs, assign(costs, ranks))) <= (4 * ranks - 1) * best


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_grahams_bound_is_reached(ranks):
    """His example: two of each of 2r - 1 ... r + 1, three of r. The best is 3r, longest first takes 4r - 1."""
    costs = [c for c in range(2 * ranks - 1, ranks, -1) for _ in range(2)] + 3 * [ranks]
    assert sum(costs) == ranks * 3 * ranks
    assert max(loads(costs, assign(costs, ranks))) == 4 * ranks - 1


@given(COSTS, st.integers(1, 9))
def test_loads_are_those_of_longest_first(costs, ranks):
    """Each rank's load, against a loop that looks for the least: the exchange of equal items has changed none."""
    least = [0] * ranks
    for cost in sorted(costs, reverse=True):
        least[least.index(min(least))] += cost
    assert loads(costs, assign(costs, ranks)) == least


@given(st.integers(0, 40), st.integers(1, 9))
def test_equal_frames_are_cut_into_neighbours(count, ranks):
    """A video: rank after rank gets a run of it, the first ones one frame more where it does not divide."""
    shares = assign([7] * count, ranks)
    assert [n for share in shares for n in share] == list(range(count))
    assert [len(share) for share in shares] == [count // ranks + (r < count % ranks) for r in range(ranks)]


@given(HELD)
def test_homes_change_no_load_and_spare_journeys(held):
    """Against the plan that does not know where items are: the same loads, every item once, no more that travels."""
    costs, homes = [p for own in held for p in own], [rank for rank, own in enumerate(held) for _ in own]
    settled, blind = assign(costs, len(held), homes), assign(costs, len(held))
    assert sorted(n for share in settled for n in share) == list(range(len(costs)))
    assert sorted(loads(costs, settled)) == sorted(loads(costs, blind))
    travels = [sum(costs[n] for r, share in enumerate(way) for n in share if homes[n] != r) for way in (settled, blind)]
    assert travels[0] <= travels[1]


@given(st.lists(st.lists(st.sampled_from([4, 8, 36]), max_size=5), min_size=1, max_size=4))
def test_what_travels_is_the_least_for_these_shares(held):
    """Every way of giving the shares to ranks: each rank keeps what it holds of its share, the rest must travel."""
    costs, homes = [p for own in held for p in own], [rank for rank, own in enumerate(held) for _ in own]
    shares = [Counter(costs[n] for n in share) for share in assign(costs, len(held))]
    own = [Counter(patches) for patches in held]
    most = max(
        sum(c * n for rank, share in enumerate(way) for c, n in (own[rank] & share).items())
        for way in permutations(shares)
    )
    stays = sum(costs[n] for r, share in enumerate(assign(costs, len(held), homes)) for n in share if homes[n] == r)
    assert stays == most


def test_even_ranks_send_nothing():
    """Two ranks with the same frames: drawn in another order, a plan that is blind to homes would swap them."""
    plan = Plan.of([[8, 100, 8], [100, 8, 8]], 4)
    assert plan.work == plan.home


def test_a_video_beside_a_picture():
    """The picture takes a rank; the video's frames stay runs. Fewer items than ranks leave ranks empty."""
    assert assign([3, 3, 3, 20, 3, 3, 3], 3) == [[3], [0, 1, 2], [4, 5, 6]]
    assert assign([5], 3) == [[0], [], []] and assign([], 2) == [[], []]


@given(HELD)
def test_an_exchange_played_with_lists(held):
    """Frames leave in the plan's order, arrive, are worked on and come back: every rank has its own, in its order."""
    plan = Plan.of(held, 12)
    ranks = range(plan.ranks)
    letters = {r: [[(f, plan.work[f]) for f in plan.leaving(r) if plan.work[f] == to] for to in ranks] for r in ranks}
    for r in ranks:
        assert [f for f, _ in chain(*letters[r])] == plan.leaving(r)  # those for rank 0 first
        assert [sum(plan.patches[f] for f, _ in letter) for letter in letters[r]] == plan.sent(r)
    arrived = {r: list(chain(*(letters[home][r] for home in ranks))) for r in ranks}
    for r in ranks:
        assert [f for f, _ in arrived[r]] == plan.arriving(r)
        assert plan.received(r) == [plan.sent(home)[r] for home in ranks]
    homes = Counter(plan.home)
    assert [homes[r] for r in ranks] == [len(frames) for frames in held]
    assert [[plan.patches[f] for f in sorted(plan.leaving(r))] for r in ranks] == held


def test_a_plan_by_hand():
    """Rank 0 holds 3 frames, rank 1 none: two stay, one travels."""
    plan = Plan.of([[8, 8, 8], []], 4)
    assert (plan.home, plan.work) == ((0, 0, 0), (0, 0, 1))
    assert (plan.sent(0), plan.received(0), plan.sent(1), plan.received(1)) == ([16, 8], [16, 0], [0, 0], [8, 0])
    mixed = Plan.of([[8, 100, 8], [8]], 4)
    assert mixed.work == (1, 0, 1, 1)
    assert mixed.leaving(0) == [1, 0, 2] and mixed.arriving(1) == [0, 2, 3]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: assign([1, 2], 0), "at least 1 rank and costs of at least 1, got 0 ranks"),
        (lambda: assign([1, 0], 2), r"costs \[1, 0\]"),
        (lambda: assign([1, 2], 2, [0]), "a home of 0..1 for each of 2 items, got 1"),
        (lambda: assign([1, 2], 2, [0, 2]), r"for each of 2 items, got 2: \[0, 2\]"),
        (lambda: frame_costs([4, 0], 8), "frames of at least 1 patch, got 0: leave empty frames out"),
        (lambda: utilisation([[0, 0], [0, 0]]), "a rank has something to do, got none: draw more steps"),
        (lambda: utilisation([]), "a rank has something to do"),
    ],
)
def test_bad_sizes(call, message):
    with pytest.raises(ValueError, match=message):
        call()
