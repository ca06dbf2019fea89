"""Few-step flow sampling of the next chunk, on diffusers' flow-matching scheduler."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from worldmodel.camera_view import CameraView
from worldmodel.memory import CompressedMemory
from worldmodel.transformer import CausalWorldTransformer


@dataclass(frozen=True)
class SamplerConfig:
    """`steps` evenly spaced noise levels from 1, warped by the timestep shift; 4 steps, shift 5: 1, .9375, .8333, .625.

    `stochastic` re-noises each prediction afresh (as Self-Forcing does) instead of following the flow.
    """

    steps: int = 4
    shift: float = 5.0
    stochastic: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"denoising steps are 1 or more, got {self.steps}.")

    def with_steps(self, steps: int) -> SamplerConfig:
        return replace(self, steps=steps)

    def scheduler(self) -> FlowMatchEulerDiscreteScheduler:
        scheduler = FlowMatchEulerDiscreteScheduler(shift=self.shift, stochastic_sampling=self.stochastic)
        scheduler.set_timesteps(sigmas=[1 - i / self.steps for i in range(self.steps)])
        return scheduler


@torch.no_grad()
def denoise(
    model: CausalWorldTransformer, noise: Tensor, text: list[tuple[Tensor, Tensor]], camera: tuple[Tensor, Tensor],
    memory: CompressedMemory, config: SamplerConfig, generator: torch.Generator | None = None,
    view: CameraView | None = None,
) -> Tensor:  # fmt: skip
    """The clean next chunk [B, C, t, h, w] from noise of that shape; the memory is read, not written."""
    scheduler = config.scheduler()
    x = noise
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        out = model(x, timestep.expand(len(x)).to(x), text, camera=camera, memory=memory, view=view)
        velocity = out if model.config.prediction_type == "velocity" else (x - out) / sigma
        x = scheduler.step(velocity, timestep, x, generator=generator, return_dict=False)[0]
    return x
