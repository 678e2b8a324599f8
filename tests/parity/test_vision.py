"""The vision tower against transformers: PaddleOCR-VL carries the same tower, SigLIP its blocks without rotation."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from transformers import SiglipVisionConfig, SiglipVisionModel
from transformers.models.paddleocr_vl.configuration_paddleocr_vl import PaddleOCRVisionConfig
from transformers.models.paddleocr_vl.modeling_paddleocr_vl import PaddleOCRProjector, PaddleOCRVisionTransformer

from minikeye.config import VisionConfig
from minikeye.inputs.pixels import patchify
from minikeye.model.vision import Projector, VisionTower, VisionTransformer, runs

CLOSE = {"atol": 1e-5, "rtol": 1e-5}

pytestmark = pytest.mark.cpu
CONFIG = VisionConfig(width=32, layers=3, heads=2, mlp_width=64, image_size=56, packing_positions=1)
SHARED = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2, patch_size=14)
# Sizes in patches: the table's own 4 x 4, wider, taller, smaller, and a repeat after another size
GRIDS = torch.tensor([[1, 4, 4], [1, 2, 6], [1, 2, 6], [1, 8, 4], [1, 2, 2], [1, 4, 4]])


def randomise(model: nn.Module) -> nn.Module:
    for name, p in model.named_parameters():
        norm = "norm" in name and name.endswith("weight")
        nn.init.normal_(p, mean=float(norm), std=0.3 if norm or p.ndim == 1 else p[0].numel() ** -0.5)
    return model.eval()


def patches_for(grids: torch.Tensor) -> torch.Tensor:
    return torch.rand(int(grids.prod(dim=1).sum()), 3, 14, 14) * 2 - 1


def ours_from(theirs: nn.Module, config: VisionConfig = CONFIG) -> VisionTransformer:
    ours = VisionTransformer(config).eval()
    report = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert report.missing_keys == ["embeddings.packing_position_embedding.weight"] and not report.unexpected_keys
    return ours


@torch.no_grad()
def test_tower_is_paddleocrs_layer_by_layer():
    """Patch embedding, interpolated positions, 2D RoPE, blocks and last norm over frames of five sizes."""
    config = PaddleOCRVisionConfig(**SHARED, image_size=56, attn_implementation="eager")
    theirs = randomise(PaddleOCRVisionTransformer(config))
    ours = ours_from(theirs)
    mine, reference = ([], [])
    for model, seen in ((ours, mine), (theirs, reference)):
        for part in (model.embeddings, *model.encoder.layers):
            part.register_forward_hook(lambda m, a, out, seen=seen: seen.append(out))
    patches = patches_for(GRIDS)
    expected = theirs(patches[None], grid_thw=GRIDS).last_hidden_state
    assert_close(ours(patches, GRIDS), expected, **CLOSE)
    assert len(mine) == len(reference) == 4
    for a, b in zip(mine, reference, strict=True):
        assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("side", [1, 4])
@torch.no_grad()
def test_blocks_are_siglips(side, monkeypatch):
    """A single patch stands at row 0, column 0 and is not turned; for a larger grid the rotation is set to none."""
    config = SiglipVisionConfig(**SHARED, image_size=14 * side, vision_use_head=False, attn_implementation="eager")
    theirs = randomise(SiglipVisionModel(config))
    ours = ours_from(theirs, VisionConfig(**{**vars(CONFIG), "image_size": 14 * side}))
    if side > 1:
        still = torch.ones(2 * side**2, CONFIG.head_width), torch.zeros(2 * side**2, CONFIG.head_width)
        monkeypatch.setattr(ours.encoder, "rotation", lambda sizes, device: still)
    images = torch.randint(256, (2, 3, 14 * side, 14 * side))
    pixels = (images / 255 - 0.5) / 0.5
    expected = theirs(pixels).last_hidden_state.flatten(0, 1)
    assert_close(ours(patchify(images, 14), torch.tensor([[1, side, side]] * 2)), expected, **CLOSE)


@pytest.mark.parametrize("size", [(4, 4), (2, 2), (6, 2), (7, 9)])
@torch.no_grad()
def test_positions_are_interpolated(size):
    """F.interpolate of the table, which at the table's own size is the table itself, bit by bit."""
    embeddings = VisionTransformer(CONFIG).embeddings
    table = embeddings.position_embedding.weight
    square = table.reshape(1, 4, 4, 32).permute(0, 3, 1, 2)
    expected = F.interpolate(square, size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1).reshape(-1, 32)
    assert_close(embeddings.positions(*size), expected, **CLOSE)
    assert torch.equal(embeddings.positions(*size), table) == (size == (4, 4))


