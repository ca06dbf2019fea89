"""Furnished rooms joined by open doors, each with its own wall colour, floor and furniture.

Walls and floors are laid in panels of about a metre whose colours already hold the soft light of lamp and windows; one wall
of each room has an accent colour, so that a picture tells where one looks. Variants 0..5 are one fixed plan each.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from distill.scenes import hours
from distill.scenes.furniture import BRIGHT, PIECES, WALNUT, WHITE
from distill.scenes.mesh import Colour, Mesh
from distill.scenes.scene import Box, Cylinder, Scene, Sky

HEIGHT, DOOR_WIDE, DOOR_HIGH, THICK = 2.9, 1.7, 2.2, 0.08
SILL, WINDOW_TOP = 0.95, 2.1

WALLS: dict[str, Colour] = {
    "red": (0.86, 0.27, 0.24), "blue": (0.28, 0.54, 0.86), "yellow": (0.97, 0.80, 0.32), "green": (0.40, 0.70, 0.42), "violet": (0.55, 0.42, 0.80), "orange": (0.97, 0.58, 0.25),
    "teal": (0.16, 0.62, 0.64), "pink": (0.97, 0.62, 0.70), "cream": (0.97, 0.91, 0.78), "mint": (0.62, 0.90, 0.74), "navy": (0.22, 0.32, 0.62), "lavender": (0.78, 0.70, 0.95),
}  # fmt: skip
FLOORS: dict[str, tuple[str, Colour, Colour]] = {
    "oak planks": ("planks", (0.86, 0.60, 0.34), (0.74, 0.48, 0.25)),
    "dark planks": ("planks", (0.56, 0.34, 0.22), (0.46, 0.27, 0.17)),
    "pale planks": ("planks", (0.92, 0.80, 0.62), (0.84, 0.70, 0.50)),
    "black and white tiles": ("checker", (0.95, 0.94, 0.92), (0.26, 0.27, 0.31)),
    "blue and white tiles": ("checker", (0.94, 0.95, 0.96), (0.32, 0.56, 0.82)),
    "terracotta tiles": ("checker", (0.88, 0.50, 0.34), (0.96, 0.70, 0.50)),
    "green and white tiles": ("checker", (0.95, 0.95, 0.90), (0.38, 0.68, 0.50)),
    "pink tiles": ("checker", (0.98, 0.92, 0.92), (0.94, 0.62, 0.66)),
    "beige carpet": ("carpet", (0.90, 0.82, 0.68), (0.80, 0.70, 0.54)),
    "blue carpet": ("carpet", (0.36, 0.50, 0.80), (0.28, 0.40, 0.68)),
    "green carpet": ("carpet", (0.36, 0.66, 0.46), (0.28, 0.54, 0.37)),
    "red carpet": ("carpet", (0.80, 0.28, 0.28), (0.66, 0.20, 0.22)),
}

# wall, accent wall, floor, accent of the furniture (index in BRIGHT), furniture
Plan = tuple[str, str, str, int, tuple[str, ...]]
GALLERY: tuple[tuple[str, tuple[Plan, ...]], ...] = (
    ("day", (
        ("red", "cream", "oak planks", 1, ("fireplace", "sofa", "bookshelf", "coffee", "plant", "piano", "armchair", "lamp", "clock", "globe")),
        ("yellow", "orange", "black and white tiles", 2, ("kitchen", "table", "dresser", "plant")),
        ("blue", "navy", "beige carpet", 0, ("bed", "bookshelf", "dresser", "lamp", "toys")),
    )),
    ("night", (
        ("violet", "navy", "pale planks", 3, ("aquarium", "bookshelf", "desk", "globe", "bookshelf", "lamp", "armchair", "plant", "clock")),
        ("orange", "yellow", "blue carpet", 2, ("piano", "sofa", "coffee", "fireplace", "plant", "lamp", "dresser", "toys")),
    )),
    ("golden", (
        ("green", "cream", "terracotta tiles", 5, ("kitchen", "table", "plant", "clock")),
        ("pink", "violet", "pale planks", 4, ("bed", "dresser", "lamp", "toys")),
        ("cream", "red", "green carpet", 0, ("sofa", "piano", "coffee", "plant")),
        ("blue", "yellow", "pink tiles", 7, ("bath", "dresser", "plant", "armchair")),
    )),
    ("dusk", (
        ("teal", "cream", "dark planks", 5, ("piano", "bookshelf", "sofa", "globe", "plant", "fireplace", "desk", "armchair", "lamp", "coffee")),
        ("cream", "orange", "red carpet", 4, ("bed", "aquarium", "dresser", "lamp")),
        ("lavender", "violet", "green and white tiles", 3, ("table", "kitchen", "clock", "plant")),
    )),
    ("dawn", (
        ("mint", "teal", "pink tiles", 0, ("kitchen", "table", "bookshelf", "plant", "clock", "toys", "sofa")),
        ("lavender", "pink", "dark planks", 2, ("bed", "desk", "aquarium", "dresser", "lamp", "plant", "coffee")),
    )),
    ("overcast", (
        ("navy", "red", "oak planks", 3, ("bookshelf", "bookshelf", "globe", "armchair", "lamp", "clock")),
        ("yellow", "green", "blue and white tiles", 1, ("table", "kitchen", "plant")),
        ("red", "navy", "beige carpet", 7, ("fireplace", "sofa", "armchair", "coffee")),
        ("mint", "cream", "red carpet", 4, ("bed", "piano", "dresser", "toys")),
    )),
)  # fmt: skip


@dataclass
class _Side:
    """One wall of a room: starts at `origin`, runs along `along` for `length`; inside is to its right."""

    origin: np.ndarray
    along: np.ndarray
    length: float
    outer: bool
    doors: list[tuple[float, float]] = field(default_factory=list)
    windows: list[tuple[float, float]] = field(default_factory=list)
    hidden: list[tuple[float, float]] = field(default_factory=list)  # behind tall furniture

    @property
    def inward(self) -> np.ndarray:
        return np.array([self.along[1], -self.along[0]])

    @property
    def yaw(self) -> float:
        return float(np.arctan2(self.along[1], self.along[0]))

    def at(self, s: float, off: float = 0.0) -> np.ndarray:
        return self.origin + self.along * s + self.inward * off

    def free(self, a: float, b: float, *groups: list[tuple[float, float]]) -> bool:
        return all(b <= lo or a >= hi for group in groups for lo, hi in group)


@dataclass
class _Room:
    x0: float
    x1: float
    y0: float
    y1: float
    plan: Plan
    sides: list[_Side] = field(default_factory=list)  # north, east, south, west
    taken: list[tuple[float, float, float, float]] = field(default_factory=list)
    lights: list[tuple[np.ndarray, float, float]] = field(default_factory=list)  # place, strength, reach
    placed: list[str] = field(default_factory=list)

    def light(self, points: np.ndarray) -> np.ndarray:
        """Share of light [N] at points [N, 3]: about 1 near lamp and windows, 0.75 in far corners."""
        total = np.full(len(points), 0.86)
        for place, strength, reach in self.lights:
            total += strength * np.exp(-np.linalg.norm(points - place, axis=-1) / reach)
        return np.clip(total, 0.0, 1.22)

    def clear(self, box: tuple[float, float, float, float], gap: float = 0.0) -> bool:
        a0, a1, b0, b1 = box
        return all(a1 + gap <= x0 or a0 - gap >= x1 or b1 + gap <= y0 or b0 - gap >= y1 for x0, x1, y0, y1 in self.taken)


def build(rng: np.random.Generator, variant: int | None = None) -> Scene:
    """A home of two to four rooms; `variant` 0..5 chooses the plan, None draws everything."""
    hour, plans = _random_plans(rng) if variant is None else GALLERY[variant % len(GALLERY)]
    rooms, size = _layout(rng, plans)
    mesh, colliders, focus = Mesh(), [], []
    for room in rooms:
        _windows(room, rng, hour)
    for room in rooms:
        _shell(mesh, room, rng, hour, colliders, focus)
        _furnish(mesh, room, rng, colliders, focus)
    spots = np.array([(rng.uniform(r.x0 + 0.9, r.x1 - 0.9), rng.uniform(r.y0 + 0.9, r.y1 - 0.9)) for r in rooms for _ in range(70)])
    free = np.ones(len(spots), dtype=bool)
    for c in colliders:
        half = (c.radius, c.radius) if isinstance(c, Cylinder) else (c.half_x, c.half_y)
        if isinstance(c, Box) and abs(np.sin(c.yaw)) > 0.5:
            half = half[::-1]
        free &= (np.abs(spots[:, 0] - c.x) > half[0] + 0.55) | (np.abs(spots[:, 1] - c.y) > half[1] + 0.55)
    warm = {"night": (1.0, 0.90, 0.74), "dusk": (1.0, 0.90, 0.84), "golden": (1.0, 0.94, 0.82), "dawn": (1.0, 0.93, 0.90)}.get(hour, (0.98, 0.98, 0.96))
    air = tuple(0.96 * c for c in warm)
    sky = Sky(
        zenith=air, horizon=air, sun_direction=(0.45, -0.6, 0.66), sun_colour=warm, sun_strength=0.34, ambient=0.86,
        ground_bounce=tuple(0.80 * c for c in warm),
    )  # fmt: skip
    return Scene(
        family="rooms", caption=_caption(rooms, hour), mesh=mesh, sky=sky, colliders=colliders, bounds=(-size[0] / 2 + 0.3, size[0] / 2 - 0.3, -size[1] / 2 + 0.3, size[1] / 2 - 0.3),
        ceiling=2.3, eye_height=1.5, step=0.07, spots=spots[free], focus=np.array(focus), indoor=True,
    )  # fmt: skip


def _random_plans(rng: np.random.Generator) -> tuple[str, tuple[Plan, ...]]:
    names, floors, pieces = list(WALLS), list(FLOORS), list(PIECES)
    count = int(rng.integers(2, 5))
    walls = rng.permutation(names)
    kinds = rng.permutation(floors)
    return str(rng.choice(hours.HOURS)), tuple(
        (str(walls[i]), str(walls[i + 4]), str(kinds[i]), int(rng.integers(len(BRIGHT) - 2)), tuple(str(p) for p in rng.permutation(pieces)[: int(rng.integers(5, 8))]))
        for i in range(count)
    )


def _layout(rng: np.random.Generator, plans: tuple[Plan, ...]) -> tuple[list[_Room], tuple[float, float]]:
    """Rooms side by side, as a T, or two by two, with a door in every shared wall; and the size of the whole (x, y)."""
    a, b = rng.uniform(5.2, 6.0), rng.uniform(5.2, 6.0)
    c, d = rng.uniform(4.8, 5.4), rng.uniform(4.8, 5.4)
    if len(plans) == 2:
        wide, deep = a + b + 0.8, c + 0.7
        rects = [(0, a + 0.4, 0, deep), (a + 0.4, wide, 0, deep)]
    elif len(plans) == 3:
        wide, deep = a + b, c + d
        rects = [(0, wide, 0, c), (0, a, c, deep), (a, wide, c, deep)]
    else:
        wide, deep = a + b, c + d
        rects = [(0, a, 0, c), (a, wide, 0, c), (0, a, c, deep), (a, wide, c, deep)]
    rooms = []
    for (x0, x1, y0, y1), plan in zip(rects, plans, strict=True):
        room = _Room(x0 - wide / 2, x1 - wide / 2, y0 - deep / 2, y1 - deep / 2, plan)
        corner = {k: np.array(v) for k, v in {"nw": (room.x0, room.y1), "ne": (room.x1, room.y1), "se": (room.x1, room.y0), "sw": (room.x0, room.y0)}.items()}
        for p, q, edge, limit in (("nw", "ne", room.y1, deep / 2), ("ne", "se", room.x1, wide / 2), ("se", "sw", room.y0, -deep / 2), ("sw", "nw", room.x0, -wide / 2)):
            span = corner[q] - corner[p]
            length = float(np.hypot(*span))
            room.sides.append(_Side(corner[p], span / length, length, abs(edge - limit) < 1e-6))
        rooms.append(room)
    for i, one in enumerate(rooms):
        for two in rooms[i + 1 :]:
            _join(rng, one, two)
    return rooms, (wide, deep)


def _join(rng: np.random.Generator, one: _Room, two: _Room) -> None:
    for s in one.sides:
        for t in two.sides:
            if s.outer or t.outer or abs(s.along @ t.along + 1) > 1e-6 or abs((t.origin - s.origin) @ s.inward) > 1e-6:
                continue
            ends = sorted((float((t.origin - s.origin) @ s.along), float((t.at(t.length) - s.origin) @ s.along)))
            low, high = max(0.0, ends[0]), min(s.length, ends[1])
            if high - low < DOOR_WIDE + 1.0:
                continue
            middle = (low + high) / 2 + rng.uniform(-0.25, 0.25) * (high - low - DOOR_WIDE - 0.8)
            door = (middle - DOOR_WIDE / 2, middle + DOOR_WIDE / 2)
            s.doors.append(door)
            back = sorted(float((s.at(u) - t.origin) @ t.along) for u in door)
            t.doors.append((back[0], back[1]))
            for room, x in ((one, s.at(middle)), (two, s.at(middle))):
                room.taken.append((x[0] - 1.0, x[0] + 1.0, x[1] - 1.0, x[1] + 1.0))


def _windows(room: _Room, rng: np.random.Generator, hour: str) -> None:
    """One window in most outer walls; the lamp and the windows become the room's lights."""
    x, y = (room.x0 + room.x1) / 2, (room.y0 + room.y1) / 2
    room.lights.append((np.array([x, y, HEIGHT - 0.5]), 0.34 if hours.lit(hour) else 0.26, 1.9))
    outer = [s for s in room.sides if s.outer]
    for i, side in enumerate(outer):
        if i and rng.uniform() < 0.3:
            continue
        wide = rng.uniform(1.5, 2.0)
        middle = side.length * rng.uniform(0.38, 0.62)
        side.windows.append((middle - wide / 2, middle + wide / 2))
        if not hours.lit(hour):
            room.lights.append((np.array([*side.at(middle, 0.3), 1.5]), 0.22, 1.3))


