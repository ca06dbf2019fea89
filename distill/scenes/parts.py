"""Things that outdoor worlds are made of: trees, rocks, houses, lamps, fences, ground, paths and mountains.

A `Part` is a small mesh about its own origin, its front towards -y, with what one bumps into; a `Site` collects parts
and remembers which places are taken. Colours are plain and clean on purpose: every landmark should be known by its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from distill.scenes.mesh import Colour, Mesh
from distill.scenes.scene import Box, Cylinder

WOOD = (0.50, 0.33, 0.20)
DARK_WOOD = (0.36, 0.23, 0.16)
STONE = (0.62, 0.62, 0.62)
LAMP_LIGHT = (0.98, 0.82, 0.42)
GLASS = (0.62, 0.82, 0.93)
WHITE = (0.95, 0.95, 0.93)


@dataclass
class Part:
    """A mesh around its own origin, the colliders that go with it, and the radius of its footprint in metres."""

    mesh: Mesh
    solids: list[Box | Cylinder] = field(default_factory=list)
    radius: float = 1.0


class Site:
    """A world under construction: one mesh, its colliders, and the discs that are taken."""

    def __init__(self) -> None:
        self.mesh = Mesh()
        self.colliders: list[Box | Cylinder] = []
        self.taken: list[tuple[float, float, float]] = []
        self.focus: list[tuple[float, float, float]] = []
        self.lights: list[tuple[float, float, float]] = []

    def put(self, part: Part, x: float, y: float, yaw: float = 0.0, scale: float = 1.0, focus: float | None = None, z: float = 0.0) -> None:
        """Place `part`; with `focus` (a height in metres) it is worth looking at."""
        self.mesh.place(part.mesh, x, y, z, yaw, scale)
        c, s = np.cos(yaw), np.sin(yaw)
        for solid in part.solids:
            at = {"x": x + scale * (c * solid.x - s * solid.y), "y": y + scale * (s * solid.x + c * solid.y)}
            at |= {"z0": z + solid.z0 * scale, "z1": z + solid.z1 * scale}
            if isinstance(solid, Box):
                at |= {"half_x": solid.half_x * scale, "half_y": solid.half_y * scale, "yaw": solid.yaw + yaw}
            else:
                at |= {"radius": solid.radius * scale}
            self.colliders.append(replace(solid, **at))
        self.take(x, y, part.radius * scale)
        if focus is not None:
            self.focus.append((x, y, focus))

    def take(self, x: float, y: float, radius: float) -> None:
        self.taken.append((x, y, radius))

    def free(self, x: float, y: float, radius: float) -> bool:
        """Whether a disc touches nothing that is taken."""
        if not self.taken:
            return True
        taken = np.array(self.taken)
        return bool(np.all(np.hypot(taken[:, 0] - x, taken[:, 1] - y) > taken[:, 2] + radius))

    def scatter(self, rng: np.random.Generator, count: int, inner: float, outer: float, radius: float, tries: int = 12):
        """Up to `count` free places in a ring, uniform by area; the caller puts something there before asking for the next."""
        for _ in range(count):
            for _ in range(tries):
                r, a = np.sqrt(rng.uniform(inner**2, outer**2)), rng.uniform(0, 2 * np.pi)
                x, y = r * np.cos(a), r * np.sin(a)
                if self.free(x, y, radius):
                    yield x, y
                    break

    def spots(self, rng: np.random.Generator, reach: float, clearance: float = 3.5, count: int = 80) -> np.ndarray:
        """Start places [N, 2] inside +-reach that are at least `clearance` from everything solid."""
        points = rng.uniform(-reach, reach, (1500, 2))
        solid = np.array([(c.x, c.y, np.hypot(c.half_x, c.half_y) * 0.85 if isinstance(c, Box) else c.radius) for c in self.colliders])
        while len(solid):
            gap = (np.hypot(points[:, None, 0] - solid[:, 0], points[:, None, 1] - solid[:, 1]) - solid[:, 2]).min(1)
            if (gap > clearance).sum() >= 60 or clearance < 1.0:
                points = points[gap > clearance]
                break
            clearance -= 0.4
        return points[:count]


def lamplight(site: Site, reach: float = 4.5, warm: Colour = (1.12, 0.98, 0.74)) -> None:
    """Brighten and warm what lies within about `reach` metres of the site's lights, as lamps do at night."""
    if not site.lights:
        return
    triangles, colours, glow = site.mesh.triangles, site.mesh.colours, site.mesh.glow
    away = np.linalg.norm(triangles.mean(1)[:, None] - np.array(site.lights), axis=-1).min(1)
    share = 0.6 * np.exp(-((away / reach) ** 2))
    tint = 1 + share[:, None] * (np.array(warm) - 1)
    site.mesh = Mesh().add(triangles, np.clip(np.where(glow[:, None] > share[:, None], colours, colours * tint), 0, 0.985), np.maximum(glow, share))


