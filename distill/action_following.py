"""Action following: the camera's path and the held controls read from a video, against the true walk.

RELIC (arXiv 2512.04040, section 5) recovers the path from the video, aligns it to the scripted one by a similarity (Umeyama 1991) and
gives relative pose errors. Here `distill.inverse_dynamics` recovers it, window by window; docs/evaluation.md has formulas and calibration.
"""

from __future__ import annotations

import numpy as np

from distill.dataset import Clip
from distill.inverse_dynamics import WINDOW, load
from distill.motion import angle_deg
from distill.scenes import FPS
from worldmodel.actions import ACTION_NAMES, NUM_ACTIONS

SPAN = round(FPS) // WINDOW
"""Windows in the second over which a relative pose error is taken."""
_MOVED = 0.5  # steps: a path that keeps this close to its mean has no scale


def align(seen: np.ndarray, truth: np.ndarray) -> tuple[float, np.ndarray, np.ndarray]:
    """The similarity with ``truth ~ scale * rotation @ seen + translation`` in least squares (Umeyama 1991, equations 40 to 42).

    OpenCV's estimateAffine3D does the same, but refuses straight paths.

    Args:
        seen, truth: positions [N, 3]. Where either hardly moves there is no scale to find, and it is 1.

    Returns:
        (scale, rotation float64 [3, 3], translation float64 [3]).
    """
    x, y = seen - seen.mean(0), truth - truth.mean(0)
    if min(np.linalg.norm(p, axis=1).max() for p in (x, y)) < _MOVED:
        return 1.0, np.eye(3), truth[0] - seen[0]
    u, d, vt = np.linalg.svd(y.T @ x)
    sign = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation, scale = (u * sign) @ vt, float((d * sign).sum() / (x**2).sum())
    return scale, rotation, truth.mean(0) - scale * rotation @ seen.mean(0)


def trajectory(motions: np.ndarray) -> np.ndarray:
    """Poses [N + 1, 4, 4] from the identity on, of motions [N, 4, 4] (``C_{k+1} = C_k @ motion_k``)"""
    poses = [np.eye(4)]
    for motion in motions:
        poses.append(poses[-1] @ motion)
    return np.stack(poses)


def relative_errors(seen: np.ndarray, truth: np.ndarray, span: int = SPAN) -> tuple[np.ndarray, np.ndarray]:
    """Relative pose error over `span` poses: with ``D_i = C_i^-1 C_{i+span}``, degrees of ``D'_i^T D_i`` and ``|t'_i - t_i|``.

    Args:
        seen, truth: poses [N, 4, 4]; the seen translations have the scale of the truth.

    Returns:
        (degrees [N - span], distances [N - span]).
    """
    a, b = (np.linalg.inv(p[:-span]) @ p[span:] for p in (seen, truth))
    degrees = [angle_deg(x[:3, :3].T @ y[:3, :3]) for x, y in zip(a, b, strict=True)]
    return np.array(degrees), np.linalg.norm(a[:, :3, 3] - b[:, :3, 3], axis=1)


def held(actions: np.ndarray) -> np.ndarray:
    """Which controls are held in at least half of each window's frames: bool [N, 13] of actions [1 + N WINDOW + .., 13]"""
    windows = (len(actions) - 1) // WINDOW
    return (actions[1 : 1 + windows * WINDOW].reshape(windows, WINDOW, NUM_ACTIONS) > 0).mean(1) >= 0.5


def follow(motions: np.ndarray, pressed: np.ndarray, clip: Clip) -> dict:
    """What a walk's record holds of motions [N, 4, 4] (translation in steps) and pressed controls bool [N, 13] seen in its video.

    Lists by the window at which a second begins: `rotation` (degrees) and `translation` (steps); controls by window, `held` and
    `seen`, one bit each; `scale` and the root mean square distance `ate` (steps) of the aligned path.
    """
    truth = clip.camera_to_world[: len(motions) * WINDOW + 1 : WINDOW].astype(np.float64)
    truth[:, :3, 3] /= clip.step
    seen = trajectory(motions)
    scale, rotation, translation = align(seen[:, :3, 3], truth[:, :3, 3])
    away = truth[:, :3, 3] - (scale * seen[:, :3, 3] @ rotation.T + translation)
    seen[:, :3, 3] *= scale  # turning and shifting a whole path changes no relative pose
    degrees, steps = relative_errors(seen, truth)
    bits = 1 << np.arange(NUM_ACTIONS)
    return {
        "rotation": degrees.round(3).tolist(), "translation": steps.round(3).tolist(),
        "scale": round(scale, 3), "ate": round(float((away**2).sum(1).mean() ** 0.5), 3),
        "held": (held(clip.actions) @ bits).tolist(), "seen": (pressed @ bits).tolist(),
    }  # fmt: skip