def _shell(mesh: Mesh, room: _Room, rng: np.random.Generator, hour: str, colliders: list, focus: list) -> None:
    """Walls, doors, windows, floor, ceiling, lamp."""
    wall, accent, floor, tint, _ = room.plan
    panels = Mesh()
    for i, side in enumerate(room.sides):
        own, other = np.array(WALLS[wall]), np.array(WALLS[accent])
        _wall(panels, side, *((0.94 * other, 0.64 * other + 0.36 * own) if i == 0 else (own, 0.92 * own)))
        solid = [0.0, *[v for door in sorted(side.doors) for v in door], side.length]
        for a, b in zip(solid[::2], solid[1::2], strict=True):
            x, y = side.at((a + b) / 2)
            colliders.append(Box(float(x), float(y), (b - a) / 2, THICK, side.yaw))
        for a, b in side.doors:
            x, y = side.at((a + b) / 2)
            colliders.append(Box(float(x), float(y), (b - a) / 2, THICK, side.yaw, z0=DOOR_HIGH))
            focus.append((float(x), float(y), 1.3))
            for s, w in ((a - 0.01, 0.12), (b + 0.01, 0.12)):
                mesh.box((*side.at(s, 0.04), DOOR_HIGH / 2), (w, 0.2, DOOR_HIGH), WHITE, yaw=side.yaw)
            mesh.box((*side.at((a + b) / 2, 0.04), DOOR_HIGH + 0.05), (b - a + 0.26, 0.2, 0.12), WHITE, yaw=side.yaw)
        for a, b in side.windows:
            _window(mesh, side, a, b, hour)
            focus.append((*side.at((a + b) / 2), 1.4))
    _floor(panels, room, rng, FLOORS[floor])
    for x0, x1 in _cuts(room.x0, room.x1, 1.1):
        for y0, y1 in _cuts(room.y0, room.y1, 1.1):
            panels.polygon([(x0, y0, HEIGHT), (x0, y1, HEIGHT), (x1, y1, HEIGHT), (x1, y0, HEIGHT)], (0.80, 0.79, 0.76))
    x, y = (room.x0 + room.x1) / 2, (room.y0 + room.y1) / 2
    light = np.repeat(room.light(panels.triangles.reshape(-1, 6, 3).mean(1)), 2)  # panels are quads of two triangles
    mesh.add(panels.triangles, np.clip(panels.colours * light[:, None], 0, 1))
    mesh.box((x, y, HEIGHT - 0.08), (0.04, 0.04, 0.16), WALNUT)
    mesh.cylinder((x, y, HEIGHT - 0.40), 0.36, 0.26, BRIGHT[tint] if tint != 6 else WHITE, 10, top_radius=0.10, cap=False)
    mesh.cylinder((x, y, HEIGHT - 0.42), 0.33, 0.03, (1.0, 0.95, 0.75), 10, glow=1.0)


