"""Stage 2: the causal world model by flow matching with a noise level per latent frame and clean compressed context.

A sequence goes through the transformer once, every latent frame twice: clean, as context, and noisy, as a target at a level of
its own. A target sees what it would see in a roll-out (`memory.teacher_forcing_layout`): its window in full and everything older
pooled by RELIC's schedule, so the compressed memory is trained, not bolted on, and every target has clean context.
With ``x_s = (1 - s) x + s e`` the network predicts x (or e - x). Context is a little noisy half of the time, because a
roll-out's own context is never perfect.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.dmd import shifted
from distill.latents import Walks
from distill.optim import build_optimisers
from distill.parallel import ALONE, Ranks, finish_model, place
from distill.rollout import RollOutConfig, sample_sheet
from distill.stage_recipes import CausalRecipe
from distill.trainer import Trainer, generator, phase
from distill.work import Step
from worldmodel.autoencoder import VideoAutoencoder
from worldmodel.camera_view import sequence_view
from worldmodel.memory import teacher_forcing_layout
from worldmodel.transformer import CausalWorldTransformer


def noise_levels(recipe: CausalRecipe, batch: int, latents: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noise levels [B, T] of the context and of the targets. The start picture is always clean context."""
    context = torch.rand(batch, latents, generator=rng) * recipe.context_noise
    context = context * (torch.rand(batch, latents, generator=rng) < 0.5)
    context[:, 0] = 0.0
    target = shifted(torch.rand(batch, latents, generator=rng), recipe.sampler.shift)
    pure = torch.rand(batch, latents, generator=rng) < recipe.pure_noise
    return context, torch.where(pure, torch.ones(()), target)


def channel_weight(autoencoder: VideoAutoencoder, power: float, device: torch.device) -> Tensor:
    """Weights [1, C, 1, 1, 1] of the channels in a loss, 1 on average: 0, all alike; 1, by how much each changes the picture."""
    gain = autoencoder.channel_gain.to(device) ** (2 * power)
    return (gain / gain.mean()).view(1, -1, 1, 1, 1)


class CausalStage:
    """Trains `CausalWorldTransformer` on encoded walks."""

    def __init__(
        self, recipe: CausalRecipe, folder: Path, walks: Walks, held_out: Walks, autoencoder: VideoAutoencoder, device: torch.device,
        init: dict[str, Tensor] | None = None, ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        self.recipe, self.folder, self.walks, self.held_out, self.autoencoder, self.device = (
            recipe,
            Path(folder),
            walks,
            held_out,
            autoencoder,
            device,
        )
        self.ranks = ranks
        for *_, batch in recipe.curriculum:
            ranks.share(batch)  # refuses what does not divide before anything is trained
        torch.manual_seed(recipe.seed)
        channels = walks.groups.shape[2]
        self.model = CausalWorldTransformer(
            **{"in_channels": channels, "out_channels": channels, "text_dim": walks.text.shape[2]} | recipe.transformer
        )
        if init is not None:
            self.model.load_state_dict(init)
        self.model = place(self.model, ranks, device)
        self.channel_weight = channel_weight(autoencoder, recipe.pixel_weight, device)
        self.grid = self.model.grid(tuple(walks.groups.shape[-2:]))
        optimisers = build_optimisers(self.model, recipe.optimiser, recipe.lr, recipe.adam_lr, recipe.weight_decay, inside="blocks")
        self.trainer = Trainer(
            "causal", self.folder, self.model, optimisers, self.loss, steps=recipe.steps, ema=recipe.ema, sample=self.sample,
            shape=self.shape, ranks=ranks,
        )  # fmt: skip

    def shape(self, step: int) -> Step:
        latents, batch = phase(self.recipe.curriculum, step, self.recipe.steps)
        return Step(batch, latents)

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        r = self.recipe
        latents, batch = phase(r.curriculum, step, r.steps)
        rng = generator(r.seed, step)
        walk = self.walks.draw(batch, latents, rng)
        clean = walk["latents"]
        levels = torch.cat(noise_levels(r, batch, latents, rng), 1)  # B 2T
        noise = torch.randn(batch, clean.shape[1], 2 * latents, *clean.shape[-2:], generator=rng)
        keep_text = torch.rand(batch, generator=rng) >= r.text_dropout
        text = walk["text"] * keep_text[:, None, None]
        mine = self.ranks.share(batch)  # rows of the global batch; the loss is a mean over rows
        walk = {k: v[mine] for k, v in walk.items()}
        clean, levels, noise, text = (x[mine] for x in (clean, levels, noise, text))
        s = levels[:, None, :, None, None]
        noisy = (1 - s) * clean.repeat(1, 1, 2, 1, 1) + s * noise
        layout = teacher_forcing_layout(r.memory, latents, self.grid, r.chunk, str(self.device))
        to = self.device
        noisy = noisy.to(to)
        c = self.model.config
        view = sequence_view(
            self.autoencoder, noisy[:, :, :latents], walk["poses"].to(to), r.chunk, r.memory, c.view_pictures, c.view_focal
        )
        camera = self.model.encode_camera(walk["actions"].to(to), walk["poses"].to(to))
        camera = tuple(c.repeat(1, 2, 1) for c in camera)
        out = self.model(noisy, (1000 * levels).to(to), text.to(to), camera=camera, layout=layout, view=view)
        out = out[:, :, latents:]
        target = clean if self.model.config.prediction_type == "sample" else noise[:, :, latents:] - clean
        error = (out - target.to(to)).square() * self.channel_weight
        weight = torch.ones(latents, device=to)
        weight[0] = r.first_weight
        loss = (error.mean((0, 1, 3, 4)) * weight).sum() / weight.sum()
        return loss, {"latents": float(latents)}

    def sample(self, folder: Path) -> dict[str, Any]:
        """Roll-outs of held-out clips beside ground truth, and their PSNR."""
        path = folder / f"sheet-{self.trainer.step:06d}.png"
        config = RollOutConfig(self.recipe.memory, self.recipe.sampler, self.recipe.chunk)
        return sample_sheet(self.model, self.held_out, self.autoencoder, config, path)

    def finish(self) -> CausalWorldTransformer:
        return finish_model(self.model, self.trainer.ema.weights, self.folder / "model", self.ranks)
