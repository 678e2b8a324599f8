"""Things that can be asked for: coloured shapes with an outline that move through the picture.

A shape is drawn by its distance function: for each pixel the signed distance to the edge, negative inside. One pixel
of softness around the edge gives smooth outlines at any size.

Axes: b video, f frame, n thing of a video, c channel.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from minikeye.minivid.drawing.background import curve, pixel_grid
from minikeye.minivid.draws import Draws

COLOURS = {
    "red": (0.87, 0.13, 0.15),
    "green": (0.12, 0.68, 0.22),
    "blue": (0.14, 0.3, 0.9),
    "yellow": (0.97, 0.85, 0.12),
}
SHAPES = ("circle", "square", "triangle")
KINDS = tuple(f"{colour} {shape}" for shape in SHAPES for colour in COLOURS)  # "red circle", "green circle", ...
THINGS = 2  # things that can be in one frame: each has a half of it to itself
CROWD = 6  # different things in a video that shows many, three after another in each half
_LOOKS = (1.0, 0.9, 1.15)  # a circle, square and triangle of one radius times these look equally large


@dataclass(frozen=True)
class Things:
    """Where each thing is in every frame; lengths are in halves of the frame's short side."""

    shown: Bool[Tensor, "b f n"]  # whether it is in the frame
    kind: Int[Tensor, "b f n"]  # index into KINDS
    place: Float[Tensor, "b f n 2"]  # x, y from -1 to 1 over the room its middle may take
    radius: Float[Tensor, "b f n"]  # half of its height
    angle: Float[Tensor, "b f n"]  # radians
    colour: Float[Tensor, "b f n 3"]  # 0..1
    edge: Float[Tensor, "b f n 3"]  # colour of the outline, 0..1