def shade(colour: Colour, factor: float) -> Colour:
    """A lighter or darker version of a colour."""
    return tuple(float(c) for c in np.clip(np.array(colour) * factor, 0, 0.985))


def facing(azimuth: float) -> float:
    """Yaw with which a part that stands at `azimuth` turns its front to the centre."""
    return azimuth - np.pi / 2


# -- trees and stones ----------------------------------------------------------------------------------------------------
def round_tree(rng: np.random.Generator, leaf: Colour, height: float = 4.5, trunk: Colour = WOOD, near: bool = True) -> Part:
    mesh, r = Mesh(), height * rng.uniform(0.27, 0.33)
    mesh.cylinder((0, 0, -0.2), 0.065 * height, height * 0.62, trunk, 6, 0.045 * height, cap=False)
    mesh.blob((0, 0, height * 0.66), (r, r, r * 0.92), shade(leaf, rng.uniform(0.92, 1.0)), rng, 0.13, 1 if near else 0)
    if near:
        a = rng.uniform(0, 2 * np.pi)
        mesh.blob((0.55 * r * np.cos(a), 0.55 * r * np.sin(a), height * 0.86), r * 0.66, shade(leaf, 1.13), rng, 0.13, 1)
    return Part(mesh, [Cylinder(0, 0, 0.07 * height, z1=height * 0.4), Cylinder(0, 0, r * 0.9, z0=height * 0.45, z1=height)], max(1.0, r * 0.8))


def pine_tree(rng: np.random.Generator, leaf: Colour, height: float = 6.0, trunk: Colour = DARK_WOOD, snow: bool = False, near: bool = True) -> Part:
    mesh, r, sides = Mesh(), height * 0.24, 8 if near else 6
    mesh.cylinder((0, 0, -0.2), 0.045 * height, 0.3 * height, trunk, 6 if near else 4, cap=False)
    tiers = 4 if near else 3
    for i in range(tiers):
        t = i / tiers
        tier, turn = height * (0.42 - 0.06 * i), rng.uniform(0, 1)
        base, width = height * (0.16 + 0.62 * t), r * (1 - 0.68 * t)
        mesh.cylinder((0, 0, base), width, tier, shade(leaf, 0.88 + 0.08 * i), sides, 0.0, turn=turn)
        if snow:
            mesh.cylinder((0, 0, base + tier * 0.42), width * 0.64, tier * 0.63, (0.95, 0.97, 0.98), sides, 0.0, cap=False, turn=turn)
    return Part(mesh, [Cylinder(0, 0, r * 0.62, z1=height * 0.6)], max(0.9, r * 0.9))


def tall_tree(rng: np.random.Generator, leaf: Colour, height: float = 7.0, trunk: Colour = (0.90, 0.90, 0.86), near: bool = True) -> Part:
    """Poplar, birch or cypress: a slim upright crown."""
    mesh, r = Mesh(), height * 0.14
    mesh.cylinder((0, 0, -0.2), 0.03 * height, height * 0.35, trunk, 6, cap=False)
    mesh.blob((0, 0, height * 0.6), (r, r, height * 0.4), leaf, rng, 0.10, 1 if near else 0)
    return Part(mesh, [Cylinder(0, 0, 0.05 * height, z1=height * 0.2), Cylinder(0, 0, r * 0.9, z0=height * 0.2, z1=height)], 1.0)


