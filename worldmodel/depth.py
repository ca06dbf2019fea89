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


class Block(nn.Module):
    """Two convolutions and what went into them."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, dim), nn.Conv2d(dim, dim, 3, padding=1)
        self.norm2, self.conv2 = nn.GroupNorm(8, dim), nn.Conv2d(dim, dim, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class PictureDepth(nn.Module):
    """pictures [N, 3, H, W] in -1..1 -> inverse depth [N, 1, h, w] in 1/steps, 0 for the sky, at `FINEST` pixels a place of the pictures
    averaged over `pool`; H and W are multiples of the pixels a place of the coarsest level.

    Args:
        widths: channels at 4, 8, 16, ... pixels a place, of the averaged pictures.
        pool: pixels and axis that are averaged before depth is looked for.
    """

    def __init__(self, widths: tuple[int, ...] = (48, 80, 128), pool: int = 1) -> None:
        super().__init__()
        self.widths, self.pool = widths, pool
        self.enter = nn.Conv2d(3 * 16, widths[0], 3, padding=1)
        self.down = nn.ModuleList(nn.Sequential(Block(w)) for w in widths)
        self.narrow = nn.ModuleList(nn.Conv2d(4 * a, b, 1) for a, b in zip(widths, widths[1:], strict=False))
        self.widen = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in zip(widths, widths[1:], strict=False))
        self.up = nn.ModuleList(nn.Sequential(Block(w)) for w in widths[:-1])
        self.fine = nn.Conv2d(widths[0], 4 * 16, 1)
        self.edges = nn.Sequential(nn.Conv2d(16 + 12, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 1, 3, padding=1))
        nn.init.constant_(self.edges[-1].bias, -3.0)

    def at_pool(self, pool: int) -> PictureDepth:
        """The same for pictures of another size, averaged over so many pixels."""
        made = PictureDepth(self.widths, pool)
        made.load_state_dict(self.state_dict())
        return made

    def logarithm(self, pictures: Tensor) -> Tensor:
        """Of averaged pictures [N, 3, h, w]: log(inverse depth + `FAR`) [N, 1, h/2, w/2]"""
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
        return self.edges(torch.cat([x, F.pixel_unshuffle(pictures, FINEST)], 1))

    def forward(self, pictures: Tensor) -> Tensor:
        found = self.logarithm(F.avg_pool2d(pictures, self.pool) if self.pool > 1 else pictures)
        return (found.to(torch.promote_types(found.dtype, torch.float32)).exp() - FAR).clamp_min(0)
