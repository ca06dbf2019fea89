"""How far away what a picture shows is, from the picture alone: what `camera_view` needs to see it from elsewhere.

A small U-Net, trained on pictures whose depth is known exactly (`distill/depth.py`). Distances are in steps, what the camera
moves in a frame at speed 1, so that poses and depth have one unit and no scale has to be known.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NEAR = 0.01
"""Unit of inverse depth, in 1/steps."""
FAR = NEAR / 2
"""Added to inverse depths before their logarithm is taken: what is near counts by its share, what is far by how much it would move."""
FINEST = 2
"""Pixels of the picture per inverse depth and axis."""


EDGES = 32
"""Channels at `FINEST` pixels a place."""


class Block(nn.Module):
    """Two convolutions and what went into them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, dim), nn.Conv2d(dim, dim, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, dim), nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class PictureDepth(nn.Module):
    """pictures [N, 3, H, W] in -1..1 -> inverse depth [N, 1, h, w] in 1/steps, 0 for the sky. h and w are those of the pictures over
    `FINEST`, and without `finer` over `pool` too; H and W are multiples of the pixels a place of the coarsest level.

    Args:
        widths: channels at 4, 8, 16, ... pixels a place, of pictures averaged over `pool` pixels and axis.
        blocks: at `FINEST` pixels a place, on the way up, and at each of the others, on the way down and again on the way up; empty: none,
            and one at each of the others.
        pool: pixels and axis that are averaged before depth is looked for.
        finer: channels of what then looks at the pictures as they are, to put edges where they belong; 0: nothing does.
    """

    def __init__(
        self, widths: tuple[int, ...] = (48, 80, 128), blocks: tuple[int, ...] = (), pool: int = 1, finer: int = 0
    ) -> None:  # fmt: skip
        super().__init__()
        self.config = {"widths": widths, "blocks": blocks, "pool": pool, "finer": finer}
        self.pool = pool
        edges, *counts = blocks or (0, *(1 for _ in widths))
        if len(counts) != len(widths):
            raise ValueError(f"Blocks of depth are one number more than its widths {tuple(widths)}, got {tuple(blocks)}.")
        self.enter = nn.Conv2d(3 * 16, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Sequential(*[Block(w) for _ in range(n)]) for w, n in zip(widths, counts, strict=True))
        self.narrow = nn.ModuleList(nn.Conv2d(4 * a, b, 1) for a, b in zip(widths, widths[1:], strict=False))
        self.widen = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in zip(widths, widths[1:], strict=False))
        self.up = nn.ModuleList(nn.Sequential(*[Block(w) for _ in range(n)]) for w, n in zip(widths[:-1], counts[:-1], strict=True))
        self.fine = nn.Conv2d(widths[0], 4 * 16, 1)
        enter, leave = nn.Conv2d(16 + 3 * FINEST**2, EDGES, 3, padding=1), nn.Conv2d(EDGES, 1, 3, padding=1)
        self.edges = nn.Sequential(enter, *[Block(EDGES) for _ in range(edges)], nn.SiLU(), leave)
        nn.init.constant_(leave.bias, -3.0)
        self.finer = Finer(pool, finer) if finer else None

    @torch.no_grad()
    def begin_as(self, other: PictureDepth) -> None:
        """Take the weights of a network of the same widths with as many blocks or fewer; further blocks begin by changing nothing."""
        known = other.state_dict()
        if len(other.edges) != len(self.edges):  # the last layer stands after the blocks
            old, new = f"edges.{len(other.edges) - 1}.", f"edges.{len(self.edges) - 1}."
            known = {k.replace(old, new) if k.startswith(old) else k: v for k, v in known.items()}
        for name, mine in self.state_dict().items():
            if name in known:
                mine.copy_(known[name])
            elif ".conv2." in name:
                mine.zero_()

    def at_pool(self, pool: int) -> PictureDepth:
        """The same for pictures of another size, averaged over so many pixels; without `finer`, which knows one size alone."""
        made = PictureDepth(**self.config | {"pool": pool, "finer": 0})
        made.load_state_dict({k: v for k, v in self.state_dict().items() if not k.startswith("finer.")})
        return made

    def coarse(self, pictures: Tensor) -> tuple[Tensor, Tensor]:
        """Of averaged pictures [N, 3, h, w]: log(inverse depth + `FAR`) [N, 1, h/2, w/2], and what it was made from (`EDGES` channels)"""
        x = self.enter(F.pixel_unshuffle(pictures, 4))
        skips = []
        for level, blocks in enumerate(self.down):
            x = blocks(x)
            if level < len(self.narrow):
                skips.append(x)
                x = self.narrow[level](F.pixel_unshuffle(x, 2))
        for level in reversed(range(len(self.up))):
            x = self.up[level](skips[level] + F.interpolate(self.widen[level](x), scale_factor=2.0, mode="nearest"))
        x = F.pixel_shuffle(self.fine(x), 2)
        hidden = self.edges[:-1](torch.cat([x, F.pixel_unshuffle(pictures, FINEST)], 1))
        return self.edges[-1](hidden), hidden

    def logarithm(self, pictures: Tensor) -> Tensor:
        """log(inverse depth + `FAR`) [N, 1, h, w]"""
        found, hidden = self.coarse(F.avg_pool2d(pictures, self.pool) if self.pool > 1 else pictures)
        return found if self.finer is None else self.finer(pictures, found, hidden)

    def forward(self, pictures: Tensor) -> Tensor:
        found = self.logarithm(pictures)
        return (found.to(torch.promote_types(found.dtype, torch.float32)).exp() - FAR).clamp_min(0)


class Finer(nn.Module):
    """Coarse depth and the pictures as they are -> depth at `FINEST` pixels a place: the coarse one, interpolated, and how it differs."""

    def __init__(self, pool: int, width: int) -> None:
        super().__init__()
        self.pool = pool
        self.hidden = nn.Conv2d(EDGES, width, 1)
        self.layers = nn.Sequential(
            nn.Conv2d(width + 3 * FINEST**2, width, 3, padding=1), nn.SiLU(), nn.Conv2d(width, width, 3, padding=1), nn.SiLU(),
            nn.Conv2d(width, 1, 3, padding=1),
        )  # fmt: skip
        nn.init.zeros_(self.layers[-1].weight)
        nn.init.zeros_(self.layers[-1].bias)

    def forward(self, pictures: Tensor, found: Tensor, hidden: Tensor) -> Tensor:
        hidden = F.interpolate(self.hidden(hidden), scale_factor=float(self.pool), mode="nearest")
        found = F.interpolate(found, scale_factor=float(self.pool), mode="bilinear")
        return found + self.layers(torch.cat([hidden, F.pixel_unshuffle(pictures, FINEST)], 1))