def palm_tree(rng: np.random.Generator, leaf: Colour, height: float = 6.0, trunk: Colour = (0.62, 0.44, 0.26)) -> Part:
    mesh = Mesh()
    mesh.cylinder((0, 0, -0.2), 0.26, height * 0.5, trunk, 6, 0.2, cap=False).cylinder((0, 0, height * 0.5 - 0.2), 0.2, height * 0.5 + 0.2, shade(trunk, 1.15), 6, 0.16, cap=False)
    top, turn = np.array([0, 0, height]), rng.uniform(0, 1)
    for i in range(8):
        a = turn + i * np.pi / 4
        out, side = np.array([np.cos(a), np.sin(a), 0]), np.array([-np.sin(a), np.cos(a), 0]) * 0.32
        mid, tip = top + out * 1.3 + (0, 0, 0.35), top + out * 2.5 - (0, 0, 0.75)
        tone = shade(leaf, 0.85 + 0.3 * (i % 2))
        for quad in ([top, mid - side, mid + side], [mid - side, tip, mid + side]):
            mesh.polygon(quad, tone).polygon(quad[::-1], shade(tone, 0.85))
    return Part(mesh, [Cylinder(0, 0, 0.3, z1=height)], 0.8)


def dead_tree(rng: np.random.Generator, height: float = 4.5, trunk: Colour = (0.46, 0.38, 0.34)) -> Part:
    mesh = Mesh().cylinder((0, 0, -0.2), 0.3, height * 0.6, trunk, 6, 0.16, cap=False)
    for i in range(4):
        a = i * 1.6 + rng.uniform(0, 0.5)
        mesh.polygon([(0, 0, height * 0.35), (0.2, 0, height * 0.45), (1.1 * np.cos(a), 1.1 * np.sin(a), height)], trunk)
        mesh.polygon([(1.1 * np.cos(a), 1.1 * np.sin(a), height), (0.2, 0, height * 0.45), (0, 0, height * 0.35)], trunk)
    return Part(mesh, [Cylinder(0, 0, 0.35, z1=height)], 0.8)


TREES: dict[str, Callable[..., Part]] = {"round": round_tree, "pine": pine_tree, "tall": tall_tree}


def rock(rng: np.random.Generator, colour: Colour = STONE, size: float = 0.9, detail: int = 0, cap: Colour | None = None) -> Part:
    mesh = Mesh().blob((0, 0, size * 0.25), (size, size * rng.uniform(0.7, 1.0), size * 0.7), colour, rng, 0.2, detail)
    if cap is not None:
        mesh.blob((0, 0, size * 0.52), (size * 0.8, size * 0.62, size * 0.46), cap, rng, 0.12, detail)
    return Part(mesh.jitter(rng, 0.08), [Cylinder(0, 0, size * 0.9, z1=size)], size)


def pebble(rng: np.random.Generator, colour: Colour, size: float = 0.5) -> Part:
    """A flat stone in the grass, nothing to bump into."""
    sides = int(rng.integers(5, 7))
    mesh = Mesh().cylinder((0, 0, -0.02), size, 0.10 + 0.08 * size, shade(colour, rng.uniform(0.86, 1.1)), sides, size * 0.72, turn=rng.uniform(0, 2))
    return Part(mesh, [], size * 0.6)


def flower(rng: np.random.Generator, colour: Colour, size: float = 0.2) -> Part:
    """A bright head on a stalk, large enough to be seen from five metres."""
    h = rng.uniform(0.25, 0.45)
    mesh = Mesh().cylinder((0, 0, 0), 0.04, h, (0.25, 0.55, 0.22), 3, cap=False)
    mesh.cylinder((0, 0, h - size * 0.2), 0.02 + size * 0.3, size * 0.5, colour, 5, size, cap=False).cylinder((0, 0, h + size * 0.3), size, size * 0.35, shade(colour, 1.12), 5, 0.0, cap=False)
    return Part(mesh, [], 0.3)


def tuft(rng: np.random.Generator, colour: Colour, size: float = 0.45) -> Part:
    mesh = Mesh()
    for i in range(3):
        a = rng.uniform(0, 0.6) + i * 2.1
        lean = np.array([np.cos(a), np.sin(a), 0]) * 0.35 * size
        mesh.cylinder(tuple(lean * 0.5), 0.09 * size / 0.45, size * rng.uniform(0.8, 1.2), colour, 3, 0.0, cap=False)
    return Part(mesh, [], 0.3)


def bush(rng: np.random.Generator, colour: Colour, size: float = 0.7) -> Part:
    mesh = Mesh().blob((0, 0, size * 0.45), (size, size, size * 0.75), colour, rng, 0.14, 1)
    return Part(mesh.jitter(rng, 0.04), [Cylinder(0, 0, size * 0.9, z1=size * 1.2)], size)


