"""Stage 2: the causal world model by flow matching with a noise level per latent frame (diffusion forcing).

A sequence goes through the transformer once, under the mask of a roll-out: each latent frame sees its window in full and
everything older pooled by RELIC's schedule (`memory.training_layout`), so the compressed memory is trained, not bolted on.
Every latent frame is clean with some probability and otherwise noisy at a level of its own; the loss is on the noisy ones.
With ``x_s = (1 - s) x + s e`` the network predicts x (or e - x) of every noisy frame.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.dmd import shifted
from distill.latents import Walks
from distill.optim import build_optimisers
from distill.rollout import RollOutConfig, sample_sheet
from distill.trainer import Trainer, generator
from worldmodel.autoencoder import VideoAutoencoder
from worldmodel.memory import MemoryConfig, training_layout
from worldmodel.sampling import SamplerConfig
from worldmodel.transformer import CausalWorldTransformer


@dataclass(frozen=True)
class CausalRecipe:
    transformer: dict[str, Any] = field(default_factory=dict)
    memory: MemoryConfig = field(default_factory=MemoryConfig)
    sampler: SamplerConfig = field(default_factory=SamplerConfig)
    chunk: int = 1
    steps: int = 3000
    curriculum: tuple[tuple[float, int, int], ...] = ((0.0, 6, 8), (0.5, 8, 6), (0.85, 16, 3))
    """(share of the steps from which it holds, latent frames, batch)"""
    optimiser: str = "muon"
    lr: float = 0.02
    adam_lr: float = 1e-3
    weight_decay: float = 0.01
    ema: float = 0.998
    clean: float = 0.4  # probability that a latent frame is context: clean, or nearly
    context_noise: float = 0.1  # context is noisy up to this level half of the time
    first_clean: float = 0.95  # probability that the first latent frame is the start picture
    text_dropout: float = 0.1
    seed: int = 0


def noise_levels(recipe: CausalRecipe, batch: int, latents: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise level [B, T] of every latent frame and whether the loss counts it."""
    u = torch.rand(batch, latents, generator=rng)
    sigma = shifted(u, recipe.sampler.shift)
    context = torch.rand(batch, latents, generator=rng) < recipe.clean
    context[:, 0] = torch.rand(batch, generator=rng) < recipe.first_clean
    nearly = torch.rand(batch, latents, generator=rng) * recipe.context_noise
    nearly = torch.where(torch.rand(batch, latents, generator=rng) < 0.5, nearly, torch.zeros(()))
    nearly[:, 0] = 0.0
    return torch.where(context, nearly, sigma), ~context


class CausalStage:
    """Trains `CausalWorldTransformer` on encoded walks."""

    def __init__(
        self, recipe: CausalRecipe, folder: Path, walks: Walks, held_out: Walks, autoencoder: VideoAutoencoder, device: torch.device,
        init: dict[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.recipe, self.folder, self.walks, self.held_out, self.autoencoder, self.device = (
            recipe,
            Path(folder),
            walks,
            held_out,
            autoencoder,
            device,
        )
        torch.manual_seed(recipe.seed)
        channels = walks.groups.shape[2]
        self.model = CausalWorldTransformer(
            **{"in_channels": channels, "out_channels": channels, "text_dim": walks.text.shape[2]} | recipe.transformer
        )
        if init is not None:
            self.model.load_state_dict(init)
        self.model.to(device)
        self.grid = self.model.grid(tuple(walks.groups.shape[-2:]))
        optimisers = build_optimisers(self.model, recipe.optimiser, recipe.lr, recipe.adam_lr, recipe.weight_decay, inside="blocks")
        self.trainer = Trainer(
            "causal", self.folder, self.model, optimisers, self.loss, steps=recipe.steps, ema=recipe.ema, sample=self.sample
        )

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        r = self.recipe
        latents, batch = next((n, b) for at, n, b in reversed(r.curriculum) if step >= at * r.steps)
        rng = generator(r.seed, step)
        walk = self.walks.draw(batch, latents, rng)
        clean = walk["latents"]
        sigma, counted = noise_levels(r, batch, latents, rng)
        noise = torch.randn(clean.shape, generator=rng)
        keep_text = torch.rand(batch, generator=rng) >= r.text_dropout
        text = walk["text"] * keep_text[:, None, None]
        level = sigma[:, None, :, None, None]
        noisy = (1 - level) * clean + level * noise
        layout = training_layout(r.memory, latents, self.grid, r.chunk, str(self.device))
        to = self.device
        out = self.model(noisy.to(to), (1000 * sigma).to(to), text.to(to), walk["actions"].to(to), walk["poses"].to(to), layout=layout)
        target = clean if self.model.config.prediction_type == "sample" else noise - clean
        error = (out - target.to(to)).square().mean((1, 3, 4))  # B T
        weight = counted.float().to(to)
        loss = (error * weight).sum() / weight.sum().clamp_min(1)
        return loss, {"latents": float(latents)}

    def sample(self, folder: Path) -> dict[str, Any]:
        """Roll-outs of held-out clips beside ground truth, and their PSNR."""
        path = folder / f"sheet-{self.trainer.step:06d}.png"
        config = RollOutConfig(self.recipe.memory, self.recipe.sampler, self.recipe.chunk)
        return sample_sheet(self.model, self.held_out, self.autoencoder, config, path)

    def finish(self) -> CausalWorldTransformer:
        self.model.load_state_dict(self.trainer.ema.weights)
        self.model.eval()
        self.model.save_pretrained(self.folder / "model")
        return self.model
