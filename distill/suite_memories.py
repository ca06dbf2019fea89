"""``worldmodel eval --memories``: one model with different memories, in worlds that training never saw.

A memory is tested apart from the model's invention: a world is *shown* a true walk (its frames go through the autoencoder into
the memory), and then plays the way back on its own, past what it was shown. One walk more is played from the start picture alone.
All memories see the same weights, worlds, noise and keys. Every walk goes into walks.jsonl as it is done, so the same command goes
on where it stopped; what a chunk costs is measured at the end, with nothing beside it.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from distill.autoencoder import to_video
from distill.compare import identity, read_records
from distill.dataset import Clip
from distill.scenes import FPS, RESERVED_SEED, render
from distill.suite import SuiteError
from distill.suite_measures import revisits
from worldmodel.actions import Action, parse_script
from worldmodel.camera import integrate
from worldmodel.chunk import Past, as_kept
from worldmodel.configs import MEMORY_NAMES
from worldmodel.model import WorldModel
from worldmodel.world import World

VERSION = 1  # counts up when a walk or a measure changes
ROUNDS = 4  # of the memories in turn, for what a chunk costs
ROUND_CHUNKS = 8
SHEET_SCENES = 3


@dataclass(frozen=True)
class Walk:
    """A script whose first part is shown and whose second is played, and the gaps in seconds that it is read at."""

    shown: str
    played: str
    gaps: tuple[int, ...]
    every: int = 1  # walked in every so-manieth scene only

    def clip(self, seed: int, size: tuple[int, int]) -> Clip:
        return render(seed, f"{self.shown} {self.played}", size=size)


WALKS = {
    "turn back": Walk("left*216", "right*160", (2, 5, 10, 20)),  # up to where the start picture begins
    "walk back": Walk("w*80", "s*80", (2, 5, 10), every=8),
    "40 s later": Walk("left*160 right*104 " + "up*8 down*8 " * 27, "left*104", (40,), every=8),
    "on its own": Walk("", "left*136 right*80", (2, 5, 10), every=8),
}


NEAR = "/near"
"""After a memory's name: attention reads all of it, but the camera view chooses its pictures in the window."""


def parse_memory(text: str) -> tuple[str, int | None]:
    """``visible``, ``visible:640`` or ``relic/near`` -> name and budget of tokens besides the window"""
    name, _, budget = text.removesuffix(NEAR).partition(":")
    if name not in MEMORY_NAMES:
        raise SuiteError(f"There is no memory {name!r}; there are {', '.join(MEMORY_NAMES)}.")
    if not budget:
        return name, None
    if name not in ("visible", "retrieval") or not budget.isdigit():
        raise SuiteError(f"A budget is a number of tokens of 'visible' or 'retrieval', like visible:640; got {text!r}.")
    return name, int(budget)


def with_memory(model: WorldModel, text: str) -> WorldModel:
    name, budget = parse_memory(text)
    config = model.config.memory.named(name)
    return model.with_memory(config if budget is None else replace(config, budget=budget))


def start(model: WorldModel, memory: str, clip: Clip) -> World:
    """A world at the clip's first frame with the memory of that name; it keeps nothing to go back to."""
    world = with_memory(model, memory).start(clip.frames[0], clip.caption, seed=0, history=0)
    if memory.endswith(NEAR):
        everything, window = world.memory.remembered, world.memory.config.window
        world.memory.remembered = lambda: everything()[-window:]
    return world


@torch.no_grad()
def show(world: World, clip: Clip, frames: int) -> None:
    """Put the clip's frames 1..`frames` into a world as if it had made them; they go through the autoencoder into the memory."""
    model, n = world.model, world.model.chunk_frames
    if frames % n:
        raise SuiteError(f"What is shown is whole chunks of {n} frames, got {frames} frames.")
    latents = model.autoencoder.encode(to_video(clip.frames[None, : frames + 1]).to(model.device, model.dtype))
    latents = as_kept(latents[:, :, 1:])
    for first, piece in zip(range(1, frames + 1, n), latents.split(model.config.chunk, dim=2), strict=True):
        rows = slice(first, first + n)
        state = model.autoencoder.advance(piece.to(model.dtype), world.decoder_state)
        poses = integrate(clip.actions[rows], start=world.pose)
        world.accept(Past(piece.clone(), clip.actions[rows], poses, world.prompt), clip.frames[rows], state)
        world.finalize()


def play(model: WorldModel, memory: str, walk: Walk, clip: Clip) -> tuple[np.ndarray, World]:
    """The video uint8 [T, H, W, 3] of a walk, what was shown and then what was played, and the world at its end."""
    world = start(model, memory, clip)
    shown = len(parse_script(walk.shown)) if walk.shown else 0
    if shown:
        show(world, clip, shown)
    frames = [clip.frames[: 1 + shown]] if shown else [world.first_frame[None]]
    frames += [chunk.frames for chunk in world.stream([Action.from_vector(a) for a in clip.actions[1 + shown :]])]
    return np.concatenate(frames)[: len(clip)], world


# -- walks -----------------------------------------------------------------------------------------------------------------
_worker: dict = {}


