"""What castles and ruins are made of: walls, towers, keeps, temples, columns, fountains, crystals and torches.

Parts stand on the ground at their origin with the front towards -y, like those of `parts`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from distill.scenes.mesh import Colour, Mesh
from distill.scenes.parts import DARK_WOOD, LAMP_LIGHT, WOOD, Part, shade
from distill.scenes.scene import Box, Cylinder

WATER = (0.22, 0.62, 0.94)


def masonry(mesh: Mesh, rng: np.random.Generator, start: tuple, end: tuple, height: float, colour: Colour, block: float = 2.4, course: float = 1.35, z: float = 0.0, moss: Colour | None = None) -> None:
    """A wall face of large stones from `start` to `end` (x, y), seen from the left of that direction."""
    start, end = np.array(start, dtype=float), np.array(end, dtype=float)
    length, rows = float(np.hypot(*(end - start))), max(1, round(height / course))
    quads = []
    for row in range(rows):
        cuts = np.clip(np.arange(-0.5 * (row % 2), length / block + 1) * block, 0, length)
        for a, b in itertools.pairwise(cuts):
            if b - a > 0.05:
                p, q = start + (end - start) * a / length, start + (end - start) * b / length
                low, high = z + height * row / rows, z + height * (row + 1) / rows
                quads += [[(*q, low), (*p, low), (*p, high)], [(*q, low), (*p, high), (*q, high)]]
    tone = np.repeat(1 + rng.uniform(-0.09, 0.07, len(quads) // 2), 2)
    base = np.broadcast_to(np.array(colour), (len(quads), 3))
    if moss is not None:
        base = np.where(np.repeat(rng.uniform(size=len(quads) // 2) < 0.3, 2)[:, None], np.array(moss), base)
    mesh.add(np.array(quads), np.clip(base * tone[:, None], 0, 0.985))


def wall(rng: np.random.Generator, length: float, colour: Colour, height: float = 5.2, thick: float = 1.6, broken: float = 0.0, cap: Colour | None = None, moss: Colour | None = None) -> Part:
    """A crenellated wall along x; `broken` in 0..1 is how much of its top has fallen."""
    mesh, solids = Mesh(), []
    pieces = 1 if broken == 0 else max(2, round(length / 3.2))
    edges = np.linspace(-length / 2, length / 2, pieces + 1)
    for x0, x1 in itertools.pairwise(edges):
        h = height * (1 - broken * rng.uniform(0.1, 1.0)) if broken else height
        if h < 0.5:
            continue
        y = thick / 2
        masonry(mesh, rng, (x1, -y), (x0, -y), h, colour, moss=moss)
        masonry(mesh, rng, (x0, y), (x1, y), h, colour, block=4.8, course=2.6, moss=moss)
        if broken:
            masonry(mesh, rng, (x0, -y), (x0, y), h, colour)
            masonry(mesh, rng, (x1, y), (x1, -y), h, colour)
        top = shade(colour, 1.08) if cap is None else cap
        mesh.polygon([(x0, -y, h), (x1, -y, h), (x1, y, h), (x0, y, h)], top)
        if not broken:
            for x in np.arange(x0 + 0.7, x1 - 0.3, 2.2):
                mesh.box((x, -y + 0.3, h + 0.5), (1.15, 0.6, 1.0), shade(colour, 1.04))
                if cap is not None:
                    mesh.box((x, -y + 0.3, h + 1.08), (1.2, 0.66, 0.18), cap)
        solids.append(Box((x0 + x1) / 2, 0, (x1 - x0) / 2, y, z1=h + 1.0))
    return Part(mesh, solids, 1.0)


def tower(rng: np.random.Generator, stone: Colour, roof: Colour, lit: bool, radius: float = 3.0, height: float = 8.5, style: str = "cone", sides: int = 10) -> Part:
    """A round tower: `style` of its top is "cone", "dome", "flat" or "broken"."""
    mesh = Mesh()
    for i in range(4):
        mesh.cylinder((0, 0, height * i / 4), radius * (1.08 if i == 0 else 1.0), height / 4, shade(stone, 0.93 + 0.06 * (i % 2)), sides, radius, cap=style == "broken" and i == 3)
    pane = LAMP_LIGHT if lit else (0.20, 0.18, 0.26)
    for a in np.arange(4) * np.pi / 2 + np.pi / 4:
        for z in (height * 0.38, height * 0.74):
            mesh.box((radius * 0.97 * np.cos(a), radius * 0.97 * np.sin(a), z), (0.3, 0.7, 1.3), pane, yaw=a, glow=float(lit))
    if style != "broken":
        mesh.cylinder((0, 0, height), radius * 1.18, 0.8, shade(stone, 1.05), sides)
    if style == "cone":
        mesh.cylinder((0, 0, height + 0.8), radius * 1.3, radius * 1.7, roof, sides, 0.0)
        top = height + 0.8 + radius * 1.7
        mesh.box((0, 0, top + 0.5), (0.12, 0.12, 1.8), DARK_WOOD)
        flag = [(0, 0, top + 1.3), (1.5, 0, top + 1.0), (0, 0, top + 0.6)]
        mesh.polygon(flag, shade(roof, 1.15)).polygon(flag[::-1], shade(roof, 1.15))
    elif style == "dome":
        mesh.blob((0, 0, height + 0.9), (radius * 1.05, radius * 1.05, radius * 1.15), roof, rng, 0.0, 1).cylinder((0, 0, height + radius * 1.1), 0.2, 2.2, (0.95, 0.80, 0.30), 5, 0.03)
    elif style == "flat":
        for a in np.arange(6) * np.pi / 3:
            mesh.box((radius * 1.0 * np.cos(a), radius * 1.0 * np.sin(a), height + 1.2), (0.6, 1.3, 0.9), roof, yaw=a)
    return Part(mesh, [Cylinder(0, 0, radius * 1.12, z1=height + 2)], radius * 1.2)


def keep(rng: np.random.Generator, colour: Colour, lit: bool, stone: Colour) -> Part:
    """The main building: a high hall with a steep roof between two turrets."""
    mesh, (w, d, h) = Mesh(), (10.0, 6.0, 7.5)
    masonry(mesh, rng, (w / 2, -d / 2), (-w / 2, -d / 2), h, stone)
    for a, b in (((-w / 2, d / 2), (w / 2, d / 2)), ((w / 2, d / 2), (w / 2, -d / 2)), ((-w / 2, -d / 2), (-w / 2, d / 2))):
        masonry(mesh, rng, a, b, h, stone, block=3.0, course=2.5)
    mesh.gable((0, 0, h - 0.1), (w + 0.8, d + 1.0, 4.2), colour, wall_colour=shade(stone, 1.05))
    for x in (-w / 2, w / 2):
        mesh.place(tower(rng, shade(stone, 1.04), colour, lit, 1.6, 10.0, sides=8).mesh, x, -d / 2 + 0.4)
    pane, y = (LAMP_LIGHT, 1.0) if lit else ((0.48, 0.72, 0.95), 0.15), -d / 2 - 0.06
    for x in (-2.4, 0.0, 2.4):
        mesh.box((x, y, 5.3), (1.2, 0.2, 1.9), shade(stone, 1.15)).box((x, y - 0.06, 5.3), (0.8, 0.2, 1.5), pane[0], glow=pane[1])
    mesh.box((0, y, 1.7), (2.9, 0.24, 3.4), shade(stone, 1.15)).box((0, y - 0.08, 1.5), (2.2, 0.24, 3.0), WOOD)
    for i in range(3):
        mesh.box((0, -d / 2 - 1.6 + 0.5 * i, 0.13 + 0.26 * i), (4.6 - 0.4 * i, 1.0, 0.26), shade(stone, 1.1 - 0.08 * (i % 2)))
    for x in (-3.3, 3.3):
        mesh.box((x, y, 2.9), (1.0, 0.14, 3.0), colour)
    return Part(mesh, [Box(0, -0.6, w / 2 + 0.6, d / 2 + 1.2, z1=h + 3)], 6.2)


def gate(rng: np.random.Generator, colour: Colour, lit: bool, stone: Colour) -> Part:
    """Two square towers and a wooden door between them."""
    mesh, pane = Mesh(), LAMP_LIGHT if lit else (0.20, 0.18, 0.26)
    for x in (-3.4, 3.4):
        for a, b in (((x + 1.5, -1.6), (x - 1.5, -1.6)), ((x - 1.5, -1.6), (x - 1.5, 1.6)), ((x + 1.5, 1.6), (x + 1.5, -1.6))):
            masonry(mesh, rng, a, b, 7.2, shade(stone, 1.03), block=1.7)
        mesh.box((x, 0, 7.4), (3.6, 3.8, 0.5), shade(stone, 1.1)).cylinder((x, 0, 7.6), 2.6, 2.8, colour, 4, 0.0, turn=np.pi / 4)
        mesh.box((x, -1.64, 5.0), (0.7, 0.2, 1.3), pane, glow=float(lit))
    mesh.box((0, 0, 5.3), (4.0, 2.2, 1.8), stone).box((0, -0.5, 2.2), (3.9, 0.5, 4.4), WOOD)
    for x in (-1.5, -0.5, 0.5, 1.5):
        mesh.box((x, -0.8, 2.2), (0.16, 0.16, 4.4), DARK_WOOD)
    for z in (1.0, 2.4, 3.8):
        mesh.box((0, -0.8, z), (3.9, 0.14, 0.22), (0.30, 0.30, 0.34))
    return Part(mesh, [Box(0, 0, 5.0, 1.8, z1=8)], 5.2)


def temple(rng: np.random.Generator, colour: Colour, lit: bool, stone: Colour) -> Part:
    """Columns on steps under a pediment in the main colour."""
    mesh, (w, d) = Mesh(), (9.5, 6.5)
    for i in range(3):
        mesh.box((0, 0, 0.2 + 0.4 * i), (w + 2.4 - 0.9 * i, d + 2.4 - 0.9 * i, 0.4), shade(stone, 0.90 + 0.07 * i))
    for x in np.linspace(-w / 2 + 0.6, w / 2 - 0.6, 5):
        for y in (-d / 2 + 0.6, d / 2 - 0.6):
            mesh.cylinder((x, y, 1.2), 0.45, 4.2, shade(stone, 1.05), 8, 0.36, cap=False)
            mesh.box((x, y, 5.5), (1.0, 1.0, 0.3), stone)
    mesh.box((0, 0.5, 3.2), (w - 3.4, d - 3.4, 4.0), shade(colour, 1.0 if lit else 0.9), glow=0.35 if lit else 0.0)
    mesh.box((0, 0, 5.95), (w + 0.6, d + 0.6, 0.6), stone)
    roof = Mesh().gable((0, 0, 6.2), (d + 1.0, w + 1.0, 2.3), colour, wall_colour=shade(stone, 1.04))
    return Part(mesh.place(roof, 0, 0, 0, np.pi / 2), [Box(0, 0, w / 2 + 1.3, d / 2 + 1.3, z1=8.0)], 6.8)


def ziggurat(rng: np.random.Generator, colour: Colour, lit: bool, stone: Colour) -> Part:
    """A step pyramid with a shrine in the main colour."""
    mesh, z = Mesh(), 0.0
    for i in range(5):
        w = 12.0 - 2.1 * i
        tone = np.array(shade(stone, 1.06 if i % 2 else 0.92)) * (0.65 if i % 2 else 1.0) + np.array(colour) * (0.35 if i % 2 else 0.0)
        mesh.box((0, 0, z + 0.8), (w, w, 1.6), tuple(tone), taper=0.94)
        z += 1.6
    for i in range(8):
        mesh.box((0, -6.5 + 0.56 * i, 0.5 + i * 0.98), (2.4, 1.4, 1.0), shade(stone, 1.15))
    mesh.box((0, 0, z + 1.0), (2.6, 2.6, 2.0), colour).box((0, -1.32, z + 0.8), (1.0, 0.1, 1.5), LAMP_LIGHT if lit else (0.15, 0.13, 0.16), glow=float(lit)).cylinder((0, 0, z + 2.0), 2.4, 1.3, shade(colour, 0.8), 4, 0.4, turn=np.pi / 4)
    return Part(mesh, [Box(0, -0.4, 6.1, 6.7, z1=4.0), Box(0, 0, 4.0, 4.0, z0=4.0, z1=12)], 7.6)


def fountain(rng: np.random.Generator, colour: Colour, lit: bool, stone: Colour) -> Part:
    """Two basins of water with a rim in the main colour."""
    mesh = Mesh().cylinder((0, 0, 0), 2.6, 0.75, colour, 12, 2.4, cap=False).cylinder((0, 0, 0.5), 2.38, 0.2, WATER, 12, glow=0.25)
    for i in range(12):
        a = (i + 0.5) * np.pi / 6
        mesh.box((2.42 * np.cos(a), 2.42 * np.sin(a), 0.8), (0.5, 1.3, 0.22), shade(stone, 1.12 if i % 2 else 0.95), yaw=a)
    mesh.cylinder((0, 0, 0.6), 0.42, 1.5, stone, 8, 0.3).cylinder((0, 0, 2.0), 0.3, 0.45, colour, 10, 1.25, cap=False).cylinder((0, 0, 2.3), 1.1, 0.1, WATER, 10, glow=0.25)
    mesh.cylinder((0, 0, 2.3), 0.18, 1.3, (0.72, 0.90, 0.98), 6, 0.3, glow=0.4).blob((0, 0, 3.6), 0.4, (0.85, 0.95, 0.985), rng, 0.1, 0, glow=0.4)
    return Part(mesh, [Cylinder(0, 0, 2.7, z1=1.2), Cylinder(0, 0, 1.3, z1=3.8)], 3.0)


def column(rng: np.random.Generator, stone: Colour, height: float = 4.6, broken: bool = False) -> Part:
    mesh = Mesh().box((0, 0, 0.2), (1.5, 1.5, 0.4), shade(stone, 0.9))
    h = height * rng.uniform(0.25, 0.6) if broken else height
    for i in range(3):
        mesh.cylinder((0, 0, 0.4 + h * i / 3), 0.52 - 0.03 * i, h / 3, shade(stone, 0.97 + 0.06 * (i % 2)), 8, 0.49 - 0.03 * i, cap=broken and i == 2)
    if not broken:
        mesh.box((0, 0, h + 0.55), (1.4, 1.4, 0.35), shade(stone, 1.1))
    return Part(mesh, [Cylinder(0, 0, 0.85, z1=h + 0.8)], 1.1)


def fallen(rng: np.random.Generator, stone: Colour) -> Part:
    """Drums of a fallen column, along x."""
    mesh, angle, r = Mesh(), np.arange(9) * np.pi / 4, 0.5
    for x0 in (-1.7, -0.3, 1.1):
        tone = rng.uniform(0.92, 1.08)
        for i in range(8):
            mesh.polygon([(x, r * np.cos(a), r * 0.9 + r * np.sin(a)) for x, a in ((x0, angle[i]), (x0 + 1.25, angle[i]), (x0 + 1.25, angle[i + 1]), (x0, angle[i + 1]))], shade(stone, tone))
        for x in (x0, x0 + 1.25):
            ring = [(x, r * np.cos(a), r * 0.9 + r * np.sin(a)) for a in angle[:8]]
            mesh.polygon(ring if x > x0 else ring[::-1], shade(stone, 0.85))
    return Part(mesh, [Box(0, 0, 2.1, 0.6, z1=1.0)], 1.8)


def arch(rng: np.random.Generator, colour: Colour, lit: bool, stone: Colour) -> Part:
    """A free-standing stone arch with a band in the main colour."""
    mesh = Mesh()
    for x in (-2.0, 2.0):
        mesh.box((x, 0, 1.9), (1.2, 1.3, 3.8), stone).box((x, 0, 3.0), (1.3, 1.4, 0.5), colour)
    for a in np.linspace(0.35, np.pi - 0.35, 5):
        mesh.box((2.0 * np.cos(a), 0, 3.7 + 1.7 * np.sin(a)), (1.35, 1.3, 1.15), shade(stone, rng.uniform(0.92, 1.1)))
    return Part(mesh, [Box(-2.0, 0, 0.7, 0.75, z1=4), Box(2.0, 0, 0.7, 0.75, z1=4), Box(0, 0, 2.7, 0.75, z0=3.9, z1=6)], 2.6)


def obelisk(rng: np.random.Generator, colour: Colour, lit: bool, stone: Colour) -> Part:
    mesh = Mesh().box((0, 0, 0.35), (2.6, 2.6, 0.7), shade(stone, 0.9)).box((0, 0, 1.0), (1.9, 1.9, 0.6), shade(stone, 1.05))
    for i in range(3):
        w = 1.4 - 0.2 * i
        mesh.box((0, 0, 2.2 + 1.9 * i), (w, w, 1.9), colour if i == 1 else shade(stone, 1.08), taper=(w - 0.2) / w)
    mesh.cylinder((0, 0, 7.05), 0.57, 1.0, (0.97, 0.80, 0.28), 4, 0.0, turn=np.pi / 4, glow=0.3)
    return Part(mesh, [Box(0, 0, 1.35, 1.35, z1=7.5)], 1.9)


def crystals(rng: np.random.Generator, colour: Colour, lit: bool, stone: Colour) -> Part:
    """A cluster of large shining crystals."""
    mesh = Mesh()
    for i in range(6):
        a, r = i * 1.05, 0.0 if i == 0 else rng.uniform(0.6, 1.0)
        h, w = (3.6, 0.6) if i == 0 else (rng.uniform(1.2, 2.4), 0.4)
        x, y, tone = r * np.cos(a), r * np.sin(a), shade(colour, rng.uniform(0.85, 1.15))
        mesh.cylinder((x, y, -0.1), w * 0.7, h * 0.7, tone, 5, w, cap=False, glow=0.6).cylinder((x, y, h * 0.7 - 0.1), w, h * 0.4, shade(tone, 1.15), 5, 0.0, cap=False, glow=0.7)
    return Part(mesh, [Cylinder(0, 0, 1.4, z1=3.6)], 1.7)


def torch(rng: np.random.Generator, colour: Colour = (0.99, 0.66, 0.2)) -> Part:
    mesh = Mesh().cylinder((0, 0, 0), 0.12, 1.8, DARK_WOOD, 5, cap=False).cylinder((0, 0, 1.7), 0.15, 0.35, (0.25, 0.25, 0.3), 6, 0.38)
    mesh.cylinder((0, 0, 2.0), 0.3, 0.85, colour, 5, 0.0, glow=1.0)
    return Part(mesh, [Cylinder(0, 0, 0.3, z1=2.4)], 0.5)


def banner(colour: Colour, height: float = 3.2) -> Mesh:
    """Cloth with a lighter band and a pointed end, hanging in front of a wall whose face is at y = 0."""
    mesh, w = Mesh(), 0.8
    mesh.polygon([(-w, -0.1, -height), (0, -0.1, -height - 0.8), (w, -0.1, -height), (w, -0.1, 0), (-w, -0.1, 0)], colour)
    mesh.polygon([(-w * 0.4, -0.14, -height * 0.75), (w * 0.4, -0.14, -height * 0.75), (w * 0.4, -0.14, -height * 0.3), (-w * 0.4, -0.14, -height * 0.3)], (0.97, 0.86, 0.45))
    return mesh.box((0, -0.1, 0.05), (w * 2.4, 0.16, 0.16), DARK_WOOD)


def stairs(rng: np.random.Generator, stone: Colour, steps: int = 9) -> Part:
    """Stairs along x that rise towards +x, for the inside of a wall."""
    mesh = Mesh()
    for i in range(steps):
        h = 4.6 * (i + 1) / steps
        mesh.box((-3.6 + 0.8 * i, 0, h / 2), (0.8, 1.8, h), shade(stone, 1.1 if i % 2 else 0.96))
    return Part(mesh, [Box(0, 0, 4.0, 1.0, z1=4.6)], 3.4)


LANDMARKS: dict[str, tuple[Callable[..., Part], str]] = {
    "keep": (keep, "keep"), "gate": (gate, "gate"), "temple": (temple, "temple"), "ziggurat": (ziggurat, "step pyramid"), "fountain": (fountain, "fountain"),
    "arch": (arch, "stone arch"), "obelisk": (obelisk, "obelisk"), "crystals": (crystals, "crystals"),
}  # fmt: skip
