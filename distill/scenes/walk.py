"""The camera that cannot pass through things, and good places for it to start.

A translation that would come too close to something is cut from its frame, and the returned actions say what really
happened: integrating them gives the returned poses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from distill.scenes.scene import Box, Cylinder, Scene
from worldmodel.actions import NUM_ACTIONS, STATIC, Action, to_array
from worldmodel.camera import integrate, motion_from_actions

MARGIN, MARGIN_INDOOR = 0.45, 0.30  # metres that the camera keeps from colliders
_TRIES = 24


class Space:
    """Where the camera may be in a scene."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.margin = MARGIN_INDOOR if scene.indoor else MARGIN
        boxes = [c for c in scene.colliders if isinstance(c, Box)]
        cylinders = [c for c in scene.colliders if isinstance(c, Cylinder)]
        self._boxes = np.array([(b.x, b.y, b.half_x, b.half_y, np.cos(b.yaw), np.sin(b.yaw), b.z0, b.z1) for b in boxes]).reshape(-1, 8).T
        self._cylinders = np.array([(c.x, c.y, c.radius, c.z0, c.z1) for c in cylinders]).reshape(-1, 5).T

    def clearance(self, points: np.ndarray) -> np.ndarray:
        """Metres [P] from points [P, 3] to the nearest collider; 0 inside one, infinity when there are none."""
        x, y, z = (np.asarray(points, dtype=np.float64).reshape(-1, 3)[:, i, None] for i in range(3))
        nearest = np.full(len(x), np.inf)
        if self._boxes.size:
            bx, by, hx, hy, c, s, z0, z1 = self._boxes
            dx, dy = x - bx, y - by
            along, across = np.maximum(np.abs(c * dx + s * dy) - hx, 0), np.maximum(np.abs(c * dy - s * dx) - hy, 0)
            gap = np.maximum(np.maximum(z0 - z, z - z1), 0)
            nearest = np.sqrt(along**2 + across**2 + gap**2).min(1)
        if self._cylinders.size:
            cx, cy, radius, z0, z1 = self._cylinders
            out = np.maximum(np.hypot(x - cx, y - cy) - radius, 0)
            gap = np.maximum(np.maximum(z0 - z, z - z1), 0)
            nearest = np.minimum(nearest, np.hypot(out, gap).min(1))
        return nearest

    def free(self, points: np.ndarray) -> np.ndarray:
        """Whether the camera may be at points [P, 3]: bool [P]."""
        p = np.asarray(points, dtype=np.float64).reshape(-1, 3)
        x0, x1, y0, y1 = self.scene.bounds
        inside = (p[:, 0] >= x0) & (p[:, 0] <= x1) & (p[:, 1] >= y0) & (p[:, 1] <= y1) & (p[:, 2] <= self.scene.ceiling)
        floor = np.asarray(self.scene.ground(p[:, 0], p[:, 1])) + 0.5 * self.scene.eye_height
        return inside & (p[:, 2] >= floor) & (self.clearance(p) >= self.margin)

    def free_distance(self, position: np.ndarray, direction: np.ndarray, reach: float = 12.0) -> float:
        """Metres that the camera could fly along the unit `direction` [3], at most `reach`."""
        t = np.arange(0.0, reach + 0.1, 0.2)
        blocked = ~self.free(np.asarray(position) + t[:, None] * np.asarray(direction))
        return float(t[blocked.argmax()]) if blocked.any() else reach


