"""What is behind everything: pans and zooms over pictures and plain patterns, with hard cuts.

All pictures and patterns of a collection lie under each other in one tall picture, the atlas, so that frames of many
videos are cut out of it by a single `grid_sample`. A frame is `gain * tile + bias`: for a picture that is brightness,
contrast and tint, for a grey pattern it is the two colours between which it runs.

Axes: b video, f frame, c channel. A view is where the frame looks: the tile's sides run from -1 to 1.
"""

import math
from dataclasses import dataclass, fields, replace
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from minikeye.minivid.drawing.pictures import SIDE, load_pictures
from minikeye.minivid.draws import Draws, generator

SCENES = 3  # a video is cut into at most three scenes
PATTERNS = 6  # plain tiles at the end of the atlas
PLAIN = 0.25  # share of plain scenes


@dataclass(frozen=True)
class Background:
    """What to cut out of the atlas for every frame."""

    tile: Int[Tensor, "b f"]  # number of the tile in the atlas
    view: Float[Tensor, "b f 4"]  # x, y of the middle; half of the short side; angle in radians
    mirror: Float[Tensor, "b f"]  # -1: left and right are swapped, else 1
    gain: Float[Tensor, "b f 3"]  # contrast and tint
    bias: Float[Tensor, "b f 3"]  # brightness


def draw_background(draws: Draws, time: Float[Tensor, "b f"], pictures: str, cuts: bool) -> Background:
    """Random scenes for frames at `time`, from 0 (start of the video) to 1 (its end); one scene only without `cuts`."""
    count = len(load_pictures(pictures))
    plain = draws.chance(PLAIN, SCENES)
    tile = torch.where(plain, count + draws.integer(PATTERNS, SCENES), draws.integer(count, SCENES))
    contrast = draws.uniform(0.6, 1.15, SCENES, 1) * draws.uniform(0.85, 1.15, SCENES, 3)
    first, second = draws.uniform(0, 1, SCENES, 3), draws.uniform(0, 1, SCENES, 3)  # colours of a plain scene
    gain = torch.where(plain[..., None], second - first, contrast)
    lift = draws.uniform(-0.08, 0.12, SCENES, 1) + 0.5 - contrast / 2
    bias = torch.where(plain[..., None], first, lift)
    mirror = 1 - 2.0 * draws.chance(0.5, SCENES)
    scene = _scene(draws, time, cuts)
    return Background(
        tile=tile.gather(1, scene),
        view=_view(draws, time, scene),
        mirror=mirror.gather(1, scene),
        gain=_pick(gain, scene),
        bias=_pick(bias, scene),
    )


def hold(background: Background, fixed: Bool[Tensor, "b"]) -> Background:
    """The same backgrounds; the camera of those that are `fixed` shows what it showed in the first frame."""

    def held(part: Tensor) -> Tensor:
        return torch.where(fixed.view(-1, *[1] * (part.ndim - 1)), part[:, :1], part)

    return Background(**{field.name: held(getattr(background, field.name)) for field in fields(background)})


def bleach(background: Background, share: Float[Tensor, "b"]) -> Background:
    """The same backgrounds, moved towards white by that share: snow, sand, a pavement in the sun."""
    kept = (1 - share)[:, None, None]
    return replace(background, gain=kept * background.gain, bias=kept * background.bias + (1 - kept))


def cut_out(background: Background, pictures: str, height: int, width: int, device: torch.device) -> Tensor:
    """Float frames [b*f 3 height width] in 0..1, made on `device`."""
    tile, view, mirror = (
        part.flatten(0, 1).to(device) for part in (background.tile, background.view, background.mirror)
    )
    x, y = pixel_grid(height, width, device)
    middle_x, middle_y, half, angle = (part[:, None, None] for part in view.float().unbind(-1))
    x = x * mirror.float()[:, None, None]
    across = middle_x + half * (angle.cos() * x - angle.sin() * y)
    down = middle_y + half * (angle.sin() * x + angle.cos() * y)
    sampled = look(pictures, tile, across, down)  # [b*f 3 h w]
    gain, bias = (
        part.flatten(0, 1).to(device, torch.float32)[..., None, None] for part in (background.gain, background.bias)
    )
    return torch.addcmul(bias, gain, sampled).clamp_(0, 1)


def look(
    pictures: str, tile: Int[Tensor, "m"], across: Float[Tensor, "m h w"], down: Float[Tensor, "m h w"]
) -> Float[Tensor, "m 3 h w"]:
    """The atlas of a collection at these points of a tile each, whose sides, which are mirrors, run from -1 to 1."""
    count, height, width = across.shape
    atlas = _atlas(pictures, min(SIDE, round(min(height, width) * 16 / 7)), across.device)
    # half a pixel of each tile's edge is left out, so that no frame shows the neighbour of its tile
    side, tiles = atlas.shape[-1], atlas.shape[-2] // atlas.shape[-1]
    inside = 1 - 1 / side
    down = (2 * tile[:, None, None] + 1 + inside * _reflect(down)) / tiles - 1
    grid = torch.stack((inside * _reflect(across), down), -1).view(1, count * height, width, 2)
    sampled = F.grid_sample(atlas, grid, padding_mode="border", align_corners=False)
    return sampled.view(3, count, height, width).transpose(0, 1)


