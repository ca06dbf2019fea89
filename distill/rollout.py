"""Rolling a causal model out through its own compressed cache, for distillation and for looking at it.

Latent frame 0 is the clean start picture. Then come blocks of `chunk` latent frames: each is denoised step by step while it
looks at the cache, and a clean-context pass (noise level 0) writes what came out of it into the cache. The distillation stops
every block at one exit step and takes the clean estimate there (Self-Forcing, arXiv 2506.08009); the last exit step is the
full sampler, `worldmodel.sampling.denoise`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from distill.autoencoder import psnr, to_frames
from distill.dmd import Condition, predict_clean
from distill.latents import Walks, latent_clips
from distill.parallel import ALONE, Ranks
from distill.trainer import generator
from worldmodel.autoencoder import TEMPORAL_STRIDE, VideoAutoencoder
from worldmodel.camera import integrate, pose_code, relative_to_first
from worldmodel.camera_view import CameraView, from_latents, next_view, picture_size
from worldmodel.memory import CompressedMemory, MemoryConfig
from worldmodel.sampling import SamplerConfig
from worldmodel.transformer import CausalWorldTransformer


@dataclass(frozen=True)
class RollOutConfig:
    """How the generator plays: its memory, its sampler, latent frames a block, and the code of its views if it has any."""

    memory: MemoryConfig
    sampler: SamplerConfig
    chunk: int = 1
    autoencoder: VideoAutoencoder | None = None

    def blocks(self, latents: int) -> list[slice]:
        """Latent frames of every generated block; the last may be shorter."""
        return [slice(i, min(i + self.chunk, latents)) for i in range(1, latents, self.chunk)]


def video_frames(block: slice) -> slice:
    """Video frames of a block of latent frames; latent frame 0 is video frame 0."""
    return slice(max(0, 1 + TEMPORAL_STRIDE * (block.start - 1)), 1 + TEMPORAL_STRIDE * (block.stop - 1))


@dataclass
class RollOut:
    """A roll-out and what it takes to replay it.

    Attributes:
        latents: [B, C, T, h, w], the start picture and the generated blocks.
        inputs: of every block, what its exit step read: [B, C, t, h, w].
        level: noise level of the exit step, a scalar.
    """

    latents: Tensor
    inputs: list[Tensor]
    level: Tensor
    condition: Condition
    config: RollOutConfig


def start_memory(model: CausalWorldTransformer, start: Tensor, text: Any, condition: Condition, config: RollOutConfig) -> CompressedMemory:
    """A memory that holds the start picture [B, C, 1, h, w]."""
    memory = model.new_memory(config.memory, tuple(start.shape[-2:]), batch=len(start), chunk=config.chunk)
    write_block(model, start, slice(0, 1), text, condition, memory)
    return memory


@torch.no_grad()
def write_block(model: CausalWorldTransformer, x: Tensor, block: slice, text: Any, condition: Condition, memory: CompressedMemory) -> None:
    """The clean-context pass of a block x [B, C, t, h, w]."""
    look(memory, block, condition)
    model(x, x.new_zeros(len(x)), text, *_camera(condition, block), memory=memory, write=True)


def look(memory: CompressedMemory, block: slice, condition: Condition) -> None:
    """Tell the memory where the camera is in a block, before anything looks at it for that block."""
    memory.look(condition.poses[:, TEMPORAL_STRIDE * block.start : TEMPORAL_STRIDE * (block.stop - 1) + 1 : TEMPORAL_STRIDE])


def exit_estimate(
    model: CausalWorldTransformer, x: Tensor, level: Tensor, block: slice, text: Any, condition: Condition, memory: CompressedMemory,
    view: CameraView | None = None,
) -> Tensor:  # fmt: skip
    """Clean estimate [B, C, t, h, w] of a block at a noise level (a scalar); with autograd on, the memory is a constant."""
    return predict_clean(model, x, level.to(x.device).expand(len(x)), text, *_camera(condition, block), memory=memory, view=view)


def view_of(
    model: CausalWorldTransformer, before: Tensor, block: slice, condition: Condition, config: RollOutConfig, memory: CompressedMemory
) -> CameraView | None:
    """A block's view of what the memory holds of the latent frames before it [B, C, T, h, w], for models that are shown it."""
    c, frames = model.config, video_frames(block)
    index = torch.tensor(memory.remembered())
    here, there = condition.poses[:, TEMPORAL_STRIDE * index], condition.poses[:, frames]
    if not c.view_focal:
        return None
    remembered, size = from_latents(config.autoencoder, before.detach()[:, :, index]), picture_size(config.autoencoder, before)
    return next_view(config.autoencoder, remembered, size, here, there, index, c.view_pictures, c.view_focal)


def _camera(condition: Condition, block: slice) -> tuple[Tensor, Tensor]:
    frames = video_frames(block)
    return condition.actions[:, frames], condition.poses[:, frames]