def _cuts(low: float, high: float, size: float) -> list[tuple[float, float]]:
    at = np.linspace(low, high, max(1, round((high - low) / size)) + 1)
    return list(zip(at[:-1], at[1:], strict=True))


def _wall(panels: Mesh, side: _Side, *stripes: np.ndarray) -> None:
    """Panels between the openings, striped: skirting, a darker dado below, the colour above."""
    marks = sorted({0.0, side.length, *[v for pair in side.doors + side.windows for v in pair]})
    columns = [cut for a, b in zip(marks[:-1], marks[1:], strict=True) for cut in _cuts(a, b, 1.0)]
    rows = ((-0.02, 0.14), (0.14, SILL), (SILL, WINDOW_TOP), (WINDOW_TOP, DOOR_HIGH), (DOOR_HIGH, HEIGHT + 0.02))
    for i, (a, b) in enumerate(columns):
        colour = stripes[i % len(stripes)]
        for z0, z1 in rows:
            middle, height = (a + b) / 2, (z0 + z1) / 2
            door = any(lo < middle < hi for lo, hi in side.doors) and height < DOOR_HIGH
            window = any(lo < middle < hi for lo, hi in side.windows) and SILL < height < WINDOW_TOP
            if door or window:
                continue
            shade = np.array(WHITE) if z1 < 0.2 else colour * (0.82 if z1 <= SILL else 1.0)
            p, q = side.at(a, THICK), side.at(b, THICK)
            panels.polygon([(*p, z0), (*q, z0), (*q, z1), (*p, z1)], tuple(shade))