def walk(scene: Scene | Space, start_c2w: np.ndarray, actions: Iterable[Action] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Poses float64 [T, 4, 4] and the actions float32 [T, 13] that really happened, T = 1 + number of actions.

    Frame 0 is the start with a static action. Of a blocked translation, single components are dropped first, then pairs,
    then all; rotations always happen.
    """
    space = scene if isinstance(scene, Space) else Space(scene)
    step = space.scene.step
    wanted = actions if isinstance(actions, np.ndarray) else to_array(actions)
    done = np.zeros((len(wanted) + 1, NUM_ACTIONS), dtype=np.float32)
    done[0, STATIC] = 1.0
    done[1:] = wanted
    motion = motion_from_actions(done)
    pose = np.array(start_c2w, dtype=np.float64)
    for t in range(1, len(done)):
        shift = motion[t, :3, 3] * step
        axes = np.flatnonzero(shift)
        if len(axes):
            options = _options(axes)
            targets = pose[:3, 3] + (options * shift) @ pose[:3, :3].T
            allowed = space.free(targets)
            keep = options[allowed.argmax()] if allowed.any() else np.zeros(3)
            for axis in axes[keep[axes] == 0]:
                motion[t, axis, 3] = 0.0
                done[t, _COMPONENTS[axis]] = 0.0
            done[t, STATIC] = float(not done[t, :STATIC].any())
        move = motion[t].copy()
        move[:3, 3] *= step
        pose = pose @ move
    return integrate(done, start_c2w, step), done


_COMPONENTS = ([2, 3], [4, 5], [0, 1])  # action entries that move along camera x, y, z


def _options(axes: np.ndarray) -> np.ndarray:
    """Masks [K, 3] of translation components to try, fullest first; ties keep dolly, then truck."""
    masks = [m for m in np.ndindex(2, 2, 2) if any(m) and not any(m[i] for i in range(3) if i not in axes)]
    return np.array(sorted(masks, key=lambda m: (-sum(m), -m[2], -m[0])), dtype=np.float64)


# -- starts ------------------------------------------------------------------------------------------------------------
def level_pose(position: np.ndarray, heading: float, pitch: float = 0.0) -> np.ndarray:
    """Camera-to-world [4, 4] of an upright camera; heading in radians from +x (east) to +y (north), pitch upwards."""
    c, s, cp, sp = np.cos(heading), np.sin(heading), np.cos(pitch), np.sin(pitch)
    pose = np.eye(4)
    pose[:3, 0] = (s, -c, 0.0)  # right
    pose[:3, 1] = (c * sp, s * sp, -cp)  # down
    pose[:3, 2] = (c * cp, s * cp, sp)  # forward
    pose[:3, 3] = position
    return pose


def interest(image: np.ndarray) -> float:
    """How much there is to see in uint8 [H, W, 3]: 0 for a plain wall, above 1 for a view worth starting from."""
    small = image.astype(np.int16)
    codes = (small // 24) @ np.array([1, 12, 144])
    counts = np.bincount(codes.reshape(-1))
    colours = (counts >= max(3, codes.size // 400)).sum() / 10
    low = small[small.shape[0] // 3 :]  # edges of clouds do not count
    edges = (np.abs(np.diff(low, axis=1)).max(-1) > 20).mean() + (np.abs(np.diff(small, axis=0)).max(-1) > 20).mean()
    return float(min(colours, edges / 0.09))


def start_view(scene: Scene | Space, seed: int, k: int, frame: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
    """The k-th start view of a scene: camera-to-world float64 [4, 4], level, at eye height, with something in sight.

    Deterministic in (seed, k). `frame` draws a small picture of a pose; without it views are judged by free space only.
    """
    space = scene if isinstance(scene, Space) else Space(scene)
    scene = space.scene
    rng = np.random.default_rng([seed, k, 7])
    ahead = 1.3 if scene.indoor else 3.0
    best, best_score = None, -1.0
    for _ in range(_TRIES):
        position = _free_place(space, rng)
        pose = level_pose(position, _heading(scene, position, rng))
        room = min(space.free_distance(position, pose[:3, 2], ahead) / ahead, space.clearance(position)[0] / (2 * space.margin), 1.0)
        if room < 1.0 and best is not None:
            continue
        score = room * (min(interest(frame(pose)), 1.0) if frame else 1.0)
        if score > best_score:
            best, best_score = pose, score
        if score >= 1.0:
            break
    return best


def _free_place(space: Space, rng: np.random.Generator) -> np.ndarray:
    scene = space.scene
    x0, x1, y0, y1 = scene.bounds
    for _ in range(400):
        if scene.spots is not None and len(scene.spots) and rng.uniform() < 0.8:
            xy = np.asarray(scene.spots, dtype=np.float64)[rng.integers(len(scene.spots))] + rng.normal(0, 0.15 if scene.indoor else 1.0, 2)
        else:
            xy = rng.uniform((x0, y0), (x1, y1))
        ground = np.asarray(scene.ground(xy[:1], xy[1:]), dtype=np.float64).reshape(-1)[0]
        position = np.array([*xy, ground + scene.eye_height])
        if space.free(position)[0]:
            return position
    raise ValueError(f"No free place to stand in this {scene.family} scene: its colliders fill its bounds {scene.bounds}.")


def _heading(scene: Scene, position: np.ndarray, rng: np.random.Generator) -> float:
    if scene.focus is not None and len(scene.focus) and rng.uniform() < 0.75:
        to = np.asarray(scene.focus, dtype=np.float64)[rng.integers(len(scene.focus))] - position
        if np.hypot(to[0], to[1]) > 1.0:
            return float(np.arctan2(to[1], to[0]) + rng.normal(0, np.deg2rad(10)))
    return float(rng.uniform(-np.pi, np.pi))
