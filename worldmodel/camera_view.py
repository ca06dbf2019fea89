"""The last picture, seen from where the camera goes next. Not RELIC's; off unless a config gives a focal length.

Most of the next picture is the last one from another place, and the poses are known exactly. So a small model need not learn how a
turn moves pixels: the last picture is warped to the poses of the next frames, encoded, and shown to the transformer; at the
end the warp is repeated with the depth that the transformer found, and blended with what it made itself. A turn needs no depth
and is exact from the first training step; what comes into view still has to come from the memory.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from worldmodel.autoencoder import TEMPORAL_STRIDE, TinyAutoencoder

NEAR = 0.01
"""Unit of inverse depth, in 1/steps: a step is what the camera moves in a frame at speed 1."""
CELLS = 4
"""Inverse depths per token and axis."""


def rotation_and_position(code: Tensor) -> tuple[Tensor, Tensor]:
    """Pose codes [..., 9] (`camera.pose_code`) -> camera-to-world rotation [..., 3, 3] and position [..., 3]"""
    x, y = code[..., 3:6], code[..., 6:9]
    return torch.stack([x, y, torch.linalg.cross(x, y)], -1), code[..., :3]


@lru_cache(maxsize=8)
def pixel_rays(size: tuple[int, int], focal: float, device: str) -> Tensor:
    """Directions [H*W, 3] through the pixels' centres, OpenCV axes, z = 1; `focal` is fx / W, pixels are square."""
    height, width = size
    f = focal * width
    y, x = torch.meshgrid(torch.arange(height) + 0.5 - height / 2, torch.arange(width) + 0.5 - width / 2, indexing="ij")
    return torch.stack([x / f, y / f, torch.ones_like(x)], -1).flatten(0, 1).to(device)


class CameraView:
    """One picture [N, 3, H, W] and the poses from which the next `TEMPORAL_STRIDE` frames look.

    Args:
        autoencoder: its linear code turns the picture's latents into pixels and the warped pixels into latents.
        latents: [N, C, h, w], the latent frame whose last video frame is the picture.
        here, there: pose codes [N, 9] of the picture and [N, 4, 9] of the frames wanted.
        focal: focal length over picture width.
    """

    def __init__(self, autoencoder: TinyAutoencoder, latents: Tensor, here: Tensor, there: Tensor, focal: float) -> None:
        self.autoencoder, self.focal = autoencoder, focal
        with torch.no_grad():
            self.picture = autoencoder.last_picture(latents)
            to_world, position = rotation_and_position(there)
            from_world, origin = rotation_and_position(here)
            self.turn = from_world.unsqueeze(1).transpose(-1, -2) @ to_world  # [N, 4, 3, 3]: wanted camera -> the picture's camera
            self.move = ((position - origin.unsqueeze(1)).unsqueeze(-2) @ from_world.unsqueeze(1)).squeeze(-2)  # [N, 4, 3]
            self.far = self.latents(self.picture.new_zeros(()))
        """Latents [N, C, h, w] of the warped picture as if everything were infinitely far away."""

    def latents(self, inverse_depth: Tensor) -> Tensor:
        """Latents [N, C, h, w] of `warped`"""
        return self.autoencoder.encode(self.warped(inverse_depth), grouped=True)[:, :, 0]

    def warped(self, inverse_depth: Tensor) -> Tensor:
        """The wanted frames [N, 3, 4, H, W]; inverse depth in 1/steps, a scalar or [N, 1, k, l], spread over their pixels.

        A pixel's ray is turned into the picture's camera, moved by its inverse depth, and looked up; edges repeat.
        """
        n, _, height, width = self.picture.shape
        if inverse_depth.ndim:
            inverse_depth = F.interpolate(inverse_depth, (height, width), mode="bilinear").flatten(1)[:, None, :, None]  # N 1 HW 1
        rays = pixel_rays((height, width), self.focal, str(self.picture.device)).to(self.picture.dtype)
        seen = rays @ self.turn.transpose(-1, -2) + inverse_depth * self.move.unsqueeze(-2)  # N 4 HW 3
        where = seen[..., :2] / seen[..., 2:].clamp_min(0.05) * (2 * self.focal)
        where = where * where.new_tensor([1.0, width / height])
        grid = where.view(n, TEMPORAL_STRIDE * height, width, 2)
        frames = F.grid_sample(self.picture, grid, mode="bilinear", padding_mode="border", align_corners=False)
        return frames.unflatten(2, (TEMPORAL_STRIDE, height))