def _window(mesh: Mesh, side: _Side, a: float, b: float, hour: str) -> None:
    """A pane with sky, cloud or moon and hills, its frame and its cross bars."""
    sky = hours.sky(np.random.default_rng(0), hour)
    zenith, horizon = np.array(sky.zenith), np.array(sky.horizon)
    hill = np.array((0.42, 0.72, 0.36)) if not hours.lit(hour) else np.array((0.16, 0.26, 0.34))
    levels = np.linspace(SILL, WINDOW_TOP, 5)

    def quad(s0: float, s1: float, z0: float, z1: float, colour: np.ndarray, off: float) -> None:
        p, q = side.at(s0, off), side.at(s1, off)
        mesh.polygon([(*p, z0), (*q, z0), (*q, z1), (*p, z1)], tuple(np.clip(colour, 0, 1)), 1.0)

    for i in range(4):
        t = i / 3
        quad(a - 0.1, b + 0.1, levels[i] - 0.05, levels[i + 1] + 0.05, horizon * (1 - t) + zenith * t, -0.02 + 0.002 * i)
    w = b - a
    p = [side.at(a + w * s, -0.005) for s in (-0.05, 1.05)]
    mesh.polygon([(*p[0], SILL - 0.05), (*p[1], SILL - 0.05), (*p[1], SILL + 0.22), (*side.at(a + 0.4 * w, -0.005), SILL + 0.40), (*p[0], SILL + 0.28)], tuple(hill), 1.0)
    centre, r = side.at(a + 0.72 * w, -0.004), 0.12
    turn = np.arange(8) * (np.pi / 4)
    body = (1.0, 0.95, 0.72) if hours.lit(hour) else tuple(sky.cloud_colour)
    stretch = 1.0 if hours.lit(hour) else 2.2
    mesh.polygon([(*(centre + side.along * r * stretch * np.cos(u)), 1.82 + r * np.sin(u)) for u in turn], body, 1.0)
    m, d = (a + b) / 2, 0.05
    half, post = (SILL + WINDOW_TOP) / 2, (0.1, 0.14, WINDOW_TOP - SILL + 0.1)
    bars = (
        (a, half, post), (b, half, post), (m, half, (0.06, 0.08, WINDOW_TOP - SILL)),
        (m, SILL - 0.03, (w + 0.3, 0.24, 0.08)), (m, WINDOW_TOP + 0.03, (w + 0.2, 0.14, 0.1)), (m, 1.55, (w, 0.07, 0.05)),
    )  # fmt: skip
    for s, z, size in bars:
        mesh.box((*side.at(s, d), z), size, WHITE, yaw=side.yaw)


