"""What no remembered picture shows, guessed: the same pictures in mirrors. Not RELIC's; part of `camera_view`.

A small model's mean of all that may be there is fog. A mirror that stands on a picture's edge shows something that goes on from that edge
without a seam, is as sharp as the picture, of the same kind and in the same light, and whose depth is known as well as the picture's, so
that it stays a place when the camera moves. The mirrors are the planes through the camera and the picture's left and right edges, and each
is seen in the other, which is enough to turn all the way around. They are upright, so a floor stays a floor. (Mirrors at the lower
and the upper edge, upright too, where floor and ceiling end, were tried: what they add is a jumble.) Above and below a picture, or its
image in a mirror, what is at its edge is drawn out, the softer the farther away (`drawn_out`).

Mirrors stand on few pictures (`EVERY`), since one on every new picture would show its last few degrees over and over.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from worldmodel.projection import inside, look_up, pixel_rays, relative, splat

EVERY = 8
"""Latent frames between two pictures that mirrors may stand on; and on the first that is remembered."""
COUNT, DRAWN = 2, 2
"""Mirrors that a view gets, and pictures or mirrors that are drawn out."""
SOFTENS = 0.5
"""Over how many pixels more for each pixel beyond a picture's edge what is at the edge is averaged there."""
PLACES = 4, 32
"""Of a picture, rows and columns, that are looked at to choose mirrors: close to its left and right edges too."""


@lru_cache(maxsize=16)
def side_mirrors(focal: float) -> Tensor:
    """[4, 3, 3]: in the axes of a picture's camera (OpenCV), the mirror at its right edge, that at its left edge, what the left one
    shows of the right one, and what the right one shows of the left one. `focal` is focal length over width."""
    half = math.atan(0.5 / focal)
    normals = torch.tensor([[math.cos(half), 0.0, -math.sin(half)], [math.cos(half), 0.0, math.sin(half)]])
    right, left = torch.eye(3) - 2 * normals.unsqueeze(2) * normals.unsqueeze(1)
    return torch.stack([right, left, left @ right, right @ left])


def drawn_out(picture: Tensor, where: Tensor) -> Tensor:
    """Colours [3, P] at places (x, y) [P, 2] beyond the edges of a picture [3, H, W]: what is at its edge, the softer the farther away, so
    that a tree that is cut off does not go on as a stripe."""
    over = (where.abs() - 1).amax(-1).clamp(0, 2) * (picture.shape[-1] / 2)  # pixels; of a picture's width at most
    level = (1 + over * SOFTENS).log2()
    colours = picture.new_zeros(3, len(where))
    for power in range(int(level.max().ceil()) + 1 if len(where) else 0):  # averages over squares of two to the power of this
        if power and min(picture.shape[-2:]) > 1:
            picture = F.avg_pool2d(picture[None], 2, ceil_mode=True)[0]
        share = 1 - (level - power).abs()
        pick = torch.nonzero(share > 0).flatten()
        found = F.grid_sample(picture[None], where[pick][None, None], padding_mode="border", align_corners=False)[0, :, 0]
        colours[:, pick] += found * share[pick]
    return colours


