"""Several worlds of one model stepped as one batch. One world alone is a batch of one.

Linear layers, cross-attention, the camera view and the decoder take all worlds at once; self-attention takes each world's memory as it
is, since memories differ in length (`bench` has what padding them to one length costs). Sums come out in another order than alone,
so frames equal those of stepping alone within a grey level, not bit for bit.

Nothing of a world has changed when `generate_together` fails, so it can be tried again with fewer worlds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from worldmodel.actions import Action
from worldmodel.camera import pose_code
from worldmodel.camera_view import CameraView
from worldmodel.chunk import Chunk, LastStep, Past, as_kept
from worldmodel.memory import CompressedMemory, together
from worldmodel.sampling import denoise_and_keep
from worldmodel.world_file import pack

if TYPE_CHECKING:
    from worldmodel.model import WorldModel
    from worldmodel.world import World

Text = list[tuple[Tensor, Tensor]]


def step_together(worlds: Sequence[World], actions: Sequence[Action | Iterable[Action] | np.ndarray | str]) -> list[Chunk]:
    """The next chunk of every world, each under its own actions; as `World.step`."""
    chunks = generate_together(worlds, actions)
    started = time.perf_counter()
    finalize_together(worlds)
    for chunk in chunks:
        chunk.timings["memory"] = 1000 * (time.perf_counter() - started)
    return chunks


@torch.no_grad()
def generate_together(
    worlds: Sequence[World], actions: Sequence[Action | Iterable[Action] | np.ndarray | str], late: bool = False
) -> list[Chunk]:
    """Make every world's next frames; memories are written by the next `finalize_together`, or by each world itself.

    Where frames are decoded beside other work (`RuntimeConfig.overlap`), `late` leaves waiting for them to who reads them.
    """
    model = _model_of(worlds)
    finalize_together(worlds)
    clock = [time.perf_counter()]
    plans = [world.plan(wanted) for world, wanted in zip(worlds, actions, strict=True)]
    camera = encode_camera(model, [p.actions for p in plans], [p.poses for p in plans])
    memory, text = together([world.memory for world in worlds]), _join_text([p.text for p in plans])
    view = _join_views([p.view for p in plans])
    clock.append(time.perf_counter())
    reuse = model.runtime.context == "last_step"
    latents, last = denoise_and_keep(
        model.transformer, torch.cat([p.noise for p in plans]), text, camera, memory, model.config.sampler,
        [p.generator for p in plans], view, keep=reuse,
    )  # fmt: skip
    remembered = as_kept(latents)
    latents = remembered.to(model.dtype)
    clock.append(time.perf_counter())
    with decode_stream(model) as stream:
        decoded = decode_together(model, latents, [world.decoder_state for world in worlds])
    laid = reuse or model.runtime.overlap
    if laid and not reuse:
        of_each = zip(remembered.split(1), worlds, plans, strict=True)
        pasts = [Past(own, p.actions, p.poses, world.prompt) for own, world, p in of_each]
        write_together(model, [world.memory for world in worlds], pasts, [p.text for p in plans], commit=False)
    with stream:
        pixels = [model.to_pixels(video) for video, _ in decoded]
        frames = [on_their_way(x) if late and model.runtime.overlap else x.cpu().numpy() for x in pixels]
    chunks = []
    for i, (world, plan) in enumerate(zip(worlds, plans, strict=True)):
        own = Past(remembered[i : i + 1].clone(), plan.actions, plan.poses, world.prompt, last_step=last.row(i) if reuse else None)
        chunks.append(world.accept(own, frames[i], decoded[i][1], plan.view, laid))
    clock.append(time.perf_counter())
    for chunk in chunks:
        chunk.timings.update(zip(("prepare", "denoise", "decode"), (1000 * float(d) for d in np.diff(clock)), strict=True))
    return chunks


@torch.no_grad()
def finalize_together(worlds: Sequence[World]) -> None:
    """Write every world's last chunk into its memory, where that is still to be done: by the clean-context pass, or from what `generate`
    has laid there.
    """
    due = [world for world in worlds if world.pending is not None]
    unwritten = [world for world in due if world.memory.count == world.latents_finalized]
    if passing := [world for world in unwritten if not world.laid]:
        texts = [world.text_context(world.pending.prompt) for world in passing]
        write_together(_model_of(worlds), [world.memory for world in passing], [world.pending for world in passing], texts)
    for world in unwritten:
        if world.laid:
            world.memory.commit(world.pending.latents.shape[2])
    for world in due:
        world.settle()


@torch.no_grad()
def write_together(
    model: WorldModel, memories: Sequence[CompressedMemory], pasts: Sequence[Past], texts: Sequence[Text], view: CameraView | None = None,
    commit: bool = True,
) -> None:  # fmt: skip
    """Write one chunk each by a pass over its finished latents, the clean-context pass; or, where a chunk has one, over what its last
    denoising step was given, with the `view` that it had. Without `commit` it does not count yet.
    """
    for memory, past in zip(memories, pasts, strict=True):
        look(memory, past.poses, past.latents.shape[2])
    given = [past.last_step or LastStep(past.latents, 0.0) for past in pasts]
    model.transformer(
        torch.cat([g.latents for g in given]).to(model.dtype),
        torch.tensor([g.timestep for g in given], device=model.device),
        _join_text(texts),
        camera=encode_camera(model, [past.actions for past in pasts], [past.poses for past in pasts]),
        memory=together(memories),
        view=view,
        write=commit,
        keep=True,
    )


@contextmanager
def decode_stream(model: WorldModel) -> Iterator[Any]:
    """Where frames are decoded: on a CUDA stream of their own if `RuntimeConfig.overlap` says so. Gives a context to fetch them in."""
    if not (model.runtime.overlap and model.device.type == "cuda"):
        yield nullcontext()
        return
    stream = _decode_stream(model.device)
    stream.wait_stream(torch.cuda.current_stream(model.device))
    with torch.cuda.stream(stream):
        yield torch.cuda.stream(stream)


@lru_cache
def _decode_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all chunks: the allocator keeps freed memory by stream, so a new one each time would hold the decoder's room many times."""
    return torch.cuda.Stream(device)


