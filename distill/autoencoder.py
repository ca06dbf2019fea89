"""Stage 1: the small video autoencoder, on groups of four frames from posed clips.

The linear code is fitted once, before the first step; the steps train the decoder's network only, so latents never change.
Every sample is a piece of a clip as a stream would see it: one frame, then groups of four. The loss is on pixels (squared
and absolute error); noise on the latents keeps the decoder calm where the world model will later be a little wrong.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distill.optim import build_optimisers
from distill.stage_recipes import AutoencoderRecipe
from distill.trainer import Trainer, generator
from distill.work import Step
from worldmodel.autoencoder import TEMPORAL_STRIDE, TinyAutoencoder


def to_video(frames: np.ndarray | Tensor) -> Tensor:
    """uint8 [B, T, H, W, 3] -> float [B, 3, T, H, W] in -1..1"""
    return torch.as_tensor(frames).movedim(-1, 1).float().div_(127.5).sub_(1.0)


def to_frames(video: Tensor) -> np.ndarray:
    """float [B, 3, T, H, W] in -1..1 -> uint8 [B, T, H, W, 3]"""
    return video.clamp(-1, 1).add(1).mul(127.5).round().to(torch.uint8).movedim(1, -1).cpu().numpy()


def psnr(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of each frame: uint8 [..., H, W, 3] -> [...]"""
    error = ((a.astype(np.float32) - b.astype(np.float32)) ** 2).mean((-1, -2, -3))
    return 10 * np.log10(255.0**2 / np.maximum(error, 1e-2))


def draw_pieces(frames: np.ndarray, batch: int, length: int, rng: torch.Generator) -> np.ndarray:
    """`batch` random pieces [batch, length, H, W, 3] of clips [N, F, H, W, 3]"""
    clips, total = frames.shape[:2]
    which = torch.randint(clips, (batch,), generator=rng).tolist()
    start = torch.randint(total - length + 1, (batch,), generator=rng).tolist()
    return np.stack([frames[c, s : s + length] for c, s in zip(which, start, strict=True)])


@torch.no_grad()
def fit_linear_code(model: TinyAutoencoder, frames: np.ndarray, seed: int, samples: int = 1200) -> None:
    """Fit the linear code to single frames (a quarter) and groups of random pieces, and fix the latents' statistics."""
    pieces = to_video(draw_pieces(frames, samples, 1 + TEMPORAL_STRIDE, generator(seed, -1)))
    still = pieces[:, :, :1].expand(-1, -1, TEMPORAL_STRIDE, -1, -1)
    groups = torch.cat([still[: samples // 4], pieces[:, :, 1:]])
    model.init_linear_code(groups.flatten(1, 2))
    model.set_latent_statistics(*measure_latents(model, frames, seed))


@torch.no_grad()
def measure_latents(model: TinyAutoencoder, frames: np.ndarray, seed: int, samples: int = 256) -> tuple[Tensor, Tensor]:
    """Mean and scale of each channel; the scale is the root of the standard deviation, so strong channels stay strong."""
    pieces = to_video(draw_pieces(frames, samples, 1 + 2 * TEMPORAL_STRIDE, generator(seed, -2)))
    latents = torch.cat([model.encode_raw(p) for p in pieces.split(16)])
    mean, std = latents.mean((0, 2, 3, 4)), latents.std((0, 2, 3, 4))
    scale = std.clamp_min(1e-4).sqrt()
    return mean, scale * ((std / scale) ** 2).mean().sqrt()  # unit power over all channels


class AutoencoderStage:
    """Trains `TinyAutoencoder` on clips [N, F, H, W, 3] (uint8, may be memory-mapped); `model`: one whose code is fitted already."""

    def __init__(
        self, recipe: AutoencoderRecipe, folder: Path, frames: np.ndarray, held_out: np.ndarray, device: torch.device,
        model: TinyAutoencoder | None = None,
    ) -> None:  # fmt: skip
        self.recipe, self.folder, self.frames, self.held_out, self.device = recipe, Path(folder), frames, held_out, device
        torch.manual_seed(recipe.seed)
        self.model = TinyAutoencoder(recipe.latent_channels, recipe.decoder_widths) if model is None else model
        if model is None and not (self.folder / "checkpoint").exists():
            fit_linear_code(self.model, frames, recipe.seed)
        self.model.linear_encoder.requires_grad_(False)
        self.model.to(device)
        optimisers = build_optimisers(self.model, recipe.optimiser, recipe.lr, recipe.adam_lr, recipe.weight_decay)
        self.trainer = Trainer(
            "autoencoder", self.folder, self.model, optimisers, self.loss, steps=recipe.steps, sample=self.sample,
            shape=lambda _: Step(recipe.batch, recipe.groups),
        )  # fmt: skip

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        r = self.recipe
        rng = generator(r.seed, step)
        length = 1 + TEMPORAL_STRIDE * (r.groups - 1)
        video = to_video(draw_pieces(self.frames, r.batch, length, rng)).to(self.device)
        with torch.no_grad():
            latents = self.model.encode_raw(video)
        if r.latent_noise:
            spread = latents.std((0, 2, 3, 4), keepdim=True)
            latents = latents + r.latent_noise * spread * torch.randn(latents.shape, generator=rng).to(self.device)
        decoded = self.model.decode_raw(latents)  # B 3 t 4 H W
        target = torch.cat([video[:, :, :1].expand(-1, -1, TEMPORAL_STRIDE - 1, -1, -1), video], dim=2)
        error = decoded.flatten(2, 3) - target
        mse = error.square().mean()
        return mse + r.l1 * error.abs().mean(), {"psnr": 10 * float(torch.log10(4.0 / mse.detach()))}

    @torch.no_grad()
    def reconstruct(self, clips: np.ndarray) -> np.ndarray:
        """uint8 [N, F, H, W, 3] through encoder and decoder"""
        out = []
        for clip in clips:
            raw = self.model.encode_raw(to_video(clip[None]).to(self.device))
            video = self.model.decode_raw(raw).flatten(2, 3)[:, :, TEMPORAL_STRIDE - 1 :]
            out.append(to_frames(video)[0])
        return np.stack(out)

    def sample(self, folder: Path) -> dict[str, Any]:
        """PSNR on held-out clips, and a sheet: truth above reconstruction."""
        clips = self.held_out[:, : (self.held_out.shape[1] - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE + 1]
        decoded = self.reconstruct(clips)
        score = psnr(clips, decoded)
        pick = np.linspace(0, len(clips) - 1, min(12, len(clips))).astype(int)
        rows = [np.concatenate([x[i][-1] for i in pick], axis=1) for x in (clips, decoded)]
        Image.fromarray(np.concatenate(rows, axis=0)).save(folder / f"sheet-{self.trainer.step:06d}.png")
        return {"psnr": round(float(score.mean()), 3), "psnr_first": round(float(score[:, 0].mean()), 3)}

    def finish(self) -> TinyAutoencoder:
        """The averaged weights, saved under `folder`/model."""
        self.model.load_state_dict(self.trainer.ema.weights)
        self.model.eval()
        self.model.save_pretrained(self.folder / "model")
        return self.model
