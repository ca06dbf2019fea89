"""What a step takes and makes: `Plan` -> latents -> `Chunk`; `Past`, what a world keeps of it, and `MemoryTile`, what its memory does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from worldmodel.camera_view import CameraView


@dataclass(frozen=True)
class Chunk:
    """What one step makes; T video frames.

    Attributes:
        frames: uint8 [T, H, W, 3]; `fetch` gives them, and waits where they are still on their way from the device.
        camera_to_world: float32 [T, 4, 4], OpenCV axes, in steps, relative to the start picture.
        actions: float32 [T, 13].
        index: number of the chunk, from 0.
        timings: milliseconds of each stage; of the whole batch where worlds were stepped together.
    """

    fetch: Callable[[], np.ndarray] = field(repr=False)
    camera_to_world: np.ndarray
    actions: np.ndarray
    index: int
    timings: dict[str, float] = field(default_factory=dict)

    @cached_property
    def frames(self) -> np.ndarray:
        return self.fetch()


@dataclass(frozen=True)
class Plan:
    """Everything from which one world's next chunk is made, besides its memory."""

    actions: np.ndarray  # [F, 13]
    poses: np.ndarray  # float64 [F, 4, 4]
    noise: Tensor  # [1, C, t, h, w]
    generator: torch.Generator  # of a stochastic sampler's further noise
    text: list[tuple[Tensor, Tensor]]  # cross-attention keys and values of each block
    view: CameraView | None


@dataclass(frozen=True)
class LastStep:
    """What the last denoising step was given, besides what all passes are: noisy latents [B, C, t, h, w] and their timestep in 0..1000."""

    latents: Tensor
    timestep: float

    def row(self, i: int) -> LastStep:
        """That of sequence `i` alone."""
        return LastStep(self.latents[i : i + 1].clone(), self.timestep)


def as_kept(x: Tensor) -> Tensor:
    """Latents or inverse depth as a `Past` has them: float32 becomes float16, limited to its range; other types stay.

    Whatever is made of a chunk (frames, depth, views, keys and values) is made of these numbers and never of those before they were
    rounded: so it is the same when it is made again, after going back or from a file.
    """
    most = torch.finfo(torch.float16).max
    return x.clamp(-most, most).half() if x.dtype == torch.float32 else x


@dataclass(frozen=True)
class Past:
    """What is kept of one chunk, enough to make the memory again. Beyond where one can go back only the log remains.

    With a `last_step` the memory has the keys and values which that computed, without one those of a clean-context pass over `latents`.
    Latents and inverse depth are `as_kept`; who computes with them takes the model's own type.
    """

    latents: Tensor | None  # [1, C, t, h, w]
    actions: np.ndarray  # [F, 13]
    poses: np.ndarray | None  # float64 [F, 4, 4]
    prompt: str
    inverse_depth: Tensor | None = None  # [1, t, k, l] of the last video frame of each latent frame, for models with camera views
    last_step: LastStep | None = None
    tone: np.ndarray | None = None  # [BANDS, 3], by which the prompts since the start have changed its colours; None: not at all (`tone`)

    def latent_frame(self, k: int) -> tuple[Tensor, np.ndarray, Tensor | None]:
        """Latent frame k of the chunk [1, C, 1, h, w], and pose [4, 4] and inverse depth [1, 1, k, l] of its last video frame."""
        count = self.latents.shape[2]
        depth = None if self.inverse_depth is None else self.inverse_depth[:, k : k + 1]
        return self.latents[:, :, k : k + 1], self.poses[(k + 1) * len(self.poses) // count - 1], depth


@dataclass(frozen=True)
class MemoryTile:
    """One latent frame in the memory: its number (the start picture's is 0), how many chunks there were with it, by what factor it is
    pooled, how many tokens that makes, and the pose [4, 4] of its last video frame.
    """

    latent: int
    at: int
    factor: int
    tokens: int
    pose: np.ndarray