def next_view(autoencoder: TinyAutoencoder, latents: Tensor, here: Tensor, there: Tensor, focal: float) -> CameraView | None:
    """The view of a whole chunk from the latent frame before it; None without a focal length.

    latents [B, C, h, w], `here` [B, 9] the pose of their last frame, `there` [B, 4t, 9] the poses of the chunk's frames.
    """
    if not focal:
        return None
    t = there.shape[1] // TEMPORAL_STRIDE
    latents, here = (x.repeat_interleave(t, dim=0) for x in (latents, here))
    return CameraView(autoencoder, latents, here, there.unflatten(1, (t, TEMPORAL_STRIDE)).flatten(0, 1), focal)


def sequence_view(autoencoder: TinyAutoencoder, latents: Tensor, poses: Tensor, chunk: int, focal: float) -> CameraView | None:
    """The views of latent frames 1..T-1 of a sequence, each from the latent frame before its chunk; None without a focal length.

    latents [B, C, T, h, w]; pose codes [B, 1 + 4(T-1), 9].
    """
    if not focal:
        return None
    frames = torch.arange(latents.shape[2] - 1)
    before = frames // chunk * chunk  # latent frame before the chunk of latent frame 1 + i
    pictures = latents[:, :, before].transpose(1, 2).flatten(0, 1)
    here = poses[:, TEMPORAL_STRIDE * before].flatten(0, 1)
    there = poses[:, 1:].unflatten(1, (-1, TEMPORAL_STRIDE)).flatten(0, 1)
    return CameraView(autoencoder, pictures, here, there, focal)


class ViewBlend(nn.Module):
    """Shows a `CameraView` to the transformer and blends it into what comes out."""

    def __init__(self, dim: int, channels: int, patch: tuple[int, int] = (1, 1)) -> None:
        super().__init__()
        self.patch = patch
        numbers = channels * patch[0] * patch[1]
        self.enter = nn.Linear(numbers, dim)
        self.inverse_depth = nn.Linear(dim, CELLS**2)
        self.gate = nn.Linear(dim, numbers)
        for layer in (self.enter, self.inverse_depth, self.gate):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.constant_(self.gate.bias, 2.0)

    def tokens(self, view: CameraView) -> Tensor:
        """What the view adds to the embedded tokens: [N, L, D]"""
        return self.enter(self._patches(view.far).to(self.enter.weight))

    def _patches(self, latents: Tensor) -> Tensor:
        """[N, C, h, w] -> [N, L, ph*pw*C], in the order of the transformer's output"""
        ph, pw = self.patch
        x = latents.unflatten(3, (-1, pw)).unflatten(2, (-1, ph))  # N C h ph w pw
        return x.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)

    def forward(self, hidden: Tensor, out: Tensor, view: CameraView) -> Tensor:
        """hidden [N, L, D], prediction [N, L, ph*pw*C] -> the prediction blended with the warped picture"""
        h, w = (n // p for n, p in zip(view.far.shape[-2:], self.patch, strict=True))
        depth = NEAR * F.softplus(self.inverse_depth(hidden))  # N L 16
        depth = F.pixel_shuffle(depth.transpose(1, 2).unflatten(2, (h, w)), CELLS)
        seen = self._patches(view.latents(depth)).to(out)
        return torch.lerp(out, seen, torch.sigmoid(self.gate(hidden)))