def _floor(panels: Mesh, room: _Room, rng: np.random.Generator, kind: tuple[str, Colour, Colour]) -> None:
    style, one, two = kind
    one, two = np.array(one), np.array(two)
    x0, x1, y0, y1 = room.x0 - THICK, room.x1 + THICK, room.y0 - THICK, room.y1 + THICK
    panels.polygon([(x0, y0, -0.04), (x1, y0, -0.04), (x1, y1, -0.04), (x0, y1, -0.04)], tuple(0.9 * (one + two) / 2))  # behind cracks

    def tile(x0: float, x1: float, y0: float, y1: float, colour: np.ndarray) -> None:
        panels.polygon([(x0, y0, 0), (x1, y0, 0), (x1, y1, 0), (x0, y1, 0)], tuple(np.clip(colour, 0, 1)))

    if style == "planks":
        for j, (y0, y1) in enumerate(_cuts(room.y0, room.y1, 0.46)):
            cuts = [room.x0, *np.arange(room.x0 + 0.6 + 0.7 * (j % 3), room.x1 - 0.3, 2.0), room.x1]
            for x0, x1 in zip(cuts[:-1], cuts[1:], strict=True):
                t = rng.uniform()
                tile(x0, x1, y0, y1, one * t + two * (1 - t))
        return
    size = 0.75 if style == "checker" else 1.0
    for i, (x0, x1) in enumerate(_cuts(room.x0, room.x1, size)):
        for j, (y0, y1) in enumerate(_cuts(room.y0, room.y1, size)):
            tile(x0, x1, y0, y1, (one if (i + j) % 2 else two) * rng.uniform(0.98, 1.02))