def pixel_grid(height: int, width: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """x [1 1 width] and y [1 height 1] of the pixel middles; the short side of the frame runs from -1 to 1."""
    short = min(height, width)
    x = (2 * torch.arange(width, device=device) + 1 - width) / short
    y = (2 * torch.arange(height, device=device) + 1 - height) / short
    return x[None, None, :], y[None, :, None]


def curve(points: Float[Tensor, "b n 3 c"], time: Float[Tensor, "b f n"]) -> Float[Tensor, "b f n c"]:
    """Smooth path from the first point to the last, bent by the middle one (a quadratic Bezier curve)."""
    t = time[..., None]
    a, b, c = (points[:, None, :, n] for n in range(3))
    return (1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c


def _scene(draws: Draws, time: Float[Tensor, "b f"], cuts: bool) -> Int[Tensor, "b f"]:
    """Number of the scene that each frame belongs to: 30 % of the videos have one cut, 10 % two."""
    at = draws.uniform(0.1, 0.9, SCENES - 1)
    how_many = draws.uniform(0, 1)[..., None]
    at = torch.where(how_many < torch.tensor([0.4, 0.1]), at, 2.0)  # 2: after the end of the video
    if not cuts:
        return torch.zeros_like(time, dtype=torch.int64)
    return (time[..., None] >= at[:, None]).sum(-1)


def _view(draws: Draws, time: Float[Tensor, "b f"], scene: Int[Tensor, "b f"]) -> Float[Tensor, "b f 4"]:
    """A slow path through each scene, and the small quicker sway of a hand-held camera."""
    half = draws.uniform(0.25, 0.85, SCENES, 3, 1)
    middle = draws.uniform(-1, 1, SCENES, 3, 2) * (1 - half)
    angle = draws.uniform(-0.35, 0.35, SCENES, 3, 1)
    path = curve(torch.cat((middle, half, angle), -1), time[..., None].expand(-1, -1, SCENES))
    view = path.gather(2, scene[..., None, None].expand(-1, -1, 1, 4)).squeeze(2)
    turns = draws.uniform(1, 6, 1, 2)  # sways in a video
    phase = 2 * math.pi * (turns * time[..., None] + draws.uniform(0, 1, 1, 2))
    sway = draws.uniform(0, 0.08, 1, 2) * phase.sin()
    return torch.cat((view[..., :2] + sway, view[..., 2:]), -1)


def _pick(values: Float[Tensor, "b n c"], scene: Int[Tensor, "b f"]) -> Float[Tensor, "b f c"]:
    return values.gather(1, scene[..., None].expand(-1, -1, values.shape[-1]))


def _reflect(x: Tensor) -> Tensor:
    """Where a point outside -1..1 lands when the edges are mirrors."""
    return 1 - ((x + 1).remainder(4) - 2).abs()


@cache
def _atlas(pictures: str, side: int, device: torch.device) -> Float[Tensor, "1 3 rows side"]:
    """Pictures, then patterns, all side x side, under each other."""
    shrunk = F.interpolate(load_pictures(pictures).float() / 255, (side, side), mode="bilinear", antialias=True)
    tiles = torch.cat((shrunk, _patterns(side).expand(-1, 3, -1, -1)))
    return tiles.permute(1, 0, 2, 3).reshape(1, 3, -1, side).to(device)


def _patterns(side: int) -> Float[Tensor, "n 1 side side"]:
    """Grey patterns in 0..1: gradient, rings, checkers, stripes, soft and softer noise."""
    line = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(line, line, indexing="ij")
    noise = torch.rand(2, 1, 24, 24, generator=generator("minivid patterns"))
    soft = F.interpolate(noise[:1], (side, side), mode="bicubic").clamp(0, 1)[0, 0]
    softer = F.interpolate(noise[1:, :, :6, :6], (side, side), mode="bicubic").clamp(0, 1)[0, 0]
    wave = math.pi * 5
    patterns = (
        (x + y + 2) / 4,
        0.5 + 0.5 * (wave * (x**2 + y**2).sqrt()).sin(),
        0.5 + 0.5 * (8 * (wave * x).sin() * (wave * y).sin()).clamp(-1, 1),
        0.5 + 0.5 * (wave * (0.8 * x + 0.6 * y)).sin(),
        soft,
        softer,
    )
    assert len(patterns) == PATTERNS
    return torch.stack(patterns)[:, None]
