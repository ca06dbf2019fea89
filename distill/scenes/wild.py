"""Wild places: a desert, a red canyon, an island, an icy shore, a savanna and night dunes.

The walkable middle is nearly flat and strewn with stones, tufts and patches to track; each bearing has a landmark of its
own shape and colour, so that a picture tells the direction. Variants 0..5 are one fixed biome each.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from distill.scenes import hours
from distill.scenes import landmarks as marks
from distill.scenes.mesh import Colour, Mesh
from distill.scenes.scene import Box, Cylinder, Scene

REACH = 22.0  # metres from the centre that the camera may go
SEA = -0.32  # height of the sea in metres
TENTS: dict[str, Colour] = {"blue": (0.10, 0.35, 0.90), "orange": (1.0, 0.50, 0.08), "red": (0.90, 0.14, 0.16), "green": (0.10, 0.62, 0.36), "violet": (0.52, 0.24, 0.78)}


@dataclass
class _Land:
    """A wild place while it grows; bearings are degrees, 0 east, 90 north, turned by `turn` as a whole."""

    rng: np.random.Generator
    hour: str
    wave: np.ndarray  # [K, 4]: frequency x, y, phase, weight of the bumps
    turn: float = 0.0
    flip: int = 1  # -1: bearings run clockwise
    loose: float = 0.0  # degrees by which small things stray from their bearings
    tint: tuple[float, float, float] = (1.0, 1.0, 1.0)  # of the ground
    bump: float = 0.13
    hills: float = 9.0
    rim: float = 34.0  # where hills begin
    gain: float = 1.15  # of the hour's ambient light: clean colours
    shore: float = 0.0  # beyond this radius the land sinks below the sea; 0: none
    mesh: Mesh = field(default_factory=Mesh)
    colliders: list[Box | Cylinder] = field(default_factory=list)
    focus: list[tuple[float, float, float]] = field(default_factory=list)

    def height(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Height of the land at arrays x, y."""
        x, y = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
        n = sum(w * np.sin(fx * x + fy * y + p) for fx, fy, p, w in self.wave) / np.abs(self.wave[:, 3]).sum()
        r = np.hypot(x, y)
        if self.shore:
            return self.bump * n - 2.4 * _smooth((r - self.shore - 3.0 * n) / 11.0)
        return self.bump * n + self.hills * _smooth((r - self.rim) / 70.0) * (0.55 + n)

    def ground(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """What the camera stays above: land or sea."""
        return np.maximum(self.height(x, y), SEA) if self.shore else self.height(x, y)

    def at(self, bearing: float, distance: float) -> tuple[float, float, float]:
        a = self.flip * np.radians(bearing) + self.turn
        x, y = float(distance * np.cos(a)), float(distance * np.sin(a))
        return x, y, float(self.ground(np.array(x), np.array(y)))

    def put(
        self, thing: Mesh, bearing: float, distance: float, yaw: float = 0.0, solid: float = 0.0, look: float = 0.0, scale: float = 1.0, sink: float = 0.1,
    ) -> None:  # fmt: skip
        """Place `thing`; its -y side faces the centre when yaw is 0. `solid`: radius to bump into; `look`: height worth looking at."""
        if self.loose and solid <= 0.6:
            bearing, distance = bearing + self.rng.uniform(-self.loose, self.loose), distance * self.rng.uniform(0.94, 1.12)
        x, y, z = self.at(bearing, distance)
        self.mesh.place(thing, x, y, z - sink, np.arctan2(y, x) - np.pi / 2 + yaw, scale)
        if solid:
            self.colliders.append(Cylinder(x, y, solid))
        if look:
            self.focus.append((x, y, z + look))

    def feet(self, bearing: float, distance: float, half_span: float, radius: float) -> None:
        """Colliders of the two feet of an arch that was put there."""
        x, y, _ = self.at(bearing, distance)
        for s in (-half_span / distance, half_span / distance):
            self.colliders.append(Cylinder(x + s * y, y - s * x, radius))

    def terrain(self, near: tuple[Colour, Colour], far: Colour, beach: Colour | None = None) -> None:
        """Jittered height field: 2 m cells in the middle, growing outwards."""
        inner = np.linspace(-28, 28, 29)
        outer = np.array([31.0, 35, 41, 49, 60, 76, 100, 135, 190])
        axis = np.concatenate([-outer[::-1], inner, outer])
        if self.shore:
            axis = axis[np.abs(axis) < 50]
        size = np.gradient(axis)
        gx, gy = np.meshgrid(axis, axis)
        gx = gx + self.rng.uniform(-0.28, 0.28, gx.shape) * size[None, :]
        gy = gy + self.rng.uniform(-0.28, 0.28, gy.shape) * size[:, None]
        p = np.stack([gx, gy, self.height(gx, gy)], -1)
        a, b, c, d = p[:-1, :-1], p[:-1, 1:], p[1:, 1:], p[1:, :-1]
        tri = np.stack([np.stack([a, b, c], -2), np.stack([a, c, d], -2)], 2).reshape(-1, 3, 3)
        mid = tri.mean(1)
        mix = 0.5 + 0.5 * np.sin(0.21 * mid[:, 0] + 1.3 * np.sin(0.17 * mid[:, 1])) * np.cos(0.19 * mid[:, 1] + 0.7)
        mix = np.round(mix * 2) / 2
        colour = np.array(near[0]) * (1 - mix[:, None]) + np.array(near[1]) * mix[:, None]
        r = np.hypot(mid[:, 0], mid[:, 1])
        t = _smooth((r - 30) / 40)[:, None]
        colour = colour * (1 - t) + np.array(far) * t
        if beach is not None:
            edge = _smooth((r - self.shore + 4.5 + 2 * np.sin(3 * np.arctan2(mid[:, 1], mid[:, 0]))) / 0.6)[:, None]
            colour = colour * (1 - edge) + np.array(beach) * edge
        self.mesh.add(tri, np.clip(colour * self.tint * (1 + self.rng.uniform(-0.055, 0.055, (len(tri), 1))), 0, 1))

    def sea(self, shallow: Colour, deep: Colour) -> None:
        """Rings of water around the land, from shallow to deep."""
        radius = np.array([self.shore - 6.0, self.shore + 3.5, self.shore + 7, self.shore + 12, 45, 65, 100, 170, 320.0])
        turn = np.linspace(0, 2 * np.pi, 33)
        for i in range(len(radius) - 1):
            t = _smooth((i - 0.5) / 4.5)
            c = np.array(shallow) * (1 - t) + np.array(deep) * t
            for j in range(32):
                a, b = turn[j], turn[j + 1]
                shade = np.clip(c * self.rng.uniform(0.95, 1.05), 0, 1)
                self.mesh.polygon([(q * np.cos(w), q * np.sin(w), SEA) for q, w in ((radius[i], a), (radius[i + 1], a), (radius[i + 1], b), (radius[i], b))], tuple(shade))

    def patch(self, x: float, y: float, radius: float, colour: Colour, lift: float = 0.05, sides: int = 7) -> None:
        """Irregular flat patch lying on the ground."""
        w = np.arange(sides) * (2 * np.pi / sides) + self.rng.uniform(0, 1)
        q = radius * self.rng.uniform(0.75, 1.1, sides)
        px, py = x + q * np.cos(w), y + q * np.sin(w)
        self.mesh.polygon(np.column_stack([px, py, self.ground(px, py) + lift]), colour)

    def strew(self, patches: tuple, stones: Colour, tuft: Colour, counts: tuple[int, int, int] = (120, 50, 100)) -> None:
        """Patches, stones and tufts over the walkable middle."""
        rng, keep = self.rng, (self.shore + 2.0 if self.shore else REACH + 5)
        for _ in range(counts[0]):
            x, y = _in_disc(rng, keep)
            self.patch(x, y, rng.uniform(0.45, 1.25), patches[int(rng.integers(len(patches)))])
        for _ in range(counts[1]):
            x, y = _in_disc(rng, keep)
            r = rng.uniform(0.14, 0.36)
            shade = tuple(np.clip(np.array(stones) * rng.uniform(0.8, 1.2), 0, 1))
            self.mesh.blob((x, y, float(self.ground(np.array(x), np.array(y))) + 0.3 * r), (r, r, 0.7 * r), shade, rng, 0.2, 0)
        for _ in range(counts[2]):
            x, y = _in_disc(rng, keep)
            z = float(self.ground(np.array(x), np.array(y)))
            shade = tuple(np.clip(np.array(tuft) * rng.uniform(0.8, 1.2), 0, 1))
            for a in rng.uniform(0, 6.28, 3):
                side, tip = np.array([np.cos(a), np.sin(a), 0]) * 0.10, np.array([-np.sin(a) * 0.22, np.cos(a) * 0.22, rng.uniform(0.3, 0.55)])
                marks.leaf(self.mesh, [np.array([x, y, z]) - side, np.array([x, y, z]) + side, np.array([x, y, z]) + tip], shade)

    def path(self, bearing0: float, bearing1: float, colours: tuple[Colour, Colour], reach: float = 21.0) -> None:
        """Stepping slabs from one bearing through the middle to another."""
        start, end = np.array(self.at(bearing0, reach)[:2]), np.array(self.at(bearing1, reach)[:2])
        n = int(2 * reach / 1.3)
        for i, t in enumerate(np.linspace(0, 1, n)):
            x, y = start * (1 - t) ** 2 + end * t**2 + 2 * t * (1 - t) * self.rng.uniform(-0.15, 0.15, 2)
            self.patch(float(x), float(y), 0.62, colours[i % 2], lift=0.08, sides=6)

    def boulders(self, count: int, colour: Colour, low: float = 10.0, high: float = 24.0) -> None:
        """Solid rocks of a metre or so."""
        for _ in range(count):
            r = self.rng.uniform(0.6, 1.3)
            rock = Mesh().blob((0, 0, 0.35 * r), (r, r * 0.85, r * 0.75), tuple(np.clip(np.array(colour) * self.rng.uniform(0.88, 1.1), 0, 1)), self.rng, 0.18, 1).jitter(self.rng, 0.06)
            self.put(rock, self.rng.uniform(0, 360), self.rng.uniform(low, high), solid=r)

    def scene(self, caption: str) -> Scene:
        rng = self.rng
        reach = min(REACH, self.shore - 1.0) if self.shore else REACH
        spots = np.array([_in_disc(rng, reach - 5.0) for _ in range(160)])
        free = np.ones(len(spots), dtype=bool)
        for c in self.colliders:
            radius = c.radius if isinstance(c, Cylinder) else max(c.half_x, c.half_y)
            free &= np.hypot(spots[:, 0] - c.x, spots[:, 1] - c.y) > radius + 2.0
        sky = hours.sky(rng, self.hour)
        sky = replace(sky, ambient=sky.ambient * self.gain)
        return Scene(
            family="wild", caption=caption, mesh=self.mesh, sky=sky, colliders=self.colliders, ground=self.ground,
            bounds=(-reach, reach, -reach, reach), ceiling=9.0, eye_height=1.7, step=0.22, spots=spots[free][:80], focus=np.array(self.focus),
        )  # fmt: skip


def build(rng: np.random.Generator, variant: int | None = None) -> Scene:
    """One wild place; `variant` 0..5 chooses the biome and its own hour, None draws everything."""
    which = int(rng.integers(len(BIOMES))) if variant is None else variant % len(BIOMES)
    biome, hour, choices = BIOMES[which]
    if variant is None:
        hour = str(rng.choice(choices))
    wave = np.column_stack([rng.uniform(-0.5, 0.5, (7, 2)), rng.uniform(0, 6.28, 7), np.linspace(1, 0.5, 7)])
    land, tents = _Land(rng, hour, wave), list(TENTS)
    if variant is None:
        land.turn, land.flip, land.loose = rng.uniform(0, 2 * np.pi), int(rng.choice((-1, 1))), 12.0
        land.tint = tuple(rng.uniform(0.88, 1.06, 3))
        rng.shuffle(tents)
    return biome(land, tents)


def _desert(land: _Land, tents: list[str]) -> Scene:
    rng, red = land.rng, ((0.80, 0.42, 0.26), (0.90, 0.56, 0.34), (0.70, 0.34, 0.24))
    land.hills = 5.0
    land.terrain(((0.97, 0.82, 0.48), (0.93, 0.72, 0.38)), (0.96, 0.80, 0.52))
    land.put(marks.pyramid(26.0, ((0.96, 0.80, 0.42), (0.84, 0.62, 0.28)), cap=(0.20, 0.75, 0.85)), 0, 44, look=5.0)
    for b, d, r, h in ((90, 60, 12, 17), (112, 75, 9, 24), (74, 85, 15, 12), (200, 90, 16, 18), (285, 110, 14, 26)):
        land.put(marks.mesa(rng, r, h, red), b, d, look=6.0 if b == 90 else 0.0)
    land.put(marks.tent(TENTS[tents[0]], size=4.2), 180, 15, yaw=np.pi / 2 + 0.4, solid=2.9, look=1.4)
    land.put(marks.flag(TENTS[tents[2]], 4.5), 165, 13.5, solid=0.3)
    x, y, _ = land.at(270, 16)  # the oasis
    land.patch(x, y, 7.0, (0.42, 0.72, 0.28), 0.07, 12)
    land.patch(x, y, 5.0, (0.15, 0.68, 0.86), 0.11, 12)
    for b, d, h in ((262, 10.5, 6.0), (288, 13, 7.0), (250, 16, 6.5), (276, 22.5, 8.0), (259, 23, 6.0)):
        land.put(marks.palm(rng, h), b, d, solid=0.4, look=3.0 if d == 13 else 0.0)
    for b, d, h in ((30, 9, 3.2), (48, 17, 4.2), (-28, 16, 3.4), (122, 9, 2.8), (140, 20, 4.0), (215, 12, 3.4), (15, 22, 3.0), (330, 24, 4.4), (80, 20, 3.6), (190, 26, 4.0)):
        land.put(marks.cactus(rng, h), b + rng.uniform(-4, 4), d, yaw=rng.uniform(0, 6), solid=0.5, look=1.8 if d < 10 else 0.0)
    land.put(marks.beast("camel"), 205, 18, yaw=0.4, solid=1.3, look=1.5)
    land.boulders(5, (0.78, 0.48, 0.34))
    land.path(180, 0, ((0.80, 0.52, 0.30), (0.99, 0.92, 0.72)))
    land.strew(((0.88, 0.64, 0.32), (0.99, 0.90, 0.62), (0.80, 0.55, 0.30)), (0.72, 0.45, 0.34), (0.45, 0.62, 0.22))
    return land.scene(f"A yellow desert {hours.WORDS[land.hour]} with a stepped pyramid, cacti, {_a(tents[0])} tent, an oasis and red mesas.")


def _canyon(land: _Land, tents: list[str]) -> Scene:
    rng = land.rng
    bands = ((0.72, 0.26, 0.16), (0.92, 0.46, 0.22), (0.98, 0.70, 0.42), (0.82, 0.34, 0.20))
    land.hills = 6.0
    land.terrain(((0.88, 0.44, 0.24), (0.78, 0.34, 0.20)), (0.86, 0.44, 0.26))
    land.put(marks.arch(rng, 15.0, 10.5, 4.0, (bands[3], bands[1])), 90, 18, look=5.0)
    land.feet(90, 18, 7.5, 2.6)
    cliffs = (
        (40, 42, 11, 20), (62, 60, 14, 28), (128, 44, 12, 24), (150, 36, 9, 15), (18, 46, 10, 16), (205, 40, 11, 22),
        (228, 52, 14, 30), (308, 42, 11, 18), (335, 50, 13, 24), (180, 56, 13, 26), (270, 75, 12, 32),
    )  # fmt: skip
    for b, d, r, h in cliffs:
        land.put(marks.mesa(rng, r, h, bands, taper=0.62), b, d)
    for i, b in enumerate((-14, -2, 9)):  # three needles of rock in the east
        land.put(marks.mesa(rng, 1.7, (7, 11, 8)[i], bands, 8, 0.45), b, 20 + 3 * (i == 1), solid=2.0, look=4.0 if i == 1 else 0.0)
    for d, r in ((10, 2.6), (13.5, 3.2), (17.5, 3.6), (22, 4.0), (27, 4.6)):  # a chain of turquoise pools in the west
        x, y, _ = land.at(180 + 10 * np.sin(d), d)
        land.patch(x, y, r * 1.25, (0.98, 0.78, 0.52), 0.06, 10)
        land.patch(x, y, r, (0.10, 0.74, 0.74), 0.10, 10)
    land.focus.append((*land.at(180, 18)[:2], 0.3))
    land.put(marks.teepee((0.97, 0.93, 0.84), TENTS[tents[0]], 5.0), 270, 15, solid=2.4, look=2.0)
    land.put(marks.teepee((0.97, 0.93, 0.84), TENTS[tents[3]], 4.2), 286, 18, solid=2.0)
    land.put(marks.camp_fire(rng), 278, 11.5, solid=1.1)
    for b, d, h in ((35, 13, 3.4), (60, 8, 2.4), (135, 14, 3.8), (225, 10, 3.0), (245, 20, 4.0), (320, 12, 3.2), (110, 24, 3.5)):
        land.put(marks.cactus(rng, h, (0.20, 0.56, 0.34)), b, d, solid=0.5, look=1.5 if d < 13 else 0.0)
    land.boulders(7, (0.66, 0.26, 0.18), 8.0)
    land.strew(((0.96, 0.62, 0.36), (0.66, 0.26, 0.17), (0.98, 0.74, 0.48)), (0.60, 0.24, 0.20), (0.55, 0.62, 0.25))
    return land.scene(f"A red rock canyon {hours.WORDS[land.hour]} with a tall stone arch, striped cliffs, turquoise pools and white teepees.")


def _island(land: _Land, tents: list[str]) -> Scene:
    rng = land.rng
    land.shore, land.bump, land.gain = 19.0, 0.16, 1.1
    land.terrain(((0.40, 0.78, 0.24), (0.52, 0.84, 0.28)), (0.97, 0.88, 0.60), beach=(0.99, 0.89, 0.60))
    land.sea((0.30, 0.85, 0.86), (0.06, 0.42, 0.80))
    rock = Mesh().blob((0, 0, -0.6), (5.5, 5.5, 2.2), (0.58, 0.56, 0.56), rng, 0.12, 1).jitter(rng, 0.06)
    land.put(rock, 0, 20.5, solid=5.0)
    land.put(marks.lighthouse(15.0), 0, 20.5, solid=2.6, look=6.0, sink=-1.2)
    land.put(marks.hut((0.98, 0.92, 0.72), TENTS[tents[0]], 4.4), 90, 12.5, solid=2.9, look=1.6)
    land.put(marks.hut((1.0, 0.76, 0.30), (0.85, 0.25, 0.30), 3.4), 118, 13.5, yaw=0.3, solid=2.4)
    land.put(marks.boat(TENTS[tents[2]], size=4.2), 182, 16.0, yaw=0.5, solid=2.0, look=0.8)
    land.put(marks.boat((0.95, 0.95, 0.92), TENTS[tents[1]], 9.0), 212, 62, yaw=0.3, look=4.0)
    land.put(marks.boat(TENTS[tents[3]], TENTS[tents[4]], 7.0), 140, 85, yaw=-0.5)
    for b, d, r, h, c in ((290, 150, 34, 30, (0.35, 0.62, 0.36)), (306, 170, 26, 48, (0.42, 0.56, 0.44)), (60, 190, 30, 24, (0.35, 0.60, 0.40))):
        x, y, _ = land.at(b, d)
        land.mesh.cylinder((x, y, -1), r, h, c, 9, top_radius=r * 0.22)
    for b, d in ((268, 14.5), (279, 12), (290, 15), (255, 10.5), (302, 11), (32, 13), (50, 15.5), (150, 14), (165, 10.5), (215, 12.5), (230, 15.5), (335, 14), (72, 7.5)):
        land.put(marks.palm(rng, rng.uniform(5.2, 7.4)), b + rng.uniform(-3, 3), d, solid=0.45, look=3.0 if b in (279, 215) else 0.0)
    for b, c in ((195, (1.0, 0.3, 0.3)), (250, (1.0, 0.85, 0.2)), (310, (0.3, 0.5, 1.0))):  # parasols
        land.put(Mesh().box((0, 0, 1.1), (0.1, 0.1, 2.2), marks.WHITE).cylinder((0, 0, 1.9), 1.4, 0.7, c, 8, top_radius=0.0), b, 16.5, solid=0.3, look=1.2 if b == 310 else 0.0)
    for _ in range(9):
        b, c = rng.uniform(0, 360), ((0.95, 0.30, 0.55), (1.0, 0.85, 0.2), (0.95, 0.95, 0.98))[int(rng.integers(3))]
        bush = Mesh().blob((0, 0, 0.35), (0.7, 0.7, 0.55), (0.20, 0.60, 0.26), rng, 0.15, 1)
        for a in (0.2, 1.8, 3.4, 5.0):
            bush.blob((0.5 * np.cos(a), 0.5 * np.sin(a), 0.65), 0.16, c, rng, 0.1, 0)
        land.put(bush, b, rng.uniform(6, 13), solid=0.7)
    land.path(92, 0, ((0.99, 0.92, 0.68), (0.86, 0.72, 0.48)), 14.0)
    land.strew(((0.62, 0.88, 0.34), (0.30, 0.66, 0.24), (0.97, 0.90, 0.60)), (0.72, 0.70, 0.68), (0.18, 0.60, 0.22), (100, 40, 100))
    return land.scene(f"A green island {hours.WORDS[land.hour]} with a red and white lighthouse, {tents[0]}-roofed hut, palms and sea.")


def _ice(land: _Land, tents: list[str]) -> Scene:
    rng = land.rng
    land.shore, land.bump, land.gain = 21.0, 0.12, 1.2
    land.terrain(((0.93, 0.96, 1.0), (0.80, 0.90, 0.98)), (0.80, 0.90, 0.98), beach=(0.66, 0.86, 0.96))
    land.sea((0.30, 0.70, 0.86), (0.10, 0.34, 0.60))
    for b, d, r, h in ((5, 38, 8, 15), (-22, 50, 7, 9), (75, 60, 10, 14), (215, 45, 7, 10), (250, 60, 12, 20), (300, 52, 8, 12), (160, 70, 9, 12)):
        land.put(marks.iceberg(rng, r, h), b, d, look=5.0 if d == 38 else 0.0, sink=1.0)
    for b, d, r, h in ((95, 170, 60, 62), (125, 180, 55, 48), (62, 190, 60, 44), (170, 200, 60, 40), (30, 210, 50, 30)):
        x, y, _ = land.at(b, d)
        land.mesh.cylinder((x, y, -1), r, h * 0.6, (0.52, 0.60, 0.76), 7, top_radius=r * 0.42, turn=b)
        land.mesh.cylinder((x, y, h * 0.6 - 1), r * 0.42, h * 0.4, (0.97, 0.97, 1.0), 7, top_radius=0.0, turn=b)
    land.put(marks.tent(TENTS[tents[1]], (1.0, 0.85, 0.30), 4.2), 180, 14, yaw=np.pi / 2 - 0.4, solid=2.9, look=1.4)
    land.put(marks.flag(TENTS[tents[2]], 5.0), 196, 13, solid=0.3, look=3.0)
    land.put(marks.igloo(2.6), 90, 13.5, solid=3.0, look=1.3)
    land.put(marks.igloo(1.7), 112, 15, solid=2.0)
    land.put(marks.boat(TENTS[tents[2]], size=4.0), 330, 18.5, yaw=0.4, solid=2.0, look=0.8)
    for i, (b, d) in enumerate(((262, 15), (268, 13.6), (275, 15.2), (281, 14), (256, 13.5), (20, 12))):
        land.put(marks.beast("penguin", 1.2), b, d, yaw=np.pi / 2 * 3 + rng.uniform(-0.8, 0.8), solid=0.5, look=0.8 if i == 1 else 0.0)
    for b, d, h in ((45, 14, 5.5), (55, 16.5, 6.5), (64, 13, 5.0), (140, 15, 6.0), (150, 12, 5.0), (228, 15.5, 6.0), (238, 12, 4.6), (308, 14, 5.5), (40, 18, 5.5)):
        land.put(marks.pine(h), b, d, solid=0.6, look=2.0 if b in (55, 308) else 0.0)
    for b, d in ((350, 13), (30, 8), (130, 8), (210, 8), (290, 9)):
        land.put(marks.iceberg(rng, 0.9, 1.9, (0.40, 0.78, 0.95)), b, d, solid=1.2)
    land.path(180, 90, ((0.62, 0.74, 0.88), (0.72, 0.82, 0.94)), 12.0)
    land.strew(((0.70, 0.84, 0.96), (0.99, 0.99, 1.0), (0.60, 0.78, 0.92)), (0.48, 0.54, 0.66), (0.55, 0.70, 0.78), (120, 44, 40))
    return land.scene(f"A snowy shore {hours.WORDS[land.hour]} with blue icebergs, an igloo, {_a(tents[1])} tent, penguins and dark firs.")


def _savanna(land: _Land, tents: list[str]) -> Scene:
    rng = land.rng
    land.hills, land.gain = 5.0, 1.2
    land.terrain(((0.93, 0.77, 0.34), (0.78, 0.69, 0.28)), (0.72, 0.70, 0.36))
    x, y, _ = land.at(60, 260)  # a far snow-capped mountain
    land.mesh.cylinder((x, y, -5), 130, 52, (0.46, 0.48, 0.66), 11, top_radius=48).cylinder((x, y, 47), 48, 20, (0.97, 0.97, 1.0), 11, top_radius=20)
    land.put(marks.baobab(rng, 11.0), 0, 17, solid=2.5, look=5.0)
    land.put(marks.round_hut((0.80, 0.40, 0.22), (0.95, 0.80, 0.42), 2.1), 180, 15, solid=2.6, look=1.6)
    land.put(marks.round_hut(TENTS[tents[0]], (0.92, 0.76, 0.40), 1.9), 200, 17, solid=2.4)
    land.put(marks.round_hut((0.85, 0.25, 0.20), (0.90, 0.74, 0.38), 1.8), 162, 18, solid=2.3)
    land.put(marks.beast("giraffe", 1.15), 96, 15, yaw=0.5, solid=1.5, look=3.0)
    land.put(marks.beast("giraffe", 1.0), 84, 20, yaw=np.pi - 0.4, solid=1.4)
    land.put(marks.beast("giraffe", 1.1), 108, 30, yaw=0.9)
    x, y, _ = land.at(270, 17)
    land.patch(x, y, 7.5, (0.62, 0.44, 0.24), 0.06, 12)
    land.patch(x, y, 5.6, (0.25, 0.60, 0.85), 0.10, 12)
    land.put(marks.beast("elephant", 1.2), 262, 11.5, yaw=2.6, solid=2.0, look=1.6)
    land.put(marks.beast("elephant", 1.0), 284, 20, yaw=0.6, solid=1.8)
    land.put(marks.beast("elephant", 0.6), 253, 12.5, yaw=2.4, solid=1.1)
    for i, (b, r) in enumerate(((134, 3.0), (128, 2.2), (141, 1.8))):  # rocks stacked in the north-west
        land.put(Mesh().blob((0, 0, 0.5 * r), (r, r, 0.9 * r), (0.66, 0.48, 0.42), rng, 0.12, 1).jitter(rng, 0.06), b, 15 + i, solid=r, look=1.5 if i == 0 else 0.0)
    trees = (
        (38, 12, 5.0), (30, 26, 6.5), (60, 24, 6.0), (118, 10, 4.6), (150, 30, 6.5), (222, 12, 5.2), (235, 26, 6.5),
        (310, 13, 5.4), (325, 24, 6.0), (345, 34, 7.0), (75, 38, 7.0), (195, 34, 7.0), (300, 36, 7.0),
    )  # fmt: skip
    for b, d, h in trees:
        land.put(marks.acacia(rng, h), b, d, solid=0.5, look=3.0 if h < 5.3 else 0.0)
    land.boulders(4, (0.62, 0.44, 0.38))
    land.path(180, 0, ((0.76, 0.42, 0.22), (0.86, 0.54, 0.30)))
    land.strew(((0.70, 0.66, 0.22), (0.96, 0.82, 0.42), (0.72, 0.46, 0.22)), (0.56, 0.42, 0.38), (0.62, 0.64, 0.16), (110, 36, 110))
    return land.scene(f"A wide savanna {hours.WORDS[land.hour]} with acacias, a huge baobab, giraffes, elephants, a pond and straw huts.")


def _dunes(land: _Land, tents: list[str]) -> Scene:
    rng, night = land.rng, hours.lit(land.hour)
    land.hills, land.gain = 11.0, 1.36 if night else 1.15
    land.terrain(((0.76, 0.58, 0.80), (0.62, 0.46, 0.74)), (0.62, 0.48, 0.80))
    shine = 0.75 if night else 0.0
    land.put(marks.camp_fire(rng), 10, 5.0, solid=1.1, look=0.8)
    x0, y0, _ = land.at(10, 5.0)
    for r, c in ((4.6, (0.90, 0.52, 0.50)), (3.0, (1.0, 0.62, 0.36)), (1.7, (1.0, 0.78, 0.42))):
        land.patch(x0, y0, r, c, 0.06 + 0.03 * (5 - r) / 2, 12)
    land.put(marks.tent(TENTS[tents[2]], (1.0, 0.80, 0.30), 4.4, shine), 180, 13, yaw=np.pi / 2 + 0.3, solid=3.0, look=1.5)
    land.put(marks.tent(TENTS[tents[3]], (0.95, 0.95, 0.80), 4.0, shine), 150, 15, yaw=np.pi / 2 - 0.2, solid=2.8, look=1.4)
    land.put(marks.teepee((0.20, 0.72, 0.85), (1.0, 0.92, 0.70), 5.2, shine), 210, 15, solid=2.4, look=2.0)
    land.put(marks.pyramid(30.0, ((0.95, 0.66, 0.36), (0.80, 0.48, 0.36)), cap=(1.0, 0.90, 0.45)), 90, 48, look=6.0)
    land.put(marks.pyramid(18.0, ((0.90, 0.60, 0.38), (0.74, 0.44, 0.38)), 6, cap=(1.0, 0.90, 0.45)), 62, 58)
    x, y, _ = land.at(0, 140)  # the moon
    a = np.arange(18) * (2 * np.pi / 18)
    out, side = np.array([x, y, 0]) / 140, np.array([-y, x, 0]) / 140
    for r, near, c in ((15.0, 0, (0.50, 0.52, 0.84)), (11.5, 2, (1.0, 0.96, 0.70))):
        ring = out * (140 - near) + (0, 0, 38.0) + r * (np.cos(a)[:, None] * side + np.sin(a)[:, None] * np.array([0, 0, 1.0]))
        marks.leaf(land.mesh, ring, c, 1.0)
    land.focus.append((x / 10, y / 10, 5.0))
    land.put(marks.arch(rng, 13.0, 9.0, 3.4, ((0.52, 0.34, 0.70), (0.64, 0.42, 0.74))), 270, 21, look=4.0)
    land.feet(270, 21, 6.5, 2.4)
    for b, d, h in ((40, 12, 3.4), (120, 10, 3.0), (128, 22, 4.2), (235, 9, 2.8), (250, 18, 3.8), (300, 12, 3.6), (330, 18, 4.0), (20, 20, 3.6), (68, 19, 3.2)):
        land.put(marks.cactus(rng, h, (0.14, 0.62, 0.50)), b, d, solid=0.5, look=1.6 if d < 11 else 0.0)
    for b, d, w in ((165, 9, 0.7), (195, 9.5, -0.3)):
        land.put(marks.beast("camel", 1.05), b, d, yaw=w, solid=1.3, look=1.3)
    for b, d in ((340, 9), (352, 14), (4, 12), (345, 20)):  # lanterns towards the moon
        land.put(Mesh().box((0, 0, 0.8), (0.12, 0.12, 1.6), marks.WOOD).box((0, 0, 1.8), (0.42, 0.42, 0.5), (1.0, 0.78, 0.30), glow=max(shine, 0.3)), b, d, solid=0.3)
        x, y, _ = land.at(b, d)
        land.patch(x, y, 1.8, (0.92, 0.62, 0.56), 0.06, 9)
    land.boulders(6, (0.44, 0.34, 0.62))
    land.path(180, 0, ((0.86, 0.66, 0.84), (0.50, 0.36, 0.68)))
    land.strew(((0.82, 0.62, 0.86), (0.50, 0.36, 0.68), (0.90, 0.70, 0.78)), (0.44, 0.36, 0.62), (0.30, 0.60, 0.62))
    return land.scene(f"Violet dunes {hours.WORDS[land.hour]} with a camp fire, striped tents, camels, orange pyramids and a yellow moon.")


def _smooth(t: np.ndarray | float) -> np.ndarray:
    t = np.clip(t, 0.0, 1.0)
    return t * t * (3 - 2 * t)


def _a(word: str) -> str:
    return ("an " if word[0] in "aeiou" else "a ") + word


def _in_disc(rng: np.random.Generator, radius: float) -> tuple[float, float]:
    a, r = rng.uniform(0, 2 * np.pi), radius * np.sqrt(rng.uniform())
    return float(r * np.cos(a)), float(r * np.sin(a))


BIOMES: tuple[tuple[Callable[[_Land, list[str]], Scene], str, tuple[str, ...]], ...] = (
    (_desert, "day", ("dawn", "day", "golden")),
    (_canyon, "golden", ("day", "golden", "dusk")),
    (_island, "day", ("dawn", "day", "golden", "dusk")),
    (_ice, "dawn", ("dawn", "day", "overcast", "dusk")),
    (_savanna, "golden", ("dawn", "day", "golden", "dusk")),
    (_dunes, "night", ("night", "dusk")),
)  # biome, its hour in the gallery, the hours that suit it