def decode_together(model: WorldModel, latents: Tensor, states: Sequence[Any]) -> list[tuple[Tensor, Any]]:
    """Video [1, 3, F, H, W] and the new decoder state of each of latents [B, C, t, h, w]."""
    if latents.is_cuda:  # what another stream made keeps its room until this one is done with it
        for x in (latents, *(x for state in states for x in pack(state).values() if x.is_cuda)):
            x.record_stream(torch.cuda.current_stream(x.device))
    if len(states) > 1 and all(isinstance(state, Tensor) for state in states):
        video, state = model.autoencoder.decode_chunk(latents, torch.cat(list(states)))
        return list(zip(video.split(1), (x.clone() for x in state.split(1)), strict=True))
    return [model.autoencoder.decode_chunk(own, state) for own, state in zip(latents.split(1), states, strict=True)]


def on_their_way(pixels: Tensor) -> Callable[[], np.ndarray]:
    """Start to fetch pixels from the device; the call waits for them. What was queued on this stream before is done then."""
    if not pixels.is_cuda:
        return pixels.numpy
    host = torch.empty(pixels.shape, dtype=pixels.dtype, pin_memory=True)
    host.copy_(pixels, non_blocking=True)
    there = torch.cuda.Event()
    there.record()

    def fetch() -> np.ndarray:
        there.synchronize()
        return host.numpy().copy()  # room that is pinned is scarce

    return fetch


def encode_camera(model: WorldModel, actions: Sequence[np.ndarray], poses: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Action and pose codes [B, t, camera_dim] of actions [F, 13] and poses [F, 4, 4] of each world."""
    to = dict(device=model.device, dtype=model.dtype)
    codes = np.stack([pose_code(p) for p in poses])
    return model.transformer.encode_camera(torch.from_numpy(np.stack(actions)).to(**to), torch.from_numpy(codes).to(**to))


def look(memory: CompressedMemory, poses: np.ndarray, latents: int) -> None:
    """Tell the memory where the camera is in the chunk that comes next, poses [F, 4, 4]."""
    stride = len(poses) // latents
    memory.look(torch.from_numpy(pose_code(poses[stride - 1 :: stride]))[None])


def _model_of(worlds: Sequence[World]) -> WorldModel:
    if len({id(world) for world in worlds}) != len(worlds):
        raise ValueError("A world is stepped once at a time; it is in this batch twice.")
    models = {id(world.model): world.model for world in worlds}
    if len(models) != 1:
        raise ValueError(f"Worlds that are stepped together have one model; these have {len(models)}.")
    return worlds[0].model


def _join_text(texts: Sequence[Text]) -> Text:
    if len(texts) == 1:
        return texts[0]
    return [tuple(torch.cat(x) for x in zip(*layer, strict=True)) for layer in zip(*texts, strict=True)]


def _join_views(views: Sequence[CameraView | None]) -> CameraView | None:
    return views[0] if len(views) == 1 or views[0] is None else CameraView.together(views)
