"""What a scene is: geometry with colours, a sky, things to bump into, places to start, and a sentence about it.

Scene axes: +X east, +Y north, +Z up, metres. A family (`village`, `castle`, `rooms`, `wild`) is a module with one
function ``build(rng: np.random.Generator, variant: int | None = None) -> Scene``; everything else here is shared.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from distill.scenes.mesh import Mesh

Colour = tuple[float, float, float]


@dataclass
class Sky:
    """Sky dome, sun and air; colours are linear RGB in 0..1."""

    zenith: Colour
    horizon: Colour
    sun_direction: Colour = (0.4, 0.3, 0.85)  # unit vector towards the sun
    sun_colour: Colour = (1.0, 0.95, 0.85)
    sun_strength: float = 0.55
    ambient: float = 0.65  # strength of the hemisphere light
    ground_bounce: Colour = (0.5, 0.5, 0.45)
    sun_glow: float = 0.0  # brightness of the glow around the sun in the dome
    clouds: int = 0
    cloud_colour: Colour = (0.97, 0.97, 0.98)
    stars: int = 0
    fog_colour: Colour | None = None  # default: horizon
    fog_distance: float = 300.0  # metres at which the air takes 63 % of the colour, baked by distance from the centre


@dataclass
class Box:
    """Vertical oriented box to bump into: centre (x, y), half extents, yaw in radians, from z0 to z1."""

    x: float
    y: float
    half_x: float
    half_y: float
    yaw: float = 0.0
    z0: float = -100.0
    z1: float = 100.0


@dataclass
class Cylinder:
    """Vertical cylinder to bump into."""

    x: float
    y: float
    radius: float
    z0: float = -100.0
    z1: float = 100.0


@dataclass
class Scene:
    family: str
    caption: str
    """One sentence, static attributes only (place, season or biome, hour, landmarks, colours); never the camera."""
    mesh: Mesh  # lit by the sky when baked
    sky: Sky
    colliders: list[Box | Cylinder] = field(default_factory=list)
    ground: Callable[[np.ndarray, np.ndarray], np.ndarray] = lambda x, y: np.zeros_like(x)
    """Height of the ground in metres at arrays x, y: the camera stays above it."""
    bounds: tuple[float, float, float, float] = (-60.0, 60.0, -60.0, 60.0)  # x0, x1, y0, y1 that the camera may reach
    ceiling: float = 30.0  # the camera stays below
    eye_height: float = 1.6  # metres above the ground at the start
    step: float = 0.18  # metres that a translation of magnitude 1.0 moves in one frame
    spots: np.ndarray | None = None  # optional [N, 2] places worth starting from; default: anywhere free in the bounds
    focus: np.ndarray | None = None  # optional [M, 3] points worth looking at; start views face one of them most of the time
    indoor: bool = False
