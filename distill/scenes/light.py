"""Light baked into vertex colours: sun, sky, bounce, occlusion, blob shadows and air, all in numpy.

Facets are shaded flat, from their own normal; shadow, occlusion and fog are smooth, per vertex. Nothing depends on where
the camera is, so a bake happens once per scene and frames cost nothing extra.
"""

from __future__ import annotations

import numpy as np

from distill.scenes.scene import Box, Cylinder, Scene

MAX_COLOUR = 0.985  # 1.0 wraps around when the software rasteriser interpolates it
FILL = 0.14  # strength of the light from the far side, as a share of the sun's
SHADOW = 0.36  # how much a blob shadow takes at its darkest
_NEAR_GROUND = 0.3  # metres: what counts as lying on the ground


def bake(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Triangles [N, 3, 3] float64 in metres and their vertex colours [N, 3, 3] float64 in 0..0.985.

    Long ground edges close to colliders are split first, so N is somewhat more than ``len(scene.mesh)``.
    """
    tri, colour, glow = scene.mesh.triangles, scene.mesh.colours, scene.mesh.glow
    tri, source = split_ground(tri, scene)
    colour, glow = colour[source], glow[source]

    normal = np.cross(tri[:, 1] - tri[:, 0], tri[:, 2] - tri[:, 0])
    normal /= np.linalg.norm(normal, axis=-1, keepdims=True) + 1e-12
    points = tri.reshape(-1, 3)
    height = (points[:, 2] - scene.ground(points[:, 0], points[:, 1])).reshape(-1, 3)

    light = facet_light(normal, scene)[:, None] * occlusion(normal, tri, height, scene)[..., None]
    lit = colour[:, None] * light
    lit = lit + glow[:, None, None] * (colour[:, None] - lit)
    return tri, np.clip(_fog(lit, tri, glow, scene), 0.0, MAX_COLOUR)


def facet_light(normal: np.ndarray, scene: Scene) -> np.ndarray:
    """Light [N, 3] that reaches facets with the unit normals [N, 3]."""
    sky = scene.sky
    sun = np.asarray(sky.sun_direction, dtype=np.float64)
    sun = sun / np.linalg.norm(sun)
    fill = np.array([-sun[0], -sun[1], 0.35])
    fill /= np.linalg.norm(fill)
    zenith, horizon = _tint(np.asarray(sky.zenith)), _tint(np.asarray(sky.horizon))
    up = normal[:, 2:]
    overhead = np.clip(up, 0.0, 1.0)
    from_sky = horizon + overhead * (0.5 * zenith + 0.5 * horizon - horizon)
    weight = 0.5 + 0.5 * up
    ambient = weight * from_sky + (1 - weight) * 1.3 * np.asarray(sky.ground_bounce)
    facing = normal @ sun
    if scene.indoor:  # soft light from everywhere: walls turned away must not go black
        facing = 0.5 * facing + 0.5
        ambient = ambient + 0.2 * np.clip(-up, 0.0, 1.0)  # lamps shine at the ceiling too
    direct = np.clip(facing, 0.0, 1.0)[:, None] * np.asarray(sky.sun_colour)
    far = np.clip(normal @ fill, 0.0, 1.0)[:, None] * horizon * FILL
    return sky.ambient * ambient * 0.97 + sky.sun_strength * direct + max(sky.sun_strength, 0.3) * far


def occlusion(normal: np.ndarray, tri: np.ndarray, height: np.ndarray, scene: Scene) -> np.ndarray:
    """Share [N, 3] of the light that each vertex keeps: undersides, feet of walls, corners, shadows on the ground."""
    keep = np.ones(height.shape)
    up = normal[:, 2]
    if not scene.indoor:
        keep *= (1 - 0.22 * np.clip(-up, 0.0, 1.0))[:, None]
    upright = (np.abs(up) < 0.75)[:, None]
    keep *= 1 - upright * 0.24 * np.exp(-np.maximum(height, 0.0) / 0.7)
    if scene.indoor:
        top = float(scene.mesh.triangles[..., 2].max()) if len(scene.mesh) else 3.0
        keep *= 1 - upright * 0.12 * np.exp(-np.maximum(top - tri[..., 2], 0.0) / 0.8)
    low = (up > 0.5)[:, None] & (np.abs(height) < _NEAR_GROUND)
    if low.any():
        keep[low] *= 1 - SHADOW * shadow(tri[low], scene)
    return keep


def shadow(points: np.ndarray, scene: Scene) -> np.ndarray:
    """Blob shadow 0..1 at points [V, 3] on the ground: 1 under a collider, fading smoothly to 0 around it."""
    out = np.zeros(len(points))
    for thing in scene.colliders:
        reach = _reach(thing)
        near = np.flatnonzero(
            (np.abs(points[:, 0] - thing.x) < reach + _extent(thing)) & (np.abs(points[:, 1] - thing.y) < reach + _extent(thing))
            & (points[:, 2] > thing.z0 - 0.5) & (points[:, 2] < thing.z1)
        )  # fmt: skip
        if len(near):
            fade = np.clip(1 - footprint_distance(thing, points[near, 0], points[near, 1]) / reach, 0.0, 1.0)
            out[near] = np.maximum(out[near], fade * fade * (3 - 2 * fade))
    return out


def footprint_distance(thing: Box | Cylinder, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance in metres from (x, y) to the collider's outline; 0 inside."""
    dx, dy = x - thing.x, y - thing.y
    if isinstance(thing, Cylinder):
        return np.maximum(np.hypot(dx, dy) - thing.radius, 0.0)
    c, s = np.cos(thing.yaw), np.sin(thing.yaw)
    return np.hypot(np.maximum(np.abs(c * dx + s * dy) - thing.half_x, 0.0), np.maximum(np.abs(c * dy - s * dx) - thing.half_y, 0.0))


def split_ground(tri: np.ndarray, scene: Scene, rounds: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Triangles with the long ground edges near colliders halved, and the index [M] of the triangle each came from.

    Whether an edge is split depends on nothing but the edge, so neighbours split alike and no crack opens.
    """
    source = np.arange(len(tri))
    longest, limit = 0.7 if scene.indoor else 1.3, 1500 + 3 * len(tri) // 2
    for _ in range(rounds):
        if not scene.colliders:
            break
        ends = tri[:, [0, 1, 2]], tri[:, [1, 2, 0]]
        middle = (ends[0] + ends[1]) / 2
        split = np.linalg.norm(ends[1] - ends[0], axis=-1) > longest
        for end in ends:
            split[split] = np.abs(end[split][:, 2] - scene.ground(end[split][:, 0], end[split][:, 1])) < _NEAR_GROUND
        length = np.linalg.norm((ends[1] - ends[0])[split], axis=-1)
        split[split] = _close_to_colliders(middle[split], length / 2, scene)
        if not split.any():
            break
        finer, origin = _subdivide(tri, middle, split)
        if len(finer) > limit:
            break
        tri, source = finer, source[origin]
    return tri, source


def _close_to_colliders(points: np.ndarray, slack: np.ndarray, scene: Scene) -> np.ndarray:
    close = np.zeros(len(points), dtype=bool)
    for thing in scene.colliders:
        far = np.hypot(points[:, 0] - thing.x, points[:, 1] - thing.y) > _extent(thing) * 1.5 + _reach(thing) + slack
        rest = np.flatnonzero(~close & ~far)
        close[rest] = footprint_distance(thing, points[rest, 0], points[rest, 1]) < _reach(thing) + slack[rest]
    return close


def _subdivide(tri: np.ndarray, middle: np.ndarray, split: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split triangles [N, 3, 3] at the marked edges [N, 3] (edge i runs from corner i to corner i + 1)."""
    count = split.sum(1)
    parts, origins = [tri[count == 0]], [np.flatnonzero(count == 0)]

    def rolled(rows: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        order = (first[:, None] + np.arange(3)) % 3
        return tri[rows[:, None], order].transpose(1, 0, 2), middle[rows[:, None], order].transpose(1, 0, 2)

    def emit(rows: np.ndarray, *triangles: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
        for corners in triangles:
            parts.append(np.stack(corners, 1))
            origins.append(rows)

    rows = np.flatnonzero(count == 1)
    (a, b, c), (ab, _, _) = rolled(rows, split[rows].argmax(1))
    emit(rows, (a, ab, c), (ab, b, c))
    rows = np.flatnonzero(count == 2)
    (a, b, c), (_, bc, ca) = rolled(rows, split[rows].argmin(1))  # the edge a-b stays whole
    emit(rows, (c, ca, bc), (ca, a, b), (ca, b, bc))
    rows = np.flatnonzero(count == 3)
    (a, b, c), (ab, bc, ca) = rolled(rows, np.zeros(len(rows), dtype=int))
    emit(rows, (a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))
    return np.concatenate(parts), np.concatenate(origins)


def _fog(colour: np.ndarray, tri: np.ndarray, glow: np.ndarray, scene: Scene) -> np.ndarray:
    if scene.indoor:
        return colour
    x0, x1, y0, y1 = scene.bounds
    inner = 0.25 * ((x1 - x0) + (y1 - y0)) / 2
    away = np.hypot(tri[..., 0] - (x0 + x1) / 2, tri[..., 1] - (y0 + y1) / 2)
    air = 1 - np.exp(-np.maximum(away - inner, 0.0) / scene.sky.fog_distance)
    air = (air * (1 - 0.6 * glow[:, None]))[..., None]
    target = np.asarray(scene.sky.horizon if scene.sky.fog_colour is None else scene.sky.fog_colour)
    return colour + air * (target - colour)


def _tint(colour: np.ndarray) -> np.ndarray:
    """The light a sky of this colour gives: half as saturated, and darkness counts less than it looks."""
    peak = max(float(colour.max()), 1e-3)
    return (0.5 + 0.5 * colour / peak) * peak**0.4


def _extent(thing: Box | Cylinder) -> float:
    return thing.radius if isinstance(thing, Cylinder) else float(np.hypot(thing.half_x, thing.half_y))


def _reach(thing: Box | Cylinder) -> float:
    """How far outside its outline a collider darkens the ground, in metres."""
    size = thing.radius if isinstance(thing, Cylinder) else min(thing.half_x, thing.half_y)
    return float(np.clip(0.45 + 0.6 * size, 0.5, 1.6))