@torch.no_grad()
def roll_out(
    model: CausalWorldTransformer, start: Tensor, condition: Condition, config: RollOutConfig, seed: int,
    exit_step: int | None = None, graph: bool = False, ranks: Ranks = ALONE,
) -> RollOut:  # fmt: skip
    """Roll out as many latent frames as `condition` has, from the start picture [B, C, 1, h, w].

    Args:
        seed: all noise of a block comes from (seed, its first latent frame).
        exit_step: index of the step at which every block stops (default: the last).
        graph: record the exit steps for autograd, all in one graph (`replay.full_graph_backward`).
        ranks: the start pictures are this process's rows of a global batch, for which the noise is drawn.

    Raises:
        ValueError: the exit step is not one of the sampler's, or a graph is wanted with gradient checkpointing.
    """
    last = config.sampler.steps - 1
    exit_step = last if exit_step is None else exit_step
    if not 0 <= exit_step <= last:
        raise ValueError(f"The exit step lies in 0..{last}, got {exit_step}.")
    if graph and model.gradient_checkpointing:
        raise ValueError("Gradient checkpointing would read a cache that has moved on: turn it off, or replay.")
    with torch.set_grad_enabled(graph):
        text = model.encode_text(condition.text)
    memory = start_memory(model, start, text, condition, config)
    mine = ranks.share(len(start) * ranks.world)
    latents, inputs = [start], []
    for block in config.blocks(1 + (condition.actions.shape[1] - 1) // TEMPORAL_STRIDE):
        rng = generator(seed, block.start)
        shape = (len(start) * ranks.world, start.shape[1], block.stop - block.start, *start.shape[3:])
        x = torch.randn(shape, generator=rng, dtype=start.dtype)[mine].to(start.device)
        look(memory, block, condition)
        view = view_of(model, torch.cat(latents, 2), block, condition, config, memory)
        scheduler = config.sampler.scheduler()  # it counts its steps
        for timestep, level in zip(scheduler.timesteps[:exit_step], scheduler.sigmas, strict=False):
            clean = exit_estimate(model, x, level, block, text, condition, memory, view)
            velocity, x = ((x - clean) / level).repeat(ranks.world, 1, 1, 1, 1), x.repeat(ranks.world, 1, 1, 1, 1)
            x = scheduler.step(velocity, timestep, x, generator=rng, return_dict=False)[0][mine]  # its noise is the global batch's
        inputs.append(x)
        with torch.set_grad_enabled(graph):
            clean = exit_estimate(model, x, scheduler.sigmas[exit_step], block, text, condition, memory, view)
        latents.append(clean)
        write_block(model, clean.detach(), block, text, condition, memory)
    with torch.set_grad_enabled(graph):
        return RollOut(torch.cat(latents, dim=2), inputs, scheduler.sigmas[exit_step], condition, config)


# -- looking at it ---------------------------------------------------------------------------------------------------------
def held_out_roll_out(
    model: CausalWorldTransformer, walks: Walks, picks: list[int], actions: Tensor, poses: np.ndarray, config: RollOutConfig
) -> Tensor:
    """Latents [N, C, T, h, w] on the CPU, from the start pictures of clips, for actions [N, F, 13] and poses [N, F, 4, 4]."""
    codes = torch.stack([torch.from_numpy(pose_code(relative_to_first(p))) for p in poses])
    condition = Condition(walks.text[walks.prompt[picks]], actions, codes).to(model.device)
    start = latent_clips(walks, picks)[:, :, :1].to(model.device)
    return roll_out(model, start, condition, config, seed=7).latents.cpu()


def play_held_out(
    model: CausalWorldTransformer, walks: Walks, picks: list[int], frames: int, config: RollOutConfig, opposite: bool = False
) -> Tensor:
    """Latents [N, C, T, h, w] on the CPU of the first `frames` frames of clips played again, under their own or the opposite actions."""
    actions, poses = walks.actions[picks, :frames], walks.poses[picks, :frames].numpy()
    if opposite:
        actions = torch.cat([actions[..., :12].unflatten(-1, (6, 2)).flip(-1).flatten(-2), actions[..., 12:]], -1)
        poses = np.stack([integrate(a.numpy()) for a in actions])
    return held_out_roll_out(model, walks, picks, actions, poses, config)


@torch.no_grad()
def sample_sheet(
    model: CausalWorldTransformer, walks: Walks, autoencoder: VideoAutoencoder, config: RollOutConfig, path: Path
) -> dict[str, Any]:
    """Roll-outs beside ground truth, drawn to `path`: PSNR of true actions, opposite actions, and the still picture."""

    def decode(latents: Tensor) -> np.ndarray:
        return np.concatenate([to_frames(autoencoder.decode(x.to(model.device))) for x in latents.split(4)])

    config = replace(config, autoencoder=autoencoder)
    latents = min(13, walks.groups.shape[1])
    frames = 1 + TEMPORAL_STRIDE * (latents - 1)
    picks = np.linspace(0, len(walks) - 1, min(12, len(walks))).astype(int).tolist()
    truth = decode(latent_clips(walks, picks)[:, :, :latents])
    videos = {
        "true": decode(play_held_out(model, walks, picks, frames, config)),
        "opposite": decode(play_held_out(model, walks, picks, frames, config, opposite=True)),
    }
    still = np.repeat(truth[:, :1], frames, axis=1)
    score = {k: float(psnr(truth, v)[:, 1:].mean()) for k, v in videos.items()} | {"still": float(psnr(truth, still)[:, 1:].mean())}
    columns = np.linspace(0, frames - 1, 7).astype(int)
    rows = []
    for n in np.linspace(0, len(picks) - 1, min(8, len(picks))).astype(int):
        rows += [np.concatenate([v[n, c] for c in columns], axis=1) for v in (truth, videos["true"])]
    Image.fromarray(np.concatenate(rows)).save(path)
    return {k: round(v, 3) for k, v in score.items()}
