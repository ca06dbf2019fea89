"""Clips encoded once: the latents, actions, poses and prompts that the world model trains on.

From every latent frame of a clip a walk may start, so both are kept: the latent of each group of four frames, and the
latent of its last frame standing alone (what a start picture becomes).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from distill.augment import maybe_palindrome
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
        balance: how much windows with rare actions are preferred in drawing; 0: every window alike (see `window_weights`).
    """

    groups: Tensor
    stills: Tensor
    actions: Tensor
    poses: Tensor
    prompt: Tensor
    text: Tensor
    balance: float = 0.0
    _cumulative: dict[tuple[int, float], Tensor] = field(default_factory=dict, init=False, repr=False)

    def __len__(self) -> int:
        return len(self.groups)

    def draw(self, batch: int, latents: int, rng: torch.Generator) -> dict[str, Tensor]:
        """`batch` random walks of `latents` latent frames, each from a latent frame of a clip; any is as likely as any other,
        or, with `balance`, the likelier the rarer its actions are."""
        total = self.groups.shape[1]
        if latents > total:
            raise ValueError(f"The clips have {total} latent frames, {latents} were asked for: render longer clips.")
        which, start = self._draw_windows(batch, latents, rng)
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

    def _draw_windows(self, batch: int, latents: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Clip and start [batch] of random windows."""
        starts = self.groups.shape[1] - latents + 1
        if not self.balance:
            return torch.randint(len(self), (batch,), generator=rng), torch.randint(starts, (batch,), generator=rng)
        key = (latents, self.balance)
        if key not in self._cumulative:
            self._cumulative[key] = window_weights(self.actions, latents, self.balance).flatten().cumsum(0)
        cumulative = self._cumulative[key]
        u = torch.rand(batch, generator=rng, dtype=torch.float64) * cumulative[-1]
        flat = torch.searchsorted(cumulative, u, right=True).clamp_max(len(cumulative) - 1)
        return flat // starts, flat % starts


def window_counts(actions: Tensor, latents: int) -> Tensor:
    """How many frames of each window have each action: float64 [N, starts, 13] of actions [N, 1+4(T-1), 13].

    A window's first frame is its start picture, in which nothing happens, and is not counted.
    """
    active = (actions > 0).double()
    upto = torch.nn.functional.pad(active.cumsum(1), (0, 0, 1, 0))  # frames before f: [N, F + 1, 13]
    starts = (actions.shape[1] - 1) // TEMPORAL_STRIDE + 2 - latents
    first = TEMPORAL_STRIDE * torch.arange(starts)
    return upto[:, first + 1 + TEMPORAL_STRIDE * (latents - 1)] - upto[:, first + 1]


def window_weights(actions: Tensor, latents: int, balance: float) -> Tensor:
    """Weights [N, starts] by which windows are drawn so that the 13 actions come up more evenly (RELIC, section 3: balanced
    action sampling; how is not stated).

    An action that is active in a share f of all action frames counts ``1 / f``; a window weighs the mean of that over its
    action frames, to the power of `balance`. Where every window holds one action, 1 makes all shares equal; windows that mix
    actions differ less, and take more (2) for the same.
    """
    counts = window_counts(actions, latents)
    frequency = counts.sum((0, 1))
    rarity = torch.where(frequency > 0, frequency.sum() / frequency.clamp_min(1), torch.zeros(()).double())
    return ((counts @ rarity) / counts.sum(-1).clamp_min(1)).pow(balance)


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


def encode_clips(
    autoencoder: VideoAutoencoder, read: Callable[[int], Clip], indices: range, folder: Path, device: torch.device, palindrome: float = 0.0
) -> None:
    """Encode the clips `read(index)` into shards of `SHARD_CLIPS` under `folder`; shards that exist are kept.

    A share `palindrome` of the clips, always the same ones, is encoded as walks there and back (`distill.augment`).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(indices), desc="encode", unit="clip", mininterval=5) as bar:
        for first in range(0, len(indices), SHARD_CLIPS):
            mine = indices[first : first + SHARD_CLIPS]
            path = folder / f"walks-{first // SHARD_CLIPS:05d}.safetensors"
            if not path.exists():
                rows, captions = [], []
                for index in mine:
                    clip = maybe_palindrome(read(index), palindrome, index)
                    rows.append(encode_clip(autoencoder, clip, device))
                    captions.append(clip.caption)
                    bar.update()
                shard = {k: torch.stack([r[k] for r in rows]) for k in rows[0]}
                part = path.with_suffix(".part")
                save_file(shard, part, metadata={"captions": "\n".join(captions)})
                part.rename(path)
            else:
                bar.update(len(mine))


def load_walks(folder: Path, embed, balance: float = 0.0) -> Walks:
    """All shards of a folder; `embed(list of prompts) -> [P, L, D]`; `balance` as in `Walks`."""
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
    merged = {k: torch.cat([s.pop(k) for s in shards]) for k in tuple(shards[0])}  # what is merged is not kept twice
    return Walks(**merged, prompt=torch.tensor([unique.index(c) for c in captions]), text=embed(unique), balance=balance)


def latent_clips(walks: Walks, picks: Sequence[int]) -> Tensor:
    """Ground-truth streams [len(picks), C, T, h, w] from the start of clips."""
    x = walks.groups[list(picks)].float().clone()
    x[:, 0] = walks.stills[list(picks), 0].float()
    return x.transpose(1, 2)
