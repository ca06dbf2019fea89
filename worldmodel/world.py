"""A `World`: everything that changes while one person plays.

It owns the memory, the decoder's state, the pose, the prompt, the noise and the log of what was done. The same model,
picture, prompt, seed and actions give the same frames, bit for bit, on one device; so do the frames after a rewind, a fork,
and a save and a load.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.actions import Action, ActionError, as_actions, to_array
from worldmodel.batch import encode_camera, finalize_together, generate_together, look, write_together
from worldmodel.camera import integrate, pose_code
from worldmodel.camera_view import CameraView, depth_of, next_view
from worldmodel.chunk import Chunk, MemoryTile, Past, Plan, as_kept
from worldmodel.history import History, Snapshot
from worldmodel.memory import CompressedMemory
from worldmodel.sampling import denoise
from worldmodel.shots import Shots
from worldmodel.tone import TOLD, changes_to, next_tone
from worldmodel.world_file import FILE_FORMAT, WorldError, WorldState, pack, pack_pasts, unpack

if TYPE_CHECKING:
    from worldmodel.model import WorldModel

HISTORY = 1200  # chunks that a world can go back; five minutes of the packaged model
START_STEPS = 4  # a start picture made from the prompt alone has nothing to go by, and nobody waits for keys yet


class World:
    """One person's world. Made by `WorldModel.start` or `WorldModel.load_world`.

    `step` is `generate` (makes the frames) and then `finalize` (writes the chunk into the memory, by the clean-context pass unless
    `RuntimeConfig.context` says otherwise); a server sends the frames in between. `worldmodel.batch` does the same for several worlds.

    Args:
        first_latent: the start picture [1, C, 1, h, w], as it is kept (`as_kept`); None: one is made from the prompt.
        history: chunks that one can go back at least; what is older is let go of, but for the log of actions and what the memory still
            refers to, so that an hour costs no more room than `history` does. None: everything is kept. 0: one cannot go back.
        first_depth: inverse depth [1, 1, k, l] of the start picture, as it is kept, in 1/steps; None: as the model tells.
    """

    def __init__(
        self, model: WorldModel, prompt: str, seed: int, first_latent: Tensor | None, history: int | None = HISTORY,
        first_depth: Tensor | None = None,
    ) -> None:  # fmt: skip
        self.model = model
        self.seed = int(seed)
        self._prompt, self._text_of, self._text = prompt, None, None
        self._window_prompt = prompt  # under which the memory's window was written
        self._memory = model.new_memory()
        self._shots = Shots(model.autoencoder, model.dtype)
        self._decoder_state: Any = None
        self._pending: Past | None = None
        self._laid = False
        start_actions, start_poses = to_array([Action.idle()]), np.eye(4)[None]
        with torch.no_grad():
            if first_latent is None:
                first_latent = as_kept(self._first_latent())
            depth = self._depth_of(first_latent) if first_depth is None else first_depth
            start = Past(first_latent, start_actions, start_poses, prompt, depth)
            self._history = History(start, model.config.chunk, history)
            video, self._decoder_state = model.autoencoder.decode_chunk(first_latent.to(model.dtype))
            self._write(self._memory, start)
        self.first_frame = model.to_frames(video)[0]
        """uint8 [H, W, 3]: the start picture as the model sees it."""
        self._now: np.ndarray | Chunk = self.first_frame  # the last frame, or the chunk that it is in

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
        return self._last.poses[-1].copy()

    @property
    def last_frame(self) -> np.ndarray:
        """What is seen now: uint8 [H, W, 3]. It waits for the decoder, whose state is there then too."""
        if isinstance(self._now, Chunk):
            self._now = self._now.frames[-1]
        return self._now

    @property
    def last_latents(self) -> Tensor:
        """Latents [1, C, t, h, w] of the last chunk, or the start picture's repeated to a chunk."""
        latents = self._last.latents.expand(-1, -1, self.model.config.chunk, -1, -1)
        return latents.to(self.model.dtype)

    @property
    def reach(self) -> int:
        """Chunks that one can go back now."""
        return 0 if self._history.limit == 0 else self.index - self._history.base

    @property
    def path(self) -> list[tuple[int, np.ndarray]]:
        """Moments to which one can go back, and now: (chunks made until then, pose [4, 4])."""
        past = [(i + 1, p) for i, p in enumerate(self._history) if i + 1 >= self.index - self.reach]
        start = [(0, self._history.start)] if self.index == self.reach else []
        return [(at, p.poses[-1].copy()) for at, p in [*start, *past] if p.poses is not None]

    @property
    def tiles(self) -> list[MemoryTile]:
        """What the next chunk looks back at, in the order of time."""
        chunk = self.model.config.chunk
        return [MemoryTile(i, -(-i // chunk), *size, self._history.latent_frame(i)[1].copy()) for i, *size in self._memory.entries()]

    @property
    def memory_bytes(self) -> int:
        return self._memory.num_bytes

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors that this world keeps: memory, snapshots, latents, and pictures that views show."""
        return self._memory.num_bytes + self._history.num_bytes + self._shots.num_bytes

    @property
    def memory_tokens(self) -> int:
        return self._memory.num_tokens

    @property
    def prompt(self) -> str:
        return self._prompt

    @prompt.setter
    def prompt(self, prompt: str) -> None:
        """A new prompt holds from the next chunk on, and the window is written into the memory anew, as if it had held there too: else
        what the model remembers of the old prompt outweighs the new one.
        """
        self.model.check_prompt(prompt)
        self.finalize()
        self._prompt = prompt

    @property
    def actions(self) -> np.ndarray:
        """Everything done so far: float32 [frames, 13], the start picture's static action first."""
        past = [*self._history, *([self._pending] if self._pending else [])]
        return np.concatenate([self._history.start.actions, *(p.actions for p in past)])

    # -- playing -----------------------------------------------------------------------------------------------------------
    def step(self, actions: Action | Iterable[Action] | np.ndarray | str) -> Chunk:
        """The next chunk under `actions`: one for the whole chunk, or one per frame (the last is held if there are fewer)."""
        return self._step(actions)

    def _step(self, actions: Action | Iterable[Action] | np.ndarray | str, late: bool = False) -> Chunk:
        chunk = generate_together([self], [actions], late)[0]
        started = time.perf_counter()
        self.finalize()
        chunk.timings["memory"] = 1000 * (time.perf_counter() - started)
        return chunk

    def generate(self, actions: Action | Iterable[Action] | np.ndarray | str) -> Chunk:
        """Make the next chunk's frames; the memory is written by the next `finalize`, `generate` or `step`."""
        return generate_together([self], [actions])[0]

    @torch.no_grad()
    def generate_from(self, latents: Tensor, actions: Action | Iterable[Action] | np.ndarray | str) -> Chunk:
        """A chunk whose latents [1, C, t, h, w] are given instead of generated: to feed a world what really happened."""
        self.finalize()
        self._refresh_window()
        self._wait_for_decoder()
        per_frame = self._frames_of(actions)
        latents = as_kept(latents.to(self.model.dtype))
        video, decoder_state = self.model.autoencoder.decode_chunk(latents.to(self.model.dtype), self._decoder_state)
        past = Past(latents, per_frame, integrate(per_frame, start=self.pose), self._prompt)
        return self.accept(past, self.model.to_frames(video), decoder_state)

    def finalize(self) -> None:
        """Write the last chunk into the memory, if that is still to be done."""
        finalize_together([self])

    def stream(self, actions: str | np.ndarray | Iterable[Action], ahead: bool = False) -> Iterator[Chunk]:
        """Chunks for actions per frame: a script, an array [T, 13] or any iterable, which is read as the world goes on.

        The last chunk is filled up by standing still. With `ahead` the next chunk is made before the last one is given, and where
        `RuntimeConfig.overlap` decodes on a stream of its own, while it is decoded; the world is then a chunk further than what was given.
        """
        waiting: list[Chunk] = []
        for batch in self._batches(actions):
            waiting.append(self._step(batch, late=ahead))
            if len(waiting) > ahead:
                yield self._arrived(waiting.pop(0))
        for chunk in waiting:
            yield self._arrived(chunk)

    @staticmethod
    def _arrived(chunk: Chunk) -> Chunk:
        """The same when its frames are there; waiting for them counts as decoding."""
        started = time.perf_counter()
        chunk.frames  # noqa: B018 (reading them waits)
        chunk.timings["decode"] += 1000 * (time.perf_counter() - started)
        return chunk

    def _batches(self, actions: str | np.ndarray | Iterable[Action]) -> Iterator[list[Action]]:
        """Actions of a chunk each."""
        source = iter(as_actions(actions) if isinstance(actions, str | np.ndarray) else actions)
        while True:
            batch = []
            for action in source:
                batch.append(action)
                if len(batch) == self.model.chunk_frames:
                    break
            if not batch:
                return
            yield batch + [Action.idle()] * (self.model.chunk_frames - len(batch))

    # -- going back, and branching -----------------------------------------------------------------------------------------
    def rewind(self, chunks: int = 1) -> None:
        """Forget the last `chunks` chunks, at most `reach`; what follows equals what followed the first time, under the same actions."""
        for _ in self.rewinding(chunks):
            pass

    @torch.no_grad()
    def rewinding(self, chunks: int = 1) -> Iterator[None]:
        """`rewind` in pieces, each about as long as half a step, so that others need not wait for all of it. Until the last piece nothing
        has changed, and nobody else may touch this world.
        """
        if chunks == 0:
            return
        self.finalize()
        self._wait_for_decoder()
        if not 0 < chunks <= self.reach:
            kept = "" if self._history.base == 0 else f" and keeps the last {self.reach} of them"
            raise WorldError(f"This world has {self.index} chunks{kept}, it cannot go back {chunks}.")
        keep = len(self._history) - chunks
        at = self._history.newest_snapshot(keep)
        memory = self.model.new_memory()
        if at:
            snapshot = self._history.snapshots[at]
            memory.load_state_dict(snapshot.memory)
            decoder_state, frame = snapshot.decoder_state, snapshot.last_frame
        else:
            self._write(memory, self._history.start)
            decoder_state, frame = self._advance(self._history.start), self.first_frame
        for i in range(at, keep):
            yield
            if self._history[i].prompt != self._history.before(i).prompt:
                self._rewrite_window(memory, i, self._history[i].prompt)
            self._write(memory, self._history[i])
        yield
        decoder_state, frame = self._decode(self._history[at:keep], decoder_state, frame)
        self._memory, self._decoder_state, self._now = memory, decoder_state, frame
        self._prompt, self._window_prompt = self._history[keep].prompt, self._history.before(keep).prompt
        self._history.forget_after(keep)

    def fork(self) -> World:
        """An independent copy that shares no changing state."""
        self.finalize()
        other = copy.copy(self)
        other._memory = self.model.new_memory()
        other._memory.load_state_dict(self._memory.state_dict())
        other._history, other._shots = self._history.fork(), self._shots.fork()
        return other

    # -- files -------------------------------------------------------------------------------------------------------------
    def state(self, history: int | None = None, note: dict[str, Any] | None = None) -> WorldState:
        """Everything at this moment, from which `WorldState.save` makes the file, in another thread if need be.

        From the file one can go back as far as here, or if `history` is given only that many chunks or a few more; 0 is smallest.
        """
        self.finalize()
        self._wait_for_decoder()
        past = self._history
        now, base = len(past), past.base
        if history is not None:
            base = now if history == 0 else max(base, past.newest_snapshot(now - history))
        snapshot = None if base == 0 else self._snapshot() if base == now else past.snapshots[base]
        held = [*past.looked_at([*past.held, *range(past.base, base)], snapshot.recallable if base else frozenset()), *range(base, now)]
        tensors = {f"memory.{k}": v for k, v in self._memory.state_dict().items()}
        if base:
            tensors |= {f"decoder.{k}": v for k, v in pack(snapshot.decoder_state).items()}
            shared = {id(v) for v in tensors.values()}  # what a memory keeps aside is the same now and then
            tensors |= {f"base.memory.{k}": v for k, v in snapshot.memory.items() if id(v) not in shared} if base < now else {}
            tensors["base_frame"] = torch.from_numpy(snapshot.last_frame)
        tensors |= pack_pasts(past.start, {i: past[i] for i in held}) | {"actions": torch.from_numpy(self.actions)}
        prompts = [p.prompt for p in past]
        meta = {
            "format": FILE_FORMAT, "model": self.model.fingerprint, "seed": self.seed, "prompt": self._prompt, "base": base,
            "memory": self.model.config.memory.policy, "start_prompt": past.start.prompt,
            "prompts": [(i, p) for i, p in enumerate(prompts) if i == 0 or p != prompts[i - 1]],
        }  # fmt: skip
        return WorldState(tensors, meta, note or {})

    def save(self, path: str | Path, history: int | None = None) -> None:
        """Write the world to a file, whole or not at all: a full disk or a crash loses nothing that was there. As `state`."""
        self.state(history).save(path)

    @classmethod
    def load(cls, model: WorldModel, path: str | Path, history: int | None = HISTORY) -> World:
        """The world in a file; the frames that follow equal those that would have followed before it was saved."""
        return cls.from_state(model, WorldState.load(path, model), history)

    @classmethod
    @torch.no_grad()
    def from_state(cls, model: WorldModel, state: WorldState, history: int | None = HISTORY) -> World:
        """The world of which `state` was taken, with its own `history` from now on."""
        tensors, meta, base = state.tensors, state.meta, state.meta["base"]
        latent, depth = tensors["latents"][:, :, :1].to(model.device, copy=True), tensors.get("inverse_depth")
        depth = None if depth is None else depth[:, :1].to(model.device, copy=True)
        world = cls(model, meta["start_prompt"], meta["seed"], latent, history, depth)
        kept = world._history
        for past in state.pasts(model, world._depth_of):
            kept.append(replace(past, tone=world._tone_after(kept.last, past.prompt)))
        kept.base, kept.held = base, [i for i in tensors["held"].tolist() if i < base]
        world._prompt, world._window_prompt = meta["prompt"], kept.last.prompt
        if base:
            world._memory.load_state_dict(state.part("memory") | state.part("base.memory"))
            world._decoder_state = unpack(state.part("decoder"), model.device)
            world._now = tensors["base_frame"].numpy()
            if history != 0:
                kept.snapshots[base] = world._snapshot()
        else:
            world._decoder_state = world._advance(kept.start)
        world._memory.load_state_dict(state.part("memory"))
        world._decoder_state, world._now = world._decode(kept[base:], world._decoder_state, world.last_frame)
        return world

    # -- for `worldmodel.batch`: a step in pieces ----------------------------------------------------------------------------
    @property
    def memory(self) -> CompressedMemory:
        return self._memory

    @property
    def decoder_state(self) -> Any:
        return self._decoder_state

    @property
    def pending(self) -> Past | None:
        """The chunk that was made and is not in the memory yet."""
        return self._pending

    @property
    def laid(self) -> bool:
        """Whether the pending chunk's keys and values lie in the memory and only have to be committed."""
        return self._laid

    @property
    def latents_finalized(self) -> int:
        """Latent frames that the memory has seen when nothing is pending."""
        return 1 + len(self._history) * self.model.config.chunk

    def plan(self, actions: Action | Iterable[Action] | np.ndarray | str) -> Plan:
        """What the next chunk is made from; nothing is pending."""
        per_frame = self._frames_of(actions)
        self._refresh_window()
        poses = integrate(per_frame, start=self.pose)
        look(self._memory, poses, self.model.config.chunk)
        noise, generator = self._noise(self.index, self.model.config.chunk)
        view = self._view(self._memory, poses, self._tone_after(self._last, self._prompt))
        return Plan(per_frame, poses, noise, generator, self.text_context(), view)

    def accept(
        self, past: Past, frames: np.ndarray | Callable[[], np.ndarray], decoder_state: Any, view: CameraView | None = None,
        laid: bool = False,
    ) -> Chunk:  # fmt: skip
        """The next chunk was made, with `view` unless it was given; its frames are uint8 [F, H, W, 3], or what waits for them and gives
        them. `laid` as the property.
        """
        chunk = Chunk(frames if callable(frames) else lambda: frames, past.poses.astype(np.float32), past.actions, self.index)
        known = dict(inverse_depth=self._depth_of(past.latents, view), tone=self._tone_after(self._last, past.prompt))
        self._pending, self._laid = replace(past, **known), laid
        self._decoder_state, self._now = decoder_state, chunk
        return chunk

    def settle(self) -> None:
        """The pending chunk is in the memory now."""
        self._history.append(self._pending)
        self._pending = None
        if self._history.wants_snapshot:
            self._history.add_snapshot(self._snapshot())
        self._history.let_go(self._memory.recallable)

    def text_context(self, prompt: str | None = None) -> list[tuple[Tensor, Tensor]]:
        """Cross-attention keys and values of each block under `prompt`, or the present one."""
        prompt = self._prompt if prompt is None else prompt
        if self._text_of != prompt:
            self._text, self._text_of = self.model.encode_prompt(prompt), prompt
        return self._text

    # -- inside ------------------------------------------------------------------------------------------------------------
    def _frames_of(self, actions: Action | Iterable[Action] | np.ndarray | str) -> np.ndarray:
        """float32 [chunk_frames, 13]"""
        wanted = [actions] if isinstance(actions, Action) else as_actions(actions)
        n = self.model.chunk_frames
        if not 1 <= len(wanted) <= n:
            raise ActionError(f"A chunk takes 1 to {n} actions, got {len(wanted)}; use stream for longer sequences.")
        return to_array([*wanted, *[wanted[-1]] * (n - len(wanted))])

    def _wait_for_decoder(self) -> None:
        """Before its state is used on another stream than its own."""
        self.last_frame  # noqa: B018 (reading it waits)

    def _first_latent(self) -> Tensor:
        """A start picture [1, C, 1, h, w] from the prompt alone: the first of `start_block` latent frames that are seen from one place"""
        model, block = self.model, self.model.config.start_block
        frames = 1 + (block - 1) * model.autoencoder.temporal_stride
        poses = np.repeat(np.eye(4)[None], frames, axis=0)
        camera = encode_camera(model, [to_array([Action.idle()] * frames)], [poses])
        look(self._memory, poses, block)
        sampler = model.config.sampler.with_steps(max(START_STEPS, model.config.sampler.steps))
        noise, generator = self._noise(-1, block)
        return denoise(model.transformer, noise, self.text_context(), camera, self._memory, sampler, [generator])[:, :, :1].clone()

    def _noise(self, chunk: int, latents: int) -> tuple[Tensor, torch.Generator]:
        """Noise of a chunk, and where a stochastic sampler draws more: both depend on the seed and the chunk's number only, so
        going back needs no saved state.
        """
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + chunk + 1) & 0x7FFF_FFFF_FFFF_FFFF)
        c, h, w = self.model.latent_shape
        return torch.randn(1, c, latents, h, w, generator=generator).to(self.model.device, self.model.dtype), generator

    def _view(self, memory: CompressedMemory, poses: np.ndarray, tone: np.ndarray | None) -> CameraView | None:
        """Pictures remembered in `memory` as they look from the next chunk's poses [4t, 4, 4] in its `tone`, for models that use them."""
        config = self.model.transformer.config
        if not config.view_focal:
            return None
        to = dict(device=self.model.device, dtype=torch.promote_types(self.model.dtype, torch.float32))  # of geometry
        index = memory.remembered()
        frames = [self._history.chunk_of(i) for i in index]
        ends = np.stack([past.latent_frame(k)[1] for past, k in frames])
        here, there = (torch.from_numpy(pose_code(p))[None].to(**to) for p in (ends, poses))
        change = changes_to(tone, [past.tone for past, _ in frames])
        change = None if change is None else torch.from_numpy(change)[None].to(**to)

        def remembered(which: Tensor) -> tuple[Tensor, Tensor]:
            asked = [frames[i] for i in which.tolist()]
            depths = torch.cat([past.latent_frame(k)[2][0] for past, k in asked])
            return torch.stack([self._shots(past, k) for past, k in asked]), depths.to(**to)

        size, pictures = self.model.size, config.view_pictures
        return next_view(
            self.model.autoencoder, remembered, size, here, there, torch.tensor(index), pictures, config.view_focal, change
        )

    @property
    def _last(self) -> Past:
        """The chunk before the next one."""
        return self._pending or self._history.last

    def _tone_after(self, before: Past, prompt: str) -> np.ndarray | None:
        """The tone of a chunk under `prompt` after another; None as long as no prompt but the first has held."""
        if not self.model.transformer.config.view_focal or (before.tone is None and prompt == self._history.start.prompt):
            return None
        return next_tone(before.tone, TOLD * (self.model.tone(prompt) - self.model.tone(self._history.start.prompt)))

    @torch.no_grad()
    def _depth_of(self, latents: Tensor, view: CameraView | None = None) -> Tensor | None:
        """Inverse depth [1, t, k, l], as it is kept, of a chunk's latents [1, C, t, h, w], which were made with `view` or are given"""
        if not self.model.transformer.config.view_focal:
            return None
        by_latent = latents[0].transpose(0, 1).to(self.model.dtype)  # t C h w
        return as_kept(depth_of(self.model.autoencoder, by_latent) if view is None else view.depth_of(by_latent))[None]

    def _write(self, memory: CompressedMemory, past: Past) -> None:
        view = None
        if past.last_step is not None:
            look(memory, past.poses, past.latents.shape[2])
            view = self._view(memory, past.poses, past.tone)
        write_together(self.model, [memory], [past], [self.text_context(past.prompt)], view)

    def _refresh_window(self) -> None:
        """After another prompt was set. In a copy, so that nothing has changed when it fails."""
        if self._window_prompt == self._prompt:
            return
        memory = self.model.new_memory()
        memory.load_state_dict(self._memory.state_dict())
        self._rewrite_window(memory, len(self._history), self._prompt)
        self._memory, self._window_prompt = memory, self._prompt

    def _rewrite_window(self, memory: CompressedMemory, until: int, prompt: str) -> None:
        """The chunks before `until` that are in the window, written again as if `prompt` had held; the start picture with them."""
        chunk, window = self.model.config.chunk, self.model.config.memory.window
        count = min(window // chunk, until)
        again = self._history[until - count : until]
        if count == until and 1 + count * chunk <= window:
            again = [self._history.start, *again]
        memory.forget_newest(sum(past.latents.shape[2] for past in again))
        for past in again:
            self._write(memory, replace(past, prompt=prompt))

    def _advance(self, past: Past, state: Any = None) -> Any:
        """The decoder's state after `past`, without the frames."""
        return self.model.autoencoder.advance(past.latents.to(self.model.dtype), state)

    def _decode(self, chunks: list[Past], state: Any, frame: np.ndarray) -> tuple[Any, np.ndarray]:
        """The decoder's state and the last frame after `chunks`, from those before them on."""
        for past in chunks[:-1]:
            state = self._advance(past, state)
        if not chunks:
            return state, frame
        video, state = self.model.autoencoder.decode_chunk(chunks[-1].latents.to(self.model.dtype), state)
        return state, self.model.to_frames(video)[-1]

    def _snapshot(self) -> Snapshot:
        return Snapshot(self._memory.state_dict(), self._decoder_state, frozenset(self._memory.recallable()), self.last_frame.copy())
