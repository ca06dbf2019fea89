"""Rays, pictures and points: where what one camera sees is seen by another.

Poses are codes of nine numbers (`camera.pose_code`), axes are OpenCV's, distances are told as inverse depth in 1/steps, and a picture's
places by (x, y) in -1..1. What `camera_view` and `mirrors` are made of.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

FINER = ((1, 1.1), (2, 2.0), (3, 4.0), (4, 8.0))
"""Into how many points an axis, as powers of two, a point is divided whose place has grown by more than so many times; else what is behind
would show between them."""
MOVED = 0.05
"""Share of a point's distance by which the camera has to have moved for that."""


def rotation_and_position(code: Tensor) -> tuple[Tensor, Tensor]:
    """Pose codes [..., 9] (`camera.pose_code`) -> camera-to-world rotation [..., 3, 3] and position [..., 3]"""
    x, y = code[..., 3:6], code[..., 6:9]
    return torch.stack([x, y, torch.linalg.cross(x, y)], -1), code[..., :3]


def relative(here: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
    """Turn [..., 3, 3] and move [..., 3] that take the camera `there` into the axes of the camera `here`; pose codes [..., 9]"""
    from_world, origin = rotation_and_position(here)
    to_world, position = rotation_and_position(there)
    move = ((position - origin).unsqueeze(-2) @ from_world).squeeze(-2)
    return from_world.transpose(-1, -2) @ to_world, move


@lru_cache(maxsize=16)
def pixel_rays(
    size: tuple[int, int], focal: float, device: str, dtype: torch.dtype = torch.float32, aspect: float | None = None
) -> Tensor:  # fmt: skip
    """Directions [H*W, 3] through the centres of H x W places, OpenCV axes, z = 1, of a picture of an `aspect` (width over height; if none
    is given, places are pixels, which are square); `focal` is focal length over width."""
    height, width = size
    y, x = torch.meshgrid(torch.arange(height) + 0.5 - height / 2, torch.arange(width) + 0.5 - width / 2, indexing="ij")
    f = focal * width
    fy = f if aspect is None else focal * aspect * height
    return torch.stack([x / f, y / fy, torch.ones_like(x)], -1).flatten(0, 1).to(device, dtype)


def look_up(rays: Tensor, turn: Tensor, move: Tensor, inverse_depth: Tensor | float, focal: float, aspect: float) -> tuple[Tensor, Tensor]:
    """Where rays [P, 3] of one camera meet another's picture: (x, y) [..., P, 2] in -1..1, and how far away from that one what they
    show is, as a share of its distance here [..., P].

    `turn` [..., 3, 3] and `move` [..., 3] are `relative`'s, `inverse_depth` a number or [..., 1, P], `aspect` width over height.
    """
    there = turn @ rays.T  # by axis, so that memory is read in one piece; changed in place, as nearly all of the time is memory's
    there += inverse_depth * move.unsqueeze(-1)
    x, y, z = there.unbind(-2)
    scale = 2 * focal / z.clamp_min(0.05)
    where = torch.empty(*z.shape, 2, device=z.device, dtype=z.dtype)
    torch.mul(x, scale, out=where[..., 0])
    torch.mul(y, scale.mul_(aspect), out=where[..., 1])
    return where, z


def inside(where: Tensor, share: Tensor) -> Tensor:
    """Which of the places that `look_up` gives are in the picture, and not behind the camera: [..., P]"""
    return (where.abs() <= 1).all(-1) & (share > 0.05)


def splat(turn: Tensor, move: Tensor, inverse_depth: Tensor, focal: float) -> tuple[Tensor, Tensor]:
    """What is how far away from where the camera goes: each picture's points, as they fall into the new picture, the nearest in front.

    What comes closer grows, so that its points fall apart. They are divided there, along the surface that they are points of: of a
    plane, inverse depth is linear in a picture's places.

    Args:
        turn, move: [M, 3, 3] and [M, 3], `relative`'s of a picture `here` and the wanted frame `there`.
        inverse_depth: [M, h, w] of the pictures, 1/steps.

    Returns:
        inverse depth [M, h, w] from the new pose, and where there is any [M, h, w]; gaps of one place between points are closed.
    """
    m, height, width = inverse_depth.shape
    f, near = focal * width, inverse_depth.flatten(1)
    rays = pixel_rays((height, width), focal, str(inverse_depth.device), inverse_depth.dtype)
    back = turn.transpose(1, 2)
    shift = back @ move.unsqueeze(2)  # M 3 1
    turned = torch.bmm(back, rays.T.expand(m, -1, -1))  # one product a picture: others beside it change nothing
    x, y, z = (turned - near.unsqueeze(1) * shift).unbind(1)  # M hw
    picture = torch.arange(m, device=near.device).unsqueeze(1) * (height * width)
    nearest = near.new_full((m * height * width + 1,), -1.0)  # one place more for what falls nowhere

    def land(x: Tensor, y: Tensor, z: Tensor, near: Tensor, picture: Tensor) -> None:
        ahead = z.clamp_min(0.05)
        scale = f / ahead
        column, row = (x * scale).add_(width / 2).floor_(), (y * scale).add_(height / 2).floor_()
        falls = (z > 0.05) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        place = torch.where(falls, picture + row.mul_(width).add_(column).long(), m * height * width)
        nearest.scatter_reduce_(0, place.flatten(), (near / ahead).flatten(), "amax")

    land(x, y, z, near, picture)
    beyond = 0.5 + (1 << FINER[-1][0]) / min(height, width)  # a divided point's own place may be outside
    moved = (near * move.norm(dim=1, keepdim=True) > MOVED) & (z > 0.05)
    which, point = (moved & (x.abs() * focal < beyond * z) & (y.abs() * f < beyond * height * z)).nonzero(as_tuple=True)
    if len(which):
        index = which * (height * width) + point
        seen = torch.stack([v.flatten()[index] for v in (x, y, z, near)])  # 4 P
        slope = torch.stack([v.flatten()[index] for v in slopes(inverse_depth)])  # 2 P
        grows = back[which, :, :2].permute(2, 1, 0) / f - slope.unsqueeze(1) * shift[which, :, 0].T  # 2 3 P: to the right, and downwards
        grown = (grows[:, :2] * seen[2] - seen[:2] * grows[:, 2:]).norm(dim=1).amax(0) * (f / seen[2].square())  # places
        grows = torch.cat([grows, slope.unsqueeze(1)], 1)
        for (power, least), most in zip(FINER, [*(least for _, least in FINER[1:]), torch.inf], strict=True):
            at = ((grown > least) & (grown <= most)).nonzero().flatten()
            *point, near = divided(seen[:, at], grows[:, :, at], 1 << power)
            land(*point, near.clamp_min(0), picture[which[at]])
    out = nearest[:-1].view(m, height, width)
    wider = around(out, torch.maximum, -1.0)
    there_is = around(wider, torch.minimum, 0.0) >= 0  # gaps closed, while edges stay where they were
    return torch.where(out < 0, wider, out).clamp_min(0), there_is


def divided(values: Tensor, slope: Tensor, parts: int) -> Tensor:
    """Values [C, P] of places that grow by `slope` [2, C, P] to the right and downwards, of `parts` x `parts` points in each: [C, P, n]"""
    off = (torch.arange(parts, device=values.device) + 0.5) / parts - 0.5
    right, down = torch.cartesian_prod(off, off).T.to(values)
    return values.unsqueeze(2) + slope[0].unsqueeze(2) * right + slope[1].unsqueeze(2) * down


def around(values: Tensor, choose: Callable[[Tensor, Tensor], Tensor], outside: float) -> Tensor:
    """What `choose` takes of 3x3 values [M, h, w] around each; `outside` stands beyond the edges"""
    x = F.pad(values, (1, 1, 1, 1), value=outside)
    x = choose(choose(x[:, :-2], x[:, 1:-1]), x[:, 2:])
    return choose(choose(x[..., :-2], x[..., 1:-1]), x[..., 2:])


def slopes(values: Tensor) -> tuple[Tensor, Tensor]:
    """How much values [M, h, w] grow to the right and downwards, a place, as they do on the side where they change less: at an edge,
    that of the surface that a place belongs to."""

    def along(values: Tensor) -> Tensor:
        steps = F.pad(values.diff(dim=2), (1, 1), mode="replicate") if values.shape[2] > 1 else values.new_zeros(1, 1, 2)
        before, after = steps[..., :-1], steps[..., 1:]
        return torch.where(before.abs() < after.abs(), before, after).expand_as(values)

    return along(values), along(values.transpose(1, 2)).transpose(1, 2)


def fill(values: Tensor, weight: Tensor) -> Tensor:
    """Values [M, h, w] where weight [M, h, w] is above 0, and elsewhere what is around, averaged over ever larger squares"""
    sums, total = (values * weight).unsqueeze(1), weight.unsqueeze(1)
    levels = []
    while True:
        levels.append((sums, total))
        if min(sums.shape[-2:]) < 2:
            break
        sums, total = F.avg_pool2d(sums, 2, ceil_mode=True), F.avg_pool2d(total, 2, ceil_mode=True)
    found = sums / total.clamp_min(1e-9)
    for sums, total in reversed(levels[:-1]):
        found = F.interpolate(found, sums.shape[-2:], mode="bilinear")
        found = torch.where(total > 0, sums / total.clamp_min(1e-9), found)
    return found.squeeze(1)
