"""Clips encoded once: the latents, actions, poses and prompts that the world model trains on.

From every latent frame of a clip a walk may start, so both are kept: the latent of each group of four frames, and the
latent of its last frame standing alone (what a start picture becomes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from distill.autoencoder import to_video
from distill.dataset import Clip
from worldmodel.autoencoder import TEMPORAL_STRIDE, VideoAutoencoder
from worldmodel.camera import pose_code, relative_to_first

SHARD_CLIPS = 64


@dataclass
class Walks:
    """Everything a training step draws from; N clips of T latent frames.

    Attributes:
        groups: float16 [N, T, C, h, w], latents of the clip as a stream.
        stills: float16 [N, T, C, h, w], latents of the last frame of each group as a start picture.
        actions: float32 [N, 1+4(T-1), 13].
        poses: float64 [N, 1+4(T-1), 4, 4], camera-to-world, translations in steps.
        prompt: int64 [N], rows of `text`.
        text: float32 [P, L, D].
    """

    groups: Tensor
    stills: Tensor
    actions: Tensor
    poses: Tensor
    prompt: Tensor
    text: Tensor

    def __len__(self) -> int:
        return len(self.groups)

    def draw(self, batch: int, latents: int, rng: torch.Generator) -> dict[str, Tensor]:
        """`batch` random walks of `latents` latent frames, each from a random latent frame of a random clip."""
        total = self.groups.shape[1]
        if latents > total:
            raise ValueError(f"The clips have {total} latent frames, {latents} were asked for: render longer clips.")
        which = torch.randint(len(self), (batch,), generator=rng)
        start = torch.randint(total - latents + 1, (batch,), generator=rng)
        x, actions, poses = [], [], []
        for n, s in zip(which.tolist(), start.tolist(), strict=True):
            x.append(torch.cat([self.stills[n, s : s + 1], self.groups[n, s + 1 : s + latents]]))
            first = TEMPORAL_STRIDE * s
            frames = slice(first, first + 1 + TEMPORAL_STRIDE * (latents - 1))
            a = self.actions[n, frames].clone()
            a[0] = 0.0
            a[0, -1] = 1.0  # a walk starts standing still
            actions.append(a)
            poses.append(torch.from_numpy(pose_code(relative_to_first(self.poses[n, frames].numpy()))))
        return {
            "latents": torch.stack(x).transpose(1, 2).float(),  # B C T h w
            "actions": torch.stack(actions),
            "poses": torch.stack(poses),
            "text": self.text[self.prompt[which]],
        }


@torch.no_grad()
def encode_clip(autoencoder: VideoAutoencoder, clip: Clip, device: torch.device) -> dict[str, Tensor]:
    """Latents, actions and poses of one clip, as stored."""
    video = to_video(clip.frames[None]).to(device)
    groups = autoencoder.encode(video)[0].transpose(0, 1)
    stills = autoencoder.encode(video[:, :, ::TEMPORAL_STRIDE].squeeze(0).transpose(0, 1).unsqueeze(2))[:, :, 0]
    poses = clip.camera_to_world.astype(np.float64).copy()
    poses[:, :3, 3] /= clip.step
    return {
        "groups": groups.half().cpu(), "stills": stills.half().cpu(),
        "actions": torch.from_numpy(clip.actions.copy()), "poses": torch.from_numpy(poses),
    }  # fmt: skip


def encode_clips(autoencoder: VideoAutoencoder, read: Callable[[int], Clip], indices: range, folder: Path, device: torch.device) -> None:
    """Encode the clips `read(index)` into shards of `SHARD_CLIPS` under `folder`; shards that exist are kept."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(indices), desc="encode", unit="clip", mininterval=5) as bar:
        for first in range(0, len(indices), SHARD_CLIPS):
            mine = indices[first : first + SHARD_CLIPS]
            path = folder / f"walks-{first // SHARD_CLIPS:05d}.safetensors"
            if not path.exists():
                rows, captions = [], []
                for index in mine:
                    clip = read(index)
                    rows.append(encode_clip(autoencoder, clip, device))
                    captions.append(clip.caption)
                    bar.update()
                shard = {k: torch.stack([r[k] for r in rows]) for k in rows[0]}
                part = path.with_suffix(".part")
                save_file(shard, part, metadata={"captions": "\n".join(captions)})
                part.rename(path)
            else:
                bar.update(len(mine))


def load_walks(folder: Path, embed) -> Walks:
    """All shards of a folder; `embed(list of prompts) -> [P, L, D]`."""
    from safetensors import safe_open

    shards: list[dict[str, Tensor]] = []
    captions: list[str] = []
    for path in sorted(Path(folder).glob("walks-*.safetensors")):
        shards.append(load_file(path))
        with safe_open(path, "pt") as f:
            captions += f.metadata()["captions"].split("\n")
    if not shards:
        raise FileNotFoundError(f"No encoded walks in {folder}.")
    unique = sorted(set(captions))
    merged = {k: torch.cat([s[k] for s in shards]) for k in shards[0]}
    return Walks(**merged, prompt=torch.tensor([unique.index(c) for c in captions]), text=embed(unique))


def latent_clips(walks: Walks, picks: Sequence[int]) -> Tensor:
    """Ground-truth streams [len(picks), C, T, h, w] from the start of clips."""
    x = walks.groups[list(picks)].float().clone()
    x[:, 0] = walks.stills[list(picks), 0].float()
    return x.transpose(1, 2)
