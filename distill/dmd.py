"""Distribution matching distillation: the gradient that moves what a generator makes towards the data.

DMD (Yin et al., arXiv 2311.18828) descends the reverse KL divergence between the generator's distribution and the data's, both
blurred by noise. Its gradient is the difference of two scores on the re-noised sample: the real score, a frozen diffusion
model of the data, and the fake score, a diffusion model that follows the generator. RELIC (arXiv 2512.04040, section 4.4.2)
takes it over the whole sequence at once, with Self-Forcing's (arXiv 2506.08009) normalisation and noise levels.

A score model is a `CausalWorldTransformer` called without memory and layout, that is bidirectionally; of velocity or of sample
prediction. With ``x_s = (1 - s) x + s e`` the score is ``((1 - s) x0(x_s) - x_s) / s**2``, so at one noise level a difference of
scores is a positive multiple of a difference of clean estimates x0, and those are what is computed.

Shapes: latents [B, C, T, h, w]. Latent frame 0 is the clean start picture: it is shown at noise level 0, estimated as itself,
and gets neither gradient nor loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from worldmodel.camera_view import CameraView
from worldmodel.transformer import CausalWorldTransformer


@dataclass(frozen=True)
class Condition:
    """What a sequence is made from: text [B, L, D], actions [B, F, 13] and pose codes [B, F, 9] of its F video frames.

    `view` is the start picture from the poses of all frames (`camera_view.start_view`), for score models that are shown it.
    """

    text: Tensor
    actions: Tensor
    poses: Tensor
    view: CameraView | None = None

    def to(self, device: torch.device) -> Condition:
        return replace(self, text=self.text.to(device), actions=self.actions.to(device), poses=self.poses.to(device))

    def without_text(self) -> Condition:
        """The same with the empty prompt, whose embedding is zero."""
        return replace(self, text=torch.zeros_like(self.text))


def predict_clean(model: CausalWorldTransformer, x: Tensor, level: Tensor, text: Any, *args: Any, **kwargs: Any) -> Tensor:
    """Clean estimate x0 of x [B, C, T, h, w] at noise levels [B] or [B, T] in 0..1; the rest goes to the model.

    A velocity model predicts ``v = e - x0``, so ``x0 = x_s - s v``; a sample model predicts x0.
    """
    out = model(x, 1000 * level, text, *args, **kwargs)
    if model.config.prediction_type == "sample":
        return out
    return x - level.reshape(*level.shape, *[1] * (2 - level.ndim)).to(x)[:, None, :, None, None] * out


def shifted(u: Tensor, shift: float) -> Tensor:
    """Timestep shift (Esser et al., arXiv 2403.03206): ``shift u / (1 + (shift - 1) u)``"""
    return shift * u / (1 + (shift - 1) * u)


def sample_level(batch: int, rng: torch.Generator, shift: float = 5.0, clamp: tuple[float, float] = (20.0, 980.0)) -> Tensor:
    """Noise level [B], one for all latent frames: uniform timesteps, shifted, then clamped to `clamp` of 1000 (Self-Forcing)."""
    return shifted(torch.rand(batch, generator=rng), shift).clamp(clamp[0] / 1000, clamp[1] / 1000)


def renoise(x: Tensor, level: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """``x_s = (1 - s) x + s e`` and its levels [B, T]: `level` [B] everywhere but on latent frame 0, which stays clean."""
    levels = level[:, None].repeat(1, x.shape[2]).to(x)
    levels[:, 0] = 0.0
    s = levels[:, None, :, None, None]
    return (1 - s) * x + s * noise, levels


@torch.no_grad()
def clean_estimates(
    x: Tensor, real: CausalWorldTransformer, fake: CausalWorldTransformer, condition: Condition, level: Tensor, noise: Tensor,
    guidance: float = 3.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """What the real and the fake score make of x [B, C, T, h, w] re-noised to `level` [B]: two tensors of x's shape.

    Classifier-free guidance on the real score only, as in Self-Forcing: ``cond + guidance (cond - uncond)``.
    """
    noisy, levels = renoise(x, level, noise)

    def estimate(model: CausalWorldTransformer, c: Condition) -> Tensor:
        out = predict_clean(model, noisy, levels, c.text, c.actions, c.poses, view=c.view)
        return torch.cat([x[:, :, :1], out[:, :, 1:]], dim=2)

    x_real, x_fake = estimate(real, condition), estimate(fake, condition)
    if guidance:
        x_real = x_real + guidance * (x_real - estimate(real, condition.without_text()))
    return x_real, x_fake


def score_difference(
    x: Tensor, real: CausalWorldTransformer, fake: CausalWorldTransformer, condition: Condition, level: Tensor, noise: Tensor,
    guidance: float = 3.0,
) -> Tensor:  # fmt: skip
    """The direction D [B, C, T, h, w] in which the divergence grows; the generator goes against it.

    ``D = (x0_fake - x0_real) / mean|x - x0_real|``, the mean over a sample's generated latent frames (DMD, equation 8;
    Self-Forcing). RELIC writes the difference the other way round and back-propagates its negative. Zero on latent frame 0.
    """
    x = x.detach()
    x_real, x_fake = clean_estimates(x, real, fake, condition, level, noise, guidance)
    scale = (x - x_real)[:, :, 1:].abs().mean((1, 2, 3, 4), keepdim=True)
    return (x_fake - x_real) / scale.clamp_min(1e-6)


def matching_loss(x: Tensor, difference: Tensor, count: int | None = None) -> Tensor:
    """``0.5 ||x - sg(x - D)||^2 / count``, whose gradient in x is ``D / count`` (RELIC, section 4.4.2).

    x and D are a whole sequence or a block of one; `count` is the number of elements of the whole sequence (default: of x).
    """
    x = x.float()
    return 0.5 * (x - (x - difference).detach()).square().sum() / (count or x.numel())


def fake_score_loss(fake: CausalWorldTransformer, x: Tensor, condition: Condition, level: Tensor, noise: Tensor) -> Tensor:
    """Flow matching of the fake score on generated latents x [B, C, T, h, w] at `level` [B]: mean squared error, a scalar.

    Of what the model predicts: ``e - x`` or x. The mean is over the generated latent frames; no gradient reaches x.
    """
    x = x.detach()
    noisy, levels = renoise(x, level, noise)
    out = fake(noisy, 1000 * levels, condition.text, condition.actions, condition.poses, view=condition.view)
    target = x if fake.config.prediction_type == "sample" else noise - x
    return (out - target)[:, :, 1:].square().mean()
