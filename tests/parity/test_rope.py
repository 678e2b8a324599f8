"""Rotary positions against transformers' Qwen2-VL, complex numbers, and loops."""

from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close
from transformers.models.qwen2_vl import modeling_qwen2_vl as qwen2_vl

from minikeye.inputs.positions import position_ids
from minikeye.model.rope import frequencies, grid_rope, mrope, rotate, rotation

CLOSE = {"atol": 1e-5, "rtol": 1e-5}
# head width, theta, sections: the released decoder, its indexer, mini's decoder
RELEASED = [(128, 1e7, (16, 24, 24)), (64, 1e7, (8, 12, 12)), (64, 1e6, (8, 12, 12))]

pytestmark = pytest.mark.cpu


def qwen_rotation(positions, width, theta, section):
    config = SimpleNamespace(
        max_position_embeddings=262_144,
        head_dim=width,
        rope_parameters={"rope_type": "default", "rope_theta": theta, "mrope_section": list(section)},
    )
    return qwen2_vl.Qwen2VLRotaryEmbedding(config)(torch.zeros(1), positions)


@pytest.mark.parametrize(("width", "theta", "section"), RELEASED)
@pytest.mark.parametrize("context", [100, 262_144])
def test_mrope_is_qwen2_vls(width, theta, section, context):
    """Over the whole context: at position 200,000 a frequency one rounding off would show in the third digit."""
    positions = torch.randint(context, (3, 2, 50))
    q, k = torch.randn(2, 50, 4, width), torch.randn(2, 50, 2, width)
    cos, sin = mrope(positions, width, theta, section)
    expected = qwen2_vl.apply_rotary_pos_emb(q, k, *qwen_rotation(positions, width, theta, section), unsqueeze_dim=2)
    assert_close((rotate(q, cos, sin), rotate(k, cos, sin)), expected, **CLOSE)


def test_text_positions_make_plain_rope():
    """Three equal positions: any sections give the angles position x frequency."""
    run = torch.arange(40).expand(3, 1, -1)
    plain = rotation(torch.arange(40.0)[None, :, None] * frequencies(64, 1e6))
    for section in ((8, 12, 12), (1, 1, 30)):
        assert_close(mrope(run, 64, 1e6, section), plain, atol=0.0, rtol=0.0)


def test_wrong_sections():
    with pytest.raises(ValueError, match="must sum to half the head width 64"):
        mrope(torch.zeros(3, 1, 2, dtype=torch.long), 64, 1e6, (8, 12, 13))


def test_rotate_is_a_complex_product():
    """Channel pair (i, i + e/2) is one complex number, turned by exp(i angle); all in float64."""
    x = torch.randn(2, 30, 3, 16, dtype=torch.float64)
    angles = torch.rand(2, 30, 8, dtype=torch.float64) * 100
    turned = torch.complex(*x.chunk(2, dim=-1)) * torch.polar(torch.ones_like(angles), angles)[:, :, None]
    assert_close(rotate(x, *rotation(angles)), torch.cat((turned.real, turned.imag), dim=-1), atol=1e-12, rtol=0.0)


def test_rotate_keeps_lengths_and_relative_angles():
    """q . k depends on how far apart the two stand, not on where."""
    q, k = torch.randn(1, 1, 1, 32, dtype=torch.float64), torch.randn(1, 1, 1, 32, dtype=torch.float64)

    def score(here, there):
        turn = [
            rotation(torch.tensor([[float(n)]]).double()[..., None] * frequencies(32, 1e4).double())
            for n in (here, there)
        ]
        return (rotate(q, *turn[0]) * rotate(k, *turn[1])).sum()

    assert_close(score(9, 2), score(107, 100), atol=1e-12, rtol=0.0)
    assert abs(score(9, 2) - score(9, 3)) > 1e-3