def _start_worker(folder: str, steps: int, threads: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's: it lets the walks that are being played end
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    _worker["model"] = WorldModel.from_pretrained(folder).with_steps(steps)


def _end_with_parent() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os._exit(1)


@lru_cache(maxsize=1)
def _clip(walk: str, seed: int, size: tuple[int, int]) -> Clip:
    """Of one walk; the next memory walks the same"""
    return WALKS[walk].clip(seed, size)


def _one_walk(task: dict, model: WorldModel | None = None) -> dict:
    """The record of one memory on one walk in one world; without a model, the process' own."""
    model, walk = model or _worker["model"], WALKS[task["walk"]]
    clip = _clip(task["walk"], task["seed"], model.size)
    video, world = play(model, task["memory"], walk, clip)
    found = revisits(video, clip)
    record = {k: task[k] for k in ("key", "memory", "walk", "seed")}
    record["revisit"] = {str(g): found[str(g)] for g in walk.gaps if str(g) in found}
    if walk.shown:  # the first visit was the truth
        for values in record["revisit"].values():
            values[0] = values[1] = values[4] = None
    record |= {"tokens": world.memory_tokens, "bytes": world.memory_bytes}
    if task["strip"]:
        at = np.linspace(0, len(clip) - 1, 8).astype(int)
        path = Path(task["strip"])
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate([np.concatenate([v[t] for t in at], axis=1) for v in (clip.frames, video)])).save(path)
    return record


def strip_path(out: Path, memory: str, walk: str, seed: int) -> Path:
    return out / "strips" / f"{memory}-{walk}-{seed}.png".replace(":", "-").replace("/", "-").replace(" ", "-")


def tasks(model: WorldModel, memories: list[str], scenes: int, out: Path) -> list[dict]:
    """One for every walk, scene and memory."""
    found = []
    for walk, script in WALKS.items():
        for seed in range(RESERVED_SEED, RESERVED_SEED + scenes):
            if (seed - RESERVED_SEED) % script.every:
                continue
            for memory in memories:
                what = (VERSION, identity(model), model.config.sampler.steps, seed, walk, script.shown, script.played, memory)
                key = hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]
                strip = str(strip_path(out, memory, walk, seed)) if seed < RESERVED_SEED + SHEET_SCENES else ""
                found.append({"key": key, "memory": memory, "walk": walk, "seed": seed, "strip": strip})
    return found


def run(model: WorldModel, folder: str, memories: list[str], scenes: int, jobs: int, out: Path) -> list[dict]:
    """Records of all walks, those that `out` has already among them."""
    out.mkdir(parents=True, exist_ok=True)
    path = out / "walks.jsonl"
    known = read_records(path)
    todo = tasks(model, memories, scenes, out)
    missing = [t for t in todo if t["key"] not in known]
    with tqdm(total=len(todo), initial=len(todo) - len(missing), unit="walk", desc="memories") as bar:
        for record in _records(model, folder, missing, min(jobs, len(missing))):
            known[record["key"]] = record
            with path.open("a") as file:
                file.write(json.dumps(record) + "\n")
            bar.update()
    return [known[t["key"]] for t in todo]


def _records(model: WorldModel, folder: str, missing: list[dict], jobs: int) -> Iterator[dict]:
    if jobs < 2:
        yield from (_one_walk(task, model) for task in missing)
        return
    threads = max(1, torch.get_num_threads() // jobs)
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _start_worker, (folder, model.config.sampler.steps, threads))
    try:
        for done in as_completed([pool.submit(_one_walk, task) for task in missing]):
            yield done.result()
    finally:
        pool.shutdown(cancel_futures=True)


# -- costs -----------------------------------------------------------------------------------------------------------------
def costs(model: WorldModel, memories: list[str]) -> dict[str, dict]:
    """Milliseconds a chunk, tokens and bytes of each memory after a long walk, the memories taking turns."""
    walk = WALKS["40 s later"]
    clip = walk.clip(RESERVED_SEED, model.size)
    shown = len(parse_script(walk.shown)) // model.chunk_frames * model.chunk_frames
    worlds = {}
    for memory in tqdm(memories, desc="costs", unit="memory"):
        worlds[memory] = start(model, memory, clip)
        show(worlds[memory], clip, shown)
    took: dict[str, list[float]] = {m: [] for m in memories}
    for _ in range(ROUNDS):
        for memory, world in worlds.items():
            for _ in range(ROUND_CHUNKS):
                started = time.perf_counter()
                world.step("left*4")
                took[memory].append(1000 * (time.perf_counter() - started))
    return {
        m: {"ms": round(float(np.median(took[m])), 1), "tokens": w.memory_tokens, "bytes": w.memory_bytes, "seconds": w.seconds}
        for m, w in worlds.items()
    }


def evaluate(model: WorldModel, folder: str, memories: list[str], scenes: int, jobs: int, out: Path) -> dict:
    """Measure the memories and write results.json, table.md, pareto.png and sheet.png into `out`."""
    from distill.suite_memories_report import markdown, pareto, sheet, summary

    for memory in memories:
        with_memory(model, memory)  # refuses a wrong one before anything is played
    if "window" not in memories:
        memories = ["window", *memories]
    records = run(model, folder, memories, scenes, jobs, out)
    results = {
        "model": folder, "identity": identity(model), "steps": model.config.sampler.steps, "scenes": scenes, "fps": FPS,
        "threads": torch.get_num_threads(), "walks": {name: [w.shown, w.played] for name, w in WALKS.items()},
        "memories": summary(records, memories),
        "costs": costs(model, memories),
    }  # fmt: skip
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "table.md").write_text(markdown(results))
    pareto(results, out / "pareto.png")
    sheet(records, memories, out)
    return results
