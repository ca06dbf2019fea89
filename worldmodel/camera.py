"""Camera geometry: actions <-> poses, on the CPU and in float64.

Poses are camera-to-world matrices ``[..., 4, 4]`` with OpenCV camera axes (+X right, +Y down, +Z forward). Intrinsics are
``[fx/W, fy/H, cx/W, cy/H]``. An action at frame t is the motion from frame t-1 to frame t, so frame 0 is `static`
(RELIC, arXiv 2512.04040, Algorithm 1).

With R = world-to-camera and P = position, RELIC's formulas read ``dP_t = R_t (P_{t+1} - P_t)`` and
``dR_t = R_{t+1} R_t^T``. In camera-to-world form, C = R^T, that is ``C_{t+1} = C_t D_t`` and ``P_{t+1} = P_t + C_t dP_t``
with ``D_t = dR_t^T``, which we factor as yaw, then pitch, then roll about the camera's own axes.
"""

from __future__ import annotations

import numpy as np

from worldmodel.actions import NUM_ACTIONS, ROTATION_UNIT_DEG, STATIC

POSE_CODE_DIM = 9
_STILL = 1e-6  # a displacement, in the poses' unit of length
_NOISE = 1e-4  # an action magnitude; stored float32 poses make magnitudes of up to 1e-5 where nothing moves


