"""``worldmodel eval --memories … --minutes 10``: whether a long stream stays as fast and as small as it began, and remembers.

A world is shown a turn to the left and most of the way back, then plays for minutes without looking there, and turns left again.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from distill.autoencoder import psnr
from distill.compare import identity
from distill.scenes import RESERVED_SEED, render
from distill.suite import SuiteError
from distill.suite_measures import ssim
from distill.suite_memories import show, start
from distill.suite_report import _table
from worldmodel.actions import parse_script
from worldmodel.model import WorldModel

SHOWN = "left*160 right*104"
MEANWHILE = "right*24 left*24 up*8 down*8"
PLAYED = "left*104"
MINUTE = 60
"""Seconds of a row."""
FIRST = 57
"""Frame of what was shown at which the camera was where it is in the first frame of what is played."""


def resident_bytes() -> int:
    """Of this process, now; where that cannot be read, the most there ever was."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def stream(model: WorldModel, memory: str, minutes: float, seed: int = RESERVED_SEED) -> dict:
    """By whole minute of `MEANWHILE`, which ends where it began: median milliseconds a chunk, of the clock and of all CPU threads, bytes
    and tokens of the memory, bytes of the process; and PSNR and SSIM to truth of the way to the left at the end, in thirds, the first of
    them next to what was in view."""
    clip = render(seed, SHOWN, size=model.size)
    world = start(model, memory, clip)
    frames = len(parse_script(SHOWN))
    show(world, clip, frames)
    n, loop = model.chunk_frames, parse_script(MEANWHILE)
    if len(loop) % n or frames % n:
        raise SuiteError(f"The stream is measured in chunks that divide {np.gcd(len(loop), frames)} frames, the model's have {n}.")
    chunks = round(MINUTE * model.fps / n)
    rows = []
    for minute in range(1, 1 + round(minutes)):
        took, busy = [], []
        for k in tqdm(range(chunks), desc=f"{memory}, minute {minute}", unit="chunk", leave=False):
            at = ((minute - 1) * chunks + k) * n % len(loop)
            started, began = time.perf_counter(), time.process_time()
            world.step(loop[at : at + n])
            took.append(1000 * (time.perf_counter() - started))
            busy.append(1000 * (time.process_time() - began))
        ms = (round(float(np.median(x)), 1) for x in (took, busy))
        rows.append([minute, *ms, world.memory_bytes, world.memory_tokens, resident_bytes()])
    video = np.concatenate([c.frames for c in world.stream(PLAYED)])
    truth = clip.frames[FIRST : FIRST + len(video)]
    thirds = np.array_split(np.arange(len(video)), 3)
    revisit = [[float(psnr(truth[t], video[t]).mean()), float(np.mean([ssim(truth[i], video[i]) for i in t]))] for t in thirds]
    return {"minutes": rows, "revisit": np.round(revisit, 3).tolist()}


def evaluate(model: WorldModel, folder: str, memories: list[str], minutes: float, out: Path) -> dict:
    """Stream with each memory, one after the other, and write stream.json and stream.md into `out`."""
    out.mkdir(parents=True, exist_ok=True)
    results = {"model": folder, "identity": identity(model), "steps": model.config.sampler.steps}
    results["memories"] = {memory: stream(model, memory, minutes) for memory in memories}
    (out / "stream.json").write_text(json.dumps(results, indent=1) + "\n")
    (out / "stream.md").write_text(markdown(results))
    return results


def markdown(results: dict) -> str:
    rows = []
    for name, found in results["memories"].items():
        first, last = found["minutes"][0], found["minutes"][-1]
        for m in (first, last):
            sizes = [f"{m[3] / 2**20:.1f}", str(m[4]), f"{m[5] / 2**20:.0f}"]
            rows.append([f"{name}, minute {m[0]}", f"{m[1]:.1f}", f"{m[2]:.1f}", *sizes, "–", "–"])
        change = [f"{100 * (last[i] / first[i] - 1):+.1f} %" for i in range(1, 6)]
        came_back = (" / ".join(f"{third[i]:{form}}" for third in found["revisit"]) for i, form in enumerate((".1f", ".2f")))
        rows.append([f"{name}, change", *change, *came_back])
    head = ["memory", "ms a chunk", "CPU ms", "memory, MiB", "tokens", "process, MiB", "revisit: PSNR to truth, in thirds", "SSIM"]
    title = f"Model `{results['model']}` (`{results['identity']}`), {results['steps']} denoising steps."
    return "\n".join([title, "", *_table(head, rows)])