def measure_following(video: np.ndarray, clip: Clip) -> dict:
    """The record of a video uint8 [T, H, W, 3] that should show the clip, as `follow` gives it."""
    motions, probabilities = load().read(video, clip.intrinsics)
    return follow(motions, probabilities > 0.5, clip)


# -- report ------------------------------------------------------------------------------------------------------------
def _bits(values: list[int]) -> np.ndarray:
    return (np.array(values, dtype=int)[:, None] >> np.arange(NUM_ACTIONS) & 1).astype(bool)


def f1(truth: np.ndarray, seen: np.ndarray) -> float | None:
    """``2 TP / (2 TP + FP + FN)`` of booleans of one shape; None where nothing is held and nothing seen"""
    total = int(truth.sum() + seen.sum())
    return 2 * float((truth & seen).sum()) / total if total else None


def summary(records: list[dict], bootstrap) -> dict:
    """A line's figures: each [mean, low, high] over scenes by `bootstrap`, which takes lists of numbers by scene; by action pooled."""

    def over_scenes(value) -> list[float | None]:
        by_scene: dict[int, list[float]] = {}
        for r in records:
            by_scene.setdefault(r["seed"], []).extend(value(r["follow"]))
        return bootstrap(by_scene)

    out: dict = {what: over_scenes(lambda f, what=what: f[what]) for what in ("rotation", "translation")}
    out["f1"] = over_scenes(lambda f: [v for v in [f1(_bits(f["held"]), _bits(f["seen"]))] if v is not None])
    out["accuracy"] = over_scenes(lambda f: [float(a == b) for a, b in zip(f["held"], f["seen"], strict=True)])
    out["scale"] = over_scenes(lambda f: [f["scale"]])
    out["ate"] = over_scenes(lambda f: [f["ate"]])
    seconds = max(-(-len(r["follow"]["held"]) // SPAN) for r in records)
    out["per second"] = [  # of the seconds that begin in this one
        [over_scenes(lambda f, s=s, what=what: f[what][s * SPAN : (s + 1) * SPAN]) for what in ("rotation", "translation")]
        for s in range(seconds)
        if any(len(r["follow"]["rotation"]) > s * SPAN for r in records)
    ]
    truth, seen = (np.concatenate([_bits(r["follow"][key]) for r in records]) for key in ("held", "seen"))
    out["per action"] = {}
    for i, name in enumerate(ACTION_NAMES):
        if not truth[:, i].any():
            continue
        errors: dict[str, list[float]] = {"rotation": [], "translation": []}
        for r in records:
            on = _bits(r["follow"]["held"])[:, i]
            for what, found in errors.items():  # seconds in which it is held throughout most windows
                found += [e for t, e in enumerate(r["follow"][what]) if on[t : t + SPAN].sum() > SPAN / 2]
        hits = int((truth[:, i] & seen[:, i]).sum())
        out["per action"][name] = {
            "windows": int(truth[:, i].sum()), "recall": round(hits / int(truth[:, i].sum()), 3),
            "precision": round(hits / int(seen[:, i].sum()), 3) if seen[:, i].any() else None,
            "f1": round(f1(truth[:, i], seen[:, i]), 3), **{k: round(float(np.mean(v)), 3) if v else None for k, v in errors.items()},
        }  # fmt: skip
    return out


def tables(lines: dict[str, dict], cell, table) -> list[str]:
    """Markdown of the lines' summaries: one table of lines, one of actions for the model; `cell` and `table` are the report's."""
    head = ["action following", "rotation RPE, °", "translation RPE, steps", "path error, steps", "scale"]
    head += ["controls, F1", "controls, accuracy"]
    rows = [[name, *(cell(f[k]) for k in ("rotation", "translation", "ate", "scale", "f1", "accuracy"))] for name, f in lines.items()]
    out = table(head, rows)
    head = ["model, by action held", "rotation RPE, °", "translation RPE, steps", "precision", "recall", "F1", "F1 of the truth"]
    of_truth = lines.get("truth", {}).get("per action", {})
    rows = [
        [name.replace("_", " "), *(cell([a[k], None, None]) for k in ("rotation", "translation", "precision", "recall", "f1")),
         cell([of_truth.get(name, {}).get("f1"), None, None])]
        for name, a in lines["model"]["per action"].items()
    ]  # fmt: skip
    return out + table(head, rows)