def choose_mirrors(
    here: Tensor, there: Tensor, index: Tensor, allowed: Tensor, worth: Tensor, unknown: Tensor, near: Tensor, focal: float, aspect: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The mirrors that show most of what no picture does, one after the other, those of better pictures first; then the pictures or mirrors
    above and below which most of the rest is.

    Args:
        here: pose codes [N, S, 9] of pictures, `index` [S] when they were, in latent frames; `allowed` [N, S], which are remembered.
        there: pose codes [N, 9] wanted.
        worth: [N, S], how much each picture counts.
        unknown: [N, *PLACES], where no picture shows anything; `near` [N, *PLACES], the inverse depth to look for it.
        focal, aspect: focal length over width, and width over height.

    Returns:
        picks [N, COUNT + DRAWN] of the pictures, reflections [N, .., 3, 3] in the axes of their cameras, and whether they add
        anything [N, ..].
    """
    rows = torch.arange(len(here), device=here.device)
    may = allowed & (index % EVERY == 0)
    may[rows, allowed.to(torch.uint8).argmax(1)] = True
    worth = worth * may
    turn, move = relative(here, there.unsqueeze(1))
    sides = torch.cat([torch.eye(3)[None], side_mirrors(focal)]).to(here)  # the picture itself, and its mirrors
    turn, move = sides @ turn.unsqueeze(2), (sides @ move.unsqueeze(2).unsqueeze(-1)).squeeze(-1)
    rays = pixel_rays(PLACES, focal, str(here.device), here.dtype, aspect)
    where, share = look_up(rays, turn, move, near.flatten(1)[:, None, None, None], focal, aspect)
    unknown = unknown.flatten(1)[:, None, None]  # N 1 1 P
    mirrored, beyond = inside(where, share) & unknown, above_or_below(where, share) & unknown  # N S 5 P
    mirrored[:, :, 0] = False
    picks, which, useful = [], [], []
    for n in range(COUNT + DRAWN):
        shows = mirrored if n < COUNT else beyond
        most, best = (shows.sum(-1) * worth.unsqueeze(2)).flatten(1).max(1)
        pick, side = best // len(sides), best % len(sides)
        rest = ~shows[rows, pick, side][:, None, None]
        mirrored, beyond = mirrored & rest, beyond & rest
        picks.append(pick), which.append(side), useful.append(most > 0)
    return torch.stack(picks, 1), sides[torch.stack(which, 1)], torch.stack(useful, 1)


def above_or_below(where: Tensor, share: Tensor) -> Tensor:
    """Which of the places that `look_up` gives are right above or below the picture: [..., P]"""
    return (where[..., 0].abs() <= 1) & (where[..., 1].abs() > 1) & (share > 0.05)


@dataclass
class Mirrors:
    """The pictures on whose edges mirrors may stand, as `choose_mirrors` takes them; `pictures` gives those that are picked [N, G]:
    [N, G, 3, H, W], and their inverse depth [N, G, k, l]. Poses `there` [N, 4, 9] are those of the frames wanted."""

    here: Tensor
    there: Tensor
    index: Tensor
    allowed: Tensor
    worth: Tensor
    focal: float
    aspect: float
    pictures: Callable[[Tensor], tuple[Tensor, Tensor]]

    def stand(self, there_is: Tensor, near: Tensor) -> Mirrored:
        """What `choose_mirrors` takes for where in the last frame no points are: `there_is` [N, k, l] and inverse depth [N, k, l]"""
        missing = (~there_is).to(near)
        share = F.adaptive_avg_pool2d(missing, PLACES)
        near = F.adaptive_avg_pool2d(near * missing, PLACES) / share.clamp_min(1e-9)
        wanted = (self.index, self.allowed, self.worth, share > 0, near, self.focal, self.aspect)
        picks, reflection, useful = choose_mirrors(self.here, self.there[:, -1], *wanted)
        here = self.here.gather(1, picks.unsqueeze(-1).expand(-1, -1, 9))
        turn, move = relative(here.unsqueeze(2), self.there.unsqueeze(1))  # N G 4 ...
        reflection = reflection.unsqueeze(2)
        return Mirrored(*self.pictures(picks), reflection @ turn, (reflection @ move.unsqueeze(-1)).squeeze(-1), useful, self.focal)


@dataclass
class Mirrored:
    """G pictures for the frames of a view: `COUNT` in mirrors, and `DRAWN`, in a mirror or not, that are drawn out above and below.

    pictures [N, G, 3, H, W] and their inverse depth [N, G, k, l]; `turn` [N, G, 4, 3, 3] and `move` [N, G, 4, 3] take points of the
    wanted frames into the cameras of the pictures, through the mirror; `useful` [N, G], whether it adds anything; `focal` is focal length
    over width.
    """

    pictures: Tensor
    inverse_depth: Tensor
    turn: Tensor
    move: Tensor
    useful: Tensor
    focal: float

    def depth(self, near: Tensor, there_is: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse depth [N, 4, k, l] of the wanted frames and where there is any, with what the mirrors add where there is none."""
        for g in torch.nonzero(self.useful[:, :COUNT].any(0)).flatten().tolist():
            points = self.inverse_depth[:, g].repeat_interleave(near.shape[1], 0)
            seen, shows = splat(self.turn[:, g].flatten(0, 1), self.move[:, g].flatten(0, 1), points, self.focal)
            adds = shows.view_as(near) & self.useful[:, g, None, None, None] & ~there_is
            near, there_is = torch.where(adds, seen.view_as(near), near), there_is | adds
        return near, there_is

    def paint(self, row: int, frames: Tensor, unknown: Tensor, rays: Tensor, near: Tensor) -> None:
        """Put the colours of the first that has some into one view's `frames` [3, 4, H, W] where `unknown` [4, H, W]; `rays` [H*W, 3]
        go through the pixels, whose inverse depth is `near` [4, H*W]."""
        flat, aspect = frames.flatten(2), frames.shape[3] / frames.shape[2]
        for t, wanted in enumerate(unknown.flatten(1)):
            pixel = torch.nonzero(wanted).flatten()
            for g in torch.nonzero(self.useful[row]).flatten().tolist():
                if not len(pixel):
                    break
                where, share = look_up(rays[pixel], self.turn[row, g, t], self.move[row, g, t], near[t, pixel], self.focal, aspect)
                shows, picture = (inside if g < COUNT else above_or_below)(where, share), self.pictures[row, g]
                flat[:, t, pixel[shows]] = drawn_out(picture, where[shows])
                pixel = pixel[~shows]
