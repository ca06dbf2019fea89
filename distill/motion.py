"""How the camera moved, read from the pictures alone, and how far that is from what was asked for.

Corners are tracked over a quarter of a second (Lucas-Kanade, there and back). Where one rotation explains most tracks it is
the answer (RANSAC over pairs of viewing rays, then Kabsch); otherwise nearby things moved against far ones, and the rotation
comes from the essential matrix. Nothing but the pictures and the intrinsics enters the estimate.
"""

from __future__ import annotations

import cv2
import numpy as np

from worldmodel.camera import motion_from_actions

GAP = 4  # frames between the two pictures of an estimate
TURNING_DEG = 2.5  # a window turns if at least this much is commanded over it; one key held throughout is 5 degrees
_SIZE = 128  # pixels of the longer side at which corners are tracked; the thresholds below are for it
_MIN_TRACKS = 12
_VISIBLE = 8e-5  # least eigenvalue (cv2.cornerMinEigenVal) of a corner; squares four grey levels apart have this much
_MIN_KEPT = 0.25  # share of the corners that must be found again
_RAY = 1 / 90  # radians: an inlier of a rotation, about a pixel
_PIXEL = 0.5  # an inlier of an essential matrix
_PURE = 0.8  # share of the tracks that one rotation explains where the camera only turned
_MIN_SHARE = 0.5  # share of the tracks that the answer has to explain


def seen_rotation(before: np.ndarray, after: np.ndarray, intrinsics: np.ndarray) -> np.ndarray | None:
    """The camera's rotation D between two pictures, ``C_after = C_before D`` in camera-to-world form.

    Args:
        before, after: uint8 [H, W, 3].
        intrinsics: [4] fx/W, fy/H, cx/W, cy/H.

    Returns:
        float64 [3, 3], or None where too few corners that a person could see can be tracked (blur, blank walls, another
        picture) or nothing rigid explains them.
    """
    motion = seen_motion(before, after, intrinsics)
    return None if motion is None else motion[:3, :3]


def seen_motion(before: np.ndarray, after: np.ndarray, intrinsics: np.ndarray) -> np.ndarray | None:
    """The motion between two pictures, ``C_after = C_before @ motion``: float64 [4, 4], or None as in `seen_rotation`.

    Its translation has length 1, since two pictures have no scale, or is 0 where a rotation alone explains them.
    """
    p, q, kept, (height, width) = _tracks(before, after)
    if len(p) < _MIN_TRACKS or kept < _MIN_KEPT:
        return None
    focal, centre = np.array([intrinsics[0] * width, intrinsics[1] * height]), np.array([intrinsics[2] * width, intrinsics[3] * height])
    rotation, share = _pure_rotation(_rays((p - centre) / focal), _rays((q - centre) / focal))
    if share < _PURE:
        k = np.array([[focal[0], 0, centre[0]], [0, focal[1], centre[1]], [0, 0, 1]])
        essential, found = cv2.findEssentialMat(p, q, k, method=cv2.USAC_MAGSAC, prob=0.999, threshold=_PIXEL)
        if essential is None or essential.shape != (3, 3):
            return None
        one, other, along = cv2.decomposeEssentialMat(essential)  # they differ by half a turn about the baseline
        rotation, share = min(one, other, key=angle_deg).T, float(found.mean())
        inside = found.reshape(-1).astype(bool)
        towards = -rotation @ along[:, 0]  # up to its sign: things are in front of the camera, so a share of positive depths decides
        motion = np.eye(4)
        motion[:3, 3] = towards * _in_front(_rays((p[inside] - centre) / focal), _rays((q[inside] - centre) / focal) @ rotation.T, towards)
    else:
        motion = np.eye(4)
    motion[:3, :3] = rotation
    return motion if share >= _MIN_SHARE else None


def _in_front(x: np.ndarray, y: np.ndarray, towards: np.ndarray) -> float:
    """1.0, or -1.0 where the rays x and y [N, 3] (in one camera's axes) more often meet in front of the first for ``-towards``"""
    across = np.cross(x, y)  # depth of x: d with d x = towards + e y
    depth = (np.cross(towards, y) * across).sum(1)
    return 1.0 if (depth > 0).sum() >= (depth < 0).sum() else -1.0


