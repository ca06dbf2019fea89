"""A `World`: everything that changes while one person plays.

It owns the memory, the decoder's state, the pose, the prompt, the noise and the log of what was done. The same model,
picture, prompt, seed and actions give the same frames, bit for bit, on one device; so do the frames after a rewind, a fork,
and a save and a load.
"""

from __future__ import annotations

import copy
import json
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from worldmodel.actions import Action, ActionError, as_actions, to_array
from worldmodel.camera import integrate, pose_code
from worldmodel.camera_view import CameraView, next_view
from worldmodel.sampling import denoise

if TYPE_CHECKING:
    from worldmodel.model import WorldModel

FILE_FORMAT = 1
SNAPSHOT_EVERY = 32  # chunks between two snapshots of the memory, which rewinding starts from
MAX_SNAPSHOTS = 8
START_STEPS = 4  # a start picture made from the prompt alone has nothing to go by, and nobody waits for keys yet


class WorldError(ValueError):
    """Something was asked of a world that it cannot do, or a file is no world of this model. One clear sentence."""


@dataclass(frozen=True)
class Chunk:
    """What one step makes; T video frames.

    Attributes:
        frames: uint8 [T, H, W, 3].
        camera_to_world: float32 [T, 4, 4], OpenCV axes, in steps, relative to the start picture.
        actions: float32 [T, 13].
        index: number of the chunk, from 0.
        timings: milliseconds of each stage.
    """

    frames: np.ndarray
    camera_to_world: np.ndarray
    actions: np.ndarray
    index: int
    timings: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class _Past:
    """What is kept of one chunk, enough to make the memory again."""

    latents: Tensor  # [1, C, t, h, w]
    actions: np.ndarray  # [F, 13]
    poses: np.ndarray  # float64 [F, 4, 4]
    prompt: str
    decoder_state: Any  # before this chunk was decoded

    def latent_frame(self, k: int) -> tuple[Tensor, np.ndarray]:
        """Latent frame k of the chunk [1, C, 1, h, w] and the pose [4, 4] of its last video frame."""
        count = self.latents.shape[2]
        return self.latents[:, :, k : k + 1], self.poses[(k + 1) * len(self.poses) // count - 1]


class World:
    """One person's world. Made by `WorldModel.start` or `WorldModel.load_world`.

    `step` is `generate` (makes the frames) and then `finalize` (writes the chunk into the memory, the clean-context pass);
    a server sends the frames in between.
    """

    def __init__(self, model: WorldModel, prompt: str, seed: int, first_latent: Tensor | None) -> None:
        self.model = model
        self.seed = int(seed)
        self._prompt, self._text_of, self._text = prompt, None, None
        self._memory = model.new_memory()
        self._history: list[_Past] = []
        self._snapshots: dict[int, dict[str, Tensor]] = {}
        self._decoder_state: Any = None
        self._pending: _Past | None = None
        start_actions, start_poses = to_array([Action.idle()]), np.eye(4)[None]
        with torch.no_grad():
            if first_latent is None:
                camera = self._camera(start_actions, start_poses)
                self._look(start_poses, 1)
                sampler = model.config.sampler.with_steps(max(START_STEPS, model.config.sampler.steps))
                first_latent = denoise(model.transformer, self._noise(-1, 1), self._text_context(), camera, self._memory, sampler)
            self._start = _Past(first_latent, start_actions, start_poses, prompt, None)
            video, self._decoder_state = model.autoencoder.decode_chunk(first_latent)
            self._write(self._start)
        self.first_frame = model.to_frames(video)[0]
        """uint8 [H, W, 3]: the start picture as the model sees it."""

    # -- state -------------------------------------------------------------------------------------------------------------
    @property
    def index(self) -> int:
        """Chunks made so far."""
        return len(self._history) + (self._pending is not None)

    @property
    def seconds(self) -> float:
        """Length of the video so far."""
        return self.index * self.model.chunk_frames / self.model.fps

    @property
    def pose(self) -> np.ndarray:
        """Where the camera is: float64 [4, 4], camera-to-world, in steps, relative to the start picture."""
        past = self._pending or (self._history[-1] if self._history else self._start)
        return past.poses[-1].copy()

    @property
    def last_latents(self) -> Tensor:
        """Latents [1, C, t, h, w] of the last chunk, or the start picture's repeated to a chunk."""
        past = self._pending or (self._history[-1] if self._history else None)
        return past.latents if past else self._start.latents.expand(-1, -1, self.model.config.chunk, -1, -1)

    @property
    def memory_bytes(self) -> int:
        return self._memory.num_bytes

    @property
    def memory_tokens(self) -> int:
        return self._memory.num_tokens

    @property
    def prompt(self) -> str:
        return self._prompt

    @prompt.setter
    def prompt(self, prompt: str) -> None:
        """A new prompt holds from the next chunk on."""
        self.model.check_prompt(prompt)
        self.finalize()
        self._prompt = prompt

    @property
    def actions(self) -> np.ndarray:
        """Everything done so far: float32 [frames, 13], the start picture's static action first."""
        past = [*self._history, *([self._pending] if self._pending else [])]
        return np.concatenate([self._start.actions, *(p.actions for p in past)])

    # -- playing -----------------------------------------------------------------------------------------------------------
    def step(self, actions: Action | Iterable[Action] | np.ndarray | str) -> Chunk:
        """The next chunk under `actions`: one for the whole chunk, or one per frame (the last is held if there are fewer)."""
        chunk = self.generate(actions)
        started = time.perf_counter()
        self.finalize()
        chunk.timings["memory"] = 1000 * (time.perf_counter() - started)
        return chunk

    @torch.no_grad()
    def generate(self, actions: Action | Iterable[Action] | np.ndarray | str) -> Chunk:
        """Make the next chunk's frames; the memory is written by the next `finalize`, `generate` or `step`."""
        self.finalize()
        per_frame = self._frames_of(actions)
        clock = [time.perf_counter()]
        poses = integrate(per_frame, start=self.pose)
        camera = self._camera(per_frame, poses)
        self._look(poses, self.model.config.chunk)
        view = self._view(poses)
        text = self._text_context()
        noise = self._noise(self.index, self.model.config.chunk)
        clock.append(time.perf_counter())
        latents = denoise(self.model.transformer, noise, text, camera, self._memory, self.model.config.sampler, view=view)
        clock.append(time.perf_counter())
        chunk = self._decoded(latents, per_frame, poses)
        clock.append(time.perf_counter())
        chunk.timings.update(zip(("prepare", "denoise", "decode"), (1000 * float(d) for d in np.diff(clock)), strict=True))
        return chunk

    @torch.no_grad()
    def generate_from(self, latents: Tensor, actions: Action | Iterable[Action] | np.ndarray | str) -> Chunk:
        """A chunk whose latents [1, C, t, h, w] are given instead of generated: to feed a world what really happened."""
        self.finalize()
        per_frame = self._frames_of(actions)
        return self._decoded(latents, per_frame, integrate(per_frame, start=self.pose))

    def _decoded(self, latents: Tensor, actions: np.ndarray, poses: np.ndarray) -> Chunk:
        before, index = self._decoder_state, self.index
        video, self._decoder_state = self.model.autoencoder.decode_chunk(latents, before)
        self._pending = _Past(latents, actions, poses, self._prompt, before)
        return Chunk(self.model.to_frames(video), poses.astype(np.float32), actions, index)

    def finalize(self) -> None:
        """Write the last chunk into the memory (the clean-context pass), if that is still to be done."""
        if self._pending is None:
            return
        past = self._pending
        self._write(past)
        self._history.append(past)
        self._pending = None
        if len(self._history) % SNAPSHOT_EVERY == 0:
            self._snapshots[len(self._history)] = self._memory.state_dict()
            self._thin_snapshots()

    def stream(self, actions: str | np.ndarray | Iterable[Action]) -> Iterator[Chunk]:
        """Chunks for actions per frame: a script, an array [T, 13] or any iterable, which is read as the world goes on.

        The last chunk is filled up by standing still.
        """
        source = iter(as_actions(actions) if isinstance(actions, str | np.ndarray) else actions)
        while True:
            batch = []
            for action in source:
                batch.append(action)
                if len(batch) == self.model.chunk_frames:
                    break
            if not batch:
                return
            batch += [Action.idle()] * (self.model.chunk_frames - len(batch))
            yield self.step(batch)

    # -- going back, and branching -----------------------------------------------------------------------------------------
    def rewind(self, chunks: int = 1) -> None:
        """Forget the last `chunks` chunks; what follows equals what followed the first time, under the same actions."""
        if not 0 <= chunks <= self.index:
            raise WorldError(f"This world has {self.index} chunks, it cannot go back {chunks}.")
        if chunks == 0:
            return
        self.finalize()
        keep = len(self._history) - chunks
        self._decoder_state = self._history[keep].decoder_state
        self._prompt = self._history[keep].prompt
        del self._history[keep:]
        self._snapshots = {at: s for at, s in self._snapshots.items() if at <= keep}
        at = max(self._snapshots, default=0)
        self._memory = self.model.new_memory()
        if at:
            self._memory.load_state_dict(self._snapshots[at])
        else:
            self._write(self._start)
        for past in self._history[at:]:
            self._write(past)

    def fork(self) -> World:
        """An independent copy that shares no changing state."""
        self.finalize()
        other = copy.copy(self)
        other._memory = self.model.new_memory()
        other._memory.load_state_dict(self._memory.state_dict())
        other._history = list(self._history)
        other._snapshots = dict(self._snapshots)
        return other

    # -- files -------------------------------------------------------------------------------------------------------------
    def save(self, path: str | Path) -> None:
        """Write the world to a file: aside first, then renamed, so a full disk or a crash loses nothing that was there."""
        self.finalize()
        path = Path(path)
        everything = [self._start, *self._history]
        tensors = {f"memory.{k}": v.contiguous() for k, v in self._memory.state_dict().items()}
        tensors["latents"] = torch.cat([p.latents for p in everything], dim=2).cpu().contiguous()
        tensors["actions"] = torch.from_numpy(np.concatenate([p.actions for p in everything]))
        tensors["poses"] = torch.from_numpy(np.concatenate([p.poses for p in everything]))
        prompts = [p.prompt for p in self._history]
        meta = {
            "format": FILE_FORMAT, "model": self.model.fingerprint, "seed": self.seed, "prompt": self._prompt,
            "memory": self.model.config.memory.policy, "start_prompt": self._start.prompt,
            "prompts": [(i, p) for i, p in enumerate(prompts) if i == 0 or p != prompts[i - 1]],
        }  # fmt: skip
        part = path.with_name(path.name + ".part")
        try:
            save_file({k: v.cpu() for k, v in tensors.items()}, part, metadata={"world": json.dumps(meta)})
            os.replace(part, path)
        except (OSError, SafetensorError) as error:
            part.unlink(missing_ok=True)
            raise WorldError(f"The world could not be saved to {path}: {error}") from error

    @classmethod
    @torch.no_grad()
    def load(cls, model: WorldModel, path: str | Path) -> World:
        """The world in a file; the frames that follow equal those that would have followed before it was saved."""
        try:
            with safe_open(str(path), "pt") as f:
                meta = json.loads((f.metadata() or {})["world"])
                tensors = {k: f.get_tensor(k) for k in f.keys()}  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise WorldError(f"{path} is not a readable world file ({type(error).__name__}).") from error
        if meta.get("format") != FILE_FORMAT:
            raise WorldError(f"{path} has world format {meta.get('format')!r}; this version reads format {FILE_FORMAT}.")
        if meta["model"] != model.fingerprint:
            raise WorldError(f"{path} was made by another model ({meta['model']}, not {model.fingerprint}); load that model first.")
        policy = meta.get("memory", "relic")
        if policy != model.config.memory.policy:
            raise WorldError(f"{path} has a memory of policy {policy!r}, this model one of {model.config.memory.policy!r}.")
        chunk, frames = model.config.chunk, model.chunk_frames
        latents = tensors["latents"].to(model.device)
        world = cls(model, meta["start_prompt"], meta["seed"], latents[:, :, :1])
        prompts = dict(meta["prompts"])
        current = meta["start_prompt"]
        state: Any = None
        for i in range(-1, (latents.shape[2] - 1) // chunk):
            piece = latents[:, :, :1] if i < 0 else latents[:, :, 1 + i * chunk : 1 + (i + 1) * chunk]
            if i >= 0:
                rows = slice(1 + i * frames, 1 + (i + 1) * frames)
                current = prompts.get(i, current)
                world._history.append(_Past(piece, tensors["actions"][rows].numpy(), tensors["poses"][rows].numpy(), current, state))
            state = model.autoencoder.advance(piece, state)
        world._decoder_state, world._prompt = state, meta["prompt"]
        world._memory.load_state_dict({k.removeprefix("memory."): v for k, v in tensors.items() if k.startswith("memory.")})
        return world

    # -- inside ------------------------------------------------------------------------------------------------------------
    def _frames_of(self, actions: Action | Iterable[Action] | np.ndarray | str) -> np.ndarray:
        """float32 [chunk_frames, 13]"""
        wanted = [actions] if isinstance(actions, Action) else as_actions(actions)
        n = self.model.chunk_frames
        if not 1 <= len(wanted) <= n:
            raise ActionError(f"A chunk takes 1 to {n} actions, got {len(wanted)}; use stream for longer sequences.")
        return to_array([*wanted, *[wanted[-1]] * (n - len(wanted))])

    def _noise(self, chunk: int, latents: int) -> Tensor:
        """Noise of a chunk: it depends on the seed and the chunk's number only, so going back needs no saved state."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + chunk + 1) & 0x7FFF_FFFF_FFFF_FFFF)
        c, h, w = self.model.latent_shape
        return torch.randn(1, c, latents, h, w, generator=generator).to(self.model.device, self.model.dtype)

    def _camera(self, actions: np.ndarray, poses: np.ndarray) -> tuple[Tensor, Tensor]:
        to = dict(device=self.model.device, dtype=self.model.dtype)
        return self.model.transformer.encode_camera(
            torch.from_numpy(actions)[None].to(**to), torch.from_numpy(pose_code(poses))[None].to(**to)
        )

    def _look(self, poses: np.ndarray, latents: int) -> None:
        """Tell the memory where the camera is in the chunk that comes next, poses [F, 4, 4]."""
        stride = len(poses) // latents
        self._memory.look(torch.from_numpy(pose_code(poses[stride - 1 :: stride]))[None])

    def _view(self, poses: np.ndarray) -> CameraView | None:
        """Remembered pictures as they look from the next chunk's poses [4t, 4, 4], for models that use them."""
        config, chunk = self.model.transformer.config, self.model.config.chunk
        if not config.view_focal:
            return None
        to = dict(device=self.model.device, dtype=self.model.dtype)
        everything = [self._start, *self._history]
        index = torch.tensor(self._memory.remembered())
        places = [divmod(i - 1, chunk) if i else (-1, 0) for i in index.tolist()]  # the start picture is a chunk of its own
        latents, ends = zip(*(everything[i + 1].latent_frame(k) for i, k in places), strict=True)
        here, there = (torch.from_numpy(pose_code(p))[None].to(**to) for p in (np.stack(ends), poses))
        return next_view(self.model.autoencoder, torch.cat(latents, 2), here, there, index, config.view_pictures, config.view_focal)

    def _text_context(self, prompt: str | None = None) -> list[tuple[Tensor, Tensor]]:
        prompt = self._prompt if prompt is None else prompt
        if self._text_of != prompt:
            self._text, self._text_of = self.model.encode_prompt(prompt), prompt
        return self._text

    @torch.no_grad()
    def _write(self, past: _Past) -> None:
        self._look(past.poses, past.latents.shape[2])
        clean = torch.zeros(1, device=self.model.device)
        self.model.transformer(
            past.latents,
            clean,
            self._text_context(past.prompt),
            camera=self._camera(past.actions, past.poses),
            memory=self._memory,
            write=True,
        )

    def _thin_snapshots(self) -> None:
        """Keep few snapshots: the older, the sparser. A rewind to between two replays the chunks from the one before."""
        while len(self._snapshots) > MAX_SNAPSHOTS:
            at = sorted(self._snapshots)
            age = {a: at[-1] - a + SNAPSHOT_EVERY for a in at}
            gaps = {b: (c - a) / age[b] for a, b, c in zip([0, *at[:-2]], at[:-1], at[1:], strict=True)}
            del self._snapshots[min(gaps, key=gaps.get)]