def _furnish(mesh: Mesh, room: _Room, rng: np.random.Generator, colliders: list, focus: list) -> None:
    """Pieces along the walls where they fit, a rug and the free-standing ones in the middle, pictures on free walls."""
    colour = BRIGHT[room.plan[3]]
    cx, cy = (room.x0 + room.x1) / 2, (room.y0 + room.y1) / 2
    long = room.x1 - room.x0 > 8
    middles = 0
    for name in sorted(room.plan[4], key=lambda n: (not PIECES[n].middle, not PIECES[n].tall, -PIECES[n].width)):  # what fits hardest first
        piece = PIECES[name]
        if piece.middle:
            offset = (-2.8, 2.8, 0.0)[middles % 3] if long else 0.0
            x, y, turn = cx + offset + rng.uniform(-0.3, 0.3), cy + rng.uniform(-0.2, 0.2), rng.uniform(0, 0.3)
            box = (x - piece.width / 2, x + piece.width / 2, y - piece.deep / 2, y + piece.deep / 2)
            if (middles and not long) or not room.clear(box):
                continue
            middles += 1
            _rug(mesh, x, y, rng, BRIGHT[(room.plan[3] + 3) % 6])
            mesh.place(piece.make(rng, colour), x, y, 0.03, turn)
            room.taken.append(box)
            colliders.append(Cylinder(x, y, max(piece.width, piece.deep) * 0.46, z1=piece.height + 0.25))
            focus.append((x, y, 0.8))
            room.placed.append(piece.words)
            continue
        for _ in range(90):
            side = room.sides[int(rng.integers(4))]
            s = rng.uniform(0.1 + piece.width / 2 + THICK, side.length - piece.width / 2 - THICK - 0.1)
            a, b = s - piece.width / 2, s + piece.width / 2
            low = side.at(a, THICK + 0.02), side.at(b, THICK + 0.02 + piece.deep)
            box = (min(low[0][0], low[1][0]), max(low[0][0], low[1][0]), min(low[0][1], low[1][1]), max(low[0][1], low[1][1]))
            if not room.clear(box, 0.12) or not side.free(a - 0.1, b + 0.1, side.doors) or (piece.tall and not side.free(a - 0.1, b + 0.1, side.windows)):
                continue
            x, y = side.at(s, THICK + 0.02)
            mesh.place(piece.make(rng, colour), x, y, 0, side.yaw)
            room.taken.append(box)
            side.hidden.append((a, b))
            colliders.append(Box((box[0] + box[1]) / 2, (box[2] + box[3]) / 2, (box[1] - box[0]) / 2, (box[3] - box[2]) / 2, z1=piece.height + 0.25))
            focus.append((*side.at(s, piece.deep), 0.9))
            if piece.words not in room.placed:
                room.placed.append(piece.words)
            break
    if not middles:
        _rug(mesh, cx, cy, rng, BRIGHT[(room.plan[3] + 3) % 6])
    for side in room.sides:
        hung = 0
        for _ in range(24):
            s, w = rng.uniform(0.8, side.length - 0.8), rng.uniform(0.8, 1.15)
            if side.free(s - w / 2 - 0.12, s + w / 2 + 0.12, side.doors, side.windows, side.hidden):
                _picture(mesh, side, s, w, rng)
                side.hidden.append((s - w / 2 - 0.5, s + w / 2 + 0.5))
                hung += 1
                if hung >= side.length / 3.2:
                    break