# -- small things that people made ---------------------------------------------------------------------------------------
def lamp(lit: bool, post: Colour = (0.22, 0.23, 0.27)) -> Part:
    mesh = Mesh().cylinder((0, 0, 0), 0.14, 0.3, post, 6).cylinder((0, 0, 0.3), 0.065, 2.5, post, 5, cap=False)
    mesh.box((0, 0, 3.0), (0.42, 0.42, 0.5), LAMP_LIGHT if lit else (0.90, 0.90, 0.80), glow=1.0 if lit else 0.1, taper=1.15)
    mesh.cylinder((0, 0, 3.25), 0.38, 0.3, post, 4, 0.0, turn=np.pi / 4)
    return Part(mesh, [Cylinder(0, 0, 0.15, z1=3.5)], 0.4)


def fence(length: float, colour: Colour = WOOD) -> Part:
    """A rail fence along x."""
    mesh, posts = Mesh(), max(2, round(length / 1.6) + 1)
    for x in np.linspace(-length / 2, length / 2, posts):
        mesh.box((x, 0, 0.5), (0.16, 0.16, 1.0), colour)
    for z in (0.45, 0.82):
        mesh.box((0, 0, z), (length, 0.07, 0.13), shade(colour, 1.12))
    return Part(mesh, [Box(0, 0, length / 2, 0.1, z1=1.0)], length / 2)


def crate(rng: np.random.Generator, size: float = 0.9, colour: Colour = (0.68, 0.47, 0.27)) -> Part:
    mesh = Mesh().box((0, 0, size / 2), (size, size, size), colour)
    band = shade(colour, 0.68)
    for z in (0.07, size - 0.07):
        mesh.box((0, 0, z), (size * 1.06, size * 1.06, 0.14), band)
    return Part(mesh.jitter(rng, 0.05), [Box(0, 0, size * 0.53, size * 0.53, z1=size)], size * 0.75)


def barrel(colour: Colour = (0.56, 0.36, 0.20)) -> Part:
    mesh = Mesh().cylinder((0, 0, 0), 0.38, 0.5, colour, 8, 0.48, cap=False).cylinder((0, 0, 0.5), 0.48, 0.5, shade(colour, 1.1), 8, 0.38)
    mesh.cylinder((0, 0, 0.42), 0.50, 0.16, (0.30, 0.30, 0.33), 8, cap=False)
    return Part(mesh, [Cylinder(0, 0, 0.5, z1=1.0)], 0.6)


def house(wall: Colour, roof: Colour, size: tuple[float, float, float] = (6.0, 5.0, 3.0), lit: bool = False, door: Colour = (0.45, 0.22, 0.14), trim: Colour = WHITE, snow: bool = False, chimney: bool = True) -> Part:
    """A house with a gable roof, door and windows on the front, windows on every other side; size is x, y and wall height."""
    (w, d, h), mesh = size, Mesh()
    glass, glow = (LAMP_LIGHT, 1.0) if lit else (GLASS, 0.15)
    mesh.box((0, 0, h / 2), (w, d, h), wall).box((0, 0, 0.2), (w + 0.24, d + 0.24, 0.4), shade(trim, 0.72))
    rise = d * 0.52
    mesh.gable((0, 0, h - 0.12), (w + 0.1, d + 0.9, rise), roof, wall_colour=wall)
    for side in (-1, 1):  # eaves beyond the gable ends, so that the roof has an edge
        mesh.gable((side * (w / 2 + 0.22), 0, h - 0.12), (0.42, d + 0.9, rise), shade(roof, 0.92), wall_colour=shade(trim, 0.95))
    if snow:
        mesh.gable((0, 0, h + rise * 0.40), (w + 0.92, (d + 0.9) * 0.62, rise * 0.66), (0.95, 0.97, 0.985))
    if chimney:
        mesh.box((w * 0.28, d * 0.16, h + rise * 0.72), (0.7, 0.7, 1.5), (0.60, 0.36, 0.30)).box((w * 0.28, d * 0.16, h + rise * 0.72 + 0.8), (0.86, 0.86, 0.2), (0.34, 0.30, 0.30))
    mesh.box((0, -d / 2, 1.05), (1.36, 0.16, 2.1), trim).box((0, -d / 2 - 0.06, 1.0), (1.06, 0.18, 1.9), door).box((0, -d / 2 - 0.5, 0.09), (1.8, 1.0, 0.18), (0.66, 0.64, 0.62))

    def window(x: float, y: float, across: bool, z: float = 1.7) -> None:
        wide, thin = 1.15, 0.14
        frame, pane = ((wide, thin, wide), (wide - 0.3, thin + 0.1, wide - 0.3)) if across else ((thin, wide, wide), (thin + 0.1, wide - 0.3, wide - 0.3))
        mesh.box((x, y, z), frame, trim).box((x, y, z), pane, glass, glow=glow)

    for x in (-w * 0.33, w * 0.33):
        window(x, -d / 2, True)
        window(x, d / 2, True)
    for x in (-w / 2, w / 2):
        window(x, 0, False)
        window(x + np.sign(x) * 0.40, 0, False, h + rise * 0.34) if d > 5.4 else None
    return Part(mesh, [Box(0, 0, w / 2 + 0.15, d / 2 + 0.15, z1=h), Box(0, 0, w / 2 + 0.45, d / 2 + 0.45, z0=h - 0.2, z1=h + rise * 0.9)], np.hypot(w, d) / 2)


