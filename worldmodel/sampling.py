"""Few-step flow sampling of the next chunk, on diffusers' flow-matching scheduler."""

from __future__ import annotations

import torch
from torch import Tensor

from worldmodel.camera_view import CameraView
from worldmodel.chunk import LastStep
from worldmodel.configs import SamplerConfig
from worldmodel.memory import CompressedMemory, MemoryTeam
from worldmodel.transformer import CausalWorldTransformer


@torch.no_grad()
def denoise(
    model: CausalWorldTransformer, noise: Tensor, text: list[tuple[Tensor, Tensor]], camera: tuple[Tensor, Tensor],
    memory: CompressedMemory | MemoryTeam, config: SamplerConfig, generator: torch.Generator | list[torch.Generator] | None = None,
    view: CameraView | None = None,
) -> Tensor:  # fmt: skip
    """The clean next chunk [B, C, t, h, w] from noise of that shape; the memory is read, not written.

    A stochastic sampler draws its further noise from `generator`, or from one for each sequence.
    """
    return denoise_and_keep(model, noise, text, camera, memory, config, generator, view, keep=False)[0]


@torch.no_grad()
def denoise_and_keep(
    model: CausalWorldTransformer, noise: Tensor, text: list[tuple[Tensor, Tensor]], camera: tuple[Tensor, Tensor],
    memory: CompressedMemory | MemoryTeam, config: SamplerConfig, generator: torch.Generator | list[torch.Generator] | None = None,
    view: CameraView | None = None, keep: bool = True,
) -> tuple[Tensor, LastStep]:  # fmt: skip
    """As `denoise`, and what the last step was given; with `keep` its keys and values lie in the memory, which counts them from
    `memory.commit` on.
    """
    scheduler = config.scheduler()
    x = noise
    for step, (timestep, sigma) in enumerate(zip(scheduler.timesteps, scheduler.sigmas, strict=False), 1):
        last = LastStep(x, float(timestep))
        out = model(
            x, timestep.expand(len(x)).to(x.device), text, camera=camera, memory=memory, view=view,
            keep=keep and step == config.steps,
        )  # fmt: skip
        velocity = out if model.config.prediction_type == "velocity" else (x - out) / sigma
        x = scheduler.step(velocity, timestep, x, generator=generator, return_dict=False)[0]
    return x, last