def rotation_from_ypr(yaw: np.ndarray, pitch: np.ndarray, roll: np.ndarray) -> np.ndarray:
    """``D = Ry(yaw) Rx(pitch) Rz(roll)``, radians, shape [..., 3, 3]. Positive: pan right, tilt up, roll clockwise."""
    y, p, r = np.broadcast_arrays(*(np.asarray(a, dtype=np.float64) for a in (yaw, pitch, roll)))
    cy, sy, cp, sp, cr, sr = np.cos(y), np.sin(y), np.cos(p), np.sin(p), np.cos(r), np.sin(r)
    rows = [
        [cy * cr + sy * sp * sr, -cy * sr + sy * sp * cr, sy * cp],
        [cp * sr, cp * cr, -sp],
        [-sy * cr + cy * sp * sr, sy * sr + cy * sp * cr, cy * cp],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def ypr_from_rotation(rotation: np.ndarray) -> np.ndarray:
    """Inverse of `rotation_from_ypr` for |pitch| < 90 degrees: [..., 3] radians (yaw, pitch, roll)."""
    yaw = np.arctan2(rotation[..., 0, 2], rotation[..., 2, 2])
    pitch = -np.arcsin(np.clip(rotation[..., 1, 2], -1.0, 1.0))
    roll = np.arctan2(rotation[..., 1, 0], rotation[..., 1, 1])
    return np.stack([yaw, pitch, roll], -1)


def motion_from_actions(actions: np.ndarray) -> np.ndarray:
    """Per-frame motion [T, 4, 4] (`C_{t} = C_{t-1} @ motion_t`) of actions [T, 13]; translation in steps."""
    a = np.asarray(actions, dtype=np.float64).reshape(-1, NUM_ACTIONS)
    motion = np.tile(np.eye(4), (len(a), 1, 1))
    motion[:, 0, 3] = a[:, 3] - a[:, 2]  # +X right
    motion[:, 1, 3] = a[:, 5] - a[:, 4]  # +Y down
    motion[:, 2, 3] = a[:, 0] - a[:, 1]  # +Z forward
    unit = np.deg2rad(ROTATION_UNIT_DEG)
    motion[:, :3, :3] = rotation_from_ypr((a[:, 9] - a[:, 8]) * unit, (a[:, 6] - a[:, 7]) * unit, (a[:, 10] - a[:, 11]) * unit)
    return motion


def integrate(actions: np.ndarray, start: np.ndarray | None = None, step: float = 1.0) -> np.ndarray:
    """Poses [T, 4, 4] float64 reached by actions [T, 13] from the pose `start` (default: the origin).

    `step` is the length of a translation of magnitude 1.0 in the units of `start`. Rotations are re-orthonormalised, so an
    hour of frames does not drift.
    """
    pose = np.eye(4) if start is None else np.array(start, dtype=np.float64)
    poses = np.empty((len(actions), 4, 4))
    for t, motion in enumerate(motion_from_actions(actions)):
        motion[:3, 3] *= step
        pose = pose @ motion
        if t % 64 == 63:
            u, _, vt = np.linalg.svd(pose[:3, :3])
            pose[:3, :3] = u @ vt
        poses[t] = pose
    return poses


def actions_from_poses(poses: np.ndarray, step: float | None = None) -> np.ndarray:
    """Actions [T, 13] float32 that lead through `poses` [T, 4, 4]; the first is `static`.

    `step` is the length of one unit of translation; by default the mean displacement over the frames that move
    (RELIC, Algorithm 1).
    """
    c = np.asarray(poses, dtype=np.float64)
    rotation, position = c[:, :3, :3], c[:, :3, 3]
    delta = np.einsum("tji,tj->ti", rotation[:-1], np.diff(position, axis=0))  # dP_t in the camera frame
    ypr = ypr_from_rotation(np.einsum("tji,tjk->tik", rotation[:-1], rotation[1:])) / np.deg2rad(ROTATION_UNIT_DEG)
    if step is None:
        length = np.linalg.norm(delta, axis=-1)
        step = float(length[length > _STILL].mean()) if (length > _STILL).any() else 1.0
    x, y, z = (delta / step).T
    yaw, pitch, roll = ypr.T
    signed = np.stack([z, -z, -x, x, -y, y, pitch, -pitch, -yaw, yaw, roll, -roll], -1)
    signed[np.abs(signed) < _NOISE] = 0.0
    actions = np.zeros((len(c), NUM_ACTIONS), dtype=np.float32)
    actions[1:, :STATIC] = np.maximum(signed, 0.0)
    actions[:, STATIC] = ~actions[:, :STATIC].any(-1)
    return actions


def relative_to_first(poses: np.ndarray, step: float = 1.0) -> np.ndarray:
    """Poses [T, 4, 4] re-based so that the first is the identity, translations in steps."""
    out = np.linalg.inv(poses[0]) @ np.asarray(poses, dtype=np.float64)
    out[:, :3, 3] /= step
    return out


def pose_code(poses: np.ndarray) -> np.ndarray:
    """What the network is told of an absolute pose: float32 [T, 9].

    Translation (3) and the first two columns of the rotation (6, a continuous code of SO(3)), relative to the first frame.
    RELIC does not state its rotation code; this one is our choice.
    """
    c = np.asarray(poses, dtype=np.float64)
    return np.concatenate([c[:, :3, 3], c[:, :3, 0], c[:, :3, 1]], -1).astype(np.float32)


def palindrome(poses: np.ndarray, pivot: int) -> np.ndarray:
    """Time-reverse augmentation (RELIC, section 3): frames 1..pivot, then back; same length, indices into `poses`."""
    length = len(poses)
    if not length // 2 <= pivot < length:
        raise ValueError(f"The pivot lies in the second half of the clip ({length // 2}..{length - 1}), got {pivot}.")
    there = np.arange(pivot + 1)
    back = np.arange(pivot - 1, pivot - (length - len(there)) - 1, -1)
    return np.concatenate([there, back])


def intrinsics_from_fov(horizontal_fov_deg: float, size: tuple[int, int]) -> np.ndarray:
    """Normalised intrinsics float32 [4] (fx/W, fy/H, cx/W, cy/H) of a centred pinhole camera with square pixels."""
    height, width = size
    fx = 0.5 / np.tan(np.deg2rad(horizontal_fov_deg) / 2)
    return np.array([fx, fx * width / height, 0.5, 0.5], dtype=np.float32)
