"""The teacher: a bidirectional, action- and pose-conditioned world model, trained by flow matching on ever longer clips.

RELIC (arXiv 2512.04040) trains it on 5 s, then 10 s, then 20 s and extends the rotary embedding by YaRN. The
transformer is the student's, without memory and without mask. One noise level holds for all latent frames of a clip but the
first, which is the clean start picture. With ``x_s = (1 - s) x + s e`` the network predicts e - x (or x) of every noisy frame.

`sample_sequence` is the teacher's sampler; the student's ODE trajectories come from it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distill.autoencoder import psnr, to_frames
from distill.causal import channel_weight
from distill.dmd import shifted
from distill.latents import Walks, latent_clips
from distill.optim import build_optimisers
from distill.parallel import ALONE, Ranks, finish_model, place, save_model
from distill.stage_recipes import TeacherRecipe
from distill.trainer import Trainer, generator
from distill.work import Step
from worldmodel.autoencoder import VideoAutoencoder
from worldmodel.camera import integrate, pose_code, relative_to_first
from worldmodel.camera_view import CameraView, start_view
from worldmodel.sampling import SamplerConfig
from worldmodel.transformer import CausalWorldTransformer


def teacher_for(folder: Path, latents: int) -> Path:
    """Folder of the trained teacher that matches clips of `latents` latent frames: the shortest of those that are long enough.

    `folder` is the stage's; every phase of the curriculum leaves ``model-NNN``, the last one ``model``.
    """
    kept = sorted((int(p.name[6:]), p) for p in Path(folder).glob("model-[0-9]*"))
    return next((p for length, p in kept if length >= latents), Path(folder) / "model")


@torch.no_grad()
def sample_sequence(
    model: CausalWorldTransformer, noise: Tensor, text_embeddings: Tensor, actions: Tensor, poses: Tensor, sampler: SamplerConfig,
    first: Tensor | None = None, guidance: float = 1.0, trajectory: bool = False, generator: torch.Generator | None = None,
    view: CameraView | None = None,
) -> Tensor:  # fmt: skip
    """Whole clips, all latent frames at once, by following the model's flow from noise.

    Args:
        noise: [B, C, T, h, w].
        text_embeddings: [B, L, text_dim].
        actions, poses: per video frame [B, 4T-3, 13] and pose codes [B, 4T-3, 9].
        first: the start picture's clean latent [B, C, 1, h, w], which stays at noise level 0; None: the first is made too.
        guidance: classifier-free guidance ``v = v_null + guidance (v_text - v_null)``; the null prompt is a zero embedding.
        view: the start picture from all poses (`camera_view.start_view`), for models that are shown it.
        trajectory: return all states [steps + 1, B, C, T, h, w], from the noise (first included) to the clean clip.

    Returns:
        Clean latents [B, C, T, h, w].
    """
    scheduler = sampler.scheduler()
    text, camera = model.encode_text(text_embeddings), model.encode_camera(actions, poses)
    null = model.encode_text(torch.zeros_like(text_embeddings)) if guidance != 1 else None
    noisy = torch.ones(noise.shape[0], noise.shape[2], device=noise.device)  # B T
    if first is not None:
        noisy[:, 0] = 0

    def hold_first(x: Tensor) -> Tensor:
        return x if first is None else torch.cat([first.to(x), x[:, :, 1:]], dim=2)

    x = hold_first(noise)
    states = [x]
    for timestep, sigma in zip(scheduler.timesteps, scheduler.sigmas, strict=False):
        out = model(x, timestep.to(noisy) * noisy, text, camera=camera, view=view)
        if null is not None:
            other = model(x, timestep.to(noisy) * noisy, null, camera=camera, view=view)
            out = other + guidance * (out - other)
        velocity = out if model.config.prediction_type == "velocity" else (x - out) / sigma
        x = hold_first(scheduler.step(velocity, timestep, x, generator=generator, return_dict=False)[0])
        if trajectory:
            states.append(x)
    return torch.stack(states) if trajectory else x


class TeacherStage:
    """Trains a bidirectional `CausalWorldTransformer` on encoded walks."""

    def __init__(
        self, recipe: TeacherRecipe, folder: Path, walks: Walks, held_out: Walks, autoencoder: VideoAutoencoder, device: torch.device,
        init: dict[str, Tensor] | None = None, ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        self.recipe, self.folder, self.walks, self.held_out = recipe, Path(folder), walks, held_out
        self.autoencoder, self.device = autoencoder, device
        self.ranks = ranks
        for *_, batch in recipe.curriculum:
            ranks.share(batch)
        torch.manual_seed(recipe.seed)
        channels = walks.groups.shape[2]
        defaults = {
            "in_channels": channels, "out_channels": channels, "text_dim": walks.text.shape[2],
            "rope_original_latents": recipe.phase(0)[0],
        }  # fmt: skip
        self.model = CausalWorldTransformer(**defaults | recipe.transformer)
        if init is not None:
            self.model.load_state_dict(init)
        self.model = place(self.model, ranks, device)
        self.channel_weight = channel_weight(autoencoder, recipe.pixel_weight, device)
        optimisers = build_optimisers(self.model, recipe.optimiser, recipe.lr, recipe.adam_lr, recipe.weight_decay, inside="blocks")
        self.trainer = Trainer(
            "teacher", self.folder, self.model, optimisers, self.loss, steps=recipe.steps, ema=recipe.ema, sample=self.sample,
            shape=self.shape, ranks=ranks,
        )  # fmt: skip

    def shape(self, step: int) -> Step:
        latents, batch = self.recipe.phase(step)
        return Step(batch, latents)

    def extension(self, latents: int) -> float:
        """YaRN's extension for clips of `latents` latent frames."""
        original = self.model.config.rope_original_latents
        return max(1.0, latents / original) if original else 1.0

    def loss(self, step: int) -> tuple[Tensor, dict[str, float]]:
        r, to = self.recipe, self.device
        latents, batch = r.phase(step)
        if 0 < step == self.trainer.step and r.phase(step - 1)[0] != latents:
            self._keep(r.phase(step - 1)[0])
        self.model.set_rope_extension(self.extension(latents))
        rng = generator(r.seed, step)
        walk = self.walks.draw(batch, latents, rng)
        clean = walk["latents"]  # B C T h w
        sigma = shifted(torch.rand(batch, 1, generator=rng), r.sampler.shift).repeat(1, latents)  # B T
        sigma[:, 0] *= torch.rand(batch, generator=rng) >= r.first_clean
        noise = torch.randn(clean.shape, generator=rng)
        keep_text = torch.rand(batch, generator=rng) >= r.text_dropout
        text = walk["text"] * keep_text[:, None, None]
        counted = (sigma > 0).float()
        number, mine = counted.sum().clamp_min(1).to(to), self.ranks.share(batch)  # of the global batch; this process's rows of it
        walk = {k: v[mine] for k, v in walk.items()}
        clean, sigma, noise, text, counted = (x[mine] for x in (clean, sigma, noise, text, counted))
        level = sigma[:, None, :, None, None]
        noisy = ((1 - level) * clean + level * noise).to(to)
        actions, poses = walk["actions"].to(to), walk["poses"].to(to)
        view = start_view(self.autoencoder, noisy[:, :, :1], poses, self.model.config.view_focal)
        out = self.model(noisy, (1000 * sigma).to(to), text.to(to), actions, poses, view=view)
        target = clean if self.model.config.prediction_type == "sample" else noise - clean
        error = ((out - target.to(to)).square() * self.channel_weight).mean((1, 3, 4))  # B T
        return self.ranks.world * (error * counted.to(to)).sum() / number, {"latents": float(latents)}

    # -- looking at it -----------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def generate(self, picks: list[int], latents: int, actions: Tensor, poses: np.ndarray, batch: int = 4) -> Tensor:
        """Latents [P, C, latents, h, w] made from the start pictures of P held-out clips, a few clips at a time.

        `actions` [P, 4 latents - 3, 13]; `poses` camera-to-world [P, 4 latents - 3, 4, 4], translations in steps.
        """
        r, to = self.recipe, self.device
        still = latent_clips(self.held_out, picks)[:, :, :1]
        codes = torch.stack([torch.from_numpy(pose_code(relative_to_first(p))) for p in poses])
        noise = torch.randn(len(picks), still.shape[1], latents, *still.shape[-2:], generator=generator(7, latents))
        text = self.held_out.text[self.held_out.prompt[picks]]
        out = []
        for first, e, t, a, p in zip(*(x.split(batch) for x in (still, noise, text, actions, codes)), strict=True):
            first, p = first.to(to), p.to(to)
            view = start_view(self.autoencoder, first, p, self.model.config.view_focal)
            x = sample_sequence(self.model, e.to(to), t.to(to), a.to(to), p, r.sampler, first, r.guidance, view=view)
            out.append(x.cpu())
        return torch.cat(out)

    @torch.no_grad()
    def sample(self, folder: Path) -> dict[str, Any]:
        """Whole held-out clips of the phase's length beside the truth: PSNR with true and opposite actions, and of the still."""
        latents = min(self.recipe.phase(max(self.trainer.step - 1, 0))[0], self.held_out.groups.shape[1])
        self.model.set_rope_extension(self.extension(latents))
        frames = 1 + 4 * (latents - 1)
        picks = np.linspace(0, len(self.held_out) - 1, min(8, len(self.held_out))).astype(int).tolist()
        actions, poses = self.held_out.actions[picks, :frames], self.held_out.poses[picks, :frames].numpy()
        opposite = actions.clone()
        opposite[..., :12] = actions[..., :12].unflatten(-1, (6, 2)).flip(-1).flatten(-2)
        opposite_poses = np.stack([integrate(a.numpy()) for a in opposite])
        truth = self._decode(latent_clips(self.held_out, picks)[:, :, :latents])
        videos = {
            "true": self._decode(self.generate(picks, latents, actions, poses)),
            "opposite": self._decode(self.generate(picks, latents, opposite, opposite_poses)),
            "still": np.repeat(truth[:, :1], frames, axis=1),
        }
        columns = np.linspace(0, frames - 1, 7).astype(int)
        rows = [np.concatenate([v[n, c] for c in columns], axis=1) for n in range(len(picks)) for v in (truth, videos["true"])]
        Image.fromarray(np.concatenate(rows)).save(folder / f"sheet-{self.trainer.step:06d}.png")
        return {k: round(float(psnr(truth, v)[:, 1:].mean()), 3) for k, v in videos.items()}

    def _decode(self, latents: Tensor) -> np.ndarray:
        return np.concatenate([to_frames(self.autoencoder.decode(x.to(self.device))) for x in latents.split(4)])

    # -- keeping it --------------------------------------------------------------------------------------------------------
    @torch.no_grad()
    def _keep(self, latents: int) -> None:
        """Save the averaged teacher of a finished phase: self-forcing of that length is scored by it."""
        before = self.model.config.rope_extension
        self.model.set_rope_extension(self.extension(latents))
        save_model(self.model, self.trainer.ema.weights, self.folder / f"model-{latents:03d}", self.ranks)
        self.model.set_rope_extension(before)

    def finish(self) -> CausalWorldTransformer:
        self.model.set_rope_extension(self.extension(self.recipe.phase(max(self.trainer.step - 1, 0))[0]))
        return finish_model(self.model, self.trainer.ema.weights, self.folder / "model", self.ranks)