def test_patchify_is_a_loop():
    frames = torch.randint(256, (2, 3, 28, 42), dtype=torch.uint8)
    expected = [
        (frames[f, :, r * 14 : r * 14 + 14, c * 14 : c * 14 + 14].float() / 255 - 0.5) / 0.5
        for f in range(2)
        for r in range(2)
        for c in range(3)
    ]
    assert torch.equal(patchify(frames, 14), torch.stack(expected))


@torch.no_grad()
def test_frames_never_see_each_other():
    """A new third frame changes its own features and not one bit of the others'."""
    tower = VisionTower(CONFIG)
    randomise(tower)
    patches = patches_for(GRIDS)
    changed = patches.clone()
    third = slice(16 + 12, 16 + 12 + 12)
    changed[third] = torch.rand(12, 3, 14, 14)
    differs = (tower(patches, GRIDS) != tower(changed, GRIDS)).any(dim=1)
    assert differs[third].all() and differs.sum() == 12


@pytest.mark.parametrize("chunk", [1, 16, 28, 41, 10_000])
@torch.no_grad()
def test_chunks_equal_whole(chunk):
    """Any number of patches a pass gives the same features, and no pass is larger than asked (one frame at least)."""
    tower = VisionTower(CONFIG)
    randomise(tower)
    patches, passes = patches_for(GRIDS), []
    expected = torch.cat([tower(p, g[None]) for p, g in zip(patches.split(GRIDS.prod(1).tolist()), GRIDS, strict=True)])
    tower.vision_model.register_forward_pre_hook(lambda m, args: passes.append(args[1].prod(dim=1).tolist()))
    tower.chunk_patches = chunk
    assert_close(tower(patches, GRIDS), expected, **CLOSE)
    assert [n for frames in passes for n in frames] == GRIDS.prod(dim=1).tolist()
    assert all(sum(frames) <= chunk or len(frames) == 1 for frames in passes)


@pytest.mark.parametrize(
    ("count", "grids", "message"),
    [
        (16, [[1, 4, 5]], "multiples of 2"),
        (32, [[2, 4, 4]], "one grid per video frame"),
        (15, [[1, 4, 4]], "grids describe 16 patches, got 15"),
        (0, [[1, 0, 4]], "rows and columns multiples"),
    ],
)
def test_patches_and_grids_disagree(count, grids, message):
    with pytest.raises(ValueError, match=message):
        VisionTower(CONFIG)(torch.zeros(count, 3, 14, 14), torch.tensor(grids))


def test_patches_of_another_size():
    with pytest.raises(ValueError, match=r"patches must be \[p, 3, 14, 14\]"):
        VisionTower(CONFIG)(torch.zeros(16, 3, 16, 16), torch.tensor([[1, 4, 4]]))


def test_runs():
    assert runs(GRIDS) == [(1, 4, 4), (2, 2, 6), (1, 8, 4), (1, 2, 2), (1, 4, 4)]


def test_merge_is_a_loop():
    """Token (r, c) of a frame holds its patches (2r, 2c), (2r, 2c+1), (2r+1, 2c), (2r+1, 2c+1), in that order."""
    x = torch.randn(int(GRIDS.prod(dim=1).sum()), 32)
    expected, first = [], 0
    for _, rows, columns in GRIDS.tolist():
        for r in range(0, rows, 2):
            for c in range(0, columns, 2):
                four = [x[first + (r + i) * columns + c + j] for i in (0, 1) for j in (0, 1)]
                expected.append(torch.cat(four))
        first += rows * columns
    assert torch.equal(Projector(CONFIG, 24).merge_patches(x, GRIDS), torch.stack(expected))


@torch.no_grad()
def test_projector_is_paddleocrs_but_for_its_norm():
    """PaddleOCR-VL normalises patches before the merge, Keye-VL-2.0 the merged token; the rest is the same function."""
    text = PaddleOCRVisionConfig(hidden_size=24)
    both = type("Both", (), dict(vision_config=PaddleOCRVisionConfig(**SHARED), text_config=text))
    theirs = randomise(PaddleOCRProjector(both))
    ours = Projector(CONFIG, 24)
    ours.load_state_dict({n: t for n, t in theirs.state_dict().items() if "linear" in n}, strict=False)
    theirs.pre_norm = nn.Identity()
    x = torch.randn(int(GRIDS.prod(dim=1).sum()), 32)
    merged = Projector(CONFIG, 24).merge_patches(x, GRIDS)
    expected = F.layer_norm(merged, (128,), eps=1e-5)
    unmerged = torch.empty_like(x)  # the normalised tokens, put back to where their patches were
    order = Projector(CONFIG, 1).merge_patches(torch.arange(float(len(x)))[:, None].expand(-1, 32), GRIDS)
    unmerged[order[:, ::32].long().flatten()] = expected.reshape(-1, 32)
    assert_close(ours(x, GRIDS), theirs(unmerged, GRIDS), **CLOSE)
