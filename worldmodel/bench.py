"""How fast a model is here: milliseconds per stage, frames a second and memory, with little and with much history."""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from worldmodel.actions import Action
from worldmodel.batch import step_together
from worldmodel.model import WorldModel
from worldmodel.world import World

_KEYS = ({"KeyW"}, {"ArrowLeft"}, {"KeyW", "ArrowRight"}, {"KeyD"}, set())


@dataclass(frozen=True)
class Row:
    """Medians over the chunks measured, in milliseconds a chunk, after `seconds` of history."""

    seconds: float
    denoise: float
    memory: float
    decode: float
    encode: float
    total: float
    total_p95: float
    fps: float
    key_to_frame_p95: float
    tokens: int
    memory_mb: float


def fast_forward(world: World, seconds: float) -> None:
    """Give a world history without denoising it: its last latents are written into the memory again and again."""
    model = world.model
    chunks = int(seconds * model.fps / model.chunk_frames) - world.index
    for _ in range(max(0, chunks)):
        world.generate_from(world.last_latents, Action.idle())
        world.finalize()


def encode_jpeg(frames: np.ndarray) -> int:
    """What a server does with a chunk; returns bytes."""
    try:
        import simplejpeg

        return sum(len(simplejpeg.encode_jpeg(f, quality=85)) for f in frames)
    except ImportError:
        from PIL import Image

        total = 0
        for frame in frames:
            buffer = io.BytesIO()
            Image.fromarray(frame).save(buffer, "JPEG", quality=85)
            total += buffer.tell()
        return total


def _world(model: WorldModel, i: int = 0) -> World:
    """The i-th gallery world, or one from noise."""
    if model.gallery:
        place = model.gallery[i % len(model.gallery)]
        return model.start(place.image_path, place.prompt, seed=i)
    height, width = model.size
    return model.start(np.random.default_rng(i).integers(0, 255, (height, width, 3), dtype=np.uint8), seed=i)


def measure(model: WorldModel, seconds: float, chunks: int = 24, warmup: int = 4, progress: Callable[[str], None] = lambda _: None) -> Row:
    """One row of the table: `chunks` chunks after `seconds` of history."""
    world = _world(model)
    progress(f"filling {seconds:g} s of history")
    fast_forward(world, seconds)
    rows: list[tuple[float, ...]] = []
    for i in range(warmup + chunks):
        started = time.perf_counter()
        chunk = world.generate(Action.from_keys(_KEYS[i % len(_KEYS)]))
        made = time.perf_counter()
        encode_jpeg(chunk.frames)
        encoded = time.perf_counter()
        world.finalize()
        done = time.perf_counter()
        if i >= warmup:
            t = chunk.timings
            rows.append((t["prepare"] + t["denoise"], done - encoded, t["decode"], encoded - made, done - started, encoded - started))
    denoise, memory, decode, encode, total, visible = (list(column) for column in zip(*rows, strict=True))
    ms = [1000 * statistics.median(x) for x in (memory, encode, total)]
    return Row(
        seconds, statistics.median(denoise), ms[0], statistics.median(decode), ms[1], ms[2], 1000 * float(np.percentile(total, 95)),
        model.chunk_frames / statistics.median(total), 1000 * key_to_frame(model, statistics.median(total), visible),
        world.memory_tokens, world.memory_bytes / 2**20,
    )  # fmt: skip


def key_to_frame(model: WorldModel, total: float, visible: Sequence[float]) -> float:
    """95th percentile of the seconds from a key to its first frame, of chunks that take `total` seconds and are `visible` so soon.

    A key falls anywhere in the playing of a chunk; it is read when the next chunk starts, and seen when that is encoded.
    """
    play = model.chunk_frames / model.fps
    wait = np.random.default_rng(1).uniform(0, max(play, total), 10_000)
    return float(np.percentile(wait + np.resize(visible, 10_000), 95))


@dataclass(frozen=True)
class TogetherRow:
    """`worlds` worlds stepped as one batch and one after the other: medians in ms for a chunk of every world, and all their frames/s."""

    worlds: int
    in_turn: float
    together: float
    denoise: float
    memory: float
    decode: float
    fps_in_turn: float
    fps: float


def measure_together(
    model: WorldModel, counts: Sequence[int], seconds: float = 20.0, chunks: int = 12, warmup: int = 2,
    progress: Callable[[str], None] = lambda _: None,
) -> list[TogetherRow]:  # fmt: skip
    """Worlds with 0 to `seconds` of history, evenly spread. Both ways in turns on the same worlds, so that what else the machine
    does hits both alike.
    """
    worlds: list[World] = []
    for i in range(max(counts)):
        progress(f"world {i + 1} of {max(counts)}")
        worlds.append(_world(model, i))
        fast_forward(worlds[-1], seconds * (i + 1) / max(counts))
    rows = []
    for count in counts:
        progress(f"{count} worlds together")
        times: list[tuple[float, ...]] = []
        chosen = [worlds[k * len(worlds) // count] for k in range(count)]
        for i in range(warmup + chunks):
            actions = [Action.from_keys(_KEYS[(i + k) % len(_KEYS)]) for k in range(count)]
            started = time.perf_counter()
            for world, action in zip(chosen, actions, strict=True):
                world.step(action)
            middle = time.perf_counter()
            t = step_together(chosen, actions)[0].timings
            if i >= warmup:
                done = 1000 * (time.perf_counter() - middle)
                times.append((1000 * (middle - started), done, t["prepare"] + t["denoise"], t["memory"], t["decode"]))
        in_turn, together, *stages = (statistics.median(column) for column in zip(*times, strict=True))
        frames = 1000 * count * model.chunk_frames
        rows.append(TogetherRow(count, in_turn, together, *stages, frames / in_turn, frames / together))
    return rows


def together_table(rows: list[TogetherRow]) -> str:
    """Markdown."""
    head = "| worlds | in turn ms | together ms | denoise | memory | decode | frames/s in turn | frames/s together | gain |"
    lines = [head, "|" + " ---: |" * (head.count("|") - 1)]
    for r in rows:
        cells = [str(r.worlds), *(f"{x:.1f}" for x in (r.in_turn, r.together, r.denoise, r.memory, r.decode, r.fps_in_turn, r.fps))]
        lines.append("| " + " | ".join([*cells, f"{r.fps / r.fps_in_turn:.2f}x"]) + " |")
    return "\n".join(lines)


def table(rows: list[Row]) -> str:
    """Markdown."""
    head = "| history s | denoise | memory | decode | encode | chunk ms | p95 | frames/s | key to frame p95 | tokens | memory MiB |"
    lines = [head, "|" + " ---: |" * (head.count("|") - 1)]
    for r in rows:
        cells = [f"{r.seconds:g}", *(f"{x:.1f}" for x in (r.denoise, r.memory, r.decode, r.encode, r.total, r.total_p95, r.fps))]
        lines.append("| " + " | ".join([*cells, f"{r.key_to_frame_p95:.0f}", str(r.tokens), f"{r.memory_mb:.1f}"]) + " |")
    return "\n".join(lines)


def report(model: WorldModel, rows: list[Row] | list[TogetherRow]) -> dict:
    """Everything measured, for JSON."""
    return {
        "model": model.fingerprint, "device": str(model.device), "threads": torch.get_num_threads(), "size": model.size,
        "denoising_steps": model.config.sampler.steps, "rows": [asdict(r) for r in rows],
    }  # fmt: skip