def rotation_errors(frames: np.ndarray, actions: np.ndarray, intrinsics: np.ndarray, fps: float) -> tuple[np.ndarray, np.ndarray]:
    """How far the rotation seen is from the one commanded, in every window of `GAP` frames in which a turn is commanded.

    With D the commanded and D' the seen rotation from frame t to t + GAP, the error is ``angle(D'^T D) fps / GAP``, in degrees
    per second of video: 0 if the keys are obeyed, the commanded speed (20 for one key) for a still picture, twice that if the
    keys are reversed.

    Args:
        frames: uint8 [T, H, W, 3].
        actions: [T, 13], what leads to each frame.

    Returns:
        (int [N] last frame of each window, float [N] error, NaN where `seen_rotation` gave none).
    """
    steps = motion_from_actions(actions)[:, :3, :3]
    ends, errors = [], []
    for t in range(0, len(frames) - GAP, GAP):
        commanded = np.linalg.multi_dot(steps[t + 1 : t + 1 + GAP])
        if angle_deg(commanded) < TURNING_DEG:
            continue
        seen = seen_rotation(frames[t], frames[t + GAP], intrinsics)
        ends.append(t + GAP)
        errors.append(np.nan if seen is None else angle_deg(seen.T @ commanded) * fps / GAP)
    return np.array(ends, dtype=int), np.array(errors, dtype=float)


def angle_deg(rotation: np.ndarray) -> float:
    """Angle of a rotation matrix [3, 3] in degrees."""
    return float(np.degrees(np.arccos(np.clip((np.trace(rotation) - 1) / 2, -1, 1))))


def _tracks(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray, float, tuple[int, int]]:
    """Positions [N, 2] of corners in both pictures (pixels, the first one's centre at 0.5), the share of the corners that was
    found again, and the (height, width) that the positions are measured in"""
    a, b = (_grey(picture) for picture in (before, after))
    corners = cv2.goodFeaturesToTrack(a, maxCorners=200, qualityLevel=0.01, minDistance=4)
    if corners is not None:
        column, row = corners.reshape(-1, 2).astype(int).T
        corners = corners[cv2.cornerMinEigenVal(a, 3)[row, column] >= _VISIBLE]
    if corners is None or not len(corners):
        return np.zeros((0, 2)), np.zeros((0, 2)), 0.0, a.shape
    how = {"winSize": (11, 11), "maxLevel": 3}
    moved, found, _ = cv2.calcOpticalFlowPyrLK(a, b, corners, None, **how)
    back, found_back, _ = cv2.calcOpticalFlowPyrLK(b, a, moved, None, **how)
    good = (found & found_back).reshape(-1).astype(bool) & (np.linalg.norm((corners - back).reshape(-1, 2), axis=1) < 0.5)
    return corners.reshape(-1, 2)[good] + 0.5, moved.reshape(-1, 2)[good] + 0.5, float(good.mean()), a.shape


def _grey(picture: np.ndarray) -> np.ndarray:
    grey = cv2.cvtColor(np.ascontiguousarray(picture), cv2.COLOR_RGB2GRAY)
    scale = _SIZE / max(grey.shape)
    if scale == 1:
        return grey
    height, width = (round(n * scale) for n in grey.shape)
    return cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)


def _rays(points: np.ndarray) -> np.ndarray:
    """Unit viewing rays [N, 3] of normalised points [N, 2]"""
    rays = np.concatenate([points, np.ones((len(points), 1))], axis=1).astype(np.float64)
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def _pure_rotation(x: np.ndarray, y: np.ndarray, samples: int = 200) -> tuple[np.ndarray, float]:
    """The rotation with ``x = D y`` for most rays [N, 3], and the share that it explains"""
    pairs = np.random.default_rng(0).integers(0, len(x), (samples, 2))
    candidates = _kabsch(x[pairs], y[pairs])  # [S, 3, 3]
    inliers = np.linalg.norm(x - np.einsum("sij,nj->sni", candidates, y), axis=-1) < _RAY  # [S, N]
    best = inliers[inliers.sum(1).argmax()]
    for _ in range(3):
        if best.sum() < 2:
            break
        rotation = _kabsch(x[best], y[best])
        best = np.linalg.norm(x - y @ rotation.T, axis=1) < _RAY
    return (rotation, float(best.mean())) if best.sum() >= 2 else (np.eye(3), 0.0)


def _kabsch(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The rotations [..., 3, 3] that take rays y [..., N, 3] closest to x"""
    u, _, vt = np.linalg.svd(np.swapaxes(x, -1, -2) @ y)
    u[..., :, 2] *= np.linalg.det(u @ vt)[..., None]
    return u @ vt