def draw_things(draws: Draws, shown: Bool[Tensor, "b f n"], time: Float[Tensor, "b f n"]) -> Things:
    """Random things, shown when told; `time` runs from 0 to 1 while a thing is on its way.

    The things of a video differ in kind. Those of even number keep to one half of the frame, those of odd number to the
    other, so that of two that are there together neither ever hides the other.
    """
    frames, count = shown.shape[1:]
    kind = _kinds(draws, count)
    colour = torch.tensor(list(COLOURS.values()), dtype=torch.float64)[kind % len(COLOURS)]
    colour = (colour + draws.uniform(-0.06, 0.06, count, 3)).clamp(0, 1)
    edge = torch.where(draws.chance(0.5, count, 1), draws.uniform(0, 0.15, count, 1), draws.uniform(0.85, 1, count, 1))
    angle = draws.uniform(-0.3, 0.3, count, 2)

    def every_frame(values: Tensor) -> Tensor:
        return values[:, None].expand(-1, frames, *values.shape[1:])

    return Things(
        shown=shown,
        kind=every_frame(kind),
        place=curve(_points(draws, count), time),
        radius=every_frame(draws.uniform(0.29, 0.46, count) * torch.tensor(_LOOKS)[kind // len(COLOURS)]),
        angle=angle[:, None, :, 0] + (angle[:, None, :, 1] - angle[:, None, :, 0]) * time,
        colour=every_frame(colour),
        edge=every_frame(edge.expand(-1, -1, 3)),
    )


def _kinds(draws: Draws, count: int) -> Int[Tensor, "b n"]:
    """Kinds of which no two are the same."""
    if count == 2:  # fewer numbers than a shuffle takes, and what it was before there were crowds
        first = draws.integer(len(KINDS), 1)
        return torch.cat((first, (first + 1 + draws.integer(len(KINDS) - 1, 1)) % len(KINDS)), 1)
    return draws.uniform(0, 1, len(KINDS)).argsort(dim=1)[:, :count]


def _points(draws: Draws, count: int) -> Float[Tensor, "b n 3 2"]:
    """Three points of each path. Along one axis, x or y, even and odd things keep to opposite sides of the middle."""
    points = draws.uniform(-1, 1, count, 3, 2)
    side = (2.0 * (torch.arange(count) % 2) - 1)[:, None, None] * (1 - 2.0 * draws.chance(0.5, 1, 1, 1))  # [b n 1 1]
    parted = side * (0.3 + 0.7 * points.abs())
    along = draws.integer(2, 1, 1, 1) == torch.arange(2)  # [b 1 1 2]
    return torch.where(along, parted, points)


def paint_things(frames: Float[Tensor, "rows 3 h w"], things: Things) -> None:
    """Draw all things into frames [b*f 3 h w] of 0..1, in place. Only the frames that show a thing are touched."""
    for here, part in of_shown(things, frames.device):
        shape = part.pop("kind") // len(COLOURS)
        frames[here] = _paint(frames[here], shape, **{name: value.float() for name, value in part.items()})


def of_shown(pieces: Any, device: torch.device) -> Iterator[tuple[Int[Tensor, "m"], dict[str, Tensor]]]:
    """Piece after piece: the rows of b*f that show it, and its other fields there [m ...], all on `device`.

    pieces: a dataclass of tensors [b f n ...] on the CPU, one of them `shown`. What no row shows is passed over.
    """
    for n in range(pieces.shown.shape[-1]):
        rows = pieces.shown[..., n].flatten().nonzero().squeeze(-1)  # on the CPU: nothing waits for a GPU here
        if not len(rows):
            continue
        names = (field.name for field in fields(pieces) if field.name != "shown")
        values = {name: getattr(pieces, name)[:, :, n].flatten(0, 1)[rows] for name in names}
        sent = {name: value.to(device, non_blocking=True) for name, value in values.items()}
        yield rows.to(device, non_blocking=True), sent


def _paint(
    frames: Float[Tensor, "m 3 h w"],
    shape: Int[Tensor, "m"],
    place: Float[Tensor, "m 2"],
    radius: Float[Tensor, "m"],
    angle: Float[Tensor, "m"],
    colour: Float[Tensor, "m 3"],
    edge: Float[Tensor, "m 3"],
) -> Float[Tensor, "m 3 h w"]:
    """One thing in each frame, over what is there."""
    height, width = frames.shape[-2:]
    short = min(height, width)
    x, y = local(frames, place, 0.9 * radius, angle)
    distance = _distance(shape, x, y, radius[:, None, None])[:, None]  # [m 1 h w]
    pixel, line = 2 / short, 0.06  # the outline is 6 % of half the short side: 1.7 pixels of 56
    inside = (0.5 - distance / pixel).clamp(0, 1)
    core = (0.5 - (distance + line) / pixel).clamp(0, 1)
    paint = torch.lerp(edge[..., None, None], colour[..., None, None], core)
    return torch.lerp(frames, paint, inside)


def local(
    frames: Float[Tensor, "m 3 h w"], place: Float[Tensor, "m 2"], margin: Float[Tensor, "m"], angle: Float[Tensor, "m"]
) -> tuple[Float[Tensor, "m h w"], Float[Tensor, "m h w"]]:
    """x and y of every pixel seen from an object that is turned by `angle` and keeps `margin` from the edge."""
    height, width = frames.shape[-2:]
    x, y = pixel_grid(height, width, frames.device)
    room_x, room_y = (size / min(height, width) - margin for size in (width, height))
    x = x - (place[:, 0] * room_x)[:, None, None]
    y = y - (place[:, 1] * room_y)[:, None, None]
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    return cos * x + sin * y, cos * y - sin * x


def _distance(shape: Int[Tensor, "m"], x: Tensor, y: Tensor, radius: Tensor) -> Float[Tensor, "m h w"]:
    """Signed distance to the edge, exact along straight and round edges, a little too small near outer corners."""
    circle = (x**2 + y**2).sqrt() - radius
    square = torch.maximum(x.abs(), y.abs()) - radius
    down = y - radius / 3  # from the centroid, which lies below the middle of the triangle's height
    triangle = torch.maximum(math.sqrt(3) / 2 * x.abs() - down / 2, down) - radius * 2 / 3
    shape = shape[:, None, None]
    return torch.where(shape == 0, circle, torch.where(shape == 1, square, triangle))
