"""Other selections against loops, and the wrong RoPE layout against turning neighbours."""

import pytest
import torch
from torch.testing import assert_close

from minikeye import KeyeConfig, KeyeVL, ops
from minikeye.evaluation.rules import RULES, interleave, selecting
from minikeye.model.indexer import Indexer
from minikeye.model.record import selection_mass
from minikeye.model.rope import mrope
from minikeye.model.step import AttentionTrace

NANO = KeyeConfig.nano()


def trace(b=2, t=6, s=9, offset=3, start=None) -> AttentionTrace:
    torch.manual_seed(0)
    q, k = torch.randn(b, t, 4, 8), torch.randn(b, s, 2, 8)
    nothing = torch.zeros(b, t, 1, 1), torch.zeros(b, s, 1), torch.zeros(b, t, 1)
    return AttentionTrace(q, k, *nothing, None, offset, start)


def valid(row: int, t: int, offset: int, start) -> list[int]:
    return [s for s in range(9) if s <= offset + t and (start is None or s >= int(start[row]))]


STARTS = [None, torch.tensor([0, 2])]


@pytest.mark.parametrize("start", STARTS, ids=["whole", "padded"])
@pytest.mark.parametrize("topk", [2, 4, 9])
def test_window_and_first_last(start, topk):
    """The last k; the first and last k / 2 (of a tie in the middle, the smaller position)."""
    seen = trace(start=start)
    last, both = RULES["window"](seen, topk), RULES["firstlast"](seen, topk)
    for b in range(2):
        for t in range(6):
            keys = valid(b, t, 3, start)
            assert [n for n in last[b, t].tolist() if n >= 0] == keys[-topk:]
            first = 0 if start is None else int(start[b])
            far = sorted(keys, key=lambda s: (-abs(s - (first + 3 + t) / 2), s))[:topk]
            assert [n for n in both[b, t].tolist() if n >= 0] == sorted(far)
    assert both[0, 5].tolist()[:2] == [0, 8] or topk > 2


@pytest.mark.parametrize("start", STARTS, ids=["whole", "padded"])
def test_oracle_is_the_dense_softmax(start, monkeypatch):
    """Softmax in float64 per head, mean over heads, best three; slab by slab or not."""
    seen = trace(start=start)
    got = RULES["oracle"](seen, 3)
    for b in range(2):
        for t in range(6):
            keys = valid(b, t, 3, start)
            share = torch.zeros(len(keys), dtype=torch.float64)
            for h in range(4):
                share += (seen.k[b, keys, h // 2].double() @ seen.q[b, t, h].double() / 8**0.5).softmax(0)
            best = sorted(keys[n] for n in share.topk(min(3, len(keys))).indices.tolist())
            assert [n for n in got[b, t].tolist() if n >= 0] == best
    monkeypatch.setattr(ops, "slab_rows", lambda device, elements: 2)
    assert torch.equal(RULES["oracle"](seen, 3), got)


def test_no_rule_keeps_more_than_the_oracle():
    """Of one head's mass, no other three keys hold more than the three largest."""
    seen = trace()
    seen.q, seen.k = seen.q[:, :, :1], seen.k[:, :, :1]
    kept = {name: selection_mass(seen.q, seen.k, rule(seen, 3), 3)[1] for name, rule in RULES.items()}
    assert all(bool((kept["oracle"] >= kept[name] - 1e-6).all()) for name in kept)


def test_random_keys_are_valid_different_and_new():
    seen = trace(t=6, s=9, start=torch.tensor([0, 2]))
    torch.manual_seed(1)
    a, b = (RULES["random"](seen, 4) for _ in range(2))
    assert not torch.equal(a, b)
    torch.manual_seed(1)
    assert torch.equal(RULES["random"](seen, 4), a)
    for row in range(2):
        for t in range(6):
            keys = [n for n in a[row, t].tolist() if n >= 0]
            allowed = valid(row, t, 3, seen.start)
            assert keys == sorted(set(keys)) and set(keys) <= set(allowed) and len(keys) == min(4, len(allowed))


def test_random_keys_have_no_favourites():
    """Each of nine keys in about four of nine draws: 1,000 draws, five standard deviations."""
    seen, counts = trace(b=1, t=1, offset=8), torch.zeros(9)
    for _ in range(1000):
        counts[RULES["random"](seen, 4)[0, 0].long()] += 1
    p = 4 / 9
    assert float((counts - 1000 * p).abs().max()) < 5 * (1000 * p * (1 - p)) ** 0.5


@torch.no_grad()
def test_selecting_changes_the_model_and_changes_it_back():
    """With the window rule a model selects the window; with more keys than tokens it is dense; afterwards as before."""
    torch.manual_seed(0)
    model = KeyeVL(NANO).eval()
    inputs = {"input_ids": torch.randint(0, 256, (1, 40))}
    before = model(inputs, record=True)
    with selecting(model, RULES["window"], 5):
        inside = model(inputs, record=True)
    assert all(layer.indices[0, -1].tolist() == [35, 36, 37, 38, 39] for layer in inside.record.layers)
    with selecting(model, topk=64):
        assert_close(model(inputs).logits, model(inputs, attention="dense").logits, atol=1e-5, rtol=1e-5)
    with pytest.raises(KeyError), selecting(model, RULES["window"], 5):
        raise KeyError
    after = model(inputs, record=True)
    assert torch.equal(before.logits, after.logits)
    assert all(
        torch.equal(a.indices, b.indices) for a, b in zip(before.record.layers, after.record.layers, strict=True)
    )


def test_interleaved_is_turning_neighbours():
    """Scores of the moved weights: those of the old ones when channels 2n, 2n + 1 turn, as complex numbers."""
    torch.manual_seed(0)
    model = KeyeVL(NANO)
    indexer: Indexer = model.model.layers[0].self_attn.sa_indexer
    for p in indexer.parameters():
        torch.nn.init.normal_(p)
    x, positions = torch.randn(1, 7, NANO.text.width), torch.arange(7).expand(3, 1, 7)
    cos, sin = mrope(positions, indexer.width, NANO.text.rope_theta, NANO.indexer_section)
    straight_cos, straight_sin = torch.ones_like(cos), torch.zeros_like(sin)
    q, k, w = indexer(x, straight_cos, straight_sin)  # before any turning
    angles = torch.complex(cos, sin)[..., : indexer.width // 2]

    def neighbours(z: torch.Tensor) -> torch.Tensor:
        turn = angles if z.ndim == 3 else angles[:, :, None]
        return torch.view_as_real(torch.view_as_complex(z.unflatten(-1, (-1, 2)).contiguous()) * turn).flatten(-2)

    expected = ops.index_scores(neighbours(q), neighbours(k), w)
    right = ops.index_scores(*indexer(x, cos, sin))
    interleave(model)
    got = ops.index_scores(*indexer(x, cos, sin))
    assert_close(got, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(got[0, -1], right[0, -1], atol=1e-2)


def test_no_keys_is_no_selection(lively):
    for topk in (0, -3):
        with (
            pytest.raises(ValueError, match=f"topk must be at least 1, or None.*got {topk}"),
            selecting(lively, None, topk),
        ):
            pass
