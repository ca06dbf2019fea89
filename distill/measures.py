"""What `distill.compare` measures on one walk, and how the walks of a line become a row of its table."""

from __future__ import annotations

import numpy as np

from distill.autoencoder import psnr
from distill.dataset import Clip
from distill.evaluate import standard_error
from distill.motion import rotation_errors
from distill.scenes import FPS

MOMENTS = (1, 5, 10, 20)
"""Seconds; each stands for the second before it."""


def window(second: int, frames: int) -> slice:
    """The frames of the second that ends at `second`, in a video of 1 + 16 a second; the last one where it is shorter."""
    end = min(round(second * FPS), frames - 1)
    return slice(max(1, end - round(FPS) + 1), end + 1)


def moments(frames: int) -> list[int]:
    """Those of `MOMENTS` that the video reaches."""
    return [m for m in MOMENTS if m * FPS <= frames - 1]


def gradient_energy(frames: np.ndarray) -> float:
    """Mean of ``(dI/dx)^2 + (dI/dy)^2`` of grey uint8 [T, H, W, 3]"""
    grey = frames.astype(np.float32).mean(-1)
    return float((np.diff(grey, axis=1) ** 2).mean() + (np.diff(grey, axis=2) ** 2).mean())


def measure(video: np.ndarray, clip: Clip) -> dict:
    """PSNR and gradient energy per moment, and rotation errors, of a video [T, H, W, 3] that should show the clip."""
    at = moments(len(clip))
    ends, errors = rotation_errors(video, clip.actions, clip.intrinsics, clip.fps)
    return {
        "psnr": [float(psnr(clip.frames[w], video[w]).mean()) for w in (window(m, len(clip)) for m in at)],
        "energy": [gradient_energy(video[window(m, len(clip))]) for m in at],
        "truth_energy": [gradient_energy(clip.frames[window(m, len(clip))]) for m in at],
        "turns": [[int(t), None if np.isnan(e) else round(float(e), 3)] for t, e in zip(ends, errors, strict=True)],
    }


def mean_and_error(values: list[float]) -> list[float | None]:
    """Mean and its standard error (None for a single value), for JSON"""
    error = standard_error(np.array(values))
    return [round(float(np.mean(values)), 2), None if np.isnan(error) else round(error, 2)]


def summary(label: str, steps: int | None, records: list[dict], frames: int) -> dict:
    """One row of the table from the records of a line on the walks of a set; `frames` of each walk."""
    names = [f"{m} s" for m in moments(frames)]
    turns = [(end, np.nan if error is None else error) for r in records for end, error in r["turns"]]
    ends, errors = np.array([t for t, _ in turns]), np.array([e for _, e in turns], dtype=float)
    seconds = (frames - 1) / FPS
    spans = {"first 5 s": ends <= 5 * FPS, "last 5 s": ends > (seconds - 5) * FPS, "all": ends > 0}
    row: dict = {"label": label, "steps": steps, "model": records[0]["model"], "walks": len(records)}
    row["psnr"] = {name: mean_and_error([r["psnr"][i] for r in records]) for i, name in enumerate(names)}
    row["action error"] = {span: _median(errors[inside]) for span, inside in spans.items()}
    row["no estimate"] = {span: round(float(np.isnan(errors[i]).mean()), 3) if i.any() else None for span, i in spans.items()}
    second = (ends - 1) // FPS
    row["action error per second"] = [_median(errors[second == s]) for s in range(round(seconds))]
    sums = {which: np.sum([r[which] for r in records], axis=0) for which in ("energy", "truth_energy")}
    row["sharpness"] = {name: round(float(a / b), 3) for name, a, b in zip(names, sums["energy"], sums["truth_energy"], strict=True)}
    if steps is not None:
        row["revisit"] = mean_and_error([r["revisit"] for r in records])
        chunk_ms = float(np.median([ms for r in records for ms in r["chunk_ms"]]))
        row["frames per second"] = round(1000 * records[0]["chunk_frames"] / chunk_ms, 1)
        row |= {many: sorted({r[one] for r in records}) for many, one in (("threads", "threads"), ("runs", "run"), ("devices", "device"))}
    return row


def _median(errors: np.ndarray) -> float | None:
    errors = errors[np.isfinite(errors)]
    return round(float(np.median(errors)), 2) if len(errors) else None