# -- ground and far scenery ----------------------------------------------------------------------------------------------
def patches(rng: np.random.Generator, scale: float = 9.0) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A smooth random field of x, y with values in about -1..1, from six waves."""
    direction, phase = rng.uniform(0, 2 * np.pi, 6), rng.uniform(0, 2 * np.pi, 6)
    k = 2 * np.pi / (scale * rng.uniform(0.7, 1.8, 6))
    return lambda x, y: sum(np.sin(k[i] * (np.cos(direction[i]) * x + np.sin(direction[i]) * y) + phase[i]) for i in range(6)) / 2.6


def hills(rng: np.random.Generator, flat: float = 38.0, amplitude: float = 12.0) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """Height of a plain that is level within `flat` metres of the centre and rolls outside."""
    field_of = patches(rng, 70.0)

    def height(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        t = np.clip((np.hypot(x, y) - flat) / 45.0, 0, 1)
        return t * t * (3 - 2 * t) * amplitude * (0.45 + 0.5 * field_of(x, y))

    return height


def ground(mesh: Mesh, rng: np.random.Generator, height: Callable, tones: list[Colour], far: Colour, jitter: float = 0.055, cell: float = 2.4, cells: int = 11) -> None:
    """Ground of irregular triangles: patches of `tones` in the middle, `far` on the hills, finer where one walks."""
    inner = np.arange(-cells, cells + 1) * cell
    ring = np.array([32, 39, 47, 58, 72, 92, 125, 180.0])
    axis = np.concatenate([-ring[::-1], inner, ring])
    x, y = np.meshgrid(axis, axis)
    spacing = np.gradient(axis)
    x = x + rng.uniform(-0.26, 0.26, x.shape) * spacing[None, :]
    y = y + rng.uniform(-0.26, 0.26, y.shape) * spacing[:, None]
    p = np.stack([x, y, height(x, y)], -1)
    a, b, c, d = p[:-1, :-1], p[:-1, 1:], p[1:, 1:], p[1:, :-1]
    triangles = np.stack([np.stack([a, b, c], -2), np.stack([a, c, d], -2)], 2).reshape(-1, 3, 3)
    middle = triangles.mean(1)
    radius = np.hypot(middle[:, 0], middle[:, 1])
    triangles, middle, radius = triangles[radius < 200], middle[radius < 200], radius[radius < 200]
    level = patches(rng, 11.0)(middle[:, 0], middle[:, 1]) + rng.uniform(-0.25, 0.25, len(middle))
    index = np.clip(((level + 1) / 2 * len(tones)).astype(int), 0, len(tones) - 1)
    colour = np.array(tones)[index]
    away = np.clip((radius - 36) / 40, 0, 1)[:, None]
    colour = colour * (1 - away) + np.array(far) * away
    mesh.add(triangles, np.clip(colour * (1 + rng.uniform(-jitter, jitter, (len(colour), 1))), 0, 0.985))


def ribbon(mesh: Mesh, rng: np.random.Generator, points: np.ndarray, width: float, colour: Colour, z: float = 0.04, across: int = 2, pace: float = 1.1, jitter: float = 0.08, glow: float = 0.0) -> np.ndarray:
    """A path or river of slabs along a polyline [N, 2]; returns the line it follows, resampled every `pace` metres."""
    points = np.asarray(points, dtype=np.float64)
    for _ in range(2):  # corner cutting
        cut = np.stack([0.75 * points[:-1] + 0.25 * points[1:], 0.25 * points[:-1] + 0.75 * points[1:]], 1).reshape(-1, 2)
        points = np.concatenate([points[:1], cut, points[-1:]])
    along = np.concatenate([[0], np.cumsum(np.hypot(*np.diff(points, axis=0).T))])
    t = np.linspace(0, along[-1], max(2, int(along[-1] / pace) + 1))
    line = np.column_stack([np.interp(t, along, points[:, i]) for i in (0, 1)])
    tangent = np.gradient(line, axis=0)
    normal = np.column_stack([-tangent[:, 1], tangent[:, 0]]) / np.maximum(np.hypot(*tangent.T), 1e-9)[:, None]
    steps = np.linspace(-0.5, 0.5, across + 1) * width
    p = line[:, None] + normal[:, None] * (steps[None, :, None] * (1 + rng.uniform(-0.10, 0.10, (len(line), 1, 1))))
    p = np.concatenate([p, np.full(p.shape[:2] + (1,), z)], -1)
    a, b, c, d = p[:-1, :-1], p[:-1, 1:], p[1:, 1:], p[1:, :-1]  # a -> b across to the left, a -> d along
    quads = np.stack([np.stack([a, d, c], -2), np.stack([a, c, b], -2)], 2).reshape(-1, 3, 3)
    tone = np.repeat(1 + rng.uniform(-jitter, jitter, len(quads) // 2), 2)
    mesh.add(quads, np.clip(np.array(colour) * tone[:, None], 0, 0.985), glow)
    return line


def pool(mesh: Mesh, rng: np.random.Generator, x: float, y: float, radius: float, colour: Colour, z: float = 0.06, shore: Colour | None = None, sides: int = 18, stretch: float = 1.0, glow: float = 0.12) -> None:
    """A lake or pond as flat rings of slightly different tones, on a `shore` that is a little larger."""
    angle = np.linspace(0, 2 * np.pi, sides + 1)[:-1]
    wobble = 1 + 0.10 * np.sin(2 * angle + rng.uniform(0, 6)) + 0.06 * np.sin(3 * angle + rng.uniform(0, 6))
    edge = np.column_stack([np.cos(angle) * wobble * stretch, np.sin(angle) * wobble]) * radius
    rings = [(1.0, z, colour), (0.66, z, shade(colour, 0.93)), (0.33, z, shade(colour, 0.86))]
    if shore is not None:
        rings = [(1 + 1.6 / radius, z - 0.03, shore)] + rings
    for (outer, z_out, tone), (inner, _, _) in zip(rings, rings[1:] + [(0.0, z, colour)], strict=True):
        inner = inner if tone is not shore else 0.9
        ring = np.column_stack([edge * outer + (x, y), np.full(sides, z_out)])
        within = np.column_stack([edge * inner + (x, y), np.full(sides, z_out)])
        following = np.roll(np.arange(sides), -1)
        quads = np.concatenate([np.stack([ring, ring[following], within[following]], 1), np.stack([ring, within[following], within], 1)])
        mesh.add(quads, np.clip(np.array(tone) * (1 + rng.uniform(-0.08, 0.08, (len(quads), 1))), 0, 0.985), 0.0 if tone is shore else glow)


def mountain(rng: np.random.Generator, radius: float, height: float, colour: Colour, cap: Colour | None = (0.96, 0.97, 0.98), sides: int = 8, cap_at: float = 0.62) -> Part:
    """A rough peak of rings; facets above `cap_at` of the height carry the cap."""
    mesh, angle = Mesh(), np.arange(sides) * 2 * np.pi / sides
    levels = [(1.0, -0.08), (0.68, 0.34), (0.34, cap_at), (0.14, 0.84)]
    rings = []
    for r, z in levels:
        wobble = rng.uniform(0.82, 1.18, sides)
        rings.append(np.column_stack([np.cos(angle) * r * wobble * radius, np.sin(angle) * r * wobble * radius, np.full(sides, z * height) + rng.uniform(-0.05, 0.05, sides) * height]))
    for i, (low, high) in enumerate(itertools.pairwise(rings)):
        tone = cap if cap is not None and i == 2 else shade(colour, 0.92 + 0.1 * i)
        for j in range(sides):
            k = (j + 1) % sides
            mesh.add(np.array([[low[j], low[k], high[k]], [low[j], high[k], high[j]]]), tone)
    peak = np.array([0, 0, height])
    for j in range(sides):
        mesh.add(np.array([[rings[-1][j], rings[-1][(j + 1) % sides], peak]]), colour if cap is None else cap)
    return Part(mesh.jitter(rng, 0.05), [], radius)
