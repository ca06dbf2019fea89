"""What the tests of the distillation stages share: a tiny transformer's config, walks, and a teacher with a known flow."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from distill.latents import Walks
from distill.recipe import Recipe
from distill.stage_recipes import SelfForcingRecipe, StudentInitRecipe, TeacherRecipe
from distill.trainer import Deadline, Trainer
from worldmodel.configs import MemoryConfig, SamplerConfig

TRANSFORMER = dict(
    patch_size=(1, 1, 1), num_attention_heads=2, attention_head_dim=12, freq_dim=16, ffn_dim=32, num_layers=2, camera_dim=8,
    rope_theta=100.0, prediction_type="sample",
)  # fmt: skip


def synthetic_walks(clips: int = 4, latents: int = 8, channels: int = 8) -> Walks:
    """Clips that fade: latent frame i is the clip's picture, scaled."""
    g = torch.Generator().manual_seed(0)
    frames = 1 + 4 * (latents - 1)
    actions = torch.zeros(clips, frames, 13)
    actions[..., 0] = 1
    poses = torch.eye(4, dtype=torch.float64).repeat(clips, frames, 1, 1)
    poses[:, :, 2, 3] = torch.arange(frames)
    groups = torch.randn(clips, 1, channels, 4, 4, generator=g) * torch.linspace(1, 0.2, latents).view(1, -1, 1, 1, 1)
    return Walks(groups.half(), groups.half() + 0.01, actions, poses, torch.arange(clips) % 2, torch.randn(2, 6, 16, generator=g))


def relic_recipe() -> Recipe:
    """All of RELIC's stages, two steps or three each."""
    memory, sampler = MemoryConfig(window=2, horizon=20), SamplerConfig(2, stochastic=True)
    return Recipe(
        name="whole", stages=("teacher", "student_init", "self_forcing"),
        teacher=TeacherRecipe(transformer=TRANSFORMER, steps=2, curriculum=((0.0, 4, 2),), guidance=1.0, sampler=SamplerConfig(2)),
        student_init=StudentInitRecipe(
            memory=memory, sampler=sampler, blocks=4, noisy_blocks=2, trajectories=3, trajectory_steps=4, shard=2, guidance=1.0,
            steps=2, batch=2,
        ),
        self_forcing=SelfForcingRecipe(memory=memory, sampler=sampler, steps=3, curriculum=((0.0, 4, 2),), critic_per_generator=1),
    )  # fmt: skip


def interrupt(trainer: Trainer, at: int) -> None:
    """Train until Ctrl-C comes at a step."""
    real = trainer.loss

    def stop(step: int):
        if step == at:
            raise KeyboardInterrupt
        return real(step)

    trainer.loss = stop
    with pytest.raises(KeyboardInterrupt):
        trainer.run(Deadline(1))


class GaussianTeacher(nn.Module):
    """The exact network for data x ~ N(mean, std^2): what it predicts and where its flow leads are known in closed form."""

    def __init__(self, mean: float = 0.7, std: float = 0.5, prediction_type: str = "velocity") -> None:
        super().__init__()
        self.config = SimpleNamespace(prediction_type=prediction_type, rope_extension=1.0, view_focal=0.0, view_pictures=1)
        self.mean = nn.Parameter(torch.tensor(mean))
        self.std = std
        self.timesteps: list[Tensor] = []

    def encode_text(self, embeddings: Tensor) -> Tensor:
        return embeddings

    def encode_camera(self, actions: Tensor, poses: Tensor) -> tuple[Tensor, Tensor]:
        return actions, poses

    def forward(self, x: Tensor, timestep: Tensor, text: Tensor, *_, **__) -> Tensor:
        self.timesteps.append(timestep)
        sigma = timestep[:, None, :, None, None].double() / 1000
        residual = x.double() - (1 - sigma) * self.mean
        variance = ((1 - sigma) ** 2 * self.std**2 + sigma**2).clamp_min(1e-12)
        clean = self.mean + (1 - sigma) * self.std**2 / variance * residual
        return (clean if self.config.prediction_type == "sample" else sigma / variance * residual - clean).type_as(x)

    def on_the_flow(self, noise: Tensor, sigma: float) -> Tensor:
        """Where the flow from `noise` (level 1) passes at level `sigma`: mean and deviation are those of x_sigma."""
        return (1 - sigma) * self.mean.detach() + ((1 - sigma) ** 2 * self.std**2 + sigma**2) ** 0.5 * noise
