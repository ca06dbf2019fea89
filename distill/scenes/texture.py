"""Rendered pictures with textures on their surfaces, from their depth alone: what a network for depth learns from has to look like more
than flat colours if it is to tell depth in a photograph.

The scenes are low-poly and painted in flat colours. Here every place that a picture shows gets the value of a noise in space, so that a
texture lies still on its surface, shrinks with distance and is foreshortened, as real ones are. Surfaces of unlike colours get unlike textures.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 64
"""Cells of the noise and axis, after which it repeats."""
MATERIALS, OCTAVES = 3, 4
SKY = 300.0
"""Metres at which the sky is textured."""


@cache
def _noise() -> Tensor:
    """[1, 1, SIDE + 1, SIDE + 1, SIDE + 1], of variance 1, its last planes the first ones"""
    values = torch.randn(SIDE, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return F.pad(values[None, None], (0, 1) * 3, mode="circular")


def noise(points: Tensor) -> Tensor:
    """Noise [P] at points [P, 3]: continuous, between values of variance 1 at whole numbers, which repeat after `SIDE`"""
    where = points.remainder(SIDE) * (2 / SIDE) - 1
    return F.grid_sample(_noise(), where.float()[None, None, None], align_corners=True)[0, 0, 0, 0]


@dataclass(frozen=True)
class Material:
    """`frame` [3, 3] turns and stretches metres into cells of the coarsest octave; each octave is `gain` times as strong as the one before.
    `kind`: 0 clouds, 1 ridges, 2 stripes that the noise bends. `change` [3]: of the logarithm of the three colours, for 1 of it."""

    frame: Tensor
    offset: Tensor
    gain: float
    kind: int
    change: Tensor

    @classmethod
    def random(cls, rng: np.random.Generator, metre: float) -> Material:
        """One whose size suits a scene in which things are about so many metres large."""
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        if rng.random() < 0.6:
            turn = np.eye(3)
        stretch = np.exp(rng.uniform(np.log(0.5), np.log(16.0)) + rng.uniform(-0.7, 0.7, 3)) / metre
        change = rng.uniform(0.08, 0.45) * (1 + rng.normal(0, 0.35, 3))
        return cls(
            torch.tensor(stretch[:, None] * turn), torch.tensor(rng.uniform(0, SIDE, 3)), float(rng.uniform(0.45, 0.8)), int(rng.integers(3)),
            torch.tensor(change).float(),
        )  # fmt: skip

    def at(self, points: Tensor, pixel: Tensor) -> Tensor:
        """The texture [P] at points [P, 3] in metres where a pixel is `pixel` [P] metres large: octaves that are finer fade."""
        cells = points @ self.frame.T + self.offset
        size = pixel * float(self.frame.norm(dim=0).max())  # of a pixel, in cells
        out = torch.zeros(len(points))
        for octave in range(OCTAVES):
            fine = 1 << octave
            seen = (1 / (size * fine) - 1).clamp(0, 1).float()
            value = noise(cells * fine)
            if self.kind == 1:
                value = 1 - 2 * value.abs()
            elif self.kind == 2 and not octave:
                value = 1.5 * torch.sin(2.2 * cells[:, 0].float() + value)
            out += self.gain**octave * seen * value
        return out


class Textures:
    """Textures of one walk, drawn from `rng`; `metre`: about how large things are."""

    def __init__(self, rng: np.random.Generator, metre: float) -> None:
        self.materials = [Material.random(rng, metre) for _ in range(MATERIALS)]
        self.sky = Material.random(rng, 60.0)
        self.picks = torch.tensor(rng.normal(0, 14, (3, MATERIALS))).float()

    def on(self, frame: np.ndarray, depth: np.ndarray, pose: np.ndarray, focal: float) -> np.ndarray:
        """A picture uint8 [H, W, 3] with them, seen from `pose` [4, 4] (OpenCV axes); `depth` [H, W] in metres, infinite for the
        sky; `focal` length over width."""
        height, width = depth.shape
        y, x = np.mgrid[:height, :width] + 0.5
        f = focal * width
        rays = torch.from_numpy(np.stack([(x - width / 2) / f, (y - height / 2) / f, np.ones_like(x)], -1).reshape(-1, 3))
        far = torch.from_numpy(np.ascontiguousarray(depth, dtype=np.float64).reshape(-1))
        is_sky = ~far.isfinite()
        turn, position = torch.from_numpy(pose[:3, :3].astype(np.float64)), torch.from_numpy(pose[:3, 3].astype(np.float64))
        points = rays @ turn.T * torch.where(is_sky, SKY, far).unsqueeze(1) + torch.where(is_sky.unsqueeze(1), 0.0, position)
        pixel = torch.where(is_sky, SKY, far) / f
        colours = torch.from_numpy(frame.reshape(-1, 3)).float() / 255
        chroma = colours / colours.sum(1, keepdim=True).clamp_min(0.05)
        share = (chroma @ self.picks).softmax(1)
        change = torch.zeros_like(colours)
        for k, material in enumerate(self.materials):
            change += (share[:, k] * material.at(points, pixel)).unsqueeze(1) * material.change
        change = torch.where(is_sky.unsqueeze(1), self.sky.at(points, pixel).unsqueeze(1) * self.sky.change * 0.6, change)
        out = (colours * change.exp()).clamp(0, 1) * 255
        return out.round().to(torch.uint8).numpy().reshape(frame.shape)