def test_rotate_in_low_precision():
    """The turn is computed in float32 and rounded once, to the input's dtype."""
    x = torch.randn(1, 20, 2, 16).bfloat16()
    cos, sin = rotation(torch.rand(1, 20, 8) * 10)
    assert rotate(x, cos, sin).dtype == torch.bfloat16
    assert torch.equal(rotate(x, cos, sin), rotate(x.float(), cos, sin).bfloat16())


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 5), (4, 4), (6, 2)])
def test_grid_rope_is_a_loop(rows, columns):
    """18 frequencies turn with the row, then 18 with the column; the released width 72."""
    cos, sin = grid_rope(rows, columns, 72, 10_000.0)
    for p in range(rows * columns):
        row, column = p // columns, p % columns
        angles = [row / 10_000 ** (2 * n / 36) for n in range(18)] + [
            column / 10_000 ** (2 * n / 36) for n in range(18)
        ]
        expected = torch.tensor(angles * 2, dtype=torch.float64)
        assert_close(cos[p].double(), expected.cos(), **CLOSE)
        assert_close(sin[p].double(), expected.sin(), **CLOSE)


def test_grid_rope_is_qwen2_vls():
    rope = {"rope_type": "axial", "rope_theta": 10_000.0}
    theirs = qwen2_vl.Qwen2VLVisionRotaryEmbedding(SimpleNamespace(rope_parameters=rope, head_dim=72))
    places = torch.cartesian_prod(torch.arange(7), torch.arange(9))
    assert_close(grid_rope(7, 9, 72, 10_000.0), tuple(theirs(torch.zeros(1), places)), **CLOSE)


# -------------------------------------------------------------------------------------------------------- position ids


def qwen_positions(is_visual, grids, merge):
    """transformers' get_rope_index, with every block an image."""
    vision = SimpleNamespace(spatial_merge_size=merge)
    model = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    model.get_vision_position_ids = lambda *a, **k: qwen2_vl.Qwen2VLModel.get_vision_position_ids(model, *a, **k)
    kinds = torch.tensor([is_visual], dtype=torch.int)
    ids, _ = qwen2_vl.Qwen2VLModel.get_rope_index(model, torch.zeros_like(kinds).long(), kinds, torch.tensor(grids))
    return ids[:, 0]


@settings(max_examples=50, deadline=None)
@given(
    merge=st.sampled_from([1, 2]),
    blocks=st.lists(st.tuples(st.integers(1, 4), st.integers(1, 5), st.integers(1, 4)), min_size=1, max_size=4),
    first=st.integers(0, 3),
)
def test_position_ids_are_qwen2_vls(merge, blocks, first):
    """Blocks (rows, columns, text tokens after it): transformers needs text between two images to tell them apart."""
    is_visual, grids = [False] * first, []
    for rows, columns, text in blocks:
        is_visual += [True] * (rows * columns) + [False] * text
        grids.append((1, rows * merge, columns * merge))
    assert torch.equal(position_ids(is_visual, grids, merge), qwen_positions(is_visual, grids, merge))


def test_neighbouring_frames_by_hand():
    """Text, a frame of 1 x 2 tokens, at once another of 2 x 1, text: the second starts past the first's largest."""
    got = position_ids([False] + [True] * 4 + [False], [(1, 2, 4), (1, 4, 2)], 2)
    assert got.T.tolist() == [[0, 0, 0], [1, 1, 1], [1, 1, 2], [3, 3, 3], [3, 4, 3], [5, 5, 5]]


def test_positions_start_anywhere():
    later, zero = (position_ids([False, True, False], [(1, 2, 2)], 2, start=n) for n in (70, 0))
    assert torch.equal(later, zero + 70)


@pytest.mark.parametrize(
    ("is_visual", "grids", "message"),
    [
        ([True, True, True], [(1, 4, 4)], "token 0 starts an image or frame of 2 x 2"),
        ([True] * 3 + [False, True], [(1, 4, 4)], "that many placeholders do not follow"),
        ([True] * 5, [(1, 4, 4)], "token 4 starts"),
        ([False] * 5, [(1, 4, 4)], "1 grids have no placeholder tokens"),
    ],
)
def test_placeholders_and_grids_disagree(is_visual, grids, message):
    with pytest.raises(ValueError, match=message):
        position_ids(is_visual, grids, 2)
