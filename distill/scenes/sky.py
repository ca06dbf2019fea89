"""The sky: a dome with gradient and sun glow, stars, and flat clouds. It is drawn first and moves with the camera."""

from __future__ import annotations

import zlib

import numpy as np

from distill.scenes.light import MAX_COLOUR
from distill.scenes.scene import Scene

RADIUS = 100.0  # any distance beyond the near plane would do: the sky does not write depth
_SECTORS = 8


def sky_layers(scene: Scene) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """(draw order, triangles [N, 3, 3] around the camera, vertex colours [N, 3, 3]) of everything behind the scene."""
    if scene.indoor:
        wall = np.asarray(scene.sky.horizon)
        triangles = _dome(np.linspace(-90, 90, 5), 8)
        return [(0, triangles, np.broadcast_to(np.minimum(wall, MAX_COLOUR), triangles.shape))]
    rings = np.concatenate([[-90, -45, -12, 0], 90 * np.linspace(0, 1, 15)[1:] ** 1.5])
    triangles = _dome(rings, 48)
    colours = np.clip(sky_colour(triangles / RADIUS, scene), 0.0, MAX_COLOUR)
    sector = np.floor((np.arctan2(triangles[..., 1].mean(1), triangles[..., 0].mean(1)) / (2 * np.pi) + 0.5) * _SECTORS).astype(int)
    layers = [(0, triangles[sector == s], colours[sector == s]) for s in range(_SECTORS)]
    rng = np.random.default_rng(zlib.crc32(scene.caption.encode()))
    for order, make in ((1, _stars), (2, _sun), (3, _clouds)):
        triangles, colours = make(scene, rng)
        if len(triangles):
            layers.append((order, triangles, np.clip(colours, 0.0, MAX_COLOUR)))
    return [layer for layer in layers if len(layer[1])]


def sky_colour(direction: np.ndarray, scene: Scene) -> np.ndarray:
    """Colour [..., 3] of the dome in unit directions [..., 3]: fog below the horizon, zenith above, glow about the sun."""
    sky = scene.sky
    fog = np.asarray(sky.horizon if sky.fog_colour is None else sky.fog_colour, dtype=np.float64)
    horizon, zenith = np.asarray(sky.horizon, dtype=np.float64), np.asarray(sky.zenith, dtype=np.float64)
    up = direction[..., 2:]
    rise = np.clip(up, 0.0, 1.0) ** 0.6
    colour = np.where(up < -1e-6, fog, horizon + rise * (zenith - horizon))
    if sky.sun_glow > 0:
        cosine = np.clip(direction @ _unit(sky.sun_direction), 0.0, 1.0)[..., None]
        glow = sky.sun_glow * (0.5 * cosine**6 + 0.5 * cosine**40) * (up >= -1e-6)
        colour = colour + np.clip(glow, 0.0, 0.9) * (np.asarray(sky.sun_colour) - colour)
    return colour


def _dome(rings_deg: np.ndarray, sides: int) -> np.ndarray:
    """Triangles [N, 3, 3] of a sphere, seen from inside."""
    elevation, azimuth = np.deg2rad(rings_deg), np.arange(sides + 1) * (2 * np.pi / sides)
    e, a = np.meshgrid(elevation, azimuth, indexing="ij")
    p = RADIUS * np.stack([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)], -1)
    low, right, high, top = p[:-1, :-1], p[:-1, 1:], p[1:, :-1], p[1:, 1:]
    both = np.stack([np.stack([low, high, top], -2), np.stack([low, top, right], -2)], 2).reshape(-1, 3, 3)
    area = np.linalg.norm(np.cross(both[:, 1] - both[:, 0], both[:, 2] - both[:, 0]), axis=-1)
    return both[area > 1e-6]


def _facing(centre: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """Fans [K, P, 3, 3] of outlines [K, P, 2] (right, up) around the unit directions [K, 3], turned to the camera."""
    right = np.cross(centre, (0.0, 0.0, 1.0))
    right /= np.linalg.norm(right, axis=-1, keepdims=True) + 1e-9
    up = np.cross(right, centre)
    rim = centre[:, None] + outline[..., :1] * right[:, None] + outline[..., 1:] * up[:, None]
    hub = np.broadcast_to(centre[:, None], rim.shape)
    return RADIUS * np.stack([hub, rim, np.roll(rim, -1, axis=1)], -2)


def _circle(sides: int) -> np.ndarray:
    angle = np.arange(sides) * (2 * np.pi / sides)
    return np.stack([np.cos(angle), np.sin(angle)], -1)


def _directions(rng: np.random.Generator, count: int, low_deg: float, high_deg: float) -> np.ndarray:
    azimuth = (np.arange(count) + rng.uniform(0, 0.8, count)) * (2 * np.pi / max(count, 1)) + rng.uniform(0, 2 * np.pi)
    elevation = np.deg2rad(rng.uniform(low_deg, high_deg, count))
    return np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], -1)


def _stars(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    centre = _directions(rng, scene.sky.stars, 6, 80)
    size = rng.uniform(0.0025, 0.0055, (len(centre), 1, 1))
    fans = _facing(centre, size * _circle(4))
    shine = rng.uniform(0.35, 0.95, (len(centre), 1, 1, 1))
    below = sky_colour(centre, scene)[:, None, None]
    colours = np.broadcast_to(below + shine * (np.array([0.95, 0.95, 0.9]) - below), fans.shape)
    return fans.reshape(-1, 3, 3), colours.reshape(-1, 3, 3)


def _sun(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    sun = _unit(scene.sky.sun_direction)
    if scene.sky.sun_glow <= 0 or sun[2] < -0.05:
        return np.zeros((0, 3, 3)), np.zeros((0, 3, 3))
    fans = _facing(sun[None], 0.045 * _circle(14)[None])
    disc = 0.35 * np.asarray(scene.sky.sun_colour) + 0.65
    return fans.reshape(-1, 3, 3), np.broadcast_to(disc, fans.shape).reshape(-1, 3, 3)


def _clouds(scene: Scene, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Each cloud is a few overlapping flat hexagons on a common base line, shaded a little towards the base."""
    fans, colours = [], []
    cloud = np.asarray(scene.sky.cloud_colour, dtype=np.float64)
    for centre in _directions(rng, scene.sky.clouds, 9, 38):
        size = rng.uniform(0.05, 0.11)
        for _ in range(int(rng.integers(3, 6))):
            shift = np.array([rng.uniform(-1.5, 1.5), rng.uniform(-0.08, 0.22)]) * size
            outline = _circle(7) * rng.uniform(0.75, 1.1, (7, 1)) * size * rng.uniform(0.5, 1.0) * (1.35, 0.62) + shift
            outline[:, 1] = np.maximum(outline[:, 1], -0.22 * size)
            fan = _facing(centre[None], outline[None]).reshape(-1, 3, 3)
            height = np.concatenate([np.broadcast_to(shift, (7, 1, 2)), outline[:, None], np.roll(outline, -1, 0)[:, None]], 1)[..., 1]
            shade = np.clip(0.9 + 0.35 * height / size, 0.82, 1.0)[..., None]
            below = sky_colour(centre, scene)
            fans.append(fan)
            colours.append(below + 0.92 * (cloud * shade - below))
    if not fans:
        return np.zeros((0, 3, 3)), np.zeros((0, 3, 3))
    return np.concatenate(fans), np.concatenate(colours)


def _unit(v) -> np.ndarray:
    v = np.asarray(v, dtype=np.float64)
    return v / np.linalg.norm(v)
