"""What ``worldmodel eval`` measures on one walk; definitions and calibration are in docs/evaluation.md."""

from __future__ import annotations

import cv2
import numpy as np

from distill import suite_features
from distill.action_following import measure_following
from distill.autoencoder import psnr
from distill.dataset import Clip
from distill.motion import rotation_errors
from distill.scenes import FPS

GAPS = (2, 5, 10, 20, 40, 60)
"""Seconds between two visits of one pose."""
SLACK = 4
"""Frames by which the time between two visits may differ from a gap."""
_MOST_PAIRS = 16  # of a gap in a walk, evenly chosen
_SAME_DEG, _SAME_STEPS = 0.1, 0.05  # two poses this close are one


def ssim(a: np.ndarray, b: np.ndarray) -> float:
    """Structural similarity of uint8 [H, W, 3], mean over pixels and channels (Wang et al. 2004: Gaussian window, sigma 1.5)."""
    x, y = a.astype(np.float64), b.astype(np.float64)

    def mean(z: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(z, (11, 11), 1.5, borderType=cv2.BORDER_REFLECT)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    return float(((2 * mx * my + c1) * (2 * cov + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean())


def same_poses(poses: np.ndarray, gap: int, step: float, slack: int = 0) -> list[tuple[int, int]]:
    """Pairs (t, t + gap +- slack) of frames of poses [T, 4, 4] whose camera is at one place, after having been elsewhere between.

    Frame 0 is given, not made, so it is no visit; and a walk under the opposite actions would begin there too.
    """
    turns, places = poses[:, :3, :3].astype(np.float64), poses[:, :3, 3].astype(np.float64)

    def same(i: np.ndarray, j: np.ndarray) -> np.ndarray:
        near = np.linalg.norm(places[i] - places[j], axis=1) < _SAME_STEPS * step
        # For two rotations |A - B|^2 = 8 sin^2(angle / 2).
        return near & (np.linalg.norm((turns[i] - turns[j]).reshape(-1, 9), axis=1) < 8**0.5 * np.sin(np.radians(_SAME_DEG) / 2))

    found = []
    for apart in range(max(1, gap - slack), gap + slack + 1):
        i = np.arange(1, max(1, len(poses) - apart))
        good = same(i, i + apart)
        good[good] = ~same(i[good], i[good] + apart // 2)
        found += [(int(t), int(t) + apart) for t in i[good]]
    return sorted(found)


def revisits(video: np.ndarray, clip: Clip) -> dict[str, list[float | None]]:
    """For each gap in seconds that the walk has: PSNR and SSIM to the video's own first visit, then to the truth; then the
    feature distance to each (None without the packages).

    In a static scene equal poses see equal things, so the whole picture was visible before and no mask is needed.
    """
    found = {}
    for gap in GAPS:
        pairs = same_poses(clip.camera_to_world, round(gap * FPS), clip.step, SLACK)
        if pairs:
            pairs = [pairs[k] for k in np.unique(np.linspace(0, len(pairs) - 1, _MOST_PAIRS).astype(int))]
            rows = [(*_likeness(video[i], video[j]), *_likeness(clip.frames[j], video[j])) for i, j in pairs]
            found[str(gap)] = [round(float(v), 4) for v in np.mean(rows, axis=0)] + _feature_distances(video, clip.frames, pairs)
    return found


def _likeness(a: np.ndarray, b: np.ndarray) -> tuple[float, float]:
    return float(psnr(a, b)), ssim(a, b)


def _feature_distances(video: np.ndarray, truth: np.ndarray, pairs: list[tuple[int, int]]) -> list[float | None]:
    if not suite_features.installed():
        return [None, None]
    first, second = ([p[k] for p in pairs] for k in (0, 1))
    return [round(float(suite_features.distance(a, video[second]).mean()), 4) for a in (video[first], truth[second])]


def colour_statistics(video: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of Y, Cr, Cb in each whole second of uint8 [T, H, W, 3] (frame 0 left out): [seconds, 6]"""
    rows = []
    for t in range(1, len(video) - round(FPS) + 1, round(FPS)):
        second = np.ascontiguousarray(video[t : t + round(FPS)])
        pixels = cv2.cvtColor(second.reshape(-1, second.shape[2], 3), cv2.COLOR_RGB2YCrCb).reshape(-1, 3)
        rows.append([*pixels.mean(0), *pixels.std(0)])
    return np.array(rows, dtype=np.float64).reshape(-1, 6)


def colour_drift(video: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Change of `colour_statistics` since the first second, less that of the truth: [seconds, 6] in grey levels"""
    ours, theirs = colour_statistics(video), colour_statistics(truth)
    return (ours - ours[:1]) - (theirs - theirs[:1])


def per_second(values: np.ndarray) -> list[float]:
    """Means of the whole seconds of values [T] that begin at frame 1"""
    n = round(FPS)
    return [round(float(values[t : t + n].mean()), 3) for t in range(0, len(values) - n + 1, n)]


def measure(video: np.ndarray, clip: Clip) -> dict:
    """The record of a video [T, H, W, 3] that should show the clip."""
    _, errors = rotation_errors(video, clip.actions, clip.intrinsics, clip.fps)
    return {
        "psnr": per_second(psnr(clip.frames[1:], video[1:])),
        "turns": [None if np.isnan(e) else round(float(e), 3) for e in errors],
        "drift": colour_drift(video, clip.frames).round(3).tolist(),
        "revisit": revisits(video, clip),
        "follow": measure_following(video, clip),
    }


def bootstrap(values: dict[int, list[float]], samples: int = 2000, seed: int = 0) -> list[float | None]:
    """Mean over scenes and its 95 % interval (percentiles of means over scenes drawn anew); `values` by scene.

    Returns:
        [mean, low, high]; low and high are None for a single scene.
    """
    scenes = np.array([np.mean(v) for _, v in sorted(values.items()) if len(v)], dtype=np.float64)
    if not len(scenes):
        return [None, None, None]
    mean = round(float(scenes.mean()), 3)
    if len(scenes) == 1:
        return [mean, None, None]
    drawn = scenes[np.random.default_rng(seed).integers(0, len(scenes), (samples, len(scenes)))].mean(1)
    return [mean, *(round(float(v), 3) for v in np.percentile(drawn, [2.5, 97.5]))]
