"""Rays, pictures and points: where what one camera sees is seen by another.

Poses are codes of nine numbers (`camera.pose_code`), axes are OpenCV's, distances are told as inverse depth in 1/steps, and a picture's
places by (x, y) in -1..1. What `camera_view` and `mirrors` are made of.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

SPREAD = ((0, 0.0), (1, 1.1), (2, 2.0), (3, 4.0))
"""Over how many places and axis, as powers of two, a point is spread that has come closer by more than so many times; else what is behind
would show."""


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

    Args:
        turn, move: [M, 3, 3] and [M, 3], `relative`'s of a picture `here` and the wanted frame `there`.
        inverse_depth: [M, h, w] of the pictures, 1/steps.

    Returns:
        inverse depth [M, h, w] from the new pose, and where there is any [M, h, w]; points spread as they grow, and gaps of one place
        between them are closed.
    """
    m, height, width = inverse_depth.shape
    rays = pixel_rays((height, width), focal, str(inverse_depth.device), inverse_depth.dtype)
    near = inverse_depth.flatten(1)
    x, y, z = (turn.transpose(1, 2) @ (rays.T - near.unsqueeze(1) * move.unsqueeze(2))).unbind(1)  # M hw
    scale = focal * width / z.clamp_min(0.05)
    column, row = (x * scale + width / 2).floor().long(), (y * scale + height / 2).floor().long()
    falls = (z > 0.05) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    near = near / z.clamp_min(0.05)
    out = near.new_full((m, height, width), -1.0)
    for power, grown in SPREAD:  # of the picture and of grids of larger places
        grew = falls & (z * grown < 1)
        if not grew.any():
            break
        places = 1 << power
        h, w = -(-height // places), -(-width // places)
        lands = torch.where(grew, (row >> power) * w + (column >> power), h * w)  # one place more for the others
        seen = near.new_full((m, h * w + 1), -1.0).scatter_reduce_(1, lands, near, "amax")[:, :-1].view(m, h, w)
        if power:
            seen = seen.repeat_interleave(places, 1)[:, :height].repeat_interleave(places, 2)[:, :, :width]
        out = torch.maximum(out, seen)
    wider = F.max_pool2d(out, 3, 1, 1)
    there_is = F.max_pool2d((wider < 0).to(out), 3, 1, 1) == 0  # gaps closed, while edges stay where they were
    return torch.where(out < 0, wider, out).clamp_min(0), there_is


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