def _rug(mesh: Mesh, x: float, y: float, rng: np.random.Generator, colour: Colour) -> None:
    w, d = rng.uniform(2.6, 3.0), rng.uniform(2.0, 2.3)
    cream, z = (0.97, 0.94, 0.86), 0.035
    corners = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)]) * (w / 2, d / 2)
    rings = [np.column_stack([corners * k + (x, y), np.full(4, z)]) for k in (1.0, 0.84, 0.66, 0.36)]
    for outer, inner, c in zip(rings, rings[1:], (colour, cream, colour), strict=False):
        for i in range(4):
            j = (i + 1) % 4
            mesh.polygon([outer[i], outer[j], inner[j], inner[i]], c)
    mesh.polygon(rings[-1], cream)


def _picture(mesh: Mesh, side: _Side, s: float, w: float, rng: np.random.Generator) -> None:
    """Framed landscape: sky, sun, two hills."""
    h, z, off = 0.72 * w, 1.62, THICK + 0.02
    mesh.box((*side.at(s, off), z), (w + 0.12, 0.06, h + 0.12), WALNUT, yaw=side.yaw)
    sky, hill, low, sun = (BRIGHT[i] for i in rng.permutation(6)[:4])

    def at(u: float, v: float, lift: float) -> tuple:
        return (*side.at(s + u * w / 2, off + 0.035 + lift), z + v * h / 2)

    mesh.polygon([at(-1, -1, 0), at(1, -1, 0), at(1, 1, 0), at(-1, 1, 0)], sky)
    turn = np.arange(8) * (np.pi / 4)
    mesh.polygon([at(0.45 + 0.24 * np.cos(t), 0.42 + 0.33 * np.sin(t), 0.004) for t in turn], sun)
    mesh.polygon([at(-1, -1, 0.008), at(1, -1, 0.008), at(-0.35, 0.45, 0.008)], hill).polygon([at(-0.5, -1, 0.012), at(1, -1, 0.012), at(1, -0.1, 0.012)], low)


def _caption(rooms: list[_Room], hour: str) -> str:
    numbers = {2: "Two", 3: "Three", 4: "Four"}
    colours = [r.plan[0] for r in rooms]
    things = []
    for r in rooms:
        r.placed.sort(key=lambda w: next(i for i, n in enumerate(r.plan[4]) if PIECES[n].words == w))
        things += [t for t in r.placed if t not in things][: 2 if len(rooms) == 2 else 1]
    things = things[:3]
    listed = ", ".join(things[:-1]) + " and " + things[-1] if len(things) > 1 else "".join(things)
    return f"{numbers[len(rooms)]} rooms {hours.WORDS[hour]}, {', '.join(colours[:-1])} and {colours[-1]}, with {listed}."
